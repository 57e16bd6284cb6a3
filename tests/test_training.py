"""fit, evaluate and predict, on a task that takes seconds."""

import contextlib
import copy
import dataclasses
import functools
import math
import re
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


def test_the_seconds_are_those_of_the_training_steps(dataset):
    start = time.perf_counter()
    history = training.fit(small(), dataset, Recipe(epochs=2, batch_size=50), progress=False)
    assert 0 < sum(row["seconds"] for row in history) < time.perf_counter() - start


def test_before_the_first_step_the_means_are_zero(dataset):
    run = training.Training(small(), dataset, Recipe(epochs=1, batch_size=50))
    assert run.running_means() == (0, 0)


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


def test_every_module_is_left_in_the_mode_it_was_in_also_after_an_error(dataset):
    model = small(drop_rate=0.5).train()
    model.features.norm5.eval()
    modes = [module.training for module in model.modules()]
    training.evaluate(model, dataset)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="images"):
        training.predict(model, dataset, dataset.test_images.repeat(1, 2, 1, 1))
    assert [module.training for module in model.modules()] == modes


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augment", (name for name in ("crop",))),  # it would be empty at the second look
        ("augment", "crop"),
        ("augment", {"crop", "flip"}),  # in no order
        ("augment", {"crop": 1}),
        ("augment", None),
        ("augment", ("crop", 1)),
        ("compile", "no"),
        ("channels_last", "false"),
        ("channels_last", 0),
        ("sync_batch_norm", None),
        ("epochs", True),
        ("epochs", 2.0),
        ("epochs", "2"),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", True),
        ("lr", "0.1"),
        ("weight_decay", float("nan")),
        ("clip_norm", "none"),
        ("amp", "none"),
        ("amp", True),
        ("amp", torch.bfloat16),
        ("schedule", None),
        ("schedule", ["step"]),
        ("seed", 1.5),
        ("seed", None),
    ],
)
def test_a_recipe_refuses_what_it_would_misread(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
        Recipe(**{name: value})


def test_a_recipe_takes_numpys_numbers_and_keeps_plain_ones(dataset, tmp_path):
    recipe = Recipe(
        epochs=np.int64(1),
        batch_size=np.int32(50),
        lr=np.float32(0.25),
        augment=["flip"],
        compile=np.bool_(False),
        seed=np.uint8(3),
    )
    assert recipe == Recipe(epochs=1, batch_size=50, lr=0.25, augment=("flip",), seed=3)
    kinds = [int, int, float, str, float, float, tuple, type(None), type(None), bool, bool, bool]
    assert [type(value) for value in vars(recipe).values()] == [*kinds, int]
    training.fit(small(), dataset, recipe, output=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": None}, "model must be a torch.nn.Module, got None"),
        ({"model": "densenet121"}, "model must be a torch.nn.Module, got 'densenet121'"),
        ({"model": nn.Flatten()}, "model must have a parameter that requires a gradient"),
        ({"dataset": "digits"}, "dataset must be an ImageDataset, got 'digits'"),
        ({"recipe": {"epochs": 1}}, "recipe must be a Recipe, got {'epochs': 1}"),
        ({"output": 3}, "output must be a path, or None, got 3"),
        ({"resume": "no"}, "resume must be True or False, got 'no'"),
        ({"allow_changes": 1}, "allow_changes must be True or False, got 1"),
        ({"progress": "off"}, "progress must be True or False, got 'off'"),
    ],
)
def test_fit_says_what_its_arguments_must_be(dataset, arguments, words):
    given = {"model": small(), "dataset": dataset, "recipe": Recipe(epochs=1)} | arguments
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        training.fit(**given)


def test_predict_refuses_images_that_are_scaled_already(dataset):
    with pytest.raises(ValueError, match="^images must be a uint8 tensor of images"):
        training.predict(small(), dataset, dataset.test_images.float() / 255)
    with pytest.raises(ValueError, match="^batch_size must be a whole number"):
        training.predict(small(), dataset, dataset.test_images, batch_size=0)
    assert training.predict(small(), dataset, dataset.test_images[:0]).shape == (0, 10)


# ----------------------------------------------------------------------------- the recipe's options


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


@pytest.mark.parametrize("name", training.list_schedules())
def test_every_schedule_ends_with_small_steps(dataset, name):
    recipe = Recipe(epochs=4, batch_size=50, schedule=name)
    history = training.fit(small(), dataset, recipe, progress=False)
    assert 0 <= history[-1]["lr"] < 0.01


def overflowing(steps):
    """A model whose gradients are too large for fp16 in its first `steps` training steps."""

    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.left = small(), steps

        def forward(self, x):
            logits = self.model(x)
            if self.training:
                self.left -= 1
                if self.left >= 0:
                    logits.register_hook(lambda gradient: gradient * 1e30)
            return logits

    return Overflowing()


def test_in_fp16_the_schedule_waits_while_steps_are_skipped(dataset):
    recipe = Recipe(epochs=1, batch_size=20, schedule="cosine", amp="fp16")
    model = overflowing(3)
    before = [p.detach().clone() for p in model.parameters()]
    run = training.Training(model, dataset, recipe)
    rates = []
    for batch in run.batches():
        run.take_step(batch)
        rates.append(run.schedule.get_last_lr()[0])
        if len(rates) == 3:
            assert all(map(torch.equal, before, model.parameters()))
    waves = [wave(0.1, 0, step / 10) for step in range(1, 8)]
    assert rates == pytest.approx([0.1] * 3 + waves)
    assert not all(map(torch.equal, before, model.parameters()))


def test_in_fp16_a_loss_that_is_not_finite_stops_the_run_though_its_step_was_skipped(dataset):
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.step = small(), 0

        def forward(self, x):
            self.step += self.training
            return self.model(x) * (float("nan") if self.step == 4 and self.training else 1)

    with pytest.raises(ValueError, match="is not finite any more in epoch 1, after step 10"):
        training.fit(Once(), dataset, Recipe(epochs=1, batch_size=20, amp="fp16"), progress=False)


def test_a_run_in_fp16_goes_on_with_its_scale(dataset, tmp_path):
    """The scale is halved at each overflow; begun anew, it would overflow again."""
    recipe = Recipe(epochs=2, batch_size=20, amp="fp16")
    whole = training.fit(overflowing(4), dataset, recipe, output=tmp_path / "whole", progress=False)
    model = overflowing(4)

    def stop(module, inputs, output):
        if module.left == -2:
            signal.raise_signal(signal.SIGINT)

    handle = model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, dataset, recipe, output=tmp_path / "parts", progress=False)
    handle.remove()
    scale = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["scaler"]["scale"]
    assert scale == 2.0**16 / 2**4
    options = {"output": tmp_path / "parts", "progress": False, "resume": True}
    parts = training.fit(overflowing(0), dataset, recipe, **options)
    for row in whole + parts:
        del row["seconds"]
    assert whole == parts
    one, other = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert one["scaler"] == other["scaler"]
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"amp": "bf16"}, {"amp": None}])
def test_a_run_whose_steps_were_all_skipped_goes_on_with_another_recipe(dataset, tmp_path, change):
    """It has no momenta yet, and misses none."""
    recipe = Recipe(epochs=1, batch_size=20, amp="fp16")
    model = overflowing(9)

    def stop(module, inputs, output):
        if module.left == 6:
            signal.raise_signal(signal.SIGINT)

    handle = model.register_forward_hook(stop)
    options = {"output": tmp_path / "run", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, dataset, recipe, **options)
    handle.remove()
    changed = dataclasses.replace(recipe, **change)
    options |= {"resume": True, "allow_changes": True}
    (row,) = training.fit(overflowing(0), dataset, changed, **options)
    assert row["train_loss"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: its random numbers")
def test_a_run_on_a_gpu_goes_on_with_its_random_numbers(dataset, tmp_path):
    """Dropout and augmentation draw from the GPU's generator."""

    def draws(interrupted_at, output, resume=False):
        drawn = []

        def note(module, inputs):
            drawn.append(inputs[0].double().sum().item())  # augmented
            drawn.append(torch.rand(1, device="cuda").item())
            if len(drawn) == 2 * interrupted_at:
                signal.raise_signal(signal.SIGINT)

        model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)).cuda()
        model.register_forward_pre_hook(lambda m, inputs: note(m, inputs) if m.training else None)
        recipe = Recipe(epochs=2, batch_size=20, augment=("crop", "flip", "cutout"))
        with contextlib.suppress(KeyboardInterrupt):
            training.fit(model, dataset, recipe, output=output, resume=resume, progress=False)
        return drawn

    state = torch.cuda.get_rng_state()
    whole = draws(0, None)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.manual_seed(99)
    parts = draws(13, tmp_path / "run")
    torch.cuda.manual_seed(100)
    assert parts + draws(0, tmp_path / "run", resume=True) == whole


class WithoutGpu(TorchFunctionMode):
    """Lets what is sent to a GPU stay on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        gpu, cpu = torch.device("cuda"), torch.device("cpu")
        args = tuple(cpu if isinstance(a, torch.device) and a == gpu else a for a in args)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def gpu_generator(monkeypatch):
    """Stands for the generator of a GPU, behind torch.cuda's functions."""
    generator = torch.Generator()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": generator.get_state())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device="cuda": generator.set_state(state)
    )
    monkeypatch.setattr(torch.cuda, "manual_seed_all", generator.manual_seed)
    return generator


def test_a_checkpoint_holds_the_random_numbers_of_a_gpu(dataset, gpu_generator):
    """The part of the test above that needs no GPU: the state is taken, kept and put back."""

    def run():
        found = training.Training(small(), dataset, Recipe(epochs=1, batch_size=20))
        found.device = torch.device("cuda")
        return found

    def draw():
        return torch.rand(3, generator=gpu_generator).tolist()

    first, second = run(), run()
    gpu_generator.manual_seed(1)
    draw()
    state, expected = first.state_dict(), draw()
    gpu_generator.manual_seed(2)
    with WithoutGpu():
        second.load_state_dict(state)
    assert draw() == expected


def test_fit_leaves_the_random_numbers_of_a_gpu_as_they_were(dataset, gpu_generator):
    run = training.Training(small(), dataset, Recipe(epochs=1, batch_size=20, seed=7))
    run.device = torch.device("cuda")
    drawn = []
    for seed in (1, 2):
        gpu_generator.manual_seed(seed)
        before = gpu_generator.get_state()
        with training.loop.seeded(run):
            drawn.append(torch.rand(3, generator=gpu_generator).tolist())
        assert torch.equal(gpu_generator.get_state(), before)
    assert drawn[0] == drawn[1]  # the recipe's seed is what counts


def test_on_a_macs_gpu_channels_are_not_last():
    """Gradients of batch norm and average pooling are wrong there (pytorch#175189, #175190)."""
    from densenet_tutorial.training.loop import memory_format

    assert memory_format(True, torch.device("mps")) is torch.contiguous_format
    assert memory_format(True, torch.device("cpu")) is torch.channels_last
    assert memory_format(False, torch.device("cpu")) is torch.contiguous_format


def test_the_progress_bar_shows_where_the_run_is(dataset, capsys):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small()

        def forward(self, x):
            time.sleep(0.12 if self.training else 0)  # the bar is drawn at most ten times a second
            return self.model(x)

    recipe = Recipe(epochs=2, batch_size=50)
    history = training.fit(Slow(), dataset, recipe)
    drawn = capsys.readouterr().err.split("\r")
    for epoch, row in enumerate(history, start=1):
        lines = [line for line in drawn if line.startswith(f"epoch {epoch}/2: ")]
        assert {" 50/200 ", " 100/200 ", " 150/200 ", " 200/200 "} <= {
            found[0] for line in lines for found in [re.search(r" \d+/200 ", line)] if found
        }
        loss, accuracy = row["train_loss"], row["train_accuracy"]
        assert f"loss {loss:.3f}, accuracy {accuracy:.1%}" in lines[-1]
        means = [re.search(r"loss (\d+\.\d+)", line) for line in lines]
        assert len({found[1] for found in means if found}) >= 3  # of the steps so far
    training.fit(small(), dataset, recipe, progress=False)
    assert capsys.readouterr().err == ""


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


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_clipping_bounds_the_step(dataset, amp):
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    recipe = Recipe(epochs=1, batch_size=200, lr=1.0, weight_decay=0, clip_norm=0.01, amp=amp)
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
