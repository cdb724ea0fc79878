"""The task: manifests in, teacher's hidden states out. It owns the teacher."""

import logging
import os
from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch
import torch.distributed as dist
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from fairseq_star.data import DistillationDataset, check_manifest
from fairseq_star.encoder import Encoding, compile_layers
from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.layers import match_layers
from fairseq_star.teacher_cache import STORED_DTYPES, TeacherCache
from fairseq_star.teachers import Teacher, load_teacher

logger = logging.getLogger(__name__)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class StarDistillationConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "folder of the manifests, {split}.tsv"})
    teacher: Optional[str] = field(
        default=None, metadata={"help": "checkpoint of the teacher, such as hubert_base_ls960.pt"}
    )
    sample_rate: Optional[int] = field(
        default=None, metadata={"help": "Hz; taken from the teacher, and an error where it contradicts the teacher"}
    )
    normalize: Optional[bool] = field(
        default=None,
        metadata={"help": "audio to zero mean and unit variance; taken from the teacher, likewise"},
    )
    max_sample_size: Optional[int] = field(default=None, metadata={"help": "crop longer utterances to so many samples"})
    min_sample_size: Optional[int] = field(default=None, metadata={"help": "leave out utterances of fewer samples"})
    fixed_crop: bool = field(
        default=False, metadata={"help": "crop to the beginning; off: at random, but repeatably, anew each epoch"}
    )
    skip_audio_check: bool = field(
        default=False,
        metadata={"help": "do not read every file's header before training (seconds for 100 h) to name bad ones"},
    )
    padded_group_norm: bool = field(
        default=False,
        metadata={
            "help": "first group norm of teacher and student (and what else mixes padding in) over the padded batch, "
            "as the libraries do; off: over valid samples, so that features do not depend on the neighbours in a batch"
        },
    )
    teacher_precision: Optional[ChoiceEnum(list(PRECISIONS))] = field(
        default=None, metadata={"help": "precision the teacher computes in; that of the run when not given"}
    )
    compile: bool = field(
        default=False,
        metadata={"help": "torch.compile the layers of teacher and student; best with task.pad_to_multiple"},
    )
    pad_to_multiple: int = field(
        default=1,
        metadata={"help": "pad batches to a multiple of so many samples (16000 say), so that compiled code is reused"},
    )
    teacher_cache: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder to keep the teacher's hidden states in, so that later epochs and runs skip the teacher; "
            "the space it takes is told first (about 3.6 GB an hour of audio for HuBERT Base)"
        },
    )
    teacher_cache_dtype: ChoiceEnum(list(STORED_DTYPES)) = field(
        default="float16", metadata={"help": "precision the hidden states are kept in"}
    )
    persistent_workers: bool = field(
        default=False,
        metadata={"help": "keep data workers from epoch to epoch; random crops are then those of the first epoch"},
    )
    seed: int = II("common.seed")


@register_task("star_distillation", dataclass=StarDistillationConfig)
class StarDistillationTask(FairseqTask):
    """Distil a speech SSL model: a frozen teacher's hidden states for each batch of a manifest.

    The teacher is loaded when a model is built for training, never when a finished student is loaded.
    """

    cfg: StarDistillationConfig

    def __init__(self, cfg: StarDistillationConfig):
        super().__init__(cfg)
        self.teacher: Teacher | None = None
        self.teacher_cache: TeacherCache | None = None
        self.student_layers = 0

    @classmethod
    def setup_task(cls, cfg: StarDistillationConfig, **kwargs) -> "StarDistillationTask":
        return cls(cfg)

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False):
        if from_checkpoint:
            return super().build_model(cfg, from_checkpoint)
        with told_in_one_line():
            self._check_manifests_exist()
            teacher = self._load_teacher()
            model = super().build_model(cfg)
            _check_geometry(teacher, model)
            self.teacher_cache = self._make_cache(teacher)
        if self.cfg.compile:
            compile_layers(teacher.model)
            compile_layers(model)
        self.teacher = teacher
        self.student_layers = len(model.encoder.layers)
        student_parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info(
            f"teacher: {teacher.num_parameters:,} parameters, {teacher.num_layers} layers of {teacher.embed_dim}; "
            f"student: {student_parameters:,} ({student_parameters / teacher.num_parameters:.1%})"
        )
        return model

    def _check_manifests_exist(self) -> None:
        if not os.path.isdir(self.cfg.data):
            raise StarError(
                f"task.data: {self.cfg.data} is no folder; make manifests there with manifests/librispeech.py or "
                "manifests/audio_folder.py"
            )

    def _load_teacher(self) -> Teacher:
        """Load the teacher and take its audio format over, for this run and into the student's checkpoints."""
        if not self.cfg.teacher:
            raise StarError("task.teacher: give the teacher's checkpoint, such as task.teacher=hubert_base_ls960.pt")
        teacher = load_teacher(self.cfg.teacher, valid_group_norm=not self.cfg.padded_group_norm)
        for name in ("sample_rate", "normalize"):
            wanted, trained = getattr(self.cfg, name), getattr(teacher, name)
            if wanted is not None and wanted != trained:
                raise StarError(f"task.{name}={wanted} contradicts the teacher, trained with {trained}; leave it out")
            setattr(self.cfg, name, trained)
        self.state.merge_state_dict({"sample_rate": teacher.sample_rate, "normalize": teacher.normalize})
        return teacher

    def _make_cache(self, teacher: Teacher) -> TeacherCache | None:
        if not self.cfg.teacher_cache:
            return None
        return TeacherCache(
            self.cfg.teacher_cache,
            dtype=str(self.cfg.teacher_cache_dtype),
            teacher=teacher,
            checkpoint=self.cfg.teacher,
            valid_group_norm=not self.cfg.padded_group_norm,
        )

    def match_layers(self, chosen: Sequence[int] | None) -> list[int]:
        """The teacher layer for each student layer; see :func:`fairseq_star.layers.match_layers`."""
        return match_layers(self.teacher.num_layers, self.student_layers, chosen)

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **kwargs) -> None:
        """Load ``{data}/{split}.tsv``, refusing a bad line or file before training starts."""
        path = os.path.join(self.cfg.data, f"{split}.tsv")
        distributed = dist.is_available() and dist.is_initialized()
        with told_in_one_line():
            check_manifest(
                path,
                sample_rate=self.cfg.sample_rate,
                rank=dist.get_rank() if distributed else 0,
                world_size=dist.get_world_size() if distributed else 1,
                headers=not self.cfg.skip_audio_check,
            )
            self.datasets[split] = DistillationDataset(
                path,
                sample_rate=self.cfg.sample_rate,
                normalize=self.cfg.normalize,
                max_sample_size=self.cfg.max_sample_size,
                min_sample_size=max(self.cfg.min_sample_size or 0, self._shortest()),
                random_crop=not self.cfg.fixed_crop,
                pad_to_multiple=self.cfg.pad_to_multiple,
                seed=self.cfg.seed,
                digests=self.teacher_cache is not None,
            )
            if self.teacher_cache is not None:
                self.teacher_cache.expect(split, self.datasets[split])

    def _shortest(self) -> int:
        return self.teacher.geometry.receptive_field if self.teacher else 1

    def teach(self, sample: dict, *, states: Sequence[int] | None = None, **wanted) -> Encoding:
        """The teacher's encoding of a batch; ``wanted`` as :meth:`Teacher.forward` takes it.

        ``states`` are the numbers of the hidden states the caller will use (-1 for ``projected_features``, all when
        None): a teacher cache keeps and gives no others.
        """
        source: torch.Tensor = sample["net_input"]["source"]
        if self.teacher_cache is None:
            return self._run_teacher(source, sample["num_samples"], **wanted)
        with told_in_one_line():
            return self.teacher_cache.encode(
                sample, self._run_teacher, precision=self._precision(source), states=states, **wanted
            )

    def _run_teacher(self, source: torch.Tensor, num_samples: Sequence[int], **wanted) -> Encoding:
        if self.cfg.teacher_precision is None:
            self.teacher.follow(source)
            return self.teacher(source, num_samples, **wanted)
        self.teacher.follow(source, PRECISIONS[str(self.cfg.teacher_precision)])
        with torch.autocast(source.device.type, enabled=False):
            return self.teacher(source, num_samples, **wanted)

    def _precision(self, source: torch.Tensor) -> str:
        """What :meth:`_run_teacher` computes in, in words that tell apart what a cache must not mix."""
        if self.cfg.teacher_precision is not None:
            return str(self.cfg.teacher_precision)
        device = source.device.type
        if torch.is_autocast_enabled(device):
            return f"autocast to {torch.get_autocast_dtype(device)}"
        return str(source.dtype).removeprefix("torch.")

    def max_positions(self):
        return None


def _check_geometry(teacher: Teacher, student) -> None:
    if teacher.geometry == student.geometry:
        return
    rates = [teacher.sample_rate / model.geometry.downsample_rate for model in (teacher, student)]
    raise StarError(
        f"teacher and student frames differ: {rates[0]:g} Hz with {teacher.geometry.receptive_field} samples a frame "
        f"against {rates[1]:g} Hz with {student.geometry.receptive_field} samples a frame; "
        "change model.conv_feature_layers"
    )
