"""One number for a whole row of SUPERB's table, in the two ways that the papers of distilled models use.

overall
    the mean of the eleven metrics of the ten tasks PR, ASR, KS, QbE, SID, ASV, SD, IC, SF (F1 and CER), ER, in per
    cent, errors as 100 - error and QbE's MTWV times 100. The column "overall" of STaR's table: it gives the published
    80.8 of HuBERT Base and 75.9 of DistilHuBERT from their rows.
generalizability
    1000 / |T| * sum over tasks t of the mean over its metrics i of (x_ti - FBANK_ti) / (best_ti - FBANK_ti): 0 is
    FBANK, 1000 the best model. ``superb_s`` of the SUPERB challenge (SLT 2022, arXiv 2210.08634), here over the same
    ten tasks, with WavLM Large's published row as the best.

Both need all ten tasks: of a part of them there is no score.
"""

from fairseq_star.superb.published import BEST, COLUMNS, FBANK, Numbers
from fairseq_star.superb.tasks import TASKS

COUNTED = tuple((task, metric) for task, metric in COLUMNS if task != "se")


def overall(numbers: Numbers) -> float | None:
    """See the module's text; None where a task is missing."""
    if not _is_whole(numbers):
        return None
    values = []
    for task, name in COUNTED:
        [metric] = [one for one in TASKS[task].metrics if one.name == name]
        value = numbers[task][name] * (1 if metric.unit == "%" else 100)
        values.append(100 - value if metric.is_error else value)
    return sum(values) / len(values)


def generalizability(numbers: Numbers) -> float | None:
    """See the module's text; None where a task is missing."""
    if not _is_whole(numbers):
        return None
    tasks = list(dict.fromkeys(task for task, _ in COUNTED))
    shares = []
    for task in tasks:
        names = [name for of, name in COUNTED if of == task]
        shares.append(sum(position(task, name, numbers[task][name]) for name in names) / len(names))
    return 1000 * sum(shares) / len(tasks)


def position(task: str, metric: str, value: float) -> float:
    """Where a value lies between FBANK (0) and WavLM Large (1)."""
    worst, best = FBANK.numbers[task][metric], BEST.numbers[task][metric]
    return (value - worst) / (best - worst)


def _is_whole(numbers: Numbers) -> bool:
    return all(metric in numbers.get(task, {}) for task, metric in COUNTED)
