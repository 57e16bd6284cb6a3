"""Training an image classifier: :func:`fit`, :func:`evaluate`, :func:`predict`.

One process or many, from the start or from a checkpoint: it is the same loop. Chapter 06 builds it
up, chapter 12 runs it in several processes.
"""

import contextlib
import dataclasses
import json
import signal
import threading
import time
import types
from collections.abc import Iterable, Iterator
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
from densenet_tutorial.training.run_folder import open_folder
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.modes import evaluation_mode

#: After so many steps the loss is looked at, for which a GPU has to be waited for.
_STEPS_BETWEEN_CHECKS = 50

_dataset = arguments.instance_of(ImageDataset, "an ImageDataset")


def _plain_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return json.loads(json.dumps(value))


_plain = arguments.Check("a dict of plain values, such as JSON has", _plain_dict)


class Training:
    """A run in progress: the model, and everything else that its next step depends on."""

    @arguments.check(
        model=arguments.module, dataset=_dataset, recipe=arguments.instance_of(Recipe, "a Recipe")
    )
    def __init__(self, model: nn.Module, dataset: ImageDataset, recipe: Recipe) -> None:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("model must have a parameter that requires a gradient, got none")
        self.recipe, self.dataset = recipe, dataset
        self.device = _device(model)
        self.images = dataset.train_images.to(self.device)
        self.labels = dataset.train_labels.to(self.device)
        self.steps_per_epoch = _steps_per_epoch(len(self.images), recipe.batch_size)

        self.memory_format = memory_format(recipe.channels_last, self.device)
        self.model = model.to(memory_format=self.memory_format)
        self.forward = distributed.data_parallel(self.model, recipe.sync_batch_norm)
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

        # The position: finished epochs are rows of the history; within one, steps and their sums.
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.sums = torch.zeros(2, device=self.device)  # of the loss, and of right answers
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """The epoch that is under way, from 1."""
        return len(self.history) + 1

    def batches(self) -> Iterator[Tensor]:
        """Indices of the images in this process's shard of each batch of the epoch that is left."""
        order = np.random.default_rng([self.recipe.seed, self.epoch]).permutation(len(self.images))
        batches = torch.from_numpy(order).split(self.recipe.batch_size)
        for batch in batches[self.step : self.steps_per_epoch]:
            yield distributed.shard(batch).to(self.device)

    def take_step(self, batch: Tensor) -> None:
        """One step of gradient descent on the images whose indices are in `batch`.

        Raises:
            ValueError: the loss is not finite any more. (Not each step looks.)
        """
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
        scale = self.scaler.get_scale()
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else gradients overflowed, and no step was taken
            self.schedule.step()

        with torch.no_grad():
            self.sums += torch.stack(
                [loss.float() * len(batch), (logits.argmax(1) == labels).sum()]
            )
        self.step += 1
        if self.step % _STEPS_BETWEEN_CHECKS == 0:
            self._check_finite([self.sums])
        self.seconds += time.perf_counter() - start

    def running_means(self) -> tuple[float, float]:
        """Loss and accuracy of this process over the epoch so far."""
        seen = self.step * self.recipe.batch_size // distributed.world_size()
        loss, right = (self.sums / max(1, seen)).tolist()
        return loss, right

    def finish_epoch(self) -> None:
        """Evaluate, and add a row to the history.

        Raises:
            ValueError: the loss is not finite any more.
        """
        start = time.perf_counter()
        self._check_finite([self.sums])
        seen = self.step * self.recipe.batch_size
        train_loss, train_accuracy = (distributed.all_reduce_sum(self.sums) / seen).tolist()
        seconds = self.seconds + time.perf_counter() - start  # a GPU was perhaps not done yet
        distributed.broadcast_buffers(self.model)
        test_loss, test_accuracy = evaluate(self.model, self.dataset)
        self._check_finite([torch.tensor(test_loss)])
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

    def config(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that wrote the checkpoint."""
        return {
            "dataset": self.dataset.metadata(),
            "recipe": dataclasses.asdict(self.recipe),
            "device": self.device.type,
            "processes": distributed.world_size(),
        }

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values; every process has to call this.

        Raises:
            ValueError: something in it is not finite: no step could go on from there.
        """
        self._check_finite([self.sums, *self._values()])
        random = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            module = torch.get_device_module(self.device)
            random[self.device.type] = module.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": distributed.all_gather(random),
            "history": self.history,
            "step": self.step,
            "sums": distributed.all_gather(self.sums.cpu()),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken; it may hold the ``config`` with which it was.

        Where that differs from :meth:`config`, the new one holds: the schedule is at the same place
        of its own course, and random numbers begin anew.

        Raises:
            ValueError: the state is of a place that this run does not have, or something in it is
                not finite; other errors are torch's, of what does not fit.
        """
        config = {**self.config(), **state.get("config", {})}
        history, step = state["history"], state["step"]
        if not 0 <= len(history) <= self.recipe.epochs - bool(step):
            raise ValueError(
                f"its position is step {step} of epoch {len(history) + 1}, and the run has "
                f"{self.recipe.epochs} epochs"
            )
        if not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"its position is step {step}, and an epoch has {self.steps_per_epoch} steps"
            )
        recipe = Recipe(**config["recipe"])
        for name in ("batch_size", "seed"):
            if step and getattr(recipe, name) != getattr(self.recipe, name):
                raise ValueError(f"{name} can change only between epochs, and this is step {step}")

        # The optimizer's settings are the recipe's, and the schedule walks to its place again, which
        # takes a second for a hundred thousand steps: no file can hold others.
        self.model.load_state_dict(state["model"])
        walked, done = state["scheduler"]["last_epoch"], len(history) * self.steps_per_epoch + step
        if recipe != self.recipe:
            walked = done
        if not 0 <= walked <= done:  # fewer, where steps were skipped
            raise ValueError(f"its schedule is not at its position, which is step {done}")
        self.optimizer.zero_grad()
        self.optimizer.step()  # does nothing; but schedules warn where there was no step before
        for _ in range(walked):
            self.schedule.step()
        settings = self.optimizer.state_dict()["param_groups"]
        momenta = state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": momenta, "param_groups": settings})
        for parameter, kept in self.optimizer.state.items():
            momentum = kept["momentum_buffer"]
            if momentum is not None and momentum.shape != parameter.shape:
                raise ValueError(f"a momentum has shape {list(momentum.shape)}")
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

        self.history, self.step, self.seconds = list(history), step, state["seconds"]
        if (config["device"], config["processes"]) == (self.device.type, distributed.world_size()):
            random, sums = state["random"][distributed.rank()], state["sums"][distributed.rank()]
            torch.set_rng_state(random["cpu"])
            if self.device.type != "cpu":
                module = torch.get_device_module(self.device)
                module.set_rng_state(random[self.device.type], self.device)
        else:
            _seed(self.recipe.seed, distributed.rank(), self.epoch, step)
            sums = sum(state["sums"]) / distributed.world_size()
        self.sums = sums.reshape(2).to(self.device)
        if not _all_finite([self.sums, *self._values()]):
            raise ValueError("it holds numbers that are not finite")

    def _values(self) -> list[Tensor]:
        """The model's tensors and the optimizer's."""
        momentum = [v for kept in self.optimizer.state.values() for v in kept.values()]
        return [v for v in [*self.model.state_dict().values(), *momentum] if isinstance(v, Tensor)]

    def _check_finite(self, tensors: Iterable[Tensor]) -> None:
        """Raise an error in all processes if a number is not finite in one."""
        if distributed.all_reduce_any(not _all_finite(tensors)):
            raise ValueError(
                f"the loss or a weight is not finite any more in epoch {self.epoch}, after step "
                f"{self.step}: a smaller lr than {self.recipe.lr} may help, or clip_norm. A "
                "checkpoint from before is kept as it was"
            )


_training = arguments.instance_of(Training, "a Training")


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def memory_format(channels_last: bool, device: torch.device) -> torch.memory_format:
    """How features lie in memory while a recipe with `channels_last` trains on `device`.

    On a Mac's GPU never with channels last: there, the gradients of batch norm and of average
    pooling are then wrong, without an error (pytorch#175189, pytorch#175190).
    """
    if channels_last and device.type != "mps":
        return torch.channels_last
    return torch.contiguous_format


@arguments.check(training=_training)
@contextlib.contextmanager
def seeded(training: Training) -> Iterator[None]:
    """Draw random numbers by the recipe's seed, others in each process; then put torch's back."""
    devices = [] if training.device.type == "cpu" else [training.device]
    with torch.random.fork_rng(devices, device_type=training.device.type):
        _seed(training.recipe.seed, distributed.rank())
        yield


def _seed(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@arguments.check(module=arguments.module)
def freeze(module: nn.Module) -> None:
    """Keep `module` as it is while the rest of a model is trained: no gradients, and in eval mode.

    Taking the gradients alone is not enough. In training mode, batch norm would still normalise by
    the batch and move its running statistics, and dropout would still drop. ``model.train()`` no
    longer reaches `module`.
    """
    module.requires_grad_(False).eval()
    module.train = types.MethodType(lambda self, mode=True: self, module)  # type: ignore


@arguments.check(
    output=arguments.optional(arguments.path),
    resume=arguments.boolean,
    allow_changes=arguments.boolean,
    model_config=arguments.optional(_plain),
    initial_weights=arguments.optional(arguments.text),
    progress=arguments.boolean,
)
def fit(
    model: nn.Module,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    model_config: dict[str, Any] | None = None,
    initial_weights: str | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place, on the device that it is on.

    Ctrl-C, or a request to end by SIGTERM, takes effect after the step under way, which `output`
    then holds. A second Ctrl-C takes effect at once; the checkpoint before is kept.

    Args:
        model: maps normalised images (N, C, H, W) to logits (N, classes).
        dataset: images to train on, and test images to evaluate on after every epoch.
        recipe: how.
        output: a folder for checkpoints, metrics and curves (see :class:`run_folder.RunFolder`);
            ``None`` keeps nothing.
        resume: whether to go on with the run that `output` holds; if it holds none, one begins.
        allow_changes: whether to go on though the device, the number of processes, the recipe or
            `model_config` has changed. It is then no longer, bit for bit, the run that it was.
        model_config: what the checkpoints say of the model: the arguments of
            :func:`network.densenet`.
        initial_weights: what they say of where the model's weights came from.
        progress: whether to show a progress bar.

    Returns:
        The history, one dict per epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy``,
        ``test_loss``, ``test_accuracy``, ``lr`` (at the epoch's end), ``seconds`` (of training,
        without the evaluation). Training figures are means over the epoch's steps, while the
        weights change; test figures are exact.

    Raises:
        ValueError: an argument is out of its range; the loss is not finite any more; or `output` is
            in use, or holds a run that this one would destroy or cannot go on with.
        OSError: a checkpoint cannot be written.
        KeyboardInterrupt: the run was asked to stop.
    """
    training = Training(model, dataset, recipe)
    about = {"model": model_config, "initial_weights": initial_weights}
    with (
        seeded(training),
        requests_to_stop() as requested,
        open_folder(output, training, about, resume, allow_changes) as folder,
    ):
        while training.epoch <= recipe.epochs:
            model.train()
            for batch in with_progress(training, progress):
                training.take_step(batch)
                if distributed.all_reduce_any(bool(requested)):
                    folder.save(training)
                    raise KeyboardInterrupt(
                        f"stopped after step {training.step} of epoch {training.epoch}"
                    )
            training.finish_epoch()
            folder.save(training)
    return training.history


def _steps_per_epoch(total: int, batch_size: int) -> int:
    if batch_size > total:
        raise ValueError(
            f"batch_size must be at most the {total} training images, got {batch_size}"
        )
    processes = distributed.world_size()
    if batch_size % processes:
        raise ValueError(
            f"batch_size must be a multiple of the {processes} processes, got {batch_size}"
        )
    return total // batch_size


@arguments.check(training=_training, progress=arguments.boolean)
def with_progress(training: Training, progress: bool = True) -> Iterator[Tensor]:
    """The epoch's batches; if `progress`, the main process draws a bar with loss and accuracy."""
    batch_size, epochs = training.recipe.batch_size, training.recipe.epochs
    with tqdm(
        desc=f"epoch {training.epoch}/{epochs}",
        total=training.steps_per_epoch * batch_size,
        initial=training.step * batch_size,
        unit=" images",
        disable=not (progress and distributed.is_main_process()),
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
    """A list that Ctrl-C and SIGTERM add to, instead of what they do otherwise.

    Raises:
        KeyboardInterrupt: wherever the program is, at the second Ctrl-C.
    """
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requested  # only the main thread may ask to hear of signals
        return
    last = 0.0

    def request(number: int, frame: types.FrameType | None) -> None:
        nonlocal last
        # torchrun passes a Ctrl-C on, which its processes have had from the terminal already.
        passed_on = distributed.is_running() and time.monotonic() - last < 2
        if number == signal.SIGINT and number in requested and not passed_on:
            raise KeyboardInterrupt("stopped at once")
        requested.append(number)
        last = time.monotonic()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)


@arguments.check(
    model=arguments.module,
    dataset=_dataset,
    images=arguments.uint8_images,
    batch_size=arguments.positive_int,
)
@torch.no_grad()
def predict(
    model: nn.Module, dataset: ImageDataset, images: Tensor, batch_size: int = 100
) -> Tensor:
    """Logits (N, classes) of `model`, in eval mode, for uint8 `images` (N, C, H, W); on the CPU.

    `dataset` says how to normalise. Each module of the model is left in the mode it was in.

    Raises:
        ValueError: an argument is of another kind.
    """
    device = _device(model)
    with evaluation_mode(model):
        logits = [model(dataset.normalize(b.to(device))).cpu() for b in images.split(batch_size)]
    return torch.cat(logits)


@arguments.check(model=arguments.module, dataset=_dataset)
def evaluate(model: nn.Module, dataset: ImageDataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of `model` over all test images of `dataset`.

    Exact, whatever the number of processes: each takes its shard of the images, none twice.
    """
    labels = distributed.shard(dataset.test_labels.cpu())
    logits = predict(model, dataset, distributed.shard(dataset.test_images))
    sums = torch.stack(
        [F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()]
    )
    loss, accuracy = (distributed.all_reduce_sum(sums) / len(dataset.test_labels)).tolist()
    return loss, accuracy


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
