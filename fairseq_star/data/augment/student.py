"""The student's input, masked and augmented: made in the data workers, read by model and criterion.

Shapes: B utterances, T frames of the padded batch, n_b valid frames of utterance b, C channels of the student's
features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.data.augment.distortion import Augmentation
from fairseq_star.data.augment.masking import Masking
from fairseq_star.data.augment.options import AugmentConfig
from fairseq_star.encoder.frames import FrameGeometry

CLEAN = "clean_source"
"""Key of the teacher's input in a batch, where the student's ``net_input`` differs: B x samples."""
SILENT = "silent_additions"
"""Key of the sentences on utterances of a batch that got no noise or no other speakers, though they should have."""
MASKED_FRAMES = "masked_frames"
"""Key of the masks of each utterance in a batch: n_b booleans each, numpy arrays, never on a device."""


@dataclass(frozen=True)
class StudentAugmentation:
    """Masking and augmentation of an utterance, by the task's options."""

    geometry: FrameGeometry
    masking: Masking | None
    distortion: Augmentation | None
    normalize: bool  # whether the student takes audio of zero mean and unit variance

    @classmethod
    def of(
        cls,
        cfg: AugmentConfig,
        *,
        geometry: FrameGeometry,
        num_channels: int,
        sample_rate: int,
        normalize: bool,
        seed: int,
    ) -> "StudentAugmentation | None":
        """Build from the options; None where the student receives the teacher's input.

        Raises:
            StarError: an option out of range, or a manifest that cannot be used.
        """
        masking = Masking.of(cfg, num_channels, seed)
        distortion = Augmentation.of(cfg, sample_rate=sample_rate, normalize=normalize, seed=seed)
        return cls(geometry, masking, distortion, normalize) if masking or distortion else None

    def check(self, num_samples: Sequence[int], name_of: Callable[[int], str]) -> None:
        """Check that masked spans fit into the shortest of utterances of ``num_samples`` each.

        Raises:
            StarError: it is too short.
        """
        if self.masking is None or self.masking.frames is None:
            return
        shortest = int(np.argmin(num_samples))
        frames = self.geometry.num_frames(int(num_samples[shortest]))
        spans = self.masking.frames
        needed = spans.length * self.geometry.downsample_rate + self.geometry.receptive_field
        spans.check(
            frames,
            f"the shortest utterance, {name_of(shortest)}, has {frames} frames",
            f", or leave short utterances out with task.min_sample_size={needed}",
        )

    def apply(
        self, clean: Tensor, *, epoch: int, index: int, others: Callable[[int], Tensor], count: int
    ) -> dict[str, Tensor | np.ndarray | list[str]]:
        """Augment and mask one utterance.

        Returns:
            ``augmented`` (n samples) with ``silent`` (sentences), ``masked`` (frames) and ``zeroed`` (channels), those
            that the options enable.
        """
        parts: dict[str, Tensor | np.ndarray | list[str]] = {}
        if self.distortion is not None:
            parts["silent"] = []
            audio = self.distortion.apply(
                clean, epoch=epoch, index=index, others=others, count=count, silent=parts["silent"]
            )
            parts["augmented"] = F.layer_norm(audio, audio.shape) if self.normalize else audio
        if self.masking is not None:
            num_frames = self.geometry.num_frames(len(clean))
            drawn = {
                "masked": self.masking.draw_frames(num_frames, epoch, index),
                "zeroed": self.masking.draw_channels(epoch, index),
            }
            parts |= {name: mask for name, mask in drawn.items() if mask is not None}
        return parts

    def collate(self, items: Sequence[dict], batch: dict) -> None:
        """Put the augmented audio and the masks of ``items`` into the ``net_input`` of their padded ``batch``."""
        inputs = batch["net_input"]
        width = inputs["source"].size(1)
        if self.distortion is not None:
            batch[CLEAN] = inputs["source"]
            silent = zip(batch["paths"], (item["silent"] for item in items), strict=True)
            batch[SILENT] = [f"{path}: {'; '.join(sentences)}" for path, sentences in silent if sentences]
            inputs["source"] = torch.stack(
                [F.pad(item["augmented"], (0, width - len(item["augmented"]))) for item in items]
            )
        if self.masking is None:
            return
        if self.masking.frames is not None:
            batch[MASKED_FRAMES] = [item["masked"] for item in items]
            inputs["mask_indices"] = padded_mask(batch[MASKED_FRAMES], self.geometry.num_frames(width))
        if self.masking.channels is not None:
            inputs["mask_channels"] = torch.from_numpy(np.stack([item["zeroed"] for item in items]))


def padded_mask(masked: Sequence[np.ndarray], num_frames: int) -> Tensor:
    """Pad B arrays of n_b booleans to B x T; padding counts as unmasked."""
    mask = torch.zeros(len(masked), num_frames, dtype=torch.bool)
    for row, of_one in zip(mask, masked, strict=True):
        row[: len(of_one)] = torch.from_numpy(of_one)
    return mask


def teacher_source(batch: dict) -> Tensor:
    """Return the teacher's input of a batch: B x samples."""
    return batch[CLEAN] if CLEAN in batch else batch["net_input"]["source"]


def alone(batch: dict, number: int, geometry: FrameGeometry) -> dict:
    """Return one utterance of a batch as a batch of its own, without padding."""
    num_samples = batch["num_samples"][number]
    of_it, frames = slice(number, number + 1), geometry.num_frames(num_samples)
    inputs = {"source": batch["net_input"]["source"][of_it, :num_samples]}
    if "mask_indices" in batch["net_input"]:
        inputs["mask_indices"] = batch["net_input"]["mask_indices"][of_it, :frames]
    if "mask_channels" in batch["net_input"]:
        inputs["mask_channels"] = batch["net_input"]["mask_channels"][of_it]
    if "chunk_frames" in batch["net_input"]:
        inputs["chunk_frames"] = batch["net_input"]["chunk_frames"]
    whole = {"num_samples": [num_samples], "net_input": inputs}
    if CLEAN in batch:
        whole[CLEAN] = batch[CLEAN][of_it, :num_samples]
    if MASKED_FRAMES in batch:
        whole[MASKED_FRAMES] = batch[MASKED_FRAMES][of_it]
    return whole
