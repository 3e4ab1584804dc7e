"""Image files and images: finding, measuring and reading them, letterboxing them, and moving them to a device."""

import glob
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.augmentations import LabelledImage, letterbox
from utils.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SWAPS_SIDES = {5, 6, 7, 8}  # EXIF orientations with a rotation by 90 degrees
PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # chunks that may hold an orientation

_WARNING_FILTERS = threading.Lock()  # the filters belong to the process, and several threads read images


def find_images(where: str) -> list[Path]:
    """The images that ``where`` names, sorted by name: those of a folder, those that match a glob, or one image.

    Raises:
        InputError: there are none.
    """
    path = Path(where)
    if path.is_file():
        return [path]
    paths = path.iterdir() if path.is_dir() else map(Path, glob.glob(where, recursive=True))
    # Hidden files are no images: macOS puts ._a.jpg beside a.jpg on other systems' disks.
    images = sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "." and p.is_file())
    if not images:
        raise InputError(f"--image_folder {where}: no image there")
    return images


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image, upright as its EXIF orientation says. It is not decoded.

    Raises:
        InputError: the file is missing, is not an image, or would be absurdly large.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # whether image.size is upright already depends on the version of Pillow
            width, height = (image.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
        return (height, width) if _orientation(image, path) in SWAPS_SIDES else (width, height)


def _orientation(image: Image.Image, path: str | Path) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        # EXIF data may follow the pixels, and Pillow decodes the whole image to look for it. Most files have none.
        content = Path(path).read_bytes()
        if not any(chunk in content for chunk in PNG_METADATA):
            return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright as its EXIF orientation says.

    Raises:
        InputError: the file is missing, is not an image, is truncated, or would be absurdly large.
    """
    return decode_image(path)[0]


def decode_image(path: str | Path) -> tuple[Image.Image, bool]:
    """Read an image as :func:`read_image` does; also return whether its EXIF orientation rotated or mirrored it."""
    with _opened(path) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip at 255
            upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
        return upright.convert("RGB"), is_turned


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file; whatever fails while it is open becomes an InputError."""
    try:
        with _WARNING_FILTERS, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image") from None
    except Exception as error:  # a damaged file can raise errors of any kind in a decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image: {reason}") from error


def to_square(image: Image.Image, img_size: int) -> Tensor:
    """Letterbox an image to a square, (3, S, S) uint8, with S = ``img_size`` pixels."""
    square, _ = letterbox(LabelledImage(image, np.zeros((0, 5), np.float32)), img_size)
    return torch.from_numpy(square).permute(2, 0, 1)


def to_device(images: Tensor, device: torch.device, channels_last: bool = False) -> Tensor:
    """Move images (B, 3, S, S) uint8 to ``device`` as float RGB in [0, 1], in channels_last layout if asked for."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout).float().div_(255)


class Images(Dataset):
    """Images without labels.

    Args:
        paths: the image files.
        img_size: the side S of the square, in pixels.
    """

    def __init__(self, paths: Sequence[Path], img_size: int):
        self.paths = paths
        self.img_size = img_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Image.Image]:
        """The letterboxed image (3, S, S) uint8, and the image at its size on disk."""
        image = read_image(self.paths[index])
        return to_square(image, self.img_size), image


def batches_of_one(paths: Sequence[Path], img_size: int) -> Iterator[Tensor]:
    """Yield each image letterboxed as a batch (1, 3, S, S), float RGB in [0, 1], on the CPU."""
    for path in paths:
        yield to_device(to_square(read_image(path), img_size)[None], torch.device("cpu"))
