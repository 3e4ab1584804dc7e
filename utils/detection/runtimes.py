"""An exported network in other runtimes, called like :class:`models.Darknet`: images in, predictions out.

Each is a small module, so that :func:`utils.detection.evaluate.evaluate` and :func:`utils.timing.forward_times` accept
it like a Darknet. Each computes in float32 with as many threads as PyTorch. The packages are optional, see
requirements-export.txt.
"""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from models import Darknet, grey
from utils.boxes import MAX_DETECTIONS
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.darknet.spec import NetworkSpec, parse_network
from utils.darknet.weights import write_darknet_weights
from utils.errors import InputError
from utils.notices import notice
from utils.optional import optional
from utils.sizes import AnySize, Size

# OpenCV sets products of objectness and class score to 0 that are not above thresh, by default 0.2
# (opencv/modules/dnn/src/layers/region_layer.cpp).
OPENCV_OPTIONS = {"yolo": {"thresh": "0"}}


class ExportedModel(nn.Module):
    """A file that export.py wrote, in the runtime that reads it.

    Attributes:
        runtime: the name of the runtime, for messages.
        name: the path of the file, for messages.
        spec: what the network's cfg says, at the size that the file was exported for.
        metadata: the class ``names`` and the ``img_size``.
        fixed: whether the file takes images of that size only.
    """

    runtime: str
    name: str
    spec: NetworkSpec
    metadata: dict[str, Any]
    fixed: bool

    def check_size(self, images: Tensor) -> None:
        """Raise an InputError if the file is for another size than that of images (B, 3, H, W)."""
        size, given = Size.of(self.metadata["img_size"]), Size(*images.shape[-2:])
        if self.fixed and given != size:
            raise InputError(f"{self.name} was exported for images of {size.pixels}, not {given.pixels}")


class OnnxModel(ExportedModel):
    """An ``.onnx`` file that export.py wrote, in ONNX Runtime; see :class:`ExportedModel` for the attributes.

    Args:
        source: the path of the file, or its content.
        thresholds: the minimum score of a detection and the IoU of non-maximum suppression, for a file with the latter
            in its graph; by default those in the file.
        device: ``cpu``, ``cuda`` or ``cuda:N``; by default the GPU if this ONNX Runtime uses one, else the CPU.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is missing, damaged or not written by export.py, or
            ONNX Runtime cannot use the device, or load the libraries for it.
    """

    runtime = "ONNX Runtime"

    def __init__(
        self,
        source: str | Path | bytes,
        thresholds: tuple[float, float] | None = None,
        device: str | None = None,
    ):
        super().__init__()
        self.name = "the graph" if isinstance(source, bytes) else str(source)
        self.session = _onnx_session(source, self.name, device)
        stored = self.session.get_modelmeta().custom_metadata_map
        if "cfg" not in stored:
            raise InputError(f"{self.name}: no cfg in its metadata: not a file that export.py wrote")
        self.metadata = {"names": json.loads(stored["names"]), "img_size": Size.parse(stored["img_size"]).plain}
        self.spec = parse_network(parse_cfg(stored["cfg"], f"cfg in {self.name}"), self.metadata["img_size"])
        self._suppresses = self.session.get_outputs()[0].name == "detections"
        self.fixed = isinstance(self.session.get_inputs()[0].shape[-1], int)
        self._thresholds = {}
        if self._suppresses and thresholds:
            conf_thres, nms_thres = (np.array([value], np.float32) for value in thresholds)
            self._thresholds = {"conf_thres": conf_thres, "nms_thres": nms_thres}

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C).

        A file with non-maximum suppression in its graph gives detections instead: for each image (D, 6) x1, y1, x2, y2
        in input pixels, score, class, by falling score.

        Raises:
            InputError: the file was exported for one fixed size, and the images have another.
        """
        self.check_size(images)
        (output,) = self.session.run(None, {"images": images.cpu().numpy(), **self._thresholds})
        output = torch.from_numpy(output)
        if not self._suppresses:
            return output
        return [output[output[:, 0] == image, 1:][:MAX_DETECTIONS] for image in range(len(images))]


def _onnx_session(source: str | Path | bytes, name: str, device: str | None):
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only; it would warn of the optional inputs
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads do not keep the CPU busy
    # TF32's 10 bits would hide the differences that the proof of an export looks for.
    preferred = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    available = runtime.get_available_providers()
    kind, _, number = (device or "").partition(":")
    if kind == "cpu":
        del preferred["CUDAExecutionProvider"]
    elif kind and (kind != "cuda" or "CUDAExecutionProvider" not in available):
        raise InputError(f"--device {device}: {name} runs in ONNX Runtime, which has no {kind} here: give cpu")
    elif number:
        preferred["CUDAExecutionProvider"]["device_id"] = number
    providers = [(provider, settings) for provider, settings in preferred.items() if provider in available]
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise InputError(f"{source}: there is no such ONNX file")
    try:
        session = runtime.InferenceSession(source, options, providers)
    except Exception as error:  # its exceptions have no common base but Exception
        raise InputError(f"{name}: ONNX Runtime cannot read it: {' '.join(str(error).split())}") from error
    if session.get_providers()[0] != providers[0][0]:  # it goes on without what it cannot load
        reason = f"{name} runs in ONNX Runtime, which cannot load its CUDA libraries here"
        if kind:
            raise InputError(f"--device {device}: {reason}: install them, or give cpu")
        notice(f"{reason}: on the CPU instead")
    return session


@cache
def openvino_core() -> Any:
    """OpenVINO, once: after the second of two is gone, a signal would find the freed signal stack of the first."""
    return optional("openvino").Core()


class OpenVinoModel(nn.Module):
    """An ONNX graph in OpenVINO, on the CPU.

    Raises:
        InputError: OpenVINO is not installed.
    """

    def __init__(self, content: bytes):
        super().__init__()
        core = openvino_core()
        # Without the hint OpenVINO computes in bfloat16 where the processor has it.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = core.compile_model(core.read_model(content), "CPU", options)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C)."""
        return torch.from_numpy(self.compiled(images.cpu().numpy())[0].copy())


class OpenCvModel(nn.Module):
    """A network's cfg and Darknet weights in OpenCV's Darknet reader.

    OpenCV's BatchNorm has an epsilon of 1e-6, which matters where variances are small: give it a fused network
    (:func:`utils.detection.fusing.fuse`). The cfg gets OPENCV_OPTIONS, so that no score is set to 0.

    Args:
        model: the network.
        img_size: of the images; OpenCV's anchors are relative to it.

    Attributes:
        size_bytes: the size of the two files together.

    Raises:
        InputError: OpenCV has no Darknet reader, cannot read or run the network, or reads it as another one.
    """

    def __init__(self, model: Darknet, img_size: AnySize):
        super().__init__()
        if not hasattr(cv2.dnn, "readNetFromDarknet"):
            raise InputError("OpenCV 5 has no Darknet reader: pip install 'opencv-python-headless<5'")
        cv2.setNumThreads(torch.get_num_threads())
        blocks = [block | OPENCV_OPTIONS.get(block["type"], {}) for block in model.spec.blocks]
        height, width = Size.of(img_size)
        blocks[0] |= {"width": str(width), "height": str(height)}
        weights = io.BytesIO()
        write_darknet_weights(model, weights)
        files = [np.frombuffer(content, np.uint8) for content in (format_cfg(blocks).encode(), weights.getbuffer())]
        self.anchors = [len(head.anchors) for head in model.spec.heads]
        self.heads = [f"yolo_{head.index}" for head in model.spec.heads]
        self.sides = torch.tensor([width, height, width, height])
        self.is_grey = model.spec.channels == 1
        self.size_bytes = sum(len(content) for content in files)
        try:
            self.net = cv2.dnn.readNetFromDarknet(*files)
            found = [rows.shape for rows in self._rows(np.zeros((1, 1 if self.is_grey else 3, height, width), "f"))]
        except cv2.error as error:  # it reads some networks that it cannot run
            raise InputError(f"OpenCV cannot read the network: {' '.join(str(error).split())}") from error
        heads = model.spec.at((height, width)).heads
        wanted = [(head.height * head.width * len(head.anchors), 5 + head.classes) for head in heads]
        if found != wanted:  # it takes no notice of options that it does not know, such as stride_x
            raise InputError(
                f"OpenCV reads another network from the cfg: its heads give {found} rows and columns, not {wanted}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C), in the order of :class:`models.Darknet`."""
        images = grey(images) if self.is_grey else images
        return torch.cat([self._one(image) for image in images.cpu().numpy()[:, None]])

    def _rows(self, image: np.ndarray) -> Sequence[np.ndarray]:
        self.net.setInput(image)
        return self.net.forward(self.heads)

    def _one(self, image: np.ndarray) -> Tensor:
        predictions = []
        for rows, anchors in zip(self._rows(image), self.anchors, strict=True):
            # A row: cx, cy, w, h in [0, 1], objectness, its products with the class scores. OpenCV's rows go cell by
            # cell, Darknet's anchor by anchor.
            rows = torch.from_numpy(rows).unflatten(0, (-1, anchors)).transpose(0, 1).flatten(0, 1)
            classes = rows[:, 5:] / rows[:, 4:5].clamp(min=torch.finfo(rows.dtype).tiny)
            predictions.append(torch.cat([rows[:, :4] * self.sides, rows[:, 4:5], classes], dim=1))
        return torch.cat(predictions)[None]


def prediction_difference(reference: Tensor, predictions: Tensor, min_score: float = 0.0) -> float | None:
    """The largest difference of predictions (B, P, 5 + C) to a reference of the same shape, in scores and boxes.

    A score is objectness * class score. The difference of a box's cx, cy, w or h is divided by the reference value in
    pixels where that is above 1. Only boxes count that score at least ``min_score`` in the reference; None if there is
    none.
    """
    reference_scores, scores = (output[..., 4:5] * output[..., 5:] for output in (reference, predictions))
    counted = reference_scores >= min_score
    if not counted.any():
        return None
    boxes = counted.any(dim=-1)
    gap = (predictions - reference)[..., :4].abs() / reference[..., :4].abs().clamp(min=1)
    return float(torch.maximum((scores - reference_scores)[counted].abs().max(), gap[boxes].max()))
