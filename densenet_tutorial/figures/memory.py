"""The figure of chapter 07: time against memory."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from densenet_tutorial.experiments.benchmarks import MemoryMeasurement
from densenet_tutorial.figures.style import COLORS, GREY, MARKERS, new_figure, set_title, styled
from densenet_tutorial.utils import arguments


@arguments.check(
    figures=arguments.sequence_of(
        arguments.instance_of(MemoryMeasurement, "a MemoryMeasurement"), most=len(MARKERS)
    )
)
@styled
def time_and_memory(figures: Sequence[MemoryMeasurement]) -> Figure:
    """Time of a training step against saved memory, per model: median and range."""
    figure, axes = new_figure(6.4, 5.0)
    unit = statistics.median(figures[0].seconds)
    for i, model in enumerate(figures):
        fastest, middle, slowest = (
            choose(model.seconds) / unit for choose in (min, statistics.median, max)
        )
        axes.errorbar(
            model.saved / 2**20,
            middle,
            yerr=[[middle - fastest], [slowest - middle]],
            marker=MARKERS[i],
            markersize=9,
            color=COLORS[i],
            linestyle="none",
            capsize=4,
            label=model.name,
        )
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set(
        xlabel="MiB held between forward and backward",
        ylabel=f"time of a step ÷ {figures[0].name}'s",
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    set_title(figure, "Further left holds less, further down is faster")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10.5)
    return figure
