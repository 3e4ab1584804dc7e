"""New kernels for a compact network, so that it does as far as it can what the network before the cut did.

A hard cut takes away inputs on which the kernels that are left relied: the network detects next to nothing, although
most of what it needs is still there, spread over other channels. Least squares finds it, convolution by convolution,
from a few images and without their labels.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import Darknet
from utils.darknet.layers import Deconvolution
from utils.devices import without_tf32
from utils.pruning.mask import PruneMask

IMAGES = 64  # are enough: twice as many measured no better
POSITIONS = 8192  # of a feature map, over all images, that a kernel is fitted to
# As a share of the inputs' mean variance. It keeps a kernel near that of the cut where the images do not determine it.
RIDGE = 0.03
SMALL = 1e-12  # in place of 0, to divide by


@dataclass(frozen=True)
class _Target:
    """What the kept channels of a convolution are in the whole network, at some positions of its output.

    Attributes:
        rows, columns: (P,) the positions, which are the same in each image.
        values: (B * P, channels).
    """

    rows: Tensor
    columns: Tensor
    values: Tensor


@torch.no_grad()
def reconstruct(
    compact: Darknet, whole: Darknet, mask: PruneMask, images: Tensor, kept_layers: Sequence[int] | None = None
) -> None:
    """Fit the kernels of a compact network to the outputs of the network before the cut.

    From the first convolution to the last, each kernel becomes the one that gives, from the inputs that it has in the
    compact network, with the least squared error what these channels are before BatchNorm in the whole one; so it also
    makes up for what the convolutions before it lack (He et al., arXiv 1707.06168, sections 3.1 and 3.2). Before
    BatchNorm it is scaled to the norm that it had. BatchNorm gets the statistics of ``images``, and the gammas and
    betas from before the cut: carriers become ordinary channels.

    Grouped and transposed convolutions keep their kernels.

    Args:
        compact: the network of the kept channels; it is changed, and left in eval mode.
        whole: the network before the cut, in eval mode.
        mask: what the compact network keeps of it, by the compact network's layer numbers.
        images: (B, 3, H, W) in [0, 1], on the device of both networks.
        kept_layers: where residual blocks were removed whole, the numbers that the compact network's layers have in the
            whole one.
    """
    numbers = kept_layers or range(len(whole.spec.layers))
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(without_tf32())
        targets = _targets(whole, images, {numbers[index]: mask.kept_outputs(index) for index in mask.channel_counts()})
        for layer in compact.spec.convolutions:
            conv, number = compact.conv(layer.index), numbers[layer.index]
            target = targets[number]
            if layer.groups == 1 and not isinstance(layer, Deconvolution):
                hooks.enter_context(conv.register_forward_pre_hook(partial(_fit, target)))
            if layer.batch_normalize:
                norm = compact.batch_norm(layer.index)
                _restore(norm, whole.batch_norm(number), mask.kept_outputs(layer.index))
                hooks.enter_context(conv.register_forward_hook(partial(_measure, norm)))
        compact.eval().raw_outputs(images)


def _targets(whole: Darknet, images: Tensor, kept: Mapping[int, np.ndarray]) -> dict[int, _Target]:
    """The targets of convolutions; ``kept`` has for each, by its number in the whole network, its kept channels."""
    targets: dict[int, _Target] = {}

    def note(index: int, _conv: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        count, _, height, width = output.shape
        random = torch.Generator().manual_seed(index)
        places = torch.randperm(height * width, generator=random)[: -(-POSITIONS // count)].to(output.device)
        rows, columns = places // width, places % width
        channels = torch.from_numpy(kept[index]).to(output.device)
        targets[index] = _Target(rows, columns, _at(output[:, channels], rows, columns))

    with contextlib.ExitStack() as hooks:
        for index in kept:
            hooks.enter_context(whole.conv(index).register_forward_hook(partial(note, index)))
        whole.raw_outputs(images)
    return targets


def _at(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The values (B * P, C * ...) of feature maps (B, C, H, W) at positions (P, ...)."""
    return features[:, :, rows, columns].transpose(1, 2).flatten(0, 1).flatten(1)


def _fit(target: _Target, conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
    """Fit a convolution to its target, by ridge regression toward the kernel that it has, with an intercept."""
    patches, values = _double(_patches(conv, inputs[0], target)), _double(target.values)
    mean, mean_value = patches.mean(0), values.mean(0)
    patches -= mean
    gram = patches.T @ patches
    # Patches fewer than the kernel's weights say little: the ridge is higher there. It is not 0 for constant inputs.
    ridge = RIDGE * gram.diagonal().mean() * max(1.0, patches.shape[1] / len(patches)) + SMALL
    gram.diagonal().add_(ridge)
    kernel = _double(conv.weight.flatten(1))
    fitted = torch.linalg.solve(gram, patches.T @ (values - mean_value) + ridge * kernel.T).T
    if conv.bias is None:  # BatchNorm divides by the scale, which later training depends on: it stays as it was
        fitted *= kernel.norm(dim=1, keepdim=True) / fitted.norm(dim=1, keepdim=True).clamp(min=SMALL)
    else:
        conv.bias.copy_(mean_value - fitted @ mean)
    conv.weight.copy_(fitted.view_as(conv.weight))


def _patches(conv: nn.Conv2d, inputs: Tensor, target: _Target) -> Tensor:
    """(B * P, I * k * k), what the kernel reads at each position of the target."""
    vertical, horizontal = (int(side) for side in conv.padding)
    padded = functional.pad(inputs, (horizontal, horizontal, vertical, vertical))
    high, wide = (
        torch.arange(size, device=inputs.device) * dilation
        for size, dilation in zip(conv.kernel_size, conv.dilation, strict=True)
    )
    rows = (target.rows * conv.stride[0])[:, None, None] + high[:, None]
    columns = (target.columns * conv.stride[1])[:, None, None] + wide
    return _at(padded, rows, columns)


def _double(values: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none."""
    return values.to("cpu" if values.device.type == "mps" else values.device, torch.float64)


def _restore(norm: nn.BatchNorm2d, whole: nn.BatchNorm2d, kept: np.ndarray) -> None:
    """Give a BatchNorm the gammas and betas that its channels had before the cut: those of carriers had changed."""
    channels = torch.from_numpy(kept).to(norm.weight.device)
    norm.weight.copy_(whole.weight[channels])
    norm.bias.copy_(whole.bias[channels])


def _measure(norm: nn.BatchNorm2d, _conv: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
    """Give a BatchNorm the statistics of what it gets."""
    variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)  # of one value it is 0, not NaN
    norm.get_buffer("running_mean").copy_(mean)
    norm.get_buffer("running_var").copy_(variance)
