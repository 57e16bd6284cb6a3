"""A run's folder: what it holds, and runs that are stopped, killed, resumed, changed, refused."""

import copy
import csv
import dataclasses
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
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
    """The weights that a run ended with, its best ones, and its metrics without the times."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    last, best = (run_folder.read_checkpoint(folder / name) for name in ("last.pt", "best.pt"))
    epoch = {"best epoch": torch.tensor(best["metrics"]["epoch"])}
    return last["model"], best["model"] | epoch, rows


def assert_same(one, other):
    assert one[2] == other[2]
    for part in range(2):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """The folder of a finished run, for tests that copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(dataset, folder)
    return folder


@pytest.fixture(scope="module")
def stopped(dataset, tmp_path_factory):
    """The folder of a run that was stopped at step 3 of its third epoch, for tests that copy it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(dataset, folder, model=Acting(small(drop_rate=0.1), {23: interrupt}))
    return folder


class Acting(torch.nn.Module):
    """A model during whose n-th training step something happens."""

    def __init__(self, model, actions):
        super().__init__()
        self.model, self.steps, self.actions = model, 0, actions

    def state_dict(self, *args, **kwargs):
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.model.load_state_dict(*args, **kwargs)

    def forward(self, x):
        self.steps += self.training
        if self.training and self.steps in self.actions:
            self.actions[self.steps]()
        return self.model(x)


def interrupt(number=signal.SIGINT):
    signal.raise_signal(number)


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


def test_no_two_runs_have_the_same_id(dataset, tmp_path):
    short = Recipe(epochs=1, batch_size=100)
    for name in ("a", "b"):
        fit(dataset, tmp_path / name, short)
    assert len({run_folder.read_config(tmp_path / name)["id"] for name in ("a", "b")}) == 2


def test_without_a_folder_nothing_is_written_and_matplotlib_is_not_imported(tmp_path):
    program = (
        "import sys, torch\n"
        "from densenet_tutorial import DenseNet, data, training\n"
        "model = DenseNet(2, (1,), 4, 1, num_classes=10, in_channels=1, stem='cifar')\n"
        "recipe = training.Recipe(epochs=1, batch_size=2500)\n"
        "training.fit(model, data.load_dataset('fashion-mini'), recipe, progress=False)\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ stopped and killed


def killed_runs(*arguments):
    command = [sys.executable, str(HERE / "killed_runs.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("never") / "run"
    assert killed_runs(folder).stdout == "0\n"
    return result(folder)


def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(tmp_path, never_killed):
    seed = random.randrange(10**6)
    print("seed of the moments:", seed)  # shown if this fails
    moments = random.Random(seed)
    seconds = [f"{moments.uniform(0, 0.8):.3f}" for _ in range(20)]
    assert int(killed_runs(tmp_path / "run", *seconds).stdout) >= 3
    assert_same(result(tmp_path / "run"), never_killed)


def test_killed_wherever_it_touches_a_file_a_run_ends_as_if_it_never_was(tmp_path, never_killed):
    assert int(killed_runs(tmp_path / "run", "everywhere").stdout) >= 8
    assert_same(result(tmp_path / "run"), never_killed)
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 7, 10, 13, 30])  # 10 steps an epoch
def test_ctrl_c_stops_after_the_step_and_resuming_goes_on_from_it(dataset, tmp_path, step, number):
    def model(actions):
        return Acting(small(drop_rate=0.1), actions)

    before = signal.getsignal(number)
    fit(dataset, tmp_path / "whole", model=model({}))
    message = f"^stopped after step {(step - 1) % 10 + 1} of epoch {(step - 1) // 10 + 1}$"
    with pytest.raises(KeyboardInterrupt, match=message):
        fit(dataset, tmp_path / "parts", model=model({step: lambda: interrupt(number)}))
    assert signal.getsignal(number) is before
    fit(dataset, tmp_path / "parts", model=model({}), resume=True)
    assert_same(result(tmp_path / "parts"), result(tmp_path / "whole"))


def test_a_second_ctrl_c_stops_at_once_and_the_checkpoint_before_is_kept(dataset, tmp_path):
    def twice():
        interrupt()
        interrupt()
        raise AssertionError("the step went on")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        fit(dataset, tmp_path / "run", model=Acting(small(drop_rate=0.1), {14: twice}))
    assert signal.getsignal(signal.SIGINT) is before
    state = run_folder.read_run(tmp_path / "run")
    assert (len(state["history"]), state["step"]) == (1, 0)
    fit(dataset, tmp_path / "run", resume=True)
    fit(dataset, tmp_path / "whole")
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_and_another_one_still_wait_for_the_step(dataset, tmp_path, second):
    """As when a cluster asks twice, or somebody presses Ctrl-C meanwhile."""
    actions = {4: lambda: [interrupt(signal.SIGTERM), interrupt(second)]}
    with pytest.raises(KeyboardInterrupt, match="^stopped after step 4 of epoch 1$"):
        fit(dataset, tmp_path / "run", model=Acting(small(), actions))
    assert run_folder.read_run(tmp_path / "run")["step"] == 4


def test_the_progress_bar_of_a_resumed_run_begins_where_it_was(dataset, stopped, tmp_path, capsys):
    folder = shutil.copytree(stopped, tmp_path / "run")
    model = small(drop_rate=0.1)
    training.fit(model, dataset, RECIPE, output=folder, resume=True)
    drawn = capsys.readouterr().err.split("\r")
    lines = [line for line in drawn if line.startswith("epoch ")]
    assert lines[0].startswith("epoch 3/3:  30%") and " 60/200 " in lines[0]
    row = run_folder.read_run(folder)["history"][-1]
    # However fast the steps were, the last line is of the whole epoch.
    loss, accuracy = row["train_loss"], row["train_accuracy"]
    assert " 200/200 " in lines[-1] and f"loss {loss:.3f}, accuracy {accuracy:.1%}" in lines[-1]


def test_a_signal_that_is_ignored_stays_ignored(dataset, tmp_path):
    """As under nohup, or in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit(dataset, None, model=Acting(small(), {2: interrupt}))
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_weights_that_a_run_began_with_are_in_its_folder(dataset, tmp_path):
    """So that one that is killed in its first epoch goes on from them, whatever it is handed."""
    with pytest.raises(KeyboardInterrupt, match="at once"):
        fit(
            dataset,
            tmp_path / "run",
            model=Acting(small(), {2: lambda: [interrupt(), interrupt()]}),
        )
    torch.manual_seed(99)
    other = DenseNet(4, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar")
    fit(dataset, tmp_path / "run", model=other, resume=True)
    fit(dataset, tmp_path / "whole", model=small())
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


def test_resuming_a_finished_run_changes_nothing(dataset, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    model = small()
    history = fit(dataset, folder, model=model, resume=True)
    assert history == run_folder.read_checkpoint(folder / "last.pt")["history"]
    assert contents(folder) == contents(finished)
    last = result(folder)[0]
    assert all(torch.equal(last[key], value) for key, value in model.state_dict().items())


# ------------------------------------------------------------------------------ one owner


IN_USE = "^output must be a folder in which no run is under way, got .*run"


def test_another_thread_cannot_train_in_the_same_folder(dataset, tmp_path):
    begun, over = threading.Event(), threading.Event()
    model = Acting(small(), {1: lambda: [begun.set(), over.wait(60)]})
    thread = threading.Thread(
        target=fit, args=(dataset, tmp_path / "run", Recipe(epochs=1, batch_size=100), model)
    )
    thread.start()
    assert begun.wait(60)
    for resume in (True, False):
        with pytest.raises(ValueError, match=IN_USE):
            fit(dataset, tmp_path / "run", resume=resume)
    over.set()
    thread.join()
    assert len(run_folder.read_run(tmp_path / "run")["history"]) == 1


def test_another_process_cannot_either_until_the_first_is_killed(dataset, tmp_path):
    command = [sys.executable, str(HERE / "killed_runs.py"), str(tmp_path / "run"), "hold"]
    holder = subprocess.Popen(command)
    try:
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert holder.poll() is None
        before = run_folder.read_config(tmp_path / "run")
        for resume in (True, False):
            with pytest.raises(ValueError, match=IN_USE):
                fit(dataset, tmp_path / "run", resume=resume)
        assert run_folder.read_config(tmp_path / "run") == before
    finally:
        holder.kill()
        holder.wait()
    with pytest.raises(ValueError, match="must keep its configuration"):  # not: under way
        fit(dataset, tmp_path / "run", resume=True)


def test_of_two_that_begin_at_once_one_trains_and_the_other_is_refused(tmp_path, never_killed):
    done = killed_runs(tmp_path, "pairs", 4)
    assert done.stdout.splitlines() == ["0 3"] * 4, done.stderr
    for line in done.stderr.splitlines():
        assert line.startswith("output must be a folder ")
    for number in range(4):
        assert_same(result(tmp_path / str(number)), never_killed)


def test_a_lock_that_was_left_behind_is_no_lock(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("")
    fit(dataset, tmp_path / "run", Recipe(epochs=1, batch_size=100))
    assert not (tmp_path / "run" / ".lock").exists()


# ------------------------------------------------------------------------------ refused


def test_a_folder_with_a_run_is_not_written_over(dataset, finished):
    before = contents(finished)
    with pytest.raises(ValueError, match="^output must be a folder without a run, got .*run"):
        fit(dataset, finished)
    assert before == contents(finished)


@pytest.mark.parametrize("name", run_folder.FILES)
def test_a_new_run_does_not_begin_beside_what_is_left_of_another(dataset, finished, tmp_path, name):
    (tmp_path / "run").mkdir()
    shutil.copy(finished / name, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="^output must be a folder without a run, got .*run"):
        fit(dataset, tmp_path / "run")
    with pytest.raises(ValueError, match=r"(last\.pt|config\.json) is missing"):
        fit(dataset, tmp_path / "run", resume=True)
    assert before == contents(tmp_path / "run")


@pytest.mark.parametrize("name", ["last.pt", "config.json", "best.pt"])
def test_a_run_of_which_something_is_missing_does_not_go_on(dataset, stopped, tmp_path, name):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / name).unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        fit(dataset, folder, resume=True)
    assert before == contents(folder)


@pytest.mark.parametrize("name", ["metrics.csv", "curves.png"])
def test_what_is_made_from_the_rest_is_made_again(dataset, finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / name).unlink()
    fit(dataset, folder, resume=True)
    assert contents(folder) == contents(finished)


@pytest.mark.parametrize("name", ["last.pt", "config.json", "best.pt"])
def test_files_of_different_runs_are_refused(dataset, stopped, finished, tmp_path, name):
    folder = shutil.copytree(stopped, tmp_path / "run")
    shutil.copy(finished / name, folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="is of another run than"):
        fit(dataset, folder, resume=True)
    assert before == contents(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": Recipe(epochs=4, batch_size=20)}, "recipe.epochs was 3 and is now 4"),
        ({"recipe": Recipe(epochs=3, batch_size=10)}, "recipe.batch_size was 20 and is now 10"),
        ({"model_config": {"growth_rate": 5}}, "model was None and is now {'growth_rate': 5}"),
        ({"initial_weights": "some"}, "initial_weights was None and is now 'some'"),
    ],
)
def test_a_resumed_run_keeps_its_configuration(dataset, tmp_path, change, named):
    fit(dataset, tmp_path / "run", recipe=Recipe(epochs=3, batch_size=20))
    options = {"recipe": Recipe(epochs=3, batch_size=20)} | change
    with pytest.raises(ValueError, match=f"must keep its configuration .*{named}"):
        fit(dataset, tmp_path / "run", resume=True, **options)


@pytest.mark.parametrize("allow_changes", [False, True])
def test_a_resumed_run_keeps_its_data(dataset, finished, allow_changes):
    images, labels = dataset.train_images[:150], dataset.train_labels[:150]
    fewer = dataclasses.replace(dataset, train_images=images, train_labels=labels)
    with pytest.raises(ValueError, match="dataset.train_images was 200 and is now 150"):
        fit(fewer, finished, resume=True, allow_changes=allow_changes)


def test_a_configuration_that_was_edited_is_not_believed(dataset, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    config = run_folder.read_config(folder)
    config["recipe"]["epochs"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="config.json has been changed: recipe.epochs was 3 and is"
    ):
        fit(dataset, folder, resume=True)


def test_a_configuration_that_json_cannot_hold_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="^model_config must be a dict of plain values"):
        fit(dataset, tmp_path / "run", model_config={"dtype": torch.float32})
    assert not (tmp_path / "run").exists()


def test_another_model_is_refused(dataset, finished):
    other = DenseNet(5, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar")
    with pytest.raises(ValueError, match="last.pt does not fit this run: .*size"):
        fit(dataset, finished, model=other, resume=True)


def _truncate(content):
    return content[: len(content) // 2]


def _flip_bits(content):
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 - byte for byte in content[middle : middle + 64])
        + content[middle + 64 :]
    )


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
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
def test_a_damaged_checkpoint_is_refused_and_left_alone(dataset, stopped, tmp_path, name, damage):
    folder = shutil.copytree(stopped, tmp_path / "run")
    damaged = damage((folder / name).read_bytes())
    (folder / name).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{name} is damaged or is no checkpoint"):
        fit(dataset, folder, resume=True)
    assert (folder / name).read_bytes() == damaged


def _set(*keys, value):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def _not_finite(state):
    state["model"]["features.conv0.weight"][0, 0, 0, 0] = float("nan")


def _infinite_momentum(state):
    state["optimizer"]["state"][3]["momentum_buffer"].view(-1)[0] = float("inf")


def _short_momentum(state):
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1)


def _with(part, name, function):
    def change(state):
        state[part][name] = function(state[part][name])

    return change


def _with_integer_momenta(state):
    for buffers in state["optimizer"]["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].int()


def _without_momenta(state):
    for buffers in state["optimizer"]["state"].values():
        buffers["momentum_buffer"] = None


def _remove(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("step", value=-1), "its position is step -1"),
        (_set("step", value=11), "its position is step 11"),
        (_set("step", value="3"), "'step' is missing or of a wrong type"),
        (lambda s: s["history"].append(dict(s["history"][-1], epoch=3)), "step 3 of epoch 4"),
        (lambda s: s["history"].reverse(), "must have a row for each epoch"),
        (_set("history", 0, "test_accuracy", value=float("nan")), "a row for each epoch"),
        (_set("history", 0, value=7), "must have a row for each epoch"),
        (_set("scheduler", "last_epoch", value=24), "its schedule is not at its position"),
        (_set("scheduler", "last_epoch", value=-1), "its schedule is not at its position"),
        (_set("scheduler", "last_epoch", value=0), "its schedule is not at its position"),
        (_set("optimizer", "state", value={}), "its momenta are missing"),
        (_without_momenta, "its momenta are missing"),
        (_with("model", "features.conv0.weight", torch.Tensor.int), "must be of torch.float32"),
        (_with("model", "features.conv0.weight", torch.Tensor.bool), "must be of torch.float32"),
        (_with("model", "features.conv0.weight", torch.Tensor.double), "must be of torch.float32"),
        (_with("model", "features.norm5.running_var", torch.neg), "variances below 0"),
        (_with_integer_momenta, "momentum 0 must be of torch.float32"),
        (_set("optimizer", "state", value=[]), "its momenta are not those of this model"),
        (_set("optimizer", "state", 999, value={}), "its momenta are not those of this model"),
        (_set("optimizer", "state", 0, "momentum_buffer", value=3.0), "momentum 0 must be of"),
        (_set("scheduler", value={}), "'last_epoch' is missing"),
        (_not_finite, "numbers that are not finite"),
        (_infinite_momentum, "numbers that are not finite"),
        (_short_momentum, r"momentum 0 must be of .* shape \[8, 1, 3, 3\], got .*shape \[1\]"),
        (_set("sums", value=[torch.tensor([0.0, float("inf")])]), "numbers that are not finite"),
        (_set("sums", value=[]), "out of range"),
        (_set("random", value=[]), "out of range"),
        (_set("random", 0, "cpu", value=torch.zeros(4)), "does not fit"),
        (_set("optimizer", "state", value=7), "does not fit"),
        (_set("optimizer", "state", 0, value={}), "'momentum_buffer' is missing"),
        (_set("model", value={}), "does not fit"),
        (_set("model", "classifier.bias", value=3), "does not fit"),
        (_remove("optimizer"), "'optimizer' is missing"),
        (_remove("random"), "'random' is missing"),
        (_remove("config"), "'config' is missing"),
        (_set("config", "recipe", "lr", value=torch.zeros(2)), "not JSON serializable"),
        (_set("config", "recipe", "lr", value="fast"), "lr must be a finite number above 0"),
        (_set("config", "recipe", "momentum", value=0.9), "unexpected keyword argument 'momentum'"),
        (_set("config", "recipe", value=None), "does not fit"),
    ],
)
def test_a_state_that_no_run_has_is_refused(dataset, stopped, tmp_path, change, words):
    folder = shutil.copytree(stopped, tmp_path / "run")
    state = torch.load(folder / "last.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "last.pt")
    before = contents(folder)
    with pytest.raises(ValueError, match=f"last.pt does not fit this run: .*{words}|{words}"):
        fit(dataset, folder, resume=True)
    assert before == contents(folder)


def test_settings_and_schedule_are_the_recipes_whatever_a_checkpoint_holds(
    dataset, stopped, tmp_path
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    state = torch.load(folder / "last.pt", weights_only=True)
    group, schedule = state["optimizer"]["param_groups"][0], state["scheduler"]
    group |= {"lr": 7.0, "weight_decay": 0.5, "momentum": "none", "nesterov": []}
    schedule |= {"total_steps": "x", "_step_count": [], "_last_lr": [9.0], "base_lrs": None}
    torch.save(state, folder / "last.pt")
    fit(dataset, folder, resume=True)
    fit(dataset, tmp_path / "whole", model=Acting(small(drop_rate=0.1), {}))
    assert_same(result(folder), result(tmp_path / "whole"))


def test_best_weights_are_no_run_to_go_on_with(dataset, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.copy(folder / "best.pt", folder / "last.pt")
    with pytest.raises(
        ValueError, match="last.pt does not fit this run: it holds no run to resume"
    ):
        fit(dataset, folder, resume=True)


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


@pytest.mark.parametrize("text", ['{"recipe"', "[]", "3", "[" * 100_000, '"text"'])
def test_a_damaged_configuration_is_named(dataset, stopped, tmp_path, text):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json( is not the configuration of a run|$)"):
        fit(dataset, folder, resume=True)


# ------------------------------------------------------------------------------ changed on purpose


def test_more_epochs_need_to_be_insisted_on(dataset, finished, tmp_path, caplog):
    folder = shutil.copytree(finished, tmp_path / "run")
    more = dataclasses.replace(RECIPE, epochs=5)
    with pytest.raises(ValueError, match="epochs was 3 and is now 5; .*--allow-changes"):
        fit(dataset, folder, more, resume=True)
    assert contents(folder) == contents(finished)

    with caplog.at_level(logging.WARNING):
        history = fit(dataset, folder, more, resume=True, allow_changes=True)
    assert "recipe.epochs was 3 and is now 5; from here on its results are no longer" in caplog.text
    assert history[:3] == run_folder.read_checkpoint(finished / "last.pt")["history"]
    # The rest of the run has the rate that it has in one of five epochs.
    whole = fit(dataset, tmp_path / "five", more)
    assert [row["lr"] for row in history[3:]] == pytest.approx([row["lr"] for row in whole[3:]])

    config = run_folder.read_config(folder)
    assert config["recipe"]["epochs"] == 5
    assert config["id"] == run_folder.read_config(finished)["id"]
    changed = ["recipe.epochs was 3 and is now 5"]
    assert config["changes"] == [{"epoch": 4, "step": 0, "changed": changed}]
    before = contents(folder)
    fit(dataset, folder, more, resume=True)  # from now on it is the run's
    assert contents(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.02},
        {"schedule": "cosine"},
        {"schedule": "step"},
        {"weight_decay": 0.1},
        {"augment": ()},
        {"amp": "fp16"},
        {"clip_norm": 0.1},
        {"channels_last": False},
    ],
)
def test_a_changed_recipe_holds_from_there_on(dataset, stopped, tmp_path, change):
    folder = shutil.copytree(stopped, tmp_path / "run")
    recipe = dataclasses.replace(RECIPE, **change)
    model = small(drop_rate=0.1)
    history = fit(dataset, folder, recipe, model, resume=True, allow_changes=True)
    assert len(history) == 3
    whole = fit(dataset, tmp_path / "whole", recipe)
    assert history[-1]["lr"] == pytest.approx(whole[-1]["lr"])
    group = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == recipe.weight_decay


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 2}, "its position is step 3 of epoch 3, and the run has 2 epochs"),
        ({"batch_size": 10}, "batch_size can change only between epochs"),
        ({"seed": 1}, "seed can change only between epochs"),
    ],
)
def test_some_changes_make_no_sense(dataset, stopped, tmp_path, change, words):
    folder = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(ValueError, match=words):
        fit(dataset, folder, dataclasses.replace(RECIPE, **change), resume=True, allow_changes=True)
    assert contents(folder) == contents(stopped)


def edited(folder, change):
    """Let the run in `folder` be, by its own account, of another device or number of processes."""
    state = torch.load(folder / "last.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "last.pt")
    (folder / "config.json").write_text(json.dumps(state["config"]))


def of_a_gpu(state):
    state["config"]["device"] = "cuda"
    state["random"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)


def of_two_processes(state):
    state["config"]["processes"] = 2
    state["random"] *= 2
    state["sums"] = [state["sums"][0] / 4, state["sums"][0] * 3 / 4]


def test_another_device_needs_to_be_insisted_on(dataset, stopped, tmp_path, caplog):
    """A run that was begun on a GPU, by its own account, goes on here."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    edited(folder, of_a_gpu)
    before = run_folder.read_run(folder)["history"]
    with pytest.raises(ValueError, match="device was 'cuda' and is now 'cpu'; .*--allow-changes"):
        fit(dataset, folder, resume=True)
    history = fit(dataset, folder, resume=True, allow_changes=True)
    assert (
        "device was 'cuda' and is now 'cpu'; from here on its results are no longer" in caplog.text
    )
    assert history[:2] == before and len(history) == 3
    assert run_folder.read_config(folder)["device"] == "cpu"


@pytest.mark.parametrize("change", [of_a_gpu, of_two_processes])
def test_where_nothing_is_random_another_device_trains_the_same(dataset, tmp_path, change):
    """Also the epoch that was under way is summed up whole."""
    recipe = Recipe(epochs=2, batch_size=20)
    whole = fit(dataset, None, recipe, small())
    with pytest.raises(KeyboardInterrupt):
        fit(dataset, tmp_path / "run", recipe, Acting(small(), {13: interrupt}))
    edited(tmp_path / "run", change)
    history = fit(dataset, tmp_path / "run", recipe, small(), resume=True, allow_changes=True)
    for row in whole + history:
        del row["seconds"]
    assert history == [pytest.approx(row, rel=1e-5) for row in whole]


@pytest.mark.parametrize("change", [of_a_gpu, of_two_processes])
def test_on_another_device_random_numbers_begin_anew(dataset, stopped, tmp_path, change):
    def draws(folder, **options):
        drawn, model = [], small(drop_rate=0.1)
        model.register_forward_pre_hook(
            lambda m, inputs: drawn.append(torch.rand(1).item()) if m.training else None
        )
        fit(dataset, folder, model=model, **options)
        return drawn

    before, after = draws(None), []
    for name in ("a", "b"):
        folder = shutil.copytree(stopped, tmp_path / name)
        edited(folder, change)
        after.append(draws(folder, resume=True, allow_changes=True))
    assert after[0] == after[1] and len(after[0]) == 7
    assert not set(before) & set(after[0])


def test_a_run_goes_on_without_its_best_weights_if_told(dataset, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "best.pt").unlink()
    history = fit(dataset, folder, resume=True, allow_changes=True)
    best = run_folder.read_checkpoint(folder / "best.pt")
    assert best["metrics"] == history[-1]


# ------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("left", ["nothing", "an older one"])
def test_the_best_weights_are_right_after_a_crash_before_they_were_written(dataset, tmp_path, left):
    recipe = Recipe(epochs=1, batch_size=100)
    fit(dataset, tmp_path / "run", recipe)
    expected = contents(tmp_path / "run")
    if left == "nothing":
        (tmp_path / "run" / "best.pt").unlink()
    else:
        state = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
        state["metrics"]["test_accuracy"] = 0.0
        state["model"]["classifier.bias"].zero_()
        torch.save(state, tmp_path / "run" / "best.pt")
    for name in ("metrics.csv", "curves.png"):
        (tmp_path / "run" / name).unlink()
    fit(dataset, tmp_path / "run", recipe, resume=True)
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert best["metrics"] == last["history"][0]
    assert all(torch.equal(best["model"][key], value) for key, value in last["model"].items())
    assert contents(tmp_path / "run").keys() == expected.keys()


@pytest.mark.parametrize("name", ["metrics.csv", "curves.png", "best.pt", "config.json"])
def test_what_is_for_people_may_fail_and_costs_one_warning(dataset, tmp_path, caplog, name):
    def block():  # a folder of that name: no file can take its place
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name).mkdir()

    history = fit(dataset, tmp_path / "run", model=Acting(small(drop_rate=0.1), {2: block}))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert f"the run continues, but {name} could not be written: " in warnings[0]
    assert run_folder.read_checkpoint(tmp_path / "run" / "last.pt")["history"] == history
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == set(run_folder.FILES)


def test_a_drawing_that_fails_does_not_end_a_run(tmp_path):
    """As on a machine with a backend of matplotlib that it lacks."""
    command = [sys.executable, "-m", "densenet_tutorial", "train", "--device", "cpu", "--quiet"]
    command += [
        "--blocks",
        "1",
        "--growth-rate",
        "2",
        "--bn-size",
        "1",
        "--epochs",
        "2",
        "--batch-size",
        "2500",
    ]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"MPLBACKEND": "nonsense"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run continues, but curves.png could not be written") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "curves.png").exists()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_is_intact(dataset, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    before = contents(folder)
    # No file may grow past 10 kB: to the program, this is a disk that fills up during a write.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="not written: .*last.pt"):
            fit(dataset, folder, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(folder) == before
    fit(dataset, folder, resume=True)


# ------------------------------------------------------------------------------ no longer finite


def not_finite(model, name="classifier.weight"):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = float("inf")


def no_gradient(model):
    model.classifier.bias.register_hook(lambda gradient: gradient * float("nan"))


def stop_words(epoch, step):
    return f"not finite any more in epoch {epoch}, after step {step}: a smaller lr than 0.1"


@pytest.mark.parametrize(
    "way", [not_finite, no_gradient, lambda m: not_finite(m, "features.conv0.weight")]
)
@pytest.mark.parametrize("step", [11, 15, 20])
def test_a_loss_that_is_not_finite_stops_the_run_and_the_checkpoint_is_kept(
    dataset, tmp_path, step, way
):
    model = small()
    with pytest.raises(ValueError, match=stop_words(2, 10)):
        fit(dataset, tmp_path / "run", model=Acting(model, {step: lambda: way(model)}))
    state = run_folder.read_run(tmp_path / "run")
    assert (len(state["history"]), state["step"]) == (1, 0)
    fit(dataset, tmp_path / "run", resume=True, model=Acting(small(), {}))
    fit(dataset, tmp_path / "whole", model=Acting(small(), {}))
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


def test_a_stopped_run_does_not_keep_weights_that_are_not_finite(dataset, tmp_path):
    model = small()
    actions = {13: lambda: [no_gradient(model), interrupt()]}
    with pytest.raises(ValueError, match=stop_words(2, 3)):
        fit(dataset, tmp_path / "run", model=Acting(model, actions))
    assert run_folder.read_run(tmp_path / "run")["step"] == 0


def test_a_loss_that_is_not_finite_is_noticed_within_an_epoch(dataset, tmp_path):
    model = small()
    acting = Acting(model, {2: lambda: not_finite(model)})
    with pytest.raises(ValueError, match=stop_words(1, 50)):
        fit(dataset, None, Recipe(epochs=1, batch_size=2), acting)  # 100 steps
    assert acting.steps == 50


def test_weights_that_are_not_finite_are_no_start(dataset, tmp_path):
    model = small()
    not_finite(model)
    with pytest.raises(ValueError, match=stop_words(1, 0)):
        fit(dataset, tmp_path / "run", model=model)
    assert not list((tmp_path / "run").glob("*"))


def test_a_learning_rate_that_is_far_too_high_is_said_so(dataset, tmp_path):
    with pytest.raises(ValueError, match="a smaller lr than 1e[+]30 may help, or clip_norm"):
        fit(dataset, tmp_path / "run", Recipe(epochs=2, batch_size=20, lr=1e30))


def test_a_copy_of_a_state_goes_on_like_the_original(dataset):
    """:class:`Training`'s state by itself, without a folder."""
    recipe = Recipe(epochs=1, batch_size=20)
    one = training.Training(small(), dataset, recipe)
    for batch in list(one.batches())[:3]:
        one.take_step(batch)
    state = copy.deepcopy(one.state_dict())
    other = training.Training(small(), dataset, recipe)
    other.load_state_dict(state)
    for run in (one, other):
        run.take_step(next(run.batches()))
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
