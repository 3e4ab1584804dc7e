"""Splits images into those to train with and those to validate with, near-duplicates together.

Frames of one scene in both splits would make the validation mAP say less about images that the model has not seen.
Two images are near-duplicates where their difference hashes differ in at most LIKE of 64 bits, or where their names are
those that Roboflow gives to the copies of one image (``a.rf.{code}.jpg``). What is like a near-duplicate is one, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

LIKE = 3  # of 64 bits; with so few, two hashes agree in at least one of four parts of 16 bits


@dataclass(frozen=True)
class Split:
    """How to split images.

    Attributes:
        share: of the images that train, above 0 and below 1.
        seed: of the order in which groups are taken.
    """

    share: float
    seed: int

    def __call__(self, paths: Sequence[Path], hashes: Sequence[int]) -> tuple[np.ndarray, str]:
        """Split images, which depends on the set of the paths and hashes alone.

        Returns:
            (N,) whether each image validates, and a line that says what was done.
        """
        groups = near_duplicates(paths, hashes)
        count = groups.max() + 1
        note = f"split by --split {self.share:g} --seed {self.seed}"
        if count == 1:
            groups, count = np.arange(len(paths)), len(paths)
            note += "; warning: all images look alike, so the validation images resemble the training images"
        elif count < len(paths):
            note += f"; {len(paths)} images are {count} groups of near-duplicates, which stay together"
        sizes = np.bincount(groups)
        expected = min(max(round((1 - self.share) * len(paths)), 1), len(paths) - 1)
        validates, total = np.zeros(count, bool), 0
        for group in np.random.default_rng(self.seed).permutation(count):
            if total + sizes[group] <= expected:
                validates[group] = True
                total += sizes[group]
        if not total:
            validates[sizes.argmin()], total = True, sizes.min()
        if total < expected / 2:
            note += f"; warning: only {total} images validate, not {expected}: the groups of the others are too large"
        return validates[groups], note


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8x8 cells of the grey image is darker than the cell to its right.

    Brightness, contrast, size and compression hardly change it.
    """
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def near_duplicates(paths: Sequence[Path], hashes: Sequence[int]) -> np.ndarray:
    """(N,) the number of the group of each image; groups are numbered from 0 in the order of ``paths``."""
    values, group = np.unique(np.array(hashes, np.uint64), return_inverse=True)
    pairs = list(enumerate(like_groups(values).tolist()))
    copies: dict[str, int] = {}  # Roboflow's copies by the name of their source
    for path, number in zip(paths, group, strict=True):
        name, is_copy, _ = path.name.partition(".rf.")
        if is_copy:
            pairs.append((int(number), copies.setdefault(name, int(number))))
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(values), len(values)))
    labels = connected_components(graph, directed=False)[1][group]
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def like_groups(values: np.ndarray) -> np.ndarray:
    """(N,) for each of ``values``, different uint64, the index of one that stands for its group.

    What differs in at most LIKE bits is of one group. Within a group nothing is compared any more: of the frames of a
    fixed camera, thousands are alike.
    """
    groups = np.arange(len(values))
    for part in values.view(np.uint16).reshape(-1, 4).T:
        order = np.argsort(part, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            for position, i in enumerate(bucket[:-1]):
                others = bucket[position + 1 :]
                others = others[groups[others] != groups[i]]
                bits = np.unpackbits((values[others] ^ values[i]).view(np.uint8).reshape(-1, 8), axis=1)
                for group in np.unique(groups[others[bits.sum(axis=1) <= LIKE]]):
                    groups[groups == group] = groups[i]
    return groups
