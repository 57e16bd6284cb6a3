"""The mode "fused": "recompute", with norm and ReLU by :mod:`kernels`; faster, for channels_last.

What is kept is what "recompute" keeps: the feature maps of a block in one buffer, and bottlenecks.
A block is one autograd function, since the gradient of its feature maps is one buffer as well, to
which every layer adds.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densenet_tutorial.memory import kernels
from densenet_tutorial.memory.conditions import Stage
from densenet_tutorial.memory.functions import (
    Settings,
    autocast_state,
    autograd_gradients,
    convolution_backward,
    gradients_by_autograd,
    is_general,
    max_pool_backward,
    plain_stage,
    restored_autocast,
    run_operation,
    statistics_of,
    write_statistics,
)


def is_fusable(x: Tensor, stages: list[Stage]) -> bool:
    """Whether :mod:`kernels` can compute the norms of `stages`, of which x is the first's input.

    The norms have to normalise by the batch, and to have weights; with a cumulative average, a
    value on the GPU would have to be waited for. All running statistics are updated at once, so
    none may be there twice. `stages` are supported (see :func:`conditions.is_supported`).
    """
    running = [t for s in stages for t in (s.norm.running_mean, s.norm.running_var)]
    addresses = [t.data_ptr() for t in running if t is not None]
    if len(set(addresses)) < len(addresses):
        return False
    return kernels.can_compute(x) and all(
        stage.norm.training
        and stage.norm.weight is not None
        and stage.norm.bias is not None
        and stage.norm.weight.dtype == stage.norm.bias.dtype == torch.float32
        and (stage.norm.running_mean is None or stage.norm.momentum is not None)
        for stage in stages
    )


class FusedStage(torch.autograd.Function):
    """Batch norm, ReLU and an operation; saves the input alone.

    ``FusedStage.apply(x, statistics, [stage], *parameters)``: see
    :class:`functions.NormReluOperation`.
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
        found = statistics_of(x) if statistics is None else statistics
        y, settings, indices = _run(stages[0], x, found)
        _update_running_statistics([stages[0].norm], [found])
        ctx.stages = [settings]
        ctx.save_for_backward(x, *parameters, *found[:2], indices)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with restored_autocast(ctx.autocast):
            if is_general(grad):
                d_x, *gradients = autograd_gradients(ctx, grad)
            else:
                x, *parameters, mean, var, indices = ctx.saved_tensors
                given = (ctx.stages[0], grad, x, mean, var, parameters, ctx.needs_input_grad[3:])
                d_x, *gradients = _gradients(*given, indices)
        return d_x, None, None, *gradients


class FusedBlock(torch.autograd.Function):
    """The stages of all layers of a dense block; saves the feature maps and the bottlenecks.

    ``FusedBlock.apply(x, statistics, layers, channels, *parameters)`` returns all features,
    (N, channels, H, W), and their statistics (see :class:`functions.Buffer`): `statistics` are
    those of x or ``None``, `layers` the stages of each layer, and `parameters` those of all stages
    in order, as :func:`functions.parameters_of` gives them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        statistics: Tensor | None,
        layers: list[list[Stage]],
        channels: int,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.autocast = autocast_state(x.device.type)
        n, end, h, w = x.shape
        features = kernels.empty((n, channels, h, w), x)
        rows = x.new_zeros((3, channels), dtype=torch.float32)
        features[:, :end] = x
        if statistics is None:
            write_statistics(x, rows[:, :end])
        else:
            rows[:, :end] = statistics
        kept: list[Any] = []
        read: list[Tensor] = []  # statistics of each stage's input
        ctx.layers = []  # of each layer: its input channels, and the settings of its stages
        for stages in layers:
            maps, known = features[:, :end], rows[:, :end]
            settings: list[Settings] = []
            for stage in stages:
                if settings:  # the first stage reads the buffer, the next one a bottleneck
                    known = statistics_of(maps)
                    kept += [maps, *known[:2]]
                read.append(known)
                maps, of_stage, _ = _run(stage, maps, known)
                settings.append(of_stage)
            ctx.layers.append((end, settings))
            start, end = end, end + maps.shape[1]
            features[:, start:end] = maps
            write_statistics(maps.to(features.dtype), rows[:, start:end])
        _update_running_statistics([stage.norm for stages in layers for stage in stages], read)
        ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(features, rows, *parameters, *kept)
        return features, rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        compute = _autograd_gradients_of_block if is_general(grad) else _gradients_of_block
        with restored_autocast(ctx.autocast):
            d_x, *gradients = compute(ctx, grad)
        return d_x, None, None, None, *gradients


def _run(stage: Stage, x: Tensor, statistics: Tensor) -> tuple[Tensor, Settings, Tensor | None]:
    """The output of `stage`, its settings, and the indices of a max pooling."""
    norm = stage.norm
    mean, var, _ = statistics
    activated = kernels.norm_relu(x, mean, var, norm.weight, norm.bias, norm.eps)
    y, indices, windows = run_operation(stage, activated)
    return y, Settings(True, True, norm.eps, *windows, y.dtype), indices


def _gradients(
    settings: Settings,
    grad: Any,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    parameters: Sequence[Any],
    needs: Sequence[bool],
    indices: Tensor | None = None,
    add_to: kernels.Sum | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients of a stage's input x, and of its parameters.

    Args:
        settings, grad: of the stage, and of its output.
        x, mean, var: its input, and the statistics of that.
        parameters: weight and bias of the norm, weight of the operation.
        needs: which of them need a gradient.
        indices: of a max pooling.
        add_to: what the gradient of x is added to; ``None`` is returned in its place.
    """
    weight, bias, kernel = parameters
    norm = (x, mean, var, weight, bias, settings.eps)
    d_kernel = None
    if indices is not None:
        grad = max_pool_backward(settings, grad, x, indices)
    else:
        activated = kernels.norm_relu(*norm)
        grad, d_kernel = convolution_backward(settings, grad, activated, kernel, True, needs[2])
        del activated
    return *kernels.norm_relu_backward(grad, *norm, add_to), d_kernel


def _threes(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[i : i + 3] for i in range(0, len(values), 3)]


def _saved(ctx: Any) -> tuple[Tensor, Tensor, list[Sequence[Any]], list[Sequence[Any]]]:
    """All features, their statistics, each stage's parameters, and each bottleneck's values."""
    features, rows, *rest = ctx.saved_tensors
    stages = sum(len(settings) for _, settings in ctx.layers)
    return features, rows, _threes(rest[: 3 * stages]), _threes(rest[3 * stages :])


def _gradients_of_block(ctx: Any, grad: Any) -> list[Tensor | None]:
    """The gradients of the block's input and of each parameter."""
    features, rows, parameters, bottlenecks = _saved(ctx)
    total = kernels.Sum(grad, features, rows[0])
    needs = _threes(ctx.needs_input_grad[4:])
    gradients: list[Tensor | None] = []
    for end, settings in reversed(ctx.layers):
        grad = total.of(end, end + parameters[-1][2].shape[0])
        for i in range(len(settings) - 1, -1, -1):
            of_stage = parameters.pop(), needs.pop()
            if i:
                x, mean, var = bottlenecks.pop()
                grad, *found = _gradients(settings[i], grad, x, mean, var, *of_stage)
            else:
                x, mean, var = features[:, :end], rows[0, :end], rows[1, :end]
                _, *found = _gradients(settings[i], grad, x, mean, var, *of_stage, add_to=total)
            gradients = [*found, *gradients]
    return [total.of(0, ctx.layers[0][0]), *gradients]


def _autograd_gradients_of_block(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The same gradients, computed by autograd, so that they can be differentiated again.

    The block's input is the first channels of its output, and what reads these reads the input.
    """
    features, _, parameters, _ = _saved(ctx)
    start = ctx.layers[0][0]
    with torch.enable_grad():
        # Views, since hooks on the tensors themselves are for the gradients that we return.
        x = features[:, :start]
        views = [[t if t is None else t.view_as(t) for t in of_stage] for of_stage in parameters]
        inputs, left = [x, *itertools.chain(*views)], iter(views)
        for _, settings in ctx.layers:
            maps = x
            for of_stage in settings:
                weight, bias, kernel = next(left)
                maps = plain_stage(of_stage, maps, weight, bias, kernel)
            x = torch.cat([x, maps.to(x.dtype)], 1)
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        return gradients_by_autograd(x, inputs, needed, grad)


def _update_running_statistics(norms: list[nn.BatchNorm2d], statistics: list[Tensor]) -> None:
    """Count a batch whose channels have these `statistics`, (3, C) for each of `norms`.

    All at once: one by one they would be as many short operations as all the rest.
    """
    by_momentum: dict[float, list[tuple[Tensor, Tensor]]] = {}
    for norm, (mean, _, unbiased) in zip(norms, statistics, strict=True):
        if norm.running_mean is None or norm.running_var is None:
            continue
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        of_norm = [(norm.running_mean, mean), (norm.running_var, unbiased)]
        by_momentum.setdefault(norm.momentum or 0.0, []).extend(of_norm)
    for momentum, found in by_momentum.items():
        running, values = (list(tensors) for tensors in zip(*found, strict=True))
        torch._foreach_mul_(running, 1 - momentum)
        torch._foreach_add_(running, values, alpha=momentum)
