import contextlib
import io
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch

from studies.bench.metrics import coco_map, collected, detected_images, our_metrics, plain_map, plain_match
from utils.detection.metrics import COCO_IOU, DetectionMetrics, average_precision

A, B = (0, 0, 10, 10), (100, 100, 120, 120)  # two places far from each other
FAR = (300, 300, 310, 310)


def table(rows, columns):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def measure(images, names=("hand",), iou_thres=0.5):
    """Metrics of images, each (detections [(box, score, class)], truth [(class, box)])."""
    return gather(images, names, iou_thres).compute()


def gather(images, names=("hand",), iou_thres=0.5):
    metrics = DetectionMetrics(list(names), iou_thres)
    for detections, truth in images:
        detections = sorted(detections, key=lambda detection: -detection[1])
        metrics.add(table([[*b, s, c] for b, s, c in detections], 6), table([[c, *b] for c, b in truth], 5))
    return metrics


def matched(detections, truth, iou_thres=0.5):
    """Which detections of one image are right, (D, 11)."""
    metrics = DetectionMetrics(["a", "b", "c"], iou_thres)
    metrics.add(detections, truth)
    return metrics.matches()


def random_images(seed, images=30, classes=3, truths=6, extra=5):
    """Boxes, and detections that are near them, near nothing, doubled or of another class; no two scores are equal."""
    random = np.random.default_rng(seed)
    scores = iter(random.permutation(np.linspace(0.01, 0.99, images * (2 * truths + extra))))
    samples = []
    for _ in range(images):
        truth, detections = [], []
        for _ in range(random.integers(0, truths + 1)):
            corner, side = random.uniform(0, 300, 2), random.uniform(20, 100, 2)
            label = int(random.integers(classes))
            truth.append((label, (*corner, *(corner + side))))
            for _ in range(random.choice(3, p=[0.2, 0.6, 0.2])):
                moved = np.array(truth[-1][1]) + random.normal(0, 0.12, 4) * np.tile(side, 2)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                seen = label if random.random() < 0.9 else int(random.integers(classes))
                detections.append((tuple(moved), next(scores), seen))
        for _ in range(random.integers(0, extra + 1)):
            corner = random.uniform(0, 300, 2)
            detections.append(
                ((*corner, *(corner + random.uniform(20, 100, 2))), next(scores), int(random.integers(3)))
            )
        samples.append((detections, truth))
    return samples


def coco(images, classes):
    """AP at 0.5 to 0.95, at 0.5, and by class at 0.5, as pycocotools has them."""
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        x1, y1, x2, y2 = map(float, np.float32(box))
        return [x1, y1, x2 - x1, y2 - y1]

    truths, found = [], []
    for number, (detections, truth) in enumerate(images, start=1):
        for label, box in truth:
            where = xywh(box)
            truths.append({"image_id": number, "category_id": label + 1, "bbox": where, "area": where[2] * where[3]})
            truths[-1] |= {"id": len(truths), "iscrowd": 0}
        for box, score, label in detections:
            found.append({"image_id": number, "category_id": label + 1, "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco_module.COCO()
        ground.dataset = {
            "info": {},
            "images": [{"id": number + 1} for number in range(len(images))],
            "categories": [{"id": label + 1} for label in range(classes)],
            "annotations": truths,
        }
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(found), "bbox")
        evaluation.params.maxDets = [1000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # IoU, recall, class
    assert (precision > -1).all()
    return precision.mean(), precision[0].mean(), precision[0].mean(axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_pycocotools(seed):
    images = random_images(seed)
    ours = measure(images, "abc")
    mean, at_half, by_class = coco(images, 3)
    assert 0.2 < at_half < 0.9
    assert ours.mAP_50_95 == pytest.approx(mean, abs=0.01)
    assert ours.mAP == pytest.approx(at_half, abs=0.01)
    assert list(ours.per_class.values()) == pytest.approx(by_class, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_at_coco_s_recalls_it_is_that_of_pycocotools(seed):
    images = random_images(seed)
    assert coco_map(gather(images, "abc")) == pytest.approx(coco(images, 3)[0], abs=1e-6)


def plain_curves(metrics):
    """Falling scores, and (3, D) precision, recall and F1, means of the classes, if each detection is the last kept.

    It is the definition, with a curve of all detections per class.
    """
    scores, labels, truth = (np.concatenate(x) for x in (metrics._scores, metrics._labels, metrics._truth))
    order = np.argsort(-scores, kind="stable")
    correct, curves = metrics.matches()[order, -1], []
    for number in np.unique(truth):
        of_class, boxes = labels[order] == number, (truth == number).sum()
        hits, kept = (correct & of_class).cumsum(), of_class.cumsum()
        curves.append([hits / np.maximum(kept, 1), hits / boxes, 2 * hits / (kept + boxes)])
    return scores[order], np.mean(curves, axis=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [1, 3, 20])
def test_the_best_mean_f1_is_that_of_the_definition(seed, classes):
    images = detected_images(images=15, detections=30, boxes=40, classes=classes, seed=seed)
    metrics = collected(images, classes)
    scores, (precision, recall, f1) = plain_curves(metrics)
    last = np.append(scores[1:] < scores[:-1], True)
    best = np.flatnonzero(last & (f1 >= f1[last].max() - 1e-12))[0]
    result = metrics.compute()
    assert 0.1 < result.f1 < 0.9
    assert result.confidence == scores[best]
    assert (result.precision, result.recall, result.f1) == pytest.approx(
        (precision[best], recall[best], f1[best]), abs=1e-12
    )


def test_memory_does_not_grow_with_the_number_of_classes():
    def peak(classes):
        images = detected_images(images=200, detections=100, boxes=600, classes=classes)
        tracemalloc.start()
        our_metrics(images, classes)
        bytes_used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_used / 20_000

    few, many = peak(2), peak(200)  # curves of all detections would take 24 bytes per class
    assert many < few + 100


# by hand


def test_a_perfect_detector():
    images = [([(A, 0.9, 0), (B, 0.8, 1)], [(0, A), (1, B)]), ([(B, 0.7, 0)], [(0, B)])]
    found = measure(images, "ab")
    assert (found.mAP, found.mAP_50_95, found.precision, found.recall, found.f1) == (1, 1, 1, 1, 1)
    assert found.confidence == pytest.approx(0.7)
    assert (found.images, found.boxes) == (2, 3)
    assert found.per_class == {"a": 1, "b": 1}


def test_average_precision_by_hand():
    # Right, wrong, right, wrong, right of 4 boxes: precisions 1, 2/3, 3/5 at recalls 1/4, 1/2, 3/4.
    right = np.array([[True], [False], [True], [False], [True]])
    assert average_precision(right, 4) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # A later, higher precision lifts the earlier ones: wrong, right, right is 2/3 twice.
    assert average_precision(np.array([[False], [True], [True]]), 2) == pytest.approx(2 / 3)
    assert average_precision(np.zeros((0, 3), bool), 2).tolist() == [0, 0, 0]


def test_a_false_positive_above_a_hit_halves_the_precision():
    found = measure([([(FAR, 0.9, 0), (A, 0.5, 0)], [(0, A)])])
    assert found.mAP == pytest.approx(0.5)
    assert (found.precision, found.recall) == (0.5, 1)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.confidence == 0.5


def test_a_false_positive_below_all_hits_costs_no_average_precision():
    found = measure([([(A, 0.9, 0), (FAR, 0.5, 0)], [(0, A)])])
    assert (found.mAP, found.precision, found.confidence) == (1, 1, pytest.approx(0.9))


def test_a_missed_box_limits_recall():
    found = measure([([(A, 0.9, 0)], [(0, A), (0, B)])])
    assert (found.mAP, found.precision, found.recall) == (0.5, 1, 0.5)


def test_a_box_is_matched_once_and_by_the_highest_score():
    near = (0, 0, 10, 9)
    detections = table([[*near, 0.9, 0], [*A, 0.8, 0]], 6)  # the better score has the worse box
    right = matched(detections, table([[0, *A]], 5))
    assert right[:, [0, 9]].tolist() == [[True, False], [False, True]]


def test_duplicates_are_false_positives():
    found = measure([([(A, 0.9, 0), (A, 0.8, 0), (A, 0.7, 0), (B, 0.6, 0)], [(0, A), (0, B)])])
    assert found.mAP == pytest.approx((1 + 2 / 4) / 2)


def test_a_detection_takes_the_free_box_with_the_highest_overlap():
    truth = table([[0, 0, 0, 10, 10], [0, 0, 0, 10, 8]], 5)
    detections = table([[0, 0, 10, 8, 0.9, 0], [0, 0, 10, 8, 0.8, 0], [0, 0, 10, 8, 0.7, 0]], 6)
    assert matched(detections, truth, 0.75)[:, -1].tolist() == [True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_matching_agrees_with_a_plain_loop_in_a_crowd_with_ties(seed):
    random = np.random.default_rng(seed)
    corners = random.integers(0, 8, (60, 2))  # on a coarse grid many overlaps are equal
    boxes = np.concatenate([corners, corners + random.integers(3, 6, (60, 2))], 1)
    truth = torch.tensor(np.c_[random.integers(0, 2, 20), boxes[:20]]).float()
    detections = torch.tensor(np.c_[boxes[20:], np.linspace(1, 0.1, 40), random.integers(0, 2, 40)]).float()
    right = {threshold: matched(detections, truth, threshold)[:, -1] for threshold in (0, 0.3, 0.5, 0.75)}
    assert 0 < right[0.5].sum() < right[0].sum() < 40
    for threshold, found in right.items():
        assert found.tolist() == plain_match(detections, truth, threshold)


def test_average_precision_of_many_images_is_that_of_a_plain_loop():
    images = detected_images(images=12, detections=40, boxes=50)
    wanted = np.mean(plain_map(images, COCO_IOU))
    assert 0.1 < wanted < 0.9
    assert our_metrics(images).mAP_50_95 == pytest.approx(wanted, abs=1e-12)


def test_iou_threshold_is_inclusive():
    half = (0, 0, 10, 5)
    assert measure([([(half, 0.9, 0)], [(0, A)])], iou_thres=0.5).mAP == 1
    assert measure([([(half, 0.9, 0)], [(0, A)])], iou_thres=0.501).mAP == 0


def test_map_50_95_counts_the_thresholds_that_a_box_passes():
    found = measure([([((0, 0, 10, 7.2), 0.9, 0)], [(0, A)])])  # IoU 0.72: passes 0.5, 0.55, 0.6, 0.65, 0.7
    assert found.mAP_50_95 == pytest.approx(0.5)
    np.testing.assert_allclose(COCO_IOU, np.arange(50, 100, 5) / 100)


def test_a_detection_of_another_class_or_image_is_wrong():
    assert measure([([(A, 0.9, 1)], [(0, A)])], "ab").mAP == 0
    assert measure([([(A, 0.9, 0)], []), ([], [(0, A)])]).mAP == 0


def test_classes_without_boxes_are_left_out_of_the_mean():
    found = measure([([(A, 0.9, 0), (B, 0.8, 1), (FAR, 0.7, 2)], [(0, A), (2, B)])], "abc")
    assert found.per_class == {"a": 1, "b": None, "c": 0}


def test_classes_of_one_name_have_a_row_each():
    box = (10, 10, 50, 50)
    found = measure([([(box, 0.9, 0)], [(0, box), (2, box)])], names=["cell", "dirt", "cell"])
    assert found.per_class == {"cell (0)": 1, "dirt": None, "cell (2)": 0}
    assert found.mAP == 0.5
    assert (found.precision, found.recall) == (0.5, 0.5)


def test_no_detections():
    found = measure([([], [(0, A)]), ([], [])])
    assert (found.mAP, found.mAP_50_95, found.precision, found.recall, found.f1, found.confidence) == (0,) * 6
    assert (found.images, found.boxes, found.per_class) == (2, 1, {"hand": 0})


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_boxes_at_all(count):
    found = measure([([(A, 0.9 - k / 10, 0) for k in range(count)], [])] * 2)
    assert (found.mAP, found.mAP_50_95, found.precision, found.recall, found.f1) == (0,) * 5
    assert (found.images, found.boxes, found.per_class) == (2, 0, {"hand": None})


def test_no_images():
    found = DetectionMetrics(["a"]).compute()
    assert (found.mAP, found.images, found.boxes, found.per_class) == (0, 0, 0, {"a": None})


def test_best_f1_is_where_it_was_found():
    images = random_images(7, classes=1)
    images = [([(b, s, 0) for b, s, _ in detections], truth) for detections, truth in images]
    found = measure(images)
    right = []
    for detections, truth in images:
        detections = sorted(detections, key=lambda detection: -detection[1])
        rows = table([[*b, s, c] for b, s, c in detections], 6)
        hits = matched(rows, table([[c, *b] for c, b in truth], 5))[:, -1]
        right += [(score, hit) for (_, score, _), hit in zip(detections, hits, strict=True)]
    boxes = sum(len(truth) for _, truth in images)

    def f1_at(confidence):
        kept = [hit for score, hit in right if score >= confidence - 1e-6]
        return 2 * sum(kept) / (len(kept) + boxes), sum(kept) / len(kept), sum(kept) / boxes

    assert (found.f1, found.precision, found.recall) == pytest.approx(f1_at(found.confidence))
    assert found.f1 == pytest.approx(max(f1_at(score)[0] for score, _ in right))


def test_detections_of_one_score_stand_or_fall_together():
    found = measure([([(A, 0.5, 0), (FAR, 0.5, 0)], [(0, A)])])
    assert (found.precision, found.recall, found.confidence) == (0.5, 1, 0.5)


# properties


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_images_does_not_matter(seed):
    images = random_images(seed)
    shuffled = [images[k] for k in np.random.default_rng(seed).permutation(len(images))]
    assert measure(shuffled, "abc") == measure(images, "abc")


@pytest.mark.parametrize("seed", range(3))
def test_a_false_positive_of_the_lowest_score_never_raises_average_precision(seed):
    images = random_images(seed, images=8)
    results = [measure(images, "abc")]
    for number in range(8):
        detections, truth = images[number]
        images[number] = ([*detections, ((900, 900, 910, 910), 1e-3 / (number + 1), number % 3)], truth)
        results.append(measure(images, "abc"))
    for before, after in pairwise(results):
        assert after.mAP <= before.mAP
        assert after.mAP_50_95 <= before.mAP_50_95
        assert all(after.per_class[name] <= before.per_class[name] for name in "abc")


@pytest.mark.parametrize("seed", range(3))
def test_a_lower_iou_threshold_never_lowers_recall(seed):
    images = random_images(seed, images=8)
    for detections, truth in images:
        hits = gather([(detections, truth)], "abc").matches()[:, : len(COCO_IOU)].sum(0)
        assert (hits <= len(truth)).all()
        assert (np.diff(hits) <= 1e-9).all()


def test_metrics_of_parts_that_are_joined_are_those_of_the_whole():
    images = random_images(3)
    parts = [gather(own, "abc") for own in (images[:4], images[4:5], [], images[5:])]
    whole = DetectionMetrics(list("abc"))
    whole.join(parts)
    assert whole.compute() == measure(images, "abc")
