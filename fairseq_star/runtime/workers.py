"""Rank of this process among a run's workers."""

import torch.distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """Return this worker's number, from 0 on, and how many there are; 0 and 1 of a run in one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
