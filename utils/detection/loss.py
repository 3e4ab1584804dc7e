"""The training loss of YOLO heads: CIoU boxes, BCE objectness and classes, several anchors per target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from models import Darknet, Yolo
from utils.boxes import size_iou
from utils.sizes import AnySize, Size

# A target also trains the anchors whose IoU with it, both at one centre, passes this; its best anchor always.
ANCHOR_IOU = 0.25
# A predicted side counts as at least this many pixels: between two equal float32 edges CIoU divides 0 by 0.
SMALLEST_SIZE = 1e-3
EPSILON = 1e-7  # keeps the divisions of CIoU finite
# Weights of the three terms; see YoloLoss. They suit SGD with a learning rate near 1e-2.
BOX_GAIN = 5.0
OBJECTNESS_GAIN = 1.0
CLASS_GAIN = 1.0


class HeadSum(IntEnum):
    """What is summed over one head and one batch, and its place among the sums of a HeadReport."""

    POSITIVES = 0
    BOX_LOSS = 1  # 1 - CIoU
    OBJECTNESS_LOSS = 2
    CLASS_LOSS = 3
    CIOU = 4  # of the positives with their targets, at least 0
    POSITIVE_OBJECTNESS = 5  # of the positives
    OBJECTNESS = 6  # of all predictions, positives included


@dataclass(frozen=True)
class HeadReport:
    """What one head did with one batch; sums, on the device, so that nothing waits for them.

    Attributes:
        sums: (7,), by HeadSum; losses without their gains, before the division.
        predictions: how many the head made.
    """

    sums: Tensor
    predictions: int


@dataclass(frozen=True)
class Assignment:
    """Which predictions of one head learn which targets: M of them.

    Attributes:
        image, anchor, row, column: (M,) where the prediction is.
        label: (M,) the target's class.
        centre: (M, 2) the target's centre relative to the cell, in cells.
        size: (M, 2) the target's size in input pixels.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    label: Tensor
    centre: Tensor
    size: Tensor

    def __len__(self) -> int:
        """How many pairs of a prediction and a target there are."""
        return len(self.image)


class YoloLoss(nn.Module):
    """The loss of the raw outputs of a network's heads against targets.

    :meth:`assign` says which prediction learns which target; :meth:`forward` compares them.

    A target trains, in every head, the anchors that fit its size (ANCHOR_IOU), in the cells whose reach holds its
    centre: its own cell, and with ``scale_x_y`` above 1 the neighbours whose widened centre can get there.

    Three terms, each a sum over the batch divided by the number of positives (as RetinaNet, arXiv 1708.02002, section
    4.1), so that neither the input size nor the number of objects shifts their balance:

    - boxes: BOX_GAIN * (1 - CIoU) of each positive (arXiv 1911.08287, section 3.3),
    - objectness: OBJECTNESS_GAIN * BCE of every prediction; the target of a positive is the CIoU of its box with
      the target, elsewhere it is 0 (YOLO, arXiv 1506.02640, section 2),
    - classes: CLASS_GAIN * BCE of each class of each positive (YOLOv3, arXiv 1804.02767, section 2.2).

    The divisor is at least the number of images: a batch with few targets, or none, is no louder than others.

    Which prediction learns which target depends on the targets alone, not on what the network predicts: assign them on
    the CPU, before the forward pass, so that the GPU does not wait for it.
    """

    def __init__(self, model: Darknet):
        super().__init__()
        # Held in a list, so that the network does not become a part of this module.
        self._heads: list[Yolo] = list(model.heads)
        self._anchors = [head.anchors.cpu() for head in self._heads]
        self._spec = model.spec

    def assign(self, targets: Tensor, img_size: AnySize) -> list[Assignment]:
        """Which predictions learn which targets, for each head; on the device of ``targets``.

        Args:
            targets: (N, 6) image in the batch, class, cx, cy, w, h in [0, 1].
            img_size: of the images.
        """
        sizes = targets[:, 4:6] * targets.new_tensor(Size.of(img_size)[::-1])
        counts = [len(anchors) for anchors in self._anchors]
        iou = size_iou(sizes, torch.cat(self._anchors).to(sizes.device))
        fits = iou > ANCHOR_IOU
        if len(targets):
            fits |= F.one_hot(iou.argmax(dim=1), iou.shape[1]).bool()
        grids = [(head.height, head.width) for head in self._spec.at(img_size).heads]
        return [
            _assign_head(head, grid, targets, sizes, head_fits)
            for head, grid, head_fits in zip(self._heads, grids, fits.split(counts, dim=1), strict=True)
        ]

    def forward(
        self, raw: list[Tensor], assignments: list[Assignment], img_size: AnySize, divisor: float | None = None
    ) -> tuple[Tensor, list[HeadReport]]:
        """The loss and what each head did.

        Args:
            raw: the raw outputs of the heads, each (B, A, H, W, 5 + C).
            assignments: for each head what its predictions learn, from :meth:`assign`.
            img_size: of the images.
            divisor: of the sums, where the batch is a part of a larger one; by default this batch's own.

        Returns:
            The loss, a scalar, and a HeadReport for each head.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            divisor = divisor or max(sum(map(len, assignments)), len(raw[0]))
            parts = [
                self._head(head, output.float(), assignment, img_size)
                for head, output, assignment in zip(
                    self._heads, raw, to_device(assignments, raw[0].device), strict=True
                )
            ]
            box_loss, objectness_loss, class_loss = (sum(terms[k] for terms, _ in parts) for k in range(3))
            loss = (BOX_GAIN * box_loss + OBJECTNESS_GAIN * objectness_loss + CLASS_GAIN * class_loss) / divisor
        return cast(Tensor, loss), [report for _, report in parts]

    @staticmethod
    def _head(head: Yolo, raw: Tensor, a: Assignment, img_size: AnySize) -> tuple[list[Tensor], HeadReport]:
        """Sums of the box, objectness and class terms over one head."""
        chosen = raw[a.image, a.anchor, a.row, a.column]
        predicted = box_in_pixels(*head.boxes(chosen, head.anchors[a.anchor]), raw.shape, img_size)
        target = box_in_pixels(a.centre, a.size, raw.shape, img_size)
        box_losses = ciou_loss(predicted, target)

        logits = head.logits(raw)  # for a stable BCE
        expected = logits.new_zeros(logits.shape[:-1])
        where = (a.image, a.anchor, a.row, a.column)
        # Two targets can claim one prediction; the better fit is what it learns.
        flat = cast(Tensor, sum(index * stride for index, stride in zip(where, expected.stride(), strict=True)))
        ciou = (1 - box_losses.detach()).clamp(0, 1)
        expected.view(-1).scatter_reduce_(0, flat, ciou, "amax")
        objectness_loss = F.binary_cross_entropy_with_logits(logits[..., 0], expected, reduction="sum")

        classes = logits[where][:, 1:]
        one_hot = (a.label[:, None] == torch.arange(head.classes, device=raw.device)).to(classes.dtype)
        class_loss = F.binary_cross_entropy_with_logits(classes, one_hot, reduction="sum")

        terms = [box_losses.sum(), objectness_loss, class_loss]
        confidence = logits[..., 0].detach().sigmoid()
        sums = {
            HeadSum.POSITIVES: raw.new_full((), len(flat)),
            HeadSum.BOX_LOSS: terms[0].detach(),
            HeadSum.OBJECTNESS_LOSS: terms[1].detach(),
            HeadSum.CLASS_LOSS: terms[2].detach(),
            HeadSum.CIOU: ciou.sum(),
            HeadSum.POSITIVE_OBJECTNESS: confidence[where].sum(),
            HeadSum.OBJECTNESS: confidence.sum(),
        }
        return terms, HeadReport(torch.stack([sums[name] for name in HeadSum]), expected.numel())


def to_device(assignments: Sequence[Assignment], device: torch.device) -> list[Assignment]:
    """The same on ``device``: one copy per type of number, from pinned memory, for which nothing waits."""
    if all(assignment.image.device == device for assignment in assignments):
        return list(assignments)
    places = torch.cat([torch.stack([a.image, a.anchor, a.row, a.column, a.label]) for a in assignments], dim=1)
    boxes = torch.cat([torch.cat([a.centre, a.size], dim=1) for a in assignments])
    if device.type == "cuda":
        places, boxes = places.pin_memory(), boxes.pin_memory()
    places, boxes = (tensor.to(device, non_blocking=True) for tensor in (places, boxes))
    counts = [len(assignment) for assignment in assignments]
    return [
        Assignment(*of_head.unbind(dim=0), *box.split(2, dim=1))
        for of_head, box in zip(places.split(counts, dim=1), boxes.split(counts), strict=True)
    ]


def box_in_pixels(centre: Tensor, size: Tensor, shape: Sequence[int], img_size: AnySize) -> Tensor:
    """Boxes (..., 4) xyxy in input pixels, relative to the corner of their cell; for :func:`ciou_loss`.

    Args:
        centre: (..., 2) relative to the corner of the cell, in cells.
        size: (..., 2) in input pixels; sides shorter than SMALLEST_SIZE count as that.
        shape: of the head's raw outputs, (B, A, H, W, 5 + C).
        img_size: of the images.
    """
    height, width = Size.of(img_size)
    x, y = centre.unbind(dim=-1)
    w, h = size.clamp(min=SMALLEST_SIZE).unbind(dim=-1)
    box = torch.stack([x * (width / shape[3]), y * (height / shape[2]), w, h], dim=-1)
    return box_convert(box, "cxcywh", "xyxy")


def ciou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - CIoU (...) of boxes (..., 4) xyxy with positive sides (arXiv 1911.08287, equations 10 to 12).

    torchvision's ``complete_box_iou_loss`` gives the same values and gradients, but indexes by a mask: a GPU would have
    to finish its work to tell how many boxes overlap.
    """
    x1, y1, x2, y2 = predicted.unbind(dim=-1)
    x1t, y1t, x2t, y2t = target.unbind(dim=-1)
    width, height = x2 - x1, y2 - y1
    width_t, height_t = x2t - x1t, y2t - y1t

    overlap_x = torch.min(x2, x2t) - torch.max(x1, x1t)
    overlap_y = torch.min(y2, y2t) - torch.max(y1, y1t)
    # Not clamp, whose gradient is not 0 where boxes only touch.
    overlap = torch.where((overlap_x > 0) & (overlap_y > 0), overlap_x * overlap_y, 0.0)
    iou = overlap / (width * height + width_t * height_t - overlap + EPSILON)

    diagonal = (torch.max(x2, x2t) - torch.min(x1, x1t)) ** 2 + (torch.max(y2, y2t) - torch.min(y1, y1t)) ** 2
    distance = ((x1 + x2) / 2 - (x1t + x2t) / 2) ** 2 + ((y1 + y2) / 2 - (y1t + y2t) / 2) ** 2
    v = 4 / math.pi**2 * (torch.atan(width_t / height_t) - torch.atan(width / height)) ** 2
    alpha = (v / (1 - iou + v + EPSILON)).detach()
    return 1 - iou + distance / (diagonal + EPSILON) + alpha * v


def _assign_head(head: Yolo, grid_size: tuple[int, int], targets: Tensor, sizes: Tensor, fits: Tensor) -> Assignment:
    """Which predictions of one head learn which targets.

    Args:
        head: the module; with ``scale_x_y`` above 1 a predicted centre gets beyond its cell: neighbours reach it.
        grid_size: (rows, columns).
        targets: (N, 6) image in the batch, class, cx, cy, w, h in [0, 1].
        sizes: (N, 2) w, h in input pixels.
        fits: (N, A) bool, which anchors of the head learn which targets.

    Returns:
        M pairs of a prediction and its target; the cell that holds a target's centre always learns it.
    """
    rows, columns = grid_size
    target, anchor = torch.nonzero(fits, as_tuple=True)
    grid = targets.new_tensor([columns, rows])
    position = targets[target, 2:4] * grid
    holding = torch.minimum(position.floor(), grid - 1)

    margin = (head.scale_x_y - 1) / 2
    steps = [(0, 0)] if margin == 0 else [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    cells = holding[None] + targets.new_tensor(steps)[:, None]
    offset = position[None] - cells
    reached = ((offset > -margin) & (offset < 1 + margin) & (cells >= 0) & (cells < grid)).all(dim=2)
    reached[0] = True
    step, pair = torch.nonzero(reached, as_tuple=True)
    target, anchor = target[pair], anchor[pair]
    column, row = cells[step, pair].long().unbind(dim=1)
    image, label = targets[target, 0].long(), targets[target, 1].long()
    return Assignment(image, anchor, row, column, label, offset[step, pair], sizes[target])
