"""The weights that ship do what their results files say; files of others load, or are refused with
the reason.
"""

import collections
import csv
import hashlib
import io
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_layouts import old_keys
from web import serving

from densenet_tutorial import DenseNet, data, densenet, training, weights
from densenet_tutorial.__main__ import main
from densenet_tutorial.weights import WeightsError, layouts, sources
from densenet_tutorial.weights import files as tensor_files

SHIPPED = weights.bundled()


def test_there_are_weights():
    assert "fashion-mnist-small" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_accuracy_on_fashion_mini_is_what_the_results_say(name):
    results = weights.results(name)
    model = densenet(results["config"]["model"]["name"], weights=name)
    assert sum(p.numel() for p in model.parameters()) == results["parameters"]
    accuracy = training.evaluate(model, data.load_dataset("fashion-mini"))[1]
    # One picture of a thousand may fall on the other side where sums are rounded in another order.
    assert accuracy == pytest.approx(results["fashion_mini_accuracy"], abs=0.001)


@pytest.mark.full_fashion_mnist
@pytest.mark.parametrize("name", SHIPPED)
def test_accuracy_on_all_test_images_is_what_the_results_say(name, capsys):
    results = weights.results(name)
    main(["evaluate", name, "--dataset", "fashion-mnist", "--device", "cpu"])
    words = capsys.readouterr().out.split()
    assert words[:3] == ["fashion-mnist:", "10000", "test"]
    accuracy = float(words[words.index("accuracy") + 1].rstrip("%,")) / 100
    assert accuracy == pytest.approx(results["test_accuracy"], abs=0.0005)
    assert accuracy == pytest.approx(results["single_precision_test_accuracy"], abs=0.001)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_log_is_of_the_same_run(name):
    results = weights.results(name)
    log = Path(weights.__file__).parent / "bundled" / f"{name}.csv"
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == results["config"]["recipe"]["epochs"]
    last = float(rows[-1]["test_accuracy"])
    assert last == pytest.approx(results["single_precision_test_accuracy"], abs=1e-6)


def test_the_table_on_the_results_page_is_made_from_the_results():
    from make_weights import TABLE, table

    assert TABLE.read_text(encoding="utf-8") == table()


def test_bundled_weights_are_in_single_precision_once_loaded():
    model = densenet("densenet_bc", weights="fashion-mnist-small")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_damaged_bundled_weights_are_refused(tmp_path):
    """In a copy of the package, of which a file has changed."""
    package = Path(weights.__file__).parents[1]
    copy = shutil.copytree(
        package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__", "check")
    )
    file = copy / "weights" / "bundled" / "fashion-mnist-small.pt"
    file.write_bytes(file.read_bytes() + b"\0")
    program = "from densenet_tutorial import weights; weights.read('fashion-mnist-small')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert str(file.parent.parent) in run.stderr  # the copy, and not the package itself
    assert "fashion-mnist-small.pt in the package is damaged (wrong SHA-256)" in run.stderr


# -------------------------------------------------------------------------- the four official files

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=weights.IMAGENET_FILES)
def official(request):
    """Name, what torchvision's model says of X, and a file as the published ones are: old keys, old
    format.
    """
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, request.param)()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    buffer = io.BytesIO()
    torch.save(
        OrderedDict(old_keys(theirs.state_dict())), buffer, _use_new_zipfile_serialization=False
    )
    with torch.no_grad():
        return request.param, theirs.eval()(X), buffer.getvalue()


@pytest.fixture
def cache(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_an_official_file_gives_torchvisions_logits_from_disk_and_from_the_web(
    official, cache, tmp_path, monkeypatch
):
    name, logits, content = official
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert not zipfile.is_zipfile(path)
    with serving() as web, torch.no_grad():
        file = f"{name}-{hashlib.sha256(content).hexdigest()}.pth"
        monkeypatch.setitem(weights.IMAGENET_FILES, name, file)
        monkeypatch.setattr(sources, "IMAGENET_ADDRESS", f"{web.address}/")
        address = web.put(file, content)
        assert not weights.is_cached(name)
        enum = torchvision.models.get_model_weights(name)
        named = ("imagenet", "DEFAULT", "IMAGENET1K_V1", enum.DEFAULT, enum.IMAGENET1K_V1)
        state_dict = torch.load(path, weights_only=True)
        for source in (path, str(path), *named, address, state_dict, weights.read(path)):
            model = densenet(name, weights=source).eval()
            torch.testing.assert_close(model(X), logits, rtol=1e-5, atol=1e-6)
        assert weights.is_cached(name)
        assert web.asked == [f"/{file}"], "fetched once, then from the cache"
        assert [path.name for path in cache.iterdir()] == [file]


def test_the_wrong_variant_is_named(official, tmp_path):
    name, _, content = official
    (tmp_path / "weights.pth").write_bytes(content)
    other = "densenet121" if name != "densenet121" else "densenet169"
    with pytest.raises(
        WeightsError, match=f"weights.pth cannot be used: it looks like {name}: block"
    ):
        densenet(other, weights=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("enum", "name", "words"),
    [
        (torchvision.models.DenseNet169_Weights.DEFAULT, "densenet121", "are of densenet169, got"),
        (torchvision.models.ResNet18_Weights.DEFAULT, "densenet121", "of densenet121, .*ResNet18"),
        (torchvision.models.ResNet18_Weights.DEFAULT, None, "of densenet121, .*ResNet18"),
    ],
)
def test_torchvisions_weights_of_another_model_are_refused(enum, name, words):
    with pytest.raises(WeightsError, match=words):
        weights.read(enum, name)


@pytest.mark.parametrize("bad", [None, 3, b"imagenet", [1], 1.5, True, object(), torch.zeros(2)])
def test_what_weights_cannot_be_is_refused_in_words(bad):
    with pytest.raises(ValueError, match="weights must be a name, a path"):
        weights.read(bad)


@pytest.mark.parametrize("bad", ["x" * 5000, "a\0b", "", "/", "\x1b[2J", "ftp://h/a-b.pth", "~"])
def test_a_path_of_any_kind_is_refused_in_words(bad):
    with pytest.raises(WeightsError, match="no such file|it is a folder") as caught:
        weights.read(bad)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_imagenet_without_network_says_the_way_out(cache, monkeypatch):
    monkeypatch.setattr(sources, "IMAGENET_ADDRESS", "http://weights.invalid/")
    with pytest.raises(WeightsError) as caught:
        densenet("densenet121", weights="imagenet")
    assert "densenet121-a639ec97.pth is not on this machine" in str(caught.value)
    assert str(cache) in str(caught.value)


def test_imagenet_needs_the_models_name():
    with pytest.raises(WeightsError, match="got no model's name .in Python, name=.*--model"):
        weights.read("imagenet")


@pytest.mark.parametrize("name", ["densenet264", "densenet_bc_100_12"])
def test_imagenet_weights_are_there_for_four_models(name):
    with pytest.raises(WeightsError, match=f"'imagenet' are there for densenet121, .*'{name}'"):
        densenet(name, weights="imagenet")


# ------------------------------------------------------------------------------ files of others

SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}


@pytest.fixture
def small():
    """torchvision's small network."""
    torch.manual_seed(2)
    return torchvision.models.DenseNet(**SMALL).eval()


def load(path, **options):
    return densenet("densenet121", weights=path, **{k: SMALL[k] for k in list(SMALL)[:3]} | options)


def test_safetensors_are_recognised_by_content(small, tmp_path):
    library = pytest.importorskip("safetensors.torch")
    library.save_file(small.state_dict(), tmp_path / "weights.bin")
    torch.testing.assert_close(load(tmp_path / "weights.bin").eval()(X), small(X))


def test_a_checkpoint_of_ours_brings_its_model(dataset, tmp_path):
    config = {"name": "densenet_bc", "block_config": [1, 1], "growth_rate": 4, "in_channels": 1}
    model = densenet(**config)
    recipe = training.Recipe(epochs=1, batch_size=50)
    training.fit(
        model, dataset, recipe, output=tmp_path / "run", model_config=config, progress=False
    )
    for file in ("last.pt", "best.pt"):
        path = tmp_path / "run" / file
        again = densenet("densenet_bc", weights=path)
        expected = training.predict(model, dataset, dataset.test_images)
        torch.testing.assert_close(training.predict(again, dataset, dataset.test_images), expected)
        assert weights.categories(path) == list(data.FASHION_CLASSES)
    with pytest.raises(WeightsError, match="name must be 'densenet_bc' for weights .*last.pt"):
        densenet("densenet121", weights=tmp_path / "run" / "last.pt")


def test_classes_and_channels_follow_the_weights_or_are_adapted(small, tmp_path, caplog):
    torch.save({"state_dict": small.state_dict()}, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").classifier.out_features == 5
    with caplog.at_level(logging.INFO, "densenet_tutorial.network"):
        model = load(tmp_path / "a.pt", head=[3, 1], in_channels=1).eval()
    grey = X[:, :1]
    expected = small(grey.expand(-1, 3, -1, -1))[:, [3, 1]]
    torch.testing.assert_close(model(grey), expected, rtol=1e-4, atol=1e-5)
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in said] == ["a.pt"] * 3
    assert "'state_dict.features'" in said[0]
    assert "1 channels" in said[1] and "rows 3, 1" in said[2]


def test_the_same_number_of_classes_keeps_the_classifier_unless_a_new_one_is_asked_for(
    small, tmp_path
):
    torch.save(small.state_dict(), tmp_path / "a.pt")
    kept = load(tmp_path / "a.pt", num_classes=5)
    new = load(tmp_path / "a.pt", num_classes=5, head="new")
    assert torch.equal(kept.classifier.weight, small.classifier.weight)
    assert not torch.equal(new.classifier.weight, small.classifier.weight)
    assert torch.equal(new.features.conv0.weight, small.features.conv0.weight)
    assert load(tmp_path / "a.pt", num_classes=9).classifier.out_features == 9
    assert load(tmp_path / "a.pt", num_classes=2, head="slice").classifier.out_features == 2


def test_weights_of_a_trunk_get_a_new_classifier_where_one_is_asked_for(small, tmp_path):
    torch.save(small.features.state_dict(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="a.pt cannot be used: it has no classifier") as caught:
        load(tmp_path / "a.pt")
    assert "in Python, densenet(…, head='new') makes one" in str(caught.value)
    model = load(tmp_path / "a.pt", head="new", num_classes=5).eval()  # the way out is one
    torch.testing.assert_close(model.features(X), small.features(X))


def test_what_is_left_out_is_said_without_being_asked(small, caplog):
    load(small.state_dict() | {"criterion.weight": torch.ones(5)})
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.name for record in warned] == ["densenet_tutorial.network"]
    assert "left out" in warned[0].getMessage() and "criterion.weight" in warned[0].getMessage()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_option_lets_values_through_that_are_not_numbers(small, tmp_path, value):
    state = small.state_dict()
    state["classifier.bias"][1] = value
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="allow_nan=True"):
        load(tmp_path / "a.pt")
    model = load(weights.read(tmp_path / "a.pt", allow_nan=True)).eval()  # the way out is one
    torch.testing.assert_close(model(X), small(X), equal_nan=True)


def test_head_without_weights_is_refused():
    with pytest.raises(ValueError, match="head must be None without weights, got 'new'"):
        densenet("densenet121", head="new")


# ------------------------------------------------------------------------- broken and hostile files


class Hostile:
    """Pickled, it asks its reader to make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def as_numpy_saves_it(array):
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def with_a_flipped_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def archive(records, compression=zipfile.ZIP_STORED):
    """A zip archive that `torch.save` might have written, as far as its end shows."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in records:
            made.writestr(name, content)
    return buffer.getvalue()


def pickled_tensor(count, size=(4,)):
    """A pickled tensor of this size in a storage of `count` floats, as `torch.save` writes it."""

    class Tensor:
        def __reduce__(self):
            return (
                torch._utils._rebuild_tensor_v2,
                (Storage(), 0, size, (1,), False, OrderedDict()),
            )

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            kind = ("storage", torch.FloatStorage, "0", "cpu", count)
            return kind if isinstance(thing, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Tensor())
    return buffer.getvalue()


def pickle_chain(content):
    """`content` where the pickle of PyTorch's old format stands."""
    whole = saved(None, _use_new_zipfile_serialization=False)
    return whole.replace(b"\x80\2N.", content, 1)


def with_a_record_of_no_bytes(content):
    """One bit of the archive's directory: the 64 bytes of a tensor (0x40) are 0 there."""
    entry = content.index(b"PK\1\2")
    while content[entry + 24 : entry + 28] != (64).to_bytes(4, "little"):
        entry = content.index(b"PK\1\2", entry + 1)
    return content[: entry + 24] + b"\0" + content[entry + 25 :]


def with_other_numbers(content):
    """The pickle of one model with the tensors of another, all checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as given:
        records = [(name, given.read(name)) for name in given.namelist()]
    return archive([(n, c[:-4] if n.endswith("data/3") else c) for n, c in records])


def with_state(tensor):
    tensor = tensor.clone()
    tensor.note = "an attribute"
    return tensor


def holding_itself():
    content = {"epoch": 3}
    content["again"] = [content, (content,)]
    return content


def changed(state, **tensors):
    return saved(dict(state) | {key.replace("__", "."): value for key, value in tensors.items()})


#: Each makes the content of a file from a state dict and from the path that hostile ones try to
#: make, and says what the refusal has to name.
BROKEN = {
    "empty": (lambda s, p: b"", "it is empty"),
    "HTML": (lambda s, p: b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    "XML": (lambda s, p: b'\n<?xml version="1.0"?><Error/>', "it is a web page"),
    "text": (lambda s, p: b"These are no weights.", "cannot be read"),
    "JSON": (lambda s, p: b'{"model": "densenet121"}', "cannot be read"),
    "noise": (lambda s, p: np.random.default_rng(0).bytes(5000), "cannot be read"),
    "zeros": (lambda s, p: bytes(5000), "cannot be read"),
    "LFS pointer": (lambda s, p: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "PNG": (lambda s, p: b"\x89PNG\r\n\x1a\n", "an image"),
    "HDF5": (lambda s, p: b"\x89HDF\r\n\x1a\n", "HDF5"),
    "gzip": (lambda s, p: b"\x1f\x8b\x08" + bytes(50), "gzip"),
    "npz": (lambda s, p: as_numpy_saves_it(np.zeros(3)), "cannot be read"),
    "truncated zip": (lambda s, p: saved(s)[:-1000], "cannot be read"),
    "truncated in half": (lambda s, p: saved(s)[:20_000], "cannot be read"),
    "truncated old format": (
        lambda s, p: saved(s, _use_new_zipfile_serialization=False)[:-100],
        "cannot be read",
    ),
    "flipped bit": (lambda s, p: with_a_flipped_bit(saved(s)), "its archive is damaged .Bad "),
    "tensor of no bytes": (lambda s, p: with_a_record_of_no_bytes(saved(s)), "is packed, which"),
    "longer tensor than its record": (
        lambda s, p: with_other_numbers(saved(s)),
        "more or fewer numbers than its shape",
    ),
    "record twice": (
        lambda s, p: archive([("a/data.pkl", b"."), ("a/version", b"3"), ("a/version", b"3")]),
        "a record of its archive is there twice",
    ),
    "record packed": (
        lambda s, p: archive([("a/data.pkl", bytes(99))], zipfile.ZIP_DEFLATED),
        "its record data.pkl is packed",
    ),
    "no storage": (
        lambda s, p: archive([("a/data.pkl", pickled_tensor(4))]),
        "its record data/0 is missing",
    ),
    "storage of a terabyte": (
        lambda s, p: archive([("a/data.pkl", pickled_tensor(2**38)), ("a/data/0", bytes(16))]),
        "it names more numbers than it has room for",
    ),
    "expanded to 2^40": (
        lambda s, p: saved({"features.conv0.weight": torch.ones(1).expand(2**40)}),
        "a tensor of it is expanded",
    ),
    "tensor of negative size": (
        lambda s, p: archive([("a/data.pkl", pickled_tensor(4, (-4,))), ("a/data/0", bytes(16))]),
        "no shape that a tensor can have",
    ),
    "tensor outside of its storage": (
        lambda s, p: archive([("a/data.pkl", pickled_tensor(4, (5,))), ("a/data/0", bytes(16))]),
        "more or fewer numbers than its shape",
    ),
    "a million dicts": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2" + b"}" * 2_000_000 + b".")]),
        "cannot be read|no DenseNet",
    ),
    "a pickle of ten megabytes": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2" + b"}" * 10_000_000 + b".")]),
        "its record data.pkl is too long",
    ),
    "memory for a memo": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2}r\xff\xff\xff\x7f.")]),
        "a dict of 0 entries",
    ),
    "memory for a text": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2\x8d" + (2**40).to_bytes(8, "little"))]),
        "cannot be read",
    ),
    "a key that is a million deep": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2})" + b"\x85" * 1_000_000 + b"Ns.")]),
        "neither text nor number",
    ),
    "a value that is a million deep": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2}K\0)" + b"\x85" * 1_000_000 + b"s.")]),
        "no DenseNet's weights",
    ),
    "attributes of a function": (
        lambda s, p: archive([("a/data.pkl", b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n}b.")]),
        "no DenseNet's weights",
    ),
    "state of a tensor": (
        lambda s, p: saved(s | {"features.norm0.bias": with_state(s["features.norm0.bias"])}),
        "asks for torch._tensor._rebuild_from_type_v2",
    ),
    "a name full of signs": (
        lambda s, p: pickle_chain(b"\x80\4\x8c\x04\x1b[2J\x8c\x01\n\x93."),
        "asks for something without a name",
    ),
    "sparse": (lambda s, p: saved({"a": torch.eye(3).to_sparse()}), "it holds a sparse tensor"),
    "meta": (lambda s, p: saved({"a": torch.eye(3, device="meta")}), "a shape without numbers"),
    "complex": (lambda s, p: saved({"a": torch.eye(3).cfloat()}), "it holds complex numbers"),
    "negated": (
        lambda s, p: saved({"a": torch.ones(3).cfloat().conj().imag}),
        "a tensor of it is marked as conjugated or negated",
    ),
    "integers": (
        lambda s, p: changed(s, features__norm5__weight=torch.ones(20, dtype=torch.int32)),
        "features.norm5.weight holds int32",
    ),
    "truth values": (
        lambda s, p: changed(s, classifier__weight=torch.ones(5, 20, dtype=torch.bool)),
        "classifier.weight holds bool",
    ),
    "negative variance": (
        lambda s, p: changed(s, features__norm5__running_var=-torch.ones(20)),
        "variances below 0: 1 .features.norm5.running_var",
    ),
    "infinity": (
        lambda s, p: changed(s, features__norm5__bias=torch.full((20,), torch.inf)),
        "values that are not numbers: 1 .features.norm5.bias",
    ),
    "two networks": (
        lambda s, p: saved({"model": s, "ema": {k: v + 1 for k, v in s.items()}}),
        "it holds 2 DenseNets, under model.features, ema.features",
    ),
    "block of a number": (
        lambda s, p: changed(s, features__denseblock1000000000__denselayer1__conv1__weight=X),
        "keys that the model has not: 1",
    ),
    "what a dict holds itself": (lambda s, p: saved(holding_itself()), "no DenseNet's weights"),
    "newer checkpoint": (
        lambda s, p: saved({"format": "densenet-tutorial checkpoint 2", "weights": s}),
        "format version '2', and this version of densenet-tutorial reads version 1",
    ),
    "checkpoint without configuration": (
        lambda s, p: saved({"format": layouts.CHECKPOINT_FORMAT, "model": s}),
        "a checkpoint of this package whose part 'config' is missing",
    ),
    "checkpoint without model": (
        lambda s, p: saved({"format": layouts.CHECKPOINT_FORMAT, "config": {}, "state": s}),
        "a checkpoint of this package whose part 'model' is missing",
    ),
    "safetensors cut short": (
        lambda s, p: (200).to_bytes(8, "little") + b'{"a":{"dtype":"F32"',
        "safetensors",
    ),
    "hostile, zip": (lambda s, p: saved({"a": Hostile(p)}), "asks for .*nothing of it was run"),
    "hostile, old format": (
        lambda s, p: saved(Hostile(p), _use_new_zipfile_serialization=False),
        "asks for .*nothing of it was run",
    ),
    "hostile, bare pickle": (lambda s, p: pickle.dumps(Hostile(p)), "cannot be read"),
    "hostile, beside weights": (
        lambda s, p: saved({"model": s, "args": Hostile(p)}),
        "asks for .*nothing of it was run",
    ),
    "hostile, as our checkpoint": (
        lambda s, p: saved({"format": layouts.CHECKPOINT_FORMAT, "config": Hostile(p), "model": s}),
        "asks for .*nothing of it was run",
    ),
    "whole model": (lambda s, p: saved(DenseNet(**SMALL)), "asks for densenet_tutorial.network.D"),
    "list": (lambda s, p: saved([1, 2]), "it is a list"),
    "number": (lambda s, p: saved(3), "it is a int"),
    "empty dict": (lambda s, p: saved({}), "a dict of 0 entries"),
    "numbers": (lambda s, p: saved({"features.conv0.weight": 3}), "'features.conv0.weight' is int"),
    "one tensor not one": (
        lambda s, p: saved(dict(s) | {"features.norm0.bias": [0.0] * 8}),
        "missing keys: 1 .features.norm0.bias",
    ),
    "another network": (
        lambda s, p: saved(torchvision.models.resnet18(num_classes=5).state_dict()),
        "no DenseNet's",
    ),
    "missing key": (
        lambda s, p: saved({k: v for k, v in s.items() if k != "features.norm5.bias"}),
        r"missing keys: 1 \(features.norm5.bias\)",
    ),
    "first convolution missing": (
        lambda s, p: saved({k: v for k, v in s.items() if k != "features.conv0.weight"}),
        r"missing keys: 1 \(features.conv0.weight\)",
    ),
    "extra key": (
        lambda s, p: changed(s, features__conv9__weight=torch.zeros(1)),
        r"keys that the model has not: 1 \(features.conv9.weight\)",
    ),
    "wrong shape": (
        lambda s, p: changed(s, features__norm5__bias=torch.zeros(7)),
        r"wrong shapes: 1 \(features.norm5.bias has \[7\] and should have \[20\]\)",
    ),
    "scalar for a matrix": (
        lambda s, p: changed(s, classifier__weight=torch.tensor(1.0)),
        "it has no classifier of one linear layer",
    ),
    "vector for the first convolution": (
        lambda s, p: changed(s, features__conv0__weight=torch.zeros(8)),
        "cannot be used: it",
    ),
    "not a number": (
        lambda s, p: changed(s, features__norm5__bias=torch.full((20,), torch.nan)),
        "values that are not numbers: 1 .features.norm5.bias",
    ),
    "names alone": (lambda s, p: saved({k: torch.zeros(1) for k in s}), "cannot be used: it"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("error")
def test_a_broken_or_hostile_file_is_refused_with_its_name_and_the_reason(small, tmp_path, kind):
    make, reason = BROKEN[kind]
    made, path = tmp_path / "made by the file", tmp_path / "weights.pth"
    path.write_bytes(make(small.state_dict(), made))
    before, held = time.process_time(), memory()
    with pytest.raises(WeightsError, match=reason) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be used: ")
    assert "weights_only" not in message and "\n" not in message and len(message) < 500
    assert not made.exists()
    assert time.process_time() - before < 3, "a second, and some for a slow machine"
    assert memory() - held < 1000


def memory():
    """The most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be used: it is a folder"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="none.pt', and there is no such file"):
        load(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "link.pt").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo.pt", tmp_path / "link.pt", "/dev/zero", "/dev/tty"):
        with pytest.raises(WeightsError, match="it is no regular file"):
            load(path)
    (tmp_path / "circle.pt").symlink_to("circle.pt")
    with pytest.raises(WeightsError, match="no such file"):
        load(tmp_path / "circle.pt")


@pytest.mark.parametrize("start", [b"", b"PK\3\4", b"\x80\2", (100).to_bytes(8, "little") + b"{"])
@pytest.mark.parametrize("size", [2**30, 3 * 2**30, 2**42])
def test_a_file_that_is_mostly_a_hole_is_refused_at_once(tmp_path, start, size):
    if start.endswith(b"{") and size < 2**42:
        pytest.skip("such a file is read whole, as any that has this size")
    path = tmp_path / "weights.pth"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)
    before, held = time.process_time(), memory()
    with pytest.raises(WeightsError, match="cannot be read|bytes; files of up to"):
        load(path)
    assert time.process_time() - before < 1 and memory() - held < 100


def test_every_flipped_bit_of_an_archive_is_seen_or_changes_nothing(tmp_path):
    tensors = {"a": torch.arange(16.0), "n": torch.tensor(7), "c": torch.ones(2, 3).half()}
    content = bytearray(saved(tensors))
    path = tmp_path / "a.pt"
    for place in range(len(content)):
        bit = 1 << place % 8 if place % 7 else 255  # now and then, the whole byte
        content[place] ^= bit
        path.write_bytes(content)
        content[place] ^= bit
        try:
            read = tensor_files.read(path)
        except ValueError:
            continue
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype, place


@pytest.mark.parametrize("length", [60, 0x3C20, 0x8B1F, 0x3C0A])
def test_safetensors_are_recognised_whatever_length_they_begin_with(tmp_path, length):
    """As text, 60 is "<", as in a web page; 0x8b1f is how a gzip archive begins."""
    library = pytest.importorskip("safetensors.torch")
    content = library.save({"a": torch.ones(3)})
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    path = tmp_path / "a.bin"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + content[-12:])
    assert tensor_files.read(path)["a"].tolist() == [1, 1, 1]


def test_every_length_of_header_that_save_writes_is_read(small, tmp_path):
    pytest.importorskip("safetensors")
    for extra in range(0, 256, 8):  # the header is padded to a multiple of 8
        tensors = {"x" * (extra + 1): torch.ones(3)}
        tensor_files.write(tmp_path / "a.safetensors", tensors)
        assert tensor_files.read(tmp_path / "a.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_training_scripts_keep_beside_weights_is_read(tmp_path, legacy, protocol):
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    content = {
        "a": [torch.randn(3, 4).t(), torch.zeros(0, 3), torch.tensor(2.5), torch.eye(3).double()],
        "b": (1, 2**70, -1.5, True, None, "ä\n", b"\0\xff", {}, (), []),
        "c": collections.Counter([1, 1]),
        "d": OrderedDict([("x", torch.nn.Parameter(torch.ones(2).bfloat16()))]),
        "e": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "long": list(range(3000)),
    }
    numpy = {"best": np.float64(0.5), "single": np.float32(0.25), "epoch": np.int64(7)}
    torch.save(
        content | numpy,
        tmp_path / "a.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    read = tensor_files.read(tmp_path / "a.pt")
    assert [read.pop(name) for name in numpy] == [0.5, 0.25, 7]
    assert [read.pop(name) for name in "bc"] == [content.pop(name) for name in "bc"]
    torch.testing.assert_close(read, content, rtol=0, atol=0)
    assert read["e"].stride() == content["e"].stride()


def test_a_large_checkpoint_is_read(tmp_path):
    """The most names that anybody is likely to have in a file: DenseNet-264 with all that belongs
    to it.
    """
    state = {k: torch.zeros(()) for k in densenet("densenet264").state_dict()}
    moments = {
        n: {"step": 1, "exp_avg": torch.zeros(()), "exp_avg_sq": torch.zeros(())}
        for n in range(2000)
    }
    content = {
        "model": state,
        "ema": {k: v.clone() for k, v in state.items()},
        "optimizer": moments,
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        assert tensor_files.read(tmp_path / "a.pt").keys() == content.keys()


def test_numbers_in_the_other_order_of_bytes_are_read(tmp_path):
    values = np.arange(4, dtype=">f4")
    records = [
        ("a/data.pkl", pickled_tensor(4)),
        ("a/byteorder", b"big"),
        ("a/data/0", values.tobytes()),
    ]
    (tmp_path / "a.pt").write_bytes(archive(records))
    assert tensor_files.read(tmp_path / "a.pt").tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------- checkpoints of strangers

CONFIG = {
    "model": {"name": "densenet_bc", "growth_rate": 4, "block_config": [1, 1], "in_channels": 1},
    "dataset": {
        "name": "few",
        "classes": list("abcde"),
        "image_shape": [1, 8, 8],
        "mean": [0.5],
        "std": [0.25],
    },
}


def checkpoint(tmp_path, model=(), dataset=()):
    state = densenet(**CONFIG["model"], num_classes=5).state_dict()
    config = {
        part: CONFIG[part] | dict(more) for part, more in (("model", model), ("dataset", dataset))
    }
    path = tmp_path / "best.pt"
    torch.save({"format": layouts.CHECKPOINT_FORMAT, "config": config, "model": state}, path)
    return path


def test_a_checkpoint_is_built_plain_however_it_was_trained(tmp_path):
    options = {"memory_efficient": "a mode that is not known here"}
    path = checkpoint(tmp_path, options)
    x = torch.randn(2, 1, 8, 8)
    plain = densenet("densenet_bc", weights=path).eval()(x)  # the mode was not even asked about
    chosen = densenet("densenet_bc", weights=path, memory_efficient="checkpoint").eval()(x)
    torch.testing.assert_close(plain, chosen)
    with pytest.raises(ValueError, match="memory_efficient"):
        densenet("densenet_bc", weights=path, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"growth_rate": 10**9}, None),  # the tensors say which it is
        ({"block_config": [10**9]}, None),
        ({"num_classes": 10**12}, None),
        ({"compression": 1.0}, "fewer weights than the model|wrong shapes"),
        ({"compression": -1}, "compression must be"),
        ({"drop_rate": "much"}, "drop_rate must be"),
        ({"activation": "gelu"}, "an unknown option: 'activation'"),
        ({"name": ["densenet_bc"]}, "no valid 'model'"),
        ({"name": torch.ones(3)}, "no valid 'model'"),
    ],
)
def test_what_a_checkpoint_says_of_its_model_asks_for_no_larger_one(tmp_path, change, words):
    path = checkpoint(tmp_path, change)
    if words is None:
        assert sum(p.numel() for p in densenet("densenet_bc", weights=path).parameters()) < 10_000
    else:
        with pytest.raises(WeightsError, match=f"best.pt cannot be used: .*({words})"):
            densenet("densenet_bc", weights=path)


def test_names_alone_ask_for_no_large_model(tmp_path):
    state = densenet(**CONFIG["model"], num_classes=5).state_dict()
    for layer in range(9000):
        state[f"features.denseblock1.denselayer{layer + 1}.conv1.weight"] = torch.ones(16, 8, 1, 1)
    path = tmp_path / "a.pt"
    torch.save({"format": layouts.CHECKPOINT_FORMAT, "config": CONFIG, "model": state}, path)
    with pytest.raises(WeightsError, match="fewer weights than the model whose names they have"):
        densenet("densenet_bc", weights=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["a"]}, "names 1 classes, and tells 5 apart"),
        ({"classes": "abcde"}, "classes must be"),
        ({"classes": [1, 2, 3, 4, 5]}, "classes must be"),
        ({"image_shape": [1, 10**6, 10**6]}, "that of no image"),
        ({"image_shape": [1, 8]}, "that of no image"),
        ({"image_shape": [2, 8, 8]}, "that of no image"),
        ({"image_shape": None}, "image_shape must be"),
        ({"image_shape": [3, 8, 8]}, "mean and std are not of 3 channels"),
        ({"std": [0]}, "std must be"),
        ({"mean": [torch.nan]}, "mean must be"),
        ({"mean": [0.5, 0.5]}, "mean and std are not of 1 channels"),
    ],
)
def test_what_a_checkpoint_says_of_its_data_is_checked(tmp_path, change, words):
    path = checkpoint(tmp_path, dataset=change)
    for function in (weights.transforms, weights.categories):
        with pytest.raises(WeightsError, match=f"best.pt cannot be used: .*{words}"):
            function(path)


@pytest.mark.parametrize("part", ["model", "dataset"])
@pytest.mark.parametrize("said", [3, 0.5, "text", [1], [[1, 2]], torch.ones(2), True])
def test_a_checkpoint_whose_configuration_is_none_says_so(tmp_path, part, said):
    content = torch.load(checkpoint(tmp_path), weights_only=True)
    content["config"][part] = said
    torch.save(content, tmp_path / "a.pt")
    for function in (weights.read, weights.transforms, weights.categories):
        with pytest.raises(WeightsError, match=f"configuration has no valid {part!r}"):
            function(tmp_path / "a.pt")


def test_what_a_checkpoint_says_of_its_data_is_used(tmp_path):
    path = checkpoint(tmp_path)
    assert weights.categories(path) == list("abcde")
    assert weights.transforms(path)(Image.new("L", (20, 20), 255)).unique().tolist() == [2.0]
    assert weights.categories(weights.read(path)) == list("abcde")


# ----------------------------------------------------------------------- writing, pictures, classes


@pytest.mark.parametrize("name", weights.IMAGENET_FILES)
def test_torchvision_loads_what_save_writes(name, tmp_path):
    ours = densenet(name, num_classes=3).eval()
    weights.save(ours, tmp_path / "weights.pth")
    theirs = getattr(torchvision.models, name)(num_classes=3).eval()
    theirs.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(ours(X), theirs(X), rtol=1e-5, atol=1e-6)


def test_save_writes_safetensors_and_old_layouts_anew(small, tmp_path):
    library = pytest.importorskip("safetensors.torch")
    weights.save(old_keys(small.state_dict()), tmp_path / "a.safetensors")
    small.load_state_dict(library.load_file(tmp_path / "a.safetensors"))


def test_saving_replaces_nothing_but_a_regular_file(small, tmp_path):
    (tmp_path / "a").mkdir()
    for path in ("/dev/null", tmp_path / "a"):
        with pytest.raises(OSError, match="it is no regular file; not written"):
            weights.save(small, path)


def test_saving_loses_no_part_of_a_model_without_a_word(small, tmp_path):
    small.classifier = torch.nn.Sequential(torch.nn.Linear(20, 7), torch.nn.Linear(7, 5))
    with pytest.raises(
        ValueError, match="a DenseNet and no more, but saving it left out .*0.weight"
    ):
        weights.save(small, tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize("bad", [None, 3, "model", [torch.ones(1)]])
def test_what_is_no_model_is_not_saved(tmp_path, bad):
    with pytest.raises(ValueError, match="model must be a DenseNet or its state dict"):
        weights.save(bad, tmp_path / "a.pt")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(300, 500), (500, 300), (224, 224), (40, 30)])
def test_imagenets_transforms_are_torchvisions(mode, size):
    values = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    picture = Image.fromarray(values).convert(mode)
    theirs = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.transforms()
    ours = weights.transforms("imagenet")
    torch.testing.assert_close(ours(picture), theirs(picture.convert("RGB")))
    if mode == "RGB":
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        # Torchvision's older transforms round tensors of bytes otherwise: by one level of 255 at
        # most.
        torch.testing.assert_close(ours(tensor), theirs(tensor), rtol=0, atol=1.01 / 255 / 0.224)


@pytest.mark.parametrize("name", SHIPPED)
def test_bundled_weights_have_the_transforms_and_classes_of_their_data(name):
    dataset = data.load_dataset("fashion-mini")
    images = dataset.test_images[:50]
    transform = weights.transforms(name)
    trained_on = weights.results(name)["config"]["dataset"]
    expected = data.normalize(images, trained_on["mean"], trained_on["std"])
    torch.testing.assert_close(transform(images), expected)
    torch.testing.assert_close(transform(Image.fromarray(images[0, 0].numpy())), expected[0])
    assert transform(Image.new("RGB", (200, 100))).shape == (1, 28, 28)
    assert weights.categories(name) == list(dataset.classes)


def test_imagenets_classes_are_in_order():
    names = weights.categories("imagenet")
    assert len(names) == 1000 and names[281] == "tabby" and names[504] == "coffee mug"


def test_a_file_that_does_not_say_what_it_was_trained_on(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "a.pt")
    for function in (weights.transforms, weights.categories):
        with pytest.raises(WeightsError, match="a.pt does not say what it was trained on"):
            function(tmp_path / "a.pt")
