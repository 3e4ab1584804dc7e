import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.scene import save
from utils.data.datasets import DetectionDataset
from utils.report.detections import Collected
from utils.report.gallery import LONGEST_SIDE, make_gallery


@pytest.fixture
def dataset(tmp_path):
    """Three images of 80 x 40 pixels, which have 32 x 16 in the middle of a square of 32, and no labels."""
    images = [
        save(tmp_path / f"images/{name}.jpg", (80, 40), colour) for name, colour in (("a", 0), ("b", 9), ("c", 1))
    ]
    return DetectionDataset(images, [[]] * 3, 32)


def collected(*scores, box=(0, 8, 16, 16)):
    """One box per image with these scores, in pixels of the square: by default the left upper quarter of the image."""
    result = Collected()
    for score in scores:
        result(torch.tensor([[*box, score, 0]]), torch.tensor([[0, 16.0, 16, 32, 24]]))
    return result


def test_the_largest_disagreement_comes_first(dataset):
    before, after = collected(0.3, 0.9, 0.5), collected(0.3, 0.9, 0.5, box=(16, 16, 32, 24))
    gallery = make_gallery(dataset, before, after, 2)
    assert [image.disagreement for image in gallery.images] == pytest.approx([1.8, 1.0])
    assert [image.name[-5:] for image in gallery.images] == ["b.jpg", "c.jpg"]
    assert (gallery.disagreeing, gallery.total) == (3, 3)


def test_a_list_may_mix_absolute_and_relative_paths(dataset, monkeypatch):
    monkeypatch.chdir(dataset.images[0].parent)
    dataset.images[1] = Path(dataset.images[1].name)
    assert sorted(image.name for image in make_gallery(dataset, None, collected(0.5, 0.5, 0.5)).images) == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]


def test_boxes_are_in_percent_of_the_image(dataset):
    image = make_gallery(dataset, collected(0.5, 0.5, 0.5), collected(0.75, 0.5, 0.5)).images[0]
    assert image.before == [[0, 0, 50, 50, 0.5, 0]]
    assert image.after == [[0, 0, 50, 50, 0.75, 0]]
    assert image.truth == [[50, 50, 50, 50, 0]]


def test_a_network_alone_is_compared_with_the_ground_truth(dataset):
    right = collected(0.5, 0.5, 0.5, box=(16, 16, 32, 24))
    right.detections[1] = right.detections[1][:0]
    gallery = make_gallery(dataset, None, right)
    assert [image.disagreement for image in gallery.images] == [1, 0, 0]
    assert gallery.disagreeing == 1
    assert gallery.images[0].before == []


def test_images_are_embedded_at_a_modest_size(tmp_path):
    path = save(tmp_path / "images/large.png", (1200, 600), (200, 30, 30))
    image = make_gallery(DetectionDataset([path], [[]], 960), None, collected(0.5)).images[0]
    kind, _, content = image.jpeg.partition(",")
    assert kind == "data:image/jpeg;base64"
    embedded = Image.open(io.BytesIO(base64.b64decode(content)))
    assert embedded.size == (image.width, image.height) == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert all(abs(a - b) < 8 for a, b in zip(embedded.getpixel((9, 9)), (200, 30, 30), strict=True))
