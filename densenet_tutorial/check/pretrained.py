"""Assignment 4: convert keys, adapt a head, load safely, fine-tune with few labels."""

import copy
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
        raise Wrong(
            missing[0] if missing else "no further key", extra[0] if extra else "no such key", hint
        )
    for key, value in expected.items():
        if not (isinstance(got[key], Tensor) and torch.equal(got[key], value)):
            raise Wrong(f"the values of {key}", "others", "Only keys change, never values.")


_DOTTED = "In a dense layer, `norm.1`, `conv.1`, `norm.2` and `conv.2` are now `norm1`, `conv1`, …"


@convert_keys.property("dotted", "turns the dotted keys of old files into today's")
def _(given: Model, convert_keys: Any) -> None:
    state = dict(given.model().state_dict())
    _same_keys(_converted(convert_keys, _legacy(state)), state, _DOTTED)


@convert_keys.property("prefix", "strips the prefix module.")
def _(given: Model, convert_keys: Any) -> None:
    state = dict(given.model().state_dict())
    wrapped = {f"module.{key}": value for key, value in _legacy(state).items()}
    _same_keys(_converted(convert_keys, wrapped), state, _DOTTED)


@convert_keys.property("others", "leaves every other key as it is")
def _(given: Model, convert_keys: Any) -> None:
    state = dict(given.model().state_dict())
    state["head.norm.1.weight"] = torch.ones(2)  # not in a dense layer
    state["submodule.weight"] = torch.ones(3)  # no prefix of DataParallel
    hint = "Only keys of dense layers are dotted, and only a prefix at the beginning is stripped."
    _same_keys(_converted(convert_keys, state), state, hint)


@convert_keys.property("new", "returns a new dictionary, and leaves the given one alone")
def _(given: Model, convert_keys: Any) -> None:
    old = _legacy(dict(given.model().state_dict()))
    before = dict(old)
    got = _converted(convert_keys, old)
    if got is old or list(old) != list(before):
        raise Wrong("a new dictionary", "the given one was changed", "Fill a new dictionary.")


# ------------------------------------------------------------------------------ the head

adapt_head = Question("adapt_head", ("adapt_head",), _MODELS, _draw_model)


def _adapted(given: Model, adapt_head: Any) -> tuple[nn.Module, nn.Module]:
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
    before, got = _adapted(given, adapt_head)
    head = getattr(got, "classifier", None)
    wanted = (given.wanted, before.classifier.in_features)
    shape = tuple(getattr(getattr(head, "weight", None), "shape", ()))
    if shape != wanted:
        hint = "A second layer behind the old head sees old classes instead of features: replace model.classifier."
        raise Wrong(f"classifier.weight of shape {wanted}", f"{shape or type(head).__name__}", hint)
    if set(got.state_dict()) != set(before.state_dict()):
        raise Wrong("the keys of before", "others", "Only model.classifier is replaced.")


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

load_safely = Question("load_safely", ("load_safely",), _MODELS, _draw_model)


class _Trap:
    """A file with this inside runs code when it is opened carelessly."""

    sprung = False

    def __reduce__(self) -> tuple:
        return _spring, ()


def _spring() -> dict:
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
    source = given.model()
    with _file(source.state_dict()) as path:
        got = load_safely(path, given.model())
    if not isinstance(got, nn.Module):
        raise engine.not_a(got, "load_safely", "the model")
    for key, value in source.state_dict().items():
        if not torch.equal(got.state_dict()[key], value):
            raise Wrong(f"{key} of the file", "another value", "Is load_state_dict called?")


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
    with _file(state) as path:
        try:
            returned = load_safely(path, model)
        except ValueError as error:
            return str(error)
        except (NameError, TypeError, AttributeError, NotImplementedError):
            raise
        except Exception as error:  # noqa: BLE001
            got, hint = (
                f"{type(error).__name__}",
                "Catch it, and raise a ValueError that names the key.",
            )
        else:
            if returned is None:
                raise engine.not_a(returned, "load_safely", "the model")
            got, hint = "no error", "strict=False leaves random weights where the file has none."
    raise Wrong(f"a ValueError, since the file {what}", got, hint)


@load_safely.property("complete", "raises a ValueError that names what is missing, or does not fit")
def _(given: Model, load_safely: Any) -> None:
    full = dict(given.model().state_dict())
    key = sorted(full)[len(full) // 2]
    message = _refused(
        load_safely, given.model(), {k: v for k, v in full.items() if k != key}, f"lacks {key}"
    )
    if key not in message:
        raise Wrong(f"a message that names {key}", message[:200], "Say which keys are missing.")
    wrong = full | {"classifier.weight": torch.zeros(given.wanted, 7)}
    message = _refused(load_safely, given.model(), wrong, "has a head of another shape")
    if "classifier.weight" not in message:
        raise Wrong(
            "a message that names classifier.weight", message[:200], "Say which do not fit."
        )


@load_safely.property("whole", "leaves the model as it was if the file does not fit")
def _(given: Model, load_safely: Any) -> None:
    model = given.model()
    before = copy.deepcopy(model.state_dict())
    wrong = {key: value + 1 for key, value in model.state_dict().items()}
    wrong["classifier.weight"] = torch.zeros(given.wanted, 7)
    _refused(load_safely, model, wrong, "has a head of another shape")
    for key, value in model.state_dict().items():
        if not torch.equal(value, before[key]):
            hint = "load_state_dict copies what fits before it complains. Compare keys and shapes first."
            raise Wrong(f"{key} as it was", "the file's values", hint)


# ------------------------------------------------------------------------------ few labels

ACCURACY = (
    0.9  # a head on the pretrained features reaches 0.95 and more; on random features, below 0.85
)
_UPPER = (0, 2, 4, 6)  # T-shirt, pullover, coat, shirt: hard to tell apart with five pictures each
_REST = (1, 3, 5, 7, 8, 9)


@dataclass(frozen=True)
class Few:
    """Five kinds of clothes, five labelled pictures of each, and a pretrained model with a new head."""

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
        return tuple(torch.cat(part) for part in found)

    def trained(self, fine_tune: Any) -> tuple[nn.Module, nn.Module, float]:
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
    """The weights that come with the package, with an untrained head for 5 classes, in evaluation mode."""
    model = network.densenet("densenet_bc", weights="fashion-mnist-small")
    model.classifier = nn.Linear(model.classifier.in_features, 5)
    return model.eval()


@functools.cache
def _fashion() -> data.ImageDataset:
    return data.load_dataset("fashion-mini")


class _FineTuning(Question):
    """Each call gets its public task anew: what a task has trained belongs to one answer."""

    def results(self, answers: Any, seed: int | None = None) -> Any:
        self.inputs = [Few(0)]
        return super().results(answers, seed)


fine_tune = _FineTuning(
    "fine_tune", ("fine_tune",), [], lambda g: Few(g.randrange(1, 10**6)), draws=1, limit=15
)


@fine_tune.property("accuracy", f"reaches {ACCURACY:.0%} on 200 other pictures")
def _(task: Few, fine_tune: Any) -> None:
    before, after, right = task.trained(fine_tune)
    if right >= ACCURACY:
        return
    hint = "Adam with a learning rate of 0.01 needs some fifty steps, if the features stay as they are."
    if torch.equal(before.classifier.weight, after.classifier.weight):
        hint = "The head has not changed. Does the optimizer know its parameters, and take steps? "
        hint += engine.NOT_YET
    raise Wrong(f"at least {ACCURACY:.0%} right", f"{right:.1%}", hint)


@fine_tune.property("frozen", "trains the head alone")
def _(task: Few, fine_tune: Any) -> None:
    before, after, _ = task.trained(fine_tune)
    if torch.equal(before.classifier.weight, after.classifier.weight):
        raise Wrong("a head that has learned", "the untrained head", engine.NOT_YET)
    for name, value in before.features.named_parameters():
        if not torch.equal(value, after.features.get_parameter(name)):
            hint = "Give the optimizer the head's parameters alone."
            raise Wrong(f"features.{name} as it was", "another value", hint)
    for name, value in before.features.named_buffers():
        if not torch.equal(value, after.features.get_buffer(name)):
            hint = "In training mode, running statistics move without any optimizer: keep the features in .eval()."
            raise Wrong(f"features.{name} as it was", "another value", hint)
