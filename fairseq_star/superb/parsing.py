"""Numbers from s3prl's output, whose downstream experts print one line a metric.

``tests/superb/printed`` holds output of s3prl in runs of this project.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.superb.tasks import Task

_NUMBER = r"(-?[\d.]+(?:[eE][-+]?\d+)?|nan|inf)"
# Metric -> its line in the output of `-m evaluate`.
_LINES = {
    "acc": r"^{split} acc: " + _NUMBER,
    "per": r"^{split} per: " + _NUMBER,
    "wer": r"^{split} wer: " + _NUMBER,
    "slot_type_f1": r"^{split} slot_type_f1: " + _NUMBER,
    "slot_value_cer": r"^{split} slot_value_cer: " + _NUMBER,
    "eer": r"^sv-voxceleb1/{split}-EER: " + _NUMBER,
    "der": r"^mode {split} acc \S+ der " + _NUMBER,
    "si_sdr": r"^Average si_sdr of \d+ utts is " + _NUMBER,
    "stoi": r"^Average stoi of \d+ utts is " + _NUMBER,
    "pesq": r"^Average pesq of \d+ utts is " + _NUMBER,
}
# A metric on dev while training, where the line is another.
_DEV_LINES = {"dev acc": r"^(?:dev acc: |mode dev acc )" + _NUMBER, "dev pesq": _LINES["pesq"]}
_STEPS = re.compile(r"overall:[^\r\n]*?(\d+)/(\d+) \[([\d:]+)<")
_TWV = re.compile(r"maxTWV:\s+" + _NUMBER)


def metrics_of(task: Task, text: str) -> dict[str, float]:
    """Read the last value of each metric of a task from an evaluation's output, in the table's units.

    Raises:
        StarError: one is missing.
    """
    metrics = {}
    for metric in task.metrics:
        found = re.findall(_LINES[metric.name].format(split=re.escape(task.split)), text, re.MULTILINE)
        if not found:
            raise StarError(f"s3prl printed no {metric.name} of {task.split}; look into its output")
        metrics[metric.name] = metric.scale * float(found[-1])
    return metrics


def best_on_dev(text: str, line: str, lower: bool) -> float:
    """Read the best value that a training printed on the line of ``Task.dev``.

    Raises:
        StarError: it printed none.
    """
    pattern = _DEV_LINES.get(line, rf"^{re.escape(line)}: {_NUMBER}")
    found = [float(value) for value in re.findall(pattern, text, re.MULTILINE)]
    if not found:
        raise StarError(
            f"s3prl printed no '{line}' while it trained; give the runner an eval_step below its total_steps"
        )
    return min(found) if lower else max(found)


def steps_done(text: str) -> tuple[int, int, int] | None:
    """Read steps done, total steps and seconds so far from s3prl's progress bar; None before the first."""
    found = _STEPS.findall(text)
    if not found:
        return None
    done, total, clock = found[-1]
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return int(done), int(total), seconds


def twv(text: str) -> float:
    """Read the maximum term weighted value that QUESST's scorer wrote to ``score.out``.

    Raises:
        StarError: it is missing.
    """
    found = _TWV.search(text)
    if not found:
        raise StarError("QUESST's scorer wrote no maxTWV; look into score.out")
    return float(found[1])


def stand_ins(text: str) -> list[str]:
    """Read what ``launch.py`` replaced because it was missing."""
    return re.findall(r"^stand-in: (.+)$", text, re.MULTILINE)


def features(text: str) -> dict[str, int]:
    """Read how many utterances' features ``features.py`` read, computed, stored and removed; empty without a store."""
    total: Counter[str] = Counter()
    for line in re.findall(r"^features of utterances: (.+)$", text, re.MULTILINE):
        total.update({name: int(count) for count, name in re.findall(r"(\d+) (\w+)", line)})
    return dict(total)


def last_error(text: str) -> str:
    """Return the last line of a traceback, or else the last line, progress bars left out."""
    lines = [
        line for line in re.split(r"[\r\n]+", text) if line.strip() and "it/s]" not in line and "s/it]" not in line
    ]
    errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt|Exit)\b", line)]
    return (errors or lines or ["nothing was printed"])[-1].strip()[:300]


def read(paths: Iterable[Path]) -> str:
    """Read those of the files that exist, one after another."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file())
