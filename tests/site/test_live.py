"""The live network in a reader's browser, against the package."""

import contextlib
import io
import random
import re

import make_live
import numpy as np
import pytest
import test_browser
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from densenet_tutorial import data, densenet, insight

browser, server, base = test_browser.browser, test_browser.server, test_browser.base
PAGE = "book/live.html"
COUNTED = "document.querySelector('#live-right').dataset.finished === 'true'"
DRAWN = "document.querySelector('#live-random').textContent.includes('on average')"


@pytest.fixture(scope="module")
def model():
    return densenet("densenet_bc", weights="fashion-mnist-small").eval()


@pytest.fixture(scope="module")
def dataset():
    return data.load_dataset("fashion-mini")


@pytest.fixture(scope="module")
def counted(dataset):
    """The small test set: bytes, normalised images and labels."""
    chosen = make_live.test_images(dataset, make_live.COUNTED)
    pixels = dataset.test_images[chosen]
    return pixels, dataset.normalize(pixels), dataset.test_labels[chosen]


def start(tab, base):
    tab.page.goto(base + PAGE)
    tab.page.click("#live-start")
    tab.page.wait_for_selector("#prediction:not(:empty)")
    return tab.page


@pytest.fixture(scope="module")
def tab(browser, server):
    with test_browser.Tab(browser, server) as tab:
        start(tab, server)
        yield tab


@pytest.fixture
def live(tab):
    """The started page, with the first picture and no cut."""
    tab.page.evaluate("DenseNetLive.app.setCuts(new Set())")
    tab.page.select_option("#image-choice", "0")
    yield tab.page
    assert not tab.complaints and not tab.strangers


@contextlib.contextmanager
def without(model, cuts):
    """The network with cuts such as "2:0:1" (block, source, reader)."""
    with contextlib.ExitStack() as stack:
        for cut in cuts:
            block, source, target = map(int, cut.split(":"))
            stack.enter_context(
                insight.remove_connection(model, f"denseblock{block}", source, target)
            )
        yield


def predict(model, images, cuts=()):
    with without(model, cuts), torch.no_grad():
        return model(images).softmax(1)


def random_cuts(page, cuts):
    """The page's five draws of as many cuts in the same blocks."""
    return page.evaluate(
        """cuts => [1, 2, 3, 4, 5].map(seed =>
          [...DenseNetLive.network.randomCuts(DenseNetLive.app.network, new Set(cuts), seed)])""",
        cuts,
    )


def probabilities(page):
    """What the page shows, as a tensor."""
    rows = page.locator("#probabilities li").all_inner_texts()
    return torch.tensor([float(re.search(r"([\d.]+) %", row)[1]) / 100 for row in rows])


def number(text):
    return float(text.replace("−", "-").replace("+", ""))


def test_data_is_what_the_tool_makes():
    for name, content in make_live.scripts().items():
        assert (make_live.TARGET / name).read_bytes() == content, "run book/_tools/make_live.py"
    assert sum(path.stat().st_size for path in make_live.TARGET.iterdir()) < 1_000_000


def test_nothing_is_loaded_before_the_reader_starts_it(browser, base):
    with test_browser.Tab(browser, base) as tab:
        tab.page.goto(base + PAGE, wait_until="load")
        assert not [address for address in tab.requests if "_static/live/" in address]
        assert tab.page.locator("#live img:visible").count() == 1
        start(tab, base)
        loaded = {a.rsplit("/", 1)[1] for a in tab.requests if "_static/live/" in a}
        assert loaded == {path.name for path in make_live.TARGET.iterdir()}
        tab.page.wait_for_function(COUNTED, timeout=60_000)
        assert tab.page.inner_text("#live-right") == "188 of 200"
        assert not tab.complaints and not tab.strangers


def test_probabilities_of_100_images_agree(live, model, counted):
    found = live.evaluate(
        """() => [...Array(100).keys()].map(i => {
          const { network } = DenseNetLive.app, { images, data, app } = DenseNetLive;
          const picture = images.normalize(app.testPixels(i), data);
          return DenseNetLive.network.run(network, picture, 28).probabilities;
        })"""
    )
    assert (torch.tensor(found) - predict(model, counted[1][:100])).abs().max() < 1e-4


def test_the_page_shows_them_for_each_picture_to_choose(live, model, counted, dataset):
    shown = live.evaluate("DenseNetLive.data.shown")
    assert len(shown) == 20
    expected = predict(model, counted[1][shown])
    for i, one in enumerate(expected):
        live.select_option("#image-choice", str(i))
        assert (probabilities(live) - one).abs().max() < 1e-3
        assert live.inner_text("#prediction") == dataset.classes[one.argmax()]


def test_probabilities_with_50_random_sets_of_cuts_agree(live, model, counted):
    every = live.evaluate("DenseNetLive.network.connections(DenseNetLive.app.network)")
    every = [":".join(map(str, connection)) for connection in every]
    cells = live.evaluate(
        "[...document.querySelectorAll('button[data-from][data-to][data-block]')]"
        ".map(c => `${c.dataset.block}:${c.dataset.from}:${c.dataset.to}`)"
    )
    assert sorted(cells) == sorted(every) and len(every) == 3 + 15 + 45
    shown = live.evaluate("DenseNetLive.data.shown")
    draw = random.Random(0)
    for _ in range(50):
        cuts, image = draw.sample(every, draw.randint(1, 20)), draw.randrange(20)
        live.select_option("#image-choice", str(image))
        live.evaluate("cuts => DenseNetLive.app.setCuts(new Set(cuts))", cuts)
        expected = predict(model, counted[1][shown[image]][None], cuts)[0]
        assert (probabilities(live) - expected).abs().max() < 1e-3, cuts
        pressed = live.locator(".live-cell[aria-pressed=true]").count()
        assert pressed == len(cuts)


def test_a_click_cuts_and_another_restores(live, model, counted):
    boot = counted[1][:1]
    whole = probabilities(live)
    cell = live.locator("[data-block='2'][data-from='0'][data-to='1']")
    cell.click()
    cut = predict(model, boot, ["2:0:1"])[0]
    assert (probabilities(live) - cut).abs().max() < 1e-3 and (cut - whole).abs().max() > 0.01
    assert "1 of 63" in live.inner_text("#live-cut-count")
    cell.click()
    assert (probabilities(live) - whole).abs().max() < 1e-3
    cell.click()
    live.click("#live-restore")
    assert (probabilities(live) - whole).abs().max() < 1e-3


def test_things_to_try_are_as_the_text_says(live, model, counted):
    images, labels = counted[1:]
    assert int((predict(model, images).argmax(1) == labels).sum()) == 188
    buttons, known = live.locator("[data-cuts]").all(), {}
    assert len(buttons) == 4
    for button in buttons:
        cuts = button.get_attribute("data-cuts").split()
        right = int(button.get_attribute("data-right"))
        item = button.locator("xpath=ancestor::li").inner_text()
        assert re.search(rf"\b{right}\b", item)
        assert int((predict(model, images, cuts).argmax(1) == labels).sum()) == right
        button.click()
        live.wait_for_function(COUNTED, timeout=60_000)
        assert live.inner_text("#live-right") == f"{right} of 200"
        # The control: as many cuts at random.
        counts = []
        for drawn in random_cuts(live, cuts):
            key = tuple(sorted(drawn))
            if key not in known:  # two of the buttons cut as many
                known[key] = int((predict(model, images, drawn).argmax(1) == labels).sum())
            counts.append(known[key])
        control = button.get_attribute("data-random")
        assert control == f"{min(counts)} to {max(counts)}" and control in item


def test_of_the_third_thing_none_costs_anything_alone(live, model, counted):
    costs = insight.connection_costs(model, "denseblock3", *counted[1:])
    free = {f"3:{c.source}:{c.target}" for c in costs if c.lost <= c.gained}
    cuts = live.locator("[data-cuts]").last.get_attribute("data-cuts").split()
    assert set(cuts) == free and len(cuts) == 24


def test_the_count_stands_beside_random_cuts(live, model, counted):
    images, labels = counted[1:]
    cuts = ["3:8:9", "3:2:3", "3:0:2"]
    live.evaluate("cuts => DenseNetLive.app.setCuts(new Set(cuts))", cuts)
    live.wait_for_function(DRAWN, timeout=120_000)
    right = int((predict(model, images, cuts).argmax(1) == labels).sum())
    assert live.inner_text("#live-right") == f"{right} of 200"
    drawn = random_cuts(live, cuts)
    counts = [int((predict(model, images, c).argmax(1) == labels).sum()) for c in drawn]
    assert len(set(map(str, drawn))) > 1
    assert all(sorted(cut[0] for cut in each) == ["3", "3", "3"] for each in drawn)
    assert live.get_attribute("#live-random", "data-draws") == ",".join(map(str, counts))
    text = live.inner_text("#live-random")
    assert f"{np.mean(counts):.1f} on average, {min(counts)} to {max(counts)}" in text
    said = live.inner_text("#live-said")
    assert "3 of 63" in said and f"{right} of 200" in said and "on average" in said


def strips(model, image, cuts=()):
    """Each part's own maps, by the page's name for it."""
    with without(model, cuts), torch.no_grad():
        found = model.intermediate_features(image)
        scores = model(image)[0]
    own = {"stem": found["stem"][0]}
    for block, layers in (1, 1), (2, 4), (3, 8):
        maps = found[f"denseblock{block}"][0]
        for layer in range(layers):
            start = len(maps) - 24 * (layers - layer)
            own[f"{block}:{layer + 1}"] = maps[start : start + 24]
        if block < 3:
            own[f"{block}:{layers + 1}"] = found[f"transition{block}"][0]
    return own | {"3:9": scores}


def test_every_map_is_there_with_the_package_s_numbers(live, model, counted):
    own = strips(model, counted[1][:1])
    for strip in list(own)[:-1]:
        maps = live.locator(f".live-map[data-strip='{strip}']")
        assert maps.count() == len(own[strip])
    found = live.evaluate(
        """() => {
          const { network, state } = DenseNetLive.app;
          return DenseNetLive.maps.listStrips(network, 28).map(strip =>
            [strip.id, [...DenseNetLive.maps.valuesOf(network, state.trace, strip)]]);
        }"""
    )
    assert [name for name, _ in found] == list(own)
    for name, values in found:
        torch.testing.assert_close(torch.tensor(values), own[name].flatten(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strip", ["stem", "1:1", "1:2", "2:3", "2:5", "3:8", "3:9"])
def test_sums_on_the_page_add_up_to_the_number(live, model, counted, strip):
    cuts = ["2:1:3", "2:2:5", "3:4:8", "3:6:9"]
    live.evaluate("cuts => DenseNetLive.app.setCuts(new Set(cuts))", cuts)
    values = strips(model, counted[1][:1], cuts)[strip]
    if strip == "3:9":
        live.locator(".live-scores button").nth(7).click()
        expected = values[7].item()
    else:
        live.locator(f".live-map[data-strip='{strip}']").nth(5).click()
        side, at = values.shape[1], values.shape[1] // 3
        size = live.locator("#live-large").bounding_box()["width"]
        place = (at + 0.5) * size / side
        live.locator("#live-large").click(position={"x": place, "y": place + size / side})
        expected = values[5, at + 1, at].item()
    shown = number(live.inner_text(".live-steps [data-value]:not(button)"))
    assert shown == pytest.approx(expected, abs=6e-4)
    sums = live.evaluate(
        """() => [...document.querySelectorAll('.live-steps [data-total]')].map(total => {
          const list = total.closest('ul');
          const place = list.querySelector('[data-term]') ? list : list.previousElementSibling;
          const terms = [...place.querySelectorAll('[data-term]')].map(term => term.innerText);
          return [total.innerText, terms];
        })"""
    )
    assert len(sums) == {"stem": 1, "1:2": 2, "2:5": 2, "3:9": 2}.get(strip, 4)
    assert number(sums[0][0]) == shown
    for total, terms in sums:
        assert sum(map(number, terms)) == pytest.approx(number(total), abs=1e-9), terms
    if strip != "stem" and strip[0] != "1":
        assert live.locator(".live-gone").count() == 1


def test_one_can_go_back_from_a_class_to_the_picture(live):
    live.locator("#probabilities button").last.click()
    for _ in range(3):
        live.locator(".live-steps [data-pick=source]").first.click()
        live.locator(".live-steps [data-go]").first.click()
    assert live.locator("#live-layer option:checked").inner_text() == "Stem"
    assert "reads the picture" in live.inner_text("#live-reads")


def test_cells_are_the_map_of_feature_reuse(live, model):
    for block in 1, 2, 3:
        reuse = insight.feature_reuse(model, f"denseblock{block}")
        for cell in live.locator(f".live-cell[data-block='{block}']").all():
            row, column = (int(cell.get_attribute(f"data-{end}")) for end in ("from", "to"))
            weight = float(cell.get_attribute("data-weight"))
            assert weight == pytest.approx(reuse[row, column - 1].item(), rel=1e-4)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "PNG")
    return {"name": "picture.png", "mimeType": "image/png", "buffer": file.getvalue()}


def opened(page, file):
    page.evaluate("document.querySelector('.live-open').open = true")
    page.evaluate("document.querySelector('#live-opened').textContent = ''")
    page.set_input_files("#live-file", file)
    page.wait_for_function("document.querySelector('#live-opened').textContent !== ''")
    return page.inner_text("#live-opened")


def test_a_picture_of_the_right_size_is_taken_as_it_is(live, model, counted, dataset):
    for i in range(40, 48):
        opened(live, png(counted[0][i, 0]))
        expected = predict(model, counted[1][i : i + 1])[0]
        assert (probabilities(live) - expected).abs().max() < 1e-3
    assert live.input_value("#image-choice") == "opened"


def test_a_picture_is_cropped_made_grey_and_small(live, model, counted, dataset):
    # A boot eight times as large, in colour, with bright bars left and right.
    boot = counted[0][0, 0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    wide = torch.full((224, 324, 3), 255, dtype=torch.uint8)
    wide[:, 50:274] = boot[..., None]
    assert "324 × 224 pixels: the middle 224 × 224" in opened(live, png(wide))
    assert (probabilities(live) - predict(model, counted[1][:1])[0]).abs().max() < 0.02
    assert "try Invert" in opened(live, png(255 - wide[:, 50:274]))
    live.check("#live-invert")
    assert "inverted" in live.inner_text("#live-opened")
    assert (probabilities(live) - predict(model, counted[1][:1])[0]).abs().max() < 0.02
    live.uncheck("#live-invert")
    text = opened(live, {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    assert "cannot read a.png" in text


def test_drawing_with_the_mouse_and_with_the_keyboard(live):
    live.evaluate("document.querySelector('.live-draw').open = true")
    live.click("#live-clear")
    empty = probabilities(live)
    box = live.locator("#live-board").bounding_box()
    live.mouse.move(box["x"] + 60, box["y"] + 40)
    live.mouse.down()
    live.mouse.move(box["x"] + 60, box["y"] + 160, steps=5)
    live.mouse.up()
    assert live.input_value("#image-choice") == "drawn"
    drawn = live.evaluate("DenseNetLive.app.state.pixels.filter(p => p > 200).length")
    assert drawn > 20 and (probabilities(live) - empty).abs().max() > 1e-3
    live.click("#live-clear")
    live.focus("#live-board")
    for key in "ArrowUp", " ", "Shift+ArrowLeft", "Shift+ArrowLeft", "ArrowDown":
        live.keyboard.press(key)
    assert live.evaluate("DenseNetLive.app.state.pixels.filter(p => p > 200).length") >= 9
    live.click("#live-clear")
    assert (probabilities(live) - empty).abs().max() < 1e-3


def test_drawing_with_a_finger(browser, server):
    with test_browser.Tab(
        browser, server, has_touch=True, viewport={"width": 390, "height": 844}
    ) as tab:
        page = start(tab, server)
        page.evaluate("document.querySelector('.live-draw').open = true")
        page.click("#live-clear")
        page.locator("#live-board").tap()
        assert page.evaluate("DenseNetLive.app.state.pixels.filter(p => p > 200).length") > 2
        assert "right" in page.inner_text(".live-mini") or "counting" in page.inner_text(
            ".live-mini"
        )


def test_the_keyboard_reaches_every_connection(live):
    live.locator(".live-cell[tabindex='0']").focus()
    where = "(({ dataset: d }) => `${d.block}:${d.from}:${d.to}`)(document.activeElement)"
    live.keyboard.press("Home")
    assert live.evaluate(where) == "1:0:1"
    for key, at in [
        ("ArrowRight", "1:0:2"),
        ("ArrowDown", "1:1:2"),
        ("ArrowRight", "2:1:2"),
        ("End", "3:8:9"),
        ("ArrowUp", "3:7:9"),
        ("ArrowLeft", "3:7:8"),
    ]:
        live.keyboard.press(key)
        assert live.evaluate(where) == at
    live.keyboard.press("Enter")
    assert live.get_attribute(":focus", "aria-pressed") == "true"
    assert live.locator(".live-cell[tabindex='0']").count() == 1


def test_a_pass_takes_at_most_150_milliseconds(live):
    live.wait_for_function(COUNTED)
    times = live.evaluate(
        """() => [1, 2, 3, 4, 5].map(() => {
          const begin = performance.now(), { network, state } = DenseNetLive.app;
          DenseNetLive.network.run(network, state.whole.picture, 28);
          return performance.now() - begin;
        })"""
    )
    assert min(times) <= 150


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_started_page_is_accessible_and_fits(browser, server, scheme, width):
    with test_browser.Tab(
        browser, server, color_scheme=scheme, viewport={"width": width, "height": 844}
    ) as tab:
        page = start(tab, server)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        page.evaluate("DenseNetLive.app.setCuts(new Set(['2:1:3', '3:8:9']))")
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.evaluate(test_browser.CUT_OFF)[:3]
        for rules in test_browser.CONTRAST, test_browser.STRUCTURE:
            options = {"resultTypes": ["violations"], "preload": False, **rules}
            violations = Axe().run(page, options=options).response["violations"]
            assert not [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in violations]
        assert not tab.complaints


def test_without_scripts_a_figure_and_a_sentence_stand_there(browser, base):
    with test_browser.Tab(browser, base, java_script_enabled=False) as tab:
        tab.page.goto(base + PAGE)
        assert tab.page.locator("#live img:visible").count() == 1
        assert "Without scripts" in tab.page.inner_text("#live")
        assert tab.page.locator("button[data-cuts]:visible, #live-start").count() == 0


def test_on_paper_the_figure_stands_for_the_button(browser, server):
    with test_browser.Tab(browser, server) as tab:
        tab.page.goto(server + PAGE)
        tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert tab.page.locator("#live-start:visible").count() == 0
        assert "on paper" in tab.page.inner_text("#live")
