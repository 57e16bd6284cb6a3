"""The explorer in a real browser: its numbers are the package's, and everyone can work it."""

import html
import json
import math
import random
import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from test_browser import LOOKS, Tab, browser, server  # noqa: F401

from densenet_tutorial import DenseBlock, DenseNet, list_models
from densenet_tutorial.insight import part_costs
from densenet_tutorial.memory import saved_activation_bytes
from densenet_tutorial.network import CONFIGS

PAGE = "book/explorer.html"
MODES = ("plain", "checkpoint", "recompute", "minimal")
# Arguments of DenseNet, in the order in which a reader meets them.
ARGUMENTS = (
    *("growth_rate", "block_config", "num_init_features", "bn_size", "compression", "stem"),
    "num_classes",
)


@pytest.fixture(params=["server", "disk"])
def base(request, site):
    return request.getfixturevalue("server") if request.param == "server" else f"{site.as_uri()}/"


@pytest.fixture(scope="module")
def explorer(browser, server):  # noqa: F811
    """One explorer that tests share: each sets what it needs."""
    with Tab(browser, server) as tab:
        tab.page.goto(server + PAGE)
        yield tab.page
        assert not tab.complaints and not tab.strangers


def complete(config):
    """All arguments of a named model or a random network, defaults included."""
    defaults = {"bn_size": 4, "compression": 0.5, "stem": "imagenet", "num_classes": 1000}
    return {name: {**defaults, **config}[name] for name in ARGUMENTS}


def usual_size(config):
    return 224 if config["stem"] == "imagenet" else 32


def random_networks(count):
    """`count` small networks, each with an image size and a number of images that train it."""
    draw = random.Random(15)
    found = []
    while len(found) < count:
        growth_rate = draw.randint(1, 20)
        config = {
            "growth_rate": growth_rate,
            "block_config": [draw.randint(1, 6) for _ in range(draw.randint(1, 4))],
            "num_init_features": draw.choice([None, draw.randint(1, 50)]),
            "bn_size": draw.choice([None, 1, 2, 4, 9, 12]),
            "compression": draw.choice([1.0, 0.37, 0.5, 0.29, round(draw.uniform(0.2, 1), 3)]),
            "stem": draw.choice(["imagenet", "cifar"]),
            "num_classes": draw.randint(1, 300),
        }
        with torch.device("meta"):
            least = DenseNet(**config).min_size
        size, images = least + draw.randint(0, 40), draw.choice([1, 1, 1, 2, 5])
        if images > 1 or size >= 2 * least + 4:  # batch norm needs two values of each channel
            found.append((config, size, images))
    return found


NAMED = [(complete(CONFIGS[name]), usual_size(complete(CONFIGS[name])), 1) for name in CONFIGS]
RANDOM = random_networks(50)


def texts(config, size, images=1):
    """What one types: by id of the field."""

    def shown(value):
        if isinstance(value, (list, tuple)):
            return ",".join(map(str, value))
        return "none" if value is None else str(value)

    typed = {name.replace("_", "-"): shown(value) for name, value in config.items()}
    return typed | {"input-size": str(size), "batch-size": str(images)}


_counted = {}


def counted(config, size):
    """Parts, parameters and multiply-adds, by the package, without computing anything."""
    key = (str(config), size)
    if key not in _counted:
        with torch.device("meta"):
            _counted[key] = part_costs(DenseNet(**config), size)
    return _counted[key]


def held(config, size, images, mode):
    """Bytes that PyTorch holds for the backward pass, measured."""
    model = DenseNet(**config, memory_efficient=False if mode == "plain" else mode).train()
    return saved_activation_bytes(model, torch.randn(images, 3, size, size))


READ = """
networks => networks.map(fields => {
  const texts = Object.fromEntries(Object.entries(fields).map(
    ([id, text]) => [id.replace(/-(.)/g, (_, letter) => letter.toUpperCase()), text]));
  const { config, batchSize, errors } = DenseNetExplorer.read(texts);
  return Object.keys(errors).length ? { errors } : DenseNetExplorer.describe(config, batchSize);
})
"""


def test_shapes_parameters_and_multiply_adds_are_the_packages_part_by_part(explorer):
    networks = NAMED + RANDOM
    found = explorer.evaluate(READ, [texts(*each) for each in networks])
    for (config, size, _), network in zip(networks, found, strict=True):
        assert [
            (part["name"], tuple(part["shape"]), part["parameters"], part["multiplyAdds"])
            for part in network["parts"]
        ] == [
            (part.name, part.shape, part.parameters, part.multiply_adds)
            for part in counted(config, size)
        ], (config, size)


@pytest.mark.parametrize("mode", MODES)
def test_activation_memory_is_what_autograd_holds(explorer, mode):
    found = explorer.evaluate(READ, [texts(*each) for each in RANDOM])
    wrong = {}
    for network, each in zip(found, RANDOM, strict=True):
        assert network["trainable"]
        if network["memory"][mode] != (bytes_held := held(*each, mode)):
            wrong[str(each)] = network["memory"][mode] - bytes_held
        assert sum(part["memory"][mode] for part in network["parts"]) == network["memory"][mode]
    assert not wrong


@pytest.mark.parametrize("name", list_models())
def test_named_models_show_the_packages_numbers(explorer, name):
    config = complete(CONFIGS[name])
    explorer.select_option("#model", name)
    assert {
        field: explorer.input_value(f"#{field}").replace(" ", "")
        for field in texts(config, usual_size(config))
    } == texts(config, usual_size(config)) | {
        "compression": f"{config['compression']:g}",
    }
    parts = counted(config, usual_size(config))
    assert numbers(explorer) == (
        sum(part.parameters for part in parts),
        sum(part.multiply_adds for part in parts),
        held(config, usual_size(config), 1, "plain"),
    )


def numbers(explorer):
    """What the three outputs say; their attribute has to say the same."""
    found = []
    for name in ("parameters", "multiply-adds", "activation-memory"):
        output = explorer.locator(f"#{name}")
        shown, raw = output.inner_text(), output.get_attribute("data-value")
        assert re.fullmatch(r"\d{1,3}(,\d{3})*", shown) and shown.replace(",", "") == raw
        found.append(int(raw))
    return tuple(found)


def enter(explorer, fields):
    for field, text in fields.items():
        if field == "stem":
            explorer.select_option("#stem", text)
        else:
            explorer.fill(f"#{field}", text)


def test_what_is_typed_is_counted(explorer):
    for config, size, images in RANDOM[:8]:
        enter(explorer, texts(config, size, images))
        parts = counted(config, size)
        for mode in MODES:
            explorer.check(f"[name=memory][value={mode}]")
            assert numbers(explorer) == (
                sum(part.parameters for part in parts),
                sum(part.multiply_adds for part in parts),
                held(config, size, images, mode),
            ), (config, size, images, mode)
        cells = explorer.locator("#parts tfoot td[data-value]").evaluate_all(
            "cells => cells.map(cell => +cell.dataset.value)"
        )
        assert cells[:2] == list(numbers(explorer)[:2]) and cells[-1] == numbers(explorer)[2]
    explorer.check("[name=memory][value=plain]")
    explorer.fill("#batch-size", "1")
    explorer.select_option("#model", "densenet121")


def test_one_image_may_be_too_little_to_train_on(explorer):
    explorer.select_option("#model", "densenet121")
    explorer.fill("#input-size", "32")  # leaves one pixel
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        held(complete(CONFIGS["densenet121"]), 32, 1, "plain")
    assert explorer.inner_text("#activation-memory") == "–"
    assert "batch of 2" in explorer.inner_text("#memory-more")
    explorer.fill("#batch-size", "2")
    assert numbers(explorer)[2] == held(complete(CONFIGS["densenet121"]), 32, 2, "plain")
    explorer.fill("#batch-size", "1")


# ------------------------------------------------------------------------------- what is not valid

SMALL = {
    "growth-rate": "4",
    "block-config": "4,2",
    "num-init-features": "8",
    "bn-size": "4",
    "compression": "0.5",
    "stem": "cifar",
    "num-classes": "10",
    "input-size": "28",
    "batch-size": "1",
}
WHOLE = ["", "0", "-3", "2.5", "12x", "twelve", "1e2", "999999999999", "٣"]
BAD = {
    "growth-rate": [*WHOLE, "none"],
    "block-config": ["", "6,", "6,,6", "0,6", "6;12", "6,-1", "6,1.5", "1,1,1,1,1,1,1,1,1", "513"],
    "num-init-features": [each for each in WHOLE if each != ""] + ["nothing"],
    "bn-size": ["0", "-1", "0.5", "x"],
    "compression": ["", "0", "1.01", "-0.5", "half", "0,5", "NaN", "Infinity", "0.01"],
    "num-classes": [*WHOLE, "none"],
    "input-size": [*WHOLE, "1"],
    "batch-size": WHOLE,
}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_is_marked_and_the_last_network_stays(explorer, field):
    enter(explorer, SMALL)
    before, drawing = numbers(explorer), explorer.inner_html("#network")
    for text in BAD[field]:
        explorer.fill(f"#{field}", text)
        box = explorer.locator(f"#{field}")
        assert box.get_attribute("aria-invalid") == "true", text
        message = explorer.locator(f"#{box.get_attribute('aria-describedby')}")
        assert message.is_visible() and "Needs to" in message.inner_text(), text
        assert explorer.locator("[aria-invalid]").count() == 1, text
        assert explorer.locator("#stale").is_visible()
        assert numbers(explorer) == before and explorer.inner_html("#network") == drawing, text
        explorer.fill(f"#{field}", SMALL[field])
        assert explorer.locator("[aria-invalid]").count() == 0
        assert not explorer.locator("#stale").is_visible()


def test_smallest_images_are_the_packages(explorer):
    for stem in ("imagenet", "cifar"):
        for blocks in range(1, 6):
            with torch.device("meta"):
                least = DenseNet(block_config=[1] * blocks, stem=stem).min_size
            config = ",".join(["1"] * blocks)
            enter(
                explorer, SMALL | {"stem": stem, "block-config": config, "input-size": str(least)}
            )
            assert explorer.locator("[aria-invalid]").count() == 0
            explorer.fill("#input-size", str(least - 1))
            assert explorer.get_attribute("#input-size", "aria-invalid") == "true"


def test_compression_has_to_leave_a_channel_as_in_the_package(explorer):
    for compression in ("0.04", "0.05"):  # of 8 + 4 * 4 = 24 channels
        enter(explorer, SMALL | {"compression": compression})
        refused = explorer.get_attribute("#compression", "aria-invalid") == "true"
        try:
            DenseNet(4, (4, 2), 8, stem="cifar", compression=float(compression))
        except ValueError:
            assert refused and "24 channels" in explorer.inner_text("#compression-error")
        else:
            assert not refused
    enter(explorer, SMALL)


def test_what_readers_write_in_other_ways_is_read(explorer):
    enter(explorer, SMALL)
    before = numbers(explorer)
    enter(explorer, {"block-config": " [4, 2] ", "compression": ".5", "growth-rate": " 4 "})
    assert numbers(explorer) == before
    explorer.fill("#num-init-features", "None")
    twice = numbers(explorer)
    explorer.fill("#num-init-features", "8")
    assert twice == before  # 2k is 8


def test_what_is_too_large_to_be_exact_is_refused(explorer):
    enter(explorer, SMALL | {"stem": "cifar", "input-size": "2048"})
    enter(explorer, {"block-config": "512", "growth-rate": "512", "bn-size": "64"})
    assert "too large" in explorer.inner_text("#block-config-error")
    enter(explorer, SMALL)


# ------------------------------------------------------------------------------ a layer in focus


def words(explorer):
    return explorer.inner_text("#focus-sentence")


def test_keys_walk_from_layer_to_layer(explorer):
    enter(explorer, SMALL)
    network = explorer.locator("#network")
    network.focus()
    explorer.keyboard.press("Home")
    assert words(explorer) == "Block 1, layer 1 reads 8 channels, adds 4."
    explorer.keyboard.press("ArrowRight")
    explorer.keyboard.press("ArrowDown")
    assert words(explorer) == "Block 1, layer 3 reads 16 = 8 + 4 + 4 channels, adds 4."
    assert network.get_attribute("aria-valuetext") == words(explorer)
    assert (network.get_attribute("aria-valuenow"), network.get_attribute("aria-valuemax")) == (
        "3",
        "6",
    )
    explorer.keyboard.press("ArrowLeft")
    assert "layer 2 reads 12 = 8 + 4" in words(explorer)
    explorer.keyboard.press("PageDown")
    assert words(explorer).startswith("Block 2, layer 2 reads 16 = 12 + 4")
    explorer.keyboard.press("End")
    explorer.keyboard.press("ArrowRight")  # there is none
    assert words(explorer).startswith("Block 2, layer 2")
    explorer.click("#previous-layer")
    assert words(explorer).startswith("Block 2, layer 1 reads 12 channels")
    explorer.wait_for_function(
        "document.querySelector('#announcement').textContent.includes('Block')"
    )


def test_pointing_shows_a_layer_and_a_click_keeps_it(explorer):
    enter(explorer, SMALL)
    explorer.locator("#network").focus()
    explorer.keyboard.press("Home")
    explorer.locator("#network").scroll_into_view_if_needed()
    made = explorer.locator("#network .made")
    explorer.keyboard.press("End")
    last = made.bounding_box()
    explorer.keyboard.press("Home")
    explorer.mouse.move(last["x"] + last["width"] / 2, last["y"] - 5)
    assert words(explorer).startswith("Block 2, layer 2")
    explorer.mouse.move(5, 5)
    assert words(explorer).startswith("Block 1, layer 1")
    explorer.mouse.click(last["x"] + last["width"] / 2, last["y"] - 5)
    explorer.mouse.move(5, 5)
    assert words(explorer).startswith("Block 2, layer 2")


def test_a_tap_keeps_a_layer_on_a_phone(browser, server):  # noqa: F811
    settings = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with Tab(browser, server, **settings) as tab:
        tab.page.goto(f"{server}{PAGE}#model=small_block&layer=1.4")
        tab.page.locator("#network").scroll_into_view_if_needed()
        fourth = tab.page.locator("#network .made").bounding_box()
        for _ in range(3):
            tab.page.locator("#network").press("ArrowUp")
        assert words(tab.page).startswith("Block 1, layer 1")
        tab.page.touchscreen.tap(fourth["x"] + 3, fourth["y"] + fourth["height"] / 2)
        assert words(tab.page).startswith("Block 1, layer 4 reads 20 = 8 + 4 + 4 + 4 channels")


def test_every_layer_reads_what_the_module_reads(explorer):
    for name in ("densenet121", "densenet_bc_100_12", "densenet_40_12"):
        explorer.select_option("#model", name)
        network = explorer.locator("#network")
        network.focus()
        explorer.keyboard.press("Home")
        config = complete(CONFIGS[name])
        with torch.device("meta"):
            model = DenseNet(**config)
        for module in model.features:
            if not isinstance(module, DenseBlock):
                continue
            for number, layer in enumerate(module.values(), start=1):
                text = words(explorer).replace(",", "")
                reads = layer.norm1.num_features
                assert f"layer {number} reads {reads}" in text
                assert text.endswith(f"adds {config['growth_rate']}.")
                if terms := re.search(r"= (.*) channels", text):
                    assert eval(terms[1].replace("×", "*")) == reads
                # Each source is lit, by a stripe of its own, and so is what is new.
                assert explorer.locator("#network .read").count() == number + 1
                assert explorer.locator("#network .arc").count() == number
                explorer.keyboard.press("ArrowRight")


def test_stripes_are_told_apart_without_colour(explorer):
    enter(explorer, SMALL)
    explorer.locator("#network").focus()
    explorer.keyboard.press("Home")
    for _ in range(3):
        explorer.keyboard.press("ArrowRight")
    fills = explorer.locator("#strip .hatching").evaluate_all(
        "stripes => stripes.map(stripe => stripe.getAttribute('fill'))"
    )
    assert len(set(fills)) == len(fills) == 4  # the input has none
    assert all(explorer.locator(fill[4:-1]).count() == 1 for fill in fills)


# ------------------------------------------------------------------------------------ comparisons


def path_count(wiring, num_layers):
    """Paths through a block of identities: the derivative of its output by its input."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    features = x
    for _ in range(num_layers):
        new = features.sum(0, keepdim=True)
        features = {
            "plain": new,
            "residual": features + new,
            "dense": torch.cat([features, new]),
        }[wiring]
    features.sum().backward()
    return int(x.grad)


def test_three_wirings_are_counted(explorer):
    enter(explorer, SMALL | {"block-config": "10", "growth-rate": "12", "num-init-features": "16"})
    rows = explorer.locator("#wirings tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    table = {title: dict(zip(("plain", "residual", "dense"), rest)) for title, *rest in rows}
    block = DenseBlock(10, 16, bn_size=4, growth_rate=12, drop_rate=0.0)
    assert table["connections"] == {"plain": "10", "residual": "10", "dense": "55"}
    for wiring, shown in table["paths through the block"].items():
        count = path_count(wiring, 10)
        assert shown == (f"2{int(math.log2(count))} = {count:,}" if count > 1 else "1")
    weights = sum(p.numel() for p in block.parameters() if p.dim() == 4)
    assert table["weights in convolutions"]["dense"] == f"{weights:,}"
    wide = 16 + 10 * 12
    stacked = 10 * torch.nn.Conv2d(wide, wide, 3, bias=False).weight.numel()
    assert table["weights in convolutions"]["plain"] == f"{stacked:,}"
    reads = block["denselayer10"].norm1.num_features
    assert table["channels that the last layer reads"]["dense"] == f"{reads}"


def test_wirings_change_the_drawing_and_no_number(explorer):
    enter(explorer, SMALL)
    before, drawings = numbers(explorer), set()
    explorer.locator("#network").focus()
    explorer.keyboard.press("Home")
    explorer.keyboard.press("ArrowRight")
    for wiring, part in [
        ("plain", "all from layer 1, and makes 24 that replace"),
        ("residual", "the sum of the input and layer 1, and makes 24 that are added"),
        ("dense", "reads 12 = 8 + 4 channels, adds 4"),
    ]:
        explorer.locator(f"[name=wiring][value={wiring}]").check()
        assert part in words(explorer)
        drawings.add(explorer.inner_html("#network"))
        assert numbers(explorer) == before
    assert len(drawings) == 3


def test_bottleneck_pays_from_the_layer_that_is_named(explorer):
    for k, bn_size, layers, start in [
        (32, 4, 12, 128),
        (4, 4, 4, 8),
        (12, 2, 8, 200),
        (8, 9, 9, 9),
    ]:
        fields = {
            "growth-rate": f"{k}",
            "bn-size": f"{bn_size}",
            "block-config": f"{layers}",
            "num-init-features": f"{start}",
        }
        enter(explorer, SMALL | fields)

        def weights(size, number, k=k, start=start):
            layer = list(DenseBlock(number, start, size, k, 0.0).values())[-1]
            return sum(p.numel() for p in layer.parameters() if p.dim() == 4)

        saves = [n for n in range(1, layers + 1) if weights(bn_size, n) < weights(None, n)]
        title = explorer.inner_text("#crossing-title")
        if not saves:
            assert title == "In block 1 a bottleneck saves no weights"
        elif saves[0] == 1:
            assert title == "A bottleneck saves weights in every layer of block 1"
        else:
            assert title == f"A bottleneck saves weights from layer {saves[0]} of block 1 on"


# ------------------------------------------------------------------------------------ the address


def address(explorer):
    explorer.wait_for_timeout(300)  # it is not written at every keystroke
    return explorer.evaluate("location.href")  # `url` comes later, on a busy machine


def state(explorer):
    fields = {field: explorer.input_value(f"#{field}") for field in SMALL}
    chosen = [
        explorer.locator(f"[name={name}]:checked").input_value() for name in ("wiring", "memory")
    ]
    return fields, chosen, words(explorer), numbers(explorer)


def test_a_link_brings_back_the_state(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(base + PAGE)
        assert "#" not in address(tab.page)  # a visit changes no address
        enter(tab.page, SMALL | {"bn-size": "none", "batch-size": "3", "compression": "0.37"})
        tab.page.locator("#network").focus()
        tab.page.keyboard.press("End")
        tab.page.locator("[name=wiring][value=residual]").check()
        tab.page.check("[name=memory][value=minimal]")
        link, before = address(tab.page), state(tab.page)
        assert not tab.complaints and not tab.strangers
    with Tab(browser, base) as tab:
        tab.page.goto(link)
        assert state(tab.page) == before
        # Another link to the same page, and back.
        tab.page.evaluate("location.hash = 'model=densenet121&layer=3.3'")
        tab.page.wait_for_function("document.querySelector('#model').value === 'densenet121'")
        assert words(tab.page).startswith("Block 3, layer 3 reads 320 = 256 + 32 + 32 channels")
        tab.page.go_back()
        tab.page.wait_for_function("document.querySelector('#model').value === 'custom'")
        assert state(tab.page) == before
        assert not tab.complaints


def test_links_to_named_models_are_short(explorer):
    explorer.select_option("#model", "densenet161")
    assert re.search(r"#model=densenet161&layer=\d\.\d+$", address(explorer))


@pytest.mark.parametrize(
    "fragment",
    [
        "growth-rate=x&block-config=1,2",
        "model=resnet50&layer=99.-1&wiring=none&memory=0",
        "block-config=%00%3Cscript%3E&layer=NaN.NaN",
        "input-size=" + "9" * 5000,
        "=&&==#",
        "%E0%A4%A",
    ],
)
def test_an_address_that_makes_no_sense_breaks_nothing(browser, server, fragment):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}{PAGE}#{fragment}")
        assert numbers(tab.page) and words(tab.page)
        wrong = tab.page.locator("[aria-invalid]").count()
        assert wrong == len(re.findall(r"=x|%3Cscript|=9{9}", fragment))
        assert not tab.complaints


def test_links_of_the_book_lead_to_states(site, explorer):
    """Each names known things alone, all of them valid: it is what the page itself would write."""
    links = {
        html.unescape(link)
        for path in site.rglob("*.html")
        for link in re.findall(
            r'href="[^"#]*explorer\.html#([^"]*=[^"]*)"', path.read_text(encoding="utf-8")
        )
    }
    assert len(links) > 5
    written = explorer.evaluate(
        "links => links.map(link => DenseNetExplorer.fragmentOf(DenseNetExplorer.stateFrom(link)))",
        sorted(links),
    )
    assert [set(each.split("&")) for each in written] == [
        set(each.split("&")) for each in sorted(links)
    ]
    for link in links:
        explorer.evaluate("link => { location.hash = link; }", link)
        explorer.wait_for_function("link => location.hash.slice(1) === link", arg=link)
        explorer.wait_for_timeout(50)
        assert explorer.locator("[aria-invalid]").count() == 0, link
        if block_and_layer := re.search(r"layer=(\d+)\.(\d+)", link):
            block, layer = block_and_layer.groups()
            assert words(explorer).startswith(f"Block {block}, layer {layer} reads"), link
    explorer.locator("[name=wiring][value=dense]").check()
    explorer.locator("[name=memory][value=plain]").check()


def test_copying_a_link(browser, server):  # noqa: F811
    with Tab(browser, server, permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.page.goto(server + PAGE)
        tab.page.select_option("#model", "densenet_bc_100_12")
        tab.page.click("#copy-link")
        copied = tab.page.evaluate("navigator.clipboard.readText()")
        assert copied == address(tab.page) and "model=densenet_bc_100_12" in copied
    with Tab(browser, server) as tab:  # without the clipboard, the reader copies by hand
        tab.page.add_init_script("delete Navigator.prototype.clipboard")
        tab.page.goto(server + PAGE)
        tab.page.click("#copy-link")
        assert "model=densenet121" in tab.page.input_value("#link")


# ------------------------------------------------------------------------------- for every reader


@pytest.mark.parametrize("fragment", ["model=densenet121&layer=3.9", "growth-rate=0&input-size=1"])
@pytest.mark.parametrize("scheme, width, rules", LOOKS)
def test_accessible_with_a_layer_in_focus(browser, server, scheme, width, rules, fragment):  # noqa: F811
    with Tab(browser, server, color_scheme=scheme, viewport={"width": width, "height": 844}) as tab:
        tab.page.goto(f"{server}{PAGE}#{fragment}")
        tab.page.locator("#network").focus()
        tab.page.keyboard.press("ArrowRight")
        tab.page.evaluate(SMALL_ONE)
        for wiring in ("residual", "dense"):
            tab.page.locator(f"[name=wiring][value={wiring}]").check()
            options = {"resultTypes": ["violations"], "preload": False, **rules}
            violations = Axe().run(tab.page, options=options).response["violations"]
            assert not [
                (violation["id"], [node["html"][:200] for node in violation["nodes"]])
                for violation in violations
            ]
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = tab.page.locator(".explorer svg text").evaluate_all(
            "texts => texts.map(text => parseFloat(getComputedStyle(text).fontSize)"
            " * text.getBoundingClientRect().height / (text.getBBox().height || 1))"
        )
        assert len(sizes) > 20 and min(sizes) >= 11
        low = tab.page.locator(
            ".explorer-full :is(button, select, input:not([type]))"
        ).evaluate_all(
            "all => all.filter(e => e.offsetHeight && e.offsetHeight < 44).map(e => e.id)"
        )
        assert not low


def test_all_controls_are_within_reach_of_the_tab_key(explorer):
    explorer.select_option("#model", "densenet121")
    explorer.locator("#model").focus()
    reached = set()
    for _ in range(30):
        explorer.keyboard.press("Tab")
        reached.add(explorer.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {*SMALL, "network", "copy-link", "next-layer", "memory", "wiring"} <= reached


def test_totals_are_announced(explorer):
    explorer.evaluate("location.hash = 'model=densenet121&layer=1.1'")  # whatever was there before
    explorer.wait_for_function("document.querySelector('#model').value === 'densenet121'")
    explorer.select_option("#model", "densenet169")
    said = "14,149,480 parameters, 3,359,843,328 multiply-adds, 150.1 MiB of activation memory."
    explorer.wait_for_function(
        "text => document.querySelector('#announcement').textContent === text", arg=said
    )


def test_without_scripts_a_table_says_it_for_one_network(browser, server):  # noqa: F811
    with Tab(browser, server, java_script_enabled=False) as tab:
        tab.page.goto(server + PAGE)
        assert "With scripts switched on" in tab.page.inner_text(".explorer-full")
        rows = [
            [cell.inner_text() for cell in row.locator("th, td").all()]
            for row in tab.page.locator(".explorer-full :is(tbody, tfoot) tr").all()
        ]
    parts = counted(complete(CONFIGS["densenet121"]), 224)
    assert [row[:4] for row in rows[:-1]] == [
        [
            part.name,
            " × ".join(f"{size:,}" for size in part.shape),
            f"{part.parameters:,}",
            f"{part.multiply_adds:,}",
        ]
        for part in parts
    ]
    for column, mode in enumerate(MODES, start=4):
        total = held(complete(CONFIGS["densenet121"]), 224, 1, mode) / 2**20
        assert rows[-1][column] == f"{total:.2f}"
        assert sum(float(row[column]) for row in rows[:-1]) == pytest.approx(total, abs=0.05)


def test_on_paper_the_tables_are_whole(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 720, "height": 1000}) as tab:
        tab.page.goto(server + PAGE)
        tab.page.emulate_media(media="print")
        wide = tab.page.evaluate("document.querySelector('.explorer-full').offsetWidth")
        assert 500 < wide <= 720
        assert not tab.page.evaluate(
            "[...document.querySelectorAll('.explorer-full :is(table, svg)')].filter(e =>"
            " e.getBoundingClientRect().right"
            " > e.closest('.panel').getBoundingClientRect().right).map(e => e.id)"
        )


def test_only_pages_that_show_it_load_it(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        shows = bool(re.search(r'class="explorer-(full|small)', text))
        styles = re.findall(r'<link [^>]*href="([^":?{]*\.css)', text)
        rules = "".join((path.parent / name).read_text(encoding="utf-8") for name in styles)
        assert shows == ("explorer/model.js" in text) == (".explorer" in rules), path


# ---------------------------------------------------------------------------------- the small one

SMALL_ONE = """
() => {
  const small = document.createElement('div');
  small.className = 'explorer-small';
  small.dataset.state = 'model=small_block&layer=1.3';
  document.querySelector('article h1').after(small);
  DenseNetExplorer.mountSmall(small);
}
"""


def test_the_small_one_has_a_slider_a_layer_and_a_link(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(base + PAGE)
        tab.page.evaluate(SMALL_ONE)
        small = tab.page.locator(".explorer-small")
        assert "layer 3 reads 16 = 8 + 4 + 4 channels, adds 4." in small.inner_text()
        small.locator("input").fill("12")
        assert "layer 3 reads 32 = 8 + 12 + 12 channels, adds 12." in small.inner_text()
        config = complete({**CONFIGS["densenet_bc"], "growth_rate": 12, "block_config": [4]})
        parts = counted(config | {"num_init_features": 8}, 28)
        assert f"{sum(part.parameters for part in parts):,} parameters" in small.inner_text()
        small.locator("[role=slider]").focus()
        tab.page.keyboard.press("ArrowLeft")
        assert "layer 2 reads 20 = 8 + 12 channels" in small.inner_text()
        small.locator("a").click()
        tab.page.wait_for_function("document.querySelector('#growth-rate').value === '12'")
        assert words(tab.page).startswith("Block 1, layer 2 reads 20 = 8 + 12 channels")
        assert json.loads(f"[{tab.page.input_value('#block-config')}]") == [4]
        assert not tab.complaints and not tab.strangers


def test_a_small_one_with_a_bad_state_or_no_room_does_no_harm(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 1000, "height": 800}) as tab:
        tab.page.goto(f"{server}book/index.html")
        tab.page.evaluate(
            """() => {
              const small = document.createElement("div");
              small.id = "bad";
              small.dataset.state = "growth-rate=-3&block-config=x";
              document.querySelector("article").prepend(small);
              DenseNetExplorer.mountSmall(small);
              const narrow = document.createElement("div");
              narrow.id = "narrow";
              narrow.style.width = "120px";
              document.querySelector("article").prepend(narrow);
              DenseNetExplorer.mountSmall(narrow);
            }"""
        )
        link = tab.page.locator("#bad a").first.get_attribute("href")
        assert "growth-rate=-3" not in link and "x" not in link.partition("block-config=")[2][:1]
        for event in ("pointermove", "click"):
            tab.page.locator("#narrow .small-drawing").dispatch_event(event)
        assert not tab.complaints
