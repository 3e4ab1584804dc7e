"""From a network and its dead channels to a smaller network that computes the same.

The reference is the gamma-masked network: the dead channels' gammas set to 0, every beta kept. A dead channel is then
a constant, act(beta), not a zero. The constants are carried to the convolutions that consume them:

- without zero padding their share, ``sum_k W[:, dead] * constant``, goes into the consumer's bias or running mean;
- with zero padding a constant is cut off at the image's border, which no bias can express. There one dead channel
  stays as a *carrier*, a channel that is constant by its gamma of 0, and its kernel in the consumer takes the share
  of all dead channels.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models import ACTIVATIONS, Darknet
from utils.darknet import layers
from utils.darknet.layers import IMAGE
from utils.darknet.spec import parse_network
from utils.devices import device_of, without_tf32
from utils.pruning.coupling import Coupling
from utils.pruning.selection import round_up

# The compact network must agree with what it was made of to this share of the largest raw output.
TOLERANCE = 1e-4
# A carrier's constant must not be much smaller than the others': what it carries is divided by it.
LEAST_CARRIER = 0.1


@dataclass(frozen=True)
class Pruned:
    """A compact network and what was done to get it.

    Attributes:
        model: the compact network, in eval mode.
        kept: for each convolution, by layer number, a mask (channels,) of the outputs that it kept.
        carriers: how many of the kept outputs are constant carriers.
        silenced: how many channels behind gates had their beta set to 0.
    """

    model: Darknet
    kept: dict[int, np.ndarray]
    carriers: int
    silenced: int


@torch.no_grad()
def mask_gammas(model: Darknet, coupling: Coupling, dead: np.ndarray) -> int:
    """Set the gammas of dead channels to 0 in place, and behind gates, where they can't be constants, their betas.

    Args:
        model: the network, which becomes the reference.
        coupling: its coupled channels.
        dead: (number of sets,) bool.

    Returns:
        How many channels were silenced.
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


def prune(
    model: Darknet,
    coupling: Coupling,
    dead: np.ndarray,
    scores: np.ndarray | None = None,
    round_to: int = 1,
    fold_bias: bool = False,
) -> tuple[Darknet, Pruned]:
    """Cut the dead channels out of a network.

    Args:
        model: the network.
        coupling: its coupled channels.
        dead: (number of sets,) bool.
        scores: (number of sets,) which of the dead come back first where ``round_to`` asks for more channels.
        round_to: each convolution keeps a multiple of this, or all its channels; carriers count.
        fold_bias: use no carriers, but fold constants into biases even where padding makes that wrong.

    Returns:
        The reference, a masked copy of ``model``, and the compact network with the same outputs.
    """
    reference = copy.deepcopy(model).eval()
    silenced = mask_gammas(reference, coupling, dead)
    constants = dead_constants(reference, coupling, dead)
    carriers = set() if fold_bias else choose_carriers(coupling, dead, [constants])
    keep = ~dead
    keep[list(carriers)] = True
    if round_to > 1:
        revived = dead & ~keep & round_up(coupling, scores, keep, round_to)
        if revived.any():
            keep, dead = keep | revived, dead & ~revived
            reference = copy.deepcopy(model).eval()
            silenced = mask_gammas(reference, coupling, dead)
            constants = dead_constants(reference, coupling, dead)

    compact = compact_network(reference, coupling, keep, dead, constants, fold_bias)
    kept = {layer.index: keep[coupling.outputs[layer.index]] for layer in reference.spec.convolutions}
    channels = sum(len(coupling.sets[number].members) for number in carriers)
    return reference, Pruned(compact, kept, channels, silenced)


def compact_network(
    reference: Darknet,
    coupling: Coupling,
    keep: np.ndarray,
    dead: np.ndarray,
    constants: dict[int, np.ndarray],
    fold_bias: bool = False,
) -> Darknet:
    """The network of the sets to ``keep``, in eval mode, with the same outputs as the masked ``reference``.

    Args:
        reference: the full network, the gammas of its dead channels 0.
        coupling: its coupled channels.
        keep: (number of sets,) bool, the living sets and the carriers.
        dead: (number of sets,) bool, the constant sets; a set in both is a carrier.
        constants: of ``reference``, see :func:`dead_constants`.
        fold_bias: see :func:`prune`.
    """
    blocks = compact_blocks(reference.blocks, channel_counts(coupling, keep))
    compact = Darknet(blocks).to(device_of(reference)).eval()
    for layer in reference.spec.convolutions:
        _copy_convolution(reference, compact, layer, coupling, keep, dead, constants, fold_bias)
    return compact


def channel_counts(coupling: Coupling, keep: np.ndarray) -> dict[int, int]:
    """How many channels of each convolution are in the sets to ``keep``, by layer number."""
    return {c.index: int(keep[coupling.outputs[c.index]].sum()) for c in coupling.spec.convolutions}


def dead_constants(reference: Darknet, coupling: Coupling, dead: np.ndarray) -> dict[int, np.ndarray]:
    """The constant that each dead channel of each layer's output holds, (channels,) float64; NaN for the living."""
    constants = {IMAGE: np.full(3, np.nan)}
    for layer in reference.spec.layers:
        sources = [constants[source] for source in layer.sources]
        constants[layer.index] = _propagate(layer, sources, reference, dead[coupling.outputs[layer.index]])
    return constants


def _propagate(layer: layers.Layer, sources: list[np.ndarray], reference: Darknet, dead: np.ndarray) -> np.ndarray:
    """The constants of a layer's output, (channels,) float64, NaN for the living.

    Args:
        layer: the layer.
        sources: the constants of each layer that it reads, likewise; NaN stays NaN in a sum and behind an activation.
        reference: the masked network, for the betas.
        dead: (channels,) bool, which channels of the output are dead.
    """
    match layer:
        case layers.Convolution():
            values = np.full(layer.channels, np.nan)
            if layer.batch_normalize:
                beta = reference.batch_norm(layer.index).bias.detach().double().cpu().numpy()
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


def choose_carriers(coupling: Coupling, dead: np.ndarray, constants: Sequence[dict[int, np.ndarray]]) -> set[int]:
    """The dead sets to keep as constant carriers: few that serve every padded consumer of a constant that is not 0.

    Args:
        coupling: the coupled channels.
        dead: (number of sets,) bool.
        constants: of each network that the carriers are for, as :func:`dead_constants` gives them.
    """
    offers = []
    for layer in coupling.spec.convolutions:
        if layer.padding and layer.groups == 1:
            sets = coupling.inputs(layer)
            for held in constants:
                values = np.abs(held[layer.sources[0]])
                usable = dead[sets] & (values > LEAST_CARRIER * np.where(dead[sets], values, 0).max(initial=0.0))
                if usable.any():
                    offers.append(set(sets[usable].tolist()))
    chosen: set[int] = set()
    while open_offers := [offer for offer in offers if not offer & chosen]:
        served = {number: sum(number in offer for offer in open_offers) for number in set.union(*open_offers)}
        chosen.add(max(served, key=lambda n: (served[n] / len(coupling.sets[n].members), -n)))
    return chosen


def compact_blocks(blocks: Sequence[dict[str, str]], counts: Mapping[int, int]) -> list[dict[str, str]]:
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
def _copy_convolution(
    reference: Darknet,
    compact: Darknet,
    layer: layers.Convolution,
    coupling: Coupling,
    keep: np.ndarray,
    dead: np.ndarray,
    constants: dict[int, np.ndarray],
    fold_bias: bool,
) -> None:
    """Copy the kept part of a convolution, with the share of the dead channels that it no longer reads.

    Where that share is the same at every place, it is ``shift``, (channels,): what the kernel no longer adds up.
    Without BN it goes into the bias. BN subtracts the running mean from what the kernel adds up, so there the mean is
    made smaller by ``shift`` and the difference is what it was. Elsewhere it goes into the kernel of a carrier.

    The sums are taken in double precision: thousands of terms, partly divided by a small constant, and only their
    result is rounded to the float32 of the weights.

    Args:
        reference: the masked network, to copy from.
        compact: the network to copy to.
        layer: the convolution, of ``reference``.
        coupling, keep, dead: see :func:`compact_network`.
        constants: of each layer's output, by layer number, (channels,); NaN for the living.
        fold_bias: take the share for the same at every place even where zero padding cuts it off.
    """
    outputs, inputs = coupling.outputs[layer.index], coupling.inputs(layer)
    weight = reference.conv(layer.index).weight.detach().double().cpu()
    weight[torch.from_numpy(dead[outputs])] = 0  # a carrier is constant by its gamma; its kernel is of no use
    shift = torch.zeros(layer.channels, dtype=torch.float64)
    if layer.groups == 1:
        gone = ~keep[inputs]
        values = torch.from_numpy(np.where(gone, np.nan_to_num(constants[layer.sources[0]]), 0.0))
        share = torch.einsum("oihw,i->ohw", weight, values)
        if fold_bias or not layer.padding:
            shift = share.sum(dim=(1, 2))
        elif share.any():
            carrier, constant = _strongest_carrier(inputs, keep & dead, constants[layer.sources[0]])
            weight[:, carrier] += share / constant
        weight = weight[:, torch.from_numpy(keep[inputs])]

    kept = torch.from_numpy(keep[outputs])
    target = compact.conv(layer.index)
    target.weight.copy_(weight[kept])
    if layer.batch_normalize:
        source, norm = reference.batch_norm(layer.index), compact.batch_norm(layer.index)
        on_device = kept.to(source.weight.device)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(source, name)[on_device])
        norm.running_mean.sub_(shift[kept].to(norm.running_mean))
        norm.num_batches_tracked.copy_(source.num_batches_tracked)
    else:
        bias = reference.conv(layer.index).bias.detach().double().cpu() + shift
        target.bias.copy_(bias[kept])


def _strongest_carrier(inputs: np.ndarray, carriers: np.ndarray, constants: np.ndarray) -> tuple[int, float]:
    strength = np.where(carriers[inputs], np.abs(constants), -1.0)
    position = int(strength.argmax())
    return position, float(constants[position])


def proof_images(img_size: int, stride: int) -> Iterator[Tensor]:
    """Random images of more than one batch size and aspect, (B, 3, H, W) in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    for batch, height, width in ((2, img_size, img_size), (1, img_size, img_size + 2 * stride)):
        yield torch.rand(batch, 3, height, width, generator=random)


@torch.inference_mode()
def head_difference(reference: Darknet, other: Darknet, img_size: int) -> float:
    """The largest difference of the raw head outputs of two networks over the reference's largest magnitude.

    It is NaN where an output is: comparisons say no to that.
    """
    device = device_of(reference)
    gaps = []
    for images in proof_images(img_size, reference.spec.stride):
        with without_tf32():
            wanted, got = reference.eval().raw_outputs(images.to(device)), other.eval().raw_outputs(images.to(device))
        # Python's max may lose a NaN, torch's does not.
        scale = torch.stack([head.abs().max() for head in wanted]).max()
        gap = torch.stack([(a - b).abs().max() for a, b in zip(wanted, got, strict=True)]).max()
        gaps.append(gap / scale if scale else gap)
    return float(torch.stack(gaps).max())
