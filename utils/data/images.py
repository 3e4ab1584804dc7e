"""Images: found in a folder, read, letterboxed to a square, and given to a network."""

import glob
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.augmentations import letterbox
from utils.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_WARNING_FILTERS = threading.Lock()  # they are the process's, and images are checked by several threads


def find_images(where: str) -> list[Path]:
    """The images of a folder, of a glob, or one image, by name.

    Raises:
        InputError: there are none.
    """
    path = Path(where)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(where, recursive=True))
    images = sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not images:
        raise InputError(f"--image_folder {where}: no image there")
    return images


def read_image(path: str | Path) -> Image.Image:
    """An image as RGB, turned as its EXIF orientation says.

    Raises:
        InputError: the file is missing, is no image, is truncated, or would be absurdly large.
    """
    return decode_image(path)[0]


def decode_image(path: str | Path) -> tuple[Image.Image, bool]:
    """An image as :func:`read_image` gives it, and whether EXIF had it turned."""
    try:
        with _WARNING_FILTERS, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow's conversion would cut off at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
            return upright.convert("RGB"), is_turned
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image") from None
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image: {reason}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image turned as its EXIF orientation says, from the file's header alone.

    Raises:
        InputError: the file is missing or is not an image.
    """
    try:
        with Image.open(path) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
            return image.size[::-1] if sideways else image.size
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image") from None
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image: {reason}") from error


def to_square(image: Image.Image, img_size: int) -> Tensor:
    """An image letterboxed to a square, (3, S, S) uint8."""
    square, _ = letterbox((image, np.zeros((0, 5), np.float32)), img_size)
    return torch.from_numpy(square).permute(2, 0, 1)


def to_device(images: Tensor, device: torch.device, channels_last: bool = False) -> Tensor:
    """Images (B, 3, S, S) uint8 to float RGB in [0, 1] on ``device``, where asked in the layout channels_last."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout).float().div_(255)


class Images(Dataset):
    """Images letterboxed to a square, with their own size."""

    def __init__(self, paths: Sequence[Path], img_size: int):
        self.paths = paths
        self.img_size = img_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Image.Image]:
        """The square (3, S, S) uint8, and the image as it is."""
        image = read_image(self.paths[index])
        return to_square(image, self.img_size), image


def batches_of_one(paths: Sequence[Path], img_size: int) -> Iterator[Tensor]:
    """One image after another as images (1, 3, S, S) in [0, 1]."""
    for path in paths:
        yield to_device(to_square(read_image(path), img_size)[None], torch.device("cpu"))
