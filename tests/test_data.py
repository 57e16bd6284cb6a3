"""The embedded data set, and finding, checking and refusing the full ones."""

import dataclasses
import gzip
import os
import pickle
import shutil
import subprocess
import sys
import urllib.error
from importlib import resources
from pathlib import Path

import pytest
import torch
import torchvision

from densenet_tutorial import data
from densenet_tutorial.data import datasets

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = Path(str(resources.files("densenet_tutorial"))) / "data" / "bundled"
HAS_FULL_SET = datasets.DEBIAN_FASHION_MNIST.is_dir()
needs_full_set = pytest.mark.skipif(
    not HAS_FULL_SET and "CI" not in os.environ,
    reason="needs the full Fashion-MNIST: install Debian's package dataset-fashion-mnist",
)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No folder holds the files, and every download fails."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_fashion_mini_is_balanced_and_whole():
    dataset = data.load_dataset("fashion-mini")
    assert dataset.train_images.shape == (5000, 1, 28, 28)
    assert dataset.test_images.shape == (1000, 1, 28, 28)
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.train_labels.dtype == torch.int64
    assert dataset.train_labels.bincount().tolist() == [500] * 10
    assert dataset.test_labels.bincount().tolist() == [100] * 10
    assert dataset.classes[dataset.test_labels[0]] == "Ankle boot"


def test_fashion_mini_fits_in_4_mb_with_its_licence_beside_it():
    assert (BUNDLED / "fashion-mini.npy.bz2").stat().st_size <= 4_000_000
    assert "MIT License" in (BUNDLED / "fashion-mini.LICENSE").read_text()


def test_normalized_training_images_have_mean_0_and_deviation_1():
    dataset = data.load_dataset("fashion-mini")
    images = dataset.normalize(dataset.train_images)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)


def test_normalize_treats_each_channel_by_itself():
    mini = data.load_dataset("fashion-mini")
    dataset = dataclasses.replace(mini, mean=(0.0, 0.5), std=(1.0, 0.25))
    normalized = dataset.normalize(torch.full((1, 2, 1, 1), 255, dtype=torch.uint8))
    assert normalized.flatten().tolist() == [1.0, 2.0]


def test_digits_are_what_scikit_learn_ships():
    dataset = data.load_dataset("digits")
    assert dataset.train_images.shape == (797, 1, 8, 8)
    assert dataset.test_images.shape == (1000, 1, 8, 8)
    assert dataset.train_labels[:10].tolist() == list(range(10))
    assert dataset.train_labels.bincount().min() >= 79
    # The first picture's second row, 0 0 13 15 10 15 5 0 in sixteenths: a zero.
    assert dataset.train_images[0, 0, 1].tolist() == [0, 0, 207, 239, 159, 239, 80, 0]
    assert dataset.test_images.max() == 255 and dataset.test_images.min() == 0


@pytest.mark.parametrize("name", data.PHOTOGRAPHS)
def test_photographs_are_in_colour_large_enough_and_credited(name):
    picture = data.photograph(name)
    assert picture.mode == "RGB" and min(picture.size) == 300
    assert f"{name}.jpg" in (BUNDLED / "photographs.LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["FASHION_MINI", "DIGITS"])
def test_damage_to_what_ships_is_noticed(monkeypatch, name):
    monkeypatch.setattr(datasets, f"{name}_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="npy.bz2 in the package is damaged"):
        data.load_dataset(name.lower().replace("_", "-"))


@needs_full_set
def test_fashion_mini_is_made_again_byte_for_byte(tmp_path):
    output = tmp_path / "again.npy.bz2"
    script = ROOT / "book/_tools/make_fashion_mini.py"
    subprocess.run([sys.executable, script, "--output", output], check=True, capture_output=True)
    assert output.read_bytes() == (BUNDLED / "fashion-mini.npy.bz2").read_bytes()


@needs_full_set
def test_the_full_fashion_mnist_is_found_in_debians_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DENSENET_TUTORIAL_DATA", str(tmp_path))
    dataset = data.load_dataset("fashion-mnist")
    assert dataset.train_images.shape == (60000, 1, 28, 28)
    assert dataset.test_labels.bincount().tolist() == [1000] * 10
    assert dataset.mean[0] == pytest.approx(0.2860, abs=1e-4)  # the figure that everyone quotes
    assert dataset.std[0] == pytest.approx(0.3530, abs=1e-4)


@needs_full_set
@pytest.mark.parametrize("damage", ["truncated", "changed", "not gzip"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    for file in datasets.FASHION_MNIST_SHA256:
        shutil.copy(datasets.DEBIAN_FASHION_MNIST / file, tmp_path)
    victim = tmp_path / "t10k-labels-idx1-ubyte.gz"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage == "changed":
        content = bytearray(gzip.decompress(victim.read_bytes()))
        content[-1] ^= 1
        victim.write_bytes(gzip.compress(content))
    else:
        victim.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz is damaged"):
        data.load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_offline_gives_one_sentence_with_the_way_out(offline, tmp_path, name):
    with pytest.raises(ConnectionError) as caught:
        data.load_dataset(name, tmp_path)
    message = str(caught.value)
    assert repr(name) in message
    assert str(tmp_path) in message
    assert "fashion-mini" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_a_folder_that_holds_it(monkeypatch, tmp_path, name):
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]
    classes = [f"class {i}" for i in range(int(name[5:]))]
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, torchvision.datasets.utils.calculate_md5(str(folder / file))]

    labels = "labels" if name == "cifar10" else "fine_labels"
    rows = torch.arange(2 * 3072).remainder(256).byte().reshape(2, 3072).numpy()
    monkeypatch.setattr(kind, "train_list", [write("train", {"data": rows, labels: [0, 1]})])
    monkeypatch.setattr(kind, "test_list", [write("test", {"data": rows, labels: [1, 0]})])
    meta_file, md5 = write("meta", {kind.meta["key"]: classes})
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": meta_file, "md5": md5})

    dataset = data.load_dataset(name, tmp_path)
    assert dataset.train_images.shape == (2, 3, 32, 32)
    assert torch.equal(dataset.train_images.flatten(), torch.from_numpy(rows).flatten())
    assert dataset.train_labels.tolist() == [0, 1]
    assert dataset.test_labels.tolist() == [1, 0]
    assert dataset.classes == tuple(classes)
    assert len(dataset.mean) == len(dataset.std) == 3


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="name must be one of 'fashion-mini'.*got 'mnist'"):
        data.load_dataset("mnist")
