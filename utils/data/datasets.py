"""The data set that training and evaluation read: images in the size of the network's input, with their boxes."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.boxes import Letterbox
from utils.darknet.spec import NetworkSpec
from utils.data.augmentations import Augmentation, LabelledImage, letterbox, reduction_for, resize
from utils.data.image_cache import ImageCache, Source, build_cache
from utils.data.images import image_sizes, input_size, open_image
from utils.sizes import AnySize, Size

NEIGHBOURS = 16  # consecutive images of an epoch; a mosaic consists of such, so that each is decoded about once
# Training images are read at this multiple of the input's size: nearly the largest scale that augmentation draws.
REACH = 1.5
TOLERANCE = 1.2  # and no larger than this multiple of that


class DetectionDataset(Dataset):
    """Images with boxes, letterboxed or augmented to the size of a network's input.

    :mod:`utils.data.check` checks them beforehand.

    An item is requested by (epoch, index). Its randomness depends on the seed and these two alone.

    Args:
        images: the image files.
        labels: for each image its boxes (N, 5): class, cx, cy, w, h in [0, 1].
        img_size: of the network's input.
        augmentation: augments training images; None letterboxes them.
        seed: seed of the augmentation, and of the order of an epoch.
        rectangles: see :func:`utils.data.images.input_size`.

    Attributes:
        cache: the images, already read, for those that are in it.
    """

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[np.ndarray],
        img_size: AnySize,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rectangles: NetworkSpec | None = None,
    ):
        self.images = list(images)
        self.labels = list(labels)
        self.img_size = Size.of(img_size)
        self.augmentation = augmentation
        self.seed = seed
        self.rectangles = rectangles
        self.cache: ImageCache | None = None
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._order = EpochOrder(len(self.images), seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int] | int) -> tuple[Tensor, Tensor]:
        """The image (3, H, W) uint8 in the input's size, and its boxes (N, 5): class, cx, cy, w, h in [0, 1] of it."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        if self.augmentation is None:
            labelled = self.load(index)
            image, boxes = letterbox(labelled, self.input_size(*labelled.size))
        else:
            random = np.random.default_rng((self.seed, epoch, index))
            partners = self._order.neighbours(epoch, index)
            image, boxes = self.augmentation(self.load, index, partners, self.img_size, epoch, random)
        targets = np.empty((len(boxes), 5), np.float32)
        targets[:, 0] = boxes[:, 0]
        sides = np.array(image.shape[1::-1], boxes.dtype)
        targets[:, 1:3] = (boxes[:, 1:3] + boxes[:, 3:5]) / 2 / sides
        targets[:, 3:5] = (boxes[:, 3:5] - boxes[:, 1:3]) / sides
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(targets)

    @property
    def fingerprint(self) -> str:
        """A text that changes with the images' files and with the boxes."""
        seen = hashlib.sha256()
        for path, boxes in zip(self.images, self.labels, strict=True):
            status = path.stat()
            file = f"{path} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
            seen.update(file + boxes.tobytes())
        return seen.hexdigest()

    def input_size(self, width: int, height: int) -> Size:
        """The size to which an image of ``width`` x ``height`` pixels is letterboxed."""
        return input_size(width, height, self.img_size, self.rectangles)

    def load(self, index: int) -> LabelledImage:
        """Image ``index`` as :meth:`read` gives it, with boxes (N, 5): class, x1, y1, x2, y2 in its pixels."""
        pixels = self._pixels(index)
        height, width = pixels.shape[:2]
        boxes = self.labels[index].copy()
        boxes[:, 1:3] -= boxes[:, 3:5] / 2
        boxes[:, 3:5] += boxes[:, 1:3]
        boxes[:, 1:] *= np.array([width, height, width, height], boxes.dtype)
        return LabelledImage(pixels, boxes)

    def _pixels(self, index: int) -> np.ndarray:
        if self.cache and index < len(self.cache):
            return self.cache[index]
        if self.augmentation is None:
            return self.read(index)
        pixels = self._recent.pop(index, None)
        self._recent[index] = self.read(index) if pixels is None else pixels
        if len(self._recent) > NEIGHBOURS:
            self._recent.popitem(last=False)
        return self._recent[index]

    def fill_cache(self, kind: str, folder: Path, max_bytes: int) -> None:
        """Keep the images as they are read: all of them on "disk", or in "ram" the first that fit into ``max_bytes``.

        Call it in all processes, before a loader starts its workers. See :func:`utils.data.image_cache.build_cache`.

        Args:
            kind: "ram" or "disk".
            folder: where images on disk are cached.
            max_bytes: for "ram".
        """
        sizes = [self.read_size(*size)[1:] for size in image_sizes(self.images)]
        key = f"{str(self.img_size).replace(' ', 'x')}-{'letterboxed' if self.augmentation is None else 'augmented'}"
        self.cache = build_cache(Source(self.images, sizes, self.read, key, folder), kind, max_bytes)

    def read(self, index: int) -> np.ndarray:
        """Read image ``index`` at the size (H, W, 3) uint8 that it is used at, see :meth:`read_size`."""
        image = open_image(self.images[index])
        reduction, width, height = self.read_size(image.width, image.height)
        return resize(image.decode(reduction), width, height)

    def read_size(self, width: int, height: int) -> tuple[int, int, int]:
        """How an image of ``width`` x ``height`` pixels is read.

        Where it is letterboxed, it is decoded in full and fitted into the input, but not enlarged. For training it is
        decoded at the smallest size that is at least REACH times the one that fits, and scaled down to that where it is
        much larger.

        Returns:
            The reduction at which it is decoded, and the width and height to which it is then resized.
        """
        if self.augmentation is None:
            return 1, *shrink_to(width, height, self.img_size, 1.0)
        rows, columns = (REACH * side for side in self.img_size)
        reduction = reduction_for(min(columns / width, rows / height))
        decoded = max(width // reduction, 1), max(height // reduction, 1)
        return reduction, *shrink_to(*decoded, Size(round(rows), round(columns)), TOLERANCE)


class EpochOrder:
    """The order of the images in each epoch: new in each, it depends on the seed and the epoch alone.

    Args:
        length: number of images.
        seed: seed of the order.
    """

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self._epoch = -1

    def __call__(self, epoch: int) -> np.ndarray:
        """The indices of the images (N,) in the order of the epoch."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)

    def neighbours(self, epoch: int, index: int) -> np.ndarray:
        """The NEIGHBOURS consecutive images of an epoch among which image ``index`` is: itself and random others."""
        if epoch != self._epoch:
            self._epoch, self._images = epoch, self(epoch)
            self._positions = np.argsort(self._images)
        first = self._positions[index] // NEIGHBOURS * NEIGHBOURS
        first = max(min(first, self.length - NEIGHBOURS), 0)  # the last group overlaps the one before
        return self._images[first : first + NEIGHBOURS]


def shrink_to(width: int, height: int, size: Size, tolerance: float) -> tuple[int, int]:
    """Width and height at which an image fits into ``size``; unchanged where ``tolerance`` times that is not less."""
    if width <= tolerance * size.width and height <= tolerance * size.height:
        return width, height
    return Letterbox.fit(width, height, size).scaled(width, height)
