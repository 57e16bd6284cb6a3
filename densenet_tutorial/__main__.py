"""``densenet-tutorial``, or ``python -m densenet_tutorial``: the package's commands."""

import argparse
import codecs
import contextlib
import dataclasses
import dis
import errno
import functools
import io
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _ending_on_ctrl_c() -> Iterator[None]:
    """End the process at once on Ctrl-C, without a traceback: nothing is open that could be lost.

    While a library is imported an exception will not do, since the library may catch it.
    """

    def end(*_: Any) -> None:
        os.write(2, b"stopped\n")
        os._exit(130)

    usual = signal.default_int_handler
    heard = signal.getsignal(signal.SIGINT) is usual  # not ignored, nor somebody else's
    if not heard or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


with _ending_on_ctrl_c():  # this takes seconds
    from densenet_tutorial import data, memory, network, weights
    from densenet_tutorial.training import Recipe, distributed, evaluate, fit, run_folder
    from densenet_tutorial.utils import arguments, environment
    from densenet_tutorial.utils.arguments import one_of, optional, positive_int, sequence_of
    from densenet_tutorial.utils.options import add_to, checked_dataclass, option
    from densenet_tutorial.weights.sources import is_imagenet

#: `predict` processes this many images at a time, and draws at most that many.
_BATCH, _DRAWN = 32, 100

_PACKAGE = Path(__file__).parent


def main(argv: list[str] | None = None) -> None:
    """Run one command; `argv` is the command line without the program's name.

    The exit status is 0; 1 if some of several files could not be used; 2 after an error; 130 after
    Ctrl-C; and 141 if the reader of the output has stopped reading.
    """
    try:
        with _console():
            options = _parser().parse_args(argv)
            options.run(options)
    except (ValueError, OSError) as error:
        if not _is_ours(error):
            raise
        print(f"{_program()}: error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description="DenseNet, step by step: commands of the package. "
        "`COMMAND --help` says more about each.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    adders = (_add_train, _add_evaluate, _add_predict, _add_summary, _add_benchmark, _add_claims)
    for add in (*adders, _add_env):
        add(commands)
    return parser


def _program() -> str:
    """The name by which this program was called."""
    name = Path(sys.argv[0]).stem
    return name if name == "densenet-tutorial" else "python -m densenet_tutorial"


def _is_ours(error: BaseException) -> bool:
    """Whether `error` is a message for the user, and not a bug, which needs its traceback.

    It is a message if a ``raise`` statement of this package raised it, or if the disk is full.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return True
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None or not Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _sentence(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """Print in any encoding, and exit silently if the output's reader is gone (``… | head -1``)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="densenet_tutorial.plain")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the rest when it exits, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replacements for characters that the console's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    lines = {"├": "+", "└": "+", "─": "-", "│": "|"}  # of torchinfo's trees
    missing = error.object[error.start : error.end]
    escaped = (lines.get(c, c).encode("ascii", "backslashreplace").decode() for c in missing)
    return "".join(escaped), error.end


codecs.register_error("densenet_tutorial.plain", _plain)


@contextlib.contextmanager
def _as_option(**options: str) -> Iterator[None]:
    """Rename arguments in error messages to options: ``name="--dataset"``."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        if name not in options:
            raise
        raise ValueError(f"{options[name]} {rest}") from error


def _data_set(text: str) -> str:
    if text not in data.list_datasets() and not (text and Path(text).expanduser().is_dir()):
        raise ValueError
    return text


@checked_dataclass
class Task:
    """The model and the data: options of `train`, none of which is required.

    :func:`data.load_folder` describes the layout of a folder of images by class.
    """

    dataset: str = option(
        arguments.Check(
            lambda: f"one of {', '.join(data.list_datasets())}, or a folder of images by class",
            _data_set,
        ),
        f"{', '.join(data.list_datasets())}, or a FOLDER of images by class",
        default="fashion-mini",
    )
    image_size: int = option(
        positive_int,
        "side to which the images in a FOLDER are resized, in pixels; by default their own if it "
        "is the same for all, otherwise the median of their shorter sides",
        default=None,
    )
    model: str = option(one_of(network.list_models()), "a named model", default="densenet_bc")
    weights: str = option(
        arguments.text,
        "initial weights: a name, a file, a URL, or another run's best.pt. If they name their "
        "model, it is used; a classifier for other classes is replaced",
        default=None,
    )
    block_config: tuple[int, ...] = option(
        sequence_of(positive_int),
        "layers in each dense block, instead of the model's own",
        default=None,
        flag="--blocks",
    )
    growth_rate: int = option(positive_int, "feature maps that each layer adds", default=None)
    bn_size: int | None = option(
        optional(positive_int),
        "bottleneck width as a multiple of the growth rate; none for layers without a bottleneck",
        default=None,
    )
    drop_rate: float = option(
        arguments.fraction,
        "dropout after each layer; the paper: 0.2 without augmentation",
        default=None,
    )
    memory_efficient: str = option(
        one_of([mode for mode in memory.MODES if isinstance(mode, str)]),
        "keep less for the backward pass, and recompute it",
        default=None,
    )


#: The fields of :class:`Task` that are arguments of :func:`network.densenet`.
_MODEL_OPTIONS = ("block_config", "growth_rate", "bn_size", "drop_rate", "memory_efficient")


def _add_train(commands: Any) -> None:
    program = _program()
    train = commands.add_parser(
        "train",
        help="train a model, or resume a run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train a model and write everything into a folder: last.pt (to resume from),\n"
            "config.json, best.pt, metrics.csv (one row per epoch) and curves.png. The\n"
            "defaults are the paper's recipe for CIFAR.\n"
            "\n"
            "Ctrl-C stops the run after the current step, a second Ctrl-C at once. A run that was\n"
            "stopped or killed continues with --resume, with the same results.\n"
            "\n"
            "A folder of images by class has the layout of torchvision's ImageFolder:\n"
            "FOLDER/CLASS/….jpg, or FOLDER/train/CLASS/….jpg and beside it one of\n"
            f"{', '.join(data.TEST_FOLDERS)}. If there is none, a fifth of each class,\n"
            "the same in every run, is held out for testing."
        ),
        epilog=(
            "examples:\n"
            "  a small network, in seconds:\n"
            f"    {program} train --model densenet_bc --blocks 2,2,2 --growth-rate 6 \\\n"
            "        --epochs 3 --seed 11 --output runs/a\n"
            "  resume this run (all other options are in its folder):\n"
            f"    {program} train --output runs/a --resume\n"
            "  your own images, from pretrained weights:\n"
            f"    {program} train --dataset flowers/ --model densenet121 \\\n"
            "        --weights imagenet --lr 0.01 --epochs 10 --output runs/flowers\n"
            "  four processes on this machine; --batch-size is the total of all processes:\n"
            "    torchrun --nproc-per-node 4 -m densenet_tutorial train --output runs/b"
        ),
    )
    train.set_defaults(run=_train)
    train.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder of the run"
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in FOLDER; start one if there is none",
    )
    train.add_argument(
        "--allow-changes",
        action="store_true",
        help="resume with another device, number of processes or other options; the results are "
        "then no longer the same, bit for bit",
    )
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    _add_device(train)
    add_to(train.add_argument_group("model and data"), Task)
    add_to(train.add_argument_group("hyperparameters"), Recipe)


def _train(given: argparse.Namespace) -> None:
    with distributed.process_group():
        try:
            history = _run(given)
        except (ValueError, OSError) as error:
            if _is_ours(error) and not distributed.is_main_process():
                sys.exit(2)  # all processes have the same error; the main process prints it
            raise
        except KeyboardInterrupt as stop:
            if not distributed.is_main_process():
                sys.exit(130)
            if (given.output / "last.pt").exists():
                again = f"{_program()} train --output {shlex.quote(str(given.output))} --resume"
                raise KeyboardInterrupt(f"\n{str(stop) or 'stopped'}; to resume: {again}") from None
            raise
        if distributed.is_main_process():
            last = history[-1]
            print(
                f"test accuracy {last['test_accuracy']:.2%}, loss {last['test_loss']:.4f} "
                f"after {last['epoch']} epochs; see {given.output}"
            )


def _run(given: argparse.Namespace) -> list[dict[str, float]]:
    """Train with the given options, and the configuration in the run's folder for all others."""
    import torch

    chosen = vars(given)

    def saved_config() -> dict[str, Any]:
        run = run_folder.read_run(
            given.output, resume=given.resume, allow_changes=given.allow_changes
        )
        return run["config"] if run else {}

    saved = distributed.on_main_process(saved_config)

    def prepare() -> tuple[Recipe, data.ImageDataset, dict[str, Any], network.DenseNet]:
        fields = {field.name for field in dataclasses.fields(Recipe)}
        recipe = Recipe(
            **saved.get("recipe", {}) | {name: chosen[name] for name in fields & chosen.keys()}
        )
        dataset = _dataset(chosen, saved.get("dataset"))
        torch.manual_seed(recipe.seed)
        config, model = _model(chosen, saved.get("model"), dataset)
        if min(dataset.train_images.shape[2:]) < model.min_size:
            raise ValueError(
                f"model must be one for small images, got {config['name']!r}, which needs "
                f"{model.min_size} pixels a side: {dataset.name!r} has fewer"
            )
        return recipe, dataset, config, model.to(environment.device(given.device))

    recipe, dataset, config, model = distributed.on_all_processes(prepare)
    return fit(
        model,
        dataset,
        recipe,
        output=given.output,
        resume=given.resume,
        allow_changes=given.allow_changes,
        model_config=config,
        initial_weights=chosen.get("weights", saved.get("initial_weights")),
        progress=not given.quiet,
    )


def _dataset(chosen: dict[str, Any], metadata: dict[str, Any] | None) -> data.ImageDataset:
    """The chosen data set, or the one that `metadata` describes."""
    wanted = {name: chosen[name] for name in ("image_size",) if name in chosen}
    wanted["progress"] = distributed.is_main_process() and not chosen["quiet"]
    if metadata is None:
        return data.load_dataset(chosen.get("dataset", Task.dataset), **wanted)
    return data.load_again(metadata, name=chosen.get("dataset"), **wanted)


def _model(
    chosen: dict[str, Any], saved: dict[str, Any] | None, dataset: data.ImageDataset
) -> tuple[dict[str, Any], network.DenseNet]:
    """The model's configuration and the model, with random or with trained weights.

    A resumed run loads its own weights later.
    """
    start = {} if saved else {name: chosen[name] for name in ("weights",) if chosen.get(name)}
    config = dict(saved or {"name": Task.model})
    if start:
        config = _config_of(start["weights"], chosen.get("model"))
        if _classes_of(start["weights"]) not in (None, list(dataset.classes)):
            start["head"] = "new"
    if not saved:
        config["num_classes"] = len(dataset.classes)
        config["in_channels"] = dataset.train_images.shape[1]
    config |= {name: chosen[name] for name in _MODEL_OPTIONS if name in chosen}
    config["name"] = chosen.get("model", config["name"])
    try:
        return config, network.densenet(**config, **start)
    except TypeError as error:  # unknown names in a configuration, perhaps of another version
        raise ValueError(f"the run's model cannot be built: {error}") from error


def _config_of(source: str, name: str | None) -> dict[str, Any]:
    """The configuration of the weights' model, which is called `name` if they do not name it."""
    read = weights.read(source, name)
    name = name or ((read.config or {}).get("model") or {}).get("name")
    if name is None:
        raise ValueError(f"--model must be given: the weights {source!r} do not name their model")
    return {"name": name} | read.model_options(name)


def _classes_of(source: str) -> list[str] | None:
    """The class names in the metadata of weights, if there are any."""
    try:
        return list(weights.categories(source))
    except weights.WeightsError:
        return None


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate", help="loss and accuracy of a trained model over all test images of a data set"
    )
    command.set_defaults(run=_evaluate)
    _add_weights(command)
    command.add_argument(
        "--dataset",
        metavar="NAME",
        help=f"{', '.join(data.list_datasets())}, or a FOLDER of images by class "
        "(default: the one it was trained on)",
    )


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "weights", help="a checkpoint (runs/a/best.pt), or the name of bundled weights"
    )
    _add_device(command)


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        choices=environment.DEVICES,
        help="default: DENSENET_TUTORIAL_DEVICE, otherwise auto",
    )


def _trained(options: argparse.Namespace, name: str | None = None) -> network.DenseNet:
    """The model with the command's weights, in evaluation mode.

    `name` is the model's name, for weights without one in their metadata.
    """
    with _as_option(name="--model"):
        read = weights.read(options.weights, name)
    if name is None:
        if not (read.config and read.config["model"]):
            raise ValueError(f"weights {options.weights!r} do not name their model")
        name = str(read.config["model"]["name"])
    if "classifier.weight" not in read.model:
        raise ValueError(f"weights {options.weights!r} have no classifier")
    with _as_option(name="--model"):
        model = network.densenet(name, weights=options.weights)
    return model.eval().to(environment.device(options.device))


def _evaluate(options: argparse.Namespace) -> None:
    if is_imagenet(options.weights):
        raise ValueError(
            f"weights {options.weights!r} cannot be evaluated: ImageNet's images are not here"
        )
    model = _trained(options)
    trained_on = weights.trained_on(options.weights)
    with _as_option(name="--dataset"):
        dataset = data.load_again(trained_on, name=options.dataset)
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
    loss, accuracy = evaluate(model, dataset)
    count = len(dataset.test_labels)
    print(f"{dataset.name}: {count} test images, accuracy {accuracy:.2%}, loss {loss:.4f}")


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="classify images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Classify images with a trained model. Images are read as a viewer shows them: with\n"
            "their EXIF orientation, in sRGB, on white if they are transparent, and the first of\n"
            "several frames or pages. Then they are preprocessed as the model's training images\n"
            "were. For weights of this package, they are resized to fit inside the size of those,\n"
            "and padded with black; Fashion-MNIST shows bright things on black. For 'imagenet',\n"
            "the middle is cropped.\n"
            "\n"
            "A file that cannot be read is reported on the error output, with an exit status\n"
            "of 1; the others are classified."
        ),
        epilog=(
            "examples:\n"
            f"  {_program()} predict fashion-mnist-small shirt.png --invert\n"
            f"  {_program()} predict imagenet cat.jpg --model densenet121"
        ),
    )
    predict.set_defaults(run=_predict)
    _add_weights(predict)
    predict.add_argument("images", nargs="+", type=Path, help="PNG, JPEG, …")
    predict.add_argument(
        "--model", help=f"for the weights 'imagenet': {', '.join(weights.IMAGENET_FILES)}"
    )
    predict.add_argument(
        "--top", type=int, default=3, metavar="N", help="classes to print (default: %(default)s)"
    )
    predict.add_argument("--invert", action="store_true", help="swap dark and bright first")
    predict.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"draw the images (the first {_DRAWN}) with their classes into this PNG",
    )


def _predict(options: argparse.Namespace) -> None:
    import torch
    from PIL import Image, ImageOps

    top = arguments.positive_int("--top", options.top)
    if is_imagenet(options.weights) and options.model not in weights.IMAGENET_FILES:
        got = "none" if options.model is None else repr(options.model)
        names = ", ".join(weights.IMAGENET_FILES)
        raise ValueError(
            f"--model must be one of {names} for the weights {options.weights!r}, got {got}"
        )
    model = _trained(options, options.model)
    prepare = weights.transforms(options.weights)
    classes = weights.categories(options.weights)
    predictions: list[tuple[Image.Image, str]] = []
    failed = False
    for first in range(0, len(options.images), _BATCH):
        found, inputs = [], []
        for path in options.images[first : first + _BATCH]:
            try:
                image = data.read_image(path)
            except ValueError as error:
                print(error, file=sys.stderr)
                failed = True
                continue
            if options.invert:
                image = ImageOps.invert(image)
            inputs.append(prepare(image))
            image.thumbnail((256, 256))  # large enough for drawing
            found.append((path, image))
        if not inputs:
            continue
        with torch.no_grad():
            x = torch.stack(inputs).to(next(model.parameters()).device)
            probabilities = model(x).softmax(1).cpu()
        for (path, image), row in zip(found, probabilities, strict=True):
            best = row.topk(min(top, len(classes)))
            scores = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            likely = [f"{classes[i]} {p:.1%}" for p, i in scores]
            print(f"{path}: {', '.join(likely)}")
            if options.output and len(predictions) < _DRAWN:
                predictions.append((image, likely[0]))
    if predictions:
        _draw(options.output, predictions)
    if failed:
        sys.exit(1)


def _draw(path: Path, predictions: list[Any]) -> None:
    """Write images with their titles to `path`."""
    from torchvision.transforms.functional import pil_to_tensor

    from densenet_tutorial import figures
    from densenet_tutorial.utils import files

    images, titles = zip(*predictions)
    shown = [pil_to_tensor(image) for image in images]
    files.write(path, figures.png(figures.images(shown, titles, title="Predictions")))


def _add_summary(commands: Any) -> None:
    summary = commands.add_parser("summary", help="a model's layers, shapes and parameter counts")
    summary.set_defaults(run=_summary)
    summary.add_argument(
        "model",
        nargs="?",
        default="densenet121",
        metavar="MODEL",
        help=f"default: %(default)s; one of {', '.join(network.list_models())}",
    )
    add = functools.partial(summary.add_argument, type=int)
    add("--size", default=224, help="image side in pixels (default: %(default)s)")
    add("--num-classes", help="default: the model's own")
    add("--in-channels", help="default: the model's own")
    add("--depth", default=2, help="levels of modules (default: %(default)s)")


def _summary(options: argparse.Namespace) -> None:
    import torchinfo

    arguments.one_of(network.list_models())("MODEL", options.model)
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
    benchmark = commands.add_parser("benchmark", help="compare with torchvision on this device")
    what = benchmark.add_subparsers(required=True, metavar="WHAT")
    of_memory = what.add_parser(
        "memory",
        help="memory and time of a training step, for every memory-efficient mode",
        description="Memory that autograd holds between the forward and the backward pass, and the "
        "time of a training step, for torchvision's model, plain and memory-efficient, and each of "
        "our modes, in turns. Memory is in MiB per image: saved tensors; growth of the process, or "
        "of the memory allocated on the GPU; on a GPU also the peak of a step, and the largest "
        "batch that fits. Ratio is the ratio of the median times.",
    )
    of_memory.set_defaults(run=_benchmark_memory)
    of_memory.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images per step (default: 8)"
    )
    _add_setting(of_memory, repeats=10)
    of_speed = what.add_parser(
        "speed",
        help="time of prediction and of a training step, for torchvision, timm and this package",
        description="Time of the models of torchvision, of timm if it is installed, of ours in "
        "both memory formats, and of the optimized one, in turns; and of their convolutions alone. "
        "Ratio is that of the fastest times to torchvision's, or to ours if it has no such model. "
        "A series is marked as busy if its median is more than 10 %% above its fastest.",
    )
    of_speed.set_defaults(run=_benchmark_speed)
    of_speed.add_argument(
        "--tasks",
        nargs="+",
        choices=("predict", "train"),
        default=["predict", "train"],
        metavar="TASK",
        help="predict: a forward pass; train: a forward and a backward pass (default: both)",
    )
    of_speed.add_argument(
        "--batch-sizes",
        nargs="+",
        type=int,
        default=[1, 8],
        metavar="N",
        help="images per call (default: 1 8)",
    )
    _add_setting(of_speed, repeats=15)
    of_speed.add_argument(
        "--amp", action="store_true", help="all models under torch.autocast in bfloat16"
    )
    of_speed.add_argument(
        "--compiled", action="store_true", help="also with torch.compile, which needs a compiler"
    )


def _add_setting(parser: argparse.ArgumentParser, repeats: int) -> None:
    parser.add_argument(
        "--model",
        choices=network.list_models(),
        default="densenet121",
        metavar="MODEL",
        help="default: %(default)s",
    )
    add = functools.partial(parser.add_argument, type=int)
    add("--image-size", default=224, metavar="PIXELS", help="image side (default: %(default)s)")
    add("--repeats", default=repeats, metavar="N", help="calls per model (default: %(default)s)")
    _add_device(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the measurements as JSON to FILE, and the table to a .csv beside it",
    )


def _setting(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What a benchmark measures, in the order in which its command says it."""
    from densenet_tutorial.experiments import benchmarks

    if options.output:  # before minutes of measurement
        benchmarks.check_output(options.output)
    return {
        "model": options.model,
        "image_size": arguments.positive_int("image_size", options.image_size),
        **more,
        "repeats": arguments.positive_int("repeats", options.repeats),
        "device": str(environment.device(options.device)),
    }


def _benchmark_memory(options: argparse.Namespace) -> None:
    from densenet_tutorial.experiments import benchmarks

    batch_size = arguments.integer(2)("batch_size", options.batch_size)
    setting = _setting(options, batch_size=batch_size)
    shared = {name: value for name, value in setting.items() if name != "model"}
    measured = benchmarks.compare_memory(options.model, **shared)
    _report("memory", options, setting, measured, benchmarks.memory_rows(measured, batch_size))


def _benchmark_speed(options: argparse.Namespace) -> None:
    from densenet_tutorial.experiments import speed

    more = {name: getattr(options, name) for name in ("tasks", "batch_sizes", "amp", "compiled")}
    setting = _setting(options, **more)
    shared = {name: value for name, value in setting.items() if name != "model"}
    measured = speed.compare_speed(options.model, **shared)
    _report("speed", options, setting, measured, speed.speed_rows(measured))


def _report(
    what: str,
    options: argparse.Namespace,
    setting: dict[str, Any],
    measured: Sequence[Any],
    rows: list[tuple[str, ...]],
) -> None:
    """Print the table, and write the files if the user asked for them."""
    from densenet_tutorial.experiments import benchmarks

    print(benchmarks.as_text(rows))
    if options.output:
        command = f"python -m densenet_tutorial benchmark {what}"
        for name, value in setting.items():
            values = value if isinstance(value, list) else [value]
            if value is not False:
                words = [] if value is True else map(str, values)
                command = " ".join([command, f"--{name.replace('_', '-')}", *words])
        benchmarks.write_results(options.output, command, setting, measured, rows)


def _add_claims(commands: Any) -> None:
    claims = commands.add_parser(
        "claims",
        help="measure what is claimed for DenseNet and against it",
        description="Train and measure networks of equal budget, and say of each claim whether it "
        "holds. A run that was stopped or killed goes on when the same command is given again.",
    )
    claims.set_defaults(run=_claims)
    claims.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    claims.add_argument(
        "--full", action="store_true", help="five seeds and full sizes, instead of seconds"
    )
    claims.add_argument(
        "--output",
        type=Path,
        default=Path("claims"),
        metavar="FOLDER",
        help="for finished units and claims-NAME.json (default: %(default)s)",
    )
    claims.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)"
    )
    claims.add_argument(
        "--seconds", type=float, metavar="S", help="start nothing new after so many seconds"
    )
    claims.add_argument("--data", metavar="NAME", help="another data set, such as cifar10")
    claims.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_device(claims)


def _claims(options: argparse.Namespace) -> None:
    from densenet_tutorial.experiments import claims

    flags = {name: f"--{name}" for name in ("workers", "seconds", "data", "output")}
    begin = time.monotonic()
    with _as_option(names="NAME", **flags):
        found = claims.run(
            options.names or None,
            full=options.full,
            output=options.output,
            device=environment.device(options.device),
            workers=options.workers,
            seconds=options.seconds,
            data=options.data,
            progress=not options.quiet,
        )
    had_time = options.seconds is None or time.monotonic() < begin + options.seconds
    failed = False
    for name, rows in found.items():
        missing = claims.missing(name, rows, full=options.full, data=options.data)
        if missing:  # there was no time for all, or something failed, and standard error says why
            print(f"{name}: not decided: {missing} units are missing")
            failed |= had_time
        else:
            print(f"{name}: {claims.verdict(name, rows)}")
    if failed:
        sys.exit(1)


def _add_env(commands: Any) -> None:
    env = commands.add_parser("env", help="system, device and versions, for a bug report")
    env.set_defaults(run=lambda options: print(environment.report()))


if __name__ == "__main__":
    main()
