"""Transfer learning with few labels: the experiment of chapter 08.

The task is to classify handwritten digits, with a few labelled images of each. A network of the
size of ``fashion-mnist-small`` starts in one of three ways (:data:`STARTS`), with the same images
and the same number of steps. This wrote the results file, for two numbers of epochs and two
learning rates:

    python -m densenet_tutorial.experiments.transfer \\
        --output densenet_tutorial/experiments/results/transfer.csv
"""

import argparse
import csv
import dataclasses
import io
import itertools
from pathlib import Path

import torch
from torch.nn import functional as F

from densenet_tutorial import data, training
from densenet_tutorial.network import DenseNet, densenet
from densenet_tutorial.utils import arguments, environment, files

#: The name of the weights from which the other starts begin.
WEIGHTS = "fashion-mnist-small"

#: From scratch: random weights. Frozen: pretrained weights, only the new classifier is trained.
#: Fine-tuned: pretrained weights, all of them are trained.
STARTS = ("from scratch", "frozen", "fine-tuned")


@arguments.check(
    per_class=arguments.positive_int, seed=arguments.seed, tests=arguments.positive_int
)
def few_labels(per_class: int, seed: int, tests: int = 200) -> data.ImageDataset:
    """The data set "digits", resized to Fashion-MNIST's 28 x 28 pixels, with few training images.

    Args:
        per_class: number of training images of each class.
        seed: seed for their choice.
        tests: number of test images, the same ones for every seed.

    Raises:
        ValueError: an argument is out of range, or there are not so many images.
    """
    digits = data.load_dataset("digits")
    least = int(digits.train_labels.bincount().min())
    arguments.integer(1, least)("per_class", per_class)
    arguments.integer(1, len(digits.test_labels))("tests", tests)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.train_labels), generator=generator)
    labels = digits.train_labels[order]
    chosen = torch.cat([order[labels == digit][:per_class] for digit in range(10)])

    def scaled(images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(images.float(), size=(28, 28), mode="bilinear").round().byte()

    return dataclasses.replace(
        digits,
        train_images=scaled(digits.train_images[chosen]),
        train_labels=digits.train_labels[chosen],
        test_images=scaled(digits.test_images[:tests]),
        test_labels=digits.test_labels[:tests],
    )


@arguments.check(start=arguments.one_of(STARTS), seed=arguments.seed)
def started(start: str, seed: int) -> DenseNet:
    """The network at the start of a run; `seed` determines its random weights."""
    torch.manual_seed(seed)
    model = densenet("densenet_bc", weights=WEIGHTS, head="new")
    if start == "from scratch":
        model = densenet(
            "densenet_bc", growth_rate=24, block_config=(1, 4, 8), bn_size=2, in_channels=1
        )
    if start == "frozen":
        training.freeze(model.features)
    return model


@arguments.check(
    start=arguments.one_of(STARTS),
    seed=arguments.seed,
    per_class=arguments.positive_int,
    epochs=arguments.positive_int,
    lr=arguments.positive_number,
)
def run_from(
    start: str, seed: int, *, per_class: int = 10, epochs: int = 5, lr: float = 0.05
) -> list[float]:
    """Test accuracy (0 to 1) after each epoch of a run with few labels, in batches of 10."""
    recipe = training.Recipe(
        epochs=epochs, batch_size=10, lr=lr, schedule="one-cycle", weight_decay=5e-4, seed=seed
    )
    model = started(start, seed).to(environment.device())
    history = training.fit(model, few_labels(per_class, seed), recipe, progress=False)
    return [row["test_accuracy"] for row in history]


def results() -> dict[tuple[int, float, str], list[float]]:
    """The final accuracies in the results file, by epochs, learning rate and start; per seed."""
    found: dict[tuple[int, float, str], list[float]] = {}
    text = (Path(__file__).parent / "results" / "transfer.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(io.StringIO(text)):
        key = int(row["epochs"]), float(row["lr"]), row["start"]
        found.setdefault(key, []).append(float(row["test_accuracy"]))
    return found


def main() -> None:
    """The command ``python -m densenet_tutorial.experiments.transfer``: write the results file."""
    parser = argparse.ArgumentParser(description="Transfer learning with few labels.")
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 15])
    parser.add_argument("--lr", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a CSV file")
    options = parser.parse_args()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["epochs", "lr", "start", "seed", "test_accuracy"])
    for row in itertools.product(options.epochs, options.lr, STARTS, range(options.seeds)):
        epochs, lr, start, seed = row
        accuracy = run_from(start, seed, epochs=epochs, lr=lr)[-1]
        table.writerow([*row, round(accuracy, 4)])
        print(
            f"{start}, {epochs} epochs, learning rate {lr}, seed {seed}: {accuracy:.1%}", flush=True
        )
        files.write(options.output, text.getvalue().encode())


if __name__ == "__main__":
    main()
