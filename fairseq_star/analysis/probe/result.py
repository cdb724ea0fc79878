"""Results of a probe: a table, comparisons with confidence intervals, a picture of the layer weights."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fairseq_star.analysis.probe.interval import DRAWS
from fairseq_star.errors import StarError
from fairseq_star.files import replacing


@dataclass
class ProbeRow:
    """One task with the features of one model."""

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
    """What :func:`fairseq_star.analysis.probe.run_probe` found."""

    rows: list[ProbeRow]
    comparisons: list[Comparison]
    # task -> (share, low, high) of the teacher's margin over random init that the student keeps; lacking where the
    # teacher's features are not better than random ones in every draw
    margin_kept: dict[str, tuple[float, float, float]]
    num_classes: dict[str, int]
    num_test: dict[str, int]  # frames (phone) or utterances
    num_clusters: dict[str, int]  # what the bootstrap draws: test speakers, or utterances where none are known
    seeds: list[int]
    student: str = "student"  # the features that comparisons and ``margin_kept`` are about
    settings: dict = field(default_factory=dict)  # paths and sizes, for the record

    def row(self, task: str, features: str) -> ProbeRow:
        """The row of a task and a kind of features."""
        return next(row for row in self.rows if (row.task, row.features) == (task, features))

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Tables in Markdown, and a paragraph on what was measured and how the intervals were made."""
        tasks = list(self.num_classes)
        features = list(dict.fromkeys(row.features for row in self.rows))
        lines = [
            "| features | " + " | ".join(tasks) + " |",
            "|---|" + "--:|" * len(tasks),
        ]
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
            "which sees that mean alone, finds nothing in them. FBANK, not normalized, keeps it.",
        ]
        return "\n".join(lines)

    def plot_layer_weights(self, path: str | os.PathLike) -> Path:
        """Draw the learned weights of the layers, one panel a task, to a PNG; returns its path.

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
