"""fit, evaluate and predict, on a task that takes seconds."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from densenet_tutorial import DenseNet, training
from densenet_tutorial.training import Recipe


def small(**options):
    torch.manual_seed(0)
    return DenseNet(4, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar", **options)


def test_fit_learns_and_reports_every_epoch(dataset):
    history = training.fit(
        small(), dataset, Recipe(epochs=5, batch_size=20, schedule="one-cycle"), progress=False
    )
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["test_accuracy"] > 0.3  # guessing: 0.1
    assert history[-1]["lr"] < 0.001
    assert all(row["seconds"] > 0 for row in history)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(dataset):
    def weights(seed):
        model = small()
        training.fit(model, dataset, Recipe(epochs=1, batch_size=20, seed=seed), progress=False)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_frozen_part_stays_as_it_is_though_the_rest_learns(dataset):
    model = small(drop_rate=0.3)
    training.freeze(model.features)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = dataset.normalize(dataset.test_images)
    features = model.eval().forward_features(x)
    training.fit(model, dataset, Recipe(epochs=2, batch_size=20), progress=False)
    model.train()
    assert model.training and not any(part.training for part in model.features.modules())
    changed = [
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    ]
    assert changed == ["classifier.weight", "classifier.bias"]
    torch.testing.assert_close(model.forward_features(x), features)
    assert not any(part.training for part in copy.deepcopy(model).train().features.modules())


def test_without_freeze_running_statistics_move_though_no_gradient_is_taken(dataset):
    model = small()
    model.features.requires_grad_(False)
    before = model.features.norm5.running_mean.clone()
    training.fit(model, dataset, Recipe(epochs=1, batch_size=20), progress=False)
    assert not torch.equal(model.features.norm5.running_mean, before)


def test_evaluate_agrees_with_a_sum_over_single_pictures(dataset):
    model = small().eval()
    loss, accuracy = training.evaluate(model, dataset)
    losses, right = [], 0
    with torch.no_grad():
        for image, label in zip(dataset.test_images, dataset.test_labels, strict=True):
            logits = model(dataset.normalize(image[None]))
            losses.append(nn.functional.cross_entropy(logits, label[None]).item())
            right += int(logits.argmax() == label)
    assert loss == pytest.approx(sum(losses) / 100, rel=1e-4)
    assert accuracy == pytest.approx(right / 100)


@pytest.mark.parametrize("mode", [True, False])
def test_predict_uses_eval_mode_and_leaves_the_model_as_it_was(dataset, mode):
    model = small(drop_rate=0.5).train(mode)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first = training.predict(model, dataset, dataset.test_images, batch_size=30)
    assert first.shape == (100, 10)
    torch.testing.assert_close(first, training.predict(model, dataset, dataset.test_images))
    assert model.training is mode
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("batch_size", 201),
        ("lr", 0),
        ("lr", "fast"),
        ("schedule", "cosin"),
        ("weight_decay", -1),
        ("label_smoothing", 1.5),
        ("augment", ("crop", "spin")),
        ("clip_norm", 0),
        ("amp", "int8"),
        ("seed", -1),
        ("sync_batch_norm", True),
    ],
)
def test_bad_arguments_are_named(dataset, name, value):
    wrong = value[-1] if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=f"^{name} must be .*{wrong}"):
        training.fit(small(), dataset, Recipe(**({"epochs": 1} | {name: value})), progress=False)


# ------------------------------------------------------------------------------ the recipe's options


def losses(dataset, model=None, **options):
    recipe = Recipe(**({"epochs": 2, "batch_size": 20} | options))
    history = training.fit(model or small(), dataset, recipe, progress=False)
    return [row["train_loss"] for row in history]


def wave(start, end, way):
    """The value `way` (0 to 1) along half a cosine wave from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2


def one_cycle(step, steps):
    """Up for the first 30 % from a 25th of the rate, then down to a 10,000th of that."""
    top = 0.3 * (steps + 1) - 1
    if step <= top:
        return wave(0.1 / 25, 0.1, step / top)
    return wave(0.1, 0.1 / 25 / 1e4, (step - top) / (steps - top))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("step", [0.1, 0.01, 0.001, 0.001]),
        ("cosine", [wave(0.1, 0, quarter / 4) for quarter in (1, 2, 3, 4)]),
        ("one-cycle", [one_cycle(step, 40) for step in (10, 20, 30, 40)]),
    ],
)
def test_schedules_are_spread_over_the_whole_run(dataset, schedule, expected):
    recipe = Recipe(epochs=4, batch_size=20, schedule=schedule)  # 10 steps an epoch
    history = training.fit(small(), dataset, recipe, progress=False)
    assert [row["lr"] for row in history] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_a_run_of_one_step_takes_it_at_the_full_rate(dataset):
    for schedule in ("step", "cosine"):
        training_ = training.Training(
            small(), dataset, Recipe(epochs=1, batch_size=200, schedule=schedule)
        )
        assert training_.schedule.get_last_lr() == [0.1]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_lower_precision_learns_almost_the_same(dataset, amp):
    assert losses(dataset, amp=amp) == pytest.approx(losses(dataset), rel=0.05)
    assert losses(dataset, amp=amp) != losses(dataset)


def test_memory_format_changes_no_result(dataset):
    one, other = losses(dataset), losses(dataset, channels_last=False)
    assert one == pytest.approx(other, rel=1e-3)


def test_a_compiled_model_trains_the_same_and_keeps_its_names(dataset, tmp_path, monkeypatch):
    # The eager backend traces the model as compilation does, and needs no C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = small()
    recipe = Recipe(epochs=2, batch_size=20, compile=True)
    history = training.fit(model, dataset, recipe, output=tmp_path / "run", progress=False)
    assert [row["train_loss"] for row in history] == pytest.approx(losses(dataset), rel=1e-4)
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert saved.keys() == small().state_dict().keys()


def test_clipping_bounds_the_step(dataset):
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    recipe = Recipe(epochs=1, batch_size=200, lr=1.0, weight_decay=0, clip_norm=0.01)
    training.fit(model, dataset, recipe, progress=False)
    moved = [p.detach() - old for p, old in zip(model.parameters(), before)]
    norm = torch.cat([m.flatten() for m in moved]).norm().item()
    assert norm == pytest.approx(1.9 * 0.01, rel=1e-3)  # Nesterov's first step is 1 + momentum long


def test_label_smoothing_counts_in_the_training_loss_alone(dataset):
    torch.manual_seed(0)
    certain = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    with torch.no_grad():
        certain[1].weight.zero_()
        certain[1].bias.copy_(torch.linspace(0, 9, 10))
    recipe = {"epochs": 1, "batch_size": 200, "lr": 1e-9}
    logits = certain[1].bias.expand(200, 10)
    for smoothing in (0.0, 0.3):
        expected = nn.functional.cross_entropy(
            logits, dataset.train_labels, label_smoothing=smoothing
        ).item()
        history = training.fit(
            certain, dataset, Recipe(label_smoothing=smoothing, **recipe), progress=False
        )
        assert history[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
        plain = nn.functional.cross_entropy(logits[:100], dataset.test_labels).item()
        assert history[0]["test_loss"] == pytest.approx(plain, rel=1e-4)


def test_augmentation_is_for_training_images_alone(dataset, monkeypatch):
    from densenet_tutorial.training import augmentation

    def blank(images):
        return torch.zeros_like(images)

    monkeypatch.setitem(augmentation.AUGMENTATIONS, "crop", blank)
    model = small()
    recipe = Recipe(epochs=1, batch_size=20, augment=("crop",))
    history = training.fit(model, dataset, recipe, progress=False)
    assert history[0]["train_accuracy"] < 0.3  # from blank pictures nothing can be learnt
    assert len(training.predict(model, dataset, dataset.test_images).unique(dim=0)) > 50


def test_fit_leaves_the_random_generator_as_it_was(dataset):
    model = small(drop_rate=0.2)
    state = torch.get_rng_state()
    training.fit(model, dataset, Recipe(epochs=1, batch_size=20, augment=("crop",)), progress=False)
    assert torch.equal(torch.get_rng_state(), state)
