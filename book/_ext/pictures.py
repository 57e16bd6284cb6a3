"""Figures weigh a third when the site is built: WebP without loss, each fetched when it comes near.

A page knows how large each is before it is there, so that no text jumps. A page may show the figure
of a chapter's cell again: ``{figure-of} CHAPTER CELL``.
"""

import base64
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).parent))
import cells

FIGURE = re.compile(r'<img [^>]*?src="(?P<address>[^"]*_images/[^"/]+\.png)"[^>]*>')

LARGE = 30_000  # bytes


def to_webp(png):
    """Write the picture beside `png`, pixel for pixel; return its width and height."""
    webp = png.with_suffix(".webp")
    with Image.open(png) as image:
        size = image.size
        if not webp.exists():  # a picture's name is made from its content
            opaque = image.mode != "RGBA" or image.getextrema()[3] == (255, 255)
            image = image.convert("RGB" if opaque else "RGBA")
            image.save(webp, lossless=True, quality=75, method=3)
            if webp.stat().st_size > LARGE:  # more effort, at a second each
                image.save(webp, lossless=True, quality=100, method=6)
    return size


def lighten(page):
    """Replace the figures of a page by WebP files; return the PNG files that it has no use for."""
    replaced = set()

    def replace(match):
        tag, address = match[0], match["address"]
        png = page.parent / address
        width, height = to_webp(png)
        attributes = ' decoding="async"'
        if replaced:  # the first one may be on the first screen
            attributes += ' loading="lazy"'
        if not re.search(r"\bheight\b *[=:]", tag):
            # A width that the page asks for stays, and the height follows.
            tag = re.sub(r'style="(width:[^";]*);?"', r'style="\1; height: auto"', tag)
            attributes += f' width="{width}" height="{height}"'
        replaced.add(png)
        tag = tag.replace(address, address.removesuffix("png") + "webp")
        return re.sub(r" */?>$", f"{attributes} />", tag)

    text = page.read_text(encoding="utf-8")
    new = FIGURE.sub(replace, text)
    if new != text:
        page.write_text(new, encoding="utf-8")
    return {png for png in replaced if png.name not in new}


def lighten_pages(app, exception):
    if exception or app.builder.format != "html":
        return
    unused = set()
    pages = sorted(Path(app.outdir).rglob("*.html"))
    for page in pages:
        unused |= {png.resolve() for png in lighten(page)}
    named = "".join(page.read_text(encoding="utf-8") for page in pages)
    for png in unused:
        if png.name not in named:
            png.unlink()


class FigureOf(SphinxDirective):
    """The figure that a cell of a chapter drew, as it is stored there, with its description."""

    required_arguments = 2  # the name of the chapter and the cell's id

    def run(self):
        name, wanted = self.arguments
        chapter = Path(self.env.srcdir, "book", f"{name}.ipynb")
        self.env.note_dependency(chapter)
        for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                if cell["id"] == wanted and "image/png" in output.get("data", {}):
                    return [self.image(base64.b64decode(output["data"]["image/png"]), cell)]
        raise self.error(f"no figure in the cell {wanted} of {chapter.name}")

    def image(self, png, cell):
        # Where the chapter's own page has it, under the same name: a reader gets it once.
        folder = Path(self.env.app.outdir).parent / "jupyter_execute"
        path = folder / f"{hashlib.sha256(png).hexdigest()}.png"
        folder.mkdir(exist_ok=True)
        path.write_bytes(png)
        place = Path(self.env.doc2path(self.env.docname)).parent
        alt = cell["metadata"]["mystnb"]["image"]["alt"]
        classes = ["again", *["plot"] * cells.is_plot("".join(cell["source"]))]
        image = nodes.image(uri=os.path.relpath(path, place), alt=alt, classes=classes)
        return nodes.container("", image)  # which scrolls, where the figure is larger than it


def setup(app):
    app.add_directive("figure-of", FigureOf)
    app.connect("build-finished", lighten_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
