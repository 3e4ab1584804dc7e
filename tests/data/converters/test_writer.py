"""What all formats share: names, clipped and rounded boxes, and writing all or nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.converters.scene import add_hands, convert, tree, upright
from utils.data.converters.writer import unique_name
from utils.errors import InputError


def test_running_twice_gives_the_same_and_leaves_other_files(oxford, tmp_path):
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    (output / "labels/mine.txt").write_text("mine")
    first = tree(output)
    convert("--source", oxford.parent, "--output", output)  # the parent folder will do too
    assert tree(output) == first


def test_older_lists_are_kept(oxford, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "train.txt").write_text("images/of_another.jpg\n")
    convert("--source", oxford, "--output", output)
    assert f"the old {output}/train.txt is kept as {output}/train-1.txt" in capsys.readouterr().out
    assert (output / "train-1.txt").read_text() == "images/of_another.jpg\n"
    assert "of_another" not in (output / "train.txt").read_text()


def test_exif_rotation_turns_the_size(oxford, tmp_path):
    add_hands(oxford / "test_dataset/test_data", "three", upright(0, 0, 50, 25), orientation=6)  # upright it is 50x100
    convert("--source", oxford, "--output", tmp_path / "out")
    assert (tmp_path / "out/labels/three.txt").read_text() == "0 0.250000 0.250000 0.500000 0.500000\n"


def test_rounded_boxes_stay_inside_and_keep_an_area(oxford, tmp_path):
    rng = np.random.default_rng(0)
    boxes = [upright(*(rng.uniform(-30, 40, 2) * (1, 2)), *(rng.uniform(20, 90, 2) * (1, 2))) for _ in range(200)]
    speck = upright(5, 5, 5.00001, 5.00001)
    add_hands(oxford / "test_dataset/test_data", "three", *boxes, speck, size=(97, 53))
    convert("--source", oxford, "--output", tmp_path / "out")
    labels = np.loadtxt(tmp_path / "out/labels/three.txt")
    centre, side = labels[:, 1:3], labels[:, 3:]
    assert 100 < len(labels) <= 200
    assert (centre - side / 2).min() >= -1e-6
    assert (centre + side / 2).max() <= 1 + 1e-6
    assert side.min() > 0


def test_same_stem_in_two_splits_loses_nothing(oxford, tmp_path):
    add_hands(oxford / "test_dataset/test_data", "ONE", upright(0, 0, 25, 50), size=(50, 25))
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    assert (output / "valid.txt").read_text() == "images/ONE_2.jpg\nimages/three.jpg\n"
    assert (output / "labels/ONE_2.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000\n"
    assert Image.open(output / "images/ONE_2.jpg").size == (50, 25)
    assert Image.open(output / "images/one.jpg").size == (100, 50)


def test_failing_copy_touches_nothing(oxford, tmp_path, monkeypatch):
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    before = tree(output)
    add_hands(oxford / "training_dataset/training_data", "one", upright(1, 1, 9, 9))
    copy = shutil.copy2

    def full_disk(source, target):
        if Path(source).name == "three.jpg":
            raise OSError(28, "No space left on device", str(target))
        return copy(source, target)

    monkeypatch.setattr(shutil, "copy2", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert("--source", oxford, "--output", output)
    assert tree(output) == before
    assert not list(output.glob(".converter-*"))


def test_split_without_images(oxford, tmp_path):
    for path in (oxford / "test_dataset/test_data").glob("*/three.*"):
        path.unlink()
    with pytest.raises(InputError, match="valid split has no images"):
        convert("--source", oxford, "--output", tmp_path / "out")


def test_names_are_numbered_where_they_are_used():
    used = {}
    sources = ["a.jpg", "a.jpg", "A.jpg", "a_3.jpg", "a.jpg"]
    names = ["a.jpg", "a_2.jpg", "A_3.jpg", "a_3_2.jpg", "a_4.jpg"]
    assert [unique_name(Path(source), used) for source in sources] == names
