"""All experiments of one upstream, one after another: none runs twice, and a failed one does not stop the rest."""

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.job import free_disk
from fairseq_star.superb import parsing, preparing
from fairseq_star.superb.corpora import ALL, Description, audio_seconds
from fairseq_star.superb.experiment import BusyError, Features, Run
from fairseq_star.superb.settings import settings
from fairseq_star.superb.tasks import TASKS, Experiment, experiments
from fairseq_star.superb.toolkit import Toolkit, Upstream, look_into

FEATURE_BYTES = 2  # float16
BYTES_A_PARAMETER = 12  # of a checkpoint: weight and Adam's two moments, four bytes each
POLL = 1.0  # seconds


@dataclass
class Sweep:
    """Upstream, corpora and settings of a sweep; ``out`` has a folder for each experiment."""

    out: Path
    upstream: Upstream
    toolkit: Toolkit
    description: Description
    tasks: list[str]
    convention: str = "paper"
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # of --set
    rates: tuple[float, ...] = ()
    device: str = "cpu"
    seed: int = 1337
    only: str | None = None
    features: Features | None = None
    _configs: dict[Experiment, dict] = field(default_factory=dict)

    def experiments(self) -> list[Experiment]:
        """Return the experiments in the order they run.

        Raises:
            StarError: ``only`` is none of them.
        """
        found = experiments(self.tasks, self.rates)
        chosen = [one for one in found if self.only in (None, one.group)]
        if not chosen:
            names = dict.fromkeys(one.group for one in found)
            raise StarError(f"--only {self.only}: these are the experiments: {', '.join(names)}")
        return chosen

    def config(self, experiment: Experiment) -> dict:
        """Return s3prl's whole configuration of an experiment; lists that it names are made."""
        if experiment not in self._configs:
            self._configs[experiment] = self._make_config(experiment)
        return self._configs[experiment]

    def _make_config(self, experiment: Experiment) -> dict:
        task = experiment.task.name
        own = {
            **self.description.settings.get(ALL, {}),
            **self.description.settings.get(task, {}),
            **self.changes.get(task, {}),
        }
        config = settings(task, convention=self.convention, own=own)
        if experiment.lr is not None:
            config["optimizer"]["lr"] = experiment.lr
        lists = self.out / "lists"
        return preparing.fill_in(
            task, experiment.variant, config, self.description, lists=lists, package=self.toolkit.package
        )

    def check(self) -> None:
        """Check files and disk space before hours are spent.

        Raises:
            StarError: a file that s3prl reads is missing, or the disk has no room.
        """
        needed = 0
        for experiment in self.experiments():
            config = self.config(experiment)
            for path in preparing.needed_files(config, self.toolkit.package):
                if not path.exists():
                    theirs = path.is_relative_to(self.toolkit.package)
                    fix = "s3prl's clone has it: --s3prl CLONE" if theirs else "correct superb.yaml"
                    raise StarError(f"{experiment.task.name}: {path} is not there; {fix}, or --set another")
            needed += disk(experiment, config)
        if self.features is not None:
            needed += max(0, self.features.limit - self.features.stored_bytes())
        free = free_disk(self.out)
        if free < needed:
            raise StarError(
                f"--out {self.out}: checkpoints and stored features take about {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} are free; make room, or do fewer tasks at a time"
            )

    def feature_bytes(self) -> int:
        """Estimate the size of the features of all the corpora's audio, without a limit.

        Raises:
            StarError: s3prl cannot load the upstream, or a file cannot be read.
        """
        seconds = sum(audio_seconds(name, self.description) for name in {TASKS[task].corpus for task in self.tasks})
        frames = seconds * SAMPLE_RATE / self.shape["downsample_rate"]
        return int(frames * self.shape["layers"] * self.shape["width"] * FEATURE_BYTES)

    @cached_property
    def shape(self) -> dict:
        """Shape of the upstream's output as :func:`look_into` finds it; s3prl is started once for it."""
        return look_into(self.upstream, self.toolkit)

    def perform(self) -> tuple[list[dict], dict[str, str]]:
        """Run unfinished experiments; return results, and the error of each experiment without one.

        Raises:
            StarError: s3prl cannot load the upstream.
        """
        todo = self.experiments()
        layers = 1
        if any(self._run(one, 1, None).result is None for one in todo):
            layers = self.shape["layers"]
        results, failed = [], {}
        with Progress({one.name: work(self.config(one)) for one in todo}) as progress:
            for name, group in _groups(todo).items():
                runs = [self._run(one, layers, progress) for one in group]
                try:
                    results.append(runs[0].perform() if len(runs) == 1 else _best(runs))
                    progress.write(f"{name}: {_summary(results[-1])}")
                except BusyError:
                    failed[name] = "another process is running it"
                except StarError as error:
                    failed[name] = str(error)
                    progress.write(str(error))
                for one in group:
                    progress.reach(one.name, 1.0)
        return results, failed

    def results(self) -> tuple[list[dict], dict[str, str]]:
        """Return the results so far, without running anything."""
        results, failed = [], {}
        for name, group in _groups(self.experiments()).items():
            done = [run for one in group if (run := self._run(one, 1, None)).result]
            try:
                results += [run.perform() for run in done]  # only checks that they are of these settings
            except StarError as error:
                failed[name] = str(error)
            if not done:
                failed[name] = "not done yet"
        return results, failed

    def _run(self, experiment: Experiment, layers: int, progress: "Progress | None") -> Run:
        return Run(
            experiment, self.out / "experiments" / experiment.name, self.config(experiment), self.toolkit,
            self.upstream, self.device, self.seed, layers, progress.watch if progress else lambda *_: None,
            self.features,
        )  # fmt: skip


def _groups(todo: list[Experiment]) -> dict[str, list[Experiment]]:
    by_name: dict[str, list[Experiment]] = {}
    for one in todo:
        by_name.setdefault(one.group, []).append(one)
    return by_name


def _summary(result: dict) -> str:
    numbers = [
        f"{metric.title} {result['metrics'][metric.name]:.{metric.digits}f} {metric.unit}".rstrip()
        for metric in TASKS[result["task"]].metrics
        if metric.name in result["metrics"]
    ]
    return ", ".join(numbers) or "no number, see the notes"


def _best(runs: list[Run]) -> dict:
    """Train all, and evaluate the one that is best on dev."""
    line, lower = runs[0].experiment.task.dev
    scores = {}
    for index, run in enumerate(runs):
        run.perform(evaluate=False)
        scores[index] = parsing.best_on_dev(parsing.read([run.folder / "train.out"]), line, lower)
    best = runs[(min if lower else max)(scores, key=scores.get)]
    tried = ", ".join(f"{runs[index].experiment.lr:.0e}: {score:.4g}" for index, score in scores.items())
    best.notes.append(f"learning rate {best.experiment.lr:.0e} of these, by '{line}': {tried}")
    return best.perform()


def work(config: dict) -> int:
    """Return the utterances of a training, an estimate of its share of the time; 1000 without training."""
    runner, expert = config["runner"], config["downstream_expert"]
    if not runner:
        return 1000
    groups = [expert.get(name, {}) for name in ("datarc", "loaderrc", "corpus")]
    names = ("train_batch_size", "train_batchsize", "batch_size")
    sizes = [group[name] for group in groups for name in names if name in group]
    return runner["total_steps"] * runner["gradient_accumulate_steps"] * (sizes[0] if sizes else 1)


def disk(experiment: Experiment, config: dict) -> int:
    """Estimate the bytes of a training's checkpoints, from the published head whatever the settings."""
    runner = config["runner"]
    if not runner:
        return 0
    kept = min(runner["max_keep"], runner["total_steps"] // runner["save_step"]) + bool(experiment.task.best)
    return int(experiment.task.heads * 1e6 * BYTES_A_PARAMETER * kept)


class Progress:
    """Progress bar over all experiments, with the time left; messages appear above it."""

    def __init__(self, shares: dict[str, int]):
        from tqdm import tqdm

        self.shares, self.reached = shares, dict.fromkeys(shares, 0.0)
        self.bar = tqdm(total=sum(shares.values()), unit="utt", unit_scale=True, dynamic_ncols=True, disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def watch(self, phase: str, process: subprocess.Popen, err: Path) -> None:
        """Follow a process by the progress bar that it writes to ``err``."""
        name = err.parent.name
        while process.poll() is None:
            steps = parsing.steps_done(_tail(err)) if phase == "train" else None
            self.bar.set_description(f"{name} {phase}" + (f" {steps[0]:,}/{steps[1]:,}" if steps else ""))
            if steps:
                self.reach(name, steps[0] / steps[1])
            time.sleep(POLL)

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(line)

    def reach(self, name: str, share: float) -> None:
        """Set the finished share of an experiment."""
        self.bar.update(int((share - self.reached[name]) * self.shares[name]))
        self.reached[name] = share


def _tail(path: Path, size: int = 4096) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode("utf-8", errors="replace")


def task_numbers(results: list[dict]) -> dict[str, dict[str, float]]:
    """Return metrics by task, of one with variants their mean, once all have results."""
    grouped: dict[str, list[dict]] = {}
    for result in results:
        if result["metrics"]:
            grouped.setdefault(result["task"], []).append(result["metrics"])
    return {
        name: {key: sum(one[key] for one in found) / len(found) for key in found[0]}
        for name, found in grouped.items()
        if len(found) == len(TASKS[name].variants)
    }
