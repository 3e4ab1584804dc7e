"""Darknet's activations by name, as functions of a single value (AlexeyAB's src/activations.h).

``h_swish`` is not Darknet's own: cfgs of PyTorch ports have it for MobileNetV3's (arXiv 1905.02244, section 5.2). The
``normalize_channels`` family is missing because it mixes the channels of a position.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Elementwise(nn.Module):
    """A function of each value as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape, to the same shape."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function's name, for printing the network."""
        return self.function.__name__


def loggy(x: Tensor) -> Tensor:
    """The logistic function scaled to (-1, 1)."""
    return 2 * x.sigmoid() - 1


def selu(x: Tensor) -> Tensor:
    """SELU with Darknet's constants of five digits."""
    return 1.0507 * F.elu(x, alpha=1.6732)


def ramp(x: Tensor) -> Tensor:
    """A slope of 1.1 for positive values, of 0.1 for negative ones."""
    return F.relu(x) + 0.1 * x


def plse(x: Tensor) -> Tensor:
    """Piecewise linear: 0.5 at 0, and nearly flat beyond -4 and 4."""
    return torch.where(x < -4, 0.01 * (x + 4), torch.where(x > 4, 0.01 * (x - 4) + 1, 0.125 * x + 0.5))


def stair(x: Tensor) -> Tensor:
    """Flat from each even number to the next odd one, and rising by 1 from there to the next even one."""
    floor = x.floor()
    return torch.where(floor % 2 == 0, torch.zeros_like(x), x - floor) + (x / 2).floor()


def lhtan(x: Tensor) -> Tensor:
    """The identity on [0, 1], with a slope of 0.001 beyond."""
    return torch.where(x < 0, 0.001 * x, torch.where(x > 1, 0.001 * (x - 1) + 1, x))


def hard_mish(x: Tensor) -> Tensor:
    """Mish of straight lines and a parabola: 0 below -2, the identity above 0."""
    return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, torch.zeros_like(x)))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "h_swish": nn.Hardswish,
    "hard_mish": lambda: Elementwise(hard_mish),
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "selu": lambda: Elementwise(selu),
    "relie": lambda: nn.LeakyReLU(0.01),
    "ramp": lambda: Elementwise(ramp),
    "loggy": lambda: Elementwise(loggy),
    "hardtan": nn.Hardtanh,
    "lhtan": lambda: Elementwise(lhtan),
    "plse": lambda: Elementwise(plse),
    "stair": lambda: Elementwise(stair),
}

# Activations of which the value at 0 is not 0: a channel behind one cannot be silenced.
NOT_ZERO_AT_ZERO = ("logistic", "plse")
