"""Started by torchrun from `test_distributed.py`: python train_in_processes.py NORM OUTPUT

Trains on 64 images, a batch of all of them a step, for 20 steps, so that the history holds every
step's loss. NORM is `frozen` (batch norm that only scales and shifts), `ordinary`, `sync` (on
GPUs), or a mode of `memory_efficient` (with ordinary batch norm).
"""

import dataclasses
import json
import sys

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_tutorial import DenseNet, data, training
from densenet_tutorial.training import distributed
from densenet_tutorial.utils import environment


def freeze(module):
    """Put a batch norm that only scales and shifts in the place of every other one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        freeze(child)


def kept(model, images):
    """Bytes that autograd keeps of a training step's forward pass."""
    found = {}

    def note(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return sum(found.values()) * bool(output.numel())


def main(norm, output):
    with distributed.process_group():
        full = data.load_dataset("fashion-mini")
        dataset = dataclasses.replace(
            full,
            train_images=full.train_images[:64],
            train_labels=full.train_labels[:64],
            test_images=full.test_images[:51],  # not a multiple of the processes
            test_labels=full.test_labels[:51],
        )
        torch.manual_seed(0)
        mode = norm if norm not in ("frozen", "ordinary", "sync") else False
        model = DenseNet(
            4, (2, 2), 8, num_classes=10, memory_efficient=mode, in_channels=1, stem="cifar"
        )
        if norm == "frozen":
            freeze(model)
        recipe = training.Recipe(
            epochs=20, batch_size=64, lr=0.02, schedule="cosine", sync_batch_norm=norm == "sync"
        )
        model.to(environment.device())
        images = dataset.normalize(dataset.train_images[:8]).to(environment.device())
        bytes_kept = kept(model, images)
        history = training.fit(model, dataset, recipe, progress=False)
        weights = torch.cat([v.flatten().float().cpu() for v in model.state_dict().values()])
        every = distributed.all_gather(weights)
        shards = distributed.all_gather(distributed.shard(torch.arange(51)).tolist())
        if distributed.is_main_process():
            result = {
                "history": history,
                "processes": distributed.world_size(),
                "same": all(torch.equal(every[0], other) for other in every),
                "shards": shards,
                "kept": bytes_kept,
            }
            with open(output, "w") as file:
                json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
