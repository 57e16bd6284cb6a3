"""The pages of the built site, read without a browser."""

import functools
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page is called, what it links to, what it loads, and its pictures."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.images = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.update(v for k in ("id", "name") if (v := attributes.get(k)))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)
        # These links say something about the page; a browser does not follow them.
        if tag in VOID and attributes.get("rel") not in (
            "canonical",
            "search",
            "index",
            "next",
            "prev",
        ):
            self.loads.append(attributes.get(VOID[tag]) or "")


@functools.cache
def read(path):
    """A page, parsed once: many tests and many links lead to the same one."""
    return Page(path)


def test_every_page_is_built(site, page):
    assert (site / page).stat().st_size > 1000


def test_the_first_page_leads_to_the_book(site):
    assert re.search(r'url=(book/index\.html)"', (site / "index.html").read_text(encoding="utf-8"))


def test_links_and_anchors_lead_somewhere(site, page):
    for link in read(site / page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (site / page).parent / unquote(parts.path) if parts.path else site / page
        assert target.is_file(), f"{link} leads nowhere"
        if "=" in parts.fragment:  # no anchor but a state: see test_explorer.py
            assert target.name == "explorer.html"
            continue
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in read(target.resolve()).ids | {"top"}, (
                f"{link} has no such anchor"
            )


def test_nothing_is_loaded_from_another_host(site, page):
    for address in read(site / page).loads:
        parts = urlsplit(address)
        assert not parts.netloc, address
        if parts.path:
            assert ((site / page).parent / unquote(parts.path)).is_file(), f"{address} is not there"


def test_no_icon_font_is_left(site):
    assert not [path for path in site.rglob("*") if "fontawesome" in path.name]
    for path in [*site.rglob("*.html"), *(site / "_static").rglob("*.css")]:
        text = re.sub(
            r"<article.*</article>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        found = re.search(r"(?i)fontawesome|font awesome|--fa-font|content:\s*\"\\f...\"", text)
        assert not found, f"{path.name}: {found[0]}"


def test_every_icon_that_a_rule_names_is_drawn(site):
    drawn = (site / "_static" / "book.css").read_text(encoding="utf-8")
    named = set()
    for path in (site / "_static").rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        named.update(re.findall(r"mask-image:\s*var\((--[\w-]+)\)", text))
        named.update(re.findall(r"var\((--pst-icon-[\w-]+)\)", text))
    # The theme has names for what an icon is for: these stand for another name.
    theme = (site / "_static" / "styles" / "pydata-sphinx-theme.css").read_text(encoding="utf-8")
    missing = [
        name
        for name in sorted(named)
        if not re.search(rf"{name}: (url\(\"data:image/svg|var\()", drawn)
        and not re.search(rf"{name}:var\(--pst-icon-", theme)
    ]
    assert len(named) > 20 and not missing


def test_no_page_waits_for_a_script(site, page):
    for script in re.findall(r"<script [^>]*src=[^>]*>", (site / page).read_text(encoding="utf-8")):
        assert re.search(r"\b(defer|async)\b", script), script


def test_figures_have_a_sentence_as_alt_text(site, page):
    for image in read(site / page).images:
        alt = image.get("alt", "")
        if "/_images/" not in image["src"]:  # a logo of the theme
            assert alt, image
            continue
        assert re.fullmatch(r"[A-Z0-9].*\.", alt, re.DOTALL) and len(alt.split()) >= 5, image


def test_the_licences_are_on_the_site(site, page):
    text = (site / page).read_text(encoding="utf-8")
    assert "MIT licence" in text and "CC BY 4.0" in text


def test_all_figures_can_be_downloaded_at_once(site):
    page = site / "book" / "appendix" / "instructors.html"
    (link,) = re.findall(r'href="([^"]*figures\.zip)"', page.read_text(encoding="utf-8"))
    with zipfile.ZipFile(page.parent / link) as archive:
        pictures = [name for name in archive.namelist() if name.endswith(".png")]
        listed = archive.read("figures/figures.md").decode()
    assert len(pictures) > 10
    assert all(Path(name).name in listed for name in pictures)
