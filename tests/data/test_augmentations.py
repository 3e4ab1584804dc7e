import numpy as np
import pytest

from utils.boxes import Letterbox
from utils.data.augmentations import GREY, MIN_VISIBLE, Augmentation, LabelledImage, canvas, draw, letterbox

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
NO_COLOUR = {"hue": 0.0, "saturation": 0.0, "value": 0.0}
STILL = {"mosaic": 0.0, "zoom": 0.0, "stretch": 0.0, "shift": 0.0}
SIZE = 96


def sample(size, rectangle, label=0):
    """A black image with a rectangle (x1, y1, x2, y2) in the colour of its class."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    x1, y1, x2, y2 = rectangle
    pixels[y1:y2, x1:x2] = COLOURS[label]
    return LabelledImage(pixels, np.array([[label, *rectangle]], np.float32))


def one_colour(size, colour, boxes):
    """An image of one colour."""
    return LabelledImage(np.full((size[1], size[0], 3), colour, np.uint8), boxes)


def seen(image, label):
    """Where the colour of a class is: (x1, y1, x2, y2), and the number of pixels."""
    expected = np.array(COLOURS[label]) > 0
    mask = ((image > 110) & expected).sum(2) == expected.sum()
    mask &= ((image < 60) | expected).all(axis=2)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None, 0
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]), len(rows)


def four_images(random, height, width):
    """A loader that hands out images of four colours one after another, and the rectangles' areas times scale^2."""
    samples, areas = [], []
    for label in range(4):
        columns, rows = random.integers(40, 160, size=2)
        x1, x2 = sorted(random.choice(np.arange(0, columns + 1, 8), size=2, replace=False))
        y1, y2 = sorted(random.choice(np.arange(0, rows + 1, 8), size=2, replace=False))
        samples.append(sample((columns, rows), (x1, y1, x2, y2), label))
        areas.append((x2 - x1) * (y2 - y1) * min(width / columns, height / rows) ** 2)
    remaining = iter(samples)
    return (lambda index: next(remaining)), areas


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (64, 160), (128, 96)])
@pytest.mark.parametrize(("mosaic", "largest_scale"), [(0.0, 1.4), (1.0, 1.0)])
def test_boxes_follow_the_pixels(mosaic, largest_scale, height, width):
    kept = dropped = 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        load, areas = four_images(random, height, width)
        image, boxes = Augmentation(mosaic=mosaic, **NO_COLOUR)(load, 0, range(4), (height, width), 0, random)
        assert image.shape == (height, width, 3)
        targets = {int(box[0]): box[1:] for box in boxes}
        assert len(targets) == len(boxes)
        for label in range(4 if mosaic else 1):
            where, pixels = seen(image, label)
            if label in targets:
                x1, y1, x2, y2 = targets[label]
                assert 0 <= x1 < x2 <= width
                assert 0 <= y1 < y2 <= height
                if min(x2 - x1, y2 - y1) < 2:
                    continue  # less than a pixel's blur
                np.testing.assert_allclose(where, targets[label], atol=2)
                kept += 1
            else:
                assert pixels <= MIN_VISIBLE * areas[label] * largest_scale**2 + (height + width) * 0.1
                dropped += 1
    assert kept > 100
    if mosaic:
        assert dropped > 10


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (64, 160)])
def test_the_four_images_of_a_mosaic_meet_in_one_point(height, width):
    for seed in range(20):
        four = iter([sample((90, 90), (0, 0, 90, 90), label) for label in range(4)])
        augmentation, random = Augmentation(mosaic=1.0, stretch=0.3, **NO_COLOUR), np.random.default_rng(seed)
        image, _ = augmentation(lambda index, four=four: next(four), 0, range(4), (height, width), 0, random)
        places = [seen(image, label)[0] for label in range(4)]  # above: 0 and 1, below: 2 and 3; perhaps mirrored
        left, right = (0, 1) if places[0][0] < places[1][0] else (1, 0)
        x, y = places[left][2:]
        assert places[right][0] == places[right + 2][0] == places[left + 2][2] == x
        assert places[2][1] == places[3][1] == places[right][3] == y
        assert round(0.3 * width) <= x <= round(0.7 * width)
        assert round(0.3 * height) <= y <= round(0.7 * height)


def test_both_sides_of_a_flip_are_seen_and_boxes_turn_with_it():
    given = sample((SIZE, SIZE), (8, 16, 24, 80))
    augmentation = Augmentation(**STILL, **NO_COLOUR)
    plain = []
    for seed in range(40):
        drawn, moved = augmentation(lambda index: given, 0, range(1), SIZE, 0, np.random.default_rng(seed))
        assert moved.tolist() in ([[0, 8, 16, 24, 80]], [[0, SIZE - 24, 16, SIZE - 8, 80]])
        np.testing.assert_allclose(seen(drawn, 0)[0], moved[0, 1:], atol=1)
        plain.append(moved[0, 1] == 8)
    assert 8 < sum(plain) < 32


def test_without_changes_an_image_is_letterboxed():
    given = sample((80, 40), (8, 8, 40, 32))
    expected, at = letterbox(given, SIZE)
    mirrored = [[0, SIZE - at[0, 3], at[0, 2], SIZE - at[0, 1], at[0, 4]]]
    for seed in range(6):
        drawn, moved = Augmentation(**STILL, **NO_COLOUR)(
            lambda index: given, 0, range(1), SIZE, 0, np.random.default_rng(seed)
        )
        flipped = np.abs(moved - at).max() > 1
        # HSV and back, and OpenCV draws in steps of 1/32 pixel.
        np.testing.assert_allclose(drawn[:, ::-1] if flipped else drawn, expected, atol=5)
        np.testing.assert_allclose(moved, mirrored if flipped else at, atol=1e-3)


def test_an_image_without_boxes_stays_without():
    given = one_colour((80, 40), COLOURS[0], np.zeros((0, 5), np.float32))
    for mosaic in (0.0, 1.0):
        _, moved = Augmentation(mosaic=mosaic)(lambda index: given, 0, range(1), SIZE, 0, np.random.default_rng(0))
        assert moved.shape == (0, 5)


def test_mosaic_ends_at_its_last_epoch():
    def loads(epoch, seed, **options):
        asked = []

        def load(index):
            asked.append(index)
            return sample((40, 40), (8, 8, 24, 24))

        Augmentation(**options)(load, 6, range(9), 32, epoch, np.random.default_rng(seed))
        assert asked[0] == 6
        assert set(asked) <= set(range(9))
        return len(asked)

    for seed in range(10):
        assert [loads(epoch, seed, mosaic=1.0, first_plain_epoch=3) for epoch in (0, 2, 3, 7)] == [4, 4, 1, 1]
        assert loads(1000, seed, mosaic=1.0) == 4
        assert loads(0, seed, mosaic=0.0) == 1
    share = np.mean([loads(0, seed, mosaic=0.5) == 4 for seed in range(200)])
    assert 0.35 < share < 0.65


def test_colour_moves_within_its_limits_and_boxes_do_not_care():
    grey = one_colour((SIZE, SIZE), (100, 100, 100), np.array([[0, 8, 16, 40, 80]], np.float32))
    levels = []
    for seed in range(60):
        drawn, moved = Augmentation(**STILL, hue=0, saturation=0, value=0.4)(
            lambda index: grey, 0, range(1), SIZE, 0, np.random.default_rng(seed)
        )
        assert np.ptp(drawn) == 0
        levels.append(int(drawn[0, 0, 0]))
        assert moved[0, 2::2].tolist() == [16, 80]
    assert 58 <= min(levels) < 75
    assert 125 < max(levels) <= 141


def test_saturation_and_hue_leave_the_brightness():
    orange = one_colour((SIZE, SIZE), (200, 120, 60), np.zeros((0, 5), np.float32))
    colours = set()
    for seed in range(20):
        drawn, _ = Augmentation(**STILL, value=0)(
            lambda index: orange,
            0,
            range(1),
            SIZE,
            0,
            np.random.default_rng(seed),
        )
        assert abs(int(drawn.max()) - 200) <= 2
        colours.add(tuple(drawn[0, 0].tolist()))
    assert len(colours) > 10


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3000), (3000, 1)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_thin_images(size, mosaic):
    given = one_colour(size, COLOURS[0], np.array([[0, 0, 0, *size]], np.float32))
    for seed in range(20):
        drawn, moved = Augmentation(mosaic=mosaic)(lambda index: given, 0, range(1), 64, 0, np.random.default_rng(seed))
        assert drawn.shape == (64, 64, 3)
        assert ((moved[:, 1:] >= 0) & (moved[:, 1:] <= 64)).all()
        assert (moved[:, 3:] > moved[:, 1:3]).all()


# draw, by hand


def whole(width, height, *boxes):
    return one_colour((width, height), COLOURS[0], np.array(boxes, np.float32).reshape(-1, 5))


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [
        (0, 0, [1, 10, 20, 50, 60]),
        (-20, 0, [1, 0, 20, 30, 60]),
        (-39, 0, [1, 0, 20, 11, 60]),  # 11 of 40 columns are left
        (-41, 0, None),  # 9 of 40
        (0, -25, [1, 10, 0, 50, 35]),
        (75, 20, [1, 85, 40, 100, 80]),
        (82, 20, None),
        (-30, -50, None),  # half of a quarter
        (-200, 0, None),
    ],
)
def test_boxes_are_clipped_and_dropped_when_mostly_cut_off(left, top, expected):
    boxes = draw(canvas(100), whole(100, 100, [1, 10, 20, 50, 60]), Letterbox(1, 1, left, top))
    assert boxes.tolist() == ([expected] if expected else [])


def test_drawing_stays_within_the_window():
    target = canvas(100)
    boxes = draw(target, whole(80, 80, [0, 0, 0, 80, 80]), Letterbox(1, 1, 10, 10), (30, 0, 60, 50))
    inside = np.zeros((100, 100), bool)
    inside[10:50, 30:60] = True
    assert (target[inside] == COLOURS[0]).all()
    assert (target[~inside] == GREY).all()
    assert boxes.tolist() == []  # 1200 of 6400 pixels
    kept = draw(target, whole(80, 80, [0, 0, 0, 50, 40]), Letterbox(1, 1, 10, 10), (30, 0, 60, 50))
    assert kept.tolist() == [[0, 30, 10, 60, 50]]


def test_drawing_leaves_the_boxes_it_was_given():
    given = whole(100, 100, [1, 10, 20, 50, 60])
    draw(canvas(100), given, Letterbox(0.5, 0.5, -10, 0))
    assert given.boxes.tolist() == [[1, 10, 20, 50, 60]]


def test_letterbox_to_a_rectangle_by_hand():
    image, boxes = letterbox(whole(100, 50, [2, 0, 0, 100, 50]), (100, 240))
    assert image.shape == (100, 240, 3)
    assert boxes.tolist() == [[2, 20, 0, 220, 100]]
    assert (image[:, 20:220] == COLOURS[0]).all()
    assert (image[:, :20] == GREY).all()
    assert (image[:, 220:] == GREY).all()


def test_letterbox_by_hand():
    image, boxes = letterbox(whole(100, 50, [2, 0, 0, 100, 50], [0, 20, 10, 60, 30]), 200)
    assert boxes.tolist() == [[2, 0, 50, 200, 150], [0, 40, 70, 120, 110]]
    assert (image[50:150] == COLOURS[0]).all()
    assert (image[:50] == GREY).all()
    assert (image[150:] == GREY).all()
