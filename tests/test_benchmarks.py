"""The command `benchmark`."""

import csv
import json
import sys

import pytest
import torch

from densenet_tutorial.__main__ import main
from densenet_tutorial.experiments import benchmarks
from densenet_tutorial.memory.variants import RecomputedTransition


def test_benchmark_memory_prints_a_table_and_writes_a_file(tmp_path, capsys):
    path = tmp_path / "memory.json"
    options = "--model densenet_40_12 --image-size 8 --batch-size 2 --repeats 2 --device cpu"
    main(["benchmark", "memory", *options.split(), "--output", str(path)])
    printed = capsys.readouterr().out.splitlines()
    results = json.loads(path.read_text())

    names = ["ours", "ours, checkpoint", "ours, recompute", "ours, minimal"]
    assert [figure["name"] for figure in results["figures"]] == names
    for figure, line in zip(results["figures"], printed[1:], strict=True):
        assert line.startswith(figure["name"])
        assert len(figure["seconds"]) == 2
    plain, *efficient = (figure["saved"] for figure in results["figures"])
    assert all(saved < plain for saved in efficient)
    assert results["figures"][0]["ratio"] == 1
    checkpoint, *own = results["figures"][1:]
    assert checkpoint["from_plain"] == 0  # the same operations in the same order
    assert all(figure["from_plain"] < 1e-4 for figure in own)
    assert all(0 < figure["from_float64"] < 0.1 for figure in results["figures"])
    resident = [figure["resident"] for figure in results["figures"]]
    kinds = {int} if sys.platform == "linux" else {type(None)}
    assert set(map(type, resident)) == kinds
    assert results["machine"]["device"].startswith("cpu")
    rows = list(csv.reader(path.with_suffix(".csv").open(encoding="utf-8")))
    assert [row[0] for row in rows] == ["Model", *names]
    assert rows[1][1] == f"{plain / 2 / 2**20:.1f}"  # MiB per image of a batch of two
    assert results["command"].endswith(f"{options.replace(' --device cpu', '')} --device cpu")


def test_torchvisions_models_come_first_where_there_are_any():
    assert list(benchmarks.models("densenet121"))[:2] == [
        "torchvision",
        "torchvision, memory-efficient",
    ]
    model = benchmarks.models("densenet121")["ours, minimal"]()
    assert type(model.features.transition1) is RecomputedTransition


class Crowded(torch.nn.Module):
    """A model on a GPU that is made up: it has room for so many images."""

    def __init__(self, room):
        super().__init__()
        self.room, self.weight = room, torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError
        return self.weight * x


@pytest.mark.parametrize("room", [4, 5, 7, 8, 11, 100, 1000])
def test_the_largest_batch_is_found_to_within_an_eighth(room):
    found = benchmarks._largest_batch(Crowded(room), torch.zeros(4, 1, 1, 1))
    assert found <= room < found * 9 / 8 + 1
