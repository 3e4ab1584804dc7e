"""8-bit integers instead of floats, by ONNX Runtime's static quantization."""

import collections
import itertools
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import Darknet
from utils.darknet.spec import NetworkSpec
from utils.detection.fusing import fuse
from utils.errors import InputError
from utils.export.onnx import describe
from utils.kept_rows import KeptRows
from utils.optional import optional

if TYPE_CHECKING:
    from onnx import ModelProto

Built = TypeVar("Built")

# Calibration images that show which layers are sensitive.
SENSITIVITY_IMAGES = 8


class Form(NamedTuple):
    """Where a runtime needs the pairs of QuantizeLinear and DequantizeLinear, to compute in 8 bits between them.

    Attributes:
        outputs: behind a convolution, too, before its activation. ONNX Runtime has 8-bit kernels for such convolutions
            only. OpenVINO and TensorRT compute an activation together with its convolution: a pair between them costs
            accuracy and saves no time.
        half: what is not in 8 bits is in float16. TensorRT computes each layer in the type that the graph gives it.
    """

    outputs: bool
    half: bool


FORMS = {"onnxruntime": Form(True, False), "openvino": Form(False, False), "tensorrt": Form(False, True)}


class CalibrationImages:
    """A calibration set as ONNX Runtime reads it: one input of the graph after another, then None."""

    def __init__(self, batches: Iterable[Tensor]):
        self._inputs: Iterator[dict[str, np.ndarray]] = ({"images": images.numpy()} for images in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next images (B, 3, H, W) in [0, 1], under the name of the graph's input."""
        return next(self._inputs, None)


def quantize(
    proto: "ModelProto",
    spec: NetworkSpec,
    images: Iterable[Tensor],
    float_layers: Collection[int] = (),
    ranges: Path | None = None,
    outputs: bool = True,
) -> "ModelProto":
    """A graph whose convolutions compute in 8-bit integers, in ONNX's QDQ form, which other runtimes read, too.

    Kernels have a scale per output channel; feature maps have one scale, from their range over the calibration images.
    All integers are signed, all zero points are 0, and biases stay in float, as TensorRT needs it. The convolutions
    before the heads and the decoding of boxes stay in float, where a step of 1/256 would be visible.

    Args:
        proto: the graph from images to predictions, as :func:`utils.export.onnx.export_onnx` makes it.
        spec: the network's.
        images: batches of calibration images (B, 3, H, W) in [0, 1], typical of those to detect on.
        float_layers: convolutions that stay in float, by layer number.
        ranges: a file that keeps the ranges of the feature maps; where it exists, ``images`` are not read.
        outputs: the form for ONNX Runtime, see :data:`FORMS`.

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
                nodes_to_exclude=convolution_nodes(proto, {*spec.head_convolutions, *float_layers}),
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                extra_options={
                    "ActivationSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": [] if outputs else ["Conv"],
                },
                calibration_cache_path=ranges,
            )
        finally:
            logging.disable(logging.NOTSET)
        quantized = onnx.load(target)
    if outputs:
        round_for_convolutions_only(quantized)
    shorten_names(quantized)
    describe(quantized, {entry.key: entry.value for entry in proto.metadata_props})
    return quantized


def quantize_within(
    errors: dict[int, float],
    build: Callable[[Sequence[int]], Built],
    score: Callable[[Built], float],
    reference: float,
    max_drop: float,
    kept: KeptRows,
) -> Built:
    """A network in 8 bits that scores at most ``max_drop`` below that in float, with few layers in float.

    If all layers in 8 bits score less, the most sensitive ones stay in float; bisection finds how many.

    Args:
        errors: the sensitivity of each layer that can be in 8 bits, by layer number, see :func:`sensitivities`.
        build: makes the network in 8 bits whose layers of these numbers stay in float.
        score: the quality of what ``build`` makes, such as mAP@0.5.
        reference: the score in float.
        max_drop: how far below ``reference`` is still accepted.
        kept: the scores that an interrupted search has measured, by how many layers were in float; each is added, and
            all are removed at the end.

    Raises:
        InputError: no layer at all can be in 8 bits.
    """
    order = sorted(errors, key=lambda layer: errors[layer], reverse=True)
    least = reference - max_drop
    best: tuple[int, Built] | None = None  # how many layers are in float, and the network
    with tqdm(total=1 + len(order).bit_length(), desc="layers left in float", unit="try", leave=False) as bar:

        def reaches(count: int) -> bool:
            nonlocal best
            if (row := kept.get(str(count))) is None:
                built = build(sorted(order[:count]))
                row = {"score": score(built)}
                kept.keep(str(count), row)
                if row["score"] >= least:
                    best = count, built
            bar.set_postfix_str(f"{count} of {len(order)}: {row['score']:.4f}")
            bar.update()
            return row["score"] >= least

        too_few, enough = 0, 0 if reaches(0) else len(order)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            too_few, enough = (too_few, middle) if reaches(middle) else (middle, enough)
    kept.remove()
    if enough and enough == len(order):
        raise InputError(
            f"--max_map_drop {max_drop:g}: with any layer in 8 bits the score is further below {reference:.4f}: "
            "nothing was written"
        )
    reached = kept.get(str(enough))
    assert reached  # measured by now
    layers = f": layers {', '.join(map(str, sorted(order[:enough])))}" if enough else ""
    print(
        f"score {reached['score']:.4f} in 8 bits, {reference:.4f} in float; {enough} of {len(order)} layers in float"
        f"{layers}"
    )
    return best[1] if best and best[0] == enough else build(sorted(order[:enough]))


@torch.inference_mode()
def sensitivities(model: Darknet, images: Tensor) -> dict[int, float]:
    """How far the raw outputs move when one convolution alone is quantised, by layer number; see SENSITIVITY_IMAGES.

    It is the mean square of the difference over the mean square of the raw outputs, summed over the heads.

    Args:
        model: the network, in eval mode.
        images: (B, 3, H, W) in [0, 1].
    """
    fused = fuse(model)
    reference = fused.raw_outputs(images)
    heads = model.spec.head_convolutions
    errors = {}
    for layer in tqdm(model.spec.convolutions, desc="sensitivity", unit="layer", leave=False):
        if layer.index in heads:
            continue
        conv = fused.conv(layer.index)
        weight = conv.weight.clone()
        hook = conv.register_forward_pre_hook(_quantized_input)
        conv.weight.copy_(rounded(weight, weight.abs().amax(dim=(1, 2, 3), keepdim=True)))
        raw = fused.raw_outputs(images)
        hook.remove()
        conv.weight.copy_(weight)
        errors[layer.index] = sum(
            float((a - b).square().mean() / b.square().mean()) for a, b in zip(raw, reference, strict=True)
        )
    return errors


def rounded(values: Tensor, largest: Tensor) -> Tensor:
    """Values rounded to multiples of ``largest`` / 127, as 8-bit integers with that range hold them."""
    step = largest.clamp(min=torch.finfo(values.dtype).tiny * 127) / 127
    return (values / step).round() * step


def _quantized_input(conv: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(rounded(x, x.abs().amax()) for x in inputs)


def convolution_nodes(proto: "ModelProto", indices: Collection[int]) -> list[str]:
    """The names of the graph's nodes for the convolutions of these layer numbers; they contain ``conv_{layer}``."""
    marks = [f"/conv_{index}/" for index in indices]
    return [node.name for node in proto.graph.node if any(mark in node.name for mark in marks)]


def round_for_convolutions_only(proto: "ModelProto") -> None:
    """Let all nodes but convolutions read a feature map in float, where convolutions read it in 8 bits.

    ONNX Runtime turns a signed pair into an unsigned one, for which x86 processors have instructions, only where the
    pair has a single reader. Convolutions whose input a shortcut reads as well would be left without 8-bit kernels.
    Shortcuts are more accurate, too.
    """
    sources = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    origin = {
        node.output[0]: sources[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sources
    }
    made_by = {node.output[0]: node.op_type for node in proto.graph.node}
    for node in proto.graph.node:
        if node.op_type != "Conv":
            node.input[:] = [
                origin[name] if name in origin and made_by.get(origin[name]) != "Conv" else name for name in node.input
            ]


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
