"""Several processes that train one model, as ``torchrun`` starts them; with one process, nothing happens here.

Every process holds the whole model and works on its share of each batch; DistributedDataParallel averages the
gradients, so all of them take the same step. Chapter 12 teaches it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the group of processes that ``torchrun`` started, and leave it at the end.

    Tensors on the CPU travel with gloo, tensors on a GPU with NCCL; each process takes the GPU of its local rank.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group(backend)
    yield
    # After an error the others may be elsewhere, so nobody waits for them; torchrun ends them.
    distributed.barrier()
    if torch.cuda.is_available():
        distributed.destroy_process_group()  # NCCL wants to be told; with gloo this can hang in torch 2.6


def _started() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _started() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _started() else 1


def is_writer() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def share(batch: Tensor) -> Tensor:
    """This process's elements of `batch`: every :func:`size`-th one. All shares together are the whole, once."""
    return batch[rank() :: size()]


def add_up(sums: Tensor) -> Tensor:
    """The sum of `sums` over all processes, in place, and returned."""
    if size() > 1:
        distributed.all_reduce(sums)
    return sums


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process: all of them get the same answer."""
    return bool(add_up(torch.tensor(int(flag)))) if size() > 1 else flag


def gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank."""
    values = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers, such as the running statistics of batch norm.

    DistributedDataParallel does so before each forward pass in training; evaluation and checkpoints come after the
    last one.
    """
    if size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def parallel(model: nn.Module, sync_batch_norm: bool) -> Callable[[Tensor], Tensor]:
    """What to call for a forward pass whose backward pass averages gradients over all processes.

    Args:
        model: changed in place if `sync_batch_norm`: batch norm then takes the statistics of the whole batch and
            not of this process's share.
        sync_batch_norm: whether to do that; it needs GPUs.

    Raises:
        ValueError: `sync_batch_norm` on a CPU.
    """
    device = next(model.parameters()).device
    if sync_batch_norm and device.type != "cuda":
        raise ValueError(
            "sync_batch_norm must be False on this device: PyTorch's synchronised batch norm works on GPUs "
            f"alone, got True on {device.type!r}"
        )
    if size() == 1:
        return model
    if sync_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, [device] if device.type == "cuda" else None)
