"""8-bit integers instead of floats, by ONNX Runtime's static quantization."""

import collections
import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from utils.darknet.layers import Activation, Dropout, Empty
from utils.darknet.spec import NetworkSpec
from utils.export.onnx import describe
from utils.optional import optional

if TYPE_CHECKING:
    from onnx import ModelProto


class CalibrationImages:
    """A calibration set as ONNX Runtime reads it: one input of the graph after another, then None."""

    def __init__(self, batches: Iterable[Tensor]):
        self._inputs: Iterator[dict[str, np.ndarray]] = ({"images": images.numpy()} for images in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next images (B, 3, H, W) in [0, 1], under the name of the graph's input."""
        return next(self._inputs, None)


def quantize(proto: "ModelProto", spec: NetworkSpec, images: Iterable[Tensor]) -> "ModelProto":
    """A graph whose convolutions compute in 8-bit integers.

    Kernels have a scale per output channel; feature maps have one scale, from their range over the calibration images.
    The convolutions before the heads and the decoding of boxes stay in float, where a step of 1/256 would be visible.

    Args:
        proto: the graph from images to predictions, as :func:`utils.export.onnx.export_onnx` makes it.
        spec: the network's.
        images: batches of calibration images (B, 3, H, W) in [0, 1], typical of those to detect on.

    Raises:
        InputError: onnx or onnxruntime is not installed.
    """
    onnx, quantization = optional("onnx"), optional("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, source)  # quantize_static would change a graph in memory
        logging.disable(logging.WARNING)  # its advice to fold BatchNorm first, which is done already
        try:
            quantization.quantize_static(
                source,
                target,
                CalibrationImages(images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=head_convolutions(proto, spec),
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
            )
        finally:
            logging.disable(logging.NOTSET)
        quantized = onnx.load(target)
    shorten_names(quantized)
    describe(quantized, {entry.key: entry.value for entry in proto.metadata_props})
    return quantized


def head_convolutions(proto: "ModelProto", spec: NetworkSpec) -> list[str]:
    """The names of the graph's nodes for the convolutions that the heads read; they contain ``conv_{layer}``."""
    marks = []
    for head in spec.heads:
        source = spec.layers[head.sources[0]]
        while isinstance(source, Activation | Dropout | Empty):
            source = spec.layers[source.sources[0]]
        marks.append(f"/conv_{source.index}/")
    return [node.name for node in proto.graph.node if any(mark in node.name for mark in marks)]


def shorten_names(proto: "ModelProto") -> None:
    """Number the inner tensors, and drop node names and shapes: a fifth of a small 8-bit file."""
    graph = proto.graph
    outer = {value.name: value.name for value in (*graph.input, *graph.output)}
    numbers = map(str, itertools.count())
    names = collections.defaultdict(lambda: next(numbers), outer | {"": ""})  # "" is an omitted input
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    graph.ClearField("value_info")
