"""Figures of chapter 5: receptive fields and costs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from densenet_tutorial.figures.style import (
    COLORS,
    GREY,
    MARKERS,
    new_figure,
    set_title,
    styled,
)
from densenet_tutorial.insight import PartCost, ReceptiveField
from densenet_tutorial.utils import arguments


@arguments.check(
    fields=arguments.sequence_of(arguments.instance_of(ReceptiveField, "a ReceptiveField")),
    image_size=arguments.positive_int,
)
@styled
def receptive_fields(fields: Sequence[ReceptiveField], image_size: int) -> Figure:
    """The receptive fields after each part, from the smallest to the largest."""
    figure, axes = new_figure(6.4, 1.3 + 0.4 * len(fields))
    for row, field in enumerate(fields):
        axes.plot(
            [field.shortest, field.longest], [row, row], color=COLORS[0], linewidth=5, alpha=0.35
        )
        axes.plot(
            field.shortest,
            row,
            MARKERS[0],
            color=COLORS[5],
            label="" if row else "channel that sees least",
        )
        axes.plot(
            field.longest,
            row,
            MARKERS[1],
            color=COLORS[0],
            label="" if row else "channel that sees most",
        )
    axes.axvline(image_size, color=GREY, linestyle="--", label=f"image ({image_size} pixels)")
    axes.set_yticks(range(len(fields)), [field.name for field in fields])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.invert_yaxis()
    axes.set(xlabel="receptive field, pixels along one side (log scale)")
    set_title(figure, "Inside a block, many receptive fields at once")
    axes.legend(fontsize=10.5, loc="upper center", bbox_to_anchor=(0.42, -0.18))
    return figure


@arguments.check(parts=arguments.sequence_of(arguments.instance_of(PartCost, "a PartCost")))
@styled
def costs(parts: Sequence[PartCost]) -> Figure:
    """Each part's fraction of the parameters and of the multiply-adds."""
    figure, axes = new_figure(6.4, 1.2 + 0.5 * len(parts))
    total_parameters = sum(part.parameters for part in parts)
    total_operations = sum(part.multiply_adds for part in parts)
    rows = np.arange(len(parts))
    series = (
        ("parameters", [part.parameters / total_parameters for part in parts], COLORS[0], ""),
        (
            "multiply-adds",
            [part.multiply_adds / total_operations for part in parts],
            COLORS[1],
            "//",
        ),
    )
    for i, (label, fractions, color, hatch) in enumerate(series):
        at = rows + (i - 0.5) * 0.38
        style = {"color": color, "hatch": hatch, "edgecolor": "white", "label": label}
        axes.barh(at, fractions, height=0.36, **style)
        for y, fraction in zip(at, fractions):
            shown = f"{fraction:.0%}" if fraction >= 0.005 else "<1%"
            axes.text(fraction + 0.005, y, shown, va="center", fontsize=10)
    axes.set_yticks(rows, [part.name for part in parts])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlabel="share of the whole network")
    set_title(figure, "Early blocks compute, late blocks hold the weights")
    axes.legend(loc="lower right")
    return figure
