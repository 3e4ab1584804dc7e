"""The exponential moving average of a network's weights, which detects better than the weights in training."""

import copy
import math

import torch
from torch import nn


class ModelEma:
    """An average of ``model``'s parameters and buffers (Polyak averaging; Mean Teacher, arXiv 1703.01780).

    The decay grows from 0 to ``decay`` over about ``ramp`` updates, so that the average forgets the start.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9995, ramp: float = 300):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average toward ``model``; call after every optimizer step."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp))
        averages, values = [], []
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, weight)
