"""Boxes: formats, letterboxing, and non-maximum suppression (NMS).

Two formats: ``xywh`` is centre x, centre y, width, height; ``xyxy`` is left, top, right, bottom. IoU is always
``torchvision.ops.box_iou``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, box_iou, nms

from utils.errors import InputError
from utils.sizes import AnySize, Size

# At most so many candidates per image enter NMS, and so many detections per image leave it; the best by score. Only
# better boxes suppress a box, so the limit on candidates has no effect if MAX_DETECTIONS of them stay.
MAX_CANDIDATES = 8192
MAX_DETECTIONS = 300
AT_ONCE = 25_000  # candidates of a batch; beyond, torchvision's batched_nms calls NMS for each group on its own
BEST_FIRST = 400  # candidates tried first; if MAX_DETECTIONS of them stay, the others are not needed
FARTHEST = 1e5  # pixels; NMS on a GPU clips coordinates to this


@dataclass(frozen=True)
class Letterbox:
    """An image in the network's input: pixel (x, y) is at (left + x * scale_x, top + y * scale_y) there."""

    scale_x: float
    scale_y: float
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int, size: AnySize) -> "Letterbox":
        """An image in the middle of an input of ``size``, as large as fits, rounded to whole pixels."""
        rows, columns = Size.of(size)
        scale = min(columns / width, rows / height)
        new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
        return cls(new_width / width, new_height / height, (columns - new_width) // 2, (rows - new_height) // 2)

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in whole pixels of the input that a ``width`` x ``height`` image takes."""
        return round(width * self.scale_x), round(height * self.scale_y)

    def to_image(self, xyxy: Tensor, width: int, height: int) -> Tensor:
        """Boxes (D, 4) xyxy from pixels of the input to pixels of the ``width`` x ``height`` image, clipped to it."""
        offset = xyxy.new_tensor([self.left, self.top, self.left, self.top])
        scale = xyxy.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        limit = xyxy.new_tensor([width, height, width, height])
        return ((xyxy - offset) / scale).clamp(min=0).minimum(limit)


def size_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (N, M) of box sizes (N, 2) and (M, 2) with a common centre."""
    return box_iou(*(box_convert(F.pad(size, (2, 0)), "cxcywh", "xyxy") for size in (first, second)))


def boxes_of_image(targets: Tensor, image: int, img_size: AnySize) -> Tensor:
    """The ground-truth boxes of one image of a batch, (G, 5): class, x1, y1, x2, y2 in input pixels.

    Args:
        targets: of the batch, (N, 6): image in the batch, class, cx, cy, w, h in [0, 1].
        image: the image's place in the batch.
        img_size: of the network's input.
    """
    height, width = Size.of(img_size)
    of_image = targets[targets[:, 0] == image, 1:]
    sides = of_image.new_tensor([width, height, width, height])
    return torch.cat([of_image[:, :1], box_convert(of_image[:, 1:] * sides, "cxcywh", "xyxy")], dim=1)


def to_detections(output: Tensor | list[Tensor], conf_thres: float, nms_thres: float) -> list[Tensor]:
    """The detections (D, 6) of each image, from the output of a network.

    Args:
        output: predictions (B, P, 5 + C), or already detections, from a graph with non-maximum suppression in it.
        conf_thres, nms_thres: see :func:`non_max_suppression`.
    """
    return output if isinstance(output, list) else non_max_suppression(output, conf_thres, nms_thres)


def non_max_suppression(predictions: Tensor, conf_thres: float, nms_thres: float) -> list[Tensor]:
    """The detections of a batch. As in Darknet each box has a score per class, and NMS is done per class.

    Args:
        predictions: (B, P, 5 + C) cx, cy, w, h in pixels, objectness, class scores.
        conf_thres: the minimum score, objectness * class score, of a detection.
        nms_thres: IoU above which the lower-scoring of two boxes of one class is dropped.

    Returns:
        For each image (D, 6): x1, y1, x2, y2 in pixels, score, class; by falling score, at most MAX_DETECTIONS.
    """
    images, _, attributes = predictions.shape
    xyxy, score, group = _candidates(predictions.float(), conf_thres)
    classes = attributes - 5
    if xyxy.is_cuda:
        keep = _suppress_at_once(xyxy, score, group, nms_thres, classes)
    else:
        keep = _suppress_by_group(xyxy, score, group, nms_thres)
    image, order = (group[keep] // classes).sort(stable=True)
    keep = keep[order]
    label = group[keep] % classes
    detections = torch.cat([xyxy[keep], score[keep, None], label[:, None].to(xyxy.dtype)], dim=1)
    counts = image.bincount(minlength=images).tolist()
    return [of_image[:MAX_DETECTIONS] for of_image in detections.split(counts)]


def check_nms(device: torch.device) -> None:
    """Run NMS on ``device`` once.

    Raises:
        InputError: torchvision cannot; it was built without the device that torch was built for.
    """
    try:
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"torchvision {torchvision.__version__} has no NMS for {device.type}: install the torchvision that belongs "
            f"to torch {torch.__version__}, from the same index"
        ) from error


def _candidates(predictions: Tensor, conf_thres: float) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of NMS: boxes (N, 4) xyxy, scores (N,), and groups (N,), image * C + class, in rising order."""
    images, boxes, attributes = predictions.shape
    classes = attributes - 5
    # The whole batch at once; index_select is several times as fast as indexing.
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
    """The indices of the MAX_CANDIDATES best scores of each image, in rising order; images follow each other."""
    offset, best = 0, []
    for of_image in score.split(counts):
        best.append(offset + of_image.topk(min(len(of_image), MAX_CANDIDATES)).indices.sort().values)
        offset += len(of_image)
    return torch.cat(best)


def _suppress_by_group(xyxy: Tensor, score: Tensor, group: Tensor, nms_thres: float) -> Tensor:
    """The indices of the boxes that NMS within each group keeps, by falling score; groups follow each other."""
    counts = group.bincount().tolist()
    offset, parts = 0, [group[:0]]
    for boxes, scores in zip(xyxy.split(counts), score.split(counts), strict=True):
        if len(boxes):
            parts.append(offset + _suppress(boxes, scores, nms_thres))
            offset += len(boxes)
    keep = torch.cat(parts)
    return keep[score[keep].argsort(descending=True, stable=True)]


def _suppress(boxes: Tensor, scores: Tensor, nms_thres: float) -> Tensor:
    """The indices of the boxes of one group that NMS keeps, by falling score; it may stop after MAX_DETECTIONS of them.

    The time of NMS grows with the square of its candidates where few are dropped, as early in training. So the best
    BEST_FIRST are tried first.
    """
    if len(boxes) <= BEST_FIRST:
        return nms(boxes, scores, nms_thres)
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes.index_select(0, order), scores.index_select(0, order)
    keep = nms(boxes[:BEST_FIRST], scores[:BEST_FIRST], nms_thres)
    if len(keep) < MAX_DETECTIONS:
        remaining = torch.cat([keep, torch.arange(BEST_FIRST, len(order), device=keep.device)])
        keep = remaining[nms(boxes.index_select(0, remaining), scores.index_select(0, remaining), nms_thres)]
    return order[keep]


def _suppress_at_once(xyxy: Tensor, score: Tensor, group: Tensor, nms_thres: float, classes: int) -> Tensor:
    """The same as :func:`_suppress_by_group` in few calls, for a GPU, where a call costs more than its work.

    torchvision separates groups by shifting each by a multiple of the largest coordinate, so that none may be negative.
    Float64 and clipped coordinates keep the precision of the boxes in spite of that.
    """
    counts = [len(score)] if len(score) <= AT_ONCE else (group // classes).bincount().tolist()
    offset, parts = 0, []
    for boxes, scores, groups in zip(xyxy.split(counts), score.split(counts), group.split(counts), strict=True):
        clipped = boxes.double().clamp(-FARTHEST, FARTHEST) + FARTHEST
        of_part = batched_nms(clipped, scores.double(), groups, nms_thres)
        parts.append(offset + of_part)
        offset += len(boxes)
    return torch.cat(parts)
