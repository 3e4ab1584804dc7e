"""Dead channels are constants: what each holds, which stay as carriers, and where the others' constants go.

A channel with a gamma of 0 outputs act(beta) everywhere, which is not 0. When it is removed, the convolutions that
read it must take over its constant, and :func:`move_constants` is where they do:

- without zero padding its share, ``sum_k W[:, dead] * constant``, is the same everywhere: it goes into the bias, or
  into the running mean of the BatchNorm;
- with zero padding the constant is cut off at the image's border, which no bias can express, and a transposed
  convolution gives each position another share. There one dead channel stays as a *carrier*, a channel that is constant
  by its gamma of 0, and its kernel in the reading convolution takes over the share of all dead channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models import Darknet
from utils.darknet import layers
from utils.darknet.activations import ACTIVATIONS
from utils.darknet.layers import IMAGE
from utils.pruning.coupling import Coupling
from utils.pruning.mask import PruneMask

# A carrier's constant must not be much smaller than the others': what it carries is divided by it.
LEAST_CARRIER = 0.1


def dead_constants(reference: Darknet, coupling: Coupling, dead: np.ndarray) -> dict[int, np.ndarray]:
    """The constant that each dead channel holds.

    Args:
        reference: the masked network: the gammas of its dead channels are 0.
        coupling: its coupled channels.
        dead: (number of sets,) bool.

    Returns:
        For each layer number (and ``IMAGE``) the constants of its output, (channels,) float64; NaN for the living.
    """
    constants = {IMAGE: np.full(reference.spec.channels, np.nan)}
    for layer in reference.spec.layers:
        sources = [constants[source] for source in layer.sources]
        constants[layer.index] = _propagate(layer, sources, reference, dead[coupling.outputs[layer.index]])
    return constants


def _propagate(layer: layers.Layer, sources: list[np.ndarray], reference: Darknet, dead: np.ndarray) -> np.ndarray:
    """The constants of a layer's output, (channels,) float64, NaN for the living.

    Args:
        layer: the layer.
        sources: the constants of each layer that it reads; NaN stays NaN in a sum and behind an activation.
        reference: the masked network, for the betas.
        dead: (channels,) bool, which channels of the output are dead.
    """
    match layer:
        case layers.Convolution():
            values = np.full(layer.channels, np.nan)
            if layer.batch_normalize:
                beta = reference.batch_norm(layer.index).bias.detach().cpu().double().numpy()
                values[dead] = _activate(layer.activation, beta)[dead]
            return values
        case layers.Upsample():
            return sources[0] * layer.scale
        case layers.Route():
            return np.concatenate([np.split(source, layer.groups)[layer.group_id] for source in sources])
        case layers.Shortcut():
            total = sources[0].copy()
            for other in sources[1:]:
                both = min(len(total), len(other))
                total[:both] += other[:both]
            return _activate(layer.activation, total)
        case layers.ScaleChannels() | layers.Sam():
            # A silenced channel is 0 whatever the gate says.
            return _activate(layer.activation, np.where(dead, 0.0, np.nan))
        case layers.Activation():
            return _activate(layer.activation, sources[0])
        case layers.Reorg3d():
            return np.tile(sources[0], layer.stride**2)
        case layers.Reorg():
            return np.full(layer.channels, np.nan)
        case _:
            return sources[0]


def _activate(name: str, values: np.ndarray) -> np.ndarray:
    return ACTIVATIONS[name]()(torch.from_numpy(values)).numpy()


def prune_masks(
    references: Sequence[Darknet], coupling: Coupling, dead: np.ndarray, carriers: bool = True
) -> list[PruneMask]:
    """Choose the carriers, and so what is kept.

    Args:
        references: masked networks of one cfg, which are to keep one cfg.
        coupling: their coupled channels.
        dead: (number of sets,) bool.
        carriers: whether to keep any.

    Returns:
        A mask for each network; they differ in the constants alone.
    """
    constants = [dead_constants(reference, coupling, dead) for reference in references]
    keep = ~dead
    if carriers:
        keep[list(_choose_carriers(coupling, dead, constants))] = True
    return [PruneMask(coupling, dead, keep, of_one) for of_one in constants]


def _choose_carriers(coupling: Coupling, dead: np.ndarray, constants: Sequence[dict[int, np.ndarray]]) -> set[int]:
    """The dead sets to keep as carriers: few that serve every convolution that cannot take a constant into its bias.

    Greedy: the set that serves the most convolutions per channel of its own comes first.

    Args:
        coupling: the coupled channels.
        dead: (number of sets,) bool.
        constants: of each network that the carriers are for, as :func:`dead_constants` gives them.
    """
    offers = []  # for each convolution that needs a carrier, the sets that can be it
    for layer in coupling.spec.convolutions:
        if not layer.keeps_constants and layer.groups == 1:
            sets = coupling.inputs(layer)
            for of_one in constants:
                values = np.abs(of_one[layer.sources[0]])
                usable = dead[sets] & (values > LEAST_CARRIER * np.where(dead[sets], values, 0).max(initial=0.0))
                if usable.any():
                    offers.append(set(sets[usable].tolist()))
    chosen: set[int] = set()
    while open_offers := [offer for offer in offers if not offer & chosen]:
        served = {number: sum(number in offer for offer in open_offers) for number in set.union(*open_offers)}
        chosen.add(max(served, key=lambda n: (served[n] / len(coupling.sets[n].members), -n)))
    return chosen


def move_constants(weight: Tensor, layer: layers.Convolution, mask: PruneMask) -> tuple[Tensor, Tensor]:
    """Let a convolution take over the constants of the input channels that are removed.

    Where the mask has no carrier among its inputs, they go into the shift even where no shift is right at all
    positions: every such constant is 0, or it is asked for with ``fold_bias``.

    Args:
        weight: its kernel, (O, I, k, k) float64.
        layer: the convolution, of the whole network.
        mask: what is kept.

    Returns:
        The kernel that reads the kept input channels, (O, kept I, k, k); and the shift, (O,) float64: what it no longer
        adds up, at every position alike.
    """
    shift = torch.zeros(len(weight), dtype=weight.dtype)
    if layer.groups > 1:  # it reads each input channel for one output alone, which is dead with it, or both are fixed
        return weight, shift
    share = torch.einsum("oihw,i->ohw", weight, torch.from_numpy(mask.removed_constants(layer)))
    carrier = mask.strongest_carrier(layer)
    if layer.keeps_constants or carrier is None:
        shift = layer.mean_gain * share.sum(dim=(1, 2))
    elif share.any():
        position, constant = carrier
        weight = weight.clone()
        weight[:, position] += share / constant
    return weight[:, torch.from_numpy(mask.kept_inputs(layer))], shift
