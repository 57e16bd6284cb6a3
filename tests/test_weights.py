"""The weights that ship do what their results files say; files of others load, or are refused with the reason."""

import csv
import hashlib
import io
import logging
import pickle
import shutil
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
from densenet_tutorial.data import datasets
from densenet_tutorial.weights import WeightsError, layouts, sources

SHIPPED = weights.shipped()


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


@pytest.mark.skipif(
    not datasets.DEBIAN_FASHION_MNIST.is_dir(),
    reason="the full Fashion-MNIST is not on this machine",
)
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


def test_shipped_weights_are_in_single_precision_once_loaded():
    model = densenet("densenet_bc", weights="fashion-mnist-small")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_damaged_shipped_weights_are_refused(tmp_path, monkeypatch):
    for path in sources._BUNDLED.glob("fashion-mnist-small.*"):
        shutil.copy(path, tmp_path)
    file = tmp_path / "fashion-mnist-small.pt"
    file.write_bytes(file.read_bytes() + b"\0")
    monkeypatch.setattr(sources, "_BUNDLED", tmp_path)
    with pytest.raises(ValueError, match="fashion-mnist-small.pt in the package is damaged"):
        weights.read("fashion-mnist-small")


# ------------------------------------------------------------------------------ the four official files

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=weights.IMAGENET_FILES)
def official(request):
    """Name, what torchvision's model says of X, and a file as the published ones are: old keys, old format."""
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
        file = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        monkeypatch.setitem(weights.IMAGENET_FILES, name, file)
        monkeypatch.setattr(sources, "IMAGENET_ADDRESS", f"{web.address}/")
        address = web.put(file, content)
        assert not weights.is_here(name)
        for source in (path, str(path), "imagenet", address):
            model = densenet(name, weights=source).eval()
            torch.testing.assert_close(model(X), logits, rtol=1e-5, atol=1e-6)
        assert weights.is_here(name)
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


def test_imagenet_without_network_says_the_way_out(cache, monkeypatch):
    monkeypatch.setattr(sources, "IMAGENET_ADDRESS", "http://weights.invalid/")
    with pytest.raises(WeightsError) as caught:
        densenet("densenet121", weights="imagenet")
    assert "densenet121-a639ec97.pth is not on this machine" in str(caught.value)
    assert str(cache) in str(caught.value)


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
    assert "'state_dict'" in said[0] and "rows 3, 1" in said[1] and "1 channels" in said[2]


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


def test_head_without_weights_is_refused():
    with pytest.raises(ValueError, match="head must be None without weights, got 'new'"):
        densenet("densenet121", head="new")


# ------------------------------------------------------------------------------ broken and hostile files


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


def changed(state, **tensors):
    return saved(dict(state) | {key.replace("__", "."): value for key, value in tensors.items()})


#: Each makes the content of a file from a state dict and from the path that hostile ones try to make, and says what
#: the refusal has to name.
BROKEN = {
    "empty": (lambda s, p: b"", "it is empty"),
    "HTML": (lambda s, p: b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    "XML": (lambda s, p: b'\n<?xml version="1.0"?><Error/>', "it is a web page"),
    "text": (lambda s, p: b"These are no weights.", "cannot be read"),
    "JSON": (lambda s, p: b'{"model": "densenet121"}', "cannot be read"),
    "noise": (lambda s, p: np.random.default_rng(0).bytes(5000), "cannot be read"),
    "zeros": (lambda s, p: bytes(5000), "cannot be read"),
    "LFS pointer": (lambda s, p: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "PNG": (lambda s, p: b"\x89PNG\r\n\x1a\n", "a picture"),
    "HDF5": (lambda s, p: b"\x89HDF\r\n\x1a\n", "HDF5"),
    "gzip": (lambda s, p: b"\x1f\x8b\x08" + bytes(50), "gzip"),
    "npz": (lambda s, p: as_numpy_saves_it(np.zeros(3)), "cannot be read"),
    "truncated zip": (lambda s, p: saved(s)[:-1000], "cannot be read"),
    "truncated in half": (lambda s, p: saved(s)[:20_000], "cannot be read"),
    "truncated old format": (
        lambda s, p: saved(s, _use_new_zipfile_serialization=False)[:-100],
        "cannot be read",
    ),
    "flipped bit": (lambda s, p: with_a_flipped_bit(saved(s)), "wrong checksum|Bad magic number"),
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
    "one tensor not one": (lambda s, p: saved(dict(s) | {"epoch": 3}), "'epoch' is int"),
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
        "wrong shapes: 2 .classifier.weight has ",
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
    with pytest.raises(WeightsError, match=reason) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be used: ")
    assert "weights_only" not in message and "\n" not in message and len(message) < 500
    assert not made.exists()


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be used: it cannot be opened"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="none.pt', and there is no such file"):
        load(tmp_path / "none.pt")


# ------------------------------------------------------------------------------ writing, pictures, classes


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


def test_an_interrupted_save_leaves_the_old_file(small, tmp_path, monkeypatch):
    weights.save(small, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device; not written"):
        weights.save(DenseNet(**SMALL), tmp_path / "a.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before


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
        # Torchvision's older transforms round tensors of bytes otherwise: by one level of 255 at most.
        torch.testing.assert_close(ours(tensor), theirs(tensor), rtol=0, atol=1.01 / 255 / 0.224)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_have_the_transforms_and_classes_of_their_data(name):
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
