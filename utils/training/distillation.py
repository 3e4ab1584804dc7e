"""Knowledge distillation: a pruned network learns from the labels and from the network that it was cut from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Darknet, Yolo
from utils import distributed
from utils.detection.checkpoints import load_darknet
from utils.detection.loss import BOX_GAIN, CLASS_GAIN, OBJECTNESS_GAIN, box_in_pixels, ciou_loss
from utils.devices import autocast
from utils.errors import InputError
from utils.sizes import AnySize, Size

# Boxes and classes of predictions to which the teacher gives a lower objectness are left out: they would weigh next
# to nothing.
LEAST_OBJECTNESS = 0.01


def load_teacher(weights: str, cfg: str | None, student: Darknet, img_size: AnySize, device: torch.device) -> Darknet:
    """A teacher in eval mode, whose heads predict for the same cells, anchors and classes as the student's.

    Args:
        weights: a checkpoint, or weights of another kind.
        cfg: its cfg; None for the cfg in the checkpoint.
        student: the network that learns from it.
        img_size: of the images.
        device: where the two compute.

    Raises:
        InputError: a file that is missing or does not fit, or heads that are not the student's.
    """
    teacher, _ = load_darknet(weights, cfg)
    heads, teacher_heads = (model.spec.at(img_size).heads for model in (student, teacher))
    if len(heads) != len(teacher_heads):
        raise InputError(
            f"{cfg or weights}: a teacher with {len(teacher_heads)} [yolo] layers for a network with {len(heads)}"
        )
    for head, teacher_head in zip(heads, teacher_heads, strict=True):
        for name in ("anchors", "classes", "width", "height"):
            value, teacher_value = getattr(head, name), getattr(teacher_head, name)
            if value != teacher_value:
                name = {"width": "columns", "height": "rows"}.get(name, name)
                raise InputError(
                    f"{teacher_head.where}: {name} {teacher_value}, but {value} in {head.where}: a teacher's heads "
                    "must have the anchors, classes and strides of the network that learns from it"
                )
    return teacher.to(device).eval().requires_grad_(False)


class Distillation(nn.Module):
    """The loss of a network's raw outputs against a teacher's on the same images.

    Objectness scaled distillation, as Mehta and Ozturk have it for YOLO (arXiv 1805.06361, "Objectness scaled
    distillation"): the teacher's box and class of a prediction count as much as the teacher takes it for an object, so
    that its meaningless boxes of the background teach nothing. The terms are those of
    :class:`utils.detection.loss.YoloLoss`, with its gains, and the teacher's scores as targets:

    - objectness: BCE of every prediction against the teacher's objectness o,
    - boxes: o * (1 - CIoU) with the teacher's box,
    - classes: o * BCE against each of the teacher's class scores.

    The sum is divided by the sum of o, which stands for the number of positives, but at least by the number of images.
    """

    def __init__(self, student: Darknet, teacher: Darknet, precision: str):
        super().__init__()
        self._precision = precision  # of the teacher
        # Held in a tuple, so that the networks do not become parts of this module.
        self._networks = (student, teacher)
        self._losses: list[Tensor] = []

    def state(self) -> list[Tensor]:
        """The losses since the last :meth:`clear`, for a checkpoint."""
        return [loss.cpu() for loss in self._losses]

    def load_state(self, losses: list[Tensor], device: torch.device) -> None:
        """Go back to the :meth:`state` of a checkpoint, which is the main process's."""
        self._losses = [loss.to(device) for loss in losses] if distributed.is_main() else []

    def mean(self) -> float | None:
        """The mean of the losses since the last :meth:`clear` in all processes, all of which must call this.

        None if there were none.
        """
        losses = torch.stack(self._losses).double().sum().item() if self._losses else 0.0
        total, count = distributed.total([losses, len(self._losses)])
        return total / count if count else None

    def clear(self) -> None:
        """Forget the losses."""
        self._losses.clear()

    def forward(self, raw: list[Tensor], images: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            raw: the student's raw outputs, each (B, A, H, W, 5 + C).
            images: (B, 3, H, W) in [0, 1], the images that they come from.
        """
        student, teacher = self._networks
        with torch.no_grad(), autocast(images.device, self._precision):
            teacher_raw = teacher.raw_outputs(images)
        with torch.autocast(images.device.type, enabled=False):
            parts = [
                _head(head, output.float(), teacher_head, teacher_output.float(), Size(*images.shape[-2:]))
                for head, output, teacher_head, teacher_output in zip(
                    student.heads, raw, teacher.heads, teacher_raw, strict=True
                )
            ]
            loss, weight = (sum(terms) for terms in zip(*parts, strict=True))
            loss = loss / weight.clamp(min=len(images))
        self._losses.append(loss.detach())
        return loss


def _head(yolo: Yolo, raw: Tensor, teacher_yolo: Yolo, teacher_raw: Tensor, img_size: AnySize) -> tuple[Tensor, Tensor]:
    """The sum of the terms over one head, and the sum of the teacher's objectness.

    Args:
        yolo, raw: the student's layer, and its raw output (B, A, H, W, 5 + C).
        teacher_yolo, teacher_raw: the teacher's, of the same shape.
        img_size: of the images.
    """
    logits, scores = yolo.logits(raw), teacher_yolo.logits(teacher_raw).sigmoid()
    confidence = scores[..., 0]
    objectness_loss = F.binary_cross_entropy_with_logits(logits[..., 0], confidence, reduction="sum")

    # All predictions take part, most with a weight of 0: to pick the others out, the host would have to count them.
    seen = confidence > LEAST_OBJECTNESS
    weight = confidence * seen
    class_loss = F.binary_cross_entropy_with_logits(
        logits[..., 1:], scores[..., 1:], weight[..., None], reduction="sum"
    )

    anchors = yolo.anchors[:, None, None]
    # What the network predicts for the background may be of any size; 0 times its loss need not be a number.
    predicted, expected = (
        box_in_pixels(*head.boxes(torch.where(seen[..., None], output[..., :4], 0.0), anchors), raw.shape, img_size)
        for head, output in ((yolo, raw), (teacher_yolo, teacher_raw))
    )
    box_loss = (weight * ciou_loss(predicted, expected)).sum()
    loss = BOX_GAIN * box_loss + OBJECTNESS_GAIN * objectness_loss + CLASS_GAIN * class_loss
    return loss, confidence.sum()
