"""Data augmentation for whole batches.

Every function takes a uint8 tensor (N, C, H, W) on any device and returns a new one of the same
shape, using that device's default random generator. There is no loop over images, so the cost is
small compared to a training step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from densenet_tutorial.utils import arguments


def crop(images: Tensor) -> Tensor:
    """Random crop: pad each image with zeros by an eighth of its side, crop to the old size.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 4.1: 4 pixels of padding at
    32 x 32.
    """
    count, _, height, width = images.shape
    padding = max(height, width) // 8
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, count, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)  # (N, H), where each new row comes from
    columns = left + torch.arange(width, device=images.device)
    image = torch.arange(count, device=images.device)
    # Indexed dimensions come first, (N, H, W), and channels last.
    chosen = padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor) -> Tensor:
    """Mirror each image left to right, with probability one half.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 4.1.
    """
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def cutout(images: Tensor) -> Tensor:
    """Cutout: set a square of a quarter of the side to zero, centred anywhere in each image.

    Source: DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552: 8 of 32 pixels for CIFAR-100.
    """
    count, _, height, width = images.shape
    side = max(height, width) // 4

    def covered(length: int) -> Tensor:
        """(N, length), true for `side` consecutive positions, or fewer at an edge."""
        start = torch.randint(length, (count, 1), device=images.device) - side // 2
        places = torch.arange(length, device=images.device)
        return (places >= start) & (places < start + side)

    square = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    return images.masked_fill(square, 0)


#: The augmentations by the names in ``Recipe.augment``.
AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
}


def list_augmentations() -> list[str]:
    """The names for ``Recipe.augment``."""
    return list(AUGMENTATIONS)


@arguments.check(
    images=arguments.uint8_images,
    names=arguments.sequence_of(arguments.one_of(AUGMENTATIONS), empty=True),
)
def augment(images: Tensor, names: Sequence[str]) -> Tensor:
    """Apply the named augmentations, in order, to uint8 images (N, C, H, W).

    Raises:
        ValueError: `images` are no uint8 images, or a name is not in :func:`list_augmentations`.
    """
    for name in names:
        images = AUGMENTATIONS[name](images)
    return images
