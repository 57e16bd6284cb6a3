"""Assignment 1: channel arithmetic, DenseLayer, DenseBlock and Transition."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import layers
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong

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


def _draw_block(generator: random.Random) -> Block:
    # Odd growth rates and few even sums, so that rounding matters.
    return Block(
        generator.randrange(3, 60),
        generator.randrange(3, 40, 2),
        generator.randrange(3, 12),
        generator.choice([0.3, 0.5, 0.7, 0.9]),
    )


channels = Question(
    "channels",
    ("layer_inputs", "block_output", "transition_output"),
    [Block(8, 4, 4, 0.5), Block(64, 32, 6, 0.5), Block(5, 3, 3, 0.5)],
    _draw_block,
)


def _number(value: Any, expected: int, what: str, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise engine.not_a(value, what, f"the number {expected}")
    if value != expected:
        raise Wrong(f"{expected} from {what}", str(value), hint)


@channels.property("layer_inputs", "layer_inputs counts what each layer of a block reads")
def _(block: Block, layer_inputs: Any, block_output: Any, transition_output: Any) -> None:
    k0, k, count = block.num_input_features, block.growth_rate, block.num_layers
    what = f"layer_inputs({k0}, {k}, {count})"
    got = layer_inputs(k0, k, count)
    if not isinstance(got, (list, tuple)):
        raise engine.not_a(got, what, f"a list of {count} numbers")
    expected = [k0 + i * k for i in range(count)]
    if list(got) != expected:
        hint = "Layer 1 reads the block's input; each further layer reads what one more layer made."
        if list(got) == [k0 + (i + 1) * k for i in range(count)]:
            hint = "These are the channels after each layer. What does the first layer read?"
        if list(got) == [k0] * count:
            hint = "That is addition, as in a residual network: it keeps the number of channels."
        raise Wrong(f"{expected} from {what}", str(list(got)), hint)


@channels.property("block_output", "block_output counts what leaves a block")
def _(block: Block, layer_inputs: Any, block_output: Any, transition_output: Any) -> None:
    k0, k, count = block.num_input_features, block.growth_rate, block.num_layers
    got = block_output(k0, k, count)
    hint = "The block's output holds its input and what every layer has made."
    if got == k0 + (count - 1) * k:
        hint = "That is what the last layer reads. The output also holds what that layer makes."
    if got == count * k:
        hint = "The block's input is part of its output."
    _number(got, k0 + count * k, f"block_output({k0}, {k}, {count})", hint)


@channels.property("transition_output", "transition_output compresses, and rounds down")
def _(block: Block, layer_inputs: Any, block_output: Any, transition_output: Any) -> None:
    count = block.num_input_features + block.num_layers * block.growth_rate
    got = transition_output(count, block.compression)
    _number(
        got,
        int(count * block.compression),
        f"transition_output({count}, {block.compression})",
        "The compression is the share that stays, rounded down to a whole number.",
    )


# ------------------------------------------------------------------------------ modules


def randomise(module: nn.Module) -> nn.Module:
    """Give every norm weights and statistics with which it changes something; return the module."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
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

    `hints` say what it means when the key that they are for is missing, superfluous or of another shape: the first
    that fits is given.
    """
    ours = {name: tuple(value.shape) for name, value in expected.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in got.state_dict().items()}
    if ours == theirs:
        return
    if not theirs:
        raise Wrong("parameters", "no parameters", engine.NOT_YET)
    wrong = [f"{name} {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
    instead = [f"{name} {theirs[name]}" for name in theirs if ours.get(name) != theirs[name]]
    names = {text.split(" ")[0] for text in wrong + instead}
    hint = next((hint for key, hint in hints.items() if key in names), "")
    if sorted(ours.values()) == sorted(theirs.values()):
        hint = "The shapes are right, the names are others: use those that the question gives."
    raise Wrong(_few(wrong) or "nothing beyond that", _few(instead) or "these are missing", hint)


def _few(texts: list[str]) -> str:
    texts = [text for text in texts if "running" not in text and "num_batches" not in text]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def with_weights(got: nn.Module, expected: nn.Module, hints: dict[str, str]) -> nn.Module:
    """`got` with the parameters and buffers of `expected`."""
    same_parameters(got, expected, hints)
    got.load_state_dict(expected.state_dict())
    return got


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
            f"DenseLayer(num_input_features={self.num_input_features}, growth_rate={self.growth_rate}, "
            f"bn_size={self.bn_size}, drop_rate={self.drop_rate}), a tensor {tuple(self.x().shape)}"
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
    [Layer(8, 4, 4, 0.0, (2, 6, 5)), Layer(12, 3, 2, 0.5, (3, 7, 7))],
    _draw_layer,
)

_LAYER_HINTS = {
    "conv2.weight": "Where is the bottleneck? conv1 is 1x1 and makes bn_size * growth_rate channels; "
    "conv2 is 3x3 and makes growth_rate.",
    "norm1.weight": "A norm has as many channels as the tensor that it is given. In a dense layer it stands "
    "before the convolution, so norm1 sees what comes in.",
    "norm2.weight": "A norm has as many channels as the tensor that it is given. norm2 stands before conv2, "
    "so it sees the bottleneck.",
    "conv1.weight": "conv1 is 1x1, and makes bn_size * growth_rate channels.",
    "conv1.bias": "A convolution that is followed by a norm needs no bias: bias=False in both.",
    "conv2.bias": "The next layer begins with a norm, so a bias has no use: bias=False in both.",
}


@dense_layer.property(
    "shape",
    "makes growth_rate new channels, and keeps height and width",
    "Follow the number of channels from one module to the next.",
)
def _(layer: Layer, DenseLayer: Any) -> None:
    _forward(layer, layer.answer(DenseLayer), layer.x())


def _forward(layer: Layer, answer: nn.Module, x: Tensor | list[Tensor]) -> Tensor:
    """The answer's output, which has to have the right shape."""
    got = engine.tensor(answer(x), "DenseLayer.forward")
    n, _, height, width = (x[0] if isinstance(x, list) else x).shape
    k, c_in = layer.growth_rate, layer.num_input_features
    new = "The layer returns the new features alone; joining them with the old ones is the block's task."
    engine.same_shape(
        got,
        (n, k, height, width),
        {
            (
                n,
                k,
                height - 2,
                width - 2,
            ): "A 3x3 convolution loses a pixel on each side, unless its padding makes up for it.",
            (
                n,
                k,
                height + 2,
                width + 2,
            ): "Padding belongs to the 3x3 convolution alone: around a 1x1 "
            "convolution it adds a border.",
            (n, c_in + k, height, width): new,
            (n, c_in, height, width): "Adding new to old features is what a residual network does. "
            + new,
            (
                n,
                layer.bn_size * k,
                height,
                width,
            ): "That is the width of the bottleneck: is conv2 applied?",
        },
    )
    return got


@dense_layer.property(
    "parameters", "has two norms and two convolutions, of the right sizes and names"
)
def _(layer: Layer, DenseLayer: Any) -> None:
    same_parameters(layer.answer(DenseLayer), layer.reference(), _LAYER_HINTS)


@dense_layer.property("order", "computes norm, ReLU, convolution, and that twice")
def _(layer: Layer, DenseLayer: Any) -> None:
    reference, x = layer.reference(), layer.x()
    answer = with_weights(layer.answer(DenseLayer), reference, _LAYER_HINTS)
    for training in (True, False):
        for part in (reference, answer):
            part.train(training)
        engine.same_values(
            _forward(layer, answer, x),
            reference(x),
            "norm, ReLU, conv1, norm, ReLU, conv2",
            _mistakes(reference, x),
        )


def _mistakes(r: layers.DenseLayer, x: Tensor) -> dict[str, Any]:
    def second(h: Tensor) -> Tensor:
        return r.conv2(F.relu(r.norm2(h)))

    def first() -> Tensor:
        return r.conv1(F.relu(r.norm1(x)))

    no_relu = "Somewhere the ReLU between norm and convolution is missing."
    return {
        "The norm comes before the ReLU, both times.": lambda: r.conv2(
            r.norm2(F.relu(r.conv1(r.norm1(F.relu(x)))))
        ),
        no_relu + " (before conv1)": lambda: second(r.conv1(r.norm1(x))),
        no_relu + " (before conv2)": lambda: r.conv2(r.norm2(first())),
        no_relu + " (both)": lambda: r.conv2(r.norm2(r.conv1(r.norm1(x)))),
        "norm1 is built, and never applied.": lambda: second(r.conv1(F.relu(x))),
        "norm2 is built, and never applied.": lambda: r.conv2(F.relu(first())),
        "There is a ReLU too many at the end.": lambda: F.relu(second(first())),
    }


@dense_layer.property(
    "list",
    "takes one tensor, or a list of tensors that it concatenates",
    "Ask with isinstance whether the input is a tensor; join a list along dimension 1.",
)
def _(layer: Layer, DenseLayer: Any) -> None:
    reference, x = layer.reference().eval(), layer.x()
    answer = with_weights(layer.answer(DenseLayer), reference, _LAYER_HINTS).eval()
    whole = _forward(layer, answer, x)
    pieces = [piece.clone() for piece in x.split([1, x.shape[1] - 1], dim=1)]
    got = _forward(layer, answer, pieces)
    if not engine.close(got, whole):
        raise Wrong(
            "the same output for a list as for its concatenation",
            "another one",
            "Join the list along the channels, in the order given, and change nothing else.",
        )


@dense_layer.property(
    "dropout", "drops with drop_rate in training, after conv2, and nothing after .eval()"
)
def _(layer: Layer, DenseLayer: Any) -> None:
    reference = layer.reference()
    answer = with_weights(layer.answer(DenseLayer, layer.drop_rate), reference, _LAYER_HINTS)
    x = torch.randn(4, layer.num_input_features, 16, 16)
    for part in (reference, answer):
        part.train()
    plain, got = reference(x), _forward(layer, answer, x)
    zeros, p = (got == 0).float().mean().item(), layer.drop_rate
    if abs(zeros - p) > 0.08:
        hint = (
            "Dropout comes last, after conv2."
            if zeros < 0.02
            else "p=drop_rate is the share of zeros."
        )
        raise Wrong(f"about {p:.0%} zeros in training", f"{zeros:.0%}", hint)
    if p and not engine.close(got[got != 0], (plain / (1 - p))[got != 0]):
        raise Wrong(
            "what is not dropped, divided by 1 - drop_rate", "other numbers", "Use F.dropout."
        )
    answer.eval()
    if p and (answer(x) == 0).float().mean() > 0.02:
        raise Wrong(
            "no zeros after .eval()",
            "dropout in evaluation",
            "F.dropout drops always, unless it is told training=self.training.",
        )


# ------------------------------------------------------------------------------ DenseBlock


@dataclass(frozen=True)
class DenseBlockInput:
    num_layers: int
    num_input_features: int
    bn_size: int
    growth_rate: int

    def __str__(self) -> str:
        return (
            f"DenseBlock(num_layers={self.num_layers}, num_input_features={self.num_input_features}, "
            f"bn_size={self.bn_size}, growth_rate={self.growth_rate}, drop_rate=0.0) "
            f"and a tensor {tuple(self.x().shape)}"
        )

    def x(self) -> Tensor:
        return torch.randn(2, self.num_input_features, 6, 5)

    def _arguments(self) -> tuple:
        return self.num_layers, self.num_input_features, self.bn_size, self.growth_rate, 0.0

    def answer(self, DenseBlock: Any) -> nn.Module:
        return module(DenseBlock(*self._arguments()), "DenseBlock")

    def reference(self) -> layers.DenseBlock:
        return randomise(layers.DenseBlock(*self._arguments()))


dense_block = Question(
    "dense_block",
    ("DenseBlock",),
    [DenseBlockInput(4, 8, 4, 4), DenseBlockInput(1, 5, 2, 3)],
    lambda g: DenseBlockInput(
        g.randrange(3, 7), g.randrange(2, 20), g.randrange(2, 4), g.randrange(2, 8)
    ),
    given={"DenseLayer": layers.DenseLayer},
)

_COUNT = (
    "How many channels does each layer see? Count by hand for layer 3: the block's input, and what two "
    "layers have added."
)
_BLOCK_HINTS = {
    "denselayer1.norm1.weight": "Add each layer under the name denselayer1, denselayer2, …"
}


@dense_block.property(
    "shape", "puts out the input's channels and growth_rate more per layer", _COUNT
)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    x = block.x()
    got = engine.tensor(block.answer(DenseBlock)(x), "DenseBlock.forward")
    n, c_in, height, width = x.shape
    k, count = block.growth_rate, block.num_layers
    engine.same_shape(
        got,
        (n, c_in + count * k, height, width),
        {
            (
                n,
                k,
                height,
                width,
            ): "Only the last layer's features come out. Concatenate; neither replace nor add.",
            (
                n,
                c_in,
                height,
                width,
            ): "Addition keeps the number of channels; concatenation adds to it.",
            (n, count * k, height, width): "The block's input is part of its output.",
            (n, c_in + k, height, width): "Only one layer's features are joined to the input.",
        },
    )


@dense_block.property(
    "wiring", "layer l reads num_input_features + (l - 1) growth_rate channels", _COUNT
)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    found = [
        m for m in block.answer(DenseBlock).modules() if isinstance(m, _layer_type(DenseBlock))
    ]
    got = [layer.norm1.num_features for layer in found]
    expected = [block.num_input_features + i * block.growth_rate for i in range(block.num_layers)]
    if got != expected:
        hint = _COUNT
        if not found:
            hint = f"Modules in a Python list are not found: add_module makes them known. {engine.NOT_YET}"
        raise Wrong(f"layers that read {expected} channels", str(got), hint)


def _layer_type(DenseBlock: Any) -> type:
    """The DenseLayer that an answer uses: the student's own in a notebook, ours in grading."""
    init = getattr(DenseBlock, "__init__", None)
    return getattr(init, "__globals__", {}).get("DenseLayer", layers.DenseLayer)


@dense_block.property(
    "values", "the output holds the input first, then each layer's features in order"
)
def _(block: DenseBlockInput, DenseBlock: Any) -> None:
    reference, x = block.reference().eval(), block.x()
    answer = with_weights(block.answer(DenseBlock), reference, _BLOCK_HINTS).eval()
    before = x.clone()
    got = engine.tensor(answer(x), "DenseBlock.forward")
    if not torch.equal(x, before):
        raise Wrong("an input that stays as it is", "it was changed", "Is something done in place?")
    expected = reference(x)
    pieces = expected.split([x.shape[1]] + [block.growth_rate] * block.num_layers, dim=1)
    engine.same_values(
        got,
        expected,
        "torch.cat([input, layer 1, layer 2, …], 1)",
        {
            "The order is [new, old]. Old features come first, or published weights predict nonsense.": (
                lambda: _new_first(reference, x)
            ),
            "The input is not the first thing in the output.": lambda: torch.cat(
                [*pieces[1:], pieces[0]], 1
            ),
            "The features are in reverse order.": lambda: torch.cat(pieces[::-1], 1),
        },
    )


def _new_first(block: layers.DenseBlock, x: Tensor) -> Tensor:
    for layer in block.values():
        x = torch.cat([layer(x), x], 1)
    return x


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
    [TransitionInput(24, 12, (2, 8, 8)), TransitionInput(9, 4, (1, 7, 6))],
    lambda g: TransitionInput(
        g.randrange(6, 30),
        g.randrange(2, 6),
        (g.randrange(1, 4), g.randrange(4, 12), g.randrange(4, 12)),
    ),
)
_TRANSITION_HINTS = {
    "norm.weight": "The norm stands before the convolution: it sees num_input_features channels.",
    "conv.weight": "The convolution is 1x1, from num_input_features to num_output_features.",
    "conv.bias": "bias=False: the next block begins with a norm.",
}


@transition.property(
    "shape", "makes num_output_features channels, at half the height and width, rounded down"
)
def _(given: TransitionInput, Transition: Any) -> None:
    n, height, width = given.size
    got = engine.tensor(given.answer(Transition)(given.x()), "Transition.forward")
    c_in, c_out = given.num_input_features, given.num_output_features
    engine.same_shape(
        got,
        (n, c_out, height // 2, width // 2),
        {
            (n, c_out, height, width): "Where is the 2x2 average pooling?",
            (
                n,
                c_in,
                height // 2,
                width // 2,
            ): "The 1x1 convolution changes the number of channels.",
            (n, c_out, height - 1, width - 1): "The pooling needs stride 2.",
            (n, c_out, -(-height // 2), -(-width // 2)): "Odd sizes are rounded down.",
        },
    )


@transition.property("values", "computes norm, ReLU, 1x1 convolution, average pooling")
def _(given: TransitionInput, Transition: Any) -> None:
    r, x = given.reference().eval(), given.x()
    answer = with_weights(given.answer(Transition), r, _TRANSITION_HINTS).eval()
    got = engine.tensor(answer(x), "Transition.forward")
    mistakes = {
        "The pooling takes the largest value; it has to take the average.": lambda: F.max_pool2d(
            r.conv(F.relu(r.norm(x))), 2
        ),
        "The ReLU is missing.": lambda: r.pool(r.conv(r.norm(x))),
        "The norm comes before the ReLU.": lambda: r.pool(r.conv(r.norm(F.relu(x)))),
        "The norm is built, and never applied.": lambda: r.pool(r.conv(F.relu(x))),
        "Norm, ReLU, convolution: the ReLU stands in another place.": lambda: F.relu(
            r.pool(r.conv(r.norm(x)))
        ),
        "Every second pixel is dropped. The pooling has to average.": lambda: r.conv(
            F.relu(r.norm(x))
        )[:, :, ::2, ::2],
    }
    engine.same_values(got, r(x), "norm, ReLU, conv, average pooling", mistakes)
