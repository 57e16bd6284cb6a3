"""The autograd functions of the memory-efficient modes, with backward passes of their own.

They keep tensors by ``ctx.save_for_backward`` alone. So saved-tensor hooks see all of them, and a
weight that was changed in place raises the usual error, as does a second backward pass.
"""

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
    """The memory format of `x`, also if `x` is a view of the first channels of a larger tensor."""
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def contiguous(x: Tensor) -> Tensor:
    """`x` without gaps between the images, which make batch norm several times slower."""
    return x.contiguous(memory_format=memory_format(x))


# ---------------------------------------------------------------------------------- checkpointing


def checkpointed(stage: Stage, inputs: list[Tensor]) -> Tensor:
    """Concatenation, norm, ReLU and convolution; keeps `inputs` alone and recomputes the rest.

    Batch norm's forward pass updates its running statistics. The recomputation updates temporary
    ones instead. Parameters, and running statistics if they are used, are passed as arguments, so
    the recomputation repeats the first pass even if the modules' values have changed since.

    Source: Pleiss et al. 2017, https://arxiv.org/abs/1707.06990, section 3.
    """
    norm, conv = stage.norm, stage.operation
    from_batch, eps = norm.training or norm.running_mean is None, norm.eps
    running = [norm.running_mean, norm.running_var]
    used = [None if from_batch or b is None else b.clone() for b in running]
    settings = convolution_settings(conv)
    runs = itertools.count()

    def function(weight: Any, bias: Any, kernel: Any, *rest: Any) -> Tensor:
        mean, var, *inputs = rest
        x = torch.cat(inputs, 1)
        if next(runs) == 0:
            x = norm(x)
        else:
            if from_batch:
                mean, var = (b if b is None else torch.zeros_like(b) for b in running)
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


# --------------------------------------------------------------------- one buffer for a whole block


class Append(torch.autograd.Function):
    """Write feature maps into a buffer, after those that it holds, and return all of them.

    ``Append.apply(buffer, features, maps)`` equals ``torch.cat([features, maps], 1)``, but does not
    copy `features`, which are in the buffer already. ``Append.apply(buffer, maps)`` writes the
    first ones. Nothing is saved for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, *pieces: Tensor) -> Tensor:
        ctx.channels = [piece.shape[1] for piece in pieces]
        end = sum(ctx.channels)
        # Autograd counts the in-place changes of a tensor and of all its views, and
        # raises an error for one that changed since it was saved. This write
        # touches no channel that an earlier layer saved, so it goes through
        # `.data`, which is not counted. In-place changes by anybody else still are.
        buffer.data[:, end - ctx.channels[-1] : end].copy_(pieces[-1])
        return buffer[:, :end].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grad.split(ctx.channels, 1)


class Buffer:
    """All feature maps of a block in one tensor, and the batch statistics of each channel.

    Batch statistics are computed channel by channel. So they are computed once per feature map, and
    not again by every layer that reads it.

    Args:
        features: (N, C, H, W), the block's input, which is copied.
        channels: C plus the number of channels that will be appended.
        statistics: those of `features`, if they are known.
    """

    def __init__(
        self,
        features: Tensor,
        channels: int,
        statistics: Tensor | None = None,
    ) -> None:
        n, _, h, w = features.shape
        self._maps = torch.empty(
            (n, channels, h, w),
            dtype=features.dtype,
            device=features.device,
            memory_format=memory_format(features),
        )
        precise = torch.promote_types(features.dtype, torch.float32)
        self._statistics = features.new_zeros((3, channels), dtype=precise)
        self.features = features[:, :0]  # (N, channels so far, H, W)
        self.append(features, statistics)

    @property
    def statistics(self) -> Tensor:
        """(3, channels so far): see :func:`write_statistics`."""
        return self._statistics[:, : self.features.shape[1]]

    def append(self, maps: Tensor, statistics: Tensor | None = None) -> None:
        """Write `maps`, (N, any, H, W), after the features that are there."""
        pieces = [self.features, maps] if self.features.shape[1] else [maps]
        self.features = Append.apply(self._maps, *pieces)
        end = self.features.shape[1]
        # Through `.data`, as in Append: earlier layers have saved other columns.
        rows = self._statistics.data[:, end - maps.shape[1] : end]
        if statistics is None:
            write_statistics(maps.detach().to(self._maps.dtype), rows)
        else:
            rows.copy_(statistics)


def write_statistics(x: Tensor, rows: Tensor) -> None:
    """Write mean, biased and unbiased variance of each channel of x, (N, C, H, W), into `rows`.

    On a CPU they equal batch norm's to the last bit. `rows` are zeros, (3, C), at first.
    """
    mean, var, unbiased = rows
    # With a momentum of 1 the running statistics become those of this batch.
    var.copy_(torch.batch_norm_update_stats(x, mean, unbiased, 1.0)[1])


def statistics_of(x: Tensor) -> Tensor:
    """(3, C): what :func:`write_statistics` writes."""
    precise = torch.promote_types(x.dtype, torch.float32)
    rows = x.new_zeros((3, x.shape[1]), dtype=precise)
    write_statistics(x, rows)
    return rows


# ---------------------------------------------------------------------- norm, ReLU, operation


@dataclass(frozen=True)
class Settings:
    """The settings of a stage's modules at the time of the forward pass.

    Attributes:
        from_batch: whether the norm uses batch statistics, not running ones.
        known: whether the batch statistics were known beforehand. If so, the variance is saved,
            otherwise the inverse standard deviation.
        eps: the norm's.
        convolution: stride, padding, dilation and groups; ``None`` for a max pooling.
        average: arguments of an average pooling before the convolution, or ``None``.
        maximum: arguments of a max pooling, or ``None``.
        dtype: the output's.
    """

    from_batch: bool
    known: bool
    eps: float
    convolution: tuple[Any, ...] | None
    average: tuple[Any, ...] | None
    maximum: tuple[Any, ...] | None
    dtype: torch.dtype


class NormReluOperation(torch.autograd.Function):
    """One or more stages of batch norm, ReLU and an operation; saves the input alone.

    An operation is a convolution without bias, one with average pooling before it, or a max
    pooling. The backward pass recomputes norm and ReLU from the saved statistics of the forward
    pass (two numbers per channel), so running statistics are updated once. It recomputes every
    operation but the last, whose output is not needed. A max pooling must be the last operation;
    its indices are saved.

    ``NormReluOperation.apply(x, statistics, stages, *parameters)``: `statistics` are those of `x`
    (see :class:`Buffer`) or ``None``, `parameters` the result of :func:`parameters_of`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        statistics: Tensor | None,
        stages: list[Stage],
        *parameters: Tensor | None,
    ) -> Tensor:
        ctx.autocast = autocast_state(x.device.type)
        kept, ctx.stages = [x, *parameters], []
        for stage in stages:
            norm, x = stage.norm, contiguous(x)
            in_place = _can_overwrite(x) and x is not kept[0]
            x, mean, scale = _batch_norm(x, norm, statistics, in_place)
            from_batch = norm.training or norm.running_mean is None
            known = from_batch and statistics is not None
            statistics = None  # those of later inputs are not known
            x, indices, windows = run_operation(stage, x.relu_())
            kept += [mean, scale, indices]
            ctx.stages.append(Settings(from_batch, known, norm.eps, *windows, x.dtype))
        ctx.save_for_backward(*kept)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        compute = autograd_gradients if is_general(grad) else _manual_gradients
        with restored_autocast(ctx.autocast):
            gradients = compute(ctx, grad)
        return gradients[0], None, None, *gradients[1:]


def run_operation(stage: Stage, x: Tensor) -> tuple[Tensor, Tensor | None, tuple[Any, Any, Any]]:
    """The operation of `stage` on ReLU's output x, after its average pooling if it has one.

    Returns:
        The output, the indices of a max pooling or ``None``, and the settings `convolution`,
        `average` and `maximum`.
    """
    operation, pool = stage.operation, stage.pool
    if isinstance(operation, nn.MaxPool2d):
        window = _max_window(operation)
        return *_max_pool(window, x), (None, None, window)
    average = None if pool is None else _average_window(pool)
    y = operation(x if pool is None else pool(x))
    return y, None, (convolution_settings(operation), average, None)


def is_general(grad: Tensor) -> bool:
    """Whether autograd itself has to compute: gradients of gradients, or batches of gradients."""
    functorch = torch._C._functorch  # vmap, or ``is_grads_batched``
    batched = functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
    return torch.is_grad_enabled() or batched


def parameters_of(stages: list[Stage]) -> list[Tensor | None]:
    """For each stage: weight and bias of the norm, weight of the operation; ``None`` if missing."""
    found: list[Tensor | None] = []
    for stage in stages:
        found += [stage.norm.weight, stage.norm.bias, getattr(stage.operation, "weight", None)]
    return found


def _saved(ctx: Any) -> tuple[Tensor, list[tuple[Settings, list[Any], list[Any]]]]:
    """The input, and for each stage its settings, parameters, and mean, scale and indices."""
    x, *kept = ctx.saved_tensors
    count = 3 * len(ctx.stages)
    return x, [
        (settings, kept[3 * i : 3 * i + 3], kept[count + 3 * i : count + 3 * i + 3])
        for i, settings in enumerate(ctx.stages)
    ]


def _manual_gradients(ctx: Any, grad: Any) -> list[Tensor | None]:
    """The gradients of the input and of each parameter."""
    x, stages = _saved(ctx)
    forward: list[tuple[Tensor, Any, Tensor, Tensor]] = []
    for settings, (weight, bias, kernel), (mean, scale, indices) in stages:
        x = contiguous(x)
        if settings.known:
            mean, scale = _mean_and_invstd(mean, scale, settings.eps, x, weight)
        activated = None
        if indices is None:
            activated = _norm_relu(x, weight, bias, settings, mean, scale)
        forward.append((x, activated, mean, scale))
        if activated is not None and len(forward) < len(stages):
            x = _convolution(settings, activated, kernel)

    gradients: list[Tensor | None] = []
    for i in range(len(stages) - 1, -1, -1):
        settings, (weight, _, kernel), (_, _, indices) = stages[i]
        x, activated, mean, scale = forward.pop()
        needs_x = i > 0 or ctx.needs_input_grad[0]
        needs = ctx.needs_input_grad[3 + 3 * i : 6 + 3 * i]  # weight, bias, kernel
        needs_norm = needs_x or needs[0] or needs[1]
        d_weight = d_bias = d_kernel = None
        if indices is None:
            grad, d_kernel = convolution_backward(
                settings, grad, activated, kernel, needs_norm, needs[2]
            )
            if needs_norm:  # ReLU's
                _aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)
        else:
            grad = max_pool_backward(settings, grad, x, indices)
        del activated
        if needs_norm:
            statistics = [None, None, mean, scale]
            if not settings.from_batch:
                statistics = [mean, scale, None, None]
            grad, d_weight, d_bias = _aten.native_batch_norm_backward(
                grad,
                x,
                weight,
                *statistics,
                settings.from_batch,
                settings.eps,
                [needs_x, needs[0], needs[1]],
            )
        gradients = [d_weight, d_bias, d_kernel, *gradients]
    return [grad if ctx.needs_input_grad[0] else None, *gradients]


def autograd_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The same gradients, computed by autograd, so that they can be differentiated again."""
    x, stages = _saved(ctx)
    inputs = [x, *(parameter for _, parameters, _ in stages for parameter in parameters)]
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
    with torch.enable_grad():
        # Views, since hooks on the tensors themselves are for the gradients that we return.
        inputs = [tensor if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        x, parameters = inputs[0], iter(inputs[1:])
        for settings, _, (mean, scale, _) in stages:
            weight, bias, kernel = itertools.islice(parameters, 3)
            x = plain_stage(settings, x, weight, bias, kernel, mean, scale)
        return gradients_by_autograd(x, inputs, needed, grad)


def plain_stage(
    settings: Settings,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kernel: Any,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    """The output of a stage by PyTorch's own functions; `mean` and `var` are running ones."""
    running = (None, None) if settings.from_batch else (mean, var)
    norm = (*running, weight, bias, settings.from_batch, 0.0, settings.eps)
    x = F.batch_norm(contiguous(x), *norm).relu()
    if settings.maximum is not None:
        return F.max_pool2d(x, *settings.maximum)
    # In float64 some kernels refuse weights in channels_last.
    return _convolution(settings, x, kernel.to(settings.dtype).contiguous())


def gradients_by_autograd(
    y: Tensor, inputs: list[Any], needed: list[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of those of `inputs` that are needed, from the gradient of `y`."""
    needed_inputs = [tensor for tensor, needs in zip(inputs, needed, strict=True) if needs]
    create = torch.is_grad_enabled()
    found = iter(
        torch.autograd.grad(y, needed_inputs, grad, create_graph=create, allow_unused=True)
    )
    return [next(found) if needs else None for needs in needed]


def autocast_state(device: str) -> tuple[str, torch.dtype, bool]:
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def restored_autocast(state: tuple[str, torch.dtype, bool]) -> torch.autocast:
    """The autocast state of the forward pass, for the backward pass."""
    device, dtype, enabled = state
    return torch.autocast(device, dtype=dtype, enabled=enabled)


def _can_overwrite(x: Tensor) -> bool:
    """Whether batch norm may write over x; on a CPU, new memory costs more than the arithmetic."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _batch_norm(
    x: Tensor, norm: nn.BatchNorm2d, statistics: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``norm(x)``, written over x if `in_place`, with the update of the running statistics.

    Returns:
        The normalised x, its mean, and its variance if that is a running one or was known
        beforehand, otherwise the inverse standard deviation of the batch.
    """
    running_mean, running_var = norm.running_mean, norm.running_var
    if not norm.training and running_mean is not None and running_var is not None:
        # Copies, since the running statistics may change before the backward pass.
        mean, var = running_mean.clone(), running_var.clone()
        return _batch_norm_with(x, mean, var, norm.weight, norm.bias, norm.eps, in_place), mean, var

    momentum = 0.0
    if running_mean is not None:
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
    if running_mean is not None and running_var is not None:
        running_mean.mul_(1 - momentum).add_(momentum * mean)
        running_var.mul_(1 - momentum).add_(unbiased, alpha=momentum)
    converted = _mean_and_invstd(mean, var, norm.eps, x, norm.weight)
    # The variance is saved: all layers of a block have one tensor of variances in common.
    return _normalized(x, norm.weight, norm.bias, *converted, in_place), mean, var


def _mean_and_invstd(
    mean: Tensor, var: Tensor, eps: float, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation as batch norm rounds them for an input like x."""
    if x.device.type == "cpu":  # where batch norm itself adds eps in float64
        var = var.double()
    dtype = x.dtype if weight is None else weight.dtype
    return mean.to(dtype), (var + eps).rsqrt().to(dtype)


def _norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
    mean: Tensor,
    scale: Tensor,
) -> Tensor:
    """Batch norm of x by its saved statistics, and ReLU."""
    if settings.from_batch:
        return _normalized(x, weight, bias, mean, scale).relu_()
    return _batch_norm_with(x, mean, scale, weight, bias, settings.eps).relu_()


def _normalized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    in_place: bool = False,
) -> Tensor:
    """Normalise x by the mean and the inverse standard deviation of the batch."""
    # No operator takes batch statistics as arguments. With them, batch norm is one scale and one
    # shift per channel, which batch norm with mean 0 and variance 1 applies in one pass, exactly.
    scale = invstd if weight is None else invstd * weight
    shift = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, mean, scale, value=-1)
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    return _batch_norm_with(x, zeros, ones, scale, shift, 0.0, in_place)


def _batch_norm_with(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    in_place: bool = False,
) -> Tensor:
    """Batch norm with the given mean and variance, written over x if `in_place`."""
    if not in_place:
        # Not F.batch_norm: some versions refuse an eps of 0, which scale and shift need.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, cudnn)
    out = (x, x.new_empty(0), x.new_empty(0))
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps, out=out)[0]


def convolution_settings(convolution: Any) -> tuple[Any, ...]:
    """The arguments of ``F.conv2d`` after the bias."""
    c = convolution
    return c.stride, c.padding, c.dilation, c.groups


def _average_window(pool: nn.AvgPool2d) -> tuple[Any, ...]:
    p = pool
    return p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor_override


def _max_window(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode


def _convolution(settings: Settings, activated: Tensor, kernel: Tensor) -> Tensor:
    """The convolution of a stage, with the average pooling before it if there is one."""
    if settings.average is not None:
        activated = F.avg_pool2d(activated, *settings.average)
    dtype = settings.dtype
    return F.conv2d(activated.to(dtype), kernel.to(dtype), None, *(settings.convolution or ()))


def convolution_backward(
    settings: Settings,
    grad: Tensor,
    activated: Tensor,
    kernel: Tensor,
    needs_x: bool,
    needs_kernel: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ReLU's output, `activated`, and of the kernel."""
    average = settings.average
    pooled = activated if average is None else F.avg_pool2d(activated, *average)
    stride, padding, dilation, groups = settings.convolution or ()
    # Under autocast the convolution ran in the precision of its output.
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
            d_x = _average_pool_backward(average, d_x, activated)
    return d_x, d_kernel.to(kernel.dtype) if needs_kernel else None


def _average_pool_backward(average: tuple[Any, ...], grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of an average pooling's input, of x's shape."""
    n, c, h, w = x.shape
    if average != (2, 2, 0, False, True, None) or h % 2 or w % 2 or x.stride(1) != 1:
        return _aten.avg_pool2d_backward(grad, x, *average)
    # Every number goes to four pixels: one copy, where the operator fills with zeros, and adds.
    rows = (grad / 4).permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    # A clone, never a view: what is made of it is written over it.
    copied = rows.clone(memory_format=torch.contiguous_format)
    return copied.view(n, h, w, c).permute(0, 3, 1, 2)


def _max_pool(window: tuple[Any, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """Max pooling of ReLU's output x, and its indices, with -1 for zeros."""
    pooled, indices = F.max_pool2d(x, *window, return_indices=True)
    # int32 is enough: an image has fewer than 2**31 pixels.
    return pooled, indices.int().masked_fill_(pooled <= 0, -1)


def max_pool_backward(settings: Settings, grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """The gradient of ReLU's input, of x's shape; zeros get none, so ReLU is not recomputed."""
    grad = torch.where(indices < 0, 0.0, grad)  # unlike masked_fill, it keeps the memory format
    window = settings.maximum or ()
    return _aten.max_pool2d_with_indices_backward(grad, x, *window, indices.clamp_min(0).long())
