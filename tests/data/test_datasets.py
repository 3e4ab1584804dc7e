import numpy as np
import pytest
import torch
from PIL import Image

from tests.scene import dataset_of, five_images, save, save_labelled
from utils.data.augmentations import Augmentation

RED = (255, 0, 0)


def with_rectangle(size, rectangle, colour=RED):
    """A black image with a filled rectangle (x1, y1, x2, y2), and its label line of class 0."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = rectangle
    pixels[y1:y2, x1:x2] = colour
    numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return Image.fromarray(pixels), "0 " + " ".join(f"{number:.6f}" for number in numbers)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (33, 97), (64, 64), (8, 8)])
def test_letterboxed_boxes_lie_on_their_object(tmp_path, size):
    width, height = size
    rectangle = (width // 4, height // 2, 3 * width // 4, height - height // 8)
    drawn, line = with_rectangle(size, rectangle)
    path = save_labelled(tmp_path, "a", drawn, [line])
    image, targets = dataset_of([path], 1, 64)[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 64, 64)
    _, cx, cy, w, h = targets[0].tolist()
    edges = [64 * (cx - w / 2), 64 * (cy - h / 2), 64 * (cx + w / 2), 64 * (cy + h / 2)]
    rows, columns = torch.nonzero((image[0] > 127 + 60) & (image[2] < 60), as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(edges) - np.array(seen)).max() <= (1 if max(size) > 32 else 4)


def test_bars_beside_a_letterboxed_image_are_grey(tmp_path):
    image, _ = dataset_of([save(tmp_path / "a.png", (64, 32), RED)], 1, 64)[0]
    assert (image[:, :16] == 127).all()
    assert (image[:, 48:] == 127).all()
    assert (image[:, 16:48] == torch.tensor(RED)[:, None, None]).all()


def test_an_item_depends_on_seed_epoch_and_index_alone(tmp_path):
    images = five_images(tmp_path)

    def item(seed, epoch, index):
        return dataset_of(images, 2, 32, Augmentation(), seed)[epoch, index]

    dataset = dataset_of(images, 2, 32, Augmentation(), 0)
    expected = [dataset[1, index] for index in range(5)]
    torch.manual_seed(5)
    np.random.seed(5)
    for index in (4, 2, 0, 3, 1):  # in another order, from another object, with other global states
        torch.testing.assert_close(item(0, 1, index), expected[index], rtol=0, atol=0)
    for other in (item(1, 1, 2), item(0, 2, 2), item(0, 1, 4)):
        assert not torch.equal(other[0], expected[2][0])
