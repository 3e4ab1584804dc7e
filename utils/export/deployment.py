"""One network in all installed runtimes, for a comparison."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor, nn

from models import Darknet
from utils.detection.complexity import state_dict_size
from utils.detection.description import describe
from utils.detection.fusing import fuse
from utils.detection.inference import for_inference
from utils.detection.ncnn import FILES
from utils.detection.runtimes import OnnxModel, OpenCvModel, OpenVinoModel
from utils.devices import require_gpu
from utils.errors import InputError
from utils.export.ncnn import NcnnQuantizer, export_ncnn, load_contents, require_tools
from utils.export.onnx import export_onnx
from utils.export.quantization import FORMS, quantize
from utils.export.tensorrt import build_engine, input_shapes, load_engine
from utils.optional import optional
from utils.sizes import AnySize, Size

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Deployment:
    """A network in a runtime, or the reason why it cannot run there.

    Attributes:
        runtime, format: the runtime, and the kind of file that it reads.
        size_bytes: the size of the file.
        model: from images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C); None if there is a problem.
        problem: one line, such as what to install; None if there is a model.
    """

    runtime: str
    format: str
    size_bytes: int | None = None
    model: nn.Module | None = None
    problem: str | None = None


def deployments(
    model: Darknet, names: list[str], img_size: AnySize, calibration: Iterable[Tensor], largest_batch: int
) -> list[Deployment]:
    """A model in all runtimes, PyTorch first.

    Args:
        model: the network, on the CPU and in eval mode.
        names: class names.
        img_size: of its input.
        calibration: images (1, 3, H, W) in [0, 1] to calibrate the 8-bit network on.
        largest_batch: the largest batch size of a TensorRT engine.
    """

    @cache
    def proto() -> "ModelProto":
        return export_onnx(model, names, img_size)

    def torch_fused() -> tuple[nn.Module, int]:
        return for_inference(model), state_dict_size(fuse(model))

    def onnx_in(runtime: Callable[[bytes], nn.Module], package: str) -> tuple[nn.Module, int]:
        optional(package)  # before the export, so that its absence is reported rather than onnx's
        content = proto().SerializeToString()
        return runtime(content), len(content)

    @cache
    def calibration_images() -> list[Tensor]:
        return list(calibration)

    def int8_in(runtime: Callable[[bytes], nn.Module], package: str, outputs: bool) -> tuple[nn.Module, int]:
        optional(package)
        graph = quantize(proto(), model.spec, calibration_images(), outputs=outputs)
        content = graph.SerializeToString()
        return runtime(content), len(content)

    @cache
    def ncnn_contents() -> dict[str, bytes]:
        optional("ncnn")
        return export_ncnn(model, names, img_size)

    def ncnn(int8: bool) -> tuple[nn.Module, int]:
        if int8:
            require_tools()
        contents = ncnn_contents()
        if int8:
            contents = NcnnQuantizer(contents, model, names, img_size, calibration_images()).contents()
        return load_contents(contents), sum(len(contents[suffix]) for suffix in FILES)

    def tensorrt(int8: bool) -> tuple[nn.Module, int]:
        optional("tensorrt")
        require_gpu("an engine is built on the GPU that runs it")
        graph = export_onnx(model, names, img_size, dynamic_size=False, half=True)
        if int8:
            graph = quantize(graph, model.spec, calibration_images(), outputs=FORMS["tensorrt"].outputs)
        engine = build_engine(graph, input_shapes(Size.of(img_size), largest_batch))
        return load_engine(engine, describe(model, names, img_size, {".engine": engine})), len(engine)

    def opencv(darknet: Darknet) -> tuple[nn.Module, int]:
        reader = OpenCvModel(darknet, img_size)
        return reader, reader.size_bytes

    return [
        Deployment("PyTorch", "checkpoint", state_dict_size(model), model),
        _deploy("PyTorch, fused", "checkpoint", torch_fused),
        _deploy("ONNX Runtime", "ONNX", lambda: onnx_in(OnnxModel, "onnxruntime")),
        _deploy("OpenVINO", "ONNX", lambda: onnx_in(OpenVinoModel, "openvino")),
        _deploy("ncnn", "param and bin", lambda: ncnn(int8=False)),
        _deploy("OpenCV", "cfg and .weights", lambda: opencv(model)),
        _deploy("OpenCV", "the same, fused", lambda: opencv(fuse(model))),
        _deploy("ONNX Runtime", "ONNX, INT8", lambda: int8_in(OnnxModel, "onnxruntime", outputs=True)),
        _deploy("OpenVINO", "ONNX, INT8", lambda: int8_in(OpenVinoModel, "openvino", outputs=False)),
        _deploy("ncnn", "param and bin, INT8", lambda: ncnn(int8=True)),
        _deploy("TensorRT", "engine, float16", lambda: tensorrt(int8=False)),
        _deploy("TensorRT", "engine, INT8", lambda: tensorrt(int8=True)),
    ]


def _deploy(runtime: str, kind: str, build: Callable[[], tuple[nn.Module, int]]) -> Deployment:
    try:
        model, size_bytes = build()
    except InputError as error:
        return Deployment(runtime, kind, problem=str(error))
    return Deployment(runtime, kind, size_bytes, model)
