"""Training on a busy machine: the demo's recipe alone, then beside programs that take every core; peak memory of both.

    python manifests/demo/corpus.py demo/corpus
    python -m benchmarks.busy [--updates 40] [--rounds 2]

Neighbours are endless loops of the same priority, one a core. Ways differ in the environment alone, which the plugin
leaves the last word: as it is; as libraries do it by themselves (threads spin 300,000 times, 1,024 primitives are
kept); threads that never spin. In turn within a round; a ratio is the median over rounds. Writes a dated .md and .json.
"""

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.measure import MEBIBYTE, ROOT, environment, heading, write_result

TRAIN = "import sys; from fairseq_cli.hydra_train import cli_main; sys.argv[0] = 'fairseq-hydra-train'; cli_main()"
PLUGIN = "fairseq-star"
WAYS = {
    PLUGIN: {},
    "libraries alone": {"GOMP_SPINCOUNT": "300000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"},
    "never spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def train(way: str, corpus: Path, updates: int) -> tuple[float, float]:
    """Seconds of training, without start and end, and the trainer's peak resident memory, MiB.

    Raises:
        RuntimeError: the run failed; with the end of what it said.
    """
    ours = {name for settings in WAYS.values() for name in settings} | {"OMP_NUM_THREADS"}
    variables = {name: value for name, value in os.environ.items() if name not in ours}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-c", TRAIN, "--config-dir", "configs", "--config-name", "demo",
            "common.user_dir=fairseq_star", f"task.data={corpus.resolve()}",
            "task.teacher=assets/demo_teacher/demo_hubert.pt", f"optimization.max_update={updates}",
            f"checkpoint.save_dir={folder}", "checkpoint.no_save=true", "dataset.disable_validation=true",
            "common.tensorboard_logdir=null",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=ROOT, env={**variables, **WAYS[way]}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    told = re.search(r"done training in ([\d.]+) seconds", output)
    if process.returncode or told is None:
        raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
    return float(told[1]), usage.ru_maxrss * 1024 / MEBIBYTE


@contextmanager
def neighbours() -> Iterator[None]:
    """An endless loop for each core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count())]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(corpus: Path, updates: int, rounds: int, ways: list[str]) -> dict[str, dict[str, float]]:
    """By way: seconds idle and busy, their ratio, and peak MiB."""
    idle, busy, peak = ({way: [] for way in ways} for _ in range(3))
    for _ in range(rounds):
        for way in ways:
            seconds, mebibytes = train(way, corpus, updates)
            idle[way].append(seconds)
            peak[way].append(mebibytes)
        with neighbours():
            for way in ways:
                busy[way].append(train(way, corpus, updates)[0])
    return {
        way: {
            "idle_s": statistics.median(idle[way]),
            "busy_s": statistics.median(busy[way]),
            "busy_to_idle": statistics.median(b / a for a, b in zip(idle[way], busy[way], strict=True)),
            "peak_mib": max(peak[way]),
        }
        for way in ways
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "demo" / "corpus", help="folder of the demo's manifests")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.busy", *sys.argv[1:]]))
    ways = measure(options.corpus, options.updates, options.rounds, list(WAYS))
    table = "\n".join([
        *heading(f"The demo's training, {options.updates} updates, alone and beside a loop on each core", made_with),
        f"* medians of {options.rounds} rounds; peak memory is the trainer's",
        "",
        "| way | alone, s | beside, s | ratio | peak MiB |",
        "|---|--:|--:|--:|--:|",
        *(f"| {way} | {row['idle_s']:.1f} | {row['busy_s']:.1f} | {row['busy_to_idle']:.2f} | {row['peak_mib']:.0f} |"
          for way, row in ways.items()),
        "",
    ])  # fmt: skip
    print(table)
    write_result(options.out, f"busy-{made_with['date']}", table, {"made_with": made_with, "ways": ways})


if __name__ == "__main__":
    main()
