"""What an epoch of training did: its table for the terminal, and its row for the log."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from terminaltables import AsciiTable
from tqdm import tqdm

from utils.darknet import layers
from utils.detection.loss import HeadSum
from utils.detection.metrics import Metrics
from utils.pruning.gamma_history import GammaHistory
from utils.pruning.selection import room_in_words

MUCH_WAITING = 0.1  # share of an epoch
LONG_WAITING = 1.0  # seconds; below, a new run's workers are starting


@dataclass
class EpochReport:
    """What an epoch did.

    Attributes:
        epoch: its number, from 0.
        epochs: how many the run has.
        heads: the [yolo] layers.
        sums: (heads, 7) by HeadSum, over the epoch.
        predictions: how many each head made.
        images: how many images the epoch had.
        learning_rate: of its last step.
        seconds: that its training took.
        seconds_waiting: the part of ``seconds`` in which the main process waited for images.
        distillation_loss: the mean loss against the teacher; None without one.
        metrics: of its evaluation; None if it had none.
        channels: how many channels are left; None without pruning in training.
        s: the strength of the penalty; None without one.
    """

    epoch: int
    epochs: int
    heads: Sequence[layers.Yolo]
    sums: np.ndarray
    predictions: list[int]
    images: int
    learning_rate: float
    seconds: float
    seconds_waiting: float
    distillation_loss: float | None = None
    metrics: Metrics | None = None
    channels: int | None = None
    s: float | None = None

    def row(self, gammas: GammaHistory) -> dict[str, float]:
        """The row of the log: losses of boxes and classes per positive, of objectness per image."""
        total = self.sums.sum(axis=0)
        positives = max(total[HeadSum.POSITIVES], 1)
        row = {
            "epoch": self.epoch,
            "box_loss": total[HeadSum.BOX_LOSS] / positives,
            "objectness_loss": total[HeadSum.OBJECTNESS_LOSS] / self.images,
            "class_loss": total[HeadSum.CLASS_LOSS] / positives,
            "iou": total[HeadSum.CIOU] / positives,
            "lr": self.learning_rate,
            "seconds": self.seconds,
        }
        if self.distillation_loss is not None:
            row["distillation_loss"] = self.distillation_loss
        if self.metrics:
            row |= self.metrics.quality()
        if self.channels is not None:
            row["channels"] = self.channels
        row |= {f"gamma_q{20 * (k + 1)}": float(value) for k, value in enumerate(gammas.quintiles[-1])}
        row |= {"gamma_near_zero": gammas.near_zero[-1], "prune_ratio_allowed": gammas.allowed[-1]}
        row["gamma_zero"] = gammas.zero[-1]
        return row if self.s is None else row | {"s": self.s}


def print_epoch(report: EpochReport, gammas: GammaHistory, sparse_ratio: float | None) -> None:
    """Print what an epoch did.

    Args:
        report: of the epoch.
        gammas: up to the epoch.
        sparse_ratio: the share of the prunable channels whose gammas are clearly below the others; None where the
            gammas say nothing about what to prune.
    """
    tqdm.write(head_table(report))
    tqdm.write(waiting_line(report.seconds, report.seconds_waiting))
    if sparse_ratio is not None:
        tqdm.write(gamma_line(report, gammas, sparse_ratio))
    if metrics := report.metrics:
        tqdm.write(
            f"mAP@0.5 {metrics.mAP:.4f}  mAP@0.5:0.95 {metrics.mAP_50_95:.4f}  precision {metrics.precision:.3f}  "
            f"recall {metrics.recall:.3f}  F1 {metrics.f1:.3f}"
        )


def head_table(report: EpochReport) -> str:
    """What each head did; objectness is a probability."""
    sums, predictions = report.sums, report.predictions
    positives = np.maximum(sums[:, HeadSum.POSITIVES], 1)
    others = sums[:, HeadSum.OBJECTNESS] - sums[:, HeadSum.POSITIVE_OBJECTNESS]
    rows = [
        ["[yolo] layer", *(str(head.index) for head in report.heads)],
        ["grid (columns x rows)", *(f"{head.width}x{head.height}" for head in report.heads)],
        ["positives", *(f"{count:.0f}" for count in sums[:, HeadSum.POSITIVES])],
        ["box loss per positive", *(f"{v:.4f}" for v in sums[:, HeadSum.BOX_LOSS] / positives)],
        ["objectness loss per prediction", *(f"{v:.3e}" for v in sums[:, HeadSum.OBJECTNESS_LOSS] / predictions)],
        ["class loss per positive", *(f"{v:.4f}" for v in sums[:, HeadSum.CLASS_LOSS] / positives)],
        ["mean CIoU of positives", *(f"{v:.3f}" for v in sums[:, HeadSum.CIOU] / positives)],
        ["mean objectness of positives", *(f"{v:.3f}" for v in sums[:, HeadSum.POSITIVE_OBJECTNESS] / positives)],
        ["mean objectness elsewhere", *(f"{v:.4f}" for v in others / predictions)],
    ]
    return AsciiTable(rows, f"epoch {report.epoch + 1}/{report.epochs}").table


def waiting_line(seconds: float, waiting: float) -> str:
    """The time of an epoch, the share of it that was spent waiting for images, and what to do where that is much."""
    share = waiting / max(seconds, 1e-9)
    line = f"{seconds:.1f} s, of which {share:.0%} waiting for images"
    if share > MUCH_WAITING and waiting > LONG_WAITING:
        line += (
            "\nwarning: reading images holds the training up: raise --n_cpu if there are cores left, or use --cache ram"
        )
    return line


def gamma_line(report: EpochReport, gammas: GammaHistory, sparse_ratio: float) -> str:
    """The gammas after an epoch, and what can be pruned now."""
    quintiles = " ".join(f"{value:.3g}" for value in gammas.quintiles[-1])
    strength = "" if report.s is None else f"s={report.s:.3g}; "
    return (
        f"|gamma| quintiles {quintiles}; {gammas.near_zero[-1]:.1%} near zero, {gammas.zero[-1]:.1%} exactly; "
        f"{strength}{room_in_words(sparse_ratio, gammas.allowed[-1])}"
    )
