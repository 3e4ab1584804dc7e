"""Boxes of run-length encoded masks, as pycocotools has them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from utils.data.converters.rle import rle_box
from utils.errors import InputError


def counts_of(mask: np.ndarray) -> list[int]:
    values = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff([0, *changes, len(values)]).tolist()
    return [0, *runs] if values[0] else runs


@pytest.mark.parametrize("seed", range(30))
def test_the_box_is_that_of_pycocotools(seed):
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 60, 2)
    mask = np.zeros((height, width), np.uint8)
    while not mask.any():
        for _ in range(3):
            y, x = random.integers(0, height), random.integers(0, width)
            mask[y : y + random.integers(1, 30), x : x + random.integers(1, 30)] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    expected = coco_mask.toBbox(compressed).tolist()
    size = [int(height), int(width)]
    assert rle_box({"size": size, "counts": counts_of(mask)}, "") == expected
    assert rle_box({"size": size, "counts": compressed["counts"].decode()}, "") == expected


@pytest.mark.parametrize(
    "mask",
    [
        None,
        {"size": [4, 4]},
        {"size": [4], "counts": [1, 1]},
        {"size": [0, 0], "counts": [1, 1]},
        {"size": [4, 4], "counts": []},
        {"size": [4, 4], "counts": [16]},
        {"size": [4, 4], "counts": [4, -1]},
        {"size": [4, 4], "counts": [4, 99]},
        {"size": [4, 4], "counts": [10**30, 1]},
        {"size": [float("inf"), 4], "counts": [1, 1]},
        {"size": [4, 4], "counts": "\x00"},
        {"size": [4, 4], "counts": "ooooooooooooooooooooooo"},
    ],
)
def test_what_is_no_mask_is_an_error(mask):
    with pytest.raises(InputError, match=r"x: "):
        rle_box(mask, "x")
