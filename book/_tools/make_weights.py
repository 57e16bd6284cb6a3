"""Turn a finished run on Fashion-MNIST into weights that ship with the package.

    python book/_tools/make_weights.py runs/small fashion-mnist-small

The last epoch's weights are taken, since the best epoch's would have been chosen on the test
images. In `densenet_tutorial/weights/bundled` appear NAME.pt (half precision, which takes half the
space), NAME.csv (the run's metrics) and NAME.json (configuration, and the accuracy of what is in
NAME.pt); `book/results/weights.csv` gets a row. The command that trained the run is read off its
configuration.
"""

import argparse
import csv
import datetime
import hashlib
import io
import json
import platform
import shlex
from pathlib import Path

import torch
import torchvision

from densenet_tutorial import data, network, training
from densenet_tutorial.__main__ import Task
from densenet_tutorial.training import run_folder
from densenet_tutorial.utils import files
from densenet_tutorial.utils.options import as_words

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "densenet_tutorial" / "weights" / "bundled"
TABLE = ROOT / "book" / "results" / "weights.csv"


def command(config):
    """The command that trains such a run: every option that differs from its default."""
    task = {
        "dataset": config["dataset"]["name"],
        **config["model"],
        "model": config["model"]["name"],
    }
    words = [*as_words(task, Task), *as_words(config["recipe"], training.Recipe)]
    return shlex.join(["python", "-m", "densenet_tutorial", "train", *words, "--output", "RUN"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("name", help="what the weights shall be called")
    parser.add_argument(
        "--hardware", required=True, help='what it was trained on: "AMD EPYC, 2 cores"'
    )
    options = parser.parse_args()

    run = run_folder.read_checkpoint(options.run / "last.pt")
    config, history = run["config"], run["history"]
    if len(history) < config["recipe"]["epochs"]:
        parser.error(f"{options.run} is not finished: {len(history)} epochs")
    half = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in run["model"].items()
    }
    weights = BUNDLED / f"{options.name}.pt"
    run_folder.write_checkpoint(weights, {"model": half}, config)

    model = network.densenet(config["model"]["name"], weights=weights)
    full = training.evaluate(model, data.load_dataset("fashion-mnist"))
    mini = training.evaluate(model, data.load_dataset("fashion-mini"))
    result = {
        "name": options.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": config,
        "command": command(config),
        "test_accuracy": round(full[1], 6),
        "test_loss": round(full[0], 6),
        "fashion_mini_accuracy": round(mini[1], 6),
        "single_precision_test_accuracy": round(history[-1]["test_accuracy"], 6),
        "training_seconds": round(sum(row["seconds"] for row in history)),
        "hardware": options.hardware,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
        f"torchvision {torchvision.__version__.split('+')[0]}",
        "date": datetime.date.today().isoformat(),
    }
    files.write(BUNDLED / f"{options.name}.json", (json.dumps(result, indent=2) + "\n").encode())
    files.write(BUNDLED / f"{options.name}.csv", (options.run / "metrics.csv").read_bytes())
    files.write(TABLE, table().encode())
    print(json.dumps({key: value for key, value in result.items() if key != "config"}, indent=2))


def table():
    """One row for every set of weights that ships, for the results page."""
    results = [json.loads(path.read_text()) for path in sorted(BUNDLED.glob("*.json"))]
    rows = [
        {
            "Weights": f"`{r['name']}`",
            "Parameters": f"{r['parameters']:,}",
            "Accuracy, 10,000 test images": f"{r['test_accuracy']:.2%}",
            "Accuracy, fashion-mini's 1,000": f"{r['fashion_mini_accuracy']:.1%}",
            "Epochs": r["config"]["recipe"]["epochs"],
            "Training, minutes": round(r["training_seconds"] / 60),
            "On": r["hardware"],
            "With": r["versions"],
            "When": r["date"],
        }
        for r in results
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    main()
