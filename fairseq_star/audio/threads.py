"""Many files at once, in threads, with a report of progress."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fairseq_star.errors import StarError
from fairseq_star.runtime.job import num_cores

SECONDS_BETWEEN_LINES = 60  # of progress, in a log file

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int | None = None
) -> Iterator[tuple[Item, Result | StarError]]:
    """Yield each item with the function's result, or with the StarError it raised, in order, from a pool of threads.

    Args:
        function: releases the GIL where it takes time.
        items: any iterable, an endless one too; only a few are in memory at a time.
        num_workers: threads; by default four a core, at most 32, which suits reading headers.
    """

    def run(item: Item) -> tuple[Item, Result | StarError]:
        try:
            return item, function(item)
        except StarError as error:
            return item, error

    num_workers = num_workers or min(32, 4 * num_cores())
    return in_order(run, items, num_workers, max_pending=16 * num_workers)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int, max_pending: int
) -> Iterator[Result]:
    """Yield the function's results, in the items' order, from a pool of threads.

    Args:
        items: any iterable; read from as results are yielded.
        num_workers: threads.
        max_pending: the most items that are queued, running or done and not yielded yet.

    Raises:
        Exception: the first that the function raised; items that have not begun by then never do.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= max_pending:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # stopped early: skip work whose results nobody will read
            for future in pending:
                future.cancel()


def show_progress(items: Iterable[Item], what: str, total: int | None = None, progress: bool = True) -> Iterator[Item]:
    """Yield the same items under a tqdm bar on stderr, counted as files.

    Where stderr is no terminal, print a line a minute instead, so that a log file has whole lines alone.
    """
    if not progress:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(items, what, total, unit="file", mininterval=0.5) as bar:  # closed before an error is printed
            yield from bar
    else:
        printed, count = time.monotonic(), 0
        for count, item in enumerate(items, start=1):
            if time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                print(f"{what}: {count:,} files so far", file=sys.stderr, flush=True)
            yield item
        print(f"{what}: {count:,} files", file=sys.stderr, flush=True)
