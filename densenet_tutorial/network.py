"""The whole network, :class:`DenseNet`, and the named models of the paper.

Constructor arguments, ``state_dict`` keys and the random initialisation are torchvision's;
additional arguments are keyword-only. Chapter 05 builds this up.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial.layers import DenseBlock, Transition
from densenet_tutorial.memory import MODES, set_memory_efficient
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import (
    boolean,
    non_negative_int,
    one_of,
    optional,
    positive_fraction,
    positive_int,
    sequence_of,
)
from densenet_tutorial.weights import adapt as adapt_weights
from densenet_tutorial.weights import read as read_weights
from densenet_tutorial.weights.layouts import LEFT_OUT, Architecture, checked_head

_log = logging.getLogger(__name__)

#: The values of the argument ``stem``: see :class:`DenseNet`.
STEMS = ("imagenet", "cifar")


class DenseNet(nn.Module):
    """DenseNet: stem, dense blocks with transitions between them, average pooling, classifier.

    Args:
        growth_rate: new feature maps per layer, the paper's k.
        block_config: number of layers in each dense block; any number of blocks.
        num_init_features: output channels of the stem; ``None`` for 2k, as in the paper's
            DenseNet-BC.
        bn_size: bottleneck width as a multiple of `growth_rate`; ``None`` for no bottleneck.
        drop_rate: dropout probability after each layer's last convolution, 0 to 1.
        num_classes: number of classes.
        memory_efficient: ``True`` (the same as ``"checkpoint"``), ``"recompute"``, ``"minimal"``
            or ``"fused"`` to keep less for the backward pass and recompute it there; see
            :func:`set_memory_efficient` (chapters 07 and 11).
        in_channels: channels of an input image: 3 for colour, 1 for grey.
        stem: ``"imagenet"`` (7x7 convolution with stride 2, norm, ReLU, 3x3 max pooling with stride
            2) or ``"cifar"`` (one 3x3 convolution at full resolution).
        compression: a transition's output channels as a fraction of its input channels, rounded
            down; the paper's theta.

    Shape:
        x: (N, in_channels, H, W), normalised floats, H and W at least :attr:`min_size`.
        output: (N, num_classes), logits.

    Raises:
        ValueError: an argument is out of range, or an input has a wrong shape.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 3 and table 1.
    """

    @arguments.check(
        growth_rate=positive_int,
        block_config=sequence_of(positive_int),
        num_init_features=optional(positive_int),
        num_classes=positive_int,
        memory_efficient=one_of(MODES),
        in_channels=positive_int,
        stem=one_of(STEMS),
        compression=positive_fraction,
    )
    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int | None = 64,
        bn_size: int | None = 4,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        memory_efficient: bool | str = False,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        compression: float = 0.5,
    ) -> None:
        super().__init__()
        channels = num_init_features or 2 * growth_rate
        self.features = nn.Sequential()
        if stem == "imagenet":
            self.features.conv0 = nn.Conv2d(in_channels, channels, 7, 2, padding=3, bias=False)
            self.features.norm0 = nn.BatchNorm2d(channels)
            self.features.relu0 = nn.ReLU()
            self.features.pool0 = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            self.features.conv0 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)

        for i, num_layers in enumerate(block_config, start=1):
            block = DenseBlock(num_layers, channels, bn_size, growth_rate, drop_rate)
            self.features.add_module(f"denseblock{i}", block)
            channels += num_layers * growth_rate
            if i < len(block_config):
                # Not 28 for 100 * 0.29, which is 28.999… in floating point.
                compressed = int(channels * compression + 1e-9)
                if compressed == 0:
                    raise ValueError(
                        "compression must leave at least 1 of "
                        f"{channels} channels, got {compression!r}"
                    )
                self.features.add_module(f"transition{i}", Transition(channels, compressed))
                channels = compressed
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.classifier: nn.Module = nn.Linear(channels, num_classes)

        self.in_channels = in_channels
        self.num_features = channels
        self.num_classes = num_classes
        halvings = len(block_config) - 1
        #: Minimum height and width in pixels: one pixel is left for the last block.
        self.min_size = 4 * (2**halvings - 1) + 1 if stem == "imagenet" else 2**halvings

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        set_memory_efficient(self, memory_efficient)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features before pooling, (N, num_features, h, w), after the last norm and ReLU."""
        self._check_input(x)
        return F.relu(self.features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes), or pooled features (N, num_features) if `pre_logits`.

        Args:
            x: the result of :meth:`forward_features`.
            pre_logits: whether to leave out the classifier.
        """
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer, from pooled features to logits."""
        return self.classifier

    @arguments.check(num_classes=non_negative_int)
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a randomly initialised one; with 0 classes, by an identity.

        The new layer is in the same mode as the network, training or evaluation.
        """
        classifier: nn.Module = nn.Identity()
        if num_classes > 0:
            weight = next(self.features.parameters())
            with torch.inference_mode(False):  # so that it can be trained, wherever this is called
                classifier = nn.Linear(self.num_features, num_classes, device="cpu").to(weight)
                nn.init.zeros_(classifier.bias)
        self.classifier = classifier.train(self.training)
        self.num_classes = num_classes

    def intermediate_features(
        self, x: Tensor, parts: Sequence[str | int] | None = None
    ) -> dict[str, Tensor]:
        """The features after each part, by name, in order.

        The names are ``"stem"``, ``"denseblock1"``, ``"transition1"``, ``"denseblock2"``, … and
        ``"final"``, the result of :meth:`forward_features`.

        Args:
            x: (N, in_channels, H, W), normalised images.
            parts: the parts to return, by name or index, -1 for the last; ``None`` for all. Later
                parts are not computed.

        Raises:
            ValueError: there is no such part, or x has the wrong shape.
        """
        self._check_input(x)
        wanted = set(self.parts() if parts is None else map(self._part_name, parts))
        found = {}
        for name, modules in self.parts().items():
            for module in modules:
                x = module(x)
            if name == "final":
                x = F.relu(x)
            if name in wanted:
                found[name] = x
            if len(found) == len(wanted):
                break
        return found

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of ``features`` by part, as in :meth:`intermediate_features`."""
        parts: dict[str, list[nn.Module]] = {"stem": []}
        for name, module in self.features._modules.items():
            if name in ("conv0", "norm0", "relu0", "pool0"):
                parts["stem"].append(module)
            else:
                parts["final" if name == "norm5" else name] = [module]
        return parts

    def _part_name(self, part: str | int) -> str:
        names = list(self.parts())
        if part in names:
            return str(part)
        if type(part) is int and -len(names) <= part < len(names):
            return names[part]
        valid = f"{', '.join(names)} or indices below {len(names)}"
        raise ValueError(f"parts must be names of {valid}, got {part!r}")

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            if isinstance(x, torch.fx.Proxy):
                return
            raise ValueError(f"x must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise ValueError(f"x must hold normalised floats, got {x.dtype}")
        if (
            x.dim() != 4
            or x.shape[1] != self.in_channels
            or min(x.shape[2], x.shape[3]) < self.min_size
        ):
            raise ValueError(
                f"x must be a batch of images (N, {self.in_channels}, H, W) "
                f"with H and W at least {self.min_size}, got shape {list(x.shape)}"
            )


#: The named models, and the arguments of :class:`DenseNet` that each sets.
CONFIGS: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 32, "block_config": (6, 12, 24, 16), "num_init_features": 64},
    "densenet161": {"growth_rate": 48, "block_config": (6, 12, 36, 24), "num_init_features": 96},
    "densenet169": {"growth_rate": 32, "block_config": (6, 12, 32, 32), "num_init_features": 64},
    "densenet201": {"growth_rate": 32, "block_config": (6, 12, 48, 32), "num_init_features": 64},
    "densenet264": {"growth_rate": 32, "block_config": (6, 12, 64, 48), "num_init_features": 64},
    "densenet_bc": {
        "growth_rate": 12,
        "block_config": (16, 16, 16),
        "num_init_features": None,
        "num_classes": 10,
        "stem": "cifar",
    },
    "densenet_bc_100_12": {
        "growth_rate": 12,
        "block_config": (16, 16, 16),
        "num_init_features": 24,
        "num_classes": 10,
        "stem": "cifar",
    },
    "densenet_bc_250_24": {
        "growth_rate": 24,
        "block_config": (41, 41, 41),
        "num_init_features": 48,
        "num_classes": 10,
        "stem": "cifar",
    },
    "densenet_bc_190_40": {
        "growth_rate": 40,
        "block_config": (31, 31, 31),
        "num_init_features": 80,
        "num_classes": 10,
        "stem": "cifar",
    },
    "densenet_40_12": {
        "growth_rate": 12,
        "block_config": (12, 12, 12),
        "num_init_features": 16,
        "bn_size": None,
        "num_classes": 10,
        "stem": "cifar",
        "compression": 1.0,
    },
}


_ARCHITECTURES = {
    name: Architecture(
        config["growth_rate"],
        config["block_config"],
        config["num_init_features"] or 2 * config["growth_rate"],
        config.get("bn_size", 4),
        config.get("stem", "imagenet"),
    )
    for name, config in CONFIGS.items()
}


def list_models() -> list[str]:
    """The names that :func:`densenet` accepts; each is also a function of this package."""
    return list(CONFIGS)


@arguments.check(name=one_of(CONFIGS), progress=boolean, pretrained=boolean)
def densenet(
    name: str = "densenet121",
    *,
    weights: Any = None,
    num_classes: int | None = None,
    head: str | Sequence[int] | None = None,
    progress: bool = True,
    pretrained: bool = False,
    **overrides: Any,
) -> DenseNet:
    """Build a named model, with random or with trained weights.

    Args:
        name: one of :func:`list_models`, such as ``"densenet121"`` or ``"densenet_bc_100_12"``.
        weights: ``None`` for random weights, or an argument of :func:`weights.read`:
            ``"imagenet"`` (also ``"DEFAULT"``, ``"IMAGENET1K_V1"``, and torchvision's enum), the
            name of bundled weights (``"fashion-mnist-small"``), a path, a URL, or a state dict. The
            configuration in a checkpoint of this package overrides the named model's; numbers of
            classes and channels are those of the weights.
        num_classes: ``None`` for the number of classes of the weights; without weights, 1000 with
            the ImageNet stem and 10 with the CIFAR stem.
        head: how to adapt the classifier in the weights. ``None`` keeps it if it has `num_classes`
            classes, otherwise replaces it by a randomly initialised one; ``"new"`` always replaces
            it; ``"slice"`` keeps the first `num_classes` rows; a sequence such as
            ``[281, 282, 285]`` keeps the rows with these indices, in this order.
        progress: whether to show a progress bar for a download.
        pretrained: deprecated, for ``weights="imagenet"``.
        overrides: other arguments of :class:`DenseNet`. If `in_channels` differs from the weights',
            the first convolution is adapted: kernels are summed from 3 channels to 1, and divided
            from 1 to 3, so that a grey image gives the same features
            (:func:`weights.adapt_state_dict`).

    The logger ``densenet_tutorial.network`` reports conversions and adaptations at level INFO, and
    ignored tensors at level WARNING.

    Raises:
        ValueError: an unknown name, or an argument out of range.
        WeightsError: (a ValueError) there are no such weights, or they do not fit the model.
    """
    if pretrained:
        warnings.warn(
            "pretrained is deprecated, as in torchvision; use weights='imagenet'", stacklevel=4
        )
        weights = "imagenet" if weights is None else weights
    config = dict(CONFIGS[name])
    head = checked_head(head)
    loaded = None if weights is None else read_weights(weights, name, progress)
    if loaded:
        config |= loaded.model_options(name)
        if num_classes is None and isinstance(head, tuple):
            num_classes = len(head)
    elif head is not None:
        raise ValueError(f"head must be None without weights, got {head!r}")
    config |= overrides
    if num_classes is not None:
        config["num_classes"] = num_classes
    model = DenseNet(**config)
    if loaded:
        state_dict, notes = adapt_weights(loaded, model.state_dict(), head, _ARCHITECTURES)
        model.load_state_dict(state_dict)
        for note in [*loaded.notes, *notes]:
            level = logging.WARNING if note.startswith(LEFT_OUT) else logging.INFO
            _log.log(level, "%s: %s", Path(loaded.source).name, note)
    return model


def densenet121(**options: Any) -> DenseNet:
    """DenseNet-121: k=32, blocks of 6, 12, 24, 16; 7,978,856 parameters. See :func:`densenet`."""
    return densenet("densenet121", **options)


def densenet161(**options: Any) -> DenseNet:
    """DenseNet-161: k=48, blocks of 6, 12, 36, 24; 28,681,000 parameters. See :func:`densenet`."""
    return densenet("densenet161", **options)


def densenet169(**options: Any) -> DenseNet:
    """DenseNet-169: k=32, blocks of 6, 12, 32, 32; 14,149,480 parameters. See :func:`densenet`."""
    return densenet("densenet169", **options)


def densenet201(**options: Any) -> DenseNet:
    """DenseNet-201: k=32, blocks of 6, 12, 48, 32; 20,013,928 parameters. See :func:`densenet`."""
    return densenet("densenet201", **options)


def densenet264(**options: Any) -> DenseNet:
    """DenseNet-264: k=32, blocks of 6, 12, 64, 48; 33,337,704 parameters. See :func:`densenet`."""
    return densenet("densenet264", **options)


def densenet_bc(**options: Any) -> DenseNet:
    """DenseNet-BC, CIFAR stem, for any `block_config` and `growth_rate`. See :func:`densenet`."""
    return densenet("densenet_bc", **options)


def densenet_bc_100_12(**options: Any) -> DenseNet:
    """DenseNet-BC for 32x32 images, depth 100, k=12: 769,162 parameters. See :func:`densenet`."""
    return densenet("densenet_bc_100_12", **options)


def densenet_bc_250_24(**options: Any) -> DenseNet:
    """DenseNet-BC for 32x32 images, depth 250, k=24: 15.3M parameters. See :func:`densenet`."""
    return densenet("densenet_bc_250_24", **options)


def densenet_bc_190_40(**options: Any) -> DenseNet:
    """DenseNet-BC for 32x32 images, depth 190, k=40: 25.6M parameters. See :func:`densenet`."""
    return densenet("densenet_bc_190_40", **options)


def densenet_40_12(**options: Any) -> DenseNet:
    """DenseNet, not BC, for 32x32 images, depth 40, k=12. See :func:`densenet`."""
    return densenet("densenet_40_12", **options)
