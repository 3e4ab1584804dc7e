"""Rows on mAP: its time and memory against a plain loop and faster-coco-eval."""

import argparse
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from studies.bench.scenes import SIZE
from studies.bench.table import Memory, Row
from utils.detection.metrics import (
    COCO_IOU,
    DetectionMetrics,
    Metrics,
    average_precision,
    interpolated_precision,
)
from utils.optional import optional
from utils.timing import time_in_turns

COCO_SIZE = {"images": 5_000, "detections": 300, "boxes": 36_335, "classes": 80}  # COCO's val2017
DetectedImages = list[tuple[Tensor, Tensor]]


def detected_images(
    images: int = 821, detections: int = 100, boxes: int = 2_181, classes: int = 1, seed: int = 0
) -> DetectedImages:
    """(detections (D, 6), truth (G, 5)) per image. More than half of the detections lie near a box of their class.

    Scores repeat if there is one class only.
    """
    random = np.random.default_rng(seed)
    results = []
    for count in 1 + random.multinomial(boxes - images, np.full(images, 1 / images)):
        near = int(0.6 * detections)
        corners, sides = random.uniform(0, 300, (count, 2)), random.uniform(20, 120, (count, 2))
        labels = random.integers(classes, size=(count, 1))
        truth = np.concatenate([labels, corners, corners + sides], 1)
        target = random.integers(count, size=near)
        hits = truth[target]
        hits[:, 1:] += random.normal(0, 0.1, (near, 4)) * np.tile(sides[target], 2)
        corners = random.uniform(0, 300, (detections - near, 2))
        labels = random.integers(classes, size=(len(corners), 1))
        misses = np.concatenate([labels, corners, corners + random.uniform(20, 120, corners.shape)], 1)
        label, xyxy = np.split(random.permutation(np.concatenate([hits, misses])), [1], axis=1)
        xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2] + 1)
        score = random.random(detections)
        score = np.sort(score.round(2) if classes == 1 else score)[::-1]
        columns = np.concatenate([xyxy, score[:, None], label], 1)
        results.append((torch.tensor(columns).float(), torch.tensor(truth).float()))
    return results


def plain_match(detections: Tensor, truth: Tensor, threshold: float) -> list[bool]:
    """Whether each detection is correct at one IoU threshold: one after another, each takes the best box left."""
    overlaps, classes = box_iou(detections[:, :4], truth[:, 1:]).tolist(), truth[:, 0].tolist()
    taken, correct = set(), []
    for overlap, label in zip(overlaps, detections[:, 5].tolist(), strict=True):
        best, partner = 0.0, None
        for box, iou in enumerate(overlap):
            if iou >= threshold and iou > best and classes[box] == label and box not in taken:
                best, partner = iou, box
        correct.append(partner is not None)
        taken.add(partner)
    return correct


def plain_map(images: DetectedImages, thresholds: np.ndarray) -> list[float]:
    """AP of one class at each threshold, matched by the plain loop."""
    order = torch.cat([detections[:, 4] for detections, _ in images]).argsort(descending=True, stable=True).numpy()
    boxes = sum(len(truth) for _, truth in images)
    ap = []
    for threshold in thresholds.tolist():
        correct = np.concatenate([plain_match(*image, threshold) for image in images])[order]
        ap.append(float(average_precision(correct[:, None], boxes)[0]))
    return ap


def collected(images: DetectedImages, classes: int = 1) -> DetectionMetrics:
    """The detections as test.py collects them."""
    metrics = DetectionMetrics([str(number) for number in range(classes)])
    for image in images:
        metrics.add(*image)
    return metrics


def our_metrics(images: DetectedImages, classes: int = 1) -> Metrics:
    """All metrics of test.py, from detections."""
    return collected(images, classes).compute()


def map_row(args: argparse.Namespace) -> list[Row]:
    """All metrics of test.py against a plain Python loop over the same thresholds; their mAP must agree."""
    images, thresholds = detected_images(), np.append(COCO_IOU, 0.5)
    expected, computed = float(np.mean(plain_map(images, thresholds)[:-1])), our_metrics(images).mAP_50_95
    if abs(expected - computed) > 1e-9:
        raise RuntimeError(f"mAP@0.5:0.95 is {computed}, but {expected} by the plain loop")
    steps: list[Callable[[], object]] = [partial(our_metrics, images), partial(plain_map, images, thresholds)]
    ours, plain = time_in_turns(steps, torch.device("cpu"), args.rounds, warm_up=1)
    return [Row("mAP of 821 images", ours, plain, ours.median / plain.median, "of a plain loop", 0.25)]


def coco_average_precision(correct: np.ndarray, boxes: int) -> np.ndarray:
    """AP as COCO defines it: interpolated precision at the recalls 0, 0.01, ... 1; else like average_precision."""
    ap = np.zeros(correct.shape[1])
    for column, of_threshold in enumerate(correct.T):
        precision = interpolated_precision(of_threshold)
        recall = np.arange(1, len(precision) + 1) / boxes
        ap[column] = np.append(precision, 0)[recall.searchsorted(np.linspace(0, 1, 101))].mean()
    return ap


def coco_map(metrics: DetectionMetrics) -> float:
    """mAP@0.5:0.95 as COCO defines it."""
    return float(np.mean([coco_average_precision(c.correct, c.boxes)[:-1] for _, c in metrics.by_class()]))


def coco_format(images: DetectedImages, classes: int) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """The ground truth as COCO's file of annotations holds it, and the detections as a file of results."""
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (detections, boxes) in enumerate(images, start=1):
        for label, x1, y1, x2, y2 in boxes.tolist():
            width, height = x2 - x1, y2 - y1
            box = {"id": len(truth) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": 0}
            truth.append(box | {"bbox": [x1, y1, width, height], "area": width * height})
        for x1, y1, x2, y2, score, label in detections.tolist():
            detection = {"image_id": image, "category_id": int(label) + 1, "score": score}
            results.append(detection | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    content: dict[str, list] = {"info": [], "annotations": truth}
    content["images"] = [{"id": image + 1, "width": SIZE, "height": SIZE} for image in range(len(images))]
    content["categories"] = [{"id": label + 1, "name": str(label)} for label in range(classes)]
    return content, results


def coco_row(args: argparse.Namespace) -> list[Row]:
    """All metrics of test.py against faster-coco-eval at COCO's size; mAP at COCO's 101 points must agree."""
    coco = optional("faster_coco_eval")
    images, classes = detected_images(**COCO_SIZE), COCO_SIZE["classes"]
    content, results = coco_format(images, classes)
    truth = coco.COCO(content)
    evaluation = coco.COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=lambda *words: None)
    evaluation.params.maxDets = [COCO_SIZE["detections"]]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]

    def evaluate_and_accumulate() -> None:
        evaluation.evaluate()
        evaluation.accumulate()

    steps: list[Callable[[], object]] = [partial(our_metrics, images, classes), evaluate_and_accumulate]
    ours, reference = time_in_turns(steps, torch.device("cpu"), args.rounds, warm_up=1)
    expected, computed = float(evaluation.eval["precision"].mean()), coco_map(collected(images, classes))
    if abs(expected - computed) > 1e-4:
        raise RuntimeError(f"mAP@0.5:0.95 is {computed}, but {expected} by faster-coco-eval")
    return [Row("mAP at COCO's size", ours, reference, ours.median / reference.median, "of faster-coco-eval", 1.0)]


def memory_row(args: argparse.Namespace) -> list[Row]:
    """The memory of all metrics of test.py at COCO's size, above the detections themselves."""
    images = detected_images(**COCO_SIZE)
    tracemalloc.start()  # of NumPy's arrays too
    our_metrics(images, COCO_SIZE["classes"])
    ours, limit = Memory(tracemalloc.get_traced_memory()[1] / 2**20), Memory(1024)
    tracemalloc.stop()
    return [Row("mAP at COCO's size, memory", ours, limit, ours.mebibytes / limit.mebibytes, "of 1 GiB", 1.0)]
