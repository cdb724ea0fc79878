"""Results of a probe: a table, comparisons with bootstrap confidence intervals, a picture of the layer weights."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fairseq_star.errors import StarError
from fairseq_star.runtime.files import replacing

DRAWS, LEVEL = 2000, 0.95


class Bootstrap:
    """95 % percentile intervals of accuracies and of functions of several of them.

    A draw samples clusters, all items of a cluster together, and, independently, seeds, both with replacement. Every
    model has the same draws, so that differences are paired.

    Args:
        clusters: cluster (speaker or utterance) of each test item.
        num_seeds: heads trained for each model.
    """

    def __init__(self, clusters: Sequence[str], num_seeds: int):
        names, self.members = np.unique(clusters, return_inverse=True)
        self.num_clusters = len(names)
        self.sizes = np.bincount(self.members, minlength=self.num_clusters)
        rng = np.random.default_rng(0)
        drawn = rng.integers(self.num_clusters, size=(DRAWS, self.num_clusters))
        # How often each cluster (seed) is in each draw, rather than the draws themselves.
        self.times = np.stack([np.bincount(of_one, minlength=self.num_clusters) for of_one in drawn])
        drawn = rng.integers(num_seeds, size=(DRAWS, num_seeds))
        self.seed_share = np.stack([np.bincount(of_one, minlength=num_seeds) for of_one in drawn]) / num_seeds

    def draws(self, correct: np.ndarray) -> np.ndarray:
        """Return the accuracy in each draw, from ``correct`` (seeds x items, bool)."""
        by_cluster = np.stack([np.bincount(self.members, of_seed, self.num_clusters) for of_seed in correct])
        accuracies = (self.times @ by_cluster.T) / (self.times @ self.sizes)[:, None]  # draws x seeds
        return (accuracies * self.seed_share).sum(1)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Return low and high end of the 95 % interval."""
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


@dataclass
class ProbeRow:
    """Accuracy of one model's features on one task."""

    task: str  # phone, keyword or speaker
    features: str  # FBANK, MFCC, "FBANK, not normalized", "random init", "student", "teacher"
    accuracy: float  # share of test frames (phone) or utterances classified correctly, mean over seeds
    low: float  # 95 % confidence interval
    high: float
    seed_accuracies: list[float]
    layer_weights: list[float]  # softmax weights, mean over seeds; one for each layer, the Transformer's input first
    layer_weights_deviation: list[float]  # standard deviation over seeds


@dataclass
class Comparison:
    """The student's accuracy less another's on one task, paired over the same test utterances."""

    task: str
    other: str
    difference: float
    low: float  # 95 % confidence interval
    high: float


@dataclass
class ProbeResult:
    """Result of :func:`fairseq_star.analysis.probe.run_probe`."""

    rows: list[ProbeRow]
    comparisons: list[Comparison]
    # task -> (share, low, high) of the teacher's margin over random init that the student keeps; absent where the
    # teacher's features are not better than random ones in every draw
    margin_kept: dict[str, tuple[float, float, float]]
    num_classes: dict[str, int]
    num_test: dict[str, int]  # frames (phone) or utterances
    num_clusters: dict[str, int]  # of the bootstrap: test speakers, or utterances where speakers are unknown
    seeds: list[int]
    student: str = "student"  # the features in comparisons and ``margin_kept``
    settings: dict = field(default_factory=dict)  # paths and sizes, for the record

    def row(self, task: str, features: str) -> ProbeRow:
        return next(row for row in self.rows if (row.task, row.features) == (task, features))

    def to_dict(self) -> dict:
        return asdict(self)

    def to_markdown(self) -> str:
        """Return tables in Markdown, and a paragraph on what was measured and how."""
        tasks = list(self.num_classes)
        features = list(dict.fromkeys(row.features for row in self.rows))
        lines = ["| features | " + " | ".join(tasks) + " |", "|---|" + "--:|" * len(tasks)]
        for name in features:
            cells = [_percent(row.accuracy, row.low, row.high) for row in (self.row(task, name) for task in tasks)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if self.comparisons:
            lines += ["", f"| {self.student} minus | " + " | ".join(tasks) + " |", "|---|" + "--:|" * len(tasks)]
            for other in dict.fromkeys(one.other for one in self.comparisons):
                of_other = {one.task: one for one in self.comparisons if one.other == other}
                cells = [_percent(of_other[t].difference, of_other[t].low, of_other[t].high, "+") for t in tasks]
                lines.append(f"| {other} | " + " | ".join(cells) + " |")
        if self.margin_kept:
            kept = "; ".join(f"{task} {_percent(*share)}" for task, share in self.margin_kept.items())
            lines += ["", f"Of the teacher's margin over random init, {self.student} keeps, in %: {kept}."]
        sizes = ", ".join(
            f"{task}: {self.num_test[task]:,} test {'frames' if task == 'phone' else 'utterances'} of "
            f"{self.num_clusters[task]} speakers or files, {self.num_classes[task]} classes"
            for task in tasks
        )
        lines += [
            "",
            f"Accuracy in %, mean over seeds {', '.join(map(str, self.seeds))}; 95 % intervals by bootstrap: {DRAWS} "
            "draws of test speakers (of files where speakers are unknown) and of seeds, the same draws for all models. "
            f"Head: softmax-weighted sum of all layers, one linear layer, the best on a dev part. {sizes}. "
            "FBANK and MFCC are s3prl's and SUPERB's, of mean 0 over each utterance: a task of one label an utterance, "
            "whose input is that mean alone, is at chance with them. FBANK, not normalized, keeps it.",
        ]
        return "\n".join(lines)

    def plot_layer_weights(self, path: str | os.PathLike) -> Path:
        """Draw the learned layer weights to a PNG, one panel a task, and return its path.

        Raises:
            StarError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise StarError("--plot needs matplotlib; pip install 'fairseq-star[demo]'") from error
        tasks = list(self.num_classes)
        figure = Figure(figsize=(4.2 * len(tasks), 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            layered = [row for row in self.rows if row.task == task and len(row.layer_weights) > 1]
            for number, row in enumerate(layered):
                layers = [layer + 0.06 * (number - (len(layered) - 1) / 2) for layer in range(len(row.layer_weights))]
                axes.errorbar(
                    layers, row.layer_weights, row.layer_weights_deviation, label=row.features, marker="o", capsize=2
                )
            depth = max((len(row.layer_weights) for row in layered), default=1)
            axes.set(title=task, xlabel="layer (0: Transformer's input)", xticks=range(depth))
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("layer weight, mean over seeds")
        figure.axes[0].legend()
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        return Path(path)


def _percent(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
