"""fit, evaluate and predict, on a task that takes seconds."""

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
