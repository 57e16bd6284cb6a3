"""Started by torchrun from `test_distributed.py`: python train_in_processes.py NORMS OUTPUT

Trains on 64 images, a batch of all of them a step, for 20 steps, so that the history holds every
step's loss. NORMS is `frozen` (batch norm that only scales and shifts), `sync` (on GPUs),
`ordinary`, or `sync-on-cpu`: with the last two, one model after another for each mode of
`memory_efficient`, all from the same weights.
"""

import dataclasses
import json
import sys
import warnings

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_tutorial import DenseNet, data, memory, training
from densenet_tutorial.training import distributed
from densenet_tutorial.utils import environment


class Sum(torch.autograd.Function):
    """The sum over all processes, and of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return distributed.all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx, grad):
        return distributed.all_reduce_sum(grad.clone())


class SyncOnCpu(nn.SyncBatchNorm):
    """What SyncBatchNorm computes, whose own kernels need GPUs."""

    def forward(self, x):
        if not self.training:
            return nn.BatchNorm2d.forward(self, x)
        n = x.numel() // x.shape[1] * distributed.world_size()
        mean, square = Sum.apply(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])) / n
        var = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        shape = (1, -1, 1, 1)
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)


def freeze(module):
    """Put a batch norm that only scales and shifts in the place of every other one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        freeze(child)


class Measured(nn.Module):
    """A model, and the bytes that autograd keeps of its first forward pass in training."""

    def __init__(self, model, sync_on_cpu):
        super().__init__()
        self.model, self.sync_on_cpu, self.kept = model, sync_on_cpu, None

    def forward(self, x):
        if self.kept is not None or not self.training:
            return self.model(x)
        if self.sync_on_cpu:  # not before: DistributedDataParallel takes no such norm on a CPU
            for module in self.model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = SyncOnCpu
        parameters = {p.data_ptr() for p in self.model.parameters()}
        storages = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage  # held: no other one gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = self.model(x)
        self.kept = sum(storage.nbytes() for storage in storages.values())
        return output


def train(norms, mode):
    """What a run leaves behind, and what has been warned of meanwhile, in this process."""
    full = data.load_dataset("fashion-mini")
    dataset = dataclasses.replace(
        full,
        train_images=full.train_images[:64],
        train_labels=full.train_labels[:64],
        test_images=full.test_images[:51],  # not a multiple of the processes
        test_labels=full.test_labels[:51],
    )
    torch.manual_seed(0)
    model = DenseNet(
        4, (2, 2), 8, num_classes=10, memory_efficient=mode, in_channels=1, stem="cifar"
    )
    if norms == "frozen":
        freeze(model)
    recipe = training.Recipe(
        epochs=20, batch_size=64, lr=0.02, schedule="cosine", sync_batch_norm=norms == "sync"
    )
    measured = Measured(model, norms == "sync-on-cpu").to(environment.device())
    with warnings.catch_warnings(record=True) as caught:
        history = training.fit(measured, dataset, recipe, progress=False)
    weights = torch.cat([v.flatten().float().cpu() for v in model.state_dict().values()])
    every = distributed.all_gather(weights)
    return {
        "history": history,
        "processes": distributed.world_size(),
        "same": all(torch.equal(every[0], other) for other in every),
        "kept": distributed.all_gather(measured.kept),
        "warnings": distributed.all_gather([str(warning.message) for warning in caught]),
    }


def main(norms, output):
    modes = [False]
    if norms in ("ordinary", "sync-on-cpu"):
        modes = [mode for mode in memory.MODES if mode is not True]
    with distributed.process_group():
        results = {str(mode): train(norms, mode) for mode in modes}
        shards = distributed.all_gather(distributed.shard(torch.arange(51)).tolist())
        if distributed.is_main_process():
            with open(output, "w") as file:
                json.dump(results | {"shards": shards}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
