"""What a cfg says: its sections, its layers, and their output shapes at any input size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.darknet.cfg import Block
from utils.darknet.layers import IMAGE, AvgPool, Convolution, Empty, Layer, Yolo
from utils.darknet.parse import Context, Options, parse_layer, place
from utils.errors import InputError

LARGEST_KERNELS = 2**30  # weights in all kernels, 4 GiB; a cfg that asks for more is a mistake


@dataclass(frozen=True)
class NetworkSpec:
    """What a cfg says, at one input size.

    Attributes:
        blocks: the cfg's sections, ``[net]`` first.
        height, width: the input size in pixels that the layers' output shapes are for.
        layers: the layers in order; their indices are Darknet's layer numbers.
    """

    blocks: Sequence[Block]
    height: int
    width: int
    layers: tuple[Layer, ...]
    _at: dict[int, "NetworkSpec"] = field(default_factory=dict, repr=False, compare=False)

    def section(self, index: int) -> Block:
        """The cfg section of layer ``index``."""
        return self.blocks[1 + index]

    def at(self, img_size: int) -> "NetworkSpec":
        """The same network for inputs of ``img_size`` x ``img_size`` pixels; each size is parsed once.

        Raises:
            InputError: a layer's output would be empty at this size, or a layer's sources differ in size.
        """
        if (img_size, img_size) == (self.height, self.width):
            return self
        if img_size not in self._at:
            self._at[img_size] = parse_network(self.blocks, img_size)
        return self._at[img_size]

    @property
    def convolutions(self) -> list[Convolution]:
        """The convolutions in order."""
        return [layer for layer in self.layers if isinstance(layer, Convolution)]

    @property
    def heads(self) -> list[Yolo]:
        """The detection heads in order."""
        return [layer for layer in self.layers if isinstance(layer, Yolo)]

    @property
    def parameters(self) -> int:
        """Kernels, biases, gammas and betas; running statistics are not parameters."""
        return sum(layer.parameters + layer.channels * (1 + layer.batch_normalize) for layer in self.convolutions)

    @property
    def macs(self) -> int:
        """MACs (multiply-accumulate operations) of the convolutions for one image."""
        return sum(layer.macs for layer in self.convolutions)

    @property
    def stride(self) -> int:
        """Input pixels per cell of the coarsest feature map; the input's sides must be multiples of it."""
        pooled: set[int] = set()  # layers behind global average pooling, which say nothing about the stride
        strides = [1]
        for layer in self.layers:
            if isinstance(layer, AvgPool) or all(source in pooled for source in layer.sources):
                pooled.add(layer.index)
            else:
                strides.append(2 ** round(math.log2(self.height / layer.height)))
        return max(strides)

    @property
    def consumers(self) -> dict[int, list[Layer]]:
        """For each layer number (and ``IMAGE``) the layers that read its output."""
        readers: dict[int, list[Layer]] = {index: [] for index in range(IMAGE, len(self.layers))}
        for layer in self.layers:
            for source in dict.fromkeys(layer.sources):
                readers[source].append(layer)
        return readers


def parse_network(blocks: Sequence[Block], img_size: int | None = None) -> NetworkSpec:
    """Parse a cfg's sections at its own input size, or at ``img_size`` x ``img_size`` pixels.

    Raises:
        InputError: a section that :func:`utils.darknet.parse.parse_layer` refuses, kernels with more than
            LARGEST_KERNELS weights, or no ``[yolo]`` layer; the message names file, line and layer.
    """
    if not blocks or blocks[0].get("type") != "net":
        raise InputError("the first section of a cfg must be [net]")
    net = Options(blocks[0], place(blocks[0]))
    height, width = net.integer("height", low=1), net.integer("width", low=1)
    if img_size:
        height = width = img_size
    channels = net.integer("channels", 3)
    if channels != 3:
        net.fail(f"channels={channels}: images are RGB, so channels must be 3")
    net.refuse_unknown()
    image = Empty(index=IMAGE, where=net.where, sources=(), channels=channels, height=height, width=width)

    layers: list[Layer] = []
    kernels = 0
    for index, block in enumerate(blocks[1:]):
        options = Options(block, place(block, index))
        layer = parse_layer(options, Context(index, options, layers, image))
        if isinstance(layer, Convolution) and (kernels := kernels + layer.parameters) > LARGEST_KERNELS:
            options.fail(f"the kernels up to here would have {kernels:.2g} weights, more than {LARGEST_KERNELS:.2g}")
        layers.append(layer)
    spec = NetworkSpec(blocks, height, width, tuple(layers))
    if not spec.heads:
        raise InputError(f"{net.where}: the cfg has no [yolo] layer, so the network cannot detect anything")
    return spec
