"""What a run left behind: curves, options, checkpoints, its log. Reading takes neither torch nor fairseq."""

import ast
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_star.analysis.curves import Curves, read_curves
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.run_lock import is_locked
from fairseq_star.manifest import stream_manifest

CHECKPOINTS = ("checkpoint_last.pt", "checkpoint_best.pt")
MOST_BYTES = 2**26  # of a checkpoint's plain values; those of a run take some 100 kB
_OPTIONS = re.compile(r"fairseq_cli\.train(?:\]\[INFO\] - | \| )(\{.*\})$")


@dataclass
class Record:
    """A run, as far as its folder describes it.

    Attributes:
        curves: None where neither event files nor a log hold any.
        options: the whole configuration, resolved; empty where neither a checkpoint nor a log has it.
        teacher: the digest of the teacher's files; None for an old checkpoint or none.
        utterances: of the training set; None where its manifest is not in its place any more.
        saved: whether there is a checkpoint.
        num_updates: the last one that was logged or saved.
        running: whether a process holds the lock of the folder.
        log: lines of the newest ``*.log``.
    """

    run_dir: Path
    curves: Curves | None
    options: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    utterances: int | None = None
    saved: bool = False
    num_updates: int = 0
    running: bool = False
    log: list[str] = field(default_factory=list)

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option by its name on the command line, such as ``optimization.max_update``."""
        section, _, key = name.partition(".")
        value = _section(self.options, section).get(key)
        return default if value is None else value

    def curve(self, name: str) -> dict[int, float]:
        """Return what training logged under a name; empty where it logged nothing."""
        return self.curves.train.get(name, {}) if self.curves else {}

    @property
    def max_update(self) -> int:
        """Updates that the run was to have; 0 where that is not known."""
        return int(self.option("optimization.max_update", 0))

    @property
    def finished(self) -> bool:
        """Whether no update is missing; without a checkpoint as many may be as are between two lines of the log."""
        tolerated = 0 if self.saved else int(self.option("common.log_interval", 1)) - 1
        return self.num_updates >= self.max_update - tolerated and not self.running


def read_record(run_dir: str | os.PathLike) -> Record:
    """Read what there is of a run.

    Raises:
        StarError: no such folder, nothing of a run in it, or event files without TensorBoard to read them.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise StarError(f"doctor: {run_dir} is no folder; give a run's checkpoint.save_dir, such as demo/run")
    log = _newest_log(run_dir)
    saved = next((stored_values(run_dir / name) for name in CHECKPOINTS if (run_dir / name).is_file()), {})
    options = saved.get("cfg") or _logged_options(log)
    curves = read_curves(run_dir, _section(options, "common").get("tensorboard_logdir"))
    if curves is None and not saved:
        raise StarError(
            f"doctor: {run_dir} holds neither a checkpoint nor event files nor a *.log with losses; give a run's "
            "checkpoint.save_dir, such as demo/run"
        )
    return Record(
        run_dir,
        curves,
        options,
        teacher=_section(saved, "task_state").get("teacher_digest"),
        utterances=_count_utterances(run_dir, options),
        saved=bool(saved),
        num_updates=max(curves.last_update if curves else 0, _saved_updates(saved)),
        running=is_locked(run_dir),
        log=log,
    )


def _section(values: Mapping, name: str) -> Mapping:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _saved_updates(saved: Mapping) -> int:
    history = saved.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else {}
    number = last.get("num_updates") if isinstance(last, Mapping) else None
    return number if isinstance(number, int) else 0


def _count_utterances(run_dir: Path, options: dict) -> int | None:
    data = _section(options, "task").get("data")
    if not data:
        return None
    name = f"{_section(options, 'dataset').get('train_subset')}.tsv"
    depth = len(Path(_section(options, "checkpoint").get("save_dir") or "").parts)
    started_in = run_dir.resolve().parents[depth - 1 : depth]  # where a relative save_dir tells that
    for folder in (Path(), *started_in):
        with suppress(StarError):
            return sum(1 for _ in stream_manifest(folder / data / name)[1])
    return None


def _newest_log(run_dir: Path) -> list[str]:
    paths = sorted(run_dir.glob("*.log"), key=os.path.getmtime)
    try:
        return paths[-1].read_text(encoding="utf-8", errors="replace").splitlines() if paths else []
    except OSError as error:
        raise StarError(f"doctor: {paths[-1]} cannot be read ({error.strerror}); restore it") from error


def _logged_options(log: list[str]) -> dict:
    """The configuration that fairseq's training prints first."""
    for line in log:
        if match := _OPTIONS.search(line):
            try:
                return ast.literal_eval(re.sub(r": -?(?:inf|nan)\b", ": None", match[1]))
            except (ValueError, SyntaxError):
                return {}
    return {}


class _Object:
    """An empty object in the place of whatever is no plain value: a tensor, a class of anyone's."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _PlainValues(pickle.Unpickler):
    """Reads numbers, texts and containers of them; nothing that the file names is looked up or called."""

    def find_class(self, module: str, name: str) -> type:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Object

    def persistent_load(self, pid: Any) -> _Object:
        return _Object()


def stored_values(path: Path) -> dict:
    """Read the plain values of a checkpoint, without its weights and without torch.

    Raises:
        StarError: it is no whole checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            [entry] = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if entry.file_size > MOST_BYTES:
                raise ValueError(f"{entry.file_size} bytes of plain values")
            with archive.open(entry) as file:
                values = _PlainValues(file).load()
        if not isinstance(values, Mapping) or not isinstance(values.get("cfg"), Mapping):
            raise ValueError("no configuration in it")
    except Exception as error:  # damaged pickles raise anything
        raise StarError(
            f"doctor: {path} is no whole checkpoint of a run ({type(error).__name__}); the same training command "
            "renames a damaged one and goes on from the one before"
        ) from error
    return dict(values)
