"""Results of a sweep: a table in Markdown and JSON, a picture, and a submission by s3prl's ``submit.py``."""

import json
import subprocess
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_star.manifest import write_lines
from fairseq_star.runtime.files import replacing
from fairseq_star.superb.scores import (
    COLUMNS,
    COUNTED,
    HUBERT,
    PUBLISHED,
    Numbers,
    Row,
    generalizability,
    overall,
    position,
)
from fairseq_star.superb.sweep import Sweep, task_numbers
from fairseq_star.superb.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fairseq_star.plots.style import Theme


@dataclass(frozen=True)
class Outcome:
    """Results of a sweep with everything that the table shows."""

    title: str
    cost: dict
    results: list[dict]
    failed: dict[str, str]  # errors of experiments without a result
    counts: dict[str, dict[str, int]]  # corpus -> part -> number of files
    is_published_size: bool
    made_with: dict[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> Numbers:
        return task_numbers(self.results)

    def to_dict(self) -> dict:
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
        """Return the table, its legend, differences from s3prl's settings, and errors."""
        lines = [f"# SUPERB: {self.title}", "", *(f"* {key}: {value}" for key, value in self.made_with.items())]
        if not self.is_published_size:
            warning = "**The corpora are not the published ones (`sizes: any`): no number here compares with theirs.**"
            lines += ["", warning]
        lines += ["", *self._table(), "", *_LEGEND, ""]
        if self.failed:
            lines += ["## Without a number", "", *(f"* `{name}`: {why}" for name, why in self.failed.items()), ""]
        lines += [*self._notes(), *self._settings()]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        metrics = [TASKS[task].metric(name) for task, name in COLUMNS]
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
                note = f"stand-in for what s3prl's environment lacks: {name}"
                notes.setdefault(note, []).append(result["experiment"])
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


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _is_place(value: object) -> bool:
    return any(isinstance(one, str) and one.startswith("/") for one in (value if isinstance(value, list) else [value]))


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write(outcome: Outcome, out: Path) -> list[Path]:
    """Write ``superb.md``, ``superb.json`` and, where matplotlib is installed, ``superb.png``; return their paths."""
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
    """Draw each metric between FBANK (0) and WavLM Large (1), for the upstream and HuBERT Base."""
    from fairseq_star.plots.style import new_figure

    figure = new_figure(7, 4.2, layout="constrained")
    axes = figure.add_subplot()
    names = [f"{task.upper()} {TASKS[task].metric(name).title}" for task, name in COUNTED]
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


def submission(sweep: Sweep, results: list[dict]) -> str:
    """Run s3prl's ``submit.py``, which collects predictions in ``out/submission``; return a sentence on the outcome."""
    script = sweep.toolkit.package / "submit" / "submit.py"
    if not script.is_file():
        return "no submission folder: submit.py is in s3prl's clone alone (--s3prl CLONE)"
    if not results:
        return "no submission folder: no results yet"
    options = []
    for result in results:
        expdir = sweep.out / "experiments" / result["experiment"] / "s3prl"
        name = TASKS[result["task"]].submission + (f"_{result['variant']}" if result["variant"] else "")
        options += [f"--{name}", str(expdir)]
    folder = sweep.out / "submission"
    command = sweep.toolkit.python(str(script), *options, "--output_dir", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False, **sweep.toolkit.process_options())
    if done.returncode:
        return f"no submission folder: s3prl's submit.py failed ({(done.stderr.strip().splitlines() or [''])[-1]})"
    return f"{folder}: s3prl's submission"


def made_with(sweep: Sweep, command: str) -> dict[str, str]:
    """Return the command, versions and hardware of a table."""
    from fairseq_star.runtime.provenance import commit, hardware

    versions = ", ".join(" ".join(one) for one in sweep.toolkit.environment.found["versions"].items())
    return {
        "date": date.today().isoformat(),
        "command": f"`{command}`",
        "commit": commit() or "none",
        "hardware": hardware(),
        "toolkit": f"{sweep.toolkit.version}, unedited; {versions}",
        "settings": f"{sweep.convention} convention, seed {sweep.seed}",
    }
