"""Pictures to detect on: found in a folder, letterboxed to a square."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utils.augmentations import letterbox
from utils.datasets import read_image, to_device
from utils.errors import InputError

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def find_pictures(where: str) -> list[Path]:
    """The pictures of a folder, of a glob, or one picture, by name.

    Raises:
        InputError: there are none.
    """
    path = Path(where)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(where, recursive=True))
    pictures = sorted(p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not pictures:
        raise InputError(f"--image_folder {where}: no picture there")
    return pictures


def to_square(image: Image.Image, img_size: int) -> Tensor:
    """A picture letterboxed to a square, (3, S, S) uint8."""
    square, _ = letterbox((image, np.zeros((0, 5), np.float32)), img_size)
    return torch.from_numpy(square).permute(2, 0, 1)


class Pictures(Dataset):
    """Pictures letterboxed to a square, with their own size."""

    def __init__(self, paths: Sequence[Path], img_size: int):
        self.paths = paths
        self.img_size = img_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Image.Image]:
        """The square (3, S, S) uint8, and the picture as it is."""
        image = read_image(self.paths[index])
        return to_square(image, self.img_size), image


def batches_of_one(paths: Sequence[Path], img_size: int) -> Iterator[Tensor]:
    """One picture after another as images (1, 3, S, S) in [0, 1]."""
    for path in paths:
        yield to_device(to_square(read_image(path), img_size)[None], torch.device("cpu"))
