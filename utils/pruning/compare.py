"""Networks before and after pruning: their mAP, size and speed, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from terminaltables import AsciiTable
from torch import Tensor
from torch.utils.data import DataLoader

from models import Darknet
from utils.detection.complexity import count_parameters, state_dict_size
from utils.detection.evaluate import evaluate
from utils.detection.inference import for_inference
from utils.sizes import AnySize, Size
from utils.timing import Timing, forward_times


@dataclass(frozen=True)
class Measures:
    """One side of the comparison.

    Attributes:
        mAP, mAP_50_95: mAP@0.5 and mAP@0.5:0.95 on the validation images.
        parameters: how many.
        macs: multiply-adds for one image.
        size_bytes: of the state dict as a file.
        forward_ms: the median time of a forward pass of one image.
        forward_quartiles_ms: the quartiles of that time, between which half of the passes lie.
    """

    mAP: float
    mAP_50_95: float
    parameters: int
    macs: int
    size_bytes: int
    forward_ms: float
    forward_quartiles_ms: tuple[float, float]


class Bench:
    """Measures networks on the validation images of a data set.

    Args:
        batches: images (B, 3, H, W) uint8 and targets (N, 6).
        names: the class names.
        img_size: the input size, which MACs and forward passes are for.
        device: where to measure.
    """

    def __init__(self, batches: DataLoader, names: list[str], img_size: AnySize, device: torch.device):
        self.batches = batches
        self.names = names
        self.img_size = Size.of(img_size)
        self.image = torch.rand(1, 3, *self.img_size, device=device)

    def mean_ap(self, model: Darknet) -> float:
        """mAP@0.5."""
        return evaluate(model, self.batches, self.names)[0].mAP

    def macs(self, model: Darknet) -> int:
        """Multiply-adds for one image."""
        return model.spec.at(self.img_size).macs

    def forward(self, *models: Darknet) -> list[Timing]:
        """The time of a forward pass of one image, in turns, of each network as it detects."""
        return forward_times([for_inference(model) for model in models], self.image)

    def forward_share(self, model: Darknet, of: Darknet) -> float:
        """The time of a forward pass of one image as a share of another network's, taken in turns."""
        this, other = self.forward(model, of)
        return this.median / other.median

    def compare(self, *models: Darknet, each: Sequence[Callable[[Tensor, Tensor], None]] = ()) -> list[Measures]:
        """All measures of each network; forward passes are taken in turns.

        Args:
            models: the networks.
            each: for each network what is called with the detections and the ground truth of each image, see
                :func:`utils.detection.evaluate.evaluate`.
        """
        quality = [
            evaluate(model, self.batches, self.names, each=watcher)[0] for model, watcher in zip_longest(models, each)
        ]
        return [
            Measures(
                metrics.mAP,
                metrics.mAP_50_95,
                count_parameters(model),
                self.macs(model),
                state_dict_size(model),
                time.median,
                (time.low, time.high),
            )
            for model, metrics, time in zip(models, quality, self.forward(*models), strict=True)
        ]


def comparison_table(before: Measures, after: Measures) -> str:
    """The table Metric / Before / After for the terminal."""
    rows = [["Metric", "Before", "After", "After / Before"]]
    rows.append(["mAP@0.5", f"{before.mAP:.4f}", f"{after.mAP:.4f}", f"{after.mAP - before.mAP:+.4f}"])
    for label, name, unit, digits in (
        ("Parameters", "parameters", 1, 0),
        ("MACs", "macs", 1, 0),
        ("File size (MB)", "size_bytes", 1e6, 2),
        ("Forward (ms)", "forward_ms", 1, 2),
    ):
        old, new = getattr(before, name) / unit, getattr(after, name) / unit
        rows.append([label, f"{old:,.{digits}f}", f"{new:,.{digits}f}", f"{new / old:.1%}"])
    spread = ["{:,.2f} to {:,.2f}".format(*side.forward_quartiles_ms) for side in (before, after)]
    rows.append(["Half of the passes (ms)", *spread, ""])
    speed_up, fewer = before.forward_ms / after.forward_ms, before.macs / after.macs
    rows.append(["Speed-up", "", f"{speed_up:.2f}x", f"{speed_up / fewer:.0%} of the MACs' {fewer:.2f}x"])
    table = AsciiTable(rows)
    table.justify_columns = dict.fromkeys((1, 2, 3), "right")
    return table.table
