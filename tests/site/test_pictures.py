"""Figures on the site: smaller than in the notebooks, and the same pixel for pixel."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_browser import Tab, browser, server  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[2]


def figures_of(site, page):
    """The tags of a page's figures, and the files that they name."""
    text = (site / page).read_text(encoding="utf-8")
    tags = re.findall(r"<img [^>]*_images/[^>]*>", text)
    names = [re.search(r'src="([^"]*)"', tag)[1] for tag in tags]
    return tags, [(site / page).parent / name for name in names]


def pixels(file):
    return np.asarray(Image.open(file).convert("RGBA"))


def test_figures_are_the_notebooks_own_pixel_for_pixel(site, page):
    notebook = (ROOT / page).with_suffix(".ipynb")
    if not notebook.exists():
        return
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    stored = [
        base64.b64decode("".join(output["data"]["image/png"]))
        for cell in cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    _, files = figures_of(site, page)
    shown = [file for file in files if file.suffix == ".webp"]
    assert len(shown) >= len(stored)
    drawn = [pixels(file) for file in shown]
    for png in stored:
        original = pixels(io.BytesIO(png))
        assert any(np.array_equal(original, image) for image in drawn)
    assert sum(file.stat().st_size for file in shown) < 0.8 * sum(map(len, stored)) + 1


def test_the_results_page_shows_the_figures_of_chapter_10(browser, server, site):  # noqa: F811
    _, chapter = figures_of(site, "book/10_claims_measured.html")
    _, again = figures_of(site, "book/appendix/results.html")
    figures = {file.name for file in chapter if file.suffix == ".webp"}
    assert len(figures) == 10 and figures <= {file.name for file in again}
    with Tab(browser, server, viewport={"width": 390, "height": 844}) as tab:
        tab.page.goto(f"{server}book/appendix/results.html")
        shown = tab.page.locator("img.again")
        tab.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        for image in shown.all():
            image.scroll_into_view_if_needed()
            image.evaluate("e => e.decode()")
            box, width, height = (
                image.bounding_box(),
                *(image.evaluate(f"e => e.natural{side}") for side in ("Width", "Height")),
            )
            ratio = (box["height"] - 16) / (box["width"] - 16)  # without the white around it
            assert abs(ratio * width / height - 1) < 0.01


def test_figures_say_how_large_they_are_and_come_when_they_are_needed(site, page):
    tags, files = figures_of(site, page)
    assert all(file.is_file() for file in files)
    assert not [file for file in files if file.suffix == ".png"]
    for number, tag in enumerate(t for t in tags if ".webp" in t):
        assert ("lazy" in tag) == (number > 0)
        assert re.search(r"width", tag) and re.search(r"height", tag)


def test_figures_are_there_without_scripts_and_on_paper(browser, server):  # noqa: F811
    page = server + "book/09_looking_inside.html"
    loaded = "[...document.querySelectorAll('article img')].filter(e => !e.naturalWidth).length"
    with Tab(browser, server, java_script_enabled=False) as tab:
        tab.page.goto(page, wait_until="networkidle")
        assert tab.page.evaluate(loaded) == 0
    with Tab(browser, server) as tab:
        tab.page.goto(page, wait_until="load")
        paper = tab.page.pdf()
        # Every figure is in the PDF, though none of those below had been scrolled to.
        tab.page.emulate_media(media="print")
        figures = tab.page.locator("article img:visible").count()
        assert len(re.findall(rb"/Subtype\s*/Image", paper)) >= figures > 3


@pytest.mark.parametrize(
    ("where", "number", "on"),
    [
        ("10_claims_measured", 0, {"light": 255, "dark": 33, "print": 255}),  # a plot
        ("appendix/results", 0, {"light": 255, "dark": 33, "print": 255}),  # the same, again
        ("01_why_dense_connections", 0, {"light": 255, "dark": 217, "print": 255}),  # a picture
        ("09_looking_inside", 1, {"light": 255, "dark": 217, "print": 255}),  # dark cells and pale
    ],
)
@pytest.mark.parametrize("scripts", [True, False])
def test_in_the_dark_plots_turn_round_and_pictures_do_not_dazzle(
    browser,  # noqa: F811
    server,  # noqa: F811
    where,
    number,
    on,
    scripts,
):
    for look, expected in on.items():
        scheme = "dark" if look == "print" else look
        with Tab(browser, server, color_scheme=scheme, java_script_enabled=scripts) as tab:
            tab.page.goto(f"{server}book/{where}.html")
            for fold in tab.page.locator("details.answer, details.sd-dropdown").all():
                fold.locator("> summary").click()
            if look == "print":
                tab.page.emulate_media(media="print")
            figure = tab.page.locator("article img[src$=webp]:visible").nth(number)
            figure.scroll_into_view_if_needed()
            figure.evaluate("e => e.decode()")
            seen = np.asarray(Image.open(io.BytesIO(figure.screenshot())).convert("RGB"))
            ground = np.median(seen[1:4, seen.shape[1] // 4 : seen.shape[1] // 2], axis=(0, 1))
            assert np.allclose(ground, expected, atol=5), (look, ground)


def test_a_tap_on_a_phone_shows_a_figure_as_large_as_it_was_drawn(browser, server):  # noqa: F811
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    for page in ("11_speed", "appendix/results"):
        with Tab(browser, server, **options) as tab:
            tab.page.goto(f"{server}book/{page}.html")
            for fold in tab.page.locator("details.sd-dropdown").all():
                fold.locator("> summary").click()
            figure = tab.page.locator("article img[src$=webp]:visible").first
            before = figure.bounding_box()["width"]
            assert before < 360
            figure.tap()
            natural = figure.evaluate("e => e.naturalWidth")
            assert natural <= figure.bounding_box()["width"] <= natural + 16 and natural > 700
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
            around = figure.locator("xpath=..")
            around.evaluate("e => { e.scrollLeft = 200; }")
            assert around.evaluate("e => e.scrollLeft") == 200
            figure.tap()
            assert figure.bounding_box()["width"] == before
            # What stands beside it does not move with it.
            figure.tap()
            tab.page.set_viewport_size({"width": 844, "height": 390})
            tab.page.wait_for_function("!document.querySelector('img.large')")
            assert around.get_attribute("tabindex") is None
            assert around.locator("img").count() == 1 and not around.locator("p, table").count()
    for width in (700, 1280):
        with Tab(browser, server, viewport={"width": width, "height": 844}) as tab:
            tab.page.goto(f"{server}book/11_speed.html")
            figure = tab.page.locator("article img[src$=webp]:visible").first
            before = figure.bounding_box()["width"]
            figure.click()
            assert figure.bounding_box()["width"] == before
            assert figure.locator("xpath=..").get_attribute("tabindex") is None
