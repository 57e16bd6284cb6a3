"""Assignment 2: the whole network, counting its parameters, reading a summary, training."""

import contextlib
import copy
import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import data, layers, network
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong
from densenet_tutorial.check.layers import module, randomise, same_parameters, with_weights

_GIVEN = {
    "DenseLayer": layers.DenseLayer,
    "DenseBlock": layers.DenseBlock,
    "Transition": layers.Transition,
}


@dataclass(frozen=True)
class Config:
    """Arguments of the student's DenseNet, and the images to try it on."""

    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    bn_size: int
    num_classes: int
    size: int = 64

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.arguments().items())
        return f"DenseNet({values}), images of {self.size} by {self.size} pixels"

    def arguments(self) -> dict[str, Any]:
        names = ("growth_rate", "block_config", "num_init_features", "bn_size", "num_classes")
        return {name: getattr(self, name) for name in names}

    def x(self) -> Tensor:
        return torch.randn(2, 3, self.size, self.size)

    def answer(self, DenseNet: Any) -> nn.Module:
        return module(DenseNet(*self.arguments().values()), "DenseNet")

    def reference(self) -> network.DenseNet:
        return network.DenseNet(**self.arguments())


def _draw_config(generator: random.Random) -> Config:
    blocks = generator.randrange(2, 5)
    return Config(
        generator.randrange(3, 9),
        tuple(generator.randrange(1, 4) for _ in range(blocks)),
        generator.randrange(5, 16),
        generator.randrange(2, 4),
        generator.randrange(2, 20),
        generator.choice([64, 72, 96]),
    )


# ------------------------------------------------------------------------------ DenseNet

dense_net = Question(
    "dense_net",
    ("DenseNet",),
    [Config(4, (2, 3), 8, 2, 10), Config(6, (1, 2, 2), 10, 4, 7, size=96)],
    _draw_config,
    given=_GIVEN,
    draws=3,
)
_POOL = "Average each channel over the whole map, whatever its size: the classifier sees one number per channel."
_HINTS = {
    "features.norm5.weight": "After the last block comes one more norm, norm5, for all its channels.",
    "features.conv0.weight": "The stem begins with a 7x7 convolution from 3 to num_init_features channels, without bias.",
    "features.conv0.bias": "The stem's convolution has no bias, since a norm follows.",
    "features.norm0.weight": "The stem's convolution is followed by norm0.",
    "classifier.weight": "The classifier goes from the channels after the last block to num_classes.",
    "features.denseblock1.denselayer1.norm1.weight": "The blocks are called denseblock1, denseblock2, … inside features.",
}


@dense_net.property("shape", "turns images of any size into num_classes numbers each", _POOL)
def _(config: Config, DenseNet: Any) -> None:
    answer = config.answer(DenseNet).eval()
    for size in (config.size, config.size + 32):
        got = engine.tensor(answer(torch.randn(2, 3, size, size)), "DenseNet.forward")
        engine.same_shape(
            got,
            (2, config.num_classes),
            {(2, config.num_classes, 1, 1): "Flatten what is pooled before the classifier."},
        )


@dense_net.property("parameters", "has torchvision's parameters, by name and by shape")
def _(config: Config, DenseNet: Any) -> None:
    _same(config.answer(DenseNet), config)


def _same(answer: nn.Module, config: Config) -> None:
    hints, last = dict(_HINTS), len(config.block_config)
    extra = f"features.transition{last}.norm.weight"
    if extra in answer.state_dict():
        hints = {extra: "There is a transition between two blocks, and none after the last."}
    for i in range(1, last):
        hints[f"features.transition{i}.conv.weight"] = (
            "A transition keeps half of its channels, rounded down, and the next block begins with those."
        )
    same_parameters(answer, config.reference(), hints)


@dense_net.property("values", "computes what DenseNet computes")
def _(config: Config, DenseNet: Any) -> None:
    r, x = randomise(config.reference()).eval(), config.x()
    answer = config.answer(DenseNet)
    _same(answer, config)
    answer = with_weights(answer, r, _HINTS).eval()
    got = engine.tensor(answer(x), "DenseNet.forward")
    features = r.features(x)

    def head(h: Tensor) -> Tensor:
        return r.classifier(h.flatten(1))

    def stem(*left_out: str) -> Tensor:
        h = x
        for name, part in r.features.named_children():
            h = h if name in left_out else part(h)
        return head(F.adaptive_avg_pool2d(F.relu(h), 1))

    engine.same_values(
        got,
        r(x),
        "stem, blocks and transitions, norm5, ReLU, global average pooling, classifier",
        {
            "After norm5 comes a ReLU.": lambda: head(F.adaptive_avg_pool2d(features, 1)),
            "The global pooling takes the largest value; it has to take the average.": lambda: head(
                F.adaptive_max_pool2d(F.relu(features), 1)
            ),
            "Return the classifier's numbers as they are: the loss applies softmax.": lambda: r(
                x
            ).softmax(1),
            "Return the classifier's numbers as they are: the loss applies log-softmax.": lambda: r(
                x
            ).log_softmax(1),
            "The stem lacks its ReLU, between norm0 and pool0.": lambda: stem("relu0"),
            "The stem lacks its 3x3 max pooling.": lambda: stem("pool0"),
            "norm5 is built, and never applied.": lambda: stem("norm5"),
        },
    )


# ------------------------------------------------------------------------------ counting

count_parameters = Question(
    "count_parameters",
    ("count_parameters",),
    [
        Config(32, (6, 12, 24, 16), 64, 4, 1000, 224),
        Config(4, (2, 3), 8, 2, 10),
        Config(1, (1,), 1, 1, 2),
    ],
    _draw_config,
    draws=6,
)


@functools.cache
def _counts(config: Config) -> dict[str, int]:
    """Parameters by kind, the sum included."""
    with torch.device("meta"):
        model = config.reference()
    sums: dict[str, int] = {"all": sum(p.numel() for p in model.parameters())}
    for name, parameter in model.named_parameters():
        kind = "the classifier's bias" if name == "classifier.bias" else "the classifier"
        if "norm" in name:
            kind = "the norms (two numbers a channel)"
        elif "transition" in name:
            kind = "the transitions' convolutions"
        elif "conv0" in name:
            kind = "the stem's convolution"
        elif "conv1" in name:
            kind = "the 1x1 convolutions of the layers"
        elif "conv2" in name:
            kind = "the 3x3 convolutions of the layers"
        sums[kind] = sums.get(kind, 0) + parameter.numel()
    return sums


@count_parameters.property("count", "counts the parameters of any DenseNet")
def _(config: Config, count_parameters: Any) -> None:
    got = count_parameters(*config.arguments().values())
    counts = _counts(config)
    what = f"count_parameters({', '.join(map(str, config.arguments().values()))})"
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise engine.not_a(got, what, f"the number {counts['all']:,}")
    if got == counts["all"]:
        return
    hint = "Count one layer by hand: a norm for what comes in, conv1, a norm for the bottleneck, conv2."
    for kind, count in counts.items():
        if kind != "all" and got == counts["all"] - count:
            hint = f"What is missing is as many as {kind} have."
        if kind != "all" and got == counts["all"] + count:
            hint = f"What is too much is as many as {kind} have."
    if got == counts["all"] + counts["the norms (two numbers a channel)"]:
        hint = (
            "Running mean and variance are buffers: no gradient trains them, so they do not count."
        )
    raise Wrong(f"{counts['all']:,}", f"{got:,}", hint)


@count_parameters.property("formula", "needs no model for it")
def _(config: Config, count_parameters: Any) -> None:
    built = []
    original = nn.Module.__init__

    def noticed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        built.append(type(self).__name__)
        original(self, *args, **kwargs)

    nn.Module.__init__ = noticed
    try:
        got = count_parameters(*config.arguments().values())
    finally:
        nn.Module.__init__ = original
    if built:
        raise Wrong(
            "arithmetic alone", f"a {built[0]} was built", "Compute from the five arguments."
        )
    if got is None or got is ...:
        raise engine.not_a(got, "count_parameters", "a number")


# ------------------------------------------------------------------------------ the summary


def summary_rows(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """Name and output shape of every module of a DenseNet that has no modules inside, for one image."""
    model, rows = config.reference().eval(), []
    for name, part in model.named_modules():
        if not list(part.children()):
            part.register_forward_hook(
                lambda _m, _i, output, name=name: rows.append((name, tuple(output.shape)))
            )
    with torch.no_grad():
        model(torch.zeros(1, 3, config.size, config.size))
    return rows


match_summary = Question(
    "match_summary",
    ("match_summary",),
    [Config(4, (2, 3), 8, 2, 10), Config(12, (1, 2, 11), 10, 3, 7)],
    lambda g: Config(
        g.randrange(3, 9),
        tuple(g.choice([1, 2, 3, 10, 11]) for _ in range(g.randrange(1, 4))),
        g.randrange(5, 16),
        g.randrange(2, 5),
        g.randrange(2, 20),
    ),
)


def _matched(config: Config, match_summary: Any, *keys: str) -> None:
    got = match_summary(summary_rows(config))
    if not isinstance(got, dict):
        raise engine.not_a(got, "match_summary", "a dictionary")
    for key in keys:
        expected = getattr(config, key)
        value = got.get(key, "no such key")
        if isinstance(value, list):
            value = tuple(value)
        if value != expected or isinstance(value, float):
            hint = {
                "growth_rate": "Which module's output has as many channels as a layer adds?",
                "bn_size": "conv1 of a layer puts out bn_size times the growth rate.",
                "num_init_features": "Which module is the first to make channels?",
                "block_config": "Count the layers of each block; there may be more than nine.",
                "num_classes": "What does the last module put out?",
            }[key]
            raise Wrong(f"{key}: {expected}", f"{key}: {value}", hint)


@match_summary.property("rates", "finds growth_rate and bn_size")
def _(config: Config, match_summary: Any) -> None:
    _matched(config, match_summary, "growth_rate", "bn_size")


@match_summary.property("blocks", "finds block_config, as a tuple")
def _(config: Config, match_summary: Any) -> None:
    _matched(config, match_summary, "block_config")


@match_summary.property("ends", "finds num_init_features and num_classes")
def _(config: Config, match_summary: Any) -> None:
    _matched(config, match_summary, "num_init_features", "num_classes")


# ------------------------------------------------------------------------------ training

ACCURACY = 0.65  # a sound recipe reaches 0.72 to 0.77


@dataclass(frozen=True)
class Task:
    """Small pictures to learn, others to be tried on, and a model that has seen none."""

    seed: int
    done: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return f"800 training pictures (1 by 14 by 14) and a DenseNet in evaluation mode, seed {self.seed}"

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
        """The model before, after, and its accuracy; it is trained once, however many properties ask."""
        if "result" not in self.done:
            x, y, test_x, test_y = self.images()
            torch.manual_seed(self.seed)
            model = network.densenet(
                "densenet_bc", block_config=(2, 2, 2), growth_rate=8, in_channels=1
            ).eval()
            before = copy.deepcopy(model)
            with _as_given(x, y):
                train(model, x, y)
            with torch.no_grad():
                right = (model.eval()(test_x).argmax(1) == test_y).float().mean().item()
            self.done["result"] = before, model, right
        return self.done["result"]


@functools.cache
def _fashion() -> data.ImageDataset:
    return data.load_dataset("fashion-mini")


@contextlib.contextmanager
def _as_given(x: Tensor, y: Tensor) -> Iterator[None]:
    before = x.clone(), y.clone()
    yield
    if not (torch.equal(x, before[0]) and torch.equal(y, before[1])):
        raise Wrong("pictures and labels that stay as they are", "they were changed")


class _Training(Question):
    """Each call gets its public task anew: what a task has trained belongs to one answer."""

    def results(self, answers: Any, seed: int | None = None) -> Any:
        self.inputs = [Task(0)]
        return super().results(answers, seed)


train = _Training("train", ("train",), [], lambda g: Task(g.randrange(1, 10**6)), draws=1, limit=15)


@train.property("accuracy", f"reaches {ACCURACY:.0%} on 500 other pictures")
def _(task: Task, train: Any) -> None:
    before, after, right = task.trained(train)
    if right >= ACCURACY:
        return
    hint = "Try more passes, another learning rate, or momentum: 0.7 to 0.8 is within reach in five seconds."
    changed = [
        name
        for name, value in after.named_parameters()
        if not torch.equal(value, before.get_parameter(name))
    ]
    if not changed:
        hint = "No parameter has changed. Is backward called, and then the optimizer's step? "
        hint += engine.NOT_YET
    elif len(changed) < 3:
        hint = "Hardly a parameter has changed. Does the optimizer know all of them?"
    elif not all(p.isfinite().all() for p in after.parameters()):
        hint = "Some parameters are not numbers any more: is the learning rate too high?"
    raise Wrong(f"at least {ACCURACY:.0%} right", f"{right:.1%}", hint)


@train.property("mode", "trains in training mode")
def _(task: Task, train: Any) -> None:
    before, after, _ = task.trained(train)
    if torch.equal(before.features.norm5.running_mean, after.features.norm5.running_mean):
        hint = "The model comes in evaluation mode, in which batch norm uses its running statistics as they are."
        if torch.equal(before.classifier.weight, after.classifier.weight):
            hint = engine.NOT_YET
        raise Wrong(
            "running statistics that have moved", "they are those of an untrained model", hint
        )
