"""One experiment: s3prl trains and evaluates, its numbers are read; an interrupted one resumes."""

import json
import math
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fairseq_star.errors import StarError
from fairseq_star.manifest import write_lines
from fairseq_star.runtime.folder_lock import HeldError, lock_folder, unlock_folder
from fairseq_star.superb import parsing, scorers
from fairseq_star.superb.settings import differences, flat
from fairseq_star.superb.tasks import Experiment
from fairseq_star.superb.toolkit import Toolkit, Upstream

Watch = Callable[[str, subprocess.Popen, Path], None]
RESULT = "result.json"
LOCK = ".lock"
ALONE = "each utterance alone, in float16"  # how stored features are computed


@dataclass(frozen=True)
class Features:
    """Where an upstream's features are stored, and how many bytes of them; 0: none, with the same results."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, out: Path, gigabytes: float | None) -> "Features | None":
        """Return the store in a sweep's folder; None for None.

        Raises:
            StarError: ``gigabytes`` is no size.
        """
        if gigabytes is None:
            return None
        if not 0 <= gigabytes < math.inf:
            raise StarError(f"--store-features {gigabytes}: must be a number of GB, 0 or more; correct it")
        return cls(out / "features", int(gigabytes * 1e9))

    def stored_bytes(self) -> int:
        """Return the size of what is stored already."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*"))

    def arguments(self, *, only_repeated: bool) -> list[str]:
        """Return the options of ``launch.py``."""
        return ["--features", str(self.folder), str(self.limit), *(["--only-repeated"] if only_repeated else [])]


class BusyError(Exception):
    """Another process is running this experiment."""


@dataclass
class Run:
    """Experiment in its folder.

    ``train.out``, ``train.err`` and so on are s3prl's output; ``train.done`` marks a finished phase; ``s3prl/`` is
    s3prl's ``expdir``; ``result.json`` marks a finished experiment.
    """

    experiment: Experiment
    folder: Path
    config: dict
    toolkit: Toolkit
    upstream: Upstream
    device: str
    seed: int
    layers: int  # hidden states of the upstream
    watch: Watch
    features: Features | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def expdir(self) -> Path:
        return self.folder / "s3prl"

    @property
    def result(self) -> dict | None:
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def perform(self, *, evaluate: bool = True) -> dict:
        """Run all unfinished phases and return the result.

        Args:
            evaluate: False to stop after training, as ``--lr auto`` does for rates that are not the best.

        Raises:
            BusyError: another process is running it.
            StarError: a phase failed, or the folder is another experiment's.
        """
        if (result := self.result) is not None:
            self._check_same()
            return result
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            self._check_same()
            task = self.experiment.task
            if task.needs_training:
                self._train()
            if not evaluate:
                return {}
            metrics = {"qbe": self._query, "asv": self._verify}.get(task.name, self._evaluate)()
            return self._conclude(metrics)

    def _described(self) -> dict:
        alone = [] if self.features is None else [ALONE]
        return {
            "experiment": self.experiment.name,
            "upstream": [self.upstream.name, self.upstream.identity, *alone],
            "seed": self.seed,
            "config": self.config,
        }

    def _check_same(self) -> None:
        """Write this experiment's description, or refuse to continue another's."""
        path, own = self.folder / "experiment.json", json.loads(json.dumps(self._described()))
        if not path.is_file():
            write_lines(self.folder / "settings.yaml", [yaml.safe_dump(self.config, sort_keys=False)])
            _write(path, own)  # last, since its existence is checked
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        for key in own:
            if known.get(key) != own[key]:
                difference = _difference(key, known.get(key), own[key])
                raise StarError(
                    f"{self.folder}: was begun with {difference}; restore what it had, or name another --out"
                )

    def _phase(self, name: str, arguments: list[str]) -> str:
        """Run s3prl, unless this phase is done, and return its output."""
        out, err, done = (self.folder / f"{name}.{kind}" for kind in ("out", "err", "done"))
        if not done.is_file():
            began = time.monotonic()
            crops = self.experiment.task.crops and name == "train"
            features = [] if self.features is None else self.features.arguments(only_repeated=crops)
            self._process(name, self.toolkit.command(*features, *arguments, "--device", self.device), out, err)
            _write(done, {"seconds": round(time.monotonic() - began, 1)})
        return parsing.read([out])

    def _process(self, name: str, command: list[str], out: Path, err: Path) -> None:
        mode = "ab" if name == "train" else "wb"  # a resumed training appends
        with out.open(mode) as stdout, err.open(mode) as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL,
                                       **self.toolkit.process_options())  # fmt: skip
            try:
                self.watch(name, process, err)
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if status:
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            raise StarError(
                f"{self.experiment.name}: {name} ended {how}: {parsing.last_error(parsing.read([err]))} ({err})"
            )

    def _train(self) -> None:
        if (self.folder / "train.done").is_file():
            return
        checkpoint = self._newest()
        if checkpoint:
            arguments = ["-m", "train", "-e", str(checkpoint)]
        else:
            arguments = ["-m", "train", *self._fresh(self.expdir)]
            shutil.rmtree(self.expdir, ignore_errors=True)  # of a training that left no checkpoint
            for kind in ("out", "err"):
                (self.folder / f"train.{kind}").unlink(missing_ok=True)
        self._phase("train", arguments)

    def _fresh(self, expdir: Path) -> list[str]:
        downstream, settings = self.experiment.task.downstream, str(self.folder / "settings.yaml")
        return [
            *self.upstream.arguments, "-d", downstream, "-c", settings, "-p", str(expdir), "--seed", str(self.seed)
        ]  # fmt: skip

    def _newest(self) -> Path | None:
        """The checkpoint to resume from; one that a kill cut short is removed."""
        for path in self.expdir.glob("*.ckpt"):
            if not zipfile.is_zipfile(path):  # torch writes a zip's directory at its end
                print(f"{self.experiment.name}: {path.name} was cut short while it was written; it is removed")
                path.unlink()
        return max(self.expdir.glob("states-*.ckpt"), key=_step, default=None)

    def _checkpoints(self) -> list[Path]:
        found = sorted(self.expdir.glob("states-*.ckpt"), key=_step)
        if not found:
            raise StarError(
                f"{self.experiment.name}: s3prl kept no checkpoint; set runner.save_step to at most its total_steps"
            )
        return found

    def _checkpoint(self) -> Path:
        """The checkpoint to evaluate."""
        task = self.experiment.task
        best = self.expdir / str(task.best)
        if best.is_file():
            return best
        self.notes.append(
            f"no score on dev was above the lowest possible: the last checkpoint, for want of {task.best}"
        )
        return self._checkpoints()[-1]

    def _evaluate(self) -> dict[str, float]:
        task = self.experiment.task
        text = self._phase("evaluate", ["-m", "evaluate", "-t", task.split, "-e", str(self._checkpoint())])
        metrics = parsing.metrics_of(task, text)
        if task.name == "sd":
            frames = metrics.pop("der")
            self.notes.append(f"s3prl's own DER, of frames with the labels' best order a recording: {frames:.2f} %")
            reference = Path(self.config["downstream_expert"]["loaderrc"]["test_dir"]) / "rttm"
            metrics |= scorers.diarization(self.expdir, reference, self.toolkit, self.notes)
        return metrics

    def _verify(self) -> dict[str, float]:
        """The lowest EER of all checkpoints, as in s3prl's ``sv_voxceleb1/test_expdir.sh``."""
        task, found = self.experiment.task, {}
        for path in self._checkpoints():
            place = self.expdir / path.stem
            arguments = ["-m", "evaluate", "-t", task.split, "-e", str(path), "-o", f"args.expdir={place}"]
            found[path] = parsing.metrics_of(task, self._phase(f"evaluate-{_step(path)}", arguments))["eer"]
        best = min(found, key=found.get)
        shutil.copy2(self.expdir / best.stem / "test_predict.txt", self.expdir / "test_predict.txt")
        self.notes.append(f"lowest EER on the test's trials of {len(found)} checkpoints ({best.stem}), as in SUPERB")
        return {"eer": found[best]}

    def _query(self) -> dict[str, float]:
        """MTWV on the test's queries, of the layer that is best on dev."""
        root = Path(self.config["downstream_expert"]["datarc"]["dataset_root"])
        scores = {}
        for layer in range(self.layers) if self.layers > 1 else ():
            folder = self._search("dev", layer)
            scores[layer] = scorers.queries(folder, root, "dev", self.notes)
        known = {layer: score for layer, score in scores.items() if score is not None}
        layer = max(known, key=known.get) if known else self.layers - 1
        folder = self._search("test", layer)
        shutil.copy2(folder / "benchmark.stdlist.xml", self.expdir / "benchmark.stdlist.xml")
        score = scorers.queries(folder, root, "eval", self.notes)
        how = "best on dev" if known else "the last"
        self.notes.append(f"layer {layer} of {self.layers}, {how}")
        return {} if score is None else {"mtwv": score}

    def _search(self, split: str, layer: int) -> Path:
        place = self.expdir / f"{split}-layer{layer}"
        self._phase(f"{split}-layer{layer}", ["-m", "evaluate", "-t", split, *self._fresh(place), "-l", str(layer)])
        return place

    def _conclude(self, metrics: dict[str, float]) -> dict:
        if self.features is not None:
            self.notes.append(f"features computed of {ALONE}; s3prl computes padded batches, in float32")
        done = sorted(self.folder.glob("*.done"))
        printed = parsing.read(sorted(self.folder.glob("*.err")))
        result = {
            **self._described(),
            "task": self.experiment.task.name,
            "variant": self.experiment.variant,
            "metrics": metrics,
            "notes": list(dict.fromkeys(self.notes)),
            "stand_ins": list(dict.fromkeys(parsing.stand_ins(printed))),
            "features": parsing.features(printed),
            "differs_from_s3prl": differences(self.experiment.task.name, self.config),
            "seconds": {path.stem: json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in done},
            "device": self.device,
            "s3prl": self.toolkit.version,
            "environment": self.toolkit.environment.found["versions"],
        }
        _write(self.folder / RESULT, result)
        return json.loads(json.dumps(result))


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _difference(key: str, known: object, own: object) -> str:
    if key != "config":
        return f"{key} {known!r}, not {own!r}"
    old, new = dict(flat(known)), dict(flat(own))
    path = next(path for path in {**old, **new} if old.get(path) != new.get(path))
    return f"{path} = {old.get(path)!r}, not {new.get(path)!r}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder for the block, or until this process ends."""
    try:
        lock_folder(folder, LOCK)
    except HeldError as error:
        raise BusyError(folder.name) from error
    try:
        yield
    finally:
        unlock_folder(folder, LOCK)


def _write(path: Path, content: dict) -> None:
    write_lines(path, [json.dumps(content, indent=1) + "\n"])
