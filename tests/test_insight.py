"""Costs against torchvision's published figure, receptive fields against gradients, the rest
against cases done by hand.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from densenet_tutorial import DenseNet, densenet, insight
from densenet_tutorial.layers import DenseLayer


@pytest.fixture
def small():
    """Two blocks of 2 and 3 layers, with batch norm that does something, for grey pictures."""
    torch.manual_seed(0)
    model = DenseNet(4, (2, 3), 8, num_classes=5, in_channels=1, stem="cifar")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_multiply_adds_of_densenet121_are_the_published_ones():
    costs = insight.part_costs(densenet("densenet121"), image_size=224)
    # torchvision's table, https://docs.pytorch.org/vision/stable/models.html
    assert round(sum(part.multiply_adds for part in costs) / 1e9, 2) == 2.83
    assert sum(part.parameters for part in costs) == 7_978_856
    assert costs[-1].shape == (1000,)


def looks(model, x):
    """Every function that has to do with modes, by name."""
    labels = torch.zeros(len(x), dtype=torch.int64)
    return {
        "part_costs": lambda: insight.part_costs(model, 12),
        "receptive_fields": lambda: insight.receptive_fields(model),
        "effective_receptive_field": lambda: insight.effective_receptive_field(model, x, "stem"),
        "gradient_norms": lambda: insight.gradient_norms(model, x, labels),
        "grad_cam": lambda: insight.grad_cam(model, x, 0),
        "feature_reuse": lambda: insight.feature_reuse(model, "denseblock1"),
        "connection_costs": lambda: insight.connection_costs(model, "denseblock2", x, labels),
    }


LOOKS = [
    "part_costs", "receptive_fields", "effective_receptive_field", "gradient_norms", "grad_cam",
    "feature_reuse", "connection_costs",
]  # fmt: skip


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("name", LOOKS)
def test_every_module_keeps_its_mode_and_its_state(small, x, name, failing):
    """A model in training, with some parts in evaluation mode: frozen batch norm, say."""
    small.train()
    small.features.transition1.eval()
    small.features.denseblock2.denselayer1.norm1.eval()
    modes = [module.training for module in small.modules()]
    before = state(small)
    if failing:
        small.features.norm5.forward = None  # the last of the features: it cannot be called
        if name not in ("receptive_fields", "feature_reuse"):
            with pytest.raises(TypeError):
                looks(small, x)[name]()
    else:
        looks(small, x)[name]()
    assert [module.training for module in small.modules()] == modes
    assert same(state(small), before)
    assert all(p.grad is None and p.requires_grad for p in small.parameters())


def test_the_pictures_of_a_batch_do_not_mix_in_any_mode(small, x):
    for found in (
        lambda x: insight.grad_cam(small, x, 2, "denseblock1"),
        lambda x: insight.effective_receptive_field(small, x[:1], "denseblock1"),
    ):
        alone = found(x[:1])
        assert torch.allclose(found(x)[: len(alone)], alone, rtol=1e-4, atol=1e-6)
        small.train()
        assert torch.allclose(found(x)[: len(alone)], alone, rtol=1e-4, atol=1e-6)
        small.eval()


def test_structure_does_not_hang_on_the_order_in_which_modules_were_made(small):
    fields = insight.receptive_fields(small)
    sizes, readers = insight.connections(small, "denseblock2")
    assert sizes == [8, 4, 4, 4]
    for layer in (m for m in small.modules() if isinstance(m, DenseLayer)):
        for name, module in reversed(list(layer.named_children())):
            delattr(layer, name)
            layer.add_module(name, module)
    assert next(iter(small.features.denseblock1.denselayer1._modules)) == "conv2"
    assert insight.receptive_fields(small) == fields
    assert insight.connections(small, "denseblock2") == (sizes, readers)


def test_images_that_do_not_fit_are_refused_in_words(small, x):
    labels = torch.zeros(len(x), dtype=torch.int64)
    for wrong in (x.repeat(1, 2, 1, 1), x[:, :, :1, :1]):
        for function in (
            lambda wrong=wrong: insight.connection_costs(small, "denseblock2", wrong, labels),
            lambda wrong=wrong: insight.grad_cam(small, wrong, 0),
        ):
            with pytest.raises(ValueError, match="x must be"):
                function()


def test_a_network_without_classifier_is_refused_where_one_is_needed(small, x):
    small.classifier = nn.Identity()
    for function in (
        lambda: insight.grad_cam(small, x, 0),
        lambda: insight.feature_reuse(small, "denseblock2"),
        lambda: insight.connection_costs(small, "denseblock1", x, torch.arange(6)),
    ):
        with pytest.raises(ValueError, match="^model must be a DenseNet with a classifier, got "):
            function()
    assert insight.part_costs(small, 12)[-1].parameters == 0


def test_connections_of_layers_without_bottleneck():
    model = DenseNet(3, (2, 1), 5, None, num_classes=2, stem="cifar")
    sizes, readers = insight.connections(model, "denseblock1")
    layers = list(model.features.denseblock1.values())
    assert sizes == [5, 3, 3]
    assert readers[:2] == [(layer.norm1, layer.conv1) for layer in layers]
    assert readers[2] == (model.features.transition1.norm, model.features.transition1.conv)


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 160), ("cifar", 48)])
def test_receptive_fields_equal_where_gradients_arrive(stem, size):
    model = DenseNet(3, (2, 1), 4, num_classes=2, stem=stem).eval()
    for (
        module
    ) in model.modules():  # every path open: positive weights, no maximum, no ReLU that blocks
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    if stem == "imagenet":
        model.features.pool0 = nn.AvgPool2d(3, 2, 1)
    x = torch.rand(1, 3, size, size, requires_grad=True)
    for field in insight.receptive_fields(model):
        features = model.intermediate_features(x)[field.name]
        middle = features.shape[-1] // 2
        widths = []
        for channel in features[0, :, middle, middle]:
            (gradient,) = torch.autograd.grad(channel, x, retain_graph=True)
            rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
            widths.append(int(rows[-1] - rows[0]) + 1)
        assert (min(widths), max(widths)) == (field.shortest, field.longest), field.name


# ------------------------------------------------------------------------ effective receptive field


def test_effective_receptive_field_of_two_equal_convolutions_is_a_triangle():
    model = DenseNet(1, (1,), 1, 1, num_classes=2, in_channels=1, stem="cifar").eval()
    layer = model.features.denseblock1.denselayer1
    for convolution in (model.features.conv0, layer.conv1, layer.conv2):
        nn.init.ones_(convolution.weight)
    x = torch.ones(3, 1, 9, 9)  # positive: no ReLU blocks anything
    field = insight.effective_receptive_field(model, x, "denseblock1")
    # The block's output is what came in, a 3 x 3 window, and its layer's, one such window on the
    # other. Batch norm with its first statistics divides by sqrt(1 + eps), twice on the way.
    once = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0.0])
    twice = torch.tensor([0, 0, 1, 2, 3, 2, 1, 0, 0.0])
    expected = once.outer(once) + twice.outer(twice) / (1 + layer.norm1.eps)
    assert torch.allclose(field, expected)
    assert insight.effective_size(field) == 5  # 1/10 at the corners, which is more than 4.55 %


def test_effective_size_counts_pixels_above_two_standard_deviations():
    field = torch.zeros(20, 20)
    field[:2, :8] = torch.tensor([0.045, 1.0]).repeat_interleave(8).view(2, 8)
    assert insight.effective_size(field) == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("function", ["effective_receptive_field", "grad_cam"])
def test_looking_leaves_no_trace(small, x, function):
    before = state(small)
    arguments = (x, "denseblock1") if function == "effective_receptive_field" else (x, 0)
    with torch.no_grad():  # a caller's own setting does not matter
        found = getattr(insight, function)(small, *arguments)
    assert found.min() >= 0 and found.max() > 0 and not found.requires_grad
    assert same(state(small), before)
    assert all(p.grad is None for p in small.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in small.modules())
    assert not x.requires_grad


# ------------------------------------------------------------------------------ gradients


def test_gradient_norms_are_those_of_backward(small, x):
    small.train()
    labels = torch.arange(6) % 5
    before = state(small)
    norms = insight.gradient_norms(small, x, labels)
    assert same(state(small), before) and all(p.grad is None for p in small.parameters())
    F.cross_entropy(small(x), labels).backward()
    assert norms == {
        name: module.weight.grad.norm().item()
        for name, module in small.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    names = list(norms)
    assert (names[0], names[-1]) == ("features.conv0", "classifier")


def test_frozen_layers_have_gradients_and_stay_frozen(small, x):
    labels = torch.arange(6) % 5
    expected = insight.gradient_norms(small, x, labels)
    small.features.denseblock1.requires_grad_(False)
    learning = [p.requires_grad for p in small.parameters()]
    assert insight.gradient_norms(small, x, labels) == expected
    assert [p.requires_grad for p in small.parameters()] == learning
    with pytest.raises(ValueError, match="labels must be 6 classes from 0 to 4"):
        insight.gradient_norms(small, x, labels + 1)
    assert [p.requires_grad for p in small.parameters()] == learning


def test_gradient_norm_of_a_linear_layer_by_hand():
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    # Both classes have probability 1/2, so the gradient is (-1/2, 1/2) times the input, whose
    # length is 5.
    norms = insight.gradient_norms(
        nn.Sequential(layer), torch.tensor([[3.0, 4.0]]), torch.tensor([0])
    )
    assert norms == {"0": pytest.approx(5 / math.sqrt(2))}


# ------------------------------------------------------------------------------ Grad-CAM


def test_grad_cam_points_at_the_pixels_that_make_the_class():
    """The stem hands the picture on, and the classifier reads the brightness for class 1 and its
    negative for 0.
    """
    model = DenseNet(1, (1,), 1, 1, num_classes=2, in_channels=1, stem="cifar").eval()
    for parameter in model.parameters():
        if parameter.dim() == 4:
            nn.init.zeros_(parameter)
    model.features.conv0.weight.data[0, 0, 1, 1] = 1.0
    model.classifier.weight.data = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 1, 2] = 3.0
    x[1, 0, 3, 0] = 5.0
    maps = insight.grad_cam(model, x, torch.tensor([1, 0]))
    expected = torch.zeros(2, 4, 4)
    expected[0, 1, 2] = 2.0 * 3.0 / 16 / math.sqrt(1 + 1e-5)  # the mean over 16 pixels, and norm5
    assert torch.allclose(maps, expected)  # what speaks against class 0 is left out


def test_grad_cam_of_one_class_for_all_pictures(small, x):
    one_each = insight.grad_cam(small, x, torch.full((6,), 3), "denseblock1")
    assert torch.equal(insight.grad_cam(small, x, 3, "denseblock1"), one_each)
    assert one_each.shape == (6, 12, 12)


class WithReLU(nn.Module):
    """A DenseNet whose last ReLU is a module, which captum can look at."""

    def __init__(self, model):
        super().__init__()
        self.model, self.relu = model, nn.ReLU()

    def forward(self, x):
        return self.model.classifier(self.relu(self.model.features(x)).mean((2, 3)))


@pytest.mark.parametrize("part", ["stem", "transition1", "denseblock2", "final"])
def test_grad_cam_is_captums(x, part):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    torch.manual_seed(0)
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    pictures, target = torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4])
    with_relu = WithReLU(model)
    layers = {"stem": model.features.conv0, "final": with_relu.relu}
    layer = layers.get(part) or getattr(model.features, part)
    theirs = attr.LayerGradCam(with_relu, layer).attribute(
        pictures, target=target, relu_attributions=True
    )
    ours = insight.grad_cam(model, pictures, target, part)
    assert theirs.max() > 0
    assert torch.allclose(ours, theirs[:, 0].detach(), rtol=1e-4, atol=1e-6 * theirs.max().item())


@pytest.mark.parametrize("function", ["effective_receptive_field", "grad_cam"])
def test_an_unknown_part_is_named(small, x, function):
    arguments = (x, "conv0") if function == "effective_receptive_field" else (x, 0, "conv0")
    with pytest.raises(ValueError, match="part must be one of 'stem', 'denseblock1'.*'conv0'"):
        getattr(insight, function)(small, *arguments)


# ------------------------------------------------------------------------------ feature reuse


@pytest.mark.parametrize("bn_size", [1, None])
def test_feature_reuse_of_a_block_made_by_hand(bn_size):
    """Every reader's weights from a source are +-(10 source + reader), and gamma of a source is
    source + 1.
    """
    model = DenseNet(2, (2,), 3, bn_size, num_classes=4, in_channels=1, stem="cifar")
    block, sizes = model.features.denseblock1, (3, 2, 2)
    readers = [
        (block.denselayer1.norm1, block.denselayer1.conv1),
        (block.denselayer2.norm1, block.denselayer2.conv1),
        (model.features.norm5, model.classifier),
    ]
    for number, (norm, reader) in enumerate(readers, start=1):
        start = 0
        for source, size in enumerate(sizes[:number]):
            reader.weight.data[:, start : start + size] = 10 * source + number
            norm.weight.data[start : start + size] = -(source + 1)
            start += size
        assert start == reader.weight.shape[1]
        reader.weight.data[::2] *= -1
    nan = torch.nan
    expected = torch.tensor([[1.0, 2, 3], [nan, 12, 13], [nan, nan, 23]])
    reuse = insight.feature_reuse(model, "denseblock1")
    assert torch.equal(reuse.nan_to_num(), expected.nan_to_num())
    assert torch.equal(reuse.isnan(), expected.isnan())
    scaled = insight.feature_reuse(model, "denseblock1", scaled=True)
    by_gamma = expected * torch.tensor([[1.0], [2.0], [3.0]])
    assert torch.equal(scaled.nan_to_num(), by_gamma.nan_to_num())


def test_the_last_column_of_a_block_before_others_is_the_transition(small):
    weight = small.features.transition1.conv.weight
    last = insight.feature_reuse(small, "denseblock1")[:, -1]
    parts = weight.detach().abs().split([8, 4, 4], dim=1)
    assert torch.allclose(last, torch.stack([part.mean() for part in parts]))


# ------------------------------------------------------------------------------ computed weights

# Ways in which a layer's weights are computed from others, and how to put in place what is
# computed.
COMPUTED = {
    "weight norm": (
        parametrizations.weight_norm,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "orthogonal": (
        parametrizations.orthogonal,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "pruning": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.remove(layer, "weight"),
    ),
}


@pytest.mark.parametrize("way", COMPUTED)
@pytest.mark.parametrize("target", [2, 4])  # a layer's convolution, and the classifier
def test_a_connection_whose_weights_are_computed_is_refused_until_they_are_not(
    small, x, way, target
):
    compute, put_in_place = COMPUTED[way]
    layer = small.features.denseblock2.denselayer2.conv1 if target == 2 else small.classifier
    compute(layer)
    before = state(small)
    with pytest.raises(ValueError, match=f"target must be a reader .* got {target}, whose weights"):
        insight.remove_connection(small, "denseblock2", 1, target)
    with pytest.raises(ValueError, match="whose weights are computed from others"):
        labels = torch.zeros(6, dtype=torch.int64)
        insight.connection_costs(small, "denseblock2", x, labels)
    assert same(state(small), before)
    with insight.remove_connection(small, "denseblock2", 1, 3):  # others are as they were
        pass
    put_in_place(layer)
    with torch.no_grad():
        whole = small(x)
        with insight.remove_connection(small, "denseblock2", 1, target):
            assert not torch.equal(small(x), whole)
        assert torch.equal(small(x), whole)


@pytest.mark.parametrize("way", COMPUTED)
def test_feature_reuse_and_gradients_are_those_of_the_computed_weights(small, x, way):
    compute, put_in_place = COMPUTED[way]
    labels = torch.arange(6) % 5
    readers = [small.features.denseblock2.denselayer2.conv1, small.features.transition1.conv]
    for reader in readers:
        compute(reader)
    if way == "pruning":  # its hook computes the weight in the next forward pass, not at once
        with torch.no_grad():
            readers[0].weight_orig.mul_(3)
    blocks = ("denseblock1", "denseblock2")
    reuse = [insight.feature_reuse(small, block) for block in blocks]
    norms = insight.gradient_norms(small, x, labels)
    for reader in readers:
        put_in_place(reader)
    for block, found in zip(blocks, reuse):
        assert torch.allclose(found, insight.feature_reuse(small, block), equal_nan=True)
    assert norms == pytest.approx(insight.gradient_norms(small, x, labels), rel=1e-4)


# ------------------------------------------------------------------------------ removal

CONNECTIONS = [
    ("denseblock1", 0, 1), ("denseblock1", 1, 2), ("denseblock1", 2, 3),
    ("denseblock2", 0, 3), ("denseblock2", 1, 3), ("denseblock2", 2, 4),
]  # fmt: skip


@pytest.mark.parametrize(("block", "source", "target"), CONNECTIONS)
def test_a_removed_connection_carries_nothing(small, x, block, source, target):
    """What the source makes reaches the reader no more: it can be changed without a change of what
    is read.
    """
    sizes = {"denseblock1": (8, 4, 4), "denseblock2": (8, 4, 4, 4)}[block]
    layers = list(getattr(small.features, block).values())
    torch.manual_seed(0)
    features = [torch.randn(2, size, 6, 6) for size in sizes[:target]]
    changed = [f + (i == source) for i, f in enumerate(features)]

    def read(features):
        if target <= len(layers):
            return layers[target - 1](features)
        if block == "denseblock1":
            return small.features.transition1(torch.cat(features, 1))
        return small.classifier(F.relu(small.features.norm5(torch.cat(features, 1))).mean((2, 3)))

    with torch.no_grad():
        assert not torch.equal(read(features), read(changed))
        with insight.remove_connection(small, block, source, target):
            assert torch.equal(read(features), read(changed))
            if source:  # and the others still arrive
                others = [f + (i == 0) for i, f in enumerate(features)]
                assert not torch.equal(read(features), read(others))


@pytest.mark.parametrize("failing", [False, True])
def test_removed_connections_come_back_bit_for_bit(small, failing):
    before = state(small)
    try:
        with (
            insight.remove_connection(small, "denseblock2", 1, 3),
            torch.inference_mode(),
            insight.remove_connection(small, "denseblock2", 0, 3),
        ):
            now = small.state_dict()
            changed = [name for name in now if not torch.equal(now[name], before[name])]
            assert changed == ["features.denseblock2.denselayer3.conv1.weight"]
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert failing
    assert same(state(small), before)


@pytest.mark.parametrize(("source", "target"), [(0, 0), (2, 1), (-1, 1), (0, 4), (3, 3)])
def test_a_connection_that_is_not_there_is_refused(small, source, target):
    before = state(small)
    message = f"source < target <= 3 in denseblock1.*{source} and {target}"
    removed = insight.remove_connection(small, "denseblock1", source, target)
    with pytest.raises(ValueError, match=message), removed:
        pass
    assert same(state(small), before)
    with pytest.raises(ValueError, match="block must be one of 'denseblock1', 'denseblock2'"):
        insight.feature_reuse(small, "transition1")


def test_connection_costs_are_those_of_the_whole_network(small, x):
    """However much is computed once: the same as cutting, asking the whole network, and mending."""
    with torch.no_grad():
        labels = small(x).argmax(1)
        labels[:2] = (labels[:2] + 1) % 5  # two of six start out wrong
        small.train()
        costs = insight.connection_costs(small, "denseblock2", x, labels, batch_size=4)
        assert small.training
        small.eval()
        assert [(c.source, c.target) for c in costs] == [
            (s, t) for t in range(1, 5) for s in range(t)
        ]
        whole = F.cross_entropy(small(x), labels)
        for cost in costs:
            with insight.remove_connection(small, "denseblock2", cost.source, cost.target):
                logits = small(x)
            right = logits.argmax(1) == labels
            assert (cost.lost, cost.gained) == (int((~right[2:]).sum()), int(right[:2].sum()))
            assert cost.loss == pytest.approx(
                (F.cross_entropy(logits, labels) - whole).item(), abs=1e-6
            )
    assert any(cost.lost for cost in costs)


def test_the_error_of_a_drop_is_that_of_a_paired_difference():
    cost = insight.ConnectionCost(0, 1, lost=30, gained=10, images=1000, loss=0.1)
    change = torch.zeros(1000, dtype=torch.float64)
    change[:30], change[30:40] = 1, -1
    assert cost.drop == pytest.approx(change.mean().item())
    assert cost.error == pytest.approx((change.std(correction=0) / math.sqrt(1000)).item())
    nothing = insight.ConnectionCost(0, 1, lost=0, gained=0, images=1000, loss=0.0)
    assert (nothing.drop, nothing.error) == (0, 0)
