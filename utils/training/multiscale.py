"""Training on images of changing size."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from utils.sizes import AnySize, Size

STEPS_PER_SIZE = 10  # optimizer steps


def random_size(size: AnySize, stride: AnySize, seed: int, step: int) -> Size:
    """The size of the images in an optimizer step: multiples of ``stride``'s sides, from 3/4 to 5/4 of ``size``.

    Of a rectangle that is the longer side; the other keeps about its ratio to it.
    """
    random = np.random.default_rng((seed, step // STEPS_PER_SIZE))
    sides = list(zip(Size.of(size), Size.of(stride), strict=True))
    longest, of_longest = max(sides)
    cells = int(random.integers(round(0.75 * longest / of_longest), round(1.25 * longest / of_longest) + 1))
    pixels = cells * of_longest
    return Size(*(cell * max(round(pixels * side / (longest * cell)), 1) for side, cell in sides))


def resize(images: Tensor, size: AnySize) -> Tensor:
    """Images (B, 3, H, W) scaled to ``size``."""
    size = Size.of(size)
    if size == images.shape[-2:]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
