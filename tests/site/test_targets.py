"""Controls: large enough for a thumb on a phone, and visible where the keyboard is."""

import itertools

import pytest
from test_browser import Tab, browser, server  # noqa: F401  (fixtures)

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
PAGES = [
    "book/index.html",
    "book/05_densenet.html",
    "book/10_claims_measured.html",
    "book/explorer.html",
    "book/appendix/results.html",
    "book/appendix/glossary.html",
    "search.html",
]

# Controls of less than 44 × 44 pixels. A link in a line of text is as high as the line. A label is
# part of its control, and so is the whole card of a link that fills it.
SMALL = """
([ignored, root]) => [...document.querySelector(root).querySelectorAll(
    'a[href], button, summary, input, select, textarea, [role=button]')]
  .filter(e => !e.matches('.skip-link a, a.skip-link, .headerlink')
    && !e.closest(':is(p, li, td, dd, dt, figcaption, .footer-items__start) a:not(nav a)')
    && (!ignored || !e.matches(ignored)))
  .filter(e => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
  .map(e => {
    const boxes = [e, e.closest('label'), e.closest('.cards > li')].filter(Boolean)
      .map(part => part.getBoundingClientRect());
    return [Math.max(...boxes.map(b => b.width)), Math.max(...boxes.map(b => b.height)),
            e.outerHTML.slice(0, 120)];
  })
  .filter(([width, height]) => width > 1 && height > 1 && (width < 43.5 || height < 43.5))
"""
# Whether one sees that an element has the focus: itself, or the drawing that stands for it.
SEEN = """
() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const drawn = s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2;
  const all = [e, e.nextElementSibling, e.closest('label'), e.closest('li')].filter(Boolean);
  const styles = [...all.map(part => getComputedStyle(part)),
    getComputedStyle(e, '::after'), getComputedStyle(e, '::before')];
  const visible = parseFloat(getComputedStyle(e).opacity) > 0 || all.length > 1;
  return [visible && styles.some(drawn), e.outerHTML.slice(0, 140)];
}
"""


@pytest.mark.parametrize("place", PAGES)
def test_controls_fit_a_thumb(browser, server, place):  # noqa: F811
    with Tab(browser, server, **PHONE) as tab:
        tab.page.goto(server + place)
        tab.page.wait_for_timeout(300)
        assert not tab.page.evaluate(SMALL, ["", "body"])[:5]
        # The two side bars, which lie outside until they are asked for.
        for button in ".primary-toggle", ".secondary-toggle":
            if tab.page.locator(button).count() and tab.page.locator(button).first.is_visible():
                tab.page.locator(button).first.click()
                tab.page.wait_for_timeout(500)
                assert not tab.page.evaluate(SMALL, ["", "body"])[:5]
                tab.page.keyboard.press("Escape")
                tab.page.wait_for_timeout(500)


def test_connections_of_the_live_network_fit_a_thumb(browser, server):  # noqa: F811
    with Tab(browser, server, **PHONE) as tab:
        tab.page.goto(server + "book/live.html")
        tab.page.locator("#live-start").tap()
        tab.page.locator(".live-cell").first.wait_for()
        tab.page.wait_for_timeout(500)
        tab.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        # A map can be chosen by its number as well, and a class in the list of probabilities.
        assert not tab.page.evaluate(SMALL, [".live-map, .live-scores button", "body"])[:5]
        block = tab.page.locator(".live-block").last
        last = tab.page.locator('.live-cell[data-block="3"]').last
        assert last.bounding_box()["x"] > 390
        block.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
        assert last.bounding_box()["x"] + 44 <= 390
        last.tap()
        assert last.get_attribute("aria-pressed") == "true"
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_arcs_stay_with_the_block_that_scrolls(browser, server):  # noqa: F811
    starts = """() => [...document.querySelectorAll('#live-arcs path')]
      .map(path => parseFloat(path.getAttribute('d').slice(1)))"""
    with Tab(browser, server, **PHONE) as tab:
        tab.page.goto(server + "book/live.html")
        tab.page.locator("#live-start").tap()
        tab.page.locator(".live-cell").first.wait_for()
        layer = tab.page.locator(".live-column").nth(-3)
        layer.locator(".live-map").first.evaluate("e => e.click()")
        before = tab.page.evaluate(starts)
        tab.page.locator(".live-block").last.evaluate("e => { e.scrollLeft = 40; }")
        tab.page.wait_for_timeout(200)
        after = tab.page.evaluate(starts)
        assert before and [round(b - a) for a, b in zip(after, before, strict=True)] == [40] * len(
            before
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_touch_sees_what_copies(browser, server, scheme):  # noqa: F811
    with Tab(browser, server, color_scheme=scheme, **PHONE) as tab:
        tab.page.goto(server + "book/02_dense_layer.html")
        button = tab.page.locator(".cell_input button.copybtn:visible").first
        assert button.evaluate("e => getComputedStyle(e).opacity") == "1"
        box = button.bounding_box()
        assert box["width"] >= 44 and box["height"] >= 44
        assert box["x"] + box["width"] <= 390


@pytest.mark.parametrize("place", ["book/04_transition.html", "book/appendix/glossary.html"])
def test_a_phone_says_which_book_this_is(browser, server, place):  # noqa: F811
    with Tab(browser, server, viewport={"width": 390, "height": 844}) as tab:
        tab.page.goto(server + place)
        title = tab.page.locator(".bd-header-article .header-title")
        assert title.inner_text() == "DenseNet, step by step" and title.is_visible()
        buttons = tab.page.locator(".bd-header-article .btn:visible").all()
        boxes = sorted([each.bounding_box() for each in [title, *buttons]], key=lambda b: b["x"])
        for a, b in itertools.pairwise(boxes):
            assert a["x"] + a["width"] <= b["x"] + 1
        assert boxes[-1]["x"] + boxes[-1]["width"] <= 390
        tab.page.set_viewport_size({"width": 1280, "height": 844})
        assert not title.is_visible()  # it stands in the side bar
        tab.page.set_viewport_size({"width": 390, "height": 844})
        title.click()
        tab.page.wait_for_url("**/book/index.html")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    ("place", "scheme"),
    [
        ("book/04_transition.html", "light"),
        ("book/04_transition.html", "dark"),
        ("book/index.html", "light"),
        ("book/explorer.html", "dark"),
    ],
)
def test_one_sees_where_the_keyboard_is(browser, server, place, scheme, width):  # noqa: F811
    with Tab(browser, server, color_scheme=scheme, viewport={"width": width, "height": 844}) as tab:
        tab.page.goto(server + place)
        tab.page.wait_for_timeout(300)
        seen = []
        for _ in range(120):
            tab.page.keyboard.press("Tab")
            found = tab.page.evaluate(SEEN)
            if found is None:
                break
            seen.append(found)
        assert len(seen) > 20
        assert not [text for visible, text in seen if not visible][:5]
