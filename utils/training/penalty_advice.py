"""Advice about the strength of the penalty: before a run, whether it can be enough, and during it, whether it works."""

from collections.abc import Sequence

import numpy as np

from utils.errors import InputError
from utils.pruning.penalty import GammaHistory, reach
from utils.pruning.schedules import DEADLINE, RESISTANCE, shares
from utils.training.optim import MOMENTUM
from utils.training.run_log import RunLog
from utils.training.trainer import Trainer

FEW_NEAR_ZERO = 0.05  # a share of gammas near zero below this is no sparsity
LEAST_MAP = 0.1  # a lower mAP says nothing yet


def check_reach(training: Trainer) -> None:
    """Say how far the penalty can move a gamma in this run, and warn where that is not far enough.

    Raises:
        InputError: there is no gamma to move.
    """
    args, gammas = training.args, training.penalty.gammas()
    if not len(gammas):
        raise InputError(f"-sr --strategy {args.strategy}: no channel of {args.model_def} may be pruned")
    if args.s_schedule == "target":  # which finds an s that is enough
        return
    s, typical = args.s, float(np.median(gammas))
    farthest = s * reach_of_one(training)
    print(f"s={s:g} can lower a gamma by at most {farthest:.3g} in this run; their median is {typical:.3g}")
    if farthest < typical:
        print(f"warning: few gammas can reach 0: train longer, or try --s {fitting(training, typical):.2g}")


def reach_of_one(training: Trainer, begin: int = 0) -> float:
    """By how much a penalty of s = 1 can lower a gamma from the step ``begin`` to the end of the run."""
    rates = training.plan.rates
    return reach((rates * shares(training.args.s_schedule, len(rates)))[begin:], 1.0, MOMENTUM)


def fitting(training: Trainer, typical: float) -> float:
    """The strength that brings gammas of a ``typical`` size to 0 in a run like this."""
    return RESISTANCE * typical / reach_of_one(training)


def warn_of_penalty(training: Trainer, log: RunLog, gammas: GammaHistory) -> None:
    """Say so where sparse training does not sparsify, or costs the detections."""
    args, done = training.args, training.epoch / training.args.epochs
    if not args.sr or args.s_schedule == "target":  # which adapts s itself
        return
    mean_aps = [float(row["mAP"]) for row in log.rows if row.get("mAP") not in (None, "")]
    if args.s_schedule == "local" and done < DEADLINE:  # what is kept has only begun to recover
        mean_aps = []
    at_first = float(gammas.quintiles[0][1:3].mean())  # about their median
    left = args.s * reach_of_one(training, training.step)
    for warning in penalty_warnings(args.s, fitting(training, at_first), done, gammas, left, mean_aps):
        print(f"warning: {warning}")


def penalty_warnings(
    s: float, fitting: float, done: float, gammas: GammaHistory, reach_left: float, mean_aps: Sequence[float]
) -> list[str]:
    """What to say about sparse training that does not sparsify, or that costs the detections.

    Args:
        s: strength of the penalty.
        fitting: the one that suits the gammas and the length of the run.
        done: the share of the run that is done.
        gammas: up to now.
        reach_left: by how much the penalty can still lower a gamma.
        mean_aps: of the evaluations up to now.
    """
    warnings = []
    stronger = f"train with --s {max(fitting, 2 * s):.2g}, or for more epochs"
    near_zero, lowest = gammas.near_zero[-1], float(gammas.quintiles[-1][0])
    if near_zero < FEW_NEAR_ZERO:
        if done == 1:
            warnings.append(
                f"only {near_zero:.1%} of the gammas are near zero: pruning will cost detections; {stronger}"
            )
        elif done >= 0.5 and lowest > reach_left:
            warnings.append(
                f"the lowest fifth of the gammas reaches up to {lowest:.3g}, and what is left of the run can lower one "
                f"by {reach_left:.3g}: {stronger}"
            )
    best, latest = max(mean_aps, default=0.0), mean_aps[-2:]
    if best > LEAST_MAP and len(latest) == 2 and max(latest) < best / 2:
        warnings.append(
            f"mAP@0.5 fell from {best:.3f} to {latest[-1]:.3f}: the penalty may be too strong; train with "
            f"--s {s / 2:.2g}, or from a baseline (-pre)"
        )
    return warnings
