"""Style of all figures: colours safe for colour-blind readers, once for a light page and once for a dark one."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairseq_star.errors import StarError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
"""Colour maps: lightness rises throughout the first; the second is white at 0."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; those of lines are from Okabe and Ito's palette, lighter ones for a dark page."""

    name: str
    background: str
    text: str
    faint: str  # grid, frames
    first: str  # the trained student, validation
    second: str  # the baseline


LIGHT = Theme("light", "#ffffff", "#1f2328", "#c9ced6", "#0072b2", "#d55e00")
DARK = Theme("dark", "#161b22", "#e6edf3", "#444c56", "#56b4e9", "#e69f00")
THEMES = (LIGHT, DARK)


def require_matplotlib() -> None:
    """Raise a StarError that names the extra if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StarError("figures need matplotlib: pip install 'fairseq-star[report]'") from error


def new_figure(width: float, height: float, layout: str | None = None) -> "Figure":
    """Return an empty figure, width and height in inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Apply a theme to the figures drawn inside the context."""
    require_matplotlib()
    import matplotlib

    settings = {
        "font.size": 9,
        "font.family": "DejaVu Sans",  # part of matplotlib: the same figure on every machine
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": theme.faint,
        "grid.linewidth": 0.5,
        **dict.fromkeys(["text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"], theme.text),
    }
    with matplotlib.rc_context(settings):
        yield


def render(draw: Callable[[Theme], "Figure"]) -> dict[str, bytes]:
    """Draw a figure in each theme: name of the theme -> PNG."""
    figures = {}
    for theme in THEMES:
        with themed(theme):
            figures[theme.name] = to_png(draw(theme))
    return figures


def to_png(figure: "Figure") -> bytes:
    """Return the figure as a PNG without alpha channel and version: the same bytes for the same figure."""
    png = io.BytesIO()
    figure.savefig(png, dpi=DPI, metadata={"Software": None})
    return png.getvalue()
