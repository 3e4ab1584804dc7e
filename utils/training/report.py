"""What an epoch of training did: its table for the terminal, and its row for the log."""

import argparse

import numpy as np
from terminaltables import AsciiTable
from tqdm import tqdm

from models import Darknet
from utils.detection.loss import HeadSum
from utils.detection.metrics import Metrics
from utils.pruning.penalty import GammaHistory


def loss_row(sums: np.ndarray, images: int) -> dict[str, float]:
    """The losses of an epoch for the log: a positive for boxes and classes, an image for objectness.

    Args:
        sums: over the epoch, (heads, 7) by HeadSum.
        images: how many there were.
    """
    total = sums.sum(axis=0)
    positives = max(total[HeadSum.POSITIVES], 1)
    return {
        "box_loss": total[HeadSum.BOX_LOSS] / positives,
        "objectness_loss": total[HeadSum.OBJECTNESS_LOSS] / images,
        "class_loss": total[HeadSum.CLASS_LOSS] / positives,
        "iou": total[HeadSum.IOU] / positives,
    }


def gamma_row(gammas: GammaHistory, s: float) -> dict[str, float]:
    """The gammas of the last epoch for the log, and the strength ``s`` of the penalty."""
    row = {f"gamma_q{20 * (k + 1)}": float(value) for k, value in enumerate(gammas.quintiles[-1])}
    row |= {"gamma_near_zero": gammas.near_zero[-1], "prune_ratio_allowed": gammas.allowed[-1]}
    return row | {"gamma_zero": gammas.zero[-1], "s": s}


def print_epoch(
    args: argparse.Namespace,
    model: Darknet,
    epoch: int,
    sums: np.ndarray,
    cells: list[int],
    metrics: Metrics | None,
    gammas: GammaHistory,
    s: float,
) -> None:
    """Print the table of an epoch: what each head did, the gammas, the penalty, and the metrics.

    The losses of boxes and classes are a positive's, that of objectness is a prediction's; objectness is from 0 to 1.

    Args:
        args: the options of train.py.
        model: the network in training.
        epoch: its number, from 0 on.
        sums: over the epoch, (heads, 7) by HeadSum.
        cells: how many predictions each head made.
        metrics: of the epoch's evaluation, if it had one.
        gammas: up to now.
        s: the penalty's strength.
    """
    heads = model.spec.at(args.img_size).heads
    rows = [["YOLO layer", *(str(head.index) for head in heads)]]
    rows.append(["grid", *(f"{head.width}x{head.height}" for head in heads)])
    positives = np.maximum(sums[:, HeadSum.POSITIVES], 1)
    elsewhere = sums[:, HeadSum.OBJECTNESS] - sums[:, HeadSum.POSITIVE_OBJECTNESS]
    rows.append(["positives", *(f"{count:.0f}" for count in sums[:, HeadSum.POSITIVES])])
    rows.append(["box loss", *(f"{v:.4f}" for v in sums[:, HeadSum.BOX_LOSS] / positives)])
    rows.append(["objectness loss", *(f"{v:.3e}" for v in sums[:, HeadSum.OBJECTNESS_LOSS] / cells)])
    rows.append(["class loss", *(f"{v:.4f}" for v in sums[:, HeadSum.CLASS_LOSS] / positives)])
    rows.append(["IoU of positives", *(f"{v:.3f}" for v in sums[:, HeadSum.IOU] / positives)])
    rows.append(["objectness of positives", *(f"{v:.3f}" for v in sums[:, HeadSum.POSITIVE_OBJECTNESS] / positives)])
    rows.append(["objectness elsewhere", *(f"{v:.4f}" for v in elsewhere / cells)])
    tqdm.write(AsciiTable(rows, f"epoch {epoch + 1}/{args.epochs}").table)
    quintiles = " ".join(f"{value:.3g}" for value in gammas.quintiles[-1])
    tqdm.write(
        f"|gamma| quintiles {quintiles}; {gammas.near_zero[-1]:.1%} near zero, {gammas.zero[-1]:.1%} exactly; "
        f"s={s:.3g}; a threshold could prune {gammas.allowed[-1]:.1%} now"
    )
    if metrics:
        tqdm.write(
            f"mAP@0.5 {metrics.mAP:.4f}  mAP@0.5:0.95 {metrics.mAP_50_95:.4f}  precision {metrics.precision:.3f}  "
            f"recall {metrics.recall:.3f}  F1 {metrics.f1:.3f}"
        )
