"""Figures of chapters 1 to 5: connections, channels, shapes, receptive fields, costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from densenet_tutorial.figures.style import (
    COLORS,
    GREY,
    HATCHES,
    MARKERS,
    new_figure,
    set_title,
    styled,
)
from densenet_tutorial.insight import PartCost, ReceptiveField
from densenet_tutorial.layers import DenseBlock
from densenet_tutorial.utils import arguments


def _as_block(value: Any) -> Any:
    # Duck typing, for the reader's own class from chapter 03.
    if not isinstance(value, nn.ModuleDict) or not value:
        raise TypeError
    if not all(
        hasattr(layer, "norm1") and hasattr(layer, "growth_rate") for layer in value.values()
    ):
        raise TypeError
    return value


_block = arguments.Check("a DenseBlock", _as_block)


def _sources(block: DenseBlock) -> tuple[list[str], list[int]]:
    """Names and channels of everything that a block concatenates."""
    layers: list[Any] = list(block.values())
    return (
        ["input", *(f"layer {i}" for i in range(1, len(layers) + 1))],
        [layers[0].norm1.num_features, *(layer.growth_rate for layer in layers)],
    )


@arguments.check(block=_block)
@styled
def connectivity(block: DenseBlock) -> Figure:
    """Every connection of `block`: arcs from each source to each layer that reads it."""
    names, channels = _sources(block)
    figure, axes = new_figure(6.4, 3.3)
    count = len(channels)
    for target in range(1, count):
        for source in range(target):
            axes.add_patch(
                FancyArrowPatch(
                    (source, 0.16),
                    (target, 0.16),
                    connectionstyle=f"arc3,rad={-0.55 if target - source > 1 else -0.25}",
                    arrowstyle="-|>",
                    mutation_scale=13,
                    color=COLORS[source % len(COLORS)],
                    linewidth=1.8,
                )
            )
    for i, (name, width) in enumerate(zip(names, channels)):
        color = COLORS[i % len(COLORS)]
        axes.add_patch(
            Rectangle(
                (i - 0.3, -0.16), 0.6, 0.32, facecolor="white", edgecolor=color, linewidth=2.5
            )
        )
        axes.text(
            i, 0, f"+{width}" if i else str(width), ha="center", va="center", fontweight="bold"
        )
        axes.text(i, -0.26, name, ha="center", va="top")
    layers = count - 1
    axes.text(
        (count - 1) / 2,
        -0.62,
        "numbers: feature maps that each one adds",
        ha="center",
        color="#555555",
        fontsize=11,
    )
    axes.set(xlim=(-0.6, count - 0.4), ylim=(-0.75, 0.3 + 0.28 * layers))
    set_title(figure, f"{layers} layers, {layers * (layers + 1) // 2} direct connections")
    axes.axis("off")
    return figure


@arguments.check(block=_block)
@styled
def channels(block: DenseBlock) -> Figure:
    """Input channels of each layer of `block`, and its output channels, stacked by source."""
    names, widths = _sources(block)
    figure, axes = new_figure(6.4, 3.8)
    readers = [*names[1:], "output"]
    for source, (name, width) in enumerate(zip(names, widths)):
        readers_of_source = range(source, len(readers))
        axes.bar(
            readers_of_source,
            [width] * len(readers_of_source),
            bottom=sum(widths[:source]),
            width=0.7,
            color=COLORS[source % len(COLORS)],
            edgecolor="white",
            hatch=HATCHES[source % len(HATCHES)],
            label=f"from {name}",
        )
    for i in range(len(readers)):
        total = sum(widths[: i + 1])
        axes.text(i, total, str(total), ha="center", va="bottom", fontweight="bold")
    axes.set_xticks(range(len(readers)), readers)
    axes.set(ylabel="channels read", ylim=(0, sum(widths) * 1.12))
    set_title(figure, f"Channels grow by {widths[-1]} per layer")
    axes.legend(loc="upper left", fontsize=10.5)
    return figure


@arguments.check(features=arguments.mapping_of(arguments.tensor("numbers", "N, C, H, W")))
@styled
def shapes(features: Mapping[str, Tensor]) -> Figure:
    """The features after each part as a bar: its length shows channels, its thickness the height.

    `features` is the result of :meth:`DenseNet.intermediate_features`.
    """
    figure, axes = new_figure(6.4, 1.0 + 0.42 * len(features))
    sizes = {name: tuple(tensor.shape[1:]) for name, tensor in features.items()}
    most = max(c for c, _, _ in sizes.values())
    side = max(h for _, h, _ in sizes.values())
    for row, (name, (c, h, w)) in enumerate(sizes.items()):
        color = COLORS[1] if name.startswith("transition") else COLORS[0]
        thickness = 0.12 + 0.74 * h / side
        axes.barh(
            row,
            c,
            height=thickness,
            color=color,
            hatch="//" if color == COLORS[1] else "",
            edgecolor="white",
        )
        axes.text(c + most * 0.02, row, f"{c} × {h} × {w}", va="center")
    axes.set_yticks(range(len(sizes)), sizes)
    axes.invert_yaxis()
    axes.set(xlabel="channels (bar length); height × width (bar thickness)", xlim=(0, most * 1.35))
    set_title(figure, "Blocks add channels, transitions halve the picture")
    return figure


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
