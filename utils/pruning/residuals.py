"""Residual blocks removed whole: the convolutions of a branch, and the shortcut that adds it.

A block is a chain of convolutions from a layer ``x`` to a shortcut that adds ``x`` again, where nothing else reads the
chain. If its last BatchNorm's gamma and beta are 0, and its activations map 0 to 0, it adds exactly 0, and the network
without it computes the same.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from models import Darknet
from utils.darknet import layers
from utils.darknet.activations import NOT_ZERO_AT_ZERO
from utils.darknet.cfg import Block
from utils.darknet.spec import NetworkSpec
from utils.devices import device_of
from utils.errors import InputError
from utils.pruning.selection import Gammas


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block: the layer that it reads, its convolutions, and its shortcut, which follow one another."""

    entry: int
    convolutions: tuple[int, ...]
    shortcut: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer of the block."""
        return (*self.convolutions, self.shortcut)


def residual_blocks(spec: NetworkSpec) -> list[ResidualBlock]:
    """The residual blocks that can be removed whole, in order of layers."""
    consumers = spec.consumers
    blocks = []
    for layer in spec.layers:
        if not isinstance(layer, layers.Shortcut) or len(layer.sources) != 2 or layer.activation != "linear":
            continue
        branch, entry = layer.sources
        chain = range(entry + 1, layer.index)
        if branch == layer.index - 1 and chain and all(_is_link(spec, consumers, index) for index in chain):
            last = spec.layers[branch]
            same_width = entry >= 0 and last.channels == spec.layers[entry].channels
            if not isinstance(last, layers.Convolution) or not same_width:
                continue
            if last.batch_normalize and last.activation not in NOT_ZERO_AT_ZERO:
                blocks.append(ResidualBlock(entry, tuple(chain), layer.index))
    return blocks


def _is_link(spec: NetworkSpec, consumers: dict[int, list[layers.Layer]], index: int) -> bool:
    """Whether a layer is a convolution that only the next layer reads."""
    layer = spec.layers[index]
    return isinstance(layer, layers.Convolution) and [reader.index for reader in consumers[index]] == [index + 1]


def weakest_residual_blocks(spec: NetworkSpec, gammas: Gammas, count: int) -> list[ResidualBlock]:
    """The ``count`` residual blocks whose last BatchNorm has the smallest mean |gamma|.

    Raises:
        InputError: the network has fewer.
    """
    blocks = residual_blocks(spec)
    if count > len(blocks):
        raise InputError(f"--prune_blocks {count}: this network has {len(blocks)} residual blocks that can be removed")
    return sorted(blocks, key=lambda block: last_gamma(block, gammas))[:count]


def last_gamma(block: ResidualBlock, gammas: Gammas) -> float:
    """The mean |gamma| of the last BatchNorm of a residual block, which scales what it adds."""
    return float(gammas[block.convolutions[-1]].mean())


@torch.no_grad()
def silence_residual_blocks(model: Darknet, blocks: Collection[ResidualBlock]) -> None:
    """Set the last gamma and beta of each block to 0, in place, so that it adds exactly 0."""
    for block in blocks:
        norm = model.batch_norm(block.convolutions[-1])
        norm.weight.zero_()
        norm.bias.zero_()


def kept_layers(spec: NetworkSpec, blocks: Collection[ResidualBlock]) -> list[int]:
    """The old numbers of the layers that stay, in order: the new layer ``k`` is the old layer ``result[k]``."""
    removed = {index for block in blocks for index in block.layers}
    return [layer.index for layer in spec.layers if layer.index not in removed]


def remove_residual_blocks(model: Darknet, blocks: Collection[ResidualBlock]) -> Darknet:
    """The network without ``blocks``, with the weights of the layers that stay, in eval mode."""
    kept = kept_layers(model.spec, blocks)
    smaller = Darknet(cfg_without_blocks(model.spec, blocks)).to(device_of(model)).eval()
    for new, old in enumerate(kept):
        for target, source in zip(smaller.module_list[new].children(), model.module_list[old].children(), strict=True):
            target.load_state_dict(source.state_dict())
    return smaller


def cfg_without_blocks(spec: NetworkSpec, blocks: Collection[ResidualBlock]) -> list[Block]:
    """The cfg of the network without ``blocks``, its absolute and relative layer numbers adapted."""
    kept = kept_layers(spec, blocks)
    entry = {block.shortcut: block.entry for block in blocks}
    number = {old: new for new, old in enumerate(kept)}
    cfg = [spec.blocks[0].copy()]
    for new, old in enumerate(kept):
        section = spec.section(old).copy()
        for key in ("layers", "from"):
            if key in section:
                numbers = [int(text) for text in section[key].rstrip(",").split(",")]
                section[key] = ",".join(str(_moved(value, old, new, entry, number)) for value in numbers)
        cfg.append(section)
    return cfg


def _moved(value: int, old: int, new: int, entry: dict[int, int], number: dict[int, int]) -> int:
    """A layer number as the cfg writes it in layer ``old``, for its new place; relative stays relative."""
    source = value + old if value < 0 else value
    while source in entry:  # what read a removed block now reads the block's input
        source = entry[source]
    return number[source] - new if value < 0 else number[source]
