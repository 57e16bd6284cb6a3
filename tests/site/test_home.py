"""The first page: what is seen without scrolling, numbers that are those of the files, a card for
each chapter, and the same without scripts.
"""

import itertools
import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, toc_files
from test_browser import CUT_OFF, Tab, base, browser, server  # noqa: F401  (fixtures)

HOME = "book/index.html"
CHAPTERS = [name for name in toc_files() if re.match(r"book/\d\d_", name)]
BUTTONS = ["Start reading", "Open in Colab", "Teach with it"]

# The lower edge of everything that has to be seen at once.
LOWER_EDGE = """
selectors => selectors.flatMap(s => [...document.querySelectorAll(s)])
  .map(e => e.getBoundingClientRect()).map(box => box.height > 0 ? box.bottom : Infinity)
"""


def content(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


@pytest.fixture
def home(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 1280, "height": 800}) as tab:
        tab.page.goto(server + HOME)
        yield tab.page


def test_one_screen_says_what_it_is_and_shows_it(home):
    wanted = [".promise", ".shown .explorer", ".actions a", ".numbers li"]
    edges = home.evaluate(LOWER_EDGE, wanted)
    assert len(edges) == 1 + 1 + 5 + 3 and max(edges) <= 800
    assert home.locator(".actions p").first.locator("a").all_inner_texts() == BUTTONS
    assert len(re.findall(r"[.?!](?:\s|$)", home.locator(".promise").inner_text())) == 1


def test_a_phone_shows_the_promise_and_where_to_begin(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 390, "height": 844}) as tab:
        tab.page.goto(server + HOME)
        wanted = [".promise", ".actions a"]
        assert max(tab.page.evaluate(LOWER_EDGE, wanted)) <= 844
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        for button in tab.page.locator(".actions p").first.locator("a").all():
            assert button.bounding_box()["height"] >= 44


def test_buttons_lead_there(home):
    first = CHAPTERS[0].removeprefix("book/")
    links = [a.get_attribute("href") for a in home.locator(".actions a").all()]
    assert links[0] == f"{first}.html" and links[2] == "appendix/instructors.html"
    repository = re.search(r"url: https://github\.com/(\S+)", (ROOT / "_config.yml").read_text())
    assert links[1] == (
        f"https://colab.research.google.com/github/{repository[1]}/blob/main/book/{first}.ipynb"
    )
    assert links[3:] == ["explorer.html", "live.html"]


def test_numbers_are_those_of_the_files(home):
    memory, accuracy, speed = home.locator(".numbers li").all()

    results = content("book/results/memory-densenet121-cpu.json")
    rows = {row["name"]: row for row in results["figures"]}

    def kept(name):
        return f"{rows[name]['saved'] / results['setting']['batch_size'] / 1024**2:.1f}"

    ours = rows["ours, minimal"]
    text = memory.inner_text()
    assert text.startswith(f"{kept('ours, minimal')} MiB")
    assert f"torchvision’s keeps {kept('torchvision')}," in text
    assert f"{kept('torchvision, memory-efficient')} in its memory-efficient mode" in text
    on_gpu = content("densenet_tutorial/experiments/results/speed-densenet121-gpu.json")
    (minimal,) = (
        row["ratio"]
        for row in on_gpu["figures"]
        if (row["name"], row["batch_size"]) == ("ours, minimal, channels_last", 64)
    )
    assert f"takes {ours['ratio']:.2f} times as long on a CPU, {minimal:.1f} times on" in text

    weights = content("densenet_tutorial/weights/bundled/fashion-mnist-small.json")
    text = accuracy.inner_text()
    assert text.startswith(f"{100 * weights['test_accuracy']:.2f} %")
    assert f"{weights['parameters']:,} parameters" in text
    assert weights["config"]["device"] == "cpu" and "trained on a CPU" in text

    runs = []
    for run in ("", "-run2", "-run3"):
        results = content(f"densenet_tutorial/experiments/results/speed-densenet121-cpu{run}.json")
        runs.append(
            {
                row["name"]: 1 / row["ratio"]
                for row in results["figures"]
                if row["task"] == "predict" and row["batch_size"] == 8
            }
        )
    least, *_, best = sorted(runs, key=lambda gains: gains["optimized"])
    text = speed.inner_text()
    assert text.startswith(f"{least['optimized']:.1f} ×") and "eight images at a time" in text
    assert f"({best['optimized']:.1f} × in the best)" in text
    assert f"gives {least['torchvision, channels_last']:.1f} ×" in text


def test_each_number_has_its_proof(home):
    for number, heading in zip(
        home.locator(".numbers li").all(),
        ("memory-and-time", "weights-that-come", "time-of-prediction"),
        strict=True,
    ):
        link = number.locator("a").last.get_attribute("href")
        assert link.startswith(f"appendix/results.html#{heading}")


def test_every_chapter_has_a_card(home, site):
    cards = home.locator("ol.cards > li").all()
    assert len(cards) == len(CHAPTERS)
    drawings = set()
    for card, name in zip(cards, CHAPTERS, strict=True):
        first = "".join(content(f"{name}.ipynb")["cells"][0]["source"])
        link = card.locator("h3 a")
        assert link.inner_text() == re.match("# (.+)", first)[1]
        assert (site / "book" / link.get_attribute("href")) == site / f"{name}.html"
        text = card.inner_text()
        assert f"{re.search(r'about ([0-9]+) minutes', first)[1]} minutes" in text
        question = re.search(r"question of this chapter:\*\* (.+)", first)[1]
        asked = card.locator("p").first.inner_text()
        said, letters = (re.sub(r"\W", "", words) for words in (asked, question))
        assert said == letters[0].upper() + letters[1:]
        needs = [int(n) for n in re.findall(r"\d+", text.rpartition("needs")[2])]
        needed = re.search(r"^You need .+", first, re.MULTILINE)[0]
        assert needs == sorted({int(n) for n in re.findall(r"\((\d\d)_", needed)})
        box = card.locator("svg").bounding_box()
        assert box["width"] >= 90 and box["height"] >= 60
        drawings.add(card.locator("svg").inner_html())
    assert len(drawings) == len(CHAPTERS)


def test_all_of_a_card_is_its_link(home):
    home.locator("ol.cards > li").nth(2).locator("svg").click(force=True)
    home.wait_for_url(f"**/{CHAPTERS[2]}.html")
    home.go_back()
    home.locator("ul.cards > li").nth(1).locator("p").click(force=True)
    home.wait_for_url("**/live.html")


def test_the_block_in_small_can_be_played_with(home):
    small = home.locator(".explorer-small")
    assert "layer 3 reads 16 = 8 + 4 + 4 channels, adds 4." in small.inner_text()
    small.locator("input").fill("12")
    assert "reads 32 = 8 + 12 + 12 channels" in small.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_without_scripts_a_drawing_takes_its_place(browser, base, scheme, width):  # noqa: F811
    settings = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    with Tab(browser, base, java_script_enabled=False, **settings) as tab:
        tab.page.goto(base + HOME)
        drawing = tab.page.locator(".explorer-small > svg")
        assert drawing.bounding_box()["width"] > 300
        assert "Layer 3 reads 16" in drawing.get_attribute("aria-label")
        assert not tab.page.get_by_text("move the slider").is_visible()
        smallest = tab.page.evaluate(
            """() => {
              const svg = document.querySelector('.explorer-small svg');
              const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
              return Math.min(...[...svg.querySelectorAll('text')].map(
                e => parseFloat(getComputedStyle(e).fontSize) * scale));
            }"""
        )
        assert smallest >= 11
        assert not tab.page.evaluate(CUT_OFF)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not tab.strangers


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_drawing_is_accessible(browser, server, scheme):  # noqa: F811
    """What comes later, with scripts, is in the test of all pages."""
    with Tab(browser, server, color_scheme=scheme) as tab:
        tab.page.route("**/explorer/*.js*", lambda route: route.abort())
        tab.page.goto(server + HOME)
        assert tab.page.locator(".explorer-small > svg").is_visible()
        response = Axe().run(tab.page, options={"resultTypes": ["violations"]}).response
        assert not [each["id"] for each in response["violations"]]


def test_little_moves_when_the_explorer_comes(browser, server):  # noqa: F811
    for width in 390, 1280:
        heights = []
        for scripts in False, True:
            settings = {"viewport": {"width": width, "height": 844}, "java_script_enabled": scripts}
            with Tab(browser, server, **settings) as tab:
                tab.page.goto(server + HOME)
                heights.append(tab.page.locator(".explorer-small").bounding_box()["height"])
        assert abs(heights[0] - heights[1]) < 12, (width, heights)


def test_headings_are_in_order_and_in_the_typeface(home):
    levels = home.evaluate(
        "[...document.querySelectorAll('article :is(h1, h2, h3)')].map(e => +e.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    faces = "document.fonts.ready.then(() => [...document.fonts].map(f => [f.family, f.status]))"
    loaded = {name.strip('"') for name, status in home.evaluate(faces) if status == "loaded"}
    assert "Figtree" in loaded


def test_the_typeface_is_small_and_has_its_licence(site):
    static = site / "_static"
    assert (static / "typeface.woff2").stat().st_size < 45_000
    assert "SIL Open Font License" in (static / "typeface.LICENSE").read_text(encoding="utf-8")


def test_all_places_are_filled(site):
    text = (site / HOME).read_text(encoding="utf-8")
    article = re.search("<article.*</article>", text, re.DOTALL)[0]
    assert "{{" not in article and "}}" not in article
    assert "Second edition" in article


def test_other_pages_do_not_load_its_style(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}{CHAPTERS[1]}.html")
        assert not [address for address in tab.requests if "home" in address.rpartition("/")[2]]


SHIFTS = """
() => new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => list.getEntries().forEach(each => { sum += each.value; }))
    .observe({type: 'layout-shift', buffered: true});
  setTimeout(() => done(sum), 300);
})
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_jumps_while_the_page_loads(browser, server, width):  # noqa: F811
    with Tab(browser, server, viewport={"width": width, "height": 844}) as tab:
        session = tab.context.new_cdp_session(tab.page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        tab.page.goto(server + HOME)
        tab.page.wait_for_timeout(500)
        assert tab.page.evaluate(SHIFTS) < 0.05  # 0.1 counts as good
