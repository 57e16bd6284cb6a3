"""What the fingers of a user of torchvision or timm type, typed."""

import copy
import importlib
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import densenet_tutorial
from densenet_tutorial import DenseNet, densenet, densenet121, densenet_bc, list_models
from densenet_tutorial.weights import WeightsError

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}


def small(**options):
    torch.manual_seed(0)
    return DenseNet(**(SMALL | options)).eval()


def images(size=40):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------ weights


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """ImageNet's files are nowhere, and an address that answers nothing; the cache is empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    from densenet_tutorial.weights import sources

    monkeypatch.setattr(sources, "IMAGENET_ADDRESS", "http://127.0.0.1:9/")
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


ENUM = torchvision.models.DenseNet121_Weights


@pytest.mark.parametrize(
    "weights",
    [
        *("imagenet", "DEFAULT", "IMAGENET1K_V1", ENUM.DEFAULT, ENUM.IMAGENET1K_V1),
        *("DenseNet121_Weights.DEFAULT", "DenseNet121_Weights.IMAGENET1K_V1"),
    ],
    ids=str,
)
def test_torchvisions_words_for_weights(weights, no_network):
    with pytest.raises(WeightsError, match=r"densenet121-a639ec97\.pth is not on this machine"):
        densenet121(weights=weights, progress=False)


def test_the_enum_of_another_model_is_refused():
    with pytest.raises(ValueError, match="densenet169"):
        densenet121(weights=torchvision.models.DenseNet169_Weights.DEFAULT)
    with pytest.raises(ValueError, match="densenet169"):
        densenet121(weights="DenseNet169_Weights.DEFAULT")
    with pytest.raises(ValueError, match="DenseNet121_Weights.V9"):
        densenet121(weights="DenseNet121_Weights.V9")


def test_pretrained_works_and_is_deprecated(no_network):
    with (
        pytest.warns(UserWarning, match="pretrained is deprecated") as caught,
        pytest.raises(WeightsError, match="densenet121-a639ec97"),
    ):
        densenet121(pretrained=True)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert densenet121(pretrained=False).num_classes == 1000


def test_a_state_dict_is_weights():
    theirs = torchvision.models.densenet121(num_classes=7).eval()
    ours = densenet121(weights=theirs.state_dict()).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(images(64)), theirs(images(64)), rtol=1e-4, atol=1e-5)


def test_weights_go_to_and_from_torchvision_strictly():
    theirs = torchvision.models.densenet169(num_classes=3)
    ours = densenet("densenet169", num_classes=3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


# -------------------------------------------------------------------------- features and classifier


def test_the_names_of_the_models():
    assert list_models()[0] == "densenet121" and "densenet_bc_100_12" in list_models()
    for name in list_models():
        assert getattr(densenet_tutorial, name).__doc__


def test_features_classes_and_the_classifier():
    model = small()
    assert (model.num_features, model.num_classes) == (20, 5)
    assert model.get_classifier() is model.classifier
    pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(model.classifier(pooled), model(images()))

    model.eval().reset_classifier(3)
    assert not model.classifier.training
    model.train()
    assert model.num_classes == 3 and model(images()).shape == (2, 3)
    with torch.device("meta"), torch.inference_mode():
        model.reset_classifier(3)
    model(images()).sum().backward()  # what was made there can be trained
    assert model.classifier.weight.device.type == "cpu" and model.classifier.weight.grad is not None
    model.double().reset_classifier(4)
    assert model(images().double()).dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(
        model(images().double()),
        model.forward_head(model.forward_features(images().double()), pre_logits=True),
    )
    with pytest.raises(ValueError, match="num_classes must be a whole number"):
        model.reset_classifier(-1)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (None, ["stem", "denseblock1", "transition1", "denseblock2", "final"]),
        (["transition1"], ["transition1"]),
        ([-1, 0], ["stem", "final"]),
        ([1, "denseblock1"], ["denseblock1"]),
    ],
)
def test_intermediate_features_by_name_or_index(asked, names):
    model = small()
    everything = model.intermediate_features(images())
    found = model.intermediate_features(images(), asked)
    assert list(found) == names
    assert all(torch.equal(found[name], everything[name]) for name in names)


def test_what_comes_after_the_last_wanted_part_is_not_computed():
    model = small()
    model.features.denseblock2 = nn.Identity()  # would give norm5 too few channels
    assert list(model.intermediate_features(images(), ["stem"])) == ["stem"]


@pytest.mark.parametrize("part", ["denseblock9", 5, -6, 1.0, None, True])
def test_an_unknown_part_is_refused(part):
    with pytest.raises(ValueError, match=f"parts must be .*got {part!r}"):
        small().intermediate_features(images(), [part])


# ----------------------------------------------------------------------------- torch.fx and friends


@pytest.mark.parametrize("options", [{}, {"bn_size": None}, {"stem": "cifar"}, {"drop_rate": 0.3}])
def test_torch_fx_traces_the_model(options):
    model = small(**options)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(images()), model(images()))


def test_torchvisions_feature_extractor():
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = small()
    nodes = {
        "features.denseblock1.denselayer2.conv2": "maps",
        "features.transition1.pool": "pooled",
    }
    assert set(nodes) <= set(get_graph_node_names(model)[1])
    found = create_feature_extractor(model, nodes)(images())
    expected = model.intermediate_features(images())["transition1"]
    assert found["maps"].shape == (2, 4, 10, 10) and torch.equal(found["pooled"], expected)


def test_convolutions_and_norms_are_fused():
    from torch.fx.experimental.optimization import fuse

    model = small()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    fused = fuse(copy.deepcopy(model))
    left = sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert left < sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(fused(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
def test_fx_quantisation():
    quantize_fx = pytest.importorskip(
        "torch.ao.quantization.quantize_fx", reason="this torch has none"
    )
    from torch.ao.quantization import get_default_qconfig_mapping

    model = small()
    x = images()
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (x,))
    prepared(x)
    quantised = quantize_fx.convert_fx(prepared)
    assert quantised(x).shape == (2, 5)


def test_torch_export():
    model = small()
    torch.testing.assert_close(
        torch.export.export(model, (images(),)).module()(images()), model(images())
    )


# ------------------------------------------------------------------------------- getting hold of it


def test_torch_hub_from_a_folder():
    model = torch.hub.load(
        str(ROOT), "densenet_bc", source="local", block_config=(1, 1), growth_rate=3
    )
    assert model.num_classes == 10
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    assert {name for name in hubconf if name.startswith("densenet")} == set(list_models())


ROOMS = [
    "check",
    "data",
    "experiments",
    "figures",
    "insight",
    "memory",
    "training",
    "utils",
    "weights",
]


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_are_there_without_an_import_of_their_own(room):
    program = f"import densenet_tutorial as d; print(d.{room}.__name__, '{room}' in dir(d))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [f"densenet_tutorial.{room}", "True"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trainin'"):
        _ = densenet_tutorial.trainin


def test_the_package_itself_needs_little():
    heavy = ("matplotlib", "torchvision", "PIL")
    program = f"import sys, densenet_tutorial; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_at_most_fourteen_rooms_each_with_a_docstring():
    package = Path(densenet_tutorial.__file__).parent
    rooms = [p for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert len(rooms) <= 14
    for folder in (p for p in package.rglob("*") if (p / "__init__.py").exists()):
        assert len(list(folder.glob("*.py"))) <= 6, folder
    for module in (p for p in rooms if p.name not in ("__main__.py",)):
        name = (
            "densenet_tutorial"
            if module.name == "__init__.py"
            else f"densenet_tutorial.{module.stem}"
        )
        assert importlib.import_module(name).__doc__, name


def test_a_small_densenet_bc_of_any_size():
    assert densenet_bc(block_config=(2, 2), growth_rate=6, num_classes=3).num_classes == 3
