"""The vocabulary of the book's diagrams: strips of channels, parts of a network, arrows and text.

`LANGUAGE.md` says how each thing is drawn. Lengths are units of the drawing, which is 360 wide, so
that its text, 12 units high or more, is at least 11 pixels high on a screen of 390 pixels.

Every colour is written twice: its light value, so that the file can be shown by itself, in slides
for example, and a class, by which `book/_static/diagrams.css` gives it the colour of the page.
"""

import base64
import html
import re
import struct
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from densenet_tutorial.figures.style import COLORS, HATCHES

WIDTH = 360
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
PALETTE = {f"source-{i}": color.lower() for i, color in enumerate(COLORS)} | {
    "ink": "#1f2328",
    "ink-soft": "#57606a",
    "paper": "#ffffff",
    "line": "#8a8a8a",
    "wash": "#f0f2f5",
}

Point = tuple[float, float]

#: Sources of features and how many channels are of each, in the order of their concatenation.
Sources = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Diagram:
    """A drawing, which Jupyter, Colab and GitHub show.

    Attributes:
        title: what it is, in a few words.
        description: what there is to see, in sentences.
        svg: the content of an SVG file.
    """

    title: str
    description: str
    svg: str

    def __repr__(self) -> str:
        return f"<Diagram {self.title!r}>"

    def _repr_svg_(self) -> str:
        return self.svg


def color_of(source: int) -> str:
    """The colour of a source of features: 0 is the block's input, 1 its first layer."""
    return f"source-{source % len(COLORS)}"


def number(value: float) -> str:
    """`value` with at most two decimals, so that every processor writes the same."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def thousands(value: int) -> str:
    """A whole number with commas, as in the text of the book."""
    return f"{value:,}"


class Drawing:
    """Collects the elements of a diagram, from top to bottom."""

    def __init__(self, title: str, height: float = 0, width: float = WIDTH) -> None:
        self.title, self.width, self.height = title, width, height
        self.elements: list[str] = []
        #: Where the first thing below the heading may begin.
        self.top = 14.0
        rows = -(-len(title) // 41)
        for line in textwrap.wrap(title, 41 if rows == 1 else len(title) // rows + 5):
            self.text(16, self.top + 12, line, size=14, bold=True)
            self.top += 19
        self.top += 10

    def finish(self, height: float, description: str) -> Diagram:
        """The drawing as it is, `height` units high."""
        size = f"{number(self.width)} {number(height)}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="diagram" role="img" '
            f'viewBox="0 0 {size}" width="{number(self.width * 1.25)}" '
            f'height="{number(height * 1.25)}" '
            f'font-family="{FONT}" font-size="12" stroke-linejoin="round">'
        )
        said = f"<title>{html.escape(self.title)}</title><desc>{html.escape(description)}</desc>"
        paper = f'<rect width="{number(self.width)}" height="{number(height)}" rx="8" '
        paper += f"{_paint('paper', None)}/>"
        svg = "\n".join([head, said, paper, *self.elements, "</svg>"])
        return Diagram(self.title, description, svg)

    # ------------------------------------------------------------------------------ simple shapes

    def path(
        self,
        d: str,
        fill: str | None = None,
        stroke: str | None = None,
        *,
        width: float = 1.5,
        dashed: bool = False,
        opacity: float = 1,
        round_ends: bool = False,
    ) -> None:
        """A path, from the letters and numbers of SVG."""
        more = f' stroke-width="{number(width)}"' if stroke else ""
        more += ' stroke-dasharray="4 3"' if dashed else ""
        more += f' opacity="{number(opacity)}"' if opacity < 1 else ""
        more += ' stroke-linecap="round"' if round_ends else ""
        self.elements.append(f'<path d="{d}" {_paint(fill, stroke)}{more}/>')

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str | None = None,
        stroke: str | None = None,
        *,
        radius: float = 0,
        line: float = 1.5,
        dashed: bool = False,
        opacity: float = 1,
    ) -> None:
        """A rectangle; `dashed` is the outline of what is dropped."""
        more = f' rx="{number(radius)}"' if radius else ""
        more += f' stroke-width="{number(line)}"' if stroke else ""
        more += ' stroke-dasharray="4 3"' if dashed else ""
        more += f' opacity="{number(opacity)}"' if opacity < 1 else ""
        box = " ".join(
            f'{name}="{number(value)}"'
            for name, value in zip(("x", "y", "width", "height"), (x, y, width, height))
        )
        self.elements.append(f"<rect {box} {_paint(fill, stroke)}{more}/>")

    def line(self, *points: Point, color: str = "line", width: float = 1.5) -> None:
        """A line through `points`, with round corners."""
        self.path(_rounded(points), None, color, width=width)

    def arrow(
        self, *points: Point, color: str = "ink-soft", width: float = 1.6, dashed: bool = False
    ) -> None:
        """An arrow through `points`; `dashed` is that of a gradient."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        size = 4 + 1.5 * width
        base = (x1 - size * ux, y1 - size * uy)
        self.path(_rounded([*points[:-1], base]), None, color, width=width, dashed=dashed)
        left = (base[0] - size * 0.5 * uy, base[1] + size * 0.5 * ux)
        right = (base[0] + size * 0.5 * uy, base[1] - size * 0.5 * ux)
        self.path(f"M{_xy(left)}L{_xy((x1, y1))}L{_xy(right)}Z", color)

    def circle(
        self, x: float, y: float, r: float, fill: str | None = None, stroke: str | None = None
    ) -> None:
        """A circle."""
        where = f'cx="{number(x)}" cy="{number(y)}" r="{number(r)}"'
        more = ' stroke-width="1"' if stroke == "paper" else ' stroke-width="1.5"' if stroke else ""
        self.elements.append(f"<circle {where} {_paint(fill, stroke)}{more}/>")

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 12,
        anchor: str = "start",
        bold: bool = False,
        italic: bool = False,
        mono: bool = False,
        color: str = "ink",
    ) -> None:
        """A line of text, its base line at `y`; ``x_{i}`` has a subscript, ``**x**`` is marked."""
        more = f' font-size="{number(size)}"' if size != 12 else ""
        more += f' text-anchor="{anchor}"' if anchor != "start" else ""
        more += ' font-weight="600"' if bold else ""
        more += ' font-style="italic"' if italic else ""
        more += ' font-family="ui-monospace, Menlo, Consolas, monospace"' if mono else ""
        shown = ""
        for piece in re.split(r"(_\{.*?\}|\*\*.*?\*\*)", content):
            if piece.startswith("_{"):
                low = html.escape(piece[2:-1], quote=False)
                shown += f'<tspan dy="4" font-size="12">{low}</tspan><tspan dy="-4">&#8203;</tspan>'
            elif piece.startswith("**"):
                strong = html.escape(piece[2:-2], quote=False)
                shown += f'<tspan font-weight="700" {_paint("source-5", None)}>{strong}</tspan>'
            else:
                shown += html.escape(piece, quote=False)
        where = f'x="{number(x)}" y="{number(y)}"'
        self.elements.append(f"<text {where} {_paint(color, None)}{more}>{shown}</text>")

    def lines(self, x: float, y: float, contents: Iterable[str], **style: Any) -> float:
        """Lines of text below each other; returns where the next one would stand."""
        for content in contents:
            self.text(x, y, content, **style)
            y += 16
        return y

    # ------------------------------------------------------------ the things that the book is about

    def strip(
        self,
        x: float,
        y: float,
        sources: Sources,
        unit: float,
        thickness: float = 22,
        *,
        vertical: bool = False,
        faded: bool = False,
    ) -> float:
        """Features: a strip of channels, `unit` wide each, divided by source.

        Returns its length.
        """
        begin = x if not vertical else y
        at = begin
        for source, channels in sources:
            length = channels * unit
            box = (x, at, thickness, length) if vertical else (at, y, length, thickness)
            self.source(*box, source, faded=faded)
            if unit >= 4:
                cuts = [at + i * unit for i in range(1, channels)]
                d = "".join(
                    f"M{number(x)} {number(c)}h{number(thickness)}"
                    if vertical
                    else f"M{number(c)} {number(y)}v{number(thickness)}"
                    for c in cuts
                )
                if d:
                    self.path(d, None, "paper", width=1)
            if at > begin:
                edge = (x, at) if vertical else (at, y)
                d = f"M{_xy(edge)}" + ("h" if vertical else "v") + number(thickness)
                self.path(d, None, "paper", width=2.5)
            at += length
        return at - begin

    def source(
        self, x: float, y: float, w: float, h: float, source: int, *, faded: bool = False
    ) -> None:
        """A rectangle in the colour and the hatch of `source`; grey is a mixture, -1."""
        name = "line" if source < 0 else color_of(source)
        self.rect(x, y, w, h, name, opacity=0.35 if faded else 1)
        kind = "" if source < 0 else HATCHES[source % len(HATCHES)]
        if kind and min(w, h) >= 3:
            width = 2 if kind == ".." else 1.1
            color = "paper" if name != "source-6" else "#1f2328"
            d = _hatch(kind, x, y, w, h)
            self.path(d, None, color, width=width, opacity=0.7, round_ends=kind == "..")

    def part(self, x: float, y: float, w: float, h: float, label: str) -> None:
        """A thin box for something that changes no shape, such as norm and ReLU."""
        self.rect(x, y, w, h, "wash", "line", radius=4)
        self.text(x + w / 2, y + h / 2 + 4.5, label, anchor="middle")

    def convolution(
        self, x: float, y: float, w: float, h: float, kernel: int, color: str, label: str = ""
    ) -> None:
        """A convolution: 1 x 1 with a narrow waist, others with a grid of their window."""
        label = label or f"{kernel} × {kernel} convolution"
        if kernel == 1:
            inset = min(24.0, w / 5)
            d = (
                f"M{_xy((x, y))}H{number(x + w)}"
                f"Q{_xy((x + w - inset, y + h / 2))} {_xy((x + w, y + h))}"
                f"H{number(x)}Q{_xy((x + inset, y + h / 2))} {_xy((x, y))}Z"
            )
            self.path(d, "paper", color, width=2.2)
            self.text(x + w / 2, y + h / 2 + 4.5, label, anchor="middle")
            return
        self.rect(x, y, w, h, "paper", color, radius=3, line=2.2)
        size = min(h - 8, 24)
        self.grid(x + 6, y + (h - size) / 2, size, kernel)
        self.text(x + size + (w - size) / 2 + 2, y + h / 2 + 4.5, label, anchor="middle")

    def grid(self, x: float, y: float, size: float, cells: int, color: str = "ink-soft") -> None:
        """A square of `cells` x `cells`."""
        step = size / cells
        d = f"M{_xy((x, y))}h{number(size)}v{number(size)}h{number(-size)}z"
        for i in range(1, cells):
            d += f"M{_xy((x + i * step, y))}v{number(size)}"
            d += f"M{_xy((x, y + i * step))}h{number(size)}"
        self.path(d, None, color, width=1)

    def layer(self, x: float, y: float, w: float, h: float, source: int, label: str) -> None:
        """A dense layer: round corners, and the outline of its own source."""
        self.rect(x, y, w, h, "paper", color_of(source), radius=min(h / 2, 11), line=2.5)
        self.text(x + w / 2, y + h / 2 + 4.5, label, anchor="middle", bold=True)

    def trapezoid(self, x: float, y: float, w: float, bottom: float, h: float) -> None:
        """A transition: it gets narrower downwards, around the same middle."""
        cut = (w - bottom) / 2
        d = f"M{_xy((x, y))}h{number(w)}L{_xy((x + w - cut, y + h))}h{number(-bottom)}Z"
        self.path(d, "wash", "line")

    def plus(self, x: float, y: float, r: float = 8) -> None:
        """An addition."""
        self.circle(x, y, r, "paper", "ink")
        arm = r - 3
        d = f"M{_xy((x - arm, y))}h{number(2 * arm)}M{_xy((x, y - arm))}v{number(2 * arm)}"
        self.path(d, None, "ink", width=1.6)

    def verdict(self, x: float, y: float, good: bool) -> None:
        """A tick or a cross, 10 units high, with its middle at (x, y)."""
        if good:
            d = f"M{_xy((x - 5, y))}l4 4.5l7 -9"
            self.path(d, None, "source-2", width=2.4, round_ends=True)
        else:
            d = f"M{_xy((x - 4.5, y - 4.5))}l9 9m0 -9l-9 9"
            self.path(d, None, "source-5", width=2.4, round_ends=True)

    def image(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        pixels: Tensor,
        *,
        sharp: bool = True,
        palette: Tensor | None = None,
    ) -> None:
        """A picture, uint8 as for :func:`png`, of which one may see the pixels."""
        content = base64.b64encode(png(pixels, palette)).decode()
        where = f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}"'
        self.elements.append(
            f'<image {where} preserveAspectRatio="none" '
            + ('style="image-rendering:pixelated" ' if sharp else "")
            + f'href="data:image/png;base64,{content}"/>'
        )


def _paint(fill: str | None, stroke: str | None) -> str:
    """The attributes for two colours by name, or by number for one that is always the same."""
    attributes = f'fill="{PALETTE.get(fill or "", fill or "none")}"'
    names = [f"fill-{fill}"] if fill in PALETTE else []
    if stroke:
        attributes += f' stroke="{PALETTE.get(stroke, stroke)}"'
        names += [f"line-{stroke}"] if stroke in PALETTE else []
    return attributes + (f' class="{" ".join(names)}"' if names else "")


def _xy(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"


def _rounded(points: Sequence[Point], radius: float = 6) -> str:
    """The path through `points`, with its corners rounded."""
    d = f"M{_xy(points[0])}"
    for before, corner, after in zip(points, points[1:], points[2:]):
        cut = []
        for x, y in (before, after):
            length = ((x - corner[0]) ** 2 + (y - corner[1]) ** 2) ** 0.5
            share = min(radius, length / 2) / length if length else 0
            cut.append((corner[0] + share * (x - corner[0]), corner[1] + share * (y - corner[1])))
        d += f"L{_xy(cut[0])}Q{_xy(corner)} {_xy(cut[1])}"
    return d + f"L{_xy(points[-1])}"


def _hatch(kind: str, x: float, y: float, w: float, h: float, step: float = 6) -> str:
    """The lines or dots of a hatch, cut at the edges of the rectangle."""
    d = ""
    if kind in ("//", "xx", "\\\\"):
        t = step / 2
        while t < w + h:
            a, b = (max(0.0, t - h), min(h, t)), (min(w, t), max(0.0, t - w))
            if kind != "\\\\":
                d += f"M{_xy((x + a[0], y + a[1]))}L{_xy((x + b[0], y + b[1]))}"
            if kind != "//":
                d += f"M{_xy((x + w - a[0], y + a[1]))}L{_xy((x + w - b[0], y + b[1]))}"
            t += step
        return d
    across = [x + w * (i + 0.5) / max(1, round(w / step)) for i in range(max(1, round(w / step)))]
    down = [y + h * (i + 0.5) / max(1, round(h / step)) for i in range(max(1, round(h / step)))]
    if kind == "..":
        return "".join(f"M{_xy((a, b))}h0" for a in across for b in down)
    if kind == "oo":
        ring = "a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0 -3 0"
        return "".join(f"M{_xy((a - 1.5, b))}{ring}" for a in across for b in down)
    if kind == "++":
        d = "".join(f"M{_xy((a, y))}v{number(h)}" for a in across)
    return d + "".join(f"M{_xy((x, b))}h{number(w)}" for b in down)


def png(pixels: Tensor, palette: Tensor | None = None) -> bytes:
    """A PNG file of a uint8 picture, (H, W) or (3, H, W).

    With a `palette`, uint8 (colours, 3), the numbers in (H, W) are those of its rows. Nothing in it
    is compressed, since another version of zlib would write other bytes.
    """
    colors = pixels.dim() == 3
    rows = pixels.movedim(0, -1) if colors else pixels
    height, width = rows.shape[:2]
    raw = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in rows)
    stored = b"\x78\x01"
    for start in range(0, len(raw), 65535):
        piece = raw[start : start + 65535]
        last = start + 65535 >= len(raw)
        stored += struct.pack("<BHH", last, len(piece), len(piece) ^ 0xFFFF) + piece
    stored += struct.pack(">I", zlib.adler32(raw))

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    kind = 2 if colors else 0 if palette is None else 3
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    colours = b"" if palette is None else chunk(b"PLTE", bytes(palette.flatten().tolist()))
    ends = chunk(b"IHDR", header) + colours, chunk(b"IDAT", stored), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)
