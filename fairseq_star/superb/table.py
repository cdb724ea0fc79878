"""The result: one table in Markdown and JSON, a picture, and what s3prl's ``submit.py`` makes of the predictions."""

import json
import subprocess
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_star.files import replacing
from fairseq_star.manifest import write_lines
from fairseq_star.superb.published import COLUMNS, HUBERT, PUBLISHED, Numbers, Row
from fairseq_star.superb.scores import COUNTED, generalizability, overall, position
from fairseq_star.superb.sweep import Sweep, task_numbers
from fairseq_star.superb.tasks import TASKS, Metric
from fairseq_star.superb.toolkit import Toolkit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fairseq_star.plots.style import Theme


@dataclass(frozen=True)
class Outcome:
    """A sweep's results as they are told.

    counts: files of each part of the corpora; failed: why an experiment has no result.
    """

    title: str
    cost: dict
    results: list[dict]
    failed: dict[str, str]
    counts: dict[str, dict[str, int]]
    is_published_size: bool
    made_with: dict[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> Numbers:
        """Task -> metric -> value."""
        return task_numbers(self.results)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            "upstream": self.title,
            "cost": self.cost,
            "numbers": self.numbers,
            "overall": overall(self.numbers),
            "generalizability": generalizability(self.numbers),
            "files": self.counts,
            "failed": self.failed,
            "made_with": self.made_with,
            "experiments": self.results,
        }

    def to_markdown(self) -> str:
        """The table, what the numbers are, what differs from s3prl's settings, what went wrong."""
        lines = [f"# SUPERB: {self.title}", "", *(f"* {key}: {value}" for key, value in self.made_with.items())]
        if not self.is_published_size:
            lines += [
                "",
                "**The corpora are not the published ones (`sizes: any`): no number here compares with theirs.**",
            ]
        lines += ["", *self._table(), "", *_LEGEND, ""]
        if self.failed:
            lines += ["## Without a number", "", *(f"* `{name}`: {why}" for name, why in self.failed.items()), ""]
        lines += [*self._notes(), *self._settings()]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        metrics = [_metric(task, name) for task, name in COLUMNS]
        head = [f"{task.upper() if task != 'qbe' else 'QbE'} {metric.title}" for (task, _), metric in
                zip(COLUMNS, metrics, strict=True)]  # fmt: skip
        millions = self.cost.get("parameters")
        own = Row(self.title, millions and millions / 1e6, self.numbers, overall(self.numbers))
        lines = [
            "| model | params M | GMACs | " + " | ".join(head) + " | overall | general. |",
            "|---|" + "--:|" * (len(head) + 4),
        ]
        for row in (own, *PUBLISHED):
            macs = self.cost.get("gmacs_superb") if row is own else None
            cells = [
                _text(row.numbers.get(task, {}).get(name), metric.digits)
                for (task, name), metric in zip(COLUMNS, metrics, strict=True)
            ]
            name = f"**{row.name}**" if row is own else row.name + (" (read)" if row.is_read else "")
            scores = [_text(row.overall, 1), _text(generalizability(row.numbers), 0)]
            lines.append("| " + " | ".join([name, _text(row.parameters, 1), _text(macs, 1), *cells, *scores]) + " |")
        return lines

    def _notes(self) -> list[str]:
        notes: dict[str, list[str]] = {}
        for result in self.results:
            for note in result["notes"]:
                notes.setdefault(note, []).append(result["experiment"])
            for name in result["stand_ins"]:
                notes.setdefault(f"stand-in for what s3prl's environment lacks: {name}", []).append(
                    result["experiment"]
                )
        if not notes:
            return []
        return ["## Notes", "", *(f"* {', '.join(names)}: {note}" for note, names in notes.items()), ""]

    def _settings(self) -> list[str]:
        lines = ["## Where settings differ from s3prl's", ""]
        for result in self.results:
            if result["variant"] not in ("", TASKS[result["task"]].variants[0]):
                continue
            for path, (theirs, own) in result["differs_from_s3prl"].items():
                if not _is_place(own):
                    lines.append(f"* `{result['task']}.{path}`: {_short(theirs)} → {_short(own)}")
        return [*lines, ""]


_LEGEND = (
    "PR: phone error rate; ASR: word error rate without a language model; KS, SID, IC, ER: accuracy; QbE: maximum "
    "term weighted value; ASV: equal error rate; SD: diarization error rate; SF: slot type F1 and slot value character "
    "error rate; SE: SI-SDR improvement, STOI, PESQ. In % but for QbE, SI-SDRi (dB) and PESQ; ER: mean of five folds.",
    "",
    "overall: mean of the eleven metrics without SE, errors as 100 - error, QbE times 100 (as in STaR). general.: "
    "1000 times the mean over tasks of (value - FBANK) / (WavLM Large - FBANK), `superb_s` of the SUPERB challenge "
    "(arXiv 2210.08634). (read): read off pictures; see the papers.",
)


def _metric(task: str, name: str) -> Metric:
    return next(metric for metric in TASKS[task].metrics if metric.name == name)


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _is_place(value: object) -> bool:
    return any(isinstance(one, str) and one.startswith("/") for one in (value if isinstance(value, list) else [value]))


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write(outcome: Outcome, out: Path) -> list[Path]:
    """Write ``superb.md``, ``superb.json`` and, where matplotlib is there, ``superb.png``."""
    content = {"superb.md": outcome.to_markdown(), "superb.json": json.dumps(outcome.to_dict(), indent=1) + "\n"}
    written = []
    for name, text in content.items():
        write_lines(out / name, [text])
        written.append(out / name)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return written
    from fairseq_star.plots.style import LIGHT, themed, to_png

    with themed(LIGHT), replacing(out / "superb.png") as temporary:
        temporary.write_bytes(to_png(draw(outcome, LIGHT)))
    return [*written, out / "superb.png"]


def draw(outcome: Outcome, theme: "Theme") -> "Figure":
    """Each metric's place between FBANK (0) and WavLM Large (1): the upstream beside HuBERT Base."""
    from fairseq_star.plots.style import new_figure

    figure = new_figure(7, 4.2, layout="constrained")
    axes = figure.add_subplot()
    names = [f"{task.upper()} {_metric(task, name).title}" for task, name in COUNTED]
    for numbers, label, colour, marker in (
        (HUBERT.numbers, HUBERT.name, theme.second, "o"),
        (outcome.numbers, outcome.title, theme.first, "D"),
    ):
        places = {
            index: position(task, name, numbers[task][name])
            for index, (task, name) in enumerate(COUNTED)
            if name in numbers.get(task, {})
        }
        axes.scatter(list(places.values()), list(places), color=colour, marker=marker, label=label, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=theme.faint)
    axes.axvline(1, color=theme.faint)
    axes.set_xlabel("0: FBANK, published; 1: WavLM Large, published")
    axes.legend(frameon=False)
    axes.set_title("SUPERB without SE")
    return figure


def submission(sweep: Sweep, results: list[dict], toolkit: Toolkit) -> str:
    """Let s3prl's ``submit.py`` gather the predictions in ``out/submission``; a sentence on what came of it."""
    script = toolkit.package / "submit" / "submit.py"
    if not script.is_file():
        return "no submission folder: submit.py is in s3prl's clone alone (--s3prl CLONE)"
    if not results:
        return "no submission folder: nothing is done yet"
    options = []
    for result in results:
        expdir = sweep.out / "experiments" / result["experiment"] / "s3prl"
        name = TASKS[result["task"]].submission + (f"_{result['variant']}" if result["variant"] else "")
        options += [f"--{name}", str(expdir)]
    folder = sweep.out / "submission"
    command = toolkit.python(str(script), *options, "--output_dir", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False, **toolkit.process_options())
    if done.returncode:
        return f"no submission folder: s3prl's submit.py failed ({(done.stderr.strip().splitlines() or [''])[-1]})"
    return f"{folder}: s3prl's submission"


def made_with(sweep: Sweep, command: str) -> dict[str, str]:
    """What a table was made with."""
    from fairseq_star.runtime.provenance import commit, hardware

    versions = sweep.toolkit.environment.found["versions"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {
        "date": date.today().isoformat(),
        "command": f"`{command}`",
        "commit": commit() or "none",
        "hardware": hardware(),
        "toolkit": f"{sweep.toolkit.version}, unedited; {told}",
        "settings": f"{sweep.convention} convention, seed {sweep.seed}",
    }
