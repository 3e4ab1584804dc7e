"""The data set that training and evaluation read: images as squares, with their boxes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.augmentations import Augmentation, LabelledImage, letterbox
from utils.data.image_cache import decode_all
from utils.data.images import open_image


class DetectionDataset(Dataset):
    """Images with boxes, letterboxed or augmented to a square. :mod:`utils.data.check` checks them beforehand.

    An item is requested by (epoch, index). Its randomness depends on the seed and these two alone.

    Args:
        images: the image files.
        labels: for each image its boxes (N, 5): class, cx, cy, w, h in [0, 1].
        img_size: the side S of the square, in pixels.
        augmentation: augments training images; None letterboxes them.
        seed: seed of the augmentation.

    Attributes:
        kept: the first images, decoded; see :meth:`keep`.
    """

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[np.ndarray],
        img_size: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        self.images = list(images)
        self.labels = list(labels)
        self.img_size = img_size
        self.augmentation = augmentation
        self.seed = seed
        self.kept: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int] | int) -> tuple[Tensor, Tensor]:
        """The square image (3, S, S) uint8 and its boxes (N, 5): class, cx, cy, w, h in [0, 1] of the square."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        if self.augmentation is None:
            image, boxes = letterbox(self.load(index), self.img_size)
        else:
            random = np.random.default_rng((self.seed, epoch, index))
            image, boxes = self.augmentation(self.load, index, len(self), self.img_size, epoch, random)
        targets = np.empty((len(boxes), 5), np.float32)
        targets[:, 0] = boxes[:, 0]
        targets[:, 1:3] = (boxes[:, 1:3] + boxes[:, 3:5]) / 2 / self.img_size
        targets[:, 3:5] = (boxes[:, 3:5] - boxes[:, 1:3]) / self.img_size
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(targets)

    def keep(self, max_bytes: int) -> int:
        """Keep the first images decoded in memory, as many as fit into ``max_bytes``; return the bytes they take.

        Call it before a loader starts its workers: they then share the memory.
        """
        self.kept = decode_all(self.images, read_image, max_bytes)
        return sum(pixels.nbytes for pixels in self.kept)

    def load(self, index: int) -> LabelledImage:
        """Image ``index`` at its size on disk, with boxes (N, 5): class, x1, y1, x2, y2 in its pixels."""
        image = open_image(self.images[index])
        label, cx, cy, w, h = self.labels[index].T
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        width, height = image.width, image.height
        boxes = np.stack([label, x1 * width, y1 * height, x2 * width, y2 * height], axis=1)
        return LabelledImage(width, height, boxes, image.decode)
