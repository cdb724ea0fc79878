"""Everything a run logged over its updates, from TensorBoard's event files or from a saved log of fairseq.

Reading takes neither torch nor fairseq.
"""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_star.errors import StarError

TRAIN, VALID = ("train_inner", "train"), ("valid",)

Curve = dict[int, float]  # number of updates -> mean over utterances


@dataclass
class Curves:
    """Curves by what was logged: ``loss``, ``layerwise``, ``gnorm``, ...; of an update logged twice the last value."""

    source: str  # for the reader: the file or folder they are from
    train: dict[str, Curve] = field(default_factory=dict)
    valid: dict[str, Curve] = field(default_factory=dict)

    @property
    def last_update(self) -> int:
        """Number of the last update that training logged; 0 where it logged none."""
        return max(self.train.get("loss", {}), default=0)


def read_curves(run_dir: Path, tensorboard_logdir: str | None) -> Curves | None:
    """Find and read a run's curves.

    Sources are event files in ``run_dir`` and in ``tensorboard_logdir`` (the run's own setting), then a ``*.log`` in
    ``run_dir`` with fairseq's output (``log_format`` ``json`` or ``simple``), the newest first; None without either.

    Raises:
        StarError: event files without TensorBoard to read them, or without losses; an unreadable log.
    """
    folders = [run_dir / "tensorboard", run_dir, *([Path(tensorboard_logdir)] if tensorboard_logdir else [])]
    for folder in folders:
        if any(folder.glob("train*/events.out.tfevents.*")):
            curves = read_events(folder)
            if "loss" not in curves.train:
                raise StarError(f"{folder}: its event files hold no losses; remove or restore them")
            return curves
    logs = (read_log(path) for path in sorted(run_dir.glob("*.log"), key=os.path.getmtime, reverse=True))
    return next((curves for curves in logs if "loss" in curves.train), None)


def read_events(folder: Path) -> Curves:
    """Read the event files that fairseq's TensorBoard logging writes: ``train_inner``, ``train``, ``valid``.

    Raises:
        StarError: TensorBoard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise StarError(f"{folder}: reading it needs TensorBoard: pip install 'fairseq-star[report]'") from error

    def read(names: tuple[str, ...]) -> dict[str, Curve]:
        for name in names:
            if not any((folder / name).glob("events.out.tfevents.*")):
                continue
            events = EventAccumulator(str(folder / name), size_guidance={"scalars": 0}).Reload()
            return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
        return {}

    return Curves(str(folder), read(TRAIN), read(VALID))


# hydra's `[2026-11-23 08:05:10,000][train_inner][INFO] - ...`, fairseq-train's `2026-... | INFO | train_inner | ...`
_LOG_LINE = re.compile(r"[\[|] ?(?P<name>train_inner|train|valid)(?:\]\[INFO\] - | \| )(?P<text>.+)")
_PAIR = re.compile(r"(?:^|[ ,|])(\w+)[= ]([-+\d.e]+|nan|-?inf)(?=[,| ]|$)")


def read_log(path: Path) -> Curves:
    """Read fairseq's output of ``common.log_format`` ``json`` or ``simple``; other lines are ignored.

    Raises:
        StarError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror}); restore it") from error
    curves: dict[str, dict[str, Curve]] = {name: defaultdict(dict) for name in (*TRAIN, *VALID)}
    for line in text.splitlines():
        match = _LOG_LINE.search(line)
        values = _values(match["name"], match["text"]) if match else {}
        step = values.pop("num_updates", None)
        for term, value in values.items() if step is not None else ():
            curves[match["name"]][term][int(step)] = value
    return Curves(str(path), dict(curves["train_inner"] or curves["train"]), dict(curves["valid"]))


def _values(name: str, text: str) -> dict[str, float]:
    """Numbers of one line, by name without JSON's prefix (``valid_loss``)."""
    if text.startswith("{"):
        try:
            pairs = json.loads(text).items()
        except ValueError:
            return {}
    else:
        pairs = _PAIR.findall(text)
    values = {}
    for key, value in pairs:
        try:
            values[key.removeprefix(f"{name}_")] = float(value)
        except (TypeError, ValueError):
            continue
    return values
