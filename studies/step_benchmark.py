"""What a training step costs beyond its convolutions: our step against the bare layers that it must compute anyway."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import Darknet, convolution
from utils.darknet import layers
from utils.darknet.cfg import Block
from utils.darknet.spec import NetworkSpec
from utils.data.images import to_device
from utils.timing import Timing, time_in_turns
from utils.training.config import SparsityConfig, TrainConfig
from utils.training.trainer import Batch, Trainer

WARM_UP = 1  # rounds that are not counted
LEARNING_RATE = 1e-4
BOXES = 3  # per image


class BareStack(nn.Module):
    """The convolutions of a network with their BatchNorm and activation, as plain layers and nothing between them.

    Each reads the output before it where that has the right shape. Where a route or upsampling would come between, it
    reads random numbers, and the gradient of its input is computed all the same.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        shapes = {layers.IMAGE: (3, spec.height, spec.width)}
        shapes |= {layer.index: (layer.channels, layer.height, layer.width) for layer in spec.layers}
        self.inputs = [shapes[layer.sources[0]] for layer in spec.convolutions]
        self.stages = nn.ModuleList(convolution(layer) for layer in spec.convolutions)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to a scalar, the sum of everything that no layer reads."""
        x, total = images, images.new_zeros(())
        for shape, stage in zip(self.inputs, self.stages, strict=True):
            if x.shape[1:] != shape:
                total = total + x.sum()
                x = torch.rand(len(images), *shape, device=images.device).requires_grad_()
            x = stage(x)
        return total + x.sum()


def time_steps(blocks: Sequence[Block], batch_size: int, device: torch.device, rounds: int) -> list[Timing]:
    """Times of our sparse training step and of the bare stack, in turns, on random images with a few boxes each.

    Both in channels_last, as train.py trains.

    Args:
        blocks: the network's cfg; the size of the images is its own.
        batch_size: images per step.
        device: where to compute.
        rounds: how many steps of each to time.
    """
    model = Darknet(blocks)
    size, classes = model.spec.height, model.spec.heads[0].classes
    bare = BareStack(model.spec).to(device).to(memory_format=torch.channels_last)
    model.to(device).train()
    config = TrainConfig(batch_size=batch_size, img_size=size, epochs=1, sparsity=SparsityConfig())
    trainer = Trainer(config, model, steps_per_epoch=1)
    batch = random_batch(batch_size, size, classes)
    images = to_device(batch[0], device, torch.channels_last)

    def bare_step() -> None:
        bare.zero_grad()
        bare(images).backward()

    return time_in_turns([lambda: trainer.train_step([batch], LEARNING_RATE), bare_step], device, rounds, WARM_UP)


def random_batch(count: int, size: int, classes: int) -> Batch:
    """Random images (B, 3, S, S) uint8 with BOXES boxes each, targets (N, 6)."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)
    number = torch.arange(count).repeat_interleave(BOXES)[:, None].float()
    label = torch.randint(0, classes, (len(number), 1), generator=random).float()
    centre = 0.3 + 0.4 * torch.rand(len(number), 2, generator=random)
    sides = 0.05 + 0.3 * torch.rand(len(number), 2, generator=random)
    return images, torch.cat([number, label, centre, sides], dim=1)
