"""Training on images of changing size."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from utils.sizes import AnySize, Size

STEPS_PER_SIZE = 10  # optimizer steps


def random_size(size: AnySize, stride: int, seed: int, step: int) -> Size:
    """The size of the images in an optimizer step: multiples of ``stride``, from 3/4 to 5/4 of ``size``.

    Of a rectangle that is the longer side; the other keeps about its ratio to it.
    """
    random = np.random.default_rng((seed, step // STEPS_PER_SIZE))
    longest = max(Size.of(size))
    cells = int(random.integers(round(0.75 * longest / stride), round(1.25 * longest / stride) + 1))
    return Size(*(stride * max(round(cells * side / longest), 1) for side in Size.of(size)))


def resize(images: Tensor, size: AnySize) -> Tensor:
    """Images (B, 3, H, W) scaled to ``size``."""
    size = Size.of(size)
    if size == images.shape[-2:]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
