"""Every figure of the book. This module knows matplotlib, and no other one does.

Each function draws one figure from real modules, tensors or measurements and returns it. Sizes and fonts are
chosen so that a figure is still legible 350 pixels wide; colours are those of Okabe and Ito, which people with
any kind of colour vision can tell apart, and never carry a meaning alone.
"""

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from densenet_tutorial.benchmark import MemoryFigures
from densenet_tutorial.insight import ConnectionCost, PartCost, ReceptiveField, effective_size
from densenet_tutorial.layers import DenseBlock

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#8a8a8a"
MARKERS = "os^Dv*Px"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
_STYLE = {
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "legend.frameon": False,
}


def _figure(width: float = 6.0, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    plt.rcParams.update(_STYLE)
    return plt.subplots(figsize=(width, height), **options)


def png(figure: Figure) -> bytes:
    """`figure` as a PNG file; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=13, fontweight="bold")


def _growth(block: DenseBlock) -> tuple[list[str], list[int]]:
    """Names and channel counts of everything that a block concatenates, read off its modules."""
    layers = list(block.values())
    last = [getattr(layer, "conv2", layer.conv1) for layer in layers]
    return (
        ["input", *(f"layer {i}" for i in range(1, len(layers) + 1))],
        [layers[0].norm1.num_features, *(conv.out_channels for conv in last)],
    )


def connectivity(block: DenseBlock) -> Figure:
    """Every connection of `block`: an arc from each source of feature maps to each layer that reads it."""
    names, channels = _growth(block)
    figure, axes = _figure(6.4, 3.3)
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
    _title(figure, f"{layers} layers, {layers * (layers + 1) // 2} direct connections")
    axes.axis("off")
    return figure


def channels(block: DenseBlock) -> Figure:
    """What each layer of `block` reads, and what leaves the block, stacked by where the channels come from."""
    names, widths = _growth(block)
    figure, axes = _figure(6.4, 3.8)
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
    _title(figure, f"Channels grow by {widths[-1]} per layer")
    axes.legend(loc="upper left", fontsize=10.5)
    return figure


def shapes(features: Mapping[str, Tensor]) -> Figure:
    """The tensor after each part: height of a box for height and width, width of it for the channels.

    `features` is what :meth:`DenseNet.intermediate_features` returns.
    """
    figure, axes = _figure(6.4, 1.0 + 0.42 * len(features))
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
    _title(figure, "Blocks add channels, transitions halve the picture")
    return figure


def receptive_fields(fields: Sequence[ReceptiveField], image_size: int) -> Figure:
    """The receptive fields after each part, from the channel that sees least to the one that sees most."""
    figure, axes = _figure(6.4, 1.3 + 0.4 * len(fields))
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
    _title(figure, "Inside a block, many receptive fields at once")
    axes.legend(fontsize=10.5, loc="upper center", bbox_to_anchor=(0.42, -0.18))
    return figure


def costs(parts: Sequence[PartCost]) -> Figure:
    """Each part's share of the parameters and of the multiply-adds, side by side."""
    figure, axes = _figure(6.4, 1.2 + 0.5 * len(parts))
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
    for i, (label, shares, color, hatch) in enumerate(series):
        at = rows + (i - 0.5) * 0.38
        axes.barh(at, shares, height=0.36, color=color, hatch=hatch, edgecolor="white", label=label)
        for y, share in zip(at, shares):
            axes.text(
                share + 0.005,
                y,
                f"{share:.0%}" if share >= 0.005 else "<1%",
                va="center",
                fontsize=10,
            )
    axes.set_yticks(rows, [part.name for part in parts])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlabel="share of the whole network")
    _title(figure, "Early blocks compute, late blocks hold the weights")
    axes.legend(loc="lower right")
    return figure


def curves(
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    x: Sequence[float] | None = None,
    log_y: bool = False,
    log_x: bool = False,
) -> Figure:
    """Lines that share an x axis (1, 2, 3, … unless `x` is given), each with a marker of its own."""
    figure, axes = _figure()
    for i, (label, values) in enumerate(series.items()):
        places = range(1, len(values) + 1) if x is None else x
        axes.plot(places, values, marker=MARKERS[i], markersize=5, color=COLORS[i], label=label)
    if log_y:
        axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _title(figure, title)
    axes.grid(alpha=0.25)
    if len(series) > 1:
        axes.legend()
    return figure


def spread(
    runs: Mapping[str, Sequence[Sequence[float]]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """For each name, the mean of several runs as a line with markers, and all that lies between the lowest and the highest as a band."""
    figure, axes = _figure()
    for i, (label, values) in enumerate(runs.items()):
        values = np.array(values)
        places = range(1, values.shape[1] + 1)
        axes.fill_between(places, values.min(0), values.max(0), color=COLORS[i], alpha=0.2)
        axes.plot(places, values.mean(0), marker=MARKERS[i], color=COLORS[i], label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.25)
    axes.legend()
    _title(figure, title)
    return figure


def bars(values: Mapping[str, float], *, title: str, xlabel: str) -> Figure:
    """A horizontal bar for each value, with its name and its number."""
    figure, axes = _figure(6.4, 1.3 + 0.5 * len(values))
    for row, (color, hatch, value) in enumerate(zip(COLORS, HATCHES, values.values())):
        axes.barh(row, value, height=0.6, color=color, hatch=hatch, edgecolor="white")
        axes.text(value, row, f" {value:.0f}", va="center", fontweight="bold")
    axes.set_yticks(range(len(values)), values)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, xlim=(0, 1.15 * max(values.values())))
    _title(figure, title)
    return figure


def stacked_bars(rows: Mapping[str, Mapping[str, float]], *, title: str, xlabel: str) -> Figure:
    """A horizontal bar for each row, made of named parts, with its total behind it."""
    figure, axes = _figure(6.4, 1.9 + 0.5 * len(rows))
    totals = [sum(parts.values()) for parts in rows.values()]
    starts = np.zeros(len(rows))
    for i, part in enumerate(next(iter(rows.values()))):
        widths = np.array([parts[part] for parts in rows.values()])
        axes.barh(
            range(len(rows)),
            widths,
            left=starts,
            height=0.6,
            color=COLORS[i],
            hatch=HATCHES[i],
            edgecolor="white",
            label=part,
        )
        starts += widths
    for row, total in enumerate(totals):
        axes.text(total, row, f" {total:g}", va="center", fontweight="bold")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, xlim=(0, 1.12 * max(totals)))
    _title(figure, title)
    figure.legend(loc="outside lower center", ncols=3, fontsize=10.5)
    return figure


def time_and_memory(figures: Sequence[MemoryFigures]) -> Figure:
    """Time of a training step over the memory it holds, of each model: medians, from fastest to slowest."""
    figure, axes = _figure(6.4, 5.0)
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
    _title(figure, "Far less memory, and little or no more time")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10.5)
    return figure


def images(
    pictures: Tensor | Sequence[Tensor],
    titles: Sequence[str],
    *,
    title: str,
    columns: int = 5,
    wrong: Sequence[bool] | None = None,
) -> Figure:
    """A grid of pictures, each (1, H, W) grey or (3, H, W) in colour, under its title; that of a `wrong` one is red and marked."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    side = max(1.3, 2.6 / columns)
    figure, axes = _figure(
        side * columns, (side + 0.25) * rows + 0.4, nrows=rows, ncols=columns, squeeze=False
    )
    for i, place in enumerate(axes.flat):
        place.axis("off")
        if i < len(pictures):
            picture = pictures[i].cpu().permute(1, 2, 0).numpy()
            place.imshow(picture, cmap="gray_r" if picture.shape[2] == 1 else None)
            missed = wrong is not None and wrong[i]
            place.set_title(
                f"✗ {titles[i]}" if missed else titles[i],
                fontsize=10.5,
                fontweight="normal",
                color=COLORS[5] if missed else "black",
            )
    _title(figure, title)
    return figure


def feature_maps(
    features: Tensor, *, title: str, labels: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """The feature maps (C, H, W) of one image, each on its own scale: orange below zero, purple above."""
    rows = -(-len(features) // columns)
    figure, axes = _figure(
        1.5 * columns, 1.5 * rows + 0.7, nrows=rows, ncols=columns, squeeze=False
    )
    for i, place in enumerate(axes.flat):
        place.axis("off")
        if i < len(features):
            limit = features[i].abs().max().item()
            place.imshow(features[i].detach().cpu().numpy(), cmap="PuOr", vmin=-limit, vmax=limit)
            if labels:
                place.set_title(labels[i], fontsize=10.5)
    _title(figure, title)
    figure.supxlabel("orange: below zero, purple: above", fontsize=10.5, color="#555555")
    return figure


def history(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and accuracy over the epochs, from what :func:`training.fit` returns."""
    figure, (left, right) = _figure(6.4, 3.4, ncols=2)
    epochs = [row["epoch"] for row in rows]
    for axes, kind, label in ((left, "loss", "cross-entropy"), (right, "accuracy", "accuracy")):
        for i, part in enumerate(("train", "test")):
            values = [row[f"{part}_{kind}"] for row in rows]
            axes.plot(epochs, values, marker=MARKERS[i], color=COLORS[i], label=part)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.legend()
    _title(figure, f"Test accuracy {rows[-1]['test_accuracy']:.1%} after {epochs[-1]} epochs")
    return figure


def confusion(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """A confusion matrix of counts: rows are true classes, columns are predicted ones."""
    figure, axes = _figure(6.4, 6.4)
    axes.imshow(
        matrix.float() ** 0.5, cmap="Blues"
    )  # a square root, so that small counts can be seen
    for row in range(len(classes)):
        for column in range(len(classes)):
            count = int(matrix[row, column])
            dark = count > matrix.max() / 3
            if count:
                axes.text(
                    column,
                    row,
                    count,
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=11,
                )
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    off_diagonal = matrix.clone().fill_diagonal_(0)
    true, predicted = divmod(int(off_diagonal.argmax()), len(classes))
    _title(figure, f"Most often: {classes[true]} taken for {classes[predicted]}")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def feature_reuse_maps(rows: Mapping[str, Mapping[str, Tensor]], *, title: str) -> Figure:
    """Heat maps of :func:`insight.feature_reuse`, a row of panels for each entry of `rows`, a panel for each block.

    Colours compare the sources of one reader: each column is divided by its largest value. A disc marks the source
    that a reader reads most, a cross the one that it reads least; a frame stands around what reads the block's output.
    """
    blocks = list(next(iter(rows.values())))
    sizes = [len(matrix) for matrix in next(iter(rows.values())).values()]
    figure, axes = _figure(
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
            shares = (matrix / matrix.nan_to_num().max(0).values).cpu()
            picture = place.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
            for column in range(count):
                read = shares[: column + 1, column]
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
    bar = figure.colorbar(picture, ax=axes, location="bottom", shrink=0.6, pad=0.02, aspect=30)
    bar.set_label("weight, relative to the column's largest", fontsize=10.5)
    _title(figure, title)
    return figure


def gradient_norms(series: Mapping[str, Tensor], *, title: str) -> Figure:
    """Gradient sizes through depth, (seeds, layers) for each network: the median, and a band from least to most."""
    figure, axes = _figure(6.4, 4.2)
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
    _title(figure, title)
    return figure


def connection_costs(
    measured: Mapping[str, tuple[Sequence[ConnectionCost], Tensor]],
    *,
    title: str,
    name_above: float = 0.03,
) -> Figure:
    """The accuracy that each connection's removal costs, against the weight with which it is read.

    `measured` holds, by block, what :func:`insight.connection_costs` and :func:`insight.feature_reuse` return.
    Bars are two standard errors; a symbol is filled where its bar does not reach zero, and named where the drop
    exceeds `name_above`.
    """
    figure, axes = _figure(6.4, 4.4)
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
    axes.xaxis.set_major_locator(plt.FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2]))
    axes.xaxis.set_minor_locator(plt.NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(
        xlabel="mean absolute weight of the connection (log scale)",
        ylabel="accuracy lost, points",
    )
    axes.legend(loc="upper left")
    _title(figure, title)
    return figure


def grad_cam_maps(pictures: Tensor, maps: Tensor, titles: Sequence[str], *, title: str) -> Figure:
    """Pictures (N, C, H, W), their Grad-CAM maps (N, h, w) as they were computed, and the same maps smoothed."""
    columns = len(pictures)
    figure, axes = _figure(
        6.4, 0.8 + 3.2 * 6.0 / columns, nrows=3, ncols=columns, squeeze=False, sharex=True
    )
    height, width = pictures.shape[2:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for i in range(columns):
        picture = pictures[i].float().mean(0).cpu().numpy()
        heat = maps[i].cpu().numpy()
        axes[0, i].imshow(picture, cmap="gray_r")
        axes[0, i].set_title(titles[i], fontsize=10.5, fontweight="normal")
        axes[1, i].imshow(heat, cmap="viridis", vmin=0, extent=extent, interpolation="nearest")
        axes[2, i].imshow(heat, cmap="viridis", vmin=0, extent=extent, interpolation="bicubic")
        axes[2, i].contour(picture, levels=[float(picture.max()) / 5], colors="white")
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
    _title(figure, title)
    return figure


def effective_receptive_fields(
    fields: Mapping[str, Tensor], theoretical: Mapping[str, int], *, title: str
) -> Figure:
    """Maps (H, W) of :func:`insight.effective_receptive_field`, with the sides of two squares in pixels.

    Dashed: the receptive field, from `theoretical`, as far as it fits into the picture. Solid: the effective one.
    """
    columns = 2
    rows = -(-len(fields) // columns)
    figure, axes = _figure(6.0, 3.35 * rows + 0.5, nrows=rows, ncols=columns, squeeze=False)
    for place, (name, field) in zip(axes.flat, fields.items()):
        field = field.cpu()
        # A square root, so that weak effects can be seen.
        place.imshow((field / field.max()).sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
        effective = effective_size(field)
        rows_and_columns = (field > 0).nonzero().double()
        middle = (rows_and_columns.min(0).values + rows_and_columns.max(0).values) / 2
        for side, style, color in ((theoretical[name], "--", "black"), (effective, "-", COLORS[5])):
            corner = (middle.flip(0) - side / 2).tolist()
            place.add_patch(
                Rectangle(corner, side, side, fill=False, linestyle=style, edgecolor=color, lw=2)
            )
        place.set_title(
            f"{name}\n{theoretical[name]} in theory, {effective:.0f} in effect", fontsize=10.5
        )
    for place in axes.flat:
        place.axis("off")
    _title(figure, title)
    return figure
