"""Splits: by image, near-duplicates together, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.sparse.csgraph import connected_components

from utils.data.converters.split import Split, difference_hash, near_duplicates


def noise(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((180, 160), Image.Resampling.BICUBIC)


def split(hashes, share=0.75, seed=0, names=None):
    paths = [Path(name) for name in names or map(str, range(len(hashes)))]
    return Split(share, seed)(paths, hashes)


def test_every_image_counts_once_and_the_share_is_met():
    hashes = [difference_hash(noise(seed)) for seed in range(100)]
    validates, note = split(hashes, 0.9)
    assert validates.sum() == 10
    assert note == "split by --split 0.9 --seed 0"


def test_the_same_seed_gives_the_same_split_and_another_another():
    hashes = [difference_hash(noise(seed)) for seed in range(100)]
    assert (split(hashes)[0] == split(hashes)[0]).all()
    assert (split(hashes)[0] != split(hashes, seed=1)[0]).any()


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_stay_together(tmp_path, seed):
    images = []
    for number in range(8):
        image = noise(number)
        image.save(tmp_path / "a.jpg", quality=70)
        variants = [image.resize((90, 80)), ImageEnhance.Brightness(image).enhance(0.9), Image.open(tmp_path / "a.jpg")]
        images += [image, *variants]
    hashes = [difference_hash(image) for image in images]
    validates, note = split(hashes, seed=seed)
    groups = validates.reshape(8, 4)
    assert (groups == groups[:, :1]).all()
    assert 0 < validates.sum() <= 8
    assert "32 images are 8 groups of near-duplicates" in note


def test_likeness_is_at_most_three_bits_and_carries_over():
    flipped = [0, 0b111, 0b111111, 0b1111111111, 1 << 63 | 1 << 40 | 1 << 20 | 1 << 3]
    groups = near_duplicates([Path(str(k)) for k in range(5)], flipped)
    assert groups.tolist() == [0, 0, 0, 1, 2]


def test_the_groups_are_those_of_all_distances():
    random = np.random.default_rng(0)
    bases = random.integers(0, 2**63, 40, dtype=np.uint64)
    hashes = [int(base) ^ sum(1 << int(bit) for bit in random.choice(64, k, False)) for base in bases for k in range(6)]
    groups = near_duplicates([Path(str(k)) for k in range(len(hashes))], hashes)
    near = [[(first ^ other).bit_count() <= 3 for other in hashes] for first in hashes]
    expected = connected_components(np.array(near))[1]
    assert (np.equal.outer(groups, groups) == np.equal.outer(expected, expected)).all()


def test_ten_thousand_frames_of_one_scene_are_one_group():
    hashes = range(10_000)
    assert not near_duplicates([Path(str(k)) for k in hashes], hashes).any()


def test_roboflows_copies_of_an_image_stay_together():
    names = ["a_jpg.rf.01.jpg", "b_jpg.rf.02.jpg", "a_jpg.rf.03.jpg", "c.jpg"]
    hashes = [difference_hash(noise(seed)) for seed in range(4)]
    assert near_duplicates([Path(name) for name in names], hashes).tolist() == [0, 1, 0, 2]


def test_where_all_images_are_alike_the_images_are_split_with_a_warning():
    validates, note = split([7] * 10, 0.8)
    assert validates.sum() == 2
    assert "warning: all images look alike" in note


def test_a_large_group_trains_and_something_validates():
    hashes = [0] * 9 + [difference_hash(noise(1))]
    validates, note = split(hashes, 0.5)
    assert validates.tolist() == [False] * 9 + [True]
    assert note.endswith("; warning: only 1 images validate, not 5: the groups of the others are too large")
