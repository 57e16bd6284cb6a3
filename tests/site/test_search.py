"""The search: sections come first that explain what one looks for, from disk as from a server."""

import json
import re
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from test_browser import Tab, base, browser, server  # noqa: F401  (fixtures)

# What readers look for, and the section that has to come first.
FIRST = {
    "CIFAR": "05_densenet.html#the-published-networks",
    "skip connection": "01_why_dense_connections.html#three-ways-to-stack-layers",
    "residual": "01_why_dense_connections.html#three-ways-to-stack-layers",
    "checkpoint": "06_training.html#stopped-in-the-middle",
    "gradient checkpointing": "07_memory.html#checkpointing-by-hand",
    "resume training": "06_training.html#stopped-in-the-middle",
    "how do I resume a run?": "06_training.html#stopped-in-the-middle",
    "compression": "04_transition.html#two-things-a-block-cannot-do",
    "growth rate": "01_why_dense_connections.html#what-it-costs-and-the-idea-that-pays-for-it",
    "bottleneck": "02_dense_layer.html#the-limit-wide-inputs",
    "concatenate": "01_why_dense_connections.html#what-concatenation-does-to-shapes",
    "out of memory": "07_memory.html",
    "batch norm trap": "07_memory.html#the-batch-norm-trap",
    "saved tensors": "07_memory.html#where-the-memory-is",
    "load torchvision weights": "08_pretrained.html",
    "state_dict": "08_pretrained.html#names-that-do-not-match",
    "freeze layers": "08_pretrained.html#freezing-done-right",
    "fine tuning": "08_pretrained.html#few-labels",
    "pickles": "08_pretrained.html#from-a-file-to-a-network",
    "Grad-CAM": "09_looking_inside.html#why-this-answer-grad-cam",
    "gradcam": "09_looking_inside.html#why-this-answer-grad-cam",
    "receptive field": "05_densenet.html#how-much-of-the-picture-does-one-number-see",
    "initialization": "05_densenet.html#starting-weights",
    "DenseLayer": "02_dense_layer.html",
    "pooling first": "04_transition.html#pooling-first",
    "data augmentation": "06_training.html#more-pictures-from-the-same-pictures",
    "learning rate schedule": "06_training.html#the-schedule",
    "confusion matrix": "06_training.html#what-does-it-get-wrong",
    "roofline": "11_speed.html#arithmetic-and-traffic-counted",
    "quantization": "11_speed.html#elsewhere",
    "several GPUs": "12_scaling_out.html#several-machines",
    "VoVNet": "10_claims_measured.html#w",
    "install": "appendix/setup.html#",
    "explorer": "explorer.html",
    "Huang 2017": "appendix/references.html#",
    "glossary": "appendix/glossary.html",
}
RESULTS = "#search-results li"


def search(tab, base, query):  # noqa: F811
    tab.page.goto(f"{base}search.html?q={quote(query)}")
    tab.page.wait_for_function("document.getElementById('search-status').textContent")


def index(site):
    """What is searched: the sections, and the entries of the glossary."""
    text = (site / "_static" / "search-sections.js").read_text(encoding="utf-8")
    return [json.loads(line.partition(" = ")[2].rstrip(";")) for line in text.splitlines()]


def test_the_section_that_explains_it_comes_first(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        search(tab, base, "stem")
        field = tab.page.locator("article input, .bd-search-container input").first
        found = {}
        for query in FIRST:
            field.fill(query)
            found[query] = tab.page.locator(f"{RESULTS} a").first.get_attribute("href")
        wrong = {
            query: address
            for query, address in found.items()
            if not address.removeprefix("book/").startswith(FIRST[query])
        }
        assert not wrong
        assert not tab.complaints and not tab.strangers


@pytest.mark.parametrize("query", ["CIFAR", "weights", "batch norm", "memory"])
def test_results_are_sections_that_are_there(browser, server, site, query):  # noqa: F811
    with Tab(browser, server) as tab:
        search(tab, server, query)
        links = tab.page.locator(f"{RESULTS} a").all()
        assert 3 <= len(links) <= 25
        for link in links:
            page, _, anchor = link.get_attribute("href").partition("#")
            text = (site / page).read_text(encoding="utf-8")
            assert not anchor or f'id="{anchor}"' in text
            # A section is named after its page, and after itself.
            assert bool(anchor) == (" › " in link.inner_text())
        # Snippets are two or three lines, in which the words are marked.
        snippets = tab.page.locator(f"{RESULTS} p").all_inner_texts()
        assert all(len(snippet) <= 230 for snippet in snippets)
        assert tab.page.locator(f"{RESULTS} p:has(mark)").count() >= len(links) * 0.7


def test_what_is_searched_is_text(site):
    """No menus, no code, no outputs, no solutions; and nearly all pages are in it."""
    sections, glossary = index(site)
    texts = " ".join(section[3] for section in sections)
    for foreign in (
        "Skip to main content",
        "Show the",
        "import torch",
        "Copy to clipboard",
        "torchrun --standalone",
        "\\frac",
    ):
        assert foreign not in texts
    chapter = (site / "book" / "01_why_dense_connections.html").read_text(encoding="utf-8")
    solutions = re.findall(r'<details class="solution">.*?<p>([^<]{30,})', chapter, re.DOTALL)
    assert solutions and not any(solution in texts for solution in solutions)
    pages = {path.relative_to(site).as_posix() for path in (site / "book").rglob("*.html")}
    assert {section[0].partition("#")[0] for section in sections} == pages
    assert len({section[0] for section in sections}) == len(sections) > 150
    assert len(glossary) > 90 and all(entry[4] in pages for entry in glossary)


def test_a_term_is_explained_above_the_sections(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        search(tab, base, "Growth rates")
        definition = tab.page.locator("#search-definitions p")
        assert "new feature maps that each dense layer adds" in definition.inner_text()
        definition.locator("a").first.click()
        tab.page.wait_for_url("**/glossary.html#term-growth-rate")


@pytest.mark.parametrize(
    "query", ["dense in_the", "___ layer", "(block", "<b>layer</b>", "\\ layer %"]
)
def test_signs_and_words_that_say_nothing_do_no_harm(browser, base, query):  # noqa: F811
    with Tab(browser, base) as tab:
        search(tab, base, query)
        assert tab.page.locator(RESULTS).count() > 3
        assert not tab.complaints


def test_a_long_query_makes_no_page_wider(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 390, "height": 800}) as tab:
        search(tab, server, "x" * 2000)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert len(tab.page.inner_text("#search-status")) < 200


def test_what_an_answer_hides_is_found_and_not_shown(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        search(tab, base, "vanishing gradient")
        first = tab.page.locator(RESULTS).first.inner_text()
        assert first.startswith("1 · Why dense connections?") and "has shrunk" not in first


def test_it_says_in_words_that_nothing_is_found(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        search(tab, base, "xyzzy <b>plugh")
        status = tab.page.locator("#search-status")
        assert "Nothing was found for “xyzzy <b>plugh”" in status.inner_text()
        assert status.get_attribute("role") == "status"
        assert not tab.page.locator(RESULTS).count()
        tab.page.goto(f"{base}search.html")
        assert not tab.page.locator("#search-status").inner_text()
        assert not tab.complaints


def test_the_address_is_that_of_the_results(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        search(tab, base, "roofline")
        tab.page.locator(".bd-search-container input[name=q]").fill("growth rate")
        assert tab.page.evaluate("location.href").endswith("search.html?q=growth+rate")
        tab.page.locator(f"{RESULTS} a").first.click()
        tab.page.wait_for_url("**/book/**")
        tab.page.go_back()
        tab.page.wait_for_function("document.getElementById('search-status').textContent")
        assert "growth rate" in tab.page.locator("#search-status").inner_text()
        assert not tab.complaints


def test_it_says_so_where_the_words_say_nothing_or_the_list_is_missing(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        search(tab, server, "what is the")
        assert "says nothing that one could look for" in tab.page.inner_text("#search-status")
        tab.page.route("**/search-sections.js*", lambda route: route.abort())
        search(tab, server, "roofline")
        assert "did not arrive" in tab.page.inner_text("#search-status")


def test_it_works_with_the_keyboard_from_any_page(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(f"{base}book/03_dense_block.html")
        tab.page.keyboard.press("Control+k")
        tab.page.keyboard.type("stopped")
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_url("**/search.html?q=stopped")
        tab.page.locator(RESULTS).first.wait_for()
        # The field has the focus: one types on, and goes to the results with the arrows.
        tab.page.keyboard.type("resume training")
        focused = "document.activeElement.getAttribute('href') ?? document.activeElement.name"
        tab.page.keyboard.press("ArrowUp")
        assert tab.page.evaluate(focused) == "q"
        places = []
        for _ in range(4):
            tab.page.keyboard.press("ArrowDown")
            places.append(tab.page.evaluate(focused))
        assert places[:2] == [
            "book/appendix/glossary.html#term-checkpoint",
            "book/06_training.html",  # the chapter of the term
        ]
        assert places[2] == "book/06_training.html#stopped-in-the-middle"
        tab.page.keyboard.press("ArrowUp")
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_url("**/06_training.html#stopped-in-the-middle")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_results_are_accessible_and_fit(browser, server, scheme, width):  # noqa: F811
    size = {"width": width, "height": 844}
    with Tab(browser, server, color_scheme=scheme, viewport=size) as tab:
        search(tab, server, "skip connection")
        assert tab.page.locator(RESULTS).count() > 3
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        options = {"resultTypes": ["violations"], "preload": False}
        assert not Axe().run(tab.page, options=options).response["violations"]
        # A finger hits a result.
        box = tab.page.locator(f"{RESULTS} a").first.bounding_box()
        assert box["height"] >= 24 and box["width"] >= 44


def test_without_scripts_there_is_another_way(browser, server):  # noqa: F811
    with Tab(browser, server, java_script_enabled=False) as tab:
        tab.page.goto(f"{server}search.html")
        tab.page.locator("noscript a", has_text="glossary").click()
        tab.page.wait_for_url("**/appendix/glossary.html")


def test_no_other_page_loads_anything_for_it(site, page):
    text = (site / page).read_text(encoding="utf-8")
    scripts = re.findall(r'<script [^>]*src="([^"]*)"', text)
    assert not [s for s in scripts if re.search("search|doctools|language_data|highlight", s)]
    assert "search.html" in text
