"""Training and evaluating an image classifier: :func:`fit`, :func:`evaluate`, :func:`predict`."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from densenet_tutorial import arguments
from densenet_tutorial.data import ImageDataset


def fit(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    epochs: int,
    batch_size: int = 64,
    max_lr: float = 0.1,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train `model` in place, on the device that it is on.

    SGD with Nesterov momentum 0.9 and the paper's weight decay; the learning rate rises to `max_lr` and falls
    to almost nothing again (one cycle), which suits runs of a few epochs.

    Args:
        model: maps normalised images (N, C, H, W) to logits (N, classes).
        dataset: images to train on, and test images to evaluate on after every epoch.
        epochs: passes over the training images.
        batch_size: images per step; a last, smaller batch is left out.
        max_lr: the learning rate at its highest.
        weight_decay: L2 penalty on all parameters.
        seed: of the order of the training images.
        progress: whether to show a progress bar.

    Returns:
        The history, one dict per epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy``, ``test_loss``,
        ``test_accuracy``, ``lr`` (at the epoch's end), ``seconds`` (of training, without the evaluation).
        Training figures are means over the epoch's steps, while the weights change.

    Raises:
        ValueError: an argument is out of its range.

    Source: the recipe of Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 4.2, but for the schedule.
    """
    arguments.positive_int("epochs", epochs)
    total = len(dataset.train_images)
    if arguments.positive_int("batch_size", batch_size) > total:
        raise ValueError(
            f"batch_size must be at most the {total} training images, got {batch_size}"
        )
    arguments.positive_number("max_lr", max_lr)

    device = next(model.parameters()).device
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    steps = total // batch_size
    optimizer = torch.optim.SGD(
        model.parameters(), lr=max_lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr, total_steps=epochs * steps, cycle_momentum=False
    )
    shuffle = torch.Generator().manual_seed(seed)

    history = []
    for epoch in range(1, epochs + 1):
        model.train()
        start = time.perf_counter()
        sums = torch.zeros(2, device=device)
        order = torch.randperm(total, generator=shuffle)[: steps * batch_size].to(device)
        bar = tqdm(order.split(batch_size), f"epoch {epoch}/{epochs}", disable=not progress)
        for batch in bar:
            logits = model(dataset.normalize(images[batch]))
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                sums += torch.stack([loss, (logits.argmax(1) == labels[batch]).float().mean()])
        seconds = time.perf_counter() - start
        train_loss, train_accuracy = (sums / steps).tolist()
        test_loss, test_accuracy = evaluate(model, dataset)
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "lr": schedule.get_last_lr()[0],
                "seconds": seconds,
            }
        )
    return history


@torch.no_grad()
def predict(
    model: nn.Module, dataset: ImageDataset, images: Tensor, batch_size: int = 100
) -> Tensor:
    """Logits (N, classes) of `model`, in eval mode, for `images`, bytes of (N, C, H, W); on the CPU.

    The model is left in the mode it was in.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits = [
        model(dataset.normalize(batch.to(device))).cpu() for batch in images.split(batch_size)
    ]
    model.train(was_training)
    return torch.cat(logits)


def evaluate(model: nn.Module, dataset: ImageDataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of `model` over all test images of `dataset`."""
    logits = predict(model, dataset, dataset.test_images)
    loss = F.cross_entropy(logits, dataset.test_labels)
    accuracy = (logits.argmax(1) == dataset.test_labels).float().mean()
    return loss.item(), accuracy.item()
