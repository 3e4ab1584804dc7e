"""Boxes: formats, letterboxing, and non-maximum suppression.

Two formats: ``xywh`` is centre x, centre y, width, height; ``xyxy`` is left, top, right, bottom. IoU is
``torchvision.ops.box_iou`` everywhere.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, box_iou

# Candidates an image that enter NMS, and detections that leave it; the best by score. A cap only matters where a
# threshold near 0 lets almost every box pass, and the boxes it cuts score below thousands of others.
MAX_CANDIDATES = 8192
MAX_DETECTIONS = 300


@dataclass(frozen=True)
class Letterbox:
    """How a picture lies in the square that the network sees: pixel (x, y) goes to (left + x * scale_x, top + ...)."""

    scale_x: float
    scale_y: float
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int, size: int) -> "Letterbox":
        """The largest picture of the same aspect in the middle of a ``size`` x ``size`` square, on whole pixels."""
        scale = size / max(width, height)
        new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
        return cls(new_width / width, new_height / height, (size - new_width) // 2, (size - new_height) // 2)

    def to_picture(self, xyxy: Tensor, width: int, height: int) -> Tensor:
        """Boxes (D, 4) xyxy in pixels of the square, to pixels of the ``width`` x ``height`` picture, clipped to it."""
        offset = xyxy.new_tensor([self.left, self.top, self.left, self.top])
        scale = xyxy.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        limit = xyxy.new_tensor([width, height, width, height])
        return ((xyxy - offset) / scale).clamp(min=0).minimum(limit)


def size_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of box sizes (N, 2) and (M, 2) laid on one centre, (N, M)."""
    return box_iou(*(box_convert(F.pad(size, (2, 0)), "cxcywh", "xyxy") for size in (first, second)))


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
    return [_suppress(prediction, conf_thres, nms_thres) for prediction in predictions.float()]


def _suppress(prediction: Tensor, conf_thres: float, nms_thres: float) -> Tensor:
    prediction = prediction[prediction[:, 4] >= conf_thres]
    scores = prediction[:, 4:5] * prediction[:, 5:]
    box, label = torch.nonzero(scores >= conf_thres, as_tuple=True)
    score = scores[box, label]
    if len(score) > MAX_CANDIDATES:
        score, best = score.topk(MAX_CANDIDATES)
        box, label = box[best], label[best]
    xyxy = box_convert(prediction[box, :4], "cxcywh", "xyxy")
    keep = batched_nms(xyxy, score, label, nms_thres)[:MAX_DETECTIONS]
    return torch.cat([xyxy[keep], score[keep, None], label[keep, None].to(xyxy.dtype)], dim=1)
