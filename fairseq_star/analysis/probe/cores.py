"""Small computations side by side, one for each core."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from fairseq_star.audio.threads import in_order

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The function's results, in order: as many items at once as torch has threads, each computed by one of them.

    Many small operations are computed faster side by side than each by all threads together. Few items are held.

    Args:
        function: of one item; thread-safe. Gradient mode is torch's default in it, whatever it is outside.
        items: any iterable.

    Raises:
        Exception: the first that the function raised; what has not begun by then never does.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that begin from here on take this number over
    try:
        yield from in_order(function, items, num_threads, max_pending=num_threads + 1)
    finally:
        torch.set_num_threads(num_threads)
