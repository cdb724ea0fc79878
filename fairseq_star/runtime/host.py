"""A run on the CPU made a good neighbour: memory bounded, waiting threads asleep where others want the cores."""

import torch

from fairseq_star.runtime.host_memory import bound_primitive_cache, keep_freed_memory
from fairseq_star.runtime.host_threads import share_cores


def settle_on_host(*, keep_memory: bool = False) -> None:
    """Settings of this whole process, made where a run or a long command starts; none where there is a GPU.

    Args:
        keep_memory: also :func:`keep_freed_memory`, which pays in training.
    """
    if torch.cuda.is_available():
        return
    bound_primitive_cache()
    share_cores()
    if keep_memory:
        keep_freed_memory()
