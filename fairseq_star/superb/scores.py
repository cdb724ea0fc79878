"""SUPERB's table: published rows to compare with, and one number for a whole row, in two conventions.

Rows: HuBERT Base, DistilHuBERT, FBANK, WavLM Large are from SUPERB (arXiv 2105.01051), DistilHuBERT (2110.01900) and
WavLM (2110.13900); STaRHuBERT and -L from STaR (2312.09040); the re-implementation from its README. Rows marked *read*
were read off pictures in the repositories of ARMHuBERT and DPHuBERT: see the papers before quoting them.

overall
    mean of the eleven metrics of the ten tasks PR, ASR, KS, QbE, SID, ASV, SD, IC, SF (F1 and CER), ER, in per cent,
    errors as 100 - error and QbE's MTWV times 100: the column "overall" of STaR's table. It reproduces the published
    80.8 of HuBERT Base and 75.9 of DistilHuBERT from their rows.
generalizability
    1000 / |T| * sum over tasks t of the mean over its metrics i of (x_ti - FBANK_ti) / (best_ti - FBANK_ti): 0 is
    FBANK, 1000 the best model. ``superb_s`` of the SUPERB challenge (SLT 2022, arXiv 2210.08634), here over the same
    ten tasks, with WavLM Large's published row as the best.

Both need all ten tasks.
"""

from dataclasses import dataclass, field

from fairseq_star.superb.tasks import TASKS

# Columns of the table: (task, s3prl's metric).
COLUMNS = (
    ("pr", "per"), ("asr", "wer"), ("ks", "acc"), ("qbe", "mtwv"), ("sid", "acc"), ("asv", "eer"), ("sd", "der"),
    ("ic", "acc"), ("sf", "slot_type_f1"), ("sf", "slot_value_cer"), ("er", "acc"), ("se", "si_sdr"), ("se", "stoi"),
    ("se", "pesq"),
)  # fmt: skip
Numbers = dict[str, dict[str, float]]  # task -> metric -> value in the table's unit


@dataclass(frozen=True)
class Row:
    """Row of a model in the table; a metric that is missing was not published."""

    name: str
    parameters: float | None = None  # millions
    numbers: Numbers = field(default_factory=dict)
    overall: float | None = None  # published
    is_read: bool = False  # off a picture


def _numbers(*values: float | None) -> Numbers:
    numbers: Numbers = {}
    for (task, metric), value in zip(COLUMNS, values, strict=False):
        if value is not None:
            numbers.setdefault(task, {})[metric] = value
    return numbers


FBANK = Row("FBANK", 0, _numbers(82.01, 23.18, 8.63, 0.0058, 0.085, 9.56, 10.05, 9.10, 69.64, 52.94, 35.39))
BEST = Row("WavLM Large", 316.6, _numbers(3.06, 3.44, 97.86, 0.0886, 95.49, 3.77, 3.24, 99.31, 92.21, 18.36, 70.62))
HUBERT = Row(
    "HuBERT Base", 94.7,
    _numbers(5.41, 6.42, 96.30, 0.0736, 81.42, 5.11, 5.88, 98.34, 88.53, 25.20, 64.92, 9.36, 93.90, 2.58), 80.8,
)  # fmt: skip
PUBLISHED = (
    HUBERT,
    Row("STaRHuBERT, 960 h", 22.3, _numbers(8.16, 9.35, None, None, 77.58, None, None, 97.55), 79.5, is_read=True),
    Row("STaRHuBERT-L, 960 h", 26.6, _numbers(7.97, 8.91, None, None, 78.66, None, None, 97.50), 79.8, is_read=True),
    Row("STaRHuBERT, 100 h", 22.3,
        _numbers(9.17, 10.92, None, 0.0626, 72.26, 5.66, 5.97, 97.21, 84.89, 30.77, 61.12), 77.8),
    Row("the re-implementation, 100 h", 22.3,
        _numbers(9.81, 9.97, None, 0.0584, 69.71, 6.44, 4.54, 96.73, 86.75, 27.10, 63.13, 8.04, 85.84, 2.05)),
    Row("ARMHuBERT-S", 22.4, _numbers(8.63, 10.82, None, None, 63.8), 77.5, is_read=True),
    Row("DPHuBERT", 23.6, _numbers(9.67, 10.47, None, None, 76.8), 78.9, is_read=True),
    Row("DistilHuBERT", 23.5,
        _numbers(16.27, 13.37, 95.98, 0.0511, 73.54, 8.55, 6.19, 94.99, 82.57, 35.59, 63.02), 75.9),
    FBANK,
)  # fmt: skip
COUNTED = tuple((task, metric) for task, metric in COLUMNS if task != "se")


def overall(numbers: Numbers) -> float | None:
    """Return the overall score of the module's docstring; None where a task is missing."""
    if not _is_whole(numbers):
        return None
    values = []
    for task, name in COUNTED:
        metric = TASKS[task].metric(name)
        value = numbers[task][name] * (1 if metric.unit == "%" else 100)
        values.append(100 - value if metric.is_error else value)
    return sum(values) / len(values)


def generalizability(numbers: Numbers) -> float | None:
    """Return the generalizability of the module's docstring; None where a task is missing."""
    if not _is_whole(numbers):
        return None
    by_task: dict[str, list[float]] = {}
    for task, name in COUNTED:
        by_task.setdefault(task, []).append(position(task, name, numbers[task][name]))
    return 1000 * sum(sum(positions) / len(positions) for positions in by_task.values()) / len(by_task)


def position(task: str, metric: str, value: float) -> float:
    """Place a value between FBANK (0) and WavLM Large (1)."""
    worst, best = FBANK.numbers[task][metric], BEST.numbers[task][metric]
    return (value - worst) / (best - worst)


def _is_whole(numbers: Numbers) -> bool:
    return all(metric in numbers.get(task, {}) for task, metric in COUNTED)
