"""Draws synthetic images of hands, in the folder layout and annotation format of the Oxford hand data set.

This data set needs no download and no licence, and ``data/converter.py`` reads it as it reads Oxford's. A hand is a
posed skeleton in three dimensions, covered with tapered capsules (``data/hand_drawing.py``), among other objects
(``data/scenery.py``). The image simulates a light (``data/solids.py``), a lens and a sensor::

    python data/synthetic_hands.py --output data --train 400 --valid 40 --test 100

Image ``k`` of a split depends on the seed, the split and ``k`` alone, so a larger set begins with the smaller one.
"""

import argparse
import io
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as `python data/synthetic_hands.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import loadmat, savemat
from scipy.ndimage import shift
from tqdm import tqdm

from data.hand_drawing import random_hand
from data.scenery import BEHIND, IN_FRONT, background, noise
from data.solids import Array, Light, Rng, Solid, blurred, lit, projected, rasterise
from utils.cli import ArgumentParser, number, run
from utils.errors import InputError
from utils.files import atomic_writer

SPLITS = {"training": "train", "validation": "valid", "test": "test"}  # Oxford's folder name: option
SUPERSAMPLING = 2  # images are drawn larger by this factor and scaled down, for smooth edges
MIN_VISIBLE = 0.65  # share of a hand that must stay visible and inside the image
MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn by data/synthetic_hands.py".ljust(116)  # that of savemat holds the time


# The scene: a stage on which solids are placed in front of each other.


class PlacedHand(NamedTuple):
    """A hand on the stage, in canvas pixels."""

    box: Array  # (4, 2) corners (x, y)
    area: int  # in pixels, including hidden ones
    visible: Array  # (S, S) its visible pixels


@dataclass
class Stage:
    """The image so far, and the hands in it."""

    canvas: Array  # (S, S, 3)
    light: Light
    grain: Array  # (S, S) roughness of every surface
    hands: list[PlacedHand] = field(default_factory=list)

    def put(self, solid: Solid, scale: float, place: Array, box: Array | None = None) -> bool:
        """Draw a solid in front of all others; return False, without drawing, where it would hide too much of a hand.

        ``solid`` and, if it is a hand, the ``box`` (4, 2) around it are in palm lengths of ``scale`` pixels. Their
        origin is at ``place`` (x, y).
        """
        side = len(self.canvas)
        layer = rasterise(projected(solid, scale, place), side)
        area = np.count_nonzero(layer.is_hand)
        layer = layer.cropped(side)
        covered, visible = np.zeros((2, side, side), bool)
        covered[layer.window], visible[layer.window] = layer.mask, layer.is_hand
        hands = [hand._replace(visible=hand.visible & ~covered) for hand in self.hands]
        if box is not None:
            hands.append(PlacedHand(box * scale + place, area, visible))
        if any(np.count_nonzero(hand.visible) < MIN_VISIBLE * hand.area for hand in hands):
            return False
        self.hands = hands
        self._cast_shadow(covered, 0.25 * scale)
        colours = lit(layer, self.light, unit=scale) * (1 + 0.05 * self.grain[layer.window])[..., None]
        self.canvas[layer.window][layer.mask] = colours[layer.mask]
        return True

    def _cast_shadow(self, covered: Array, distance: float) -> None:
        across, down = np.round(-distance * self.light.towards[:2] / self.light.towards[2]).astype(int)
        shadow = blurred(shift(covered.astype(np.float32), (down, across), order=0), 0.5 * distance + 2)
        self.canvas *= 1 - 0.8 * (1 - self.light.ambient) * shadow[..., None]


def put_hand(stage: Stage, rng: Rng, crowd: int) -> None:
    """Place a hand, in at most twelve tries; its longer side is 20 to 60 % of the image's, less among many hands."""
    side = len(stage.canvas)
    for _ in range(12):
        solid, box = random_hand(rng)
        length = np.linalg.norm(box[1:3] - box[:2], axis=1).max()
        scale = side * rng.uniform(0.2, 0.66 - 0.06 * crowd) / length
        centre = side * rng.uniform(0.1, 0.9, 2)
        apart = all(np.linalg.norm(other.box.mean(0) - centre) > 0.5 * scale * length for other in stage.hands)
        if apart and stage.put(solid, scale, centre - scale * box.mean(0), box):
            return


def put_things(stage: Stage, rng: Rng, kinds: tuple[Callable, ...], count: int, size: float) -> None:
    """Place up to ``count`` objects at random; their palm length is at most ``size`` times the side of the image."""
    side = len(stage.canvas)
    for _ in range(count):
        stage.put(rng.choice(kinds)(rng), side * rng.uniform(0.4, 1) * size, side * rng.uniform(0, 1, 2))


def draw_scene(rng: Rng, side: int) -> Stage:
    """A background with objects, none to four hands, and sometimes objects in front of them."""
    direction = np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(0.5, 1)]).astype(np.float32)
    light = Light(direction / np.linalg.norm(direction), rng.uniform(0.4, 0.7), rng.uniform(0, 0.25))
    stage = Stage(background(rng, side), light, noise(rng, side, (24, 64, side // 4), 0.9))
    hands = int(rng.choice(5, p=[0.08, 0.45, 0.29, 0.12, 0.06]))
    put_things(stage, rng, BEHIND, int(rng.integers(0, 4)) + 2 * (hands == 0), 0.22)
    for _ in range(hands):
        put_hand(stage, rng, hands)
    put_things(stage, rng, IN_FRONT, int(rng.integers(0, 3)), 0.14)
    return stage


def develop(canvas: Array, rng: Rng) -> Image.Image:
    """Simulate lens and sensor: exposure, colour cast, vignette, blur, noise."""
    side = len(canvas) // SUPERSAMPLING
    image = canvas.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING, 3).mean((1, 3))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    falloff = 1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y - rng.uniform(0, 0.15) * (x**2 + y**2)
    cast = rng.normal(1, 0.05, 3) * rng.uniform(0.8, 1.35)
    image = np.clip(image * falloff[..., None] * cast, 0, 1) ** rng.uniform(0.8, 1.25)
    image = blurred(image, 1 + rng.choice([0, 0, 0, 0, 1, 2]) * side / 256)
    image += rng.normal(0, rng.uniform(0.002, 0.025), image.shape)
    return Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))


# Files.


def folder_of(dataset: Path, split: str) -> Path:
    """The folder that holds ``images`` and ``annotations`` of a split in the Oxford hand data set."""
    return dataset / f"{split}_dataset" / f"{split}_data"


def write_annotation(path: Path, boxes: Array) -> None:
    """Write ``boxes`` (N, 4, 2), corners (x, y) in pixels from the corner of the image, in Oxford's ``.mat`` format.

    In those, ``boxes`` is a 1xN cell array of structs a, b, c, d: 1x2 doubles (row, column), where (1, 1) is the centre
    of the first pixel.
    """
    cells = np.empty((1, len(boxes)), object)
    for k, corners in enumerate(boxes):
        cells[0, k] = np.empty((1, 1), [(name, object) for name in "abcd"])
        cells[0, k][0, 0] = tuple(corner[None, ::-1] + 0.5 for corner in corners)
    buffer = io.BytesIO()
    savemat(buffer, {"boxes": cells}, do_compression=True)
    path.write_bytes(MAT_HEADER + buffer.getvalue()[len(MAT_HEADER) :])


def read_annotation(path: Path) -> Array:
    """Read the boxes (N, 4, 2) that :func:`write_annotation` wrote."""
    boxes = [[cell[name][0, 0][0, ::-1] for name in "abcd"] for cell in loadmat(path)["boxes"].flat]
    return np.array(boxes).reshape(-1, 4, 2) - 0.5


def draw_image(task: tuple[str, int], dataset: Path, size: int, seed: int) -> int:
    """Draw and write image ``task`` (split, number) of ``size`` x ``size`` pixels; returns its number of hands."""
    split, k = task
    rng = np.random.default_rng([seed, list(SPLITS).index(split), k])
    stage = draw_scene(rng, size * SUPERSAMPLING)
    folder, name = folder_of(dataset, split), f"{split}_{k:05d}"
    quality = int(rng.integers(60, 96))
    develop(stage.canvas, rng).save(folder / "images" / f"{name}.jpg", quality=quality)
    boxes = (np.array([hand.box for hand in stage.hands]).reshape(-1, 4, 2) + 0.5) / SUPERSAMPLING
    write_annotation(folder / "annotations" / f"{name}.mat", boxes)
    return len(boxes)


def draw_dataset(dataset: Path, counts: dict[str, int], size: int, seed: int, n_cpu: int) -> int:
    """Draw ``counts`` images of each split into the new folder ``dataset``; returns the number of hands.

    The files do not depend on ``n_cpu``, the number of processes.
    """
    for split in counts:
        for kind in ("images", "annotations"):
            (folder_of(dataset, split) / kind).mkdir(parents=True)
    tasks = [(split, k) for split, count in counts.items() for k in range(count)]
    draw = partial(draw_image, dataset=dataset, size=size, seed=seed)
    progress = partial(tqdm, total=len(tasks), desc="drawing hands", unit="image")
    if n_cpu == 1:
        return sum(progress(map(draw, tasks)))
    # Ctrl-C reaches all processes; only this one handles it, and then ends the others.
    with ProcessPoolExecutor(n_cpu, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        return sum(progress(pool.map(draw, tasks, chunksize=4)))


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a path for a new folder, which replaces ``folder`` if the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging / "new"
        if folder.exists():
            folder.rename(staging / "old")
        (staging / "new").rename(folder)
    finally:
        shutil.rmtree(staging)


def contact_sheet(dataset: Path, columns: int = 6, rows: int = 4) -> Image.Image:
    """A grid of the first images of a data set, read from the files, with their rotated and axis-aligned boxes."""
    paths = sorted(dataset.glob("*/*/images/*.jpg"), key=lambda path: ("training" not in path.stem, path.stem))
    paths = paths[: columns * rows]
    side = Image.open(paths[0]).width
    sheet = Image.new("RGB", (columns * side, -(-len(paths) // columns) * side), "white")
    for k, path in enumerate(paths):
        image = Image.open(path)
        draw = ImageDraw.Draw(image)
        for corners in read_annotation(path.parents[1] / "annotations" / f"{path.stem}.mat"):
            draw.rectangle([*corners.min(0), *corners.max(0)], outline="white")
            draw.polygon([tuple(corner) for corner in corners], outline="lime", width=2)
        sheet.paste(image, (k % columns * side, k // columns * side))
    return sheet


# The command line.


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = ArgumentParser("Draw a synthetic hand data set in the layout of the Oxford hand data set.")
    parser.add_argument("--output", type=Path, default=Path("data"), help="folder in which to create hand_dataset/")
    parser.add_argument("--train", type=number(int, 0), default=400, help="number of training images")
    parser.add_argument("--valid", type=number(int, 0), default=40, help="number of validation images")
    parser.add_argument("--test", type=number(int, 0), default=100, help="number of test images")
    parser.add_argument("--size", type=number(int, 64, 2048), default=256, help="side of an image in pixels")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="random seed of the images")
    parser.add_argument("--n_cpu", type=number(int, 1), default=os.cpu_count(), help="number of processes that draw")
    parser.add_argument("--overwrite", action="store_true", help="replace hand_dataset/ if it exists")
    parser.add_argument(
        "--contact_sheet", type=Path, metavar="FILE.png", help="write a grid of the first images with their boxes"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Draw the data set and, with ``--contact_sheet``, the grid."""
    dataset = args.output / "hand_dataset"
    if dataset.exists() and not args.overwrite:
        raise InputError(f"{dataset} exists; choose another --output, or --overwrite to replace it")
    counts = {split: getattr(args, option) for split, option in SPLITS.items()}
    if not any(counts.values()):
        raise InputError("nothing to draw: one of --train, --valid and --test must be greater than 0")
    with replaced_folder(dataset) as folder:
        hands = draw_dataset(folder, counts, args.size, args.seed, args.n_cpu)
    print(f"{dataset}: {sum(counts.values())} images with {hands} hands")
    if args.contact_sheet:
        with atomic_writer(args.contact_sheet) as file:
            contact_sheet(dataset).save(file, format="PNG")
        print(f"{args.contact_sheet}: the first images and their boxes")


if __name__ == "__main__":
    run(get_args_parser(), main)
