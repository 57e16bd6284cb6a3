"""Every official solution where a student would use it: whole blocks and networks, in training."""

import copy
import random

import pytest
import torch
from masters import ASSIGNMENTS, solution
from torch import nn
from torch.nn import functional as F

from densenet_tutorial import check, data, densenet, layers, memory, network
from densenet_tutorial.weights import layouts

NAMED = ("densenet121", "densenet161", "densenet169", "densenet201", "densenet264")
STEPS = 2


@pytest.fixture(scope="module")
def mine():
    """By assignment: the names that its solution defines."""
    found = {}
    for assignment in ASSIGNMENTS:
        found[assignment] = names = {"__name__": "__main__"}
        for cell in solution(assignment):
            exec(cell.replace("%pip", "raise SystemExit  #"), names)  # noqa: S102
    return found


def small(**options):
    """A DenseNet of two blocks, in training, with dropout."""
    torch.manual_seed(0)
    options = {"num_classes": 5, "drop_rate": 0.2} | options
    return network.DenseNet(4, (3, 4), 8, 2, **options).train()


def steps(model):
    """What `STEPS` steps of training leave: outputs, gradients, and everything in the state."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for step in range(STEPS):
        torch.manual_seed(step)  # of dropout
        x, y = torch.randn(4, 3, 64, 64), torch.randint(5, (4,))
        output = model(x)
        optimizer.zero_grad()
        F.cross_entropy(output, y).backward()
        found += [output.detach(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
    with torch.no_grad():
        return [*found, *model.state_dict().values(), model.eval()(torch.ones(2, 3, 96, 96))]


def trains_like(model, expected):
    """Whether `model` trains as `expected` does, from the same weights."""
    model.load_state_dict(expected.state_dict())
    pairs = zip(steps(model.train()), steps(expected.train()), strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


def with_layers(model, forward):
    """`model` whose blocks call ``forward(layer, features)``, and append to that list."""

    def run(block, x):
        features = [x]
        for layer in block.children():
            features.append(forward(layer, features))
        return torch.cat(features, 1)

    for block in model.modules():
        if isinstance(block, layers.DenseBlock):
            block.forward = run.__get__(block)
    return model


# ------------------------------------------------------------------------------ layers


def test_channels_are_those_of_real_networks(mine):
    names, generator = mine["layers"], random.Random(0)
    for _ in range(30):
        k0, k, count = (generator.randrange(1, 40) for _ in range(3))
        block = layers.DenseBlock(count, k0, 1, k, 0.0)
        reads = [layer.norm1.num_features for layer in block.values()]
        assert names["layer_inputs"](k0, k, count) == reads
        with torch.no_grad():
            assert names["block_output"](k0, k, count) == block(torch.zeros(2, k0, 2, 2)).shape[1]


@pytest.mark.parametrize("compression", [0.1, 0.29, 0.3, 0.5, 0.57, 0.58, 0.7, 1.0])
def test_the_compression_is_that_of_real_networks(mine, compression):
    for channels in (10, 30, 50, 70, 100, 200, 1000):
        model = network.DenseNet(1, (1, 1), channels - 1, 1, compression=compression)
        expected = model.features.transition1.conv.out_channels
        assert mine["layers"]["transition_output"](channels, compression) == expected


def with_parts(model, DenseLayer=None, DenseBlock=None, Transition=None):
    """`model`, as :func:`small` makes it, with parts of these classes in place of its own."""
    for name, part in list(model.features.named_children()):
        if isinstance(part, layers.DenseBlock):
            if DenseBlock:
                reads = part.denselayer1.norm1.num_features
                setattr(model.features, name, DenseBlock(len(part), reads, 2, 4, 0.2))
            for key, layer in list(part.items()) if DenseLayer else ():
                part.add_module(key, DenseLayer(layer.norm1.num_features, 4, 2, 0.2))
        elif isinstance(part, layers.Transition) and Transition:
            sizes = part.conv.in_channels, part.conv.out_channels
            setattr(model.features, name, Transition(*sizes))
    return model


@pytest.mark.parametrize(
    "names", [["DenseLayer"], ["DenseBlock"], ["Transition"], ["DenseBlock", "Transition"]]
)
def test_a_network_of_the_parts_trains_like_ours(mine, names):
    parts = {name: mine["layers"][name] for name in names}
    assert trains_like(with_parts(small(), **parts), small())


# ------------------------------------------------------------------------------ network


def test_the_network_trains_like_ours(mine):
    assert trains_like(mine["network"]["DenseNet"](4, (3, 4), 8, 2, 5), small(drop_rate=0.0))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_network_is_counted_and_recognised(mine, name):
    with torch.device("meta"):
        model = densenet(name)
    block_config = tuple(
        len(part) for part in model.features if isinstance(part, layers.DenseBlock)
    )
    first = model.features.denseblock1.denselayer1
    k0, k = model.features.conv0.out_channels, first.conv2.out_channels
    asked = k, block_config, k0, first.conv1.out_channels // k, 1000
    count = sum(parameter.numel() for parameter in model.parameters())
    assert mine["network"]["count_parameters"](*asked) == count
    with torch.device("meta"):
        assert sum(p.numel() for p in mine["network"]["DenseNet"](*asked).parameters()) == count
    found = mine["network"]["match_summary"](check.summary_of(*asked))
    names = ("growth_rate", "block_config", "num_init_features", "bn_size", "num_classes")
    assert found == dict(zip(names, asked, strict=True))


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_recipe_passes_with_any_number_of_threads(mine, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert check.train(mine["network"]["train"])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_recipe_trains_the_students_own_network(mine):
    """Colour images, and a number that leaves a last batch of one."""
    full = data.load_dataset("fashion-mini")
    images = full.normalize(full.train_images[:481]).expand(-1, 3, -1, -1)
    images = F.interpolate(images, size=(64, 64))
    torch.manual_seed(0)
    model = mine["network"]["DenseNet"](8, (2, 2), 8, 2, 10)
    mine["network"]["train"](model, images, full.train_labels[:481])
    test = F.interpolate(
        full.normalize(full.test_images[:200]).expand(-1, 3, -1, -1), size=(64, 64)
    )
    assert accuracy(model, test, full.test_labels[:200]) > 0.5


# ------------------------------------------------------------------------------ memory


def test_checkpointed_layers_train_like_plain_ones_in_a_network(mine):
    """Outputs and gradients; running statistics move twice, which question 3 is about."""
    expected = small()
    model = with_layers(copy.deepcopy(expected), mine["memory"]["checkpointed"])
    x, y = torch.randn(4, 3, 64, 64), torch.randint(5, (4,))
    for part in (model, expected):
        torch.manual_seed(0)
        F.cross_entropy(part(x), y).backward()
    for ours, theirs in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_layers_checkpointed_once_train_like_plain_ones_in_a_network(mine):
    expected = small()
    model = with_layers(copy.deepcopy(expected), mine["memory"]["checkpointed_once"])
    assert trains_like(model, expected)


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed_once"])
def test_checkpointing_works_in_the_block_of_the_first_assignment(mine, name):
    """The student's own block, of layers that checkpoint themselves."""

    class Checkpointed(layers.DenseLayer):
        def forward(self, inputs):
            plain = super().forward
            return mine["memory"][name](_Called(self, plain), inputs)

    names = dict(mine["layers"])
    exec(next(cell for cell in solution("layers") if "class DenseBlock" in cell), names)  # noqa: S102
    names["DenseLayer"] = Checkpointed
    torch.manual_seed(0)
    block, x = names["DenseBlock"](4, 8, 2, 4, 0.0), torch.randn(2, 8, 6, 6)
    expected = layers.DenseBlock(4, 8, 2, 4, 0.0)
    expected.load_state_dict(block.state_dict())
    for part in (block, expected):
        part(x).square().sum().backward()
    for ours, theirs in zip(expected.parameters(), block.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


class _Called:
    """`layer`, which when called is ``forward(…)``."""

    def __init__(self, layer, forward):
        self.layer, self.forward = layer, forward

    def __call__(self, inputs):
        return self.forward(inputs)

    def __getattr__(self, name):
        return getattr(self.layer, name)


@pytest.mark.parametrize("mode", [False, True, "recompute", "minimal"])
def test_what_a_whole_network_keeps_is_what_the_package_measures(mine, mode):
    model, x = small(memory_efficient=mode), torch.randn(2, 3, 64, 64)
    assert mine["memory"]["saved_bytes"](model, x) == memory.saved_activation_bytes(model, x)


def test_checkpointed_layers_keep_less_and_what_they_keep_is_seen(mine):
    """The new features of each layer are kept; a list would hide them from whoever measures."""
    block, x = layers.DenseBlock(6, 8, 2, 4, 0.0), torch.randn(2, 8, 16, 16)
    plain = mine["memory"]["saved_bytes"](block, x)
    model = with_layers(nn.Sequential(block), mine["memory"]["checkpointed"])
    kept = mine["memory"]["saved_bytes"](model, x)
    maps = 5 * 2 * 4 * 16 * 16 * 4  # in bytes; those of the sixth layer nobody reads
    assert kept == maps < plain / 2


def test_updates_are_counted_for_every_way_to_run_a_layer(mine):
    names = mine["memory"]
    for forward, expected in (
        (lambda layer, features: layer(features), 1),
        (names["checkpointed"], 2),
        (names["checkpointed_once"], 1),
    ):
        for layer in small().features.denseblock2.values():
            features = list(torch.randn(2, layer.norm1.num_features, 5, 5).split(4, 1))
            assert names["count_updates"](forward, layer, features) == expected
            assert names["count_updates"](forward, layer, features) == expected  # the second step


# ------------------------------------------------------------------------------ pretrained


def legacy(state):
    """`state` with the keys of old files, wrapped in DataParallel."""
    dotted = {}
    for key, value in state.items():
        for name in ("norm", "conv") if ".denselayer" in key else ():
            for number in "12":
                key = key.replace(f".{name}{number}.", f".{name}.{number}.")
        dotted[f"module.{key}"] = value
    return dotted


@pytest.mark.parametrize("name", NAMED)
def test_old_files_of_named_networks_are_converted(mine, name):
    state = densenet(name).state_dict()
    old = legacy(state)
    assert list(mine["pretrained"]["convert_keys"](old)) == list(state)
    assert list(layouts.convert_state_dict(old)[0]) == list(state)


def test_an_old_file_is_converted_loaded_adapted_and_fine_tuned(mine, tmp_path):
    """The four answers one after the other, on the weights that come with the package."""
    names, source = mine["pretrained"], densenet("densenet_bc", weights="fashion-mnist-small")
    torch.save(names["convert_keys"](legacy(source.state_dict())), tmp_path / "weights.pt")
    model = copy.deepcopy(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model = names["load_safely"](tmp_path / "weights.pt", model)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model.eval()(x), source.eval()(x))

    full = data.load_dataset("fashion-mini")
    kinds = torch.tensor([0, 1, 5, 8, 9])
    picked = [torch.nonzero(full.train_labels == kind).flatten()[:5] for kind in kinds]
    images = full.normalize(full.train_images[torch.cat(picked)])
    torch.manual_seed(0)
    model = names["adapt_head"](model, 5)
    before = copy.deepcopy(model.features.state_dict())
    names["fine_tune"](model, images, torch.arange(5).repeat_interleave(5))
    asked = torch.isin(full.test_labels, kinds)
    labels = (full.test_labels[asked, None] == kinds).int().argmax(1)
    assert accuracy(model, full.normalize(full.test_images[asked]), labels) > 0.9
    assert all(map(torch.equal, before.values(), model.features.state_dict().values()))


def test_an_adapted_network_trains_and_its_file_loads(mine, tmp_path):
    model = mine["pretrained"]["adapt_head"](small(num_classes=9), 5)
    assert all(torch.isfinite(value).all() for value in steps(model))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = mine["pretrained"]["load_safely"](tmp_path / "weights.pt", small())
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
