"""Training an image classifier: :func:`fit`, :func:`evaluate`, :func:`predict`.

The loop is the same for one process or many, and for new and resumed runs. Chapter 06 builds it
up; chapter 12 runs it in several processes.
"""

import contextlib
import dataclasses
import json
import signal
import threading
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
from densenet_tutorial.weights.layouts import check_values

Model = TypeVar("Model", bound=nn.Module)

#: Number of steps between checks that the loss is finite, which synchronise with the GPU.
_STEPS_BETWEEN_CHECKS = 50

_dataset = arguments.instance_of(ImageDataset, "an ImageDataset")


def _plain_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return json.loads(json.dumps(value))


_plain = arguments.Check("a dict of plain values, such as JSON has", _plain_dict)


class Training:
    """The state of a training run: the model, and everything else that the next step needs."""

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

        # The position: one row of the history per finished epoch, and steps within the next.
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.sums = torch.zeros(2, device=self.device)  # of losses and of correct predictions
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """The current epoch, from 1."""
        return len(self.history) + 1

    def batches(self) -> Iterator[Tensor]:
        """The remaining batches of the epoch: indices of the images in this process's shard."""
        order = np.random.default_rng([self.recipe.seed, self.epoch]).permutation(len(self.images))
        batches = torch.from_numpy(order).split(self.recipe.batch_size)
        for batch in batches[self.step : self.steps_per_epoch]:
            yield distributed.shard(batch).to(self.device)

    def take_step(self, batch: Tensor) -> None:
        """One optimizer step on the images with the indices in `batch`.

        Raises:
            ValueError: the loss is not finite any more, which is checked every 50 steps.
        """
        start = time.perf_counter()
        recipe, labels = self.recipe, self.labels[batch]
        images = self.dataset.normalize(augment(self.images[batch], recipe.augment))
        images = images.to(memory_format=self.memory_format)

        with torch.autocast(self.device.type, AMP.get(recipe.amp), enabled=recipe.amp is not None):
            logits = self.forward(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # the scaler has an effect in fp16 only
        if recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # not if gradients overflowed and the step was skipped
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
        """Evaluate the model, and add a row to the history.

        Raises:
            ValueError: the loss is not finite any more.
        """
        start = time.perf_counter()
        self._check_finite([self.sums])
        seen = self.step * self.recipe.batch_size
        train_loss, train_accuracy = (distributed.all_reduce_sum(self.sums) / seen).tolist()
        seconds = self.seconds + time.perf_counter() - start  # includes waiting for the GPU
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
        """The configuration, which must be the same when a run is resumed."""
        return {
            "dataset": self.dataset.metadata(),
            "recipe": dataclasses.asdict(self.recipe),
            "device": self.device.type,
            "processes": distributed.world_size(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values; every process must call this.

        Raises:
            ValueError: something in it is not finite.
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
        """Resume from `state`, which may contain the ``config`` of its run.

        If that differs from :meth:`config`, the present configuration applies: the schedule
        continues from the same step of its own course, and random generators are seeded anew.

        Raises:
            ValueError: the position is not in this run, or something in `state` is not finite.
                Other errors come from torch, for a state that does not fit.
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

        # The optimizer's settings come from the recipe, and the schedule is stepped to its position
        # again (a second per hundred thousand steps), so that no file can hold other settings.
        check_values(state["model"], allow_nan=True)  # which are looked for below
        for name, tensor in self.model.state_dict().items():
            found = state["model"].get(name, tensor)
            if found.dtype != tensor.dtype:  # which torch would convert without a word
                raise ValueError(f"{name} must be of {tensor.dtype}, got {found.dtype}")
        self.model.load_state_dict(state["model"])
        last, done = state["scheduler"]["last_epoch"], len(history) * self.steps_per_epoch + step
        if recipe != self.recipe:
            last = done
        skips = self.scaler.is_enabled()  # steps whose gradients overflow
        if not (0 if skips else done) <= last <= done:
            raise ValueError(f"its schedule is not at its position, which is step {done}")
        self.optimizer.zero_grad()
        self.optimizer.step()  # no effect, but schedules warn if there was no step before
        for _ in range(last):
            self.schedule.step()
        settings = self.optimizer.state_dict()["param_groups"]
        momenta = state["optimizer"]["state"]
        self._check_momenta(momenta, bool(state["scheduler"]["last_epoch"]))
        self.optimizer.load_state_dict({"state": momenta, "param_groups": settings})
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
        self.sums = sums.reshape(2).to(self.sums)
        if not _all_finite([self.sums, *self._values()]):
            raise ValueError("it holds numbers that are not finite")

    def _check_momenta(self, momenta: Any, has_stepped: bool) -> None:
        """Refuse what is not the optimizer's state of this model's parameters, by their index."""
        parameters = dict(enumerate(self.model.parameters()))
        if not isinstance(momenta, Mapping) or not momenta.keys() <= parameters.keys():
            raise ValueError("its momenta are not those of this model's parameters")
        kept = [buffers["momentum_buffer"] for buffers in momenta.values()]
        trained = any(p.requires_grad for p in parameters.values())
        if has_stepped and trained and all(momentum is None for momentum in kept):
            raise ValueError("its momenta are missing")
        for index, buffers in momenta.items():
            parameter, momentum = parameters[index], buffers["momentum_buffer"]
            expected = (parameter.dtype, parameter.shape)
            if momentum is None:  # of a parameter that has had no gradient
                continue
            if not isinstance(momentum, Tensor) or (momentum.dtype, momentum.shape) != expected:
                raise ValueError(
                    f"momentum {index} must be of {parameter.dtype} and shape "
                    f"{list(parameter.shape)}, got {arguments.shown(momentum)}"
                )

    def _values(self) -> list[Tensor]:
        """The model's tensors and the optimizer's."""
        momentum = [v for buffers in self.optimizer.state.values() for v in buffers.values()]
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
    """The memory format of features for a recipe with `channels_last` on `device`.

    It is never channels last on MPS, where the gradients of batch norm and average pooling are then
    wrong, without an error (pytorch#175189, pytorch#175190).
    """
    if channels_last and device.type != "mps":
        return torch.channels_last
    return torch.contiguous_format


@arguments.check(training=_training)
@contextlib.contextmanager
def seeded(training: Training) -> Iterator[None]:
    """Seed torch's random generators, differently in each process, and restore them at the end."""
    devices = [] if training.device.type == "cpu" else [training.device]
    with torch.random.fork_rng(devices, device_type=training.device.type):
        _seed(training.recipe.seed, distributed.rank())
        yield


def _seed(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@arguments.check(model=arguments.module)
@contextlib.contextmanager
def evaluation_mode(model: Model) -> Iterator[Model]:
    """Put `model` into evaluation mode within the ``with`` block, and yield it.

    Afterwards, also after an error, every module is in its previous mode. That is more than
    ``model.train(was_training)`` does, which would also put modules into training mode that were
    deliberately in evaluation mode, such as frozen batch norm.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        model.train(before[0][1])  # for modules that override `train`
        for module, training in before:
            module.training = training


@arguments.check(module=arguments.module)
def freeze(module: nn.Module) -> None:
    """Freeze `module` while the rest of a model is trained: no gradients, evaluation mode.

    ``requires_grad_(False)`` alone is not enough. In training mode, batch norm would still use and
    update batch statistics, and dropout would still drop. ``model.train()`` has no effect on
    `module` any more.
    """
    module.requires_grad_(False).eval()
    module.train = types.MethodType(lambda self, mode=True: self, module)


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
    """Train `model` in place, on its device.

    Ctrl-C or SIGTERM stops the run after the current step, with a checkpoint in `output`. A second
    Ctrl-C stops it at once; the previous checkpoint is kept.

    Args:
        model: maps normalised images (N, C, H, W) to logits (N, classes).
        dataset: training images, and test images for the evaluation after every epoch.
        recipe: the hyperparameters.
        output: a folder for checkpoints, metrics and curves (see :class:`run_folder.RunFolder`), or
            ``None``.
        resume: whether to resume the run in `output`; if there is none, a new one starts.
        allow_changes: whether to resume with another device, number of processes, recipe or
            `model_config`. The results are then not bit for bit those of the original run.
        model_config: arguments of :func:`network.densenet`, for the checkpoints' metadata.
        initial_weights: source of the initial weights, for the checkpoints' metadata.
        progress: whether to show a progress bar.

    Returns:
        The history, one dict per epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy``,
        ``test_loss``, ``test_accuracy``, ``lr`` (at the epoch's end), ``seconds`` (of training,
        without the evaluation). Training figures are means over the epoch's steps, while the
        weights change; test figures are exact.

    Raises:
        ValueError: an argument is out of range; the loss is not finite any more; or `output` is in
            use, or holds a run that would be overwritten or cannot be resumed.
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
                    position = f"step {training.step} of epoch {training.epoch}"
                    raise KeyboardInterrupt(f"stopped after {position}")
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
    """Handle Ctrl-C and SIGTERM: the signals are added to the list that is yielded.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C, wherever the program is.
    """
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requested  # only the main thread may set signal handlers
        return
    last = 0.0

    def request(number: int, frame: types.FrameType | None) -> None:
        nonlocal last
        # The terminal sends a Ctrl-C to all processes, and then torchrun forwards it to them.
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
    """Logits (N, classes), on the CPU, of `model` in evaluation mode.

    Args:
        model: its modes are restored afterwards.
        dataset: its mean and standard deviation normalise the images.
        images: uint8 tensor (N, C, H, W).
        batch_size: images per forward pass.

    Raises:
        ValueError: an argument has a wrong type.
    """
    device = _device(model)
    with evaluation_mode(model):
        logits = [model(dataset.normalize(b.to(device))).cpu() for b in images.split(batch_size)]
    return torch.cat(logits)


@arguments.check(model=arguments.module, dataset=_dataset)
def evaluate(model: nn.Module, dataset: ImageDataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of `model` over all test images of `dataset`.

    The result is exact for any number of processes, each of which evaluates its shard.
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
