"""The networks that create_cfg.py writes, as sections of a cfg: YOLOv3, YOLOv3-SPP and YOLOv3-tiny of any width."""

from config.anchors import DARKNET_ANCHORS, Anchor, format_anchors, parse_anchors, scale_anchors
from utils.errors import InputError
from utils.sizes import AnySize, Size

Section = dict[str, str]

DARKNET53_STAGES = [
    (64, 1),
    (128, 2),
    (256, 8),
    (512, 8),
    (1024, 4),
]  # (filters, residual blocks); each stage halves the size

LARGEST_STRIDE = 32


def convolutional(filters: int, size: int, stride: int = 1) -> Section:
    """A convolution with BatchNorm and leaky ReLU; its padding keeps the size of the feature map at stride 1."""
    return {
        "type": "convolutional",
        "batch_normalize": "1",
        "filters": str(filters),
        "size": str(size),
        "stride": str(stride),
        "pad": "1",
        "activation": "leaky",
    }


def maxpool(size: int, stride: int) -> Section:
    """A max pooling; at stride 1 it keeps the size of the feature map."""
    return {"type": "maxpool", "size": str(size), "stride": str(stride)}


def shortcut() -> Section:
    """A shortcut that ends a residual block: it adds the output of the layer before the block's two convolutions."""
    return {"type": "shortcut", "from": "-3", "activation": "linear"}


def route(*layers: int) -> Section:
    """A route that concatenates layers: negative numbers are relative to it, others are Darknet's layer numbers."""
    return {"type": "route", "layers": ",".join(map(str, layers))}


def upsample() -> Section:
    """An upsampling that doubles the size of the feature map."""
    return {"type": "upsample", "stride": "2"}


def detection(mask: tuple[int, ...], anchors: list[Anchor], classes: int) -> list[Section]:
    """A head: a linear convolution with box, objectness and classes for each anchor of ``mask``, and its [yolo]."""
    head = convolutional(len(mask) * (5 + classes), 1) | {"activation": "linear"}
    del head["batch_normalize"]
    yolo = {
        "type": "yolo",
        "mask": ",".join(map(str, mask)),
        "anchors": format_anchors(anchors),
        "classes": str(classes),
        "num": str(len(anchors)),
        "jitter": ".3",
        "ignore_thresh": ".7",
        "truth_thresh": "1",
        "random": "1",
    }
    return [head, yolo]


def darknet53() -> tuple[list[Section], list[int]]:
    """The backbone of YOLOv3, and the number of the last layer of each of its five stages."""
    layers, ends = [convolutional(32, 3)], []
    for filters, residual_blocks in DARKNET53_STAGES:
        layers.append(convolutional(filters, 3, stride=2))
        for _ in range(residual_blocks):
            layers += [convolutional(filters // 2, 1), convolutional(filters, 3), shortcut()]
        ends.append(len(layers) - 1)
    return layers, ends


def bottlenecks(filters: int, count: int) -> list[Section]:
    """``count`` pairs of a 1x1 convolution with ``filters`` filters and a 3x3 convolution with twice as many."""
    return [convolutional(filters, 1), convolutional(2 * filters, 3)] * count


def pyramid_step(filters: int, source: int) -> list[Section]:
    """From a head to the next finer one: the map before its last 3x3, upsampled, concatenated with layer ``source``."""
    return [route(-4), convolutional(filters, 1), upsample(), route(-1, source)]


def spatial_pyramid(filters: int) -> list[Section]:
    """Spatial pyramid pooling: a 1x1 convolution, concatenated with its output pooled over 5, 9 and 13 pixels."""
    pools = [maxpool(5, 1), route(-2), maxpool(9, 1), route(-4), maxpool(13, 1), route(-1, -3, -5, -6)]
    return [convolutional(filters, 1), *pools]


def yolov3(anchors: list[Anchor], classes: int) -> list[Section]:
    """The layers of YOLOv3: Darknet-53 and three heads, at strides 32, 16 and 8."""
    backbone, ends = darknet53()
    return backbone + bottlenecks(512, 3) + yolov3_heads(ends, anchors, classes)


def yolov3_spp(anchors: list[Anchor], classes: int) -> list[Section]:
    """The layers of YOLOv3-SPP: YOLOv3 with spatial pyramid pooling before its first head."""
    backbone, ends = darknet53()
    neck = bottlenecks(512, 1) + spatial_pyramid(512) + bottlenecks(512, 2)
    return backbone + neck + yolov3_heads(ends, anchors, classes)


def yolov3_heads(stage_ends: list[int], anchors: list[Anchor], classes: int) -> list[Section]:
    """The three heads of YOLOv3, the largest anchors first, and the layers between them."""
    stride8, stride16 = stage_ends[2:4]
    return [
        *detection((6, 7, 8), anchors, classes),
        *pyramid_step(256, stride16),
        *bottlenecks(256, 3),
        *detection((3, 4, 5), anchors, classes),
        *pyramid_step(128, stride8),
        *bottlenecks(128, 3),
        *detection((0, 1, 2), anchors, classes),
    ]


def yolov3_tiny(anchors: list[Anchor], classes: int) -> list[Section]:
    """The layers of YOLOv3-tiny: seven convolutions with pooling between them and two heads, at strides 32 and 16."""
    backbone = []
    for filters in (16, 32, 64, 128, 256):
        backbone += [convolutional(filters, 3), maxpool(2, 2)]
    stride16 = len(backbone) - 2  # the last convolution, before it is pooled
    return [
        *backbone,
        *[convolutional(512, 3), maxpool(2, 1), convolutional(1024, 3)],
        *bottlenecks(256, 1),
        *detection((3, 4, 5), anchors, classes),
        *pyramid_step(128, stride16),
        convolutional(256, 3),
        *detection((0, 1, 2), anchors, classes),
    ]


BASES = {"v3": (yolov3, 9), "v3-spp": (yolov3_spp, 9), "v3-tiny": (yolov3_tiny, 6)}  # builder, number of anchors


def net(img_size: AnySize, classes: int) -> Section:
    """The [net] section for an input of ``img_size``, with Darknet's values for training."""
    height, width = Size.of(img_size)
    batches = max(6000, 2000 * classes)  # as Darknet advises; the learning rate falls after 80 % and 90 % of them
    return {
        "type": "net",
        "batch": "64",
        "subdivisions": "16",
        "width": str(width),
        "height": str(height),
        "channels": "3",
        "letter_box": "1",  # this project letterboxes; Darknet stretches images without this key
        "momentum": "0.9",
        "decay": "0.0005",
        "angle": "0",
        "saturation": "1.5",
        "exposure": "1.5",
        "hue": ".1",
        "learning_rate": "0.001",
        "burn_in": "1000",
        "max_batches": str(batches),
        "policy": "steps",
        "steps": f"{batches * 8 // 10},{batches * 9 // 10}",
        "scales": ".1,.1",
    }


def scale_width(layers: list[Section], width: float) -> list[Section]:
    """Multiply the filters of all layers but the heads by ``width``, rounded to multiples of 8 and at least 8.

    Layers with equal numbers of filters keep equal numbers, so shortcuts still add layers of the same width.
    """

    def scale(layer: Section) -> Section:
        if "batch_normalize" not in layer:
            return layer
        return layer | {"filters": str(max(8, round(int(layer["filters"]) * width / 8) * 8))}

    return [scale(layer) for layer in layers]


def create_cfg(
    base: str, classes: int, img_size: AnySize, width: float = 1.0, anchors: str | None = None
) -> list[Section]:
    """The sections of a network's cfg, [net] first.

    Args:
        base: a key of ``BASES``.
        classes: number of classes.
        img_size: of the input.
        width: factor on the filters of all layers but the heads.
        anchors: the text of ``--anchors``; None scales Darknet's anchors to the longer side of ``img_size``.

    Raises:
        InputError: a side of ``img_size`` is not a multiple of 32, or the anchors do not fit ``base``.
    """
    size = Size.of(img_size)
    if size != (nearest := size.rounded(LARGEST_STRIDE)):
        raise InputError(f"--img_size {size} is not a multiple of {LARGEST_STRIDE}; the nearest is {nearest}")
    layers, count = BASES[base]
    pairs = scale_anchors(DARKNET_ANCHORS[count], max(size)) if anchors is None else parse_anchors(anchors, count)
    return [net(img_size, classes), *scale_width(layers(pairs, classes), width)]
