"""Memory of runs on the CPU: what oneDNN keeps is bounded, what is freed stays with the process.

oneDNN keeps every convolution it has generated code for, with its scratch memory, up to 1,024 of them. A speech batch
is as long as its longest utterance, so nearly every batch brings new ones: gigabytes, for a student of a million
parameters.

glibc maps each block above its threshold (32 MiB at most) anew, and gives it back when it is freed. The activations of
a training step are such blocks, allocated and freed hundreds of times a step, and the system zeroes every page of them
each time it is touched first. What that costs: benchmarks/README.md, "The whole step".
"""

import ctypes
import os

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
STEP = 64 * 2**20  # bytes by which the heap grows
PRIMITIVES = 8
"""Convolutions that oneDNN keeps; making one anew costs little beside running it on seconds of audio."""


def bound_primitive_cache() -> None:
    """Have oneDNN keep :data:`PRIMITIVES` primitives, unless the environment already says how many.

    oneDNN reads its environment when it makes the first one, so this belongs before the first convolution.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # its name of before
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its later allocations; its resident memory stays at its peak.

    Returns:
        False, and nothing changed, where malloc isn't glibc's or the environment already says how it shall behave
        (``MALLOC_..._``, ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no handle of the program itself
        return False
    # Never trimmed (-1), and no block mapped on its own, whose end would be its page's.
    return all(mallopt(*setting) == 1 for setting in ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, STEP), (M_MMAP_MAX, 0)))
