"""Detection metrics: matching, average precision, and the confidence where F1 is best."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

# COCO's ten IoU thresholds, for mAP@0.5:0.95.
COCO_IOU = np.linspace(0.5, 0.95, 10)
# The attributes of Metrics that logs and studies keep.
QUALITY = ("mAP", "mAP_50_95", "precision", "recall", "f1")
# F1 curves are added up over the classes as whole multiples of 1 / F1_UNIT, whose sums have no rounding error.
F1_UNIT = 2.0**48


@dataclass(frozen=True)
class Metrics:
    """The metrics of a detector on a data set; means leave out classes without a ground-truth box.

    Attributes:
        mAP: mean average precision at ``iou_thres``.
        mAP_50_95: mAP, averaged over the IoU thresholds 0.5, 0.55, ... 0.95.
        precision, recall, f1: means over the classes, at the score threshold with the best mean F1.
        confidence: that score threshold.
        per_class: average precision of each class at ``iou_thres``, by name, and number where several have it; None
            for a class without a box.
        images, boxes: the number of images and of ground-truth boxes.
    """

    mAP: float
    mAP_50_95: float
    precision: float
    recall: float
    f1: float
    confidence: float
    per_class: dict[str, float | None]
    images: int
    boxes: int

    def quality(self) -> dict[str, float]:
        """The attributes named in QUALITY, for a log."""
        return {name: getattr(self, name) for name in QUALITY}


@dataclass(frozen=True)
class Pairs:
    """Detections and ground-truth boxes of one class that overlap: their indices and their IoU, arrays (K,)."""

    detection: np.ndarray
    box: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True)
class ClassMatches:
    """The D detections of one class in all images, by falling score.

    Attributes:
        rank: (D,) place of each among the detections of all classes by falling score, from 0.
        correct: (D, 11) bool, whether it is correct at the IoU thresholds of COCO_IOU, then at ``iou_thres``.
        boxes: the number of ground-truth boxes of the class, at least 1.
    """

    rank: np.ndarray
    correct: np.ndarray
    boxes: int

    def f1_curve(self) -> np.ndarray:
        """(D,) F1 at ``iou_thres`` if each detection in turn is the last that is kept."""
        hits = self.correct[:, -1].cumsum()
        return 2 * hits / (np.arange(1, len(hits) + 1) + self.boxes)

    def quality_at(self, rank: int) -> tuple[float, float, float]:
        """Precision, recall and F1 at ``iou_thres`` if the detection of ``rank``, of any class, is the last kept."""
        kept = int(self.rank.searchsorted(rank, side="right"))
        hits = int(self.correct[:kept, -1].sum())
        return hits / kept if kept else 0.0, hits / self.boxes, 2 * hits / (kept + self.boxes)


def _pairs(detections: Tensor, truth: Tensor, lowest: float) -> Pairs:
    """The pairs of one image that may be matched, with an IoU of at least ``lowest``, in any order."""
    iou = box_iou(detections[:, :4], truth[:, 1:])
    iou = torch.where(detections[:, 5:6] == truth[:, 0], iou, 0).cpu().numpy().astype(np.float64)
    detection, box = ((iou >= lowest) & (iou > 0)).nonzero()
    return Pairs(detection, box, iou[detection, box])


def _assign(pairs: Pairs, thresholds: np.ndarray, detections: int, boxes: int) -> np.ndarray:
    """Whether each detection is matched to a box at each IoU threshold: (D, T) bool; lower indices choose first."""
    order = np.lexsort((pairs.box, -pairs.iou, pairs.detection))
    detection, box, iou = pairs.detection[order], pairs.box[order], pairs.iou[order]
    correct = np.zeros((detections, len(thresholds)), bool)
    for column, threshold in enumerate(thresholds):
        enough = iou >= threshold
        correct[_matched(detection[enough], box[enough], boxes), column] = True
    return correct


def _matched(detection: np.ndarray, box: np.ndarray, boxes: int) -> np.ndarray:
    """The detections that are matched to a box, from pairs (K,) sorted by detection, then by preference.

    If detections choose boxes one after another, the result is the stable matching between detections with their
    preferences, and boxes that all prefer the earlier detection. So all detections can propose at once, each to the
    best box that has not refused it, while each box keeps the earliest detection that ever proposed (Gale and Shapley,
    1962). That takes a few rounds instead of a step per detection.
    """
    proposers, choice, count = np.unique(detection, return_index=True, return_counts=True)
    end = choice + count  # reached by a proposer that every box has refused
    partner = np.full(boxes, len(proposers))  # of each box; at first nobody
    active = np.arange(len(proposers))
    while len(active):
        np.minimum.at(partner, box[choice[active]], active)
        active = np.flatnonzero(choice < end)
        active = active[partner[box[choice[active]]] != active]
        choice[active] += 1
        active = active[choice[active] < end[active]]
    return proposers[choice < end]


def average_precision(correct: np.ndarray, boxes: int) -> np.ndarray:
    """Area under the interpolated precision-recall curve, at all points (Pascal VOC since 2010).

    Args:
        correct: (D, T) bool, whether each detection, by falling score, is correct at each of T IoU thresholds.
        boxes: the number of ground-truth boxes, at least 1.

    Returns:
        (T,) average precision.
    """
    ap = np.zeros(correct.shape[1])
    for column, of_threshold in enumerate(correct.T):
        ap[column] = interpolated_precision(of_threshold).sum() / boxes
    return ap


def interpolated_precision(correct: np.ndarray) -> np.ndarray:
    """The largest precision at the recall of each of the H correct detections or at a higher one, (H,).

    Args:
        correct: (D,) bool, whether each detection, by falling score, is correct.
    """
    hits = np.flatnonzero(correct)  # precision rises at hits only
    precision = np.arange(1, len(hits) + 1) / (hits + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


@dataclass
class DetectionMetrics:
    """Collects detections image by image and computes :class:`Metrics`.

    Args:
        names: class names.
        iou_thres: the IoU with a ground-truth box from which on a detection counts as correct.
    """

    names: list[str]
    iou_thres: float = 0.5
    _pairs: list[Pairs] = field(default_factory=list)
    _scores: list[np.ndarray] = field(default_factory=list)
    _labels: list[np.ndarray] = field(default_factory=list)
    _truth: list[np.ndarray] = field(default_factory=list)

    def add(self, detections: Tensor, truth: Tensor) -> None:
        """Add one image.

        Args:
            detections: (D, 6), by falling score: x1, y1, x2, y2, score, class.
            truth: (G, 5), ground-truth boxes in the same pixels: class, x1, y1, x2, y2.
        """
        self._pairs.append(_pairs(detections, truth, min(self.iou_thres, COCO_IOU[0])))
        self._scores.append(detections[:, 4].cpu().numpy())
        self._labels.append(detections[:, 5].cpu().numpy())
        self._truth.append(truth[:, 0].cpu().numpy())

    def join(self, others: Iterable["DetectionMetrics"]) -> None:
        """Add the images of ``others``."""
        for other in others:
            for name, collected in vars(self).items():
                if name.startswith("_"):
                    collected.extend(getattr(other, name))

    def compute(self) -> Metrics:
        """The metrics over all images added so far."""
        classes = dict(self.by_class())
        ap = {c: average_precision(matches.correct, matches.boxes) for c, matches in classes.items()}
        mean = np.mean(list(ap.values()), axis=0) if ap else np.zeros(len(COCO_IOU) + 1)
        return Metrics(
            mAP=float(mean[-1]),
            mAP_50_95=float(mean[:-1].mean()),
            **_best_f1(-np.sort(-_joined(self._scores)), list(classes.values())),
            per_class={name: float(ap[c][-1]) if c in ap else None for c, name in enumerate(self._unique_names())},
            images=len(self._truth),
            boxes=sum(map(len, self._truth)),
        )

    def _unique_names(self) -> list[str]:
        """The names, with its number behind a name that several classes have."""
        uses = Counter(self.names)
        return [name if uses[name] == 1 else f"{name} ({number})" for number, name in enumerate(self.names)]

    def by_class(self) -> Iterator[tuple[int, ClassMatches]]:
        """The number of each class that has a ground-truth box, and its detections.

        A class takes its share of the detections, so that memory does not grow with the number of classes.
        """
        scores, labels, truth = map(_joined, (self._scores, self._labels, self._truth))
        order, correct = np.argsort(-scores, kind="stable"), self.matches()
        labels = labels[order]
        ranks = np.argsort(labels, kind="stable")  # class by class, by falling score in each
        starts = labels[ranks].searchsorted(np.arange(len(self.names) + 1))
        for number, (start, end) in enumerate(pairwise(starts)):
            if boxes := int((truth == number).sum()):
                rank = ranks[start:end]
                yield number, ClassMatches(rank, correct[order[rank]], boxes)

    def matches(self) -> np.ndarray:
        """Whether each detection is correct, in the order in which they were added.

        As in COCO's evaluation, detections choose in the order of their scores: each is matched to the box of its class
        that has the highest IoU with it, at least the threshold, and is not matched yet.

        Returns:
            (D, 11) bool, at the IoU thresholds of COCO_IOU, then at ``iou_thres``.
        """
        detections, boxes = (np.cumsum([0, *map(len, lists)]) for lists in (self._scores, self._truth))
        pairs = Pairs(
            _joined([image.detection + n for image, n in zip(self._pairs, detections, strict=False)]).astype(int),
            _joined([image.box + n for image, n in zip(self._pairs, boxes, strict=False)]).astype(int),
            _joined([image.iou for image in self._pairs]),
        )
        return _assign(pairs, np.append(COCO_IOU, self.iou_thres), detections[-1], boxes[-1])


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _best_f1(scores: np.ndarray, classes: list[ClassMatches]) -> dict[str, float]:
    """Mean precision, recall and F1 of the classes, and the score threshold, where the mean F1 is best.

    The F1 curve of a class is a step function that changes at the detections of that class only. So the mean curve of
    all classes comes from the changes of each, added up over the detections of all.

    Args:
        scores: (D,) of the detections of all classes, falling.
        classes: those with a ground-truth box.
    """
    if not len(scores) or not classes:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "confidence": 0.0}
    change = np.zeros(len(scores), np.int64)
    for matches in classes:
        change[matches.rank] = np.diff(np.rint(F1_UNIT * matches.f1_curve()).astype(np.int64), prepend=0)
    # Detections of one score are kept or dropped together.
    last = np.append(scores[1:] < scores[:-1], True)
    best = int(np.where(last, change.cumsum(), -1).argmax())
    precision, recall, f1 = np.mean([matches.quality_at(best) for matches in classes], axis=0).tolist()
    return {"precision": precision, "recall": recall, "f1": f1, "confidence": float(scores[best])}
