"""Terms and citations: which are marked, and what they show to a mouse, a keyboard and a finger."""

import json
import re
import unicodedata

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from test_browser import Tab, base, browser, server  # noqa: F401  (fixtures)

CHAPTER = "book/01_why_dense_connections.html"
ENTRY = ".term-entry:popover-open"
# Where no link belongs.
ELSEWHERE = "h1 a.term, h2 a.term, h3 a.term, code a.term, pre a.term, a a.term, strong a.term"
ELSEWHERE += ", .math a.term, table a.term, .cell a.term, nav a.term"


def parsed(site, name):
    return BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def glossary(site):
    """The text of the entry of each anchor."""
    entries, waiting = {}, []
    for element in parsed(site, "book/appendix/glossary.html").select(".glossary > dt, dd"):
        if element.name == "dt":
            waiting.append(element["id"])
        else:
            entries |= dict.fromkeys(waiting, " ".join(element.get_text().split()))
            waiting = []
    return entries


@pytest.fixture(scope="module")
def papers(site):
    """The label of each reference by its paper's address."""
    soup = parsed(site, "book/appendix/references.html")
    return {
        entry.select("a.external")[-1]["href"]: entry.select_one(".label").get_text().strip("[]")
        for entry in soup.select(".citation")
    }


@pytest.fixture(scope="module")
def entries(site):
    """What is shown, by the anchor of a term or the address of a paper."""
    text = (site / "_static" / "terms-entries.js").read_text(encoding="utf-8")
    return json.loads(text.partition(" = ")[2].rstrip().rstrip(";"))


def test_a_term_is_a_link_once_a_page_and_only_in_text(site, page, glossary):
    soup = parsed(site, page)
    links = soup.select("a.term")
    anchors = [link["href"].partition("#")[2] for link in links]
    assert len(set(anchors)) == len(anchors) and set(anchors) <= set(glossary)
    assert not soup.select(ELSEWHERE)
    # Enough to help, not so many that the text is all dots; none where terms are not met.
    assert 9 <= len(links) <= 30 if re.search(r"/\d\d_", page) else len(links) <= 10
    assert bool(links) == ("terms.js" in str(soup))


def test_the_longest_name_counts_and_its_first_use(site):
    soup = parsed(site, "book/05_densenet.html")
    (link,) = [link for link in soup.select("a.term") if "global-average" in link["href"]]
    assert link.get_text() == "global average pooling"
    # "batch norm" is no batch, and what is introduced in bold type needs no link there.
    for number, name in enumerate(["dense_layer", "dense_block", "transition"], 2):
        for link in parsed(site, f"book/{number:02}_{name}.html").select("a.term"):
            following = str(link.next_sibling or "")
            assert not (link.get_text() == "batch" and re.match(r"\s+norm", following))
    soup = parsed(site, "book/04_transition.html")
    bold = soup.find("strong", string="compression")
    section = bold.find_parent("section")
    assert not [link for link in section.select("a.term") if "compression" in link["href"]]


def test_every_link_to_a_paper_is_a_citation(site, page, papers):
    if page.startswith("book/appendix") or page == "book/index.html":
        return
    links = parsed(site, page).select("article a[href^=http]")
    assert all(("cite" in link.get("class", [])) == (link["href"] in papers) for link in links)


def test_a_citation_names_its_reference_by_its_label(site, page, papers):
    for link in parsed(site, page).select("article a.cite"):
        named = re.fullmatch(r"(.* et al\.|\w+ and \w+) \(?(\d{4}[a-z]?)\)?", link.get_text())
        if named:
            assert f"{named[1]} {named[2]}" == papers[link["href"]]


def test_references_have_labels_that_one_can_read(papers):
    assert len(papers) > 30 and len(set(papers.values())) == len(papers)
    assert all(re.fullmatch(r"[^\W\d][\w .’-]* \d{4}[a-z]?", label) for label in papers.values())
    assert papers["https://arxiv.org/abs/1608.06993"] == "Huang et al. 2017"
    assert papers["https://arxiv.org/abs/1502.03167"] == "Ioffe and Szegedy 2015"
    assert papers["https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf"].startswith(
        "Kri"
    )
    # The same authors in the same year.
    same = {papers[f"https://arxiv.org/abs/{paper}"] for paper in ("1512.03385", "1603.05027")}
    assert same == {"He et al. 2016a", "He et al. 2016b"}


def test_the_mouse_shows_an_entry_that_stays_while_it_is_there(browser, base, glossary):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(base + CHAPTER)
        assert not [address for address in tab.requests if "terms-entries" in address]
        link = tab.page.locator("a.term").first
        link.hover()
        entry = tab.page.locator(ENTRY)
        entry.wait_for()
        anchor = link.get_attribute("href").partition("#")[2]
        # A formula's signs are drawn in italics, and apart from one another.
        shown = unicodedata.normalize("NFKC", entry.inner_text())
        assert "".join(glossary[anchor].split()) in "".join(shown.split())
        # The mouse can go there, and to what is a link there.
        entry.hover()
        tab.page.wait_for_timeout(600)
        assert entry.is_visible()
        chapter = entry.locator("a").last
        assert chapter.get_attribute("href").endswith(".html")
        # It goes when the mouse goes.
        tab.page.mouse.move(2, 400)
        entry.wait_for(state="hidden")
        assert tab.page.locator(".term-entry").count() == 0
        # With Escape it goes at once.
        link.hover()
        entry.wait_for()
        tab.page.keyboard.press("Escape")
        assert not entry.is_visible()
        assert not tab.complaints and not tab.strangers


def test_the_keyboard_shows_it_and_reaches_what_is_in_it(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(base + CHAPTER)
        link = tab.page.locator("a.term").first
        # As a reader comes there: by Tab, from the element before.
        link.evaluate("e => { e.tabIndex = 0; e.focus(); }")
        tab.page.keyboard.press("Shift+Tab")
        tab.page.keyboard.press("Tab")
        entry = tab.page.locator(ENTRY)
        entry.wait_for()
        assert link.get_attribute("aria-describedby") == entry.get_attribute("id")
        tab.page.keyboard.press("Tab")
        assert entry.locator("a").first.evaluate("e => e === document.activeElement")
        assert entry.is_visible()
        # Escape closes it, leaves the focus where it was opened, and does not open it again.
        tab.page.keyboard.press("Escape")
        assert link.evaluate("e => e === document.activeElement")
        tab.page.wait_for_timeout(300)
        assert not entry.is_visible() and link.get_attribute("aria-describedby") is None
        # The next term shows its own; Enter follows the link.
        tab.page.locator("a.term").nth(1).evaluate("e => e.focus()")
        entry.wait_for()
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_url("**/glossary.html#term-*")


def test_a_tap_shows_it_and_a_second_one_follows(browser, base):  # noqa: F811
    size = {"width": 390, "height": 844}
    with Tab(browser, base, viewport=size, has_touch=True, is_mobile=True) as tab:
        tab.page.goto(base + CHAPTER)
        link = tab.page.locator("a.term").nth(2)
        link.tap()
        entry = tab.page.locator(ENTRY)
        entry.wait_for()
        assert tab.page.url == base + CHAPTER
        box = entry.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        # A tap beside it closes it.
        tab.page.locator("article h2").first.tap()
        assert not entry.is_visible()
        link.tap()
        entry.wait_for()
        link.tap()
        tab.page.wait_for_url("**/glossary.html#term-*")


def test_it_goes_when_the_window_changes_and_stays_away_where_there_is_no_entry(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(f"{base}book/02_dense_layer.html")
        link = tab.page.locator("a.term").first
        link.hover()
        tab.page.wait_for_selector("#term-entry")
        tab.page.evaluate("dispatchEvent(new Event('resize'))")  # as scripts do that draw
        tab.page.wait_for_timeout(200)
        assert tab.page.locator("#term-entry").is_visible()
        tab.page.set_viewport_size({"width": 700, "height": 600})
        tab.page.wait_for_selector("#term-entry", state="detached")
        tab.page.mouse.move(0, 0)
        tab.page.evaluate("document.querySelector('a.term').hash = '#nowhere'")
        link.hover()
        tab.page.wait_for_timeout(600)
        assert not tab.page.locator("#term-entry").count() and not tab.complaints


def test_a_citation_shows_its_reference(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(base + CHAPTER)
        tab.page.locator("a.cite", has_text="Huang et al. 2017").first.hover()
        entry = tab.page.locator(ENTRY)
        entry.wait_for()
        text = entry.inner_text()
        assert text.startswith("Huang et al. 2017") and "Densely connected convolutional" in text
        entry.locator("a", has_text="All references").click()
        tab.page.wait_for_url("**/references.html#*")
        assert tab.page.locator(":target").is_visible()


def test_every_term_and_citation_has_an_entry(site, page, entries):
    for link in parsed(site, page).select("a.term, a.cite"):
        address = link["href"]
        assert address in entries or address.partition("#")[2] in entries, address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_what_is_shown_is_accessible_and_fits(browser, server, scheme, width):  # noqa: F811
    size = {"width": width, "height": 844}
    with Tab(browser, server, color_scheme=scheme, viewport=size) as tab:
        tab.page.goto(server + "book/03_dense_block.html")
        # One stands in a paragraph, one in a callout.
        for link in tab.page.locator("a.term, a.cite").all()[:3]:
            link.hover()
            entry = tab.page.locator(ENTRY)
            entry.wait_for()
            box = entry.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert box["y"] >= 0 and box["y"] + box["height"] <= 844
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
            options = {"resultTypes": ["violations"], "preload": False}
            assert not Axe().run(tab.page, options=options).response["violations"]
            tab.page.keyboard.press("Escape")


def test_without_scripts_it_is_a_link(browser, server):  # noqa: F811
    with Tab(browser, server, java_script_enabled=False) as tab:
        tab.page.goto(server + CHAPTER)
        tab.page.locator("a.term").first.click()
        tab.page.wait_for_url("**/appendix/glossary.html#term-*")


def test_lines_under_terms_are_dotted_and_not_on_paper(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(server + CHAPTER)
        link = tab.page.locator("a.term").first
        decoration = "e => getComputedStyle(e).textDecorationLine"
        colour = "e => [e, e.parentElement].map(each => getComputedStyle(each).color)"
        assert link.evaluate("e => getComputedStyle(e).textDecorationStyle") == "dotted"
        own, around = link.evaluate(colour)
        assert own == around
        link.hover()
        tab.page.locator(ENTRY).wait_for()
        tab.page.emulate_media(media="print")
        assert link.evaluate(decoration) == "none"
        assert not tab.page.locator(".term-entry").is_visible()
