"""General plots: curves, spreads, bars, images, a run's history, a confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from densenet_tutorial.figures.style import (
    COLORS,
    GREY,
    HATCHES,
    MARKERS,
    new_figure,
    set_title,
    styled,
)
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import (
    Check,
    boolean,
    finite_number,
    mapping_of,
    number_sequence,
    optional,
    positive_int,
    sequence_of,
    tensor,
    text,
)

_MOST = len(COLORS)  # as many series as there are colours
_labels = {"title": text, "xlabel": text, "ylabel": text}


def _image(value: Any) -> Tensor:
    image = tensor("numbers", "C, H, W").convert(value)
    if len(image) not in (1, 3):
        raise ValueError
    return image


def _images(values: Any) -> tuple[Tensor, ...]:
    values = tuple(values) if isinstance(values, Tensor) else values
    return sequence_of(Check("", _image)).convert(values)


def _epoch(row: Any) -> Mapping[str, float]:
    if not isinstance(row, Mapping):
        raise TypeError
    for name in ("epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        number_sequence.convert([row.get(name)])
    return row


def _place(point: Any) -> tuple[float, np.ndarray]:
    place, values = point
    return finite_number.convert(place), number_sequence.convert(values)


def _equal_lengths(runs: Mapping[str, Sequence[np.ndarray]]) -> None:
    if len({len(run) for values in runs.values() for run in values}) > 1:
        given = {name: [run.tolist() for run in values] for name, values in runs.items()}
        raise ValueError(f"runs must be of the same length, got {arguments.shown(given)}")


def _one_x_each(series: Mapping[str, np.ndarray], x: np.ndarray | None) -> None:
    for name, values in series.items():
        if x is not None and len(values) != len(x):
            raise ValueError(
                f"x must hold as many places as {name!r} has values, {len(values)}, "
                f"got {arguments.shown(x.tolist())}"
            )


def _one_each(
    images: Sequence[Tensor], titles: Sequence[str], wrong: Sequence[bool] | None
) -> None:
    for name, values in (("titles", titles), ("wrong", wrong)):
        if values is not None and len(values) != len(images):
            raise ValueError(
                f"{name} must be {len(images)}, one for each image, got {arguments.shown(values)}"
            )


def _one_label_each(features: Tensor, labels: Sequence[str] | None) -> None:
    if labels is not None and len(labels) != len(features):
        raise ValueError(
            f"labels must be {len(features)}, one for each map, got {arguments.shown(labels)}"
        )


def _square(matrix: Tensor, classes: Sequence[str]) -> None:
    if list(matrix.shape) != [len(classes)] * 2:
        raise ValueError(
            "matrix must have a row and a column for each of the classes, "
            f"{arguments.shown(classes)}, got {arguments.shown(matrix)}"
        )


@arguments.check(
    _one_x_each,
    series=mapping_of(number_sequence, most=_MOST),
    x=optional(number_sequence),
    log_y=boolean,
    log_x=boolean,
    **_labels,
)
@styled
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
    """Line plots over `x`, by default 1, 2, 3, …, with different markers."""
    figure, axes = new_figure()
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
    set_title(figure, title)
    axes.grid(alpha=0.25)
    if len(series) > 1:
        axes.legend()
    return figure


@arguments.check(
    _equal_lengths, runs=mapping_of(sequence_of(number_sequence), most=_MOST), **_labels
)
@styled
def mean_and_range(
    runs: Mapping[str, Sequence[Sequence[float]]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Line plots of the mean over several runs, with a band from the minimum to the maximum."""
    figure, axes = new_figure()
    for i, (label, all_values) in enumerate(runs.items()):
        values = np.array(all_values)
        places = range(1, values.shape[1] + 1)
        axes.fill_between(places, values.min(0), values.max(0), color=COLORS[i], alpha=0.2)
        axes.plot(places, values.mean(0), marker=MARKERS[i], color=COLORS[i], label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.25)
    axes.legend()
    set_title(figure, title)
    return figure


def _are_in_order(panels: Mapping[str, Mapping[str, Any]], order: Sequence[str] | None) -> None:
    names = {name for lines in panels.values() for name in lines}
    if order is not None and (missing := names - set(order)):
        raise ValueError(
            f"order must have every line of panels, so {', '.join(sorted(missing))} as well, got "
            f"{arguments.shown(list(order))}"
        )


@arguments.check(
    _are_in_order,
    panels=mapping_of(
        mapping_of(sequence_of(Check("a place and a sequence of numbers", _place)), most=_MOST)
    ),
    title=text,
    ylabel=text,
    order=optional(sequence_of(text, most=_MOST)),
    log_x=boolean,
    log_y=boolean,
)
@styled
def lines_with_spread(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Sequence[float]]]]],
    *,
    title: str,
    ylabel: str,
    order: Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> Figure:
    """Means at places, joined by lines, with bands from the least to the largest; a panel each.

    Args:
        panels: by label of the panel's x axis and by name of a line, each place and its values.
            The first line is ours, with filled markers.
        title: what can be seen.
        ylabel: of all panels.
        order: names, whose order gives each line its color and marker, so that several figures can
            agree; by default the names in `panels`.
        log_x: whether the x axes are logarithmic.
        log_y: whether the y axes are logarithmic.
    """
    figure, all_axes = new_figure(5.6, 1.2 + 2.1 * len(panels), nrows=len(panels), squeeze=False)
    names = list(order or dict.fromkeys(name for lines in panels.values() for name in lines))
    drawn = {}
    for axes, (xlabel, lines) in zip(all_axes[:, 0], panels.items()):
        for name, points in lines.items():
            i = names.index(name)
            places, values = zip(*sorted(points, key=lambda point: point[0]))
            bounds = [[pick(some) for some in values] for pick in (np.min, np.max)]
            axes.fill_between(places, *bounds, color=COLORS[i], alpha=0.18, linewidth=0)
            (drawn[name],) = axes.plot(
                places,
                [np.mean(some) for some in values],
                marker=MARKERS[i],
                markersize=7,
                markerfacecolor="white" if i else COLORS[i],
                color=COLORS[i],
            )
        if log_x:
            axes.set_xscale("log")
            _plain_numbers(axes.xaxis)
        if log_y:
            axes.set_yscale("log")
            _plain_numbers(axes.yaxis)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.25)
    if len(drawn) > 1:
        columns = _columns([*drawn])
        figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=columns, fontsize=11)
    set_title(figure, title)
    return figure


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend."""
    return 2 if len(names) == 4 else min(3, len(names))


def _plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, …, without powers."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high / low < 300 else (1,)
    few = MaxNLocator(5) if high / low < 5 else LogLocator(subs=steps)
    axis.set_major_locator(few)
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_locator(NullLocator())


@arguments.check(
    rows=mapping_of(mapping_of(number_sequence, most=_MOST)),
    title=text,
    xlabel=text,
    reference=optional(finite_number),
)
@styled
def dots_with_spread(
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    reference: float | None = None,
) -> Figure:
    """For each row and each of its series, all values as dots on a bar, and their mean.

    Args:
        rows: by name of a row and of a series, the values. The first series is ours, with filled
            markers.
        title: what can be seen.
        xlabel: what the values are.
        reference: where to draw a dashed line.
    """
    names = list(dict.fromkeys(name for series in rows.values() for name in series))
    slots = sum(map(len, rows.values()))
    figure, axes = new_figure(6.4, 1.9 + 0.27 * slots + 0.17 * len(rows))
    y, ticks, drawn = 0.0, [], {}
    for series in rows.values():
        start = y
        for name, values in series.items():
            i = names.index(name)
            axes.plot([min(values), max(values)], [y, y], color=COLORS[i], linewidth=2)
            axes.plot(values, [y] * len(values), "|", color=COLORS[i], markersize=8)
            (drawn[name],) = axes.plot(
                [np.mean(values)],
                [y],
                marker=MARKERS[i],
                markersize=8,
                markerfacecolor="white" if i else COLORS[i],
                color=COLORS[i],
                linestyle="none",
            )
            y += 1
        ticks.append((start + y - 1) / 2)
        y += 0.6
    if reference is not None:
        axes.axvline(reference, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
    axes.set_yticks(ticks, rows)
    axes.invert_yaxis()
    axes.set_xlabel(f"{xlabel}\nmarker: mean, bar: from least to largest")
    axes.grid(axis="x", alpha=0.25)
    if len(names) > 1:
        figure.legend(
            drawn.values(), drawn, loc="outside lower center", ncols=_columns(names), fontsize=11
        )
    set_title(figure, title)
    return figure


@arguments.check(values=mapping_of(finite_number, most=_MOST), title=text, xlabel=text)
@styled
def bars(values: Mapping[str, float], *, title: str, xlabel: str) -> Figure:
    """A horizontal bar chart with names and values."""
    figure, axes = new_figure(6.4, 1.3 + 0.5 * len(values))
    for row, (color, hatch, value) in enumerate(zip(COLORS, HATCHES, values.values())):
        axes.barh(row, value, height=0.6, color=color, hatch=hatch, edgecolor="white")
        axes.text(value, row, f" {value:.0f}", va="center", fontweight="bold")
    axes.set_yticks(range(len(values)), values)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, xlim=(0, 1.15 * max(values.values())))
    set_title(figure, title)
    return figure


@arguments.check(
    _one_each,
    images=Check("images, (1, H, W) or (3, H, W) each, in a tensor or a sequence", _images),
    titles=sequence_of(text),
    title=text,
    columns=positive_int,
    wrong=optional(sequence_of(boolean)),
)
@styled
def images(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str],
    *,
    title: str,
    columns: int = 5,
    wrong: Sequence[bool] | None = None,
) -> Figure:
    """Images, (1, H, W) grey or (3, H, W) in colour, with titles; `wrong` ones are marked."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    side = max(1.3, 2.6 / columns)
    figure, axes = new_figure(
        side * columns, (side + 0.25) * rows + 0.4, nrows=rows, ncols=columns, squeeze=False
    )
    for i, place in enumerate(axes.flat):
        place.axis("off")
        if i < len(images):
            image = images[i].cpu().permute(1, 2, 0).numpy()
            place.imshow(image, cmap="gray_r" if image.shape[2] == 1 else None)
            missed = wrong is not None and wrong[i]
            place.set_title(
                f"✗ {titles[i]}" if missed else titles[i],
                fontsize=10.5,
                fontweight="normal",
                color=COLORS[5] if missed else "black",
            )
    set_title(figure, title)
    return figure


@arguments.check(
    _one_label_each,
    features=tensor("numbers", "C, H, W"),
    title=text,
    labels=optional(sequence_of(text)),
    columns=positive_int,
)
@styled
def feature_maps(
    features: Tensor, *, title: str, labels: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """Feature maps (C, H, W) of one image, each with its own scale: orange < 0, purple > 0."""
    rows = -(-len(features) // columns)
    figure, axes = new_figure(
        1.5 * columns, 1.5 * rows + 0.7, nrows=rows, ncols=columns, squeeze=False
    )
    for i, place in enumerate(axes.flat):
        place.axis("off")
        if i < len(features):
            limit = features[i].abs().max().item()
            place.imshow(features[i].detach().cpu().numpy(), cmap="PuOr", vmin=-limit, vmax=limit)
            if labels:
                place.set_title(labels[i], fontsize=10.5)
    set_title(figure, title)
    figure.supxlabel("orange: below zero, purple: above", fontsize=10.5, color="#555555")
    return figure


@arguments.check(
    rows=sequence_of(
        Check("a dict of numbers: epoch, train_loss, test_loss, train_accuracy, …", _epoch)
    )
)
@styled
def history(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and accuracy by epoch; `rows` is the result of :func:`training.fit`."""
    figure, (left, right) = new_figure(6.4, 3.4, ncols=2)
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
    set_title(figure, f"Test accuracy {rows[-1]['test_accuracy']:.1%} after {epochs[-1]} epochs")
    return figure


@arguments.check(_square, matrix=tensor("numbers", "true, predicted"), classes=sequence_of(text))
@styled
def confusion(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """A confusion matrix of counts: rows are true classes, columns are predicted ones."""
    figure, axes = new_figure(6.4, 6.4)
    # A square root, so that small counts can be seen.
    axes.imshow(matrix.float().sqrt().cpu().numpy(), cmap="Blues")
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
    set_title(figure, f"Most often: {classes[true]} taken for {classes[predicted]}")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure
