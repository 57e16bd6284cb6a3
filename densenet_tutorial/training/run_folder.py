"""The folder of a training run: its files, its lock, and resuming from it.

``last.pt`` holds the complete state of the run; the other files are derived from it, for people.
"""

import contextlib
import csv
import io
import json
import logging
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from densenet_tutorial.training import distributed
from densenet_tutorial.training.recipe import Recipe
from densenet_tutorial.utils import files
from densenet_tutorial.weights import files as tensor_files
from densenet_tutorial.weights.layouts import CHECKPOINT_FORMAT, is_checkpoint

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_log = logging.getLogger(__name__)

#: The files that a run writes. Other files in its folder are ignored.
FILES = ("last.pt", "config.json", "best.pt", "metrics.csv", "curves.png")

#: Parts of the configuration that may change with ``allow_changes``; the data set may not.
_CHANGEABLE = ("recipe", "model", "device", "processes")

_INSIST = "to resume all the same, allow changes (on the command line: --allow-changes)"


class RunFolder:
    """The files of a run.

    - ``last.pt``: the configuration and the complete training state. Written at the start, after
      each epoch and when the run is stopped, before the other files.
    - ``config.json``: the configuration: data set, model, recipe, device, processes, and an id.
    - ``best.pt``: the model of the epoch with the best test accuracy. It was selected on the test
      images, so its accuracy on them is too optimistic: report the last epoch's.
    - ``metrics.csv``: one row per epoch.
    - ``curves.png``: plots of loss and accuracy.

    The main process reads and writes them, and locks the folder meanwhile.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self._best_accuracy = -1.0  # of the model in best.pt
        self._failed: set[str] = set()

    def enter(
        self, stack: contextlib.ExitStack, resume: bool, allow_changes: bool
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """Lock the folder until `stack` is closed.

        Returns:
            The state to resume from, or ``None`` for a new run; and the changes since.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(self.path))
        except OSError as error:
            raise OSError(error.errno, f"output: {error.strerror}", str(self.path)) from error
        state = read_run(self.path, resume=resume, allow_changes=allow_changes)
        if state is None:
            self.config["id"] = uuid.uuid4().hex
            return None, []
        changes = self._changes(state, allow_changes)
        if (self.path / "best.pt").exists():
            with _named(self.path / "best.pt"):
                best = read_checkpoint(self.path / "best.pt")["metrics"]
                self._best_accuracy = float(best["test_accuracy"])
        return state, changes

    def _changes(self, state: dict[str, Any], allowed: bool) -> list[str]:
        """Record the differences between the configuration and that in `state`, or refuse them."""
        old = state["config"]
        found = differences(old, self.config)
        never = [what for what in found if not what.startswith(_CHANGEABLE)]
        if never or (found and not allowed):
            raise ValueError(
                f"a resumed run must keep its configuration ({self.path / 'config.json'}), but "
                f"{(never or found)[0]}; "
                + ("a new run can begin with this one's weights" if never else _INSIST)
            )
        self.config |= {name: old[name] for name in ("id", "changes") if name in old}
        if found:
            change = {"epoch": len(state["history"]) + 1, "step": state["step"], "changed": found}
            self.config["changes"] = [*old.get("changes", []), change]
            _log.warning(
                "%s: %s; from here on its results are no longer the same, bit for bit",
                self.path,
                ", ".join(found),
            )
        return found

    def save(self, training: Any) -> None:
        """Write all files; every process must call this.

        Raises:
            ValueError: the loss, a weight or a momentum is not finite.
            OSError: for example, the disk is full. In both cases the old checkpoint is kept.
        """
        state = training.state_dict()
        if distributed.is_main_process():
            write_checkpoint(self.path / "last.pt", state, self.config)
            self.write_for_people(state)

    def write_for_people(self, state: dict[str, Any]) -> None:
        """Write the files that are derived from `state`. A failure does not stop the run."""
        history = state["history"]
        self._attempt("config.json", lambda: (json.dumps(self.config, indent=2) + "\n").encode())
        if history:
            self._attempt("metrics.csv", lambda: _table(history).encode())
            self._attempt("curves.png", lambda: _curves(history))
        if history and state["step"] == 0:  # an epoch has ended
            best = history[-1]["test_accuracy"]
            content = {"model": state["model"], "metrics": history[-1]}
            if best > self._best_accuracy and self._attempt(
                "best.pt", lambda: _packed(content, self.config)
            ):
                self._best_accuracy = best

    def _attempt(self, name: str, content: Callable[[], bytes | memoryview]) -> bool:
        """Write the file `name` if its content has changed; after a failure, warn once."""
        path = self.path / name
        try:
            new = content()
            if not path.is_file() or path.read_bytes() != new:
                files.write(path, new)
        except Exception as error:  # noqa: BLE001 drawing may fail in any way
            if name not in self._failed:
                _log.warning("the run continues, but %s could not be written: %s", name, error)
            self._failed.add(name)
            return False
        return True


class NoFolder:
    """Replaces a :class:`RunFolder` in a run that writes no files."""

    def save(self, training: Any) -> None:
        """Do nothing."""


@contextlib.contextmanager
def open_folder(
    output: str | os.PathLike[str] | None,
    training: Any,
    about: dict[str, Any],
    resume: bool = False,
    allow_changes: bool = False,
) -> Iterator[RunFolder | NoFolder]:
    """Start a run in the folder `output`, or resume from its ``last.pt``; lock it meanwhile.

    Args:
        output: its path, which is created if necessary; ``None`` to write no files.
        training: the :class:`Training`, whose ``load_state_dict`` is called to resume.
        about: additions to ``training.config()``.
        resume: whether to resume the run in the folder; if there is none, a new one starts.
        allow_changes: whether to resume with a changed configuration, or without ``best.pt``.

    Raises:
        ValueError: the folder is locked; or it holds a run, and `resume` is false; or this run is
            damaged, incomplete, or not the one in `training`.
        OSError: the folder cannot be written to.
    """
    config = _as_json(training.config() | about)
    for rank, other in enumerate(distributed.all_gather(config)):
        if found := differences(config, other):
            raise ValueError(f"all processes must train the same, but in rank {rank} {found[0]}")
    if output is None:
        yield NoFolder()
        return
    folder = RunFolder(Path(output), config)
    with contextlib.ExitStack() as stack:
        state, changes = distributed.on_main_process(
            lambda: folder.enter(stack, resume, allow_changes)
        )

        def load() -> None:
            with _named(folder.path / "last.pt"):
                training.load_state_dict(state)

        if state is not None:
            distributed.on_all_processes(load)
        if state is None or changes:
            folder.save(training)
        elif distributed.is_main_process():
            folder.write_for_people(state)
        yield folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder` against all other processes and threads.

    The operating system's lock on a file ends with the process. Over NFS it works between machines
    if the server supports it. Without locks in the file system, this warns and continues.

    Raises:
        ValueError: the folder is locked already.
        OSError: the file cannot be created.
    """
    path = folder / ".lock"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(file)
            raise ValueError(
                f"output must be a folder in which no run is under way, got {str(folder)!r}"
            ) from None
        except OSError as error:
            _log.warning("%s: nothing keeps a second run out (%s)", folder, error.strerror)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)  # its owner removed it after we opened it
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove open files
            path.unlink()
        os.close(file)


def read_run(
    folder: str | os.PathLike[str], *, resume: bool = True, allow_changes: bool = False
) -> dict[str, Any] | None:
    """The content of ``last.pt`` of the run in `folder`, or ``None`` if there is no run.

    Raises:
        ValueError: there is a run and `resume` is false; or it is damaged or incomplete, or its
            files belong to different runs.
    """
    folder = Path(folder)
    last, config_file, best = (folder / name for name in ("last.pt", "config.json", "best.pt"))
    present = [name for name in FILES if os.path.lexists(folder / name)]
    if not present:
        return None
    if not resume:
        raise ValueError(
            f"output must be a folder without a run, got {str(folder)!r}, which holds one "
            f"({present[0]}); choose another or resume it"
        )
    if "last.pt" not in present:
        raise ValueError(f"{last} is missing, and without it the run cannot be resumed")
    state = read_checkpoint(last)
    with _named(last):
        _check_form(state)
        state["config"] = _as_json(state["config"])
        Recipe(**state["config"]["recipe"])
    history, config = state["history"], state["config"]
    if "config.json" in present:
        theirs = read_config(folder)
        if theirs.get("id") != config.get("id"):
            raise ValueError(f"{last} is of another run than {config_file}")
        if (found := differences(config, theirs)) and not allow_changes:
            raise ValueError(
                f"{config_file} has been changed: {found[0]}; restore it. To resume with "
                "other settings, pass them as options"
            )
    elif history or state["step"]:  # otherwise it was interrupted at its start
        raise ValueError(f"{config_file} is missing; it says which run this is")
    if "best.pt" in present:
        with _named(best):
            if read_checkpoint(best)["config"].get("id") != config.get("id"):
                raise ValueError("it is of another run than last.pt")
    elif history and not allow_changes:
        epoch = max(history, key=lambda row: row["test_accuracy"])["epoch"]
        if state["step"] or epoch < len(history):  # otherwise it is derived from last.pt
            raise ValueError(f"{best} is missing, with the weights of epoch {epoch}; {_INSIST}")
    return state


def _check_form(state: dict[str, Any]) -> None:
    """Refuse a checkpoint without the state of a run."""
    kinds: dict[str, type] = {
        "config": dict,
        "model": dict,
        "optimizer": dict,
        "scheduler": dict,
        "scaler": dict,
    }
    kinds |= {"random": list, "history": list, "step": int, "sums": list, "seconds": float}
    if wrong := [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]:
        raise ValueError(f"it holds no run to resume: {wrong[0]!r} is missing or of a wrong type")
    for number, row in enumerate(state["history"], start=1):
        if (
            not isinstance(row, dict)
            or row.get("epoch") != number
            or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in row.values())
            or not {"test_accuracy", "test_loss", "train_accuracy", "train_loss"} <= row.keys()
        ):
            raise ValueError(
                f"its history must have a row for each epoch, got {row!r} as row {number}"
            )


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration in ``config.json`` of the run in `folder`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = Path(folder) / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the configuration of a run: {error}") from error


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Differences between two configurations, as sentences; ids and folders are ignored."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [key for key in old | new if f"{name}.{key}" not in (".id", ".changes")]
        names = [key for key in names if (name, key) != ("dataset", "folder")]
        parts = (differences(old.get(k), new.get(k), f"{name}.{k}".lstrip(".")) for k in names)
        return [what for part in parts for what in part]
    return [] if old == new else [f"{name} was {old!r} and is now {new!r}"]


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """`config` after a round trip through JSON."""
    return json.loads(json.dumps(config))


def _table(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _curves(history: list[dict[str, float]]) -> bytes:
    from densenet_tutorial import figures  # imports matplotlib, which nothing else here needs

    return figures.png(figures.history(history))


def _packed(content: dict[str, Any], config: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, "config": config, **content}, buffer)
    return buffer.getbuffer()


def write_checkpoint(
    path: str | os.PathLike[str], content: dict[str, Any], config: dict[str, Any]
) -> None:
    """Write `content`, with the run's configuration, to `path`."""
    files.write(Path(path), _packed(content, config))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns:
        A dict with at least ``model`` (a state dict) and ``config``.

    Raises:
        ValueError: there is no such file, or it is damaged or of another kind.
    """
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist")
    try:
        content = tensor_files.read(Path(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or is no checkpoint: {error}") from error
    if not is_checkpoint(content):
        raise ValueError(
            f"{path} is not a checkpoint of this package ({CHECKPOINT_FORMAT!r} is missing)"
        )
    return content


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name the file, whatever its content causes."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        # torch's error for a state dict names every tensor; the first one is enough.
        why = " ".join(line.strip() for line in str(error).splitlines()[:2])
        why = f"{why} is missing" if isinstance(error, KeyError) else why
        raise ValueError(f"{path} does not fit this run: {why}") from error
