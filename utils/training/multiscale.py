"""Training on images of changing size."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

STEPS_PER_SIZE = 10  # optimizer steps


def random_size(size: int, stride: int, seed: int, step: int) -> int:
    """The side of the images in pixels in an optimizer step: a multiple of ``stride`` from 3/4 to 5/4 of ``size``."""
    random = np.random.default_rng((seed, step // STEPS_PER_SIZE))
    return stride * int(random.integers(round(0.75 * size / stride), round(1.25 * size / stride) + 1))


def resize(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, S, S) scaled to ``size`` pixels."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
