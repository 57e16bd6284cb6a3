"""What the modes do instead of autograd: functions with a backward pass of their own.

They keep tensors by ``ctx.save_for_backward`` alone, so whatever looks at saved tensors sees all of them, a weight that
was changed in between raises the usual error, and so does a second backward pass.
"""

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from densenet_tutorial.memory.conditions import Stage

_aten = torch.ops.aten


def memory_format(x: Tensor) -> torch.memory_format:
    """The order of `x`'s elements, also where `x` is only the first channels of a larger tensor."""
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def contiguous(x: Tensor) -> Tensor:
    """`x` without gaps between the images: batch norm is several times slower across gaps."""
    return x.contiguous(memory_format=memory_format(x))


# ---------------------------------------------------------------------------------------------- checkpointing


def checkpointed(stage: Stage, inputs: list[Tensor]) -> Tensor:
    """Concatenate `inputs`, then norm, ReLU and convolution; keep `inputs` alone, and compute the rest again for the
    backward pass.

    Batch norm's forward pass moves its running statistics. So the second time it moves others, which are thrown away.
    The parameters, and running statistics where they are used, are arguments: whatever the modules hold by then, it is
    the first forward pass that is repeated.

    Source: Pleiss et al. 2017, https://arxiv.org/abs/1707.06990, section 3.
    """
    norm, conv = stage.norm, stage.operation
    from_batch, eps = norm.training or norm.running_mean is None, norm.eps
    running = [norm.running_mean, norm.running_var]
    used = [None, None] if from_batch else [buffer.clone() for buffer in running]
    settings = convolution_settings(conv)
    runs = itertools.count()

    def function(weight, bias, kernel, mean, var, *inputs):  # type: ignore[no-untyped-def]
        x = torch.cat(inputs, 1)
        if next(runs) == 0:
            x = norm(x)
        else:
            if from_batch:
                mean, var = (None if b is None else torch.zeros_like(b) for b in running)
            x = F.batch_norm(x, mean, var, weight, bias, from_batch, 0.0, eps)
        return F.conv2d(x.relu_(), kernel, None, *settings)

    return checkpoint(
        function,
        *(norm.weight, norm.bias, conv.weight),
        *used,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in it is random
    )


# --------------------------------------------------------------------------------- one buffer for a whole block


class Append(torch.autograd.Function):
    """Write feature maps into a buffer, behind those that it holds, and return all of them.

    ``Append.apply(buffer, features, maps)`` is what ``torch.cat([features, maps], 1)`` is, without the copy of
    `features`: they are in the buffer already. ``Append.apply(buffer, maps)`` writes the first ones. Nothing is kept.
    """

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, *pieces: Tensor) -> Tensor:
        ctx.channels = [piece.shape[1] for piece in pieces]
        end = sum(ctx.channels)
        # Autograd counts the changes of a tensor and of all its views, and refuses to use one that changed since it
        # was saved. This write touches no channel that an earlier layer saved, so it goes through `.data`, which
        # does not count. A change that somebody else makes to the features still does.
        buffer.data[:, end - ctx.channels[-1] : end].copy_(pieces[-1])
        return buffer[:, :end].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grad.split(ctx.channels, 1)


class Buffer:
    """The feature maps of a block, all in one tensor, each with the statistics of its batch.

    The statistics of a batch are those of its channels, one by one. So they are computed when a feature map is made,
    and not again by each of the layers that read it.

    Args:
        features: (N, C, H, W), the block's input, which is copied.
        channels: C and all that will be appended.
        statistics: those of `features`, where they are known.
    """

    def __init__(self, features: Tensor, channels: int, statistics: Tensor | None = None) -> None:
        n, _, h, w = features.shape
        self._maps = torch.empty(
            (n, channels, h, w),
            dtype=features.dtype,
            device=features.device,
            memory_format=memory_format(features),
        )
        precise = torch.promote_types(features.dtype, torch.float32)
        self._statistics = features.new_zeros((3, channels), dtype=precise)
        self.features: Tensor | None = None  # (N, channels so far, H, W)
        self.append(features, statistics)

    @property
    def statistics(self) -> Tensor:
        """(3, channels so far): see :func:`write_statistics`."""
        return self._statistics[:, : self.features.shape[1]]

    def append(self, maps: Tensor, statistics: Tensor | None = None) -> None:
        """Write `maps`, (N, any, H, W), behind the features that are there."""
        pieces = [maps] if self.features is None else [self.features, maps]
        self.features = Append.apply(self._maps, *pieces)
        end = self.features.shape[1]
        # Through `.data`, as in Append: what earlier layers have kept of the statistics stays as it is.
        rows = self._statistics.data[:, end - maps.shape[1] : end]
        if statistics is None:
            write_statistics(maps.detach().to(self._maps.dtype), rows)
        else:
            rows.copy_(statistics)


def write_statistics(x: Tensor, rows: Tensor) -> None:
    """Write the statistics of each channel of x over the batch, to the last digit as batch norm has them on a CPU.

    `rows` are zeros, (3, C). Row 0 becomes the mean, row 1 the variance, row 2 the estimate of the variance that
    running statistics take up, with N - 1 in place of N.
    """
    mean, var, unbiased = rows
    # Moved all the way, the running statistics are those of this batch.
    var.copy_(torch.batch_norm_update_stats(x, mean, unbiased, 1.0)[1])


# -------------------------------------------------------------------------------- norm, ReLU and an operation


@dataclass(frozen=True)
class Settings:
    """What a stage is, tensors aside, as its modules were when the forward pass ran.

    Attributes:
        from_batch: whether the norm takes the statistics of the batch, and not running ones.
        known: whether the statistics were known beforehand: then the variance is kept; else 1 / sqrt(variance + eps).
        eps: the norm's.
        convolution: stride, padding, dilation and groups; ``None`` for a max pooling.
        average: the window of an average pooling before the convolution, ``None`` without.
        maximum: the window of a max pooling, ``None`` without.
        dtype: of what comes out.
    """

    from_batch: bool
    known: bool
    eps: float
    convolution: tuple[Any, ...] | None
    average: tuple[Any, ...] | None
    maximum: tuple[Any, ...] | None
    dtype: torch.dtype


class NormReluOperation(torch.autograd.Function):
    """One or more stages of batch norm, ReLU and an operation, of which only the input is kept.

    An operation is a convolution without bias, one behind an average pooling, or a max pooling. The backward pass
    computes norm and ReLU again from the statistics of the forward pass, which are kept (two numbers per channel), so
    running statistics move once. It computes every operation again but the last one's, whose output nobody needs. Of a
    max pooling, which must be the last, it keeps where the largest numbers were.

    ``NormReluOperation.apply(x, statistics, stages, *parameters)``: `parameters` are what :func:`parameters_of` says of
    the stages, and `statistics` those of the batch `x`, or ``None`` if they are not known.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        statistics: Tensor | None,
        stages: list[Stage],
        *parameters: Tensor | None,
    ) -> Tensor:
        ctx.autocast = _autocast_state(x.device.type)
        kept, ctx.stages = [x, *parameters], []
        for stage in stages:
            norm, operation, pool = stage.norm, stage.operation, stage.pool
            x = contiguous(x)
            in_place = _may_write_over(x) and x is not kept[0]
            x, mean, scale = _norm(x, norm, statistics, in_place)
            known, statistics = (
                statistics is not None,
                None,
            )  # those of the first input alone can be known
            x, indices = x.relu_(), None
            convolution = average = maximum = None
            if isinstance(operation, nn.MaxPool2d):
                maximum = _max_window(operation)
                x, indices = _max_pool(maximum, x)
            else:
                convolution = convolution_settings(operation)
                average = None if pool is None else _average_window(pool)
                x = operation(x if pool is None else pool(x))
            kept += [mean, scale, indices]
            from_batch = norm.training or norm.running_mean is None
            ctx.stages.append(
                Settings(
                    from_batch,
                    known and from_batch,
                    norm.eps,
                    convolution,
                    average,
                    maximum,
                    x.dtype,
                )
            )
        ctx.save_for_backward(*kept)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients of gradients, and batches of them, go through autograd itself.
        general = torch.is_grad_enabled() or _is_batched(grad)
        with _as_it_was(ctx.autocast):
            gradients = (_by_autograd if general else _by_hand)(ctx, grad)
        return gradients[0], None, None, *gradients[1:]


def _is_batched(grad: Tensor) -> bool:
    """Whether `grad` stands for several gradients at once, as vmap and ``is_grads_batched`` have it."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)


def parameters_of(stages: list[Stage]) -> list[Tensor | None]:
    """Weight and bias of the norm and weight of the operation, ``None`` for what is not there, stage by stage."""
    return [
        parameter
        for stage in stages
        for parameter in (
            stage.norm.weight,
            stage.norm.bias,
            getattr(stage.operation, "weight", None),
        )
    ]


def _saved(ctx: Any) -> tuple[Tensor, list[tuple[Settings, list[Any], list[Any]]]]:
    """The input, and for each stage its settings, its three parameters, and mean, scale and indices."""
    x, *kept = ctx.saved_tensors
    count = 3 * len(ctx.stages)
    return x, [
        (settings, kept[3 * i : 3 * i + 3], kept[count + 3 * i : count + 3 * i + 3])
        for i, settings in enumerate(ctx.stages)
    ]


def _by_hand(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradients of the input and of each parameter."""
    x, stages = _saved(ctx)
    forward = []
    for settings, (weight, bias, kernel), (mean, scale, indices) in stages:
        x = contiguous(x)
        if settings.known:
            mean, scale = _mean_and_invstd(mean, scale, settings.eps, x, weight)
        activated = None
        if indices is None:
            activated = _norm_again(x, weight, bias, settings, mean, scale).relu_()
        forward.append((x, activated, mean, scale))
        if len(forward) < len(stages):
            pooled = (
                activated
                if settings.average is None
                else F.avg_pool2d(activated, *settings.average)
            )
            dtype = settings.dtype
            x = F.conv2d(pooled.to(dtype), kernel.to(dtype), None, *settings.convolution)

    gradients: list[Tensor | None] = []
    for i in range(len(stages) - 1, -1, -1):
        settings, (weight, _, kernel), (_, _, indices) = stages[i]
        x, activated, mean, scale = forward.pop()
        needs_x = i > 0 or ctx.needs_input_grad[0]
        needs_weight, needs_bias, needs_kernel = ctx.needs_input_grad[3 + 3 * i : 6 + 3 * i]
        needs_norm = needs_x or needs_weight or needs_bias
        d_weight = d_bias = d_kernel = None
        if indices is None:
            grad, d_kernel = _convolution_backward(
                settings, grad, activated, kernel, needs_norm, needs_kernel
            )
        else:
            grad = _max_pool_backward(settings.maximum, grad, x, indices)
        del activated
        if needs_norm:
            from_batch = settings.from_batch
            grad, d_weight, d_bias = _aten.native_batch_norm_backward(
                grad,
                x,
                weight,
                None if from_batch else mean,
                None if from_batch else scale,
                mean if from_batch else None,
                scale if from_batch else None,
                from_batch,
                settings.eps,
                [needs_x, needs_weight, needs_bias],
            )
        gradients = [d_weight, d_bias, d_kernel, *gradients]
    return [grad if ctx.needs_input_grad[0] else None, *gradients]


def _by_autograd(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The same gradients as functions of the input, the parameters and `grad`, so that they can be differentiated."""
    x, stages = _saved(ctx)
    inputs = [x, *(parameter for _, parameters, _ in stages for parameter in parameters)]
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
    with torch.enable_grad():
        # Other names for the same tensors: hooks on the tensors themselves are for the gradients that we return.
        inputs = [tensor if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        x, parameters = inputs[0], iter(inputs[1:])
        for settings, _, (mean, scale, _) in stages:
            weight, bias, kernel = next(parameters), next(parameters), next(parameters)
            running = (None, None) if settings.from_batch else (mean, scale)
            x = contiguous(x)
            x = F.batch_norm(
                x, *running, weight, bias, settings.from_batch, 0.0, settings.eps
            ).relu()
            if settings.maximum is not None:
                x = F.max_pool2d(x, *settings.maximum)
                continue
            # In float64 some kernels refuse weights in channels_last.
            kernel = kernel.to(settings.dtype).contiguous()
            if settings.average is not None:
                x = F.avg_pool2d(x, *settings.average)
            x = F.conv2d(x.to(settings.dtype), kernel, None, *settings.convolution)
        found = iter(
            torch.autograd.grad(
                x,
                [tensor for tensor, needs in zip(inputs, needed, strict=True) if needs],
                grad,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
    return [next(found) if needs else None for needs in needed]


def _autocast_state(device: str) -> tuple[str, torch.dtype, bool]:
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _as_it_was(state: tuple[str, torch.dtype, bool]) -> contextlib.AbstractContextManager:
    """The precision of the forward pass, whatever surrounds the backward pass."""
    device, dtype, enabled = state
    return torch.autocast(device, dtype=dtype, enabled=enabled)


def _may_write_over(x: Tensor) -> bool:
    """Whether batch norm may put its result where x is: on a CPU, fresh memory costs more than the arithmetic."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _norm(
    x: Tensor, norm: nn.BatchNorm2d, statistics: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``norm(x)`` returns and does, written over x if `in_place`, and what it takes to compute it again.

    Returns:
        the normalised x; the mean that it was normalised by; and its variance where that is a running one or was
        known beforehand, else the inverse standard deviation of the batch.
    """
    if not (norm.training or norm.running_mean is None):
        # Copies: by the time of the backward pass the running statistics may have moved on.
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        return _with_statistics(x, mean, var, norm.weight, norm.bias, norm.eps, in_place), mean, var

    running_mean = running_var = None
    momentum = 0.0
    if norm.training and norm.running_mean is not None:
        running_mean, running_var = norm.running_mean, norm.running_var
        momentum = 0.0 if norm.momentum is None else norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:  # the average over all batches so far
                momentum = 1.0 / norm.num_batches_tracked.item()

    if statistics is None:
        return torch.native_batch_norm(
            x,
            norm.weight,
            norm.bias,
            running_mean,
            running_var,
            True,
            momentum,
            norm.eps,
            out=(x, x.new_empty(0), x.new_empty(0)) if in_place else None,
        )

    mean, var, unbiased = statistics
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(momentum * mean)
        running_var.mul_(1 - momentum).add_(unbiased, alpha=momentum)
    again = _mean_and_invstd(mean, var, norm.eps, x, norm.weight)
    # The variance is what is kept: all layers of a block share one tensor of variances.
    return _scaled(x, norm.weight, norm.bias, *again, in_place), mean, var


def _mean_and_invstd(
    mean: Tensor, var: Tensor, eps: float, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of the batch x, from its mean and variance, as batch norm has them."""
    if x.device.type == "cpu":  # where batch norm itself adds eps in float64
        var = var.double()
    dtype = x.dtype if weight is None else weight.dtype
    return mean.to(dtype), (var + eps).rsqrt().to(dtype)


def _norm_again(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
    mean: Tensor,
    scale: Tensor,
) -> Tensor:
    """Normalise x by statistics that are known: those of the batch, or running ones."""
    if settings.from_batch:
        return _scaled(x, weight, bias, mean, scale)
    return _with_statistics(x, mean, scale, weight, bias, settings.eps)


def _scaled(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    in_place: bool = False,
) -> Tensor:
    """Normalise x by the mean and the inverse standard deviation of the batch."""
    # No operator takes a batch's statistics as given, but this is all that one would do with them: one scale and one
    # shift per channel. Batch norm with mean 0 and variance 1 applies them in one pass, and to the last digit.
    scale = invstd if weight is None else invstd * weight
    shift = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, mean, scale, value=-1)
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    return _with_statistics(x, zeros, ones, scale, shift, 0.0, in_place)


def _with_statistics(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    in_place: bool = False,
) -> Tensor:
    """Batch norm by the given mean and variance, written over x if `in_place`."""
    if not in_place:
        # Not F.batch_norm: in some versions it refuses an eps of 0, which scale and shift need.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, cudnn)
    out = (x, x.new_empty(0), x.new_empty(0))
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps, out=out)[0]


def convolution_settings(convolution: nn.Conv2d) -> tuple[Any, ...]:
    c = convolution
    return c.stride, c.padding, c.dilation, c.groups


def _average_window(pool: nn.AvgPool2d) -> tuple[Any, ...]:
    p = pool
    return p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor_override


def _max_window(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode


def _convolution_backward(
    settings: Settings,
    grad: Tensor,
    activated: Tensor,
    kernel: Tensor,
    needs_x: bool,
    needs_kernel: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of what ReLU read, which made `activated` of it, and of the kernel."""
    average = settings.average
    pooled = activated if average is None else F.avg_pool2d(activated, *average)
    stride, padding, dilation, groups = settings.convolution
    # Under AMP the convolution worked in the precision of its output.
    d_x, d_kernel, _ = _aten.convolution_backward(
        grad,
        pooled.to(grad.dtype),
        kernel.to(grad.dtype),
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [needs_x, needs_kernel, False],
    )
    if needs_x:
        d_x = d_x.to(activated.dtype)
        if average is not None:
            d_x = _aten.avg_pool2d_backward(d_x, activated, *average)
        _aten.threshold_backward.grad_input(d_x, activated, 0, grad_input=d_x)
    return d_x, d_kernel.to(kernel.dtype) if needs_kernel else None


def _max_pool(window: tuple[Any, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """Pool x, which ReLU has made, and say where each number comes from, with -1 for zeros."""
    pooled, indices = F.max_pool2d(x, *window, return_indices=True)
    # In 32 bits: an image has fewer than 2**31 pixels.
    return pooled, indices.int().masked_fill_(pooled <= 0, -1)


def _max_pool_backward(window: tuple[Any, ...], grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """The gradient of what ReLU read, of x's shape: what it made 0 gets none, and need not be computed again."""
    grad = grad.masked_fill(indices < 0, 0)
    return _aten.max_pool2d_with_indices_backward(grad, x, *window, indices.clamp_min(0).long())
