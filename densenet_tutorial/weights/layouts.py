"""Recognise, convert and adapt the state dicts of DenseNets.

This module knows the names and shapes of a DenseNet's tensors, and neither files nor our classes.
Chapter 08 builds :func:`convert_state_dict` up.
"""

import os.path
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densenet_tutorial.utils import arguments

#: Identifies the checkpoints of this package.
CHECKPOINT_FORMAT = "densenet-tutorial checkpoint 1"

_tensors = arguments.mapping_of(arguments.instance_of(Tensor, "a tensor"))
STATE_DICT = arguments.Check("a state dict, which has a tensor by each name", _tensors.convert)

#: The start of a note on tensors that were ignored.
LEFT_OUT = "left out"

#: The keys of the containers around a tensor, and the parts of its name: (…, "conv0", "weight").
_Path = tuple[str, ...]

_BLOCK = re.compile(r"denseblock\d+")
_LAYER = re.compile(r"denselayer\d+")

#: The names of the children of ``features``, and of the modules inside them.
_PART = re.compile(r"(conv|norm|denseblock|transition)\d+")
_INNER_PART = re.compile(r"(denselayer|conv|norm)\d*|[12]")

#: "…denselayer1.norm.1.weight", a key of torchvision until 0.2: two groups, and the dot between.
_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def is_checkpoint(content: Any) -> bool:
    """Whether `content`, read from a file, is a checkpoint of a training run of this package.

    Raises:
        ValueError: it is one of an unknown version, or a part of it is missing.
    """
    found = content.get("format") if isinstance(content, Mapping) else None
    kind, _, version = CHECKPOINT_FORMAT.rpartition(" ")
    if not isinstance(found, str) or not found.startswith(kind):
        return False
    if found != CHECKPOINT_FORMAT:
        theirs = _shown(found.removeprefix(kind).strip())
        raise ValueError(
            f"it is a checkpoint of format version {theirs!r}, and this version of "
            f"densenet-tutorial reads version {version}; a newer one may read it"
        )
    parts = ("config", "model")
    missing = [part for part in parts if not isinstance(content.get(part), Mapping)]
    if missing:
        raise ValueError(f"it is a checkpoint of this package whose part {missing[0]!r} is missing")
    return True


def convert_state_dict(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Convert the weights of a DenseNet to torchvision's current ``state_dict`` layout.

    `content` may have any prefix before its keys, and any dicts around them
    (:func:`find_densenet`). Old dotted keys are renamed (``norm.1`` to ``norm1``); missing counters
    ``num_batches_tracked`` are added, which old files do not have; other floats become float32.
    timm's names are torchvision's. `content` is not changed.

    Returns:
        The state dict, and one note for each change.

    Raises:
        ValueError: `content` holds no DenseNet's weights, or several; two keys mean the same
            tensor; or a tensor does not hold floats, each with its own memory.
    """
    state_dict, notes = find_densenet(content)

    norms = [key.removesuffix("running_var") for key in state_dict if key.endswith(".running_var")]
    counters = [f"{norm}num_batches_tracked" for norm in norms]
    if counters and not any(counter in state_dict for counter in counters):
        state_dict |= {counter: torch.tensor(0) for counter in counters}
        notes.append(f"added {len(counters)} counters num_batches_tracked, at 0")

    state_dict |= {key: state_dict[key].long() for key in counters if key in state_dict}

    other = [k for k, v in state_dict.items() if v.dtype != torch.float32 and k not in counters]
    if other:
        kinds = ", ".join(sorted({str(state_dict[key].dtype)[len("torch.") :] for key in other}))
        state_dict |= {key: state_dict[key].float() for key in other}
        notes.append(f"turned {len(other)} tensors from {kinds} into float32")
    return state_dict, notes


# ------------------------------------------------------------------------------ recognising


def find_densenet(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the DenseNet in `content`, by torchvision's names, and notes.

    Searches dicts and lists at any depth for names with ``denseblockN`` and ``denselayerM``, with
    any prefix. The trunk is everything beside ``denseblock1``; parts of names that come from
    wrappers are removed. The classifier is the linear layer, of any name, whose input has the
    trunk's channels, if it is the only one. Other tensors are ignored with a note, except inside a
    trunk whose classifier is outside: these stay, so that loading fails.

    Raises:
        ValueError: there is no DenseNet, or there are several that differ; two keys mean the same
            tensor; or a tensor does not hold floats, each with its own memory.
    """
    tensors, nests = _all_tensors(content)
    if not (prefixes := _trunk_prefixes(tensors)):
        raise ValueError(f"it holds no DenseNet's weights: {_described(content, list(tensors))}")
    prefix, trunk, head, taken = _unique_densenet(tensors, prefixes)
    chosen = trunk | head
    state_dict = {key: tensors[path] for key, path in chosen.items()}
    notes: list[str] = []
    if prefix != ("features",):
        place = _shown(".".join(prefix))
        notes.append(f"took the trunk from under {place!r}" if place else "took the trunk alone")
    inside = {key: ".".join(path[len(prefix) :]) for key, path in trunk.items()}
    wrapped = [k for k in trunk if "features." + _OLD_KEY.sub(r"\1\2", inside[k]) != k]
    dotted = [k for k in trunk if _OLD_KEY.search(inside[k])]
    for what, keys in (("dropped a wrapper's words", wrapped), ("joined name and number", dotted)):
        if keys:
            notes.append(
                f"{what} in {len(keys)} of {len(trunk)} keys ({_shown(inside[keys[0]])} is now "
                f"{keys[0].removeprefix('features.')})"
            )
    if head:
        *words, _ = head["classifier.weight"]
        classes = len(state_dict["classifier.weight"])
        if words[-1] != "classifier":
            notes.append(
                f"took the linear layer {_shown('.'.join(words))!r} as the classifier of {classes} "
                "classes; what follows it, such as a sigmoid, is in no file of weights"
            )
        if "classifier.bias" not in head:
            state_dict["classifier.bias"] = state_dict["classifier.weight"].new_zeros(classes)
            notes.append("gave the classifier, which has no bias, one of zeros")

    def within(path: _Path) -> bool:
        return path[: len(prefix)] == prefix

    nest = os.path.commonprefix([nests[path] for path in trunk.values()])
    left = [path for path in tensors if path not in taken and nests[path][: len(nest)] == nest]
    if prefix and head and not within(head["classifier.weight"]):
        unknown = {
            f"features.{'.'.join(path[len(prefix) :])}": path for path in left if within(path)
        }
        state_dict |= {key: tensors[path] for key, path in unknown.items()}
        left = [path for path in left if not within(path)]
    if left:
        names = _listed(".".join(path) for path in left)
        notes.append(f"{LEFT_OUT} what belongs to no DenseNet: {len(left)} tensors ({names})")
    return state_dict, notes


def _unique_densenet(
    tensors: Mapping[_Path, Tensor], prefixes: list[_Path]
) -> tuple[_Path, dict[str, _Path], dict[str, _Path], set[_Path]]:
    """Prefix of the trunk; paths of trunk and head, by torchvision's names; all paths of both.

    The same network may occur with several prefixes; then the last item holds all of its copies.

    Raises:
        ValueError: there are different networks under these prefixes.
    """
    several = ValueError(
        f"it holds {len(prefixes)} DenseNets, under "
        f"{_listed('.'.join(prefix) or 'no name' for prefix in prefixes)}; in Python, weights=… "
        "takes a state dict too: take out the one that you mean, and give that"
    )
    if len(prefixes) > 8:
        raise several
    trunks = {prefix: _trunk(tensors, prefix) for prefix in prefixes}
    heads = {prefix: _head(tensors, prefix, trunks[prefix]) for prefix in prefixes}
    for prefix in prefixes:
        _check_tensors({k: tensors[p] for k, p in (trunks[prefix] | heads[prefix]).items()})
    first = next((prefix for prefix in prefixes if heads[prefix]), prefixes[0])
    for other in prefixes:
        if not _same(tensors, trunks[first], trunks[other]):
            raise several
        if heads[other] and not _same(tensors, heads[first], heads[other]):
            raise several
    taken = {path for one in (*trunks.values(), *heads.values()) for path in one.values()}
    return first, trunks[first], heads[first], taken


def _all_tensors(content: Any) -> tuple[dict[_Path, Tensor], dict[_Path, _Path]]:
    """All tensors in `content`, and the keys of the containers around each, both by path.

    Every dict or list is visited once, also one that contains itself, down to a limited depth.
    """
    tensors: dict[_Path, Tensor] = {}
    nests: dict[_Path, _Path] = {}
    waiting: list[tuple[_Path, _Path, Any]] = [((), (), content)]
    seen = set()
    while waiting:
        nest, path, value = waiting.pop()
        if isinstance(value, Tensor) and path:
            if path in tensors:
                raise ValueError(f"two of its keys mean the same tensor, {_shown('.'.join(path))}")
            tensors[path], nests[path] = value, nest[:-1]
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            inside = value.items() if isinstance(value, Mapping) else enumerate(value)
            deeper = [((*nest, str(k)), (*path, *str(k).split(".", 32)), v) for k, v in inside]
            if len(path) < 32 and len(nest) < 16:
                waiting += reversed(deeper)
    return tensors, nests


def _trunk_prefixes(tensors: Mapping[_Path, Tensor]) -> list[_Path]:
    """What comes before ``denseblockN`` in paths with ``denselayerM`` after it."""
    found: dict[_Path, None] = {}
    for path in tensors:
        for place, word in enumerate(path):
            if _BLOCK.fullmatch(word) and any(map(_LAYER.fullmatch, path[place + 1 :])):
                found[path[:place]] = None
                break
    return list(found)


def _trunk(tensors: Mapping[_Path, Tensor], prefix: _Path) -> dict[str, _Path]:
    """The paths of the trunk under `prefix`, by torchvision's names."""
    start = len(prefix)
    paths = [
        path
        for path in tensors
        if path[:start] == prefix and len(path) > start + 1 and _PART.fullmatch(path[start])
    ]
    beside = defaultdict(set)  # the parts of names that follow each path
    for path in paths:
        for place in range(start, len(path)):
            beside[path[:place]].add(path[place])

    def belongs(path: _Path, place: int) -> bool:
        """Whether a part is the network's: a wrapper's has no siblings, and is not the last."""
        if place in (start, len(path) - 1) or _INNER_PART.fullmatch(path[place]):
            return True
        return len(beside[path[:place]]) > 1

    found: dict[str, _Path] = {}
    for path in paths:
        words = [path[place] for place in range(start, len(path)) if belongs(path, place)]
        key = _OLD_KEY.sub(r"\1\2", ".".join(["features", *words]))
        if key in found:
            raise ValueError(f"two of its keys mean the same tensor, {_shown(key)}")
        found[key] = path
    return found


def _head(
    tensors: Mapping[_Path, Tensor], prefix: _Path, trunk: Mapping[str, _Path]
) -> dict[str, _Path]:
    """The paths of the classifier's weight and bias, if it is one linear layer alone."""
    norm = trunk.get("features.norm5.weight") or trunk.get("features.norm5.running_mean")
    if norm is None:
        return {}
    channels = tensors[norm].numel()
    inside = set(trunk.values())
    matrices = [
        path
        for path, value in tensors.items()
        if path not in inside and path[-1] == "weight" and value.dim() == 2
    ]
    linear = [path for path in matrices if tensors[path].shape[1] == channels]
    shared = {path: len(os.path.commonprefix([path, prefix])) for path in linear}
    linear = [path for path in linear if shared[path] == max(shared.values())]
    named = [path for path in linear if path[-2:] == ("classifier", "weight")]
    if len(named or linear) != 1:
        return {}
    (weight,) = named or linear
    bias = (*weight[:-1], "bias")
    whole = weight[: shared[weight] + 1]  # "classifier" of "classifier.0.weight"
    parts = {path for path in tensors if path[: len(whole)] == whole} - {weight, bias}
    classes = len(tensors[weight])
    behind = any(path != weight and tensors[path].shape[1] == classes for path in matrices)
    odd_bias = bias in tensors and tensors[bias].shape != (classes,)
    if len(weight) < 2 or parts or behind or odd_bias:
        return {}
    return {"classifier.weight": weight} | ({"classifier.bias": bias} if bias in tensors else {})


def _check_tensors(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not hold floats, or whose elements share memory."""
    strange = []
    room: dict[int, int] = {}  # unused bytes of each storage
    for key, value in state_dict.items():
        counter = key.endswith("num_batches_tracked")
        if value.layout != torch.strided:
            strange.append(f"{key} is sparse")
        elif value.is_quantized:
            strange.append(f"{key} is quantised")
        elif value.is_meta:
            strange.append(f"{key} is of the meta device, a shape without numbers")
        elif not value.is_floating_point() and (
            not counter or value.dtype in (torch.bool, torch.complex64, torch.complex128)
        ):
            strange.append(f"{key} holds {str(value.dtype).removeprefix('torch.')}")
        elif not counter:
            storage = value.untyped_storage()
            room[storage.data_ptr()] = room.get(storage.data_ptr(), storage.nbytes()) - value.nbytes
            if any(step == 0 and count > 1 for step, count in zip(value.stride(), value.shape)):
                strange.append(f"{key} is expanded from fewer numbers")
    if strange:
        raise ValueError(f"weights must be dense tensors of floats, but {_listed(strange)}")
    if any(left < 0 for left in room.values()):
        raise ValueError("weights must have memory of their own; several of these share it")


def _same(
    tensors: Mapping[_Path, Tensor], one: Mapping[str, _Path], other: Mapping[str, _Path]
) -> bool:
    def equal(a: Tensor, b: Tensor) -> bool:
        return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))

    keys = one.keys() == other.keys()
    return keys and all(equal(tensors[one[key]], tensors[other[key]]) for key in one)


def _described(content: Any, paths: Sequence[_Path]) -> str:
    if paths:
        return f"of its {len(paths)} tensors, the first are {_listed('.'.join(p) for p in paths)}"
    if isinstance(content, Mapping):
        kinds = [f"{_shown(key)!r} is {type(value).__name__}" for key, value in content.items()]
        return f"it is a dict of {len(content)} entries, none a tensor ({_listed(kinds) or 'none'})"
    return f"it is a {type(content).__name__}"


@arguments.check(state_dict=STATE_DICT, allow_nan=arguments.boolean)
def check_values(state_dict: Mapping[str, Tensor], allow_nan: bool = False) -> None:
    """Refuse negative variances and, unless `allow_nan`, values that are not finite.

    Raises:
        ValueError: a running variance is below 0; or, unless `allow_nan`, a tensor holds infinities
            or values that are not numbers.
    """
    negative = [k for k, v in state_dict.items() if k.endswith(".running_var") and (v < 0).any()]
    if negative:
        raise ValueError(f"variances below 0: {len(negative)} ({_listed(negative)})")
    broken = [k for k, v in state_dict.items() if not allow_nan and not v.isfinite().all()]
    if broken:
        raise ValueError(
            f"tensors with infinities or values that are not numbers: {len(broken)} "
            f"({_listed(broken)}); in Python, weights.read(…, allow_nan=True) reads them"
        )


@dataclass(frozen=True)
class Architecture:
    """The arguments of :class:`network.DenseNet` that names and shapes in a state dict determine.

    Numbers of classes and of input channels are not among them.
    """

    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    bn_size: int | None
    stem: str

    def __str__(self) -> str:
        bottleneck = "no bottleneck" if self.bn_size is None else f"bn_size {self.bn_size}"
        return (
            f"blocks {_listed(self.block_config, 8)}, growth rate {self.growth_rate}, "
            f"{self.num_init_features} channels from the {self.stem} stem, {bottleneck}"
        )

    def weight_count(self, in_channels: int, num_classes: int, compression: float) -> int:
        """Number of weights in the convolutions and the classifier of such a network."""
        k, channels = self.growth_rate, self.num_init_features
        count = channels * in_channels * (49 if self.stem == "imagenet" else 9)
        for place, layers in enumerate(self.block_config):
            inputs = layers * channels + k * layers * (layers - 1) // 2  # of all layers together
            if self.bn_size is None:
                count += 9 * k * inputs
            else:
                count += self.bn_size * k * (inputs + 9 * k * layers)
            channels += k * layers
            if place < len(self.block_config) - 1:
                compressed = int(channels * compression + 1e-9)
                count += channels * compressed
                channels = compressed
        return count + channels * num_classes


@arguments.check(state_dict=STATE_DICT)
def architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The architecture of the network with `state_dict`, in torchvision's layout.

    Raises:
        ValueError: it is no DenseNet's.
    """
    layers: dict[int, int] = {}  # by number of the block; four digits are enough for every network
    for key in state_dict:
        if place := re.match(r"features\.denseblock(\d{1,4})\.denselayer(\d{1,4})\.", key):
            block, layer = int(place[1]), int(place[2])
            layers[block] = max(layer, layers.get(block, 0))
    first = "features.denseblock1.denselayer1"
    try:
        conv0, conv1 = state_dict["features.conv0.weight"], state_dict[f"{first}.conv1.weight"]
        conv2 = state_dict.get(f"{first}.conv2.weight")
        growth_rate = len(conv1 if conv2 is None else conv2)
        return Architecture(
            growth_rate=growth_rate,
            block_config=tuple(layers.get(block, 0) for block in range(1, max(layers) + 1)),
            num_init_features=len(conv0),
            bn_size=None if conv2 is None else len(conv1) // growth_rate,
            stem="imagenet" if conv0.shape[-1] == 7 else "cifar",
        )
    except (KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"it is no DenseNet's: {_described(None, [(k,) for k in state_dict])}"
        ) from error


# ------------------------------------------------------------------------------ fitting


@arguments.check(state_dict=STATE_DICT, like=STATE_DICT)
def adapt_state_dict(
    state_dict: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    head: str | Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt classifier and first convolution in `state_dict` to a model with state dict `like`.

    **Classifier.** `head` is ``None`` (the classifier of `state_dict` if the number of classes is
    right, otherwise a new one), ``"new"`` (the randomly initialised one in `like`), ``"slice"``
    (the first rows), or a sequence of row indices. Row i of the classifier's weight and bias
    computes the logit of class i.

    **First convolution.** If the model has m input channels and the weights have n, each of the m
    gets the sum of the n kernels, divided by m. So an image with m equal channels gives the same
    features as one with n equal channels did: 3 to 1 sums the kernels, 1 to 3 divides them. After
    3 to 4, all channels have the same kernels, so the network no longer distinguishes colours.

    Returns:
        The state dict, with the keys and shapes of `like` in their order, and one note for each
        adaptation.

    Raises:
        ValueError: keys are missing or too many, a shape differs, or `head` does not fit.
    """
    head = checked_head(head)
    fitted, notes = dict(state_dict), list[str]()
    classifier = {"classifier.weight", "classifier.bias"}
    _fit_first_convolution(fitted, like, notes)
    _compare(
        {key: value for key, value in fitted.items() if key not in classifier},
        {key: value for key, value in like.items() if key not in classifier},
    )
    _fit_classifier(fitted, like, head, notes)
    _compare(fitted, like)
    return {key: fitted[key] for key in like}, notes


def _compare(fitted: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Refuse missing keys, unexpected keys and different shapes."""
    missing = [key for key in like if key not in fitted]
    extra = [key for key in fitted if key not in like]
    shapes = [
        f"{key} has {list(fitted[key].shape)} and should have {list(like[key].shape)}"
        for key in like
        if key in fitted and fitted[key].shape != like[key].shape
    ]
    faults = [
        f"{what}: {len(found)} ({_listed(found)})"
        for what, found in (
            ("missing keys", missing),
            ("keys that the model has not", extra),
            ("wrong shapes", shapes),
        )
        if found
    ]
    if faults:
        raise ValueError("; ".join(faults))


def checked_head(head: Any) -> str | tuple[int, ...] | None:
    """Validate `head` as :func:`adapt_state_dict` takes it; row indices become a tuple."""
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
    if old is None and head != "new":
        needs = "" if head is None else f", and head={head!r} needs one"
        raise ValueError(
            f"it has no classifier of one linear layer{needs}; in Python, "
            "densenet(…, head='new') makes one, with random weights"
        )
    if old is not None and (old.dim() != 2 or len(fitted.get("classifier.bias", old)) != len(old)):
        return  # the comparison of shapes will refuse it
    if old is None or head == "new" or (head is None and len(old) != classes):
        fitted |= {f"classifier.{part}": like[f"classifier.{part}"] for part in ("weight", "bias")}
        notes.append(f"a new classifier of {classes} classes, with random weights")
        return
    if head is None:
        return
    rows = list(head) if isinstance(head, tuple) else list(range(classes))
    if len(rows) != classes or not all(0 <= row < len(old) for row in rows):
        raise ValueError(
            f"head must choose {classes} of the {len(old)} classes (0 to {len(old) - 1}), "
            f"got {_listed(rows)}"
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


def _listed(items: Iterable[Any], count: int = 3) -> str:
    """The first few of `items`, which may come from a file, for a message."""
    texts = [_shown(item) for item in items]
    return ", ".join(texts[:count]) + (", …" if len(texts) > count else "")


def _shown(item: Any) -> str:
    """`item` for a message: shortened, and without the control characters of a terminal."""
    text = str(item)
    return (text if text.isprintable() else ascii(text)[1:-1])[:120]
