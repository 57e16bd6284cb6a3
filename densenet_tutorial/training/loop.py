"""Training an image classifier: :class:`Recipe`, :func:`fit`, :func:`evaluate`, :func:`predict`.

One process or many, from the start or from a checkpoint: it is the same loop. Chapter 06 builds it up, chapter 12
runs it in several processes.
"""

import contextlib
import dataclasses
import signal
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from densenet_tutorial.data import ImageDataset
from densenet_tutorial.training import distributed
from densenet_tutorial.training.augmentation import augment
from densenet_tutorial.training.recipe import AMP, SCHEDULES, Recipe
from densenet_tutorial.training.run_folder import RunFolder
from densenet_tutorial.utils.modes import evaluation_mode


class Training:
    """A run in progress: the model, and everything else that its next step depends on."""

    def __init__(self, model: nn.Module, dataset: ImageDataset, recipe: Recipe) -> None:
        self.recipe, self.dataset = recipe, dataset
        self.device = next(model.parameters()).device
        self.images = dataset.train_images.to(self.device)
        self.labels = dataset.train_labels.to(self.device)
        self.steps_per_epoch = _steps_per_epoch(len(self.images), recipe.batch_size)

        self.memory_format = (
            torch.channels_last if recipe.channels_last else torch.contiguous_format
        )
        self.model = model.to(memory_format=self.memory_format)
        self.forward = distributed.parallel(self.model, recipe.sync_batch_norm)
        if recipe.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
        self.schedule = SCHEDULES[recipe.schedule](
            self.optimizer, recipe.lr, recipe.epochs * self.steps_per_epoch
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")

        # The position: finished epochs are rows of the history; within an epoch, the steps taken and their sums.
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.sums = torch.zeros(2, device=self.device)  # of the loss, and of right answers
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """The epoch that is under way, from 1."""
        return len(self.history) + 1

    def batches(self) -> Iterator[Tensor]:
        """The image numbers of the epoch's batches from the present step on, this process's share of each."""
        order = np.random.default_rng([self.recipe.seed, self.epoch]).permutation(len(self.images))
        batches = torch.from_numpy(order).split(self.recipe.batch_size)
        for batch in batches[self.step : self.steps_per_epoch]:
            yield distributed.share(batch).to(self.device)

    def take_step(self, batch: Tensor) -> None:
        """One step of gradient descent on the images whose numbers are in `batch`."""
        start = time.perf_counter()
        recipe, labels = self.recipe, self.labels[batch]
        images = self.dataset.normalize(augment(self.images[batch], recipe.augment))
        images = images.to(memory_format=self.memory_format)

        with torch.autocast(self.device.type, AMP.get(recipe.amp), enabled=recipe.amp is not None):
            logits = self.forward(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # the scaler changes something in fp16 alone
        if recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

        with torch.no_grad():
            self.sums += torch.stack(
                [loss.float() * len(batch), (logits.argmax(1) == labels).sum()]
            )
        self.step += 1
        self.seconds += time.perf_counter() - start

    def running_means(self) -> tuple[float, float]:
        """Loss and accuracy of this process over the epoch so far."""
        share = self.recipe.batch_size // distributed.size()
        loss, right = (self.sums / max(1, self.step * share)).tolist()
        return loss, right

    def finish_epoch(self) -> None:
        """Evaluate, and add a row to the history."""
        start = time.perf_counter()
        seen = self.step * self.recipe.batch_size
        train_loss, train_accuracy = (distributed.add_up(self.sums) / seen).tolist()
        seconds = self.seconds + time.perf_counter() - start  # a GPU was perhaps not done yet
        distributed.share_buffers(self.model)
        test_loss, test_accuracy = evaluate(self.model, self.dataset)
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": seconds,
            }
        )
        self.step, self.seconds = 0, 0.0
        self.sums.zero_()

    def description(self) -> dict[str, Any]:
        """What a run that goes on from a checkpoint has to have in common with the one that wrote it."""
        return {
            "dataset": self.dataset.description(),
            "recipe": dataclasses.asdict(self.recipe),
            "device": self.device.type,
            "processes": distributed.size(),
        }

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values; in several processes, all of them have to call this."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": distributed.gather(random),
            "history": self.history,
            "step": self.step,
            "sums": distributed.gather(self.sums.cpu()),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        random = state["random"][distributed.rank()]
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)
        self.history = list(state["history"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.sums = state["sums"][distributed.rank()].to(self.device)


def freeze(module: nn.Module) -> None:
    """Keep `module` as it is while the rest of a model is trained: no gradients, and always in evaluation mode.

    Taking the gradients alone is not enough. In training mode, batch norm would still normalise by the batch and move
    its running statistics, and dropout would still drop. ``model.train()`` no longer reaches `module`.
    """
    module.requires_grad_(False).eval()
    module.train = types.MethodType(lambda self, mode=True: self, module)


def fit(
    model: nn.Module,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    model_config: dict[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place, on the device that it is on.

    Ctrl-C, or a request to end by SIGTERM, takes effect after the step under way, which `output` then holds.

    Args:
        model: maps normalised images (N, C, H, W) to logits (N, classes).
        dataset: images to train on, and test images to evaluate on after every epoch.
        recipe: how.
        output: a folder for checkpoints, metrics and curves (see :class:`run_folder.RunFolder`); ``None`` keeps nothing.
        resume: whether to go on with the run that `output` holds; if it holds none, one begins.
        model_config: what the checkpoints say of the model: the arguments of :func:`network.densenet`.
        progress: whether to show a progress bar.

    Returns:
        The history, one dict per epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy``, ``test_loss``,
        ``test_accuracy``, ``lr`` (at the epoch's end), ``seconds`` (of training, without the evaluation).
        Training figures are means over the epoch's steps, while the weights change; test figures are exact.

    Raises:
        ValueError: an argument is out of its range, or `output` holds a run that this one would destroy or cannot
            go on with.
        KeyboardInterrupt: the run was asked to stop.
    """
    training = Training(model, dataset, recipe)
    devices = [training.device] if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices), requests_to_stop() as requested:
        # Each process draws random numbers of its own.
        seeds = np.random.SeedSequence([recipe.seed, distributed.rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        folder = None
        if output is not None:
            folder = RunFolder(output, training.description() | {"model": model_config}, resume)
            folder.restore(training)
        while training.epoch <= recipe.epochs:
            model.train()
            for batch in with_progress(training, progress and distributed.is_writer()):
                training.take_step(batch)
                if distributed.any_process(bool(requested)):
                    if folder:
                        folder.save(training.state_dict())
                    raise KeyboardInterrupt(
                        f"stopped after step {training.step} of epoch {training.epoch}"
                    )
            training.finish_epoch()
            if folder:
                folder.save(training.state_dict())
    return training.history


def _steps_per_epoch(total: int, batch_size: int) -> int:
    if batch_size > total:
        raise ValueError(
            f"batch_size must be at most the {total} training images, got {batch_size}"
        )
    if batch_size % distributed.size():
        raise ValueError(
            f"batch_size must be a multiple of the {distributed.size()} processes, got {batch_size}"
        )
    return total // batch_size


def with_progress(training: Training, show: bool) -> Iterator[Tensor]:
    """The batches, with a bar for the epoch: loss, accuracy, images per second, time left (epoch, and whole run)."""
    batch_size, epochs = training.recipe.batch_size, training.recipe.epochs
    with tqdm(
        desc=f"epoch {training.epoch}/{epochs}",
        total=training.steps_per_epoch * batch_size,
        initial=training.step * batch_size,
        unit=" images",
        disable=not show,
    ) as bar:
        for batch in training.batches():
            yield batch
            if bar.update(batch_size):  # it is time to draw
                loss, accuracy = training.running_means()
                bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
        loss, accuracy = training.running_means()
        bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)


@contextlib.contextmanager
def requests_to_stop() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM add to, instead of what they do otherwise."""
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requested  # only the main thread may ask to hear of signals
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(number, lambda number, frame: requested.append(number)) for number in signals
    ]
    try:
        yield requested
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


@torch.no_grad()
def predict(
    model: nn.Module, dataset: ImageDataset, images: Tensor, batch_size: int = 100
) -> Tensor:
    """Logits (N, classes) of `model`, in eval mode, for `images`, bytes of (N, C, H, W); on the CPU.

    Every module is left in the mode that it was in, also after an error.
    """
    device = next(model.parameters()).device
    with evaluation_mode(model):
        logits = [
            model(dataset.normalize(batch.to(device))).cpu() for batch in images.split(batch_size)
        ]
    return torch.cat(logits)


def evaluate(model: nn.Module, dataset: ImageDataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of `model` over all test images of `dataset`.

    Exact, whatever the number of processes: each takes its share of the images, none twice.
    """
    labels = distributed.share(dataset.test_labels)
    logits = predict(model, dataset, distributed.share(dataset.test_images))
    sums = torch.stack(
        [F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()]
    )
    loss, accuracy = (distributed.add_up(sums) / len(dataset.test_labels)).tolist()
    return loss, accuracy
