"""The cheat sheet: its drawing, made from the network itself, and a style for one printed page."""

import html
import re

from densenet_tutorial import densenet, figures

PAGE = "book/appendix/cheat_sheet"
PLACE = "<!-- {{ network }} -->"


def draw(app, docname, source):
    if docname == PAGE:
        diagram = figures.network(densenet("densenet121"), 224)
        label = html.escape(diagram.description, quote=True)
        svg = re.sub(
            r"<title>.*?</title>", "", diagram.svg, count=1
        )  # as book/_ext/diagrams.py does
        svg = svg.replace("<svg ", f'<svg aria-label="{label}" ', 1)
        source[0] = source[0].replace(PLACE, f'<div class="drawing">{svg}</div>')


def add_style(app, pagename, templatename, context, doctree):
    if pagename == PAGE:
        app.add_css_file("sheet.css")


def setup(app):
    app.connect("source-read", draw)
    app.connect("html-page-context", add_style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
