"""Networks for tests: small cfgs, Darknet's own made narrow, and weights that look like those of sparse training."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from models import Darknet
from utils.darknet.cfg import Block, read_cfg

CFG_FOLDER = Path(__file__).resolve().parent / "cfgs"
CFGS = sorted(CFG_FOLDER.glob("*.cfg"))  # our own small networks, with the layers and the wiring of Darknet's
DARKNET_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "darknet_cfg"
DARKNET_CFGS = sorted(DARKNET_FOLDER.glob("*.cfg"))  # the networks that Darknet ships, which a clone does not have
WITHOUT_DARKNET = f"Darknet's own cfg files are not at {DARKNET_FOLDER}"


def or_skip(params: list) -> list:
    """Parameters made from Darknet's own cfg files, or a single skipped one where the files are not at hand."""
    return params or [pytest.param(None, id="darknet", marks=pytest.mark.skip(reason=WITHOUT_DARKNET))]


def narrow(cfg: Path, factor: int = 8, size: int = 64) -> list[Block]:
    """The sections of a cfg for a test: our own networks keep their width, Darknet's get 1/``factor`` of it."""
    return shrink(read_cfg(cfg), 1 if cfg.parent == CFG_FOLDER else factor, size)


def shrink(blocks: Sequence[Block], factor: int = 8, size: int = 64) -> list[Block]:
    """The same topology with 1/``factor`` of the width and a small input."""
    blocks = [block.copy() for block in blocks]
    for block, after in zip(blocks, [*blocks[1:], {"type": ""}], strict=True):
        if block["type"] == "convolutional" and after["type"] != "yolo":
            block["filters"] = str(max(int(block["filters"]) // factor, 2))
        if int(block.get("groups", 1)) > 1 and block["type"] == "convolutional":
            block["groups"] = block["filters"]
    blocks[0] |= {"width": str(size), "height": str(size)}
    return blocks


def randomize(model: Darknet, near_zero: float = 0.7, seed: int = 0) -> Darknet:
    """Gammas of which a share is near zero, and random betas, means and variances, in eval mode."""
    random = torch.Generator().manual_seed(seed)
    for norm in model.batch_norms.values():
        count = len(norm.weight)
        small = torch.rand(count, generator=random) < near_zero
        gamma = torch.rand(count, generator=random) + 0.5
        norm.weight.data = torch.where(small, 1e-2 * gamma, gamma) * torch.randn(count, generator=random).sign()
        norm.bias.data.normal_(generator=random)
        norm.running_mean.normal_(0, 0.3, generator=random)
        norm.running_var.uniform_(0.5, 2, generator=random)
    return model.eval()


def uneven(model: Darknet, seed: int = 0) -> Darknet:
    """Gammas from 0 to 1 and random betas: a sparse training of a few steps drives some gammas to 0."""
    random = torch.Generator().manual_seed(seed)
    for norm in model.batch_norms.values():
        norm.weight.data.uniform_(0, 1, generator=random)
        norm.bias.data.normal_(generator=random)
    return model


@torch.no_grad()
def lively(model: Darknet, seed: int = 0) -> Darknet:
    """A network that looks at the image, as a trained one does, with scores spread over (0, 1); in eval mode.

    BatchNorm takes the statistics of noise, without which a network of random weights gives much the same for any
    image; the heads get random biases.
    """
    random = torch.Generator().manual_seed(seed)
    for norm in model.batch_norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a mean over what it sees
    coarse = torch.rand(8, 3, 8, 8, generator=random)
    model.train()(torch.nn.functional.interpolate(coarse, size=(model.spec.height, model.spec.width)))
    for head in model.spec.heads:
        model.conv(head.sources[0]).bias.data.normal_(generator=random)
    return model.eval()
