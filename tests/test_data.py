"""The embedded data set, and finding, checking and refusing the full ones."""

import gzip
import json
import pickle
import shutil
import subprocess
import sys
import urllib.error
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from densenet_tutorial import data
from densenet_tutorial.data import datasets

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = Path(str(resources.files("densenet_tutorial"))) / "data" / "bundled"


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
    white = torch.full((1, 2, 1, 1), 255, dtype=torch.uint8)
    normalized = data.normalize(white, mean=(0.0, 0.5), std=(1.0, 0.25))
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


@pytest.mark.full_fashion_mnist
def test_fashion_mini_is_made_again_byte_for_byte(tmp_path):
    output = tmp_path / "again.npy.bz2"
    script = ROOT / "book/_tools/make_fashion_mini.py"
    subprocess.run([sys.executable, script, "--output", output], check=True, capture_output=True)
    assert output.read_bytes() == (BUNDLED / "fashion-mini.npy.bz2").read_bytes()


@pytest.mark.full_fashion_mnist
def test_the_full_fashion_mnist_is_found_in_debians_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DENSENET_TUTORIAL_DATA", str(tmp_path))
    dataset = data.load_dataset("fashion-mnist")
    assert dataset.train_images.shape == (60000, 1, 28, 28)
    assert dataset.test_labels.bincount().tolist() == [1000] * 10
    assert dataset.mean[0] == pytest.approx(0.2860, abs=1e-4)  # the figure that everyone quotes
    assert dataset.std[0] == pytest.approx(0.3530, abs=1e-4)


@pytest.mark.full_fashion_mnist
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


@pytest.mark.parametrize("name", ["mnist", "", "no/such/folder", None, 3, ["digits"]])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="^name must be one of 'fashion-mini'.*got ") as caught:
        data.load_dataset(name)
    assert all(repr(known) in str(caught.value) for known in data.list_datasets())


def test_without_a_home_what_is_bundled_loads(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("DENSENET_TUTORIAL_DATA", raising=False)
    assert len(data.load_dataset("digits").train_images) == 797
    with pytest.raises(ValueError, match="^no home folder is known here to keep data sets in"):
        data.load_dataset("cifar10")


# ------------------------------------------------------------------------------ data of one's own


def three(**changes):
    """A data set of three classes, with something in it changed."""
    images = torch.arange(6 * 2 * 4 * 5).remainder(251).byte().reshape(6, 2, 4, 5)
    fields = {
        "name": "mine",
        "train_images": images,
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_images": images[:3],
        "test_labels": torch.tensor([2, 1, 0]),
        "classes": ("a", "b", "c"),
        "mean": (0.5, 0.4),
        "std": (0.2, 0.3),
    }
    return data.ImageDataset(**fields | changes)


IMAGES = torch.zeros(6, 2, 4, 5, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "train_images",
            IMAGES / 255,
            r"a uint8 tensor of images .*\(255 \* x\).*got a tensor of torch.float",
        ),
        ("train_images", IMAGES.long(), "a uint8 tensor of images .*got a tensor of torch.int64"),
        ("train_images", IMAGES.numpy(), "a uint8 tensor of images .*got a NumPy array of uint8"),
        ("train_images", IMAGES[0], r"\(N, C, H, W\).*got .*shape \[2, 4, 5\]"),
        ("train_images", IMAGES[:0], r"at least one, got .*shape \[0, 2, 4, 5\]"),
        ("train_images", IMAGES[:, :0], "at least one, got "),
        ("train_images", [1, 2], "a uint8 tensor of images"),
        ("train_images", None, "a uint8 tensor of images .*got None"),
        ("test_images", IMAGES[:0], r"at least one, got .*shape \[0, 2, 4, 5\]"),
        (
            "test_images",
            IMAGES[:3, :1],
            r"\(N, 2, 4, 5\), as train_images are, got .*\[3, 1, 4, 5\]",
        ),
        ("test_images", IMAGES[:3, :, :3], r"\(N, 2, 4, 5\), as train_images are"),
        ("test_images", IMAGES[:3] / 255, "a uint8 tensor of images"),
        ("train_labels", LABELS + 1, "indices into the 3 classes, from 0 to 2, got 1 to 3"),
        ("train_labels", LABELS - 1, "indices into the 3 classes, from 0 to 2, got -1 to 1"),
        ("train_labels", LABELS[:5], r"one for each of the 6 train_images, .*got .*shape \[5\]"),
        (
            "train_labels",
            LABELS.int(),
            "a tensor of int64, not empty, .*got a tensor of torch.int32",
        ),
        ("train_labels", LABELS.float(), "a tensor of int64"),
        ("train_labels", LABELS[:, None], "a tensor of int64"),
        ("train_labels", LABELS.tolist(), "a tensor of int64"),
        ("test_labels", LABELS, r"one for each of the 3 test_images, .*got .*shape \[6\]"),
        (
            "test_labels",
            torch.tensor([0, 1, 3]),
            "indices into the 3 classes, from 0 to 2, got 0 to 3",
        ),
        ("classes", "abc", "a non-empty sequence, each element text"),
        ("classes", (), "a non-empty sequence"),
        ("classes", (0, 1, 2), "each element text"),
        ("mean", (0.5,), "one number for each of the 2 channels"),
        ("mean", 0.5, "a non-empty sequence, each element a finite number"),
        ("mean", (0.5, float("nan")), "each element a finite number"),
        ("std", (0.2, 0.0), "each element a finite number above 0"),
        ("std", (0.2, -1.0), "each element a finite number above 0"),
        ("std", (0.2, float("inf")), "each element a finite number above 0"),
        ("std", (0.2, 0.3, 0.4), "one number for each of the 2 channels"),
        ("name", None, "text, got None"),
    ],
)
def test_a_data_set_says_what_each_field_must_be(field, value, words):
    with pytest.raises(ValueError, match=f"^{field} must be .*{words}"):
        three(**{field: value})


def test_a_data_set_takes_numpys_numbers_and_lists():
    dataset = three(mean=np.array([0.5, 0.25]), std=[np.float32(0.5), 1], classes=["a", "b", "c"])
    assert dataset.mean == (0.5, 0.25) and dataset.std == (0.5, 1.0)
    assert dataset.classes == ("a", "b", "c")
    json.dumps(dataset.metadata())


def test_floats_are_not_normalised_once_more():
    images = three().train_images
    with pytest.raises(ValueError, match=r"^images must be a uint8 tensor .*\(255 \* x\)"):
        three().normalize(images / 255)


# ------------------------------------------------------------------------------ folders of images


def picture(path, color=(200, 30, 30), size=(12, 10)):
    """An image of one colour with a corner of another."""
    image = Image.new("RGB", size, color)
    image.paste((0, 0, 0), (0, 0, 3, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def one_level(root, count=10, **options):
    for shade, name in enumerate(("cat", "dog")):
        for i in range(count):
            picture(root / name / f"{i}.png", (100 * shade + 5 * i, 30, 60), **options)
    return root


def two_levels(root, test="val", **options):
    one_level(root / "train", **options)
    picture(root / test / "dog" / "0.png", (1, 2, 3), **options)
    return root


def test_a_folder_is_what_torchvision_makes_of_it(tmp_path):
    dataset = data.load_folder(two_levels(tmp_path / "pets"), progress=False)
    theirs = torchvision.datasets.ImageFolder(tmp_path / "pets" / "train")
    assert dataset.classes == tuple(theirs.classes) == ("cat", "dog")
    assert dataset.train_labels.tolist() == theirs.targets
    for image, (expected, _) in zip(dataset.train_images, theirs, strict=True):
        assert torch.equal(image, pil_to_tensor(expected))
    assert dataset.name == "pets" and dataset.folder == str(tmp_path / "pets")
    scaled = dataset.train_images.double() / 255
    assert dataset.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert dataset.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize("test", data.TEST_FOLDERS)
def test_a_class_without_images_to_test_on_keeps_its_place(tmp_path, test):
    """torchvision's class would number the second folder's classes anew, and call a dog a cat."""
    dataset = data.load_folder(two_levels(tmp_path, test), progress=False)
    assert dataset.test_labels.tolist() == [1]
    assert dataset.test_images[0, :, -1, -1].tolist() == [1, 2, 3]


def test_a_folder_to_validate_comes_before_one_to_test(tmp_path):
    two_levels(tmp_path, "test")
    picture(tmp_path / "val" / "cat" / "0.png", (9, 9, 9))
    dataset = data.load_folder(tmp_path, progress=False)
    assert dataset.test_images[0, :, -1, -1].tolist() == [9, 9, 9]


def test_where_there_is_one_level_a_fifth_of_each_class_is_kept_the_same_every_time(tmp_path):
    one_level(tmp_path)
    one, again, other = (
        data.load_folder(tmp_path, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert one.train_labels.bincount().tolist() == [8, 8]
    assert one.test_labels.bincount().tolist() == [2, 2]
    assert torch.equal(one.test_images, again.test_images)
    assert not torch.equal(one.test_images, other.test_images)
    everything = torch.cat([one.train_images, one.test_images]).flatten(1)
    assert len(everything.unique(dim=0)) == 20
    most = data.load_folder(tmp_path, test_fraction=1.0, progress=False)
    assert most.train_labels.bincount().tolist() == [1, 1]
    least = data.load_folder(tmp_path, test_fraction=0, progress=False)
    assert least.test_labels.bincount().tolist() == [1, 1]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", (i, 9, 9))
    assert data.load_folder(tmp_path, progress=False).classes == ("bus", "train")


def test_a_folder_to_train_on_alone_is_split(tmp_path):
    one_level(tmp_path / "train")
    assert len(data.load_folder(tmp_path, progress=False).test_images) == 4


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(12, 10)] * 3, (10, 12)),  # one size, which is kept
        ([(300, 300)] * 3, (224, 224)),  # one that is too large
        ([(20, 10), (40, 30), (50, 60)], (30, 30)),  # the median shorter side
        ([(500, 400), (600, 300), (20, 30)], (224, 224)),
    ],
)
def test_the_size_is_worked_out(tmp_path, sizes, expected):
    for i, size in enumerate(sizes):
        for name in "ab":
            picture(tmp_path / name / f"{i}.png", (40 * i, 30, 30), size=size)
    dataset = data.load_folder(tmp_path, progress=False)
    assert tuple(dataset.train_images.shape[2:]) == expected
    assert data.load_folder(tmp_path, image_size=9, progress=False).train_images.shape[2:] == (9, 9)
    other = data.load_folder(tmp_path, image_size=(7, 9), progress=False)
    assert other.train_images.shape[2:] == (7, 9)


def test_nothing_is_squashed_and_a_network_is_shown_the_same_at_prediction(tmp_path):
    for i in range(2):
        picture(tmp_path / "a" / f"{i}.png", (90 + i, 30, 30), size=(40, 10))
    dataset = data.load_folder(tmp_path, image_size=20, progress=False)
    assert (dataset.train_images[0, :, :7] == 0).all() and (
        dataset.train_images[0, :, -7:] == 0
    ).all()
    assert (dataset.train_images[0, 0, 8:12, 4:] >= 90).all()
    fit = data.FitInside(20, 20)
    expected = {pil_to_tensor(fit(data.read_image(p))) for p in (tmp_path / "a").iterdir()}
    assert any(torch.equal(dataset.train_images[0], image) for image in expected)


def test_grey_images_have_one_channel_whatever_their_files_say(tmp_path):
    for i in range(4):
        picture(tmp_path / "a" / f"{i}.png", (50 * i,) * 3)
    dataset = data.load_folder(tmp_path, progress=False)
    assert dataset.train_images.shape[1] == 1
    assert data.load_folder(tmp_path, channels=3, progress=False).train_images.shape[1] == 3
    picture(tmp_path / "a" / "4.png", (50, 51, 50))
    assert data.load_folder(tmp_path, progress=False).train_images.shape[1] == 3
    grey = data.load_folder(tmp_path, channels=1, progress=False)
    assert set(grey.train_images.amax((1, 2, 3)).tolist()) <= {0, 50, 51, 100, 150}


def test_a_channel_may_be_empty(tmp_path):
    for i in range(4):
        picture(tmp_path / "a" / f"{i}.png", (0, 50 * i + 10, 0))
    dataset = data.load_folder(tmp_path, progress=False)
    assert dataset.mean[0] == 0 and dataset.std[0] == dataset.std[2] == 1 and dataset.std[1] < 1
    assert (dataset.normalize(dataset.train_images)[:, 0] == 0).all()


def test_the_same_again_from_what_a_run_keeps(tmp_path):
    dataset = data.load_folder(one_level(tmp_path / "pets"), image_size=(7, 9), progress=False)
    again = data.load_again(json.loads(json.dumps(dataset.metadata())), progress=False)
    assert again.metadata() == dataset.metadata()
    assert torch.equal(again.train_images, dataset.train_images)
    (tmp_path / "pets").rename(tmp_path / "moved")
    moved = data.load_again(dataset.metadata(), name=tmp_path / "moved", progress=False)
    assert torch.equal(moved.test_images, dataset.test_images)
    digits = data.load_dataset("digits")
    assert data.load_again(digits.metadata()).metadata() == digits.metadata()


def test_reading_shows_progress(tmp_path, capsys):
    data.load_dataset(one_level(tmp_path))
    assert "reading images: 100%" in capsys.readouterr().err
    data.load_dataset(tmp_path, progress=False)
    assert capsys.readouterr().err == ""


def _empty(folder):
    folder.mkdir()


def _no_class(folder):
    picture(folder / "0.png")


def _empty_class(folder):
    one_level(folder)
    (folder / "eel").mkdir()


def _single_image(folder):
    one_level(folder)
    picture(folder / "eel" / "0.png")


def _new_class(folder):
    two_levels(folder)
    picture(folder / "val" / "eel" / "0.png")


def _no_test_image(folder):
    two_levels(folder)
    (folder / "val" / "dog" / "0.png").unlink()


def _broken(folder):
    one_level(folder)
    for name in ("3", "7"):
        (folder / "dog" / f"{name}.png").write_bytes(b"no image")


def _all_broken(folder):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(2):
            (folder / name / f"{i}.jpg").write_bytes(b"")


def _one_colour(folder):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (4, 4), 7).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "^folder must be one of images by class, got .*, which is none"),
        (lambda folder: folder.write_text(""), "^folder must be one of images by class"),
        (
            _empty,
            "^folder must hold a folder for each class, or train and val or .*which holds none",
        ),
        (_no_class, "^folder must hold a folder for each class"),
        (_empty_class, r"eel must hold at least 2 images \(.jpg, .*got 0"),
        (_single_image, r"eel must hold at least 2 images \(.jpg, .*got 1"),
        (_new_class, "val must have the classes of .*train, got 'eel' as well"),
        (_no_test_image, "val must hold images by class, got none"),
        (_broken, "2 of 20 images cannot be used. The first: .*dog/3.png cannot be read"),
        (_all_broken, "4 of 4 images cannot be used. The first: .*a/0.jpg cannot be read"),
        (_one_colour, "images to train on in .* must show something, got one colour"),
    ],
)
def test_a_folder_that_is_none_is_refused_in_words(tmp_path, make, words):
    make(tmp_path / "mine")
    with pytest.raises(ValueError, match=words):
        data.load_folder(tmp_path / "mine", progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size must be a side in pixels, or height and width, or None"),
        ({"image_size": (3, 4, 5)}, "image_size must be a side in pixels"),
        ({"image_size": "224"}, "image_size must be a side in pixels"),
        (
            {"image_size": 10**7},
            "image_size must be one at which 20 images fit into half of the mem",
        ),
        ({"channels": 4}, "channels must be one of 1, 3, or None, got 4"),
        ({"test_fraction": 2}, "test_fraction must be a number from 0 to 1"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"progress": "no"}, "progress must be True or False"),
    ],
)
def test_options_of_a_folder_are_checked(tmp_path, options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        data.load_folder(one_level(tmp_path), **options)


def test_an_option_of_a_folder_is_not_ignored_for_another_data_set():
    with pytest.raises(
        ValueError, match="^image_size is for a folder of images by class, got 'digits'"
    ):
        data.load_dataset("digits", image_size=8)


def test_what_is_left_out_is_counted(tmp_path, caplog):
    one_level(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "cat" / ".hidden").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    dataset = data.load_folder(tmp_path, progress=False)
    assert dataset.classes == ("cat", "dog")
    assert "1 files are ignored, which do not end in .jpg" in caplog.text


def test_classes_may_have_folders_of_their_own(tmp_path):
    one_level(tmp_path, 2)
    picture(tmp_path / "cat" / "black" / "0.png", (0, 9, 0))
    assert data.load_folder(tmp_path, progress=False).train_labels.bincount().tolist() == [2, 1]
