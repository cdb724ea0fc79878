"""A student with a head that gives each utterance one label, as fairseq trains it."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Optional, Sequence

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY, BaseFairseqModel, register_model
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.pooling import UtteranceClassifier
from fairseq_star.models.starhubert import StarHubertModel

NAME = "starhubert_classifier"
STUDENT, CLASSIFIER = "student.", "classifier."  # beginnings of the parts' keys


@dataclass
class ClassifierConfig(FairseqDataclass):
    """Options of ``model=starhubert_classifier``."""

    student: Optional[str] = field(
        default=None,
        metadata={"help": "checkpoint to begin with: of a star_distillation run, or written by fairseq-star import"},
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "train the sum of layers and the linear layer alone, without dropout"}
    )
    freeze_finetune_updates: int = field(
        default=0, metadata={"help": "do so for the first so many updates, then train all"}
    )
    student_args: Any = field(default=None, metadata={"help": "filled in: the student's architecture"})
    num_labels: int = field(default=0, metadata={"help": "filled in: the labels of the training set"})


@register_model(NAME, dataclass=ClassifierConfig)
class StarHubertClassifier(BaseFairseqModel):
    """A student, the learned sum of its hidden states, its mean over valid frames, and a linear layer.

    Args:
        cfg: with ``student_args`` and ``num_labels``, which the task fills in.
    """

    def __init__(self, cfg: ClassifierConfig):
        super().__init__()
        options = cfg.student_args
        options = dict(OmegaConf.to_container(options) if OmegaConf.is_config(options) else options)
        architecture = MODEL_DATACLASS_REGISTRY[options.pop("_name")]
        self.student = StarHubertModel(architecture(**options, padded_group_norm=False))
        config = self.student.config
        self.classifier = UtteranceClassifier(config.num_layers + 1, config.embed_dim, cfg.num_labels)
        self.freeze_encoder, self.freeze_finetune_updates = cfg.freeze_encoder, cfg.freeze_finetune_updates
        self.num_updates = 0
        if self.freeze_encoder:
            self.student.requires_grad_(False)

    @classmethod
    def build_model(cls, cfg: ClassifierConfig, task=None) -> "StarHubertClassifier":
        """Build the model for fairseq."""
        return cls(cfg)

    @property
    def is_frozen(self) -> bool:
        """Return whether the encoder stays as it is in the present update."""
        return self.freeze_encoder or self.num_updates < self.freeze_finetune_updates

    def set_num_updates(self, num_updates: int) -> None:
        """Take the number of updates made so far, from fairseq."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def train(self, mode: bool = True) -> "StarHubertClassifier":
        """Switch dropout on or off; a frozen encoder has none."""
        super().train(mode)
        self.student.train(mode and not self.is_frozen)
        return self

    def forward(
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        num_samples: Sequence[int] | None = None,
        mask_indices: Tensor | None = None,
        mask_channels: Tensor | None = None,
    ) -> Tensor:
        """Return the scores of the labels, B x labels, before the softmax.

        Args:
            source: B x samples.
            padding_mask: B x samples, True = padded; None = nothing is padded.
            num_samples: valid samples of each utterance, in place of ``padding_mask``.
            mask_indices, mask_channels: see :meth:`SpeechEncoder.encode`.
        """
        frames = None if num_samples is None else Frames.of(self.student.geometry, num_samples, source)
        with torch.no_grad() if self.is_frozen else nullcontext():
            encoding = self.student(source, frames, padding_mask, (), mask_indices, mask_channels)
            states = [*encoding.hidden_states[:-1], self.student.finished(encoding.hidden_states[-1])]
        frame_lengths = torch.tensor(encoding.frames.frame_lengths).to(source.device, non_blocking=True)
        return self.classifier(states, frame_lengths)

    def get_normalized_probs(self, net_output: Tensor, log_probs: bool, sample: dict | None = None) -> Tensor:
        """Return the labels' probabilities or their logarithms, B x labels, float32."""
        return (torch.log_softmax if log_probs else torch.softmax)(net_output.float(), dim=-1)
