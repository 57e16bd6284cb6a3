"""Memory-efficient forward passes: fewer tensors kept between forward and backward.

This module knows tensors, norms, convolutions and pooling; it does not know our layers. Chapter 07 builds it up.

- ``"checkpoint"`` keeps the inputs of concatenation, norm, ReLU and convolution, and computes them again, but for the
  convolution, whose output nobody needs.
- ``"recompute"`` runs no convolution twice: norm and ReLU are computed again from the statistics of the batch.
- ``"minimal"`` also computes the bottleneck again: what it keeps is the feature maps.

In the last two a block's feature maps lie in one buffer, so there is nothing to concatenate.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densenet_tutorial.memory.functions import (
    Append,
    NormReluOperation,
    dense,
    memory_format,
    no_statistics,
    parameters_of,
    write_statistics,
)

#: What the argument ``memory_efficient`` may be; ``True`` means ``"checkpoint"``.
MODES = (False, True, "checkpoint", "recompute", "minimal")


@torch.jit.unused  # torch.jit.script is not to compile it
def recomputes(mode: bool | str) -> bool:
    """Whether functions of our own are to replace autograd: in two of the modes, and where gradients are wanted."""
    return mode in ("recompute", "minimal") and _applies(mode)


def _checkpoints(mode: bool | str) -> bool:
    """Whether `mode` is to checkpoint."""
    return mode in (True, "checkpoint") and _applies(mode)


def _applies(mode: bool | str) -> bool:
    """Whether `mode` has anything to do. Without gradients nothing is kept anyway.

    ``torch.compile`` decides by itself what to keep and what to compute again, so it is given the plain model. (Up to
    PyTorch 2.6 at least, a compiled checkpoint moved running statistics twice.)
    """
    if not torch.is_grad_enabled():
        return False
    return not (torch.compiler.is_compiling() and _leave_to_the_compiler(mode))


def sequence(modules: Iterable[nn.Module], inputs: list[Tensor], mode: bool | str) -> Tensor:
    """Concatenate `inputs` along the channels, run `modules` one after another, and keep less for the backward pass.

    The numbers are those of the plain modules in every mode, and running statistics move once; only where an average
    pooling comes before its 1x1 convolution (in the last two modes), the last digits differ. A module with a hook, or
    of another type than the ones below, runs as it is.

    Args:
        modules: with ``"checkpoint"`` the first three are norm, ReLU and convolution, which are checkpointed. In the
            other modes any modules: what is computed again is ``nn.BatchNorm2d`` and ``nn.ReLU``, followed by
            ``nn.Conv2d`` or ``nn.MaxPool2d``; with ``"minimal"`` also the convolution between two of such stages.
        inputs: (N, C_i, H, W) each.
        mode: one of :data:`MODES`.

    Shape:
        output: what the last module returns.
    """
    modules = list(modules)
    if _checkpoints(mode):
        first, modules = modules[:3], modules[3:]
        x = checkpointed(lambda *x: _relu_over_norm(first, torch.cat(x, 1)), inputs, first[0])
    else:
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
    return _run(modules, x, mode)


def refuse_to_script(module: nn.Module) -> nn.Module:
    """A module's ``__prepare_scriptable__``: plain models can be scripted, memory-efficient ones cannot.

    Raises:
        RuntimeError: `module` is memory-efficient.
    """
    if module.memory_efficient:
        raise RuntimeError(
            f"torch.jit.script cannot compile a model with memory_efficient={module.memory_efficient!r}, "
            "because computing again needs Python; build the model with memory_efficient=False"
        )
    return module


class Sequential(nn.Sequential):
    """``nn.Sequential`` with the attribute `memory_efficient`, one of :data:`MODES`.

    Shape:
        input: what the first module takes; (N, C, H, W) where a norm is followed by ReLU.
        output: what the last module returns.
    """

    memory_efficient: bool | str = False
    __prepare_scriptable__ = refuse_to_script

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return _run(list(self), input, self.memory_efficient)
        for module in self:
            input = module(input)
        return input


def grow(features: Tensor, layers: Iterable[Callable[[Tensor], Tensor]], channels: int) -> Tensor:
    """Call each layer with all feature maps so far, and append the new ones that it returns.

    All of them lie in one buffer, which is what is returned: it is the only copy, and nothing is concatenated. The
    statistics of a batch are those of its channels, one by one. So they are computed when a feature map is made,
    and not again by each of the layers that read it.

    Args:
        features: (N, C, H, W), the block's input.
        layers: each takes (N, C + what came before, H, W) and returns (N, any, H, W).
        channels: C and what all layers add.

    Shape:
        output: (N, channels, H, W).
    """
    n, _, h, w = features.shape
    buffer = torch.empty(
        (n, channels, h, w),
        dtype=features.dtype,
        device=features.device,
        memory_format=memory_format(features),
    )
    statistics = no_statistics(buffer, channels)
    features = _append(buffer, statistics, features)
    for layer in layers:
        features = _append(buffer, statistics, features, layer(features))
    return features


def _append(buffer: Tensor, statistics: Tensor, *pieces: Tensor) -> Tensor:
    """Write the last piece into `buffer`, its statistics into `statistics`; leave with the result what is known of it."""
    x = Append.apply(buffer, *pieces)
    end = x.shape[1]
    start = end - pieces[-1].shape[1]
    # Through `.data`, as in Append: what earlier layers have kept of `statistics` stays as it is.
    write_statistics(pieces[-1].detach().to(buffer.dtype), statistics.data[:, start:end])
    x.batch_statistics = (x._version, statistics[:, :end])  # for _recomputed to find
    return x


def _remembered(x: Tensor) -> Tensor | None:
    """The statistics that were left with x, unless x has changed since."""
    version, statistics = getattr(x, "batch_statistics", (None, None))
    return statistics if version == x._version else None


def _run(modules: list[nn.Module], x: Tensor, mode: bool | str) -> Tensor:
    """Run `modules`, and keep what `mode` keeps."""
    if recomputes(mode):
        return _recomputed(modules, x, mode)
    return _relu_over_norm(modules, x) if _checkpoints(mode) else _plain(modules, x)


def _plain(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _relu_over_norm(modules: list[nn.Module], x: Tensor) -> Tensor:
    """Run `modules`; ReLU writes over what batch norm returned, which nobody needs again, unless a hook sees it."""
    norm = None
    for module in modules:
        watched = norm is None or _has_hook(norm) or _has_hook(module)
        x = x.relu_() if type(module) is nn.ReLU and not watched else module(x)
        norm = module if type(module) is nn.BatchNorm2d else None
    return x


def _recomputed(modules: list[nn.Module], x: Tensor, mode: str) -> Tensor:
    """Run `modules`, those that fit by :class:`NormReluOperation`."""
    if x.numel() == x.shape[1]:  # one number has no variance: batch norm refuses it in words
        return _plain(modules, x)
    i = 0
    while i < len(modules):
        stages = []
        while _is_stage(modules[i : i + 3]):
            pool = _pool_of(modules[i + 2 : i + 4])
            stages.append((modules[i], pool, modules[i + 2]))
            i += 3 if pool is None else 4
            if mode == "recompute" or isinstance(stages[-1][2], nn.MaxPool2d):
                break
        if stages:
            x = NormReluOperation.apply(x, _remembered(x), stages, *parameters_of(stages))
        else:
            x, i = modules[i](dense(x)), i + 1
    return x


def _pool_of(modules: list[nn.Module]) -> nn.AvgPool2d | None:
    """The average pooling behind a 1x1 convolution, which may as well come before it, and is cheaper there.

    One adds up channels, the other pixels, so the order changes the last digits and nothing else (chapter 04).
    """
    convolution, pool = modules if len(modules) == 2 else (None, None)
    if type(convolution) is not nn.Conv2d or type(pool) is not nn.AvgPool2d or _has_hook(pool):
        return None
    c = convolution
    alone = c.kernel_size == (1, 1) and c.stride == (1, 1) and c.padding == (0, 0)
    return pool if alone else None


def _is_stage(modules: list[nn.Module]) -> bool:
    """Whether `modules` are a norm, ReLU and operation that :class:`NormReluOperation` can stand in for."""
    if len(modules) < 3 or any(_has_hook(module) for module in modules):
        return False
    norm, relu, operation = modules
    if isinstance(norm, nn.SyncBatchNorm):
        _warn(
            "memory_efficient: SyncBatchNorm cannot be computed again; such layers run as they are"
        )
    if type(norm) is not nn.BatchNorm2d or type(relu) is not nn.ReLU:
        return False
    if type(operation) is nn.Conv2d:
        numbers = not isinstance(operation.padding, str)
        return operation.bias is None and operation.padding_mode == "zeros" and numbers
    return type(operation) is nn.MaxPool2d and not operation.return_indices


def _has_hook(module: nn.Module) -> bool:
    """Whether somebody wants to see this module at work; if so, it has to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def checkpointed(
    function: Callable[..., Tensor], inputs: list[Tensor], norm: nn.BatchNorm2d
) -> Tensor:
    """Compute ``function(*inputs)`` now, keep only `inputs`, and compute it again in the backward pass.

    `function` runs twice, the second time up to the last tensor that is needed. Batch norm would move its running
    statistics both times; so the second time `norm` works on copies of them. `function` must not draw random numbers:
    the generator's state is not kept.

    Source: Pleiss et al. 2017, https://arxiv.org/abs/1707.06990, section 3.
    """
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _BuffersStay(norm)),
    )


class _BuffersStay(AbstractContextManager):
    """Let `norm` work on copies of its buffers, as often as it is entered."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def __enter__(self) -> None:
        self.buffers = dict(self.norm.named_buffers(recurse=False))
        for name, buffer in self.buffers.items():
            setattr(self.norm, name, buffer.clone())

    def __exit__(self, *error: object) -> None:
        for name, buffer in self.buffers.items():
            setattr(self.norm, name, buffer)


def _leave_to_the_compiler(mode: str) -> bool:
    _warn(
        f"memory_efficient={mode!r} has no effect in torch.compile: it decides itself what to keep"
    )
    return True


# torch.compile calls it once, while compiling, and goes on: a plain warning would cut the compiled graph in two.
# The attribute is what torch.compiler.assume_constant_result sets, which would import the compiler.
_leave_to_the_compiler._dynamo_marked_constant = True


@functools.cache
def _warn(message: str) -> None:
    """Warn once per process."""
    warnings.warn(message, stacklevel=3)


def saved_activation_bytes(model: nn.Module, input: Tensor) -> int:
    """Bytes that autograd holds between ``model(input)`` and its backward pass, on any device.

    Each storage counts once and whole, however many tensors share it. Parameters, buffers and `input` do not count:
    they are there anyway. `model` is run once, as it is (in training or not), on copies of its buffers, which stay
    as they are.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    not_counted = {
        tensor.untyped_storage().data_ptr()
        for tensor in (input, *model.parameters(), *buffers.values())
    }
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            kept[storage.data_ptr()] = storage  # held, so that no later one gets its address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.func.functional_call(model, buffers, (input,))
    return sum(storage.nbytes() for storage in kept.values())
