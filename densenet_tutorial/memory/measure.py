"""How much memory autograd holds between the forward and the backward pass."""

import torch
from torch import Tensor, nn

from densenet_tutorial.utils import arguments


@arguments.check(model=arguments.module, input=arguments.instance_of(Tensor, "a tensor"))
def saved_activation_bytes(model: nn.Module, input: Tensor) -> int:
    """Bytes that autograd holds between ``model(input)`` and its backward pass, on any device.

    Each storage counts once and whole, however many tensors use it. Parameters, buffers and `input`
    do not count: they exist in any case. `model` is run once, in its present mode, with copies of
    its buffers, which are not changed.
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
