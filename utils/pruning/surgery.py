"""From a network and its dead channels to a smaller network that computes the same.

The reference is the masked network: the gammas of the dead channels are 0, every beta is kept. A dead channel is then
a constant, act(beta), not a zero; :mod:`utils.pruning.constants` says where the constants go.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models import Darknet
from utils.darknet import layers
from utils.darknet.cfg import Block
from utils.darknet.spec import parse_network
from utils.devices import device_of
from utils.pruning.constants import dead_constants, move_constants, prune_masks
from utils.pruning.coupling import Coupling
from utils.pruning.mask import PruneMask
from utils.pruning.selection import room_for_carriers, round_up


@dataclass(frozen=True)
class Pruned:
    """A compact network and how it came about.

    Attributes:
        model: the compact network, in eval mode.
        mask: what it keeps of the whole network.
        silenced: how many channels behind gates had their beta set to 0.
    """

    model: Darknet
    mask: PruneMask
    silenced: int

    @property
    def carriers(self) -> int:
        """How many of its channels are constant carriers."""
        return self.mask.carrier_channels


@torch.no_grad()
def mask_gammas(model: Darknet, coupling: Coupling, dead: np.ndarray) -> int:
    """Set the gammas of dead channels to 0 in place, and their betas too where a gate reads them.

    Args:
        model: the network, which becomes the reference.
        coupling: its coupled channels.
        dead: (number of sets,) bool.

    Returns:
        How many channels were silenced: behind a gate a channel is no constant unless it is 0.
    """
    silenced = 0
    norms = model.batch_norms
    for number in np.flatnonzero(dead):
        channel_set = coupling.sets[number]
        for layer, channel in channel_set.members:
            if layer in norms:
                norms[layer].weight[channel] = 0
                if channel_set.gated:
                    norms[layer].bias[channel] = 0
                    silenced += 1
    return silenced


def _masked_copy(model: Darknet, coupling: Coupling, dead: np.ndarray) -> tuple[Darknet, int]:
    """The reference for these dead sets, in eval mode, and how many channels were silenced."""
    reference = copy.deepcopy(model).eval()
    return reference, mask_gammas(reference, coupling, dead)


def prune(
    model: Darknet,
    coupling: Coupling,
    dead: np.ndarray,
    importance: np.ndarray | None = None,
    round_to: int = 1,
    fold_bias: bool = False,
    make_room: bool = False,
) -> tuple[Darknet, Pruned]:
    """Cut the dead channels out of a network.

    Args:
        model: the network; it stays as it is.
        coupling: its coupled channels.
        dead: (number of sets,) bool.
        importance: (number of sets,) which of the dead come back first where ``round_to`` asks for more channels.
        round_to: each convolution keeps a multiple of this, or all its channels; carriers count.
        fold_bias: use no carriers, but fold constants into biases even where padding makes that wrong.
        make_room: let further sets die for the carriers where these would be more than a multiple of ``round_to``.

    Returns:
        The reference, a masked copy of ``model``, and the compact network with the same outputs.
    """
    reference, silenced = _masked_copy(model, coupling, dead)
    (mask,) = prune_masks([reference], coupling, dead, carriers=not fold_bias)
    if round_to > 1:
        if importance is None:
            raise ValueError("round_to needs the importance of the sets")
        while make_room and (more := room_for_carriers(coupling, importance, dead, mask.keep, round_to)).any():
            dead = dead | more
            reference, silenced = _masked_copy(model, coupling, dead)
            (mask,) = prune_masks([reference], coupling, dead, carriers=not fold_bias)
        keep = round_up(coupling, importance, mask.keep, round_to)
        dead = dead & (mask.keep | ~keep)  # what rounding brings back lives
        dead = dead & ~idle_carriers(PruneMask(coupling, dead, keep, mask.constants))
        reference, silenced = _masked_copy(model, coupling, dead)
        mask = PruneMask(coupling, dead, keep, dead_constants(reference, coupling, dead))
    return reference, Pruned(compact_network(reference, mask), mask, silenced)


def idle_carriers(mask: PruneMask) -> np.ndarray:
    """(number of sets,) the carriers that carry nothing, since their readers keep all of their inputs."""
    idle = mask.carriers.copy()
    for layer in mask.coupling.spec.convolutions:
        if not mask.kept_inputs(layer).all():
            idle[mask.coupling.inputs(layer)] = False
    return idle


def compact_network(reference: Darknet, mask: PruneMask) -> Darknet:
    """The network of the kept channels, in eval mode, with the same outputs as the masked ``reference``."""
    blocks = compact_blocks(reference.blocks, mask.channel_counts())
    compact = Darknet(blocks).to(device_of(reference)).eval()
    for layer in reference.spec.convolutions:
        _copy_convolution(reference, compact, layer, mask)
    return compact


def compact_blocks(blocks: Sequence[Block], counts: Mapping[int, int]) -> list[Block]:
    """The cfg with ``counts`` channels in its convolutions, by layer number; a depthwise one stays depthwise."""
    blocks = [block.copy() for block in blocks]
    depthwise = {layer.index for layer in parse_network(blocks).convolutions if layer.depthwise}
    blocks[0]["letter_box"] = "1"
    for index, count in counts.items():
        blocks[1 + index]["filters"] = str(count)
        if index in depthwise:
            blocks[1 + index]["groups"] = str(count)
    return blocks


@torch.no_grad()
def _copy_convolution(reference: Darknet, compact: Darknet, layer: layers.Convolution, mask: PruneMask) -> None:
    """Copy the kept part of a convolution; it takes over the constants that it no longer reads.

    A carrier keeps its kernel. Its gamma of 0 makes it a constant whatever the kernel adds up, and later training can
    bring it back to life, which it could not from a kernel of 0.

    The sums are taken in double precision: thousands of terms, partly divided by a small constant, and only their
    result is rounded to the float32 of the weights.
    """
    kept = torch.from_numpy(mask.kept_outputs(layer.index))
    weight = layer.kernel(reference.conv(layer.index).weight).detach().cpu().double()
    weight, shift = move_constants(weight, layer, mask)
    layer.kernel(compact.conv(layer.index).weight).copy_(weight[kept])
    if layer.batch_normalize:
        source, target = reference.batch_norm(layer.index), compact.batch_norm(layer.index)
        on_device = kept.to(source.weight.device)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(target, name).copy_(getattr(source, name)[on_device])
        # BatchNorm subtracts the mean of what the kernel adds up: both become smaller by the shift.
        mean = target.get_buffer("running_mean")
        mean.sub_(shift[kept].to(mean))
        target.get_buffer("num_batches_tracked").copy_(source.get_buffer("num_batches_tracked"))
    else:
        bias = reference.conv(layer.index).get_parameter("bias").detach().cpu().double() + shift
        compact.conv(layer.index).get_parameter("bias").copy_(bias[kept])
