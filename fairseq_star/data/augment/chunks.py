"""Chunk sizes of a streaming student in training: one an update, drawn from those that it may later run with."""

from collections.abc import Sequence

import numpy as np

STREAM = 16
"""Separates these draws from others of the same seed."""


def draw_chunk(sizes: Sequence[int], seed: int, num_updates: int) -> int:
    """Draw an update's chunk size, one of ``sizes``: the same on all workers, in all batches that the update
    accumulates, and in a run that resumes."""
    return sizes[np.random.default_rng((seed, num_updates, STREAM)).integers(len(sizes))]


def in_drawn_chunks(sample: dict, sizes: Sequence[int], seed: int, num_updates: int) -> dict:
    """Return the batch with the update's chunk size; unchanged where there is nothing to draw."""
    if len(sizes) < 2 or "net_input" not in sample:
        return sample
    drawn = draw_chunk(sizes, seed, num_updates)
    return {**sample, "net_input": {**sample["net_input"], "chunk_frames": drawn}}
