"""Diagrams are drawn from modules: what they say must be what the modules are."""

import base64
import copy
import io
import math
import re
import threading
from pathlib import Path
from xml.etree import ElementTree

import public_functions
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune, spectral_norm

from densenet_tutorial import (
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
    data,
    figures,
    insight,
    memory,
    set_memory_efficient,
    training,
    weights,
)
from densenet_tutorial.figures.diagrams import svg, using
from densenet_tutorial.figures.diagrams.training import kept_tensors

ROOT = Path(__file__).resolve().parents[1]
NAMES = [n for n in figures.__all__ if ".diagrams." in getattr(figures, n).__module__]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(name):
    return getattr(figures, name)(**public_functions.VALID[f"figures.{name}"]())


def texts(diagram):
    """All lines of text in a diagram."""
    found = ElementTree.fromstring(diagram.svg).iter(f"{SVG}text")
    return ["".join(text.itertext()).replace("\u200b", "") for text in found]


def said(diagram):
    return "\n".join(texts(diagram))


# ----------------------------------------------------------------------------- every diagram


@pytest.mark.parametrize("name", NAMES)
def test_every_diagram_is_an_image_with_a_title_and_a_description(name):
    diagram = drawn(name)
    root = ElementTree.fromstring(diagram.svg)
    assert (root.get("role"), root.get("class")) == ("img", "diagram")
    assert root.find(f"{SVG}title").text == diagram.title
    assert root.find(f"{SVG}desc").text == diagram.description
    assert len(diagram.description.split()) > 8 and diagram.description.endswith(".")
    assert repr(diagram) == f"<Diagram {diagram.title!r}>"
    assert diagram._repr_svg_() == diagram.svg


@pytest.mark.parametrize("name", NAMES)
def test_text_is_large_enough_for_a_phone(name):
    root = ElementTree.fromstring(drawn(name).svg)
    assert float(root.get("viewBox").split()[2]) == svg.WIDTH
    sizes = [float(e.get("font-size")) for e in root.iter() if e.get("font-size")]
    assert min(sizes) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_the_same_again_is_the_same_text_and_needs_nothing_around_it(name):
    first = drawn(name).svg
    assert drawn(name).svg == first
    assert not re.search(r"\bid=|url\(|<script|<style|https?://(?!www\.w3\.org)", first)
    attributes = re.findall(r' (?:d|x|y|width|height|c[xy]|r|rx)="([^"]*)"', first)
    numbers = re.findall(r"\d+\.\d+", " ".join(attributes))
    assert all(len(n.partition(".")[2]) <= 2 for n in numbers)


@pytest.mark.parametrize("name", NAMES)
def test_every_colour_has_a_class_that_the_page_colours(name):
    css = (ROOT / "book" / "_static" / "diagrams.css").read_text(encoding="utf-8")
    for element in ElementTree.fromstring(drawn(name).svg).iter():
        for kind in (element.get("class") or "").split():
            if kind != "diagram":
                assert re.search(rf"\.diagram \.{kind} \{{ (fill|stroke): var\(--", css), kind


def test_the_light_colours_are_those_of_the_site():
    files = [ROOT / "book" / "_static" / name for name in ("book.css", "diagrams.css")]
    css = "".join(file.read_text(encoding="utf-8") for file in files)
    css = "".join(re.findall(r":root, html\[data-theme=\"light\"\] \{[^}]*\}", css))
    for name, color in svg.PALETTE.items():
        assert re.findall(rf"--{name}: (#\w+);", css) == [color], name


# ----------------------------------------------------------------- the numbers are the modules'


@pytest.mark.parametrize(("layers", "k0", "k"), [(4, 8, 4), (6, 24, 12), (3, 10, 5)])
def test_wirings_have_a_dot_for_each_connection(layers, k0, k):
    diagram = figures.wirings(DenseBlock(layers, k0, 4, k, 0.0))
    connections = layers * (layers + 1) // 2
    assert f"{connections} dots, {connections} direct connections" in texts(diagram)
    assert f"= {k0 + layers * k} channels" in said(diagram)
    dots = re.findall(r'<circle [^>]* r="3.5"', diagram.svg)
    assert len(dots) == connections + layers  # those of the residual wiring


def test_a_sum_and_a_concatenation_of_the_numbers_given():
    shown = texts(figures.adding_and_concatenating(torch.tensor([5, 2]), torch.tensor([1, 6])))
    assert shown[-12:] == [
        *("6", "8", "Which two numbers made the first one?"),
        *("5", "2", "1", "6"),
        *("5", "2", "1", "6"),
        "All are still there, each at its place.",
    ]


def pixels_of(image):
    """The rows of the palette that a picture in a diagram is made of, and the palette."""
    content = base64.b64decode(image.get("href").partition(",")[2])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "P"
        palette = torch.tensor(picture.getpalette()).view(-1, 3)
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
            picture.height, picture.width
        ), palette


@pytest.mark.parametrize(("layer", "bn_size"), [(1, 4), (3, 4), (2, None)])
def test_a_layer_at_work_shows_the_maps_that_the_modules_make(layer, bn_size):
    torch.manual_seed(layer)
    block = DenseBlock(3, 8, bn_size, 4, 0.0).eval()
    start, picture = nn.Conv2d(1, 8, 3, padding=1), torch.randn(2, 1, 9, 7)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
    before = copy.deepcopy(block.state_dict())
    diagram = figures.layer_at_work(block, start, picture, layer)
    assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())
    with torch.no_grad():
        features = start(picture[:1])
        pieces = list(block(features)[0].split([8, 4, 4, 4]))
    expected = pieces[:layer]
    own = block[f"denselayer{layer}"]
    if bn_size is not None:
        with torch.no_grad():
            expected = [*expected, own.bn_function([p[None] for p in pieces[:layer]])[0]]
    expected = [*expected, pieces[layer]]
    images = list(ElementTree.fromstring(diagram.svg).iter(f"{SVG}image"))
    assert len(images) == len(expected)
    for image, maps in zip(images, expected):
        numbers, palette = pixels_of(image)
        assert torch.equal(palette[15], torch.tensor([244, 242, 247]))
        shown = numbers.view(9, maps.shape[0], 7).movedim(1, 0).float() - 15
        assert (shown - 15 * maps / maps.abs().max()).abs().max() < 0.51
    reads = 8 + 4 * (layer - 1)
    assert f"{reads} × 9 × 7" in said(diagram) and "New maps: 4 × 9 × 7" in texts(diagram)
    for conv in (m for m in own.modules() if isinstance(m, nn.Conv2d)):
        assert f"= {conv.weight.numel()} weights" in said(diagram)
    assert texts(diagram)[-1].endswith(f"= {reads + 4} channels")


def test_a_layer_at_work_in_training_moves_no_running_average():
    block, start = DenseBlock(2, 8, 4, 4, 0.0), nn.Conv2d(1, 8, 3, padding=1)
    before = copy.deepcopy(block.state_dict())
    figures.layer_at_work(block, start, torch.randn(1, 1, 8, 8), 2)
    assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())


def test_a_layer_at_work_calls_no_hook_and_leaves_random_numbers_alone():
    block, start = DenseBlock(2, 8, 4, 4, 0.5), nn.Conv2d(1, 8, 3, padding=1)
    calls = []
    for module in [*block.modules(), *start.modules()]:
        module.register_forward_hook(lambda *_: calls.append(1))
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    first = figures.layer_at_work(block, start, picture := torch.randn(1, 1, 8, 8), 2)
    torch.set_rng_state(state)
    torch.randn(1, 1, 8, 8)
    assert figures.layer_at_work(block, start, picture, 2).svg == first.svg and not calls
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(1, 1, 8, 8)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_layer_at_work_with_groups_says_what_its_weights_are():
    block = DenseBlock(1, 8, 4, 4, 0.0)
    block.denselayer1.conv2 = nn.Conv2d(16, 4, 3, padding=1, groups=2, bias=False)
    picture = torch.randn(1, 1, 8, 8)
    shown = said(figures.layer_at_work(block, nn.Conv2d(1, 8, 3, padding=1), picture, 1))
    assert "9 × 8 × 4 = 288 weights" in shown and "8 × 16 = 128 weights" in shown


def gives(module, value):
    """A module that gives something else."""
    module.forward = lambda x: value


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda b, s: b.denselayer1.conv1.weight.data.fill_(math.inf), "^block must give finite"),
        (lambda b, s: b.denselayer2.norm2.weight.data.fill_(math.nan), "^block must give finite"),
        (lambda b, s: s.weight.data.fill_(math.nan), "^start must give finite"),
        (lambda b, s: setattr(b.denselayer1, "conv2", nn.Conv2d(3, 4, 3)), "^block must make"),
        (lambda b, s: gives(s, "maps"), "^start must turn picture"),
        (lambda b, s: gives(s, torch.zeros(8)), "^start must turn picture"),
        (lambda b, s: gives(s, torch.zeros(1, 8, 5, 5, device="meta")), "^start must turn picture"),
        (lambda b, s: gives(b.denselayer1, None), "^block must make growth_rate feature maps"),
        *(
            (lambda b, s, value=value: gives(b.denselayer2, value), "^block must make growth_rate")
            for value in (
                *(None, 3.0, (), torch.zeros(4, 8, 8), torch.zeros(2, 4, 8, 8)),
                *(torch.zeros(1, 5, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.complex64)),
            )
        ),
        (
            lambda b, s: setattr(b.denselayer2, "norm1", nn.Identity()),
            "^block must be a DenseBlock",
        ),
        (
            lambda b, s: setattr(b.denselayer2, "conv1", nn.Sequential()),
            "^block must be a DenseBlo",
        ),
        (lambda b, s: setattr(s, "lock", threading.Lock()), "^start must be a module that can be"),
    ],
)
def test_a_layer_at_work_says_what_is_wrong_with_its_modules(changed, words):
    block, start = DenseBlock(2, 8, 4, 4, 0.0), nn.Conv2d(1, 8, 3, padding=1)
    changed(block, start)
    with pytest.raises(ValueError, match=words):
        figures.layer_at_work(block, start, torch.randn(1, 1, 8, 8), 2)


def test_a_layer_at_work_takes_pruned_lazy_and_normalised_modules_and_a_recorders_hooks():
    picture, kept = torch.randn(1, 1, 8, 8, dtype=torch.float64), []
    block = DenseBlock(2, 8, 4, 4, 0.0).double().eval()
    start = nn.Conv2d(1, 8, 3, padding=1).double()
    pruned = block.denselayer1.conv2
    prune.random_unstructured(pruned, "weight", amount=0.5)
    hook = block.denselayer1.register_forward_hook(lambda m, x, y: kept.append(y))
    block(start(picture))
    with torch.no_grad():
        pruned.weight_orig.mul_(-1)  # `weight` is made anew before the next call
        made = block(start(picture))[:, 8:12]
    diagram = figures.layer_at_work(block, start, picture, 1)
    numbers, _ = pixels_of(list(ElementTree.fromstring(diagram.svg).iter(f"{SVG}image"))[-1])
    shown = numbers.view(8, 4, 8).movedim(1, 0) - 15.0
    assert (shown - 15 * made[0] / made.abs().max()).abs().max() < 0.51
    assert len(kept) == 2 and block.denselayer1._forward_hooks[hook.id] is not None
    for start in (nn.LazyConv2d(8, 3, padding=1), spectral_norm(nn.Conv2d(1, 8, 3)).eval()):
        figures.layer_at_work(DenseBlock(2, 8, 4, 4, 0.0), start, torch.randn(1, 1, 8, 8), 2)
    assert isinstance(nn.LazyConv2d(8, 3).weight, nn.UninitializedParameter)


def test_a_dense_layer_says_its_shapes_and_weights():
    shown = said(figures.dense_layer(DenseLayer(8, 4, 4, 0.0), size=(14, 7)))
    for text in ("8 × 14 × 7", "8 × 16\n= 128 weights", "16 × 14 × 7", "9 × 16 × 4\n= 576 weights"):
        assert text in shown
    assert "Weights of the convolutions: 128 + 576 = 704" in shown
    assert "12 × 14 × 7" in shown
    other = said(figures.dense_layer(DenseLayer(20, 6, 2, 0.0), sources=[8, 6, 6]))
    assert "20 × 12\n= 240 weights" in other and "26 × 28 × 28" in other


def test_a_dense_layer_without_bottleneck_has_one_convolution():
    shown = said(figures.dense_layer(DenseLayer(8, 4, None, 0.0)))
    assert "9 × 8 × 4\n= 288 weights" in shown
    assert "bottleneck" not in shown and "1 × 1 convolution" not in shown


def test_a_strip_grows_by_the_growth_rate():
    shown = texts(figures.growing_strip(DenseBlock(3, 10, 4, 5, 0.0)))
    assert "Each layer adds 5 channels at the end" in shown
    assert [t for t in shown if t.startswith(("reads", "out"))] == [
        *("reads 10", "reads 10 + 5 = 15", "reads 10 + 5 + 5 = 20"),
        "out: 10 + 5 + 5 + 5 = 25 channels",
    ]


def test_a_long_block_leaves_layers_out_and_says_so():
    shown = said(figures.growing_strip(DenseBlock(24, 256, 4, 32, 0.0)))
    assert "… layers 4 to 23 …" in shown and "reads 256 + 23 × 32 = 992" in shown


def test_channels_meet_their_own_weights_only_with_the_old_ones_first():
    block = DenseBlock(4, 8, 4, 4, 0.0)
    shown = texts(figures.channel_order(block))
    # By hand: in [3, 2, 1, input], places 8 to 11 are layer 1's, as they should be.
    assert [t for t in shown if " meet " in t] == [
        "old first: all 12 meet their own weights",
        "new first: 0 of 12 meet their own weights",
        "old first: all 20 meet their own weights",
        "new first: 4 of 20 meet their own weights",
    ]


def test_a_transition_says_its_shapes_and_what_its_orders_cost():
    transition = Transition(30, 10)
    shown = said(figures.transition(transition, size=(16, 8)))
    assert "30 × 16 × 8" in shown and "10 × 8 × 4" in shown and "= 300 weights" in shown
    shown = said(figures.transition_orders(transition, size=(16, 8)))
    assert "38,400" in shown and "9,600" in shown  # 30 * 10 * 16 * 8, and a quarter
    assert "30 × 8 × 4" in shown and "10 × 16 × 8" in shown


def test_mixtures_have_no_colour_of_a_source_also_where_nothing_is_compressed():
    def colored(makes):
        drawn = figures.transition_orders(Transition(8, makes), sources=[4, 4])
        return drawn._repr_svg_().count("source-1")

    assert colored(8) == colored(4) > 0


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        (
            {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "stem": "cifar"},
            16,
            ["8 + 2 × 4", "= 16", "8 + 3 × 4", "= 20", "16 × 16", "8 × 8", "3 × 3 convolution"],
        ),
        (
            {"growth_rate": 6, "block_config": (1, 1, 2), "num_init_features": 10},
            64,
            ["10 + 1 × 6", "= 16", "8 + 1 × 6", "7 + 2 × 6", "= 19", "7 × 7 convolution, stride 2"],
        ),
    ],
)
def test_a_network_says_its_channels_and_sizes(config, size, expected):
    model = DenseNet(num_classes=7, **config).eval()
    diagram = figures.network(model, size)
    shown = texts(diagram)
    assert set(expected) <= set(shown)
    assert f"classifier: {model.num_features} → 7" in shown
    total = sum(p.numel() for p in model.parameters())
    assert f"{total:,} parameters in all" in shown
    depth = 2 + 2 * sum(config["block_config"]) + len(config["block_config"]) - 1
    assert f"{depth} layers" in diagram.title


@pytest.mark.parametrize("blocks", [(1, 4, 8), (1, 1, 1), (2, 1, 16), (6, 12, 24, 16)])
def test_the_squares_of_a_network_lie_on_no_label(blocks):
    model = DenseNet(24, blocks, num_classes=10, in_channels=1, stem="cifar").eval()
    root = ElementTree.fromstring(figures.network(model, 28).svg)
    boxes = [e for e in root.iter(f"{SVG}rect") if e.get("x")]  # the paper has no x
    rects = [[float(e.get(name)) for name in ("x", "y", "height")] for e in boxes]
    squares = [(y, y + height) for x, y, height in rects if x < 70]
    labels = [float(e.get("y")) for e in root.iter(f"{SVG}text") if e.get("x") == "42"]
    assert len(squares) == len(labels) - 1 == len(blocks) + 1
    for base in labels:
        assert all(base < top or base - 11 > bottom for top, bottom in squares)


def test_receptive_squares_are_as_large_as_the_fields():
    fields = [
        insight.ReceptiveField("stem", 3, 3, 1),
        insight.ReceptiveField("denseblock1", 3, 11, 1),
        insight.ReceptiveField("denseblock2", 12, 50, 2),
        insight.ReceptiveField("denseblock3", 52, 300, 4),
    ]
    picture = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    diagram = figures.receptive_squares(fields, picture)
    shown = texts(diagram)
    assert {"3 px", "3 to 11 px", "12 to 50 px"} <= set(shown) and "52 to 300 px" not in shown
    assert "and further on, up to 300 pixels" in shown
    squares = re.findall(r'width="([\d.]+)" height="\1" fill="none"', diagram.svg)
    pixel = 216 / 50
    assert {float(s) for s in squares} == {round(s * pixel, 2) for s in (3, 11, 12, 50)}


def test_a_training_loop_counts_its_steps():
    model = DenseNet(4, (1,), 8, num_classes=10, in_channels=1, stem="cifar")
    run = training.Training(
        model, data.load_dataset("fashion-mini"), training.Recipe(epochs=7, batch_size=100)
    )
    shown = said(figures.training_loop(run))
    assert "50 steps an epoch" in shown and "100 pictures" in shown and "7 epochs" in shown
    assert shown.count(f"{sum(p.numel() for p in model.parameters()):,}") == 2


def test_a_checkpoint_shows_every_part_with_its_numbers():
    state = {"model": {"a": torch.zeros(1234)}, "optimizer": {"b": [torch.zeros(7)]}, "mine": 3}
    shown = texts(figures.checkpoint(state))
    assert {"model", "optimizer", "mine", "1,234", "7"} <= set(shown)


def test_what_is_kept_is_what_was_measured():
    """The lanes' channels add up to the bytes that autograd holds, statistics aside."""
    block = DenseBlock(3, 6, 2, 5, 0.0)
    x = torch.randn(2, 6, 16, 16)
    for mode in (False, "checkpoint", "recompute", "minimal"):
        kept = kept_tensors(block, mode)
        shared = ("maps", 3) in kept
        total = sum(c for key, (c, _) in kept.items() if shared or key != ("maps", 0))
        measured = memory.saved_activation_bytes(set_memory_efficient(block, mode), x) / 4 / 512
        assert total <= measured < total + 3
        assert f"{total} numbers a pixel" in said(
            figures.saved_tensors(set_memory_efficient(block, False))
        )
    set_memory_efficient(block, False)


def test_lanes_end_with_the_last_reader():
    kept = kept_tensors(DenseBlock(3, 6, 2, 5, 0.0), "checkpoint")
    # Layer 2 is the first to read layer 1's maps, so the last that needs them, backwards.
    assert kept["maps", 1] == (5, 2) and kept["maps", 2] == (5, 3)
    assert ("maps", 3) not in kept and ("copies", 1) not in kept
    plain = kept_tensors(DenseBlock(3, 6, 2, 5, 0.0), False)
    assert plain["copies", 3] == (16, 3) and ("maps", 1) not in plain


def test_the_trap_moves_twice_and_the_cure_once():
    shown = said(figures.batch_norm_trap(DenseLayer(8, 4, 4, 0.0)))
    assert re.findall(r"counted (\d)", shown) == ["1", "2", "1"]
    assert "of the way to the batch's mean: 10 %, not 19 %" in shown


def test_all_reduce_makes_the_mean_of_the_gradients():
    shown = said(figures.all_reduce(torch.tensor([1.0, 2, 3, 4]), weight=2.0))
    assert "all-reduce: (10 + 50) / 2 = 30" in shown
    assert "The whole batch in one process: gradient 30." in shown
    three = said(figures.all_reduce(torch.tensor([1.0, 2, 3]), weight=1.0, processes=3))
    assert "all-reduce: (2 + 8 + 18) / 3 = 9.33333" in three


def test_keys_are_those_that_the_conversion_makes():
    model = DenseNet(4, (1,), 8, num_classes=5, stem="cifar")
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    shown = texts(figures.keys(old))
    at = shown.index("denseblock1.denselayer1.norm.1.weight")
    assert shown[at + 1] == "denseblock1.denselayer1.norm1.weight"
    assert "denseblock1.denselayer1.conv.2.weight" in shown
    assert "conv0.weight" in shown and "added, at 0" in shown
    assert "renamed" not in texts(figures.keys(model.state_dict()))


def test_preprocessing_shows_size_and_range_after_every_step():
    picture = Image.new("RGB", (60, 30), "white")
    shown = texts(figures.preprocessing(picture, weights.transforms("imagenet")))
    for text in ("3 × 30 × 60", "3 × 256 × 512", "3 × 224 × 224", "1 to 1", "resize", "crop"):
        assert text in shown
    assert "mean 0.485, 0.456, 0.406" in shown
    grey = texts(figures.preprocessing(picture, weights.transforms("fashion-mnist-small")))
    assert "1 × 28 × 28" in grey


def test_weighted_maps_are_a_part_of_grad_cam():
    torch.manual_seed(0)
    model = DenseNet(4, (2, 2), 8, num_classes=5, in_channels=1, stem="cifar").eval()
    x = torch.randn(1, 1, 16, 16)
    shown = texts(figures.weighted_maps(model, x, target=3))
    assert "8 × 8 numbers" in shown
    assert f"+ … {model.num_features - 4} more maps" in shown
    factors = [float(t.strip("+ ×").replace("− ", "-")) for t in shown if t.endswith("×")]
    channels = [int(t.removeprefix("map ")) for t in shown if t.startswith("map ")]
    assert factors == [round(model.classifier.weight[3, c].item(), 2) for c in channels]


def test_levels_of_maps_go_from_white_to_blue():
    picture = using._blue(torch.tensor([[0.0, 1.0]]))
    assert picture[:, 0, 0].tolist() == [255] * 3 and picture[:, 0, 1].tolist() == [0, 114, 178]


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 300), (280, 280)])
def test_pictures_are_png_files(shape, tmp_path):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    (tmp_path / "a.png").write_bytes(svg.png(pixels))
    with Image.open(tmp_path / "a.png") as image:
        read = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    expected = pixels if pixels.dim() == 2 else pixels.movedim(0, -1)
    assert torch.equal(read, expected.flatten())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.dense_layer(DenseLayer(8, 4, 4, 0.0), sources=[4, 5]), "add up to the 8"),
        (lambda: figures.saved_tensors(DenseBlock(2, 8, None, 4, 0.0)), "with bottlenecks"),
        (lambda: figures.all_reduce(torch.ones(3), 1.0), "divide the number of examples"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
