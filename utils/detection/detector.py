"""From images to boxes in their own pixels, by a network of any format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from models import Darknet
from utils.boxes import Letterbox, to_detections
from utils.data.images import to_device
from utils.detection.checkpoints import load_weights
from utils.detection.runtimes import OnnxModel
from utils.devices import device_of, memory_advice, smaller_batch


def load_model(
    model_def: str, weights_path: str, thresholds: tuple[float, float]
) -> tuple[Darknet | OnnxModel, dict[str, Any]]:
    """A network and what its file says about it.

    Args:
        model_def: its cfg; an ``.onnx`` file has it inside.
        weights_path: an ``.onnx`` file that export.py wrote, or weights of any kind (:func:`load_weights`).
        thresholds: least score and NMS IoU, for an ``.onnx`` file with non-maximum suppression in its graph.

    Raises:
        InputError: a file that is missing or does not fit.
    """
    if weights_path.endswith(".onnx"):
        model = OnnxModel(weights_path, thresholds)
        return model, model.about
    model = Darknet(model_def)
    return model, load_weights(model, weights_path)


@dataclass(frozen=True)
class Detector:
    """A network that is ready (``for_inference``), the side of its input, the least score, and the IoU of NMS."""

    model: nn.Module
    img_size: int
    conf_thres: float
    nms_thres: float

    @torch.inference_mode()
    def __call__(self, squares: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """For each image detections (D, 6) on the CPU: x1, y1, x2, y2 in its pixels, score, class.

        Args:
            squares: each image letterboxed, (3, S, S) uint8.
            images: the same images as they are.
        """
        with memory_advice(smaller_batch(len(squares), self.img_size)):
            output = self.model(to_device(torch.stack(list(squares)), device_of(self.model)))
            found = [boxes.cpu() for boxes in to_detections(output, self.conf_thres, self.nms_thres)]
        for boxes, image in zip(found, images, strict=True):
            place = Letterbox.fit(image.width, image.height, self.img_size)
            boxes[:, :4] = place.to_image(boxes[:, :4], image.width, image.height)
        return found
