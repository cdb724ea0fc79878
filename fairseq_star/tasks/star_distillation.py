"""The task: manifests in, teacher's hidden states out. It owns the teacher."""

import logging
import os
from typing import Sequence

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import OmegaConf

from fairseq_star.data.augment.chunks import in_drawn_chunks
from fairseq_star.data.augment.distortion import MANIFESTS
from fairseq_star.data.augment.student_view import StudentView, alone, teacher_source
from fairseq_star.data.bad_audio import BadAudio, stand_in, without_counts
from fairseq_star.data.dataset import DistillationDataset, check_manifest
from fairseq_star.data.long_recordings import told_if_too_long, warn_of_long
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.fairseq_hooks.checkpoints import guard_runs, kept_teacher
from fairseq_star.fairseq_hooks.first_weights import begin_student, size_student
from fairseq_star.fairseq_hooks.loss_watch import LossWatch, second_look
from fairseq_star.fairseq_hooks.preflight import check_frames, check_streaming
from fairseq_star.fairseq_hooks.stopping import StopRequest
from fairseq_star.fairseq_hooks.throughput import TRAINED, Throughput
from fairseq_star.fairseq_hooks.workers import rank_and_world_size
from fairseq_star.formats import hub, load_teacher
from fairseq_star.formats.student import TEACHER
from fairseq_star.losses.batch import bare
from fairseq_star.losses.layer_plan import match_layers
from fairseq_star.models.starhubert import StarHubertModel
from fairseq_star.plots.tensorboard import TensorboardMaps
from fairseq_star.tasks.options import PRECISIONS, StarDistillationConfig
from fairseq_star.teacher.cache.cache import TeacherCache, teacher_digest
from fairseq_star.teacher.cache.settings import NONE

logger = logging.getLogger(__name__)


@register_task("star_distillation", dataclass=StarDistillationConfig)
class StarDistillationTask(FairseqTask):
    """Distil a speech SSL model: a frozen teacher's hidden states for each batch of a manifest.

    The teacher is loaded when a model is built for training, never when a finished student is loaded.
    """

    cfg: StarDistillationConfig

    def __init__(self, cfg: StarDistillationConfig):
        super().__init__(cfg)
        self.teacher: FrozenEncoder | None = None
        self.teacher_cache: TeacherCache | None = None
        self.view: StudentView | None = None
        self.first_weights_folder = OmegaConf.select(cfg, "save_dir", throw_on_resolution_failure=False)
        self.student_layers = self.student_dim = 0
        with told_in_one_line():
            self.bad_audio = BadAudio(str(cfg.on_bad_audio), cfg.max_bad_share)
            # Read only where it is needed: a task made without a whole run's config has none.
            self.maps = TensorboardMaps(cfg.log_tgm_maps, cfg.tensorboard_logdir if cfg.log_tgm_maps else None)
        self.losses, self.throughput = LossWatch(), Throughput()
        self.stop = StopRequest()

    @classmethod
    def setup_task(cls, cfg: StarDistillationConfig, **kwargs) -> "StarDistillationTask":
        return cls(cfg)

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False):
        if from_checkpoint:
            return self._learning_mask(super().build_model(cfg, from_checkpoint))
        with told_in_one_line():
            self._check_manifests_exist()
            path = self._locate_teacher()
            teacher = self._load_teacher(path)
            size_student(cfg, teacher.config)
            model = self._learning_mask(super().build_model(cfg))
            check_frames(teacher, model, self.cfg.max_sample_size)
            check_streaming(teacher, model)
            begin_student(self, model, teacher)
            self.teacher_cache = self._make_cache(teacher, path)
            if self.cfg.compile and model.cfg.weight_bits:
                raise StarError("task.compile=true cannot compile model.weight_bits; leave one of them out")
        if self.cfg.compile:
            teacher.model.compile_layers()
            model.compile_layers()
        self.teacher = teacher
        self.student_layers, self.student_dim = len(model.encoder.layers), model.config.embed_dim
        student_parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info(
            f"teacher: {teacher.num_parameters:,} parameters, {teacher.num_layers} layers of {teacher.embed_dim}; "
            f"student: {student_parameters:,} ({student_parameters / teacher.num_parameters:.1%})"
        )
        return model

    def _learning_mask(self, model: StarHubertModel) -> StarHubertModel:
        if self.cfg.mask_prob:
            model.learn_mask()
        return model

    def _check_manifests_exist(self) -> None:
        if not os.path.isdir(self.cfg.data):
            raise StarError(
                f"task.data: {self.cfg.data} is no folder; make manifests there with manifests/librispeech.py or "
                "manifests/audio_folder.py"
            )

    def _locate_teacher(self) -> str:
        """The teacher's file or folder. Of a HuggingFace id the run keeps the commit, so that it ends with the teacher
        it began with."""
        name = self.cfg.teacher
        if not name:
            raise StarError("task.teacher: give the teacher's checkpoint, such as task.teacher=hubert_base_ls960.pt")
        if rank_and_world_size()[0] == 0 and hub.names_moving(name) and self.cfg.save_dir:
            name = hub.follow_run(name, kept_teacher(self.cfg.save_dir, self.cfg.restore_file))
        located = hub.locate_together(name, "task.teacher")
        self.cfg.teacher = located.name
        return located.path

    def _load_teacher(self, path: str) -> FrozenEncoder:
        """Load the teacher and take its audio format over, for this run and into the student's checkpoints."""
        teacher = load_teacher(path, valid_group_norm=not self.cfg.padded_group_norm)
        for name in ("sample_rate", "normalize"):
            wanted, trained = getattr(self.cfg, name), getattr(teacher, name)
            if wanted is not None and wanted != trained:
                raise StarError(f"task.{name}={wanted} contradicts the teacher, trained with {trained}; leave it out")
            setattr(self.cfg, name, trained)
        recorded = {"sample_rate": teacher.sample_rate, "normalize": teacher.normalize}
        self.state.merge_state_dict(recorded | {TEACHER: teacher_digest(path)})
        return teacher

    def _make_cache(self, teacher: FrozenEncoder, path: str) -> TeacherCache | None:
        compression = str(self.cfg.teacher_cache_compression)
        if not self.cfg.teacher_cache:
            if compression != NONE or self.cfg.teacher_cache_dim is not None:
                raise StarError(
                    f"task.teacher_cache_compression={compression} and task.teacher_cache_dim="
                    f"{self.cfg.teacher_cache_dim} are of task.teacher_cache; name a folder there, or leave them out"
                )
            return None
        return TeacherCache(
            self.cfg.teacher_cache,
            dtype=str(self.cfg.teacher_cache_dtype),
            teacher=teacher,
            checkpoint=path,
            valid_group_norm=not self.cfg.padded_group_norm,
            compression=compression,
            dim=self.cfg.teacher_cache_dim,
        )

    def match_layers(self, chosen: Sequence[int] | None) -> list[int]:
        """The teacher layer for each student layer; see :func:`fairseq_star.losses.layer_plan.match_layers`."""
        return match_layers(self.teacher.num_layers, self.student_layers, chosen)

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **kwargs) -> None:
        """Load ``{data}/{split}.tsv``, refusing a bad line or file before training starts."""
        path = os.path.join(self.cfg.data, f"{split}.tsv")
        with told_in_one_line():
            self._check_manifest(path, headers=not self.cfg.skip_audio_check)
            if self.teacher is not None and self.view is None:  # else no student is trained, or it is there already
                self.view = self._make_view()
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
                read_ahead=self.teacher_cache and self.teacher_cache.read_ahead,
                view=self.view,
            )
            self.bad_audio.set_split_size(len(self.datasets[split]))
            if rank_and_world_size()[0] == 0:
                warn_of_long(split, self.datasets[split])
            if self.teacher_cache is not None:
                self.teacher_cache.count_in(split, self.datasets[split])

    def _check_manifest(self, path: str, *, headers: bool) -> None:
        rank, world_size = rank_and_world_size()
        check_manifest(path, sample_rate=self.cfg.sample_rate, rank=rank, world_size=world_size, headers=headers)

    def _make_view(self) -> StudentView | None:
        view = StudentView.of(
            self.cfg,
            geometry=self.teacher.geometry,
            num_channels=self.student_dim,
            sample_rate=self.cfg.sample_rate,
            normalize=self.cfg.normalize,
            seed=self.cfg.seed,
        )
        for name in MANIFESTS:
            if path := self.cfg[name]:
                try:
                    self._check_manifest(path, headers=True)
                except StarError as error:
                    raise StarError(f"task.{name}: {error}") from error
        return view

    def get_batch_iterator(self, dataset, *arguments, **options):
        with told_in_one_line():
            iterator = super().get_batch_iterator(dataset, *arguments, **options)
        # A validation's begin when the process is at its largest, and would keep a copy of that to the run's end.
        # A task without a run around it has no training set.
        training = OmegaConf.select(self.cfg, "train_subset", throw_on_resolution_failure=False)
        iterator.persistent_workers &= dataset is self.datasets.get(training)
        return iterator

    def _shortest(self) -> int:
        return self.teacher.geometry.receptive_field if self.teacher else 1

    def teach(self, sample: dict, *, states: Sequence[int] | None = None, **wanted) -> Encoding:
        """The teacher's encoding of a batch; ``wanted`` as :meth:`FrozenEncoder.forward` takes it.

        ``states`` are the numbers of the hidden states the caller will use (-1 for ``projected_features``, all when
        None): a teacher cache keeps and gives no others.
        """
        source = teacher_source(sample)
        if self.teacher_cache is None or "audio_digests" not in sample:  # none: a part of a batch, or a stand-in
            return self._run_teacher(source, sample["num_samples"], **wanted)
        with told_in_one_line():
            return self.teacher_cache.encode(
                sample, self._run_teacher, precision=self._precision(source), states=states, **wanted
            )

    def _run_teacher(self, source: torch.Tensor, num_samples: Sequence[int], **wanted) -> Encoding:
        self.throughput.count(self.teacher.config, num_samples)
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

    def begin_epoch(self, epoch: int, model) -> None:
        self.bad_audio.begin_pass()
        weight = next(model.parameters())
        precision = torch.float16 if self.cfg.amp else weight.dtype
        self.throughput.begin(weight.device, precision, int(self.cfg.max_update or 0))

    def begin_valid_epoch(self, epoch: int, model) -> None:
        self.losses.check()
        self.maps.begin_validation(model)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        sample = in_drawn_chunks(sample, bare(model).config.chunk_frames, self.cfg.seed, update_num)
        if second_look():
            return self._find_utterance(sample, model, criterion, update_num)
        with told_in_one_line():
            bad = self.bad_audio.report(sample)
        counts = "net_input" in sample
        if not counts:  # the other workers wait for this one's part of the gradient
            sample, ignore_grad = self._stand_in(model), True
        with told_in_one_line(), told_if_too_long(sample, self.cfg.sample_rate):
            loss, sample_size, log = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        self.losses.remember(update_num, sample["paths"], loss)
        self.throughput.count(bare(model).config, sample["num_samples"], TRAINED)
        self.throughput.end_update(update_num)
        return loss, *self._counted(counts, sample_size, log, bad)

    def valid_step(self, sample, model, criterion):
        with told_in_one_line():
            bad = self.bad_audio.report(sample)
        counts = "net_input" in sample
        with told_in_one_line(), told_if_too_long(sample, self.cfg.sample_rate):
            loss, sample_size, log = super().valid_step(sample if counts else self._stand_in(model), model, criterion)
        if counts:
            self.maps.draw(self, criterion, sample)
        return loss, *self._counted(counts, sample_size, log, bad)

    def _stand_in(self, model) -> dict:
        return stand_in(self.teacher.geometry, model, masked=bool(self.cfg.mask_prob))

    def _counted(self, counts: bool, sample_size: int, log: dict, bad: int) -> tuple[int, dict]:
        """Sample size and logging output with what this task adds; every worker's has the same keys."""
        log = log if counts else without_counts(log)
        own = {"bad_audio": bad, StopRequest.KEY: self.stop.wished, Throughput.KEY: self.throughput.take()}
        return (sample_size if counts else 0), log | own

    def _find_utterance(self, sample: dict, model, criterion, update_num: int) -> None:
        """What became of a batch whose update had no finite gradient; fairseq makes no use of what is returned."""
        model = bare(model)  # no worker's forward pass may wait for another's
        model._backward_hooks.clear()  # fairseq's NanDetector's, which expects tensors of a model

        @torch.no_grad()
        def loss_of(number: int) -> float:
            return criterion(model, alone(sample, number, self.teacher.geometry))[0].item()

        with told_in_one_line():
            self.losses.find_utterance(update_num, sample.get("paths", ()), loss_of)

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        frames = sum(log.get("ntokens", 0) for log in logging_outputs)
        seconds = frames * self.teacher.geometry.downsample_rate / self.cfg.sample_rate
        if criterion.training:
            self.throughput.reduce(logging_outputs, seconds)
        self.stop.reduce(logging_outputs)
        with told_in_one_line():
            self.bad_audio.reduce(logging_outputs)

    def max_positions(self):
        return None


guard_runs(StarDistillationTask)
