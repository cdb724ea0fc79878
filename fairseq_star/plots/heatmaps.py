"""Heat maps of temporal Gram matrices, with the utterance's spectrogram and phones along the same time axis."""

from typing import TYPE_CHECKING

import numpy as np

from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.plots.matrices import LayerMaps, UtteranceMaps
from fairseq_star.plots.style import DIVERGING, SEQUENTIAL, Theme, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
MAP, LEFT, RIGHT, STRIP = 3.5, 0.5, 0.12, 0.19
BOTTOM, SPECTROGRAM, GAP, TOP = 0.95, 0.6, 0.04, 0.3
PHONE_SIZE = 6.5  # points
MASKED = "#e8590c"  # distinct from every colour of the maps

TITLES = {
    "teacher": "teacher, layer {layer.teacher_layer}",
    "before": "student before training, layer {layer.student_layer}",
    "student": "student, layer {layer.student_layer}",
    "masked": "student, parts masked, layer {layer.student_layer}",
    "difference": "student minus teacher",
}


def color_range(layer: LayerMaps, which: str) -> tuple[float, float]:
    """Return the values at the ends of the colour map.

    All maps of a layer have the range of the middle 98 % of the teacher's entries, so that a few large ones don't take
    all the contrast; the difference has a range of the same width, around 0.
    """
    low, high = np.percentile(layer.teacher, [1, 99])
    span = float(high - low) or 1.0
    return (-span / 2, span / 2) if which == "difference" else (float(low), float(low) + span)


def draw_map(theme: Theme, utterance: UtteranceMaps, layer: LayerMaps, which: str) -> "Figure":
    """Draw one heat map, ``which`` of ``TITLES``: time runs to the right and downwards, under a spectrogram."""
    strip = STRIP if utterance.phones else 0.0
    width = LEFT + strip + GAP + MAP + RIGHT
    height = BOTTOM + MAP + GAP + strip + GAP + SPECTROGRAM + TOP
    figure = new_figure(width, height)

    def axes(left: float, bottom: float, across: float, up: float) -> "Axes":
        return figure.add_axes((left / width, bottom / height, across / width, up / height))

    x, y = LEFT + strip + GAP, BOTTOM
    start, end = utterance.seconds(0), utterance.seconds(len(layer.teacher))
    values = layer.student - layer.teacher if which == "difference" else getattr(layer, which)
    low, high = color_range(layer, which)
    heat = axes(x, y, MAP, MAP)
    colors = DIVERGING if which == "difference" else SEQUENTIAL
    extent = (start, end, end, start)
    image = heat.imshow(values, cmap=colors, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    if which == "masked":
        _mark_masked(heat, utterance)
    heat.set(xlabel="time (s)")
    heat.spines[:].set_visible(False)
    if strip:
        heat.set_yticks([])
        along, down = axes(x, y + MAP + GAP, MAP, strip), axes(LEFT, y, strip, MAP)
        _draw_phones(theme, along, utterance, (start, end), upright=False)
        _draw_phones(theme, down, utterance, (start, end), upright=True)
        down.set_ylabel("time (s)")
    else:
        heat.set_ylabel("time (s)")
    _draw_spectrogram(theme, axes(x, y + MAP + GAP + strip + GAP, MAP, SPECTROGRAM), utterance, (start, end))

    bar = figure.colorbar(image, cax=axes(x, 0.34, MAP, 0.09), orientation="horizontal", extend="both")
    bar.outline.set_visible(False)
    words = ("less alike", "as in the teacher", "more alike") if which == "difference" else ("unlike", "alike")
    bar.set_ticks(np.linspace(low, high, len(words)), labels=words)
    bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
    bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    bar.ax.tick_params(length=0)
    figure.text(x / width, 1 - 0.17 / height, TITLES[which].format(layer=layer), va="center", weight="bold")
    return figure


def _mark_masked(heat: "Axes", utterance: UtteranceMaps) -> None:
    """Draw bars along the upper and left edge at masked frames."""
    edges = np.flatnonzero(np.diff(utterance.mask_indices, prepend=False, append=False))
    for first, last in edges.reshape(-1, 2):
        start, end = utterance.seconds(first), utterance.seconds(last)
        heat.axvspan(start, end, ymin=0.975, ymax=1.0, color=MASKED, linewidth=0)
        heat.axhspan(start, end, xmin=0.0, xmax=0.025, color=MASKED, linewidth=0)


def _draw_phones(theme: Theme, axes: "Axes", utterance: UtteranceMaps, limits: tuple[float, float], upright: bool):
    """Draw the phones as boxes along one axis, labelled where the letters fit."""
    points = MAP * 72 / (limits[1] - limits[0])
    for number, (first, last, label) in enumerate(utterance.phones):
        start, end = utterance.seconds(first), utterance.seconds(last)
        box = axes.axhspan if upright else axes.axvspan
        box(start, end, color=theme.faint, alpha=0.75 if number % 2 else 0.3, linewidth=0)
        room = PHONE_SIZE if upright else 0.65 * PHONE_SIZE * len(label) + 1
        if (end - start) * points > room:
            middle = (start + end) / 2
            place = (0.5, middle) if upright else (middle, 0.5)
            axes.text(*place, label, size=PHONE_SIZE, ha="center", va="center_baseline")
    if upright:
        axes.set(ylim=limits[::-1], xlim=(0, 1), xticks=[])
    else:
        axes.set(xlim=limits, ylim=(0, 1), yticks=[], xticks=[])
    axes.spines[:].set_visible(False)


def _draw_spectrogram(theme: Theme, axes: "Axes", utterance: UtteranceMaps, limits: tuple[float, float]) -> None:
    window, hop = 400, 80
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(utterance.samples, window // 2), window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), 512)).T ** 2
    decibels = 10 * np.log10(power + 1e-10)
    # Frame t is centred on sample t * hop.
    extent = ((-0.5) * hop / SAMPLE_RATE, (len(frames) - 0.5) * hop / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
    colors, peak = "gray" if theme.name == "dark" else "gray_r", decibels.max()
    axes.imshow(decibels, cmap=colors, vmin=peak - 55, vmax=peak, extent=extent, origin="lower", aspect="auto")
    axes.set(xlim=limits, xticks=[], yticks=[0, 8], ylabel="kHz")
    axes.spines[:].set_visible(False)
