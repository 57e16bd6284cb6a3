"""Damage pictures at random, and count what becomes of them: held, refused or wrong.

    python tests/fuzz/pictures.py --seconds 600 --seed 1

Every file starts as one that :func:`data.read_image` reads. Then bits are flipped, bytes written over, pieces cut
out, doubled or taken from another file. What is read afterwards is *held* if it is the same picture, *refused* if it
is a ``ValueError`` that names the file, and *wrong* if it is anything else: another exception, more than ten seconds,
or, where a format has checksums (PNG), another picture. Formats without checksums show damage as a viewer does:
*shown*.
"""

import argparse
import collections
import io
import random
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from densenet_tutorial.data import read_image

LIMIT = 10  # seconds for one picture


def originals() -> dict[str, bytes]:
    """A picture of 48 x 40 pixels in every kind of file that this Pillow can write."""
    generator = np.random.default_rng(0)
    steps = np.linspace(0, 255, 48).astype(np.uint8)
    levels = np.stack([*np.meshgrid(steps, steps[:40]), generator.integers(0, 256, (40, 48))], 2)
    colour = Image.fromarray(levels.astype(np.uint8))
    grey, sixteen = colour.convert("L"), Image.fromarray(levels[:, :, 0].astype(np.uint16) * 257)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = colour.convert("RGBA")
    transparent.putalpha(grey)
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
    found = {}
    for name, (picture, options) in ways.items():
        kind = name.partition(",")[0]
        if kind in Image.SAVE:
            buffer = io.BytesIO()
            picture.save(buffer, kind, **options)
            found[name] = buffer.getvalue()
    return found


def damaged(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """`content` with something wrong in it."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 3, 20))):
        if not data:
            break
        place = chance.choice((chance.randrange(len(data)), chance.randrange(min(len(data), 300))))
        length = chance.choice((1, 2, 4, 100))
        kind = chance.randrange(6)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place : place + length] = chance.randbytes(length)
        elif kind == 2:
            data[place : place + length] = chance.choice((b"\0", b"\xff", b"\x7f")) * length
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        else:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[place : place + length] = other[start : start + length]
    if chance.random() < 0.1:
        del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def outcome(path: Path, whole: np.ndarray, checksums: bool) -> str:
    """What becomes of the file at `path`, which was the picture `whole`."""
    start = time.monotonic()
    try:
        found = np.asarray(read_image(path))
        word = "held" if np.array_equal(found, whole) else "wrong" if checksums else "shown"
    except ValueError as error:
        text = str(error)
        fine = text.startswith(f"{path} cannot be read as a picture: ") and "\n" not in text
        word = "refused" if fine else f"wrong: {text}"
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        word = f"wrong: {error!r}"
    return "wrong: too slow" if time.monotonic() - start > LIMIT else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chance = random.Random(options.seed)
    whole_files = originals()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        pictures = {}
        for name, content in whole_files.items():
            path.write_bytes(content)
            pictures[name] = np.asarray(read_image(path))
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            name = chance.choice(list(whole_files))
            content = damaged(whole_files[name], list(whole_files.values()), chance)
            path.write_bytes(content)
            # Several frames of a PNG: only the first is read, but the checksums are those of all.
            word = outcome(path, pictures[name], checksums=name.startswith("PNG"))
            counts[name][word.partition(":")[0]] += 1
            if word.startswith("wrong"):
                kept = Path(f"wrong-{name.replace(', ', '-')}-{sum(map(len, counts.values()))}")
                kept.write_bytes(content)
                print(f"{name}: {word}; kept as {kept}")
    for name, found in counts.items():
        print(f"{name:16}", ", ".join(f"{word} {count}" for word, count in sorted(found.items())))
    total = sum(counts.values(), collections.Counter())
    print("all             ", ", ".join(f"{word} {count}" for word, count in sorted(total.items())))


if __name__ == "__main__":
    main()
