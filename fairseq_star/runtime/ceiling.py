"""The arithmetic that a machine reaches, measured by a large matrix product."""

import statistics
import time

import torch

from fairseq_star.runtime.memory import synchronize

SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices


def product_flops(device: str | torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations a second of a large square product, the median of three."""
    device = torch.device(device)
    side, times = SIDES[device.type], []
    left = torch.ones(side, side, device=device, dtype=dtype)  # no random numbers: a run's own sequence stays as it is
    for _ in range(4):  # the first warms up
        synchronize(device.type)
        start = time.perf_counter()
        left @ left
        synchronize(device.type)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times[1:])
