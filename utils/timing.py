"""How long steps take, measured in turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn


class Stopwatch:
    """Adds up seconds of blocks of code; on a GPU it waits for the work that was queued."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._synchronize()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._synchronize()
        self.seconds += time.perf_counter() - self._start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one step: the median of all rounds, and the quartiles, between which half of them lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.low:.2f} to {self.high:.2f})"


def time_in_turns(
    steps: Sequence[Callable[[], object]], device: torch.device, rounds: int = 10, warm_up: int = 2
) -> list[Timing]:
    """How long each step takes, run in turns so that all meet the same machine.

    Args:
        steps: what to measure.
        device: where they compute; a GPU is waited for.
        rounds: how often each step is measured.
        warm_up: rounds before those, which do not count.
    """
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(warm_up + rounds):
        for step, own in zip(steps, times, strict=True):
            with Stopwatch(device) as watch:
                step()
            own.append(1000 * watch.seconds)
    return [Timing(*np.percentile(own[warm_up:], (50, 25, 75)).tolist()) for own in times]


@torch.inference_mode()
def forward_times(models: Sequence[nn.Module], images: Tensor, rounds: int = 10) -> list[Timing]:
    """How long a forward pass of each model takes, on images (B, 3, S, S) in [0, 1]."""
    return time_in_turns([partial(model, images) for model in models], images.device, rounds)
