"""What networks detect on the same images, and how much two of them disagree."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.detection.metrics import DetectionMetrics

LEAST_SCORE = 0.05  # detections below are not kept
SCORE = 0.25  # the score at which the page begins, and from which on detections count as a disagreement
PARTNER_IOU = 0.5


class Collected:
    """The detections and the ground truth of images, as :func:`utils.detection.evaluate.evaluate` passes them on.

    Attributes:
        detections: for each image (D, 6): x1, y1, x2, y2 in input pixels, score, class; by falling score.
        truth: for each image (G, 5): class, x1, y1, x2, y2 in the same pixels.
    """

    def __init__(self) -> None:
        self.detections: list[Tensor] = []
        self.truth: list[Tensor] = []

    def __call__(self, detections: Tensor, truth: Tensor) -> None:
        """Add an image."""
        self.detections.append(detections[detections[:, 4] >= LEAST_SCORE])
        self.truth.append(truth)

    @property
    def truth_as_detections(self) -> list[Tensor]:
        """The ground truth of each image in the format of detections, with a score of 1."""
        return [torch.cat([boxes[:, 1:], torch.ones(len(boxes), 1), boxes[:, :1]], dim=1) for boxes in self.truth]


def disagreements(first: Sequence[Tensor], second: Sequence[Tensor]) -> np.ndarray:
    """How much two networks disagree on each image: the added scores of the detections without a partner.

    Only detections with a score of at least SCORE count. A partner is a detection of the other network, of the same
    class and with an IoU of at least PARTNER_IOU. Each can be the partner of one detection only, and those with higher
    scores choose first.

    Args:
        first, second: what each network detects on each image, (D, 6) by falling score.

    Returns:
        (images,) from 0, where each detection has a partner.
    """
    return _scores_alone(first, second) + _scores_alone(second, first)


def _scores_alone(detections: Sequence[Tensor], others: Sequence[Tensor]) -> np.ndarray:
    """For each image, the added scores of the detections that have no partner among the others."""
    certain = [boxes[boxes[:, 4] >= SCORE] for boxes in detections]
    matching = DetectionMetrics([], PARTNER_IOU)
    for boxes, partners in zip(certain, others, strict=True):
        partners = partners[partners[:, 4] >= SCORE]
        matching.add(boxes, torch.cat([partners[:, 5:], partners[:, :4]], dim=1))
    alone = ~matching.matches()[:, -1]
    image = np.repeat(np.arange(len(certain)), [len(boxes) for boxes in certain])
    scores = torch.cat([boxes[:, 4] for boxes in certain]).numpy()
    return np.bincount(image, alone * scores, minlength=len(certain))
