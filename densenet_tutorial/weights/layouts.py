"""State dicts, as pure functions from names and shapes: converting, recognising, fitting.

This module knows how a DenseNet's tensors are called and shaped, and nothing of files or of our classes. Chapter 08
builds :func:`convert_state_dict` up.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densenet_tutorial.utils import arguments

#: Written into every checkpoint of ours, so that a file of another kind is recognised.
CHECKPOINT_FORMAT = "densenet-tutorial checkpoint 1"

#: Keys under which training scripts put the model in a larger dict, in the order in which they are tried.
WRAPPERS = ("model", "state_dict", "model_state_dict")

#: What PyTorch's wrappers (DataParallel, DistributedDataParallel, torch.compile) put into the names.
_WRAPPER_PARTS = ("module", "_orig_mod")

#: "…denselayer1.norm.1.weight", as until torchvision 0.2, in two groups and the dot between.
_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def is_checkpoint(content: Any) -> bool:
    """Whether `content`, read from some file, is a checkpoint of a training run of ours."""
    return isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT


def convert_state_dict(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Bring a DenseNet's weights, in any of the layouts that are around, into torchvision's of today.

    It takes out the state dict of a larger dict (:data:`WRAPPERS`), drops ``module.`` and ``_orig_mod.`` and any prefix
    that is left before ``features``, renames old dotted keys (``norm.1`` to ``norm1``), adds the counters
    ``num_batches_tracked`` where a file from before they existed has none, and turns other floats into float32.
    timm's names are torchvision's. `content` is left as it is.

    Returns:
        The state dict, and one sentence for each thing that was done; none if there was nothing to do.

    Raises:
        ValueError: `content` holds no state dict, or a key twice once renamed.
    """
    state_dict, notes = unwrapped(content)
    renamed = renamed_keys(state_dict, notes)

    norms = [key.removesuffix("running_var") for key in renamed if key.endswith(".running_var")]
    counters = [f"{norm}num_batches_tracked" for norm in norms]
    if counters and not any(counter in renamed for counter in counters):
        renamed |= {counter: torch.tensor(0) for counter in counters}
        notes.append(f"added {len(counters)} counters num_batches_tracked, at 0")

    other = [k for k, v in renamed.items() if v.is_floating_point() and v.dtype != torch.float32]
    if other:
        kinds = ", ".join(sorted({str(renamed[key].dtype).removeprefix("torch.") for key in other}))
        renamed |= {key: renamed[key].float() for key in other}
        notes.append(f"turned {len(other)} tensors from {kinds} into float32")
    return renamed, notes


def unwrapped(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in `content`, and how it was found."""
    notes = []
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content), notes
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        notes.append(f"took the state dict from under {key!r}")
        content = content[key]
    if isinstance(content, Mapping):
        strange = [
            f"{k!r} is {type(v).__name__}" for k, v in content.items() if not isinstance(v, Tensor)
        ]
        what = f"a dict of {len(content)} entries ({', '.join(strange[:3]) or 'none'})"
    else:
        what = f"a {type(content).__name__}"
    raise ValueError(
        f"it holds no state dict, which maps names to tensors, alone or under one of {_listed(WRAPPERS)}: it is {what}"
    )


def renamed_keys(state_dict: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    names = {key: str(key) for key in state_dict}

    def rename(what: str, new: dict[str, str]) -> None:
        changed = [key for key in names if names[key] != new[key]]
        if changed:
            example = f"{names[changed[0]]} is now {new[changed[0]]}"
            notes.append(f"{what} in {len(changed)} of {len(names)} keys ({example})")
            names.update(new)

    for part in _WRAPPER_PARTS:
        without = {
            key: ".".join(word for word in name.split(".") if word != part)
            for key, name in names.items()
        }
        rename(f"dropped {part!r}", without)
    first = next((n for n in names.values() if n.endswith("features.conv0.weight")), "")
    prefix = first.removesuffix("features.conv0.weight")
    if prefix:
        rename(f"dropped {prefix!r}", {k: n.removeprefix(prefix) for k, n in names.items()})
    rename("joined name and number", {k: _OLD_KEY.sub(r"\1\2", n) for k, n in names.items()})

    renamed = {names[key]: tensor for key, tensor in state_dict.items()}
    if len(renamed) < len(state_dict):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise ValueError(f"two of its keys mean the same tensor, {twice}")
    return renamed


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of a DenseNet's state dict tell of it, classes and channels of pictures aside.

    Attributes are as :class:`network.DenseNet` takes them.
    """

    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    bn_size: int | None
    stem: str

    def __str__(self) -> str:
        blocks = ", ".join(map(str, self.block_config))
        bottleneck = "no bottleneck" if self.bn_size is None else f"bn_size {self.bn_size}"
        return (
            f"blocks {blocks}, growth rate {self.growth_rate}, {self.num_init_features} channels from the "
            f"{self.stem} stem, {bottleneck}"
        )


def architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The architecture that `state_dict`, in torchvision's layout, belongs to.

    Raises:
        ValueError: it is no DenseNet's.
    """
    places = [re.match(r"features\.denseblock(\d+)\.denselayer(\d+)\.", key) for key in state_dict]
    layers = {(int(place[1]), int(place[2])) for place in places if place}
    blocks = max((block for block, _ in layers), default=0)
    first = "features.denseblock1.denselayer1"
    try:
        conv0, conv1 = state_dict["features.conv0.weight"], state_dict[f"{first}.conv1.weight"]
        conv2 = state_dict.get(f"{first}.conv2.weight")
        growth_rate = len(conv1 if conv2 is None else conv2)
        return Architecture(
            growth_rate=growth_rate,
            block_config=tuple(
                max((layer for b, layer in layers if b == block), default=0)
                for block in range(1, blocks + 1)
            ),
            num_init_features=len(conv0),
            bn_size=None if conv2 is None else len(conv1) // growth_rate,
            stem="imagenet" if conv0.shape[-1] == 7 else "cifar",
        )
    except (KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"it is no DenseNet's: of its {len(state_dict)} tensors, the first are {_listed(state_dict)}"
        ) from error


def adapt_state_dict(
    state_dict: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    head: str | Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt `state_dict` to a model whose own is `like`: its classifier, and its first convolution.

    **Classifier.** `head` is ``None`` (the weights' where they have as many classes as the model, else new), ``"new"``
    (the one in `like`, whose random weights are the model's), ``"slice"`` (the first rows), or a sequence of row
    numbers. Row i of the classifier's weight and bias is what tells class i.

    **First convolution.** Where the model reads m channels and the weights n, each of the m gets the sum of the n
    kernels, over m. So a picture whose n channels are alike gives what one whose m are alike gave: from 3 to 1 this
    sums, from 1 to 3 it shares out. From 3 to 4 all channels start alike, and what told colours apart is gone.

    Returns:
        The state dict, with the keys and shapes of `like` and in its order, and one sentence for each adaptation.

    Raises:
        ValueError: keys are missing or too many, a shape differs, `head` does not fit, or a tensor holds infinities
            or values that are not numbers.
    """
    fitted, notes = dict(state_dict), []
    _fit_classifier(fitted, like, checked_head(head), notes)
    _fit_first_convolution(fitted, like, notes)

    missing = [key for key in like if key not in fitted]
    extra = [key for key in fitted if key not in like]
    shapes = [
        f"{key} has {list(fitted[key].shape)} and should have {list(like[key].shape)}"
        for key in like
        if key in fitted and fitted[key].shape != like[key].shape
    ]
    broken = [
        key
        for key, value in fitted.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    faults = [
        f"{what}: {len(found)} ({_listed(found)})"
        for what, found in (
            ("missing keys", missing),
            ("keys that the model has not", extra),
            ("wrong shapes", shapes),
            ("tensors with infinities or values that are not numbers", broken),
        )
        if found
    ]
    if faults:
        raise ValueError("; ".join(faults))
    return {key: fitted[key] for key in like}, notes


def checked_head(head: Any) -> str | tuple[int, ...] | None:
    """Return `head` if :func:`adapt_state_dict` takes it, row numbers as a tuple."""
    if head is None or isinstance(head, str):
        return arguments.one_of((None, "new", "slice"))("head", head)
    return arguments.sequence_of(arguments.non_negative_int)("head", head)


def _fit_classifier(
    fitted: dict[str, Tensor],
    like: Mapping[str, Tensor],
    head: str | tuple[int, ...] | None,
    notes: list[str],
) -> None:
    classes = len(like["classifier.weight"])
    old = fitted.get("classifier.weight")
    if old is None and head is None:
        raise ValueError("it has no classifier; head='new' makes one")
    if old is None and head != "new":
        raise ValueError(f"it has no classifier, and head={head!r} needs one")
    if old is not None and (old.dim() != 2 or len(fitted.get("classifier.bias", old)) != len(old)):
        return  # no classifier at all: the comparison of shapes says so
    if head is None and len(old) == classes:
        return
    if head in (None, "new"):
        fitted |= {f"classifier.{part}": like[f"classifier.{part}"] for part in ("weight", "bias")}
        notes.append(f"a new classifier of {classes} classes, with random weights")
        return
    rows = list(range(classes)) if head == "slice" else list(head)
    if len(rows) != classes or not all(0 <= row < len(old) for row in rows):
        raise ValueError(
            f"head must choose {classes} of the {len(old)} classes (0 to {len(old) - 1}), got {_listed(rows)}"
        )
    if rows != list(range(len(old))):
        for key in ("classifier.weight", "classifier.bias"):
            if key in fitted:
                fitted[key] = fitted[key][rows]
        notes.append(f"a classifier of {classes} of the {len(old)} classes: rows {_listed(rows)}")


def _fit_first_convolution(
    fitted: dict[str, Tensor], like: Mapping[str, Tensor], notes: list[str]
) -> None:
    key = "features.conv0.weight"
    if key not in fitted or fitted[key].dim() != 4:
        return
    theirs, ours = fitted[key].shape[1], like[key].shape[1]
    if theirs != ours:
        fitted[key] = fitted[key].sum(1, keepdim=True).expand(-1, ours, -1, -1) / ours
        notes.append(
            f"a first convolution for {ours} channels: the sum of the {theirs} kernels, over {ours}"
        )


def _listed(things: Any, count: int = 3) -> str:
    """The first few of `things`."""
    things = [str(thing) for thing in things]
    return ", ".join(things[:count]) + (", …" if len(things) > count else "")
