"""BatchNorm folded into the convolution before it, so that the network computes the same in fewer operations."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import Darknet
from utils.darknet.spec import parse_network


@torch.no_grad()
def fuse(model: Darknet) -> Darknet:
    """A network without BatchNorm that computes what ``model`` computes in eval mode, with a spec of its own.

    ``model`` is not changed, and no random number is drawn.
    """
    fused = copy.deepcopy(model).eval()
    for index, norm in fused.batch_norms.items():
        layer, conv = fused.module_list[index], fused.conv(index)
        setattr(layer, f"conv_{index}", fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d)))
        delattr(layer, f"batch_norm_{index}")
        section = fused.spec.section(index)
        section["batch_normalize"] = "0"
        section.pop("cbn", None)  # cross-iteration BatchNorm, which implies batch_normalize
    fused.spec = parse_network(fused.spec.blocks)
    return fused
