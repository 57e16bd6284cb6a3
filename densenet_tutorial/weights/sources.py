"""Trained weights: where they come from, what they are of, and how their pictures have to be prepared.

``"imagenet"`` names the four files that torchvision's users download; :func:`shipped` names those that come with this
package; a path or an address names any other file. This module stands below :mod:`network`: it deals in state dicts.
How files are read, fetched and converted is in :mod:`tensor_files`, :mod:`downloads` and :mod:`state_dicts`.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from densenet_tutorial.weights import download, layouts
from densenet_tutorial.weights import files as tensor_files
from densenet_tutorial.weights.layouts import Architecture, architecture, convert_state_dict

#: The files behind ``weights="imagenet"``, with the first digits of their SHA-256 in their names.
IMAGENET_FILES = {
    "densenet121": "densenet121-a639ec97.pth",
    "densenet161": "densenet161-8d451a50.pth",
    "densenet169": "densenet169-b2777c0a.pth",
    "densenet201": "densenet201-c1103571.pth",
}
IMAGENET_ADDRESS = "https://download.pytorch.org/models/"

_BUNDLED = Path(__file__).parent / "bundled"


class WeightsError(ValueError):
    """Weights that cannot be had, read or fitted; the message names the file and the reason."""


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        file: the file's path.
        model: the state dict in torchvision's layout, in float32, on the CPU.
        config: what a checkpoint of ours says of its run; ``None`` for files of others.
        notes: what :func:`convert_state_dict` did, one sentence each.
    """

    file: Path
    model: dict[str, Tensor]
    config: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def model_options(self, name: str) -> dict[str, Any]:
        """What the weights say of the model called `name`: arguments of :class:`network.DenseNet`.

        Raises:
            WeightsError: they say that they are of a model with another name.
        """
        options = dict((self.config or {}).get("model") or {})
        theirs = options.pop("name", name)
        if theirs != name:
            raise WeightsError(f"name must be {theirs!r} for weights {self.file}, got {name!r}")
        shapes = {
            "num_classes": ("classifier.weight", 0),
            "in_channels": ("features.conv0.weight", 1),
        }
        for option, (key, place) in shapes.items():
            if key in self.model and self.model[key].dim() > place:
                options[option] = self.model[key].shape[place]
        return options


def shipped() -> list[str]:
    """The names of the weights that come with this package."""
    return sorted(path.stem for path in _BUNDLED.glob("*.json"))


def results(name: str) -> dict[str, Any]:
    """How the shipped weights `name` were trained, and how accurate they are; a test holds them to it."""
    return json.loads((_BUNDLED / f"{name}.json").read_text(encoding="utf-8"))


def is_here(name: str) -> bool:
    """Whether the ImageNet weights of the model called `name` are on this machine already."""
    return download.cached_path(IMAGENET_ADDRESS + IMAGENET_FILES[name]).exists()


def read(weights: str | Path, name: str | None = None) -> Weights:
    """Read `weights`, fetching them first if need be; nothing in a file is run.

    Args:
        weights: ``"imagenet"``; a name from :func:`shipped`; the path of a checkpoint of ours (``runs/a/best.pt``), of
            a state dict in any layout that :func:`convert_state_dict` knows, or of a safetensors file; or the
            address of one, ``https://…``, which is then kept in PyTorch's cache (``torch.hub.get_dir()``).
        name: of the model, for ``"imagenet"``: a key of :data:`IMAGENET_FILES`.

    Raises:
        WeightsError: there are no such weights, they cannot be fetched, their hash is wrong, or they are no file of
            tensors.
    """
    path = _locate(weights, name)
    with _about(path):
        content = tensor_files.read(path)
        model, notes = convert_state_dict(content)
    return Weights(
        path, model, content["config"] if layouts.is_checkpoint(content) else None, notes
    )


def adapt(
    weights: Weights,
    like: Mapping[str, Tensor],
    head: str | Sequence[int] | None = None,
    known: Mapping[str, Architecture] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """:func:`layouts.adapt_state_dict` for `weights`, which must be of the architecture of `like`, a model's state dict.

    `known` gives architectures their names, for the message that says which one the weights look like.

    Raises:
        WeightsError: the weights are of another architecture, or something in them does not fit.
    """
    with _about(weights.file):
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


def save(model: nn.Module | Mapping[str, Tensor], path: str | Path) -> None:
    """Write the weights of `model`, a DenseNet or its state dict, to `path`, for torchvision and timm to load.

    The file holds the state dict alone, in torchvision's layout: read it with ``torch.load``, or, if `path` ends in
    ``.safetensors``, with safetensors. (Those of models that torchvision cannot build, with the CIFAR stem say, have
    the same keys, and only this package has a model for them.)

    Raises:
        ValueError: this is no model's state dict.
        OSError: the disk is full, say; what was at `path` is still there.
    """
    state_dict = model.state_dict() if isinstance(model, nn.Module) else model
    tensor_files.write(path, convert_state_dict(state_dict)[0])


def transforms(weights: str | Path) -> nn.Module:
    """What a picture has to go through before a network with `weights` sees it (torchvision's transforms, v2).

    The result takes a PIL picture, or bytes of (…, C, H, W), and returns normalised floats of
    (…, C, h, w): for ``"imagenet"``, the shorter side scaled to 256 pixels, the middle 224 x 224 cut
    out; for weights of ours, the size, colours, mean and standard deviation of the pictures that they
    were trained on. Into that size a picture is scaled whole, and what is left is filled with black
    (:class:`data.FitInside`).

    Raises:
        WeightsError: as for :func:`read`, or the file does not say what it was trained on.
    """
    import torch
    from torchvision.transforms import v2

    from densenet_tutorial.data import FitInside

    if weights == "imagenet":
        size: list[nn.Module] = [v2.RGB(), v2.Resize(256), v2.CenterCrop(224)]
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    else:
        dataset = trained_on(weights)
        channels, height, width = dataset["image_shape"]
        size = [v2.Grayscale() if channels == 1 else v2.RGB(), FitInside(height, width)]
        mean, std = dataset["mean"], dataset["std"]
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*size, *to_float, v2.ToPureTensor()])


def categories(weights: str | Path) -> list[str]:
    """The names of the classes that a network with `weights` tells apart, in the order of its logits.

    Raises:
        WeightsError: as for :func:`read`, or the file does not say what it was trained on.
    """
    if weights == "imagenet":
        from torchvision.models import DenseNet121_Weights

        return list(DenseNet121_Weights.IMAGENET1K_V1.meta["categories"])
    return list(trained_on(weights)["classes"])


def trained_on(weights: str | Path) -> dict[str, Any]:
    """What `weights` of ours say of their data (:meth:`data.ImageDataset.description`).

    Raises:
        WeightsError: as for :func:`read`, or the file does not say what it was trained on.
    """
    found = results(str(weights)) if str(weights) in shipped() else vars(read(weights))
    config = found["config"]
    if not config or "dataset" not in config:
        raise WeightsError(
            f"{weights} does not say what it was trained on; transforms and categories are known for 'imagenet', "
            f"{', '.join(map(repr, shipped()))} and checkpoints of this package"
        )
    return config["dataset"]


def _locate(weights: str | Path, name: str | None) -> Path:
    """The file that holds `weights`, fetched if it is on the web."""
    if weights == "imagenet":
        if name not in IMAGENET_FILES:
            got = "no model's name" if name is None else f"the model {name!r}"
            raise WeightsError(
                f"weights 'imagenet' are there for {', '.join(IMAGENET_FILES)}, got {got}"
            )
        return _download(IMAGENET_ADDRESS + IMAGENET_FILES[name])
    if str(weights) in shipped():
        path = _BUNDLED / f"{weights}.pt"
        if hashlib.sha256(path.read_bytes()).hexdigest() != results(str(weights))["sha256"]:
            raise WeightsError(
                f"{path.name} in the package is damaged (wrong SHA-256); install it again"
            )
        return path
    if download.is_url(weights):
        return _download(str(weights))
    if not Path(weights).exists():
        names = ", ".join(map(repr, ["imagenet", *shipped()]))
        raise WeightsError(
            f"weights must be {names}, an address or the path of a file, got {str(weights)!r}, "
            "and there is no such file"
        )
    return Path(weights)


def _download(url: str) -> Path:
    try:
        return download.download(url)
    except (OSError, ValueError) as error:
        raise WeightsError(str(error)) from error


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Let an error say which file it is about."""
    try:
        yield
    except ValueError as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error
