"""Charts of the report: losses over updates, CKA of every pair of layers, agreement layer by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fairseq_star.analysis.curves import Curves
from fairseq_star.analysis.report.compare import Similarity
from fairseq_star.plots.style import LIGHT, SEQUENTIAL, Theme, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.3, 3.1  # inches


def draw_losses(theme: Theme, curves: Curves, term: str) -> "Figure":
    """Draw one term's curves, on a logarithmic axis where the range is wide."""
    figure, axes = _figure()
    train, valid = curves.train[term], curves.valid.get(term, {})
    axes.plot(*_points(train), color=theme.second, linewidth=1.3, label="training")
    if valid:
        axes.plot(*_points(valid), color=theme.first, linewidth=1.6, marker="o", markersize=4, label="validation")
    values = [*train.values(), *valid.values()]
    if min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="updates", title=term)
    axes.set_xlim(left=0)
    axes.grid(True)
    axes.legend(frameon=False)
    return figure


def draw_slicing(theme: Theme, unexplained: Sequence[float]) -> "Figure":
    """Draw the share of the kept channels' variance that a sliced student leaves unexplained, at each of L+1 states."""
    figure, axes = _figure()
    axes.bar(range(len(unexplained)), [100 * share for share in unexplained], color=theme.first, width=0.7)
    axes.set(xlabel="state (0: the first layer’s input)", ylabel="unexplained (%)", xticks=range(len(unexplained)))
    axes.set_title("before the first update")
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    return figure


def draw_cka(theme: Theme, similarity: Similarity) -> "Figure":
    """Draw CKA of every teacher layer (down) and student layer (right), the trained pairs framed."""
    from matplotlib.patches import Rectangle

    values = similarity.cka
    num_teacher, num_student = values.shape
    figure, axes = _figure(max(2.4, WIDTH * num_teacher / num_student * 0.9))
    image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, origin="lower")
    size = min(8.0, 8.0 * 8 / num_student)
    for (row, column), value in np.ndenumerate(values):
        color = "#1f2328" if value > 0.55 else "#ffffff"
        axes.text(column, row, f"{value:.2f}".lstrip("0"), size=size, ha="center", va="center", color=color)
    for column, row in enumerate(similarity.teacher_layers, start=1):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=LIGHT.second, linewidth=1.6))
    axes.set(xlabel="student layer", ylabel="teacher layer", xticks=range(num_student), yticks=range(num_teacher))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, shrink=0.7, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    return figure


def draw_by_layer(theme: Theme, before: np.ndarray, after: np.ndarray, title: str, high_is_good: bool) -> "Figure":
    """Draw a value for each student layer (L), before and after training."""
    figure, axes = _figure()
    numbers = np.arange(1, len(after) + 1)
    axes.plot(numbers, before, color=theme.second, marker="s", markersize=4, linestyle="--", label="before training")
    axes.plot(numbers, after, color=theme.first, marker="o", markersize=5, label="after training")
    axes.set(xlabel="student layer", title=title, xticks=numbers)
    axes.set_ylim(0, 1.02 if high_is_good else None)
    axes.grid(True)
    axes.legend(frameon=False)
    return figure


def draw_probe(theme: Theme, rows: list[dict], task: str) -> "Figure":
    """Draw accuracy and 95 % interval of each kind of features on one task (``ProbeResult.rows``), the first on top."""
    rows = [row for row in rows if row["task"] == task][::-1]
    figure, axes = _figure(0.9 + 0.32 * len(rows))
    for number, row in enumerate(rows):
        color = theme.first if row["features"] == "student" else theme.text
        accuracy, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
        axes.plot([low, high], [number, number], color=color, linewidth=2)
        axes.plot(accuracy, number, marker="o", markersize=6, color=color)
    axes.set_yticks(range(len(rows)), [row["features"] for row in rows])
    axes.set(xlabel="correct (%)", title=task, xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4))
    axes.grid(True, axis="x")
    return figure


def _figure(height: float = HEIGHT) -> tuple["Figure", "Axes"]:
    figure = new_figure(WIDTH, height, "constrained")
    return figure, figure.add_subplot()


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step] for step in steps]
