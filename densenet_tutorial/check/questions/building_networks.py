"""Assignment 2: the whole network, counting its parameters, reading a summary, training."""

import copy
import functools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import data, layers, network
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong
from densenet_tutorial.check.questions.building_layers import (
    module,
    randomise,
    same_function,
    same_parameters,
    with_weights,
)

_GIVEN = {
    "DenseLayer": layers.DenseLayer,
    "DenseBlock": layers.DenseBlock,
    "Transition": layers.Transition,
}


_ARGUMENTS = ("growth_rate", "block_config", "num_init_features", "bn_size", "num_classes")


@dataclass(frozen=True)
class Config:
    """Arguments of a DenseNet. It shows itself as the call that is tried with them."""

    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    bn_size: int
    num_classes: int

    call = "{}"

    def __str__(self) -> str:
        return self.call.format(", ".join(map(str, self.arguments())))

    def arguments(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _ARGUMENTS)

    def reference(self) -> network.DenseNet:
        growth_rate, block_config, num_init_features, bn_size, num_classes = self.arguments()
        return network.DenseNet(
            growth_rate, block_config, num_init_features, bn_size, 0.0, num_classes
        )


def _draw_config(kind: type[Config]) -> Callable[[random.Random], Any]:
    def draw(generator: random.Random) -> Config:
        blocks = generator.randrange(2, 5)
        return kind(
            generator.randrange(3, 9),
            tuple(generator.randrange(1, 4) for _ in range(blocks)),
            generator.randrange(5, 16),
            generator.randrange(2, 4),
            generator.randrange(2, 20),
        )

    return draw


# ------------------------------------------------------------------------------ DenseNet


@dataclass(frozen=True)
class Built(Config):
    """And the images to try it on."""

    size: int = 64

    def __str__(self) -> str:
        named = map("{}={}".format, _ARGUMENTS, self.arguments())
        return f"DenseNet({', '.join(named)}), images of {self.size} by {self.size} pixels"

    def answer(self, DenseNet: Any) -> nn.Module:
        return module(DenseNet(*self.arguments()), "DenseNet")


dense_net = Question(
    "dense_net",
    ("DenseNet",),
    [Built(4, (2, 3), 8, 2, 10), Built(6, (1, 2, 2), 9, 4, 7, size=96)],
    lambda g: replace(_draw_config(Built)(g), size=g.choice([64, 72, 96])),
    given=_GIVEN,
    draws=3,
)
_STEPS = (
    "Go through it step by step: how many channels come in and go out? The classifier sees one "
    "number per channel, the average over the whole map, whatever its size."
)
#: For the first name that is wrong, in the order of the network.
_HINTS = {
    "extra features.conv0.bias": "The stem's convolution has no bias: a norm follows.",
    "* features.conv0.*": (
        "The stem begins with a 7x7 convolution, from colour images to num_init_features channels."
    ),
    "* features.norm0.*": "What follows the stem's convolution, and how many channels does it see?",
    "missing features.denseblock*.denselayer1.*": (
        "How many blocks are there, and what are they called inside features?"
    ),
    "missing features.denseblock*": (
        "How many layers has this block? In which order does DenseBlock take its arguments?"
    ),
    "shape features.denseblock1.denselayer1.norm1.*": "What does the first block read? In which "
    "order does DenseBlock take its arguments?",
    "shape features.denseblock*.denselayer1.norm1.*": "This block reads what the transition "
    "before it puts out: half of the channels, rounded down.",
    "shape features.denseblock*": (
        "Does DenseBlock get your growth_rate and bn_size, each in its place?"
    ),
    "* features.transition*.norm.*": "A transition stands between two blocks. It reads the "
    "block's input, and what every layer has added.",
    "* features.transition*.conv.*": "A transition keeps half of its channels, rounded down.",
    "* features.norm5.*": "What comes after the last block, and for how many channels?",
    "* classifier.*": (
        "The classifier is an nn.Linear, with a bias, from the channels of norm5 to num_classes."
    ),
}


@dense_net.property("shape", "turns images of any size into num_classes numbers each", _STEPS)
def _(config: Built, DenseNet: Any) -> None:
    answer = config.answer(DenseNet).eval()
    one = "One image came in, and its dimension is gone. What does squeeze() take away?"
    for number, size in ((2, config.size), (1, config.size + 32)):
        got = engine.tensor(answer(torch.randn(number, 3, size, size)), "DenseNet.forward")
        hints = {
            (number, config.num_classes, 1, 1): "Flatten what is pooled before the classifier.",
            (config.num_classes,): one,
        }
        engine.same_shape(got, (number, config.num_classes), hints)


@dense_net.property("parameters", "has torchvision's parameters, by name and by shape")
def _(config: Built, DenseNet: Any) -> None:
    same_parameters(config.answer(DenseNet), config.reference(), _hints(config))


def _hints(config: Config) -> dict[str, str]:
    last = f"extra features.transition{len(config.block_config)}.*"
    return {last: "Between which blocks is there a transition? None comes after the last."} | _HINTS


@dense_net.property("values", "computes what DenseNet computes", _STEPS)
def _(config: Built, DenseNet: Any) -> None:
    r, x = randomise(config.reference()).eval(), torch.randn(2, 3, config.size, config.size)
    answer = with_weights(config.answer(DenseNet), r, _hints(config))

    def ours(pooled: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: r.classifier(pooled(r.features(x)))

    mistakes = {
        "What stands between norm5 and the average?": ours(lambda h: h.mean((2, 3))),
        "The ReLU comes before the average.": ours(lambda h: F.relu(h.mean((2, 3)))),
        "The global pooling takes the largest value; what should it take?": ours(
            lambda h: F.relu(h).amax((2, 3))
        ),
        "The global pooling adds up; what should it take?": ours(lambda h: F.relu(h).sum((2, 3))),
        "Return the classifier's numbers as they are: the loss applies softmax.": lambda: r(
            x
        ).softmax(1),
        "Return the classifier's numbers as they are: the loss applies log-softmax.": lambda: r(
            x
        ).log_softmax(1),
    }
    if differs := _difference(answer, r):
        mistakes[differs] = lambda: answer.eval()(x)
    what = "stem, blocks and transitions, norm5, ReLU, global average pooling, classifier"
    same_function(answer, r, x, what, mistakes)


def _difference(answer: Any, reference: Any) -> str:
    """The first module of `features` that differs from the reference, as a hint."""
    theirs: list[tuple[str, Any]] = list(answer.features.named_children())
    ours: list[tuple[str, Any]] = list(reference.features.named_children())
    nothing: tuple[str, Any] = ("nothing", None)
    for (their_name, part), (name, expected) in zip_longest(theirs, ours, fillvalue=nothing):
        if their_name != name:
            return f"In features stands {their_name} where the question has {name}."
        simple = not list(part.children())
        if simple and _settings(part) != _settings(expected):
            return f"Compare {name} with the question. Yours is {part}."
    return ""


def _settings(module: nn.Module) -> str:
    return str(module).replace("inplace=True", "")


# ------------------------------------------------------------------------------ counting


class Counted(Config):
    call = "count_parameters({})"


count_parameters = Question(
    "count_parameters",
    ("count_parameters",),
    [
        Counted(32, (6, 12, 24, 16), 64, 4, 1000),
        Counted(4, (2, 3), 8, 2, 10),
        Counted(6, (1, 2, 2), 9, 4, 7),
        Counted(1, (1,), 1, 1, 2),
    ],
    _draw_config(Counted),
    draws=6,
)


def _halved(channels: int) -> int:
    return channels // 2


def _terms(
    config: Config,
    image: int = 3,
    kernel: int = 7,
    kept: Callable[[int], int] = _halved,
    then: Callable[[int], int] = _halved,
    after_last: bool = False,
) -> Counter[str]:
    """The parameters by kind. The other arguments are for mistakes: what a transition's convolution
    puts out (`kept`), say, and what goes on from there (`then`)."""
    growth_rate, block_config, channels, bn_size, num_classes = config.arguments()
    bottleneck = bn_size * growth_rate
    terms = Counter({"the stem's convolution": image * channels * kernel**2, "norm0": 2 * channels})
    for i, num_layers in enumerate(block_config, start=1):
        for _ in range(num_layers):
            terms["the layers' norm1"] += 2 * channels
            terms["the layers' 1x1 convolutions"] += channels * bottleneck
            terms["the layers' norm2"] += 2 * bottleneck
            terms["the layers' 3x3 convolutions"] += bottleneck * growth_rate * 9
            channels += growth_rate
        if i < len(block_config) or after_last:
            terms["the transitions' norms"] += 2 * channels
            terms["the transitions' convolutions"] += channels * kept(channels)
            channels = then(channels)
    terms["norm5"] = 2 * channels
    terms["the classifier's weights"] = channels * num_classes
    terms["the classifier's bias"] = num_classes
    return terms


def _mistakes(config: Config) -> Iterator[tuple[int, str]]:
    """What common mistakes count, and what to think about."""
    terms = _terms(config)
    count = sum(terms.values())
    norms = sum(number for kind, number in terms.items() if "norm" in kind)
    yield (
        count + norms,
        ("Running mean and variance are buffers: no gradient trains them, so they do not count."),
    )
    for kind, number in [*terms.items(), ("all norms", norms)]:
        yield count - number, f"Exactly the parameters of {kind} are missing."
        yield count + number, f"Exactly the parameters of {kind} are too many."

    def same(channels: int) -> int:
        return channels

    def up(channels: int) -> int:
        return -(-channels // 2)

    where = "Between which blocks is there a transition? None comes after the last."
    halves = (
        "What does a transition do to the number of channels, and what does the next block read?"
    )
    for hint, mistaken in (
        (where, _terms(config, after_last=True)),
        (halves, _terms(config, kept=same, then=same)),
        (halves, _terms(config, then=same)),
        (halves, _terms(config, kept=same)),
        ("In which direction is half of an odd number rounded?", _terms(config, kept=up, then=up)),
        ("How many channels has an image that comes in?", _terms(config, image=1)),
        ("How large is the kernel of the stem's convolution?", _terms(config, kernel=3)),
        ("num_classes is an argument.", _terms(replace(config, num_classes=1000))),
        ("bn_size is an argument.", _terms(replace(config, bn_size=4))),
    ):
        yield sum(mistaken.values()), hint


@count_parameters.property("count", "counts the parameters of any DenseNet")
def _(config: Counted, count_parameters: Any) -> None:
    with torch.device("meta"):
        expected = sum(p.numel() for p in config.reference().parameters())
    got = engine.whole_number(
        count_parameters(*config.arguments()), "count_parameters", f"the number {expected:,}"
    )
    if got != expected:
        hint = (
            "Count one layer by hand: a norm for what comes in, conv1, a norm for the bottleneck, "
            "conv2."
        )
        hints = (hint for number, hint in _mistakes(config) if number == got)
        raise Wrong(f"{expected:,}", f"{got:,}", next(hints, hint))


@count_parameters.property("formula", "needs no model for it")
def _(config: Counted, count_parameters: Any) -> None:
    built = []
    original = nn.Module.__init__

    def noticed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        built.append(type(self).__name__)
        original(self, *args, **kwargs)

    nn.Module.__init__ = noticed
    try:
        got = count_parameters(*config.arguments())
    finally:
        nn.Module.__init__ = original
    if built:
        raise Wrong(
            "arithmetic alone", f"a {built[0]} was built", "Compute from the five arguments."
        )
    if got is None or got is ...:
        raise engine.not_a(got, "count_parameters", "a number")


# ------------------------------------------------------------------------------ the summary


class Summary(Config):
    call = "match_summary(check.summary_of({}))"


def summary_of(
    growth_rate: int,
    block_config: tuple[int, ...],
    num_init_features: int,
    bn_size: int,
    num_classes: int,
) -> list[tuple[str, tuple[int, ...]]]:
    """Name and output shape of every module that has none inside, for one image of 64 by 64."""
    model = Config(growth_rate, block_config, num_init_features, bn_size, num_classes).reference()
    rows: list[tuple[str, tuple[int, ...]]] = []
    for name, part in model.eval().named_modules():
        if not list(part.children()):
            part.register_forward_hook(
                lambda _m, _i, output, name=name: rows.append((name, tuple(output.shape)))
            )
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    return rows


match_summary = Question(
    "match_summary",
    ("match_summary",),
    [Summary(4, (2, 3), 8, 2, 10), Summary(12, (1, 2, 11), 10, 3, 7)],
    lambda g: Summary(
        g.randrange(3, 9),
        tuple(g.choice([1, 2, 3, 10, 11]) for _ in range(g.randrange(1, 4))),
        g.randrange(5, 16),
        g.randrange(2, 5),
        g.randrange(2, 20),
    ),
    given={"summary_of": summary_of},
)
_WHERE = {
    "growth_rate": "Which module's output has as many channels as a layer adds?",
    "bn_size": "conv1 of a layer puts out bn_size times the growth rate.",
    "num_init_features": "Which module is the first to make channels?",
    "block_config": "Count the layers of each block; there may be more than nine.",
    "num_classes": "What does the last module put out?",
}


def _matched(config: Summary, match_summary: Any, *keys: str) -> None:
    got = match_summary(summary_of(*config.arguments()))
    if not isinstance(got, dict):
        raise engine.not_a(got, "match_summary", "a dictionary")
    for key in keys:
        expected = getattr(config, key)
        if key not in got:
            raise Wrong(f"{key}: {expected}", "no such key", f"Return {', '.join(_WHERE)}.")
        value = got[key]
        if key != "block_config":
            value = engine.whole_number(value, key, f"the number {expected}")
        elif isinstance(value, (list, tuple)):
            value = tuple(engine.whole_number(part, f"each place of {key}") for part in value)
        else:
            wrong = engine.not_a(value, key, f"the tuple {expected}")
            wrong.hint = wrong.hint or "tuple(…) makes a tuple of several values."
            raise wrong
        if value != expected:
            raise Wrong(f"{key}: {expected}", f"{key}: {value}", _WHERE[key])


@match_summary.property("rates", "finds growth_rate and bn_size")
def _(config: Summary, match_summary: Any) -> None:
    _matched(config, match_summary, "growth_rate", "bn_size")


@match_summary.property("blocks", "finds block_config, as a tuple")
def _(config: Summary, match_summary: Any) -> None:
    _matched(config, match_summary, "block_config")


@match_summary.property("ends", "finds num_init_features and num_classes")
def _(config: Summary, match_summary: Any) -> None:
    _matched(config, match_summary, "num_init_features", "num_classes")


# ------------------------------------------------------------------------------ training

ACCURACY = 0.65  # a sound recipe reaches 0.72 to 0.77


@dataclass(frozen=True)
class Task:
    """Small pictures to learn, others to be tried on, and a model that has seen none."""

    seed: int
    done: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            "800 training pictures (1 by 14 by 14) and a DenseNet in evaluation mode, seed "
            f"{self.seed}"
        )

    def images(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        full = _fashion()
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(full.train_images), generator=generator)[:800]
        return (
            F.avg_pool2d(full.normalize(full.train_images[chosen]), 2),
            full.train_labels[chosen],
            F.avg_pool2d(full.normalize(full.test_images[:500]), 2),
            full.test_labels[:500],
        )

    def trained(self, train: Any) -> tuple[nn.Module, nn.Module, float]:
        """The model before, after, and its accuracy; trained once, however many properties ask."""
        if "result" not in self.done:
            self.done["result"] = self._trained(train)
        if isinstance(self.done["result"], Wrong):
            raise self.done["result"]
        return self.done["result"]

    def _trained(self, train: Any) -> tuple[nn.Module, nn.Module, float] | Wrong:
        x, y, test_x, test_y = self.images()
        given = x.clone(), y.clone()
        torch.manual_seed(self.seed)
        model = network.densenet(
            "densenet_bc", block_config=(2, 2, 2), growth_rate=8, in_channels=1
        ).eval()
        before, called = copy.deepcopy(model), []
        hook = model.register_forward_hook(lambda module, *_: called.append(module))
        begun = time.process_time()
        train(model, *given)
        seconds = time.process_time() - begun
        hook.remove()
        if not (torch.equal(x, given[0]) and torch.equal(y, given[1])):
            hint = (
                "Shuffle and scale copies: x *= 2 changes the tensor that came in, x = x * 2 does "
                "not."
            )
            return Wrong("pictures and labels that stay as they are", "they were changed", hint)
        with torch.no_grad():
            right = (model.eval()(test_x).argmax(1) == test_y).float().mean().item()
        if all(map(torch.equal, before.parameters(), model.parameters())):
            hint = "Is backward called, and then the optimizer's step?"
            if not any(module is model for module in called):
                hint = f"{engine.NOT_YET}."
                if called or seconds > 0.5:
                    hint = "You trained another model, a copy perhaps: change the one that came in."
            return Wrong("parameters that have changed", "they are those of the start", hint)
        return before, model, right


@functools.cache
def _fashion() -> data.ImageDataset:
    return data.load_dataset("fashion-mini")


train = Question(
    "train",
    ("train",),
    [Task(0)],
    lambda g: Task(g.randrange(1, 10**6)),
    draws=1,
    limit=60,
    slow=(
        "Too slow: try fewer passes over the pictures, or larger batches. Or does a loop never end?"
    ),
)


@train.property("accuracy", f"reaches {ACCURACY:.0%} on 500 other pictures")
def _(task: Task, train: Any) -> None:
    before, after, right = task.trained(train)
    if right < ACCURACY:
        _in_training_mode(before, after)
        raise Wrong(f"at least {ACCURACY:.0%} right", f"{right:.1%}", _why(before, after, right))


def _why(before: nn.Module, after: nn.Module, right: float) -> str:
    """What to think about, from how far the parameters have moved in proportion to their length.

    A sound recipe moves them by about 0.45; a rate of 1e-4 by 0.004, one of 10 by 40 and more, as
    do gradients that are never cleared. Labels of other pictures, 0.15; softmax before
    cross_entropy, 0.2, and it still learns.
    """
    start = nn.utils.parameters_to_vector(before.parameters())
    end = nn.utils.parameters_to_vector(after.parameters())
    moved = ((end - start).norm() / start.norm()).item()
    if not math.isfinite(moved):
        return (
            "Parameters are no numbers any more. Is the learning rate too high? Can the loss fall "
            "for ever?"
        )
    if sum(map(torch.equal, before.parameters(), after.parameters())) > 3:
        return "Some parameters have not changed. Does the optimizer know all of them?"
    if moved < 0.05:
        return "The parameters have hardly moved. Is the learning rate too low?"
    if moved > 5:
        return (
            "The parameters have moved very far. Is the learning rate too high? Are gradients "
            "cleared before each backward?"
        )
    if right <= 0.15:
        return (
            "That is chance: more passes will not help. Are gradients cleared, and do "
            "labels[chosen] belong to images[chosen]?"
        )
    return (
        "It learns, and too little. Does the loss get what it asks for: numbers before or after "
        "softmax? If so, try more passes, another learning rate, or momentum."
    )


@train.property("mode", "trains in training mode")
def _(task: Task, train: Any) -> None:
    before, after, _ = task.trained(train)
    _in_training_mode(before, after)


def _in_training_mode(before: Any, after: Any) -> None:
    if torch.equal(before.features.norm5.running_mean, after.features.norm5.running_mean):
        raise Wrong(
            "running statistics that have moved",
            "they are those of an untrained model",
            (
                "The model comes in evaluation mode, in which batch norm uses its running "
                "statistics as they are."
            ),
        )
