"""Pictures: reading one from a file, and the photographs that come with the package."""

import io
from importlib import resources
from pathlib import Path

from PIL import Image

from densenet_tutorial.utils import arguments

#: What :func:`photograph` has.
PHOTOGRAPHS = ("cat", "coffee", "rocket")


def read_image(path: str | Path) -> Image.Image:
    """The picture in the file at `path`, in colour (RGB).

    Raises:
        ValueError: there is no such file, or it holds no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def photograph(name: str) -> Image.Image:
    """A photograph that ships with the package, in colour, its shorter side 300 pixels: one of :data:`PHOTOGRAPHS`.

    Source and licence of each are in ``bundled/photographs.LICENSE``.
    """
    file = f"data/bundled/{arguments.one_of(PHOTOGRAPHS)('name', name)}.jpg"
    with Image.open(
        io.BytesIO(resources.files("densenet_tutorial").joinpath(file).read_bytes())
    ) as picture:
        return picture.convert("RGB")
