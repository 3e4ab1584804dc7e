from pathlib import Path

import numpy as np
import pytest

from tests.scene import write
from utils.data.label_layouts import guess_layout
from utils.data.labels import (
    BESIDE,
    BORDER,
    DARKNET,
    IMAGES,
    JPEG_IMAGES,
    PART,
    LabelRules,
    find_labels,
    label_candidates,
    label_path,
    read_labels,
    scan_labels,
)
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
def test_without_a_label_file_its_path_is_that_of_the_last_folder_named_images(image, label):
    assert label_path(Path(image)) == Path(label)


@pytest.mark.parametrize(
    ("image", "candidates"),
    [
        ("images/a.jpg", {"images/a.txt": BESIDE, "labels/a.txt": IMAGES}),
        ("a.b.jpg", {"a.b.txt": BESIDE}),
        ("d/VOC/JPEGImages/a.jpg", {"d/VOC/JPEGImages/a.txt": BESIDE, "d/VOC/labels/a.txt": JPEG_IMAGES}),
        ("d/train_images/a.jpg", {"d/train_images/a.txt": BESIDE, "d/train_labels/a.txt": PART}),
        ("d/Images/a.JPG", {"d/Images/a.txt": BESIDE, "d/Labels/a.txt": IMAGES}),
        ("IMAGES/a.JPG", {"IMAGES/a.txt": BESIDE, "LABELS/a.txt": IMAGES}),
        ("d/image_2/7.png", {"d/image_2/7.txt": BESIDE, "d/label_2/7.txt": PART}),
        (
            "images/my_images/a.jpg",
            {
                "images/my_images/a.txt": BESIDE,
                "images/my_labels/a.txt": PART,
                "labels/my_images/a.txt": IMAGES,
            },
        ),
        (
            "images/x/images/a.jpg",
            {"images/x/images/a.txt": BESIDE, "images/x/labels/a.txt": IMAGES, "labels/x/images/a.txt": IMAGES},
        ),
        ("d/raw/my_images_1.jpg", {"d/raw/my_images_1.txt": BESIDE, "d/labels/my_labels_1.txt": DARKNET}),
    ],
)
def test_the_places_of_label_files_in_order_of_preference(image, candidates):
    assert list(label_candidates(image).items()) == list(candidates.items())


LABEL, OTHER = "0 .5 .5 .4 .4\n", "0 .2 .2 .1 .1\n"


@pytest.mark.parametrize(
    ("image", "label", "rule"),
    [
        ("images/a.jpg", "images/a.txt", BESIDE),
        ("obj/a.jpg", "obj/a.txt", BESIDE),
        ("VOC/JPEGImages/a.jpg", "VOC/labels/a.txt", JPEG_IMAGES),
        ("train_images/a.jpg", "train_labels/a.txt", PART),
        ("Images/train/a.jpg", "Labels/train/a.txt", IMAGES),
        ("x/raw/a.jpg", "x/labels/a.txt", DARKNET),
    ],
)
def test_labels_where_other_tools_put_them(tmp_path, image, label, rule):
    assert find_labels(tmp_path / image) is None
    path = write(tmp_path / label, LABEL)
    assert find_labels(tmp_path / image) == (str(path), rule, None, None)
    assert label_path(tmp_path / image) == path


@pytest.mark.parametrize("image", ["a.jpg", "./a.jpg", "train/a.jpg"])
def test_labels_of_images_in_the_working_directory(tmp_path, monkeypatch, image):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    path = write((tmp_path / "labels" / image).with_suffix(".txt"), LABEL)
    assert find_labels(image) == (str(path), IMAGES, None, None)


def test_the_first_place_counts_and_a_contradiction_is_noticed(tmp_path):
    later, first = write(tmp_path / "labels/a.txt", LABEL), write(tmp_path / "images/a.txt", LABEL)
    assert find_labels(tmp_path / "images/a.jpg") == (str(first), BESIDE, None, None)
    write(later, OTHER)
    assert find_labels(tmp_path / "images/a.jpg") == (str(first), BESIDE, None, str(later))


@pytest.mark.parametrize(
    "text", ["a photo of 2 hands\n", "images/a.jpg\nimages/b.jpg\n", "1 2 3\n", "12,40,33,60,hand\n"]
)
def test_a_text_of_another_kind_beside_the_image_does_not_hide_the_labels(tmp_path, text):
    caption, labels = write(tmp_path / "images/a.txt", text), write(tmp_path / "labels/a.txt", LABEL)
    assert find_labels(tmp_path / "images/a.jpg") == (str(labels), IMAGES, str(caption), None)
    labels.unlink()
    with pytest.raises(InputError, match=r"a\.txt:1: "):
        read_labels(label_path(tmp_path / "images/a.jpg"), 1)


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
        ("0 .5 .5 .1 .1 .9", "6 values, .*--labels_with_score"),
        ("0 .1 .1 .2 .1 .2 .2 .1", "8 values"),
        ("0 .5 .5 .2 .2 .45 .55 1", "8 values look like a box with keypoints"),
        ("0 .5 .5 .2 .2 .45 .55 2 0 0 0 ", "11 values look like a box with keypoints"),
        (".5 .5 .1 .1 0", r"class \.5,.*; the class stands in front of the box"),
        ("0 .1 .1 .2 .1 .2 x", "is not numbers"),
        ("0 .1 .1 .2 nan .2 .2", "not finite"),
        ("7 .1 .1 .2 .1 .2 .2", "class 7, but the classes are 0 to 0"),
        ("7 .5 .5 .1 .1", "class 7, but the classes are 0 to 0"),
        ("-1 .5 .5 .1 .1", "class -1,"),
        ("0.5 .5 .5 .1 .1", r"class 0\.5,"),
        ("hand .5 .5 .1 .1", "is not five numbers"),
        ("0 nan .5 .1 .1", "not finite"),
        ("0 .5 .5 inf .1", "not finite"),
        ("nan .5 .5 .1 .1", "not finite"),
    ],
)
def test_a_wrong_label_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "a.txt", f"0 .5 .5 .1 .1\n\n{line}\n")
    with pytest.raises(InputError, match=rf"a\.txt:3: .*{message}"):
        read_labels(path, 1)


@pytest.mark.parametrize(
    ("line", "message", "box"),
    [
        ("0 .5 .5 0 .1", r"no area: w=0 h=0\.1", None),
        ("0 .5 .5 .1 -.1", r"no area: w=0\.1 h=-0\.1", None),
        ("0 1.0005 .5 .0005 .1", "no area within the image", None),
        ("0 320 240 50 60", "no area within the image", None),
        ("0 .1 .1 .1 .1 .1 .1", "no area: w=0 h=0", None),
        ("0 .5 .5 1.003 .1", r"passes the border of the image by 0\.0015 of its side", [0.5, 0.5, 1, 0.1]),
        ("0 .1 .5 .203 .1", "passes the border", [0.10075, 0.5, 0.2015, 0.1]),
        ("0 .5 .95 .1 .103", "passes the border", [0.5, 0.94925, 0.1, 0.1015]),
        ("0 .88 .0234 .045 .1074", "passes the border", [0.88, 0.03855, 0.045, 0.0771]),
        ("0 -.1 .5 .4 .4", "passes the border", [0.05, 0.5, 0.1, 0.4]),
        ("0 -.2 .1 .5 .1 .5 1.2", "passes the border", [0.25, 0.55, 0.5, 0.9]),
    ],
)
def test_a_box_past_the_border_is_clipped_and_one_without_area_dropped(tmp_path, line, message, box):
    path = write(tmp_path / "a.txt", f"0 .5 .5 .1 .1\n{line}\n")
    labels = scan_labels(path, 1)
    assert (labels.clipped, labels.dropped, labels.changed, labels.problems) == (bool(box), not box, 1, [])
    assert message.replace("\\", "") in labels.notes[0]
    assert labels.notes[0].startswith(f"{path}:2: ")
    expected = [[0, 0.5, 0.5, 0.1, 0.1], *([[0, *box]] if box else [])]
    np.testing.assert_allclose(labels.boxes, expected, rtol=1e-5)
    with pytest.raises(InputError, match=rf"a\.txt:2: .*{message}"):
        read_labels(path, 1, LabelRules(strict=True))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("0, .3, .3, .2, .4\n", {"commas": 1}),
        ("0,.3,.3,.2,.4\n", {"commas": 1}),
        ("0 .3,.3,.2,.4\n", {"commas": 1}),
        ("0;.3;.3;.2;.4\n", {"commas": 1}),
        ("0 0,3 0,3 0,2 0,4\n", {"commas": 1}),
        ("0;0,3;0,3;0,2;0,4\n", {"commas": 1}),
        ("0 .2 .1 .4 .1 .4 .5 .2 .5\n", {"polygons": 1}),
        ("0 .2 .5 .4 .3 .3 .1\n", {"polygons": 1}),
        ("0, .2, .1, .4, .1, .4, .5, .2, .5\n", {"polygons": 1, "commas": 1}),
    ],
)
def test_lines_of_other_tools_are_read_and_counted(tmp_path, text, counts):
    labels = scan_labels(write(tmp_path / "a.txt", text), 1)
    np.testing.assert_allclose(labels.boxes, [[0, 0.3, 0.3, 0.2, 0.4]], rtol=1e-6)
    assert {
        key: getattr(labels, key) for key in ("commas", "polygons", "scores", "changed") if getattr(labels, key)
    } == counts


@pytest.mark.parametrize(
    "line", ["0 .3 .3 .2 .4 0.93", "0 .3 .3 .2 .4", "0 .2 .1 .4 .1 .4 .5 .2 .5 .7", "0,.3,.3,.2,.4,1"]
)
def test_confidences_are_ignored_where_the_option_says_so(tmp_path, line):
    path = write(tmp_path / "a.txt", line)
    labels = scan_labels(path, 1, LabelRules(with_score=True))
    np.testing.assert_allclose(labels.boxes, [[0, 0.3, 0.3, 0.2, 0.4]], rtol=1e-6)
    assert labels.scores == (line != "0 .3 .3 .2 .4")
    if labels.scores:
        with pytest.raises(InputError, match=r"(6|10) values"):
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_label_files_in_encodings_of_windows(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("0 .5 .5 .1 .1\r\n".encode(encoding))
    np.testing.assert_allclose(read_labels(path, 1)[0], [[0, 0.5, 0.5, 0.1, 0.1]])


# What the numbers of a whole list mean


def boxes_in_general_position(count, seed=0):
    """Corners (N, 4) of boxes of all sizes, everywhere in the image."""
    random = np.random.default_rng(seed)
    sizes = random.uniform(0.01, 0.5, (count, 2))
    starts = random.uniform(0, 1, (count, 2)) * (1 - sizes)
    return starts, starts + sizes, sizes


@pytest.mark.parametrize("count", [12, 300, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_layouts_of_other_tools_are_named(count, seed):
    starts, ends, sizes = boxes_in_general_position(count, seed)
    centres = (starts + ends) / 2
    layouts = {
        "corners: x1 y1 x2 y2": np.hstack([starts, ends]),
        "x1 x2 y1 y2": np.stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]], axis=1),
        "x1 y1 w h": np.hstack([starts, sizes]),
        "w h cx cy": np.hstack([sizes, centres]),
        "pixels": np.hstack([centres, sizes]) * 640,
    }
    for name, values in layouts.items():
        assert name in guess_layout(values)
    assert guess_layout(np.hstack([centres, sizes])) is None


def test_odd_but_right_data_sets_are_not_taken_for_another_layout():
    random = np.random.default_rng(0)
    starts, ends, sizes = boxes_in_general_position(300)
    centres = (starts + ends) / 2
    shifted = centres + random.uniform(-0.15, 0.15, centres.shape)  # every second box passes the border
    one_large = np.hstack([np.full((50, 2), 0.5), random.uniform(0.6, 1, (50, 2))])
    clicks = np.hstack([centres, sizes * (random.random((300, 1)) > 0.3)])
    for values in (np.hstack([shifted, sizes]), one_large, clicks, np.zeros((0, 4)), np.array([[0.9, 0.5, 0.4, 0.2]])):
        assert guess_layout(values) is None


def test_a_polygon_with_corners_on_the_border_is_not_taken_for_keypoints(tmp_path):
    labels = scan_labels(write(tmp_path / "a.txt", "0 .2 .5 .4 .3 .3 .1 1 .5 .5 0\n"), 1)
    assert (labels.polygons, labels.problems) == (1, [])
