"""How the report's pictures look: colours safe for the colour-blind, once for a light page and once for a dark one."""

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
"""Colour maps: lightness rises all along the first; the second is white at 0. Both hold for every colour vision."""


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; the lines' are of Okabe and Ito's palette, lighter ones on a dark page."""

    name: str
    background: str
    text: str
    faint: str  # grid, frames
    first: str  # the trained student, validation
    second: str  # what it is compared with


LIGHT = Theme("light", "#ffffff", "#1f2328", "#c9ced6", "#0072b2", "#d55e00")
DARK = Theme("dark", "#161b22", "#e6edf3", "#444c56", "#56b4e9", "#e69f00")
THEMES = (LIGHT, DARK)


def require_matplotlib() -> None:
    """Raises a StarError that names the extra where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StarError("the pictures need matplotlib: pip install 'fairseq-star[report]'") from error


def new_figure(width: float, height: float, layout: str | None = None) -> "Figure":
    """An empty figure of so many inches, free of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """matplotlib's settings for what is drawn inside."""
    require_matplotlib()
    import matplotlib

    settings = {
        "font.size": 9,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
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
    """What ``draw`` draws, for each theme: its name -> PNG."""
    pictures = {}
    for theme in THEMES:
        with themed(theme):
            pictures[theme.name] = to_png(draw(theme))
    return pictures


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG without an alpha channel, the same bytes for the same picture."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, metadata={"Software": None})
    return drawn.getvalue()
