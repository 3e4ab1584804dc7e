"""A network as a TensorRT engine, for NVIDIA's GPUs: an ``.engine`` file, with a description beside it.

Networks are strongly typed, in TensorRT 10 on request and in TensorRT 11 always: each layer computes in the type that
the graph gives it, which is float16, or 8-bit integers between the graph's pairs of QuantizeLinear and
DequantizeLinear.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from utils.detection.tensorrt import TensorRtModel
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
        export = (
            f"--to onnx --static_size {'--int8 tensorrt --data_config DATA' if int8 else '--fp16'} --output {onnx_name}"
        )
        raise InputError(
            f"{error}, on the machine with the GPU that is to run the engine; or export with {export} and run there: "
            f"{trtexec(onnx_name, shapes)}"
        ) from None


def input_shapes(size: Size, largest_batch: int) -> dict[str, tuple[int, ...]]:
    """The smallest, the most frequent and the largest shape of the engine's input, under TensorRT's names for them."""
    return {"min": (1, 3, *size), "opt": (1, 3, *size), "max": (largest_batch, 3, *size)}


def trtexec(onnx_name: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The command line of TensorRT's own program that builds the same engine from an ONNX file."""
    bounds = [f"--{kind}Shapes=images:{'x'.join(map(str, shape))}" for kind, shape in shapes.items()]
    engine = Path(onnx_name).with_suffix(".engine")
    return " ".join(["trtexec", f"--onnx={onnx_name}", f"--saveEngine={engine}", "--stronglyTyped", *bounds])


def build_engine(proto: "ModelProto", shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The engine of a graph from images to predictions, for the GPU and the TensorRT of this machine.

    Args:
        proto: the graph, in float16 or in 8 bits; its image size may be free.
        shapes: see :func:`input_shapes`.

    Raises:
        InputError: TensorRT is not installed, cannot read the graph or cannot build the engine.
    """
    trt = optional("tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise InputError(f"TensorRT cannot read the graph: {' '.join(reasons.split())}: nothing was written")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("images", **shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError("TensorRT cannot build the engine; its messages above say why: nothing was written")
    return bytes(engine)


def load_engine(engine: bytes, description: bytes) -> TensorRtModel:
    """The network of an engine and its description, see :mod:`utils.detection.description`.

    Raises:
        InputError: as for :class:`utils.detection.tensorrt.TensorRtModel`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.engine"
        path.write_bytes(engine)
        path.with_suffix(".json").write_bytes(description)
        return TensorRtModel(path)
