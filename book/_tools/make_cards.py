"""Draw the pictures that go with links to the site's pages (og:image) into `book/_static/cards`.

    python book/_tools/make_cards.py

One for the first page, for each chapter and for each page to play with: its title, what
`book/descriptions.yml` says of it, and its drawing on the first page. Chromium draws them.
"""

import hashlib
import html
import io
import re
import sys
import tempfile
from pathlib import Path

import yaml
from PIL import Image, PngImagePlugin
from playwright.sync_api import sync_playwright

sys.path += [
    str(Path(__file__).resolve().parent),
    str(Path(__file__).resolve().parents[1] / "_ext"),
]
import chromium
import home
import notebooks
import thumbnails

from densenet_tutorial.utils import files

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "_static" / "cards"
WIDTH, HEIGHT = 1200, 630  # pixels; a ratio of 1.91, which no site crops

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8">
<style>
  @font-face {{ font-family: Figtree; src: url("{static}/typeface.woff2"); font-weight: 400 800; }}
  body {{ margin: 0; width: {width}px; height: {height}px; box-sizing: border-box;
         padding: 56px 64px; display: grid; grid-template-rows: 1fr auto;
         background: #fff; color: #1f2328; font: 450 29px/1.4 Figtree;
         border-bottom: 14px solid #0072b2; }}
  main {{ display: grid; grid-template-columns: 1fr 440px; gap: 56px; align-items: center; }}
  h1 {{ margin: 0 0 24px; font: 750 60px/1.08 Figtree; letter-spacing: -0.02em;
       text-wrap: balance; }}
  p {{ margin: 0; color: #57606a; text-wrap: pretty; }}
  main > svg {{ width: 440px; }}
  footer {{ display: flex; align-items: center; gap: 16px; font-weight: 650; }}
  footer img {{ width: 48px; }}
</style>
<main><div><h1>{title}</h1><p>{text}</p></div>{drawing}</main>
<footer><img src="{static}/favicon.svg" alt="">{site}</footer>
</html>
"""


def title(page):
    """The heading of a page, without the number of the chapter."""
    path = ROOT / f"{page}.md"
    if path.exists():
        text = path.read_text(encoding="utf-8")
    else:
        text = notebooks.read(ROOT / f"{page}.ipynb")["cells"][0]["source"]
    return re.search(r"^# (?:\d+ · )?(.+)", text, re.MULTILINE)[1]


def pages():
    """Title and text of every page that has a card, by the card's name."""
    said = yaml.safe_load((ROOT / "book" / "descriptions.yml").read_text(encoding="utf-8"))
    site = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    found = {"index": (site, said["book/index"])}
    for page, text in said.items():
        if re.fullmatch(r"book/(\d\d_\w+|explorer|live)", page):
            found[page.removeprefix("book/")] = (title(page), text)
    return found


def fingerprint(words, svg):
    """Of what is on a card: it stands in the file, so that a test can tell an old one."""
    return hashlib.sha256("\n".join([*words, svg]).encode()).hexdigest()[:16]


def drawing(name, numbers):
    """What the first page shows of a page, or the small block for itself."""
    if name == "index":
        return thumbnails.block().partition("<p ")[0]
    return thumbnails.thumbnail(re.sub(r"^\d\d_", "", name), numbers)


def picture(tab, folder, site, words, svg):
    """A card as the content of a PNG file."""
    heading, text = map(html.escape, words)
    static = (ROOT / "book" / "_static").as_uri()
    look = {"static": static, "width": WIDTH, "height": HEIGHT}
    page = PAGE.format(title=heading, text=text, drawing=svg, site=html.escape(site), **look)
    file = Path(folder, "card.html")
    file.write_text(page, encoding="utf-8")
    tab.goto(file.as_uri())
    tab.evaluate("document.fonts.ready")
    if tab.evaluate("document.body.scrollHeight") > HEIGHT:
        raise ValueError(f"{heading!r}: the words do not fit on a card of {HEIGHT} pixels")
    made_from = PngImagePlugin.PngInfo()
    made_from.add_text("made from", fingerprint(words, svg))
    shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    content = io.BytesIO()
    few = shot.quantize(64, Image.Quantize.MAXCOVERAGE)
    few.save(content, "PNG", optimize=True, pnginfo=made_from)
    return content.getvalue()


def main():
    numbers, cards = home.measured(ROOT), pages()
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = chromium.launch(play)
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        for name, words in cards.items():
            site = "" if name == "index" else cards["index"][0]
            content = picture(tab, folder, site, words, drawing(name, numbers))
            files.write(TARGET / f"{name}.png", content)
            print(f"{TARGET / name}.png: {len(content):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
