"""Trained weights: loading by name, path or URL, saving, and the transforms that they need.

``"imagenet"`` stands for torchvision's four files, and :func:`bundled` lists the weights in this
package. This module knows state dicts, and does not import :mod:`network`. :mod:`weights.files`
reads file formats; :mod:`weights.layouts` knows the names of a DenseNet's tensors.
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

#: The values of ``weights`` for these files; the last two are torchvision's.
_IMAGENET = ("imagenet", "DEFAULT", "IMAGENET1K_V1")

_BUNDLED = Path(__file__).parent / "bundled"


class WeightsError(ValueError):
    """Weights that cannot be found, read or adapted; the message names the file and the reason."""


@dataclass(frozen=True)
class Weights:
    """The result of :func:`read`, which ``densenet(weights=…)`` accepts.

    Attributes:
        source: the path of the file, or another description of the source, for messages.
        model: the state dict in torchvision's layout, in float32, on the CPU.
        config: the configuration in a checkpoint of this package; ``None`` for other files.
        notes: the changes that :func:`convert_state_dict` made.
    """

    source: str
    model: dict[str, Tensor]
    config: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def model_options(self, name: str) -> dict[str, Any]:
        """Arguments of :class:`network.DenseNet` for the weights of the model called `name`.

        The ``memory_efficient`` mode of the training run is not among them.

        Raises:
            WeightsError: the weights belong to a model with another name, or their configuration
                does not match their tensors.
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
        """The other options, from the tensors where possible, otherwise from the configuration.

        The configuration must not lead to a larger model than the tensors are for.
        """
        found = architecture(self.model)
        structure = {one.name: getattr(found, one.name) for one in fields(found)}
        checks = {"drop_rate": arguments.fraction, "compression": arguments.positive_fraction}
        if strange := sorted(said.keys() - {*structure, *checks, "num_classes", "in_channels"}):
            raise ValueError(f"its model has an unknown option: {strange[0]!r}")
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


def bundled() -> list[str]:
    """The names of the weights that are part of this package."""
    return sorted(path.stem for path in _BUNDLED.glob("*.json"))


def results(name: str) -> dict[str, Any]:
    """Configuration and test accuracy of the bundled weights `name`, as committed and tested."""
    name = arguments.one_of(bundled())("name", name)
    return json.loads((_BUNDLED / f"{name}.json").read_text(encoding="utf-8"))


@arguments.check(name=arguments.one_of(IMAGENET_FILES))
def is_cached(name: str) -> bool:
    """Whether the ImageNet weights of the model called `name` have been downloaded."""
    return cached_path(IMAGENET_ADDRESS + IMAGENET_FILES[name]).is_file()


# ------------------------------------------------------------------------------ reading and writing

_SOURCE = arguments.instance_of(
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
    """Read `weights`, after downloading them if necessary; no code in a file is run.

    Args:
        weights: ``"imagenet"``, or torchvision's names for it, ``"DEFAULT"`` and
            ``"IMAGENET1K_V1"``, or its enum (``DenseNet121_Weights.DEFAULT``); a name from
            :func:`bundled`; the path of a checkpoint of ours (``runs/a/best.pt``), of a state dict
            in any layout that :func:`convert_state_dict` knows, or of a safetensors file; the
            URL of one, ``https://…``, which is then cached in ``torch.hub.get_dir()``; a state
            dict itself, or a dict around one; or a :class:`Weights`, which is returned.
        name: the model's name, for ``"imagenet"``: a key of :data:`IMAGENET_FILES`.
        progress: whether to show a progress bar for a download.
        allow_nan: whether to accept infinities and NaN.

    Raises:
        WeightsError: there are no such weights; the download failed, or its hash is wrong; the
            file holds no tensors, no DenseNet, or values that are not finite. A downloaded file
            that turns out to be invalid is removed, unless its name contains a hash.
        ValueError: an argument has a wrong type.
    """
    weights = _with_enum(weights)
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, Mapping):
        with _about("the state dict"):
            return _checked("the state dict", weights, allow_nan)
    if isinstance(weights, enum.Enum):
        model = _model_of(weights)
        if name not in (None, model):
            raise WeightsError(f"weights {weights} are of {model}, got the model {name!r}")
        weights, name = "imagenet", model
    path, is_certain = _resolve(_SOURCE("weights", weights), name, progress)
    with _about(path):
        try:
            return _checked(str(path), tensor_files.read(path), allow_nan)
        except ValueError as error:
            if is_certain:
                raise
            with contextlib.suppress(OSError):
                path.unlink()
            raise ValueError(f"{error}; it was not kept") from error


def _checked(source: str, content: Any, allow_nan: bool) -> Weights:
    """The weights in `content`, converted and validated."""
    config = None
    if layouts.is_checkpoint(content):
        config = dict(content["config"])
        parts = {part: config.get(part) for part in ("model", "dataset")}
        strange = [k for k, v in parts.items() if not isinstance(v, (Mapping, type(None)))]
        if strange or not isinstance((parts["model"] or {}).get("name", ""), str):
            raise ValueError(f"its configuration has no valid {(strange or ['model'])[0]!r}")
        content = content["model"]
    state_dict, notes = convert_state_dict(content)
    layouts.check_values(state_dict, allow_nan)
    return Weights(source, state_dict, config, notes)


@arguments.check(
    weights=arguments.instance_of(Weights, "the result of weights.read"),
    like=layouts.STATE_DICT,
    known=arguments.optional(
        arguments.mapping_of(arguments.instance_of(Architecture, "an Architecture"))
    ),
)
def adapt(
    weights: Weights,
    like: Mapping[str, Tensor],
    head: str | Sequence[int] | None = None,
    known: Mapping[str, Architecture] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """:func:`layouts.adapt_state_dict` for `weights`, after comparing the architectures.

    Args:
        weights: the result of :func:`read`.
        like: the model's state dict.
        head: as for :func:`layouts.adapt_state_dict`.
        known: architectures by name, for the message that says what the weights look like.

    Raises:
        WeightsError: the weights have another architecture, or something in them does not fit.
    """
    with _about(weights.source):
        ours = architecture(like)
        try:
            theirs = architecture(weights.model)
        except ValueError:
            if not weights.model.keys() & like.keys():
                raise
            theirs = ours  # a part is missing; the error of adapt_state_dict says which
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

    The file holds the state dict alone, in torchvision's layout, as ``torch.save`` writes it or, if
    `path` ends in ``.safetensors``, as safetensors. Models that torchvision lacks, such as those
    with the CIFAR stem, have the same keys, but only this package can build them.

    Raises:
        ValueError: the state dict is no DenseNet's, or holds other tensors as well.
        OSError: for example, the disk is full; an old file at `path` is unchanged.
    """
    state_dict, notes = convert_state_dict(
        model.state_dict() if isinstance(model, nn.Module) else model
    )
    if lost := [note for note in notes if note.startswith(layouts.LEFT_OUT)]:
        raise ValueError(f"model must be a DenseNet and no more, but saving it {lost[0]}")
    tensor_files.write(path, state_dict)


# ------------------------------------------------------------------------------ metadata


def transforms(weights: Any) -> nn.Module:
    """The preprocessing transforms for a network with `weights`, of torchvision's v2.

    They take a PIL image or a uint8 tensor (…, C, H, W), and return normalised floats
    (…, C, h, w). For ``"imagenet"``: shorter side resized to 256 pixels, center crop of 224 x 224.
    For weights of this package: size, colours, mean and standard deviation of the training images;
    an image is resized to fit inside that size and padded with black (:class:`data.FitInside`).

    Args:
        weights: as for :func:`read`.

    Raises:
        WeightsError: as for :func:`read`, or the file does not name its training data.
    """
    from torchvision.transforms import v2

    from densenet_tutorial.data import FitInside

    if is_imagenet(weights):
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
    """The class names of a network with `weights`, in the order of its logits.

    Raises:
        WeightsError: as for :func:`read`, or the file does not name its training data.
    """
    if is_imagenet(weights):
        from torchvision.models import DenseNet121_Weights

        return list(DenseNet121_Weights.IMAGENET1K_V1.meta["categories"])
    return list(trained_on(weights)["classes"])


def trained_on(weights: Any) -> dict[str, Any]:
    """Metadata of the data set that `weights` were trained on (:meth:`data.ImageDataset.metadata`).

    Raises:
        WeightsError: as for :func:`read`, or the file has no such metadata, or invalid ones.
    """
    if isinstance(weights, str) and weights in bundled():
        return results(weights)["config"]["dataset"]
    found = read(weights)
    dataset = (found.config or {}).get("dataset")
    if not dataset:
        known = ", ".join(map(repr, ["imagenet", *bundled()]))
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


def _with_enum(weights: Any) -> Any:
    """`weights`, or the enum of torchvision that they name, as "DenseNet121_Weights.DEFAULT"."""
    if not isinstance(weights, str) or not re.fullmatch(r"\w+_Weights\.\w+", weights):
        return weights
    from torchvision.models import get_weight

    try:
        return get_weight(weights)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"torchvision has no weights {weights!r}") from error


def is_imagenet(weights: Any) -> bool:
    """Whether `weights` name the files behind ``"imagenet"``, in our words or torchvision's."""
    weights = _with_enum(weights)
    if isinstance(weights, enum.Enum):
        return bool(_model_of(weights))
    return isinstance(weights, str) and weights in _IMAGENET


def _model_of(weights: enum.Enum) -> str:
    """The name of the model for `weights`, one of torchvision's enums."""
    from torchvision.models import WeightsEnum

    model = type(weights).__name__.removesuffix("_Weights").lower()
    known = isinstance(weights, WeightsEnum) and weights.name == "IMAGENET1K_V1"
    if not known or model not in IMAGENET_FILES:
        raise WeightsError(
            f"weights must be torchvision's IMAGENET1K_V1 of {', '.join(IMAGENET_FILES)}, "
            f"got {weights}"
        )
    return model


# ------------------------------------------------------------------------------ finding files


def _resolve(
    weights: str | os.PathLike[str], name: str | None, progress: bool
) -> tuple[Path, bool]:
    """The file that holds `weights`, after a download if necessary.

    Also whether it must not be removed if it is invalid: the user's own file, or one whose hash was
    compared.
    """
    if weights in _IMAGENET:
        if name not in IMAGENET_FILES:
            got = "no model's name" if name is None else f"the model {name!r}"
            raise WeightsError(
                f"weights {weights!r} are there for {', '.join(IMAGENET_FILES)}, got {got} "
                "(in Python, name=…; for the command predict, --model …)"
            )
        return _download(IMAGENET_ADDRESS + IMAGENET_FILES[name], progress)
    if isinstance(weights, str) and weights in bundled():
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
        names = ", ".join(map(repr, ["imagenet", *bundled()]))
        raise WeightsError(
            f"weights must be {names}, an address (https://…) or the path of a file, got "
            f"{download.without_secrets(text)!r}, and there is no such file"
        )
    return Path(text), True


def cached_path(url: str) -> Path:
    """The cache path for `url`, in ``checkpoints`` in ``torch.hub.get_dir()``.

    The file name starts with a hash of the URL, since the same name may mean another file at
    another URL, and eight digits of a hash can be forged. Only torchvision's files from
    :data:`IMAGENET_ADDRESS` have the names that torchvision gives them.
    """
    name = _name_in(url)
    if not (url.startswith(IMAGENET_ADDRESS) and _hash_in(name)):
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    return Path(torch.hub.get_dir(), "checkpoints", name)


def _name_in(url: str) -> str:
    """The last part of a URL, with characters that any file name may have."""
    name = urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip(".") or "weights"


def _hash_in(name: str) -> str | None:
    """The digits of a SHA-256 in a file's name, as in ``densenet121-a639ec97.pth``, or ``None``.

    Decimal digits alone do not count: they are a date, a time or a number.
    """
    found = re.search(r"-(?!\d+\.|(?:19|20)\d\d[01]\d[0-3]\d)([0-9a-f]{8,64})(?:\.\w+)+$", name)
    return found[1] if found else None


def _download(url: str, progress: bool) -> tuple[Path, bool]:
    """The cached file of `url`, downloaded if necessary, and whether its name has a hash.

    The hash is verified, in the cache as well. An interrupted or refused download leaves no file.
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
            digest, start = download.fetch(address, file, tensor_files.MAX_BYTES, progress)
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
    """Let an error name its file, once."""
    try:
        yield
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{source} cannot be used: {error}") from error
