"""Boxes: formats, letterboxing, and non-maximum suppression.

Two formats: ``xywh`` is centre x, centre y, width, height; ``xyxy`` is left, top, right, bottom. IoU is
``torchvision.ops.box_iou`` everywhere.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, box_iou, nms

# Candidates an image that enter NMS, and detections that leave it; the best by score. A box is dropped for the sake of
# better ones only, so where MAX_DETECTIONS of the best MAX_CANDIDATES stay, the cap on candidates changes nothing.
MAX_CANDIDATES = 8192
MAX_DETECTIONS = 300
BEST_FIRST = 400  # candidates: where MAX_DETECTIONS of so many stay, the others need no look
WILD = 1e5  # pixels; NMS on a GPU takes boxes that reach farther for boxes that reach so far


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the square that the network sees: pixel (x, y) goes to (left + x * scale_x, top + ...)."""

    scale_x: float
    scale_y: float
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int, size: int) -> "Letterbox":
        """The largest image of the same aspect in the middle of a ``size`` x ``size`` square, on whole pixels."""
        scale = size / max(width, height)
        new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
        return cls(new_width / width, new_height / height, (size - new_width) // 2, (size - new_height) // 2)

    def to_image(self, xyxy: Tensor, width: int, height: int) -> Tensor:
        """Boxes (D, 4) xyxy in pixels of the square, to pixels of the ``width`` x ``height`` image, clipped to it."""
        offset = xyxy.new_tensor([self.left, self.top, self.left, self.top])
        scale = xyxy.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        limit = xyxy.new_tensor([width, height, width, height])
        return ((xyxy - offset) / scale).clamp(min=0).minimum(limit)


def size_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of box sizes (N, 2) and (M, 2) laid on one centre, (N, M)."""
    return box_iou(*(box_convert(F.pad(size, (2, 0)), "cxcywh", "xyxy") for size in (first, second)))


def boxes_of_image(targets: Tensor, image: int, img_size: int) -> Tensor:
    """The boxes (G, 5) class, x1, y1, x2, y2 in pixels of one image, from the targets (N, 6) of a batch."""
    own = targets[targets[:, 0] == image, 1:]
    return torch.cat([own[:, :1], box_convert(own[:, 1:] * img_size, "cxcywh", "xyxy")], dim=1)


def to_detections(output: Tensor | list[Tensor], conf_thres: float, nms_thres: float) -> list[Tensor]:
    """What a network gives as detections, (D, 6) for each image.

    Args:
        output: predictions (B, P, 5 + C), or detections already, from a graph with non-maximum suppression in it.
        conf_thres, nms_thres: see :func:`non_max_suppression`.
    """
    return output if isinstance(output, list) else non_max_suppression(output, conf_thres, nms_thres)


def non_max_suppression(predictions: Tensor, conf_thres: float, nms_thres: float) -> list[Tensor]:
    """Detections of a batch: a score for every class of every box, as in Darknet, and NMS a class.

    Args:
        predictions: (B, P, 5 + C) cx, cy, w, h in pixels, objectness, class scores.
        conf_thres: the least objectness * class score of a detection.
        nms_thres: IoU above which the lower score of two boxes of one class is dropped.

    Returns:
        For each image (D, 6): x1, y1, x2, y2 in pixels, score, class; by falling score, at most MAX_DETECTIONS.
    """
    images, _, attributes = predictions.shape
    xyxy, score, group = _candidates(predictions.float(), conf_thres)
    suppress = _suppress_at_once if xyxy.is_cuda else _suppress_by_group
    keep = suppress(xyxy, score, group, nms_thres)
    image, order = (group[keep] // (attributes - 5)).sort(stable=True)
    keep = keep[order]
    label = group[keep] % (attributes - 5)
    found = torch.cat([xyxy[keep], score[keep, None], label[:, None].to(xyxy.dtype)], dim=1)
    return [own[:MAX_DETECTIONS] for own in found.split(image.bincount(minlength=images).tolist())]


def _candidates(predictions: Tensor, conf_thres: float) -> tuple[Tensor, Tensor, Tensor]:
    """What enters NMS: boxes (N, 4) xyxy, their scores, and their groups, image * C + class, in rising order."""
    images, boxes, attributes = predictions.shape
    classes = attributes - 5
    # The whole batch in one table; index_select is several times as fast as indexing.
    rows = predictions.reshape(images * boxes, attributes)
    passing = (rows[:, 4] >= conf_thres).nonzero().squeeze(1)
    rows = rows.index_select(0, passing)
    scores = (rows[:, 4:5] * rows[:, 5:]).flatten()
    candidates = (scores >= conf_thres).nonzero().squeeze(1)
    score, box = scores.index_select(0, candidates), candidates // classes
    group = (passing // boxes).index_select(0, box) * classes + candidates % classes
    if classes > 1:
        group, order = group.sort(stable=True)
        score, box = score.index_select(0, order), box.index_select(0, order)
    if len(score) > MAX_CANDIDATES:
        counts = (group // classes).bincount(minlength=images).tolist()
        if max(counts) > MAX_CANDIDATES:
            best = _best(score, counts)
            score, box, group = (values.index_select(0, best) for values in (score, box, group))
    return box_convert(rows.index_select(0, box)[:, :4], "cxcywh", "xyxy"), score, group


def _best(score: Tensor, counts: list[int]) -> Tensor:
    """Where the MAX_CANDIDATES best scores of each image are, in rising order; images lie behind each other."""
    offset, best = 0, []
    for own in score.split(counts):
        best.append(offset + own.topk(min(len(own), MAX_CANDIDATES)).indices.sort().values)
        offset += len(own)
    return torch.cat(best)


def _suppress_by_group(xyxy: Tensor, score: Tensor, group: Tensor, nms_thres: float) -> Tensor:
    """The boxes that NMS within each group keeps, by falling score; groups lie behind each other."""
    counts = group.bincount().tolist()
    offset, keep = 0, [group[:0]]
    for boxes, scores in zip(xyxy.split(counts), score.split(counts), strict=True):
        if len(boxes):
            keep.append(offset + _suppress(boxes, scores, nms_thres))
            offset += len(boxes)
    keep = torch.cat(keep)
    return keep[score[keep].argsort(descending=True, stable=True)]


def _suppress(boxes: Tensor, scores: Tensor, nms_thres: float) -> Tensor:
    """The boxes of one group that NMS keeps, by falling score, or just the first of them, at least MAX_DETECTIONS.

    Where little is dropped, as early in training, the time of NMS grows with the square of its candidates.
    """
    if len(boxes) <= BEST_FIRST:
        return nms(boxes, scores, nms_thres)
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes.index_select(0, order), scores.index_select(0, order)
    keep = nms(boxes[:BEST_FIRST], scores[:BEST_FIRST], nms_thres)
    if len(keep) < MAX_DETECTIONS:
        left = torch.cat([keep, torch.arange(BEST_FIRST, len(order), device=keep.device)])
        keep = left[nms(boxes.index_select(0, left), scores.index_select(0, left), nms_thres)]
    return order[keep]


def _suppress_at_once(xyxy: Tensor, score: Tensor, group: Tensor, nms_thres: float) -> Tensor:
    """The same in one call, for a GPU, where calls cost more than their work.

    torchvision tells groups apart by shifting each by the largest coordinate, which costs float32 its digits, and one
    wild box everybody's place.
    """
    return batched_nms(xyxy.double().clamp(-WILD, WILD), score.double(), group, nms_thres)
