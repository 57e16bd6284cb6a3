"""Diagrams of chapters 1 to 4: wirings, dense layer, dense block, transition."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from densenet_tutorial.figures.diagrams.svg import (
    Diagram,
    Drawing,
    Sources,
    color_of,
    thousands,
)
from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import Check

# Duck typing, for the reader's own classes from chapters 02 to 04.


def _as_layer(value: Any) -> Any:
    if not isinstance(value, nn.Module) or not all(
        hasattr(value, name) for name in ("norm1", "conv1")
    ):
        raise TypeError
    steps: Any = value
    for norm, conv in _steps(steps):  # not the reader's own GroupNorm, Identity or Sequential
        if not hasattr(norm, "num_features") or not hasattr(conv, "kernel_size"):
            raise TypeError
    return value


def _as_block(value: Any) -> Any:
    if not isinstance(value, nn.ModuleDict) or not value:
        raise TypeError
    for layer in value.values():
        _as_layer(layer)
        if not hasattr(layer, "growth_rate"):
            raise TypeError
    return value


def _as_transition(value: Any) -> Any:
    if not isinstance(value, nn.Module) or not all(
        hasattr(value, name) for name in ("norm", "conv", "pool")
    ):
        raise TypeError
    return value


def _size(value: Any) -> tuple[int, int]:
    height, width = arguments.sequence_of(arguments.positive_int).convert(value)
    return height, width


layer_check = Check("a DenseLayer", _as_layer)
block_check = Check("a DenseBlock", _as_block)
transition_check = Check("a Transition", _as_transition)
size_check = Check("the height and width of the features, two whole numbers of at least 1", _size)


def sources_of(block: DenseBlock) -> list[tuple[int, int]]:
    """Everything that a block concatenates: (0, channels of the input), (1, those of layer 1), …"""
    layers: list[Any] = list(block.values())
    made = [(i, layer.growth_rate) for i, layer in enumerate(layers, start=1)]
    return [(0, layers[0].norm1.num_features), *made]


def _sum(channels: list[int]) -> str:
    """`8 + 4 + 4`, or `8 + 4 × 4` where that is long."""
    if len(channels) <= 4:
        return " + ".join(map(str, channels))
    return f"{channels[0]} + {len(channels) - 1} × {channels[1]}"


@arguments.check(block=block_check)
def wirings(block: DenseBlock) -> Diagram:
    """The plain, the residual and the dense wiring of as many layers as `block` has."""
    sources = sources_of(block)
    count = len(sources) - 1
    connections = count * (count + 1) // 2
    drawing = Drawing("Three ways to wire the same layers")
    left, right, lane = 16, 344, 16
    pitch = (right - left - 26) / count
    box = min(34.0, pitch * 0.55)
    middles = [left + 26 + pitch * (i + 0.36) for i in range(count)]

    def head(y: float, name: str, formula: str) -> None:
        drawing.text(left, y, name, size=14, bold=True)
        drawing.text(right, y, formula, size=14, italic=True, anchor="end")

    # Plain: what a layer makes replaces what it read.
    y = drawing.top + 14
    head(y, "plain", "x_{ℓ} = H_{ℓ}(x_{ℓ−1})")
    y += 20
    ends = [left, *middles, right]
    for i, (start, stop) in enumerate(pairwise(ends)):
        drawing.source(start, y, stop - start, lane, i)
    for i, x in enumerate(middles, start=1):
        drawing.layer(x - box / 2, y - 6, box, lane + 12, i, str(i))

    # Residual: what a layer makes is added, and cannot be told from the rest any more.
    y += 62
    head(y, "residual", "x_{ℓ} = x_{ℓ−1} + H_{ℓ}(x_{ℓ−1})")
    y += 16
    drawing.source(left, y, middles[0] + pitch * 0.42 - left, lane, 0)
    drawing.source(middles[0] + pitch * 0.42, y, right - middles[0] - pitch * 0.42, lane, -1)
    below = y + lane + 16
    for i, x in enumerate(middles, start=1):
        tap = x - box / 2 + 2
        join = x + pitch * 0.42
        drawing.arrow((tap, y + lane / 2), (tap, below + 3), width=1.4, color="ink")
        drawing.circle(tap, y + lane / 2, 3.5, "ink", "paper")
        drawing.arrow(
            (x + box / 2, below + 14),
            (join, below + 14),
            (join, y + lane),
            color=color_of(i),
            width=2.2,
        )
        drawing.layer(x - box / 2, below + 2, box, 24, i, str(i))
        drawing.plus(join, y + lane / 2, 6.5)

    # Dense: what a layer makes gets a lane of its own, and everybody after it reads all lanes.
    y = below + 62
    head(y, "dense", "x_{ℓ} = H_{ℓ}([x_{0}, x_{1}, …, x_{ℓ−1}])")
    y += 16
    unit = 16 / sources[0][1]
    tops = [y]
    for _, channels in sources:
        tops.append(tops[-1] + max(7, channels * unit))
    joins = [left, *(x + pitch * 0.42 for x in middles)]
    for (source, _), top, bottom, join in zip(sources, tops, tops[1:], joins):
        drawing.source(join, top, right - join, bottom - top - 1, source)
    below = tops[-1] + 12
    for i, x in enumerate(middles, start=1):
        tap = x - box / 2 + 6
        drawing.arrow((tap, tops[0] + 4), (tap, below), width=1.4, color="ink")
        for top, bottom in pairwise(tops[: i + 1]):
            drawing.circle(tap, (top + bottom - 1) / 2, 3.5, "ink", "paper")
        middle = (tops[i] + tops[i + 1] - 1) / 2
        drawing.arrow(
            (x + box / 2 - 5, below + 4),
            (x + box / 2 - 5, middle),
            (joins[i] + 1, middle),
            color=color_of(i),
            width=2.2,
        )
        drawing.layer(x - box / 2, below, box, 24, i, str(i))
    y = below + 44
    everything = [c for _, c in sources]
    drawing.text(left, y, f"{connections} dots, {connections} direct connections", bold=True)
    drawing.text(left, y + 17, f"{_sum(everything)} = {sum(everything)} channels, side by side")
    return drawing.finish(
        y + 32,
        f"Three rows with the same {count} layers, from left to right. Plain: one lane passes "
        "through each layer and is replaced by what the layer makes. Residual: each layer reads "
        "the lane and its result is added to it, and from then on the lane is grey, a mixture. "
        "Dense: each layer's result becomes a lane of its own below the others, and each layer "
        f"reads all lanes before it, which makes {connections} connections.",
    )


_numbers = arguments.tensor("numbers", "C")


def _equally_long(old: Tensor, new: Tensor) -> None:
    if len(old) != len(new) or len(old) > 5:
        raise ValueError(
            "old and new must have the same number of channels, at most 5, got "
            f"{arguments.shown(old)} and {arguments.shown(new)}"
        )


@arguments.check(_equally_long, old=_numbers, new=_numbers)
def adding_and_concatenating(old: Tensor, new: Tensor) -> Diagram:
    """One pixel's channels `old` and `new`, (C) each, added and concatenated."""
    drawing = Drawing("A sum forgets its terms, a concatenation does not")
    side, x0 = 26, 16
    y = drawing.top + 4

    def cells(x: float, y: float, values: Tensor, source: int) -> float:
        for i, value in enumerate(values.tolist()):
            at = x + i * side
            drawing.source(at, y, side, side, source)
            drawing.rect(at + 4, y + 4, side - 8, side - 8, "paper", radius=3)
            drawing.text(at + side / 2, y + side / 2 + 4.5, f"{value:g}", anchor="middle")
        return x + len(values) * side

    wide = side * len(old)
    middle = x0 + wide + 18
    total = [cells(x0, y, old, 0), cells(middle + 18, y, new, 1)]
    drawing.plus(middle, y + side / 2)
    drawing.arrow((x0 + wide + 18, y + side + 6), (x0 + wide + 18, y + side + 26))
    cells(x0 + (total[1] - x0 - wide) / 2, y + side + 30, old + new, -1)
    y += 2 * side + 48
    drawing.text(x0, y, "Which two numbers made the first one?", color="ink-soft")

    y += 22
    cells(x0, y, old, 0)
    cells(middle + 18, y, new, 1)
    drawing.arrow((x0 + wide + 18, y + side + 6), (x0 + wide + 18, y + side + 26))
    at = x0 + (total[1] - x0 - 2 * wide) / 2
    cells(cells(at, y + side + 30, old, 0), y + side + 30, new, 1)
    y += 2 * side + 48
    drawing.text(x0, y, "All are still there, each at its place.", color="ink-soft")
    return drawing.finish(
        y + 14,
        f"Above, {len(old)} numbers and {len(new)} numbers are added: {len(old)} grey sums, whose "
        "terms cannot be told any more. Below, the same numbers are put end to end: "
        f"{2 * len(old)} numbers, the old ones in their colour and the new ones in theirs.",
    )


def _steps(layer: DenseLayer) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """The norms and convolutions of a dense layer, in the order in which they run."""
    steps: list[Any] = [(layer.norm1, layer.conv1)]
    if hasattr(layer, "conv2"):
        steps.append((layer.norm2, layer.conv2))
    return steps


def _adding_up(sources: Any, reads: int, reader: str) -> None:
    if sources is not None and sum(sources) != reads:
        raise ValueError(
            f"sources must add up to the {reads} channels that the {reader} reads, "
            f"got {arguments.shown(sources)}"
        )


def _matching_layer(layer: DenseLayer, sources: Any) -> None:
    _adding_up(sources, layer.norm1.num_features, "layer")


@arguments.check(
    _matching_layer,
    layer=layer_check,
    size=size_check,
    sources=arguments.optional(arguments.sequence_of(arguments.positive_int)),
)
def dense_layer(
    layer: DenseLayer, size: tuple[int, int] = (28, 28), sources: Any = None
) -> Diagram:
    """What happens in a dense layer, step by step, with shapes and numbers of weights.

    `sources` are the channels that the layer reads, by where they come from; by default all are the
    input's. `size` is the height and width of the features.
    """
    steps = _steps(layer)
    reads, makes = steps[0][1].in_channels, steps[-1][1].out_channels
    read: Sources = list(enumerate(sources or [reads]))
    own = len(read)
    shape = f"× {size[0]} × {size[1]}"
    drawing = Drawing(f"A dense layer reads {reads} channels and adds {makes}")
    widest = max([reads + makes, *(conv.out_channels for _, conv in steps)])
    unit = min(9.0, 150 / widest)
    middle, wide, aside = 104.0, 150.0, 196.0

    def strip(y: float, parts: Sources, bold: str, *more: str, faded: bool = False) -> None:
        length = sum(c for _, c in parts) * unit
        drawing.strip(middle - length / 2, y, parts, unit, faded=faded)
        drawing.text(aside, y + (15 if not more else 9), bold, bold=True)
        drawing.lines(aside, y + 25, more, color="ink-soft")

    y = drawing.top + 2
    first = y
    strip(y, read, f"{reads} {shape}", "all earlier features")
    weights = []
    for i, (norm, conv) in enumerate(steps):
        y += 24
        drawing.arrow((middle, y), (middle, y + 15))
        y += 17
        relu = next((m for n, m in layer.named_children() if n == f"relu{i + 1}"), None)
        drawing.part(middle - wide / 2, y, wide, 24, "norm, ReLU" if relu is not None else "norm")
        own_numbers = sum(p.numel() for p in norm.parameters())
        drawing.text(
            aside, y + 16, f"2 × {norm.num_features} = {own_numbers} numbers", color="ink-soft"
        )
        y += 24
        drawing.arrow((middle, y), (middle, y + 13))
        y += 15
        kernel = conv.kernel_size[0]
        drawing.convolution(middle - wide / 2, y, wide, 34, kernel, color_of(own))
        window = f"{kernel * kernel} × " if kernel > 1 else ""
        count = conv.weight.numel()
        weights.append(count)
        drawing.text(
            aside, y + 13, f"{window}{conv.in_channels} × {conv.out_channels}", color="ink-soft"
        )
        drawing.text(aside, y + 29, f"= {thousands(count)} weights", bold=True)
        y += 34
        drawing.arrow((middle, y), (middle, y + 13))
        y += 15
        if i + 1 < len(steps):
            strip(
                y,
                [(own, conv.out_channels)],
                f"{conv.out_channels} {shape}",
                "the bottleneck",
                faded=True,
            )
        else:
            strip(y, [(own, makes)], f"{makes} {shape}", "new feature maps")
    # The old features go around the layer and end up beside the new ones.
    last = y + 58
    everything = [*read, (own, makes)]
    strip(last, everything, f"{reads + makes} {shape}", "old and new, side by side")
    length = (reads + makes) * unit
    start = middle - length / 2
    drawing.arrow(
        (middle - reads * unit / 2, first + 11),
        (11, first + 11),
        (11, last - 18),
        (start + reads * unit / 2, last - 18),
        (start + reads * unit / 2, last - 1),
    )
    new = start + (reads + makes / 2) * unit
    drawing.arrow(
        (middle, y + 24),
        (middle, y + 38),
        (new, y + 38),
        (new, last - 1),
        color=color_of(own),
        width=2.2,
    )
    total = " + ".join(map(thousands, weights)) + (
        f" = {thousands(sum(weights))}" if len(weights) > 1 else ""
    )
    drawing.text(16, last + 46, f"Weights of the convolutions: {total}")
    return drawing.finish(
        last + 60,
        f"From top to bottom: a strip of {reads} channels goes through "
        + ", then ".join(
            f"norm, ReLU and a {c.kernel_size[0]} × {c.kernel_size[0]} convolution to "
            f"{c.out_channels} channels with {thousands(c.weight.numel())} weights"
            for _, c in steps
        )
        + f". The {makes} new channels are put behind the {reads} old ones, which go around the "
        f"layer unchanged: {reads + makes} channels.",
    )


#: Colours of the numbers from -15 to 15, (31, 3): orange below zero, violet above.
_ENDS = torch.tensor([[179.0, 88, 6], [244, 242, 247], [94, 60, 153]])
_SHARES = torch.arange(16)[:, None] / 15
SIGNED = (
    torch.cat([_ENDS[0].lerp(_ENDS[1], _SHARES), _ENDS[1].lerp(_ENDS[2], _SHARES[1:])])
    .round()
    .byte()
)


def _signed(maps: Tensor) -> Tensor:
    """Maps (C, H, W) as one picture of rows of SIGNED, side by side."""
    most = float(maps.abs().max()) or 1.0
    return (maps / most * 15 + 15).round().byte().movedim(0, 1).flatten(1)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _copy(name: str, module: nn.Module) -> Any:
    """A copy in 64 bits, so that every processor rounds to the same drawing.

    The reader's hooks stay behind; PyTorch's own, which make the weights of pruned modules, do not.
    """
    every = [(part, hooks, getattr(part, hooks)) for part in module.modules() for hooks in _HOOKS]
    try:
        for part, hooks, found in every:
            own = {i: hook for i, hook in found.items() if _is_torchs(hook)}
            setattr(part, hooks, type(found)(own))
        return copy.deepcopy(module).cpu().double()
    except Exception as error:  # noqa: BLE001  (the reader's own module)
        raise ValueError(f"{name} must be a module that can be copied, got: {error}") from None
    finally:
        for part, hooks, found in every:
            setattr(part, hooks, found)


def _is_torchs(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == "torch"


def _call(name: str, module: Any, x: Any, channels: int | None, what: str) -> Tensor:
    """The feature maps (1, `channels`, H, W) that a module makes; `what` says what it has to do."""
    try:
        maps = module(x)
        shape = tuple(maps.shape)
        fits = len(shape) == 4 and shape[:2] == (1, channels or shape[1]) and maps.numel() > 0
        fits = fits and maps.is_floating_point()
        finite = not fits or bool(maps.isfinite().all())
    except Exception as error:  # noqa: BLE001  (the reader's own module)
        raise ValueError(f"{name} must {what}: {str(error) or type(error).__name__}") from None
    if not fits:
        raise ValueError(f"{name} must {what}: it gives {arguments.shown(maps)}")
    if not finite:
        raise ValueError(f"{name} must give finite numbers, got some that are nan or infinite")
    return maps.double()


def _read_and_made(
    block: DenseBlock, start: nn.Module, picture: Tensor, layer: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What a layer reads, piece by piece, its bottleneck's maps and its own, of one picture."""
    (_, channels), *made = sources_of(block)
    if not picture.isfinite().all():
        raise ValueError("picture must have finite numbers, got some that are nan or infinite")
    what = (
        f"turn picture into the {channels} channels that block reads, got "
        f"{arguments.shown(start)} and {arguments.shown(picture)}"
    )
    layers = [_copy("block", part) for part in block.values()][:layer]
    begin = _copy("start", start)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for dropout; nothing but the CPU's
        pieces = [_call("start", begin, picture[:1].cpu().double(), channels, what)]
        what = "make growth_rate feature maps in each layer"
        for each, (_, growth) in zip(layers[:-1], made, strict=False):
            pieces.append(_call("block", each, pieces, growth, what))
        narrow = _call("block", layers[-1].bn_function, pieces, None, what)
        new = _call("block", layers[-1], pieces, made[layer - 1][1], what)
    return pieces, narrow, new


def _in_the_block(block: Any, layer: int) -> None:
    arguments.integer(1, len(block))("layer", layer)


@arguments.check(
    _in_the_block,
    block=block_check,
    start=arguments.instance_of(nn.Module, "a module, such as nn.Conv2d"),
    picture=arguments.tensor("floats", "N, C, H, W"),
    layer=arguments.positive_int,
)
def layer_at_work(block: DenseBlock, start: nn.Module, picture: Tensor, layer: int) -> Diagram:
    """What layer number `layer` of `block`, counted from 1, makes of a picture, with its maps.

    `start` turns the first picture of `picture`, (N, C, H, W), into what `block` reads. Nothing is
    changed, no running average either.
    """
    pieces, narrow, new = _read_and_made(block, start, picture, layer)
    now: Any = list(block.values())[layer - 1]
    rows = _steps(now)
    read = [(source, piece.shape[1]) for source, piece in enumerate(pieces)]
    reads, makes = sum(c for _, c in read), new.shape[1]
    shape = f"× {new.shape[2]} × {new.shape[3]}"
    drawing = Drawing(f"Layer {layer} at work: {reads} maps in, {makes} new ones behind")
    x0, wide, aside = 16.0, 328.0, 196.0
    y = drawing.top

    def maps(y: float, groups: list[tuple[int, Tensor]], said: str, side: float) -> float:
        """Maps below a bar for each source; returns where they end."""
        drawing.text(x0, y + 11, said, bold=True)
        at, height = x0, side * new.shape[2] / new.shape[3]
        for source, features in groups:
            length = side * features.shape[1]
            drawing.source(at, y + 17, length - 1.5, 8, source)
            picture = _signed(features[0])
            drawing.image(at, y + 27, length - 1.5, height, picture, palette=SIGNED)
            at += length
        return y + 27 + height

    def operations(y: float, index: int) -> float:
        """Norm, ReLU and one of the convolutions."""
        norm, conv = rows[index]
        drawing.arrow((91, y + 3), (91, y + 15))
        drawing.part(x0, y + 17, 150, 22, "norm, ReLU")
        drawing.text(
            aside, y + 32, f"2 × {norm.num_features} = {2 * norm.num_features} numbers",
            color="ink-soft",
        )  # fmt: skip
        kernel = conv.kernel_size[0]
        drawing.convolution(x0, y + 43, 150, 30, kernel, color_of(layer))
        window = f"{kernel * kernel} × " if kernel > 1 else ""
        makes, reads = conv.weight.shape[:2]  # in groups, each reads its own
        count = thousands(conv.weight.numel())
        drawing.text(aside, y + 62, f"{window}{reads} × {makes} = {count} weights")
        drawing.arrow((91, y + 75), (91, y + 87))
        return y + 88

    unit = min(27.0, wide / reads)
    said = f"It reads {_sum([c for _, c in read])}"
    said += f" = {reads} {shape}" if len(read) > 1 else f" {shape}"
    y = maps(y, list(enumerate(pieces)), said, unit)
    y = operations(y, 0)
    if len(rows) > 1:
        width = narrow.shape[1]
        y = maps(y, [(layer, narrow)], f"The bottleneck: {width} {shape}", min(27, wide / width))
        y = operations(y, 1)
    y = maps(y, [(layer, new)], f"New maps: {makes} {shape}", min(54, wide / makes))
    drawing.arrow((91, y + 4), (91, y + 18))
    y += 22
    everything = [*read, (layer, makes)]
    drawing.strip(x0, y, everything, min(14.0, wide / (reads + makes)))
    total = f"{_sum([c for _, c in everything])} = {reads + makes} channels"
    drawing.text(x0, y + 38, f"Old and new, side by side: {total}")
    return drawing.finish(
        y + 52,
        f"From top to bottom: the {reads} feature maps of a picture that the layer reads, small "
        "pictures under a bar for each source"
        + (f"; the {narrow.shape[1]} maps of its bottleneck" if len(rows) > 1 else "")
        + f"; its {makes} new maps; and a strip of {reads + makes} channels, in which the new ones "
        "are behind the old. Between them stand norm, ReLU and convolution, with their numbers "
        "of weights.",
    )


@arguments.check(block=block_check)
def growing_strip(block: DenseBlock) -> Diagram:
    """What each layer of `block` reads, by source, and where its new channels go."""
    sources = sources_of(block)
    layers = len(sources) - 1
    growth = sources[1][1]
    drawing = Drawing(f"Each layer adds {growth} channels at the end")
    total = sum(c for _, c in sources)
    unit = min(9.0, 226 / total)
    shown = list(range(1, layers + 1)) if layers <= 6 else [1, 2, 3, layers]
    x0, box, pitch = 16.0, 270.0, 68.0
    y = drawing.top + 2
    before = 0
    for layer in shown:
        read = sources[:layer]
        if layer > before + 1:
            drawing.text(x0, y - 14, f"… layers {before + 1} to {layer - 1} …", color="ink-soft")
        before = layer
        channels = [c for _, c in read]
        length = drawing.strip(x0, y, read, unit)
        drawing.arrow((x0 + length + 4, y + 11), (box - 2, y + 11), color="ink")
        drawing.layer(box, y - 3, 74, 28, layer, f"layer {layer}")
        said = _sum(channels) + (f" = {sum(channels)}" if len(channels) > 1 else "")
        drawing.text(x0, y + 38, f"reads {said}")
        after = x0 + (sum(channels) + sources[layer][1] / 2) * unit
        if layer in (*(s - 1 for s in shown), layers):
            drawing.arrow(
                (box + 37, y + 26),
                (box + 37, y + 51),
                (after, y + 51),
                (after, y + pitch - 1),
                color=color_of(layer),
                width=2.2,
            )
        y += pitch
    drawing.strip(x0, y, sources, unit)
    channels = [c for _, c in sources]
    drawing.text(x0, y + 38, f"out: {_sum(channels)} = {total} channels", bold=True)
    drawing.text(box, y + 15, f"+ {growth} each", color="ink-soft")
    return drawing.finish(
        y + 52,
        f"{layers} layers, from top to bottom, with the strip of channels that each one reads, "
        f"divided by where they come from. The strip begins with the {channels[0]} channels of "
        f"the block's input and gets {growth} longer on the right with every layer: "
        f"{', '.join(str(sum(channels[: i + 1])) for i in range(len(channels)))}.",
    )


def _order(sources: Sources, new_first: bool) -> list[tuple[int, int]]:
    """The source of each channel, and its number in there, as a block lays them."""
    pieces = list(reversed(sources)) if new_first else list(sources)
    return [(source, i) for source, channels in pieces for i in range(channels)]


@arguments.check(block=block_check)
def channel_order(block: DenseBlock) -> Diagram:
    """What a layer of `block` meets if new channels stand behind old ones, or in front of them."""
    sources = sources_of(block)
    drawing = Drawing("Weights know channels by their place alone")
    x0 = 16.0
    y = drawing.top
    for reader in dict.fromkeys([min(2, len(sources) - 1), len(sources) - 1]):
        read = sources[:reader]
        channels = sum(c for _, c in read)
        unit = min(14.0, 290 / channels)
        expected = _order(read, new_first=False)
        drawing.text(x0, y + 12, f"Layer {reader} has weights for", bold=True)
        y += 20
        at = x0
        for source, width in read:
            drawing.rect(
                at + 1.2,
                y + 1.2,
                width * unit - 2.4,
                18,
                None,
                color_of(source),
                line=2.4,
                radius=3,
            )
            name = "the input" if source == 0 else f"layer {source}"
            if width * unit < 52:
                name = "in" if source == 0 else str(source)
            drawing.text(at + width * unit / 2, y + 14.5, name, anchor="middle")
            at += width * unit
        y += 26
        for new_first in (False, True):
            pieces = list(reversed(read)) if new_first else list(read)
            found = _order(read, new_first)
            right = sum(a == b for a, b in zip(expected, found))
            drawing.strip(x0, y, pieces, unit, 20)
            end = x0 + channels * unit
            drawing.verdict(end + 14, y + 10, right == channels)
            name = "new first" if new_first else "old first"
            how_many = f"all {channels}" if right == channels else f"{right} of {channels}"
            drawing.text(x0, y + 35, f"{name}: {how_many} meet their own weights")
            y += 46
        y += 12
    return drawing.finish(
        y - 6,
        "For an early and for the last layer of the block: the places for which it has weights, "
        "outlined in the colours of the sources, and below them two strips of channels. With old "
        "channels first every channel meets its own weights. With new ones first the strip is "
        "as long, and hardly any channel meets its own weights.",
    )


def _matching_transition(transition: Transition, sources: Any) -> None:
    _adding_up(sources, transition.conv.in_channels, "transition")


def _window(pool: Any) -> int:
    """One side of the window of a pooling."""
    size = pool.kernel_size
    return size if isinstance(size, int) else size[0]


def _after(module: Any, channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """The shape of what `module` gives out, computed without numbers."""
    with torch.no_grad():
        shape = module(torch.zeros(1, channels, *size)).shape
    return int(shape[1]), int(shape[2]), int(shape[3])


@arguments.check(
    _matching_transition,
    transition=transition_check,
    size=size_check,
    sources=arguments.optional(arguments.sequence_of(arguments.positive_int)),
)
def transition(
    transition: Transition, size: tuple[int, int] = (28, 28), sources: Any = None
) -> Diagram:
    """What a transition does, step by step, with shapes.

    `sources` are the channels that it reads, by where they come from; `size` is their height and
    width.
    """
    conv = transition.conv
    reads, makes = conv.in_channels, conv.out_channels
    _, height, width = _after(transition.pool, makes, size)
    read: Sources = list(enumerate(sources or [reads]))
    drawing = Drawing(f"A transition: {reads} channels become {makes}, and pixels a quarter")
    unit = min(6.0, 150 / reads)
    middle, aside = 112.0, 222.0
    y = drawing.top + 2

    def strip(y: float, parts: Sources, shape: str, said: str) -> None:
        length = sum(c for _, c in parts) * unit
        drawing.strip(middle - length / 2, y, parts, unit)
        drawing.text(aside, y + 9, shape, bold=True)
        drawing.text(aside, y + 25, said, color="ink-soft")

    strip(y, read, f"{reads} × {size[0]} × {size[1]}", "all of the block")
    y += 26
    drawing.trapezoid(middle - 94, y + 18, 188, 124, 196)
    drawing.arrow((middle, y), (middle, y + 28))
    y += 30
    drawing.part(middle - 66, y, 132, 24, "norm, ReLU")
    y += 24
    drawing.arrow((middle, y), (middle, y + 13))
    y += 15
    drawing.convolution(middle - 60, y, 120, 34, conv.kernel_size[0], "ink-soft", "1 × 1")
    drawing.text(aside, y + 13, f"{reads} × {makes}", color="ink-soft")
    drawing.text(aside, y + 29, f"= {thousands(conv.weight.numel())} weights", bold=True)
    y += 34
    drawing.arrow((middle, y), (middle, y + 13))
    y += 15
    strip(y, [(-1, makes)], f"{makes} × {size[0]} × {size[1]}", "mixtures of all")
    y += 24
    drawing.arrow((middle, y), (middle, y + 13))
    y += 15
    window = _window(transition.pool)
    drawing.rect(middle - 46, y, 92, 30, "paper", "ink-soft", radius=3)
    drawing.grid(middle - 37, y + 5, 20, window)
    drawing.text(middle + 13, y + 19.5, "mean", anchor="middle")
    drawing.text(aside, y + 19.5, f"{window * window} pixels to 1", color="ink-soft")
    y += 30
    drawing.arrow((middle, y), (middle, y + 34))
    y += 37
    strip(y, [(-1, makes)], f"{makes} × {height} × {width}", "to the next block")
    return drawing.finish(
        y + 42,
        f"From top to bottom: {reads} channels of {size[0]} × {size[1]} pixels go through norm and "
        f"ReLU, a 1 × 1 convolution to {makes} channels, each a mixture of all, and average "
        f"pooling to {height} × {width} pixels.",
    )


@arguments.check(
    _matching_transition,
    transition=transition_check,
    size=size_check,
    sources=arguments.optional(arguments.sequence_of(arguments.positive_int)),
)
def transition_orders(
    transition: Transition, size: tuple[int, int] = (28, 28), sources: Any = None
) -> Diagram:
    """The two orders of a transition's convolution and pooling, with what they cost.

    `sources` and `size` are those of :func:`transition`.
    """
    conv, pool = transition.conv, transition.pool
    reads, makes = conv.in_channels, conv.out_channels
    _, height, width = _after(pool, makes, size)
    read: Sources = list(enumerate(sources or [reads]))
    costs = [reads * makes * h * w for h, w in (size, (height, width))]
    share = costs[0] / costs[1]
    drawing = Drawing(f"Two orders, one result; pooling first costs {share:.0f} times less")
    unit, pixel = min(4.6, 120 / reads), min(2.0, 56 / size[0])
    high = (size[0] * pixel, height * pixel)
    y = drawing.top + 8
    columns = ((92, "convolve, then pool", False), (268, "pool, then convolve", True))
    for x, title, pool_first in columns:
        drawing.text(x, y + 4, title, bold=True, anchor="middle")
        between = (reads, height, width) if pool_first else (makes, *size)
        at = y + 16
        for i, (c, h, w) in enumerate([(reads, *size), between, (makes, height, width)]):
            tall = h * pixel
            mixed = i == 2 or (i == 1 and not pool_first)  # behind the convolution
            drawing.strip(x - c * unit / 2, at, [(-1, c)] if mixed else read, unit, tall)
            drawing.text(x, at + tall + 15, f"{c} × {h} × {w}", anchor="middle", bold=True)
            at += (high[0] if i < 2 else tall) + 20
            if i == 2:
                break
            start = at - (high[0] - tall)
            drawing.arrow((x, start), (x, at + 12))
            at += 14
            if (i == 0) == pool_first:
                drawing.rect(x - 46, at, 92, 28, "paper", "ink-soft", radius=3)
                drawing.grid(x - 38, at + 5, 18, _window(pool))
                drawing.text(x + 12, at + 18.5, "mean", anchor="middle")
            else:
                drawing.convolution(x - 46, at, 92, 28, 1, "ink-soft", "1 × 1")
                drawing.text(x, at + 45, thousands(costs[pool_first]), anchor="middle")
                drawing.text(x, at + 60, "multiply-adds", anchor="middle", color="ink-soft")
            start = at + (28 if (i == 0) == pool_first else 65)
            at += 80
            drawing.arrow((x, start), (x, at - 2))
        end = at
    drawing.text(180, end - 20 - high[1] / 2 + 7, "=", size=22, anchor="middle", bold=True)
    return drawing.finish(
        end + 8,
        f"Two columns that begin with {reads} × {size[0]} × {size[1]} and end with the same "
        f"{makes} × {height} × {width}. Left, the published order: the convolution works on the "
        f"large picture, {thousands(costs[0])} multiply-adds. Right, pooling first: it works on "
        f"the small one, {thousands(costs[1])}.",
    )
