"""The network against torchvision's, and what it promises about its arguments and inputs."""

import io

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from densenet_tutorial import DenseNet, densenet, memory
from densenet_tutorial.network import CONFIGS

IN_TORCHVISION = ("densenet121", "densenet161", "densenet169", "densenet201")
SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}
SMALL_CIFAR = SMALL | {"stem": "cifar"}


def pair(seed=0, **options):
    """Our small network and torchvision's, from the same seed."""
    torch.manual_seed(seed)
    ours = DenseNet(**SMALL, **options)
    torch.manual_seed(seed)
    return ours, torchvision.models.DenseNet(**SMALL, **options)


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_same_seed_gives_torchvisions_weights_under_the_same_keys(name):
    torch.manual_seed(3)
    ours = densenet(name).state_dict()
    torch.manual_seed(3)
    theirs = getattr(torchvision.models, name)().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_eval_outputs_equal_torchvisions(name):
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    ours = densenet(name, num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())  # and back
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
@pytest.mark.parametrize("memory_efficient", memory.MODES)
def test_training_gradients_and_buffers_equal_torchvisions(drop_rate, memory_efficient):
    # Theirs is the plain model: their memory-efficient one moves the running statistics twice.
    _, theirs = pair(drop_rate=drop_rate)
    ours, _ = pair(drop_rate=drop_rate, memory_efficient=memory_efficient)
    x, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    inputs = []
    for model in (ours, theirs):
        torch.manual_seed(5)  # the same dropout masks
        inputs.append(x.clone().requires_grad_())
        F.cross_entropy(model(inputs[-1]), labels).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=name)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-7)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("densenet121", {}, 7_978_856),
        ("densenet161", {}, 28_681_000),
        ("densenet169", {}, 14_149_480),
        ("densenet201", {}, 20_013_928),
        ("densenet_bc_100_12", {"num_classes": 10}, 769_162),
        ("densenet_bc_100_12", {"num_classes": 10, "in_channels": 1}, 768_730),
    ],
)
def test_parameter_counts(name, options, parameters):
    assert count(densenet(name, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("densenet_40_12", 1.0), ("densenet_bc_250_24", 15.3), ("densenet_bc_190_40", 25.6)],
)
def test_parameter_counts_round_to_the_papers_table_2(name, millions):
    assert round(count(densenet(name)) / 1e6, 1) == millions


def test_every_named_model_has_its_own_function():
    import densenet_tutorial

    for name in CONFIGS:
        model = getattr(densenet_tutorial, name)(num_classes=3, block_config=(1, 1))
        assert model.classifier.out_features == 3
        with_name = densenet(name, num_classes=3, block_config=(1, 1))
        assert [p.shape for p in model.parameters()] == [p.shape for p in with_name.parameters()]


def test_bn_size_none_builds_layers_without_bottleneck():
    layer = DenseNet(**SMALL, bn_size=None).features.denseblock1.denselayer2
    assert [name for name, _ in layer.named_children()] == ["norm1", "relu1", "conv1"]
    assert layer.conv1.weight.shape == (4, 12, 3, 3)


@pytest.mark.parametrize(("compression", "channels"), [(1.0, 16), (0.5, 8), (0.3, 4), (0.07, 1)])
def test_compression_rounds_down(compression, channels):
    assert (
        DenseNet(**SMALL, compression=compression).features.transition1.conv.out_channels
        == channels
    )


def test_compression_is_exact_where_the_product_of_floats_is_not():
    assert int(100 * 0.29) == 28  # what this is about
    model = DenseNet(20, (1, 1), 80, num_classes=5, compression=0.29)
    assert model.features.transition1.conv.out_channels == 29


@pytest.mark.parametrize("blocks", [(1,), (1, 1), (1, 1, 1, 1, 1)])
def test_any_number_of_blocks(blocks):
    model = DenseNet(4, blocks, 8, num_classes=5, stem="cifar").eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("blocks", [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)])
def test_min_size_is_the_smallest_size_that_leaves_a_pixel(stem, blocks):
    model = DenseNet(4, blocks, 8, num_classes=5, stem=stem).eval()
    assert model(torch.randn(1, 3, model.min_size, model.min_size)).isfinite().all()
    if model.min_size > 1:
        size = model.min_size - 1
        with pytest.raises(ValueError, match=f"at least {model.min_size}"):
            model(torch.randn(1, 3, size, size))
        with pytest.raises(RuntimeError):  # without the check, PyTorch would have failed too
            model.features(torch.randn(1, 3, size, size))


@pytest.mark.parametrize(
    "shape", [(2, 1, 64, 64), (3, 64, 64), (2, 3, 64), (2, 3, 64, 2), (2, 4, 64, 64)]
)
@pytest.mark.parametrize("method", ["forward", "forward_features", "intermediate_features"])
def test_an_input_that_does_not_fit_is_refused_in_words(shape, method):
    model = DenseNet(**SMALL).eval()
    with pytest.raises(ValueError, match=r"x must be a batch of images \(N, 3, H, W\)") as caught:
        getattr(model, method)(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((1, 3, 64, 64)), "x must be a tensor, got ndarray"),
        (None, "x must be a tensor, got NoneType"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "normalised floats, got torch.uint8"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "forward_features", "intermediate_features"])
def test_an_input_of_the_wrong_kind_is_refused_in_words(x, words, method):
    with pytest.raises(ValueError, match=words):
        getattr(DenseNet(**SMALL), method)(x)


BAD_ARGUMENTS = [
    ("growth_rate", 0),
    ("growth_rate", -4),
    ("growth_rate", 2.5),
    ("growth_rate", True),
    ("growth_rate", "12"),
    ("block_config", ()),
    ("block_config", (2, 0)),
    ("block_config", (2, 1.5)),
    ("block_config", 3),
    ("block_config", "66"),
    ("block_config", b"\2\3"),
    ("block_config", {2, 3}),
    ("block_config", {2: 3}),
    ("num_init_features", 0),
    ("bn_size", 0),
    ("bn_size", 1.5),
    ("drop_rate", -0.1),
    ("drop_rate", 1.1),
    ("drop_rate", float("nan")),
    ("drop_rate", "half"),
    ("drop_rate", "0.5"),
    ("drop_rate", np.False_),
    ("num_classes", 0),
    ("in_channels", 0),
    ("in_channels", None),
    ("compression", 0),
    ("compression", 1.5),
    ("compression", np.True_),
    ("stem", "mnist"),
    ("stem", None),
    ("memory_efficient", "yes"),
    ("memory_efficient", None),
    ("memory_efficient", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_ARGUMENTS)
def test_bad_arguments_are_named_with_their_value(name, value):
    with pytest.raises(ValueError) as caught:
        DenseNet(**(SMALL | {name: value}))
    assert str(caught.value).startswith(f"{name} must be ")
    assert repr(value) in str(caught.value)


def test_compression_that_leaves_no_channel_is_refused():
    with pytest.raises(ValueError, match="compression .*0.01"):
        DenseNet(**SMALL, compression=0.01)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="name must be one of .*densenet121.*got 'densenet120'"):
        densenet("densenet120")


def test_intermediate_features_are_named_in_order_and_end_with_forward_features():
    model = DenseNet(**SMALL).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = model.intermediate_features(x)
        assert list(found) == ["stem", "denseblock1", "transition1", "denseblock2", "final"]
        assert torch.equal(found["final"], model.forward_features(x))
        pooled = found["final"].mean((2, 3))
        torch.testing.assert_close(model.classifier(pooled), model(x))
    assert {name: tuple(f.shape) for name, f in found.items()} == {
        "stem": (2, 8, 16, 16),
        "denseblock1": (2, 16, 16, 16),
        "transition1": (2, 8, 8, 8),
        "denseblock2": (2, 20, 8, 8),
        "final": (2, 20, 8, 8),
    }


@pytest.mark.parametrize("options", [{}, {"bn_size": None}, {"drop_rate": 0.2}])
@pytest.mark.filterwarnings("ignore:`?torch.jit:FutureWarning", "ignore::DeprecationWarning")
def test_script_export_and_compile_give_the_same_numbers(options):
    model = DenseNet(**SMALL_CIFAR, **options).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)

        file = io.BytesIO()
        torch.jit.save(torch.jit.script(model), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x), expected)

        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(
            model, (torch.randn(5, 3, 32, 32),), dynamic_shapes=({0: batch},)
        )
        torch.testing.assert_close(exported.module()(x), expected)

        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected)


@pytest.mark.filterwarnings("ignore:`?torch.jit:FutureWarning", "ignore::DeprecationWarning")
def test_numpys_numbers_are_as_good_as_pythons():
    sizes = {name: np.int64(v) for name, v in SMALL.items() if name != "block_config"}
    numpys = sizes | {"block_config": np.array(SMALL["block_config"]), "in_channels": np.int64(3)}
    model = DenseNet(**numpys, drop_rate=np.float32(0.5), compression=np.float64(0.5)).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.filterwarnings("ignore:`?torch.jit:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", memory.MODES[2:])
def test_scripting_a_memory_efficient_model_says_why_not(mode):
    with pytest.raises(RuntimeError, match=f"memory_efficient=.*{mode!r}"):
        torch.jit.script(DenseNet(**SMALL, memory_efficient=mode))


def test_no_tensor_that_a_hook_holds_is_changed_afterwards():
    model = DenseNet(**SMALL).eval()
    held = []
    for module in model.modules():
        module.register_forward_hook(lambda m, i, output: held.append((output, output.clone())))
    model(torch.randn(1, 3, 64, 64))
    assert len(held) > 20
    assert all(torch.equal(output, copy) for output, copy in held)
