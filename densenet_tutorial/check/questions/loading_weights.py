"""Assignment 4: convert keys, adapt a head, load safely, fine-tune with few labels."""

import copy
import dataclasses
import functools
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densenet_tutorial import data, network
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Wrong
from densenet_tutorial.weights import layouts


@dataclass(frozen=True)
class Model:
    """A small DenseNet."""

    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    num_classes: int  # of the model
    wanted: int  # of another task

    def __str__(self) -> str:
        return (
            f"a DenseNet with growth_rate={self.growth_rate}, block_config={self.block_config}, "
            f"num_init_features={self.num_init_features}, num_classes={self.num_classes}"
        )

    def model(self) -> network.DenseNet:
        made = network.DenseNet(
            self.growth_rate,
            self.block_config,
            self.num_init_features,
            bn_size=2,
            num_classes=self.num_classes,
        )
        for buffer in made.buffers():  # as after training
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        return made.eval()


def _draw_model(generator: random.Random) -> Model:
    num_classes, wanted = generator.sample(range(2, 30), 2)
    return Model(
        generator.randrange(2, 6),
        tuple(generator.choice([1, 2, 3, 11]) for _ in range(generator.randrange(1, 4))),
        generator.randrange(4, 12),
        num_classes,
        wanted,
    )


_MODELS = [Model(4, (2, 11), 8, 10, 3), Model(3, (1, 2, 1), 6, 5, 12)]

# ------------------------------------------------------------------------------ keys


def _legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The dotted keys of files that were written before 2017."""
    old = {}
    for key, value in state.items():
        if "denselayer" in key:
            for name in ("norm1", "norm2", "conv1", "conv2"):
                key = key.replace(f".{name}.", f".{name[:-1]}.{name[-1]}.")
        old[key] = value
    return old


convert_keys = Question("convert_keys", ("convert_keys",), _MODELS, _draw_model)


def _converted(convert_keys: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    got = convert_keys(given)
    if not isinstance(got, dict):
        raise engine.not_a(got, "convert_keys", "a dictionary")
    return got


def _same_keys(got: dict[str, Tensor], expected: dict[str, Tensor], hint: str) -> None:
    missing = [key for key in expected if key not in got]
    extra = [key for key in got if key not in expected]
    if missing or extra:
        if any(key.startswith("module.") for key in extra):
            hint = "DataParallel puts `module.` before every key: that prefix has to go."
        elif any(key.endswith(end) for key in missing for end in extra):
            hint = "lstrip takes any of these letters away; removeprefix takes the word."
        raise Wrong(
            missing[0] if missing else "no further key", extra[0] if extra else "no such key", hint
        )
    if list(got) != list(expected):
        first, instead = next(pair for pair in zip(expected, got) if pair[0] != pair[1])
        raise Wrong(
            f"the order of the file: {first}", instead, "Go through the file's keys in their order."
        )
    for key, value in expected.items():
        same = isinstance(got[key], Tensor) and got[key].dtype == value.dtype
        if not (same and torch.equal(got[key], value)):
            raise Wrong(f"the values of {key}", "others", "Only keys change, never values.")


_DOTTED = "In a dense layer, `norm.1`, `conv.1`, `norm.2` and `conv.2` are now `norm1`, `conv1`, …"


@convert_keys.property("dotted", "turns the dotted keys of old files into today's")
def _(given: Model, convert_keys: Any) -> None:
    state = dict(given.model().state_dict())
    _same_keys(_converted(convert_keys, _legacy(state)), state, _DOTTED)


@convert_keys.property("prefix", "strips the prefix module.")
def _(given: Model, convert_keys: Any) -> None:
    state = dict(given.model().state_dict())
    state["encoder.weight"], state["module_list.bias"] = torch.ones(2), torch.ones(3)
    wrapped = {f"module.{key}": value for key, value in _legacy(state).items()}
    _same_keys(_converted(convert_keys, wrapped), state, _DOTTED)


@convert_keys.property("others", "leaves every other key as it is")
def _(given: Model, convert_keys: Any) -> None:
    others = {
        "head.norm.1.weight": torch.ones(2),  # not in a dense layer
        "submodule.weight": torch.ones(3),  # no prefix of DataParallel
    }
    state = dict(given.model().state_dict())
    hint = "Only keys of dense layers are dotted, and only a prefix at the beginning is stripped."
    _same_keys(_converted(convert_keys, _legacy(state) | others), state | others, hint)


@convert_keys.property("new", "returns a new dictionary, and leaves the given one alone")
def _(given: Model, convert_keys: Any) -> None:
    state = dict(given.model().state_dict())
    old = _legacy(state)
    before = list(old)
    got = _converted(convert_keys, old)
    if got is old or list(old) != before:
        raise Wrong("a new dictionary", "the given one was changed", "Fill a new dictionary.")
    _same_keys(got, state, _DOTTED)


# ------------------------------------------------------------------------------ the head

adapt_head = Question("adapt_head", ("adapt_head",), _MODELS, _draw_model)


def _adapted(given: Model, adapt_head: Any) -> tuple[Any, Any]:
    model = given.model()
    before = copy.deepcopy(model)
    got = adapt_head(model, given.wanted)
    if not isinstance(got, nn.Module):
        raise engine.not_a(got, "adapt_head", "the model")
    return before, got


@adapt_head.property(
    "shape",
    "answers with the wanted number of classes",
    "How many features does the old head read?",
)
def _(given: Model, adapt_head: Any) -> None:
    _, got = _adapted(given, adapt_head)
    output = engine.tensor(got.eval()(torch.randn(2, 3, 64, 64)), "the adapted model")
    hint = "This is the old head: assign a new nn.Linear to model.classifier."
    engine.same_shape(output, (2, given.wanted), {(2, given.num_classes): hint})


@adapt_head.property(
    "replaced", "puts one new layer in the place of the old head, and keeps its name"
)
def _(given: Model, adapt_head: Any) -> None:
    for wanted in (given.wanted, given.num_classes):  # as many classes may be other classes
        before, got = _adapted(dataclasses.replace(given, wanted=wanted), adapt_head)
        old, new = before.classifier, getattr(got, "classifier", None)
        expected = f"model.classifier to be nn.Linear({old.in_features}, {wanted})"
        if not isinstance(new, nn.Linear):
            hint = "Is model.classifier the new layer, and is it the model that is returned?"
            if isinstance(got, nn.Sequential) or isinstance(new, nn.Sequential):
                hint = (
                    "A second layer behind the old head sees old classes, not features: replace "
                    "model.classifier."
                )
            raise Wrong(expected, type(new).__name__, hint)
        sizes = (new.in_features, new.out_features), tuple(new.weight.shape)[::-1]
        for shape in sizes:
            if shape != (old.in_features, wanted):
                hint = (
                    "nn.Linear takes how many numbers it reads, then how many it returns. What "
                    "does the old head read?"
                )
                raise Wrong(expected, "nn.Linear({}, {})".format(*shape), hint)
        if any(torch.equal(a, b) for a in old.weight for b in new.weight):
            hint = "Another task has other classes, also where there are as many of them."
            raise Wrong("an untrained head", "weights of the old one", hint)
        names = set(got.state_dict()) ^ set(before.state_dict())
        if names:
            raise Wrong(
                "the keys of before",
                f"a difference in {min(names)}",
                "Only model.classifier is replaced.",
            )


@adapt_head.property(
    "features", "leaves the features as they were, and the head ready to be trained"
)
def _(given: Model, adapt_head: Any) -> None:
    before, got = _adapted(given, adapt_head)
    state = got.state_dict()
    for key, value in before.features.state_dict().items():
        theirs = state.get(f"features.{key}")
        if theirs is None or not torch.equal(theirs, value):
            hint = "The features are what was pretrained: build no new model."
            raise Wrong(f"features.{key} as it was", "another value", hint)
    if not all(p.requires_grad for p in got.classifier.parameters()):
        raise Wrong("a head that can be trained", "requires_grad is False")


# ------------------------------------------------------------------------------ loading

load_safely = Question(
    "load_safely",
    ("load_safely",),
    _MODELS,
    _draw_model,
    given={"convert_keys": lambda state_dict: layouts.convert_state_dict(state_dict)[0]},
)


class _Trap:
    """A file with this inside runs code when it is opened carelessly."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ()


def _spring() -> dict[str, Any]:
    _Trap.sprung = True
    return {}


@contextmanager
def _file(content: Any) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "weights.pt"))
        torch.save(content, path)
        yield path


@load_safely.property("loads", "loads a file of weights that fits, and returns the model")
def _(given: Model, load_safely: Any) -> None:
    source, model = given.model(), given.model()
    with _file(source.state_dict()) as path:
        got = load_safely(path, model)
    if not isinstance(got, nn.Module):
        raise engine.not_a(got, "load_safely", "the model")
    for key, value in source.state_dict().items():
        if not torch.equal(got.state_dict()[key], value):
            raise Wrong(f"{key} of the file", "another value", "Is load_state_dict called?")
        if not torch.equal(model.state_dict()[key], value):
            hint = "Load into the model that is passed, and return that."
            raise Wrong(f"{key} of the file in the given model", "another value", hint)


@load_safely.property("safe", "runs no code that a file brings along")
def _(given: Model, load_safely: Any) -> None:
    _Trap.sprung = False
    state = dict(given.model().state_dict()) | {"extra": _Trap()}
    refused, got = False, None
    with _file(state) as path:
        try:
            got = load_safely(path, given.model())
        except Exception:  # noqa: BLE001 - any refusal will do
            refused = True
    sprung, _Trap.sprung = _Trap.sprung, False
    if sprung:
        hint = "torch.load runs what a file tells it to, unless weights_only=True."
        raise Wrong("a refusal", "the file's code was run", hint)
    if not refused:
        if got is None:
            raise engine.not_a(got, "load_safely", "the model")
        raise Wrong("an error", "none", "Let the error of torch.load pass.")


def _refused(load_safely: Any, model: nn.Module, state: dict[str, Tensor], what: str) -> str:
    """The message of the ValueError, which has to come."""
    with _file(state) as path:
        try:
            returned = load_safely(path, model)
        except ValueError as error:
            return str(error)
        except (NameError, TypeError, AttributeError, NotImplementedError):
            raise
        except Exception as error:  # noqa: BLE001
            got = f"{type(error).__name__}: {error}"[:120]
            hint = "Find out before you load, or catch it: raise a ValueError that names the keys."
        else:
            if returned is None:
                raise engine.not_a(returned, "load_safely", "the model")
            got, hint = "no error", "Is it raised? (With strict=False, nothing complains.)"
    raise Wrong(f"a ValueError, since the file {what}", got, hint)


@load_safely.property(
    "complete", "raises a ValueError that names what is missing, superfluous, or misshapen"
)
def _(given: Model, load_safely: Any) -> None:
    full = dict(given.model().state_dict())
    # load_state_dict forgives files without _metadata that a counter is missing; whether to do so
    # is a matter of taste.
    keys = [key for key in sorted(full) if not key.endswith("num_batches_tracked")]
    lost, reshaped = keys[len(keys) // 2], "classifier.weight"
    without = {key: value for key, value in full.items() if key != lost}
    with_more = {"features.extra.weight": torch.zeros(2)}
    with_other = {reshaped: torch.zeros(given.wanted, 7)}
    for state, what, wrong in (
        (without, f"lacks {lost}", [lost]),
        (full | with_more, "holds features.extra.weight", ["features.extra.weight"]),
        (full | with_other, f"has another shape of {reshaped}", [reshaped]),
        (without | with_more | with_other, "has all three faults", [lost, *with_more, *with_other]),
    ):
        message = _refused(load_safely, given.model(), state, what)
        for key in wrong:
            if key not in message:
                hint = "Say which keys: all of them. Is each kind of misfit looked for?"
                raise Wrong(f"a message that names {key}", message[:200], hint)
        if "features.conv0.weight" in message:
            hint = "Name the keys that do not fit, and no others."
            raise Wrong("a message without features.conv0.weight, which fits", message[:200], hint)


@load_safely.property("whole", "leaves the model as it was if the file does not fit")
def _(given: Model, load_safely: Any) -> None:
    model = given.model()
    before = copy.deepcopy(model.state_dict())
    wrong = {key: value + 1 for key, value in model.state_dict().items()}
    wrong["classifier.weight"] = torch.zeros(given.wanted, 7)
    _refused(load_safely, model, wrong, "has a head of another shape")
    for key, value in model.state_dict().items():
        if not torch.equal(value, before[key]):
            hint = (
                "load_state_dict copies what fits before it complains. Compare keys and shapes "
                "first."
            )
            raise Wrong(f"{key} as it was", "the file's values", hint)


# ------------------------------------------------------------------------------ few labels

#: A head on the pretrained features reaches 0.95 and more; on random features, less than 0.85.
ACCURACY = 0.9
_UPPER = (0, 2, 4, 6)  # T-shirt, pullover, coat, shirt: hard to tell apart with five pictures each
_REST = (1, 3, 5, 7, 8, 9)


@dataclass(frozen=True)
class Few:
    """Five kinds of clothes, five labelled pictures of each, and a model with a new head."""

    seed: int
    done: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return f"25 pictures of 5 kinds, and a pretrained model with a new head, seed {self.seed}"

    def images(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = random.Random(self.seed)
        kinds = [generator.choice(_UPPER), *generator.sample(_REST, 4)]
        full = _fashion()
        shuffled = torch.Generator().manual_seed(self.seed)
        found: list[list[Tensor]] = [[], [], [], []]
        for label, kind in enumerate(kinds):
            of_kind = torch.nonzero(full.train_labels == kind).flatten()
            few = of_kind[torch.randperm(len(of_kind), generator=shuffled)[:5]]
            others = torch.nonzero(full.test_labels == kind).flatten()[:40]
            found[0].append(full.normalize(full.train_images[few]))
            found[1].append(torch.full((5,), label))
            found[2].append(full.normalize(full.test_images[others]))
            found[3].append(torch.full((len(others),), label))
        x, y, test_x, test_y = (torch.cat(part) for part in found)
        return x, y, test_x, test_y

    def trained(self, fine_tune: Any) -> tuple[Any, Any, float]:
        """The model before, after, and its accuracy on other pictures; it is trained once."""
        if "result" not in self.done:
            x, y, test_x, test_y = self.images()
            model = pretrained_model()
            before = copy.deepcopy(model)
            fine_tune(model, x, y)
            with torch.no_grad():
                right = (model.eval()(test_x).argmax(1) == test_y).float().mean().item()
            self.done["result"] = before, model, right
        return self.done["result"]


def pretrained_model() -> network.DenseNet:
    """The bundled weights, with an untrained head for 5 classes, in evaluation mode."""
    return _with_new_head(network.densenet("densenet_bc", weights="fashion-mnist-small"), 5).eval()


def _with_new_head(model: network.DenseNet, num_classes: int) -> network.DenseNet:
    model.classifier = nn.Linear(model.num_features, num_classes)
    return model


@functools.cache
def _fashion() -> data.ImageDataset:
    return data.load_dataset("fashion-mini")


fine_tune = Question(
    "fine_tune",
    ("fine_tune",),
    [Few(0)],
    lambda g: Few(g.randrange(1, 10**6)),
    draws=1,
    limit=60,
    given={"adapt_head": _with_new_head},
    slow="The features never change: how often do they have to be computed?",
)
_UNCHANGED = (
    f"{engine.NOT_YET}, or model.classifier has not changed: is it the one that the optimizer "
    "knows, and does it take steps?"
)


@fine_tune.property("accuracy", f"reaches {ACCURACY:.0%} on 200 other pictures")
def _(task: Few, fine_tune: Any) -> None:
    before, after, right = task.trained(fine_tune)
    if right >= ACCURACY:
        return
    hint = (
        "Print the loss: does it fall? Are the pictures used as they come, and the features as in "
        "evaluation mode?"
    )
    if torch.equal(before.classifier.weight, after.classifier.weight):
        hint = _UNCHANGED
    raise Wrong(f"at least {ACCURACY:.0%} right", f"{right:.1%}", hint)


@fine_tune.property("frozen", "trains the head alone")
def _(task: Few, fine_tune: Any) -> None:
    before, after, _ = task.trained(fine_tune)
    if torch.equal(before.classifier.weight, after.classifier.weight):
        raise Wrong("a head that has learned", "the untrained head", _UNCHANGED)
    for name, value in before.features.named_parameters():
        if not torch.equal(value, after.features.get_parameter(name)):
            hint = "Give the optimizer the head's parameters alone."
            raise Wrong(f"features.{name} as it was", "another value", hint)
    for name, value in before.features.named_buffers():
        if not torch.equal(value, after.features.get_buffer(name)):
            hint = (
                "In training mode, running statistics move without any optimizer: keep the "
                "features in .eval()."
            )
            raise Wrong(f"features.{name} as it was", "another value", hint)
