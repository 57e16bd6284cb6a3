"""A trained DenseNet, made faster for prediction: :func:`optimize_for_inference`.

The weights stay, the order of the computation changes. Chapter 11 builds it up and measures each
step:

- After training, batch norm is a fixed scale s and shift t of each channel, and
  ``relu(s x + t) = s clamp(x, low, high) + t`` with ``low = -t / s``, ``high = inf`` if s > 0, and
  ``low = -inf``, ``high = -t / s`` if s < 0. Scale and shift go into the weights and bias of the
  1x1 convolution that reads them; one pass over memory is left.
- Batch norm that reads a convolution goes into the weights and bias of that convolution.
- A transition pools before its convolution, which then reads a quarter of the pixels.
- The feature maps of a block are written into one buffer, without concatenation.
- On a GPU, cuDNN computes a bottleneck and its ReLU in one pass, but for bfloat16, and a CUDA graph
  starts all kernels of a prediction at once: small batches wait for their starts.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.memory import PLAIN, set_memory_efficient
from densenet_tutorial.memory.conditions import has_hooks
from densenet_tutorial.network import DenseNet
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import boolean, one_of, optional

#: The precisions in which :func:`optimize_for_inference` can predict.
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

_METHODS = {
    name: getattr(DenseNet, name) for name in ("forward", "forward_features", "forward_head")
}

#: Of images and feature maps: the faster one where both were measured, see the results page.
_MEMORY_FORMAT = torch.channels_last

#: What `_folds` allows; in trained networks the ratio is about 2.
_MAX_CANCELLATION = 20.0


class Clamp(nn.Module):
    """ReLU of batch norm, but for the scale and shift, which the next convolution holds.

    Args:
        low, high: bounds of each channel, (C,).

    Shape:
        x, output: (N, C, H, W).
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low.view(1, -1, 1, 1))
        self.register_buffer("high", high.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)


class BottleneckLayer(nn.Sequential):
    """A dense layer: what is left of the first norm and ReLU, convolution, ReLU, convolution.

    On a GPU, in float32 and float64, cuDNN computes the first convolution and its ReLU in one pass.
    There, ReLU of NaN may be 0.

    Shape:
        x: (N, C, H, W).
        output: (N, growth_rate, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        *first, conv, relu, last = cast(Iterable[Any], self)
        for module in first:
            x = module(x)
        if _can_fuse(x) and not (has_hooks(conv) or has_hooks(relu)):
            sizes = (conv.stride, conv.padding, conv.dilation, conv.groups)
            return last(torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *sizes))
        return last(relu(conv(x)))


class BufferedBlock(nn.ModuleList):
    """The layers of a dense block, whose feature maps are written into one buffer.

    Shape:
        x: (N, C, H, W).
        output: (N, C + the new feature maps of all layers, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self)
        if torch.compiler.is_compiling():
            # A compiler decides by itself where tensors are.
            features = [x]
            for layer in layers:
                features = features + [layer(torch.cat(features, 1))]
            return torch.cat(features, 1)
        n, end, h, w = x.shape
        channels = end + sum(layer[-1].out_channels for layer in layers)
        buffer = x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)  # channels_last
        buffer[:, :end] = x
        for layer in layers:
            start, end = end, end + layer[-1].out_channels
            buffer[:, start:end] = layer(buffer[:, :start])
        return buffer


class CudaGraphs:
    """CUDA graphs of a module's function, each captured at the first call with its shape of input.

    A graph calls the kernels that were chosen, and reads the tensors that were there, when it was
    captured. So another one is captured after a change of PyTorch's settings, or if a parameter or
    buffer of the module is another tensor. The last ``MAX_GRAPHS`` that were used are kept.
    """

    MAX_GRAPHS = 8

    def __init__(self) -> None:
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def run(self, module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``function(x)``, a method of `module` from a tensor on a GPU to another."""
        with torch.cuda.device(x.device), self._lock:
            key = (
                *(x.shape, x.stride(), x.dtype, x.device),
                torch.cuda.current_stream().cuda_stream,  # others would write into the same tensors
                torch.is_inference_mode_enabled(),
                *_cuda_settings(),
                *((t.data_ptr(), t.dtype, t.stride()) for t in _tensors(module)),
            )
            found = self._graphs.pop(key, None) or _captured(function, x)
            self._graphs[key] = found  # the last one is the one that was used last
            if len(self._graphs) > self.MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph, images, logits = found
            images.copy_(x)
            graph.replay()
            return logits.clone()


#: One capture at a time: all of them share a stream.
_CAPTURING = threading.Lock()


def _captured(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    """A graph of ``function(x)``, the tensor that it reads and the one that it writes."""
    images = torch.empty_like(x)
    images.copy_(x)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # cuDNN chooses its kernels
        function(images)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with _CAPTURING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits = function(images)
    return graph, images, logits


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, faster than by their names, which would be most of a small batch."""
    modules = [module]
    while modules:
        module = modules.pop()
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
        modules += [child for child in module._modules.values() if child is not None]


def _can_fuse(x: Tensor) -> bool:
    """Whether cuDNN can compute a convolution of `x` and ReLU in one pass."""
    cuda = torch.version.cuda is not None  # not ROCm, whose GPUs have the same name
    return cuda and _is_plain_cuda(x) and torch.backends.cudnn.is_acceptable(x)


def _is_plain_cuda(x: Tensor) -> bool:
    """Whether `x` is on a GPU, and nobody records or transforms what is computed from it."""
    return (
        x.is_cuda
        and type(x) is Tensor
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.is_autocast_enabled("cuda")
    )


def _cuda_settings() -> tuple[Any, ...]:
    """Settings that decide which kernels PyTorch calls on a GPU."""
    backends: Any = torch.backends
    flags = (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic)
    if hasattr(backends, "fp32_precision"):  # since PyTorch 2.9; the two must not be mixed
        all_of = (backends, backends.cudnn.conv, backends.cuda.matmul)
        precision = [which.fp32_precision for which in all_of]
    else:
        precision = [backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32]
    return *flags, *precision, torch.are_deterministic_algorithms_enabled()


class OptimizedDenseNet(nn.Module):
    """What :func:`optimize_for_inference` makes of a :class:`DenseNet`; for prediction alone.

    Shape:
        x: (N, in_channels, H, W), as for the original.
        output: (N, num_classes), logits, in the dtype of the original, without gradients.

    Raises:
        ValueError: x has another shape or dtype than the original takes.
    """

    def __init__(self, model: DenseNet, dtype: torch.dtype, cuda_graphs: bool = False) -> None:
        super().__init__()
        self.cuda_graphs = cuda_graphs
        self.in_channels, self.min_size = model.in_channels, model.min_size
        self.num_features, self.num_classes = model.num_features, model.num_classes
        # In float64, and rounded once.
        plain = copy.deepcopy(model).double()
        set_memory_efficient(plain, False)
        self.features = nn.Sequential(*_optimized(plain)).to(dtype)
        self.features.to(memory_format=_MEMORY_FORMAT)
        # Little is computed from here on, so it keeps its precision.
        self.norm5 = copy.deepcopy(cast(nn.BatchNorm2d, model.features.norm5))
        self.classifier = copy.deepcopy(model.classifier)
        self.eval().requires_grad_(False)
        self._graphs = CudaGraphs()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_graphs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._graphs = CudaGraphs()

    def train(self, mode: bool = True) -> "OptimizedDenseNet":
        """Stay in evaluation mode: what is folded cannot be trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        DenseNet._check_input(cast(DenseNet, self), x)
        original = self.norm5.weight.dtype
        if x.dtype != original and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x must be {original}, as the weights of the original, got {x.dtype}")
        if (
            not self.cuda_graphs
            or not _is_plain_cuda(x)
            or torch.cuda.is_current_stream_capturing()
        ):
            return self._logits(x)
        return self._graphs.run(self, self._logits, x)

    def _logits(self, x: Tensor) -> Tensor:
        original = self.norm5.weight.dtype
        dtype = next(self.features.parameters()).dtype
        x = x.to(dtype).contiguous(memory_format=_MEMORY_FORMAT)
        x = F.relu(self.norm5(self.features(x).to(original)), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """s and t, (C,) each in float64, with ``norm(x) = s x + t`` in evaluation mode."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.detach().double() * (var.double() + norm.eps).rsqrt()
    return scale, norm.bias.detach().double() - mean * scale


def clamp_bounds(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``low, high, s', t'`` with ``relu(s x + t) = s' clamp(x, low, high) + t'``, (C,) each.

    Where ``|t/s|`` is above 1e18, the output is taken as ``relu(t)`` for every x, and `low` and
    `high` are 0.

    Args:
        scale, shift: s and t, (C,) each.
    """
    zero = -shift / scale  # the x at which ReLU begins
    constant = ~(zero.abs() <= 1e18)  # also NaN, which is 0/0
    low = torch.where(scale > 0, zero, -torch.inf).masked_fill(constant, 0)
    high = torch.where(scale > 0, torch.inf, zero).masked_fill(constant, 0)
    shift = torch.where(constant, shift.relu(), shift)
    return low, high, scale.masked_fill(constant, 0), shift


def _optimized(model: DenseNet) -> Iterator[nn.Module]:
    """The parts of `model`, a plain one, without the final norm."""
    parts = list(model.parts().values())
    for (part, *rest), following in itertools.pairwise(parts):
        if isinstance(part, DenseBlock):
            layers = cast(Iterable[DenseLayer], part.values())
            yield BufferedBlock(_layer(layer) for layer in layers)
        elif isinstance(part, Transition):
            reader = cast(DenseLayer, next(iter(cast(DenseBlock, following[0]).values())))
            modules = _norm_relu_conv(part.norm, part.conv, reader.norm1, part.pool)
            yield nn.Sequential(*modules)
        else:
            yield _stem(cast(nn.Conv2d, part), *rest)


def _stem(conv: nn.Conv2d, *rest: Any) -> nn.Sequential:
    if not rest:
        return nn.Sequential(conv)
    norm, _, pool = rest
    return nn.Sequential(_with_output(conv, *scale_and_shift(norm)), nn.ReLU(inplace=True), pool)


def _layer(layer: DenseLayer) -> nn.Sequential:
    if layer.bn_size is None:  # a 3x3 convolution pads with zeros after the shift
        return nn.Sequential(layer.norm1, nn.ReLU(inplace=True), layer.conv1)
    *modules, bottleneck = _norm_relu_conv(layer.norm1, layer.conv1, layer.norm2)
    bottleneck = _with_output(cast(nn.Conv2d, bottleneck), *scale_and_shift(layer.norm2))
    return BottleneckLayer(*modules, bottleneck, nn.ReLU(inplace=True), layer.conv2)


def _norm_relu_conv(
    norm: nn.BatchNorm2d, conv: nn.Conv2d, reader: nn.BatchNorm2d, *pool: nn.Module
) -> list[nn.Module]:
    """Norm, ReLU, pooling and 1x1 convolution; folded if no digits are lost."""
    if not _folds(norm, conv, reader):
        return [norm, nn.ReLU(inplace=True), *pool, conv]
    low, high, scale, shift = clamp_bounds(*scale_and_shift(norm))
    return [Clamp(low, high), *pool, _with_input(conv, scale, shift)]


def _with_output(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """A convolution that gives ``scale * conv(x) + shift``, (out_channels,) each."""
    bias = shift if conv.bias is None else scale * conv.bias + shift
    return _convolution(conv, conv.weight * scale.view(-1, 1, 1, 1), bias)


def _with_input(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """A convolution that gives ``conv(scale * x + shift)``, (in_channels,) each, if it is 1x1."""
    bias = conv.weight.sum((2, 3)) @ shift
    return _convolution(conv, conv.weight * scale.view(1, -1, 1, 1), bias)


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = copy.deepcopy(like)
    conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return conv


def _folds(norm: nn.BatchNorm2d, conv: nn.Conv2d, reader: nn.BatchNorm2d) -> bool:
    """Whether a 1x1 convolution may compute the scale and shift of `norm`, which it reads.

    Where ReLU gives 0, the folded convolution adds up scaled bounds and shifts that cancel, and
    leave their rounding. It has to be small beside what the convolution gives; `reader`, the norm
    that reads that, knows its standard deviation.
    """
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    if (mean.abs() + 1000 * var.sqrt()).max() > 1e9:
        return False  # too near to the limit of `clamp_bounds`
    _, shift = scale_and_shift(norm)
    cancelling = (conv.weight.flatten(1).square() @ shift.square()).sqrt()  # of each output
    deviation = (cast(Tensor, reader.running_var)[: len(cancelling)] + reader.eps).sqrt()
    return bool((cancelling <= _MAX_CANCELLATION * deviation).all())


def _check_known(model: nn.Module) -> None:
    """Raise a ValueError unless `model` is a DenseNet that computes what its class says."""
    if type(model) is not DenseNet:
        raise ValueError(
            f"model must be a DenseNet of this package, got a {type(model).__name__}; "
            "densenet(weights=…) builds one from torchvision's weights"
        )
    if any(getattr(DenseNet, name) is not method for name, method in _METHODS.items()):
        raise ValueError("model must be a DenseNet whose class has no replaced methods")
    found, expected = _structure(model.features), _structure(_like(model).features)
    for name in found | expected:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"model must be built as DenseNet builds it, got something else at features.{name}"
            )
    if list(found) != list(expected):
        raise ValueError("model must have its modules in the order in which DenseNet has them")
    for name, module in model.named_modules():
        where = name or "the whole"
        if module.training:
            raise ValueError(
                f"model must be in evaluation mode, as after model.eval(); {where} is not"
            )
        if has_hooks(module) or not _METHODS.keys().isdisjoint(vars(module)):
            raise ValueError(f"model must have no hooks and no replaced methods, as {where} has")
    for name, tensor in model.features.state_dict().items():
        if tensor.is_meta or not tensor.isfinite().all():
            raise ValueError(f"model must hold finite numbers, which features.{name} does not")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"model must have no negative variances, as features.{name} has")
    dtypes = {p.dtype for p in model.parameters()}
    if len(dtypes) > 1:
        raise ValueError(f"model must have weights of one dtype, got {sorted(map(str, dtypes))}")
    weight = next(model.features.parameters())
    smallest = weight.new_zeros(1, model.in_channels, model.min_size, model.min_size)
    try:
        with torch.no_grad():
            model(smallest)
    except Exception as error:
        raise ValueError(f"model must predict, but it says: {error}") from error


def _like(model: DenseNet) -> DenseNet:
    """A DenseNet with the structure that `model` should have; of other channels, without values."""
    blocks = [module for module in model.features if isinstance(module, DenseBlock)]
    layers = [layer for block in blocks for layer in block.values()]
    bottleneck = not layers or getattr(layers[0], "bn_size", None) is not None
    with torch.device("meta"):
        return DenseNet(
            *(1, [len(block) for block in blocks] or [1], 1, 1 if bottleneck else None),
            stem="imagenet" if hasattr(model.features, "norm0") else "cifar",
            compression=1.0,
        )


def _structure(features: nn.Module) -> dict[str, Any]:
    """Class and settings of each module by name; without channels, and with every norm alike."""
    settings = {
        nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
        nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
        nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override"),
    }
    return {
        name: (
            PLAIN.get(type(module), type(module)),
            [getattr(module, setting) for setting in settings.get(type(module), ())],
            module.weight.shape[2:] if isinstance(module, nn.Conv2d) else (),
            [key for key, _ in module.named_parameters(recurse=False)],
            [key for key, _ in module.named_buffers(recurse=False)],
        )
        for name, module in features.named_modules(remove_duplicate=False)
    }


@arguments.check(model=arguments.module, dtype=optional(one_of(DTYPES)), cuda_graphs=boolean)
def optimize_for_inference(
    model: nn.Module, *, dtype: torch.dtype | None = None, cuda_graphs: bool = False
) -> OptimizedDenseNet:
    """A copy of a trained DenseNet that predicts the same, faster.

    Args:
        model: a :class:`DenseNet` in evaluation mode; it is not changed.
        dtype: of the convolutions; ``None`` for the model's. ``torch.bfloat16`` is faster on
            processors that compute with it. It moved the logits of ``fashion-mnist-small`` by up to
            2 % of the largest, and none of 1,000 predictions.
        cuda_graphs: whether to capture a CUDA graph for each shape of images on a GPU. Small
            batches are faster, since their time is that of starting kernels. Hooks that are added
            to the result are not called then, and each graph keeps its memory: of the last
            8 shapes that were used. No effect on other devices.

    Raises:
        ValueError: `model` is in training mode, has hooks, or is not a DenseNet as its class builds
            it: what else it computes would be lost. Or it is in float16, and `dtype` is ``None``.

    Logits are equal up to rounding: 1e-5 of the largest in float32. They have no gradients. In
    bfloat16, weights are rounded after folding, so logits are farther from exact ones than those of
    a plain model in bfloat16.
    The result can be copied, pickled, moved, compiled, and exported with ``torch.export`` or to
    ONNX; ``torch.vmap`` and ``torch.fx.symbolic_trace`` want the plain model. It stays in
    evaluation mode. To change weights, change those of the model, and optimize it again.
    """
    _check_known(model)
    own = next(model.parameters()).dtype
    dtype = one_of(DTYPES)("dtype", dtype or own)
    return OptimizedDenseNet(cast(DenseNet, model), dtype, cuda_graphs)
