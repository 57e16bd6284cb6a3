"""Results of two computations that are to be equal, and where that holds to the last bit.

Where the same kernels run on the same numbers, tests use `torch.equal` on any machine. Where two
ways of computing one number are compared (a mode of `memory_efficient` and the plain model, say),
all digits agree only if the compiler fused the same multiplications with additions in both. That is
known of PyTorch's builds for x86; elsewhere, rounding is allowed for. Such tests call
:func:`assert_exact`.
"""

import platform

import torch

ON_X86 = platform.machine() in ("x86_64", "AMD64")


def assert_exact(found, expected, name=""):
    """Raise an error unless both are ``None``, or equal: to the last bit on x86, else nearly."""
    assert (found is None) == (expected is None), name
    if found is not None and ON_X86:
        assert torch.equal(found, expected), name
    elif found is not None:
        assert_near(found, expected, name)


def assert_near(found, expected, name=""):
    """Raise an error unless both are equal but for rounding in float32."""
    error = (found.double() - expected.double()).norm()
    assert error <= 1e-5 * expected.double().norm() + 1e-7, name
