"""Several processes that train one model, as ``torchrun`` starts them; with one, nothing happens.

Every process holds the whole model and works on its shard of each batch; DistributedDataParallel
averages the gradients, so all of them take the same step. Chapter 12 teaches it.
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
    """Join the group of processes that ``torchrun`` started, and leave it at the end.

    Tensors on the CPU travel with gloo, tensors on a GPU with NCCL; each process takes the GPU of
    its local rank.
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
    # After an error the others may be elsewhere, so nobody waits for them; torchrun ends them.
    distributed.barrier()
    if torch.cuda.is_available():
        distributed.destroy_process_group()  # with gloo this can hang in torch 2.6


def _end_with(parent: int) -> None:
    """End this process when `parent`, torchrun, is gone: killed, it has told its processes nothing.

    They are asked to stop, as torchrun would, which training does after a step, with a checkpoint.
    (Windows keeps the number of a parent that is gone, so there this waits for ever.)
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)  # as long as torchrun waits
    os._exit(1)


def is_running() -> bool:
    """Whether this process belongs to a group, be it of one."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if is_running() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if is_running() else 1


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files and shows progress."""
    return rank() == 0


def shard(batch: Tensor) -> Tensor:
    """This process's elements of `batch`: every :func:`world_size`-th one, from its rank on."""
    return batch[rank() :: world_size()]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place, and returned."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def all_reduce_any(flag: bool) -> bool:
    """Whether `flag` is set in any process: all of them get the same answer."""
    return bool(all_reduce_sum(torch.tensor(int(flag)))) if world_size() > 1 else flag


def all_gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def on_main_process(function: Callable[[], T]) -> T:
    """What `function` returns on the main process, on all; or the error that it raises, on all."""
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
    """What `function` returns here; or, if it raises an error on any process, that error on all."""
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
    """Give every process rank 0's buffers, such as the running statistics of batch norm.

    DistributedDataParallel does so before each forward pass in training; evaluation and checkpoints
    come after the last one.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def data_parallel(model: nn.Module, sync_batch_norm: bool) -> Callable[[Tensor], Tensor]:
    """What to call for a forward pass whose backward pass averages gradients over all processes.

    Args:
        model: changed in place if `sync_batch_norm`: batch norm then takes the statistics of the
            whole batch and not of this process's shard.
        sync_batch_norm: whether to do that; it needs GPUs.

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
