"""``densenet-tutorial``, or ``python -m densenet_tutorial``: the package's commands."""

import argparse
import codecs
import contextlib
import dataclasses
import dis
import errno
import io
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densenet_tutorial import data, memory, network, weights
from densenet_tutorial.training import Recipe, distributed, fit, run_folder
from densenet_tutorial.utils import arguments, environment
from densenet_tutorial.utils.arguments import one_of, optional, positive_int, sequence_of
from densenet_tutorial.utils.options import add_to, checked_dataclass, option

#: `predict` holds this many pictures at a time, and draws no more than that many.
_BATCH, _DRAWN = 32, 100

_PACKAGE = Path(__file__).parent


def main(argv: list[str] | None = None) -> None:
    """Run one command; `argv` is the command line without the program's name.

    The exit status is 0; 1 if some of several files could not be used; 2 if nothing could be done; 130
    after Ctrl-C, and 141 if whoever read the output stopped reading.
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
    for add in (_add_train, _add_evaluate, _add_predict, _add_summary, _add_benchmark, _add_env):
        add(commands)
    return parser


def _program() -> str:
    """How somebody called this program."""
    name = Path(sys.argv[0]).stem
    return name if name == "densenet-tutorial" else "python -m densenet_tutorial"


def _is_ours(error: BaseException) -> bool:
    """Whether `error` is a sentence for whoever typed the command, and not a bug.

    It is if a ``raise`` of this package raised it, or if a disk is full. What others raise, or an
    operation that failed, would say nothing without its traceback.
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


def _data_set(text: str) -> str:
    if text not in data.list_datasets() and not (text and Path(text).expanduser().is_dir()):
        raise ValueError
    return text


@checked_dataclass
class Task:
    """What to train, and on what: options of `train`, of which none has to be given.

    A folder of images by class is one as :func:`data.load_folder` takes it.
    """

    dataset: str = option(
        "fashion-mini",
        arguments.Check(
            lambda: f"one of {', '.join(data.list_datasets())}, or a folder of images by class",
            _data_set,
        ),
        f"{', '.join(data.list_datasets())}, or a FOLDER of images by class",
    )
    image_size: int = option(
        None,
        positive_int,
        "side to which a FOLDER's images are brought, in pixels; by default their own if they "
        "share one, or else their median shorter side",
    )
    model: str = option("densenet_bc", one_of(network.list_models()), "a named model")
    weights: str = option(
        None,
        arguments.text,
        "start from these: a name of weights, a file, an address, another run's best.pt. The model "
        "is then theirs, if they know it; a classifier for other classes is not kept",
    )
    block_config: tuple[int, ...] = option(
        None,
        sequence_of(positive_int),
        "layers in each dense block, in place of the model's own",
        flag="--blocks",
    )
    growth_rate: int = option(None, positive_int, "feature maps that each layer adds")
    bn_size: int | None = option(
        None,
        optional(positive_int),
        "bottleneck width as a multiple of the growth rate; none for layers without a bottleneck",
    )
    drop_rate: float = option(
        None,
        arguments.fraction,
        "dropout after each layer; the paper: 0.2 without augmentation",
    )
    memory_efficient: str = option(
        None,
        one_of([mode for mode in memory.MODES if isinstance(mode, str)]),
        "keep less for the backward pass",
    )


#: The fields of :class:`Task` that are arguments of :func:`network.densenet`.
_MODEL_OPTIONS = ("block_config", "growth_rate", "bn_size", "drop_rate", "memory_efficient")


def _add_train(commands: Any) -> None:
    program = _program()
    train = commands.add_parser(
        "train",
        help="train a model, or go on with a run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train a model and keep everything in a folder: last.pt (to go on from), config.json,\n"
            "best.pt, metrics.csv (one row an epoch) and curves.png. The defaults are the paper's\n"
            "recipe for CIFAR.\n"
            "\n"
            "Ctrl-C stops after the step under way, a second one at once; a run that was stopped or\n"
            "killed goes on with --resume, as if nothing had happened.\n"
            "\n"
            "A folder of images by class, as torchvision's ImageFolder takes it, holds\n"
            "FOLDER/CLASS/….jpg, or FOLDER/train/CLASS/….jpg and beside it one of\n"
            f"{', '.join(data.TEST_FOLDERS)}. Where there is none, a fifth of each class,\n"
            "the same in every run, is kept to test on."
        ),
        epilog=(
            "examples:\n"
            "  a small network, in seconds:\n"
            f"    {program} train --model densenet_bc --blocks 2,2,2 --growth-rate 6 \\\n"
            "        --epochs 3 --seed 11 --output runs/a\n"
            "  the same run again, from where it stopped (it remembers everything else):\n"
            f"    {program} train --output runs/a --resume\n"
            "  images of your own, from trained weights:\n"
            f"    {program} train --dataset flowers/ --model densenet121 \\\n"
            "        --weights imagenet --lr 0.01 --epochs 10 --output runs/flowers\n"
            "  four processes on this machine; --batch-size is that of all of them together:\n"
            "    torchrun --nproc-per-node 4 -m densenet_tutorial train --output runs/b"
        ),
    )
    train.set_defaults(run=_train)
    train.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the run")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in FOLDER; begin one if it holds none",
    )
    train.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on though the device, the number of processes or the options have changed; the "
        "run is then no longer, bit for bit, the same",
    )
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    train.add_argument(
        "--device",
        choices=environment.DEVICES,
        help="default: DENSENET_TUTORIAL_DEVICE, else auto",
    )
    add_to(train.add_argument_group("what to train, and on what"), Task)
    add_to(train.add_argument_group("how to train"), Recipe)


def _train(given: argparse.Namespace) -> None:
    with distributed.process_group():
        try:
            history = _run(given)
        except (ValueError, OSError) as error:
            if _is_ours(error) and not distributed.is_main_process():
                sys.exit(2)  # every process has the same; one says so
            raise
        except KeyboardInterrupt as stop:
            if not distributed.is_main_process():
                sys.exit(130)
            if (given.output / "last.pt").exists():
                again = f"{_program()} train --output {shlex.quote(str(given.output))} --resume"
                raise KeyboardInterrupt(f"\n{str(stop) or 'stopped'}; to go on: {again}") from None
            raise
        if distributed.is_main_process():
            last = history[-1]
            print(
                f"test accuracy {last['test_accuracy']:.2%}, loss {last['test_loss']:.4f} "
                f"after {last['epoch']} epochs; see {given.output}"
            )


def _run(given: argparse.Namespace) -> list[dict[str, float]]:
    """Train as the command says, and as the run in its folder says where the command does not."""
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
    """The data set that was chosen, or that of a run with this `metadata`."""
    wanted = {name: chosen[name] for name in ("image_size",) if name in chosen}
    wanted["progress"] = distributed.is_main_process() and not chosen["quiet"]
    if metadata is None:
        return data.load_dataset(chosen.get("dataset", Task.dataset), **wanted)
    return data.load_again(metadata, name=chosen.get("dataset"), **wanted)


def _model(
    chosen: dict[str, Any], saved: dict[str, Any] | None, dataset: data.ImageDataset
) -> tuple[dict[str, Any], network.DenseNet]:
    """The model's configuration, which makes it again, and the model: new, or with trained weights.

    A run that goes on loads its own weights later.
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
    except TypeError as error:  # of a configuration with other names, as another version may write
        raise ValueError(f"the run's model cannot be made again: {error}") from error


def _config_of(source: str, name: str | None) -> dict[str, Any]:
    """What weights say of their model, which is called `name` if they do not say it."""
    read = weights.read(source, name)
    name = name or ((read.config or {}).get("model") or {}).get("name")
    if name is None:
        raise ValueError(
            f"--model must be given: the weights {source!r} do not say of which they are"
        )
    return {"name": name} | read.model_options(name)


def _classes_of(source: str) -> list[str] | None:
    """The classes that weights tell apart, if they say it."""
    try:
        return list(weights.categories(source))
    except weights.WeightsError:
        return None


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="loss and accuracy of a trained model over all test images of a data set"
    )
    evaluate.set_defaults(run=_evaluate)
    _add_weights(evaluate)
    evaluate.add_argument(
        "--dataset",
        metavar="NAME",
        help=f"{', '.join(data.list_datasets())}, or a FOLDER of images by class "
        "(default: the one it was trained on)",
    )


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", help="a checkpoint (runs/a/best.pt), or the name of bundled weights")  # fmt: skip
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
    summary.add_argument("model", nargs="?", default="densenet121", metavar="MODEL", help=f"default: %(default)s; one of {', '.join(network.list_models())}")  # fmt: skip
    summary.add_argument("--size", type=int, default=224, help="image side in pixels (default: %(default)s)")  # fmt: skip
    summary.add_argument("--num-classes", type=int, help="default: the model's own")
    summary.add_argument("--in-channels", type=int, help="default: the model's own")
    summary.add_argument("--depth", type=int, default=2, help="levels of modules (default: %(default)s)")  # fmt: skip


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
    of_memory.add_argument("--model", choices=network.list_models(), default="densenet121", metavar="MODEL", help="default: %(default)s")  # fmt: skip
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


if __name__ == "__main__":
    main()
