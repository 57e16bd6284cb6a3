"""Figures of chapter 09: feature reuse, gradients, connections, Grad-CAM, receptive fields."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from densenet_tutorial.figures.style import COLORS, GREY, MARKERS, new_figure, set_title, styled
from densenet_tutorial.insight import ConnectionCost, effective_size
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import Check, mapping_of, sequence_of, tensor, text

_matrix = tensor("floats", "sources, readers")


def _costs_and_reuse(value: Any) -> tuple[tuple[ConnectionCost, ...], Tensor]:
    costs, reuse = value
    each = sequence_of(arguments.instance_of(ConnectionCost, "a ConnectionCost"))
    return each.convert(costs), _matrix.convert(reuse)


def _one_each(images: Tensor, maps: Tensor, titles: Sequence[str]) -> None:
    for name, values in (("maps", maps), ("titles", titles)):
        if len(values) != len(images):
            raise ValueError(
                f"{name} must be {len(images)}, one for each image, got {arguments.shown(values)}"
            )


def _known(fields: Mapping[str, Tensor], theoretical: Mapping[str, int]) -> None:
    if fields.keys() - theoretical.keys():
        raise ValueError(
            f"theoretical must have an entry for each of {', '.join(fields)}, "
            f"got {arguments.shown(theoretical)}"
        )


@arguments.check(rows=mapping_of(mapping_of(_matrix)), title=text)
@styled
def feature_reuse_maps(rows: Mapping[str, Mapping[str, Tensor]], *, title: str) -> Figure:
    """Heat maps of :func:`insight.feature_reuse`: a row of panels per entry, a panel per block.

    Each column is divided by its maximum, so colours compare the sources of one reader. A disc
    marks the maximum of a column, a cross its minimum; a frame marks the reader of the block's
    output.
    """
    blocks = list(next(iter(rows.values())))
    sizes = [len(matrix) for matrix in next(iter(rows.values())).values()]
    figure, axes = new_figure(
        6.4,
        0.9 + len(rows) * (0.9 + 3.9 * max(sizes) / (sum(sizes) + 4)),
        nrows=len(rows),
        ncols=len(blocks),
        squeeze=False,
        width_ratios=[n + 1 for n in sizes],
    )
    for line, (name, matrices) in zip(axes, rows.items()):
        for place, (block, matrix) in zip(line, matrices.items()):
            count = len(matrix)
            relative = (matrix / matrix.nan_to_num().max(0).values).cpu()
            image = place.imshow(relative.numpy(), cmap="Blues", vmin=0, vmax=1)
            for column in range(count):
                read = relative[: column + 1, column]
                most, least = int(read.argmax()), int(read.argmin())
                place.plot(column, most, "o", color="white", markersize=4)
                if column:
                    color = "white" if read[least] > 0.6 else "black"
                    place.plot(column, least, "x", color=color, markersize=4)
            place.add_patch(
                Rectangle((count - 1.5, -0.5), 1, count, fill=False, edgecolor="black", linewidth=2)
            )
            end = "end" if block == blocks[-1] else "tr."
            place.set_xticks(range(count), [*range(1, count), end], fontsize=9.5)
            place.set_yticks(range(count), ["in", *range(1, count)], fontsize=9.5)
            place.set_title(block.replace("denseblock", "block "), fontsize=10.5)
            place.set_xlabel("reader", fontsize=10.5)
            for side in place.spines.values():
                side.set_visible(False)
        line[0].set_ylabel(f"{name}\nsource", fontsize=10.5)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, pad=0.02, aspect=30)
    bar.set_label("weight, relative to the column's largest", fontsize=10.5)
    set_title(figure, title)
    return figure


@arguments.check(
    series=mapping_of(tensor("floats", "seeds, layers"), most=len(MARKERS)), title=text
)
@styled
def gradient_norms(series: Mapping[str, Tensor], *, title: str) -> Figure:
    """Gradient norms by depth, (seeds, layers) for each network: median and range."""
    figure, axes = new_figure(6.4, 4.2)
    for i, (name, values) in enumerate(series.items()):
        depth = np.arange(1, values.shape[1] + 1)
        low, middle, high = (values.quantile(q, dim=0) for q in (0.0, 0.5, 1.0))
        axes.fill_between(depth, low, high, color=COLORS[i], alpha=0.25, linewidth=0)
        axes.plot(
            depth, middle, color=COLORS[i], marker=MARKERS[i], markevery=6, markersize=6, label=name
        )
    axes.set_yscale("log")
    axes.set(
        xlabel="3 × 3 convolution (1 is next to the picture)",
        ylabel="gradient of its weights",
    )
    axes.grid(alpha=0.25)
    axes.legend(title=f"median and range, {len(values)} seeds")
    set_title(figure, title)
    return figure


@arguments.check(
    measured=mapping_of(
        Check("the results of connection_costs and feature_reuse", _costs_and_reuse),
        most=len(MARKERS),
    ),
    title=text,
    name_above=arguments.finite_number,
)
@styled
def connection_costs(
    measured: Mapping[str, tuple[Sequence[ConnectionCost], Tensor]],
    *,
    title: str,
    name_above: float = 0.03,
) -> Figure:
    """The accuracy lost without each connection, against the mean absolute weight of that one.

    `measured` has, by block, the results of :func:`insight.connection_costs` and
    :func:`insight.feature_reuse`. Bars are two standard errors; a marker is filled if its bar does
    not reach zero, and labelled if the drop exceeds `name_above`.
    """
    figure, axes = new_figure(6.4, 4.4)
    for i, (block, (costs, reuse)) in enumerate(measured.items()):
        color, marker = COLORS[(0, 5)[i % 2]], MARKERS[i]
        for cost in costs:
            weight = reuse[cost.source, cost.target - 1].item()
            axes.errorbar(
                weight,
                100 * cost.drop,
                200 * cost.error,
                color=color,
                marker=marker,
                markersize=6,
                markerfacecolor=color if cost.drop > 2 * cost.error else "white",
                elinewidth=0.8,
            )
            if cost.drop > name_above:
                source = "in" if cost.source == 0 else cost.source
                axes.annotate(
                    f"{source}→{cost.target}",
                    (weight, 100 * cost.drop),
                    xytext=(7, -4),
                    textcoords="offset points",
                    fontsize=10,
                )
        axes.plot([], [], marker, color=color, label=block.replace("denseblock", "block "))
    axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="not told from zero")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(
        xlabel="mean absolute weight of the connection (log scale)",
        ylabel="accuracy lost, points",
    )
    axes.legend(loc="upper left")
    set_title(figure, title)
    return figure


@arguments.check(
    _one_each,
    images=tensor("numbers", "N, C, H, W"),
    maps=tensor("floats", "N, h, w"),
    titles=sequence_of(text),
    title=text,
)
@styled
def grad_cam_maps(images: Tensor, maps: Tensor, titles: Sequence[str], *, title: str) -> Figure:
    """Images (N, C, H, W), their Grad-CAM maps (N, h, w), and the same maps interpolated."""
    columns = len(images)
    figure, axes = new_figure(
        6.4, 0.8 + 3.2 * 6.0 / columns, nrows=3, ncols=columns, squeeze=False, sharex=True
    )
    height, width = images.shape[2:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for i in range(columns):
        image = images[i].float().mean(0).cpu().numpy()
        heat = maps[i].cpu().numpy()
        axes[0, i].imshow(image, cmap="gray_r")
        axes[0, i].set_title(titles[i], fontsize=10.5, fontweight="normal")
        axes[1, i].imshow(heat, cmap="viridis", vmin=0, extent=extent, interpolation="nearest")
        axes[2, i].imshow(heat, cmap="viridis", vmin=0, extent=extent, interpolation="bicubic")
        axes[2, i].contour(image, levels=[float(image.max()) / 5], colors="white")
    labels = ("picture", f"{maps.shape[1]} × {maps.shape[2]} numbers", "smoothed")
    for line, label in zip(axes, labels):
        line[0].set_ylabel(label, fontsize=10.5)
        for place in line:
            place.set(xticks=[], yticks=[])
    figure.supxlabel(
        "dark: 0, bright: speaks for the class; white line: the outline",
        fontsize=10.5,
        color="#555555",
    )
    set_title(figure, title)
    return figure


@arguments.check(
    _known,
    fields=mapping_of(tensor("floats", "H, W")),
    theoretical=mapping_of(arguments.positive_int),
    title=text,
)
@styled
def effective_receptive_fields(
    fields: Mapping[str, Tensor], theoretical: Mapping[str, int], *, title: str
) -> Figure:
    """Effective receptive fields (H, W), each with two squares, whose sides are in its title.

    The dashed square is the theoretical receptive field, clipped to the image; the solid one is the
    effective receptive field.
    """
    columns = 2
    rows = -(-len(fields) // columns)
    figure, axes = new_figure(6.0, 3.35 * rows + 0.5, nrows=rows, ncols=columns, squeeze=False)
    for place, (name, field) in zip(axes.flat, fields.items()):
        field = field.cpu()
        # A square root, so that weak effects can be seen.
        place.imshow((field / field.max()).sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
        effective = effective_size(field)
        rows_and_columns = (field > 0).nonzero().double()
        middle = (rows_and_columns.min(0).values + rows_and_columns.max(0).values) / 2
        for side, style, color in ((theoretical[name], "--", "black"), (effective, "-", COLORS[5])):
            top, left = (middle - side / 2).tolist()
            options: dict[str, Any] = {"linestyle": style, "edgecolor": color, "lw": 2}
            place.add_patch(Rectangle((left, top), side, side, fill=False, **options))
        place.set_title(
            f"{name}\n{theoretical[name]} in theory, {effective:.0f} in effect", fontsize=10.5
        )
    for place in axes.flat:
        place.axis("off")
    set_title(figure, title)
    return figure
