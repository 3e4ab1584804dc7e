"""Darknet: the network of a cfg as a PyTorch module, for training and detection.

The layers compute what AlexeyAB's Darknet computes, also where PyTorch users would expect otherwise: maxpool pads with
minus infinity, a shortcut adds the channels that both inputs have, BatchNorm's epsilon is 1e-5. Parameters are named
``module_list.{i}.conv_{i}.weight``, ``module_list.{i}.batch_norm_{i}.weight``, ..., where ``i`` is the layer number, so
that checkpoints of older YOLOv3 ports load.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.darknet import layers
from utils.darknet.activations import ACTIVATIONS
from utils.darknet.cfg import Block, read_cfg
from utils.darknet.layers import IMAGE
from utils.darknet.spec import parse_network
from utils.darknet.weights import load_darknet_weights, save_darknet_weights

# Initial objectness of a new network, see Darknet._start_heads.
PRIOR = 0.01


def convolution(layer: layers.Convolution) -> nn.Sequential:
    """The convolution, then BatchNorm if the cfg asks for it, then the activation unless it is linear."""
    i = layer.index
    kind = nn.ConvTranspose2d if isinstance(layer, layers.Deconvolution) else nn.Conv2d
    conv = kind(
        layer.inputs,
        layer.channels,
        layer.size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=not layer.batch_normalize,
    )
    parts: list[tuple[str, nn.Module]] = [(f"conv_{i}", conv)]
    if layer.batch_normalize:
        parts.append((f"batch_norm_{i}", nn.BatchNorm2d(layer.channels)))
    if layer.activation != "linear":
        activation = ACTIVATIONS[layer.activation]()
        if hasattr(activation, "inplace"):
            setattr(activation, "inplace", True)  # noqa: B010  # nothing else reads the activation's input
        parts.append((f"{layer.activation}_{i}", activation))
    return nn.Sequential(OrderedDict(parts))


class HeadSigmoid(nn.Sigmoid):
    """The sigmoid before a head with ``new_coords``, which takes logits of it: in 16 bits these would be infinite."""

    def forward(self, x: Tensor) -> Tensor:
        """Any floating-point numbers to float32 in [0, 1]."""
        return super().forward(x if x.dtype == torch.float32 else x.float())


class MaxPool(nn.Module):
    """Darknet's maxpool: pads minus infinity, ``padding`` pixels per axis in all, the smaller half left and above."""

    def __init__(self, layer: layers.MaxPool):
        super().__init__()
        self.pad = (*layer.sides, *layer.sides)
        self.pool = nn.MaxPool2d(layer.size, layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        return self.pool(F.pad(x, self.pad, value=-math.inf) if any(self.pad) else x)


class LocalAvgPool(nn.Module):
    """Darknet's local average pooling: the mean of those pixels of a window that lie inside of the feature map."""

    def __init__(self, layer: layers.LocalAvgPool):
        super().__init__()
        self.pad = (*layer.sides, *layer.sides)
        self.pool = nn.AvgPool2d(layer.size, layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        if not any(self.pad):
            return self.pool(x)
        share_inside = self.pool(F.pad(torch.ones_like(x[:1, :1]), self.pad))
        return self.pool(F.pad(x, self.pad)) / share_inside


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by an integer factor, then multiplication by ``scale``."""

    def __init__(self, layer: layers.Upsample):
        super().__init__()
        self.stride, self.scale = layer.stride, layer.scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, stride * H, stride * W)."""
        x = F.interpolate(x, scale_factor=self.stride, mode="nearest")
        return x if self.scale == 1 else x * self.scale


class Route(nn.Module):
    """Concatenates the channels of its sources, or one slice of each."""

    def __init__(self, layer: layers.Route):
        super().__init__()
        self.groups, self.group_id = layer.groups, layer.group_id

    def forward(self, *sources: Tensor) -> Tensor:
        """Each (B, C_k, H, W), to (B, sum C_k / groups, H, W)."""
        if self.groups > 1:
            sources = tuple(source.chunk(self.groups, dim=1)[self.group_id] for source in sources)
        return sources[0] if len(sources) == 1 else torch.cat(sources, dim=1)


class Shortcut(nn.Module):
    """Adds the other sources to the first, over the channels that both have; then the activation."""

    def __init__(self, layer: layers.Shortcut):
        super().__init__()
        self.activation = ACTIVATIONS[layer.activation]()

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """(B, C, H, W) and others (B, C_k, H, W), to (B, C, H, W)."""
        for other in others:
            missing = x.shape[1] - other.shape[1]
            x = x + (other if missing == 0 else F.pad(other, (0, 0, 0, 0, 0, missing)))  # a negative pad cuts channels
        return self.activation(x)


class Gate(nn.Module):
    """[scale_channels] and [sam]: the gate times the gated feature map, then the activation."""

    def __init__(self, layer: layers.ScaleChannels | layers.Sam):
        super().__init__()
        self.activation = ACTIVATIONS[layer.activation]()

    def forward(self, gate: Tensor, gated: Tensor) -> Tensor:
        """Gate (B, C, 1, 1) or (B, C, H, W) and gated (B, C, H, W), to (B, C, H, W)."""
        return self.activation(gate * gated)


class Reorg3d(nn.Module):
    """Space to depth: output channel ``k`` is input channel ``k % C`` at offset ``k // C`` within each cell."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * stride^2, H / stride, W / stride)."""
        b, c, h, w = x.shape
        s = self.stride
        cells = x.reshape(b, c, h // s, s, w // s, s)
        return cells.permute(0, 3, 5, 1, 2, 4).reshape(b, c * s * s, h // s, w // s)


class Reorg(nn.Module):
    """YOLOv2's reorg. As Darknet does, it reads the (C, H, W) input as if its shape were (C / s^2, H * s, W * s)."""

    def __init__(self, layer: layers.Reorg):
        super().__init__()
        self.stride = layer.stride
        self.space_to_depth = Reorg3d(layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * stride^2, H / stride, W / stride)."""
        b, c, h, w = x.shape
        s = self.stride
        mixed = self.space_to_depth(x.reshape(b, c // s**2, h * s, w * s))
        return mixed.reshape(b, c * s**2, h // s, w // s)


class Yolo(nn.Module):
    """A detection head: reshapes its input to raw outputs, and decodes them to boxes and scores."""

    def __init__(self, layer: layers.Yolo):
        super().__init__()
        self.classes, self.scale_x_y, self.new_coords = layer.classes, layer.scale_x_y, layer.new_coords
        self.anchors: Tensor
        self.register_buffer("anchors", torch.tensor(layer.anchors), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, A * (5 + C), H, W) to raw outputs (B, A, H, W, 5 + C)."""
        b, _, h, w = x.shape
        return x.view(b, len(self.anchors), 5 + self.classes, h, w).permute(0, 1, 3, 4, 2)

    def boxes(self, raw: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Box centres (..., 2) relative to their cell's corner, in cells, and box sizes (..., 2) in input pixels.

        YOLOv3 (arXiv 1804.02767), section 2.1: sigmoid(x), anchor * exp(w). ``scale_x_y`` widens the range of the
        centre around the cell's middle (YOLOv4, arXiv 2004.10934, section 3.4). With ``new_coords`` the convolution
        before the head has applied the sigmoid, and the size is anchor * (2 w)^2 (Scaled-YOLOv4, arXiv 2011.08036).

        Args:
            raw: (..., 5 + C), entries of the raw outputs.
            anchors: (..., 2), the anchor (width, height) of each entry, in input pixels.
        """
        xy, wh = raw[..., 0:2], raw[..., 2:4]
        if not self.new_coords:
            xy = xy.sigmoid()
        centre = xy * self.scale_x_y - (self.scale_x_y - 1) / 2
        size = (2 * wh) ** 2 if self.new_coords else wh.exp()
        return centre, size * anchors

    def logits(self, raw: Tensor) -> Tensor:
        """Logits (..., 1 + C) of objectness and classes; with ``new_coords`` the raw outputs are their sigmoids."""
        return torch.logit(raw[..., 4:], eps=1e-6) if self.new_coords else raw[..., 4:]

    def decode(self, raw: Tensor, img_height: int, img_width: int) -> Tensor:
        """Predictions (B, A * H * W, 5 + C): cx, cy, w, h in input pixels; objectness and class scores in [0, 1]."""
        b, a, h, w, attributes = raw.shape
        raw = raw.float()
        column = torch.arange(w, device=raw.device, dtype=raw.dtype).view(1, 1, 1, w)
        row = torch.arange(h, device=raw.device, dtype=raw.dtype).view(1, 1, h, 1)
        centre, size = self.boxes(raw, self.anchors.view(1, a, 1, 1, 2))
        x = (centre[..., 0] + column) * (img_width / w)
        y = (centre[..., 1] + row) * (img_height / h)
        scores = raw[..., 4:] if self.new_coords else raw[..., 4:].sigmoid()
        predictions = torch.cat([torch.stack([x, y], dim=-1), size, scores], dim=-1)
        return predictions.view(b, a * h * w, attributes)


MODULES: dict[type, Any] = {
    layers.Convolution: convolution,
    layers.Deconvolution: convolution,
    layers.MaxPool: MaxPool,
    layers.LocalAvgPool: LocalAvgPool,
    layers.AvgPool: lambda layer: nn.AdaptiveAvgPool2d(1),
    layers.Upsample: Upsample,
    layers.Route: Route,
    layers.Shortcut: Shortcut,
    layers.ScaleChannels: Gate,
    layers.Sam: Gate,
    layers.Activation: lambda layer: ACTIVATIONS[layer.activation](),
    layers.Dropout: lambda layer: nn.Dropout(layer.probability),
    layers.Reorg: Reorg,
    layers.Reorg3d: lambda layer: Reorg3d(layer.stride),
    layers.Empty: lambda layer: nn.Identity(),
    layers.Yolo: Yolo,
}


def grey(images: Tensor) -> Tensor:
    """RGB images (B, 3, H, W) to grey ones (B, 1, H, W), weighted as OpenCV and Pillow do (ITU-R BT.601)."""
    return 0.299 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]


class Darknet(nn.Module):
    """The network of a cfg.

    Args:
        cfg: the path of a cfg file, or the list of its sections (see :mod:`utils.darknet.cfg`).

    Attributes:
        spec: what the cfg says, see :class:`utils.darknet.spec.NetworkSpec`.
        module_list: one module per layer, by Darknet's layer numbers.

    Raises:
        InputError: the cfg does not parse, or uses something that is not supported.
    """

    def __init__(self, cfg: str | Path | Sequence[Block]):
        super().__init__()
        self.spec = parse_network(read_cfg(cfg) if isinstance(cfg, str | Path) else cfg)
        self.module_list = nn.ModuleList(MODULES[type(layer)](layer) for layer in self.spec.layers)
        # Outputs that a later layer than the next one reads; memory of the others is freed at once.
        self._kept = {source for layer in self.spec.layers for source in layer.sources if source != layer.index - 1}
        self._start_heads()

    @property
    def blocks(self) -> Sequence[Block]:
        """The cfg's sections, ``[net]`` first."""
        return self.spec.blocks

    @property
    def heads(self) -> list[Yolo]:
        """The detection heads in order."""
        return [cast(Yolo, self.module_list[head.index]) for head in self.spec.heads]

    @property
    def batch_norms(self) -> dict[int, nn.BatchNorm2d]:
        """The BatchNorms of the convolutions that have one, by layer number."""
        return {layer.index: self.batch_norm(layer.index) for layer in self.spec.convolutions if layer.batch_normalize}

    def conv(self, index: int) -> nn.Conv2d | nn.ConvTranspose2d:
        """The convolution of layer ``index``."""
        return cast(nn.Conv2d | nn.ConvTranspose2d, self.module_list[index].get_submodule(f"conv_{index}"))

    def batch_norm(self, index: int) -> nn.BatchNorm2d:
        """The BatchNorm of layer ``index``."""
        return cast(nn.BatchNorm2d, self.module_list[index].get_submodule(f"batch_norm_{index}"))

    def raw_outputs(self, images: Tensor) -> list[Tensor]:
        """The raw outputs (B, A, H, W, 5 + C) of each detection head for images (B, 3, H, W) in [0, 1].

        A network with ``channels=1`` takes grey images (B, 1, H, W), too, and turns RGB images to grey.
        """
        if self.spec.channels == 1 and images.shape[1] == 3:
            images = grey(images)
        outputs: dict[int, Tensor] = {IMAGE: images}
        raw = []
        x = images
        for layer, module in zip(self.spec.layers, self.module_list, strict=True):
            x = module(*(x if source == layer.index - 1 else outputs[source] for source in layer.sources))
            if layer.index in self._kept:
                outputs[layer.index] = x
            if isinstance(layer, layers.Yolo):
                raw.append(x)
        return raw

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images (B, 3, H, W) in [0, 1], H and W multiples of the network's stride.

        Returns:
            In eval mode the predictions (B, P, 5 + C): cx, cy, w, h in input pixels; objectness and class scores.
            In training mode the raw outputs of the heads, for :class:`utils.detection.loss.YoloLoss`.
        """
        raw = self.raw_outputs(images)
        if self.training:
            return raw
        height, width = images.shape[-2:]
        return torch.cat(
            [head.decode(output, height, width) for head, output in zip(self.heads, raw, strict=True)], dim=1
        )

    def load_darknet_weights(self, path: str | Path) -> None:
        """Load a Darknet ``.weights`` file, which must fit exactly; see :mod:`utils.darknet.weights`."""
        load_darknet_weights(self, path)

    def save_darknet_weights(self, path: str | Path, seen: int = 0) -> None:
        """Save as a Darknet ``.weights`` file of version 0.2.5; ``seen`` is the number of training images so far."""
        save_darknet_weights(self, path, seen)

    def _start_heads(self) -> None:
        """Set the initial objectness to PRIOR, for a stable first epoch (focal loss, arXiv 1708.02002, section 3.3).

        A sigmoid before a head with ``new_coords`` becomes a :class:`HeadSigmoid`.
        """
        for head in self.spec.heads:
            source = self.spec.layers[head.sources[0]]
            expected = "logistic" if head.new_coords else "linear"
            if not isinstance(source, layers.Convolution) or source.batch_normalize or source.activation != expected:
                continue
            bias = cast(Tensor, self.conv(source.index).bias).detach().view(len(head.anchors), 5 + head.classes)
            bias[:, 4] += math.log(PRIOR / (1 - PRIOR))
            if head.new_coords:
                setattr(self.module_list[source.index], f"logistic_{source.index}", HeadSigmoid())
