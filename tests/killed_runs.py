"""Trains in child processes that are killed; `test_runs.py` starts it.

    python killed_runs.py FOLDER SECONDS…    kill a child after each of these, then let one finish
    python killed_runs.py FOLDER replace N   kill children at the 1st, 2nd, … N-th file that they finish writing

Children are forked, so that torch is imported once and a child can be killed early and often.
"""

import os
import signal
import sys
import time

import torch

from densenet_tutorial import DenseNet, data, training

RECIPE = training.Recipe(epochs=5, batch_size=20, augment=("crop", "flip", "cutout"))


def train(folder):
    full = data.load_dataset("fashion-mini")
    few = {name: getattr(full, name)[:100] for name in ("train_images", "train_labels")}
    few |= {name: getattr(full, name)[:50] for name in ("test_images", "test_labels")}
    torch.manual_seed(0)
    model = DenseNet(4, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar", drop_rate=0.1)
    dataset = data.ImageDataset("few", **few, classes=full.classes, mean=full.mean, std=full.std)
    training.fit(model, dataset, RECIPE, output=folder, resume=True, progress=False)


def die_at_replace(number):
    """Let this process be killed when it is about to give a finished file its name for the `number`-th time."""
    replace, count = os.replace, 0

    def counted(*paths):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    os.replace = counted


def child(folder, seconds=None, at_replace=None):
    """Train in a child process that is killed; return whether it was."""
    pid = os.fork()
    if pid == 0:
        if at_replace:
            die_at_replace(at_replace)
        train(folder)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a child failed")
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *when = sys.argv[1:]
    if when[:1] == ["replace"]:
        killed = sum(child(folder, at_replace=n) for n in range(1, int(when[1]) + 1))
    else:
        killed = sum(child(folder, float(seconds)) for seconds in when)
    child(folder)
    print(killed)
