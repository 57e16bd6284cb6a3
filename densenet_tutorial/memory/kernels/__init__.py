"""Norm and ReLU in one pass over memory, and their backward pass in two: kernels of our own.

PyTorch's operators take a pass each, and copy a block's first channels before it. The kernels read
them where they are. ``norm_relu.cpp`` is compiled for this machine when it is first needed, which
takes about a second and a C++ compiler with OpenMP (``c++``, or what the environment variable
``CXX`` names); ``gpu.py`` by Triton, which comes with PyTorch for CUDA.
"""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ON_GPU = (torch.float32, torch.float16, torch.bfloat16)


def can_compute(x: Tensor) -> bool:
    """Whether the kernels can normalise x, (N, C, H, W), here; if only a compiler lacks, warn once.

    x has to be in channels_last, in float32 without autocast, or on a GPU in any of
    float32, float16 and bfloat16.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.device.type == "cpu":
        # Under autocast what a convolution gives has another dtype.
        usual = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return usual and library() is not None
    return x.is_cuda and x.dtype in _ON_GPU and _gpu() is not None


def norm_relu(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """``relu(weight * (x - mean) / sqrt(var + eps) + bias)``.

    Args:
        x: (N, C, H, W) in channels_last, or the first channels of such a tensor.
        mean, var, weight, bias: (C,) each.
        eps: that of batch norm.

    Returns:
        A new tensor like x, in channels_last.
    """
    y = empty(x.shape, x)
    _run("norm_relu", x, *_norm(mean, var, weight, bias, eps), y)
    return y


def norm_relu_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    add_to: "Sum | None" = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x, `weight` and `bias`, where `mean` and `var` are those of x itself.

    Args:
        grad: that of :func:`norm_relu`'s output; it is overwritten.
        add_to: what the gradient of x is added to, in one pass instead of two; ``None`` is returned
            in its place.

    The other arguments are those of :func:`norm_relu`.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    grads = torch.empty_like(weight), torch.empty_like(bias)
    norm = _norm(mean, var, weight, bias, eps)
    if add_to is None:
        _run("norm_relu_backward", x, *norm, grad, *grads)
        return grad, *grads
    to = add_to.uncorrected[:, : x.shape[1]]
    sums = (to, _stride(to), add_to.factor, add_to.offset)
    _run("norm_relu_backward_add", x, *norm, grad, *grads, *sums)
    return None, *grads


class Sum:
    """The gradient of a block's feature maps, to which each layer adds that of the first ones.

    What batch norm subtracts from a gradient is ``factor * (x - mean) + offset``, and known only
    when all pixels have been added up. It has the same x and mean for all layers, so each layer
    adds to `factor` and `offset`, and to the maps what is known at once.

    Args:
        grad: (N, C, H, W), the gradient of the block's output; it is copied.
        x: (N, C, H, W), the feature maps, in channels_last.
        mean: (C,), that of each channel of x.
    """

    def __init__(self, grad: Tensor, x: Tensor, mean: Tensor) -> None:
        self.uncorrected = grad.clone(memory_format=torch.channels_last)
        self.factor, self.offset = torch.zeros_like(mean), torch.zeros_like(mean)
        self._x, self._mean = x, mean

    def of(self, start: int, end: int) -> Tensor:
        """The gradient of some maps, (N, end - start, H, W), when all of it has been added."""
        part, x = self.uncorrected[:, start:end], self._x[:, start:end]
        corrected = empty(part.shape, part)
        vectors = (t[start:end].contiguous() for t in (self._mean, self.factor, self.offset))
        mean, factor, offset = vectors
        _run("correct", x, mean, part, _stride(part), factor, offset, corrected)
        return corrected


def _norm(*of_norm: Any) -> tuple[Any, ...]:
    *vectors, eps = of_norm
    return *(t.contiguous() for t in vectors), eps


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of `shape`, (N, C, H, W), in channels_last, with the dtype and device of `like`."""
    last = torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=last)


def _run(name: str, x: Tensor, *rest: Any) -> None:
    """Call a kernel for x."""
    arguments = (x.numel() // x.shape[1], x.shape[1], x, _stride(x), *rest)
    if x.is_cuda:
        with torch.cuda.device(x.device):
            getattr(_gpu(), name)(*arguments)
    else:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        if not all(t.dtype == torch.float32 and t.device == x.device for t in tensors):
            raise TypeError("the kernels for CPUs compute with tensors in float32 on a CPU alone")
        values = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        getattr(library(), name)(torch.get_num_threads(), *values)


def _stride(x: Tensor) -> int:
    """Distance between the values of a channel, of one pixel and the next, or the next image."""
    sizes = {dim: x.shape[dim] for dim in (3, 2, 0)}
    dim = next((dim for dim, size in sizes.items() if size > 1), 0)
    return x.stride(dim)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled ``norm_relu.cpp``; ``None``, and a warning, if it cannot be compiled here."""
    source = Path(__file__).with_name("norm_relu.cpp")
    compiler = os.environ.get("CXX") or "c++"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "norm_relu.so")
        options = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
        command = [
            *shlex.split(compiler),
            *options,
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(target),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
            loaded = ctypes.CDLL(str(target))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            _warn(f"the C++ compiler {compiler!r} says: {said.strip()[-500:]}")
            return None
    long, pointer = ctypes.c_long, ctypes.c_void_p
    matrix: list[Any] = [ctypes.c_int, long, long, pointer, long]
    norm: list[Any] = [pointer, pointer, pointer, pointer, ctypes.c_double]
    rest: dict[str, list[Any]] = {
        "norm_relu": [*norm, pointer],
        "norm_relu_backward": [*norm, pointer, pointer, pointer],
        "norm_relu_backward_add": [*norm, *[pointer] * 4, long, pointer, pointer],
        "correct": [pointer, pointer, long, pointer, pointer, pointer],
    }
    for name, types in rest.items():
        getattr(loaded, name).argtypes = [*matrix, *types]
        getattr(loaded, name).restype = None
    return loaded


# ----------------------------------------------------------------------------------------- GPUs


@functools.cache
def _gpu() -> Any:
    """The kernels for GPUs; ``None``, and a warning, without Triton."""
    try:
        from densenet_tutorial.memory.kernels import gpu
    except ImportError as error:
        _warn(f"Triton cannot be imported: {error}")
        return None
    return gpu


def _warn(reason: str) -> None:
    warnings.warn(
        'memory_efficient="fused" computes as "recompute" does, more slowly, since its kernels '
        f"cannot be compiled here: {reason}",
        stacklevel=2,
    )
