"""Detection metrics: matching, average precision, and the confidence where F1 is best."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

# COCO's ten thresholds, for mAP@0.5:0.95.
COCO_IOU = np.linspace(0.5, 0.95, 10)
# The attributes of Metrics that logs and studies keep.
QUALITY = ("mAP", "mAP_50_95", "precision", "recall", "f1")


@dataclass(frozen=True)
class Metrics:
    """What a detector reached on a data set; classes without a ground-truth box are left out of means.

    Attributes:
        mAP: mean average precision at ``iou_thres``.
        mAP_50_95: mean over the IoU thresholds 0.5, 0.55, ... 0.95.
        precision, recall, f1: at the confidence with the best F1, means over classes.
        confidence: that confidence.
        per_class: average precision of each class at ``iou_thres``, by name; None for a class without a box.
        images, boxes: how many images and ground-truth boxes there were.
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
        """The numbers of QUALITY by name, for a log."""
        return {name: getattr(self, name) for name in QUALITY}


@dataclass(frozen=True)
class Pairs:
    """Detections and boxes of one class that overlap: their numbers and IoU, arrays (K,)."""

    detection: np.ndarray
    box: np.ndarray
    iou: np.ndarray


def _pairs(detections: Tensor, truth: Tensor) -> Pairs:
    """What may be matched in one image, in any order."""
    iou = box_iou(detections[:, :4], truth[:, 1:])
    iou = torch.where(detections[:, 5:6] == truth[:, 0], iou, 0).cpu().numpy()
    detection, box = iou.nonzero()
    return Pairs(detection, box, iou[detection, box].astype(np.float64))


def _assign(pairs: Pairs, thresholds: np.ndarray, detections: int, boxes: int) -> np.ndarray:
    """Which detections get a box at each IoU threshold: (D, T) bool; lower numbers choose first."""
    order = np.lexsort((pairs.box, -pairs.iou, pairs.detection))
    order = order[pairs.iou[order] >= thresholds.min()]
    detection, box, iou = pairs.detection[order], pairs.box[order], pairs.iou[order]
    right = np.zeros((detections, len(thresholds)), bool)
    for column, threshold in enumerate(thresholds):
        enough = iou >= threshold
        right[_matched(detection[enough], box[enough], boxes), column] = True
    return right


def _matched(detection: np.ndarray, box: np.ndarray, boxes: int) -> np.ndarray:
    """The detections that get a box, from pairs (K,) by detection, then by preference.

    Choosing one after another gives the stable matching of detections that prefer some boxes, and boxes that all prefer
    the earlier detection. So all can ask at once: each for the best box that has not refused it, and each box keeps
    the earliest that ever asked (Gale and Shapley, 1962), in a few rounds instead of a step a detection.
    """
    asking, wish, count = np.unique(detection, return_index=True, return_counts=True)
    last = wish + count
    keeper = np.full(boxes, len(asking))
    hopeful = np.arange(len(asking))
    while len(hopeful):
        np.minimum.at(keeper, box[wish[hopeful]], hopeful)
        hopeful = np.flatnonzero(wish < last)
        hopeful = hopeful[keeper[box[wish[hopeful]]] != hopeful]
        wish[hopeful] += 1
        hopeful = hopeful[wish[hopeful] < last[hopeful]]
    return asking[wish < last]


def average_precision(right: np.ndarray, truths: int) -> np.ndarray:
    """Area under the interpolated precision-recall curve, at all points (Pascal VOC since 2010).

    Args:
        right: (D, T) bool, whether each detection, by falling score, is right.
        truths: the number of ground-truth boxes, at least 1.

    Returns:
        (T,) average precision.
    """
    found = np.zeros(right.shape[1])
    for column, hits in enumerate(map(np.flatnonzero, right.T)):  # precision rises at hits only
        precision = np.arange(1, len(hits) + 1) / (hits + 1)
        found[column] = np.maximum.accumulate(precision[::-1]).sum() / truths
    return found


@dataclass
class DetectionMetrics:
    """Gathers detections image by image and computes :class:`Metrics`.

    Args:
        names: class names.
        iou_thres: the IoU from which on a detection counts as right.
    """

    names: list[str]
    iou_thres: float = 0.5
    _pairs: list[Pairs] = field(default_factory=list)
    _scores: list[np.ndarray] = field(default_factory=list)
    _labels: list[np.ndarray] = field(default_factory=list)
    _truth: list[np.ndarray] = field(default_factory=list)

    def add(self, detections: Tensor, truth: Tensor) -> None:
        """Add one image: detections (D, 6) by falling score, truth (G, 5) class, x1, y1, x2, y2, same pixels."""
        self._pairs.append(_pairs(detections, truth))
        self._scores.append(detections[:, 4].cpu().numpy())
        self._labels.append(detections[:, 5].cpu().numpy())
        self._truth.append(truth[:, 0].cpu().numpy())

    def join(self, others: Iterable["DetectionMetrics"]) -> None:
        """Add the images of ``others``."""
        for other in others:
            for name, gathered in vars(self).items():
                if name.startswith("_"):
                    gathered.extend(getattr(other, name))

    def compute(self) -> Metrics:
        """The metrics of all images so far."""
        scores, labels, truth = map(_joined, (self._scores, self._labels, self._truth))
        order = np.argsort(-scores, kind="stable")
        scores, labels, right = scores[order], labels[order], self.matches()[order]

        counts = {c: int((truth == c).sum()) for c in range(len(self.names))}
        present = [c for c, count in counts.items() if count]
        ap = {c: average_precision(right[labels == c], counts[c]) for c in present}
        mean = np.mean(list(ap.values()), axis=0) if ap else np.zeros(len(COCO_IOU) + 1)
        curves = [_f1_curve(scores, labels == c, right[:, -1], counts[c]) for c in present]
        best = _best_f1(scores, np.mean(curves, axis=0) if curves and len(scores) else np.zeros((3, 0)))
        return Metrics(
            mAP=float(mean[-1]),
            mAP_50_95=float(mean[:-1].mean()),
            **best,
            per_class={name: float(ap[c][-1]) if c in ap else None for c, name in enumerate(self.names)},
            images=len(self._truth),
            boxes=len(truth),
        )

    def matches(self) -> np.ndarray:
        """Which detections are right, in the order in which they were added.

        Detections choose in the order of their scores; each takes the box of its class with the highest IoU that is at
        least the threshold and that no other has taken, as in COCO's evaluation.

        Returns:
            (D, 11) bool, at the IoU thresholds of COCO_IOU, then at ``iou_thres``.
        """
        detections, boxes = (np.cumsum([0, *map(len, lists)]) for lists in (self._scores, self._truth))
        pairs = Pairs(
            _joined([own.detection + offset for own, offset in zip(self._pairs, detections, strict=False)]).astype(int),
            _joined([own.box + offset for own, offset in zip(self._pairs, boxes, strict=False)]).astype(int),
            _joined([own.iou for own in self._pairs]),
        )
        return _assign(pairs, np.append(COCO_IOU, self.iou_thres), detections[-1], boxes[-1])


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _f1_curve(scores: np.ndarray, of_class: np.ndarray, right: np.ndarray, truths: int) -> np.ndarray:
    """(3, D) precision, recall and F1 of one class when detections down to each one's score are kept."""
    hits = (right & of_class).cumsum()
    kept = of_class.cumsum()
    precision = np.divide(hits, kept, out=np.zeros(len(scores)), where=kept > 0)
    recall = hits / truths
    return np.stack([precision, recall, 2 * hits / (kept + truths)])


def _best_f1(scores: np.ndarray, curve: np.ndarray) -> dict[str, float]:
    if not curve.shape[1]:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "confidence": 0.0}
    # Detections of one score are kept or dropped together.
    last = np.append(scores[1:] < scores[:-1], True)
    best = int(np.where(last, curve[2], -1).argmax())
    precision, recall, f1 = map(float, curve[:, best])
    return {"precision": precision, "recall": recall, "f1": f1, "confidence": float(scores[best])}
