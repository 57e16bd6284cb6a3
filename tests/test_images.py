"""Whatever way a picture is saved, it is read as a viewer shows it, or refused in words."""

import io
import os
import stat
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.transforms.functional import pil_to_tensor

from densenet_tutorial import data, weights
from densenet_tutorial.__main__ import main
from densenet_tutorial.data import FitInside, read_image

SIDE = 112
Image.init()


@pytest.fixture(scope="module")
def boot():
    """An ankle boot, bright on black, (112, 112) bytes."""
    dataset = data.load_dataset("fashion-mini")
    first = int((dataset.test_labels == 9).nonzero()[0])
    return np.kron(dataset.test_images[first, 0].numpy(), np.ones((4, 4), np.uint8))


def saved(picture, kind, **options):
    """`picture`, an image or an array, as a file of this kind."""
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(levels, bits, colour_type, chunks=(), size=None):
    """A PNG of any depth: `levels` is (H, W) or (H, W, C), `chunks` are pairs of name and content.

    `size`, width and height, is what the file says, if not the truth.
    """

    def chunk(name, content):
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = levels.shape[:2]
    rows = levels.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        each = (rows[..., None] >> np.arange(bits)[::-1]) & 1
        packed = np.packbits(each.reshape(height, -1).astype(np.uint8), axis=1)
    body = b"".join(b"\0" + row.tobytes() for row in packed)
    head = struct.pack(">IIBBBBB", *(size or (width, height)), bits, colour_type, 0, 0, 0)
    middle = b"".join(chunk(name, content) for name, content in chunks)
    end = chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + end


def tiff(levels, bits, photometric=1, sample_format=1, extra=None, content=None):
    """A TIFF as Pillow writes none: `levels` is (H, W) or (H, W, C), of the type in the file."""
    height, width = levels.shape[:2]
    channels = 1 if levels.ndim == 2 else levels.shape[2]
    content = content or levels.tobytes()
    tags = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [photometric],
        273: [8],
        277: [channels],
        278: [height],
        279: [len(content)],
        339: [sample_format] * channels,
    }
    if extra is not None:
        tags[338] = [extra]
    start = 8 + len(content)
    late = start + 2 + 12 * len(tags) + 4
    directory, behind = struct.pack("<H", len(tags)), b""
    for tag in sorted(tags):
        values = struct.pack(f"<{len(tags[tag])}I", *tags[tag])
        if len(values) > 4:
            field, behind = struct.pack("<I", late + len(behind)), behind + values
        else:
            field = values
        directory += struct.pack("<HHI", tag, 4, len(tags[tag])) + field
    return b"II*\0" + struct.pack("<I", start) + content + directory + b"\0\0\0\0" + behind


def read(tmp_path, content):
    path = tmp_path / "picture"
    path.write_bytes(content)
    picture = read_image(path)
    assert picture.mode == "RGB"
    assert not picture.info  # nothing that would be saved with it and is no longer true
    return np.asarray(picture).astype(int)


def in_colour(levels):
    return np.repeat(np.asarray(levels).astype(int)[:, :, None], 3, axis=2)


# -------------------------------------------------------------------------- one picture, many files


def palette(boot):
    return Image.fromarray(boot).convert("P")


def lab(boot):
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.profileToProfile(
        Image.fromarray(boot).convert("RGB"), *profiles, outputMode="LAB"
    )


def twelve_bits(boot):
    """Two pixels in three bytes."""
    levels = (boot.astype(int) * 4095 // 255).reshape(-1, 2)
    a, b = levels[:, 0], levels[:, 1]
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8)
    return tiff(boot, 12, content=packed.tobytes())


def rgb(boot):
    return Image.fromarray(boot).convert("RGB")


def wide(boot, dtype="<u2"):
    return (boot.astype(np.uint16) * 257).astype(dtype)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


#: Stored so that a viewer turns it back: by EXIF orientation.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[:, ::-1],
}


def turned(boot, orientation, kind, sixteen=False, **options):
    levels = np.ascontiguousarray(
        TURNED[orientation](boot[:96])
    )  # higher than wide tells them apart
    picture = Image.fromarray(levels.astype(np.uint16) * 257 if sixteen else levels)
    picture = picture.convert("RGB") if kind in ("WEBP", "AVIF") else picture
    found = exif(orientation)
    return saved(picture, kind, exif=found.tobytes() if kind == "WEBP" else found, **options)


#: Every file shows the boot in grey; with the largest difference from the plain PNG.
WAYS = {
    "PNG, grey": (lambda b: saved(b, "PNG"), 0),
    "PNG, colour": (lambda b: saved(rgb(b), "PNG"), 0),
    "PNG, interlaced as GIF does": (lambda b: saved(b, "GIF", interlace=1), 0),
    "PNG, 16 bits": (lambda b: png(wide(b), 16, 0), 0),
    "PNG, 16 bits, by Pillow": (lambda b: saved(wide(b), "PNG"), 0),
    "PNG, 16 bits, colour": (lambda b: png(np.stack([wide(b)] * 3, 2), 16, 2), 1),
    "PNG, 16 bits, alpha": (lambda b: png(np.stack([wide(b), wide(b | 255)], 2), 16, 4), 1),
    "PNG, 16 bits, colour, alpha": (
        lambda b: png(np.stack([*[wide(b)] * 3, wide(b | 255)], 2), 16, 6),
        1,
    ),
    "PNG, palette": (lambda b: saved(palette(b), "PNG"), 0),
    "PNG, alpha": (lambda b: saved(rgb(b).convert("RGBA"), "PNG"), 0),
    "PNG, grey, alpha": (lambda b: saved(Image.fromarray(b).convert("LA"), "PNG"), 0),
    "PNG, animated": (
        lambda b: saved(b, "PNG", save_all=True, append_images=[Image.fromarray(255 - b)]),
        0,
    ),
    "GIF": (lambda b: saved(b, "GIF"), 0),
    "GIF, animated": (
        lambda b: saved(b, "GIF", save_all=True, append_images=[Image.fromarray(255 - b)]),
        0,
    ),
    "JPEG": (lambda b: saved(b, "JPEG", quality=95), 12),
    "JPEG, colour, progressive": (
        lambda b: saved(rgb(b), "JPEG", quality=95, progressive=True),
        12,
    ),
    "JPEG, CMYK": (lambda b: saved(rgb(b).convert("CMYK"), "JPEG", quality=95), 12),
    "JPEG, several pictures": (
        lambda b: saved(rgb(b), "MPO", quality=95, save_all=True, append_images=[rgb(255 - b)]),
        12,
    ),
    "WebP": (lambda b: saved(rgb(b), "WEBP", quality=95), 24),
    "WebP, lossless": (lambda b: saved(rgb(b), "WEBP", lossless=True), 0),
    "WebP, animated": (
        lambda b: saved(rgb(b), "WEBP", lossless=True, save_all=True, append_images=[rgb(255 - b)]),
        0,
    ),
    "BMP": (lambda b: saved(rgb(b), "BMP"), 0),
    "BMP, palette": (lambda b: saved(palette(b), "BMP"), 0),
    "JPEG 2000": (lambda b: saved(rgb(b), "JPEG2000"), 2),
    "JPEG 2000, 16 bits": (lambda b: saved(wide(b), "JPEG2000"), 2),
    "PGM": (lambda b: saved(b, "PPM"), 0),
    "PGM, 16 bits": (lambda b: b"P5 112 112 65535\n" + wide(b, ">u2").tobytes(), 0),
    "PGM, 12 bits": (lambda b: b"P5 112 112 4095\n" + (wide(b) >> 4).astype(">u2").tobytes(), 1),
    "PGM, 200 levels": (
        lambda b: b"P5 112 112 200\n" + (b.astype(int) * 200 // 255).astype(np.uint8).tobytes(),
        2,
    ),
    "PGM, text": (lambda b: b"P2 112 112 255\n" + " ".join(map(str, b.ravel())).encode(), 0),
    "TIFF": (lambda b: saved(b, "TIFF"), 0),
    "TIFF, 0 is white": (lambda b: tiff(255 - b, 8, photometric=0), 0),
    "TIFF, compressed": (lambda b: saved(rgb(b), "TIFF", compression="tiff_lzw"), 0),
    "TIFF, palette": (lambda b: saved(palette(b), "TIFF"), 0),
    "TIFF, CMYK": (lambda b: saved(rgb(b).convert("CMYK"), "TIFF"), 0),
    "TIFF, YCbCr": (lambda b: saved(rgb(b).convert("YCbCr"), "TIFF"), 2),
    "TIFF, Lab": (lambda b: saved(lab(b), "TIFF"), 3),
    "TIFF, 12 bits": (twelve_bits, 1),
    "TIFF, 16 bits": (lambda b: saved(wide(b), "TIFF"), 0),
    "TIFF, 16 bits, big-endian": (lambda b: saved(wide(b, ">u2"), "TIFF"), 0),
    "TIFF, 16 bits, compressed": (lambda b: saved(wide(b), "TIFF", compression="tiff_lzw"), 0),
    "TIFF, 16 bits, 0 is white": (lambda b: tiff(65535 - wide(b), 16, photometric=0), 0),
    "TIFF, 16 bits, colour": (lambda b: tiff(np.stack([wide(b)] * 3, 2), 16, photometric=2), 1),
    "TIFF, 16 bits, CMYK": (
        lambda b: tiff(np.stack([wide(255 - b)] * 3 + [wide(b * 0)], 2), 16, photometric=5),
        1,
    ),
    "TIFF, pages": (
        lambda b: saved(b, "TIFF", save_all=True, append_images=[Image.fromarray(255 - b)]),
        0,
    ),
}
if "AVIF" in Image.SAVE:
    WAYS["AVIF"] = (lambda b: saved(rgb(b), "AVIF", quality=95), 12)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_save_a_picture_is_read_as_the_same(tmp_path, boot, way):
    save, tolerance = WAYS[way]
    found = read(tmp_path, save(boot))
    assert found.shape == (SIDE, SIDE, 3)
    assert np.abs(found - in_colour(boot)).max() <= tolerance


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100}),
        ("PNG", {}),
        ("PNG", {"sixteen": True}),
        ("TIFF", {}),
        ("TIFF", {"sixteen": True}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_a_picture_is_turned_as_it_says(tmp_path, boot, kind, options, orientation):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    found = read(tmp_path, turned(boot, orientation, kind, **options))
    assert found.shape == (96, SIDE, 3)
    assert np.abs(found - in_colour(boot[:96])).max() <= 4


def test_one_boot_is_an_ankle_boot_in_every_file(tmp_path, boot, capsys):
    files = {way.replace(" ", "_").replace(",", ""): save(boot) for way, (save, _) in WAYS.items()}
    for orientation, turn in TURNED.items():
        stored = Image.fromarray(np.ascontiguousarray(turn(boot)))
        files[f"turned_{orientation}"] = saved(stored, "JPEG", exif=exif(orientation))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    main(
        ["predict", "fashion-mnist-small", *(str(tmp_path / name) for name in files), "--top", "1"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(files)
    for line in lines:
        assert ": Ankle boot 9" in line


def test_two_levels_stay_two_levels(tmp_path, boot):
    black_and_white = np.where(boot > 128, 255, 0)
    for content in (
        png(black_and_white // 255, 1, 0),
        saved(Image.fromarray(boot > 128), "PNG"),
        saved(Image.fromarray(boot > 128), "TIFF", compression="group4"),
        b"P4 112 112\n" + np.packbits(boot <= 128, axis=1).tobytes(),
    ):
        assert np.array_equal(read(tmp_path, content), in_colour(black_and_white))
    for bits in (2, 4):
        levels = boot >> (8 - bits)
        expected = in_colour(levels.astype(int) * 255 // (2**bits - 1))
        assert np.array_equal(read(tmp_path, png(levels, bits, 0)), expected)


# ------------------------------------------------------------------------------ transparency


def on_white(levels, alpha):
    return in_colour(np.round(levels * (alpha / 255.0) + 255 * (1 - alpha / 255.0)))


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("LA", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("LA", "TIFF", {}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("RGBA", "JPEG2000", {}),
        ("RGBA", "ICO", {"sizes": [(SIDE, SIDE)]}),
        ("RGBA", "AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_what_is_transparent_is_laid_on_white(tmp_path, boot, mode, kind, options):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    alpha = np.tile(np.linspace(0, 255, SIDE).round().astype(np.uint8), (SIDE, 1))
    picture = Image.merge("LA", [Image.fromarray(boot), Image.fromarray(alpha)]).convert(mode)
    found = read(tmp_path, saved(picture, kind, **options))
    assert np.abs(found - on_white(boot, alpha)).max() <= 2


def test_premultiplied_alpha_is_divided_out(tmp_path, boot):
    alpha = np.tile(np.linspace(40, 255, SIDE).round().astype(np.uint8), (SIDE, 1))
    stored = np.round(boot * (alpha / 255.0)).astype(np.uint8)
    for channels, photometric in ((1, 1), (3, 2)):
        content = tiff(np.stack([stored] * channels + [alpha], 2), 8, photometric, extra=1)
        assert np.abs(read(tmp_path, content) - on_white(boot, alpha)).max() <= 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour_type", [0, 2])
def test_a_png_may_name_one_transparent_colour(tmp_path, boot, bits, colour_type):
    if colour_type == 2 and bits < 8:
        pytest.skip("there is no such PNG")
    levels = (
        boot.astype(int) >> (8 - bits)
        if bits < 8
        else boot.astype(int) * (257 if bits == 16 else 1)
    )
    shown = boot if bits >= 8 else levels * 255 // (2**bits - 1)
    for key in np.unique(levels)[[0, 1, -1]]:
        channels = 3 if colour_type else 1
        stored = np.stack([levels] * channels, 2)
        transparent = struct.pack(f">{channels}H", *[key] * channels)
        found = read(tmp_path, png(stored, bits, colour_type, [(b"tRNS", transparent)]))
        assert np.array_equal(found, on_white(shown, np.where(levels == key, 0, 255)))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_may_have_transparent_entries(tmp_path, boot, kind):
    found = read(tmp_path, saved(palette(boot), kind, transparency=0))
    assert np.array_equal(found, on_white(boot, np.where(boot == 0, 0, 255)))


def test_a_palette_may_have_half_transparent_entries(tmp_path, boot):
    alpha = bytes([0] * 50 + [128] * 100 + [255] * 106)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(tmp_path, saved(palette(boot), "PNG", transparency=alpha))
    assert np.abs(found - on_white(boot, np.frombuffer(alpha, np.uint8)[boot])).max() <= 1


def test_a_thing_on_nothing_is_predicted_as_on_white(tmp_path, boot, capsys):
    """As in a catalogue: dark on transparent. Inverted, that is bright on black."""
    alpha = np.where(boot > 0, 255, 0).astype(np.uint8)
    picture = Image.merge("LA", [Image.fromarray(255 - boot), Image.fromarray(alpha)])
    picture.save(tmp_path / "boot.png")
    main(["predict", "fashion-mnist-small", str(tmp_path / "boot.png"), "--invert", "--top", "1"])
    assert "boot.png: Ankle boot 9" in capsys.readouterr().out


# ------------------------------------------------------------------------------ colours


def profile(colours, tags, space=b"XYZ "):
    """An ICC profile, version 2, for input, of these `colours` and with these tags."""
    tags = {b"wtpt": fixed([0.9642, 1, 0.8249]), b"cprt": b"text\0\0\0\0none\0", **tags}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    table, content = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value = value.ljust(-(-len(value) // 4) * 4, b"\0")
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(value))
        content += value
    size = 128 + len(table) + len(content)
    head = struct.pack(">I4sI", size, b"test", 0x02100000) + b"scnr" + colours + space
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + table + content


def fixed(numbers):
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)


def power(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


RED, GREEN, BLUE = [0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]


def matrix_profile(red, green, blue, gamma=2.2):
    columns = {b"rXYZ": fixed(red), b"gXYZ": fixed(green), b"bXYZ": fixed(blue)}
    return profile(b"RGB ", columns | {name: power(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")})


def cmyk_profile():
    """Full ink is white and none is black: not what one would guess without a profile."""
    lightness = [255 if corner == 15 else 0 for corner in range(16)]
    ramp = bytes(range(256))
    unit = b"".join(struct.pack(">i", 65536 * (i in (0, 4, 8))) for i in range(9))
    grid = b"".join(bytes([light, 128, 128]) for light in lightness)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + ramp * 4 + grid + ramp * 3
    return profile(b"CMYK", {b"A2B0": table}, space=b"Lab ")


@pytest.fixture(scope="module")
def colours():
    """(64, 64, 3) bytes, all kinds of them."""
    steps = np.linspace(0, 255, 64).round().astype(np.uint8)
    return np.stack([*np.meshgrid(steps, steps), np.full((64, 64), 90, np.uint8)], 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_colours_are_converted_from_their_profile(tmp_path, colours, kind):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
    swapped = matrix_profile(BLUE, GREEN, RED)  # what is stored as red is blue
    content = saved(colours, kind, icc_profile=swapped, **options.get(kind, {}))
    difference = np.abs(read(tmp_path, content) - colours[:, :, ::-1].astype(int))
    assert np.percentile(difference, 95) <= 8  # sRGB's own curve is not quite a power of 2.2
    assert difference.max() <= 16


def test_a_profile_and_transparency_go_together(tmp_path, colours):
    alpha = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
    picture = Image.fromarray(np.concatenate([colours, alpha[:, :, None]], 2))
    content = saved(picture, "PNG", icc_profile=matrix_profile(BLUE, GREEN, RED))
    expected = colours[:, :, ::-1] * (alpha[:, :, None] / 255) + 255 - alpha[:, :, None]
    assert np.percentile(np.abs(read(tmp_path, content) - expected), 95) <= 8


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_profile_of_grey(tmp_path, boot, mode):
    linear = profile(b"GRAY", {b"kTRC": power(1)})
    picture = {"L": Image.fromarray(boot), "P": palette(boot), "I;16": Image.fromarray(wide(boot))}
    share = boot / 255
    srgb = np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)
    # A palette's colours are RGB, whatever they are: a profile of grey does not fit.
    expected = boot if mode == "P" else np.round(255 * srgb)
    found = read(tmp_path, saved(picture[mode], "PNG", icc_profile=linear))
    difference = np.abs(found - in_colour(expected))
    assert difference.mean() <= 0.5 and difference.max() <= 12  # the darkest levels are rounded


def test_a_profile_of_colours_in_a_grey_picture(tmp_path, boot):
    content = saved(boot, "JPEG", quality=100, icc_profile=matrix_profile(RED, GREEN, BLUE))
    assert np.abs(read(tmp_path, content) - in_colour(boot)).max() <= 12
    content = saved(boot, "JPEG", quality=100, icc_profile=matrix_profile(RED, GREEN, BLUE, 1.0))
    assert read(tmp_path, content).mean() > 1.2 * boot.mean()


def test_a_profile_of_inks(tmp_path, boot):
    inks = Image.merge("CMYK", [Image.fromarray(boot)] * 4)
    for kind in ("TIFF", "JPEG"):
        found = read(tmp_path, saved(inks, kind, icc_profile=cmyk_profile()))
        assert found[boot == boot.max()].min() > 240 and found[boot == 0].max() < 15


@pytest.mark.parametrize(
    "broken",
    [b"no profile", b"", bytes(4000), matrix_profile(RED, GREEN, BLUE)[:150], cmyk_profile()],
    ids=["text", "empty", "zeros", "cut", "of other colours"],
)
def test_a_profile_that_means_nothing_here_is_left_out(tmp_path, colours, broken):
    found = read(tmp_path, saved(colours, "PNG", icc_profile=broken))
    assert np.array_equal(found, colours)


def test_the_gamma_of_a_png_counts_unless_something_better_is_there(tmp_path, boot):
    def content(*chunks):
        return png(boot, 8, 0, [(b"gAMA", struct.pack(">I", 100_000)), *chunks])

    brighter = in_colour(np.round(255 * (boot / 255) ** (1 / 2.2)))
    assert np.abs(read(tmp_path, content()) - brighter).max() <= 1
    assert np.array_equal(read(tmp_path, content((b"sRGB", b"\0"))), in_colour(boot))
    usual = png(boot, 8, 0, [(b"gAMA", struct.pack(">I", 45_455))])
    assert np.array_equal(read(tmp_path, usual), in_colour(boot))


# ------------------------------------------------------------------------------ what is refused

REFUSED = {
    "float, 32 bits": (lambda b: saved((b / 255).astype(np.float32), "TIFF"), "floating-point"),
    "float, PFM": (lambda b: b"Pf 112 112 -1.0\n" + (b / 255).astype("<f4").tobytes(), "floating"),
    "float, 16 bits": (lambda b: tiff((b / 255).astype("<f2"), 16, sample_format=3), "none of PNG"),
    "signed, 8 bits": (lambda b: tiff((b >> 1).astype("i1"), 8, sample_format=2), "signed"),
    "signed, 16 bits": (
        lambda b: tiff((wide(b) >> 1).astype("<i2"), 16, sample_format=2),
        "signed",
    ),
    "32 bits": (lambda b: tiff(wide(b).astype("<u4") * 65537, 32), "32 bits a channel"),
    "32 bits, signed": (lambda b: saved(b.astype(np.int32), "TIFF"), "signed"),
    "text": (lambda b: b"no picture", "none of PNG, JPEG"),
    "empty": (lambda b: b"", "it is empty"),
    "a drawing": (
        lambda b: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "SVG",
    ),
    "a program": (lambda b: saved(rgb(b), "EPS"), "a PostScript program"),
    "a document": (lambda b: saved(rgb(b), "PDF"), "a PDF document"),
    "from an iPhone": (
        lambda b: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "save it as JPEG",
    ),
    "no width": (lambda b: png(np.zeros((4, 0), np.uint8), 8, 0), "none of PNG"),
    "no pixels": (lambda b: b"P5 0 0 255\n", "none of PNG"),
    "too many pixels": (
        lambda b: png(b, 8, 0, size=(12_000, 12_000)),
        "at most 120,000,000 are read",
    ),
    "far too many pixels": (
        lambda b: saved(b, "BMP").replace(
            struct.pack("<ii", SIDE, SIDE), struct.pack("<ii", 60_000, 60_000)
        ),
        "pixels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_in_words(tmp_path, boot, name):
    content, words = REFUSED[name]
    with pytest.raises(
        ValueError, match=f"/picture cannot be read as an image: .*({words})"
    ) as error:
        read(tmp_path, content(boot))
    assert "\n" not in str(error.value)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning would come as well
        with pytest.raises(
            ValueError, match="12000 x 10001 pixels, and at most 120,000,000 are read"
        ):
            read(tmp_path, b"P5 12000 10001 255\n" + bytes(100))


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM", "ICO"]
)
def test_a_picture_that_is_cut_short_is_refused(tmp_path, colours, kind):
    content = saved(colours, kind)
    for share in (0.1, 0.5, 0.9, 0.97):
        with pytest.raises(ValueError, match="cannot be read as an image: "):
            read(tmp_path, content[: int(share * len(content))])


def test_a_flipped_bit_is_noticed_in_a_png_which_has_checksums(tmp_path, boot):
    content = saved(boot, "PNG")
    refused = 0
    for place in range(8, len(content), 13):
        damaged = bytearray(content)
        damaged[place] ^= 16
        try:
            assert np.array_equal(read(tmp_path, damaged), in_colour(boot))  # behind the picture
        except ValueError as error:
            assert "cannot be read as an image: " in str(error)
            refused += 1
    assert refused > 20


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (tmp_path, "a folder, a pipe or a device"),
        (tmp_path / "pipe", "a folder, a pipe or a device"),
        (os.devnull, "a folder, a pipe or a device"),
        (tmp_path / "none.png", "there is no such file"),
        (str(tmp_path / "none\0.png"), "null byte"),
    ]:
        with pytest.raises(ValueError, match=f"cannot be read as an image: .*{words}"):
            read_image(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_plug_in_for_other_pictures_is_used_if_the_caller_has_one(tmp_path, boot, monkeypatch):
    """As pillow-heif is one for HEIC; this one reads anything as a picture of one pixel."""
    with pytest.raises(ValueError, match="HEIC"):
        read(tmp_path, REFUSED["from an iPhone"][0](boot))

    class Plugin(Image.Image):
        format = "HEIF"

        def __init__(self, file, name):
            super().__init__()
            self.im, self._mode, self._size = (
                Image.core.fill("RGB", (1, 1), (1, 2, 3)),
                "RGB",
                (1, 1),
            )

    monkeypatch.setitem(Image.OPEN, "HEIF", (Plugin, lambda start: start[4:12] == b"ftypheic"))
    assert read(tmp_path, REFUSED["from an iPhone"][0](boot)).tolist() == [[[1, 2, 3]]]


def test_a_bad_path_is_named():
    for path in (None, 3, b"a.png", object()):
        with pytest.raises(ValueError, match="^path must be a path, got "):
            read_image(path)


# ------------------------------------------------------------------------------ fitting into a size


@pytest.mark.parametrize(
    ("size", "inside"),
    [
        ((50, 100), (14, 28)),
        ((300, 100), (28, 9)),
        ((28, 28), (28, 28)),
        ((7, 3), (28, 12)),
        ((1, 4000), (1, 28)),
    ],
)
def test_a_picture_is_scaled_whole_and_the_rest_is_black(size, inside):
    picture = torch.full((3, *size), 200, dtype=torch.uint8)
    for fitted in (
        FitInside(28, 28)(picture),
        pil_to_tensor(FitInside(28, 28)(Image.fromarray(picture.permute(1, 2, 0).numpy()))),
    ):
        assert fitted.shape == (3, 28, 28)
        bright = (fitted == 200).all(0)
        assert (bright.any(1).sum(), bright.any(0).sum()) == inside
        assert ((fitted == 0).all(0) | bright).all()
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        for places in (rows, columns):  # in the middle
            assert abs(int(places[0]) - (27 - int(places[-1]))) <= 1


def test_a_wide_boot_is_not_squashed():
    """Clothes that are cut out along their outline: those that are wide or high."""
    dataset = data.load_dataset("fashion-mini")
    prepare = weights.transforms("fashion-mnist-small")
    kept, expected = [], []
    for picture in dataset.test_images[:300]:
        rows, columns = ((picture[0] > 0).any(side).nonzero().flatten() for side in (1, 0))
        cut = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if max(cut.shape[1:]) == 28 and 28 - min(cut.shape[1:]) >= 6:
            middle = (28 - cut.shape[1]) // 2, (28 - cut.shape[2]) // 2
            moved = torch.zeros_like(picture)
            moved[:, middle[0] :, middle[1] :][:, : cut.shape[1], : cut.shape[2]] = cut
            kept.append(prepare(cut))
            expected.append(prepare(moved))
    assert len(kept) > 30
    assert torch.allclose(torch.stack(kept), torch.stack(expected), atol=0.02)
