"""A small project folder for the programs: a narrow network, and images with one bright square each."""

from pathlib import Path

import numpy as np
from PIL import Image

from config.networks import create_cfg
from utils.darknet.cfg import format_cfg
from utils.data.datasets import DetectionDataset
from utils.data.labels import label_path, read_labels


def make_project(root: Path, train: int = 6, valid: int = 3, size: int = 64, seed: int = 0) -> Path:
    """Write config/yolov3-hand.cfg, config/oxfordhand.data and the data set that it names into ``root``."""
    (root / "config").mkdir()
    (root / "config/yolov3-hand.cfg").write_text(format_cfg(create_cfg("v3-tiny", 1, size, width=0.25)))
    (root / "config/oxfordhand.data").write_text(
        "classes=1\ntrain=data/train.txt\nvalid=data/valid.txt\nnames=data/hand.names\n"
    )
    for folder in ("data/images", "data/labels"):
        (root / folder).mkdir(parents=True)
    (root / "data/hand.names").write_text("hand\n")
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("valid", valid)):
        names = [f"images/{split}_{k}.png" for k in range(count)]
        for name in names:
            draw_square(root / "data" / name, size, random)
        (root / "data" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def draw_square(path: Path, size: int, random: np.random.Generator) -> None:
    """A dark noisy image with one bright square, and its label."""
    pixels = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
    side = int(random.integers(size // 4, size // 2))
    x, y = random.integers(0, size - side, 2)
    pixels[y : y + side, x : x + side] = 230
    Image.fromarray(pixels).save(path)
    box = ((x + side / 2) / size, (y + side / 2) / size, side / size, side / size)
    label = path.parent.parent / "labels" / path.with_suffix(".txt").name
    label.write_text("0 " + " ".join(f"{value:.6f}" for value in box) + "\n")


def dataset_of(images, classes, *options):
    """The data set of images with the labels in their label files."""
    return DetectionDataset(images, [read_labels(label_path(image), classes)[0] for image in images], *options)


def write(path, text):
    """Write a text file, and the folders above it; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def save(path, size=(40, 30), colour=(0, 255, 0), **options):
    """Save an image of one colour; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def save_labelled(folder, name, image, lines):
    """Save an image and its label lines under ``folder``; return the path of the image."""
    path = folder / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    write(folder / "labels" / f"{name}.txt", "\n".join(lines))
    return path


def five_images(folder, classes=2):
    """Save five images of noise with none to two boxes each."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(5):
        pixels = random.integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        lines = [f"{k % classes} 0.{3 + k} 0.5 0.2 0.3" for k in range(number % 3)]
        paths.append(save_labelled(folder, f"p{number}", Image.fromarray(pixels), lines))
    return paths
