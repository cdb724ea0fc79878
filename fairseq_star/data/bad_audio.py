"""Bad audio during a run: detected in the data workers, counted and acted on in the main process.

A data worker cannot end a run in one line: its exception arrives as a traceback inside a traceback. So the problem
travels in the batch, as a sentence under ``bad_audio``, and :class:`BadAudio` acts on it. A batch without any good
utterance has no ``net_input``; fairseq would take an empty dict for one of its dummy batches, whose utterances it
counts into ``sample_size`` when several batches make an update.
"""

import logging
from collections.abc import Sequence

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_star.audio.file import probe_audio
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError

logger = logging.getLogger(__name__)

POLICIES = ("error", "skip")
FEWEST = 1000  # utterances; a share of fewer says little
STAND_IN_FRAMES = 8
NOT_FINITE = "holds samples that are NaN or infinite; restore or remove it"


def all_finite(samples: Tensor) -> bool:
    """Return whether no sample is NaN or infinite."""
    # A sum is finite where all is, and needs no memory; float64 so that large samples do not overflow it.
    return bool(samples.sum(dtype=torch.float64).isfinite())


def what_is_wrong(path: str, sample_rate: int, num_samples: int, reason: object) -> str:
    """Return a sentence on a file that could not be read: the manifest's own check of it, else ``reason``."""
    try:
        probe_audio(path, sample_rate, stated_samples=num_samples)
    except StarError as error:
        return str(error)
    return f"{path}: cannot be read ({reason}); restore or remove it"


class BadAudio:
    """The policy of ``task.on_bad_audio`` and ``task.max_bad_share``, and the counts it needs.

    Args:
        policy: ``error`` ends the run at the first bad utterance; ``skip`` names it and goes on without it.
        max_share: of the utterances read in a pass over a split, over all workers, the share that may be bad. While
            fewer than 1000 (or than the split has) have been read it is a share of those 1000.

    Raises:
        StarError: ``max_share`` is no share.
    """

    def __init__(self, policy: str, max_share: float):
        if not 0 <= max_share <= 1:
            raise StarError(f"task.max_bad_share={max_share} must be from 0 to 1")
        self.policy, self.max_share = policy, max_share
        self.fewest = 0
        self.bad = self.read = 0
        self._told: set[str] = set()

    def set_split_size(self, num_utterances: int) -> None:
        """Set the number of utterances of the split being read."""
        self.fewest = min(FEWEST, max(self.fewest, num_utterances))

    def begin_pass(self) -> None:
        """Reset the counts at the beginning of a pass over a split."""
        if self.bad:
            logger.warning(f"bad audio: {self.bad:,} of {self.read:,} utterances were skipped in the pass just ended")
        self.bad = self.read = 0

    def report(self, batch: dict) -> int:
        """Log the bad utterances of a batch, each once a run.

        Returns:
            Their number; their sentences are taken out of the batch.

        Raises:
            StarError: there is one and the policy is ``error``.
        """
        problems: Sequence[str] = batch.pop("bad_audio", ())
        for problem in problems:
            if self.policy == "error":
                raise StarError(f"{problem} (or go on without such files: task.on_bad_audio=skip)")
            if problem not in self._told:
                self._told.add(problem)
                logger.warning(f"bad audio, skipped: {problem}")
        return len(problems)

    def reduce(self, logging_outputs: Sequence[dict]) -> None:
        """Add up the counts of all workers in an update.

        Raises:
            StarError: more than ``max_share`` of the utterances are bad.
        """
        if self.policy != "skip":
            return
        bad = int(sum(log.get("bad_audio", 0) for log in logging_outputs))
        self.bad += bad
        self.read += bad + int(sum(log.get("nsentences", 0) for log in logging_outputs))
        metrics.log_scalar_sum("bad_audio", bad, priority=900)
        if self.bad > self.max_share * max(self.read, self.fewest):
            raise StarError(
                f"bad audio: {self.bad:,} of {self.read:,} utterances read in this pass are bad, more than "
                f"task.max_bad_share={self.max_share:g} allows; they are named above: restore them, or raise the share"
            )


def stand_in(geometry: FrameGeometry, model: nn.Module, *, masked: bool = False) -> dict:
    """Return a short batch for a worker without audio, which must run forward and backward as the others do.

    Without ``audio_digests``, so that no cache keeps it. Where frames are ``masked`` it has a mask, in which none is.
    """
    num_samples = geometry.receptive_field + (STAND_IN_FRAMES - 1) * geometry.downsample_rate
    parameter = next(model.parameters())
    # Not silence, whose variance of zero a normalization might divide by.
    source = torch.linspace(0, 100, num_samples).sin().to(parameter)[None]
    inputs = {"source": source}
    if masked:
        inputs["mask_indices"] = torch.zeros(1, STAND_IN_FRAMES, dtype=torch.bool, device=source.device)
    return {"num_samples": [num_samples], "paths": [], "net_input": inputs}


def without_counts(logging_output: dict) -> dict:
    """Return the same keys, which all workers must have, with zeros: the log of a batch that does not count."""
    return {name: torch.zeros_like(value) if isinstance(value, Tensor) else 0 for name, value in logging_output.items()}
