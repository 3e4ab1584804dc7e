"""8-bit integers instead of floats, by ONNX Runtime's static quantisation."""

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
from utils.optional import optional

if TYPE_CHECKING:
    from onnx import ModelProto


class CalibrationImages:
    """What ONNX Runtime asks of a calibration set: one input of the graph after another, then None."""

    def __init__(self, batches: Iterable[Tensor]):
        self._inputs: Iterator[dict[str, np.ndarray]] = ({"images": images.numpy()} for images in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Images (B, 3, S, S) in [0, 1] by the name of the input."""
        return next(self._inputs, None)


def quantize(proto: "ModelProto", spec: NetworkSpec, images: Iterable[Tensor]) -> "ModelProto":
    """A graph whose convolutions compute in 8-bit integers; its boxes stay where the calibration images are typical.

    Kernels get a scale for each output channel. The convolutions in front of the heads stay in float, and so does all
    that decodes boxes: there one step of 256 is a visible part of a box.

    Args:
        proto: from images to predictions, as :func:`utils.export.onnx.export_onnx` makes it.
        network: whose graph it is.
        images: batches of images (B, 3, S, S) in [0, 1], such as the network will meet.

    Raises:
        InputError: onnx or onnxruntime is not installed.
    """
    onnx, quantization = optional("onnx"), optional("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, source)  # given a graph in memory, quantize_static changes it
        logging.disable(logging.WARNING)  # advice to fold BatchNorm first, which we did
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
        quantised = onnx.load(target)
    shorten_names(quantised)
    onnx.helper.set_model_props(quantised, {entry.key: entry.value for entry in proto.metadata_props})
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def head_convolutions(proto: "ModelProto", spec: NetworkSpec) -> list[str]:
    """The names of the convolutions that the heads read; the exporter puts ``conv_{layer}`` in them."""
    marks = []
    for head in spec.heads:
        source = spec.layers[head.sources[0]]
        while isinstance(source, Activation | Dropout | Empty):
            source = spec.layers[source.sources[0]]
        marks.append(f"/conv_{source.index}/")
    return [node.name for node in proto.graph.node if any(mark in node.name for mark in marks)]


def shorten_names(proto: "ModelProto") -> None:
    """Number the inner tensors and drop what only people read, which is a fifth of a small 8-bit file."""
    graph = proto.graph
    outer = {value.name: value.name for value in (*graph.input, *graph.output)}
    numbers = map(str, itertools.count())
    names = collections.defaultdict(lambda: next(numbers), outer | {"": ""})  # "" is an input that is left out
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    graph.ClearField("value_info")
