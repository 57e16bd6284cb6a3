"""``python -m densenet_tutorial``: the package's commands."""

import argparse

from densenet_tutorial import environment, network


def _summary(options: argparse.Namespace) -> None:
    import torchinfo

    overrides = {} if options.in_channels is None else {"in_channels": options.in_channels}
    model = network.densenet(options.model, num_classes=options.num_classes, **overrides)
    size = (1, model.in_channels, options.size, options.size)
    print(torchinfo.summary(model, size, depth=options.depth, device="cpu", verbose=0))


def main(argv: list[str] | None = None) -> None:
    """Run one command; `argv` is the command line without the program's name."""
    parser = argparse.ArgumentParser(
        prog="python -m densenet_tutorial",
        description="DenseNet, step by step: commands of the package.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    env = commands.add_parser(
        "env", help="what a bug report should quote: system, device, versions"
    )
    env.set_defaults(run=lambda options: print(environment.report()))

    summary = commands.add_parser("summary", help="a model's layers, shapes and parameter counts")
    summary.add_argument("model", nargs="?", default="densenet121", help="default: %(default)s")
    summary.add_argument(
        "--size", type=int, default=224, help="image side in pixels (default: %(default)s)"
    )
    summary.add_argument("--num-classes", type=int, help="default: the model's own")
    summary.add_argument("--in-channels", type=int, help="default: the model's own")
    summary.add_argument(
        "--depth", type=int, default=2, help="levels of modules (default: %(default)s)"
    )
    summary.set_defaults(run=_summary)

    options = parser.parse_args(argv)
    try:
        options.run(options)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
