"""Finds the anchors that fit a data set: k-means over box sizes with the distance 1 - IoU.

    python config/cluster_anchors.py --data_config config/oxfordhand.data --img_size 416 --anchors 9

As in "YOLO9000: Better, Faster, Stronger" (arXiv 1612.08242, section 2, Dimension Clusters): with Euclidean distance,
large boxes would dominate, while 1 - IoU does not depend on the scale of box and anchor.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

if not __package__:  # run as `python config/cluster_anchors.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.anchors import DARKNET_ANCHORS, format_anchors, scale_anchors
from utils import boxes
from utils.cli import ArgumentParser, add_size_option, number, run
from utils.data.check import check_data
from utils.data.data_config import read_data_config
from utils.data.images import image_size
from utils.detection.options import add_check_options, label_rules
from utils.errors import InputError
from utils.sizes import AnySize, Size

RESTARTS = 10  # runs of k-means, of which the best counts
MAX_UPDATES = 300  # of the anchors in one run
MAX_BOXES = 20_000  # that k-means looks at: with all of 100,000 the mean best IoU differed by 0.0003


def box_sizes(images: Sequence[Path], labels: Sequence[np.ndarray], img_size: AnySize) -> np.ndarray:
    """Width and height of every labelled box, (N, 2), in pixels of the image letterboxed to ``img_size``.

    Args:
        images: the images' files.
        labels: of each image its boxes (M, 5): class, cx, cy, w, h in [0, 1] of the image.
        img_size: of the network's input.
    """
    input_sides = np.array(Size.of(img_size)[::-1], dtype=np.float64)
    sizes = [np.empty((0, 2))]
    bar = tqdm(images, "sizes of images", unit="image", leave=False)
    for image, boxes_of_image in zip(bar, labels, strict=True):
        if len(boxes_of_image):
            image_sides = np.array(image_size(image), dtype=np.float64)
            sizes.append(boxes_of_image[:, 3:5] * image_sides * (input_sides / image_sides).min())
    # Boxes of the same size in pixels differ by float noise; rounding makes them equal.
    rounded = np.concatenate(sizes).round(3)
    return rounded[(rounded > 0).all(axis=1)]


def size_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """IoU (N, A) of box sizes (N, 2) and anchors (A, 2) in pixels, all with the same centre."""
    return boxes.size_iou(torch.from_numpy(sizes), torch.from_numpy(anchors)).numpy()


def spread_start(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` start anchors (A, 2) from the box sizes (N, 2), in proportion to their distance (k-means++)."""
    anchors = sizes[[rng.integers(len(sizes))]]
    while len(anchors) < count:
        distance = 1 - size_iou(sizes, anchors).max(axis=1)
        drawn = rng.choice(len(sizes), p=distance / distance.sum())
        anchors = np.vstack([anchors, sizes[drawn]])
    return anchors


def k_means(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Move the anchors (A, 2) to the median of the boxes (N, 2) nearest to each until no box changes its anchor."""
    anchors, nearest = anchors.copy(), None
    for _ in range(MAX_UPDATES):
        previous, nearest = nearest, size_iou(sizes, anchors).argmax(axis=1)
        if previous is not None and (nearest == previous).all():
            break
        for index in np.unique(nearest):  # an anchor that lost all its boxes stays where it is
            anchors[index] = np.median(sizes[nearest == index], axis=0)
    return anchors


def cluster(sizes: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The best of RESTARTS runs of k-means over box sizes (N, 2), or MAX_BOXES of them, by mean best IoU.

    Returns:
        ``count`` anchors (A, 2) in whole pixels, at least 1, sorted by area, then width.

    Raises:
        InputError: there are fewer different box sizes than anchors.
    """
    rng = np.random.default_rng(seed)
    if len(sizes) > MAX_BOXES:
        sizes = rng.choice(sizes, MAX_BOXES, replace=False)
    different = len(np.unique(sizes, axis=0))
    if different < count:
        raise InputError(f"--anchors {count}: there are only {different} different box sizes; give at most as many")
    bar = tqdm(range(RESTARTS), "k-means", leave=False)
    runs = [k_means(sizes, spread_start(sizes, count, rng)) for _ in bar]
    whole = [anchors.round().clip(min=1) for anchors in runs]
    best = max(whole, key=lambda anchors: size_iou(sizes, anchors).max(axis=1).mean())
    return best[np.lexsort((best[:, 0], best.prod(axis=1)))]


def fit(sizes: np.ndarray, anchors: np.ndarray) -> str:
    """A text that says how well anchors (A, 2) fit box sizes (N, 2)."""
    best = size_iou(sizes, anchors).max(axis=1)
    return f"mean best IoU {best.mean():.4f}, best IoU > 0.5 for {(best > 0.5).mean():.1%} of the boxes"


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = ArgumentParser("Cluster the box sizes of a data set's training list into anchors.")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help=".data or .yaml file of the data set")
    add_size_option(parser, "size of the input in pixels", default=416, smallest=1)
    parser.add_argument("--anchors", type=number(int, 1), default=9, help="number of anchors; v3 has 9, v3-tiny has 6")
    add_check_options(parser)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of the start anchors")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the anchors, and how well they and Darknet's anchors fit the training boxes."""
    data = read_data_config(args.data_config)
    checked = check_data(data, "train", args.skip_bad, label_rules(args))
    sizes = box_sizes(checked.images, checked.labels, args.img_size)
    anchors = cluster(sizes, args.anchors, args.seed)
    print(f"{len(sizes)} boxes of {data.train}, at {Size.of(args.img_size).pixels}")
    print(f"  {args.anchors} clustered anchors: {fit(sizes, anchors)}")
    for count, darknet in DARKNET_ANCHORS.items():
        scaled = np.array(scale_anchors(darknet, max(Size.of(args.img_size))), dtype=np.float64)
        print(f"  Darknet's {count}, scaled: {fit(sizes, scaled)}")
    print(format_anchors(anchors))


if __name__ == "__main__":
    run(get_args_parser(), main)
