"""One network in every runtime that is installed, to be compared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor, nn

from models import Darknet
from utils.detection.complexity import state_dict_size
from utils.detection.fusing import fuse
from utils.detection.inference import for_inference
from utils.detection.runtimes import OnnxModel, OpenCvModel, OpenVinoModel
from utils.errors import InputError
from utils.export.onnx import export_onnx
from utils.export.quantization import quantize
from utils.optional import optional

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Deployment:
    """A network in a runtime, or the reason why it is not there.

    Attributes:
        runtime, format: what runs which kind of file.
        size_bytes: of the file.
        model: takes images (B, 3, S, S) in [0, 1], gives predictions (B, P, 5 + C).
        problem: one line, such as what to install; then there is no model.
    """

    runtime: str
    format: str
    size_bytes: int | None = None
    model: nn.Module | None = None
    problem: str | None = None


def deployments(model: Darknet, names: list[str], img_size: int, calibration: Iterable[Tensor]) -> list[Deployment]:
    """``model``, on the CPU and in eval mode, in all runtimes, PyTorch first.

    Args:
        model: the network.
        names: of its classes.
        img_size: the side in pixels of the images that it will be fed.
        calibration: images (1, 3, S, S) in [0, 1] for the 8-bit network.
    """

    @cache
    def proto() -> "ModelProto":
        return export_onnx(model, names, img_size)

    def torch_fused() -> tuple[nn.Module, int]:
        return for_inference(model), state_dict_size(fuse(model))

    def onnx_in(runtime: Callable[[bytes], nn.Module], package: str) -> tuple[nn.Module, int]:
        optional(package)  # named even where onnx is missing, too
        content = proto().SerializeToString()
        return runtime(content), len(content)

    def int8() -> tuple[nn.Module, int]:
        content = quantize(proto(), model.spec, calibration).SerializeToString()
        return OnnxModel(content), len(content)

    def opencv(network: Darknet) -> tuple[nn.Module, int]:
        reader = OpenCvModel(network, img_size)
        return reader, reader.size_bytes

    return [
        Deployment("PyTorch", "checkpoint", state_dict_size(model), model),
        _deploy("PyTorch, fused", "checkpoint", torch_fused),
        _deploy("ONNX Runtime", "ONNX", lambda: onnx_in(OnnxModel, "onnxruntime")),
        _deploy("OpenVINO", "ONNX", lambda: onnx_in(OpenVinoModel, "openvino")),
        _deploy("OpenCV", "cfg and .weights", lambda: opencv(model)),
        _deploy("OpenCV", "the same, fused", lambda: opencv(fuse(model))),
        _deploy("ONNX Runtime", "ONNX, INT8", int8),
    ]


def _deploy(runtime: str, kind: str, build: Callable[[], tuple[nn.Module, int]]) -> Deployment:
    try:
        model, size_bytes = build()
    except InputError as error:
        return Deployment(runtime, kind, problem=str(error))
    return Deployment(runtime, kind, size_bytes, model)
