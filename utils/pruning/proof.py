"""A pruned network becomes files: first the proof that it computes the same; what was written is read back."""

from pathlib import Path

import torch

from models import Darknet
from utils.darknet.cfg import format_cfg
from utils.darknet.weights import is_darknet_weights, write_darknet_weights
from utils.detection.checkpoints import load_weights, write_checkpoint
from utils.errors import InputError
from utils.files import atomic_writer, keep_old
from utils.pruning.pruner import Trial
from utils.pruning.surgery import TOLERANCE, head_difference


def prove(trial: Trial, img_size: int, fold: str) -> float:
    """The largest relative difference of the raw outputs on random images.

    Raises:
        InputError: it is larger than TOLERANCE, so that the compact network must not be used.
    """
    difference = head_difference(trial.reference, trial.pruned.model, img_size)
    if fold == "exact" and not difference <= TOLERANCE:
        raise InputError(
            f"the pruned network differs from the masked one by {difference:.1e} of its outputs, more than "
            f"{TOLERANCE:.0e}: nothing was written"
        )
    return difference


def write_pruned(compact: Darknet, out_cfg: Path, out_weights: Path, about: dict) -> None:
    """Write cfg and weights, read both back, and put them in place only if they give the same network.

    What stood there before is kept under a numbered name.
    """
    with atomic_writer(out_cfg) as cfg_file, atomic_writer(out_weights) as weights_file:
        cfg_file.write(format_cfg(compact.blocks).encode())
        cfg_file.flush()
        if is_darknet_weights(out_weights):
            write_darknet_weights(compact, weights_file)
        else:
            write_checkpoint(weights_file, compact, **about, pruned=True)
        weights_file.flush()
        check_files(compact, cfg_file.name, weights_file.name)
        for path in (out_cfg, out_weights):
            if kept := keep_old(path):
                print(f"the old {path} is kept as {kept}")


def check_files(compact: Darknet, cfg: str, weights: str) -> None:
    """Raise an InputError unless the files hold exactly ``compact``."""
    again = Darknet(cfg)
    load_weights(again, weights)
    wanted = compact.state_dict()
    differing = [
        name
        for name, tensor in again.state_dict().items()
        if not name.endswith("num_batches_tracked") and not torch.equal(tensor, wanted[name].cpu())
    ]
    if again.blocks != compact.blocks or differing:
        raise InputError(f"read back, the files do not give the pruned network ({differing[:1] or cfg})")
