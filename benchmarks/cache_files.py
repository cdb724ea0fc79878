"""A teacher cache of one file an utterance beside one of few large files: which is read faster from a cold disk.

    python -m benchmarks.cache_files [--folder ON_THAT_DISK] [--entries 2000] [--dim 192] [--float16]

Entries of HuBERT Base's 13 states for 12 s are written as ``StateStore`` does, and once more behind one another into
files of 256 entries. Both are read whole, in the same random order, with checksums, in turn; before each round the
kernel forgets what it keeps of them (all of the disk's pages, names and inodes as root; otherwise these pages alone).
A network disk is measured by a folder on it. Writes a dated .md and .json.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import ROOT, environment, heading, write_result
from fairseq_star.teacher.cache.store import CHECKSUM, HEADER, StateStore

STATES, FRAMES = 13, 600  # of HuBERT Base, of 12 s
SHARD = 256  # entries of a large file
FORGET = Path("/proc/sys/vm/drop_caches")
ONE_EACH, LARGE = "one file an utterance", f"files of {SHARD} utterances"


def main(arguments: list[str] | None = None) -> None:
    """Write, read in turn, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: where temporary files are)")
    parser.add_argument("--entries", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=192, help="coordinates kept of a state (default %(default)s)")
    parser.add_argument("--float16", action="store_true", help="numbers of two bytes instead of one")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 4], help="threads (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.cache_files", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store, names, shards = write(Path(name), options)
        rows = [row for readers in options.readers for row in compare(store, names, shards, readers, options)]
    result = {"environment": made_with, "forgotten": "all" if _is_root() else "pages", "rows": rows}
    lines = [*heading("A cache's files, read from a cold disk", made_with), *table(result, options)]
    write_result(options.out, f"cache-files-{made_with['date']}", "\n".join(lines), result)
    print("\n".join(lines))


def write(folder: Path, options: argparse.Namespace) -> tuple[StateStore, list[str], list[Path]]:
    """Entries of noise, both ways; the store, the entries' names and the large files."""
    dtype = torch.float16 if options.float16 else torch.uint8
    store = StateStore(folder / "each", dtype)
    store.open()
    random = np.random.default_rng(0)
    names, shards = [random.bytes(32).hex() for _ in range(options.entries)], []
    states = _empty(options)
    for number, name in enumerate(names):
        states.view(torch.uint8).copy_(torch.from_numpy(random.integers(0, 256, _shape(options), np.uint8)))
        store.write(name, states)
        if number % SHARD == 0:
            shards.append(folder / f"{number // SHARD}.shard")
        with shards[-1].open("ab") as file:
            file.write(store.path(name).read_bytes())
    os.sync()
    return store, names, shards


def compare(store: StateStore, names: list[str], shards: list[Path], readers: int, options) -> Iterable[dict]:
    """A row for each way, with so many threads."""
    files = [path.open("rb", buffering=0) for path in shards]
    size = store.path(names[0]).stat().st_size

    def read_own(number: int) -> None:
        if not store.read(names[number], _empty(options)):
            raise AssertionError(names[number])

    def read_large(number: int) -> None:
        states, head = _empty(options), bytearray(HEADER.size + CHECKSUM.size)
        numbers = memoryview(states.view(torch.uint8).numpy()).cast("B")
        held = os.preadv(files[number // SHARD].fileno(), [head, numbers], number % SHARD * size)
        own = zlib.crc32(numbers, zlib.crc32(head[: HEADER.size]))
        if held != size or head[HEADER.size :] != CHECKSUM.pack(own):
            raise AssertionError(names[number])

    ways, times = {ONE_EACH: read_own, LARGE: read_large}, {ONE_EACH: [], LARGE: []}
    order = np.random.default_rng(1).permutation(len(names)).tolist()
    with ThreadPoolExecutor(readers) as pool:
        for _ in range(options.rounds):
            for name, read in ways.items():
                forget([store.path(one) for one in names] if name == ONE_EACH else shards)
                start = time.perf_counter()
                list(pool.map(read, order))
                times[name].append(time.perf_counter() - start)
    for file in files:
        file.close()
    faster = statistics.median(a / b for a, b in zip(times[ONE_EACH], times[LARGE], strict=True))
    for name, own in times.items():
        seconds = statistics.median(own)
        yield {
            "way": name, "readers": readers, "ms an utterance": 1e3 * seconds / len(names),
            "MB/s": size * len(names) / seconds / 1e6, "faster": faster if name == LARGE else 1.0,
        }  # fmt: skip


def forget(paths: Iterable[Path]) -> None:
    """Have the kernel read these files anew: with root's rights also their names and places."""
    if _is_root():
        os.sync()
        FORGET.write_text("3")
        return
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(result: dict, options: argparse.Namespace) -> list[str]:
    """Markdown."""
    size = int(np.prod(_shape(options)))
    lines = [
        f"* {options.entries:,} utterances of {size / 1e6:.2f} MB; forgotten before each round: {result['forgotten']}",
        "",
        "| way | readers | ms an utterance | MB/s | as fast |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        numbers = f"{row['ms an utterance']:.2f} | {row['MB/s']:,.0f} | {row['faster']:.2f}x"
        lines.append(f"| {row['way']} | {row['readers']} | {numbers} |")
    return [*lines, ""]


def _shape(options: argparse.Namespace) -> tuple[int, int, int]:
    return STATES, FRAMES, options.dim * (2 if options.float16 else 1)


def _empty(options: argparse.Namespace) -> torch.Tensor:
    dtype = torch.float16 if options.float16 else torch.uint8
    return torch.empty(STATES, FRAMES, options.dim, dtype=dtype)


def _is_root() -> bool:
    return os.access(FORGET, os.W_OK)


if __name__ == "__main__":
    main()
