"""Diagrams of chapter 5: a whole network to scale, and receptive fields on a picture."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import insight
from densenet_tutorial.figures.diagrams.building import sources_of
from densenet_tutorial.figures.diagrams.svg import Diagram, Drawing, thousands
from densenet_tutorial.insight import ReceptiveField
from densenet_tutorial.layers import DenseBlock
from densenet_tutorial.network import DenseNet
from densenet_tutorial.utils import arguments


def _as_densenet(value: Any) -> Any:
    names = ("parts", "intermediate_features", "classifier", "features", "in_channels", "min_size")
    if not isinstance(value, nn.Module) or not all(hasattr(value, name) for name in names):
        raise TypeError
    if not hasattr(value.classifier, "out_features"):
        raise TypeError
    return value


densenet_check = arguments.Check("a DenseNet with a classifier", _as_densenet)


def _described(module: nn.Module) -> str:
    """`7 × 7 convolution, stride 2` of a module of the stem; empty for a norm or a ReLU."""
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
        return ""
    sizes: list[Any] = [module.kernel_size, module.stride]
    kernel, stride = (s if isinstance(s, int) else s[0] for s in sizes)
    kind = "convolution" if isinstance(module, nn.Conv2d) else "max pooling"
    return f"{kernel} × {kernel} {kind}" + (f", stride {stride}" if stride > 1 else "")


@arguments.check(
    lambda model, image_size: arguments.integer(model.min_size)("image_size", image_size),
    model=densenet_check,
)
def network(model: DenseNet, image_size: int) -> Diagram:
    """A whole network to scale: channels of every layer, and the size of the picture.

    `image_size` is the height and width of the picture that goes in.
    """
    costs = {cost.name: cost for cost in insight.part_costs(model, image_size)}
    parts = model.parts()
    blocks: dict[str, Any] = {
        name: modules[0] for name, modules in parts.items() if isinstance(modules[0], DenseBlock)
    }
    depth = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    widest = max(cost.shape[0] for name, cost in costs.items() if name != "classifier")
    layers = sum(len(block) for block in blocks.values())
    unit = min(7.0, 214 / widest)
    row = min(11.0, max(3.6, 232 / layers))
    pixel = 52 / image_size
    x0, edge = 88.0, 344.0
    drawing = Drawing(f"Wider in blocks, smaller between them: {depth} layers, to scale")
    y = drawing.top

    def square(y: float, size: int) -> None:
        side = size * pixel
        drawing.rect(42 - side / 2, y, side, side, "wash", "ink-soft", line=1.2)
        drawing.text(42, y + side + 15, f"{size} × {size}", anchor="middle")

    square(y, image_size)
    drawing.text(x0, y + 10, "stem", bold=True)
    made = drawing.lines(x0, y + 27, filter(None, map(_described, parts["stem"])))
    channels, height, _ = costs["stem"].shape
    drawing.text(x0, made, f"{model.in_channels} → {channels} channels")
    y = max(y + 52 + 30, made + 16)

    for i, (name, block) in enumerate(blocks.items(), start=1):
        sources = sources_of(block)
        channels, height, _ = costs[name].shape
        square(y, height)
        bottom = y + (len(sources)) * row
        at = x0
        for source, width in sources:
            top = y + source * row
            drawing.source(at, top, width * unit, bottom - top, source)
            if width * unit > 3:
                drawing.path(f"M{at:.2f} {top:.2f}V{bottom:.2f}", None, "paper", width=0.8)
            at += width * unit
        drawing.text(edge, y + 11, f"block {i}", bold=True, anchor="end")
        k = sources[1][1]
        said = f"{sources[0][1]} + {len(block)} × {k}"
        drawing.text(edge, y + 27, said, anchor="end")
        drawing.text(edge, y + 43, f"= {channels}", anchor="end")
        y = bottom
        following = costs.get(f"transition{i}")
        if following is None:
            continue
        y += 3
        low = x0 + following.shape[0] * unit
        below = max(58.0, height * pixel + 27)  # the texts and the square need so much
        high = max(17.0, below - (y - bottom) - len(sources) * row)
        d = f"M{x0} {y:.2f}H{x0 + channels * unit:.2f}L{low:.2f} {y + high:.2f}H{x0}Z"
        drawing.path(d, "wash", "line")
        y += high + 3

    # The end: one number a channel, then one a class.
    channels = costs["final"].shape[0]
    middle = x0 + channels * unit / 2
    drawing.arrow((middle, y + 3), (middle, y + 18))
    y += 20
    drawing.rect(x0, y, channels * unit, 6, "line")
    drawing.text(42, y + 8, "mean", anchor="middle")
    drawing.arrow((middle, y + 9), (middle, y + 24))
    y += 42
    classes = costs["classifier"].shape[0]
    total = sum(cost.parameters for cost in costs.values())
    drawing.text(x0, y, f"classifier: {channels} → {classes}", bold=True)
    drawing.text(x0, y + 17, f"{thousands(total)} parameters in all", color="ink-soft")
    steps = "; ".join(
        f"block {i} with {len(block)} layers at {costs[name].shape[1]} × {costs[name].shape[2]} "
        f"pixels, from {sources_of(block)[0][1]} to {costs[name].shape[0]} channels"
        for i, (name, block) in enumerate(blocks.items(), start=1)
    )
    return drawing.finish(
        y + 32,
        "From top to bottom, on the left the size of the picture as a square, on the right the "
        f"channels as a staircase, in which each layer begins a new column: {steps}. Between "
        f"blocks a transition makes it narrower. At the end are {classes} classes.",
    )


_fields = arguments.sequence_of(arguments.instance_of(ReceptiveField, "a ReceptiveField"))


@arguments.check(fields=_fields, picture=arguments.tensor("uint8", "C, H, W"))
def receptive_squares(fields: Sequence[ReceptiveField], picture: Tensor) -> Diagram:
    """Receptive fields as squares on `picture`, uint8 (C, H, W).

    Those of the parts of a network up to the first that sees more than the picture.
    """
    side = picture.shape[-1]
    shown = []
    for field in fields:
        if not field.name.startswith("transition"):
            shown.append(field)
        if field.longest > side:
            break
    beyond = [field for field in fields if field.longest > shown[-1].longest]
    drawing = Drawing("What one number sees of the picture")
    pixel = 216 / max(side, shown[-1].longest)
    middle = (124.0, drawing.top + 110.0)
    # Integers alone: every processor makes the same picture.
    grey = picture.long().sum(0) // picture.shape[0]
    factor = max(1, side // 112)
    small = F.avg_pool2d(grey[None, None].float(), factor)[0, 0].round().byte()
    length, tall = side * pixel, picture.shape[-2] * pixel
    drawing.image(middle[0] - length / 2, middle[1] - tall / 2, length, tall, small, sharp=False)
    y = drawing.top + 12
    for i, field in enumerate(shown):
        color = ("#ffffff", "#f0b63c", "#4aa8e0", "#2fc79a", "#e3a0c6", "#9ad5f7")[i % 6]
        for size, dashed in ((field.longest, False), (field.shortest, True)):
            if dashed and size == field.longest:
                continue
            half = size * pixel / 2
            box = (middle[0] - half, middle[1] - half, 2 * half, 2 * half)
            drawing.rect(*box, None, "#1f2328", line=3.6)
            drawing.rect(*box, None, color, line=2, dashed=dashed)
        name = field.name.replace("denseblock", "block ")
        drawing.rect(246, y - 10, 12, 12, color, "#1f2328", line=1.5)
        drawing.text(264, y, name, bold=True)
        span = f"{field.shortest} to {field.longest}"
        span = span if field.shortest < field.longest else str(field.longest)
        drawing.text(264, y + 16, f"{span} px")
        y += 44
    end = drawing.top + 222
    drawing.text(16, end + 14, "dashed: the channel that sees least; solid: most")
    if beyond:
        most = max(field.longest for field in beyond)
        drawing.text(
            16, end + 31, f"and further on, up to {thousands(most)} pixels", color="ink-soft"
        )
    return drawing.finish(
        end + (46 if beyond else 30),
        f"A picture of {side} pixels with squares around its middle: "
        + "; ".join(f"{f.name}, {f.shortest} to {f.longest} pixels" for f in shown)
        + ".",
    )
