"""What a training step costs beyond its convolutions: our step against the bare layers that it must compute anyway."""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import Darknet
from utils import graph
from utils.profiling import Stopwatch
from utils.shrinking import Survivors
from utils.training import Batch, Training

WARM_UP = 1  # rounds that are not counted
BOXES = 3  # a picture


@dataclass(frozen=True)
class StepTimes:
    """Median seconds of a training step.

    Attributes:
        ours: of train.py: forward, loss, backward, clipping, optimizer, penalty, average.
        bare: forward and backward of the convolutions, BatchNorms and leaky ReLUs alone, with a sum as loss.
        ratio: the median of ours / bare over the rounds.
    """

    ours: float
    bare: float
    ratio: float


class BareStack(nn.Module):
    """The convolutions of a network with their BatchNorm and activation, as plain layers and nothing between them.

    Each reads the output before it where that has the right shape. Where a route or upsampling would come between, it
    reads random numbers, and the gradient of its input is computed all the same.
    """

    def __init__(self, network: graph.Network):
        super().__init__()
        shapes = {graph.IMAGE: (3, network.height, network.width)}
        shapes |= {layer.index: (layer.channels, layer.height, layer.width) for layer in network.layers}
        self.inputs = [shapes[layer.sources[0]] for layer in network.convolutions]
        self.stages = nn.ModuleList(_stage(layer) for layer in network.convolutions)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to a scalar, the sum of everything that no layer reads."""
        x, total = images, images.new_zeros(())
        for shape, stage in zip(self.inputs, self.stages, strict=True):
            if x.shape[1:] != shape:
                total = total + x.sum()
                x = torch.rand(len(images), *shape, device=images.device).requires_grad_()
            x = stage(x)
        return total + x.sum()


def _stage(layer: graph.Convolution) -> nn.Sequential:
    padding, bias = layer.padding, not layer.batch_normalize
    options = {"stride": layer.stride, "padding": padding, "dilation": layer.dilation, "groups": layer.groups}
    parts: list[nn.Module] = [nn.Conv2d(layer.inputs, layer.channels, layer.size, bias=bias, **options)]
    if layer.batch_normalize:
        parts.append(nn.BatchNorm2d(layer.channels))
    if layer.activation != "linear":
        parts.append(nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(*parts)


def time_steps(
    blocks: list[dict[str, str]], options: argparse.Namespace, device: torch.device, rounds: int = 5
) -> StepTimes:
    """Time our training step and the bare stack in turns, on random pictures with a few boxes each.

    Args:
        blocks: the network's cfg; the size of the pictures is its own.
        options: of train.py, such as its parser gives; ``batch_size`` counts.
        device: where to compute.
        rounds: how many steps of each to time.
    """
    model = Darknet(blocks)
    bare = BareStack(model.network).to(device)
    options.img_size = model.network.height
    training = Training(options, model.to(device).train(), Survivors(model.network), device, steps_per_epoch=rounds)
    batch = random_batch(options.batch_size, options.img_size, model.network.heads[0].classes)
    images = (batch[0].float() / 255).to(device)

    def bare_step() -> None:
        bare.zero_grad()
        bare(images).backward()

    pairs = [
        (seconds(lambda: training.step_on([batch], lr=1e-4), device), seconds(bare_step, device))
        for _ in range(WARM_UP + rounds)
    ][WARM_UP:]
    ours, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
    return StepTimes(ours, alone, statistics.median(a / b for a, b in pairs))


def random_batch(count: int, size: int, classes: int) -> Batch:
    """Random pictures (B, 3, S, S) uint8 with BOXES boxes each, targets (N, 6)."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)
    number = torch.arange(count).repeat_interleave(BOXES)[:, None].float()
    label = torch.randint(0, classes, (len(number), 1), generator=random).float()
    centre = 0.3 + 0.4 * torch.rand(len(number), 2, generator=random)
    sides = 0.05 + 0.3 * torch.rand(len(number), 2, generator=random)
    return images, torch.cat([number, label, centre, sides], dim=1)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes; on a GPU until it is done."""
    with Stopwatch(device) as watch:
        work()
    return watch.seconds
