"""BatchNorm folded into the convolutions before it, which computes the same in fewer steps."""

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models import Darknet


@torch.no_grad()
def fuse(model: Darknet) -> Darknet:
    """The network without BatchNorm that computes what ``model`` computes in eval mode; its blocks are a cfg, too."""
    blocks = [block.copy() for block in model.blocks]
    for index in model.batch_norms:
        blocks[1 + index]["batch_normalize"] = "0"
    fused = Darknet(blocks).to(next(model.parameters()).device).eval()
    norms = model.batch_norms
    for layer in model.network.convolutions:
        source, target = model.conv(layer.index), fused.conv(layer.index)
        weight, bias = source.weight, source.bias
        if norm := norms.get(layer.index):
            statistics = norm.running_mean, norm.running_var, norm.eps
            weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, norm.weight, norm.bias)
        target.weight.copy_(weight)
        target.bias.copy_(bias)
    return fused
