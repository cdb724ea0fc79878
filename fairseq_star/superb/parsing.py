"""Numbers out of what s3prl printed or wrote: its downstream experts print one line a metric.

``tests/superb/printed`` holds lines that s3prl printed in runs of this project.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.superb.tasks import Task

_NUMBER = r"(-?[\d.]+(?:[eE][-+]?\d+)?|nan|inf)"
# Metric -> where its line is found in what `-m evaluate` prints.
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


def printed(text: str, metric: str, split: str) -> float:
    """The last value of a metric in what an evaluation printed, in s3prl's own unit.

    Raises:
        StarError: it is not there.
    """
    found = re.findall(_LINES[metric].format(split=re.escape(split)), text, re.MULTILINE)
    if not found:
        raise StarError(f"s3prl printed no {metric} of {split}; look into what it printed")
    return float(found[-1])


def metrics_of(task: Task, text: str) -> dict[str, float]:
    """All metrics of a task, scaled to the table's units; raises as :func:`printed`."""
    return {metric.name: metric.scale * printed(text, metric.name, task.split) for metric in task.metrics}


def best_on_dev(text: str, line: str, lower: bool) -> float:
    """The best value that a training printed for ``Task.dev``'s line.

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
    """Steps done, steps in all and seconds so far, of s3prl's progress bar; None where it has none yet."""
    found = _STEPS.findall(text)
    if not found:
        return None
    done, total, clock = found[-1]
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return int(done), int(total), seconds


def twv(text: str) -> float:
    """The maximum term weighted value that QUESST's scorer wrote to ``score.out``.

    Raises:
        StarError: it is not there.
    """
    found = _TWV.search(text)
    if not found:
        raise StarError("QUESST's scorer wrote no maxTWV; look into score.out")
    return float(found[1])


def stand_ins(text: str) -> list[str]:
    """What ``launch.py`` said it had put in the place of something missing."""
    return re.findall(r"^stand-in: (.+)$", text, re.MULTILINE)


def last_error(text: str) -> str:
    """The last line of a traceback, or the last line at all; without progress bars."""
    lines = [
        line for line in re.split(r"[\r\n]+", text) if line.strip() and "it/s]" not in line and "s/it]" not in line
    ]
    errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt|Exit)\b", line)]
    return (errors or lines or ["nothing was printed"])[-1].strip()[:300]


def read(paths: Iterable[Path]) -> str:
    """The text of files that are there, one after another."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file())
