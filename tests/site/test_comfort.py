"""What makes a page comfortable: its head, its callouts, what is folded, how long lines are."""

import html
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import make_cards
import pytest
import yaml
from conftest import toc_files
from PIL import Image
from test_browser import Tab, browser, server  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = "book/05_densenet.html"

# How many columns of code do not fit into their box, for boxes whose code has at most 84 columns.
TOO_WIDE = """
() => [...document.querySelectorAll('.cell_input pre')]
  .filter(e => Math.max(...e.innerText.split('\\n').map(line => line.length)) <= 84)
  .filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 80))
"""
# The average number of characters of a full line of prose, from its width and its letters.
CHARACTERS = """
() => {
  const counts = [];
  for (const p of document.querySelectorAll('article section > p')) {
    if (p.querySelector('.math, code, img')) continue;
    const height = parseFloat(getComputedStyle(p).lineHeight);
    const rows = Math.round(p.getBoundingClientRect().height / height);
    if (rows >= 3) counts.push(p.innerText.length / (rows - 0.5));
  }
  return counts.reduce((a, b) => a + b, 0) / counts.length;
}
"""
SIGNS = """
() => ['predict', 'wrong', 'note'].map(kind => {
  const quote = document.querySelector(`blockquote.${kind}`);
  if (!quote) return null;
  const sign = getComputedStyle(quote.querySelector('strong'), '::before');
  return [getComputedStyle(quote).borderLeftColor, sign.maskImage];
}).filter(Boolean)
"""


def head(site, page):
    return (site / page).read_text(encoding="utf-8").partition("</head>")[0]


def meta(text, name):
    found = re.findall(rf'<meta (?:name|property)="{name}" content="([^"]*)"', text)
    assert len(found) == 1, (name, found)
    return html.unescape(found[0])


def test_a_page_is_described_by_hand(site, page):
    texts = yaml.safe_load((ROOT / "book" / "descriptions.yml").read_text(encoding="utf-8"))
    text = texts[page.removesuffix(".html")]
    assert 70 <= len(text) <= 160 and text.endswith(".")
    assert len(set(texts.values())) == len(texts)
    assert meta(head(site, page), "description") == text == meta(head(site, page), "og:description")
    assert meta(head(site, page), "og:site_name") == "DenseNet, step by step"


def test_a_link_to_a_page_shows_its_own_card(site, page):
    base = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    address = meta(head(site, page), "og:image")
    assert address.startswith(base) and meta(head(site, page), "og:image:alt")
    assert meta(head(site, page), "twitter:card") == "summary_large_image"
    name = Path(page).stem
    assert Path(address).stem == (name if name in make_cards.pages() else "index")
    with Image.open(site / address.removeprefix(base)) as card:
        assert card.size == (1200, 630)


def test_cards_say_what_the_pages_say_today():
    cards = {path.stem: path for path in make_cards.TARGET.glob("*.png")}
    pages = make_cards.pages()
    chapters = [f for f in toc_files() if re.match(r"book/\d\d_", f)]
    assert cards.keys() == pages.keys() >= {Path(f).name for f in chapters} | {"index", "live"}
    numbers = make_cards.home.measured(ROOT)
    for name, words in pages.items():
        made_from = make_cards.fingerprint(words, make_cards.drawing(name, numbers))
        with Image.open(cards[name]) as card:
            assert card.text["made from"] == made_from, f"{name}: make_cards.py"


def test_structured_data_and_the_canonical_address_agree(site, page):
    text = head(site, page)
    (data,) = re.findall(r'<script type="application/ld\+json">(.*?)</script>', text)
    data = json.loads(data)
    (canonical,) = re.findall(r'<link rel="canonical" href="([^"]*)"', text)
    assert data["@type"] == "LearningResource" and data["url"] == canonical
    assert data["description"] == meta(text, "description")
    assert data["name"] == meta(text, "og:title")


def test_the_sitemap_lists_every_page_and_no_other(site):
    text = (site / "sitemap.xml").read_text(encoding="utf-8")
    found = re.findall(r"<loc>([^<]*)</loc>", text)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    base = config["html"]["baseurl"]
    pages = {p.relative_to(site).as_posix() for p in (site / "book").rglob("*.html")}
    assert {address.removeprefix(base) for address in found} == pages
    assert len(found) == len(set(found))
    robots = (site / "robots.txt").read_text(encoding="utf-8")
    assert f"Sitemap: {base}sitemap.xml" in robots and "Disallow" not in robots


def test_a_wrong_address_leads_back(site):
    text = (site / "404.html").read_text(encoding="utf-8")
    base = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    links = re.findall(r'href="([^"]*)"', text)
    # The page stands at any address, however deep, so its links are whole.
    assert links and all(link.startswith(base) for link in links)
    assert all((site / link.removeprefix(base)).is_file() for link in links)
    assert "noindex" in text


def test_callouts_have_their_kind(site, page):
    text = (site / page).read_text(encoding="utf-8")
    for word, kind in ("Predict.", "predict"), ("Wrong on purpose.", "wrong"), ("Note.", "note"):
        quotes = re.findall(
            r"<blockquote([^>]*)>\s*<div><p><strong>" + re.escape(word) + "</strong>", text
        )
        assert all(f"callout {kind}" in quote for quote in quotes)
        assert len(re.findall(rf'class="[^"]*callout {kind}"', text)) == len(quotes)


def test_callouts_look_different(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(server + "book/07_memory.html")
        looks = tab.page.evaluate(SIGNS)
        assert len(looks) >= 2
        colours, signs = zip(*looks, strict=True)
        assert len(set(colours)) == len(looks) == len(set(signs))
        assert all("data:image/svg" in sign for sign in signs)


def test_long_code_and_the_set_up_are_folded(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(server + CHAPTER)
        folds = tab.page.locator("article .cell details.hide > summary")
        words = [" ".join(word.split()) for word in folds.all_inner_texts()]
        assert "Show the set-up" in words
        (long,) = [word for word in words if word.startswith("Show the code,")]
        assert int(re.search(r"(\d+) lines", long)[1]) > 40
        # A click shows them.
        code = tab.page.locator(".cell.long details.hide pre").first
        assert not code.is_visible()
        # Paper shows them, too; not what installs the package.
        tab.page.emulate_media(media="print")
        assert code.bounding_box()["height"] > 40 * 12 and code.is_visible()
        assert not tab.page.get_by_text("find_spec").first.is_visible()
        tab.page.emulate_media(media="screen")
        tab.page.get_by_text(long).first.click()
        assert code.is_visible() and code.inner_text().count("\n") > 40


def test_no_code_of_more_than_40_lines_lies_open(site, page):
    text = (site / page).read_text(encoding="utf-8")
    folded = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
    cells = re.findall(r'<div class="cell_input[^>]*>.*?</pre>', folded, re.DOTALL)
    assert all(cell.count("\n") <= 42 for cell in cells)


def test_code_of_84_columns_fits_and_prose_does_not_run_on(browser, server):  # noqa: F811
    chapters = [f"{name}.html" for name in toc_files() if re.match(r"book/\d\d_", name)]
    with Tab(browser, server, viewport={"width": 1280, "height": 800}) as tab:
        for chapter in chapters:
            tab.page.goto(server + chapter, wait_until="load")
            tab.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert not tab.page.evaluate(TOO_WIDE), chapter
            assert 60 <= tab.page.evaluate(CHARACTERS) <= 80, chapter


def test_a_page_asks_for_one_style_sheet(site, page):
    text = re.sub(r"<noscript>.*?</noscript>", "", head(site, page), flags=re.DOTALL)
    (link,) = re.findall(r'<link [^>]*rel="stylesheet"[^>]*>', text)
    address = urlsplit(re.search(r'href="([^"]*)"', link)[1]).path
    css = ((site / page).parent / address).read_text(encoding="utf-8")
    # In their order: the book's own rules come last.
    assert css.index("--pst-color-primary") < css.index("STIX Two Math")
    assert "Bootstrap" in css  # its licence stays


def test_the_table_of_weights_has_every_page_within_what_is_promised():
    """`make pagespeed` writes it."""
    path = ROOT / "book" / "results" / "pages.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    assert {figure["page"].removesuffix(".html") for figure in figures} == set(toc_files())
    for figure in figures:
        assert figure["kilobytes_read"] <= 500 and figure["first_text"] <= 2.5, figure
        assert (figure["formulas"] or 0) <= 4 and figure["findings"] == 0, figure


@pytest.mark.parametrize("width", [1024, 768, 390, 360, 320])
def test_no_page_is_wider_than_a_tablet_or_a_phone(browser, site, width):  # noqa: F811
    pages = [page for page in site.rglob("*.html") if "_static" not in page.parts]
    assert len(pages) > 30 and site / "genindex.html" in pages
    wide = []
    with Tab(browser, "", viewport={"width": width, "height": 800}) as tab:
        for page in pages:
            if page == site / "index.html":
                continue  # it leads to the first one
            tab.page.goto(page.as_uri())
            tab.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = 1; })")
            if (reached := tab.page.evaluate("document.documentElement.scrollWidth")) > width:
                wide.append((page.name, reached))
            for button in tab.page.locator(".bd-header-article .btn").all():
                box = button.bounding_box() if button.is_visible() else None
                if box and box["x"] + box["width"] > width:
                    wide.append((page.name, button.get_attribute("class")))
    assert not wide
