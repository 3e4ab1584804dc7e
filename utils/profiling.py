"""How large and how fast a network is."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.resolve import resolve


def count_parameters(model: nn.Module) -> int:
    """Kernels, biases, gammas and betas; running statistics are no parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(blocks: Sequence[dict[str, str]], img_size: int) -> int:
    """Multiply-adds of the convolutions for one picture of ``img_size`` pixels, one multiply-add counted as one."""
    return sum(layer.macs for layer in resolve(blocks, img_size).convolutions)


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


@torch.inference_mode()
def forward_ms(models: Sequence[nn.Module], images: Tensor, rounds: int = 10) -> list[float]:
    """Median milliseconds of a forward pass of each model, taken in turns so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds + 2):
        for model, own in zip(models, times, strict=True):
            with Stopwatch(images.device) as watch:
                model(images)
            own.append(1000 * watch.seconds)
    return [statistics.median(own[2:]) for own in times]
