"""The proof that a compact network computes what the masked one does, and the files that are written after it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Darknet
from utils.darknet.cfg import format_cfg
from utils.darknet.weights import is_darknet_weights, write_darknet_weights
from utils.detection.checkpoints import load_weights, write_checkpoint
from utils.devices import device_of, without_tf32
from utils.errors import InputError
from utils.files import atomic_writer, keep_old
from utils.sizes import AnySize, Size

# The compact network must agree with the masked one to this share of the largest raw output.
TOLERANCE = 1e-4


def proof_images(img_size: AnySize, stride: AnySize) -> Iterator[Tensor]:
    """Random images of more than one batch size and aspect ratio, (B, 3, H, W) in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    height, width = Size.of(img_size)
    for batch, columns in ((2, width), (1, width + 2 * Size.of(stride).width)):
        yield torch.rand(batch, 3, height, columns, generator=random)


@torch.inference_mode()
def head_difference(reference: Darknet, other: Darknet, img_size: AnySize) -> float:
    """The largest difference of the raw outputs of two networks, as a share of the reference's largest magnitude.

    It is NaN where an output is: a NaN fails every comparison. Both networks are left in eval mode.
    """
    device = device_of(reference)
    gaps = []
    for images in proof_images(img_size, reference.spec.stride):
        with without_tf32():
            expected = reference.eval().raw_outputs(images.to(device))
            actual = other.eval().raw_outputs(images.to(device))
        # Python's max may lose a NaN, torch's does not.
        scale = torch.stack([raw.abs().max() for raw in expected]).max()
        gap = torch.stack([(a - b).abs().max() for a, b in zip(expected, actual, strict=True)]).max()
        gaps.append(gap / scale if scale else gap)
    return float(torch.stack(gaps).max())


def prove(reference: Darknet, compact: Darknet, img_size: AnySize) -> float:
    """The :func:`head_difference` of a compact network from its reference.

    Raises:
        InputError: it is larger than TOLERANCE, so that the compact network must not be used.
    """
    difference = head_difference(reference, compact, img_size)
    if not difference <= TOLERANCE:
        raise InputError(
            f"the raw outputs of the pruned network differ from those of the masked one by {difference:.1e} of the "
            f"largest, more than {TOLERANCE:.0e}: nothing was written"
        )
    return difference


def write_pruned(compact: Darknet, out_cfg: Path, out_weights: Path, metadata: dict[str, Any]) -> None:
    """Write cfg and weights, read both back, and put them in place only if they give the same network.

    Files that stood there before are kept under a numbered name.

    Args:
        compact: the network to write.
        out_cfg: the path of the cfg.
        out_weights: the path of the checkpoint, or of a Darknet file (``x.weights``).
        metadata: what the checkpoint says about itself.

    Raises:
        InputError: what was read back is another network.
    """
    with atomic_writer(out_cfg) as cfg_file, atomic_writer(out_weights) as weights_file:
        cfg_file.write(format_cfg(compact.blocks).encode())
        cfg_file.flush()
        if is_darknet_weights(out_weights):
            write_darknet_weights(compact, weights_file)
        else:
            write_checkpoint(weights_file, compact, **metadata)
        weights_file.flush()
        check_files(compact, cfg_file.name, weights_file.name)
        for path in (out_cfg, out_weights):
            if old := keep_old(path):
                print(f"the earlier {path} is kept as {old}")


def check_files(compact: Darknet, cfg: str, weights: str) -> None:
    """Raise an InputError unless the files hold exactly ``compact``."""
    written = Darknet(cfg)
    load_weights(written, weights)
    expected = compact.state_dict()
    differing = [
        name
        for name, tensor in written.state_dict().items()
        if not name.endswith("num_batches_tracked") and not torch.equal(tensor, expected[name].cpu())
    ]
    if written.blocks != compact.blocks or differing:
        where = differing[0] if differing else "the cfg"
        raise InputError(f"{cfg}, {weights}: read back, they are not the pruned network: {where} differs")
