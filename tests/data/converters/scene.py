"""Small data sets in the formats of others, and what the converter makes of them."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from data.converter import get_args_parser, main


def convert(*words) -> None:
    """Run data/converter.py."""
    main(get_args_parser().parse_args([str(word) for word in words]))


def draw(path: Path, size: tuple[int, int] = (100, 50), orientation: int = 1, seed: int | None = None) -> Path:
    """Save an image of one colour; with a seed, of coarse noise, which looks like that of no other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", size, (sum(path.name.encode()) % 256, 90, 60))
    if seed is not None:
        cells = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        image = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
    image.save(path, exif=exif)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def row(printed: str, split: str) -> list[int]:
    """The split's counts: images, boxes, clipped, dropped, left out, negatives, size differs."""
    line = next(line for line in printed.splitlines() if line.startswith(f"| {split} "))
    return [int(cell) for cell in line.strip("| ").split("|")[1:]]


def hand(*corners: tuple[float, float], side: str | None = None) -> dict:
    """A box by its corners a, b, c, d, (row, column) in pixels from the image's corner.

    MATLAB has the first pixel's centre at 1.
    """
    box = {name: np.array([corner]) + 0.5 for name, corner in zip("abcd", corners, strict=True)}
    return box if side is None else {**box, "handside": side}


def upright(top: float, left: float, bottom: float, right: float) -> dict:
    return hand((top, left), (top, right), (bottom, right), (bottom, left))


def add_hands(folder: Path, name: str, *boxes: dict, **image) -> None:
    draw(folder / "images" / f"{name}.jpg", **image)
    (folder / "annotations").mkdir(exist_ok=True)
    cells = np.empty((1, len(boxes)), dtype=object)
    cells[0, :] = boxes
    savemat(folder / "annotations" / f"{name}.mat", {"boxes": cells})


def make_oxford(folder: Path) -> Path:
    """A hand_dataset of one 100x50 image a split, and the stray files of the real one."""
    root = folder / "hand_dataset"
    training = root / "training_dataset/training_data"
    rotated = hand((20, 10), (10, 30), (15, 40), (25, 20), side="L")
    add_hands(training, "one", rotated, upright(0, 0, 50, 100))
    (training / "images" / "Thumbs.db").write_text("stray")
    (training / "images" / "._one.jpg").write_text("stray")
    (training / "annotations" / "._one.mat").write_text("stray")
    flat, outside = upright(8, 8, 8, 19), upright(59, 0, 69, 19)
    add_hands(root / "validation_dataset/validation_data", "two", upright(-10, 90, 10, 120), flat, outside)
    add_hands(root / "test_dataset/test_data", "three")
    return root
