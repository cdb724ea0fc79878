"""Recordings so long that a step may not fit into memory: reported before training, and where a step does not fit."""

import logging
from contextlib import contextmanager
from typing import Iterator

import numpy as np

from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.errors import StarError

logger = logging.getLogger(__name__)

LONG = 60  # seconds; LibriSpeech's longest utterance has 35
CROP = 15  # seconds, of fairseq's own recipes


def warn_of_long(split: str, dataset: DistillationDataset) -> None:
    """Warn of recordings longer than :data:`LONG` after cropping, and name the option that crops."""
    lengths, rate = dataset.cropped_lengths(), dataset.sample_rate
    count = int((lengths > LONG * rate).sum())
    if not count:
        return
    longest = int(np.argmax(lengths))
    logger.warning(
        f"{split}: {count:,} of {len(lengths):,} recordings are longer than {LONG} s, the longest "
        f"{dataset.path(longest)} ({lengths[longest] / rate / 60:.1f} minutes); a step's memory grows with them: "
        f"task.max_sample_size={CROP * rate} crops to {CROP} s"
    )


@contextmanager
def out_of_memory_is_star_error(sample: dict, sample_rate: int) -> Iterator[None]:
    """Raise a ``StarError`` where a step runs out of memory on the CPU; fairseq itself handles that of a GPU."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error) or not sample.get("num_samples"):
            raise
        num_samples, path = max(zip(sample["num_samples"], sample["paths"], strict=True))
        raise StarError(
            f"out of memory at a batch of {len(sample['num_samples'])} utterances, the longest {path} "
            f"({num_samples / sample_rate:,.0f} s); crop with task.max_sample_size={CROP * sample_rate} ({CROP} s), or "
            "lower dataset.batch_size or dataset.max_tokens"
        ) from error
