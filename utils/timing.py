"""The time that pieces of code take, measured in turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn


class Stopwatch:
    """Adds up the seconds of the blocks that it is a context of; it waits for the queued work of a GPU."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device = device
        self.clock = clock
        self.seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._synchronize()
        self._start = self.clock()
        return self

    def __exit__(self, *exception: object) -> None:
        self._synchronize()
        self.seconds += self.clock() - self._start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Timing:
    """The milliseconds of one step: the median over all rounds, and the quartiles ``low`` and ``high``."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Timing":
        """The median and the quartiles of single measurements."""
        return cls(*np.percentile(milliseconds, (50, 25, 75)).tolist())

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.low:.2f} to {self.high:.2f})"


def time_in_turns(
    steps: Sequence[Callable[[], object]],
    device: torch.device,
    rounds: int = 10,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    lead: int = 0,
) -> list[Timing]:
    """The time that each step takes. The steps run in turns, so that a busy machine slows all of them down alike.

    Args:
        steps: the functions to measure.
        device: the device that they compute on.
        rounds: the number of measurements of each step.
        warm_up: the number of rounds before, which do not count.
        clock: returns the time in seconds; ``time.process_time`` counts what this process takes of the cores.
        lead: how often a step runs before each of its measurements, so that it finds its own data in the caches.
    """
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(warm_up + rounds):
        for step, milliseconds in zip(steps, times, strict=True):
            for _ in range(lead):
                step()
            with Stopwatch(device, clock) as watch:
                step()
            milliseconds.append(1000 * watch.seconds)
    return [Timing.of(milliseconds[warm_up:]) for milliseconds in times]


@torch.inference_mode()
def forward_times(models: Sequence[nn.Module], images: Tensor, rounds: int = 10) -> list[Timing]:
    """The time of a forward pass of each model on images (B, 3, H, W) in [0, 1], taken in turns.

    It is that of a pass after another one of the same model, as where a model is used: weights that fit into the caches
    are there.
    """
    return time_in_turns([partial(model, images) for model in models], images.device, rounds, lead=1)
