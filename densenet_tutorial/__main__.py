"""``python -m densenet_tutorial``: the package's commands."""

import argparse
import codecs
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densenet_tutorial import memory, network
from densenet_tutorial.training import distributed
from densenet_tutorial.utils import arguments, environment

#: `predict` holds this many pictures at a time, and draws no more than that many.
_BATCH, _DRAWN = 32, 100

_MODEL_OPTIONS = ("growth_rate", "block_config", "bn_size", "drop_rate", "memory_efficient")


def main(argv: list[str] | None = None) -> None:
    """Run one command; `argv` is the command line without the program's name.

    The exit status is 0; 1 if some of several files could not be used; 2 if nothing could be done; 130
    after Ctrl-C, and 141 if whoever read the output stopped reading.
    """
    parser = argparse.ArgumentParser(
        prog="python -m densenet_tutorial",
        description="DenseNet, step by step: commands of the package. "
        "`COMMAND --help` says more about each.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_train, _add_evaluate, _add_predict, _add_summary, _add_benchmark, _add_env):
        add(commands)
    with _console():
        options = parser.parse_args(argv)
        try:
            options.run(options)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        except KeyboardInterrupt:
            parser.exit(130, "stopped\n")


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """Print in any encoding, and end quietly when nobody reads on (``… | head -1``)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="densenet_tutorial.plain")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Python will flush what is left when it ends; nobody is to hear of that failure either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _plain(error: UnicodeEncodeError) -> tuple[str, int]:
    """What to print for characters that the console's encoding lacks."""
    lines = {"├": "+", "└": "+", "─": "-", "│": "|"}  # of torchinfo's trees
    missing = error.object[error.start : error.end]
    escaped = (lines.get(c, c).encode("ascii", "backslashreplace").decode() for c in missing)
    return "".join(escaped), error.end


codecs.register_error("densenet_tutorial.plain", _plain)


@contextlib.contextmanager
def _as_option(**options: str) -> Iterator[None]:
    """Let errors about arguments call them as the command line does: ``name="--dataset"``."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        if name not in options:
            raise
        raise ValueError(f"{options[name]} {rest}") from error


def _add_train(commands: Any) -> None:
    from densenet_tutorial.training import AMP, SCHEDULES, Recipe
    from densenet_tutorial.training.augmentation import AUGMENTATIONS

    train = commands.add_parser(
        "train",
        help="train a model, or go on with a run",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train a model and keep everything in a folder: config.json, last.pt (to go on from), best.pt,\n"
            "metrics.csv (one row an epoch) and curves.png. The defaults are the paper's recipe for CIFAR.\n"
            "Ctrl-C stops after the step under way; a run that was stopped or killed goes on with --resume,\n"
            "as if nothing had happened."
        ),
        epilog=(
            "examples:\n"
            "  a small network, in seconds:\n"
            "    python -m densenet_tutorial train --model densenet_bc --blocks 2,2,2 --growth-rate 6 \\\n"
            "        --epochs 3 --seed 11 --output runs/a\n"
            "  the same run again, from where it stopped (everything else stands in its config.json):\n"
            "    python -m densenet_tutorial train --output runs/a --resume\n"
            "  four processes on this machine; --batch-size is that of all of them together:\n"
            "    torchrun --nproc-per-node 4 -m densenet_tutorial train --output runs/b"
        ),
    )
    train.set_defaults(run=_train)
    train.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the run")
    train.add_argument("--resume", action="store_true", default=False, help="go on with the run in FOLDER; begin one if it holds none")  # fmt: skip
    train.add_argument("--quiet", action="store_true", default=False, help="no progress bars")
    train.add_argument("--device", choices=environment.DEVICES, default=None, help="default: DENSENET_TUTORIAL_DEVICE, else auto")  # fmt: skip

    what = train.add_argument_group("what to train, and on what")
    what.add_argument("--dataset", help="fashion-mini (default), fashion-mnist, cifar10 or cifar100")  # fmt: skip
    what.add_argument("--model", help=f"default: densenet_bc; one of {', '.join(network.CONFIGS)}")
    what.add_argument("--blocks", dest="block_config", type=_whole_numbers, metavar="N,N,…", help="layers in each dense block, in place of the model's own")  # fmt: skip
    what.add_argument("--growth-rate", type=int, metavar="K", help="feature maps that each layer adds")  # fmt: skip
    what.add_argument("--bn-size", type=int, metavar="N", help="bottleneck width as a multiple of the growth rate")  # fmt: skip
    what.add_argument("--drop-rate", type=float, metavar="P", help="dropout after each layer; the paper: 0.2 without augmentation")  # fmt: skip
    modes = [mode for mode in memory.MODES if isinstance(mode, str)]
    what.add_argument("--memory-efficient", choices=modes, help="keep less for the backward pass")

    recipe = train.add_argument_group("how to train")
    default = Recipe()
    recipe.add_argument("--epochs", type=int, metavar="N", help=f"passes over the images (default: {default.epochs})")  # fmt: skip
    recipe.add_argument("--batch-size", type=int, metavar="N", help=f"images per step, of all processes together (default: {default.batch_size})")  # fmt: skip
    recipe.add_argument("--lr", type=float, metavar="RATE", help=f"learning rate at its highest (default: {default.lr})")  # fmt: skip
    recipe.add_argument("--schedule", choices=SCHEDULES, help=f"of the learning rate (default: {default.schedule})")  # fmt: skip
    recipe.add_argument("--weight-decay", type=float, metavar="W", help=f"default: {default.weight_decay}")  # fmt: skip
    recipe.add_argument("--label-smoothing", type=float, metavar="SHARE", help=f"default: {default.label_smoothing}")  # fmt: skip
    recipe.add_argument("--augment", nargs="*", choices=AUGMENTATIONS, metavar="NAME", help=f"of {', '.join(AUGMENTATIONS)}, applied in the order given (default: none; the paper: crop flip)")  # fmt: skip
    recipe.add_argument("--clip-norm", type=float, metavar="NORM", help="scale larger gradients down to this")  # fmt: skip
    recipe.add_argument("--amp", nargs="?", const="bf16", choices=AMP, help="forward pass in lower precision (bf16 if none is named)")  # fmt: skip
    recipe.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help=f"memory layout (default: {default.channels_last})")  # fmt: skip
    recipe.add_argument("--compile", action="store_true", help="run the model through torch.compile")  # fmt: skip
    recipe.add_argument("--sync-batch-norm", action="store_true", help="batch statistics over all processes (on GPUs)")  # fmt: skip
    recipe.add_argument("--seed", type=int, metavar="N", help=f"of all random numbers (default: {default.seed})")  # fmt: skip


def _train(options: argparse.Namespace) -> None:
    import torch

    from densenet_tutorial import data
    from densenet_tutorial.training import Recipe, fit, run_folder

    given = vars(options)
    with distributed.processes():
        try:
            saved = {}
            if options.resume and run_folder.holds_run(options.output):
                saved = run_folder.read_config(options.output)
            fields = {field.name for field in dataclasses.fields(Recipe)}
            chosen = {name: given[name] for name in fields & given.keys()}
            recipe = Recipe(**saved.get("recipe", {}) | chosen)
            name = given.get("dataset", saved.get("dataset", {}).get("name", "fashion-mini"))
            dataset = data.load_dataset(name)
            model_config = {
                "name": "densenet_bc",
                "num_classes": len(dataset.classes),
                "in_channels": dataset.train_images.shape[1],
            }
            model_config |= saved.get("model") or {}
            model_config |= {name: given[name] for name in _MODEL_OPTIONS if name in given}
            model_config["name"] = given.get("model", model_config["name"])
            torch.manual_seed(recipe.seed)
            model = network.densenet(**model_config).to(environment.device(options.device))
            if min(dataset.train_images.shape[2:]) < model.min_size:
                raise ValueError(
                    f"model must be one for small images, got {model_config['name']!r}, which needs "
                    f"{model.min_size} pixels a side: {dataset.name!r} has fewer"
                )
            history = fit(
                model,
                dataset,
                recipe,
                output=options.output,
                resume=options.resume,
                model_config=model_config,
                progress=not options.quiet,
            )
        except ValueError:
            if distributed.is_writer():
                raise
            sys.exit(2)  # every process has found the same; one says so
        except KeyboardInterrupt as stop:
            if distributed.is_writer():
                print(f"\n{stop}; to go on: train --output {options.output} --resume")
            sys.exit(130)
        if distributed.is_writer():
            last = history[-1]
            print(
                f"test accuracy {last['test_accuracy']:.2%}, loss {last['test_loss']:.4f} "
                f"after {last['epoch']} epochs; see {options.output}"
            )


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="loss and accuracy of a trained model over all test images of a data set"
    )
    evaluate.set_defaults(run=_evaluate)
    _add_weights(evaluate)
    evaluate.add_argument("--dataset", help="default: the one it was trained on")


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", help="a checkpoint (runs/a/best.pt), or the name of shipped weights")  # fmt: skip
    command.add_argument("--device", choices=environment.DEVICES, help="default: DENSENET_TUTORIAL_DEVICE, else auto")  # fmt: skip


def _trained(options: argparse.Namespace, name: str | None = None) -> network.DenseNet:
    """The model that the command's weights hold, ready to predict.

    `name` is the model's, for weights that do not say it.
    """
    from densenet_tutorial import weights

    with _as_option(name="--model"):
        read = weights.read(options.weights, name)
    if name is None:
        if not (read.config and read.config["model"]):
            raise ValueError(f"weights {options.weights!r} do not say of which model they are")
        name = read.config["model"]["name"]
    if "classifier.weight" not in read.model:
        raise ValueError(f"weights {options.weights!r} have no classifier: they tell no classes")
    with _as_option(name="--model"):
        model = network.densenet(name, weights=options.weights)
    return model.eval().to(environment.device(options.device))


def _evaluate(options: argparse.Namespace) -> None:
    from densenet_tutorial import data, training, weights

    if options.weights == "imagenet":
        raise ValueError("weights 'imagenet' cannot be evaluated: ImageNet's pictures are not here")
    model = _trained(options)
    trained_on = weights.trained_on(options.weights)
    with _as_option(name="--dataset"):
        dataset = data.load_dataset(options.dataset or trained_on["name"])
    if list(dataset.classes) != trained_on["classes"]:
        raise ValueError(
            f"--dataset must be one with the classes of {trained_on['name']!r}, "
            f"got {options.dataset!r}"
        )
    if dataset.test_images.shape[1] != model.in_channels:
        raise ValueError(
            f"--dataset must be one with images of {model.in_channels} channels, "
            f"got {options.dataset!r} with {dataset.test_images.shape[1]}"
        )
    dataset = dataclasses.replace(
        dataset, mean=tuple(trained_on["mean"]), std=tuple(trained_on["std"])
    )
    loss, accuracy = training.evaluate(model, dataset)
    count = len(dataset.test_labels)
    print(f"{dataset.name}: {count} test images, accuracy {accuracy:.2%}, loss {loss:.4f}")


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="classes of pictures, in words and as a picture",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Say what a trained model sees in pictures. A picture is read as a viewer shows it: turned as\n"
            "its EXIF orientation says, in sRGB, on white where it is transparent, and the first of several\n"
            "frames or pages. Then it is prepared as the model's training pictures were. For weights of\n"
            "this package that is their size, with nothing squashed or cut off (what is left is filled with\n"
            "black), and their number of colours; Fashion-MNIST shows things bright on black. For\n"
            "'imagenet', the middle is cut out.\n"
            "\n"
            "A file that cannot be read costs a line on the error output and an exit status of 1; the others\n"
            "are predicted all the same."
        ),
        epilog=(
            "examples:\n"
            "  python -m densenet_tutorial predict fashion-mnist-small shirt.png --invert\n"
            "  python -m densenet_tutorial predict imagenet cat.jpg --model densenet121"
        ),
    )
    predict.set_defaults(run=_predict)
    _add_weights(predict)
    predict.add_argument("images", nargs="+", type=Path, help="PNG, JPEG, …")
    predict.add_argument("--model", help="for the weights 'imagenet': densenet121, densenet161, densenet169 or densenet201")  # fmt: skip
    predict.add_argument("--top", type=int, default=3, metavar="N", help="classes to name (default: %(default)s)")  # fmt: skip
    predict.add_argument("--invert", action="store_true", help="swap dark and bright first")
    predict.add_argument("--output", type=Path, metavar="FILE", help=f"a PNG that shows the pictures (the first {_DRAWN}) with their classes")  # fmt: skip


def _predict(options: argparse.Namespace) -> None:
    import torch
    from PIL import Image, ImageOps

    from densenet_tutorial import data, weights

    top = arguments.positive_int("--top", options.top)
    if options.weights == "imagenet" and options.model not in weights.IMAGENET_FILES:
        got = "none" if options.model is None else repr(options.model)
        names = ", ".join(weights.IMAGENET_FILES)
        raise ValueError(f"--model must be one of {names} for the weights 'imagenet', got {got}")
    model = _trained(options, options.model)
    prepare = weights.transforms(options.weights)
    classes = weights.categories(options.weights)
    predictions: list[tuple[Image.Image, str]] = []
    failed = False
    for first in range(0, len(options.images), _BATCH):
        found, inputs = [], []
        for path in options.images[first : first + _BATCH]:
            try:
                picture = data.read_image(path)
            except ValueError as error:
                print(error, file=sys.stderr)
                failed = True
                continue
            if options.invert:
                picture = ImageOps.invert(picture)
            inputs.append(prepare(picture))
            picture.thumbnail((256, 256))  # enough to draw it
            found.append((path, picture))
        if not inputs:
            continue
        with torch.no_grad():
            x = torch.stack(inputs).to(next(model.parameters()).device)
            probabilities = model(x).softmax(1).cpu()
        for (path, picture), row in zip(found, probabilities, strict=True):
            best = row.topk(min(top, len(classes)))
            names = [f"{classes[i]} {p:.1%}" for p, i in zip(best.values.tolist(), best.indices)]
            print(f"{path}: {', '.join(names)}")
            if options.output and len(predictions) < _DRAWN:
                predictions.append((picture, names[0]))
    if predictions:  # some are to be drawn
        _draw(options.output, predictions)
    if failed:
        sys.exit(1)


def _draw(path: Path, predictions: list[Any]) -> None:
    """Write pictures with their titles to `path`."""
    from torchvision.transforms.functional import pil_to_tensor

    from densenet_tutorial import figures
    from densenet_tutorial.utils import files

    pictures, titles = zip(*predictions)
    shown = [pil_to_tensor(picture) for picture in pictures]
    files.write(path, figures.png(figures.images(shown, titles, title="Predictions")))


def _add_summary(commands: Any) -> None:
    summary = commands.add_parser("summary", help="a model's layers, shapes and parameter counts")
    summary.set_defaults(run=_summary)
    summary.add_argument("model", nargs="?", default="densenet121", metavar="MODEL", help=f"default: %(default)s; one of {', '.join(network.CONFIGS)}")  # fmt: skip
    summary.add_argument("--size", type=int, default=224, help="image side in pixels (default: %(default)s)")  # fmt: skip
    summary.add_argument("--num-classes", type=int, help="default: the model's own")
    summary.add_argument("--in-channels", type=int, help="default: the model's own")
    summary.add_argument("--depth", type=int, default=2, help="levels of modules (default: %(default)s)")  # fmt: skip


def _summary(options: argparse.Namespace) -> None:
    import torchinfo

    arguments.one_of(network.CONFIGS)("MODEL", options.model)
    given = {
        name: arguments.positive_int(f"--{name.replace('_', '-')}", getattr(options, name))
        for name in ("num_classes", "in_channels", "depth")
        if getattr(options, name) is not None
    }
    depth = given.pop("depth")
    model = network.densenet(options.model, **given)
    side = arguments.integer(model.min_size)("--size", options.size)
    size = (1, model.in_channels, side, side)
    print(torchinfo.summary(model, size, depth=depth, device="cpu", verbose=0))


def _add_benchmark(commands: Any) -> None:
    benchmark = commands.add_parser(
        "benchmark", help="measure this device, side by side with torchvision"
    )
    what = benchmark.add_subparsers(required=True, metavar="WHAT")
    of_memory = what.add_parser(
        "memory",
        help="memory and time of a training step, of every memory-efficient mode",
        description="Memory that a training step holds between forward and backward, and the time that it takes: "
        "torchvision's model, plain and memory-efficient, and each of our modes, in turns. Memory is in MiB per image: "
        "what autograd saves; by how much the process, or what it has allocated on the GPU, grows; on a GPU also the "
        "peak of a step, and the largest batch that fits. Ratio is that of the median times.",
    )
    of_memory.set_defaults(run=_benchmark_memory)
    of_memory.add_argument("--model", choices=network.CONFIGS, default="densenet121", metavar="MODEL", help="default: %(default)s")  # fmt: skip
    of_memory.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="side of an image (default: %(default)s)")  # fmt: skip
    of_memory.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per step (default: %(default)s)")  # fmt: skip
    of_memory.add_argument("--repeats", type=int, default=10, metavar="N", help="steps of each model that are timed (default: %(default)s)")  # fmt: skip
    of_memory.add_argument("--device", choices=environment.DEVICES, help="default: DENSENET_TUTORIAL_DEVICE, else auto")  # fmt: skip
    of_memory.add_argument("--output", type=Path, metavar="FILE", help="a JSON file with all figures; the table goes to a .csv beside it")  # fmt: skip


def _benchmark_memory(options: argparse.Namespace) -> None:
    from densenet_tutorial.experiments import benchmarks

    setting = {
        "model": options.model,
        "image_size": arguments.positive_int("image_size", options.image_size),
        "batch_size": arguments.integer(2)("batch_size", options.batch_size),
        "repeats": arguments.positive_int("repeats", options.repeats),
        "device": str(environment.device(options.device)),
    }
    measured = benchmarks.compare_memory(
        setting["model"], **{name: value for name, value in setting.items() if name != "model"}
    )
    rows = benchmarks.memory_rows(measured, options.batch_size)
    print(benchmarks.as_text(rows))
    if options.output:
        command = "python -m densenet_tutorial benchmark memory " + " ".join(
            f"--{name.replace('_', '-')} {value}" for name, value in setting.items()
        )
        benchmarks.write_results(options.output, command, setting, measured, rows)


def _add_env(commands: Any) -> None:
    env = commands.add_parser(
        "env", help="what a bug report should quote: system, device, versions"
    )
    env.set_defaults(run=lambda options: print(environment.report()))


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers with commas, such as 6,12,24,16; got {text!r}"
        ) from None


if __name__ == "__main__":
    main()
