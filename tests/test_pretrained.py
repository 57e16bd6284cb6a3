"""The weights that ship with the package do what their results files say."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from densenet_tutorial import data, densenet, pretrained, training
from densenet_tutorial.__main__ import main

SHIPPED = pretrained.shipped()


def test_there_are_weights():
    assert "fashion-mnist-small" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_accuracy_on_fashion_mini_is_what_the_results_say(name):
    results = pretrained.results(name)
    model = densenet(results["config"]["model"]["name"], weights=name)
    assert sum(p.numel() for p in model.parameters()) == results["parameters"]
    accuracy = training.evaluate(model, data.load_dataset("fashion-mini"))[1]
    # One picture of a thousand may fall on the other side where sums are rounded in another order.
    assert accuracy == pytest.approx(results["fashion_mini_accuracy"], abs=0.001)


@pytest.mark.skipif(
    not data.DEBIAN_FASHION_MNIST.is_dir(), reason="the full Fashion-MNIST is not on this machine"
)
@pytest.mark.parametrize("name", SHIPPED)
def test_accuracy_on_all_test_images_is_what_the_results_say(name, capsys):
    results = pretrained.results(name)
    main(["evaluate", name, "--dataset", "fashion-mnist", "--device", "cpu"])
    words = capsys.readouterr().out.split()
    assert words[:3] == ["fashion-mnist:", "10000", "test"]
    accuracy = float(words[words.index("accuracy") + 1].rstrip("%,")) / 100
    assert accuracy == pytest.approx(results["test_accuracy"], abs=0.0005)
    assert accuracy == pytest.approx(results["single_precision_test_accuracy"], abs=0.001)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_log_is_of_the_same_run(name):
    results = pretrained.results(name)
    log = Path(pretrained.__file__).parent / "assets" / f"{name}.csv"
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == results["config"]["recipe"]["epochs"]
    last = float(rows[-1]["test_accuracy"])
    assert last == pytest.approx(results["single_precision_test_accuracy"], abs=1e-6)


def test_the_table_on_the_results_page_is_made_from_the_results():
    from densenet_tutorial.assets.make_weights import TABLE, table

    assert TABLE.read_text(encoding="utf-8") == table()


def test_shipped_weights_are_in_single_precision_once_loaded():
    model = densenet("densenet_bc", weights="fashion-mnist-small")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_damaged_shipped_weights_are_refused(tmp_path, monkeypatch):
    for path in pretrained._ASSETS.glob("fashion-mnist-small.*"):
        shutil.copy(path, tmp_path)
    file = tmp_path / "fashion-mnist-small.pt"
    file.write_bytes(file.read_bytes() + b"\0")
    monkeypatch.setattr(pretrained, "_ASSETS", tmp_path)
    with pytest.raises(ValueError, match="fashion-mnist-small.pt in the package is damaged"):
        pretrained.read("fashion-mnist-small")
