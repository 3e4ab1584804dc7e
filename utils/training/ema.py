"""The exponential moving average of a network's weights, which detects better than the weights in training."""

import copy

import torch
from torch import Tensor, nn

from models import Darknet

# BatchNorm's running statistics are of about ten steps, and the average's first updates of fewer: where weights move
# fast, a network that detects would seem to detect nothing. With so many updates behind it the average is of 33 steps.
TRAINED = 300


class ModelEma:
    """An average of ``model``'s parameters and buffers (Polyak averaging; Mean Teacher, arXiv 1703.01780).

    After n updates the decay is (1 + n) / (10 + n), and at most ``decay`` (as num_updates of TensorFlow's
    ExponentialMovingAverage). So it is an average over about the last ninth of the updates: it forgets the start, and
    is soon long enough to even out that BatchNorm's running statistics come late where the weights move fast.

    Args:
        model: the network in training.
        updates: how many to count as done at the start: TRAINED for a network that detects already.
        decay: at most.

    Attributes:
        model: the average; it may be replaced where the network in training is.
        updates: how many there were.
    """

    def __init__(self, model: Darknet, updates: int = 0, decay: float = 0.9995):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = updates
        # Of the two networks named first; collecting the tensors of a network takes milliseconds.
        self._lists: tuple[nn.Module, nn.Module, list[list[Tensor]]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module, taken: Tensor | None = None) -> None:
        """Move the average toward ``model``; call after every optimizer step.

        Args:
            model: the network in training.
            taken: a scalar, 1 if the step was taken and 0 if it was skipped, which leaves the average as it is; None
                for a step that was taken. It stays on the device; a skipped step counts among the updates.
        """
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values, average_counts, counts = self._tensors(model)
        if taken is None:
            torch._foreach_lerp_(averages, values, weight)
        else:
            changes = torch._foreach_sub(values, averages)
            torch._foreach_mul_(changes, taken * weight)
            torch._foreach_add_(averages, changes)
        if counts:
            torch._foreach_copy_(average_counts, counts)

    def _tensors(self, model: nn.Module) -> list[list[Tensor]]:
        """The floating-point tensors of the average and of ``model``, and the whole numbers of both."""
        if self._lists is None or self._lists[0] is not self.model or self._lists[1] is not model:
            # The parameters themselves, not views of their data, which a change of layout replaces.
            states = [network.state_dict(keep_vars=True) for network in (self.model, model)]
            if states[0].keys() != states[1].keys():
                raise ValueError("the average is that of another network")
            is_real = [value.is_floating_point() for value in states[0].values()]
            lists = [
                [value for value, real in zip(state.values(), is_real, strict=True) if real == chosen]
                for chosen in (True, False)
                for state in states
            ]
            self._lists = self.model, model, lists
        return self._lists[2]
