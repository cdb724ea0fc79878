"""Where the time of a training step goes, kernel by kernel: on a GPU its own kernels, else torch's operators."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATRIX_OPS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "conv1d", "attention", "linear")
SHOWN = 12


class Kernel(NamedTuple):
    """All calls of one of them."""

    name: str
    calls: int
    seconds: float  # its own, without what it calls
    share: float  # of all kernels'


class Profile(NamedTuple):
    """What :func:`profile_step` found."""

    kernels: list[Kernel]  # the longest first
    outside: float  # share of the time that is not spent in matrix products, convolutions and attention


def profile_step(step: Callable[[], object], device: str) -> Profile:
    """Profile one call of ``step``."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiled:
        step()
    return read_events(profiled.key_averages(), device)


def read_events(events: Iterable, device: str) -> Profile:
    """The profiler's sums by name (``FunctionEventAvg``).

    A GPU's time is in them twice: under each kernel's own name, and under the operator that started it. The table is of
    the one, the share of matrix products of the other, whose names do not change from card to card.
    """
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]  # these span kernels
    operators = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if event.device_type != DeviceType.CPU] if device == "cuda" else operators
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"  # both in microseconds

    def total(some: Iterable) -> float:
        return sum(getattr(event, own) for event in some)

    matrix = [event for event in operators if any(word in event.key for word in MATRIX_OPS)]
    whole = total(kernels)
    rows = [Kernel(event.key, event.count, getattr(event, own) / 1e6, getattr(event, own) / whole) for event in kernels]
    return Profile(sorted(rows, key=lambda row: -row.seconds), 1 - total(matrix) / total(operators))


def table(kernels: Iterable[Kernel]) -> list[str]:
    """Markdown of the longest, and of the others together."""
    rows = list(kernels)
    rest = rows[SHOWN:]
    if rest:
        sums = (sum(getattr(row, name) for row in rest) for name in ("calls", "seconds", "share"))
        rows = [*rows[:SHOWN], Kernel(f"{len(rest)} others", *sums)]
    lines = ["| kernel | calls | ms | share |", "|---|--:|--:|--:|"]
    return lines + [
        f"| `{row.name[:80]}` | {row.calls:,} | {1e3 * row.seconds:.2f} | {row.share:.1%} |" for row in rows
    ]
