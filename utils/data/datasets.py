"""Detection data sets: ``.data`` files, lists of images, and batches of images with their boxes."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data.augmentations import Augmentation, LabelledImage, letterbox
from utils.data.image_cache import decode_all
from utils.data.images import read_image
from utils.distributed import share
from utils.errors import InputError
from utils.files import read_lines, read_names
from utils.workers import start_worker

MOST_CLASSES = 65_536  # more is a mistake that would take all memory


@dataclass(frozen=True)
class DataConfig:
    """A ``.data`` file: the number of classes, the lists of training and validation images, the class names."""

    path: Path
    classes: int
    train: Path | None
    valid: Path | None
    names: list[str]

    def listing(self, split: str) -> Path:
        """The list of images of ``split``, "train" or "valid"."""
        listing = getattr(self, split)
        if listing is None:
            raise InputError(f"{self.path}: {split}= is missing: the list of images")
        return listing

    def images(self, split: str) -> list[Path]:
        """The images of ``split``, which are there."""
        return read_image_list(self.listing(split))


def find_path(text: str, origin: Path) -> Path:
    """A path that a file names: absolute, relative to the working directory, or relative to the file ``origin``."""
    path = Path(text)
    return path if path.is_absolute() or os.path.exists(path) else origin.parent / path


def read_data_config(path: str | Path) -> DataConfig:
    """Read a ``.data`` file: ``classes``, ``train``, ``valid``, ``names``, one ``key=value`` a line.

    Raises:
        InputError: a missing file or key, or a number of names that is not that of the classes.
    """
    path = Path(path)
    values: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, ".data file"), start=1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise InputError(f"{path}:{number}: {line!r} is not key=value")
        values.setdefault(key, value)
    digits = values.get("classes", "")
    if not digits.isdecimal() or len(digits) > len(str(MOST_CLASSES)) or not 1 <= int(digits) <= MOST_CLASSES:
        raise InputError(f"{path}: classes={digits[:20]} must be a number from 1 to {MOST_CLASSES}")
    classes = int(digits)
    if "names" in values:
        names = read_names(find_path(values["names"], path))
        if len(names) != classes:
            raise InputError(f"{path}: classes={classes}, but {values['names']} names {len(names)}")
    else:
        names = [str(number) for number in range(classes)]
    lists = {key: find_path(values[key], path) if values.get(key) else None for key in ("train", "valid")}
    return DataConfig(path, classes, lists["train"], lists["valid"], names)


def read_image_list(path: str | Path) -> list[Path]:
    """The images that a list file names, one a line.

    Raises:
        InputError: the list is missing or empty, or names images that are missing; the first is named.
    """
    entries = read_list_entries(path)
    missing = [entry for entry in entries if not os.path.isfile(entry.path)]
    if missing:
        raise InputError(missing[0].missing + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""))
    return [entry.path for entry in entries]


@dataclass(frozen=True)
class ListEntry:
    """An image that a list names, which may not be there: what the list says, the path, and ``file:line``."""

    text: str
    path: Path
    where: str

    @property
    def missing(self) -> str:
        """What to say where it is not there."""
        return f"{self.where}: there is no image {self.text}"


def read_list_entries(path: str | Path) -> list[ListEntry]:
    """What a list of images names, one a line, there or not.

    Raises:
        InputError: the list is missing or empty.
    """
    path = Path(path)
    entries = [
        ListEntry(line.strip(), find_path(line.strip(), path), f"{path}:{number}")
        for number, line in enumerate(read_lines(path, "list of images (data/converter.py writes one)"), start=1)
        if line.strip()
    ]
    if not entries:
        raise InputError(f"{path}: the list names no image")
    return entries


class DetectionDataset(Dataset):
    """Images with boxes, letterboxed or augmented to a square. They are checked before, by :mod:`utils.data.check`.

    An item is asked for by (epoch, index); its randomness depends on the seed and these two alone.

    Args:
        images: the images.
        labels: of each image its boxes (N, 5): class, cx, cy, w, h in [0, 1].
        img_size: the side S of the square, in pixels.
        augmentation: how to change training images; None letterboxes them.
        seed: of the augmentation.

    Attributes:
        kept: the first images, decoded, see :meth:`keep`.
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

    def keep(self, most: int) -> int:
        """Keep decoded images in memory, as many as take at most ``most`` bytes; return how many bytes they take.

        Call it before a loader starts its workers, which then share them.
        """
        self.kept = decode_all(self.images, read_image, most)
        return sum(pixels.nbytes for pixels in self.kept)

    def load(self, index: int) -> LabelledImage:
        """Image ``index`` as it lies on the disk, with boxes (N, 5): class, x1, y1, x2, y2 in its pixels."""
        image = Image.fromarray(self.kept[index]) if index < len(self.kept) else read_image(self.images[index])
        label, cx, cy, w, h = self.labels[index].T
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        return image, np.stack([label, x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height], 1)


class EpochSampler(Sampler):
    """Yields (epoch, index): a new order each epoch that depends on the seed and the epoch alone.

    Among several processes each takes its consecutive part of every batch, so that together they see the batches of
    one process. The last batch may be smaller; then the parts may differ by one image, and where it has fewer
    images than there are processes, the first images of the epoch fill it up, so that no process has none.

    Args:
        length: how many images there are.
        seed: of the order.
        batch_size: images in a batch of all processes, a multiple of their number.
        rank, world: which of how many processes this is.

    Attributes:
        epoch: the epoch to yield.
        start: how many of its items to leave out, which an interrupted run has had already.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1, rank: int = 0, world: int = 1):
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.rank, self.world = rank, world
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        last = len(share(max(rest, self.world), self.rank, self.world)) if rest else 0
        return full * self.batch_size // self.world + last

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.order()[self.start :])

    def order(self) -> list[tuple[int, int]]:
        """All items of the epoch for this process in their order."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        items = []
        for start in range(0, self.length, self.batch_size):
            batch = order[start : start + self.batch_size]
            if len(batch) < self.world:
                batch = np.resize(np.concatenate([batch, order]), self.world)
            items += [(self.epoch, int(batch[position])) for position in share(len(batch), self.rank, self.world)]
        return items


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Items to images (B, 3, S, S) uint8 and targets (N, 6): image in the batch, class, cx, cy, w, h in [0, 1]."""
    images = torch.stack([image for image, _ in items])
    numbered = [torch.nn.functional.pad(boxes, (1, 0), value=number) for number, (_, boxes) in enumerate(items)]
    return images, torch.cat(numbered)


def loader(
    dataset: Dataset,
    batch_size: int,
    n_cpu: int,
    sampler: Sampler | Sequence[int] | None = None,
    collate_fn: Callable = collate,
) -> DataLoader:
    """Batches of ``dataset`` from ``n_cpu`` worker processes, in pinned memory where there is a GPU."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=n_cpu,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=n_cpu > 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # the global one is the network's, whose course a resumed run repeats
    )
