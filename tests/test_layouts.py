"""Converting, recognising and fitting, on state dicts made here."""

import copy
import re
import time

import pytest
import torch
import torchvision

from densenet_tutorial import DenseNet, densenet, weights
from densenet_tutorial.weights.layouts import (
    CHECKPOINT_FORMAT,
    adapt_state_dict,
    architecture,
    check_values,
    convert_state_dict,
    is_checkpoint,
)

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


def nested(state):
    """Dicts inside of dicts in place of dots."""
    tree = {}
    for key, value in state.items():
        *words, last = key.split(".")
        inner = tree
        for word in words:
            inner = inner.setdefault(word, {})
        inner[last] = value
    return tree


def chexnet(state):
    """As the best-known medical DenseNet-121 was published, with a sigmoid after its classifier."""
    renamed = {k.replace("classifier.", "classifier.0."): v for k, v in old_keys(state).items()}
    moments = {number: {"exp_avg": value} for number, value in enumerate(state.values())}
    return {
        "epoch": 14,
        "best_loss": torch.tensor(0.1),
        "state_dict": prefixed("module.densenet121.")(renamed),
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.0001}]},
    }


def holding_itself(state):
    content = {"state_dict": state, "epoch": 3}
    return content | {"again": [content, {"deeper": content}]}


LAYOUTS = {
    "today's": dict,
    "CheXNet": chexnet,
    "any prefix": prefixed("a.b.c_d.0."),
    "under any name": under("weights of mine", 7),
    "in a list": lambda s: [{"epoch": 3}, ("model", s)],
    "dicts for dots": nested,
    "dicts for dots, under a name": lambda s: {"net": [nested(old_keys(s))]},
    "in what holds itself": holding_itself,
    "head called fc": lambda s: {k.replace("classifier", "fc"): v for k, v in s.items()},
    "head beside the wrapped trunk": lambda s: {
        k.replace("features", "encoder.model").replace("classifier", "head.1"): v
        for k, v in s.items()
    },
    "a wrapper around layers": lambda s: {
        re.sub(r"(denselayer1|conv0|norm5)\.", r"\1._checkpoint_wrapped_module.", k): v
        for k, v in s.items()
    },
    "a wrapper of one's own around blocks": lambda s: {
        re.sub(r"(denseblock\d)\.", r"\1.inner.most.", k): v for k, v in old_keys(s).items()
    },
    "something beside it": lambda s: s | {"criterion.weight": torch.ones(5)},
    "the same twice": lambda s: {"model": s, "ema": copy.deepcopy(s)},
    "the trunk registered twice": lambda s: {
        **prefixed("net.")(s),
        **{k.replace("features.", "backbone."): v for k, v in s.items() if "features" in k},
    },
    "a counter of floats": lambda s: {
        k: v.float() if "num_batches" in k else v for k, v in s.items()
    },
    "a classifier that is wrapped": lambda s: {
        k.replace("classifier.", "classifier._orig_mod."): v for k, v in s.items()
    },
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


def values(content):
    return content if isinstance(content, torch.Tensor) else sorted(map(str, content))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_torchvisions_numbers(theirs, layout):
    content = LAYOUTS[layout](theirs.state_dict())
    before = copy.deepcopy(content)
    converted, notes = convert_state_dict(content)
    ours = DenseNet(**OPTIONS).eval()
    ours.load_state_dict(converted)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))
    silent = ("today's", "dicts for dots", "a counter of floats")
    assert bool(notes) == (layout not in silent)
    assert [str(values(content)), len(str(content))] == [str(values(before)), len(str(before))]
    assert convert_state_dict(converted)[1] == [], "a second time there is nothing to do"


def test_the_notes_say_what_was_done(theirs):
    notes = convert_state_dict(chexnet(theirs.state_dict()))[1]
    assert notes[0] == "took the trunk from under 'state_dict.module.densenet121.features'"
    assert notes[1] == (
        "joined name and number in 50 of 64 keys (denseblock1.denselayer1.norm.1.weight is now "
        "denseblock1.denselayer1.norm1.weight)"
    )
    assert notes[2].startswith(
        "took the linear layer 'state_dict.module.densenet121.classifier.0' as the classifier of 5 "
        "classes; what follows it, such as a sigmoid"
    )
    assert notes[3:] == ["added 13 counters num_batches_tracked, at 0"], "the optimizer is no news"


def test_what_is_left_out_is_named(theirs):
    extra = {"criterion.weight": torch.ones(5), "model.aux.0.bias": torch.ones(2)}
    notes = convert_state_dict(prefixed("model.")(theirs.state_dict()) | extra)[1]
    expected = (
        "left out what belongs to no DenseNet: 2 tensors (criterion.weight, model.aux.0.bias)"
    )
    assert notes[-1] == expected


def test_a_trunk_alone_is_one(theirs):
    for content in (
        theirs.features.state_dict(),
        {"state_dict": prefixed("backbone.")(old_keys(theirs.features.state_dict()))},
    ):
        converted, notes = convert_state_dict(content)
        ours = DenseNet(**OPTIONS).eval()
        ours.features.load_state_dict(
            {k.removeprefix("features."): v for k, v in converted.items()}
        )
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours.features(x), theirs.features(x))
        assert notes[0].startswith("took the trunk")


def test_a_classifier_without_bias_gets_one_of_zeros(theirs):
    state = {k: v for k, v in theirs.state_dict().items() if k != "classifier.bias"}
    converted, notes = convert_state_dict(state)
    assert converted["classifier.bias"].tolist() == [0] * 5 and "of zeros" in notes[0]
    assert converted.keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    "head",
    [
        {"classifier.0.weight": (7, 20), "classifier.0.bias": (7,), "classifier.2.weight": (5, 7)},
        {"fc1.weight": (7, 20), "fc2.weight": (5, 7)},
        {
            "classifier.0.weight": (20,),
            "classifier.0.running_mean": (20,),
            "classifier.1.weight": (5, 20),
        },
        {"classifier.weight": (5, 40), "classifier.bias": (5,)},
        {"classifier.weight": (5, 20), "classifier.bias": (4,)},
        {"classifier.weight": (5, 20, 1, 1)},
        {"one.weight": (5, 20), "other.weight": (5, 20)},
        {"classifier.weight": ()},
    ],
)
def test_a_head_that_is_not_one_linear_layer_is_not_taken_for_it(theirs, head):
    """Its first layer would fit, and tell nonsense."""
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier")}
    state |= {key: torch.ones(shape) for key, shape in head.items()}
    converted, notes = convert_state_dict(state)
    assert [k for k in converted if not k.startswith("features.")] == []
    assert notes[-1].startswith(f"left out what belongs to no DenseNet: {len(head)} tensors (")


def test_the_classifier_is_known_by_name_where_several_fit(theirs):
    state = theirs.state_dict() | {"aux.weight": torch.ones(5, 20), "aux.bias": torch.ones(5)}
    converted, notes = convert_state_dict(state)
    assert torch.equal(converted["classifier.weight"], theirs.classifier.weight)
    assert "aux.weight" in notes[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {"model": s, "ema": {k: v + 1 for k, v in s.items()}},
            "2 DenseNets, under model.features, ema.features; in Python",
        ),
        (lambda s: {"a": s, "b": s | {"classifier.bias": torch.ones(5)}}, "2 DenseNets"),
        (lambda s: [{k: v + n for k, v in s.items()} for n in range(1000)], "1000 DenseNets"),
        (
            lambda s: s | {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(8)},
            "mean the same tensor, features.denseblock1.denselayer1.norm1.weight",
        ),
        (
            lambda s: s | {"features": {"conv0": {"weight": torch.ones(8)}}},
            "mean the same tensor, features.conv0.weight",
        ),
    ],
    ids=["model and average", "two heads", "a thousand", "old and new keys", "dots and dicts"],
)
def test_what_can_be_read_in_two_ways_is_refused(theirs, change, words):
    with pytest.raises(ValueError, match=words):
        convert_state_dict(change(dict(theirs.state_dict())))


def test_the_way_out_of_two_models_is_one(theirs):
    state = theirs.state_dict()
    both = {"model": state, "ema": {k: v * 2 for k, v in state.items()}}
    assert torch.equal(
        convert_state_dict(both["ema"])[0]["classifier.bias"], state["classifier.bias"] * 2
    )


def test_a_part_that_no_densenet_has_is_not_left_out_of_the_trunk(theirs):
    """It would compute other numbers without it."""
    for key in ("features.attention.weight", "features.denseblock1000000000.denselayer1.x"):
        converted, _ = convert_state_dict(theirs.state_dict() | {key: torch.ones(3)})
        assert key in converted
        with pytest.raises(ValueError, match="keys that the model has not: 1 .features"):
            adapt_state_dict(converted, theirs.state_dict())


STRANGE = {
    "int32": (lambda t: t.int(), "conv0.weight holds int32"),
    "int8": (lambda t: t.to(torch.int8), "holds int8"),
    "bool": (lambda t: t.bool(), "holds bool"),
    "complex": (lambda t: t.cfloat(), "holds complex64"),
    "sparse": (lambda t: t.to_sparse(), "is sparse"),
    "compressed": (lambda t: t.flatten(1).to_sparse_csr(), "is sparse"),
    "meta": (lambda t: t.to("meta"), "is of the meta device, a shape without numbers"),
    "expanded": (lambda t: t[:1].expand_as(t), "is expanded from fewer numbers"),
    "2^40 elements": (lambda t: torch.ones(1).expand(2**40), "is expanded from fewer numbers"),
    "overlapping": (lambda t: torch.ones(10).as_strided((5, 5), (1, 1)), "memory of their own"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantised"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.filterwarnings("ignore")
def test_what_holds_no_floats_of_its_own_is_refused(theirs, kind):
    make, words = STRANGE[kind]
    state = dict(theirs.state_dict())
    state["features.conv0.weight"] = make(state["features.conv0.weight"])
    with pytest.raises(ValueError, match=words):
        convert_state_dict(state)


def test_values_that_no_network_can_compute_with_are_refused(theirs):
    state = dict(theirs.state_dict())
    check_values(state)
    for key, value in (
        ("features.norm5.running_var", -1),
        ("classifier.bias", torch.nan),
        ("features.conv0.weight", torch.inf),
    ):
        broken = state | {key: state[key].clone()}
        broken[key].view(-1)[1] = value
        with pytest.raises(ValueError, match=f"1 .{key}"):
            check_values(broken)
        if value == -1:
            with pytest.raises(ValueError, match="variances below 0"):
                check_values(broken, allow_nan=True)
        else:
            check_values(broken, allow_nan=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"format": "densenet-tutorial checkpoint 2"},
            "format version '2', and this .* reads version 1",
        ),
        ({"format": "densenet-tutorial checkpoint"}, "version ''"),
        ({"config": None}, "part 'config' is missing"),
        ({"config": [1]}, "part 'config' is missing"),
        ({"model": None}, "part 'model' is missing"),
    ],
)
def test_a_checkpoint_of_ours_that_is_not_whole_or_newer_says_so(change, words):
    whole = {"format": CHECKPOINT_FORMAT, "config": {}, "model": {}}
    assert is_checkpoint(whole)
    with pytest.raises(ValueError, match=words):
        is_checkpoint(whole | change)


@pytest.mark.parametrize("content", [None, [], {}, {"format": 3}, {"format": "torch"}, "text"])
def test_what_is_no_checkpoint_of_ours_is_none(content):
    assert not is_checkpoint(content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(theirs, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    converted, notes = convert_state_dict(state)
    assert {v.dtype for v in converted.values()} == {torch.float32, torch.int64}
    assert str(dtype).removeprefix("torch.") in notes[0]


def test_only_layers_are_renamed(theirs):
    """A transition's norm has no number, and norm.1 of something else is left alone."""
    state = theirs.state_dict()
    converted, notes = convert_state_dict(state | {"head.norm.1.weight": torch.ones(1)})
    assert converted.keys() == state.keys() and "(head.norm.1.weight)" in notes[0]
    assert "features.transition1.norm.weight" in converted


def deep(levels):
    content = {}
    for _ in range(levels):
        content = {"a": content}
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "a dict of 0 entries"),
        ({"epoch": 3}, "'epoch' is int"),
        ({"model": {"epoch": 3}}, "'model' is dict"),
        ([torch.zeros(1)], "of its 1 tensors, the first are 0"),
        ([], "a list"),
        (torch.zeros(1), "a Tensor"),
        (None, "a NoneType"),
        (deep(100_000), "a dict of 1 entries"),
        ({"a." * 100_000: torch.zeros(1)}, "a dict of 1 entries|of its 1 tensors"),
        ({f"{n}.denseblock1.x": torch.zeros(1) for n in range(50_000)}, "of its 50000 tensors"),
        ({f"{n}.denseblock1.denselayer1.x": torch.zeros(1) for n in range(50_000)}, "50000 Dense"),
        ({"\x1b[2J\n" * 99: torch.zeros(1)}, r"the first are (?!.*\x1b|.*\n)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_state_dict_is_refused(content, words):
    before = time.process_time()
    with pytest.raises(ValueError, match=words) as caught:
        convert_state_dict(content)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
    assert time.process_time() - before < 5


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


@pytest.mark.parametrize("head", [None, "slice", [0, 1, 2]])
def test_a_file_without_classifier_needs_a_new_one_that_is_asked_for(theirs, head):
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier")}
    like = model_of(num_classes=3).state_dict()
    with pytest.raises(ValueError, match="has no classifier .*in Python, .*head='new'. makes one"):
        adapt_state_dict(state, like, head)
    assert adapt_state_dict(state, like, "new")[0].keys() == like.keys()


def test_a_way_out_is_proposed_only_where_it_leads_out(theirs):
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier")}
    del state["features.norm0.bias"]
    for head in (None, "new"):
        with pytest.raises(ValueError, match=r"^missing keys: 1 .features.norm0.bias.$"):
            adapt_state_dict(state, theirs.state_dict(), head)


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
    with pytest.raises(ValueError) as caught:
        adapt_state_dict(state, like)
    message = str(caught.value)
    assert "missing keys: 4 (features.denseblock2.denselayer1.conv1.weight, " in message
    assert ", …)" in message
    assert "keys that the model has not: 1 (features.extra.weight)" in message
    assert "wrong shapes: 1 (features.norm0.weight has [7] and should have [8])" in message


@pytest.mark.parametrize("bad", [None, 3, "text", [1], torch.ones(2)])
def test_what_is_no_state_dict_is_refused_in_words_everywhere(bad):
    for function in (
        architecture,
        check_values,
        lambda bad: adapt_state_dict(bad, {}),
        lambda bad: adapt_state_dict({}, bad),
        lambda bad: weights.adapt(bad, {}),
    ):
        with pytest.raises(ValueError, match=r"must be a|must be the result of weights.read"):
            function(bad)
