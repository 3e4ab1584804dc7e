"""How far an epoch is, and what its batches did so far."""

import torch
from torch import Tensor

from utils import distributed
from utils.detection.loss import HeadReport, HeadSum


class EpochProgress:
    """The batches of an epoch that are done.

    Attributes:
        batches: how many batches are done.
        sums: (heads, 7) by HeadSum, over these batches; None before the first.
        predictions: how many each head made, over these batches.
        pruned: whether the cut at the end of the epoch was made.
    """

    def __init__(self, heads: int):
        self.batches = 0
        self.sums: Tensor | None = None
        self.predictions = [0] * heads
        self.pruned = False

    def add(self, reports: list[HeadReport]) -> None:
        """Add what the heads did in one more batch."""
        sums = torch.stack([report.sums for report in reports])
        self.batches += 1
        self.sums = sums if self.sums is None else self.sums + sums
        self.predictions = [count + report.predictions for count, report in zip(self.predictions, reports, strict=True)]

    def gather(self, device: torch.device) -> None:
        """Bring the sums of all processes together in the main one, and set those of the others to 0.

        All processes must call this.
        """
        heads = len(self.predictions)
        sums = torch.zeros(heads, len(HeadSum), device=device) if self.sums is None else self.sums
        totals = distributed.total([*sums.flatten().tolist(), *self.predictions])
        is_main = distributed.is_main()
        self.sums = sums.new_tensor(totals[:-heads]).view(heads, -1) * is_main
        self.predictions = [int(count) * is_main for count in totals[-heads:]]

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return vars(self)

    def load_state(self, state: dict, device: torch.device) -> None:
        """Go back to the :meth:`state` of a checkpoint; only the main process takes over the sums, which count once."""
        self.batches, self.pruned = state["batches"], state.get("pruned", False)
        if distributed.is_main():
            self.sums = state["sums"]
            self.predictions = state["predictions"] if "predictions" in state else state["cells"]  # of older versions
        if self.sums is not None:
            self.sums = self.sums.to(device)
