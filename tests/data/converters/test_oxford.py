"""Oxford hands: exact labels, and failures that name the file and touch nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.data.converters.scene import add_hands, convert, row, tree, upright
from utils.errors import InputError


def test_oxford(oxford, tmp_path, capsys):
    output = tmp_path / "out"
    convert("--debug", "--source", oxford, "--output", output)  # oxford is what is meant where no mode is given
    # x 10..40 of 100, y 10..25 of 50.
    assert (output / "labels/one.txt").read_text() == (
        "0 0.250000 0.350000 0.300000 0.300000\n0 0.500000 0.500000 1.000000 1.000000\n"
    )
    # x 90..120 clipped to 90..100, y -10..10 to 0..10; the other two have no area there.
    assert (output / "labels/two.txt").read_text() == "0 0.950000 0.100000 0.100000 0.200000\n"
    assert (output / "labels/three.txt").read_text() == ""
    assert (output / "train.txt").read_text() == "images/one.jpg\nimages/two.jpg\n"
    assert (output / "valid.txt").read_text() == "images/three.jpg\n"
    source = oxford / "test_dataset/test_data/images/three.jpg"
    assert (output / "images/three.jpg").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in output.iterdir()) == ["images", "labels", "train.txt", "valid.txt"]
    printed = capsys.readouterr().out
    assert row(printed, "train") == [2, 3, 1, 2, 0, 0, 0]
    assert row(printed, "valid") == [1, 0, 0, 0, 0, 1, 0]


def no_annotation(data: Path) -> None:
    (data / "annotations/three.mat").unlink()


def no_image(data: Path) -> None:
    (data / "images/three.jpg").unlink()


def broken_mat(data: Path) -> None:
    (data / "annotations/three.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")


def no_boxes(data: Path) -> None:
    savemat(data / "annotations/three.mat", {"other": 1})


def no_corner(data: Path) -> None:
    box = upright(1, 1, 9, 9)
    del box["d"]
    add_hands(data, "three", box)


def nan_corner(data: Path) -> None:
    add_hands(data, "three", upright(1, float("nan"), 9, 9))


def three_numbers(data: Path) -> None:
    add_hands(data, "three", {**upright(1, 1, 9, 9), "c": np.array([[1.0, 2.0, 3.0]])})


def cut_image(data: Path) -> None:
    path = data / "images/three.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:10000])


def not_an_image(data: Path) -> None:
    (data / "images/three.jpg").write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (no_annotation, "three.jpg"),
        (no_image, "three.mat"),
        (broken_mat, "three.mat"),
        (no_boxes, "three.mat"),
        (no_corner, "three.mat"),
        (nan_corner, "three.mat"),
        (three_numbers, "three.mat"),
        (cut_image, "three.jpg"),
        (not_an_image, "three.jpg"),
    ],
)
def test_bad_oxford_names_the_file_and_touches_nothing(oxford, tmp_path, spoil, named):
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    before = tree(output)
    add_hands(oxford / "training_dataset/training_data", "one", upright(1, 1, 9, 9))
    spoil(oxford / "test_dataset/test_data")
    with pytest.raises(InputError, match=named) as caught:
        convert("--source", oxford, "--output", output)
    assert "\n" not in str(caught.value)
    assert tree(output) == before


def test_missing_oxford_folders(oxford, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*download_oxford\.sh"):
        convert("--source", tmp_path / "nowhere", "--output", tmp_path / "out")
    shutil.rmtree(oxford / "validation_dataset")
    with pytest.raises(InputError, match="validation_data"):
        convert("--source", oxford, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
