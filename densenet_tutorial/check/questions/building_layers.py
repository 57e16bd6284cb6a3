"""Assignment 1: channel arithmetic, DenseLayer, DenseBlock and Transition."""

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import layers
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong

M = TypeVar("M", bound=nn.Module)

# ------------------------------------------------------------------------------ channels


@dataclass(frozen=True)
class Block:
    num_input_features: int
    growth_rate: int
    num_layers: int
    compression: float

    def __str__(self) -> str:
        return (
            f"num_input_features={self.num_input_features}, growth_rate={self.growth_rate}, "
            f"num_layers={self.num_layers}, compression={self.compression}"
        )

    @property
    def output(self) -> int:
        return self.num_input_features + self.num_layers * self.growth_rate


def _layer_inputs(num_input_features: int, growth_rate: int, num_layers: int) -> list[int]:
    return [num_input_features + i * growth_rate for i in range(num_layers)]


def _block_output(num_input_features: int, growth_rate: int, num_layers: int) -> int:
    return num_input_features + num_layers * growth_rate


def _draw_block(generator: random.Random) -> Block:
    block = Block(
        generator.randrange(3, 60),
        generator.randrange(3, 40),
        generator.randrange(3, 12),
        generator.choice([0.25, 0.75]),  # which binary numbers hold exactly, unlike 0.7
    )
    # Three quarters of a channel are dropped: whoever rounds in another way gets another number.
    return block if block.output * block.compression % 1 == 0.75 else _draw_block(generator)


channels = Question(
    "channels",
    ("layer_inputs", "block_output", "transition_output"),
    [Block(8, 4, 4, 0.5), Block(64, 32, 6, 0.5), Block(5, 3, 4, 0.75)],
    _draw_block,
)


def _number(value: Any, expected: int, what: str, hint: str) -> None:
    got = engine.whole_number(value, what, f"the number {expected}")
    if got != expected:
        raise Wrong(f"{expected} from {what}", str(got), hint)


@channels.property("layer_inputs", "layer_inputs counts what each layer of a block reads")
def _(block: Block, layer_inputs: Any, block_output: Any, transition_output: Any) -> None:
    k0, k, count = block.num_input_features, block.growth_rate, block.num_layers
    what = f"layer_inputs({k0}, {k}, {count})"
    got = layer_inputs(k0, k, count)
    if not isinstance(got, (list, tuple)):
        wrong = engine.not_a(got, what, f"a list of {count} numbers")
        if isinstance(got, Iterable):
            wrong.hint = "It holds several values, and is no list: list(…) makes one of it."
        raise wrong
    got = [engine.whole_number(value, f"each place of {what}") for value in got]
    expected = [k0 + i * k for i in range(count)]
    if got != expected:
        hint = "Layer 1 reads the block's input; each further layer reads what one more layer made."
        if got == [k0 + (i + 1) * k for i in range(count)]:
            hint = "These are the channels after each layer. What does the first layer read?"
        if got == [k0] * count:
            hint = "That is addition, as in a residual network: it keeps the number of channels."
        raise Wrong(f"{expected} from {what}", str(got), hint)


@channels.property("block_output", "block_output counts what leaves a block")
def _(block: Block, layer_inputs: Any, block_output: Any, transition_output: Any) -> None:
    k0, k, count = block.num_input_features, block.growth_rate, block.num_layers
    got = block_output(k0, k, count)
    hint = "The block's output holds its input and what every layer has made."
    if got == k0 + (count - 1) * k:
        hint = "That is what the last layer reads. The output also holds what that layer makes."
    if got == count * k:
        hint = "The block's input is part of its output."
    _number(got, block.output, f"block_output({k0}, {k}, {count})", hint)


@channels.property("transition_output", "transition_output compresses, and rounds down")
def _(block: Block, layer_inputs: Any, block_output: Any, transition_output: Any) -> None:
    _number(
        transition_output(block.output, block.compression),
        int(block.output * block.compression),
        f"transition_output({block.output}, {block.compression})",
        "The compression is the share that stays, rounded down to a whole number.",
    )


# ------------------------------------------------------------------------------ modules


def randomise(module: M) -> M:
    """Give every norm random weights and running statistics; return the module."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            if part.running_mean is not None and part.running_var is not None:
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def module(value: Any, name: str) -> nn.Module:
    """`value`, which has to be an ``nn.Module``."""
    if isinstance(value, nn.Module):
        return value
    raise Wrong(
        f"{name}(…) to be an nn.Module",
        f"a {type(value).__name__}",
        f"Begin with: class {name}(nn.Module), and call super().__init__() first.",
    )


def same_parameters(got: nn.Module, expected: nn.Module, hints: dict[str, str]) -> None:
    """Raise unless both have parameters and buffers of the same names and shapes.

    `hints` say what it means if a name is "extra", or if the first name, in the order of
    `expected`, that is not right is "missing" or has another "shape". Their keys are patterns for
    such a word and the name; the first that fits counts.
    """
    ours = {name: tuple(value.shape) for name, value in expected.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in got.state_dict().items()}
    if ours == theirs:
        return
    if not theirs:
        raise Wrong("parameters", "no parameters", not_registered(got))
    wrong = [name for name in ours if theirs.get(name) != ours[name]]
    instead = [name for name in theirs if ours.get(name) != theirs[name]]
    problems = [f"extra {name}" for name in instead if name not in ours]
    problems += [f"{'shape' if name in theirs else 'missing'} {name}" for name in wrong[:1]]
    fits = (hint for p in problems for pattern, hint in hints.items() if fnmatchcase(p, pattern))
    hint = next(fits, "")
    if wrong and sorted(ours.values()) == sorted(theirs.values()):
        hint = "The shapes are right, the names are others: use those that the question gives."
    elif len(list(got.parameters())) < len(list(got.named_parameters(remove_duplicate=False))):
        hint = "The same weights have two names: is a module stored twice?"
    elif _in_plain_container(got):
        hint = not_registered(got)
    raise Wrong(
        _few(wrong, ours) or "nothing beyond that",
        _few(instead, theirs) or "these are missing",
        hint,
    )


def _few(names: list[str], shapes: dict[str, tuple[int, ...]]) -> str:
    texts = [f"{n} {shapes[n]}" for n in names if "running" not in n and "num_batches" not in n]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def not_registered(module: nn.Module) -> str:
    """The hint for a module in which no modules are found."""
    if _in_plain_container(module):
        return "Modules in a Python list are not found. What makes them known to PyTorch?"
    return f"{engine.NOT_YET}."


def _in_plain_container(module: nn.Module) -> bool:
    """Whether a list, tuple or dictionary among its attributes holds modules."""
    held = [value for name, value in vars(module).items() if name != "_modules"]
    parts = [
        v.values() if isinstance(v, dict) else v for v in held if isinstance(v, (list, tuple, dict))
    ]
    return any(isinstance(part, nn.Module) for several in parts for part in several)


def with_weights(got: nn.Module, expected: nn.Module, hints: dict[str, str]) -> nn.Module:
    """`got` with the parameters and buffers of `expected`."""
    same_parameters(got, expected, hints)
    got.load_state_dict(expected.state_dict())
    return got


def applied(module: nn.Module, x: Tensor | list[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """What `module` makes of `x`, and the gradients by name; raise if it changes `x`."""
    leaves = [part.clone().requires_grad_() for part in ([x] if isinstance(x, Tensor) else x)]
    parts = [leaf.clone() for leaf in leaves]
    handed = parts[0] if isinstance(x, Tensor) else list(parts)
    got = engine.tensor(module(handed), f"{type(module).__name__}.forward")
    kept = isinstance(x, Tensor) or [id(part) for part in handed] == [id(part) for part in parts]
    if not kept or not all(map(torch.equal, parts, leaves)):
        hint = "What came in belongs to others. Does something change it: x += …, x.relu_(), pop?"
        raise Wrong("an input that stays as it is", "it was changed", hint)
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found: list[Any] = [None] * (len(leaves) + len(named))
    if got.requires_grad:
        weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(0))
        wanted = [*leaves, *named.values()]
        found = list(torch.autograd.grad(got, wanted, weights, allow_unused=True))
    inputs, others = found[: len(leaves)], found[len(leaves) :]
    whole = None if any(part is None for part in inputs) else torch.cat(inputs, 1)
    return got.detach(), {"the input": whole, **dict(zip(named, others, strict=True))}


def same_gradients(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise unless gradients are alike: where a ReLU reads nearly 0, they need not be the same."""
    for name, ours in expected.items():
        theirs = got.get(name)
        if theirs is None or (theirs - ours).norm() > 0.1 * ours.norm() + 1e-6:
            raise Wrong(
                f"the gradient of {name}",
                "none" if theirs is None else "another one",
                (
                    "The output is right, and what flows back from it is not. Is there detach, "
                    "no_grad or .data?"
                ),
            )


def same_function(
    answer: nn.Module,
    reference: nn.Module,
    x: Tensor,
    what: str,
    mistakes: dict[str, Callable[[], Tensor]],
) -> None:
    """Raise unless both compute the same, forward and backward, in either mode.

    `mistakes` are those of :func:`densenet_tutorial.check.engine.same_values`.
    """
    for training in (False, True):
        for part in (answer, reference):
            part.train(training)
        (got, gradients), (expected, ours) = applied(answer, x), applied(reference, x)
        if training and not engine.close(got, expected):
            hint = (
                "After .eval() that is right. Is something dropped although drop_rate is 0, or "
                "does a norm not know the mode?"
            )
            raise Wrong(f"in training mode as well: {what}", "other numbers", hint)
        others = {
            "In training mode that would be right. How does a norm learn of .eval()?": lambda: (
                reference.train()(x)
            )
        }
        engine.same_values(got, expected, what, mistakes | others)
        same_gradients(gradients, ours)


# ------------------------------------------------------------------------------ DenseLayer


@dataclass(frozen=True)
class Layer:
    num_input_features: int
    growth_rate: int
    bn_size: int
    drop_rate: float
    size: tuple[int, int, int]

    def __str__(self) -> str:
        return (
            f"DenseLayer(num_input_features={self.num_input_features}, "
            f"growth_rate={self.growth_rate}, bn_size={self.bn_size}, drop_rate={self.drop_rate}), "
            f"a tensor {tuple(self.x().shape)}"
        )

    def x(self) -> Tensor:
        n, height, width = self.size
        return torch.randn(n, self.num_input_features, height, width)

    def answer(self, DenseLayer: Any, drop_rate: float = 0.0) -> nn.Module:
        made = DenseLayer(self.num_input_features, self.growth_rate, self.bn_size, drop_rate)
        return module(made, "DenseLayer")

    def reference(self) -> layers.DenseLayer:
        made = layers.DenseLayer(self.num_input_features, self.growth_rate, self.bn_size, 0.0)
        return randomise(made)


def _draw_layer(generator: random.Random) -> Layer:
    growth_rate = generator.randrange(3, 9)
    return Layer(
        generator.randrange(2, 20) + 4 * growth_rate,  # never a number that is another one as well
        growth_rate,
        generator.randrange(2, 4),
        generator.choice([0.3, 0.5, 0.7]),
        (generator.randrange(2, 4), generator.randrange(4, 10), generator.randrange(4, 10)),
    )


dense_layer = Question(
    "dense_layer",
    ("DenseLayer",),
    [Layer(8, 4, 4, 0.0, (2, 6, 5)), Layer(12, 3, 2, 0.3, (3, 7, 7))],
    _draw_layer,
)

#: For an error that nothing explains, and for values that no known mistake computes.
_STEPS = (
    "Go through it step by step: how many channels come in and go out, and does each step do what "
    "the question says?"
)
_LAYER_HINTS = {
    "extra conv?.bias": (
        "The convolutions have no bias: a norm follows, and takes away what a bias adds."
    ),
    "* norm1.*": "A norm has as many channels as the tensor that it is given. In a dense layer it "
    "stands before the convolution: what does norm1 see?",
    "* conv1.*": (
        "conv1 makes the bottleneck: how large is its kernel, and how many channels come out?"
    ),
    "* norm2.*": (
        "A norm has as many channels as the tensor that it is given. norm2 stands before conv2."
    ),
    "* conv2.*": (
        "conv2 reads the bottleneck: how large is its kernel, and how many channels come out?"
    ),
}


@dense_layer.property("shape", "makes growth_rate new channels, and keeps height and width", _STEPS)
def _shape(layer: Layer, DenseLayer: Any) -> None:
    x = layer.x()
    got = engine.tensor(layer.answer(DenseLayer)(x), "DenseLayer.forward")
    n, c_in, h, w = x.shape
    k = layer.growth_rate
    new = (
        "The layer returns the new features alone; joining them with the old ones is the block's "
        "task."
    )
    hints = {
        (k, h - 2, w - 2): "A 3x3 convolution loses a pixel on each side. What makes up for it?",
        (k, h + 2, w + 2): "Padding belongs to the 3x3 convolution alone: around a 1x1 "
        "convolution it adds a border.",
        (c_in + k, h, w): new,
        (c_in, h, w): f"Adding new to old features is what a residual network does. {new}",
        (layer.bn_size * k, h, w): "That is the width of the bottleneck: is conv2 applied?",
    }
    engine.same_shape(got, (n, k, h, w), {(n, *key): hint for key, hint in hints.items()})


@dense_layer.property(
    "parameters", "has two norms and two convolutions, of the right sizes and names"
)
def _(layer: Layer, DenseLayer: Any) -> None:
    same_parameters(layer.answer(DenseLayer), layer.reference(), _LAYER_HINTS)


@dense_layer.property("order", "computes norm, ReLU, convolution, and that twice", _STEPS)
def _order(layer: Layer, DenseLayer: Any) -> None:
    reference = layer.reference()
    answer = with_weights(layer.answer(DenseLayer), reference, _LAYER_HINTS)
    _shape(layer, DenseLayer)
    x, what = layer.x(), "norm, ReLU, conv1, norm, ReLU, conv2"
    same_function(answer, reference, x, what, _mistakes(reference, x))


#: What may be done between one convolution and the next: the right thing, and mistakes.
_BETWEEN = {
    "": lambda norm, h: F.relu(norm(h)),
    "In which order come norm{0} and the ReLU?": lambda norm, h: norm(F.relu(h)),
    "Is there a ReLU between norm{0} and conv{0}?": lambda norm, h: norm(h),
    "norm{0} is built. Is it applied?": lambda norm, h: F.relu(h),
}


def _mistakes(r: layers.DenseLayer, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    def computed(first: Callable[..., Tensor], second: Callable[..., Tensor]) -> Tensor:
        return r.conv2(second(r.norm2, r.conv1(first(r.norm1, x))))

    mistakes = {
        f"{one.format(1)} {two.format(2)}".strip(): functools.partial(computed, first, second)
        for one, first in _BETWEEN.items()
        for two, second in _BETWEEN.items()
    }
    return mistakes | {"Is there a ReLU after conv2? Nothing asks for it.": lambda: F.relu(r(x))}


@dense_layer.property(
    "list",
    "takes one tensor, or a list of tensors that it concatenates",
    (
        "This is tried with a list of two tensors. How does forward tell it from a tensor, and "
        "join it?"
    ),
)
def _(layer: Layer, DenseLayer: Any) -> None:
    answer = with_weights(layer.answer(DenseLayer), layer.reference(), _LAYER_HINTS).eval()
    pieces = list(layer.x().split([1, layer.num_input_features - 1], 1))
    expected, ours = applied(answer, torch.cat(pieces, 1))
    got, gradients = applied(answer, pieces)
    if not engine.close(got, expected):
        listed = ", ".join(f"tensor {tuple(piece.shape)}" for piece in pieces)
        raise Wrong(
            f"for the list [{listed}] the same as for its concatenation",
            "other numbers",
            "Join the list along the channels, in the order given, and change nothing else.",
        )
    same_gradients(gradients, {name: g for name, g in ours.items() if g is not None})


@dense_layer.property(
    "dropout", "drops with drop_rate in training, after conv2, and nothing after .eval()", _STEPS
)
def _(layer: Layer, DenseLayer: Any) -> None:
    _order(layer, DenseLayer)
    reference, p = layer.reference().train(), layer.drop_rate
    answer = with_weights(layer.answer(DenseLayer, p), reference, _LAYER_HINTS).train()
    x = torch.randn(4, layer.num_input_features, 16, 16)
    expected, got = reference(x), engine.tensor(answer(x), "DenseLayer.forward")
    dropped = got == 0
    share, maps = dropped.float().mean().item(), dropped.float().mean((2, 3))
    what = f"about {p:.0%} zeros in training"
    if 0 < share and 0 < p and ((maps == 0) | (maps == 1)).all():
        raise Wrong(what, "maps that are zero as a whole", "Drop single numbers, not whole maps.")
    if abs(share - p) > 0.08:
        hint = "drop_rate is the share of zeros."
        if share < 0.02:
            hint = "Is there a dropout, with drop_rate, and does it come last, after conv2?"
        raise Wrong(what, f"{share:.0%}", hint)
    if not engine.close(got[~dropped], (expected / (1 - p))[~dropped]):
        hint = "What stays grows, so that the average does not change. Which function does both?"
        raise Wrong("what is not dropped, divided by 1 - drop_rate", "other numbers", hint)
    if not engine.close(answer.eval()(x), reference.eval()(x)):
        hint = "How does dropout learn that the layer is in evaluation mode?"
        raise Wrong("after .eval(), what comes out of conv2", "other numbers", hint)


# ------------------------------------------------------------------------------ DenseBlock


@dataclass(frozen=True)
class DenseBlockInput:
    num_layers: int
    num_input_features: int
    bn_size: int
    growth_rate: int

    def __str__(self) -> str:
        return (
            f"DenseBlock(num_layers={self.num_layers}, "
            f"num_input_features={self.num_input_features}, bn_size={self.bn_size}, "
            f"growth_rate={self.growth_rate}, drop_rate=0.0) and a tensor {tuple(self.x().shape)}"
        )

    def x(self) -> Tensor:
        return torch.randn(2, self.num_input_features, 6, 5)

    def _arguments(self) -> tuple[int, int, int | None, int]:
        return self.num_layers, self.num_input_features, self.bn_size, self.growth_rate

    def answer(self, DenseBlock: Any, drop_rate: float = 0.0) -> nn.Module:
        return module(DenseBlock(*self._arguments(), drop_rate), "DenseBlock")

    def reference(self) -> layers.DenseBlock:
        return randomise(layers.DenseBlock(*self._arguments(), 0.0))


dense_block = Question(
    "dense_block",
    ("DenseBlock",),
    [DenseBlockInput(4, 8, 4, 4), DenseBlockInput(1, 5, 2, 3)],
    lambda g: DenseBlockInput(
        g.randrange(3, 7), g.randrange(2, 20), g.randrange(2, 4), g.randrange(2, 8)
    ),
    given={
        "DenseLayer": layers.DenseLayer,
        "layer_inputs": _layer_inputs,
        "block_output": _block_output,
    },
)

_COUNT = (
    "How many channels does each layer see? Count by hand for layer 3: the block's input, and "
    "what two layers have added."
)
_BLOCK_HINTS = {
    "shape denselayer*.norm1.*": _COUNT,
    "shape denselayer*": "In which order does DenseLayer take its arguments?",
    "*": "The layers are called denselayer1, denselayer2, …, and there are num_layers of them.",
}


@dense_block.property(
    "shape", "puts out the input's channels and growth_rate more per layer", _COUNT
)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    x = block.x()
    got = engine.tensor(block.answer(DenseBlock)(x), "DenseBlock.forward")
    n, c_in, h, w = x.shape
    k, count = block.growth_rate, block.num_layers
    hints = {
        k: "Only the last layer's features come out. Concatenate; neither replace nor add.",
        c_in: "Addition keeps the number of channels; concatenation adds to it.",
        count * k: "The block's input is part of its output.",
        c_in + k: "Only one layer's features are joined to the input.",
    }
    expected = (n, c_in + count * k, h, w)
    engine.same_shape(got, expected, {(n, c, h, w): hint for c, hint in hints.items()})


@dense_block.property(
    "wiring", "layer l reads num_input_features + (l - 1) growth_rate channels", _COUNT
)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    answer = block.answer(DenseBlock)
    norms = [getattr(part, "norm1", None) for part in answer.modules()]
    got = [norm.num_features for norm in norms if isinstance(norm, nn.BatchNorm2d)]
    expected = [block.num_input_features + i * block.growth_rate for i in range(block.num_layers)]
    if got != expected:
        hint = _COUNT if got else not_registered(answer)
        raise Wrong(f"layers that read {expected} channels", str(got), hint)


@dense_block.property(
    "values", "the output holds the input first, then each layer's features in order", _STEPS
)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    reference, x = block.reference(), block.x()
    answer = with_weights(block.answer(DenseBlock), reference, _BLOCK_HINTS)
    pieces = reference.eval()(x).split([x.shape[1]] + [block.growth_rate] * block.num_layers, 1)
    mistakes = {
        (
            "The order is [new, old]. Old features come first, or published weights predict "
            "nonsense."
        ): (lambda: _new_first(reference, x)),
        "The input is not the first thing in the output.": lambda: torch.cat(
            [*pieces[1:], pieces[0]], 1
        ),
        "The features are in reverse order.": lambda: torch.cat(pieces[::-1], 1),
    }
    what = "torch.cat([input, layer 1, layer 2, …], 1)"
    same_function(answer, reference, x, what, mistakes)


def _new_first(block: layers.DenseBlock, x: Tensor) -> Tensor:
    for layer in block.values():
        x = torch.cat([layer(x), x], 1)
    return x


@dense_block.property("drop_rate", "each layer drops its new features with drop_rate", _STEPS)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    answer = block.answer(DenseBlock, 0.5).train()
    x = torch.randn(4, block.num_input_features, 16, 16)
    got = engine.tensor(answer(x), "DenseBlock.forward")
    zeros = (got == 0).float().mean((0, 2, 3))
    expected = torch.tensor([0.0] * x.shape[1] + [0.5] * (block.num_layers * block.growth_rate))
    if zeros.shape != expected.shape or (zeros - expected).abs().max() > 0.1:
        first = x.shape[1]
        raise Wrong(
            (
                "with drop_rate=0.5 instead, in training: about 50 % zeros among the new "
                "features, none in the input's"
            ),
            (
                f"{zeros[first:].mean():.0%} among the new features, {zeros[:first].mean():.0%} in "
                "the input's"
            ),
            "Where does drop_rate go, and what is dropped by whom?",
        )


# ------------------------------------------------------------------------------ Transition


@dataclass(frozen=True)
class TransitionInput:
    num_input_features: int
    num_output_features: int
    size: tuple[int, int, int]

    def __str__(self) -> str:
        return (
            f"Transition(num_input_features={self.num_input_features}, "
            f"num_output_features={self.num_output_features}) and a tensor {tuple(self.x().shape)}"
        )

    def x(self) -> Tensor:
        n, height, width = self.size
        return torch.randn(n, self.num_input_features, height, width)

    def answer(self, Transition: Any) -> nn.Module:
        made = Transition(self.num_input_features, self.num_output_features)
        return module(made, "Transition")

    def reference(self) -> layers.Transition:
        return randomise(layers.Transition(self.num_input_features, self.num_output_features))


transition = Question(
    "transition",
    ("Transition",),
    [TransitionInput(24, 12, (2, 8, 8)), TransitionInput(9, 5, (1, 7, 6))],
    lambda g: TransitionInput(
        g.randrange(6, 30),
        g.randrange(2, 6),
        (g.randrange(1, 4), g.randrange(4, 12), g.randrange(4, 12)),
    ),
)
_TRANSITION_HINTS = {
    "extra conv.bias": "The convolution has no bias: the next block begins with a norm.",
    "* norm.*": "The norm stands before the convolution: how many channels does it see?",
    "* conv.*": "The convolution is 1x1, from num_input_features to num_output_features.",
}


@transition.property(
    "shape",
    "makes num_output_features channels, at half the height and width, rounded down",
    _STEPS,
)
def _(given: TransitionInput, Transition: Any) -> None:
    n, h, w = given.size
    got = engine.tensor(given.answer(Transition)(given.x()), "Transition.forward")
    c_in, c_out = given.num_input_features, given.num_output_features
    hints = {
        (
            c_out,
            -(-h // 2),
            -(-w // 2),
        ): "What becomes of the last row if the height is odd? Is the pooling 2x2, with stride 2 "
        "and no padding?",
        (c_out, h, w): "Where is the 2x2 average pooling?",
        (c_in, h // 2, w // 2): "The 1x1 convolution changes the number of channels.",
        (c_out, h - 1, w - 1): "The pooling needs stride 2.",
    }
    expected = (n, c_out, h // 2, w // 2)
    engine.same_shape(got, expected, {(n, *key): hint for key, hint in hints.items()})


@transition.property("values", "computes norm, ReLU, 1x1 convolution, average pooling", _STEPS)
def _(given: TransitionInput, Transition: Any) -> None:
    r, x = given.reference(), given.x()
    answer = with_weights(given.answer(Transition), r, _TRANSITION_HINTS)

    def ours(conv: Any = r.conv, pool: Any = r.pool) -> Tensor:
        return pool(conv(F.relu(r.norm(x))))

    mistakes = {
        "The pooling takes the largest value; what should it take?": lambda: ours(
            pool=lambda h: F.max_pool2d(h, 2)
        ),
        "Every second pixel is dropped. The pooling has to average.": lambda: ours(
            pool=lambda h: h[:, :, ::2, ::2]
        ),
        "How many numbers does the pooling average? 2x2, without padding.": lambda: ours(
            pool=lambda h: F.avg_pool2d(h, 3, 2, 1)
        ),
        "Is there a ReLU between norm and conv?": lambda: r.pool(r.conv(r.norm(x))),
        "In which order come norm and ReLU?": lambda: r.pool(r.conv(r.norm(F.relu(x)))),
        "The norm is built. Is it applied?": lambda: r.pool(r.conv(F.relu(x))),
        "The ReLU stands in another place: norm, ReLU, convolution.": lambda: F.relu(
            r.pool(r.conv(r.norm(x)))
        ),
        (
            "Does the pooling come before the ReLU? An average of both signs is another number."
        ): lambda: r.conv(F.relu(r.pool(r.norm(x)))),
        "Is there a second ReLU, after the convolution?": lambda: F.relu(ours()),
        "Is there a second ReLU, before the pooling?": lambda: ours(
            conv=lambda h: F.relu(r.conv(h))
        ),
    }
    same_function(answer, r, x, "norm, ReLU, conv, average pooling", mistakes)
