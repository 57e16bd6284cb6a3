"""Converting, recognising and fitting, on state dicts made here."""

import copy
import re

import pytest
import torch
import torchvision

from densenet_tutorial import DenseNet, densenet
from densenet_tutorial.weights.layouts import adapt_state_dict, architecture, convert_state_dict

OPTIONS = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}


def old_keys(state_dict):
    """As torchvision's published files have it: dotted names, no counters."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", key): value
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def under(*names, **more):
    def wrap(state):
        for name in names:
            state = {name: state} | more
        return state

    return wrap


LAYOUTS = {
    "today's": dict,
    "old dotted keys": old_keys,
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "torch.compile of DDP": prefixed("_orig_mod.module."),
    "Lightning": prefixed("model."),
    "a compiled part": lambda s: {
        k.replace("features.", "features._orig_mod."): v for k, v in s.items()
    },
    "under model": under("model", epoch=3, lr=0.1),
    "under state_dict": under("state_dict", best_acc1=71.0, arch="densenet121"),
    "under model_state_dict": under("model_state_dict", optimizer={}),
    "under two": under("model", "state_dict", epoch=3),
    "all at once": lambda s: under("state_dict", epoch=90)(prefixed("module.")(old_keys(s))),
}


@pytest.fixture
def theirs():
    """torchvision's small network, its running statistics moved away from where they start."""
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(**OPTIONS)
    model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_torchvisions_numbers(theirs, layout):
    content = LAYOUTS[layout](theirs.state_dict())
    before = copy.deepcopy(content)
    converted, notes = convert_state_dict(content)
    ours = DenseNet(**OPTIONS).eval()
    ours.load_state_dict(converted)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))
    assert bool(notes) == (layout != "today's")
    assert str(content) == str(before), "the argument was changed"
    assert convert_state_dict(converted)[1] == [], "a second time there is nothing to do"


def test_the_notes_say_what_was_done(theirs):
    content = {"state_dict": prefixed("module.")(old_keys(theirs.state_dict()))}
    notes = convert_state_dict(content)[1]
    assert len(notes) == 4
    assert notes[0] == "took the state dict from under 'state_dict'"
    assert notes[1].startswith(
        "dropped 'module' in 66 of 66 keys (module.features.conv0.weight is now"
    )
    assert "denselayer1.norm.1.weight is now features.denseblock1.denselayer1.norm1.w" in notes[2]
    assert notes[3] == "added 13 counters num_batches_tracked, at 0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(theirs, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    converted, notes = convert_state_dict(state)
    assert {v.dtype for v in converted.values()} == {torch.float32, torch.int64}
    assert str(dtype).removeprefix("torch.") in notes[0]


def test_only_layers_are_renamed():
    """A transition's norm has no number, and norm.5 of something else is left alone."""
    key = "features.transition1.norm.weight"
    assert list(convert_state_dict({key: torch.zeros(1)})[0]) == [key]
    assert list(convert_state_dict({"other.norm.1.weight": torch.zeros(1)})[0]) == [
        "other.norm.1.weight"
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "a dict of 0 entries"),
        ({"epoch": 3}, "'epoch' is int"),
        ({"model": {"epoch": 3}}, "'epoch' is int"),
        ([torch.zeros(1)], "a list"),
        (torch.zeros(1), "a Tensor"),
        (None, "a NoneType"),
        (
            {"module.features.a": torch.zeros(1), "features.a": torch.zeros(1)},
            "mean the same tensor, features.a",
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(content, words):
    with pytest.raises(ValueError, match=words):
        convert_state_dict(content)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("densenet121", "blocks 6, 12, 24, 16, growth rate 32, 64 channels"),
        ("densenet161", "blocks 6, 12, 36, 24, growth rate 48, 96 channels"),
        (
            "densenet_bc_100_12",
            "blocks 16, 16, 16, growth rate 12, 24 channels from the cifar stem",
        ),
        ("densenet_40_12", "growth rate 12, 16 channels from the cifar stem, no bottleneck"),
    ],
)
def test_an_architecture_is_read_off_names_and_shapes(name, words):
    assert words in str(architecture(densenet(name).state_dict()))


def test_what_is_no_densenet_is_refused():
    with pytest.raises(
        ValueError, match="no DenseNet's: of its 122 tensors, the first are conv1.w"
    ):
        architecture(torchvision.models.resnet18().state_dict())


# ------------------------------------------------------------------------------ the classifier


def model_of(**options):
    return DenseNet(**OPTIONS | options).eval()


def fitted(theirs, head=None, **options):
    model = model_of(**options)
    state, notes = adapt_state_dict(theirs.state_dict(), model.state_dict(), head)
    model.load_state_dict(state)
    return model, notes


def test_a_classifier_of_the_same_size_is_kept(theirs):
    model, notes = fitted(theirs)
    assert torch.equal(model.classifier.weight, theirs.classifier.weight) and notes == []


@pytest.mark.parametrize(("head", "classes"), [(None, 3), ("new", 3), ("new", 5), (None, 9)])
def test_a_new_classifier_is_the_models_own_and_the_rest_is_loaded(theirs, head, classes):
    model = model_of(num_classes=classes)
    state, notes = adapt_state_dict(theirs.state_dict(), model.state_dict(), head)
    assert torch.equal(state["classifier.weight"], model.classifier.weight)
    assert torch.equal(state["features.norm5.weight"], theirs.features.norm5.weight)
    assert notes == [f"a new classifier of {classes} classes, with random weights"]


@pytest.mark.parametrize(
    ("head", "rows"), [("slice", [0, 1]), ([3, 1], [3, 1]), ((4, 0, 2, 1, 3), [4, 0, 2, 1, 3])]
)
def test_chosen_rows_give_the_old_logits_of_these_classes(theirs, head, rows):
    model, notes = fitted(theirs, head, num_classes=len(rows))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), theirs(x)[:, rows])
    assert notes[0].startswith(f"a classifier of {len(rows)} of the 5 classes: rows {rows[0]}")


@pytest.mark.parametrize(
    ("head", "classes"),
    [
        ("slice", 6),
        ([0, 1], 3),
        ([0, 5], 2),
        ([0, -1], 2),
        ([0, 1.0], 2),
        ("first", 2),
        ("", 2),
        ([], 2),
        ({0, 1}, 2),
        (2, 2),
        ([True, False], 2),
    ],
)
def test_a_head_that_does_not_fit_is_refused(theirs, head, classes):
    with pytest.raises(ValueError, match="head must"):
        fitted(theirs, head, num_classes=classes)


def test_a_file_without_classifier_needs_a_new_one_that_is_asked_for(theirs):
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier")}
    like = model_of(num_classes=3).state_dict()
    assert adapt_state_dict(state, like, "new")[0].keys() == like.keys()
    with pytest.raises(ValueError, match="it has no classifier; head='new' makes one"):
        adapt_state_dict(state, like)
    with pytest.raises(ValueError, match="it has no classifier, and head='slice' needs one"):
        adapt_state_dict(state, like, "slice")


# ------------------------------------------------------------------------------ channels


@pytest.mark.parametrize(("n", "m"), [(3, 1), (1, 3), (3, 4), (4, 3), (2, 5)])
def test_a_grey_picture_gives_the_same_whatever_the_channels(n, m):
    torch.manual_seed(0)
    before = model_of(in_channels=n)
    after = model_of(in_channels=m)
    state, notes = adapt_state_dict(before.state_dict(), after.state_dict())
    after.load_state_dict(state)
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(
        after(grey.expand(-1, m, -1, -1)), before(grey.expand(-1, n, -1, -1)), rtol=1e-4, atol=1e-5
    )
    assert notes == [f"a first convolution for {m} channels: the sum of the {n} kernels, over {m}"]


# ------------------------------------------------------------------------------ what does not fit


def test_faults_are_counted_and_the_first_are_named(theirs):
    like = model_of().state_dict()
    state = dict(theirs.state_dict())
    for number in (1, 2, 3):
        del state[f"features.denseblock2.denselayer{number}.conv1.weight"]
    del state["features.norm5.bias"]
    state["features.extra.weight"] = torch.zeros(1)
    state["features.norm0.weight"] = torch.zeros(7)
    state["features.norm0.bias"] = torch.full((8,), torch.nan)
    with pytest.raises(ValueError) as caught:
        adapt_state_dict(state, like)
    message = str(caught.value)
    assert "missing keys: 4 (features.denseblock2.denselayer1.conv1.weight, " in message
    assert ", …)" in message
    assert "keys that the model has not: 1 (features.extra.weight)" in message
    assert "wrong shapes: 1 (features.norm0.weight has [7] and should have [8])" in message
    assert "values that are not numbers: 1 (features.norm0.bias)" in message
