"""The task of fine-tuning a student to give each utterance one label of a closed set: keywords, speakers, emotions."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.data import BaseWrapperDataset
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from fairseq_star.data.augment.options import AugmentConfig
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.data.labels import read_label_lines
from fairseq_star.data.splits import check_folder, load_augmentation, load_split
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.formats.student import Student, load_student, student_values
from fairseq_star.manifest import read_manifest
from fairseq_star.models.classifier import ClassifierConfig, StarHubertClassifier

logger = logging.getLogger(__name__)


@dataclass
class UtteranceClassificationConfig(AugmentConfig):
    """Options of ``task=utterance_classification``; augmentation is of training alone."""

    data: str = field(default=MISSING, metadata={"help": "folder of the manifests and labels"})
    labels: str = field(
        default="keyword", metadata={"help": "kind of labels: a line an utterance in {split}.keyword, {split}.speaker"}
    )
    sample_rate: Optional[int] = field(default=None, metadata={"help": "filled in: the student's, Hz"})
    normalize: Optional[bool] = field(default=None, metadata={"help": "filled in: as the student's audio"})
    max_sample_size: Optional[int] = field(default=None, metadata={"help": "crop longer utterances to so many samples"})
    min_sample_size: Optional[int] = field(default=None, metadata={"help": "leave out utterances of fewer samples"})
    fixed_crop: bool = field(default=False, metadata={"help": "crop to the beginning; off: at random, repeatably"})
    skip_audio_check: bool = field(
        default=False, metadata={"help": "do not read every file's header before training to name bad ones"}
    )
    pad_to_multiple: int = field(default=1, metadata={"help": "pad batches to a multiple of so many samples"})
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


class LabelledDataset(BaseWrapperDataset):
    """Utterances with the number of each one's label, ``target`` in a batch (B, int64)."""

    def __init__(self, audio: DistillationDataset, targets: list[int]):
        super().__init__(audio)
        self.targets = torch.tensor(targets)

    def collater(self, samples: list[dict]) -> dict:
        """Return a batch of the readable utterances; see :class:`DistillationDataset`."""
        batch = self.dataset.collater(samples)
        if "net_input" in batch:
            batch["net_input"]["num_samples"] = batch["num_samples"]
            batch |= {"target": self.targets[batch["id"]], "ntokens": len(batch["id"]), "nsentences": len(batch["id"])}
        return batch

    def batch_by_size(self, *arguments, **options):
        return self.dataset.batch_by_size(*arguments, **options)

    def filter_indices_by_size(self, *arguments):
        return self.dataset.filter_indices_by_size(*arguments)


@register_task("utterance_classification", dataclass=UtteranceClassificationConfig)
class UtteranceClassificationTask(FairseqTask):
    """Fine-tune a student on ``{split}.tsv`` and ``{split}.{labels}``.

    The labels are those of the training set, sorted; checkpoints hold them, and the student's audio format, in
    ``task_state``.
    """

    cfg: UtteranceClassificationConfig

    def __init__(self, cfg: UtteranceClassificationConfig):
        super().__init__(cfg)
        self.model: StarHubertClassifier | None = None

    def build_model(self, cfg: ClassifierConfig, from_checkpoint: bool = False) -> StarHubertClassifier:
        """Build the model: of the student that ``model.student`` names, unless it is a finished checkpoint's."""
        if from_checkpoint:
            return super().build_model(cfg, from_checkpoint)
        with exit_on_star_error():
            student, labels = self._student(cfg), self._labels()
            cfg.student_args = {"_name": student.name, **student_values(student.config, student.dropouts)}
            cfg.num_labels = len(labels)
            self.cfg.sample_rate, self.cfg.normalize = student.sample_rate, student.normalize
            audio = {"sample_rate": student.sample_rate, "normalize": student.normalize}
            self.state.merge_state_dict({**audio, "labels": labels})
            model = super().build_model(cfg)
        model.student.load_state_dict(student.weights())
        if self.cfg.mask_prob:
            model.student.learn_mask()
            if student.mask_embedding is not None:
                model.student.mask_emb.data.copy_(student.mask_embedding)
        logger.info(f"{len(labels)} labels: {', '.join(labels[:10])}{' ...' if len(labels) > 10 else ''}")
        self.model = model
        return model

    def _student(self, cfg: ClassifierConfig) -> Student:
        check_folder(self.cfg.data)
        if cfg.student is None:
            raise StarError(
                "model.student is not given; name the checkpoint of a student, runs/NAME/checkpoint_best.pt"
            )
        student = load_student(cfg.student, "model.student")
        if student.config.chunk_frames:
            raise StarError(
                f"model.student: {cfg.student} streams, and a label is given to whole utterances; give a student that "
                "does not stream"
            )
        return student

    def _labels(self) -> list[str]:
        """Return the labels of the training set, sorted."""
        labels = sorted(set(self._lines(self.cfg.train_subset)))
        if len(labels) < 2:
            path = self._path(self.cfg.train_subset)
            raise StarError(f"{path}: all labels are {labels[0]!a}; a classifier needs two or more: correct the file")
        return labels

    def _path(self, split: str) -> Path:
        return Path(self.cfg.data) / f"{split}.{self.cfg.labels}"

    def _lines(self, split: str) -> list[str]:
        _, entries = read_manifest(os.path.join(self.cfg.data, f"{split}.tsv"))
        if not entries:
            raise StarError(f"{os.path.join(self.cfg.data, split)}.tsv: lists no utterance; write it anew")
        return read_label_lines(self._path(split), len(entries), self.cfg.labels)

    def _targets(self, split: str) -> list[int]:
        """Return the number of each utterance's label, those too short for a frame included."""
        labels = self._lines(split)
        numbers = {label: number for number, label in enumerate(self.state.labels)}
        for number, label in enumerate(labels, start=1):
            if label not in numbers:
                raise StarError(
                    f"{self._path(split)}:{number}: the label {label!a} is not in "
                    f"{self._path(self.cfg.train_subset)}; correct it, or take the utterance out of the manifest"
                )
        return [numbers[label] for label in labels]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint records.

        Raises:
            SystemExit: it was trained on other labels than the run that resumes from it.
        """
        with exit_on_star_error():
            if self.model is not None and state_dict.get("labels", self.state.labels) != self.state.labels:
                raise StarError(
                    f"{self._path(self.cfg.train_subset)}: holds other labels than the checkpoint that this run "
                    "resumes from was trained on; restore the file, or give another checkpoint.save_dir"
                )
        super().load_state_dict(state_dict)

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **kwargs) -> None:
        """Load a split.

        Raises:
            SystemExit: a bad line, file or label, before training starts.
        """
        with exit_on_star_error():
            targets = self._targets(split)
            geometry = self.model.student.geometry if self.model else None
            augment = None
            if geometry and split == self.cfg.train_subset:
                augment = load_augmentation(self.cfg, geometry, self.model.student.config.embed_dim)
            audio = load_split(self.cfg, split, geometry=geometry, augment=augment)
        kept = [target for index, target in enumerate(targets) if index not in audio.skipped_indices]
        self.datasets[split] = LabelledDataset(audio, kept)

    def get_batch_iterator(self, dataset, *arguments, **options):
        with exit_on_star_error():
            return super().get_batch_iterator(dataset, *arguments, **options)

    def train_step(self, sample, *arguments, **options):
        _refuse_bad(sample)
        return super().train_step(sample, *arguments, **options)

    def valid_step(self, sample, *arguments, **options):
        _refuse_bad(sample)
        return super().valid_step(sample, *arguments, **options)

    def max_positions(self):
        return None


def _refuse_bad(sample: dict) -> None:
    """End the run at a file that cannot be read, or is not what the manifest says."""
    with exit_on_star_error():
        if bad := sample.get("bad_audio"):
            raise StarError(bad[0])
