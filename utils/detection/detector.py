"""Detection: a network of any format loaded, and images turned into boxes in their own pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from models import Darknet
from utils.boxes import Letterbox, to_detections
from utils.darknet.cfg import read_cfg
from utils.darknet.spec import NetworkSpec, parse_network
from utils.data.images import to_device
from utils.detection.checkpoints import check_same_cfg, load_darknet
from utils.detection.ncnn import NcnnModel
from utils.detection.runtimes import ExportedModel, OnnxModel
from utils.detection.tensorrt import TensorRtModel
from utils.devices import device_of, memory_advice, smaller_batch
from utils.errors import InputError
from utils.sizes import AnySize, Size


def load_model(
    weights_path: str, model_def: str | None, thresholds: tuple[float, float], device: str | None = None
) -> tuple[Darknet | ExportedModel, dict[str, Any]]:
    """A network, and the metadata of its file.

    Args:
        weights_path: an ``.onnx``, ``.ncnn.param`` or ``.engine`` file that export.py wrote, or a file that
            :func:`utils.detection.checkpoints.load_darknet` reads.
        model_def: the path of the network's cfg; None for the cfg in the weights file. Given, the two must agree.
        thresholds: the minimum score and the IoU of non-maximum suppression, for an ``.onnx`` file with the latter in
            its graph.
        device: what ``--device`` says, for an exported file; a Darknet is on the CPU at first.

    Raises:
        InputError: a file is missing, damaged, or does not fit, there is no cfg, or a runtime cannot use the device.
    """
    model: ExportedModel
    if weights_path.endswith(".onnx"):
        model = OnnxModel(weights_path, thresholds, device)
    elif weights_path.endswith(".param"):
        if device not in (None, "cpu"):
            raise InputError(f"--device {device}: {weights_path} runs in ncnn, here on the CPU alone: give cpu")
        model = NcnnModel(weights_path)
    elif weights_path.endswith(".engine"):
        model = TensorRtModel(weights_path, device)
    else:
        return load_darknet(weights_path, model_def)
    if model_def is not None:
        check_same_cfg(parse_network(read_cfg(model_def)).blocks, model_def, model.spec.blocks, weights_path)
    return model, model.metadata


@dataclass(frozen=True)
class Detector:
    """Detects objects on images.

    Attributes:
        model: the network, made ready by :func:`utils.detection.inference.for_inference`.
        img_size: of its input, to which images are letterboxed.
        conf_thres: the minimum score of a detection.
        nms_thres: the IoU of non-maximum suppression.
        rectangles: see :func:`utils.data.images.input_size`.
    """

    model: nn.Module
    img_size: AnySize
    conf_thres: float
    nms_thres: float
    rectangles: NetworkSpec | None = None

    @torch.inference_mode()
    def __call__(self, letterboxed: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """The detections (D, 6) of each image, on the CPU: x1, y1, x2, y2 in its own pixels, score, class.

        Args:
            letterboxed: each image letterboxed, (3, H, W) uint8, all to one size.
            images: the same images in their own size.
        """
        size = Size(*letterboxed[0].shape[-2:])
        with memory_advice(smaller_batch(len(letterboxed), size)):
            output = self.model(to_device(torch.stack(list(letterboxed)), device_of(self.model)))
            detections = [boxes.cpu() for boxes in to_detections(output, self.conf_thres, self.nms_thres)]
        for boxes, image in zip(detections, images, strict=True):
            fitted = Letterbox.fit(image.width, image.height, size)
            boxes[:, :4] = fitted.to_image(boxes[:, :4], image.width, image.height)
        return detections
