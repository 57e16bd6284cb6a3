"""The small drawings of the first page: one for each chapter and for each page to play with, and
the block that a reader without scripts sees in place of the explorer.

They are made from the vocabulary of the diagrams (densenet_tutorial/figures/diagrams/svg.py). The
bars, the heat map and the blocks of DenseNet-121 show numbers; curves and dots are signs only.
"""

import itertools
import math

from densenet_tutorial import densenet, densenet121, insight
from densenet_tutorial.figures.diagrams.svg import Drawing, color_of, number


class Thumbnail(Drawing):
    """A drawing of 120 x 80 units, without heading and without paper."""

    def __init__(self, width=120, height=80):
        self.title, self.width, self.height, self.elements = "", width, height, []

    def svg(self, said=""):
        """The drawing; without `said` it is an ornament, which screen readers pass over."""
        role = f'role="img" aria-label="{said}"' if said else 'aria-hidden="true"'
        head = f'<svg class="diagram thumbnail" {role} viewBox="0 0 {self.width} {self.height}" '
        head += 'font-size="12" stroke-linejoin="round">'
        return "".join([head, *self.elements, "</svg>"])

    def arc(self, x0, x1, y, source, width=2.0):
        """A connection above a row of layers."""
        rise = 10 + 0.4 * (x1 - x0)
        d = f"M{number(x0)} {number(y)}C{number(x0)} {number(y - rise)} "
        d += f"{number(x1)} {number(y - rise)} {number(x1)} {number(y)}"
        self.path(d, None, color_of(source), width=width, round_ends=True)


def why_dense_connections(draw, numbers):
    """Every layer reads every earlier one."""
    at = [14, 37, 60, 83, 106]
    for i, x0 in enumerate(at):
        for x1 in at[i + 1 :]:
            draw.arc(x0, x1, 50, i)
    draw.source(at[0] - 8, 50, 16, 20, 0)
    for i, x in enumerate(at[1:], 1):
        draw.rect(x - 8, 50, 16, 20, "paper", color_of(i), radius=5, line=2.5)


def dense_layer(draw, numbers):
    """Through the narrow waist of the 1 x 1 convolution and the 3 x 3 convolution."""
    draw.strip(6, 8, [(0, 4), (1, 2), (2, 2)], 8, 16, vertical=True)
    draw.arrow((25, 40), (37, 40))
    draw.path("M38 18H66Q54 40 66 62H38Q50 40 38 18Z", "paper", color_of(3), width=2.2)
    draw.arrow((62, 40), (73, 40))
    draw.rect(74, 28, 24, 24, "paper", color_of(3), radius=3, line=2.2)
    draw.grid(78, 32, 16, 3)
    draw.arrow((100, 40), (107, 40))
    draw.strip(108, 32, [(3, 2)], 8, 10, vertical=True)


def dense_block(draw, numbers):
    """The strip grows by k channels a layer."""
    sources = [(0, 8), (1, 4), (2, 4), (3, 4), (4, 4)]
    for i in range(1, 6):
        draw.strip(8, 6 + (i - 1) * 14.5, sources[:i], 4.3, 10)


def transition(draw, numbers):
    """Half of the channels go on."""
    draw.strip(8, 8, [(0, 8), (1, 4), (2, 4), (3, 4), (4, 4)], 4.3, 13)
    draw.trapezoid(8, 26, 103, 52, 24)
    draw.strip(34, 55, [(-1, 12)], 4.3, 13)


def whole_network(draw, numbers):
    """The blocks of DenseNet-121: as long as they have layers, as high as they have channels."""
    model = densenet121(weights=None)
    blocks = [m for name, m in model.features.named_children() if "block" in name]
    layers = sum(len(block) for block in blocks)
    x, unit, high = 8.0, (104 - 3 * 7) / layers, 64 / model.num_features
    for block in blocks:
        inside = [layer.conv1.in_channels for layer in block.values()]
        growth = next(iter(block.values())).conv2.out_channels
        length = len(inside) * unit
        total = inside[-1] + growth
        top = 40 - total * high / 2
        draw.rect(x, top, length, inside[0] * high, color_of(0))
        for i, channels in enumerate(inside):
            y, left = top + channels * high, (i + 0.15) * unit
            draw.rect(x + left, y, length - left, growth * high, color_of(1 + i % 7))
        x += length + 7


def training(draw, numbers):
    """A loss that falls, and the checkpoints that are kept on the way."""
    draw.line((12, 6), (12, 70), (114, 70))
    curve = [(16, 12), (24, 30), (34, 41), (46, 47), (60, 52), (76, 57), (92, 61), (110, 63)]
    draw.line(*curve, color="source-0", width=2.6)
    for x, y in (curve[2], curve[4], curve[7]):
        draw.rect(x - 4.5, y - 4.5, 9, 9, "source-1", "paper", radius=1.5)


def memory(draw, numbers):
    """What DenseNet-121 keeps in each of the four modes."""
    kept = numbers["kept"]
    for i, value in enumerate(kept):
        y = 9 + 16.5 * i
        draw.rect(8, y, 104, 11, None, "line", dashed=True, line=1, radius=2)
        draw.rect(8, y, 104 * value / kept[0], 11, color_of(0), radius=2)


def pretrained(draw, numbers):
    """The weights of others go in; the classifier is one's own."""
    for i in range(4):
        y = 7 + 17.5 * i
        draw.rect(8, y, 38, 12, "wash", "line", radius=3)
        if i < 3:
            draw.arrow((50, y + 6), (70, y + 6))
            draw.source(74, y, 38, 12, 0)
        else:
            draw.verdict(60, y + 6, False)
            draw.source(74, y, 38, 12, 1)


def looking_inside(draw, numbers):
    """How strongly each layer of the network that ships reads each source, in its last block."""
    model = densenet("densenet_bc", weights="fashion-mnist-small")
    reuse = insight.feature_reuse(model, "denseblock3").tolist()
    largest = max(value for row in reuse for value in row if not math.isnan(value))
    size = 72 / len(reuse)
    for i, row in enumerate(reuse):
        for j, value in enumerate(row):
            if not math.isnan(value):  # else there is no connection
                box = (24 + j * size, 4 + i * size, size - 1, size - 1)
                draw.rect(*box, "source-0", opacity=0.1 + 0.9 * (value / largest) ** 0.5)


def claims_measured(draw, numbers):
    """Claims, each with the spread of its measurement and a verdict."""
    for y, at, spread, good in ((16, 74, 12, True), (40, 52, 20, False), (64, 86, 8, True)):
        draw.verdict(16, y, good)
        draw.line((32, y), (112, y))
        draw.line((at - spread, y), (at + spread, y), color="source-0", width=4)
        draw.circle(at, y, 5.5, "source-0", "paper")


def speed(draw, numbers):
    """A roofline: what is held back by memory, and what by arithmetic."""
    draw.line((12, 6), (12, 70), (114, 70))
    draw.line((16, 66), (62, 20), (112, 20), color="ink-soft", width=2.2)
    for x, y, source in ((28, 57, 5), (40, 47, 5), (58, 31, 1), (80, 26, 2), (98, 24, 2)):
        draw.circle(x, y, 4.5, color_of(source), "paper")


def scaling_out(draw, numbers):
    """Two processes, each with half of the batch, add up their gradients."""
    for x in (8, 74):
        draw.rect(x, 6, 38, 32, "wash", "line", radius=5)
        draw.strip(x + 6, 16, [(0, 2), (1, 1), (2, 1)], 6.5, 12)
    draw.arrow((27, 40), (27, 60), (49, 60), dashed=True)
    draw.arrow((93, 40), (93, 60), (71, 60), dashed=True)
    draw.plus(60, 60, 9)


def explorer(draw, numbers):
    """A block that gets wider, and the slider that sets by how much."""
    sources = [(0, 6), (1, 4), (2, 4), (3, 4)]
    for i in range(1, 5):
        draw.strip(14 + 25 * (i - 1), 6, sources[:i], 2.9, 19, vertical=True)
    draw.line((10, 69), (110, 69), width=3)
    draw.circle(66, 69, 6.5, "source-0", "paper")


def live(draw, numbers):
    """Feature maps, and a connection that has been cut."""
    draw.rect(8, 26, 28, 28, "wash", "line", radius=2)
    draw.path("M14 34h7v8h10v6H14Z", "ink-soft")
    for i, y in enumerate((6, 30, 54)):
        draw.line((38, 40), (82, y + 10), color=color_of(i), width=2.4)
        draw.source(84, y, 22, 20, i)
    draw.circle(66, 50, 8, "paper")
    draw.verdict(66, 50, False)


THUMBNAILS = {
    "why_dense_connections": why_dense_connections,
    "dense_layer": dense_layer,
    "dense_block": dense_block,
    "transition": transition,
    "densenet": whole_network,
    "training": training,
    "memory": memory,
    "pretrained": pretrained,
    "looking_inside": looking_inside,
    "claims_measured": claims_measured,
    "speed": speed,
    "scaling_out": scaling_out,
    "explorer": explorer,
    "live": live,
}


def thumbnail(name, numbers):
    """The drawing of a page, by its name without a number."""
    if name not in THUMBNAILS:
        raise ValueError(f"the first page has no drawing for {name}: add one to {__file__}")
    drawing = Thumbnail()
    THUMBNAILS[name](drawing, numbers)
    return drawing.svg()


def block():
    """The book's small block: what its third layer reads and adds. In place of the explorer."""
    sources = [(0, 8), (1, 4), (2, 4), (3, 4), (4, 4)]
    draw = Thumbnail(480, 330)
    unit, top, wide = 8.0, 88, 28
    at = [20 + 103 * i for i in range(5)]
    for i, x in enumerate(at):
        parts, middle = sources[: i + 1], x + wide / 2
        draw.strip(x, top, parts, unit, wide, vertical=True, faded=i != 2)
        total = sum(channels for _, channels in parts)
        draw.text(
            middle, top + total * unit + 23, str(total), anchor="middle", size=17, bold=i == 2
        )
    draw.rect(at[2] - 3, top - 3, wide + 6, 16 * unit + 6, None, "ink", radius=3, line=2)
    draw.text(at[0] + wide / 2, top - 9, "input", anchor="middle", size=17)
    for i, (x, after) in enumerate(itertools.pairwise(at)):
        middle, lit = (x + wide + after) / 2, i == 2
        begin = (x + wide / 2, top - (28 if i == 0 else 6))
        draw.arrow(begin, (begin[0], 30), (middle - 21, 30), color="ink" if lit else "ink-soft")
        draw.rect(middle - 19, 14, 38, 32, "paper", color_of(i + 1), radius=11, line=2.5)
        draw.text(middle, 36, str(i + 1), anchor="middle", size=17, bold=True)
        y = top + (8 + 4 * i + 2) * unit
        width = 2.6 if lit else 1.6
        draw.arrow((middle, 47), (middle, y), (after - 2, y), color=color_of(i + 1), width=width)
    said = (
        "A dense block: 8 channels come in, and each of four layers adds 4. Layer 3 reads 16 "
        "channels, 8 of the input, 4 of layer 1 and 4 of layer 2."
    )
    words = '<p class="small-words">Layer 3 reads 16 = 8 + 4 + 4 channels, adds 4.</p>'
    return draw.svg(said) + words
