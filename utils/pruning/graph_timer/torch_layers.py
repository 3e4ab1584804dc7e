"""The layers of a graph as modules of PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .graph import bias_of, kernel_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "relie": partial(nn.LeakyReLU, 0.01, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": partial(nn.ELU, inplace=True),
    "mish": partial(nn.Mish, inplace=True),
    "swish": partial(nn.SiLU, inplace=True),
    "h_swish": partial(nn.Hardswish, inplace=True),
}


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.forward = function


class Activated(nn.Module):
    """A layer of one or more inputs, then its activation."""

    def __init__(self, module: nn.Module, activation: nn.Module):
        super().__init__()
        self.module, self.activation = module, activation

    def forward(self, *inputs: Tensor) -> Tensor:
        """The layer's output, activated."""
        return self.activation(self.module(*inputs))


def torch_layer(layer: dict[str, Any]) -> nn.Module:
    """The module of a layer, which takes as many tensors as the layer has inputs."""
    activation = layer.get("activation", "linear")
    module = _linear(layer)
    return module if activation == "linear" else Activated(module, ACTIVATIONS[activation]())


def _linear(layer: dict[str, Any]) -> nn.Module:
    match layer["op"]:
        case "conv":
            return _convolution(layer)
        case "add":
            return Function(_add)
        case "multiply":
            return Function(torch.mul)
        case "concat":
            return Function(lambda *inputs: torch.cat(inputs, dim=1))
        case "slice":
            return Function(lambda x: x[:, layer["begin"] : layer["end"]])
        case "upsample":
            return nn.Upsample(scale_factor=layer["stride"], mode="nearest")
        case "maxpool" | "meanpool":
            kind = nn.MaxPool2d if layer["op"] == "maxpool" else nn.AvgPool2d
            pad = 2 * (layer["before"], layer["after"])
            pool = kind(layer["size"], tuple(layer["stride"]))
            return nn.Sequential(nn.ConstantPad2d(pad, 0.0), pool) if any(pad) else pool
        case "avgpool":
            return nn.AdaptiveAvgPool2d(1)
        case "reorg":
            return nn.PixelUnshuffle(layer["stride"])
        case "yolo":
            return Function(partial(_decode, layer))
    return nn.Identity()


def _convolution(layer: dict[str, Any]) -> nn.Conv2d:
    options = {name: layer[name] for name in ("padding", "dilation", "groups")}
    conv = nn.Conv2d(layer["inputs"], layer["outputs"], layer["size"], tuple(layer["stride"]), **options)
    conv.requires_grad_(False)
    conv.weight.copy_(torch.from_numpy(kernel_of(layer)))
    cast(Tensor, conv.bias).copy_(torch.from_numpy(bias_of(layer)))
    return conv


def _add(x: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        x = x + other
    return x


def _decode(layer: dict[str, Any], x: Tensor) -> Tensor:
    """What a head costs, with other numbers for its anchors and cells."""
    b, _, h, w = x.shape
    raw = x.view(b, layer["anchors"], layer["values"], h, w).permute(0, 1, 3, 4, 2).float()
    centre, size = raw[..., 0:2].sigmoid() * 1.0, raw[..., 2:4].exp() * 1.0
    parts = [torch.stack([centre[..., 0] + 1, centre[..., 1] + 1], dim=-1), size, raw[..., 4:].sigmoid()]
    return torch.cat(parts, dim=-1).view(b, -1, layer["values"])
