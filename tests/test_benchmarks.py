"""The command `benchmark`."""

import csv
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from densenet_tutorial import DenseNet, data, densenet
from densenet_tutorial.__main__ import main
from densenet_tutorial.experiments import benchmarks, speed
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


def test_benchmark_speed_prints_a_table_and_writes_a_file(tmp_path, capsys):
    path = tmp_path / "speed.json"
    options = "--model densenet_40_12 --image-size 8 --tasks predict train --batch-sizes 1 3"
    main(["benchmark", "speed", *options.split(), "--repeats", "2", "--output", str(path)])
    printed = capsys.readouterr().out.splitlines()
    results = json.loads(path.read_text())
    found = {}
    for figure, line in zip(results["figures"], printed[1:], strict=True):
        assert line.split()[:2] == [figure["task"], str(figure["batch_size"])]
        assert len(figure["seconds"]) == 2
        found.setdefault((figure["task"], figure["batch_size"]), []).append(figure)
    assert list(found) == [("predict", 1), ("predict", 3), ("train", 1), ("train", 3)]
    for (task, _), figures in found.items():
        names = [figure["name"] for figure in figures]
        assert names[:2] == ["ours", "ours, channels_last"]
        assert ("optimized" in names) == (task == "predict")
        assert ("ours, recompute, channels_last" in names) == (task == "train")
        assert figures[0]["ratio"] == figures[0]["ratio_of_medians"] == 1
        assert all(f["ratio"] == min(f["seconds"]) / min(figures[0]["seconds"]) for f in figures)
    assert f"{options} --repeats 2 --device" in results["command"]
    rows = list(csv.reader(path.with_suffix(".csv").open(encoding="utf-8")))
    assert [row[2] for row in rows[1:]] == [figure["name"] for figure in results["figures"]]


@pytest.mark.parametrize("median, busy", [(1.09, False), (1.11, True)])
def test_a_busy_machine_is_marked(monkeypatch, median, busy):
    seconds = {}

    def in_turns(steps, repeats, device):
        seconds.update({name: [1.0, median, 5.0] for name in steps})
        return seconds

    monkeypatch.setattr(speed, "in_turns", in_turns)
    found = speed.compare_speed("densenet_40_12", tasks=["predict"], batch_sizes=[1], image_size=8)
    assert [figure.busy for figure in found] == [busy] * len(seconds)
    assert all((row[5] == "busy") == busy for row in speed.speed_rows(found)[1:])


def test_functions_take_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = speed.in_turns(steps, 2)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 4 and {"abc", "cba"} == set(rounds)


def test_the_models_of_a_comparison_are_of_the_same_weights():
    x = torch.randn(2, 3, 32, 32)
    models = speed._models("densenet121", "predict", x, amp=False, compiled=False)
    expected = models["ours"](x)
    for name in ("torchvision", "torchvision, channels_last", "ours, channels_last", "optimized"):
        assert torch.allclose(models[name](x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="image_size must be"):
        speed.compare_speed("densenet121", image_size=8)


def test_convolutions_alone_are_those_of_the_model():
    model = benchmarks.models("densenet_40_12")["ours"]()
    x = torch.randn(2, 3, 8, 8)
    shapes = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    model(x)
    for module in model.modules():
        module._forward_hooks.clear()
    alone = speed.ConvolutionsAlone(model, x)
    outputs = alone()
    assert [output.shape for output in outputs] == shapes and len(shapes) == 39
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    assert all(read.grad is not None for read in alone._inputs[1:])
    assert alone._inputs[0].grad is None  # as of an image
    step = speed._step("train", alone, x, amp=False)
    step()
    before = alone._inputs[1].grad.clone()
    step()
    assert torch.equal(alone._inputs[1].grad, before)  # not added up
    assert all(p.grad is None for p in alone.parameters()) and len(list(alone.parameters())) == 39


def test_bytes_alone_are_those_of_the_passes():
    model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2)).eval()
    read = speed.BytesAlone(model, torch.randn(3, 2, 8, 8))
    numbers = 3 * 64
    assert read.total == 4 * (
        (2 * numbers + 8 + 4 * numbers) + 2 * 4 * numbers + (4 * numbers + numbers)
    )
    read()


def test_integers_of_8_bits_keep_nearly_all_answers():
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    dataset = data.load_dataset("fashion-mini")
    small = speed.quantized(model, dataset.normalize(dataset.train_images[:200]))
    x = dataset.normalize(dataset.test_images)
    with torch.no_grad():
        expected, found = model(x), small(x)
    assert type(model) is DenseNet and not model.training  # left as it was
    assert 0.02 < (found - expected).abs().max() / expected.abs().max() < 0.2
    assert (found.argmax(1) != expected.argmax(1)).float().mean() < 0.02


@pytest.mark.parametrize(
    "words, message",
    [
        ("speed --output {}/none/a.json", "path must be a file in a folder that exists"),
        ("memory --output {}/none/a.json", "path must be a file in a folder that exists"),
        ("memory --output {}/a.csv", "path must not end in .csv"),
        ("speed --output {}/a.CSV", "path must not end in .csv"),
        ("speed --output {}", "path must be a file"),
        ("speed --output {}/b.json", "path must be a file"),
        ("memory --output /dev/null", "path must be a file"),
        ("speed --batch-sizes 1 0", "a whole number of at least 1, got [1, 0]"),
        (
            "speed --model densenet_40_12 --batch-sizes 2 1 --image-size 4",
            "image_size must leave more than one pixel",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "in_turns", None)  # fails if anything is measured
    monkeypatch.setattr(benchmarks, "in_turns", None)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(SystemExit):
        main(["benchmark", *words.format(tmp_path).split()])
    assert message in capsys.readouterr().err


def test_the_results_that_come_with_the_package():
    found = speed.results()
    assert {(f.task, f.batch_size) for f in found} == {
        *itertools.product(("predict", "train"), (1, 8))
    }
    assert all(len(f.seconds) >= 15 for f in found)
    path = Path(speed.__file__).parent / "results" / "speed-densenet121-cpu.csv"
    rows = list(csv.reader(path.open(encoding="utf-8")))
    assert [tuple(row) for row in rows] == speed.speed_rows(found)
    ratios = [f"{f.ratio:.2f}" for f in found if f.task == "predict" and "torchvision, " in f.name]
    ratios += [f"{f.ratio:.2f}" for f in found if f.task == "predict" and f.name == "optimized"]
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    sentence = readme[readme.index("A trained network predicts") : readme.index("On an H100")]
    assert all(ratio in sentence for ratio in ratios)
    for run in ("run2", "run3"):
        found = speed.results(f"speed-densenet121-cpu-{run}")
        ratios = [f.ratio for f in found if f.task == "predict" and f.name == "optimized"]
        assert len(ratios) == 2 and all(f"{ratio:.2f}" in sentence for ratio in ratios)
    on_gpu = speed.results("speed-densenet121-gpu")
    graph, many = (
        next(f for f in on_gpu if f.task == "predict" and (f.name, f.batch_size) == wanted)
        for wanted in (("optimized, CUDA graph", 1), ("optimized, CUDA graph", 64))
    )
    words = " ".join(readme.split())
    assert (
        f"On an H100, with CUDA graphs, {graph.ratio:.2f} with one picture and "
        f"{many.ratio:.2f} with 64:" in words
    )
    ratios = [
        next(f.ratio for f in speed.results(name) if (f.task, f.name, f.batch_size) == wanted)
        for name, wanted in (
            ("speed-densenet121-cpu", ("train", "ours, fused, channels_last", 8)),
            ("speed-densenet121-gpu", ("train", "ours, fused, channels_last, CUDA graph", 64)),
            ("speed-densenet121-gpu-amp", ("train", "ours, fused, channels_last, CUDA graph", 64)),
        )
    ]
    of_training = words[words.index("is the fastest in training") :]
    assert all(f"{ratio:.2f}" in of_training.partition("```")[0] for ratio in ratios)
    with pytest.raises(ValueError, match="speed-densenet121-cpu"):
        speed.results("no such file")
