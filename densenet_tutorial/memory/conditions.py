"""The conditions under which a memory-efficient mode replaces the plain forward pass.

The functions of the modes call kernels that check little, and they do not call the modules. So they
are used only if every module does exactly what its class in torch.nn does, every tensor is as the
kernels expect it, and the results cannot be told from the plain ones. In any other situation the
module runs its plain forward pass, with the plain error messages.
"""

import functools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition

_STAGE_MODULES = (nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
#: The methods behind a forward pass, in which the modes take the place of some.
_METHODS = {
    *("__call__", "_call_impl", "forward", "bn_function", "_conv_forward", "_check_input_dim"),
}
#: What they are without patches, by class: the class that has the method, its name, the method.
_ORIGINAL: dict[type, list[tuple[type, str, Any]]] = {}


def know(kind: type[nn.Module], *bases: type[nn.Module]) -> None:
    """Let :func:`is_patched` know `kind`; where it calls methods of `bases` as well, these, too."""
    _ORIGINAL[kind] = [
        (owner, name, getattr(owner, name))
        for owner in (kind, *bases)
        for name in _METHODS
        if hasattr(owner, name)
    ]


for _kind in (nn.Module, nn.Sequential, DenseLayer, DenseBlock, Transition, *_STAGE_MODULES):
    know(_kind)

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *_LOW_PRECISION)


@dataclass(frozen=True)
class Stage:
    """Batch norm, ReLU and an operation that reads them.

    The operation is a convolution, a convolution with average pooling after it (`pool`), or a max
    pooling. :func:`is_supported` finds out whether the modules are of these classes.
    """

    norm: nn.BatchNorm2d
    relu: nn.ReLU
    operation: nn.Conv2d | nn.MaxPool2d
    pool: nn.AvgPool2d | None = None

    def modules(self) -> list[nn.Module]:
        """The modules in the order in which they run."""
        found = [self.norm, self.relu, self.operation]
        return found if self.pool is None else [*found, self.pool]

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) after the convolution, for an input of `shape`; pooling is ignored."""
        convolution = self.operation
        if not isinstance(convolution, nn.Conv2d):
            return shape
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                shape[1:],
                convolution.weight.shape[2:],
                convolution.stride,
                cast(tuple[int, int], convolution.padding),
                convolution.dilation,
                strict=True,
            )
        )
        return len(convolution.weight), height, width


def is_supported(inputs: Sequence[Any], stages: Iterable[Stage]) -> bool:
    """Whether a mode may compute `stages`, one after another, by its own functions.

    Args:
        inputs: the tensors, (N, C_i, H, W) each, whose concatenation the first stage reads.
        stages: each reads the output of the one before it.
    """
    if not is_eager_with_grad() or not are_supported_inputs(inputs):
        return False
    shape = (sum(x.shape[1] for x in inputs), *inputs[0].shape[2:])
    return output_shape(stages, shape, inputs[0]) is not None


def are_supported_inputs(inputs: Sequence[Any]) -> bool:
    """Whether `inputs` are 4-dimensional tensors on a CPU or CUDA that differ in channels only."""
    if not inputs or not all(type(x) in (Tensor, nn.Parameter) and x.dim() == 4 for x in inputs):
        return False
    first = inputs[0]
    if first.layout != torch.strided or first.dtype not in _DTYPES:
        return False
    if first.device.type not in ("cpu", "cuda"):
        _warn(
            f"memory_efficient has no effect on the device {first.device.type!r}, "
            "only on CPUs and CUDA"
        )
        return False
    alike = (first.dtype, first.device, first.layout, len(first), first.shape[2:])
    return all((x.dtype, x.device, x.layout, len(x), x.shape[2:]) == alike for x in inputs)


def output_shape(
    stages: Iterable[Stage], shape: tuple[int, int, int], like: Tensor
) -> tuple[int, int, int] | None:
    """The output's (C, H, W) for an input of `shape`, or ``None`` if a stage is not supported.

    `like` is a tensor with the input's batch size, dtype and device.
    """
    for stage in stages:
        if not _is_supported_stage(stage) or not _fits(stage, shape, like):
            return None
        shape = stage.output_shape(shape)
    return shape


def is_eager_with_grad() -> bool:
    """Whether autograd records, and nothing compiles, traces or transforms the forward pass."""
    if torch.compiler.is_compiling():
        return not _warn_of_compiler()
    return (
        torch.is_grad_enabled()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def can_pool_first(modules: Sequence[nn.Module]) -> bool:
    """Whether `modules` start with a 1x1 convolution and an average pooling, which can be swapped.

    The convolution sums over channels and the pooling over pixels, so the order affects the last
    digits alone (chapter 04).
    """
    if len(modules) < 2:
        return False
    convolution, pool = modules[:2]
    return (
        type(convolution) is nn.Conv2d
        and type(pool) is nn.AvgPool2d
        and not has_hooks(pool)
        and (convolution.kernel_size, convolution.stride, convolution.padding)
        == ((1, 1), (1, 1), (0, 0))
    )


def is_patched(module: nn.Module) -> bool:
    """Whether `module`, or its class, has another method in its forward pass than usual."""
    kind = next(base for base in type(module).__mro__ if base in _ORIGINAL)
    return not _METHODS.isdisjoint(vars(module)) or any(
        getattr(owner, name) is not method for owner, name, method in _ORIGINAL[kind]
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks, its own or global ones, or is patched."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
        or is_patched(module)
    )


def _is_supported_stage(stage: Stage) -> bool:
    """Whether the modules of `stage` are of the expected classes and settings, without hooks."""
    if isinstance(stage.norm, nn.SyncBatchNorm):
        _warn("memory_efficient: SyncBatchNorm cannot be recomputed; such layers run as they are")
    for module in stage.modules():
        if type(module) not in _STAGE_MODULES or has_hooks(module):
            return False
    if type(stage.norm) is not nn.BatchNorm2d or type(stage.relu) is not nn.ReLU:
        return False
    operation = stage.operation
    if type(operation) is nn.MaxPool2d:
        return not operation.return_indices
    return (
        type(operation) is nn.Conv2d
        and operation.bias is None
        and operation.padding_mode == "zeros"
        and not isinstance(operation.padding, str)
    )


def _fits(stage: Stage, shape: tuple[int, int, int], x: Tensor) -> bool:
    """Whether parameters and buffers of `stage` fit an input of `shape`, (C, H, W), like `x`."""
    norm, operation, channels = stage.norm, stage.operation, shape[0]
    values = len(x) * shape[1] * shape[2]  # of each channel
    if values == 0 or (values == 1 and (norm.training or norm.running_mean is None)):
        return False  # no variance: the plain batch norm raises an error that says so
    if (norm.running_mean is None) != (norm.running_var is None) or (
        (norm.running_mean is None) == norm.track_running_stats
    ):
        return False  # only one of the running statistics, or some that are not as is said
    of_norm = [
        t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None
    ]
    if norm.num_features != channels or not all(
        type(t) in (Tensor, nn.Parameter) and t.shape == (channels,) and t.device == x.device
        for t in of_norm
    ):
        return False
    of_norm_dtypes = {t.dtype for t in of_norm}
    low = x.dtype in _LOW_PRECISION
    if of_norm_dtypes - {x.dtype} and not (low and of_norm_dtypes == {torch.float32}):
        return False
    if isinstance(operation, nn.MaxPool2d):
        return True
    kernel = operation.weight
    if type(kernel) not in (Tensor, nn.Parameter) or kernel.device != x.device or kernel.dim() != 4:
        return False
    if kernel.shape[1] * operation.groups != channels:
        return False
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return kernel.dtype == x.dtype
    # Under autocast the output has the lower precision, and goes into the same buffer as x.
    lower = torch.get_autocast_dtype(x.device.type)
    return kernel.dtype in (torch.float32, lower) and torch.promote_types(lower, x.dtype) == x.dtype


def _warn_of_compiler() -> bool:
    _warn("memory_efficient has no effect in torch.compile, which decides by itself what to keep")
    return True


# torch.compile calls it once, while compiling: a plain warning would break the graph. This sets the
# attribute that torch.compiler.assume_constant_result sets, which would import the compiler.
_warn_of_compiler._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _warn(message: str) -> None:
    """Warn once per process."""
    warnings.warn(message, stacklevel=4)
