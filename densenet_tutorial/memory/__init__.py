"""Memory-efficient training: less is kept between the forward and the backward pass.

Network and weights are the same in every mode, outputs and gradients up to rounding.

| mode | numbers that a dense block keeps, per pixel | recomputed |
|---|---|---|
| ``False`` | 2 L k0 + k L (L - 1) + 8 k L | nothing |
| ``"checkpoint"``, ``True`` | 8 k L + k (L - 1) | concatenation, first norm and ReLU |
| ``"recompute"`` | k0 + 5 k L | norms and ReLUs |
| ``"minimal"`` | k0 + k L | the 1x1 convolutions as well |
| ``"fused"`` | k0 + 5 k L | norms and ReLUs, in channels_last in one pass: the fastest |

Chapter 07 builds it up; what is special about ``"fused"``, chapter 11.
"""

from torch import nn

from densenet_tutorial.layers import DenseBlock
from densenet_tutorial.memory.measure import saved_activation_bytes
from densenet_tutorial.memory.variants import VARIANTS
from densenet_tutorial.utils import arguments

#: The values of the argument ``memory_efficient``; ``True`` means ``"checkpoint"``.
MODES = (False, True, *VARIANTS)

#: The plain class of each variant.
PLAIN = {variant: plain for variants in VARIANTS.values() for plain, variant in variants.items()}


@arguments.check(model=arguments.module, mode=arguments.one_of(MODES))
def set_memory_efficient(model: nn.Module, mode: bool | str) -> nn.Module:
    """Set the memory-efficient mode of all dense layers, blocks and transitions in `model`.

    The classes of modules are changed in place. Parameters, buffers, hooks, names and
    ``state_dict`` keys stay.

    Args:
        model: a :class:`DenseNet`, or any module that is or contains one of our layers, blocks or
            transitions.
        mode: one of :data:`MODES`; ``False`` for the plain layers.

    Returns:
        `model`.

    Raises:
        ValueError: there is no such mode, or `model` contains none of our modules.

    Outputs, gradients and buffers are those of the plain model. All modes but ``"checkpoint"``
    pool before the convolution of a transition, so they round otherwise: the results page says
    by how much, and that they are as close to float64 as the plain model's. So do the kernels of
    ``"fused"``.

    Limits:

    - ``"fused"`` is ``"recompute"`` but where its kernels can compute: model and images in
      ``torch.channels_last``, in float32 without autocast, or on a GPU also in float16 or bfloat16;
      norms with weights that normalise by the batch and have a momentum; blocks without dropout.
      The kernels are compiled when they are first needed, on a CPU by a C++ compiler with OpenMP
      (``c++``, or what ``CXX`` names), on a GPU by Triton. Without these, ``"recompute"`` runs,
      with one warning. On a GPU, most of the time is that of starting kernels unless a CUDA graph
      does so: see ``torch.cuda.make_graphed_callables``. In the backward pass, what a block saved
      comes back all at once.
    - without gradients (``torch.no_grad()``): nothing is kept in any mode.
    - ``torch.compile``, ``torch.export``, ``torch.fx``, tracing: the plain layers run;
      ``torch.compile`` warns once. ``torch.jit.script`` raises an error.
    - transforms of ``torch.func``, forward-mode derivatives: the plain layers run.
    - hooks on a module, global hooks, or a patched method of the forward pass: that module runs as
      it is and keeps as much as the plain one; so does a block with a hook on one of its layers.
    - a norm, ReLU or convolution of another class, with a bias, reparametrised or pruned:
      likewise; for ``SyncBatchNorm`` with one warning.
    - a subclass of our layers, a subclass of ``torch.Tensor``: likewise.
    - devices other than CPU and CUDA: the plain layers run, with one warning.
    - gradients of gradients, batches of gradients (``is_grads_batched``): correct; the backward
      pass then keeps as much as the plain one.
    - a weight that is changed in place between the passes: the usual RuntimeError; not noticed if
      it is changed through ``.data``, as in the plain model.
    - the output of a block that is changed in place: a RuntimeError in ``"recompute"``,
      ``"minimal"`` and ``"fused"``, whose layers need it; clone it first.
    - hooks that copy saved tensors (``save_on_cpu``): they copy each layer's view of the buffer
      separately, so DenseNet-121 at 224 pixels takes 61 MiB an image with ``"recompute"`` instead
      of 26 (plain: 183 instead of 124).
    - ``torch.utils.checkpoint`` around the model: the forward pass runs twice and updates running
      statistics twice, as in the plain model.
    """
    variants = VARIANTS["checkpoint" if mode is True else mode] if mode else {}
    found = False
    for module in model.modules():
        plain = PLAIN.get(type(module), type(module))
        if plain is nn.Sequential and not any(isinstance(m, DenseBlock) for m in module.children()):
            continue  # not a sequence of ours
        if plain in VARIANTS["recompute"]:
            module.__class__ = variants.get(plain, plain)
            found = True
    if not found:
        raise ValueError(
            "model must hold a DenseLayer, DenseBlock or Transition of this package (not a "
            f"subclass, nor torchvision's), got a {type(model).__name__} without one"
        )
    return model


__all__ = ["MODES", "VARIANTS", "saved_activation_bytes", "set_memory_efficient"]
