"""Training one model in several processes, started by ``torchrun``.

Every process holds the whole model and computes its shard of each batch; DistributedDataParallel
averages the gradients, so all processes take the same step. In a single process the functions here
communicate nothing. Chapter 12 explains it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Initialise the process group under ``torchrun``, and destroy it at the end.

    The backend is gloo for tensors on the CPU and NCCL for tensors on a GPU; each process uses the
    GPU of its local rank.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group(backend)
    yield
    # Not after an error, when the others may be elsewhere: torchrun ends them.
    distributed.barrier()
    if torch.cuda.is_available():
        distributed.destroy_process_group()  # with gloo this can hang in torch 2.6


def _end_with(parent: int) -> None:
    """Stop this process when `parent`, torchrun, was killed and could not stop its processes.

    Sends SIGTERM, as torchrun would, so that training stops after a step with a checkpoint. (On
    Windows the parent's id does not change, so there this has no effect.)
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)  # as long as torchrun waits
    os._exit(1)


def is_running() -> bool:
    """Whether this process belongs to a process group."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The rank of this process, from 0."""
    return distributed.get_rank() if is_running() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if is_running() else 1


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files and shows progress."""
    return rank() == 0


def shard(batch: Tensor) -> Tensor:
    """This process's elements of `batch`: every :func:`world_size`-th one, starting at its rank."""
    return batch[rank() :: world_size()]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all processes, in place, and return it."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def all_reduce_any(flag: bool) -> bool:
    """Whether `flag` is true in any process; the result is the same in all."""
    return bool(all_reduce_sum(torch.tensor(int(flag)))) if world_size() > 1 else flag


def all_gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def on_main_process(function: Callable[[], T]) -> T:
    """Call `function` on the main process; return its result, or raise its error, on all."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome = [function(), None]
        except (ValueError, OSError) as error:
            outcome = [None, error]
    distributed.broadcast_object_list(outcome, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_all_processes(function: Callable[[], T]) -> T:
    """Call `function` on all processes; if it raises an error on any of them, raise it on all."""
    if world_size() == 1:
        return function()
    result = own = None
    try:
        result = function()
    except (ValueError, OSError) as error:
        own = error
    for found in [own, *all_gather(own)]:
        if found is not None:
            raise found
    return result  # type: ignore[return-value]


def broadcast_buffers(model: nn.Module) -> None:
    """Broadcast rank 0's buffers, such as the running statistics of batch norm.

    DistributedDataParallel does so before each forward pass in training, but not after the last.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def data_parallel(model: nn.Module, sync_batch_norm: bool) -> Callable[[Tensor], Tensor]:
    """`model` wrapped in DistributedDataParallel if there are several processes.

    Args:
        model: changed in place if `sync_batch_norm`.
        sync_batch_norm: whether batch norm uses the statistics of the whole batch instead of this
            process's shard; it needs GPUs.

    Raises:
        ValueError: `sync_batch_norm` on a CPU.
    """
    device = next(model.parameters()).device
    if sync_batch_norm and device.type != "cuda":
        raise ValueError(
            "sync_batch_norm must be False on this device: PyTorch's synchronised batch norm works "
            f"on GPUs alone, got True on {device.type!r}"
        )
    if world_size() == 1:
        return model
    if sync_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, [device] if device.type == "cuda" else None)
