"""Diagrams of chapters 8 and 9: names of weights, preprocessing, Grad-CAM."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densenet_tutorial.figures.diagrams.network import densenet_check
from densenet_tutorial.figures.diagrams.svg import Diagram, Drawing
from densenet_tutorial.network import DenseNet
from densenet_tutorial.utils import arguments
from densenet_tutorial.weights.layouts import STATE_DICT, convert_state_dict


def _marked(old: str, new: str) -> tuple[str, str]:
    """`old` and `new`, of each the part marked that the other does not have."""
    a, b = old.split("."), new.split(".")
    start = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    end = next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1])) if x != y), 0)

    def mark(parts: list[str]) -> str:
        middle = ".".join(parts[start : len(parts) - end])
        marked = [f"**{middle}**"] if middle else []
        return ".".join([*parts[:start], *marked, *parts[len(parts) - end :]])

    return mark(a), mark(b)


@arguments.check(state_dict=STATE_DICT)
def keys(state_dict: Mapping[str, Tensor]) -> Diagram:
    """What becomes of the names in `state_dict`, an old file, in a network of today."""
    converted, _ = convert_state_dict(state_dict)
    places = {tensor.data_ptr(): name for name, tensor in state_dict.items()}
    pairs = [(places.get(tensor.data_ptr()), new) for new, tensor in converted.items()]
    renamed = [(old, new) for old, new in pairs if old is not None and old != new]
    kept = [new for old, new in pairs if old == new]
    added = [new for old, new in pairs if old is None]
    drawing = Drawing("Names hold a file and a network together")
    y = drawing.top + 6

    def short(name: str) -> str:
        return name.removeprefix("features.")

    def row(y: float, name: str, fill: str, dashed: bool = False) -> None:
        drawing.rect(16, y, 328, 24, fill, "line", radius=4, line=1, dashed=dashed)
        drawing.text(23, y + 16, name, mono=True)

    if renamed:
        drawing.text(16, y + 4, "renamed", bold=True)
        y += 14
        by_part = {new.rsplit(".", 2)[1]: (old, new) for old, new in reversed(renamed)}
        for old, new in sorted(by_part.values(), key=renamed.index)[:2]:
            before, after = _marked(short(str(old)), short(new))
            row(y, before, "paper")
            drawing.arrow((180, y + 25), (180, y + 37), color="ink")
            row(y + 38, after, "wash")
            y += 72
        y += 6
    for names, said in ((kept, "as they are"), (added, "added, at 0")):
        if names:
            drawing.text(16, y + 4, said, bold=True)
            row(y + 14, short(names[0]), "wash", dashed=names is added)
            y += 60
    return drawing.finish(
        y,
        "Names of tensors, without features in front. Renamed: "
        + "; ".join(f"{short(str(old))} becomes {short(new)}" for old, new in renamed[:2])
        + f". As they are: {', '.join(map(short, kept[:1]))}. "
        f"Added: {', '.join(map(short, added[:1]))}.",
    )


def _as_transforms(value: Any) -> Any:
    if not isinstance(value, torch.nn.Module) or not len(getattr(value, "transforms", ())):
        raise TypeError
    return value


_transforms = arguments.Check("transforms, as weights.transforms gives them", _as_transforms)


def _pixels(image: Any) -> Tensor:
    """A PIL image or a tensor as floats, (C, H, W)."""
    if isinstance(image, Image.Image):
        raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return raw.view(image.height, image.width, 3).movedim(-1, 0).float()
    return image.as_subclass(Tensor).float()


@arguments.check(picture=arguments.instance_of(Image.Image, "a PIL image"), transform=_transforms)
def preprocessing(picture: Image.Image, transform: Any) -> Diagram:
    """`picture` after each of the steps of `transform` that changes its size or its numbers."""
    stages: list[tuple[str, str, Tensor]] = [("the picture", "", _pixels(picture))]
    image: Any = picture
    for step in transform.transforms:
        image = step(image)
        name = type(step).__name__
        more = ""
        if name == "Normalize":
            more = "mean " + ", ".join(f"{float(m):.3g}" for m in step.mean)
        if name not in ("ToImage", "ToPureTensor", "RGB"):
            stages.append((name, more, _pixels(image)))
    drawing = Drawing("From a photograph to a network's input")
    widest = max(stage.shape[-1] for _, _, stage in stages)
    scale = 128 / widest
    y = drawing.top + 2
    for i, (name, more, stage) in enumerate(stages):
        height, width = (side * scale for side in stage.shape[-2:])
        low, high = float(stage.min()), float(stage.max())
        grey = stage.mean(0)
        shown = ((grey - low) / max(high - low, 1e-9) * 255).clamp(0, 255)
        size = (max(1, round(height)), max(1, round(width)))
        if size[0] < shown.shape[0]:
            shown = F.adaptive_avg_pool2d(shown[None, None], size)[0, 0]
        drawing.image(80 - width / 2, y, width, height, shown.round().byte(), sharp=False)
        title = {
            "Resize": "resize",
            "CenterCrop": "crop",
            "ToDtype": "to floats",
            "FitInside": "fit inside",
            "Grayscale": "grey",
        }.get(name, name.lower())
        drawing.text(168, y + 14, title, bold=True)
        drawing.text(168, y + 31, " × ".join(map(str, stage.shape)))
        drawing.text(168, y + 47, f"{low:.3g} to {high:.3g}".replace("-", "−"), color="ink-soft")
        if more:
            drawing.text(168, y + 63, more, color="ink-soft")
        y += max(height, 66 if more else 52)
        if i + 1 < len(stages):
            drawing.arrow((80, y + 3), (80, y + 19))
            y += 23
    return drawing.finish(
        y + 14,
        "A picture after each step: "
        + "; ".join(f"{name}, {list(stage.shape)}" for name, _, stage in stages)
        + ".",
    )


def _blue(levels: Tensor) -> Tensor:
    """A picture, white to blue, of floats from 0 to 1, in 32 steps."""
    steps = (levels.clamp(0, 1) * 31).round() / 31
    ends = torch.tensor([[255.0, 255.0, 255.0], [0.0, 114.0, 178.0]], dtype=steps.dtype)
    return (ends[0, :, None, None] * (1 - steps) + ends[1, :, None, None] * steps).round().byte()


def _fit_the_model(model: Any, x: Tensor, target: int) -> None:
    if x.shape[1] != model.in_channels or min(x.shape[2:]) < model.min_size:
        raise ValueError(
            f"x must be images (N, {model.in_channels}, H, W) with H and W at least "
            f"{model.min_size}, got {arguments.shown(x)}"
        )
    arguments.integer(0, model.classifier.out_features - 1)("target", target)


@arguments.check(
    _fit_the_model,
    model=densenet_check,
    x=arguments.tensor("floats", "N, C, H, W"),
    target=arguments.integer(0),
)
def weighted_maps(model: DenseNet, x: Tensor, target: int) -> Diagram:
    """Grad-CAM for class `target` and the first image of `x`, (N, C, H, W), as a sum of maps."""
    # In 64 bits, so that every processor rounds to the same picture.
    net: Any = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        maps = net.forward_features(x[:1].cpu().double())[0]
        weights = net.classifier.weight[target].detach()
    parts = weights[:, None, None] * maps
    strength = parts.mean((1, 2))
    chosen = [*strength.topk(3).indices.tolist(), int(strength.argmin())]
    count, height, width = maps.shape
    drawing = Drawing("Grad-CAM: the classifier, applied to every pixel")
    y = drawing.top + 4
    side = 76.0
    top = maps[chosen].max()
    for i, channel in enumerate(chosen):
        x0 = 16 + (i % 2) * 172
        weight = float(weights[channel])
        sign = "−" if weight < 0 else "+" if i else ""
        drawing.text(
            x0 + 66, y + side / 2 + 5, f"{sign} {abs(weight):.2f} ×".strip(), size=14, anchor="end"
        )
        drawing.image(x0 + 74, y, side, side, _blue(maps[channel] / top))
        drawing.rect(x0 + 74, y, side, side, None, "line", line=1)
        drawing.text(x0 + 74 + side / 2, y + side + 15, f"map {channel}", anchor="middle")
        if i % 2:
            y += side + 28
    drawing.text(180, y + 6, f"+ … {count - len(chosen)} more maps", anchor="middle", size=14)
    drawing.arrow((180, y + 14), (180, y + 34), color="ink", width=2)
    drawing.text(194, y + 29, "add up, ReLU")
    y += 42
    cam = parts.sum(0).clamp(min=0)
    big = 112.0
    picture = x[0].double().cpu()
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    drawing.image(50, y, big, big, _blue(cam / cam.max()))
    drawing.rect(50, y, big, big, None, "line", line=1)
    drawing.text(50 + big / 2, y + big + 15, f"{height} × {width} numbers", anchor="middle")
    drawing.image(198, y, big, big, (255 - 255 * picture.mean(0)).round().byte())
    drawing.rect(198, y, big, big, None, "line", line=1)
    drawing.text(198 + big / 2, y + big + 15, "the picture", anchor="middle")
    return drawing.finish(
        y + big + 28,
        f"The last features have {count} maps of {height} × {width} numbers. Four of them are "
        "shown, each with the classifier's weight in front: "
        + ", ".join(f"{float(weights[c]):.2f} times map {c}" for c in chosen)
        + ". All added up, and cut off below zero, are the Grad-CAM map, shown beside the picture.",
    )
