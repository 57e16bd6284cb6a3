"""Read images from files, fit them into a size, and the bundled photographs."""

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

#: The names that :func:`photograph` accepts.
PHOTOGRAPHS = ("cat", "coffee", "rocket")

#: Pillow's names of the formats that :func:`read_image` reads; HEIF needs a plug-in. Others are
#: missing on purpose: EPS, for example, is a program, which Pillow would run.
FORMATS = (
    "PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000",
    "PPM", "ICO", "QOI", "HEIF",
)  # fmt: skip

#: Images with more pixels are refused, since a small file can declare any number of pixels.
#: (The cameras of phones have up to 108 million.)
MAX_PIXELS = 120_000_000

#: Other kinds of files, by their first bytes.
_SIGNATURES = {
    b"<": "a web page or a drawing (HTML, XML or SVG)",
    b"%PDF": "a PDF document",
    b"%!": "a PostScript program",
    b"8BPS": "a Photoshop document",
    b"version https://git-lfs": "a Git LFS pointer; the file is still to be fetched (git lfs pull)",
}

_open_lock = threading.Lock()  # warnings.catch_warnings is not thread-safe


@arguments.check(path=arguments.path)
def read_image(path: str | Path) -> Image.Image:
    """Read the image at `path` as RGB with 8 bits a channel, as an image viewer shows it.

    Applies the EXIF orientation and the colour profile (not a damaged one, nor one for another kind
    of image), puts transparent images on white, and converts 16 bits to 8, and palettes, grey,
    CMYK, YCbCr and Lab to RGB. Of several frames or pages it returns the first.

    Raises:
        ValueError: there is no such file; it is no regular file; it is no image, a damaged one, one
            with more than :data:`MAX_PIXELS`, or one whose values have no standard range (floating
            point, signed, 32 bits).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no regular file, but a folder, a pipe or a device")
        with open(path, "rb") as file:
            image = _decode(file)
    except Exception as error:  # decoders raise errors of many types
        raise ValueError(f"{path} cannot be read as an image: {_reason(error)}") from error
    try:
        return _to_srgb_on_white(image)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _decode(file: BinaryIO) -> Image.Image:
    """The first frame of the image in `file`, with its EXIF orientation applied."""
    start = file.read(26)
    what: str | None
    if not start:
        raise ValueError("it is empty")
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        what = "HEIC, as iPhones save images; save it as JPEG or PNG"
    else:
        kinds = (k for first, k in _SIGNATURES.items() if start.lstrip().startswith(first))
        what = next(kinds, None)
    image = _open(file, what)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are read"
        )
    if image.format == "PNG":
        image.verify()  # compares checksums, which load() does not
        image = _open(file, what)
        _scale_transparent_colour(image, bits=start[24])
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _open(file: BinaryIO, what: str | None) -> Image.Image:
    """Open the image in `file` without decoding it; an error calls the file `what`, if given."""
    file.seek(0)
    try:
        with _open_lock, warnings.catch_warnings():
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


def _scale_transparent_colour(image: Image.Image, bits: int) -> None:
    """Convert the transparent colour of a PNG to 8 bits; Pillow converts the pixels only.

    (Except for 16-bit grey, which Pillow does not convert.)
    """

    def scaled(level: int) -> int:
        return level * 255 // (2**bits - 1) if bits < 8 else level >> (bits - 8)

    colour = image.info.get("transparency")
    if colour is not None and image.mode in ("1", "L", "RGB"):
        grey = isinstance(colour, int)
        image.info["transparency"] = scaled(colour) if grey else tuple(map(scaled, colour))


def _to_srgb_on_white(image: Image.Image) -> Image.Image:
    """`image`, decoded, in sRGB and on white if it is transparent."""
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if "srgb" in image.info:
        gamma = None
    image = _to_8_bits(image)
    alpha = None
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image = _to_srgb(image, profile, gamma)
    if alpha is None:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _to_8_bits(image: Image.Image) -> Image.Image:
    """`image` in a mode with 8 bits a channel, with transparency as an alpha channel."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    depths, formats = (
        np.atleast_1d(tags.get(tag, default)) for tag, default in ((258, 8), (339, 1))
    )
    if image.mode == "F" or not {*formats.tolist()} <= {1, 4}:
        raise ValueError(
            "it holds floating-point or signed numbers, for which viewers agree on no black and "
            "white; save it with 8 or 16 bits a channel"
        )
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        if image.mode == "I" and image.format not in ("PNG", "PPM"):  # there it means 16 bits
            raise ValueError("it has 32 bits a channel; save it with 8 or 16")
        white = 2 ** int(depths[0]) - 1 if tags else 65535
        levels = np.asarray(image)
        table = np.round(np.arange(white + 1) * (255 / white)).astype(np.uint8)
        if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
            table = table[::-1]
        grey = Image.fromarray(table[levels])
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("P", "PA", "RGBa") or transparent is not None:
        return image.convert("RGBA")
    return image.convert({"1": "L", "La": "LA"}.get(image.mode, image.mode))


def _to_srgb(image: Image.Image, profile: bytes | None, gamma: float | None) -> Image.Image:
    """`image`, without alpha, in sRGB; `gamma` is that of a PNG without a profile."""
    converted = None if profile is None else _apply_profile(image, profile)
    if converted is None:
        converted = image.convert("RGB")
        exponent = 1 / (2.2 * gamma) if gamma and profile is None else 1.0
        if abs(exponent - 1) > 0.05:  # as libpng does
            converted = converted.point(
                [round(255 * (i / 255) ** exponent) for i in range(256)] * 3
            )
    converted.info = {}
    return converted


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """`image` converted from `profile` to sRGB; ``None`` if the profile is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = source.profile.xcolor_space.strip()
        kinds = {"RGB": ("RGB", "L", "YCbCr"), "GRAY": ("L",), "CMYK": ("CMYK",)}
        if image.mode not in kinds.get(colours, ()):
            return None
        image = image.convert("L" if colours == "GRAY" else colours)
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


class FitInside(nn.Module):
    """Resize images to fit inside a size, keeping their proportions, and pad them with black.

    ``fashion-mnist-small`` classifies 92 % of 1,000 images of clothes, cut out along their
    outlines, correctly after this transform, 63 % after a resize that ignores proportions, and 57 %
    after a center crop. Fashion-MNIST's images were made in the same way.

    Args:
        height, width: the size of the result, in pixels.

    Shape:
        image: a PIL image, or a tensor (…, H, W).
        output: the same type, `height` x `width` pixels.

    Source: Xiao et al. 2017, https://arxiv.org/abs/1708.07747, section 2.
    """

    @arguments.check(height=arguments.positive_int, width=arguments.positive_int)
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, image: Any) -> Any:
        height, width = transforms.get_size(image)
        if not height or not width:
            raise ValueError(f"image must have pixels, got {height} x {width}")
        scale = min(self.height / height, self.width / width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        return transforms.center_crop(transforms.resize(image, size), [self.height, self.width])


def photograph(name: str) -> Image.Image:
    """A bundled colour photograph, one of :data:`PHOTOGRAPHS`; its shorter side has 300 pixels.

    Source and licence of each are in ``bundled/photographs.LICENSE``.
    """
    file = f"data/bundled/{arguments.one_of(PHOTOGRAPHS)('name', name)}.jpg"
    content = resources.files("densenet_tutorial").joinpath(file).read_bytes()
    return Image.open(io.BytesIO(content)).convert("RGB")
