"""Figures of chapters 7 and 11: time against memory, passes over memory, the roofline, ratios."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from densenet_tutorial.experiments.benchmarks import MemoryMeasurement
from densenet_tutorial.figures.style import COLORS, GREY, MARKERS, new_figure, set_title, styled
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import (
    Check,
    mapping_of,
    non_negative_number,
    number_sequence,
    positive_number,
    sequence_of,
    text,
)

# By the first letters of a pass's name.
_KINDS = {"norm": COLORS[0], "relu": COLORS[2], "clamp": COLORS[4], "conv": COLORS[1]}


def _pass(value: Any) -> tuple[str, float, float]:
    name, read, written = value
    text.convert(name)
    return name, non_negative_number.convert(read), non_negative_number.convert(written)


def _point(value: Any) -> tuple[float, float]:
    intensity, rate = value
    return positive_number.convert(intensity), positive_number.convert(rate)


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


@arguments.check(
    ways=mapping_of(
        sequence_of(Check("a name and two numbers, of bytes read and of bytes written", _pass))
    ),
    title=text,
)
@styled
def memory_passes(ways: Mapping[str, Sequence[tuple[str, float, float]]], *, title: str) -> Figure:
    """Each pass over memory, in order, as a bar: MB read, then MB written; a panel per way.

    The colour is by the first letters of a pass's name: norm, relu, clamp, conv, or another.
    """
    lengths = [len(passes) for passes in ways.values()]
    figure, all_axes = new_figure(
        6.4,
        1.5 + 0.36 * sum(lengths) + 0.35 * len(ways),
        nrows=len(ways),
        sharex=True,
        squeeze=False,
        height_ratios=lengths,
    )
    for axes, (way, passes) in zip(all_axes[:, 0], ways.items()):
        for row, (name, read, written) in enumerate(passes):
            color = next((c for kind, c in _KINDS.items() if name.startswith(kind)), COLORS[3])
            style = {"color": color, "edgecolor": "white", "height": 0.72}
            axes.barh(row, read / 1e6, **style)
            axes.barh(row, written / 1e6, left=read / 1e6, alpha=0.55, hatch="//", **style)
        axes.set_yticks(range(len(passes)), [name for name, _, _ in passes])
        axes.invert_yaxis()
        total = sum(read + written for _, read, written in passes) / 1e6
        axes.set_title(f"{way}: {total:.0f} MB", loc="left", fontsize=12)
    all_axes[-1, 0].set_xlabel("megabytes read, then written")
    figure.legend(
        handles=[
            Patch(facecolor=GREY, label="read"),
            Patch(facecolor=GREY, alpha=0.55, hatch="//", edgecolor="white", label="written"),
        ],
        loc="outside lower center",
        ncols=2,
        fontsize=10.5,
    )
    set_title(figure, title)
    return figure


@arguments.check(
    series=mapping_of(
        mapping_of(Check("two numbers above 0, FLOP per byte and GFLOP/s", _point)),
        most=len(MARKERS),
    ),
    bandwidth=positive_number,
    compute=positive_number,
    title=text,
)
@styled
def roofline(
    series: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    bandwidth: float,
    compute: float,
    title: str,
) -> Figure:
    """Rate over arithmetic intensity of named parts, below the limits of memory and arithmetic.

    Args:
        series: by label, FLOP per byte and GFLOP/s of each part.
        bandwidth: GB/s of the memory.
        compute: GFLOP/s of the arithmetic.
        title: what can be seen.
    """
    figure, axes = new_figure(6.4, 5.2)
    places = [x for points in series.values() for x, _ in points.values()]
    ridge = compute / bandwidth
    left, right = min(*places, ridge) / 2, max(*places, ridge) * 3
    axes.plot([left, ridge, right], [left * bandwidth, compute, compute], color=GREY, linewidth=2.5)
    middle = (left * ridge) ** 0.5
    for text_, place, side in (
        (f"memory: {bandwidth:.0f} GB/s", (middle, middle * bandwidth), ("left", "top", 8, -2)),
        (f"arithmetic: {compute:.0f} GFLOP/s", (right, compute), ("right", "bottom", 0, 4)),
    ):
        ha, va, *offset = side
        axes.annotate(text_, place, offset, textcoords="offset points", ha=ha, va=va, fontsize=10.5)
    for i, (label, points) in enumerate(series.items()):
        axes.plot(
            *zip(*points.values()),
            marker=MARKERS[i],
            markersize=8,
            linestyle="none",
            color=COLORS[i],
            label=label,
        )
        rightmost = max(points, key=lambda name: points[name])
        for name, point in points.items():
            ha, va, *offset = ("left", "center", 9, 0) if i else ("right", "center", -9, 0)
            if not i and name == rightmost:  # the others' names are on the left
                ha, va, *offset = "center", "bottom", 0, 7
            axes.annotate(
                name, point, offset, textcoords="offset points", ha=ha, va=va, fontsize=10.5
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set(xlabel="arithmetic intensity, FLOP per byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.25)
    set_title(figure, title)
    figure.legend(loc="outside lower center", ncols=3, fontsize=10.5)
    return figure


@arguments.check(rows=mapping_of(number_sequence), title=text, xlabel=text)
@styled
def ratios(rows: Mapping[str, Sequence[float]], *, title: str, xlabel: str) -> Figure:
    """The lowest number of each row as a bar, with a line to the median; the first row is at 1."""
    figure, axes = new_figure(6.4, 1.6 + 0.4 * len(rows))
    unit = min(next(iter(rows.values())))
    for row, values in enumerate(rows.values()):
        low, middle = min(values) / unit, float(statistics.median(values)) / unit
        axes.barh(row, low, height=0.62, color=COLORS[0] if row else GREY)
        axes.plot([low, middle], [row, row], color="black", linewidth=2, marker="|", markersize=9)
        axes.annotate(
            f"{low:.2f}",
            (max(low, middle), row),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(statistics.median(values) for values in rows.values()) / unit)
    axes.set_xlabel(f"{xlabel}\nbar: fastest, line: to the median")
    set_title(figure, title)
    return figure
