"""Image files and images: finding, measuring and reading them, letterboxing them, and moving them to a device.

Files are opened by Pillow, which is strict. OpenCV decodes what it reads as Pillow does, but faster: complete JPEG
files of 8 bits. Pillow decodes all others.
"""

import glob
import math
import os
import struct
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.boxes import Letterbox
from utils.darknet.spec import NetworkSpec
from utils.data.augmentations import letterbox_pixels, shrink
from utils.data.depth import is_deep, to_8_bits
from utils.errors import InputError
from utils.sizes import AnySize, Size

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SWAPS_SIDES = {5, 6, 7, 8}  # EXIF orientations with a rotation by 90 degrees
PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # chunks that may hold an orientation

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
JPEG_START = b"\xff\xd8"
JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # markers: the size, of files with Huffman coding
JPEG_TABLES = {0xC4, 0xDB, 0xDD, 0xFE}  # markers: tables, the restart interval, and comments
JPEG_APP0, JPEG_EXIF = 0xE0, 0xE1
JPEG_END = b"\xff\xd9"
JPEG_REDUCED = {  # flags of OpenCV; with IMREAD_COLOR_RGB the result is not grey
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

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
    images = sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "." and not _is_other(p))
    if not images:
        hint = f"; folders in it are not searched, but '{path / '**/*.jpg'}' is possible" if path.is_dir() else ""
        raise InputError(f"--image_folder {where}: no image there{hint}")
    return images


def _is_other(path: Path) -> bool:
    """Whether there is something that is no file; a link without a target is an image that cannot be read."""
    return path.exists() and not path.is_file()


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image, upright as its EXIF orientation says. It is not decoded.

    Raises:
        InputError: the file is missing, is not an image, or would be absurdly large.
    """
    with _opened(path) as (image, _):
        return _upright_size(image, path)


def orientation_of(path: str | Path) -> int:
    """The EXIF orientation of an image, from 1 to 8; errors as of :func:`image_size`."""
    with _opened(path) as (image, _):
        return _orientation(image, path)


def image_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """The :func:`image_size` of many images, read in parallel."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(image_size, paths))


def _upright_size(image: Image.Image, path: str | Path) -> tuple[int, int]:
    width, height = image.size
    if isinstance(
        image, TiffImagePlugin.TiffImageFile
    ):  # whether image.size is upright already depends on the version of Pillow
        width, height = (image.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
    return (height, width) if _orientation(image, path) in SWAPS_SIDES else (width, height)


def _orientation(image: Image.Image, path: str | Path) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        # EXIF data may follow the pixels, and Pillow decodes the whole image to look for it. Most files have none.
        content = Path(path).read_bytes()
        if not any(chunk in content for chunk in PNG_METADATA):
            return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


class ImageTraits(NamedTuple):
    """What the data check counts: whether EXIF turned the image, and whether it has more than 8 bits per value."""

    turned: bool
    deep: bool


@dataclass(frozen=True)
class ImageFile:
    """An image file whose header was read.

    Attributes:
        path: the file.
        width, height: in pixels, upright as its EXIF orientation says.
        jpeg: the bytes of the file where OpenCV decodes it; None where Pillow does.
        orientation: its EXIF orientation, from 1 to 8; used with ``jpeg`` only.
    """

    path: str | Path
    width: int
    height: int
    jpeg: bytes | None
    orientation: int

    def decode(self, reduction: int = 1) -> np.ndarray:
        """The upright pixels (height // r, width // r, 3) uint8 RGB, at least one, for a reduction r of 1, 2, 4 or 8.

        Raises:
            InputError: the file is missing, is not an image, is truncated, or would be absurdly large.
        """
        if self.jpeg is not None:
            flags = JPEG_REDUCED[reduction] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), flags)
            if pixels is not None:
                upright = turn(pixels, self.orientation)
                return upright[: max(self.height // reduction, 1), : max(self.width // reduction, 1)]
        return shrink(decode_strictly(self.path)[0], reduction)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, 3) turned upright from one of the eight EXIF orientations."""
    if orientation in SWAPS_SIDES:
        pixels = cv2.transpose(pixels)
    if orientation in (2, 6):
        return cv2.flip(pixels, 1)
    if orientation in (3, 7):
        return cv2.flip(pixels, -1)
    return cv2.flip(pixels, 0) if orientation in (4, 8) else pixels


def open_image(path: str | Path) -> ImageFile:
    """Read the header of an image file, and its bytes where OpenCV will decode it.

    Raises:
        InputError: the file is missing, is not an image, or would be absurdly large.
    """
    content = _complete_jpeg(path)
    if content and (size := plain_jpeg_size(content)):  # such a header needs no Pillow
        return ImageFile(path, *size, content, 1)
    with _opened(path) as (image, file):
        return _described(path, image, file)


def _complete_jpeg(path: str | Path) -> bytes | None:
    """The bytes of a file that begins and ends as a JPEG file does; None for any other."""
    if not str(path).lower().endswith(JPEG_SUFFIXES):
        return None
    try:
        with open(path, "rb") as file:
            if file.read(2) != JPEG_START or file.seek(-2, os.SEEK_END) < 2 or file.read(2) != JPEG_END:
                return None
            file.seek(0)
            return file.read()
    except (OSError, ValueError):
        return None


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a complete JPEG file of 8 bits, grey or in colours; None where Pillow has to look at it.

    That is a file that holds EXIF data or XMP, more than three channels, or absurdly many pixels.
    """
    position, last = 2, len(content) - 10
    while position < last and content[position] == 0xFF:
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        if marker in JPEG_FRAMES:
            precision, height, width, channels = struct.unpack_from(">BHHB", content, position + 4)
            fits = 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0)
            return (width, height) if precision == 8 and channels in (1, 3) and fits else None
        if length < 2 or not (marker in JPEG_TABLES or JPEG_APP0 <= marker < JPEG_APP0 + 16) or marker == JPEG_EXIF:
            return None
        position += 2 + length
    return None


def _described(path: str | Path, image: Image.Image, file: BinaryIO) -> ImageFile:
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = image.size[::-1] if orientation in SWAPS_SIDES else image.size
        file.seek(0)
        content = file.read()
        complete = content.endswith(JPEG_END)  # OpenCV does not refuse a truncated file
        return ImageFile(path, width, height, content if complete else None, orientation)
    return ImageFile(path, *_upright_size(image, path), None, 1)


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright as its EXIF orientation says. More than 8 bits are scaled to 8.

    Raises:
        InputError: the file is missing, is not an image, is truncated, or would be absurdly large.
    """
    return Image.fromarray(open_image(path).decode())


def decode_strictly(path: str | Path) -> tuple[np.ndarray, ImageTraits]:
    """Decode an image with Pillow: its upright pixels (H, W, 3) uint8 RGB, and what the data check counts.

    Raises:
        InputError: the file is missing, is not an image, is truncated, or would be absurdly large.
    """
    with _opened(path) as (image, file):
        is_deep_image = is_deep(image)  # before getexif(), which decodes a PNG to look for the orientation
        traits = ImageTraits(image.getexif().get(ExifTags.Base.Orientation, 1) != 1, is_deep_image)
        if not traits.deep:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), traits
        position = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(position)
        pixels = to_8_bits(image, content)
        # Only now, as Pillow turns a TIFF itself when it decodes it.
        upright = turn(pixels, image.getexif().get(ExifTags.Base.Orientation, 1))
        return (cv2.cvtColor(upright, cv2.COLOR_GRAY2RGB) if upright.ndim == 2 else upright), traits


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image file; whatever fails while it is open becomes an InputError."""
    try:
        with open(path, "rb") as file:
            file.read(1)  # fills the buffer: threads wait for each other below, and should not for a disk
            file.seek(0)
            with _WARNING_FILTERS, warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                opened = Image.open(file)
            with opened as image:
                yield image, file
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image") from None
    except UnidentifiedImageError as error:
        reason = "it has a format that is not known" if os.path.getsize(path) else "it is empty"
        raise InputError(f"{path}: cannot be read as an image: {reason}") from error
    except Exception as error:  # a damaged file can raise errors of any kind in a decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image: {reason}") from error


def input_size(width: int, height: int, img_size: AnySize, rectangles: NetworkSpec | None = None) -> Size:
    """The size to which an image is letterboxed.

    Args:
        width, height: of the image in pixels.
        img_size: the size, or with ``rectangles`` the largest one.
        rectangles: of a network; the size is then the smallest one in multiples of its stride that holds the image.

    Raises:
        InputError: the network cannot compute on an input of this size.
    """
    if not rectangles:
        return Size.of(img_size)
    columns, rows = Letterbox.fit(width, height, img_size).scaled(width, height)
    sides = zip((rows, columns), rectangles.stride, strict=True)
    smallest = Size(*(math.ceil(side / stride) * stride for side, stride in sides))
    rectangles.at(smallest)
    return smallest


def letterboxed(image: Image.Image, img_size: AnySize) -> Tensor:
    """Letterbox an image to the size of a network's input, (3, H, W) uint8."""
    return torch.from_numpy(letterbox_pixels(np.array(image), img_size)).permute(2, 0, 1)


def to_device(images: Tensor, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    """Move images (B, 3, H, W) uint8 to ``device`` as float RGB in [0, 1], there in the memory format ``layout``."""
    return images.to(device, non_blocking=True).float().div_(255).to(memory_format=layout)


class Images(Dataset):
    """Images without labels.

    Args:
        paths: the image files.
        img_size: of the network's input.
        rectangles: see :func:`input_size`.
    """

    def __init__(self, paths: Sequence[Path], img_size: AnySize, rectangles: NetworkSpec | None = None):
        self.paths = paths
        self.img_size = img_size
        self.rectangles = rectangles

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Image.Image]:
        """The letterboxed image (3, H, W) uint8, and the image at its size on disk."""
        image = read_image(self.paths[index])
        return letterboxed(image, input_size(image.width, image.height, self.img_size, self.rectangles)), image


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of the paths, at equal distances."""
    count = min(count, len(paths))
    return [paths[place * len(paths) // count] for place in range(count)]


def batches_of_one(paths: Sequence[Path], img_size: AnySize) -> Iterator[Tensor]:
    """Yield each image letterboxed as a batch (1, 3, H, W), float RGB in [0, 1], on the CPU."""
    for path in paths:
        yield to_device(letterboxed(read_image(path), img_size)[None], torch.device("cpu"))


def some_images(paths: Sequence[Path], count: int, img_size: AnySize) -> Tensor:
    """At most ``count`` of the images, at equal distances, letterboxed: (B, 3, H, W), float RGB in [0, 1].

    Raises:
        InputError: there is none, or one of them cannot be read.
    """
    if not paths:
        raise InputError("there are no images")
    return torch.cat(list(batches_of_one(spread(paths, count), img_size)))


def readable(paths: Sequence[Path]) -> list[Path]:
    """Those of the images that can be read; a warning names the first other one.

    Raises:
        InputError: none of them can be read.
    """
    problems = {}
    for path in tqdm(paths, "reading", unit="image", leave=False):
        try:
            read_image(path)
        except InputError as error:
            problems[path] = str(error)
    if problems:
        reason = next(iter(problems.values()))
        if len(problems) == len(paths):
            raise InputError(reason)
        print(f"warning: {len(problems)} of {len(paths)} images are left out: {reason}", file=sys.stderr)
    return [path for path in paths if path not in problems]
