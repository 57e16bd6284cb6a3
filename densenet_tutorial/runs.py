"""The folder of a training run: what it holds, and how a run goes on from it.

Each fact has one place: ``last.pt`` holds the history, and ``metrics.csv`` and ``curves.png`` are made from it.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from densenet_tutorial import checkpoints, distributed, files, plotting


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
            state = checkpoints.read(path)
            try:
                training.load_state_dict(state)
            except (KeyError, IndexError, ValueError, RuntimeError) as error:
                why = checkpoints.reason(error)
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
                checkpoints.write(
                    self.path / "best.pt", {"model": state["model"], "metrics": best}, self.config
                )
            files.write(self.path / "metrics.csv", _table(history).encode())
            files.write(self.path / "curves.png", plotting.png(plotting.history(history)))
        checkpoints.write(self.path / "last.pt", state, self.config)


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
