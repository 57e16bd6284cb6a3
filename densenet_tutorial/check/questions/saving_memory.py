"""Assignment 3: measure what is kept for backward, checkpoint, find and fix the batch-norm trap."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import CheckpointError, checkpoint

from densenet_tutorial import layers, memory
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong
from densenet_tutorial.check.questions.building_layers import randomise

# ------------------------------------------------------------------------------ measuring


class _Square(nn.Module):
    """y = x.sigmoid(); (y * y)[:, :1] * y[:, :1].sin() * y[:, 1:].cos()"""

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        return (y * y)[:, :1] * y[:, :1].sin() * y[:, 1:].cos()


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

    def linear(self) -> nn.Module:
        """Of which the linear layer keeps a view of the input."""
        return nn.Sequential(nn.Flatten(), nn.Linear(self.channels * self.size**2, 3), nn.Sigmoid())

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


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _measured(model: nn.Module, x: Tensor, saved_bytes: Any) -> None:
    text = model.__doc__ if isinstance(model, _Square) else " ".join(str(model).split())
    expected = memory.saved_activation_bytes(model, x)
    got = engine.whole_number(saved_bytes(model, x), "saved_bytes", "a number of bytes")
    if got != expected:
        hint = _miscounted(model, x, got, expected)
        raise Wrong(f"{expected:,} bytes for the model {text}", f"{got:,}", hint)


def _miscounted(model: nn.Module, x: Tensor, got: int, expected: int) -> str:
    """What `got` in place of `expected` bytes comes from."""
    saved = _every_save(model, x)
    groups = {"the input": [x], "parameters": model.parameters(), "buffers": model.buffers()}
    there = {name: {_address(t) for t in tensors} for name, tensors in groups.items()}
    new = [t for t in saved if _address(t) not in set().union(*there.values())]
    if got == 0:
        return "Nothing was counted. Is the model run inside the hooks?"
    if 4 * got == expected or got == sum(t.numel() for t in new):
        return "That is a number of elements. How many bytes has each?"
    if got < expected:
        return "Count each storage whole, also where a saved tensor shows a part of it."
    if got in (
        sum(t.nbytes for t in new),
        sum(t.untyped_storage().nbytes() for t in new),
        sum({t.data_ptr(): t.nbytes for t in new}.values()),
        sum({t.data_ptr(): t.untyped_storage().nbytes() for t in new}.values()),
    ):
        return (
            "Saved tensors may share a storage, each with an address of its own: "
            "tensor.untyped_storage().data_ptr()."
        )
    for name, addresses in there.items():
        kept = {
            _address(t): t.untyped_storage().nbytes() for t in saved if _address(t) in addresses
        }
        if kept and got == expected + sum(kept.values()):
            return (
                f"The storages of {name} are there anyway: they do not count, also where a view of "
                "them is saved."
            )
    return (
        "Count each storage once and whole; those of the input, parameters and buffers are there "
        "anyway."
    )


@saved_bytes.property("counts", "counts what a model keeps, and not its weights or its input")
def _(given: Measured, saved_bytes: Any) -> None:
    _measured(given.convolutions(), given.x(), saved_bytes)
    _measured(given.linear(), given.x(), saved_bytes)


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

    def layer(self, drop_rate: float = 0.0) -> layers.DenseLayer:
        made = randomise(layers.DenseLayer(sum(self.channels), self.growth_rate, 2, drop_rate))
        made.norm1.momentum, made.norm2.momentum = 0.2, 0.3
        return made.train()

    def block(self) -> layers.DenseBlock:
        """A block whose first layer reads the first of the features, in training."""
        return randomise(layers.DenseBlock(3, self.channels[0], 2, self.growth_rate, 0.1)).train()

    def features(self, requires_grad: bool = True) -> list[Tensor]:
        shape = self.size, self.size
        return [torch.randn(3, c, *shape, requires_grad=requires_grad) for c in self.channels]


def _draw_features(generator: random.Random) -> Features:
    count = generator.randrange(2, 5)
    channels = tuple(generator.randrange(2, 8) for _ in range(count))
    return Features(channels, generator.randrange(2, 6), generator.randrange(5, 10))


_FEATURES = [Features((8, 4, 4), 4, 6), Features((5,), 3, 7)]


_AGAIN = (
    "The second pass has to compute what the first did: with the statistics of the batch, and "
    "with the same dropout."
)
_NO_GRADIENT = (
    "Is use_reentrant=False set? (The reentrant kind looks at tensors among its arguments: a list "
    "hides its tensors.) Is something detached, copied, or computed under no_grad?"
)


@dataclass
class _Step:
    """What one forward and backward pass leaves behind."""

    output: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    runs: dict[str, tuple[int, int]]  # in the forward and in the backward pass
    copies: int  # of what layer, norm1 and conv2 read, and is still there after the forward pass


def _step(layer: nn.Module, features: list[Tensor], forward: Callable[..., Any]) -> _Step:
    counts = {"": 0, "norm1": 0, "conv2": 0}  # "" is the layer itself
    read: list[Any] = []
    given = {_address(feature) for feature in features}

    def count(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any]) -> None:
            counts[name] += 1
            tensors = inputs[0] if isinstance(inputs[0], (list, tuple)) else inputs
            storages = [tensor.untyped_storage() for tensor in tensors]
            read.extend(StorageWeakRef(s) for s in storages if s.data_ptr() not in given)

        return hook

    hooks = [layer.get_submodule(name).register_forward_pre_hook(count(name)) for name in counts]
    torch.manual_seed(0)  # of dropout
    output = engine.tensor(forward(layer, features), "the answer")
    copies, once = sum(not storage.expired() for storage in read), dict(counts)
    if not output.requires_grad:
        got = "an output without a gradient"
        raise Wrong("an output that depends on the layer's weights", got, _NO_GRADIENT)
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    try:
        (output * weights).sum().backward()
    except CheckpointError as error:
        raise Wrong("no error", f"CheckpointError: {error}"[:200], _AGAIN) from None
    gradients = {f"features[{i}]": feature.grad for i, feature in enumerate(features)}
    gradients |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    runs = {name: (once[name], counts[name] - once[name]) for name in counts}
    for hook in hooks:
        hook.remove()
    return _Step(output.detach(), gradients, buffers, runs, copies)


def _steps(
    given: Features, answer: Any, requires_grad: bool = True, drop_rate: float = 0.0
) -> tuple[_Step, _Step]:
    """The answer's step, and that of the plain layer."""
    layer, features = given.layer(drop_rate), given.features(requires_grad)
    twin = copy.deepcopy(layer)
    twins = [feature.detach().clone().requires_grad_(requires_grad) for feature in features]
    return _step(layer, features, answer), _step(twin, twins, _plain)


def _same_gradients(given: Features, answer: Any) -> None:
    """With features that need gradients and without, and with dropout."""
    for requires_grad, drop_rate in ((True, 0.0), (False, 0.0), (True, 0.5)):
        got, expected = _steps(given, answer, requires_grad, drop_rate)
        where = f", with drop_rate={drop_rate}" if drop_rate else ""
        if not engine.close(got.output, expected.output):
            raise Wrong(
                f"what the layer computes{where}", "another output", "Is layer(features) computed?"
            )
        for name, gradient in expected.gradients.items():
            theirs = got.gradients[name]
            if gradient is None:
                continue
            if theirs is None:
                raise Wrong(f"a gradient of {name}", "none", _NO_GRADIENT)
            if not engine.close(theirs, gradient, tolerance=1e-3):
                raise Wrong(f"the plain layer's gradient of {name}{where}", "another one", _AGAIN)


def _recomputes(got: _Step) -> None:
    if got.runs["conv2"] != (1, 1):
        hint = "Nothing is computed again, so everything is kept: use torch.utils.checkpoint."
        if got.runs["norm1"][1]:
            hint = (
                "Only a part of the layer is checkpointed. Put the whole of it into the checkpoint."
            )
        if sum(got.runs["conv2"]) > 2:
            hint = "Once in the forward and once in the backward pass are enough."
        times = "{} and {} times".format(*got.runs["conv2"])
        raise Wrong("conv2 to run once in the forward and once in the backward pass", times, hint)
    if got.copies:
        raise Wrong(
            "nothing but the features to be kept",
            "their concatenation is kept as well",
            (
                "What is joined before the checkpoint is one of its inputs, and inputs are kept. "
                "Who can join them?"
            ),
        )


def _plain(layer: nn.Module, features: list[Tensor]) -> Tensor:
    return layer(features)


def _checkpointed(layer: nn.Module, features: list[Tensor], **options: Any) -> Tensor:
    return checkpoint(layer, list(features), use_reentrant=False, **options)


def _in_a_block(given: Features, answer: Any) -> None:
    """A block calls it for each layer, appends what it returns, and goes backward at the end."""
    block, x = given.block(), given.features()[0]
    twin, twin_x = copy.deepcopy(block), x.detach().clone().requires_grad_()
    for part, image, forward in ((block, x, answer), (twin, twin_x, _plain)):
        features = [image]
        for layer in part.values():
            torch.manual_seed(0)  # of dropout
            features.append(engine.tensor(forward(layer, features), "the answer"))
        output = torch.cat(features, 1)
        try:
            output.square().sum().backward()
        except RuntimeError as error:
            hint = (
                "The block appends to its list before it goes backward. The checkpoint keeps what "
                "it is given: is that the block's list, or one that nobody changes?"
            )
            text = f"{type(error).__name__}: {error}"[:200]
            raise Wrong("a backward pass through a block of such layers", text, hint) from None
    for (name, parameter), expected in zip(
        [("its input", x), *block.named_parameters()], [twin_x, *twin.parameters()], strict=True
    ):
        found, wanted = parameter.grad, expected.grad
        if found is None or wanted is None or not engine.close(found, wanted, tolerance=1e-3):
            raise Wrong(f"in a block, the plain block's gradient of {name}", "another one", _AGAIN)


checkpointed = Question("checkpointed", ("checkpointed",), _FEATURES, _draw_features)


@checkpointed.property("values", "gives the layer's output, and every gradient")
def _(given: Features, checkpointed: Any) -> None:
    _same_gradients(given, checkpointed)


@checkpointed.property("again", "keeps the features alone, and computes the layer again")
def _(given: Features, checkpointed: Any) -> None:
    _recomputes(_steps(given, checkpointed)[0])


@checkpointed.property("block", "works inside a dense block, which appends to its list")
def _(given: Features, checkpointed: Any) -> None:
    _in_a_block(given, checkpointed)


# ------------------------------------------------------------------------------ the trap


def _and_before(layer: layers.DenseLayer, features: list[Tensor]) -> Tensor:
    with torch.no_grad():
        layer.norm1(torch.cat(features, 1))
    return layer(features)


def _frozen(layer: nn.Module, features: list[Tensor]) -> Tensor:
    return layer.eval()(features)


count_updates = Question("count_updates", ("count_updates",), _FEATURES, _draw_features)
_BEFORE = 7  # updates in earlier training


def _counted(given: Features, answer: Any, forward: Any, expected: int, hint: str = "") -> None:
    layer, features = given.layer(), given.features()
    count = layer.norm1.num_batches_tracked
    assert count is not None
    count.fill_(_BEFORE)
    twin = copy.deepcopy(layer)
    got = answer(lambda *arguments: forward(*arguments), layer, features)  # handed in, not borrowed
    got = engine.whole_number(got, "count_updates")
    if got != expected:
        if got == 0:
            hint = "The counter is a tensor, and changed in place: keep its number, not the tensor."
        elif got == _BEFORE + expected:
            hint = (
                "norm1.num_batches_tracked counts since the layer was made: what is the difference?"
            )
        elif got == 2 * expected:
            hint = "norm2 counts as well. The question is about norm1 alone."
        raise Wrong(str(expected), str(got), hint)
    forward(twin, [feature.detach().clone() for feature in features]).sum().backward()
    for name, buffer in twin.named_buffers():
        if not engine.close(layer.get_buffer(name), buffer):
            hint = "Counting changes nothing: call forward once, and reset nothing."
            raise Wrong(f"{name} as this step leaves it", "another value", hint)


@count_updates.property("plain", "counts the updates of a plain step")
def _(given: Features, count_updates: Any) -> None:
    _counted(given, count_updates, _plain, 1)


@count_updates.property("trap", "counts the updates of a checkpointed step")
def _(given: Features, count_updates: Any) -> None:
    _counted(given, count_updates, _plain, 1)
    hint = "Something happens in the backward pass. Is backward called before the second look?"
    _counted(given, count_updates, _checkpointed, 2, hint)


@count_updates.property("other", "counts for other ways to run the layer")
def _(given: Features, count_updates: Any) -> None:
    hint = "Call forward(layer, features) once, and read norm1's own counter: assume no number."
    _counted(given, count_updates, _and_before, 2, hint)
    hint = "In evaluation mode nothing moves: read the counter, and do not count calls."
    _counted(given, count_updates, _frozen, 0, hint)


checkpointed_once = Question(
    "checkpointed_once",
    ("checkpointed_once",),
    _FEATURES,
    _draw_features,
    given={"checkpointed": _checkpointed},
)
_CONTEXTS = "context_fn is a function without arguments, and returns two context managers."


@checkpointed_once.property("values", "gives the layer's output, and every gradient", _CONTEXTS)
def _(given: Features, checkpointed_once: Any) -> None:
    _same_gradients(given, checkpointed_once)


@checkpointed_once.property(
    "again", "keeps the features alone, and computes the layer again", _CONTEXTS
)
def _(given: Features, checkpointed_once: Any) -> None:
    _recomputes(_steps(given, checkpointed_once)[0])


@checkpointed_once.property(
    "block", "works inside a dense block, which appends to its list", _CONTEXTS
)
def _(given: Features, checkpointed_once: Any) -> None:
    _in_a_block(given, checkpointed_once)


@checkpointed_once.property("buffers", "checkpoints, and moves running statistics once", _CONTEXTS)
def _(given: Features, checkpointed_once: Any) -> None:
    got, expected = _steps(given, checkpointed_once)
    _recomputes(got)
    moved = int(got.buffers.get("norm1.num_batches_tracked", 1))
    for name, buffer in expected.buffers.items():
        theirs = got.buffers.get(name)
        if theirs is None or not engine.close(theirs, buffer):
            hint = (
                "Every norm of the layer needs it, and every buffer: mean, variance and the "
                "number of batches."
            )
            if moved == 2:
                hint = (
                    "The backward pass computes again, so the norm updates its running statistics "
                    "again. Every gradient is right, and the model predicts with wrong statistics."
                )
            elif moved == 0:
                hint = "They have to move once: in the forward pass, as ever."
            raise Wrong(f"{name} {_short(buffer)}, as in the plain layer", _short(theirs), hint)


def _short(buffer: Tensor | None) -> str:
    """The first numbers of a buffer."""
    if buffer is None:
        return "no such buffer"
    numbers = ", ".join(f"{number:.4g}" for number in buffer.flatten()[:3].tolist())
    return f"{numbers}, …" if buffer.numel() > 3 else numbers


@checkpointed_once.property(
    "later", "leaves a layer behind that goes on training as ever", _CONTEXTS
)
def _(given: Features, checkpointed_once: Any) -> None:
    layer = given.layer()
    twin = copy.deepcopy(layer)
    norms = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for _ in range(2):
        features = given.features()
        _recomputes(_step(layer, features, checkpointed_once))
        _step(twin, [f.detach().clone().requires_grad_() for f in features], _plain)
    momenta = [norm.momentum for norm in norms]
    if momenta != before:
        hint = "Each norm has a momentum of its own: put back what was there."
        raise Wrong(f"norms with momentum {before}", str(momenta), hint)
    if not all(module.training for module in layer.modules()):
        raise Wrong("a layer in training mode", "evaluation mode", "Put back what you change.")
    states = layer.state_dict(), twin.state_dict()
    if states[0].keys() != states[1].keys() or not all(
        engine.close(value, states[1][name]) for name, value in states[0].items()
    ):
        hint = (
            "After two steps the statistics are not the plain layer's. Is everything put back in "
            "time?"
        )
        raise Wrong("the plain layer's state_dict after two steps", "another one", hint)
