"""From a section of a cfg to a layer: keys and their defaults, absolute sources, and checked output shapes.

Keys, defaults and shapes are those of AlexeyAB's Darknet (github.com/AlexeyAB/darknet, src/parser.c and src/*_layer.c),
those of ``[deconvolutional]``, which it lacks, of the original (github.com/pjreddie/darknet).
"""

import math
from collections.abc import Callable, Sequence

from utils.darknet.layers import (
    Activation,
    AvgPool,
    Convolution,
    Deconvolution,
    Dropout,
    Empty,
    Layer,
    LocalAvgPool,
    MaxPool,
    Reorg,
    Reorg3d,
    Route,
    Sam,
    ScaleChannels,
    Shortcut,
    Upsample,
    Yolo,
)
from utils.darknet.section import LARGEST_SIDE, CfgSection, SizeError
from utils.notices import notice

LARGEST_FILTERS = 65_536
MISSING_SIDE = 0.5  # of an anchor; Darknet's value before it reads the anchors
LARGEST_OUTPUT = 2**31  # values in the output of a layer, 8 GiB; a cfg that asks for more is a mistake

# What the layer types that are not supported are for.
OTHER_NETWORKS = {
    **dict.fromkeys(("connected", "softmax", "cost", "crop"), "classifiers"),
    **dict.fromkeys(("rnn", "crnn", "gru", "lstm", "conv_lstm", "history"), "networks over time"),
    "region": "YOLOv2",
    "detection": "YOLOv1",
    "Gaussian_yolo": "Gaussian YOLOv3",
    "contrastive": "training on pairs of images",
}


def check_type(section: CfgSection) -> None:
    """Raise an InputError for a section whose layer type is not supported."""
    if section.type not in BUILDERS:
        purpose = OTHER_NETWORKS.get(section.type)
        reason = f"for {purpose} and not" if purpose else "not"
        hint = section.nearest(section.type.lower(), set(BUILDERS))
        section.fail(f"this layer type is {reason} supported; supported are {', '.join(BUILDERS)}{hint}")


def parse_layer(section: CfgSection, context: "Context") -> Layer:
    """The layer of one section, whose type must be one of BUILDERS.

    Raises:
        InputError: an unknown activation, an option that is not supported, a missing or impossible value, a source out
            of range, or shapes that do not fit; the message names file, line and layer.
        SizeError: the same, where another input size may fit.
    """
    layer = BUILDERS[section.type](section, context)
    section.check_unread()
    if layer.height < 1 or layer.width < 1:
        section.fail(
            f"nothing is left of a {context.image.width}x{context.image.height} image here: its output would be empty"
        )
    if (numbers := layer.channels * layer.height * layer.width) > LARGEST_OUTPUT:
        section.fail(f"its output of {layer.channels}x{layer.height}x{layer.width} would be {numbers:.2g} numbers")
    return layer


class Context:
    """The network up to a layer, as the parser of that layer sees it.

    Args:
        index: the number of the layer to parse.
        section: its section, for messages.
        layers: the layers before it.
        image: the input image, which layer 0 reads.
    """

    def __init__(self, index: int, section: CfgSection, layers: list[Layer], image: Layer):
        self.index = index
        self._section = section
        self._layers = layers
        self.image = image

    @property
    def previous(self) -> Layer:
        """The layer before this one, or the image."""
        return self._readable(self._layers[-1] if self._layers else self.image)

    def layer(self, number: int) -> Layer:
        """The layer that ``from=`` or ``layers=`` names; a negative ``number`` is relative to this layer."""
        absolute = number + self.index if number < 0 else number
        if not 0 <= absolute < self.index:
            self._section.fail(
                f"refers to layer {number}, which is not among the layers 0 to {self.index - 1} before it"
            )
        return self._readable(self._layers[absolute])

    def shape(self, sources: Sequence[Layer], channels: int, height: int, width: int) -> dict:
        """The fields of :class:`utils.darknet.layers.Layer`."""
        numbers = tuple(source.index for source in sources)
        size = {"channels": channels, "height": height, "width": width}
        return {"index": self.index, "where": self._section.where, "sources": numbers, **size}

    def like(self, source: Layer, *others: Layer) -> dict:
        """The same for a layer whose output has the shape of ``source``, its first source."""
        return self.shape((source, *others), source.channels, source.height, source.width)

    def _readable(self, layer: Layer) -> Layer:
        if isinstance(layer, Yolo):
            self._section.fail(f"reads layer {layer.index}, a [yolo] layer, whose output is detections")
        return layer


def _same_size(section: CfgSection, layers: Sequence[Layer]) -> None:
    if len({(layer.height, layer.width) for layer in layers}) > 1:
        sizes = ", ".join(f"layer {layer.index} gives {layer.width}x{layer.height}" for layer in layers)
        section.fail(f"its inputs must have one size, but {sizes}", SizeError)


def _stride(section: CfgSection, default: int) -> tuple[int, int]:
    stride = section.integer("stride", default, low=1)
    return section.integer("stride_y", stride, low=1), section.integer("stride_x", stride, low=1)


def _convolution(section: CfgSection, context: Context) -> Convolution:
    source = context.previous
    filters = section.integer("filters", low=1, high=LARGEST_FILTERS)
    size = section.integer("size", low=1, high=99)
    stride = _stride(section, 1)
    dilation = section.integer("dilation", 1, low=1)
    if size == 1:
        dilation = 1
    padding = section.integer("padding", 0)
    if section.flag("pad"):
        padding = size // 2
    if dilation > 1 and padding != size // 2:
        section.fail(f"dilation={dilation} is only supported with pad=1")
    groups = section.integer("groups", 1, low=1, high=LARGEST_FILTERS)
    if source.channels % groups or filters % groups:
        section.fail(f"groups={groups} must divide the {source.channels} input channels and the {filters} filters")
    batch_normalize, cross_iteration = section.flag("batch_normalize"), section.flag("cbn")  # cbn=1 implies the other
    reach = dilation * (size - 1) + 1
    height, width = (
        (side + 2 * padding * dilation - reach) // step + 1
        for side, step in zip((source.height, source.width), stride, strict=True)
    )
    return Convolution(
        **context.shape([source], filters, height, width),
        inputs=source.channels,
        size=size,
        stride=stride,
        padding=padding * dilation,
        dilation=dilation,
        groups=groups,
        batch_normalize=batch_normalize or cross_iteration,
        activation=section.activation("logistic"),
    )


def _deconvolution(section: CfgSection, context: Context) -> Deconvolution:
    source = context.previous
    filters = section.integer("filters", low=1, high=LARGEST_FILTERS)
    size = section.integer("size", low=1, high=99)
    stride = section.integer("stride", 1, low=1)
    padding = section.integer("padding", 0)
    if section.flag("pad"):
        padding = size // 2
    height, width = ((side - 1) * stride + size - 2 * padding for side in (source.height, source.width))
    return Deconvolution(
        **context.shape([source], filters, height, width),
        inputs=source.channels,
        size=size,
        stride=(stride, stride),
        padding=padding,
        dilation=1,
        groups=1,
        batch_normalize=section.flag("batch_normalize"),
        activation=section.activation("logistic"),
        positions=source.height * source.width,
    )


def _local_avgpool(section: CfgSection, context: Context) -> LocalAvgPool:
    return LocalAvgPool(**_windows(section, context))


def _maxpool(section: CfgSection, context: Context) -> MaxPool:
    return MaxPool(**_windows(section, context))


def _windows(section: CfgSection, context: Context) -> dict:
    source = context.previous
    stride = _stride(section, 1)
    size = section.integer("size", stride[0], low=1)
    padding = section.integer("padding", size - 1)
    if padding > 2 * (size - 1):
        section.fail(f"padding={padding} leaves windows without a pixel at size={size}")
    height, width = (
        (side + padding - size) // step + 1 for side, step in zip((source.height, source.width), stride, strict=True)
    )
    shape = context.shape([source], source.channels, height, width)
    return {**shape, "size": size, "stride": stride, "padding": padding}


def _avgpool(section: CfgSection, context: Context) -> AvgPool:
    return AvgPool(**context.shape([context.previous], context.previous.channels, 1, 1))


def _upsample(section: CfgSection, context: Context) -> Upsample:
    source, stride = context.previous, section.integer("stride", 2, low=1)
    shape = context.shape([source], source.channels, source.height * stride, source.width * stride)
    return Upsample(**shape, stride=stride, scale=section.number("scale", 1.0))


def _route(section: CfgSection, context: Context) -> Route:
    sources = [context.layer(number) for number in section.numbers("layers")]
    groups = section.integer("groups", 1, low=1)
    group_id = section.integer("group_id", 0, high=groups - 1)
    _same_size(section, sources)
    for source in sources:
        if source.channels % groups:
            section.fail(f"groups={groups} does not divide the {source.channels} channels of layer {source.index}")
    channels = sum(source.channels // groups for source in sources)
    shape = context.shape(sources, channels, sources[0].height, sources[0].width)
    return Route(**shape, groups=groups, group_id=group_id)


def _shortcut(section: CfgSection, context: Context) -> Shortcut:
    sources = [context.previous] + [context.layer(number) for number in section.numbers("from")]
    _same_size(section, sources)
    for key in ("weights_type", "weights_normalization"):
        if (value := section.text(key, "none")) != "none":
            section.fail(f"{key}={value} is not supported")
    return Shortcut(**context.like(*sources), activation=section.activation("linear"))


def _scale_channels(section: CfgSection, context: Context) -> ScaleChannels:
    gate, gated = context.previous, context.layer(section.integer("from", low=-LARGEST_SIDE))
    if (gate.height, gate.width) != (1, 1) or gate.channels != gated.channels:
        section.fail(
            f"the gate, layer {gate.index}, gives {gate.channels}x{gate.height}x{gate.width}, "
            f"but layer {gated.index} needs {gated.channels}x1x1"
        )
    shape = context.shape([gate, gated], gated.channels, gated.height, gated.width)
    return ScaleChannels(**shape, activation=section.activation("linear"))


def _sam(section: CfgSection, context: Context) -> Sam:
    gate, gated = context.previous, context.layer(section.integer("from", low=-LARGEST_SIDE))
    _same_size(section, [gate, gated])
    if gate.channels != gated.channels:
        section.fail(f"layers {gate.index} and {gated.index} have {gate.channels} and {gated.channels} channels")
    return Sam(**context.like(gate, gated), activation=section.activation("linear"))


def _activation(section: CfgSection, context: Context) -> Activation:
    return Activation(**context.like(context.previous), activation=section.activation("linear"))


def _dropout(section: CfgSection, context: Context) -> Dropout:
    probability = section.number("probability", 0.2)
    if not 0 <= probability < 1:
        section.fail(f"probability={probability} must be in [0, 1)")
    return Dropout(**context.like(context.previous), probability=probability)


def _reorg_shape(section: CfgSection, context: Context) -> tuple[dict, int]:
    source, stride = context.previous, section.integer("stride", 1, low=1)
    if source.height % stride or source.width % stride:
        section.fail(f"stride={stride} does not divide the {source.width}x{source.height} input", SizeError)
    shape = context.shape([source], source.channels * stride**2, source.height // stride, source.width // stride)
    return shape, stride


def _reorg(section: CfgSection, context: Context) -> Reorg:
    shape, stride = _reorg_shape(section, context)
    if context.previous.channels % stride**2:
        section.fail(f"stride={stride}: its square does not divide the {context.previous.channels} input channels")
    return Reorg(**shape, stride=stride)


def _reorg3d(section: CfgSection, context: Context) -> Reorg3d:
    shape, stride = _reorg_shape(section, context)
    return Reorg3d(**shape, stride=stride)


def _empty(section: CfgSection, context: Context) -> Empty:
    return Empty(**context.like(context.previous))


def _anchors(section: CfgSection) -> tuple[tuple[int, ...], list[tuple[float, float]]]:
    """The mask of a head, and the anchors that its numbers name; Darknet reads ``num`` only where there is no mask."""
    total = section.integer("num", 1, low=1)
    mask = section.numbers("mask", default=tuple(range(total)))
    flat = section.numbers("anchors", float)
    if min(flat) <= 0 or not all(map(math.isfinite, flat)):
        section.fail("anchors= needs pairs of positive numbers")
    if len(flat) % 2:
        notice(
            f"warning: {section.where}: anchors= has {len(flat)} numbers, and the last anchor no height: it gets "
            f"{MISSING_SIDE}, as in Darknet; is a comma missing?",
            key=f"[yolo] anchors={flat}",
        )
        flat += (MISSING_SIDE,)
    anchors = list(zip(flat[::2], flat[1::2], strict=True))
    if missing := [number for number in mask if not 0 <= number < len(anchors)]:
        section.fail(f"mask= names anchor {missing[0]}, but anchors= has only those from 0 to {len(anchors) - 1}")
    if max(mask) >= total:
        notice(
            f"warning: {section.where}: num={total}, but mask= names anchor {max(mask)} of {len(anchors)} in anchors=: "
            f"it is used, although Darknet itself needs num={len(anchors)}",
            key=f"[yolo] num={total}",
        )
    return mask, anchors


def _yolo(section: CfgSection, context: Context) -> Yolo:
    source = context.previous
    classes = section.integer("classes", 20, low=1)
    mask, anchors = _anchors(section)
    if source.channels != len(mask) * (5 + classes):
        section.fail(
            f"reads {source.channels} channels from layer {source.index}, but {len(mask)} anchors and {classes} "
            f"classes need filters={len(mask) * (5 + classes)} there"
        )
    scale_x_y = section.number("scale_x_y", 1.0)
    if scale_x_y < 1:
        section.fail(f"scale_x_y={scale_x_y} must be at least 1")
    return Yolo(
        **context.like(source),
        anchors=tuple(anchors[number] for number in mask),
        classes=classes,
        scale_x_y=scale_x_y,
        new_coords=section.flag("new_coords"),
    )


BUILDERS: dict[str, Callable[[CfgSection, Context], Layer]] = {
    "convolutional": _convolution,
    "deconvolutional": _deconvolution,
    "maxpool": _maxpool,
    "local_avgpool": _local_avgpool,
    "avgpool": _avgpool,
    "upsample": _upsample,
    "route": _route,
    "shortcut": _shortcut,
    "scale_channels": _scale_channels,
    "sam": _sam,
    "activation": _activation,
    "dropout": _dropout,
    "reorg": _reorg,
    "reorg3d": _reorg3d,
    "empty": _empty,
    "yolo": _yolo,
}
