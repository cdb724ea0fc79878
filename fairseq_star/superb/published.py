"""Published rows of SUPERB's table, to stand beside one's own. A metric that is not listed was not at hand.

Sources: HuBERT Base, DistilHuBERT, FBANK, WavLM Large: SUPERB (arXiv 2105.01051), DistilHuBERT (2110.01900) and WavLM
(2110.13900); STaRHuBERT and -L: STaR (2312.09040); the re-implementation: its README. Rows marked *read* were read off
pictures in the repositories of ARMHuBERT and DPHuBERT: see the papers before quoting them.
"""

from dataclasses import dataclass, field

# The order of the table: (task, metric of s3prl's).
COLUMNS = (
    ("pr", "per"), ("asr", "wer"), ("ks", "acc"), ("qbe", "mtwv"), ("sid", "acc"), ("asv", "eer"), ("sd", "der"),
    ("ic", "acc"), ("sf", "slot_type_f1"), ("sf", "slot_value_cer"), ("er", "acc"), ("se", "si_sdr"), ("se", "stoi"),
    ("se", "pesq"),
)  # fmt: skip
Numbers = dict[str, dict[str, float]]  # task -> metric -> value in the table's unit


@dataclass(frozen=True)
class Row:
    """A model's row: millions of parameters, its numbers, its published overall score."""

    name: str
    parameters: float | None = None
    numbers: Numbers = field(default_factory=dict)
    overall: float | None = None
    is_read: bool = False


def _numbers(*values: float | None) -> Numbers:
    found: Numbers = {}
    for (task, metric), value in zip(COLUMNS, values, strict=False):
        if value is not None:
            found.setdefault(task, {})[metric] = value
    return found


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
