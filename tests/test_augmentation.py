"""Crops, flips and cutouts: what each may change and what not."""

import pytest
import torch

from densenet_tutorial import training
from densenet_tutorial.training import augmentation
from densenet_tutorial.training.augmentation import AUGMENTATIONS, augment


def numbered(count=64, side=28, channels=1):
    """uint8 images of values from 1 to 255, so that zero means padding or cutout."""
    generator = torch.Generator().manual_seed(0)
    size = (count, channels, side, side)
    return torch.randint(1, 256, size, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", training.list_augmentations())
@pytest.mark.parametrize("channels", [1, 3])
def test_same_shape_and_type_from_the_same_seed_and_the_input_stays(name, channels):
    images = numbered(channels=channels)
    before = images.clone()
    torch.manual_seed(3)
    one = AUGMENTATIONS[name](images)
    torch.manual_seed(3)
    again = AUGMENTATIONS[name](images)
    other = AUGMENTATIONS[name](images)
    assert one.shape == images.shape and one.dtype == torch.uint8
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("side", "padding"), [(28, 3), (32, 4)])
def test_every_crop_is_the_image_moved_and_padded_with_zeros(side, padding):
    torch.manual_seed(0)
    images = numbered(400, side)
    seen = set()
    for image, cropped in zip(images[:, 0], augmentation.crop(images)[:, 0]):
        padded = torch.nn.functional.pad(image, (padding,) * 4)
        moves = [
            (y, x)
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
            if torch.equal(padded[y : y + side, x : x + side], cropped)
        ]
        assert len(moves) == 1
        seen.update(moves)
    assert len(seen) > 0.9 * (2 * padding + 1) ** 2  # all places, near enough


def test_channels_move_together():
    torch.manual_seed(0)
    images = numbered(channels=1).expand(-1, 3, -1, -1)
    for name in AUGMENTATIONS:
        changed = AUGMENTATIONS[name](images)
        assert torch.equal(changed[:, 0], changed[:, 1])
        assert torch.equal(changed[:, 0], changed[:, 2])


def test_half_of_the_images_are_mirrored():
    torch.manual_seed(0)
    images = numbered(1000)
    flipped = augmentation.flip(images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 430 < mirrored.sum() < 570


def test_cutout_blackens_one_square_that_may_stick_out():
    torch.manual_seed(0)
    images = numbered(300)
    black = augmentation.cutout(images)[:, 0] == 0
    rows, columns = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(black.flatten(1).sum(1), rows * columns)  # a rectangle
    assert rows.max() == columns.max() == 28 // 4
    assert rows.min() < 28 // 4  # at an edge


def test_they_follow_each_other():
    images = numbered()
    torch.manual_seed(0)
    both = augment(images, ("flip", "cutout"))
    torch.manual_seed(0)
    assert torch.equal(both, augmentation.cutout(augmentation.flip(images)))
    assert augment(images, ()) is images


def test_unknown_ones_are_named():
    with pytest.raises(ValueError, match="^names must be .* one of 'crop', .*got \\('spin',\\)"):
        augment(numbered(), ("spin",))
    with pytest.raises(ValueError, match="^images must be a uint8 tensor of images"):
        augment(numbered().float(), ("crop",))
