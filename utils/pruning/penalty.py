"""Sparse training: an L1 penalty on the BatchNorm gammas (Network Slimming, arXiv 1708.06519, section 3).

Two methods for the penalty ``s * |gamma|``:

- ``subgradient``, as published: ``grad += s * sign(gamma)`` before the optimizer's step. Gammas end up oscillating
  around 0.
- ``proximal``: after the optimizer's step, gammas are moved toward 0 by ``lr * s / (1 - momentum)`` and stop there
  (soft threshold; ISTA, Beck and Teboulle 2009). Inside a momentum the subgradient is as strong in the long run. Gammas
  become exactly 0, and cutting them out loses nothing.
"""

import numpy as np
import torch
from torch import Tensor

from models import Darknet
from utils.pruning.costs import Costs, set_prices
from utils.pruning.coupling import couple
from utils.pruning.selection import prunable_channels, prunable_sets

METHODS = ("proximal", "subgradient")
HOLD = 1e30  # a weight that holds a gamma at 0; infinity times the 0 of a skipped step would not be a number


def gamma_sizes(model: Darknet) -> dict[int, np.ndarray]:
    """|gamma| of each convolution with BN, by layer number."""
    return {index: bn.weight.detach().abs().cpu().numpy() for index, bn in model.batch_norms.items()}


class GammaPenalty:
    """The L1 penalty on the gammas that a strategy may prune.

    Args:
        model: the network in training.
        s: strength of the penalty.
        strategy: see :mod:`utils.pruning.selection`.
        method: one of METHODS.
        momentum: of the SGD that trains the network.
        costs: of the layers, which price the penalty on a set by what its removal saves; without them prices are 1.

    Attributes:
        coupling: the coupled channels of the network.
        prices: for each layer with gammas under the penalty the price (C,) of each, of which the mean over the sets is
            1; and 0 for those that may not be pruned.
        weights: a factor (C,) on ``s``: at first the prices, see :mod:`utils.pruning.schedules`.
    """

    def __init__(
        self, model: Darknet, s: float, strategy: str, method: str, momentum: float, costs: Costs | None = None
    ):
        self.model = model
        self.s = s
        self.strategy = strategy
        self.method = method
        self.momentum = momentum
        self.coupling = couple(model.spec)
        self._masks = {
            index: torch.from_numpy(mask).to(model.batch_norm(index).weight.device)
            for index, mask in prunable_channels(self.coupling, strategy).items()
            if mask.any()
        }
        self.prices = {index: mask.float() for index, mask in self._masks.items()}
        if costs:
            of_sets = set_prices(self.coupling, prunable_sets(self.coupling, strategy), costs)
            for index, prices in self.prices.items():
                prices *= torch.from_numpy(of_sets[self.coupling.outputs[index]]).to(prices)
        self.weights = dict(self.prices)
        self._gammas = self._gammas_of(model)

    def state(self) -> dict:
        """What changes during a run, for a checkpoint."""
        return {"s": self.s, "weights": {index: weight.cpu() for index, weight in self.weights.items()}}

    def load_state(self, state: dict) -> None:
        """Go back to the :meth:`state` of a checkpoint."""
        self.s = state["s"]
        self.weights = {
            index: weight.to(self.weights[index].device).clamp(max=HOLD) for index, weight in state["weights"].items()
        }

    def gammas(self) -> np.ndarray:
        """|gamma| of all channels under the penalty, in one array."""
        values = [self.model.batch_norm(index).weight.detach()[mask].abs() for index, mask in self._masks.items()]
        return torch.cat(values).cpu().numpy() if values else np.zeros(0, np.float32)

    def distances(self) -> np.ndarray:
        """|gamma| over its price, of all channels under the penalty: how far each is from 0 where all prices are 1."""
        return self.gammas() / self.channel_prices()

    def channel_prices(self) -> np.ndarray:
        """The prices of all channels under the penalty, in the order of :meth:`gammas`."""
        prices = [self.prices[index][mask] for index, mask in self._masks.items()]
        return torch.cat(prices).cpu().numpy() if prices else np.zeros(0, np.float32)

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the subgradient; call once per optimizer step, on unscaled gradients."""
        if self.method != "subgradient":
            return
        learning = [
            (gamma.grad, gamma, weight)
            for gamma, weight in zip(self._gammas, self.weights.values(), strict=True)
            if gamma.grad is not None
        ]
        if learning:
            gradients, gammas, weights = map(list, zip(*learning, strict=True))
            torch._foreach_add_(gradients, torch._foreach_mul(torch._foreach_sign(gammas), weights), alpha=self.s)

    @torch.no_grad()
    def after_step(self, lr: float, taken: Tensor | None = None) -> None:
        """Shrink the gammas toward 0; call once per optimizer step.

        Args:
            lr: the learning rate of the step.
            taken: a scalar, 1 if the step was taken and 0 if it was skipped, which leaves the gammas as they are; None
                for a step that was taken. It stays on the device.
        """
        if self.method != "proximal":
            return
        step = lr * self.s / (1 - self.momentum)
        if step and self.weights:
            factor = step if taken is None else step * taken
            soft_threshold(self._gammas, list(torch._foreach_mul(list(self.weights.values()), factor)))

    @torch.no_grad()
    def copy_zeros(self, average: Darknet) -> None:
        """Set the averaged model's gammas to 0 where the trained ones are: an average of a decay is never 0."""
        if self.weights:
            alive = torch._foreach_sign(torch._foreach_abs(self._gammas))
            torch._foreach_mul_(self._gammas_of(average), alive)

    def _gammas_of(self, model: Darknet) -> list[Tensor]:
        return [model.batch_norm(index).weight for index in self.weights]


def soft_threshold(values: list[Tensor], steps: list[Tensor]) -> None:
    """Move values toward 0 by ``steps``, and to 0 where they would pass it; in place, a few calls for all of them."""
    sizes = torch._foreach_sub(torch._foreach_abs(values), steps)
    torch._foreach_clamp_min_(sizes, 0)
    torch._foreach_copy_(values, torch._foreach_mul(torch._foreach_sign(values), sizes))


def reach(learning_rates: np.ndarray, s: float, momentum: float) -> float:
    """By how much the penalty can lower a gamma at most: the sum of lr * s / (1 - momentum) over the steps."""
    return float(learning_rates.sum() * s / (1 - momentum))
