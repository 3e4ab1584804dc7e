"""New kernels for a compact network, so that it does as far as it can what the network before the cut did.

A hard cut takes away inputs on which the kernels that are left relied: the network detects next to nothing, although
most of what it needs is still there, spread over other channels. Least squares finds it, convolution by convolution,
from a few images and without their labels.
"""

import contextlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import Darknet
from utils.darknet.layers import Convolution, Deconvolution
from utils.devices import without_tf32
from utils.pruning.mask import PruneMask

IMAGES = 64  # are enough: twice as many measured no better
POSITIONS = 8192  # of a feature map, over all images, that a kernel is fitted to
# As a share of the inputs' mean variance. It keeps a kernel near that of the cut where the images do not determine it.
RIDGE = 0.03


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
def reconstruct(compact: Darknet, whole: Darknet, mask: PruneMask, images: Tensor) -> None:
    """Fit the kernels of a compact network to the outputs of the network before the cut.

    From the first convolution to the last, each kernel becomes the one that gives, from the inputs that it has in the
    compact network, with the least squared error what these channels are before BatchNorm in the whole one; so it also
    makes up for what the convolutions before it lack (He et al., arXiv 1707.06168, sections 3.1 and 3.2). BatchNorm's
    statistics change as those of its inputs do, and gammas so that its slopes stay. Carriers become ordinary channels.

    Grouped and transposed convolutions keep their kernels.

    Args:
        compact: the network of the kept channels; it is changed, and left in eval mode.
        whole: the network before the cut, in eval mode.
        mask: what the compact network keeps of it.
        images: (B, 3, H, W) in [0, 1], on the device of both networks.
    """
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(without_tf32())
        for layer, target in _targets(whole, mask, images):
            conv = compact.conv(layer.index)
            if layer.groups == 1 and not isinstance(layer, Deconvolution):
                hooks.enter_context(conv.register_forward_pre_hook(partial(_fit, target)))
            if layer.batch_normalize:
                norm = compact.batch_norm(layer.index)
                _restore(norm, whole.batch_norm(layer.index), mask.kept_outputs(layer.index))
                hooks.enter_context(conv.register_forward_hook(partial(_normalise, target, norm)))
        compact.eval().raw_outputs(images)


def _targets(whole: Darknet, mask: PruneMask, images: Tensor) -> list[tuple[Convolution, _Target]]:
    """Each convolution and its target."""
    targets = []

    def note(layer: Convolution, _conv: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        count, _, height, width = output.shape
        random = torch.Generator().manual_seed(layer.index)
        places = torch.randperm(height * width, generator=random)[: -(-POSITIONS // count)].to(output.device)
        kept = torch.from_numpy(mask.kept_outputs(layer.index)).to(output.device)
        rows, columns = places // width, places % width
        targets.append((layer, _Target(rows, columns, _at(output[:, kept], rows, columns))))

    with contextlib.ExitStack() as hooks:
        for layer in whole.spec.convolutions:
            hooks.enter_context(whole.conv(layer.index).register_forward_hook(partial(note, layer)))
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
    ridge = RIDGE * gram.diagonal().mean() * max(1.0, patches.shape[1] / len(patches)) + torch.finfo(gram.dtype).tiny
    gram.diagonal().add_(ridge)
    kernel = _double(conv.weight.flatten(1))
    fitted = torch.linalg.solve(gram, patches.T @ (values - mean_value) + ridge * kernel.T).T
    conv.weight.copy_(fitted.view_as(conv.weight))
    if conv.bias is not None:
        conv.bias.copy_(mean_value - fitted @ mean)


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
    """Give a BatchNorm what the kept channels had before the cut: carriers had other gammas and betas."""
    for name, value in norm.state_dict(keep_vars=True).items():
        if value.ndim:
            value.copy_(whole.state_dict()[name][torch.from_numpy(kept).to(value.device)])


def _normalise(target: _Target, norm: nn.BatchNorm2d, _conv: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
    """Change the statistics of a BatchNorm as those of its inputs have changed, and its gammas so that slopes stay."""
    variance, mean = torch.var_mean(_at(output, target.rows, target.columns), 0)
    variance_before, mean_before = torch.var_mean(target.values, 0)
    running_mean, running_var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    running_mean.add_(mean - mean_before)
    std = (running_var + norm.eps).sqrt()
    running_var.mul_(torch.where(variance_before > 0, variance / variance_before, 1))
    norm.weight.mul_((running_var + norm.eps).sqrt() / std)
