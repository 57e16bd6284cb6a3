"""Diagrams on the pages: part of the page, in its colours, and legible on a phone."""

import re

import pytest
from test_browser import browser, tabs  # noqa: F401  (fixtures)

# Lines of text that leave their drawing or lie on another line, and the smallest, in pixels.
TEXTS = """
() => [...document.querySelectorAll('svg.diagram')].map(svg => {
  const page = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')]
    .map(e => [e.textContent, e.getBoundingClientRect()]);
  const wrong = [];
  texts.forEach(([said, a], i) => {
    if (a.left < page.left || a.right > page.right || a.top < page.top || a.bottom > page.bottom)
      wrong.push(`leaves: ${said}`);
    for (const [other, b] of texts.slice(i + 1)) {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 4) wrong.push(`overlap: ${said} | ${other}`);
    }
  });
  const scale = page.width / svg.viewBox.baseVal.width;
  const smallest = Math.min(...[...svg.querySelectorAll('text, tspan')].map(
    e => parseFloat(getComputedStyle(e).fontSize) * scale));
  return [svg.getAttribute('aria-label'), wrong, smallest, page.width];
})
"""

# The colours of texts, and of the paper that they stand on.
COLOURS = """
() => {
  const paper = svg => getComputedStyle(svg.querySelector('rect')).fill;
  const ink = svg => getComputedStyle(svg.querySelector('text')).fill;
  return [...document.querySelectorAll('svg.diagram')].flatMap(svg =>
    [...svg.querySelectorAll('text')].map(e => [
      e.textContent, getComputedStyle(e).fill,
      e.classList.contains('fill-paper') ? ink(svg) : paper(svg),
    ]));
}
"""


def shows_diagrams(site, page):
    return 'class="diagram"' in (site / page).read_text(encoding="utf-8")


def luminance(color):
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [390, 1280])
def test_text_of_diagrams_is_legible_and_in_its_place(tabs, site, page, width):  # noqa: F811
    if not shows_diagrams(site, page):
        return
    base = f"{site.as_uri()}/"
    tab = tabs(base, viewport={"width": width, "height": 900})
    tab.page.goto(base + page)
    for label, wrong, smallest, size in tab.page.evaluate(TEXTS):
        assert not wrong, label
        assert smallest >= 11, label
        assert size <= 480, label
        assert label.endswith(".")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_diagrams_has_the_contrast_of_text(tabs, site, page, scheme):  # noqa: F811
    if not shows_diagrams(site, page):
        return
    base = f"{site.as_uri()}/"
    tab = tabs(base, color_scheme=scheme)
    tab.page.goto(base + page)
    for said, ink, paper in tab.page.evaluate(COLOURS):
        assert contrast(ink, paper) >= 4.5, (said, ink, paper)
    if scheme == "dark":
        paper = tab.page.evaluate(
            "getComputedStyle(document.querySelector('svg.diagram rect')).fill"
        )
        assert luminance(paper) < 0.1


def test_diagrams_are_in_the_pages_of_the_chapters(site):
    chapters = [page for page in (site / "book").glob("[0-9]*.html")]
    shown = {page.stem[:2]: page.read_text().count('class="diagram"') for page in chapters}
    without = {"10", "11"}  # these measure, and build nothing
    assert all(count for chapter, count in shown.items() if chapter not in without), shown
    ids = [
        name
        for page in chapters
        for name in re.findall(r'<svg aria-label="[^"]*"[^>]*\bid="', page.read_text())
    ]
    assert not ids
