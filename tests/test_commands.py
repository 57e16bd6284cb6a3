"""The commands of `python -m densenet_tutorial`, run in this process."""

import hashlib
import re

import pytest
import torch
from PIL import Image

from densenet_tutorial import data, training
from densenet_tutorial.__main__ import main
from densenet_tutorial.training import run_folder

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
        (["--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
        (["--blocks", "2;2"], "must be whole numbers with commas, such as 6,12,24,16; got '2;2'"),
        (["--growth-rate", "-1"], "growth_rate must be a whole number of at least 1, got -1"),
        (["--model", "densenet"], "name must be one of 'densenet121', "),
        (
            ["--model", "densenet121", "--blocks", "6,12,24,16"],
            "model must be one for small images, got 'densenet121'",
        ),
        (["--dataset", "mnist"], "name must be one of 'fashion-mini', "),
        (["--schedule", "linear"], "invalid choice: 'linear'"),
        (["--augment", "spin"], "invalid choice: 'spin'"),
        (["--batch-size", "5001"], "batch_size must be at most the 5000 training images, got 5001"),
    ],
)
def test_train_names_a_bad_option_and_writes_nothing(tmp_path, capsys, options, words):
    errors = error_of(capsys, *TRAIN, "--output", tmp_path / "run", *options)
    assert words in errors
    assert not (tmp_path / "run").exists()


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


def test_predict_names_what_is_no_picture(run, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no picture")
    errors = error_of(capsys, "predict", run / "last.pt", tmp_path / "a.png")
    assert "a.png cannot be read as a picture" in errors


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
    assert "got no model's name" in error_of(capsys, "predict", "imagenet", picture)
    assert "got the model 'densenet264'" in error_of(
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
