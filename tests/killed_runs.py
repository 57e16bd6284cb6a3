"""Trains in child processes that are killed, or two at a time; `test_run_folder.py` starts it.

    python killed_runs.py FOLDER SECONDS…    kill a child after each of these, then let one finish
    python killed_runs.py FOLDER everywhere  kill children at the 1st, 2nd, … file that they open to
                                             write, rename or remove, until one finishes
    python killed_runs.py FOLDER pairs N     N times, two children at once in one new folder
    python killed_runs.py FOLDER hold        train, and never end

Children are forked, so that torch is imported once and a child can be killed early and often.
"""

import os
import signal
import sys
import time

import torch

from densenet_tutorial import DenseNet, data, training

RECIPE = training.Recipe(epochs=5, batch_size=20, augment=("crop", "flip", "cutout"))


def train(folder, resume=True, recipe=RECIPE):
    full = data.load_dataset("fashion-mini")
    few = {name: getattr(full, name)[:100] for name in ("train_images", "train_labels")}
    few |= {name: getattr(full, name)[:50] for name in ("test_images", "test_labels")}
    torch.manual_seed(0)
    model = DenseNet(4, (1, 1), 8, num_classes=10, in_channels=1, stem="cifar", drop_rate=0.1)
    dataset = data.ImageDataset("few", **few, classes=full.classes, mean=full.mean, std=full.std)
    training.fit(model, dataset, recipe, output=folder, resume=resume, progress=False)


def die_at(folder, number):
    """Let this process be killed when it is about to change a file in `folder` the `number`-th
    time.
    """
    count = 0

    def watch(event, arguments):
        nonlocal count
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link")
        if (writing or changes) and str(arguments[0]).startswith(folder):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def forked(function, *arguments):
    """A child process that calls `function`; it ends with status 3 if that is refused."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        except ValueError as error:
            print(error, file=sys.stderr)
            os._exit(3)
        except BaseException as error:  # noqa: BLE001 a child never goes on as its parent
            print(repr(error), file=sys.stderr)
            os._exit(4)
        os._exit(0)
    return pid


def killed(pid):
    """Wait for a child; return whether it was killed, and end the program if it failed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a child failed")
    return os.WIFSIGNALED(status)


def train_until(folder, number):
    die_at(folder, number)
    train(folder)


def pair(folder):
    """The exit statuses of two children that begin at once."""
    pids = [forked(train, folder, False) for _ in range(2)]
    return sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


def main(folder, what="", *more):
    if what == "everywhere":
        count = 1
        while killed(forked(train_until, folder, count)):
            count += 1
        print(count - 1)
    elif what == "pairs":
        for number in range(int(more[0])):
            print(*pair(os.path.join(folder, str(number))))
    elif what == "hold":
        train(folder, recipe=training.Recipe(epochs=10**6, batch_size=20))
    else:
        count = 0
        for seconds in [what, *more] if what else []:
            pid = forked(train, folder)
            time.sleep(float(seconds))
            os.kill(pid, signal.SIGKILL)
            count += killed(pid)
        killed(forked(train, folder))
        print(count)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
