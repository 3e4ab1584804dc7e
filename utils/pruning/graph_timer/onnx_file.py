"""A graph as an ONNX file, which is a protobuf message: a sequence of tagged fields (onnx/onnx.proto)."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import Graph, bias_of, kernel_of, sources


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, list):
        typed = b"".join(_field(8, item) for item in value) + _field(20, 7)
    else:
        number, kind = {float: (2, 1), int: (3, 2), str: (4, 3)}[type(value)]
        typed = _field(number, value) + _field(20, kind)
    return _field(1, name) + typed


def _value_info(name: str, shape: Sequence[int | str]) -> bytes:
    """A float input or output; a side that is a string is any number."""
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


class OnnxWriter:
    """Writes a graph as the content of an ONNX file, of opset 17."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._parts: list[bytes] = []
        self._count = 0

    def content(self) -> bytes:
        """The file's content; its outputs are those of the layers that no other reads."""
        graph = self._graph
        predictions = []
        read = {source for layer in graph["layers"] for source in layer["from"]}
        outputs = {f"x{index}" for index in range(len(graph["layers"])) if index not in read}
        for layer, name, inputs in sources(graph):
            if layer["op"] == "yolo":
                outputs.discard(name)
                predictions.append(self._yolo(layer, inputs[0]))
            else:
                self._layer(layer, inputs, name)
        if predictions:
            self._node("Concat", predictions, "predictions", axis=1)
            outputs.add("predictions")
        images = _value_info("images", (1, graph["channels"], graph["height"], graph["width"]))
        shapes: dict[str, Sequence[int | str]] = {"predictions": (1, "boxes", "values")}
        ends = [_field(12, _value_info(name, shapes.get(name, (1, *"chw")))) for name in sorted(outputs)]
        body = b"".join([*self._parts, _field(2, "graph"), _field(11, images), *ends])
        return _field(1, 8) + _field(7, body) + _field(8, _field(1, "") + _field(2, 17))

    def _node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        output = output or self._new()
        names = b"".join(_field(1, name) for name in inputs) + _field(2, output)
        options = b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())
        self._parts.append(_field(1, names + _field(4, op) + options))
        return output

    def _constant(self, array: np.ndarray) -> str:
        name = self._new()
        dims = b"".join(_field(1, size) for size in array.shape)
        kind = 7 if array.dtype == np.int64 else 1
        self._parts.append(_field(5, dims + _field(2, kind) + _field(8, name) + _field(9, array.tobytes())))
        return name

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _floats(self, *values: float) -> str:
        return self._constant(np.array(values, np.float32))

    def _new(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def _activate(self, name: str, x: str, output: str) -> str:
        match name:
            case "linear":
                return self._node("Identity", [x], output)
            case "leaky" | "relie":
                return self._node("LeakyRelu", [x], output, alpha=0.1 if name == "leaky" else 0.01)
            case "relu6":
                low, high = (self._constant(np.array(value, np.float32)) for value in (0, 6))
                return self._node("Clip", [x, low, high], output)
            case "mish":
                return self._node("Mul", [x, self._node("Tanh", [self._node("Softplus", [x])])], output)
            case "swish":
                return self._node("Mul", [x, self._node("Sigmoid", [x])], output)
        names = {"relu": "Relu", "logistic": "Sigmoid", "tanh": "Tanh", "elu": "Elu", "h_swish": "HardSwish"}
        return self._node(names[name], [x], output)

    def _layer(self, layer: dict[str, Any], inputs: list[str], name: str) -> None:
        activation = layer.get("activation", "linear")
        direct = name if activation == "linear" else ""  # the name of what comes before the activation
        match layer["op"]:
            case "conv":
                kernel, bias = self._constant(kernel_of(layer)), self._constant(bias_of(layer))
                options = {"dilations": 2 * [layer["dilation"]], "group": layer["groups"]}
                options |= {"kernel_shape": 2 * [layer["size"]], "pads": 4 * [layer["padding"]]}
                x = self._node("Conv", [*inputs, kernel, bias], direct, **options, strides=list(layer["stride"]))
            case "add":
                x = inputs[0]
                for other in inputs[1:-1]:
                    x = self._node("Add", [x, other])
                x = self._node("Add", [x, inputs[-1]], direct)
            case "multiply":
                x = self._node("Mul", inputs, direct)
            case "concat":
                x = self._node("Concat", inputs, direct, axis=1)
            case "slice":
                ends = [self._integers(value) for value in (layer["begin"], layer["end"], 1)]
                x = self._node("Slice", [*inputs, *ends], direct)
            case "upsample":
                scales = self._floats(1, 1, layer["stride"], layer["stride"])
                options = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
                x = self._node("Resize", [*inputs, "", scales], direct, **options)
            case "maxpool" | "meanpool":
                options = {"kernel_shape": 2 * [layer["size"]], "strides": list(layer["stride"])}
                options["pads"] = 2 * [layer["before"]] + 2 * [layer["after"]]
                x = self._node("MaxPool" if layer["op"] == "maxpool" else "AveragePool", inputs, direct, **options)
            case "avgpool":
                x = self._node("GlobalAveragePool", inputs, direct)
            case "reorg":
                x = self._node("SpaceToDepth", inputs, direct, blocksize=layer["stride"])
            case "activation":
                x = inputs[0]
        if not direct or layer["op"] == "activation":
            self._activate(activation, x, name)

    def _yolo(self, layer: dict[str, Any], x: str) -> str:
        """The head's decoding, as the exported network has it; returns the name of the predictions."""
        anchors, values, height, width = (layer[name] for name in ("anchors", "values", "height", "width"))
        x = self._node("Reshape", [x, self._integers(1, anchors, values, height, width)])
        x = self._node("Transpose", [x], perm=[0, 1, 3, 4, 2])
        parts = []
        for begin, end, op in ((0, 2, "Sigmoid"), (2, 4, "Exp"), (4, values, "Sigmoid")):
            ends = [self._integers(value) for value in (begin, end, 4)]
            parts.append(self._node(op, [self._node("Slice", [x, *ends])]))
        cells = self._constant(np.zeros((1, 1, height, width, 2), np.float32))
        parts[0] = self._node("Mul", [self._node("Add", [parts[0], cells]), self._floats(8, 8)])
        parts[1] = self._node("Mul", [parts[1], self._constant(np.ones((1, anchors, 1, 1, 2), np.float32))])
        x = self._node("Concat", parts, axis=4)
        return self._node("Reshape", [x, self._integers(1, anchors * height * width, values)])
