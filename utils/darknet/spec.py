"""What a cfg says: its sections, its layers, and their output shapes at any input size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from utils.darknet.cfg import Block
from utils.darknet.layers import (
    IMAGE,
    Activation,
    AvgPool,
    Convolution,
    Deconvolution,
    Dropout,
    Empty,
    Layer,
    Upsample,
    Yolo,
)
from utils.darknet.parse import Context, check_type, parse_layer
from utils.darknet.section import CfgSection, SizeError, place
from utils.errors import InputError
from utils.sizes import AnySize, Size

FITTING_MULTIPLE = 128  # pixels; input sides that are multiples of it suit networks with strides of up to 128
LARGEST_KERNELS = 2**30  # weights in all kernels, 4 GiB; a cfg that asks for more is a mistake


@dataclass(frozen=True)
class NetworkSpec:
    """What a cfg says, at one input size.

    Attributes:
        blocks: the cfg's sections, ``[net]`` first.
        channels: the channels of the input: 3 for RGB, 1 for grey.
        height, width: the input size in pixels that the layers' output shapes are for.
        layers: the layers in order; their indices are Darknet's layer numbers.
    """

    blocks: Sequence[Block]
    channels: int
    height: int
    width: int
    layers: tuple[Layer, ...]
    _at: dict[Size, "NetworkSpec"] = field(default_factory=dict, repr=False, compare=False)

    @property
    def cfg_size(self) -> Size:
        """The input size that the cfg asks for, at which its layers may not fit together."""
        return Size(int(self.blocks[0]["height"]), int(self.blocks[0]["width"]))

    def section(self, index: int) -> Block:
        """The cfg section of layer ``index``."""
        return self.blocks[1 + index]

    def at(self, img_size: AnySize) -> "NetworkSpec":
        """The same network for inputs of ``img_size``; each size is parsed once.

        Raises:
            InputError: a layer's output would be empty at this size, or a layer's sources differ in size.
        """
        size = Size.of(img_size)
        if size == (self.height, self.width):
            return self
        if size not in self._at:
            self._at[size] = parse_network(self.blocks, size)
        return self._at[size]

    @property
    def convolutions(self) -> list[Convolution]:
        """The convolutions in order."""
        return [layer for layer in self.layers if isinstance(layer, Convolution)]

    @property
    def heads(self) -> list[Yolo]:
        """The detection heads in order."""
        return [layer for layer in self.layers if isinstance(layer, Yolo)]

    @property
    def head_convolutions(self) -> dict[int, Yolo]:
        """The convolutions that the heads read, by layer number, and their heads."""
        last = {}
        for head in self.heads:
            source = head.sources[0]
            while source != IMAGE and isinstance(self.layers[source], Activation | Dropout | Empty):
                source = self.layers[source].sources[0]
            if source != IMAGE and isinstance(self.layers[source], Convolution):
                last[source] = head
        return last

    @property
    def parameters(self) -> int:
        """Kernels, biases, gammas and betas; running statistics are not parameters."""
        return sum(layer.kernel_weights + layer.channels * layer.values_per_channel for layer in self.convolutions)

    @property
    def macs(self) -> int:
        """MACs (multiply-accumulate operations) of the convolutions for one image."""
        return sum(layer.macs for layer in self.convolutions)

    @cached_property
    def stride(self) -> Size:
        """Input pixels of which the input's height and width must be multiples: of all feature maps' cells."""
        # Layers behind global average pooling are not here; they say nothing about the stride.
        cells = {IMAGE: (Fraction(1), Fraction(1))}
        for layer in self.layers:
            source = next((source for source in layer.sources if source in cells), None)
            if source is not None and not isinstance(layer, AvgPool):
                rows, columns = _stride(layer)
                cells[layer.index] = cells[source][0] * rows, cells[source][1] * columns
        return Size(*(math.lcm(*(cell.numerator for cell in axis)) for axis in zip(*cells.values(), strict=True)))

    @property
    def consumers(self) -> dict[int, list[Layer]]:
        """For each layer number (and ``IMAGE``) the layers that read its output."""
        readers: dict[int, list[Layer]] = {index: [] for index in range(IMAGE, len(self.layers))}
        for layer in self.layers:
            for source in dict.fromkeys(layer.sources):
                readers[source].append(layer)
        return readers


def _stride(layer: Layer) -> tuple[Fraction, Fraction]:
    """Cells of a layer's source per cell of its output, (y, x)."""
    stride = getattr(layer, "stride", 1)
    rows, columns = map(Fraction, stride if isinstance(stride, tuple) else (stride, stride))
    return (1 / rows, 1 / columns) if isinstance(layer, Deconvolution | Upsample) else (rows, columns)


def parse_network(blocks: Sequence[Block], img_size: AnySize | None = None) -> NetworkSpec:
    """Parse a cfg's sections.

    Args:
        blocks: the sections, ``[net]`` first.
        img_size: the input size. None is the cfg's own, or where the layers do not fit together at that, the next
            larger one that suits them: the network can then be built, and run at another size.

    Raises:
        InputError: a layer type that is not supported, a section that :func:`utils.darknet.parse.parse_layer` refuses,
            kernels with more than LARGEST_KERNELS weights, no ``[yolo]`` layer, or heads with different ``classes``;
            the message names file, line and layer.
    """
    if not blocks or blocks[0].get("type") != "net":
        raise InputError("the first section of a cfg must be [net]")
    net = CfgSection(blocks[0], place(blocks[0]))
    height, width = net.integer("height", low=1), net.integer("width", low=1)
    channels = net.integer("channels", 3)
    if channels not in (1, 3):
        net.fail(f"channels={channels}: images are RGB or grey, so channels must be 3 or 1")
    net.check_unread()
    for index, block in enumerate(blocks[1:]):
        check_type(CfgSection(block, place(block, index)))
    if img_size is not None:
        height, width = Size.of(img_size)
        return _parse_at(blocks, channels, height, width)
    try:
        return _parse_at(blocks, channels, height, width)
    except SizeError as error:
        fitting = (math.ceil(side / FITTING_MULTIPLE) * FITTING_MULTIPLE for side in (height, width))
        try:
            return _parse_at(blocks, channels, *fitting)
        except InputError:
            raise error from None


def _parse_at(blocks: Sequence[Block], channels: int, height: int, width: int) -> NetworkSpec:
    """The network at one input size."""
    net = place(blocks[0])
    image = Empty(index=IMAGE, where=net, sources=(), channels=channels, height=height, width=width)
    layers: list[Layer] = []
    kernels = 0
    for index, block in enumerate(blocks[1:]):
        section = CfgSection(block, place(block, index))
        layer = parse_layer(section, Context(index, section, layers, image))
        if isinstance(layer, Convolution) and (kernels := kernels + layer.kernel_weights) > LARGEST_KERNELS:
            section.fail(f"the kernels up to here would have {kernels:.2g} weights, more than {LARGEST_KERNELS:.2g}")
        layers.append(layer)
    spec = NetworkSpec(blocks, channels, height, width, tuple(layers))
    if not spec.heads:
        raise InputError(f"{net}: the cfg has no [yolo] layer, so the network cannot detect anything")
    first = spec.heads[0]
    if other := next((head for head in spec.heads if head.classes != first.classes), None):
        raise InputError(
            f"{other.where}: classes={other.classes}, but {first.where} has classes={first.classes}: all heads need "
            "the same"
        )
    return spec
