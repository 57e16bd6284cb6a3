"""Batch norm by known statistics and ReLU in one pass, and their backward pass in two: on a GPU.

A tensor is a matrix: a row for each pixel of each image, `stride` numbers after the one before it,
with the channels side by side (channels_last). Arithmetic is in float32 whatever is stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows and channels of a part of a matrix that a program computes at a time: where each number is
#: computed by itself, and where channels are added up. The fastest of those tried on an H100.
_EACH = {"ROWS": 32, "CHANNELS": 128}
_ADDED = {"ROWS": 64, "CHANNELS": 32}

#: Parts that a program adds up.
_STEPS = 8


@triton.jit
def _norm(channel, inside, mean, var, weight, bias, eps):
    """Mean, inverse standard deviation, scale and shift of some channels."""
    m = tl.load(mean + channel, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(var + channel, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    invstd = 1.0 / tl.sqrt(v + eps)
    scale = invstd * w
    return m, invstd, scale, b - m * scale


@triton.jit
def _norm_relu(
    rows, channels, x, x_stride, mean, var, weight, bias, eps, y,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    _, _, scale, shift = _norm(channel, channel < channels, mean, var, weight, bias, eps)
    value = tl.load(x + row * x_stride + channel, mask=inside).to(tl.float32) * scale + shift
    value = tl.where(value < 0, 0.0, value)  # NaN stays
    tl.store(y + row * channels + channel, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _sums(
    rows, channels, x, x_stride, mean, var, weight, bias, eps, grad, sums, to, to_stride,
    ADD: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Sums of ReLU's gradient and of its product with x - mean, (2, channels) of each program.

    With ADD, the gradient times the scale is added to `to`.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    m, _, scale, shift = _norm(channel, channel < channels, mean, var, weight, bias, eps)
    first = tl.program_id(0).to(tl.int64) * ROWS * STEPS
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(STEPS):
        row = first + step * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (channel < channels)
        value = tl.load(x + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + row * channels + channel, mask=inside, other=0.0).to(tl.float32)
        g = tl.where(value * scale + shift <= 0, 0.0, g)
        total += g
        product += g * (value - m)
        if ADD:
            at = to + row * to_stride + channel
            added = tl.load(at, mask=inside, other=0.0).to(tl.float32) + scale * g
            tl.store(at, added.to(to.dtype.element_ty), mask=inside)
    out = sums + tl.program_id(0) * 2 * channels + channel
    tl.store(out, tl.sum(total, 0, keep_dims=True), mask=channel < channels)
    tl.store(out + channels, tl.sum(product, 0, keep_dims=True), mask=channel < channels)


@triton.jit
def _corrections(
    pieces, rows, channels, sums, mean, var, weight, bias, eps, factor, offset,
    grad_weight, grad_bias,
    ADD: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Factor and offset from the sums of all programs, and the gradients of weight and bias."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    of_channel = channel < channels
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(STEPS):
        piece = step * ROWS + tl.arange(0, ROWS)[:, None]
        at = sums + piece * 2 * channels + channel
        inside = (piece < pieces) & of_channel
        total += tl.load(at, mask=inside, other=0.0)
        product += tl.load(at + channels, mask=inside, other=0.0)
    total, product = tl.sum(total, 0, keep_dims=True), tl.sum(product, 0, keep_dims=True)
    _, invstd, scale, _ = _norm(channel, of_channel, mean, var, weight, bias, eps)
    tl.store(grad_bias + channel, total, mask=of_channel)
    tl.store(grad_weight + channel, product * invstd, mask=of_channel)
    f, o = -scale * product * invstd * invstd / rows, -scale * total / rows
    if ADD:
        f += tl.load(factor + channel, mask=of_channel, other=0.0)
        o += tl.load(offset + channel, mask=of_channel, other=0.0)
    tl.store(factor + channel, f, mask=of_channel)
    tl.store(offset + channel, o, mask=of_channel)


@triton.jit
def _grad_x(
    rows, channels, x, x_stride, mean, var, weight, bias, eps, grad, factor, offset,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Overwrite `grad`, that of ReLU's output, with that of x."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    of_channel = channel < channels
    inside = (row < rows) & of_channel
    m, _, scale, shift = _norm(channel, of_channel, mean, var, weight, bias, eps)
    f = tl.load(factor + channel, mask=of_channel, other=0.0)
    o = tl.load(offset + channel, mask=of_channel, other=0.0)
    value = tl.load(x + row * x_stride + channel, mask=inside).to(tl.float32)
    at = grad + row * channels + channel
    g = tl.load(at, mask=inside).to(tl.float32)
    g = scale * tl.where(value * scale + shift <= 0, 0.0, g) + (f * (value - m) + o)
    tl.store(at, g.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _correct(
    rows, channels, x, x_stride, mean, uncorrected, stride, factor, offset, corrected,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows) & (channel < channels)
    m = tl.load(mean + channel, mask=channel < channels, other=0.0)
    f = tl.load(factor + channel, mask=channel < channels, other=0.0)
    o = tl.load(offset + channel, mask=channel < channels, other=0.0)
    value = tl.load(x + row * x_stride + channel, mask=inside).to(tl.float32)
    g = tl.load(uncorrected + row * stride + channel, mask=inside).to(tl.float32)
    g += f * (value - m) + o
    tl.store(corrected + row * channels + channel, g.to(corrected.dtype.element_ty), mask=inside)


def _parts(rows: int, channels: int, sizes: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(channels, sizes["CHANNELS"])


def norm_relu(rows: int, channels: int, *arguments: Any) -> None:
    """See :func:`kernels.norm_relu`; as in ``norm_relu.cpp``."""
    _norm_relu[_parts(rows, channels, _EACH)](rows, channels, *arguments, **_EACH)


def _add_up(
    matrix: tuple[Any, ...], norm: tuple[Any, ...], grads: tuple[Tensor, ...], to: Any, add: bool
) -> None:
    """Gradients of weight and bias, and the correction; `to`: where, its stride, factor, offset."""
    rows, channels, *_ = matrix
    grad, *of_norm = grads
    pieces, columns = _parts(rows, channels, _ADDED)
    pieces = triton.cdiv(pieces, _STEPS)
    sums = torch.empty((pieces, 2, channels), dtype=torch.float32, device=grad.device)
    sizes = {"ADD": add, **_ADDED}
    _sums[pieces, columns](*matrix, *norm, grad, sums, *to[:2], **sizes, STEPS=_STEPS)
    steps = triton.cdiv(pieces, _ADDED["ROWS"])
    _corrections[columns, 1](
        *(pieces, rows, channels, sums, *norm, *to[2:], *of_norm), **sizes, STEPS=steps
    )


def norm_relu_backward(*arguments: Any) -> None:
    """See :func:`kernels.norm_relu_backward`; as in ``norm_relu.cpp``."""
    matrix, norm, grads = arguments[:4], arguments[4:9], arguments[9:]
    rows, channels, *_ = matrix
    grad = grads[0]
    correction = torch.empty((2, channels), dtype=torch.float32, device=grad.device).unbind()
    _add_up(matrix, norm, grads, (grad, 0, *correction), False)
    _grad_x[_parts(rows, channels, _EACH)](*matrix, *norm, grad, *correction, **_EACH)


def norm_relu_backward_add(*arguments: Any) -> None:
    """The same, added to a :class:`kernels.Sum`; as in ``norm_relu.cpp``."""
    _add_up(arguments[:4], arguments[4:9], arguments[9:12], arguments[12:], True)


def correct(rows: int, channels: int, *arguments: Any) -> None:
    """See :meth:`kernels.Sum.of`; as in ``norm_relu.cpp``."""
    _correct[_parts(rows, channels, _EACH)](rows, channels, *arguments, **_EACH)
