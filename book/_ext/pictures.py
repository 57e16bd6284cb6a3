"""Figures weigh a third when the site is built: WebP without loss, each fetched when it comes near.

A page knows how large each is before it is there, so that no text jumps.
"""

import re
from pathlib import Path

from PIL import Image

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


def setup(app):
    app.connect("build-finished", lighten_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
