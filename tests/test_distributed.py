"""Two real processes, started by torchrun, against one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from densenet_tutorial import memory
from densenet_tutorial.training import distributed, run_folder

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(command, **options):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=ENVIRONMENT,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def history(processes, norm, tmp_path):
    output = tmp_path / f"{norm}-{processes}.json"
    run([*LAUNCH, str(processes), str(HERE / "train_in_processes.py"), norm, str(output)])
    result = json.loads(output.read_text())
    assert result["processes"] == processes
    assert result["same"], "the processes ended with different weights or buffers"
    return result["history"]


def assert_follows(two, one):
    """Every step's loss, and the test set's loss and accuracy after it."""
    assert len(two) == 20
    for name in ("train_loss", "test_loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)
    for name in ("train_accuracy", "test_accuracy"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-6)
    assert one[-1]["train_loss"] < one[0]["train_loss"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return history(1, "frozen", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("norm", ["frozen", *(m for m in memory.MODES if isinstance(m, str))])
def test_two_processes_follow_one(norm, one_process, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "DENSENET_TUTORIAL_DEVICE", "cpu")
    assert_follows(history(2, norm, tmp_path), one_process)


def test_with_ordinary_batch_norm_all_processes_evaluate_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "DENSENET_TUTORIAL_DEVICE", "cpu")
    rows = history(2, "ordinary", tmp_path)  # weights and running statistics are compared in there
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_with_synchronised_batch_norm_two_gpus_follow_one(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "DENSENET_TUTORIAL_DEVICE", "cuda")
    assert_follows(history(2, "sync", tmp_path), history(1, "sync", tmp_path))


def test_shares_are_the_whole_without_overlap(monkeypatch):
    whole, shares = torch.arange(51), []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "size", lambda: 4)
        shares.append(distributed.share(whole))
    assert torch.equal(torch.cat(shares).sort().values, whole)


# ------------------------------------------------------------------------------ the command

TRAIN = [
    *("-m", "densenet_tutorial", "train", "--device", "cpu", "--quiet", "--model", "densenet_bc"),
    *("--blocks", "1,1", "--growth-rate", "2", "--bn-size", "1", "--augment", "crop"),
    *("--epochs", "3", "--batch-size", "100", "--output"),
]


def processes_below(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes under /proc")
def test_when_one_process_is_killed_the_others_end_and_resuming_works(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run([*LAUNCH, "2", *TRAIN, str(whole)])

    launched = subprocess.Popen(
        [*LAUNCH, "2", *TRAIN, str(parts)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (parts / "last.pt").exists():
        assert launched.poll() is None and time.monotonic() < deadline, "no first epoch"
        time.sleep(0.02)
    workers = processes_below(launched.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, errors = launched.communicate(timeout=120)
    assert launched.returncode != 0
    assert "SIGKILL" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not run_folder.read_checkpoint(parts / "last.pt")["history"][2:], (
        "it was over before the kill"
    )

    run([*LAUNCH, "2", "-m", "densenet_tutorial", "train", "--device", "cpu", "--quiet", "--resume", "--output", str(parts)])  # fmt: skip
    one, other = (run_folder.read_checkpoint(folder / "last.pt") for folder in (whole, parts))
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    for row in one["history"] + other["history"]:
        del row["seconds"]
    assert one["history"] == other["history"]


def refusal(*command):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode != 0
    return done.stderr


def test_what_is_refused_is_said_once(tmp_path):
    errors = refusal(*LAUNCH, "2", *TRAIN, str(tmp_path / "run"), "--batch-size", "33")
    assert errors.count("batch_size must be a multiple of the 2 processes, got 33") == 1
    errors = refusal(*LAUNCH, "2", *TRAIN, str(tmp_path / "run"), "--sync-batch-norm")
    assert errors.count("PyTorch's synchronised batch norm works on GPUs alone") == 1
    assert not (tmp_path / "run").exists()
