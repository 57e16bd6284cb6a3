"""Assignment 3: measure what is kept for the backward pass, checkpoint, find and fix the batch-norm trap."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densenet_tutorial import layers, memory
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong
from densenet_tutorial.check.layers import randomise

# ------------------------------------------------------------------------------ measuring


class _Square(nn.Module):
    """Keeps one tensor in two places, and a part of it in a third."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        return (y * y)[:, :1] * y[:, :1].sin()


@dataclass(frozen=True)
class Measured:
    """A batch, and models of different kinds that it can be given to."""

    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"a tensor {tuple(self.x().shape)}"

    def x(self) -> Tensor:
        return torch.randn(self.batch, self.channels, self.size, self.size)

    def convolutions(self) -> nn.Module:
        c = self.channels
        return nn.Sequential(
            nn.Conv2d(c, 2 * c, 3, padding=1), nn.Sigmoid(), nn.Conv2d(2 * c, c, 1)
        )

    def dense(self) -> nn.Module:
        return layers.DenseLayer(self.channels, 3, 2, 0.0).train()


saved_bytes = Question(
    "saved_bytes",
    ("saved_bytes",),
    [Measured(2, 4, 8), Measured(1, 3, 6)],
    lambda g: Measured(g.randrange(1, 4), g.randrange(2, 8), g.randrange(5, 12)),
)


def _every_save(model: nn.Module, x: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    return saved


def _measured(model: nn.Module, x: Tensor, saved_bytes: Any) -> None:
    expected = memory.saved_activation_bytes(model, x)
    got = saved_bytes(model, x)
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise engine.not_a(got, "saved_bytes", "a number of bytes")
    if got == expected:
        return
    saved = _every_save(copy.deepcopy(model), x)
    there = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    own = _every_save(model, x)
    new = [t for t in own if t.untyped_storage().data_ptr() not in there]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}
    hint = "Count each storage once and whole; leave out the input, parameters and buffers."
    if got == sum(t.numel() for t in new) or 4 * got == expected:
        hint = "That is a number of elements. How many bytes has each?"
    elif got in (sum(t.nbytes for t in new), sum(t.untyped_storage().nbytes() for t in new)):
        hint = (
            "Two saved tensors may share a storage (untyped_storage().data_ptr()): count it once."
        )
    elif got in (sum(t.nbytes for t in saved), sum(storages.values())):
        hint = "The input, parameters and buffers are there anyway: they do not count."
    elif got == 0:
        hint = "Nothing was counted. Is the model run inside the hooks?"
    raise Wrong(f"{expected:,} bytes", f"{got:,}", hint)


@saved_bytes.property("counts", "counts what convolutions keep, and not their weights")
def _(given: Measured, saved_bytes: Any) -> None:
    _measured(given.convolutions(), given.x(), saved_bytes)


@saved_bytes.property("shared", "counts once what is kept in several places")
def _(given: Measured, saved_bytes: Any) -> None:
    _measured(_Square(), given.x().requires_grad_(), saved_bytes)


@saved_bytes.property("dense", "measures a dense layer, norms included")
def _(given: Measured, saved_bytes: Any) -> None:
    _measured(given.dense(), given.x(), saved_bytes)


# ------------------------------------------------------------------------------ checkpointing


@dataclass(frozen=True)
class Features:
    """A dense layer in training, and a list of features that ask for gradients."""

    channels: tuple[int, ...]
    growth_rate: int
    size: int

    def __str__(self) -> str:
        return (
            f"a dense layer with growth_rate={self.growth_rate}, and a list of features with "
            f"{list(self.channels)} channels, {self.size} by {self.size}"
        )

    def layer(self) -> layers.DenseLayer:
        return randomise(layers.DenseLayer(sum(self.channels), self.growth_rate, 2, 0.0)).train()

    def features(self) -> list[Tensor]:
        return [torch.randn(3, c, self.size, self.size, requires_grad=True) for c in self.channels]


def _draw_features(generator: random.Random) -> Features:
    count = generator.randrange(2, 5)
    channels = tuple(generator.randrange(2, 8) for _ in range(count))
    return Features(channels, generator.randrange(2, 6), generator.randrange(5, 10))


_FEATURES = [Features((8, 4, 4), 4, 6), Features((5,), 3, 7)]


_AGAIN = "The second pass has to compute what the first did: with the statistics of the batch."


@dataclass
class _Step:
    """What one forward and backward pass leaves behind."""

    output: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    convolved: tuple[int, int]  # runs of conv1 after the forward and after the backward pass


def _step(layer: nn.Module, features: list[Tensor], forward: Callable[..., Any]) -> _Step:
    runs = []
    layer.conv1.register_forward_hook(lambda *_: runs.append(1))
    output = engine.tensor(forward(layer, features), "the answer")
    once = len(runs)
    if not output.requires_grad:
        raise Wrong(
            "an output that depends on the features and the weights",
            "an output without a gradient",
            "A list that is passed as one argument hides its tensors from autograd: nothing would be trained. "
            "Pass the tensors one by one.",
        )
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (output * weights).sum().backward()
    gradients = {f"features[{i}]": feature.grad for i, feature in enumerate(features)}
    gradients |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    return _Step(output.detach(), gradients, buffers, (once, len(runs)))


def _steps(given: Features, answer: Any) -> tuple[_Step, _Step]:
    """The answer's step, and that of the plain layer."""
    layer, features = given.layer(), given.features()
    twin = copy.deepcopy(layer)
    twins = [feature.detach().clone().requires_grad_() for feature in features]
    return _step(layer, features, answer), _step(twin, twins, lambda of, x: of(x))


def _same_gradients(got: _Step, expected: _Step) -> None:
    if not engine.close(got.output, expected.output):
        raise Wrong("what the layer computes", "another output", "Is layer(features) computed?")
    for name, gradient in expected.gradients.items():
        theirs = got.gradients[name]
        if theirs is None:
            hint = "A list that is passed as one argument hides its tensors from autograd: pass them one by one."
            raise Wrong(f"a gradient of {name}", "none", hint)
        if not engine.close(theirs, gradient, tolerance=1e-3):
            raise Wrong(f"the plain layer's gradient of {name}", "another one", _AGAIN)


def _recomputes(got: _Step) -> None:
    if got.convolved != (1, 2):
        first, both = got.convolved
        hint = "Nothing is computed again, so everything is kept: use torch.utils.checkpoint."
        if both > 2:
            hint = "Once in the forward and once in the backward pass are enough."
        raise Wrong(
            "conv1 to run once in the forward pass, and once more in the backward pass",
            f"{first} and {both - first} times",
            hint,
        )


checkpointed = Question("checkpointed", ("checkpointed",), _FEATURES, _draw_features)


@checkpointed.property("values", "gives the layer's output, and every gradient")
def _(given: Features, checkpointed: Any) -> None:
    _same_gradients(*_steps(given, checkpointed))


@checkpointed.property("again", "keeps the features alone, and computes the layer again")
def _(given: Features, checkpointed: Any) -> None:
    _recomputes(_steps(given, checkpointed)[0])


# ------------------------------------------------------------------------------ the trap


def _plain(layer: nn.Module, features: list[Tensor]) -> Tensor:
    return layer(features)


def _twice(layer: nn.Module, features: list[Tensor]) -> Tensor:
    return checkpoint(lambda *x: layer(list(x)), *features, use_reentrant=False)


def _and_before(layer: nn.Module, features: list[Tensor]) -> Tensor:
    with torch.no_grad():
        layer(features)
    return layer(features)


def _frozen(layer: nn.Module, features: list[Tensor]) -> Tensor:
    return layer.eval()(features)


count_updates = Question("count_updates", ("count_updates",), _FEATURES, _draw_features)


def _counted(given: Features, answer: Any, forward: Any, expected: int, hint: str) -> None:
    layer, features = given.layer(), given.features()
    layer.norm1.num_batches_tracked.fill_(7)  # a layer that has been trained before
    got = answer(forward, layer, features)
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise engine.not_a(got, "count_updates", f"the number {expected}")
    if got != expected:
        raise Wrong(str(expected), str(got), hint)


@count_updates.property("plain", "finds 1 update in a plain step")
def _(given: Features, count_updates: Any) -> None:
    hint = "norm1.num_batches_tracked counts since the layer was made: what is the difference?"
    _counted(given, count_updates, _plain, 1, hint)


@count_updates.property("trap", "finds 2 updates in a checkpointed step")
def _(given: Features, count_updates: Any) -> None:
    hint = (
        "The second update comes in the backward pass. Is backward called before the second look?"
    )
    _counted(given, count_updates, _twice, 2, hint)


@count_updates.property("other", "counts for other ways to run the layer")
def _(given: Features, count_updates: Any) -> None:
    hint = "Call forward(layer, features) once, and count: do not assume a number."
    _counted(given, count_updates, _and_before, 2, hint)
    _counted(given, count_updates, _frozen, 0, hint)


checkpointed_once = Question("checkpointed_once", ("checkpointed_once",), _FEATURES, _draw_features)


@checkpointed_once.property("values", "gives the layer's output, and every gradient", _AGAIN)
def _(given: Features, checkpointed_once: Any) -> None:
    _same_gradients(*_steps(given, checkpointed_once))


@checkpointed_once.property("again", "keeps the features alone, and computes the layer again")
def _(given: Features, checkpointed_once: Any) -> None:
    _recomputes(_steps(given, checkpointed_once)[0])


@checkpointed_once.property("buffers", "moves running statistics once, as the plain layer does")
def _(given: Features, checkpointed_once: Any) -> None:
    got, expected = _steps(given, checkpointed_once)
    for name, buffer in expected.buffers.items():
        theirs = got.buffers.get(name)
        if theirs is None or not engine.close(theirs, buffer):
            hint = "Every norm of the layer needs it, and every buffer: mean, variance and the number of batches."
            if int(got.buffers.get("norm1.num_batches_tracked", 0)) == 2:
                hint = (
                    "The backward pass computes again, so the norm updates its running statistics again. Every "
                    "gradient is right, and the model predicts with wrong statistics."
                )
            elif int(got.buffers.get("norm1.num_batches_tracked", 1)) == 0:
                hint = "They have to move once: in the forward pass, as ever."
            raise Wrong(f"{name} of the plain layer", "another one", hint)


@checkpointed_once.property("later", "leaves a layer behind that goes on training as ever")
def _(given: Features, checkpointed_once: Any) -> None:
    layer = given.layer()
    twin = copy.deepcopy(layer)
    momenta = [m.momentum for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in range(2):
        features = given.features()
        _step(layer, features, checkpointed_once)
        _step(twin, [f.detach().clone().requires_grad_() for f in features], _plain)
    now = [m.momentum for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
    states = layer.state_dict(), twin.state_dict()
    if now != momenta or not all(m.training for m in layer.modules()):
        raise Wrong(
            "norms as they were",
            "momentum or training mode has changed",
            "Put back what you change.",
        )
    if states[0].keys() != states[1].keys() or not all(
        engine.close(value, states[1][name]) for name, value in states[0].items()
    ):
        hint = "After two steps the statistics are not the plain layer's. Is everything put back in time?"
        raise Wrong("the plain layer's state_dict after two steps", "another one", hint)
