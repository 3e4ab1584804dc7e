"""A network as a TensorRT engine, for NVIDIA's GPUs; written after the Python API of TensorRT 10."""

from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.optional import optional
from utils.sizes import Size

if TYPE_CHECKING:
    from onnx import ModelProto


def require_tensorrt(onnx_name: str, shapes: dict[str, tuple[int, ...]], int8: bool) -> None:
    """Raise an InputError that says what to do where TensorRT is not installed.

    Args:
        onnx_name: the name of an ONNX file of the same network, for the message.
        shapes: see :func:`input_shapes`.
        int8: whether that file is in 8 bits.
    """
    try:
        optional("tensorrt")
    except InputError as error:
        raise InputError(
            f"{error}, on the machine with the GPU that is to run the engine; or export with --to onnx"
            f"{' --int8 openvino' if int8 else ''} and run there: {trtexec(onnx_name, shapes, int8)}"
        ) from None


def input_shapes(size: Size, largest_batch: int) -> dict[str, tuple[int, ...]]:
    """The smallest, the most frequent and the largest shape of the engine's input, under TensorRT's names for them."""
    return {"min": (1, 3, *size), "opt": (1, 3, *size), "max": (largest_batch, 3, *size)}


def trtexec(onnx_name: str, shapes: dict[str, tuple[int, ...]], int8: bool) -> str:
    """The command line of TensorRT's own program that builds the same engine from an ONNX file."""
    bounds = [f"--{kind}Shapes=images:{'x'.join(map(str, shape))}" for kind, shape in shapes.items()]
    precision = ["--fp16", *(["--int8"] if int8 else [])]
    engine = Path(onnx_name).with_suffix(".engine")
    return " ".join(["trtexec", f"--onnx={onnx_name}", f"--saveEngine={engine}", *precision, *bounds])


def build_engine(proto: "ModelProto", shapes: dict[str, tuple[int, ...]], int8: bool) -> bytes:
    """The engine of a graph from images to predictions, for the GPU of this machine, in float16.

    Args:
        proto: the graph, in float or in 8 bits.
        shapes: see :func:`input_shapes`.
        int8: whether the graph is in 8 bits.

    Raises:
        InputError: TensorRT cannot read the graph or build the engine.
    """
    trt = optional("tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise InputError(f"TensorRT cannot read the graph: {' '.join(reasons.split())}")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    if int8:
        config.set_flag(trt.BuilderFlag.INT8)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", **shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError("TensorRT cannot build the engine; its messages above say why")
    return bytes(engine)
