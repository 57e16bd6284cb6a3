"""Step through a block, chapters 2 and 3, in a reader's browser, against the package."""

import itertools
import re

import make_step
import pytest
import test_browser
import torch
from axe_playwright_python.sync_playwright import Axe
from torch.nn import functional as F

from densenet_tutorial import data

browser, server, base = test_browser.browser, test_browser.server, test_browser.base
BLOCK, LAYER = "book/03_dense_block.html", "book/02_dense_layer.html"
LAYERS, KINDS = 4, ["norm1", "relu1", "conv1", "norm2", "relu2", "conv2"]
CONTENT = make_step.content_of(make_step.TARGET)
#: Name of a step, and its layer.
FORWARD = [
    ("start", 0),
    *((kind, layer) for layer in range(1, 5) for kind in ("read", *KINDS, "join")),
    ("end", 5),
]
SHOW = (
    "([way, step]) => { const v = DenseNetStep.views[0]; v.way = way; v.at[way] = step; v.show(); }"
)


def start(tab, base, page=BLOCK):
    tab.page.goto(base + page)
    tab.page.click(".step-start button")
    tab.page.wait_for_selector(".step-said:not(:empty)")
    return tab.page


def show(page, way, step):
    page.evaluate(SHOW, [way, step])


@pytest.fixture(scope="module")
def tab(browser, server):
    with test_browser.Tab(browser, server) as tab:
        start(tab, server)
        yield tab


@pytest.fixture
def opened(tab):
    show(tab.page, "backward", 0)
    show(tab.page, "forward", 0)
    yield tab.page
    assert not tab.complaints and not tab.strangers


@pytest.fixture(scope="module")
def model():
    return make_step.stored()


@pytest.fixture(scope="module")
def boot():
    dataset = data.load_dataset("fashion-mini")
    return dataset.normalize(dataset.test_images[:1])


@pytest.fixture(scope="module")
def maps(model, boot):
    """What every module of the block makes of the boot, (C, H, W), by layer and name."""
    found = {}

    def keep(place):
        return lambda module, inputs, output: found.__setitem__(place, output[0].clone())

    block = model.features.denseblock1
    hooks = [
        getattr(layer, kind).register_forward_hook(keep((l, kind)))
        for l, layer in enumerate(block.values(), start=1)
        for kind in KINDS
    ]
    with torch.no_grad():
        features = block(model.features.conv0(boot))[0]
        found["scores"] = model(boot)[0]
    for hook in hooks:
        hook.remove()
    found["features"] = features
    for l in range(1, LAYERS + 1):
        found[l, "read"] = features[: 4 + 4 * l]
    return found


@pytest.fixture(scope="module")
def gradients(model, boot, maps):
    """What each reader, from 1, passes to all that it reads, and the sum for every map."""
    pieces, passed = [model.features.conv0(boot).detach().requires_grad_()], {}

    def read(reader):
        passed[reader] = [piece.clone() for piece in pieces]  # each reader has its own copy
        for copy in passed[reader]:
            copy.retain_grad()
        return passed[reader]

    for l, layer in enumerate(model.features.denseblock1.values(), start=1):
        pieces.append(layer(read(l)))
        pieces[-1].retain_grad()
    last = F.relu(model.features.norm5(torch.cat(read(LAYERS + 1), 1)))
    scores = model.classifier(last.mean((2, 3)))[0]
    assert (scores.detach() - maps["scores"]).abs().max() < 1e-4
    scores[scores.argmax()].backward()
    found = {r: torch.cat([c.grad for c in copies], 1)[0] for r, copies in passed.items()}
    found["total"] = torch.cat([piece.grad for piece in pieces], 1)[0]
    return found


def close(numbers, expected, tolerance=2e-4):
    shown = torch.tensor(list(numbers), dtype=torch.float32).view(expected.shape)
    assert (shown - expected).abs().max() < tolerance * max(1e-6, expected.abs().max())


def value(text):
    return float(text.replace("−", "-"))


def numbers(text):
    return [value(found) for found in re.findall(r"−?\d+\.\d+", text)]


# ------------------------------------------------------------------------------- what is loaded


def test_data_is_what_the_tool_makes(model):
    folder = make_step.TARGET.parent
    made = make_step.script(model)
    fresh = make_step.json.loads(made.decode().removeprefix(make_step.START).rstrip(";\n"))
    # A picture on the edge may fall to the other side on another processor.
    assert abs(fresh.pop("right") - CONTENT["right"]) <= 2
    assert fresh == {k: v for k, v in CONTENT.items() if k != "right"}, "run make_step.py"
    assert CONTENT["right"] / CONTENT["tested"] > 0.8
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != "start.js")
    assert size < 66_000  # the button says 65 KB


def test_the_code_is_that_of_the_chapters(site):
    for page, names in ((BLOCK, ["DenseBlock"]), (LAYER, ["DenseLayer"])):
        text = re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8"))
        text = text.replace("&gt;", ">").replace("&#39;", "'").replace("&quot;", '"')
        for name, lines in CONTENT["code"]:
            if name.split(".")[0] in names:
                assert "\n".join(lines) in text


def test_nothing_is_loaded_before_the_reader_starts_it(browser, base, site):
    with test_browser.Tab(browser, base) as tab:
        tab.page.goto(base + BLOCK, wait_until="load")
        asked = {a.rsplit("/", 1)[1] for a in tab.requests if "_static/step/" in a}
        assert {name.partition("?")[0] for name in asked} == {"start.js"}
        assert not tab.page.locator(".step-without").is_visible()
        tab.page.click(".step-start button")
        tab.page.wait_for_selector(".step-said:not(:empty)")
        asked = {
            a.rsplit("/", 1)[1].partition("?")[0] for a in tab.requests if "_static/step/" in a
        }
        assert asked == {path.name for path in make_step.TARGET.parent.iterdir()}
        assert not tab.complaints and not tab.strangers
    for path in (site / "book").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert ('class="step-through' in text) == ("step/start.js" in text), path


# -------------------------------------------------------------------------- numbers and pictures


def test_a_double_click_opens_one(browser, server):
    with test_browser.Tab(browser, server) as tab:
        tab.page.goto(server + BLOCK)
        tab.page.dblclick(".step-start button")
        tab.page.wait_for_selector(".step-said:not(:empty)")
        assert tab.page.locator(".step").count() == 1


def test_every_map_is_the_packages(opened, maps):
    trace = opened.evaluate(
        """() => {
          const { features, layers, scores } = DenseNetStep.views[0].trace;
          const plain = layers.map(
            l => Object.fromEntries(Object.entries(l).map(([k, v]) => [k, [...v]])));
          return { features: [...features], scores: [...scores], layers: plain };
        }"""
    )
    close(trace["features"], maps["features"])
    close(trace["scores"], maps["scores"])
    for l, layer in enumerate(trace["layers"], start=1):
        assert set(layer) == {"read", *KINDS}
        for kind, found in layer.items():
            close(found, maps[l, kind])


def test_every_gradient_is_the_packages(opened, gradients):
    found = opened.evaluate(
        """() => {
          const { passed, total } = DenseNetStep.views[0].gradient;
          return { total: [...total], passed: passed.map(p => [...p]) };
        }"""
    )
    close(found["total"], gradients["total"])
    for reader in range(1, LAYERS + 2):
        close(found["passed"][reader], gradients[reader])


def test_every_step_says_shows_and_marks_what_happens(opened, model, maps):
    block = model.features.denseblock1
    for index, (kind, l) in enumerate(FORWARD):
        show(opened, "forward", index)
        said, stage = opened.inner_text(".step-said"), opened.inner_text(".step-stage")
        assert said.startswith(f"Step {index + 1} of {len(FORWARD)}: ")
        marked = opened.locator(".step-code mark").all_inner_texts()
        code = opened.locator(".step-marked").all_inner_texts()
        assert len(marked) == len(code) == 1
        # The strip: as many maps as there are by now, by source.
        here = {"start": 1, "end": 5, "join": l + 1}.get(kind, l)
        groups = opened.locator(".step-strip .step-group")
        assert groups.count() == here
        counts = [groups.nth(i).locator("canvas").count() for i in range(here)]
        assert counts == [8, 4, 4, 4, 4][:here]
        assert f"{sum(counts)} × 28 × 28" in opened.inner_text(".step-title")
        lit = opened.locator(".step-strip .step-lit").count()
        assert lit == (l if kind == "read" else kind == "join")
        if kind in ("start", "end"):
            continue
        layer = block[f"denselayer{l}"]
        expected = maps[l, {"join": "conv2"}.get(kind, kind)]
        assert f"layer {l}, " in said
        assert f"{len(expected)} × 28 × 28" in stage
        assert numbers(stage)[-2:] == pytest.approx(
            [expected.min().item(), expected.max().item()], abs=0.0051
        )
        if kind in KINDS:
            assert marked == [f"self.{kind}"] and hasattr(layer, kind)
            part = getattr(layer, kind)
            if kind.startswith("conv"):
                assert f"{part.in_channels} to {part.out_channels} channels" in said
                assert f"{part.weight.numel()} weights" in said
                shape = " × ".join(map(str, part.weight.shape))
                assert f"{shape} = {part.weight.numel()}" in stage
                assert numbers(stage)[:2] == pytest.approx(
                    [part.weight.min().item(), part.weight.max().item()], abs=0.0051
                )
                # Every weight is a cell, in a row for each map that is made.
                size = opened.evaluate(
                    "(c => [c.width, c.height])(document.querySelector('.step-weights canvas'))"
                )
                across = part.in_channels * (4 if kind == "conv2" else 1)
                assert size == [across, part.out_channels * (4 if kind == "conv2" else 1)]
            elif kind.startswith("norm"):
                assert f"{sum(p.numel() for p in part.parameters())} learned numbers" in said
                scale = part.weight[0] / (part.running_var[0] + part.eps).sqrt()
                shift = part.bias[0] - part.running_mean[0] * scale
                found = re.search(r"Channel 1: (\S+) × x ([−+]) (\S+)", stage)
                assert value(found[1]) == pytest.approx(scale.item(), abs=6e-4)
                assert value(found[3]) == pytest.approx(abs(shift.item()), abs=6e-4)
                assert (found[2] == "−") == (shift.item() < 0)
            else:
                before = maps[l, kind.replace("relu", "norm")]
                share = 100 * (before > 0).float().mean().item()
                assert value(re.search(r"([\d.]+) %", stage)[1]) == pytest.approx(share, abs=0.051)
        elif kind == "read":
            assert marked == ["torch.cat(inputs, 1)"]
            assert f"{len(expected)} channels" in said
        else:
            assert marked == ["features + [layer(features)]"]
            assert f"{4 + 4 * l} + 4 = {8 + 4 * l} channels" in said
    assert "Ankle boot" in stage
    share = 100 * maps["scores"].softmax(0).max().item()
    assert value(re.search(r"([\d.]+) %", stage)[1]) == pytest.approx(share, abs=0.051)


def test_a_map_is_painted_pixel_by_pixel(opened, maps):
    """Channel 2 of layer 1 in the strip at the end: its colours say sign and size."""
    show(opened, "forward", len(FORWARD) - 1)
    painted = opened.evaluate(
        """() => {
          const c = document.querySelectorAll('.step-strip .step-source-1 canvas')[1];
          return [...c.getContext('2d').getImageData(0, 0, 28, 28).data];
        }"""
    )
    painted = torch.tensor(painted).view(28, 28, 4)[..., :3].float()
    four = maps["features"][8:12]
    most = four.abs().flatten().sort().values[int(0.98 * (four.numel() - 1))]
    share = (maps["features"][9] / most).clamp(-1, 1)[..., None]
    ends = [torch.tensor(c) for c in ([179.0, 88, 6], [244.0, 242, 247], [94.0, 60, 153])]
    expected = torch.where(
        share > 0, ends[1] + (ends[2] - ends[1]) * share, ends[1] - (ends[0] - ends[1]) * share
    )
    assert (painted - expected).abs().max() <= 1


def test_gradients_arrive_reader_by_reader(opened, gradients):
    steps = [("start", 5)]
    steps += [(kind, l) for l in range(4, 0, -1) for kind in ("take", "pass")] + [("end", 0)]
    begins = [0, 8, 12, 16, 20, 24]
    for index, (kind, l) in enumerate(steps):
        show(opened, "backward", index)
        assert opened.inner_text(".step-said").startswith(f"Step {index + 1} of {len(steps)}: ")
        readers = [r for r in range(5, 0, -1) if r >= {"take": l + 1, "end": 1}.get(kind, l)]
        arrived = torch.zeros(24, 28, 28)
        for reader in readers:
            arrived[: len(gradients[reader])] += gradients[reader]
        sizes = [numbers(t)[0] for t in opened.locator(".step-strip .step-size").all_inner_texts()]
        expected = [1000 * arrived[a:b].abs().mean().item() for a, b in itertools.pairwise(begins)]
        assert sizes == pytest.approx(expected, abs=0.0051)
        stage = opened.inner_text(".step-stage")
        if kind in ("take", "end"):
            own = slice(begins[l], begins[l + 1])
            parts = [1000 * gradients[r][own].abs().mean().item() for r in readers]
            total = [1000 * arrived[own].abs().mean().item()] if len(readers) > 1 else []
            shown = [value(n) for n in re.findall(r"(\S+) thousandths", stage)]
            assert shown == pytest.approx(parts + total, abs=0.0051)
        else:
            groups = opened.locator(".step-stage .step-group").count()
            assert groups == l  # one for each source that was read
        assert opened.locator(".step-code mark").count() == (2 if kind == "pass" else 1)
    assert torch.allclose(arrived, gradients["total"], rtol=1e-4, atol=1e-7)


def test_the_layer_of_chapter_2(browser, base, maps):
    with test_browser.Tab(browser, base) as tab:
        page = start(tab, base, LAYER)
        assert page.locator("[role=tab]").count() == 0
        for index, kind in enumerate(["start", "read", *KINDS, "join"]):
            assert page.inner_text(".step-said").startswith(f"Step {index + 1} of 9: ")
            assert page.locator(".step-code mark").count() == 1
            if kind in KINDS:
                assert page.inner_text(".step-code mark") == f"self.{kind}"
                expected = maps[1, kind]
                assert numbers(page.inner_text(".step-stage"))[-2:] == pytest.approx(
                    [expected.min().item(), expected.max().item()], abs=0.0051
                )
            page.keyboard.press("ArrowRight")
        assert "8 + 4 = 12 channels" in page.inner_text(".step-said")
        assert "DenseBlock" not in page.inner_text(".step-code")
        assert not tab.complaints and not tab.strangers


# ------------------------------------------------------------------------------------ using it


def test_buttons_and_arrow_keys_move_and_nothing_else_does(opened):
    said = opened.locator(".step-said")
    assert opened.get_attribute(".step-said", "aria-live") == "polite"
    opened.click(".step-next")
    opened.click(".step-next")
    assert said.inner_text().startswith("Step 3 of 34: layer 1, norm")
    assert said.inner_text().endswith("Marked in the code: self.norm1.")
    opened.wait_for_timeout(1500)
    assert said.inner_text().startswith("Step 3 of 34")
    opened.click(".step-back")
    assert said.inner_text().startswith("Step 2 of 34")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    assert said.inner_text().startswith(
        "Step 5 of 34: layer 1, 1 × 1 convolution: 8 to 16 channels, 128 weights."
    )
    opened.keyboard.press("ArrowLeft")
    assert said.inner_text().startswith("Step 4 of 34")
    # A click into it is enough; outside of it the keys are the page's.
    opened.click(".step-title")
    opened.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("Step 5 of 34")
    opened.evaluate("document.activeElement.blur()")
    opened.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("Step 5 of 34")


def test_the_ends_keep_the_focus(opened):
    opened.focus(".step-next")
    for _ in range(40):
        opened.keyboard.press("Enter")
    assert opened.inner_text(".step-said").startswith("Step 34 of 34")
    assert opened.get_attribute(".step-next", "aria-disabled") == "true"
    assert opened.evaluate("document.activeElement.className") == "step-next"
    opened.focus(".step-back")
    for _ in range(40):
        opened.keyboard.press("Enter")
    assert opened.inner_text(".step-said").startswith("Step 1 of 34")
    assert opened.get_attribute(".step-back", "aria-disabled") == "true"


def test_tabs_keep_their_step(opened):
    opened.click(".step-next")
    opened.focus("#step-forward")
    opened.keyboard.press("ArrowRight")
    assert opened.get_attribute("#step-backward", "aria-selected") == "true"
    assert opened.evaluate("document.activeElement.id") == "step-backward"
    assert opened.inner_text(".step-said").startswith("Step 1 of 10")
    opened.click(".step-next")
    assert opened.inner_text(".step-said").startswith("Step 2 of 10")
    opened.click("#step-forward")
    assert opened.inner_text(".step-said").startswith("Step 2 of 34")
    opened.click("#step-backward")
    assert opened.inner_text(".step-said").startswith("Step 2 of 10")


SMALLEST = """
() => Math.min(...[...document.querySelectorAll('.step *')]
  .filter(e => e.innerText && e.getBoundingClientRect().width > 2)
  .map(e => parseFloat(getComputedStyle(e).fontSize)))
"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
@pytest.mark.parametrize("chapter", [BLOCK, LAYER])
def test_accessible_and_no_wider_than_the_window(browser, server, scheme, width, chapter):
    with test_browser.Tab(
        browser, server, color_scheme=scheme, viewport={"width": width, "height": 844}
    ) as tab:
        opened = start(tab, server, chapter)
        shown = [
            ("forward", i) for i in ((1, 4, 15, 24, 32, 33) if chapter == BLOCK else (1, 4, 8))
        ]
        shown += [("backward", i) for i in ((0, 5, 6, 9) if chapter == BLOCK else ())]
        for way, step in shown:
            show(opened, way, step)
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            assert not opened.evaluate(test_browser.CUT_OFF)[:3]
            assert opened.evaluate(SMALLEST) >= 11
            if (way, step) in (("forward", 4), ("backward", 5)):
                options = {"resultTypes": ["violations"], "preload": False}
                found = Axe().run(opened, ".step-through", options=options)
                violations = found.response["violations"]
                assert not [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in violations]
        if chapter == BLOCK and width == 1280:
            show(opened, "forward", 33)
            tops = opened.evaluate(
                "[...document.querySelectorAll('.step-strip .step-group')].map(e => e.offsetTop)"
            )
            assert len(set(tops)) == 1  # one strip, side by side
        heights = opened.evaluate(
            """() => [...document.querySelectorAll('.step button')].map(b => b.offsetHeight)"""
        )
        assert min(heights) >= 44


@pytest.mark.parametrize("chapter", [BLOCK, LAYER])
def test_paper_and_pages_without_scripts_have_a_drawing(browser, server, chapter):
    with test_browser.Tab(browser, server) as tab:
        opened = start(tab, server, chapter)
        opened.emulate_media(media="print")
        assert opened.locator(".step-without").is_visible()
        assert not opened.locator(".step").is_visible()
        assert not opened.locator(".step-start").is_visible()
    with test_browser.Tab(browser, server, java_script_enabled=False) as tab:
        tab.page.goto(server + chapter)
        assert tab.page.locator(".step-without").is_visible()
        assert (
            tab.page.locator(".step-without a")
            .get_attribute("href")
            .endswith(f"{chapter}#step-through-it")
        )
        drawings = tab.page.locator("svg.diagram")
        labels = [drawings.nth(i).get_attribute("aria-label") for i in range(drawings.count())]
        start_of = "Layer 2 of the block looks at the boot" if chapter == BLOCK else "A dense layer"
        assert any(label.startswith(start_of) for label in labels)
