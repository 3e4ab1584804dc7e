from pathlib import Path

import numpy as np
import pytest

from tests.scene import write
from utils.data.labels import BORDER, label_path, read_labels
from utils.errors import InputError


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.jpg", "labels/a.txt"),
        ("/d/images/train/a.b.png", "/d/labels/train/a.b.txt"),
        ("/images/set/images/a.jpg", "/images/set/labels/a.txt"),
        ("/images/my_images/a.jpg", "/labels/my_images/a.txt"),
        ("/d/photos/a.jpg", "/d/photos/a.txt"),
        ("/d/images/images.jpg", "/d/labels/images.txt"),
        ("/d/images/images", "/d/labels/images.txt"),
    ],
)
def test_label_path_changes_the_last_folder_named_images(image, label):
    assert label_path(Path(image)) == Path(label)


def test_a_missing_or_empty_label_file_is_a_negative_image(tmp_path):
    for path in (tmp_path / "none.txt", write(tmp_path / "empty.txt", ""), write(tmp_path / "blank.txt", "\n \n")):
        boxes, clipped = read_labels(path, 1)
        assert (boxes.shape, clipped) == ((0, 5), 0)


def test_labels_are_read_as_written(tmp_path):
    boxes, clipped = read_labels(write(tmp_path / "a.txt", "0 0.5 0.25 0.5 0.125\n\n2\t.75 .5 .5 1\n"), 3)
    assert boxes.tolist() == [[0, 0.5, 0.25, 0.5, 0.125], [2, 0.75, 0.5, 0.5, 1]]
    assert clipped == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .1", "4 values, but a label line has five: class cx cy w h"),
        ("0 .5 .5 .1 .1 .9", "6 values"),
        ("7 .5 .5 .1 .1", "class 7, but the classes are 0 to 0"),
        ("-1 .5 .5 .1 .1", "class -1,"),
        ("0.5 .5 .5 .1 .1", r"class 0\.5,"),
        ("hand .5 .5 .1 .1", "is not five numbers"),
        ("0 nan .5 .1 .1", "not finite"),
        ("0 .5 .5 inf .1", "not finite"),
        ("nan .5 .5 .1 .1", "not finite"),
        ("0 .5 .5 0 .1", r"no area: w=0 h=\.1"),
        ("0 .5 .5 .1 -.1", r"no area: w=\.1 h=-\.1"),
        ("0 .5 .5 1.003 .1", r"passes the border of the image by 0\.0015 of its side"),
        ("0 .1 .5 .203 .1", "passes the border"),
        ("0 .5 .95 .1 .103", "passes the border"),
        ("0 1.0005 .5 .0005 .1", "no area within the image"),
        ("0 320 240 50 60", "passes the border"),
    ],
)
def test_a_wrong_label_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "a.txt", f"0 .5 .5 .1 .1\n\n{line}\n")
    with pytest.raises(InputError, match=rf"a\.txt:3: .*{message}"):
        read_labels(path, 1)


def test_boxes_slightly_over_the_border_are_clipped_and_counted(tmp_path):
    over = 0.9 * BORDER
    text = f"0 {0.1 - over} .5 .2 .4\n0 .5 {0.9 + over} .4 .2\n0 .5 .5 1 1\n"
    boxes, clipped = read_labels(write(tmp_path / "a.txt", text), 1)
    assert clipped == 2
    np.testing.assert_allclose(boxes[0], [0, (0.2 - over) / 2, 0.5, 0.2 - over, 0.4], rtol=1e-5)
    np.testing.assert_allclose(boxes[1], [0, 0.5, (0.8 + over + 1) / 2, 0.4, 0.2 - over], rtol=1e-5)
    assert boxes[2].tolist() == [0, 0.5, 0.5, 1, 1]


def test_a_folder_is_no_label_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match=r"a\.txt: cannot be read as a label file: Is a directory"):
        read_labels(tmp_path / "a.txt", 1)
