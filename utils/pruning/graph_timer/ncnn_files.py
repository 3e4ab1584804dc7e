"""A graph as the two files of NCNN: a text of layers, and their weights in the order of the text."""

import struct
from typing import Any

from .graph import Graph, bias_of, kernel_of, sources

# How a convolution of NCNN takes its activation in (ncnn/docs, operators.md, activation_type).
NCNN_FUSED = {
    "relu": "9=1",
    "leaky": "9=2 -23310=1,0.1",
    "relie": "9=2 -23310=1,0.01",
    "relu6": "9=3 -23310=2,0.0,6.0",
    "logistic": "9=4",
    "mish": "9=5",
}


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
