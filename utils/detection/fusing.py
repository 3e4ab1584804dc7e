"""BatchNorm folded into the convolutions before it, which computes the same in fewer steps."""

import copy

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import Darknet
from utils.darknet.spec import parse_network


@torch.no_grad()
def fuse(model: Darknet) -> Darknet:
    """The network without BatchNorm that computes what ``model`` computes in eval mode; its blocks are a cfg, too.

    ``model`` is left alone, and nothing random is drawn.
    """
    fused = copy.deepcopy(model).eval()
    for index, norm in fused.batch_norms.items():
        layer = fused.module_list[index]
        setattr(layer, f"conv_{index}", fuse_conv_bn_eval(fused.conv(index), norm))
        delattr(layer, f"batch_norm_{index}")
        section = fused.spec.section(index)
        section["batch_normalize"] = "0"
        section.pop("cbn", None)  # which means BatchNorm, too
    fused.spec = parse_network(fused.blocks)
    return fused
