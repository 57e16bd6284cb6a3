"""Two real processes, started by torchrun, against one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from densenet_tutorial import training
from densenet_tutorial.training import run_folder

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


def trained(processes, norms, tmp_path):
    """What `train_in_processes.py` found, by mode; "False" is the plain model."""
    output = tmp_path / f"{norms}-{processes}.json"
    run([*LAUNCH, str(processes), str(HERE / "train_in_processes.py"), norms, str(output)])
    result = json.loads(output.read_text())
    for name in result.keys() - {"shards"}:
        assert result[name]["processes"] == processes
        assert result[name]["same"], "the processes ended with different weights or buffers"
    return result


def assert_follows(two, one, rel=1e-4):
    """Every step's loss, and the test set's loss and accuracy after it."""
    two, one = two["history"], one["history"]
    assert len(two) == 20
    for name in ("train_loss", "test_loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=rel)
    for name in ("train_accuracy", "test_accuracy"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-6)
    assert one[-1]["train_loss"] < one[0]["train_loss"]


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "DENSENET_TUTORIAL_DEVICE", "cpu")


def test_two_processes_follow_one(tmp_path, on_cpu):
    two = trained(2, "frozen", tmp_path)
    assert_follows(two["False"], trained(1, "frozen", tmp_path)["False"])
    assert sorted(i for shard in two["shards"] for i in shard) == list(range(51))
    assert [len(shard) for shard in two["shards"]] == [26, 25]


def test_in_two_processes_each_mode_acts_and_follows_the_plain_model(tmp_path, on_cpu):
    """With ordinary batch norm. That gradients are equal, digit by digit: see `test_memory.py`."""
    found = trained(2, "ordinary", tmp_path)
    plain = found["False"]["kept"]
    for mode, most in (("checkpoint", 0.9), ("recompute", 0.5), ("minimal", 0.2)):
        assert_follows(found[mode], found["False"])
        for kept, usual in zip(found[mode]["kept"], plain, strict=True):
            assert kept < most * usual, mode
        assert found[mode]["warnings"] == [[], []]


def test_in_two_processes_every_mode_steps_aside_for_synchronised_batch_norm(tmp_path, on_cpu):
    found = trained(2, "sync-on-cpu", tmp_path)
    plain = found["False"]
    assert plain["warnings"] == [[], []]
    for mode in ("checkpoint", "recompute", "minimal"):
        assert_follows(found[mode], plain, rel=1e-9)
        assert found[mode]["kept"] == plain["kept"]
    # The first mode that meets it says so, in each process.
    words = "memory_efficient: SyncBatchNorm cannot be recomputed; such layers run as they are"
    assert found["checkpoint"]["warnings"] == [[words], [words]]
    assert found["recompute"]["warnings"] == found["minimal"]["warnings"] == [[], []]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_with_synchronised_batch_norm_two_gpus_follow_one(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "DENSENET_TUTORIAL_DEVICE", "cuda")
    two, one = (trained(processes, "sync", tmp_path)["False"] for processes in (2, 1))
    assert_follows(two, one)


# ------------------------------------------------------------------------------ the command

COMMAND = ["-m", "densenet_tutorial", "train", "--device", "cpu", "--quiet"]
TRAIN = [
    *(*COMMAND, "--model", "densenet_bc", "--blocks", "1,1", "--growth-rate", "2"),
    *("--bn-size", "1", "--augment", "crop", "--epochs", "3", "--batch-size", "100", "--output"),
]

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes under /proc")


def processes_below(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def launched(*arguments, until):
    """A run of two processes, in a session of its own, once it has written the file `until`."""
    process = subprocess.Popen(
        [*LAUNCH, "2", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not until.exists():
            assert process.poll() is None and time.monotonic() < deadline, "it did not begin"
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def assert_same_run(one, other):
    one, other = (run_folder.read_checkpoint(folder / "last.pt") for folder in (one, other))
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    for row in one["history"] + other["history"]:
        del row["seconds"]
    assert one["history"] == other["history"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run([*LAUNCH, "2", *TRAIN, str(folder)])
    return folder


@needs_proc
def test_when_one_process_is_killed_the_others_end_and_resuming_works(whole, tmp_path):
    parts = tmp_path / "parts"
    with launched(*TRAIN, str(parts), until=parts / "metrics.csv") as process:
        workers = processes_below(process.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert len(run_folder.read_run(parts)["history"]) < 3, "it was over before the kill"

    run([*LAUNCH, "2", *COMMAND, "--resume", "--output", str(parts)])
    assert_same_run(whole, parts)


@needs_proc
def test_when_torchrun_is_killed_no_process_trains_on_and_resuming_works(whole, tmp_path):
    parts = tmp_path / "parts"
    with launched(*TRAIN, str(parts), "--epochs", "1000", until=parts / "metrics.csv") as process:
        workers = processes_below(process.pid)
        assert len(workers) == 2
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < killed + 20, "a process trains on"
            time.sleep(0.1)
    state = run_folder.read_run(parts)
    assert state["history"]
    # Nobody holds the folder any more, and the run goes on from where it was.
    more = [*COMMAND, "--resume", "--output", str(parts), "--allow-changes", "--epochs"]
    run([*LAUNCH, "2", *more, str(len(state["history"]) + 1)])
    assert len(run_folder.read_run(parts)["history"]) == len(state["history"]) + 1


def test_ctrl_c_in_the_terminal_stops_all_after_a_step(tmp_path):
    """Each process has it from the terminal, and once more from torchrun."""
    folder = tmp_path / "run"
    with launched(*TRAIN, str(folder), "--epochs", "1000", until=folder / "metrics.csv") as process:
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert (printed + errors).count("stopped after step ") == 1
    assert "stopped at once" not in printed + errors
    assert run_folder.read_run(folder)["step"] > 0


@pytest.fixture
def group_of_one(tmp_path):
    """This process as torchrun would have started it, alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(0.2, "^stopped after step 2 of epoch 1$"), (2.1, "^stopped at once$")],
)
def test_what_torchrun_passes_on_is_no_second_ctrl_c(group_of_one, dataset, seconds, message):
    def twice(module, inputs):
        module.steps = getattr(module, "steps", 0) + 1
        if module.steps == 2:
            signal.raise_signal(signal.SIGINT)
            time.sleep(seconds)
            signal.raise_signal(signal.SIGINT)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 10))
    model.register_forward_pre_hook(twice)
    with pytest.raises(KeyboardInterrupt, match=message):
        training.fit(model, dataset, training.Recipe(epochs=1, batch_size=50), progress=False)


def test_another_number_of_processes_needs_to_be_insisted_on(whole, tmp_path):
    run(["cp", "-r", str(whole), str(tmp_path / "run")])
    more = [*COMMAND, "--resume", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *more], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 2
    assert "processes was 2 and is now 1; to resume all the same, allow changes" in done.stderr
    done = run([sys.executable, *more, "--allow-changes", "--epochs", "4"])
    assert "processes was 2 and is now 1" in done.stderr
    assert "no longer the same, bit for bit" in done.stderr
    history = run_folder.read_run(tmp_path / "run")["history"]
    assert history[:3] == run_folder.read_run(whole)["history"] and len(history) == 4


def refusal(*command):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode != 0
    return done.stderr


def test_what_is_refused_is_said_once(whole, tmp_path):
    errors = refusal(*LAUNCH, "2", *TRAIN, str(tmp_path / "run"), "--batch-size", "33")
    assert errors.count("batch_size must be a multiple of the 2 processes, got 33") == 1
    errors = refusal(*LAUNCH, "2", *TRAIN, str(tmp_path / "run"), "--sync-batch-norm")
    assert errors.count("PyTorch's synchronised batch norm works on GPUs alone") == 1
    assert not (tmp_path / "run").exists()
    errors = refusal(*LAUNCH, "2", *TRAIN, str(tmp_path / "run"), "--lr", "1e30")
    assert errors.count("is not finite any more in epoch 1, after step 50") == 1
    errors = refusal(*LAUNCH, "2", *TRAIN, str(whole))
    assert errors.count("output must be a folder without a run") == 1


def test_a_state_that_fits_one_process_alone_is_refused(whole, tmp_path):
    run(["cp", "-r", str(whole), str(tmp_path / "run")])
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    state["random"][1]["cpu"] = torch.zeros(4)
    torch.save(state, tmp_path / "run" / "last.pt")
    errors = refusal(*LAUNCH, "2", *COMMAND, "--resume", "--output", str(tmp_path / "run"))
    assert errors.count("last.pt does not fit this run: ") == 1


# Two machines are two processes of which each has files of its own: "MINE" is the rank's folder.
ON_TWO_MACHINES = """
import os, sys
from pathlib import Path
from densenet_tutorial.__main__ import main

mine = str(Path(__file__).parent / ("machine" + os.environ["RANK"]))
main([word.replace("MINE", mine) for word in sys.argv[1:]])
"""


@pytest.fixture
def two_machines(tmp_path):
    (tmp_path / "program.py").write_text(ON_TWO_MACHINES)
    for rank in range(2):
        for label in "ab":
            folder = tmp_path / f"machine{rank}" / "images" / label
            folder.mkdir(parents=True)
            for i in range(5):
                Image.new("L", (8, 8), 40 * i + 10 * (label == "b")).save(folder / f"{i}.png")
    return [*LAUNCH, "2", str(tmp_path / "program.py"), *TRAIN[2:], "MINE/run"]


def test_only_the_main_process_needs_the_runs_folder(two_machines, tmp_path):
    options = ["--dataset", "MINE/images", "--batch-size", "2", "--epochs", "1"]
    run([*two_machines, *options])
    assert not (tmp_path / "machine1" / "run").exists()
    run([*two_machines, *options, "--resume", "--allow-changes", "--epochs", "2"])
    assert not (tmp_path / "machine1" / "run").exists()
    assert len(run_folder.read_run(tmp_path / "machine0" / "run")["history"]) == 2


def test_what_is_wrong_on_one_machine_alone_is_said(two_machines, tmp_path):
    options = ["--dataset", "MINE/images", "--batch-size", "2"]
    Image.new("L", (8, 8), 255).save(tmp_path / "machine1" / "images" / "a" / "1.png")
    errors = refusal(*two_machines, *options)
    assert errors.count("all processes must train the same, but in rank 1 dataset.mean was") == 1
    (tmp_path / "machine1" / "images" / "a" / "0.png").write_bytes(b"no image")
    errors = refusal(*two_machines, *options)
    assert errors.count("1 of 10 images cannot be used. The first: ") == 1
    assert "machine1/images/a/0.png" in errors
    assert not (tmp_path / "machine0" / "run").exists()
