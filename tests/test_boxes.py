import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from utils import boxes as boxes_module
from utils.boxes import (
    BEST_FIRST,
    MAX_CANDIDATES,
    MAX_DETECTIONS,
    Letterbox,
    _suppress,
    _suppress_at_once,
    _suppress_by_group,
    check_nms,
    non_max_suppression,
)
from utils.errors import InputError


def prediction(cx, cy, w, h, objectness, *scores):
    return [cx, cy, w, h, objectness, *scores]


def suppress(*rows, conf_thres=0.1, nms_thres=0.5):
    return non_max_suppression(torch.tensor([list(rows)]), conf_thres, nms_thres)[0]


# letterboxing


@pytest.mark.parametrize(
    ("width", "height", "place"),
    [
        (832, 416, (0.5, 0.5, 0, 104)),
        (416, 832, (0.5, 0.5, 104, 0)),
        (208, 208, (2, 2, 0, 0)),
        (416, 416, (1, 1, 0, 0)),
    ],
)
def test_fit_by_hand(width, height, place):
    assert Letterbox.fit(width, height, 416) == Letterbox(*place)


@pytest.mark.parametrize("width", [1, 3, 97, 640, 5000])
@pytest.mark.parametrize("height", [1, 31, 480, 641])
@pytest.mark.parametrize("size", [64, 416])
def test_an_image_fills_the_square_on_one_side_and_lies_in_the_middle(width, height, size):
    place = Letterbox.fit(width, height, size)
    drawn = place.scale_x * width, place.scale_y * height
    assert max(drawn) == pytest.approx(size)
    for side, start in zip(drawn, (place.left, place.top), strict=True):
        assert side == pytest.approx(round(side))
        assert side >= 1
        assert abs((size - side) - 2 * start) <= 1 + 1e-6
    if min(drawn) > 1:
        assert abs(drawn[0] / drawn[1] * height / width - 1) <= 0.5 / min(drawn) + 1e-6


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (333, 77), (77, 333), (64, 64), (1, 1)])
def test_to_image_undoes_fit(width, height):
    place = Letterbox.fit(width, height, 416)
    random = np.random.default_rng(0)
    corners = np.sort(random.uniform(0, 1, (20, 2, 2)), axis=1) * (width, height)
    xyxy = torch.tensor(corners.reshape(20, 4), dtype=torch.float32)
    scale = torch.tensor([place.scale_x, place.scale_y] * 2)
    square = xyxy * scale + torch.tensor([place.left, place.top] * 2)
    assert (square >= 0).all()
    assert (square <= 416).all()
    torch.testing.assert_close(place.to_image(square, width, height), xyxy, rtol=1e-4, atol=1e-3)


def test_to_image_clips_to_the_image():
    place = Letterbox.fit(200, 100, 100)
    found = place.to_image(torch.tensor([[-10.0, 0, 120, 100], [10, 30, 20, 40]]), 200, 100)
    assert found.tolist() == [[0, 0, 200, 100], [20, 10, 40, 30]]


def test_to_image_of_no_boxes():
    assert Letterbox.fit(20, 10, 10).to_image(torch.zeros(0, 4), 20, 10).shape == (0, 4)


# non-maximum suppression


def test_boxes_come_as_corners_with_score_and_class():
    found = suppress(prediction(50, 40, 20, 10, 0.5, 0.25, 0.5))
    torch.testing.assert_close(found, torch.tensor([[40, 35, 60, 45, 0.25, 1], [40, 35, 60, 45, 0.125, 0]]))


def test_every_class_above_the_threshold_is_a_detection_of_its_own():
    found = suppress(prediction(50, 50, 20, 20, 1, 0.75, 0.5, 0.05), conf_thres=0.1)
    assert found[:, 4:].tolist() == [[0.75, 0], [0.5, 1]]


def test_the_best_of_overlapping_boxes_stays_whatever_their_order():
    rows = [prediction(50 + k, 50, 40, 40, 1, score) for k, score in enumerate((0.5, 0.75, 0.25, 0.625))]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        found = suppress(*(rows[k] for k in order))
        assert found[:, 4].tolist() == [0.75]
        assert found[0, :4].tolist() == [31, 30, 71, 70]


def test_classes_do_not_suppress_each_other():
    found = suppress(prediction(50, 50, 40, 40, 1, 0.75, 0), prediction(50, 50, 40, 40, 1, 0, 0.5))
    assert found[:, 4:].tolist() == [[0.75, 0], [0.5, 1]]


def test_what_a_suppressed_box_overlaps_is_not_suppressed():
    rows = [prediction(x, 50, 40, 40, 1, score) for x, score in ((40, 0.75), (52, 0.5), (64, 0.25))]
    assert suppress(*rows, nms_thres=0.5)[:, 4].tolist() == [0.75, 0.25]


def test_confidence_threshold_is_inclusive():
    row = prediction(50, 50, 20, 20, 0.5, 0.5)
    assert len(suppress(row, conf_thres=0.25)) == 1
    assert len(suppress(row, conf_thres=0.2501)) == 0
    assert len(suppress(prediction(50, 50, 20, 20, 0.25, 1), conf_thres=0.25)) == 1


def test_confidence_is_objectness_times_class():
    assert len(suppress(prediction(50, 50, 20, 20, 0.9, 0.1), conf_thres=0.1)) == 0
    assert len(suppress(prediction(50, 50, 20, 20, 0.1, 0.9), conf_thres=0.1)) == 0


def test_nms_threshold_is_exclusive():
    rows = prediction(50, 50, 40, 40, 1, 0.75), prediction(50, 40, 40, 20, 1, 0.5)  # half of the first: IoU 0.5
    assert len(suppress(*rows, nms_thres=0.5)) == 2
    assert len(suppress(*rows, nms_thres=0.499)) == 1


def test_no_detection_gives_an_empty_table_per_image():
    for predictions in (torch.zeros(2, 7, 6), torch.zeros(2, 0, 6)):
        found = non_max_suppression(predictions, 0.1, 0.5)
        assert [tuple(image.shape) for image in found] == [(0, 6), (0, 6)]


def test_images_of_a_batch_do_not_meet():
    first, second = prediction(50, 50, 40, 40, 1, 0.75), prediction(50, 50, 40, 40, 1, 0.5)
    found = non_max_suppression(torch.tensor([[first], [second]]), 0.1, 0.5)
    assert [image[:, 4].tolist() for image in found] == [[0.75], [0.5]]


def test_half_precision_predictions_give_float_detections():
    found = non_max_suppression(torch.tensor([[prediction(50, 50, 40, 40, 1, 0.75)]]).half(), 0.1, 0.5)[0]
    assert found.dtype == torch.float32
    assert found.tolist() == [[30, 30, 70, 70, 0.75, 0]]


def test_predictions_that_are_no_number_are_no_detections():
    nan = float("nan")
    found = suppress(prediction(50, 50, 40, 40, nan, 0.75), prediction(50, 50, 40, 40, 1, nan))
    assert len(found) == 0


def test_detections_keep_the_best_and_their_order():
    count = MAX_DETECTIONS + 50
    scores = torch.linspace(0.2, 0.9, count)[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    rows = torch.stack([torch.arange(count) * 10.0, *torch.tensor([5.0, 8, 8, 1])[:, None].expand(4, count)], 1)
    found = non_max_suppression(torch.cat([rows, scores[:, None]], 1)[None], 0.1, 0.5)[0]
    assert torch.equal(found[:, 4], scores.sort(descending=True).values[:MAX_DETECTIONS])


def test_too_many_candidates_are_cut_at_the_low_scores():
    count = MAX_CANDIDATES + 500
    rows = torch.tensor(prediction(50, 50, 20, 20, 1, 0.3)).repeat(count, 1)
    rows[:, 5] = torch.linspace(0.2, 0.3, count)
    rows[-1] = torch.tensor(prediction(90, 90, 5, 5, 1, 0.9))  # would be beyond a cap by position
    rows[0] = torch.tensor(prediction(20, 20, 5, 5, 1, 0.15))  # beyond the cap by score
    found = non_max_suppression(rows[None], 0.1, 0.5)[0]
    assert found[0, 4].item() == pytest.approx(0.9)
    assert len(found) == 2


def test_suppression_agrees_with_a_plain_loop(monkeypatch):
    monkeypatch.setattr(boxes_module, "MAX_DETECTIONS", 10_000)
    generator = torch.Generator().manual_seed(1)
    predictions = torch.rand(1, 300, 8, generator=generator)
    predictions[..., :4] = predictions[..., :4] * torch.tensor([100, 100, 40, 40]) + torch.tensor([0, 0, 5.0, 5])
    found = non_max_suppression(predictions, 0.2, 0.4)[0]

    cx, cy, w, h, objectness = predictions[0, :, :5].T
    xyxy = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    wanted = []
    for label in range(3):
        score = objectness * predictions[0, :, 5 + label]
        kept = []
        for k in sorted(range(300), key=lambda k: -score[k]):
            if score[k] >= 0.2 and all(box_iou(xyxy[k, None], xyxy[j, None]) <= 0.4 for j in kept):
                kept.append(k)
        wanted += [[*xyxy[k].tolist(), score[k].item(), label] for k in kept]
    wanted.sort(key=lambda row: -row[4])
    torch.testing.assert_close(found, torch.tensor(wanted))


def crowd(images, boxes, classes, side=100):
    predictions = torch.rand(images, boxes, 5 + classes, generator=torch.Generator().manual_seed(2))
    predictions[..., :4] = predictions[..., :4] * torch.tensor([side, side, 40, 40]) + torch.tensor([0, 0, 5.0, 5])
    return predictions


@pytest.mark.parametrize("classes", [1, 3])
def test_a_batch_gives_what_its_images_give_one_by_one(classes):
    predictions = crowd(4, 300, classes)
    predictions[1, :, 4] = 0  # an image without a detection
    found = non_max_suppression(predictions, 0.2, 0.4)
    assert len(found[1]) == 0
    for image, own in zip(predictions, found, strict=True):
        assert torch.equal(own, non_max_suppression(image[None], 0.2, 0.4)[0])


def test_a_cap_on_candidates_changes_nothing_while_enough_of_the_best_stay(monkeypatch):
    predictions = crowd(2, 4000, 1, side=2000)
    predictions[1, 700:, 4] = 0  # one image is below the cap, one above
    wanted = non_max_suppression(predictions, 0.001, 0.5)
    monkeypatch.setattr(boxes_module, "MAX_CANDIDATES", 800)
    got = non_max_suppression(predictions, 0.001, 0.5)
    assert len(got[0]) == MAX_DETECTIONS
    assert all(torch.equal(*pair) for pair in zip(wanted, got, strict=True))


@pytest.mark.parametrize("at_once", [600, 599])
def test_suppression_in_few_calls_keeps_what_groups_keep_one_by_one_whatever_wild_box_there_is(monkeypatch, at_once):
    monkeypatch.setattr(boxes_module, "AT_ONCE", at_once)  # all in one call, or an image in a call
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(600, 2, generator=random) * 100
    xyxy = torch.cat([corner, corner + 5 + 40 * torch.rand(600, 2, generator=random)], 1)
    xyxy[5] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
    score, group = torch.rand(600, generator=random), torch.randint(500, (600,), generator=random).sort().values
    one_by_one = _suppress_by_group(xyxy, score, group, 0.3)
    assert 0 < len(one_by_one) < 600
    keep = _suppress_at_once(xyxy, score, group, 0.3, classes=100)
    if at_once < 600:  # they come by image then
        keep = keep[score[keep].argsort(descending=True, stable=True)]
    assert torch.equal(keep, one_by_one)


def test_suppression_in_few_calls_keeps_groups_apart_where_boxes_pass_the_upper_left_corner():
    xyxy = torch.tensor([[356.0, 356, 416, 416], [-59, -59, 60, 60]])
    keep = _suppress_at_once(xyxy, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.1, classes=2)
    assert keep.tolist() == [0, 1]


@pytest.mark.parametrize(("side", "stay"), [(3000, "more"), (120, "fewer")])
def test_looking_at_the_best_first_keeps_what_suppression_of_everything_keeps(side, stay):
    random = torch.Generator().manual_seed(3)
    count = 5 * BEST_FIRST
    corner = torch.rand(count, 2, generator=random) * side
    xyxy = torch.cat([corner, corner + 20 + 20 * torch.rand(count, 2, generator=random)], 1)
    score = torch.randint(200, (count,), generator=random) / 200  # many are equal
    wanted, got = nms(xyxy, score, 0.5), _suppress(xyxy, score, 0.5)
    assert (len(wanted) > 2 * MAX_DETECTIONS) == (stay == "more")
    assert torch.equal(got, wanted[: len(got)])
    assert len(got) >= MAX_DETECTIONS if stay == "more" else len(got) == len(wanted)


def test_a_torchvision_without_nms_for_the_device_is_noticed():
    check_nms(torch.device("cpu"))
    with pytest.raises(InputError, match="has no NMS for meta: install the torchvision that belongs to torch"):
        check_nms(torch.device("meta"))
