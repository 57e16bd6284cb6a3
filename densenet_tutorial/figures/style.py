"""Colours, markers, hatches and matplotlib settings of every figure of the book.

Figures are legible at a width of 350 pixels. The colours are those of Okabe and Ito, which differ
for people with any kind of colour vision; no meaning depends on colour alone.
"""

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
from matplotlib import rcsetup
from matplotlib.figure import Figure

from densenet_tutorial.utils import arguments

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#8a8a8a"
MARKERS = "os^Dv*Px"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": rcsetup.cycler(color=COLORS),
    "legend.frameon": False,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws a figure: use the book's style, then restore the settings."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        # Not plt.rc_context, which would also restore the backend that was set before the first
        # figure of a notebook.
        before = {name: plt.rcParams[name] for name in STYLE}
        plt.rcParams.update(STYLE)
        try:
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # creates the tick labels
        finally:
            plt.rcParams.update(before)
        return figure

    return in_style


def new_figure(width: float = 6.0, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    """A new figure of `width` x `height` inches and its axes, from ``plt.subplots``."""
    return plt.subplots(figsize=(width, height), **options)


def set_title(figure: Figure, text: str) -> None:
    """Set the title of `figure`."""
    figure.suptitle(text, fontsize=13, fontweight="bold")


@arguments.check(figure=arguments.instance_of(Figure, "a matplotlib Figure"))
def png(figure: Figure) -> bytes:
    """The content of a PNG file of `figure`, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
