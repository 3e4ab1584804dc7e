"""What an epoch of training did: its table for the terminal, and its row for the log."""

import argparse

import numpy as np
from terminaltables import AsciiTable
from tqdm import tqdm

from models import Darknet
from utils.metrics import Metrics
from utils.resolve import resolve
from utils.sparsity import GammaHistory


def loss_row(sums: np.ndarray, pictures: int) -> dict[str, float]:
    """The losses of an epoch for the log: a positive for boxes and classes, a picture for objectness."""
    positives, box, objectness, label, iou = sums.sum(axis=0)[:5]
    positives = max(positives, 1)
    return {
        "box_loss": box / positives,
        "objectness_loss": objectness / pictures,
        "class_loss": label / positives,
        "iou": iou / positives,
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
    """Print the table of an epoch: what each head did, the gammas, the penalty's strength ``s``, and the metrics."""
    heads = resolve(model.blocks, args.img_size).heads
    rows = [["YOLO layer", *(str(head.index) for head in heads)]]
    rows.append(["grid", *(f"{head.width}x{head.height}" for head in heads)])
    positives = np.maximum(sums[:, 0], 1)
    rows.append(["positives", *(f"{count:.0f}" for count in sums[:, 0])])
    rows.append(["box loss", *(f"{v:.4f}" for v in sums[:, 1] / positives)])
    rows.append(["objectness loss", *(f"{v:.3e}" for v in sums[:, 2] / cells)])
    rows.append(["class loss", *(f"{v:.4f}" for v in sums[:, 3] / positives)])
    rows.append(["IoU of positives", *(f"{v:.3f}" for v in sums[:, 4] / positives)])
    rows.append(["objectness of positives", *(f"{v:.3f}" for v in sums[:, 5] / positives)])
    rows.append(["objectness elsewhere", *(f"{v:.4f}" for v in (sums[:, 6] - sums[:, 5]) / cells)])
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
