"""A run's folder: what it holds, and runs that are stopped, killed, resumed, refused."""

import csv
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densenet_tutorial import DenseNet, training
from densenet_tutorial.training import Recipe, run_folder
from densenet_tutorial.weights import layouts

HERE = Path(__file__).parent
RECIPE = Recipe(epochs=3, batch_size=20, augment=("crop", "flip", "cutout"), schedule="one-cycle")


def small(**options):
    torch.manual_seed(0)
    return DenseNet(4, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar", **options)


def fit(dataset, folder, recipe=RECIPE, model=None, **options):
    model = small(drop_rate=0.1) if model is None else model
    return training.fit(model, dataset, recipe, output=folder, progress=False, **options)


def result(folder):
    """The weights that a run ended with, and its metrics without the times."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return run_folder.read_checkpoint(folder / "last.pt")["model"], rows


def assert_same(one, other):
    assert one[1] == other[1]
    assert all(torch.equal(one[0][key], other[0][key]) for key in one[0].keys() | other[0].keys())


# ------------------------------------------------------------------------------ the folder


def test_the_folder_holds_what_it_says(dataset, tmp_path):
    history = fit(dataset, tmp_path / "run", model_config={"name": "a model"})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.pt",
        "config.json",
        "curves.png",
        "last.pt",
        "metrics.csv",
    ]
    config = run_folder.read_config(tmp_path / "run")
    assert config["model"] == {"name": "a model"}
    assert config["recipe"]["augment"] == ["crop", "flip", "cutout"]
    assert config["dataset"]["classes"] == list(dataset.classes)

    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert {"model", "optimizer", "scheduler", "random", "history", "step"} <= last.keys()
    assert last["config"] == config
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert rows == history == last["history"]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")

    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert best["metrics"]["test_accuracy"] == max(row["test_accuracy"] for row in history)
    model = small()
    model.load_state_dict(best["model"])
    assert training.evaluate(model, dataset)[1] == pytest.approx(best["metrics"]["test_accuracy"])


# ------------------------------------------------------------------------------ stopped and killed


def killed(folder, *when):
    """How many of the children that `killed_runs.py` started were killed; the last one finished."""
    command = [sys.executable, str(HERE / "killed_runs.py"), str(folder), *when]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("never") / "run"
    assert killed(folder) == 0
    return result(folder)


def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(tmp_path, never_killed):
    seed = random.randrange(10**6)
    print("seed of the moments:", seed)  # shown if this fails
    moments = random.Random(seed)
    seconds = [f"{moments.uniform(0, 0.8):.3f}" for _ in range(20)]
    assert killed(tmp_path / "run", *seconds) >= 3
    assert_same(result(tmp_path / "run"), never_killed)


def test_killed_before_any_file_takes_its_name_a_run_ends_as_if_it_never_was(
    tmp_path, never_killed
):
    # The k-th child dies at its k-th file, so that every kind of file is hit, with every one before it written.
    assert killed(tmp_path / "run", "replace", "6") == 6
    assert_same(result(tmp_path / "run"), never_killed)
    assert not list((tmp_path / "run").glob("*.part"))


class Interrupting(torch.nn.Module):
    """A model during whose n-th training step somebody asks the process to stop."""

    def __init__(self, model, step, number):
        super().__init__()
        self.model, self.left, self.number = model, step, number

    def forward(self, x):
        self.left -= self.training
        if self.training and self.left == 0:
            signal.raise_signal(self.number)
        return self.model(x)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 7, 10, 13, 30])  # 10 steps an epoch
def test_ctrl_c_stops_after_the_step_and_resuming_goes_on_from_it(dataset, tmp_path, step, number):
    def model(interrupted_at):
        return Interrupting(small(drop_rate=0.1), interrupted_at, number)

    before = signal.getsignal(number)
    fit(dataset, tmp_path / "whole", model=model(-1))
    message = f"^stopped after step {(step - 1) % 10 + 1} of epoch {(step - 1) // 10 + 1}$"
    with pytest.raises(KeyboardInterrupt, match=message):
        fit(dataset, tmp_path / "parts", model=model(step))
    assert signal.getsignal(number) is before
    fit(dataset, tmp_path / "parts", model=model(-1), resume=True)
    assert_same(result(tmp_path / "parts"), result(tmp_path / "whole"))


def test_resuming_a_finished_run_changes_nothing(dataset, tmp_path):
    history = fit(dataset, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    model = small()
    assert fit(dataset, tmp_path / "run", model=model, resume=True) == history
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert_same((dict(model.state_dict()), []), (result(tmp_path / "run")[0], []))


# ------------------------------------------------------------------------------ refused


def test_a_folder_with_a_run_is_not_written_over(dataset, tmp_path):
    fit(dataset, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="^output must be a folder without a run, got .*run"):
        fit(dataset, tmp_path / "run")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": Recipe(epochs=4, batch_size=20)}, "recipe.epochs was 3 and is now 4"),
        ({"recipe": Recipe(epochs=3, batch_size=10)}, "recipe.batch_size was 20 and is now 10"),
        ({"model_config": {"growth_rate": 5}}, "model was None and is now {'growth_rate': 5}"),
    ],
)
def test_a_resumed_run_keeps_its_configuration(dataset, tmp_path, change, named):
    fit(dataset, tmp_path / "run", recipe=Recipe(epochs=3, batch_size=20))
    options = {"recipe": Recipe(epochs=3, batch_size=20)} | change
    with pytest.raises(ValueError, match=f"must keep its configuration .*{named}"):
        fit(dataset, tmp_path / "run", resume=True, **options)


def test_a_resumed_run_keeps_its_data(dataset, tmp_path):
    import dataclasses

    fit(dataset, tmp_path / "run")
    fewer = dataclasses.replace(dataset, train_images=dataset.train_images[:150])
    with pytest.raises(ValueError, match="dataset.train_images was 200 and is now 150"):
        fit(fewer, tmp_path / "run", resume=True)


def test_another_model_is_refused(dataset, tmp_path):
    fit(dataset, tmp_path / "run")
    other = DenseNet(5, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar")
    with pytest.raises(ValueError, match="last.pt does not fit the model and recipe: .*size"):
        fit(dataset, tmp_path / "run", model=other, resume=True)


def test_processes_that_find_different_checkpoints_are_refused(dataset, tmp_path, monkeypatch):
    fit(dataset, tmp_path / "run")
    monkeypatch.setattr(run_folder.distributed, "gather", lambda place: [place, (1, 0)])
    with pytest.raises(ValueError, match=r"all processes share, .*rank are \[\(4, 0\), \(1, 0\)\]"):
        fit(dataset, tmp_path / "run", resume=True)


def _truncate(content):
    return content[: len(content) // 2]


def _flip_bits(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 64]) + content[middle + 64 :]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_bits,
        lambda content: b"",
        lambda content: b"<html>404</html>",
        lambda content: content[:100],
    ],
    ids=["truncated", "bits flipped", "empty", "a web page", "only a beginning"],
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(dataset, tmp_path, damage):
    fit(dataset, tmp_path / "run")
    path = tmp_path / "run" / "last.pt"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="last.pt is damaged or is no checkpoint"):
        fit(dataset, tmp_path / "run", resume=True)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3), {"format": "other"}])
def test_a_foreign_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="foreign.pt is not a checkpoint of this package"):
        run_folder.read_checkpoint(tmp_path / "foreign.pt")


def test_nothing_in_a_checkpoint_runs(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    torch.save({"format": layouts.CHECKPOINT_FORMAT, "model": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="hostile.pt is damaged or is no checkpoint"):
        run_folder.read_checkpoint(tmp_path / "hostile.pt")
    assert not (tmp_path / "was here").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.pt does not exist"):
        run_folder.read_checkpoint(tmp_path / "none.pt")


def test_a_damaged_configuration_is_named(dataset, tmp_path):
    fit(dataset, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"recipe"')
    with pytest.raises(ValueError, match="config.json is not the configuration of a run"):
        fit(dataset, tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------ writing


def test_a_full_disk_is_reported_and_the_checkpoint_before_is_intact(dataset, tmp_path):
    fit(dataset, tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").read_bytes()
    state = run_folder.read_checkpoint(tmp_path / "run" / "last.pt")
    folder = run_folder.RunFolder(tmp_path / "run", state["config"], resume=True)
    # No file may grow past 10 kB: to the program, this is a disk that fills up in the middle of a write.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="not written: .*"):
            folder.save(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.part"))
