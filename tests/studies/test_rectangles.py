import cv2
import numpy as np
import pytest
import torch

from studies import drawn_scenes
from studies.drawn_scenes import draw_scenes, drawn_precision
from studies.rectangles import cut_to_wide, middle
from tests.scene import save_labelled, write
from utils.data.augmentations import LabelledImage
from utils.data.check import check_data
from utils.data.data_config import read_data_config
from utils.data.images import read_image


def noise(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_the_middle_is_cut_out_of_the_pixels_and_of_the_boxes():
    pixels = noise(160, 120)
    wide = middle(LabelledImage(pixels, np.array([[0, 10, 20, 50, 60], [1, 0, 0, 20, 20]], np.float32)))
    np.testing.assert_array_equal(wide.pixels, pixels[15:105])
    assert wide.boxes.tolist() == [[0, 10, 5, 50, 45]]  # a quarter of the other is left, so it is dropped
    tall = middle(LabelledImage(noise(320, 90), np.zeros((0, 5), np.float32)))
    assert tall.size == (160, 90)


def test_a_data_set_is_cut_with_its_labels(tmp_path):
    cv2.imwrite(str(tmp_path / "noise.png"), noise(160, 120))
    image = read_image(tmp_path / "noise.png")
    save_labelled(tmp_path, "a", image, ["1 0.5 0.5 0.25 0.25", "0 0.1 0.05 0.1 0.1"])
    write(tmp_path / "valid.txt", "images/a.png\n")
    write(tmp_path / "x.names", "left\nright\n")
    data = read_data_config(write(tmp_path / "x.data", "classes=2\nvalid=valid.txt\nnames=x.names\n"))
    (tmp_path / "wide").mkdir()
    wide = cut_to_wide(data, tmp_path / "wide")
    checked = check_data(wide, "valid")
    assert wide.names == ["left", "right"]
    assert read_image(checked.images[0]).size == (160, 90)
    assert checked.labels[0].tolist() == [pytest.approx([1, 0.5, 0.5, 0.25, 1 / 3], abs=1e-5)]


def test_the_boxes_of_drawn_scenes_are_where_the_edges_are(tmp_path):
    paths, labels = draw_scenes(tmp_path, 30)
    single = [(path, boxes[0]) for path, boxes in zip(paths, labels, strict=True) if len(boxes) == 1]
    assert single
    for path, (_, cx, cy, w, h) in single:
        image = np.asarray(read_image(path)).astype(int)
        assert image.shape == (180, 320, 3)
        x, y, right, bottom = cx * 320, cy * 180, (cx + w / 2) * 320, (cy + h / 2) * 180
        assert image[round(y), round(right) - 1].min() > 200
        assert image[round(bottom) - 1, round(x)].min() > 200


def test_a_drawn_network_is_measured_on_squares_and_on_rectangles(monkeypatch):
    shapes, original = [], drawn_scenes.evaluate

    def spy(model, batches, names):
        shapes.append(tuple(next(iter(batches))[0].shape[-2:]))
        return original(model, batches, names)

    monkeypatch.setattr(drawn_scenes, "evaluate", spy)
    scores = drawn_precision(torch.device("cpu"), train=4, valid=2, epochs=1, side=96)
    assert all(0 <= score <= 1 for score in scores)
    assert shapes == [(96, 96), (64, 96)]
