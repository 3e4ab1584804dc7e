"""Advice about the strength of the penalty: before a run, whether it can be enough, and during it, whether it works."""

from collections.abc import Sequence

import numpy as np

from utils.optim import MOMENTUM
from utils.penalty_schedules import RESISTANCE, shares
from utils.run_log import RunLog
from utils.sparsity import GammaHistory, reach
from utils.training import Training

FEW_NEAR_ZERO = 0.05  # a share of gammas near zero below this is no sparsity
LEAST_MAP = 0.1  # a lower mAP says nothing yet


def check_reach(training: Training) -> None:
    """Say how far the penalty can move a gamma in this run, and warn where that is not far enough."""
    rates = training.plan.rates
    farthest = reach(rates * shares(training.args.s_schedule, len(rates)), training.args.s, MOMENTUM)
    typical = float(np.median(training.penalty.gammas()))
    print(
        f"s={training.args.s:g} can lower a gamma by at most {farthest:.3g} in this run; their median is {typical:.3g}"
    )
    if farthest < typical:
        fitting = RESISTANCE * typical * training.args.s / farthest if training.args.s else float("nan")
        print(f"warning: few gammas can reach 0: train longer, or try --s {fitting:.2g}")


def warn_of_penalty(training: Training, log: RunLog, gammas: GammaHistory) -> None:
    """Say so where sparse training does not sparsify, or costs the detections."""
    args = training.args
    if args.sr:
        mean_aps = [float(row["mAP"]) for row in log.rows if row.get("mAP")]
        left = reach(training.plan.rates[training.step :], args.s, MOMENTUM)
        for warning in penalty_warnings(args.s, training.epoch / args.epochs, gammas, left, mean_aps):
            print(f"warning: {warning}")


def penalty_warnings(
    s: float, done: float, gammas: GammaHistory, reach_left: float, mean_aps: Sequence[float]
) -> list[str]:
    """What to say about sparse training that does not sparsify, or that costs the detections.

    Args:
        s: strength of the penalty.
        done: the share of the run that is done.
        gammas: up to now.
        reach_left: by how much the penalty can still lower a gamma.
        mean_aps: of the evaluations up to now.
    """
    warnings = []
    near_zero, lowest = gammas.near_zero[-1], float(gammas.quintiles[-1][0])
    if near_zero < FEW_NEAR_ZERO:
        if done == 1:
            warnings.append(
                f"only {near_zero:.1%} of the gammas are near zero: pruning will cost detections; train with --s "
                f"{2 * s:.2g}, or for more epochs"
            )
        elif done >= 0.5 and lowest > reach_left:
            fitting = s * lowest / max(reach_left, 1e-12)
            warnings.append(
                f"the lowest fifth of the gammas reaches up to {lowest:.3g}, and what is left of the run can lower one "
                f"by {reach_left:.3g}: train with --s {min(fitting, 10 * s):.2g}, or for more epochs"
            )
    best, latest = max(mean_aps, default=0.0), mean_aps[-2:]
    if best > LEAST_MAP and len(latest) == 2 and max(latest) < best / 2:
        warnings.append(
            f"mAP@0.5 fell from {best:.3f} to {latest[-1]:.3f}: the penalty may be too strong; train with "
            f"--s {s / 2:.2g}, or from a baseline (-pre)"
        )
    return warnings
