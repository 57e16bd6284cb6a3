"""The folder of a training run: what it holds, and how a run goes on from it.

Each fact has one place: ``last.pt`` holds the history, and ``metrics.csv`` and ``curves.png`` are made from it.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import torch

from densenet_tutorial.training import distributed
from densenet_tutorial.utils import files
from densenet_tutorial.weights import files as tensor_files
from densenet_tutorial.weights.layouts import CHECKPOINT_FORMAT, is_checkpoint


class RunFolder:
    """What a run leaves behind, one file for each purpose.

    - ``config.json``: data set, model, recipe, device, processes. A resumed run must agree with it.
    - ``last.pt``: everything that the next step depends on. It is written last: what it says is done.
    - ``best.pt``: the model of the epoch with the best test accuracy. It was chosen on the test images, so its
      accuracy on them flatters: report the last epoch's.
    - ``metrics.csv``: one row an epoch.
    - ``curves.png``: loss and accuracy, drawn.

    Of several processes, one writes.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], resume: bool) -> None:
        """Begin a run with `config` in `path`, or open the one that is there if `resume`.

        Raises:
            ValueError: `path` holds a run and `resume` is false, or that run had another configuration.
        """
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))  # as it comes back from a file
        begun = holds_run(self.path)
        if begun and not resume:
            raise ValueError(
                f"output must be a folder without a run, got {str(self.path)!r}, which holds one; "
                "choose another or resume it"
            )
        if begun:
            _compare(read_config(self.path), self.config, self.path / "config.json")
        distributed.any_process(False)  # every process has looked before one writes
        if not begun and distributed.is_writer():
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.config, indent=2) + "\n"
            files.write(self.path / "config.json", text.encode())

    def restore(self, training: Any) -> None:
        """Bring `training`, by its ``load_state_dict``, to where ``last.pt`` was written, if there is one.

        Raises:
            ValueError: the checkpoint is damaged, of another kind, or does not fit; or it is not the same in all
                processes, as when each machine has a folder of its own.
        """
        path = self.path / "last.pt"
        if path.exists():
            state = read_checkpoint(path)
            try:
                training.load_state_dict(state)
            except (KeyError, IndexError, ValueError, RuntimeError) as error:
                why = _reason(error)
                raise ValueError(f"{path} does not fit the model and recipe: {why}") from error
        places = distributed.gather((training.epoch, training.step))
        if any(place != places[0] for place in places):
            raise ValueError(
                f"output must be a folder that all processes share, got {str(self.path)!r}, in which they find "
                f"different checkpoints: epoch and step by rank are {places}"
            )

    def save(self, state: dict[str, Any]) -> None:
        """Write all that changes in a run; `state` is what :meth:`Training.state_dict` returned.

        Raises:
            OSError: the disk is full, say; the checkpoint before is still there.
        """
        if not distributed.is_writer():
            return
        history = state["history"]
        if history and state["step"] == 0:  # an epoch has ended
            best = max(history, key=lambda row: row["test_accuracy"])
            if best is history[-1]:
                write_checkpoint(
                    self.path / "best.pt", {"model": state["model"], "metrics": best}, self.config
                )
            files.write(self.path / "metrics.csv", _table(history).encode())
            from densenet_tutorial import figures

            files.write(self.path / "curves.png", figures.png(figures.history(history)))
        write_checkpoint(self.path / "last.pt", state, self.config)


def holds_run(folder: str | Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (Path(folder) / "config.json").exists()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of the run in `folder`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a run: {error}") from error


def _compare(old: Any, new: Any, file: Path) -> None:
    """Refuse to go on with a run under another configuration, naming the first difference."""

    def difference(old: Any, new: Any, name: str) -> str | None:
        if isinstance(old, dict) and isinstance(new, dict):
            found = (
                difference(old.get(k), new.get(k), f"{name}.{k}".lstrip(".")) for k in old | new
            )
            return next(filter(None, found), None)
        return None if old == new else f"{name} was {old!r} and is now {new!r}"

    if found := difference(old, new, ""):
        raise ValueError(f"a resumed run must keep its configuration ({file}), but {found}")


def _table(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def write_checkpoint(path: str | Path, content: dict[str, Any], config: dict[str, Any]) -> None:
    """Write `content`, with the run's configuration, to `path`."""
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, "config": config, **content}, buffer)
    files.write(path, buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns:
        A dict with at least ``model`` (a state dict) and ``config``.

    Raises:
        ValueError: there is no such file, or it is damaged or of another kind.
    """
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist")
    try:
        content = tensor_files.read(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or is no checkpoint: {error}") from error
    if not is_checkpoint(content):
        raise ValueError(
            f"{path} is not a checkpoint of this package ({CHECKPOINT_FORMAT!r} is missing)"
        )
    return content


def _reason(error: Exception) -> str:
    """Why a checkpoint did not fit, in one line: torch names every tensor, and the first one will do."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
