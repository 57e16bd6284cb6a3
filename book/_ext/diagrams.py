"""Diagrams become part of their page: they take its colours, and their text can be selected and
searched. Without this they are files beside it, as in Colab and on GitHub.
"""

import re
from pathlib import Path

IMAGE = re.compile(r"<img\b[^>]*>")


def attribute(tag, name):
    """The value of an attribute of a tag, as it is written there; an empty text without it."""
    found = re.search(rf'\b{name}="([^"]*)"', tag)
    return found[1] if found else ""


def inlined(page):
    """A function that gives the drawing in place of a tag on `page`, if it is a diagram."""

    def drawing(match):
        source = attribute(match[0], "src")
        file = page.parent / source
        if not source.endswith(".svg") or not file.is_file():
            return match[0]
        svg = file.read_text(encoding="utf-8")
        if not svg.startswith("<svg") or 'class="diagram"' not in svg.partition(">")[0]:
            return match[0]
        # The page names it in a sentence; a title would pop up wherever the mouse is.
        svg = re.sub(r"<title>.*?</title>", "", svg, count=1)
        return svg.replace("<svg ", f'<svg aria-label="{attribute(match[0], "alt")}" ', 1)

    return drawing


def inline_diagrams(app, exception):
    """Put the diagrams into the pages that show them."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if ".svg" in text and (changed := IMAGE.sub(inlined(page), text)) != text:
            page.write_text(changed, encoding="utf-8")


def setup(app):
    app.add_css_file("diagrams.css")
    app.connect("build-finished", inline_diagrams)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
