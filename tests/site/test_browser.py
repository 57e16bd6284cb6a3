"""The built site as a reader's browser shows it: from a server and from disk, light and dark, wide
and narrow.
"""

import contextlib
import functools
import gzip
import http.server
import os
import re
import threading
from urllib.parse import unquote, urlsplit

import chromium
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

try:
    chromium.find()
except OSError as error:
    if not os.environ.get("CI"):  # else these tests must not be skipped, and `browser` fails
        pytest.skip(f"the pages were not opened: {error}", allow_module_level=True)

# What axe-core looks for: contrast depends on the colours and takes most of the time; the rest
# depends on the width; once it looks for both. `label-content-name-mismatch` is off by default,
# because it is young; the bare theme fails it.
CONTRAST = {"runOnly": ["color-contrast"]}
STRUCTURE = {
    "rules": {
        "color-contrast": {"enabled": False},
        "label-content-name-mismatch": {"enabled": True},
    }
}
BOTH = {"rules": {"label-content-name-mismatch": {"enabled": True}}}
LOOKS = [
    ("light", 1280, BOTH),
    ("dark", 1280, CONTRAST),
    ("dark", 390, STRUCTURE),
]

# Each formula, and whether it was drawn with a size that one can see.
FORMULAS = """
() => [...document.querySelectorAll('article math')].map(formula => {
  for (let e = formula; e; e = e.parentElement) if (e.tagName === 'DETAILS') e.open = true;
  const box = formula.getBoundingClientRect();
  return box.width > 1 && box.height > 1;
})
"""

# What stands out of the window on the right and cannot be scrolled to, because the theme cuts it
# off.
CUT_OFF = """
() => {
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const reachable = e => e.matches('article') ? false : scrolls(e) || reachable(e.parentElement);
  return [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !reachable(e))
    .map(e => e.outerHTML.slice(0, 200));
}
"""

# Elements that ask for an icon, and those for which there is no drawing.
ICONS = """
() => {
  const asking = [...document.querySelectorAll('[class*="fa-"]')]
    .filter(e => [...e.classList].some(name => name.startsWith('fa-')));
  const bare = asking.filter(e => getComputedStyle(e).maskImage === 'none');
  return [asking.length, bare.map(e => e.outerHTML)];
}
"""

# What a page may weigh, compressed, in bytes: everything that it loads before anything is clicked,
# but for its pictures, some of which are SVG in the page. The font of formulas, which text does not
# wait for, is counted by itself.
PAGE, MATH = 150_000, 45_000
PICTURES = re.compile(rb'<svg [^>]*class="diagram.*?</svg>', re.DOTALL)
COMPRESSED = {".css", ".html", ".js", ".svg"}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(params=["server", "disk"])
def base(request, site):
    """Where the site is: its address ends in a slash."""
    return request.getfixturevalue("server") if request.param == "server" else f"{site.as_uri()}/"


class Tab:
    """A browser's tab that notes complaints and requests, those to other places than `base` too."""

    def __init__(self, browser, base, **settings):
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.complaints, self.requests, self.strangers = [], [], []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._watch(base))

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def _watch(self, base):
        def watch(request):
            self.requests.append(request.url)
            if not request.url.startswith((base, "data:", "blob:")):
                self.strangers.append(request.url)

        return watch

    def forget(self):
        for noted in self.complaints, self.requests, self.strangers:
            noted.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.fixture(scope="module")
def tabs(browser):
    """Gives the tab with these settings, in which a reader goes from page to page.

    A page in a new tab takes the browser four times as long. A tab of its own is for tests that
    click and type, look at what is loaded on a first visit, or leave something behind that the
    next page would have as well.
    """
    with contextlib.ExitStack() as stack:
        open_ = {}

        def tab(base, **settings):
            key = f"{base} {settings}"
            if key not in open_:
                open_[key] = stack.enter_context(Tab(browser, base, **settings))
            open_[key].forget()
            return open_[key]

        yield tab


def test_page_opens_without_complaint_and_draws_its_math(tabs, base, page):
    tab = tabs(base)
    tab.page.goto(base + page, wait_until="load")
    formulas = tab.page.evaluate(FORMULAS)
    assert all(formulas), f"{formulas.count(False)} of {len(formulas)} formulas not drawn"
    assert not tab.complaints
    assert not tab.strangers


def test_the_first_page_opens_the_book(browser, base):
    with Tab(browser, base) as tab:
        tab.page.goto(base + "index.html")
        tab.page.wait_for_url(base + "book/index.html")


def test_search_finds_the_bottleneck(browser, base):
    with Tab(browser, base) as tab:
        tab.page.goto(base + "search.html?q=bottleneck")
        results = tab.page.locator("#search-results li a")
        results.first.wait_for()
        assert any("02_dense_layer" in link.get_attribute("href") for link in results.all())
        assert not tab.strangers


# When what moves or fades has come to its end, and the theme has its colours.
SETTLED = """
scheme => document.documentElement.dataset.theme === scheme
  && Promise.allSettled(document.getAnimations().map(e => e.finished)).then(() => true)
"""


def test_page_is_accessible_and_fits_light_and_dark_wide_and_narrow(tabs, server, page):
    tab, before = tabs(server), None
    tab.page.emulate_media(color_scheme="light")
    tab.page.set_viewport_size({"width": 1280, "height": 844})
    tab.page.goto(server + page)
    assert all(tab.page.evaluate(FORMULAS))
    # What is folded away has to be in order as well.
    tab.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for scheme, width, rules in LOOKS:
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.set_viewport_size({"width": width, "height": 844})
        if width != before:
            tab.page.wait_for_timeout(500)  # the theme answers a change of size after a while
        before = width
        tab.page.wait_for_function(SETTLED, arg=scheme)
        # A page that can be pushed sideways is a nuisance on a phone.
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not tab.page.evaluate(CUT_OFF)[:3]
        # `preload` would fetch every style sheet again, for one rule on turned screens.
        options = {"resultTypes": ["violations"], "preload": False, **rules}
        violations = Axe().run(tab.page, options=options).response["violations"]
        assert not [
            (
                scheme,
                width,
                violation["id"],
                [node["html"][:200] for node in violation["nodes"]],
            )
            for violation in violations
        ]


def test_every_icon_is_drawn_and_the_page_is_light(browser, server, site, page):
    with Tab(browser, server) as tab:
        tab.page.goto(server + page, wait_until="load")
        assert not tab.complaints and not tab.strangers
        weights = {"page": 0, "math": 0}
        for address in tab.requests:
            path = unquote(urlsplit(address).path).lstrip("/")
            assert "fontawesome" not in path
            if address.startswith("data:") or "_images/" in path:
                continue
            file = site / path
            content = file.read_bytes()
            if file.suffix == ".html":
                content = PICTURES.sub(b"", content)
            size = len(gzip.compress(content) if file.suffix in COMPRESSED else content)
            weights["math" if file.name == "math.woff2" else "page"] += size
        assert 50_000 < weights["page"] < PAGE and weights["math"] < MATH, weights
        for scheme in "light", "dark":
            tab.page.emulate_media(color_scheme=scheme)
            asking, bare = tab.page.evaluate(ICONS)
            assert asking > 5 and not bare


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
# Whatever says how something looks: variables of the theme among them.
LOOK = """
[...document.querySelectorAll('body, h1, article a, article code, article pre span')]
  .map(e => getComputedStyle(e)).map(s => `${s.color} ${s.backgroundColor}`)
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_wait_for_no_script(browser, server, scheme):
    """Neither for the theme's own, which come last, nor for scripts that never come."""
    page = server + "book/02_dense_layer.html"
    with Tab(browser, server, color_scheme=scheme) as tab:
        tab.page.goto(page)
        background, look = tab.page.evaluate(BACKGROUND), tab.page.evaluate(LOOK)
    with Tab(browser, server, color_scheme=scheme) as tab:
        tab.page.route("**/*.js*", lambda route: route.abort())
        tab.page.goto(page)
        assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme
        assert tab.page.evaluate(BACKGROUND) == background
    with Tab(browser, server, color_scheme=scheme, java_script_enabled=False) as tab:
        tab.page.goto(page)
        assert tab.page.evaluate(BACKGROUND) == background
        assert tab.page.evaluate(LOOK) == look
        assert not tab.page.evaluate(ICONS)[1]


def test_a_chosen_mode_is_there_before_any_script(browser, server):
    with Tab(browser, server, color_scheme="light") as tab:
        tab.page.goto(server + "book/index.html")
        tab.page.evaluate("localStorage.setItem('mode', 'dark')")
        tab.page.route("**/*.js*", lambda route: route.abort())
        tab.page.goto(server + "book/02_dense_layer.html")
        assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
