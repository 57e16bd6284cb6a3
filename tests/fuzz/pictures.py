"""Pictures in every kind of file that this Pillow writes, damaged."""

import io
from random import Random

import numpy as np
from kinds import Kind, damaged
from PIL import Image, ImageCms

from densenet_tutorial.data import images


def pictures() -> dict[str, bytes]:
    """A picture of 48 x 40 pixels in every kind of file."""
    steps = np.linspace(0, 255, 48).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)
    levels = np.stack([*np.meshgrid(steps, steps[:40]), noise], 2)
    colour = Image.fromarray(levels)
    grey, sixteen = colour.convert("L"), Image.fromarray(levels[:, :, 0].astype(np.uint16) * 257)
    transparent = colour.copy()
    transparent.putalpha(grey)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [grey.convert("RGB")]}
    ways = {
        "PNG": (colour, {"icc_profile": profile, "exif": exif}),
        "PNG, alpha": (transparent, {}),
        "PNG, 16 bits": (sixteen, {"transparency": 0}),
        "PNG, palette": (colour.quantize(64), {"transparency": 3}),
        "PNG, frames": (colour, frames),
        "JPEG": (colour, {"icc_profile": profile, "exif": exif}),
        "JPEG, CMYK": (colour.convert("CMYK"), {}),
        "MPO": (colour, frames),
        "GIF": (colour, frames),
        "WEBP": (colour, {}),
        "WEBP, lossless": (transparent, {"lossless": True, "icc_profile": profile}),
        "AVIF": (colour, {}),
        "TIFF": (colour, {"exif": exif}),
        "TIFF, 16 bits": (sixteen, {}),
        "TIFF, LZW": (colour, {"compression": "tiff_lzw"}),
        "TIFF, deflate": (transparent, {"compression": "tiff_adobe_deflate"}),
        "TIFF, fax": (grey.convert("1"), {"compression": "group4"}),
        "TIFF, JPEG": (colour, {"compression": "jpeg"}),
        "BMP": (colour, {}),
        "JPEG2000": (colour, {}),
        "PPM": (colour, {}),
        "ICO": (transparent, {"sizes": [(40, 40)]}),
        "QOI": (colour, {}),
    }
    Image.init()
    files = {}
    for name, (picture, options) in ways.items():
        kind = name.partition(",")[0]
        if kind in Image.SAVE:
            buffer = io.BytesIO()
            picture.save(buffer, kind, **options)
            files[name] = buffer.getvalue()
    return files


class Pictures(Kind):
    """Held if it is RGB of no more than the allowed pixels; a PNG, which has checksums, only if it
    is the same.
    """

    name = "picture"

    def __init__(self, folder):
        super().__init__(folder)
        images.MAX_PIXELS = 2**20
        self.path, self.files, self.whole = folder / "picture", pictures(), {}
        for name, content in self.files.items():
            self.path.write_bytes(content)
            self.whole[name] = np.asarray(images.read_image(self.path))

    def case(self, random: Random) -> None:
        name = random.choice(list(self.files))
        content = damaged(self.files[name], random)
        if random.randrange(10) == 0:  # the beginning of one and the end of another
            other = random.choice(list(self.files.values()))
            content = content[: random.randrange(len(content) + 1)] + other[random.randrange(300) :]
        self.path.write_bytes(content)
        try:
            picture = images.read_image(self.path)
        except ValueError as error:
            assert str(error).startswith(f"{self.path} cannot be read as an image: "), error
            raise
        assert picture.mode == "RGB" and 0 < picture.width * picture.height <= images.MAX_PIXELS
        # Formats without checksums show damage as a viewer does.
        same = np.array_equal(np.asarray(picture), self.whole[name])
        assert same or not name.startswith("PNG"), "another picture"


KINDS = [Pictures]
