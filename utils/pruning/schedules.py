"""How strong the penalty on the gammas is during a run, and on which of them.

- ``constant``: the penalty stays as it is.
- ``local``: after half of the steps the penalty on the channels that will be kept falls to DECAY times its strength;
  those that the threshold rule would cut at ``ratio`` stay under the full penalty.
- ``target``: the strength is found. In the first half of the steps all gammas are under the penalty, and its strength
  is adapted so that the share ``ratio`` of them gets to 0. After that the channels that will be kept are free of it;
  the others get to 0 by DEADLINE, and each is held there.

The decay is that of the older pruning tools; here :func:`utils.pruning.selection.select` says which channels will be
kept, over coupled sets. A schedule has no state but the penalty's strength and weights, which a checkpoint keeps.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import InputError
from utils.pruning.penalty import HOLD, GammaPenalty, gamma_sizes
from utils.pruning.selection import prunable_sets, select

HALF = 0.5  # of the steps: from here on the schedules differ
DECAY = 0.01
DEADLINE = 0.75  # of the steps: by then what is to die should be dead, so that the rest of the run can recover
# The loss pulls gammas up, which takes about half of a penalty: the strength is for twice the way to 0.
RESISTANCE = 2.0
DOUBLING = 0.05  # of the steps: the strength at most doubles or halves in so many
CONTROLS = 10  # of the strength, per epoch
# Numbers are read from the device every so many steps: it must finish its work for that. Between, nothing waits for it.
READING_STEPS = 10
SHORT_RUN = 100 * READING_STEPS  # steps; in a shorter run the strength must be controlled more often than that


@dataclass(frozen=True)
class Plan:
    """What a schedule knows about the run.

    Attributes:
        rates: the learning rate of every optimizer step of the run.
        ratio: the share of the prunable channels that will be cut.
        steps_per_epoch: optimizer steps.
    """

    rates: np.ndarray
    ratio: float
    steps_per_epoch: int

    @property
    def half(self) -> int:
        """The first step of the second half."""
        return round(HALF * len(self.rates))

    @property
    def deadline(self) -> int:
        """The step before which what is to die should be dead."""
        return round(DEADLINE * len(self.rates))

    @property
    def every(self) -> int:
        """Steps between two controls of the strength."""
        every = max(1, self.steps_per_epoch // CONTROLS)
        return every if len(self.rates) < SHORT_RUN else max(1, every // READING_STEPS) * READING_STEPS

    @property
    def largest_change(self) -> float:
        """The factor by which a control changes the strength at most."""
        return 2 ** (self.every / (DOUBLING * len(self.rates)))


def constant(penalty: GammaPenalty, plan: Plan, step: int) -> None:
    """Leave the penalty as it is."""


def decay_local(penalty: GammaPenalty, plan: Plan, step: int) -> None:
    """After half of the steps, weaken the penalty on the channels that will be kept."""
    if step == plan.half:
        _relieve(penalty, plan.ratio, DECAY)


def target(penalty: GammaPenalty, plan: Plan, step: int) -> None:
    """Set the strength so that the largest gamma of the channels to cut gets to 0 in time."""
    if step == plan.half:
        _relieve(penalty, plan.ratio, 0.0)
    if step % plan.every and step != plan.half:
        return
    if step < plan.half:
        farthest = _largest(penalty, _condemned(penalty, plan.ratio))
    else:
        condemned = {index: weight > 0 for index, weight in penalty.weights.items()}
        farthest = _largest(penalty, condemned)
        _hold(penalty, condemned)
    if farthest == 0:
        return
    end = plan.half if step < plan.half else plan.deadline
    way_left = float(plan.rates[step:end].sum()) / (1 - penalty.momentum)
    needed = RESISTANCE * farthest / way_left if way_left else float("inf")
    if step == 0:
        penalty.s = needed
    else:
        penalty.s = min(max(needed, penalty.s / plan.largest_change), penalty.s * plan.largest_change)


SCHEDULES: dict[str, Callable[[GammaPenalty, Plan, int], None]] = {
    "constant": constant,
    "local": decay_local,
    "target": target,
}


def check_schedule(schedule: str, method: str) -> None:
    """Refuse a schedule that the method cannot follow.

    Raises:
        InputError: ``target`` needs gammas of exactly 0, which the subgradient never gives.
    """
    if schedule == "target" and method != "proximal":
        raise InputError(f"--s_schedule target needs gammas of exactly 0: use --sr_method proximal, not {method}")


def _condemned(penalty: GammaPenalty, ratio: float) -> dict[int, torch.Tensor]:
    """For each layer under the penalty the channels (C,) bool that the threshold rule would cut now."""
    dead = select(penalty.coupling, penalty.strategy, gamma_sizes(penalty.model), ratio).dead
    return {
        index: torch.from_numpy(dead[penalty.coupling.outputs[index]]).to(weight.device)
        for index, weight in penalty.weights.items()
    }


def _ratio_above_floors(penalty: GammaPenalty, ratio: float) -> float:
    """The largest ratio at which the threshold rule cuts no more than ``ratio``.

    It is more than ``ratio`` where layers are at their floors. The channels that a floor keeps will recover, and
    pruning at ``ratio`` will cut others in their place: the gammas of those must get to 0, too.
    """
    coupling, gammas = penalty.coupling, gamma_sizes(penalty.model)
    sizes = coupling.set_sizes
    total = int(sizes[prunable_sets(coupling, penalty.strategy)].sum())

    def excess(count: int) -> float:
        return sizes[select(coupling, penalty.strategy, gammas, count / total).dead].sum() - ratio * total - 1e-6

    return (bisect.bisect_left(range(total), 0.0, key=excess) - 1) / total


def _relieve(penalty: GammaPenalty, ratio: float, share: float) -> None:
    """Multiply the factor of the channels that will be kept by ``share``."""
    for index, condemned in _condemned(penalty, _ratio_above_floors(penalty, ratio)).items():
        weights = penalty.weights[index]
        penalty.weights[index] = torch.where(condemned, weights, weights * share)


def _hold(penalty: GammaPenalty, condemned: dict[int, torch.Tensor]) -> None:
    """Hold the condemned gammas that are 0 at 0."""
    for index, channels in condemned.items():
        dead = channels & (penalty.model.batch_norm(index).weight.detach() == 0)
        penalty.weights[index] = penalty.weights[index].masked_fill(dead, HOLD)


def _largest(penalty: GammaPenalty, chosen: dict[int, torch.Tensor]) -> float:
    """The largest |gamma| of the chosen channels, over its price; 0 where there are none."""
    gammas = [
        (penalty.model.batch_norm(index).weight.detach().abs() / penalty.prices[index]).where(mask, 0)
        for index, mask in chosen.items()
    ]
    return float(torch.cat(gammas).max()) if gammas else 0.0
