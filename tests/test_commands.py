"""The commands of `python -m densenet_tutorial`, run in this process."""

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from densenet_tutorial import data, densenet, memory, network, training, weights
from densenet_tutorial.__main__ import main
from densenet_tutorial.training import run_folder
from densenet_tutorial.utils import options

TRAIN = [
    *("train", "--device", "cpu", "--quiet", "--model", "densenet_bc", "--blocks", "1,1,1"),
    *("--growth-rate", "2", "--bn-size", "1", "--epochs", "1", "--batch-size", "500"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    main([*TRAIN, "--seed", "11", "--drop-rate", "0.1", "--output", str(folder)])
    return folder


def error_of(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_train_says_how_it_ended(tmp_path, capsys):
    main([*TRAIN, "--output", str(tmp_path / "b")])
    assert re.fullmatch(
        r"test accuracy \d+\.\d\d%, loss \d\.\d{4} after 1 epochs; see .*b\n",
        capsys.readouterr().out,
    )


def test_train_keeps_what_it_was_told(run):
    config = run_folder.read_checkpoint(run / "last.pt")["config"]
    assert config["model"] == {
        "name": "densenet_bc",
        "num_classes": 10,
        "in_channels": 1,
        "block_config": [1, 1, 1],
        "growth_rate": 2,
        "bn_size": 1,
        "drop_rate": 0.1,
    }
    assert config["recipe"]["seed"] == 11
    assert config["recipe"]["weight_decay"] == 1e-4


def test_resume_needs_no_other_option_and_refuses_a_changed_one(run, capsys):
    main(["train", "--device", "cpu", "--quiet", "--resume", "--output", str(run)])
    assert "after 1 epochs" in capsys.readouterr().out
    errors = error_of(capsys, "train", "--device", "cpu", "--resume", "--output", run, "--lr", 0.2)
    assert "recipe.lr was 0.1 and is now 0.2" in errors
    errors = error_of(capsys, *TRAIN, "--output", run)
    assert "output must be a folder without a run" in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], "--epochs: must be a whole number of at least 1, got '0'"),
        (["--epochs", "1.5"], "--epochs: must be a whole number of at least 1, got '1.5'"),
        (["--lr", "fast"], "--lr: must be a finite number above 0, got 'fast'"),
        (["--lr", "nan"], "--lr: must be a finite number above 0, got 'nan'"),
        (
            ["--blocks", "2;2"],
            (
                "--blocks: must be a non-empty sequence, each element a whole number of at least "
                "1, with commas between them, got '2;2'"
            ),
        ),
        (["--blocks", "2,0"], "--blocks: must be a non-empty sequence"),
        (["--growth-rate", "-1"], "--growth-rate: must be a whole number of at least 1, got '-1'"),
        (
            ["--growth-rate", "none"],
            "--growth-rate: must be a whole number of at least 1, got 'none'",
        ),
        (["--model", "densenet"], "--model: must be one of 'densenet121', "),
        (
            ["--model", "densenet121", "--blocks", "6,12,24,16"],
            "model must be one for small images, got 'densenet121'",
        ),
        (
            ["--dataset", "mnist"],
            (
                "--dataset: must be one of fashion-mini, digits, fashion-mnist, cifar10, cifar100, "
                "or a folder of images by class, got 'mnist'"
            ),
        ),
        (["--dataset", ""], "--dataset: must be one of fashion-mini"),
        (
            ["--image-size", "8"],
            "image_size is for a folder of images by class, got 'fashion-mini'",
        ),
        (
            ["--schedule", "linear"],
            "--schedule: must be one of 'step', 'cosine', 'one-cycle', got 'linear'",
        ),
        (
            ["--augment", "crop", "spin"],
            (
                "--augment: must be a sequence, each element one of 'crop', 'flip', 'cutout', "
                "got 'spin'"
            ),
        ),
        (["--amp", "int8"], "--amp: must be one of 'bf16', 'fp16', or None, got 'int8'"),
        (["--memory-efficient", "no"], "--memory-efficient: must be one of 'checkpoint', "),
        (["--batch-size", "5001"], "batch_size must be at most the 5000 training images, got 5001"),
        (["--weights", "nonsense"], "weights must be "),
    ],
)
def test_train_names_a_bad_option_and_writes_nothing(tmp_path, capsys, options, words):
    errors = error_of(capsys, *TRAIN, "--output", tmp_path / "run", *options)
    assert words in errors
    assert not (tmp_path / "run").exists()


def test_every_option_of_a_recipe_reaches_it(tmp_path):
    words = (
        "--batch-size 1000 --lr 0.25 --schedule cosine --weight-decay 0.01 --label-smoothing 0.2 "
        "--augment flip cutout --clip-norm 2 --amp --no-channels-last --seed 7"
    )
    main([*TRAIN, *words.split(), "--output", str(tmp_path / "run")])
    recipe = run_folder.read_config(tmp_path / "run")["recipe"]
    expected = training.Recipe(
        epochs=1,
        batch_size=1000,
        lr=0.25,
        schedule="cosine",
        weight_decay=0.01,
        label_smoothing=0.2,
        augment=("flip", "cutout"),
        clip_norm=2.0,
        amp="bf16",
        channels_last=False,
        seed=7,
    )
    assert training.Recipe(**recipe) == expected
    assert options.as_words(recipe, training.Recipe) == [
        "--epochs",
        "1",
        *words.replace("2 --amp", "2.0 --amp bf16").split(),
    ]


@pytest.mark.parametrize(
    "words", ["--amp none --clip-norm none", "--augment", "--amp fp16 --amp none"]
)
def test_what_can_be_none_is_called_so(tmp_path, words):
    main([*TRAIN, *words.split(), "--output", str(tmp_path / "run")])
    recipe = training.Recipe(**run_folder.read_config(tmp_path / "run")["recipe"])
    assert recipe == training.Recipe(epochs=1, batch_size=500)


def test_a_model_without_bottlenecks(tmp_path):
    main([*TRAIN, "--bn-size", "none", "--output", str(tmp_path / "run")])
    state = run_folder.read_checkpoint(tmp_path / "run" / "last.pt")["model"]
    assert not any("conv2" in name for name in state)


def test_the_command_of_bundled_weights_is_made_from_their_configuration():
    from make_weights import command

    from densenet_tutorial.__main__ import _parser

    results = weights.results("fashion-mnist-small")
    made, stored = (
        vars(_parser().parse_args(shlex.split(line)[3:]))
        for line in (command(results["config"]), results["command"])
    )
    assert made.pop("model", "densenet_bc") == stored.pop("model")
    assert made == stored


def test_what_can_be_chosen_is_listed_by_a_function(monkeypatch, capsys):
    """A data set, schedule or augmentation that is added in one place is in the help."""
    from densenet_tutorial.data import datasets
    from densenet_tutorial.training import augmentation, recipe

    def listed():
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        return " ".join(capsys.readouterr().out.split())

    text = listed()
    lists = [
        [*data.list_datasets(), "or a FOLDER of images by class"],
        training.list_schedules(),
        training.list_augmentations(),
        network.list_models(),
        [mode for mode in memory.MODES if isinstance(mode, str)],
    ]
    for names in lists:
        assert ", ".join(names) in text
    for field in dataclasses.fields(training.Recipe):
        assert options.flag(field) in text
    monkeypatch.setitem(recipe.SCHEDULES, "constant", recipe.step)
    monkeypatch.setitem(augmentation.AUGMENTATIONS, "turn", augmentation.flip)
    monkeypatch.setitem(datasets.LOADERS, "shells", datasets.LOADERS["digits"])
    assert "step, cosine, one-cycle, constant" in listed()
    assert "crop, flip, cutout, turn" in listed()
    assert data.list_datasets()[-1] == "shells"
    assert data.load_dataset("shells").name == "digits"
    assert training.Recipe(schedule="constant", augment=["turn"]).schedule == "constant"


# ------------------------------------------------------------------------------ a folder of images


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of grey images of two classes, that can be told apart."""
    root = tmp_path_factory.mktemp("images") / "pets"
    for shade, name in ((40, "cat"), (200, "dog")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("L", (12, 12), shade + 2 * i)
            image.paste(0, (0, 0, 6, 6))
            image.save(root / name / f"{i}.png")
    return root


PETS = [
    *("train", "--device", "cpu", "--quiet", "--blocks", "1,1", "--growth-rate", "2"),
    *("--bn-size", "1", "--batch-size", "4", "--epochs", "4"),
]


@pytest.fixture(scope="module")
def pets_run(pets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets") / "run"
    main([*PETS, "--dataset", str(pets), "--output", str(folder)])
    return folder


def test_a_folder_is_trained_on_and_described(pets, pets_run):
    config = run_folder.read_config(pets_run)
    dataset = data.load_folder(pets, progress=False)
    assert config["dataset"] == dataset.metadata()
    assert config["dataset"]["image_shape"] == [1, 12, 12]
    assert config["dataset"]["classes"] == ["cat", "dog"]
    assert config["model"]["num_classes"] == 2 and config["model"]["in_channels"] == 1
    assert run_folder.read_run(pets_run)["history"][-1]["test_accuracy"] == 1.0


def test_evaluate_and_predict_find_the_folders_images_as_they_were_trained_on(
    pets, pets_run, tmp_path, capsys
):
    main(["evaluate", str(pets_run / "last.pt"), "--device", "cpu"])
    assert "pets: 4 test images, accuracy 100.00%" in capsys.readouterr().out
    wide = tmp_path / "wide.png"
    Image.open(pets / "dog" / "3.png").convert("RGB").resize((48, 48)).save(wide)
    main(["predict", str(pets_run / "last.pt"), str(wide), str(pets / "cat" / "3.png")])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r".*wide.png: dog ", lines[0]) and re.match(r".*3.png: cat ", lines[1])


def test_evaluate_takes_another_folder_of_the_same_classes(pets, pets_run, tmp_path, capsys):
    other = shutil.copytree(pets, tmp_path / "other")
    for path in other.rglob("*.png"):
        Image.open(path).convert("RGB").resize((30, 30)).save(path)
    main(["evaluate", str(pets_run / "last.pt"), "--device", "cpu", "--dataset", str(other)])
    assert "other: 4 test images, accuracy 100.00%" in capsys.readouterr().out
    (other / "dog").rename(other / "wolf")
    errors = error_of(capsys, "evaluate", pets_run / "last.pt", "--dataset", other)
    assert "--dataset must be one with the classes of 'pets'" in errors


def test_a_run_on_a_folder_goes_on(pets, pets_run, tmp_path):
    folder = shutil.copytree(pets_run, tmp_path / "run")
    words = ["train", "--device", "cpu", "--quiet", "--resume", "--output", str(folder)]
    main([*words, "--epochs", "5", "--allow-changes"])
    assert len(run_folder.read_run(folder)["history"]) == 5


def test_a_folder_that_has_moved_is_the_same_and_one_that_has_changed_is_not(
    pets, pets_run, tmp_path, capsys
):
    folder = shutil.copytree(pets_run, tmp_path / "run")
    moved = shutil.copytree(pets, tmp_path / "elsewhere" / "pets")
    words = ["train", "--device", "cpu", "--quiet", "--resume", "--output", str(folder)]
    main([*words, "--dataset", str(moved)])
    (moved / "cat" / "0.png").unlink()
    assert "dataset.train_images was 16 and is now 15" in error_of(
        capsys, *words, "--dataset", moved
    )


def test_reading_a_folder_shows_progress(pets, tmp_path, capsys):
    words = [word for word in PETS if word != "--quiet"]
    main([*words, "--dataset", str(pets), "--image-size", "8", "--output", str(tmp_path / "run")])
    assert "reading images: 100%" in capsys.readouterr().err
    assert run_folder.read_config(tmp_path / "run")["dataset"]["image_shape"] == [1, 8, 8]


# ------------------------------------------------------------------------------ from weights


def test_training_starts_from_weights_and_the_model_is_theirs(run, tmp_path):
    source = run_folder.read_checkpoint(run / "last.pt")
    words = ["train", "--device", "cpu", "--quiet", "--epochs", "1", "--batch-size", "5000"]
    weights = ["--weights", str(run / "last.pt")]
    main([*words, *weights, "--lr", "1e-9", "--output", str(tmp_path / "same")])
    state = run_folder.read_checkpoint(tmp_path / "same" / "last.pt")
    model = source["config"]["model"]
    same_options = {
        "stem": "cifar",
        "num_init_features": len(state["model"]["features.conv0.weight"]),
    }
    assert state["config"]["model"] == model | same_options
    assert state["config"]["initial_weights"] == str(run / "last.pt")
    for name in ("features.conv0.weight", "classifier.weight"):
        torch.testing.assert_close(state["model"][name], source["model"][name])

    # The same number of classes, but others: their classifier is not kept.
    words[words.index("5000")] = "700"
    main([*words, *weights, "--lr", "1e-9", "--dataset", "digits", "--output", str(tmp_path / "d")])
    state = run_folder.read_checkpoint(tmp_path / "d" / "last.pt")["model"]
    torch.testing.assert_close(
        state["features.conv0.weight"], source["model"]["features.conv0.weight"]
    )
    assert not torch.allclose(state["classifier.weight"], source["model"]["classifier.weight"])


def test_from_bundled_weights_to_images_of_ones_own(pets, tmp_path):
    words = ["train", "--device", "cpu", "--quiet", "--epochs", "1", "--batch-size", "4"]
    words += ["--dataset", str(pets), "--image-size", "8", "--lr", "1e-9"]
    main([*words, "--weights", "fashion-mnist-small", "--output", str(tmp_path / "run")])
    config = run_folder.read_config(tmp_path / "run")
    assert config["model"]["num_classes"] == 2
    model = densenet("densenet_bc", weights="fashion-mnist-small")
    again = densenet("densenet_bc", weights=tmp_path / "run" / "last.pt")
    torch.testing.assert_close(
        again.features.conv0.weight, model.features.conv0.weight, rtol=1e-4, atol=1e-6
    )


def test_a_resumed_run_does_not_need_the_weights_that_it_began_with(run, tmp_path, capsys):
    weights = shutil.copy(run / "last.pt", tmp_path / "weights.pt")
    words = ["train", "--device", "cpu", "--quiet", "--output", str(tmp_path / "run")]
    main([*words, "--epochs", "1", "--batch-size", "5000", "--weights", str(weights)])
    (tmp_path / "weights.pt").unlink()
    capsys.readouterr()
    main([*words, "--resume"])
    assert "after 1 epochs" in capsys.readouterr().out
    assert "initial_weights was" in error_of(
        capsys, *words, "--resume", "--weights", run / "best.pt"
    )


def test_weights_that_do_not_say_of_which_model_they_are_need_to_be_told(tmp_path, capsys):
    torch.save(densenet("densenet_bc", block_config=(1,)).state_dict(), tmp_path / "bare.pt")
    words = ["train", "--device", "cpu", "--quiet", "--epochs", "1", "--batch-size", "5000"]
    words += ["--weights", str(tmp_path / "bare.pt"), "--output", str(tmp_path / "run")]
    assert "--model must be given" in error_of(capsys, *words)
    words += ["--model", "densenet_bc", "--blocks", "1"]
    main(words)


# ------------------------------------------------------------------------------ errors and Ctrl-C


def test_an_error_of_ours_is_a_sentence(run, tmp_path, capsys):
    errors = error_of(capsys, *TRAIN, "--output", run)
    assert re.fullmatch(r"python -m densenet_tutorial: error: output must be [^\n]*\n", errors)
    (tmp_path / "file").write_text("")
    errors = error_of(capsys, *TRAIN, "--output", tmp_path / "file")
    assert re.fullmatch(r"python -m densenet_tutorial: error: .*file: output: [^\n]*\n", errors)


@pytest.mark.parametrize(
    "bug",
    [
        lambda *args, **kwargs: int("seven"),  # a ValueError of Python's
        lambda *args, **kwargs: (1, 2, 3).index(4),
        lambda *args, **kwargs: torch.zeros(2).reshape(3),
        lambda *args, **kwargs: torch.optim.SGD([], lr=1),  # a ValueError of torch's
        lambda *args, **kwargs: Path("/no/such/file").read_text(),  # an OSError that nobody foresaw
        lambda *args, **kwargs: {}["key"],
    ],
)
def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch, bug):
    from densenet_tutorial import __main__ as program

    monkeypatch.setattr(program, "fit", bug)
    with pytest.raises((ValueError, RuntimeError, OSError, KeyError)):
        main([*TRAIN, "--output", str(tmp_path / "run")])


def press_ctrl_c():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def stopped(argv, seconds):
    """What is printed when somebody presses Ctrl-C after so many seconds."""
    timer = threading.Timer(seconds, press_ctrl_c)
    timer.start()
    try:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
    finally:
        timer.cancel()
    assert stop.value.code == 130


def test_ctrl_c_before_training_and_in_evaluate_is_no_traceback(run, tmp_path, capsys, monkeypatch):
    from densenet_tutorial.data import datasets

    load = datasets.LOADERS["fashion-mini"]

    def slowly(root):
        time.sleep(5)
        return load(root)

    monkeypatch.setitem(datasets.LOADERS, "fashion-mini", slowly)
    for argv in (
        [*TRAIN, "--output", tmp_path / "run"],
        ["evaluate", run / "last.pt", "--device", "cpu"],
    ):
        stopped(argv, 0.7)
        assert "stopped" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["numpy", "torch", "torch.nn", "densenet_tutorial.training"])
@pytest.mark.parametrize("command", ["train", "evaluate", "--help"])
def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path, name, command):
    """Python imports sitecustomize first; here it presses Ctrl-C when a library is looked for."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Press:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {name!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "densenet_tutorial", command],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_ctrl_c_says_how_to_go_on_and_that_does(tmp_path, capsys):
    folder = tmp_path / "a run"
    words = [*TRAIN, "--epochs", "1000", "--output", folder]
    thread = threading.Thread(target=lambda: [wait_for(folder / "last.pt"), press_ctrl_c()])
    thread.start()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    thread.join()
    assert stop.value.code == 130
    said = capsys.readouterr().err
    found = re.search(r"stopped after step \d+ of epoch \d+; to resume: (.*)\n", said)
    command = shlex.split(found[1])
    assert command[:3] == ["python", "-m", "densenet_tutorial"]
    more = ["--device", "cpu", "--quiet", "--allow-changes", "--epochs", "1"]
    state = run_folder.read_run(folder)
    more[-1] = str(len(state["history"]) + 1)
    main([*command[3:], *more])
    assert len(run_folder.read_run(folder)["history"]) == len(state["history"]) + 1


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.3)


def test_the_usage_shows_the_name_that_was_called(monkeypatch, capsys):
    for called, shown in (
        ("/usr/bin/densenet-tutorial", "densenet-tutorial"),
        (r"densenet-tutorial.exe", "densenet-tutorial"),
        ("/lib/densenet_tutorial/__main__.py", "python -m densenet_tutorial"),
    ):
        monkeypatch.setattr("sys.argv", [called])
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        text = capsys.readouterr().out
        assert text.startswith(f"usage: {shown} train")
        assert f"    {shown} train --output runs/a --resume" in text
        with pytest.raises(SystemExit):
            main(["predict", "--help"])
        assert f"  {shown} predict imagenet cat.jpg" in capsys.readouterr().out


def test_the_command_has_a_name_of_its_own():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["densenet-tutorial"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config["model"].update(depth=7), "the run's model cannot be built: "),
        (
            lambda config: config.update(dataset=None),
            "must keep its configuration .*dataset was None",
        ),
        (
            lambda config: config["dataset"].pop("image_shape"),
            "metadata must be the metadata.. of a data set",
        ),
        (lambda config: config["recipe"].update(lr=-1), "lr must be a finite number above 0"),
    ],
)
def test_a_run_of_another_version_is_refused_in_words(run, tmp_path, capsys, change, words):
    folder = shutil.copytree(run, tmp_path / "run")
    state = torch.load(folder / "last.pt", weights_only=True)
    change(state["config"])
    torch.save(state, folder / "last.pt")
    (folder / "config.json").write_text(json.dumps(state["config"]))
    errors = error_of(capsys, "train", "--device", "cpu", "--resume", "--output", folder)
    assert re.search(words, errors)


def test_an_output_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert str(tmp_path / "run") in error_of(capsys, *TRAIN, "--output", tmp_path / "run")


def test_evaluate_agrees_with_the_log(run, capsys):
    main(["evaluate", str(run / "last.pt"), "--device", "cpu"])
    row = run_folder.read_checkpoint(run / "last.pt")["history"][-1]
    assert capsys.readouterr().out == (
        f"fashion-mini: 1000 test images, accuracy {row['test_accuracy']:.2%}, "
        f"loss {row['test_loss']:.4f}\n"
    )


def test_evaluate_names_what_it_cannot_read(tmp_path, capsys):
    assert "there is no such file" in error_of(capsys, "evaluate", tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    assert "text.pt cannot be used: it cannot be read" in error_of(
        capsys, "evaluate", tmp_path / "text.pt"
    )


def test_predict_names_classes_and_draws_them(run, tmp_path, capsys):
    dataset = data.load_dataset("fashion-mini")
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(dataset.test_images[i, 0].numpy()).save(paths[-1])
    picture = tmp_path / "predictions.png"
    main(["predict", str(run / "last.pt"), *paths, "--device", "cpu", "--output", str(picture)])
    lines = capsys.readouterr().out.splitlines()

    from densenet_tutorial import densenet

    model = densenet("densenet_bc", weights=run / "last.pt")
    best = training.predict(model, dataset, dataset.test_images[:2]).softmax(1).max(1)
    for line, path, p, i in zip(lines, paths, best.values, best.indices, strict=True):
        assert line.startswith(f"{path}: {dataset.classes[i]} {p:.1%}, ")
        assert line.count("%") == 3
    assert Image.open(picture).size[0] > 200


def test_predict_takes_colour_pictures_of_any_size(run, tmp_path, capsys):
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "red.png")
    main(["predict", str(run / "last.pt"), str(tmp_path / "red.png"), "--invert", "--top", "1"])
    assert capsys.readouterr().out.count("%") == 1


def test_a_file_that_is_no_picture_costs_its_own_line(run, tmp_path, capsys):
    """More pictures than fit into a batch, a batch of broken ones alone, and one file twice."""
    whole, broken, drawn = (str(tmp_path / name) for name in ("a.png", "b.png", "drawn.png"))
    Image.new("L", (28, 28), 90).save(whole)
    (tmp_path / "b.png").write_text("no picture")
    none = str(tmp_path / "none.png")
    paths = [whole, broken, *[whole] * 30, *[broken] * 40, whole, none]
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(run / "last.pt"), *paths, "--top", "1", "--output", drawn])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == [whole] * 32
    complaints = printed.err.splitlines()
    assert len(complaints) == 42
    assert all(f"{broken} cannot be read as an image: it is none" in c for c in complaints[:-1])
    assert complaints[-1] == f"{none} cannot be read as an image: there is no such file"
    assert Image.open(drawn).size[1] > 500  # 32 pictures in seven rows

    (tmp_path / "drawn.png").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(run / "last.pt"), broken, "--output", drawn])
    assert stop.value.code == 1
    assert not (tmp_path / "drawn.png").exists()


def test_predict_draws_the_first_hundred(run, tmp_path, capsys):
    path, drawn = str(tmp_path / "a.png"), tmp_path / "drawn.png"
    Image.new("L", (28, 28), 90).save(path)
    main(["predict", str(run / "last.pt"), *[path] * 130, "--output", str(drawn)])
    assert len(capsys.readouterr().out.splitlines()) == 130
    assert 3000 < Image.open(drawn).size[1] < 4500  # 20 rows of about 200, and not 26


def test_predict_holds_a_few_pictures_at_a_time(run, tmp_path):
    pytest.importorskip("resource", reason="no way to ask how large a process was")
    picture = tmp_path / "large.png"
    Image.new("RGB", (1500, 1500)).save(picture)  # 6.4 MiB of pixels
    program = f"""
import contextlib, io, resource
from densenet_tutorial.__main__ import main
for count in (40, 100):
    with contextlib.redirect_stdout(io.StringIO()):
        main(["predict", {str(run / "last.pt")!r}, *[{str(picture)!r}] * count])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    few, many = map(int, python("-c", program).stdout.split())
    assert many - few < 100 * 1024  # KiB; 60 more of them are 386 MiB


def test_errors_name_a_way_out_that_the_command_line_has(run, tmp_path, capsys):
    """And call things as the command line does."""
    checkpoint = run_folder.read_checkpoint(run / "best.pt")
    for key in ("classifier.weight", "classifier.bias"):
        del checkpoint["model"][key]
    torch.save(checkpoint, tmp_path / "trunk.pt")
    data.photograph("cat").save(tmp_path / "cat.png")
    picture = tmp_path / "cat.png"
    last = run / "last.pt"
    for argv, words in [
        (["predict", "imagenet", picture], "--model must be one of densenet121, densenet161"),
        (["predict", "imagenet", picture, "--model", "resnet"], "'imagenet', got 'resnet'"),
        (["predict", tmp_path / "trunk.pt", picture], "trunk.pt' have no classifier"),
        (
            ["predict", last, picture, "--top", 0],
            "--top must be a whole number of at least 1, got 0",
        ),
        (["evaluate", "imagenet"], "ImageNet's images are not here"),
        (["evaluate", "DEFAULT"], "weights 'DEFAULT' cannot be evaluated: ImageNet's images"),
        (["evaluate", "DenseNet121_Weights.DEFAULT"], "ImageNet's images are not here"),
        (["predict", "IMAGENET1K_V1", picture], "--model must be one of densenet121, densenet161"),
        (["evaluate", tmp_path / "trunk.pt"], "trunk.pt' have no classifier"),
        (
            ["evaluate", last, "--dataset", "digits"],
            "--dataset must be one with the classes of 'fashion-mini', got 'digits'",
        ),
        (["evaluate", last, "--dataset", "mnist"], "--dataset must be one of 'fashion-mini', "),
        (
            ["predict", last, picture, "--model", "densenet121"],
            "--model must be 'densenet_bc' for weights",
        ),
        (["predict", last, picture, "--model", "resnet"], "--model must be one of 'densenet121', "),
        (["summary", "densenet"], "MODEL must be one of 'densenet121', "),
        (["summary", "--size", 10], "--size must be a whole number of at least 29, got 10"),
        (
            ["summary", "--num-classes", 0],
            "--num-classes must be a whole number of at least 1, got 0",
        ),
        (["summary", "--in-channels", -1], "--in-channels must be a whole number of at least 1"),
        (["summary", "--depth", 0], "--depth must be a whole number of at least 1, got 0"),
    ]:
        errors = error_of(capsys, *argv)
        assert words in errors
        assert "head=" not in errors and "Traceback" not in errors


def test_predict_knows_imagenets_pictures_and_classes(tmp_path, capsys, monkeypatch):
    """With a stand-in for the published file, which cannot be fetched where the tests run."""
    from densenet_tutorial import densenet121, weights

    standing_in = densenet121()
    torch.nn.init.zeros_(standing_in.classifier.weight)
    standing_in.classifier.bias.data = 20.0 * (torch.arange(1000) == 285)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    torch.save(standing_in.state_dict(), cache / "weights.pth")
    digits = hashlib.sha256((cache / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(weights.IMAGENET_FILES, "densenet121", f"densenet121-{digits}.pth")
    (cache / "weights.pth").rename(cache / f"densenet121-{digits}.pth")
    picture = str(tmp_path / "cat.png")
    data.photograph("cat").save(picture)

    drawn = tmp_path / "predictions.png"
    main(["predict", "imagenet", picture, "--model", "densenet121", "--output", str(drawn)])
    assert capsys.readouterr().out.startswith(f"{picture}: Egyptian cat 100.0%, ")
    assert Image.open(drawn).size[0] > 200
    assert "--model must be one of densenet121, densenet161" in error_of(
        capsys, "predict", "imagenet", picture, "--model", "densenet264"
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "summary", "env"])
def test_help_explains(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m densenet_tutorial {command}")
    assert len(text) > 80


def test_summary_counts(capsys):
    main(["summary", "densenet121", "--size", "64"])
    assert "Total params: 7,978,856" in capsys.readouterr().out


# ------------------------------------------------------------------------------ consoles


def python(*arguments, environment=None, stdout=subprocess.PIPE):
    """Python, run with `arguments` in its own process, with `environment` on top of ours."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | (environment or {}),
    )


def test_a_summary_goes_into_a_file_from_a_console_of_windows(tmp_path):
    module = ["-m", "densenet_tutorial", "summary", "densenet_bc", "--size", "32"]
    encoding = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    with open(tmp_path / "summary.txt", "wb") as file:
        ended = python(*module, environment=encoding, stdout=file)
    assert (ended.returncode, ended.stderr) == (0, b"")
    text = (tmp_path / "summary.txt").read_text(encoding="cp1252")
    assert "+-Linear: 1-2" in text and "Total params: 769,162" in text


ENCODINGS = ["cp1252", "ascii", "cp437", "utf-8"]


def printed_in(encoding, *argv):
    """The bytes that a command prints on a console with this encoding."""
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(console):
        main([str(a) for a in argv])
    return console.buffer.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_summary_can_be_printed_in_any_encoding(encoding):
    text = printed_in(encoding, "summary", "densenet_bc", "--size", 32).decode(encoding)
    tree = "├─Linear: 1-2" if encoding in ("cp437", "utf-8") else "+-Linear: 1-2"
    assert tree in text and "Total params: 769,162" in text


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_that_no_encoding_has_are_printed_all_the_same(run, tmp_path, encoding):
    name = os.fsencode(tmp_path) + b"/caf\xe9-\xe2\x82\xac.png"  # of two encodings
    with open(name, "wb") as file:
        Image.new("L", (28, 28), 90).save(file, "PNG")
    line = printed_in(encoding, "predict", run / "last.pt", os.fsdecode(name))
    assert b"/caf" in line and line.count(b"%") == 3


@pytest.mark.parametrize("command", [["env"], ["train", "--help"]])
def test_a_reader_that_goes_away_ends_a_command_quietly(command):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does once it has its line
    ended = python("-m", "densenet_tutorial", *command, stdout=writing)
    os.close(writing)
    assert ended.stderr == b""
    assert ended.returncode in (141, 0)  # 0: some versions of argparse do not mind


def test_a_full_disk_is_named():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no device that is always full")
    with open("/dev/full", "w") as full:
        ended = python("-m", "densenet_tutorial", "env", stdout=full)
    assert ended.returncode == 2
    assert b"No space left on device" in ended.stderr and b"Traceback" not in ended.stderr


def test_ctrl_c_is_no_traceback(run, tmp_path):
    Image.new("L", (28, 28), 90).save(tmp_path / "a.png")
    module = ["-m", "densenet_tutorial", "predict", run / "last.pt"]
    process = subprocess.Popen(
        [sys.executable, *module, *[tmp_path / "a.png"] * 20_000],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"stopped\n")


def test_what_ships_needs_no_home_folder(tmp_path):
    """As in a container whose user has no entry in the list of users, and no HOME."""
    Image.new("L", (28, 28), 90).save(tmp_path / "a.png")
    program = f"""
import pwd

def nobody(number):
    raise KeyError("getpwuid(): uid not found")

pwd.getpwuid = nobody
from densenet_tutorial.__main__ import main
main(["evaluate", "fashion-mnist-small", "--dataset", "fashion-mini"])
main(["predict", "fashion-mnist-small", {str(tmp_path / "a.png")!r}])
main(["evaluate", "fashion-mnist-small", "--dataset", "fashion-mnist"])
"""
    pytest.importorskip("pwd", reason="a home folder is looked up in another way here")
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    kept["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # or it looks for the fonts again
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, env=kept, capture_output=True, text=True
    )
    assert "fashion-mini: 1000 test images, " in ended.stdout and "a.png: " in ended.stdout
    assert ended.returncode == 2  # the larger sets need a folder, and say so
    assert "no home folder is known here to keep data sets in" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_weights_of_a_run_make_the_model_again(run):
    from densenet_tutorial import densenet

    model = densenet("densenet_bc", weights=run / "best.pt")
    state = run_folder.read_checkpoint(run / "best.pt")["model"]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="^name must be 'densenet_bc' for weights .*'densenet121'"):
        densenet("densenet121", weights=run / "best.pt")
    with pytest.raises(ValueError, match="best.pt cannot be used: it looks like"):
        densenet("densenet_bc", weights=run / "best.pt", growth_rate=13)
    with pytest.raises(ValueError, match="^weights must be .*or the path of a file, got 'no'"):
        densenet("densenet_bc", weights="no")
