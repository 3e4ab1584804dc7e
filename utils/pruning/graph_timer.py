"""Times small graphs of layers in a runtime, and writes the milliseconds to a CSV file.

This file imports nothing but numpy and the runtime, so that ``export.py --latency_table`` can copy it to a folder that
is taken to another device. There ``measure.py``, which calls :func:`main`, reads ``graphs.json`` and writes
``latency.csv``:

    python measure.py --runtime onnx --threads 1

Rows that the CSV file has already are not measured again: an interrupted run goes on where it stopped.

A graph is a dict: the input's ``channels``, ``height`` and ``width``, and ``layers``, each a dict with ``op``, ``from``
(the numbers of the layers that it reads, -1 is the input) and what the op needs. A convolution may have its ``kernel``
(outputs, inputs / groups, size, size) and ``bias`` (outputs,) as arrays; else they are random. Weights can matter for
the time: where channels are no multiple of 4, NCNN's leaky ReLU branches on the sign of each value.
"""

import argparse
import csv
import json
import platform
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

Graph = dict[str, Any]

# What to install with pip for each runtime; its module is called like the package.
PACKAGES = {"pytorch": "torch", "onnx": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn"}
ACTIVATIONS = ("linear", "leaky", "relie", "relu", "relu6", "logistic", "tanh", "elu", "mish", "swish", "h_swish")
COLUMNS = ("graph", "ms", "runtime", "version", "threads", "device")
CUDA_PROVIDER = "CUDAExecutionProvider"  # of ONNX Runtime
IN_TURNS = 8  # graphs that are measured in turns
IN_A_ROW = 5  # measurements of a graph in its turn: at first, its weights are fetched after those of the others
LEAST_ROUNDS, MOST_ROUNDS = 15, 200  # measurements of a graph
SECONDS = 0.15  # that are spent on a graph, unless that is less than LEAST_ROUNDS


def weights(*shape: int, fan: int = 1, seed: int = 0) -> np.ndarray:
    """Float32 weights of this shape whose outputs are about as large as the inputs, of which there are ``fan``."""
    values = np.random.default_rng(seed).uniform(-1, 1, 4099).astype(np.float32) * np.float32((3 / fan) ** 0.5)
    return np.resize(values, shape)


def kernel_of(layer: dict[str, Any]) -> np.ndarray:
    """The kernel (outputs, inputs / groups, size, size) of a convolution."""
    if "kernel" in layer:
        return layer["kernel"]
    shape = layer["outputs"], layer["inputs"] // layer["groups"], layer["size"], layer["size"]
    return weights(*shape, fan=shape[1] * layer["size"] ** 2)


def bias_of(layer: dict[str, Any]) -> np.ndarray:
    """The bias (outputs,) of a convolution."""
    return layer["bias"] if "bias" in layer else 0.1 * weights(layer["outputs"], seed=1)


def sources(graph: Graph) -> Iterator[tuple[dict[str, Any], str, list[str]]]:
    """Each layer with the name of its output and those of its inputs."""
    for index, layer in enumerate(graph["layers"]):
        yield layer, f"x{index}", [f"x{source}" if source >= 0 else "images" for source in layer["from"]]


# ONNX: a file is a protobuf message, a sequence of tagged fields (onnx/onnx.proto).


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


def onnx_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    provider = (CUDA_PROVIDER, {"use_tf32": "0"}) if device == "cuda" else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(OnnxWriter(graph).content(), options, [provider])
    if device == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:  # it goes on without, on the CPU
        raise RuntimeError("ONNX Runtime cannot use this machine's GPU: it takes the package onnxruntime-gpu")
    inputs = {"images": image(graph)}
    return lambda: session.run(None, inputs)


def openvino_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in OpenVINO."""
    core = openvino_core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(OnnxWriter(graph).content()), "CPU", options)
    images = image(graph)
    return lambda: compiled(images)


@cache
def openvino_core() -> Any:
    """OpenVINO, once: after the second of two is gone, a signal would find the freed signal stack of the first."""
    import openvino

    return openvino.Core()


def image(graph: Graph) -> np.ndarray:
    """An input of random values in [0, 1]."""
    return np.abs(weights(1, graph["channels"], graph["height"], graph["width"], fan=3))


# PyTorch


def pytorch_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in PyTorch, with a layout in memory of channels last; in float16 on a GPU."""
    import torch

    layers = [(_torch_layer(layer).eval(), layer["from"]) for layer in graph["layers"]]
    modules = torch.nn.ModuleList(module for module, _ in layers)
    dtype = torch.float16 if device == "cuda" else torch.float32
    modules.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    images = torch.from_numpy(image(graph)).to(device=device, dtype=dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        before, torch_threads = {-1: images}, torch.get_num_threads()
        torch.set_num_threads(threads)
        for index, (module, inputs) in enumerate(layers):
            before[index] = module(*(before[source] for source in inputs))
        if device == "cuda":
            torch.cuda.synchronize()
        torch.set_num_threads(torch_threads)

    return forward


def _torch_layer(layer: dict[str, Any]) -> Any:
    """The PyTorch module of a layer."""
    import torch
    from torch import nn

    class Function(nn.Module):
        def __init__(self, function: Callable):
            super().__init__()
            self.forward = function

    class Activated(nn.Module):
        def __init__(self, module: nn.Module, activation: nn.Module):
            super().__init__()
            self.module, self.activation = module, activation

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.activation(self.module(*inputs))

    makers: dict[str, Callable] = {
        "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
        "relie": lambda: nn.LeakyReLU(0.01, inplace=True),
        "relu": lambda: nn.ReLU(inplace=True),
        "relu6": lambda: nn.ReLU6(inplace=True),
        "logistic": nn.Sigmoid,
        "tanh": nn.Tanh,
        "elu": lambda: nn.ELU(inplace=True),
        "mish": lambda: nn.Mish(inplace=True),
        "swish": lambda: nn.SiLU(inplace=True),
        "h_swish": lambda: nn.Hardswish(inplace=True),
    }

    def decode(x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        raw = x.view(b, layer["anchors"], layer["values"], h, w).permute(0, 1, 3, 4, 2).float()
        centre, size = raw[..., 0:2].sigmoid() * 1.0, raw[..., 2:4].exp() * 1.0
        parts = [torch.stack([centre[..., 0] + 1, centre[..., 1] + 1], dim=-1), size, raw[..., 4:].sigmoid()]
        return torch.cat(parts, dim=-1).view(b, -1, layer["values"])

    def add(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            x = x + other
        return x

    match layer["op"]:
        case "conv":
            options = {name: layer[name] for name in ("padding", "dilation", "groups")}
            conv = nn.Conv2d(layer["inputs"], layer["outputs"], layer["size"], tuple(layer["stride"]), **options)
            conv.requires_grad_(False)
            conv.weight.copy_(torch.from_numpy(kernel_of(layer)))
            cast(nn.Parameter, conv.bias).copy_(torch.from_numpy(bias_of(layer)))
            module: nn.Module = conv
        case "add":
            module = Function(add)
        case "multiply":
            module = Function(torch.mul)
        case "concat":
            module = Function(lambda *inputs: torch.cat(inputs, dim=1))
        case "slice":
            module = Function(lambda x: x[:, layer["begin"] : layer["end"]])
        case "upsample":
            module = nn.Upsample(scale_factor=layer["stride"], mode="nearest")
        case "maxpool" | "meanpool":
            kind = nn.MaxPool2d if layer["op"] == "maxpool" else nn.AvgPool2d
            pad = 2 * (layer["before"], layer["after"])
            pool = kind(layer["size"], tuple(layer["stride"]))
            module = nn.Sequential(nn.ConstantPad2d(pad, 0.0), pool) if any(pad) else pool
        case "avgpool":
            module = nn.AdaptiveAvgPool2d(1)
        case "reorg":
            module = nn.PixelUnshuffle(layer["stride"])
        case "yolo":
            return Function(decode)
        case _:
            module = nn.Identity()
    activation = layer.get("activation", "linear")
    return module if activation == "linear" else Activated(module, makers[activation]())


# NCNN: a text file of layers, and a file of weights in their order.


def ncnn_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in NCNN; heads are not decoded."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = device == "cuda"
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        if hasattr(net.opt, name):
            setattr(net.opt, name, False)
    text, content, outputs = ncnn_files(graph)
    with tempfile.TemporaryDirectory() as folder:
        param, binary = Path(folder) / "graph.param", Path(folder) / "graph.bin"
        param.write_text(text)
        binary.write_bytes(content)
        if net.load_param(str(param)) or net.load_model(str(binary)):
            raise RuntimeError("ncnn cannot read the graph")
    images = image(graph)[0]

    def forward() -> list:
        extractor = net.create_extractor()
        extractor.input("images", ncnn.Mat(images))
        return [extractor.extract(name)[1] for name in outputs]

    return forward


def ncnn_files(graph: Graph) -> tuple[str, bytes, list[str]]:
    """The .param text and the .bin content of a graph, and the names of its outputs."""
    readers: dict[str, int] = {}
    for _, _, inputs in sources(graph):
        for name in inputs:
            readers[name] = readers.get(name, 0) + 1
    lines: list[tuple[str, list[str], list[str], str]] = []
    binary: list[bytes] = []
    taken = dict.fromkeys(readers, 0)

    def write(kind: str, inputs: list[str], output: str, options: str = "") -> None:
        lines.append((kind, inputs, [output], options))
        if readers.get(output, 0) > 1:  # what several layers read must be split
            lines.append(("Split", [output], [f"{output}_{n}" for n in range(readers[output])], ""))

    def branch(name: str) -> str:
        taken[name] += 1
        return f"{name}_{taken[name] - 1}" if readers[name] > 1 else name

    write("Input", [], "images", f"0={graph['width']} 1={graph['height']} 2={graph['channels']}")
    lines[0] = ("Input", [], ["images"], lines[0][3])
    outputs = []
    for layer, name, names in sources(graph):
        inputs = [branch(source) for source in names]
        activation = layer.get("activation", "linear")
        kind, options, fused = _ncnn_layer(layer, activation)
        if layer["op"] == "conv":
            binary += [struct.pack("<I", 0), kernel_of(layer).tobytes(), bias_of(layer).tobytes()]
        if fused or activation == "linear":
            write(kind, inputs, name, options)
        else:
            lines.append((kind, inputs, [f"{name}_linear"], options))
            write(*_ncnn_activation(activation, f"{name}_linear", name))
        if not readers.get(name):
            outputs.append(name)
    blobs = sum(len(ends) for _, _, ends, _ in lines)
    text = ["7767517", f"{len(lines)} {blobs}"]
    for number, (kind, inputs, ends, options) in enumerate(lines):
        text.append(f"{kind} l{number} {len(inputs)} {len(ends)} {' '.join([*inputs, *ends])} {options}")
    return "\n".join(text) + "\n", b"".join(binary), outputs


# How a convolution of NCNN takes its activation in (ncnn/docs, operators.md, activation_type).
NCNN_FUSED = {
    "relu": "9=1",
    "leaky": "9=2 -23310=1,0.1",
    "relie": "9=2 -23310=1,0.01",
    "relu6": "9=3 -23310=2,0.0,6.0",
    "logistic": "9=4",
    "mish": "9=5",
}


def _ncnn_layer(layer: dict[str, Any], activation: str) -> tuple[str, str, bool]:
    """The type of a layer, its options, and whether it takes its activation in."""
    match layer["op"]:
        case "conv":
            count = layer["outputs"] * (layer["inputs"] // layer["groups"]) * layer["size"] ** 2
            (down, right), pad = layer["stride"], layer["padding"]
            options = f"0={layer['outputs']} 1={layer['size']} 2={layer['dilation']} 3={right} 13={down} 4={pad} 5=1"
            options += f" 6={count}" + (f" 7={layer['groups']}" if layer["groups"] > 1 else "")
            kind = "Convolution" if layer["groups"] == 1 else "ConvolutionDepthWise"
            return kind, f"{options} {NCNN_FUSED.get(activation, '')}", activation in NCNN_FUSED
        case "add" | "multiply":
            if len(layer["from"]) > 2:
                return "Eltwise", f"0={1 if layer['op'] == 'add' else 0}", False
            return "BinaryOp", f"0={0 if layer['op'] == 'add' else 2}", False
        case "concat":
            return "Concat", "0=0", False
        case "slice":
            return "Crop", f"-23309=1,{layer['begin']} -23310=1,{layer['end']} -23311=1,0", False
        case "upsample":
            return "Interp", f"0=1 1={layer['stride']:.1f} 2={layer['stride']:.1f}", False
        case "maxpool" | "meanpool":
            down, right = layer["stride"]
            pads = f"3={layer['before']} 13={layer['before']} 14={layer['after']} 15={layer['after']}"
            return (
                "Pooling",
                f"0={int(layer['op'] != 'maxpool')} 1={layer['size']} 2={right} 12={down} {pads} 5=1",
                False,
            )
        case "avgpool":
            return "Pooling", "0=1 4=1", False
        case "reorg":
            return "Reorg", f"0={layer['stride']}", False
    return "Noop", "", False


def _ncnn_activation(name: str, source: str, output: str) -> tuple[str, list[str], str, str]:
    """A layer that is an activation."""
    kinds = {
        "leaky": ("ReLU", "0=0.1"),
        "relie": ("ReLU", "0=0.01"),
        "relu": ("ReLU", ""),
        "relu6": ("Clip", "0=0.0 1=6.0"),
        "logistic": ("Sigmoid", ""),
        "tanh": ("TanH", ""),
        "elu": ("ELU", "0=1.0"),
        "mish": ("Mish", ""),
        "swish": ("Swish", ""),
        "h_swish": ("HardSwish", "0=0.166667 1=0.5"),
    }
    kind, options = kinds[name]
    return kind, [source], output, options


RUNNERS: dict[str, Callable[[Graph, int, str], Callable[[], object]]] = {
    "pytorch": pytorch_runner,
    "onnx": onnx_runner,
    "openvino": openvino_runner,
    "ncnn": ncnn_runner,
}


def clock_of(threads: int, device: str) -> Callable[[], float]:
    """What counts the seconds: of one thread the time on the core, which other processes do not change much."""
    return time.process_time if threads == 1 and device == "cpu" else time.perf_counter


def measure(
    graphs: Mapping[str, Graph], runtime: str, threads: int = 1, device: str = "cpu"
) -> Iterator[tuple[str, float]]:
    """The milliseconds that each graph takes: the least of several passes, a few graphs in turns.

    Args:
        graphs: by name.
        runtime: one of RUNNERS.
        threads: how many the runtime uses.
        device: "cpu" or "cuda".

    Yields:
        The name of a graph, and its milliseconds.
    """
    clock, names = clock_of(threads, device), list(graphs)
    for begin in range(0, len(names), IN_TURNS):
        group = names[begin : begin + IN_TURNS]
        forwards = [RUNNERS[runtime](graphs[name], threads, device) for name in group]
        least = [float("inf")] * len(group)
        rounds = [LEAST_ROUNDS] * len(group)
        for number in range(0, MOST_ROUNDS, IN_A_ROW):
            for index, forward in enumerate(forwards):
                if number < rounds[index]:
                    for _ in range(IN_A_ROW):
                        start = clock()
                        forward()
                        least[index] = min(least[index], clock() - start)
                    if number == 0:
                        rounds[index] = max(LEAST_ROUNDS, int(min(SECONDS / max(least[index], 1e-6), MOST_ROUNDS)))
        yield from ((name, 1000 * seconds) for name, seconds in zip(group, least, strict=True))


def describe_device(device: str = "cpu") -> str:
    """The name of the processor or GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def runtime_version(runtime: str) -> str:
    """The version of a runtime's package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    module = __import__(PACKAGES[runtime])
    return str(module.__version__).partition("+")[0]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file of latencies; none where there is no file.

    Raises:
        ValueError: it is another kind of file.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))  # an interrupted run may leave half a line
    if any(set(row) != set(COLUMNS) or None in row.values() for row in rows) or (text.strip() and not rows):
        header = text.splitlines()[0]
        if header.split(",") != list(COLUMNS):
            raise ValueError(f"no table of latencies: its first line is not {','.join(COLUMNS)}")
    return rows


def measure_to_file(
    graphs: Mapping[str, Graph],
    path: Path,
    runtime: str,
    threads: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure the graphs that a CSV file does not have from this runtime, version, device and number of threads.

    Args:
        graphs: by name.
        path: the CSV file; rows are added one by one, so that nothing is lost where the run is interrupted.
        runtime, threads, device: see :func:`measure`.
        progress: called with the number of graphs that are done, and of all, after each.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        ValueError: ``path`` is another kind of file.
    """
    mark = {
        "runtime": runtime,
        "version": runtime_version(runtime),
        "threads": str(threads),
        "device": describe_device(device),
    }
    rows = [row for row in read_rows(path) if all(row[name] == value for name, value in mark.items())]
    known = {row["graph"] for row in rows}
    missing = {name: graph for name, graph in graphs.items() if name not in known}
    if not missing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    with open(partial, "w", newline="", encoding="utf-8") as file:  # without rows of other devices and half lines
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for number, (name, ms) in enumerate(measure(missing, runtime, threads, device), start=1):
            writer.writerow({"graph": name, "ms": f"{ms:.6g}", **mark})
            file.flush()
            progress(number, len(missing))


def print_progress(began: float) -> Callable[[int, int], None]:
    """A progress line with the time that is left, for :func:`measure_to_file`."""

    def show(done: int, total: int) -> None:
        left = (time.perf_counter() - began) / done * (total - done)
        print(f"\r{done} of {total} graphs, {left / 60:.1f} minutes left ", end="", flush=True)

    return show


def main() -> int:
    """Measure the graphs of graphs.json; the exit status."""
    folder = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Times the graphs of graphs.json, and writes latency.csv.")
    parser.add_argument("--runtime", choices=RUNNERS, required=True)
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime; default: 1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--graphs", type=Path, default=folder / "graphs.json", help="default: graphs.json beside this")
    parser.add_argument("--output", type=Path, default=Path("latency.csv"), help="default: latency.csv")
    args = parser.parse_args()
    try:
        graphs = json.loads(args.graphs.read_text(encoding="utf-8"))
        began = print_progress(time.perf_counter())
        measure_to_file(graphs, args.output, args.runtime, args.threads, args.device, began)
    except ModuleNotFoundError:
        print(f"{args.runtime} is not installed: pip install {PACKAGES[args.runtime]}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{args.output}: for --latency_table")
    return 0
