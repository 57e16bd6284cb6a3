"""Pictures: reading one from a file, fitting it into a size, and the photographs that come along."""

import io
import os
import stat
import threading
import warnings
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from densenet_tutorial.utils import arguments

#: What :func:`photograph` has.
PHOTOGRAPHS = ("cat", "coffee", "rocket")

#: What :func:`read_image` reads, by Pillow's names; HEIF if the caller has registered a plug-in for
#: it. Some others are left out on purpose: for EPS, Pillow runs the program that such a file is.
FORMATS = (
    "PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "ICO", "QOI", "HEIF",
)  # fmt: skip

#: More pixels are refused: a small file can ask for any number. (Phones have up to 108 million.)
MAX_PIXELS = 120_000_000

_WHAT_ELSE = {
    b"<": "a web page or a drawing (HTML, XML or SVG)",
    b"%PDF": "a PDF document",
    b"%!": "a PostScript program",
    b"8BPS": "a Photoshop document",
    b"version https://git-lfs": "a Git LFS pointer; the file itself is still to be fetched (git lfs pull)",
}  # fmt: skip

_opening = threading.Lock()  # warnings.catch_warnings is not safe in threads


@arguments.check(path=arguments.path)
def read_image(path: str | Path) -> Image.Image:
    """The picture in the file at `path` as a viewer shows it, in colour: sRGB, 8 bits a channel.

    It is turned as its EXIF orientation says, converted from its colour profile (a damaged one, or one
    of another kind of picture, is left out), and laid on white where it is transparent. 16 bits become
    8, and palettes, grey, CMYK, YCbCr and Lab become RGB. Of several frames or pages, it is the first.

    Raises:
        ValueError: there is no such file; it is no regular file; it holds no picture, a damaged one, one
            with more than :data:`MAX_PIXELS`, or one whose numbers have no black and white that viewers
            agree on (floating point, signed, 32 bits).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no regular file, but a folder, a pipe or a device")
        with open(path, "rb") as file:
            picture = _decoded(file)
    except Exception as error:  # a decoder raises whatever its parts do; all of it means the same
        raise ValueError(f"{path} cannot be read as a picture: {_reason(error)}") from error
    try:
        return _as_seen(picture)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _decoded(file: BinaryIO) -> Image.Image:
    """The first frame of the picture in `file`, turned as its EXIF orientation says."""
    start = file.read(26)
    if not start:
        raise ValueError("it is empty")
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        what = "HEIC, as iPhones save pictures; save it as JPEG or PNG"
    else:
        what = next((w for s, w in _WHAT_ELSE.items() if start.lstrip().startswith(s)), None)
    picture = _opened(file, what)
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"it has {picture.width} x {picture.height} pixels, and at most {MAX_PIXELS:,} are read"
        )
    if picture.format == "PNG":
        picture.verify()  # compares checksums, which load() does not
        picture = _opened(file, what)
        _scale_transparent_colour(picture, bits=start[24])
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _opened(file: BinaryIO, what: str | None) -> Image.Image:
    """The picture in `file`, still to be decoded; an error says that the file is `what`, if given."""
    file.seek(0)
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS does it
            Image.init()
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        if what is None:
            what = f"none of {', '.join(FORMATS[:9])} and the like, or damaged where it begins"
        raise ValueError(f"it is {what}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _scale_transparent_colour(picture: Image.Image, bits: int) -> None:
    """Bring the colour that means "transparent" in a PNG to 8 bits, as Pillow does with pixels alone.

    (But for 16-bit grey, which Pillow leaves as it is.)
    """

    def scaled(level: int) -> int:
        return level * 255 // (2**bits - 1) if bits < 8 else level >> (bits - 8)

    colour = picture.info.get("transparency")
    if colour is not None and picture.mode in ("1", "L", "RGB"):
        grey = isinstance(colour, int)
        picture.info["transparency"] = scaled(colour) if grey else tuple(map(scaled, colour))


def _as_seen(picture: Image.Image) -> Image.Image:
    """A decoded picture in sRGB, on white."""
    profile, gamma = picture.info.get("icc_profile"), picture.info.get("gamma")
    if "srgb" in picture.info:
        gamma = None
    picture = _in_eight_bits(picture)
    alpha = None
    if picture.mode in ("LA", "RGBA"):
        alpha = picture.getchannel("A")
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    picture = _in_srgb(picture, profile, gamma)
    if alpha is None:
        return picture
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=alpha)
    return white


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """`picture` in a mode with 8 bits a channel, with alpha in a channel of its own."""
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    depths, formats = (
        np.atleast_1d(tags.get(tag, default)) for tag, default in ((258, 8), (339, 1))
    )
    if picture.mode == "F" or not {*formats.tolist()} <= {1, 4}:
        raise ValueError(
            "it holds floating-point or signed numbers, for which viewers agree on no black and white; "
            "save it with 8 or 16 bits a channel"
        )
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # there it means 16 bits
            raise ValueError("it has 32 bits a channel; save it with 8 or 16")
        white = 2 ** int(depths[0]) - 1 if tags else 65535
        levels = np.asarray(picture)
        table = np.round(np.arange(white + 1) * (255 / white)).astype(np.uint8)
        if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
            table = table[::-1]
        grey = Image.fromarray(table[levels])
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
        return grey
    if picture.mode in ("P", "PA", "RGBa") or transparent is not None:
        return picture.convert("RGBA")
    return picture.convert({"1": "L", "La": "LA"}.get(picture.mode, picture.mode))


def _in_srgb(picture: Image.Image, profile: bytes | None, gamma: float | None) -> Image.Image:
    """`picture`, without alpha, in sRGB; `gamma` is what a PNG says of itself where it has no profile."""
    converted = None if profile is None else _by_profile(picture, profile)
    if converted is None:
        converted = picture.convert("RGB")
        exponent = 1 / (2.2 * gamma) if gamma and profile is None else 1.0
        if abs(exponent - 1) > 0.05:  # as libpng does
            converted = converted.point(
                [round(255 * (i / 255) ** exponent) for i in range(256)] * 3
            )
    converted.info = {}
    return converted


def _by_profile(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """`picture` from `profile` to sRGB; ``None`` if the profile is damaged, or of other colours."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = source.profile.xcolor_space.strip()
        kinds = {"RGB": ("RGB", "L", "YCbCr"), "GRAY": ("L",), "CMYK": ("CMYK",)}
        if picture.mode not in kinds.get(colours, ()):
            return None
        picture = picture.convert("L" if colours == "GRAY" else colours)
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


class FitInside(nn.Module):
    """Scale pictures so that they just fit into a size, and fill what is left with black, on both sides.

    So nothing is squashed or cut off. Of 1,000 pictures of clothes, each cut out along its outline,
    ``fashion-mnist-small`` tells 92 % when they go through this, 63 % when they are squashed, and 57 %
    when the middle is cut out. It is also how Fashion-MNIST's pictures were made.

    Args:
        height, width: of the result, in pixels.

    Shape:
        picture: a PIL picture, or a tensor of (…, H, W).
        output: the same kind, `height` x `width` pixels.

    Source: Xiao et al. 2017, https://arxiv.org/abs/1708.07747, section 2.
    """

    @arguments.check(height=arguments.positive_int, width=arguments.positive_int)
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, picture: Any) -> Any:
        height, width = transforms.get_size(picture)
        scale = min(self.height / height, self.width / width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        return transforms.center_crop(transforms.resize(picture, size), [self.height, self.width])


def photograph(name: str) -> Image.Image:
    """A photograph that ships with the package, in colour: one of :data:`PHOTOGRAPHS`.

    Its shorter side has 300 pixels.

    Source and licence of each are in ``bundled/photographs.LICENSE``.
    """
    file = f"data/bundled/{arguments.one_of(PHOTOGRAPHS)('name', name)}.jpg"
    with Image.open(
        io.BytesIO(resources.files("densenet_tutorial").joinpath(file).read_bytes())
    ) as picture:
        return picture.convert("RGB")
