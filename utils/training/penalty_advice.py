"""Advice about the strength of the penalty: before a run, whether it can be enough, and during it, whether it works."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.pruning.gamma_history import GammaHistory
from utils.pruning.penalty import GammaPenalty, reach
from utils.pruning.schedules import DEADLINE, RESISTANCE
from utils.training.config import TrainConfig
from utils.training.optim import MOMENTUM

LEAST_MAP = 0.1  # a lower mAP says nothing yet
LEAST_NEAR_ZERO = 0.05  # with a lower share of gammas near zero the penalty has not worked
PRICED = ", each over its price,", " of price 1"


class PenaltyAdvice:
    """Judges the penalty of a run by how far it can move gammas.

    Under the schedule ``target``, which adapts the strength itself, there is nothing to say.

    Args:
        config: of the run, with a sparsity.
        rates: (steps,) the learning rate of every optimizer step of the run.
    """

    def __init__(self, config: TrainConfig, rates: np.ndarray):
        assert config.sparsity
        self._config = config
        self._sparsity = config.sparsity
        self._rates = rates
        self._silent = config.sparsity.schedule == "target"

    def before_training(self, distances: np.ndarray, force: bool = False) -> None:
        """Print how far the penalty can move a gamma in this run, and refuse a penalty that is too weak.

        Args:
            distances: (channels,) |gamma| over its price, see :meth:`GammaPenalty.distances`.
            force: warn where the penalty is too weak, instead of raising.

        Raises:
            InputError: there are none, or the penalty cannot bring gammas of a typical size to 0.
        """
        if not len(distances):
            config = self._config
            raise InputError(f"-sr --strategy {config.strategy}: no channel of {config.model_def} may be pruned")
        if self._silent:
            return
        s, typical = self._sparsity.s, float(np.median(distances))
        farthest = s * self._reach_per_s()
        over, unit = self._words
        print(
            f"s={s:g} can lower a gamma{unit} by at most {farthest:.3g} in this run; the median gamma{over} is "
            f"{typical:.3g}"
        )
        if farthest < typical:
            problem = f"few gammas can reach 0: train for more epochs, or with --s {self._fitting(typical):.2g}"
            if not force:
                raise InputError(f"--s {s:g}: {problem}; --force trains all the same")
            print(f"warning: {problem}")

    def after_epoch(
        self, epochs: int, steps: int, rows: Sequence[dict[str, Any]], gammas: GammaHistory, penalty: GammaPenalty
    ) -> None:
        """Print warnings where sparse training does not sparsify, or costs detections.

        Args:
            epochs: how many are done.
            steps: how many optimizer steps are done.
            rows: of the log.
            gammas: up to now.
            penalty: on the gammas, which says at what price each is lowered.
        """
        if self._silent:
            return
        s, done = self._sparsity.s, epochs / self._config.epochs
        mean_aps = [float(row["mAP"]) for row in rows if row.get("mAP") not in (None, "")]
        if self._sparsity.schedule == "local" and done < DEADLINE:  # the kept channels have only begun to recover
            mean_aps = []
        at_first = float(gammas.quintiles[0][1:3].mean())  # about their median
        fitting = self._fitting(at_first * float(np.median(1 / penalty.channel_prices())))
        lowest, reach_left = float(np.quantile(penalty.distances(), 0.2)), s * self._reach_per_s(steps)
        words = self._words
        for warning in penalty_warnings(s, fitting, done, gammas.near_zero[-1], lowest, reach_left, mean_aps, words):
            print(f"warning: {warning}")

    @property
    def _words(self) -> tuple[str, str]:
        """What follows "gamma" where each is over its price, and where its price is 1; nothing without prices."""
        return ("", "") if self._sparsity.penalty_cost == "uniform" else PRICED

    def _reach_per_s(self, begin: int = 0) -> float:
        """By how much a penalty of s = 1 can lower a gamma from the step ``begin`` to the end of the run."""
        return reach(self._rates[begin:], 1.0, MOMENTUM)

    def _fitting(self, typical: float) -> float:
        """The strength that brings gammas of a ``typical`` size to 0 in a run like this."""
        return RESISTANCE * typical / self._reach_per_s()


def penalty_warnings(
    s: float,
    fitting: float,
    done: float,
    near_zero: float,
    lowest: float,
    reach_left: float,
    mean_aps: Sequence[float],
    words: tuple[str, str] = ("", ""),
) -> list[str]:
    """Warnings about sparse training that does not sparsify, or that costs detections.

    Args:
        s: strength of the penalty.
        fitting: the strength that suits the gammas and the length of the run.
        done: the share of the run that is done.
        near_zero: the share of gammas near zero.
        lowest: the lowest quintile of |gamma| over its price.
        reach_left: by how much the penalty can still lower a gamma of price 1.
        mean_aps: mAP@0.5 of the evaluations up to now.
        words: what follows "gamma" where each is over its price, and where its price is 1.
    """
    warnings = []
    over, unit = words
    stronger = f"train with --s {max(fitting, 2 * s):.2g}, or for more epochs"
    if near_zero < LEAST_NEAR_ZERO:
        if done == 1:
            warnings.append(
                f"only {near_zero:.1%} of the gammas are near zero: pruning will cost detections; {stronger}"
            )
        elif done >= 0.5 and lowest > reach_left:
            warnings.append(
                f"the lowest fifth of the gammas{over} reaches up to {lowest:.3g}, but the rest of the run can lower a "
                f"gamma{unit} by at most {reach_left:.3g}: {stronger}"
            )
    best, latest = max(mean_aps, default=0.0), mean_aps[-2:]
    if best > LEAST_MAP and len(latest) == 2 and max(latest) < best / 2:
        warnings.append(
            f"mAP@0.5 fell from {best:.3f} to {latest[-1]:.3f}: the penalty may be too strong; train with "
            f"--s {s / 2:.2g}, or from a baseline (-pre)"
        )
    return warnings
