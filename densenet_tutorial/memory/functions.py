"""What the modes of :mod:`densenet_tutorial.memory` do instead of autograd: two functions with a backward pass of our own.

They keep tensors by ``ctx.save_for_backward`` alone, so whatever looks at saved tensors sees all of them, and a
second backward pass raises the usual error. They can be differentiated once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_aten = torch.ops.aten

#: Batch norm, then (ReLU and) an average pooling or none, then a convolution or a max pooling.
Stage = tuple[nn.BatchNorm2d, nn.AvgPool2d | None, nn.Conv2d | nn.MaxPool2d]

#: By what a norm normalised, and so what is kept of it with the mean.
RUNNING_VARIANCE, BATCH_VARIANCE, BATCH_SPREAD = (
    "running variance",
    "batch variance",
    "batch spread",
)


def memory_format(x: Tensor) -> torch.memory_format:
    """The order of `x`'s elements, also where `x` is only the first channels of a larger tensor."""
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def dense(x: Tensor) -> Tensor:
    """`x` without gaps between the images: batch norm is several times slower across gaps."""
    return x.contiguous(memory_format=memory_format(x))


def no_statistics(x: Tensor, channels: int) -> Tensor:
    """Zeros, (3, channels), for :func:`write_statistics` to write into, of a precision that suits x."""
    return x.new_zeros((3, channels), dtype=torch.promote_types(x.dtype, torch.float32))


def write_statistics(x: Tensor, rows: Tensor) -> None:
    """Write the statistics of each channel of x over the batch, to the last digit as batch norm has them on a CPU.

    `rows` are zeros, (3, C). Row 0 becomes the mean, row 1 the variance, row 2 the estimate of the variance that
    running statistics take up, with N - 1 in place of N.
    """
    mean, var, unbiased = rows
    if x.device.type in ("cpu", "cuda"):
        # Moved all the way, the running statistics are those of this batch.
        var.copy_(torch.batch_norm_update_stats(x, mean, unbiased, 1.0)[1])
    else:
        count = x.numel() // x.shape[1]
        for row, value in zip((var, mean), torch.var_mean(x.float(), (0, 2, 3), correction=0)):
            row.copy_(value)
        unbiased.copy_(var * (count / (count - 1)))


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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grad.split(ctx.channels, 1)


class NormReluOperation(torch.autograd.Function):
    """One or more stages of batch norm, ReLU and an operation, of which only the input is kept.

    An operation is a convolution without bias, one behind an average pooling, or a max pooling. The backward pass
    computes norm and ReLU again from the statistics of the forward pass, which are kept (two numbers per channel), so
    running statistics move once. It computes every operation again but the last one's, whose output nobody needs. Of a
    max pooling, which must be the last, it keeps where the largest numbers were.

    ``NormReluOperation.apply(x, statistics, stages, *parameters)``: `stages` are of ``nn.BatchNorm2d``,
    ``nn.AvgPool2d`` or ``None``, and ``nn.Conv2d`` or ``nn.MaxPool2d``; `parameters` what :func:`parameters_of` says of
    them, and `statistics` those of the batch `x`, or ``None`` if they are not known.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        statistics: Tensor | None,
        stages: list[Stage],
        *parameters: Tensor | None,
    ) -> Tensor:
        kept, ctx.stages = [x, *parameters], []
        for norm, pool, operation in stages:
            x = dense(x)
            over_x = _may_write_over(x) and x is not kept[0]
            x, source, mean, spread = _norm(x, norm, statistics, over_x)
            statistics = None  # only those of the first input can be known beforehand
            x, where = x.relu_(), None
            if isinstance(operation, nn.MaxPool2d):
                x, where = _max_pool(operation, x)
            else:
                x = operation(x if pool is None else pool(x))
            kept += [mean, spread, where]
            ctx.stages.append((source, norm.eps, pool, operation, x.dtype))
        ctx.save_for_backward(*kept)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        last = len(ctx.stages) - 1
        forward = []
        for i, (source, eps, pool, operation, dtype) in enumerate(ctx.stages):
            weight, bias, kernel = kept[3 * i : 3 * i + 3]
            mean, spread, where = kept[3 * len(ctx.stages) + 3 * i :][:3]
            x = dense(x)
            if source == BATCH_VARIANCE:
                mean, spread = _mean_and_spread(mean, spread, eps, x, weight)
            activated = None
            if where is None:
                activated = _norm_again(x, weight, bias, source, mean, spread, eps).relu_()
            forward.append((x, activated, weight, kernel, mean, spread, where))
            if i < last:
                pooled = activated if pool is None else pool(activated)
                x = _convolve(operation, pooled.to(dtype), kernel.to(dtype))

        gradients: list[Tensor | None] = []
        for i in range(last, -1, -1):
            source, eps, pool, operation, _ = ctx.stages[i]
            from_batch = source != RUNNING_VARIANCE
            x, activated, weight, kernel, mean, spread, where = forward.pop()
            needs_x = i > 0 or ctx.needs_input_grad[0]
            needs_weight, needs_bias, needs_kernel = ctx.needs_input_grad[3 + 3 * i : 6 + 3 * i]
            needs_norm = needs_x or needs_weight or needs_bias
            if where is None:
                grad, d_kernel = _convolution_backward(
                    pool, operation, grad, activated, kernel, needs_norm, needs_kernel
                )
            else:
                grad, d_kernel = _max_pool_backward(operation, grad, x, where), None
            del activated
            d_weight = d_bias = None
            if needs_norm:
                grad, d_weight, d_bias = _aten.native_batch_norm_backward(
                    grad,
                    x,
                    weight,
                    None if from_batch else mean,
                    None if from_batch else spread,
                    mean if from_batch else None,
                    spread if from_batch else None,
                    from_batch,
                    eps,
                    [needs_x, needs_weight, needs_bias],
                )
            gradients = [d_weight, d_bias, d_kernel, *gradients]
        return (grad if ctx.needs_input_grad[0] else None), None, None, *gradients


def parameters_of(stages: list[Stage]) -> list[Tensor | None]:
    """Weight and bias of the norm and weight of the operation, ``None`` for what is not there, stage by stage."""
    return [
        parameter
        for norm, _, operation in stages
        for parameter in (norm.weight, norm.bias, getattr(operation, "weight", None))
    ]


def _may_write_over(x: Tensor) -> bool:
    """Whether batch norm may put its result where x is: on a CPU, fresh memory costs more than the arithmetic."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _norm(
    x: Tensor, norm: nn.BatchNorm2d, statistics: Tensor | None, over_x: bool
) -> tuple[Tensor, str, Tensor, Tensor]:
    """What ``norm(x)`` returns and does, and how to compute it again; if `over_x`, with its result written over x.

    Returns:
        the normalised x; which statistics it was normalised by; their mean; and what that source names, a variance
        or a spread, which is 1 / sqrt(variance + eps).
    """
    if not (norm.training or norm.running_mean is None):
        # Copies: by the time of the backward pass the running statistics may have moved on.
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        source = RUNNING_VARIANCE
        normalised = _norm_again(x, norm.weight, norm.bias, source, mean, var, norm.eps, over_x)
        return normalised, source, mean, var

    running_mean = running_var = None
    share = 0.0
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        running_mean, running_var = norm.running_mean, norm.running_var
        norm.num_batches_tracked.add_(1)
        share = norm.momentum
        if share is None:  # the average over all batches so far
            share = 1.0 / norm.num_batches_tracked.item()

    if statistics is None:
        normalised, mean, spread = torch.native_batch_norm(
            x,
            norm.weight,
            norm.bias,
            running_mean,
            running_var,
            True,
            share,
            norm.eps,
            out=(x, x.new_empty(0), x.new_empty(0)) if over_x else None,
        )
        return normalised, BATCH_SPREAD, mean, spread

    mean, var, unbiased = statistics
    if running_mean is not None:
        running_mean.mul_(1 - share).add_(share * mean)
        running_var.mul_(1 - share).add_(unbiased, alpha=share)
    again = _mean_and_spread(mean, var, norm.eps, x, norm.weight)
    normalised = _norm_again(x, norm.weight, norm.bias, BATCH_SPREAD, *again, norm.eps, over_x)
    # The variance, not the spread: all layers of a block share one tensor of variances.
    return normalised, BATCH_VARIANCE, mean, var


def _mean_and_spread(
    mean: Tensor, var: Tensor, eps: float, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean and spread of the batch x, from its mean and variance, as batch norm has them."""
    if x.device.type == "cpu":  # where batch norm itself adds eps in float64
        var = var.double()
    dtype = x.dtype if weight is None else weight.dtype
    return mean.to(dtype), (var + eps).rsqrt().to(dtype)


def _norm_again(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    source: str,
    mean: Tensor,
    spread: Tensor,
    eps: float,
    over_x: bool = False,
) -> Tensor:
    """Normalise x by known statistics; by those of the batch if `spread` is a spread, else by running ones."""
    if source == RUNNING_VARIANCE:
        return _with_statistics(x, mean, spread, weight, bias, eps, over_x)
    # No operator takes a batch's statistics as given, but this is all that one would do with them: one scale and one
    # shift per channel. Batch norm with mean 0 and variance 1 applies them in one pass, and to the last digit.
    scale = spread if weight is None else spread * weight
    shift = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, mean, scale, value=-1)
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    return _with_statistics(x, zeros, ones, scale, shift, 0.0, over_x)


def _with_statistics(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    over_x: bool,
) -> Tensor:
    """Batch norm by the given mean and variance; if `over_x`, with its result written over x."""
    if not over_x:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    out = (x, x.new_empty(0), x.new_empty(0))
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps, out=out)[0]


def _convolve(convolution: nn.Conv2d, x: Tensor, kernel: Tensor) -> Tensor:
    c = convolution
    return F.conv2d(x, kernel, None, c.stride, c.padding, c.dilation, c.groups)


def _convolution_backward(
    pool: nn.AvgPool2d | None,
    convolution: nn.Conv2d,
    grad: Tensor,
    activated: Tensor,
    kernel: Tensor,
    needs_x: bool,
    needs_kernel: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of what ReLU read, which made `activated` of it, and of the kernel."""
    c, p = convolution, pool
    pooled = activated if p is None else p(activated)
    # Under AMP the convolution worked in the precision of its output.
    d_x, d_kernel, _ = _aten.convolution_backward(
        grad,
        pooled.to(grad.dtype),
        kernel.to(grad.dtype),
        None,
        c.stride,
        c.padding,
        c.dilation,
        False,
        [0, 0],
        c.groups,
        [needs_x, needs_kernel, False],
    )
    if needs_x:
        d_x = d_x.to(activated.dtype)
        if p is not None:
            window = p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad
            d_x = _aten.avg_pool2d_backward(d_x, activated, *window, p.divisor_override)
        _aten.threshold_backward.grad_input(d_x, activated, 0, grad_input=d_x)
    return d_x, d_kernel.to(kernel.dtype) if needs_kernel else None


def _max_pool(pool: nn.MaxPool2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pool x, which ReLU has made, and say where each number comes from, with -1 for zeros."""
    pooled, indices = F.max_pool2d(x, *_window(pool), return_indices=True)
    # In 32 bits: a picture has fewer than 2**31 pixels.
    return pooled, indices.int().masked_fill_(pooled <= 0, -1)


def _max_pool_backward(pool: nn.MaxPool2d, grad: Tensor, x: Tensor, where: Tensor) -> Tensor:
    """The gradient of what ReLU read, of x's shape: what it made 0 gets none, and need not be computed again."""
    grad = grad.masked_fill(where < 0, 0)
    indices = where.clamp_min(0).long()
    return _aten.max_pool2d_with_indices_backward(grad, x, *_window(pool), indices)


def _window(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
