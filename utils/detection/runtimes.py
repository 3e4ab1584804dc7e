"""Other runtimes for an exported network, with the call of :class:`models.Darknet`: images in, predictions out.

Each is a small module, so that ``test.evaluate`` and ``utils.timing.forward_times`` take it as they take
a Darknet, and computes in float32 with as many threads as PyTorch does. The packages are optional:
requirements-export.txt.
"""

import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import Darknet
from utils.boxes import MAX_DETECTIONS
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.darknet.spec import parse_network
from utils.darknet.weights import write_darknet_weights
from utils.errors import InputError
from utils.optional import optional

# Read by OpenCV alone: a product of objectness and class score that is not above it becomes 0; its default is 0.2
# (opencv/modules/dnn/src/layers/region_layer.cpp).
OPENCV_OPTIONS = {"yolo": {"thresh": "0"}}


class OnnxModel(nn.Module):
    """A file that export.py wrote, in ONNX Runtime.

    Args:
        source: the file, or its content.
        thresholds: the least score of a detection and the IoU of non-maximum suppression, for a file with that in its
            graph; those in the file if not given.

    Attributes:
        blocks, network: the cfg that the file was made from, resolved at the size that it was made for.
        about: class ``names`` and ``img_size``.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is missing, damaged or not one of ours.
    """

    def __init__(self, source: str | Path | bytes, thresholds: tuple[float, float] | None = None):
        super().__init__()
        self.name = "the graph" if isinstance(source, bytes) else str(source)
        self.session = _onnx_session(source, self.name)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "cfg" not in metadata:
            raise InputError(f"{self.name}: no cfg in its metadata: not a file that export.py wrote")
        self.about = {"names": json.loads(metadata["names"]), "img_size": int(metadata["img_size"])}
        self.blocks = parse_cfg(metadata["cfg"], f"cfg in {self.name}")
        self.spec = parse_network(self.blocks, self.about["img_size"])
        self._suppresses = self.session.get_outputs()[0].name == "detections"
        self._fixed = isinstance(self.session.get_inputs()[0].shape[-1], int)
        self._thresholds = {}
        if self._suppresses and thresholds:
            conf_thres, nms_thres = (np.array([value], np.float32) for value in thresholds)
            self._thresholds = {"conf_thres": conf_thres, "nms_thres": nms_thres}

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images (B, 3, S, S) in [0, 1] to predictions (B, P, 5 + C).

        A file with non-maximum suppression in its graph gives detections instead: for each image (D, 6) x1, y1, x2, y2
        in pixels of the square, score, class, by falling score.

        Raises:
            InputError: the file was made for one size, and the images have another.
        """
        size = self.about["img_size"]
        if self._fixed and images.shape[-2:] != (size, size):
            raise InputError(
                f"{self.name} was exported with --static_size for images of {size} pixels, not {images.shape[-1]}"
            )
        (output,) = self.session.run(None, {"images": images.cpu().numpy(), **self._thresholds})
        found = torch.from_numpy(output)
        if not self._suppresses:
            return found
        return [found[found[:, 0] == image, 1:][:MAX_DETECTIONS] for image in range(len(images))]


def _onnx_session(source: str | Path | bytes, name: str):
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of thresholds that may be left out
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the CPU to others
    # TF32's 10 bits would hide what the proof of an export looks for.
    wanted = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    available = runtime.get_available_providers()
    providers = [(name, settings) for name, settings in wanted.items() if name in available]
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise InputError(f"{source}: there is no such ONNX file")
    try:
        return runtime.InferenceSession(source, options, providers)
    except Exception as error:  # each kind of damage has an exception of its own, derived from Exception
        raise InputError(f"{name}: ONNX Runtime cannot read it: {' '.join(str(error).split())}") from error


class OpenVinoModel(nn.Module):
    """An ONNX graph in OpenVINO, on the CPU.

    Raises:
        InputError: OpenVINO is not installed.
    """

    def __init__(self, content: bytes):
        super().__init__()
        core = optional("openvino").Core()
        # Without the hint, processors with bfloat16 compute in it.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = core.compile_model(core.read_model(content), "CPU", options)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to predictions (B, P, 5 + C)."""
        return torch.from_numpy(self.compiled(images.cpu().numpy())[0].copy())


class OpenCvModel(nn.Module):
    """A network's cfg and Darknet weights in OpenCV's Darknet reader.

    BatchNorm's epsilon is 1e-6 there, which matters where variances are small: give it a fused network
    (:func:`utils.detection.fusing.fuse`). What it reads is given OPENCV_OPTIONS, so that no score is cut off.

    Args:
        model: the network.
        img_size: the side S of the images, in pixels; anchors are relative to it.

    Attributes:
        size_bytes: of the two files.

    Raises:
        InputError: OpenCV is not installed, has no Darknet reader, or cannot read or run the network.
    """

    def __init__(self, model: Darknet, img_size: int):
        super().__init__()
        self.cv2 = optional("cv2")
        if not hasattr(self.cv2.dnn, "readNetFromDarknet"):
            raise InputError("OpenCV 5 has no Darknet reader: pip install 'opencv-python-headless<5'")
        self.cv2.setNumThreads(torch.get_num_threads())
        blocks = [block | OPENCV_OPTIONS.get(block["type"], {}) for block in model.blocks]
        blocks[0] |= {"width": str(img_size), "height": str(img_size)}
        weights = io.BytesIO()
        write_darknet_weights(model, weights)
        files = [np.frombuffer(content, np.uint8) for content in (format_cfg(blocks).encode(), weights.getbuffer())]
        self.anchors = [len(head.anchors) for head in model.spec.heads]
        self.heads = [f"yolo_{head.index}" for head in model.spec.heads]
        self.img_size = img_size
        self.size_bytes = sum(len(content) for content in files)
        try:
            self.net = self.cv2.dnn.readNetFromDarknet(*files)
            self(torch.zeros(1, 3, img_size, img_size))  # some networks it reads, but cannot run
        except self.cv2.error as error:
            raise InputError(f"OpenCV cannot read the network: {' '.join(str(error).split())}") from error

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to predictions (B, P, 5 + C), in the order of ours."""
        return torch.cat([self._one(image) for image in images.cpu().numpy()[:, None]])

    def _one(self, image: np.ndarray) -> Tensor:
        self.net.setInput(image)
        found = []
        for rows, anchors in zip(self.net.forward(self.heads), self.anchors, strict=True):
            # A row is cx, cy, w, h in [0, 1], objectness, products; rows go cell by cell, ours anchor by anchor.
            rows = torch.from_numpy(rows).unflatten(0, (-1, anchors)).transpose(0, 1).flatten(0, 1)
            classes = rows[:, 5:] / rows[:, 4:5].clamp(min=torch.finfo(rows.dtype).tiny)
            found.append(torch.cat([rows[:, :4] * self.img_size, rows[:, 4:5], classes], dim=1))
        return torch.cat(found)[None]


def prediction_difference(wanted: Tensor, got: Tensor, least_score: float = 0.0) -> float | None:
    """The largest difference of two predictions (B, P, 5 + C), of objectness * class score and of boxes.

    A box's difference is relative to its value in pixels where that is above 1. Only boxes count that score at least
    ``least_score`` in ``wanted``; None if there are none.
    """
    scores, own = (predictions[..., 4:5] * predictions[..., 5:] for predictions in (wanted, got))
    counted = scores >= least_score
    if not counted.any():
        return None
    boxes = counted.any(dim=-1)
    gap = (got - wanted)[..., :4].abs() / wanted[..., :4].abs().clamp(min=1)
    return float(torch.maximum((own - scores)[counted].abs().max(), gap[boxes].max()))
