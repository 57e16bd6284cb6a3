"""Trained weights: where they come from, what they are of, and how to prepare images for them.

``"imagenet"`` names the four files that torchvision's users download; :func:`shipped` names those
that come with this package; a path, an address or a state dict gives any others. This package
stands below :mod:`network`: it deals in state dicts. How files are read is in
:mod:`weights.files`, what a DenseNet's tensors are called in :mod:`weights.layouts`.
"""

import contextlib
import enum
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from densenet_tutorial.utils import arguments, download, files
from densenet_tutorial.weights import files as tensor_files
from densenet_tutorial.weights import layouts
from densenet_tutorial.weights.layouts import Architecture, architecture, convert_state_dict

#: The files behind ``weights="imagenet"``, with the first digits of their SHA-256 in their names.
IMAGENET_FILES = {
    "densenet121": "densenet121-a639ec97.pth",
    "densenet161": "densenet161-8d451a50.pth",
    "densenet169": "densenet169-b2777c0a.pth",
    "densenet201": "densenet201-c1103571.pth",
}
IMAGENET_ADDRESS = "https://download.pytorch.org/models/"

#: What ``weights`` may be for these files; the last two are torchvision's names for them.
_IMAGENET = ("imagenet", "DEFAULT", "IMAGENET1K_V1")

_BUNDLED = Path(__file__).parent / "bundled"


class WeightsError(ValueError):
    """Weights that cannot be had, read or fitted; the message names the file and the reason."""


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds, as :func:`read` returns it; ``densenet(weights=…)`` takes it.

    Attributes:
        source: the path of the file, or what else the weights come from.
        model: the state dict in torchvision's layout, in float32, on the CPU.
        config: what a checkpoint of ours says of its run; ``None`` for files of others.
        notes: what :func:`convert_state_dict` did, one sentence each.
    """

    source: str
    model: dict[str, Tensor]
    config: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def model_options(self, name: str) -> dict[str, Any]:
        """What the weights say of the model called `name`: arguments of :class:`network.DenseNet`.

        How a checkpoint's model saved memory while it was trained is none of them.

        Raises:
            WeightsError: they say that they are of a model with another name, or what they say
                does not fit their tensors.
        """
        said = dict((self.config or {}).get("model") or {})
        said.pop("memory_efficient", None)
        theirs = said.pop("name", name)
        if theirs != name:
            raise WeightsError(f"name must be {theirs!r} for weights {self.source}, got {name!r}")
        shapes = {
            "num_classes": ("classifier.weight", 0),
            "in_channels": ("features.conv0.weight", 1),
        }
        options = {
            option: self.model[key].shape[place]
            for option, (key, place) in shapes.items()
            if key in self.model and self.model[key].dim() > place
        }
        with _about(self.source):
            return self._structure(said, options) | options if said else options

    def _structure(self, said: dict[str, Any], options: dict[str, int]) -> dict[str, Any]:
        """The other options of a checkpoint's model: from its tensors, or as it says.

        What it says is no reason to build a larger model than the one whose tensors it holds.
        """
        found = architecture(self.model)
        structure = {one.name: getattr(found, one.name) for one in fields(found)}
        checks = {"drop_rate": arguments.fraction, "compression": arguments.positive_fraction}
        if strange := sorted(said.keys() - {*structure, *checks, "num_classes", "in_channels"}):
            raise ValueError(f"its model has an option that is not known here: {strange[0]!r}")
        rest = {option: checks[option](option, said[option]) for option in checks if option in said}
        count = found.weight_count(
            options.get("in_channels", 1),
            options.get("num_classes", 1),
            rest.get("compression", 0.5),
        )
        if count > sum(value.numel() for value in self.model.values()):
            raise ValueError("it has fewer weights than the model whose names they have")
        return structure | rest


# ------------------------------------------------------------------------------ by name


def shipped() -> list[str]:
    """The names of the weights that come with this package."""
    return sorted(path.stem for path in _BUNDLED.glob("*.json"))


def results(name: str) -> dict[str, Any]:
    """How the shipped weights `name` were trained, and how accurate they are; tested."""
    name = arguments.one_of(shipped())("name", name)
    return json.loads((_BUNDLED / f"{name}.json").read_text(encoding="utf-8"))


@arguments.check(name=arguments.one_of(IMAGENET_FILES))
def is_here(name: str) -> bool:
    """Whether the ImageNet weights of the model called `name` are on this machine already."""
    return cached_path(IMAGENET_ADDRESS + IMAGENET_FILES[name]).is_file()


# ------------------------------------------------------------------------------ reading and writing

_PLACE = arguments.instance_of(
    (str, os.PathLike), "a name, a path, an address, a state dict or torchvision's weights"
)


@arguments.check(
    name=arguments.optional(arguments.text),
    progress=arguments.boolean,
    allow_nan=arguments.boolean,
)
def read(
    weights: "str | os.PathLike[str] | Mapping[str, Any] | enum.Enum | Weights",
    name: str | None = None,
    progress: bool = True,
    allow_nan: bool = False,
) -> Weights:
    """Read `weights`, fetching them first if need be; nothing in a file is run.

    Args:
        weights: ``"imagenet"``, or torchvision's names for it, ``"DEFAULT"`` and
            ``"IMAGENET1K_V1"``, or its enum (``DenseNet121_Weights.DEFAULT``); a name from
            :func:`shipped`; the path of a checkpoint of ours (``runs/a/best.pt``), of a state dict
            in any layout that :func:`convert_state_dict` knows, or of a safetensors file; the
            address of one, ``https://…``, which is then kept in PyTorch's cache
            (``torch.hub.get_dir()``); a state dict itself, or a dict around one; or what this
            function returned before.
        name: of the model, for ``"imagenet"``: a key of :data:`IMAGENET_FILES`.
        progress: whether a bar shows how far a download is.
        allow_nan: read weights with infinities and values that are not numbers, too.

    Raises:
        WeightsError: there are no such weights; they cannot be fetched, or their hash is wrong;
            they are no file of tensors; or these are no DenseNet's, or none that it could compute
            with. A fetched file of which that is found, under a name without a hash, is removed.
        ValueError: an argument is of another kind.
    """
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, Mapping):
        with _about("the state dict"):
            return _found("the state dict", weights, allow_nan)
    if isinstance(weights, enum.Enum):
        model = _torchvisions(weights)
        if name not in (None, model):
            raise WeightsError(f"weights {weights} are of {model}, got the model {name!r}")
        weights, name = "imagenet", model
    path, is_certain = _located(_PLACE("weights", weights), name, progress)
    with _about(path):
        try:
            return _found(str(path), tensor_files.read(path), allow_nan)
        except ValueError as error:
            if is_certain:
                raise
            with contextlib.suppress(OSError):
                path.unlink()
            raise ValueError(f"{error}; it was not kept") from error


def _found(source: str, content: Any, allow_nan: bool) -> Weights:
    config = None
    if layouts.is_checkpoint(content):
        config = dict(content["config"])
        parts = {part: config.get(part) for part in ("model", "dataset")}
        strange = [k for k, v in parts.items() if not isinstance(v, (Mapping, type(None)))]
        if strange or not isinstance((parts["model"] or {}).get("name", ""), str):
            what = (strange or ["model"])[0]
            raise ValueError(f"what it says of its {what} is no configuration")
        content = content["model"]
    state_dict, notes = convert_state_dict(content)
    layouts.check_values(state_dict, allow_nan)
    return Weights(source, state_dict, config, notes)


@arguments.check(
    weights=arguments.instance_of(Weights, "what weights.read returned"),
    like=arguments.instance_of(Mapping, "a state dict"),
)
def adapt(
    weights: Weights,
    like: Mapping[str, Tensor],
    head: str | Sequence[int] | None = None,
    known: Mapping[str, Architecture] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """:func:`layouts.adapt_state_dict` for `weights`, of the architecture of `like`, a state dict.

    `known` gives architectures their names, for the message that says which one the weights are of.

    Raises:
        WeightsError: the weights are of another architecture, or something in them does not fit.
    """
    with _about(weights.source):
        ours = architecture(like)
        try:
            theirs = architecture(weights.model)
        except ValueError:
            if not weights.model.keys() & like.keys():
                raise
            theirs = ours  # a DenseNet with a piece missing: which one, the next step says
        if theirs != ours:
            names = [name for name, one in (known or {}).items() if one == theirs]
            looks = names[0] if names else "a DenseNet that has no name here"
            raise ValueError(f"it looks like {looks}: {theirs}. The model has {ours}")
        return layouts.adapt_state_dict(weights.model, like, head)


@arguments.check(
    model=arguments.instance_of((nn.Module, Mapping), "a DenseNet or its state dict"),
    path=arguments.path,
)
def save(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write the weights of `model`, a DenseNet or its state dict, for torchvision and timm to load.

    The file holds the state dict alone, in torchvision's layout: read it with ``torch.load``, or,
    if `path` ends in ``.safetensors``, with safetensors. (Those of models that torchvision cannot
    build, with the CIFAR stem say, have the same keys, and only this package has a model for them.)

    Raises:
        ValueError: this is no DenseNet's state dict, or more than that.
        OSError: the disk is full, say; what was at `path` is still there.
    """
    state_dict, notes = convert_state_dict(
        model.state_dict() if isinstance(model, nn.Module) else model
    )
    if lost := [note for note in notes if note.startswith(layouts.LEFT_OUT)]:
        raise ValueError(f"model must be a DenseNet and no more, but saving it {lost[0]}")
    tensor_files.write(path, state_dict)


# ------------------------------------------------------------------------------ what goes with them


def transforms(weights: Any) -> nn.Module:
    """What an image has to go through before a network with `weights` sees it (torchvision's v2).

    The result takes a PIL image, or a uint8 tensor of (…, C, H, W), and returns normalised floats
    of (…, C, h, w): for ``"imagenet"``, the shorter side scaled to 256 pixels, the middle 224 x 224
    cut out; for weights of ours, the size, colours, mean and standard deviation of the images that
    they were trained on. Into that size an image is scaled whole, and what is left is filled with
    black (:class:`data.FitInside`). `weights` is what :func:`read` takes.

    Raises:
        WeightsError: as for :func:`read`, or the file does not say what it was trained on.
    """
    from torchvision.transforms import v2

    from densenet_tutorial.data import FitInside

    if _is_imagenet(weights):
        size: list[nn.Module] = [v2.RGB(), v2.Resize(256), v2.CenterCrop(224)]
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    else:
        dataset = trained_on(weights)
        channels, height, width = dataset["image_shape"]
        size = [v2.Grayscale() if channels == 1 else v2.RGB(), FitInside(height, width)]
        mean, std = dataset["mean"], dataset["std"]
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*size, *to_float, v2.ToPureTensor()])


def categories(weights: Any) -> list[str]:
    """The names of the classes that a network with `weights` tells apart, in the order of its
    logits.

    Raises:
        WeightsError: as for :func:`read`, or the file does not say what it was trained on.
    """
    if _is_imagenet(weights):
        from torchvision.models import DenseNet121_Weights

        return list(DenseNet121_Weights.IMAGENET1K_V1.meta["categories"])
    return list(trained_on(weights)["classes"])


def trained_on(weights: Any) -> dict[str, Any]:
    """What `weights` of ours say of their data (:meth:`data.ImageDataset.metadata`).

    Raises:
        WeightsError: as for :func:`read`, or the file does not say what it was trained on, or says
            what cannot be.
    """
    if isinstance(weights, str) and weights in shipped():
        return results(weights)["config"]["dataset"]
    found = read(weights)
    dataset = (found.config or {}).get("dataset")
    if not dataset:
        known = ", ".join(map(repr, ["imagenet", *shipped()]))
        raise WeightsError(
            f"{found.source} does not say what it was trained on; transforms and categories are "
            f"known for {known} and checkpoints of this package"
        )
    with _about(found.source):
        checked = {name: check(name, dataset.get(name)) for name, check in _DATASET.items()}
        channels, *sides = checked["image_shape"]
        if len(sides) != 2 or channels not in (1, 3) or max(sides) > 10_000:
            raise ValueError(f"its image_shape is that of no image: {checked['image_shape']}")
        if not channels == len(checked["mean"]) == len(checked["std"]):
            raise ValueError(f"its mean and std are not of {channels} channels")
        head = found.model.get("classifier.weight")
        if head is not None and len(head) != len(checked["classes"]):
            raise ValueError(
                f"it names {len(checked['classes'])} classes, and tells {len(head)} apart"
            )
    return dict(dataset) | {name: list(value) for name, value in checked.items() if name != "name"}


_DATASET = {
    "name": arguments.text,
    "classes": arguments.sequence_of(arguments.text),
    "image_shape": arguments.sequence_of(arguments.positive_int),
    "mean": arguments.sequence_of(arguments.non_negative_number),
    "std": arguments.sequence_of(arguments.positive_number),
}


def _is_imagenet(weights: Any) -> bool:
    if isinstance(weights, enum.Enum):
        return bool(_torchvisions(weights))
    return isinstance(weights, str) and weights in _IMAGENET


def _torchvisions(weights: enum.Enum) -> str:
    """The name of the model that `weights`, an enum of torchvision's, are of."""
    from torchvision.models import WeightsEnum

    model = type(weights).__name__.removesuffix("_Weights").lower()
    known = isinstance(weights, WeightsEnum) and weights.name == "IMAGENET1K_V1"
    if not known or model not in IMAGENET_FILES:
        raise WeightsError(
            f"weights must be torchvision's IMAGENET1K_V1 of {', '.join(IMAGENET_FILES)}, "
            f"got {weights}"
        )
    return model


# ------------------------------------------------------------------------------ where they are


def _located(
    weights: str | os.PathLike[str], name: str | None, progress: bool
) -> tuple[Path, bool]:
    """The file that holds `weights`, fetched if it is on the web.

    Also whether it is what was meant, as far as can be known: a file of the user's own, or one
    whose hash was compared.
    """
    if weights in _IMAGENET:
        if name not in IMAGENET_FILES:
            got = "no model's name" if name is None else f"the model {name!r}"
            raise WeightsError(
                f"weights {weights!r} are there for {', '.join(IMAGENET_FILES)}, got {got} "
                "(in Python, name=…; for the command predict, --model …)"
            )
        return _download(IMAGENET_ADDRESS + IMAGENET_FILES[name], progress)
    if isinstance(weights, str) and weights in shipped():
        path = _BUNDLED / f"{weights}.pt"
        if hashlib.sha256(path.read_bytes()).hexdigest() != results(weights)["sha256"]:
            raise WeightsError(
                f"{path.name} in the package is damaged (wrong SHA-256); install it again"
            )
        return path, True
    text = os.fspath(weights)
    if isinstance(weights, str) and weights.lower().startswith(("http://", "https://")):
        return _download(weights, progress)
    if not os.path.exists(text):
        names = ", ".join(map(repr, ["imagenet", *shipped()]))
        raise WeightsError(
            f"weights must be {names}, an address (https://…) or the path of a file, got "
            f"{download.without_secrets(text)!r}, and there is no such file"
        )
    return Path(text), True


def cached_path(url: str) -> Path:
    """Where the file of `url` is, or belongs: in ``checkpoints`` in ``torch.hub.get_dir()``.

    Its name begins with a hash of the address: a name may mean another file elsewhere, and eight
    digits of a hash can be forged. Only what torchvision too fetches from :data:`IMAGENET_ADDRESS`
    has the name that torchvision gives it.
    """
    name = _name_in(url)
    if not (url.startswith(IMAGENET_ADDRESS) and _hash_in(name)):
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    return Path(torch.hub.get_dir(), "checkpoints", name)


def _name_in(url: str) -> str:
    """The last part of an address, as it stands there, of letters and digits that any file may have."""
    name = urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip(".") or "weights"


def _hash_in(name: str) -> str | None:
    """The first digits of the SHA-256 that a file's name gives, as in ``densenet121-a639ec97.pth``.

    A date is none, and nothing of decimal digits alone, which is a date, a time or a number.
    """
    found = re.search(r"-(?!\d+\.|(?:19|20)\d\d[01]\d[0-3]\d)([0-9a-f]{8,64})(?:\.\w+)+$", name)
    return found[1] if found else None


def _download(url: str, progress: bool) -> tuple[Path, bool]:
    """The file at `url`, fetched if it is not in the cache yet, and whether its name has a hash.

    The content is held to the hash, in the cache as well. An interrupted or refused download
    leaves nothing behind.
    """
    try:
        address, shown = download.checked_url(url)
    except ValueError as error:
        raise WeightsError(f"weights {error}") from error
    path = cached_path(address)
    expected = _hash_in(_name_in(address))
    try:
        if path.is_file():
            if expected and not download.sha256(path).startswith(expected):
                raise WeightsError(f"{path} is damaged (wrong SHA-256); remove it and try again")
            return path, expected is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.resolve().parent != path.parent.resolve():
            raise OSError(f"{path} is a link out of this folder")
        with files.atomic_write(path) as file:
            digest, start = download.fetch(address, file, tensor_files.LARGEST, progress)
            if expected and not digest.startswith(expected):
                page = " (it is a web page)" if start.lstrip()[:1] == b"<" else ""
                raise WeightsError(
                    f"what {shown} sent is not the file{page}: its SHA-256 starts with "
                    f"{digest[: len(expected)]}, not with {expected} as its name says; it was not "
                    "kept. If the name gives no hash, fetch the file by hand and give its path"
                )
    except OSError as error:
        raise WeightsError(
            f"{shown} is not on this machine and could not be downloaded "
            f"({error.strerror or error}). Fetch it where there is a network and save it as {path}"
        ) from error
    return path, expected is not None


@contextlib.contextmanager
def _about(source: object) -> Iterator[None]:
    """Let an error say which file it is about, once."""
    try:
        yield
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{source} cannot be used: {error}") from error
