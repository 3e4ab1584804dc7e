"""Images for inputs that are no squares: their sizes, caches and batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from config.networks import create_cfg
from tests.scene import dataset_of, save_labelled
from utils.boxes import Letterbox
from utils.darknet.spec import parse_network
from utils.data.augmentations import Augmentation, LabelledImage, letterbox
from utils.data.images import Images, input_size, letterboxed, read_image
from utils.data.loader import batches_by_shape
from utils.errors import InputError
from utils.training.multiscale import random_size, resize

SPEC = parse_network(create_cfg("v3-tiny", 1, 416, 0.05))
SIZES = [(64, 160), (160, 64), (96, 96)]


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture
def images(tmp_path):
    """Images of several shapes, with a box each; JPEG and PNG would be read alike."""
    shapes = [(320, 180), (180, 320), (100, 90), (640, 361), (33, 90), (300, 10)]
    return [
        save_labelled(tmp_path, f"i{number}", noise(*shape, number), ["0 0.4 0.5 0.6 0.7"])
        for number, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(320, 180), (180, 320), (7, 5), (1000, 3)])
def test_an_image_touches_two_sides_of_the_rectangle_and_lies_in_the_middle(shape, size):
    (width, height), (rows, columns) = shape, size
    place = Letterbox.fit(width, height, size)
    inner = round(width * place.scale_x), round(height * place.scale_y)
    assert columns == inner[0] or rows == inner[1]
    assert inner[0] <= columns
    assert inner[1] <= rows
    assert place.left == (columns - inner[0]) // 2
    assert place.top == (rows - inner[1]) // 2
    whole = torch.tensor([[place.left, place.top, place.left + inner[0], place.top + inner[1]]]).float()
    torch.testing.assert_close(place.to_image(whole, width, height), torch.tensor([[0.0, 0, width, height]]))


@pytest.mark.parametrize(
    ("shape", "largest", "expected"),
    [
        ((1280, 720), 416, (256, 416)),  # 234 rows of pixels
        ((720, 1280), 416, (416, 256)),
        ((640, 480), 416, (320, 416)),
        ((500, 500), 416, (416, 416)),
        ((3000, 2), 416, (32, 416)),
        ((416, 256), 416, (256, 416)),
        ((416, 257), 416, (288, 416)),
        ((1280, 720), (96, 416), (96, 192)),  # 171 columns
        ((720, 1280), (416, 96), (192, 96)),
    ],
)
def test_the_smallest_rectangle_holds_the_letterboxed_image(shape, largest, expected):
    assert input_size(*shape, largest, SPEC) == expected
    assert input_size(*shape, largest) == (largest if isinstance(largest, tuple) else (largest, largest))


def test_a_rectangle_that_the_network_cannot_compute_is_refused():
    blocks = list(SPEC.blocks)
    blocks[15] = blocks[15] | {"pad": "0"}  # 3x3, on the coarsest feature map
    with pytest.raises(InputError, match="layer 14"):
        input_size(3000, 2, 416, parse_network(blocks))


def test_each_image_of_a_set_is_letterboxed_to_its_own_rectangle(images):
    dataset = dataset_of(images, 1, 96, None, 0, SPEC)
    for index, path in enumerate(images):
        image = read_image(path)
        size = input_size(image.width, image.height, 96, SPEC)
        pixels, targets = dataset[index]
        torch.testing.assert_close(pixels, letterboxed(image, size), rtol=0, atol=0)
        boxes = np.array([[0, 0.1, 0.15, 0.7, 0.85]]) * [1, image.width, image.height, image.width, image.height]
        _, (expected,) = letterbox(LabelledImage(np.asarray(image), boxes), size)
        cx, cy, w, h = (targets[0, 1:] * torch.tensor([size.width, size.height] * 2)).tolist()
        assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx(expected[1:], abs=1e-4)
        shown, _ = Images(images, 96, SPEC)[index]
        torch.testing.assert_close(shown, pixels, rtol=0, atol=0)


def test_the_rectangle_of_an_image_is_known_from_its_header():
    random = np.random.default_rng(0)
    dataset = dataset_of([], 1, 96, None, 0, SPEC)
    for shape in random.integers(1, 700, (1000, 2)).tolist():
        reduction, *as_read = dataset.read_size(*shape)
        assert reduction == 1
        assert dataset.input_size(*as_read) == dataset.input_size(*shape)


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_cached_images_are_those_of_the_files(images, tmp_path, kind, augmentation):
    for size in SIZES:  # one after another in the same folder: nothing of another size is used
        plain, cached = (dataset_of(images, 1, size, augmentation) for _ in range(2))
        cached.fill_cache(kind, tmp_path / "cache", 10**9)
        assert len(cached.cache) == len(images)
        for index in range(len(images)):
            torch.testing.assert_close(cached[(1, index)], plain[(1, index)], rtol=0, atol=0)
            assert cached[(1, index)][0].shape == (3, *size)
    if kind == "disk":
        assert len(list((tmp_path / "cache").glob("*.pixels"))) == len(SIZES)


def test_training_images_are_read_as_large_as_augmentation_needs_them(images):
    (_, width, height), (_, *portrait) = (
        dataset_of(images, 1, (64, 160), Augmentation()).read_size(*shape) for shape in ((2000, 1000), (1000, 2000))
    )
    assert (width, height) == (192, 96)  # 1.5 times what fits into 64 rows
    assert tuple(portrait) == (48, 96)


def test_sizes_of_multiscale_training_keep_their_ratio():
    sizes = {random_size((256, 416), 32, 0, 10 * step) for step in range(200)}
    assert min(size.width for size in sizes) == 320
    assert max(size.width for size in sizes) == 512
    for height, width in sizes:
        assert height % 32 == width % 32 == 0
        assert abs(height - 256 / 416 * width) <= 16
    assert {random_size(64, 32, 0, 10 * step) for step in range(50)} <= {(side, side) for side in (32, 64, 96)}
    sizes = {random_size((36, 64), (4, 16), 0, 10 * step) for step in range(50)}
    assert sizes == {(28, 48), (36, 64), (44, 80)}
    assert resize(torch.rand(2, 3, 64, 96), (96, 160)).shape == (2, 3, 96, 160)


# Batches


def test_a_batch_has_one_shape_and_keeps_the_order():
    items = list(enumerate("aababbbaac"))
    batches = list(batches_by_shape(items, lambda item: item[1], 3, 100))
    assert [[number for number, _ in batch] for batch in batches] == [[0, 1, 3], [2, 4, 5], [6], [7, 8], [9]]


@pytest.mark.parametrize("patience", [0, 1, 4])
def test_no_item_waits_longer_than_patience(patience):
    read = []

    def items():
        for number, shape in enumerate("abbbbbbabbbbbcb"):
            read.append(number)
            yield number, shape

    for batch in batches_by_shape(items(), lambda item: item[1], 4, patience):
        assert len({shape for _, shape in batch}) == 1
        assert read[-1] - batch[0][0] <= patience
    assert len(read) == 15
