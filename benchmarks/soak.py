"""A long run watched from outside: does memory grow, do descriptors leak, does it slow down?

    python manifests/librispeech.py LibriSpeech --out ls --valid-speakers 25
    python -m benchmarks.soak ls --train-subset train-100h --minutes 30

Starts fairseq-hydra-train with the ``demo`` recipe and the embedded teacher, with data workers, random crops,
validations and saves as a long run has them; looks at it once in a while; ends it by SIGTERM, as a cluster would, and
expects status 0. Linux only. Writes results/soak-DATE.md and .png.
"""

import argparse
import contextlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import psutil

from benchmarks.measure import MEBIBYTE, ROOT, environment, heading, pyplot_or_none

TRAIN = "import sys; from fairseq_cli.hydra_train import cli_main; sys.argv[0] = 'fairseq-hydra-train'; cli_main()"
WARM_UP = 1 / 3  # of the time; caches fill, allocators settle
WINDOWS = 10


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the manifests")
    parser.add_argument("--train-subset", default="train")
    parser.add_argument("--minutes", type=float, default=30.0, help="from the first update on")
    parser.add_argument("--config-dir", default="configs")
    parser.add_argument("--config-name", default="demo")
    parser.add_argument("--teacher", default="assets/demo_teacher/demo_hubert.pt")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("overrides", nargs="*", help="further options of fairseq-hydra-train")
    return parser.parse_intermixed_args(arguments)


def command(options: argparse.Namespace, save_dir: str) -> list[str]:
    """The run: two utterances an update, an epoch is short on a small corpus, so that many begin and end."""
    return [
        sys.executable, "-c", TRAIN, "--config-dir", options.config_dir, "--config-name", options.config_name,
        "common.user_dir=fairseq_star", f"task.data={options.data.resolve()}", f"task.teacher={options.teacher}",
        f"dataset.train_subset={options.train_subset}", "dataset.batch_size=2", "dataset.num_workers=2",
        "task.max_sample_size=160000", "optimization.max_update=10000000", "lr_scheduler.warmup_updates=100",
        f"checkpoint.save_dir={save_dir}", "checkpoint.save_interval_updates=200", "checkpoint.keep_interval_updates=1",
        "common.log_interval=1", "common.log_format=simple", "common.tensorboard_logdir=null", *options.overrides,
    ]  # fmt: skip


class Watched:
    """A process and its children, seen from outside, and the updates its log tells of."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.updates: list[tuple[float, int]] = []  # time, number of updates
        self.samples: list[tuple[float, int, int, int]] = []  # time, bytes, workers' bytes, descriptors
        self.log: list[str] = []
        self.begun = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.log = [*self.log[-50:], line]
            if "train_inner" in line and (found := re.search(r"num_updates=(\d+)", line)):
                self.updates.append((time.monotonic(), int(found[1])))
                self.begun.set()
        self.begun.set()

    def sample(self) -> None:
        """One look; none at a process that has just ended."""
        with contextlib.suppress(psutil.Error):
            trainer = psutil.Process(self.process.pid)
            workers = sum(_share(child) for child in trainer.children())
            self.samples.append((time.monotonic(), trainer.memory_info().rss, workers, trainer.num_fds()))


def _share(process: psutil.Process) -> int:
    """Bytes of a process in memory, what several share divided among them; 0 for one that has just ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def soak(options: argparse.Namespace) -> dict:
    """Run, watch, stop; the measurements, and ``RuntimeError`` where the run did not end with status 0."""
    with tempfile.TemporaryDirectory(prefix="soak-") as save_dir:
        process = subprocess.Popen(
            command(options, save_dir), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            watched = Watched(process)
            watched.begun.wait()
            end = time.monotonic() + 60 * options.minutes
            while process.poll() is None and time.monotonic() < end:
                watched.sample()
                time.sleep(min(5.0, 60 * options.minutes / 100))
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=300)
        finally:
            process.kill()
    if status or not any("stopped by SIGTERM" in line for line in watched.log):
        raise RuntimeError(f"the run ended with status {status}: {''.join(watched.log[-20:])}")
    return summary(watched)


def summary(watched: Watched) -> dict:
    """Slopes after the warm-up, by least squares; speed in windows of equal length."""
    samples, updates = np.array(watched.samples, dtype=float), np.array(watched.updates, dtype=float)
    start, end = samples[0, 0], samples[-1, 0]
    settled = samples[samples[:, 0] >= start + WARM_UP * (end - start)]
    hours = (settled[:, 0] - start) / 3600

    def slope(column: int) -> float:
        return float(np.polyfit(hours, settled[:, column], 1)[0])

    edges = np.linspace(start + WARM_UP * (end - start), end, WINDOWS + 1)
    rates = np.diff(np.interp(edges, updates[:, 0], updates[:, 1])) / np.diff(edges)
    return {
        "minutes": (end - start) / 60,
        "updates": int(updates[-1, 1]),
        "rss_slope_mib_per_hour": slope(1) / MEBIBYTE,
        "rss_first_last_mib": [settled[0, 1] / MEBIBYTE, settled[-1, 1] / MEBIBYTE],
        "rss_range_mib": [settled[:, 1].min() / MEBIBYTE, settled[:, 1].max() / MEBIBYTE],
        "workers_slope_mib_per_hour": slope(2) / MEBIBYTE,
        "workers_range_mib": [settled[:, 2].min() / MEBIBYTE, settled[:, 2].max() / MEBIBYTE],
        "descriptors_range": [int(settled[:, 3].min()), int(settled[:, 3].max())],
        "descriptors_slope_per_hour": slope(3),
        "updates_per_second": rates.tolist(),
        "samples": (samples - [start, 0, 0, 0]).tolist(),
    }


def table(name: str, result: dict, made_with: dict[str, str]) -> str:
    rates = result["updates_per_second"]

    def interval(key: str) -> str:
        return "{:,.0f} to {:,.0f}".format(*result[key])

    def trend(key: str) -> str:
        return f"{result[key]:+.1f} an hour"

    halves = np.mean(rates[: WINDOWS // 2]), np.mean(rates[WINDOWS // 2 :])
    speed = f"{min(rates):.2f} to {max(rates):.2f}"
    rows = [
        ("resident memory, trainer, MiB", interval("rss_range_mib"), trend("rss_slope_mib_per_hour")),
        ("of its data workers, proportional, MiB", interval("workers_range_mib"), trend("workers_slope_mib_per_hour")),
        ("open descriptors, trainer", interval("descriptors_range"), trend("descriptors_slope_per_hour")),
        (f"updates a second, {WINDOWS} windows", speed, f"second half / first half: {halves[1] / halves[0]:.3f}"),
    ]
    lines = heading(f"Soak: {result['minutes']:.1f} minutes, {result['updates']:,} updates", made_with)
    lines += [
        "",
        f"After a warm-up of {WARM_UP:.0%} of the time; slopes by least squares. Ended by SIGTERM, status 0.",
        "",
    ]
    lines += ["| | range | trend |", "|---|--:|--:|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return "\n".join([*lines, "", f"![memory, descriptors and speed over time]({name}.png)", ""])


def plot(path: Path, result: dict) -> None:
    """Memory, descriptors and speed over time; nothing where matplotlib is missing."""
    pyplot = pyplot_or_none()
    if pyplot is None:
        return

    seconds, rss, workers, descriptors = np.array(result["samples"]).T
    minutes = seconds / 60
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 8), sharex=True)
    axes[0].plot(minutes, rss / MEBIBYTE, color="#2166ac", label="trainer")
    axes[0].plot(minutes, workers / MEBIBYTE, color="#e08214", linewidth=0.8, label="data workers together")
    axes[0].set_ylabel("resident memory, MiB")
    axes[0].legend()
    axes[1].plot(minutes, descriptors, color="#4d9221")
    axes[1].set_ylabel("open descriptors")
    edges = np.linspace(WARM_UP * minutes[-1], minutes[-1], WINDOWS + 1)
    axes[2].stairs(result["updates_per_second"], edges, color="#762a83")
    axes[2].set_ylabel("updates a second")
    axes[2].set_xlabel("minutes")
    for axis in axes:
        axis.set_ylim(0, 1.2 * max(axis.dataLim.y1, 1e-9))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    options = parse_arguments()
    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.soak", *sys.argv[1:]]))
    result = soak(options)
    name = f"soak-{date.today().isoformat()}"
    options.out.mkdir(parents=True, exist_ok=True)
    plot(options.out / f"{name}.png", result)
    (options.out / f"{name}.md").write_text(table(name, result, made_with))
    print(table(name, result, made_with))


if __name__ == "__main__":
    main()
