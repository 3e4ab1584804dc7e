"""Cutting dead channels out of a network while it is trained, so that the remaining epochs are faster.

Where the proximal step has driven every gamma of a channel set to exactly 0, in the network and thereby in its average
(EMA), the set's channels are constants in both, with batch statistics as with running ones. They are cut as
:mod:`utils.pruning.surgery` does it, so network and average compute what they did before. Three things follow:

- What is cut cannot come back, while a gamma of 0 that stays could be pulled up by the loss.
- The weights that see constants at a padded border see them through a carrier, one channel for all. It keeps its kernel
  and a gamma of 0: a constant, until the loss brings it back to life.
- The momenta of the optimizer are those of the channels that stay.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import Darknet
from utils.darknet.cfg import Block
from utils.darknet.layers import Convolution
from utils.darknet.spec import NetworkSpec
from utils.errors import InputError
from utils.pruning.constants import prune_masks
from utils.pruning.coupling import Coupling, couple
from utils.pruning.mask import PruneMask
from utils.pruning.proof import TOLERANCE, head_difference
from utils.pruning.selection import Gammas
from utils.pruning.surgery import compact_blocks, compact_network
from utils.sizes import AnySize


class KeptChannels:
    """Which channels are left of the network that training began with.

    Args:
        spec: that network.

    Attributes:
        coupling: its coupled channels.
        channels: for each of its convolutions, by layer number, the numbers (channels,) of those that are left.
    """

    def __init__(self, spec: NetworkSpec):
        self.coupling: Coupling = couple(spec)
        self.channels = {layer.index: np.arange(layer.channels) for layer in spec.convolutions}

    def cut(self, mask: PruneMask) -> None:
        """Drop the channels that ``mask``, of the network that is left, removes."""
        self.channels = {index: numbers[mask.kept_outputs(index)] for index, numbers in self.channels.items()}

    @property
    def removed(self) -> int:
        """How many channels were cut."""
        return sum(layer.channels - len(self.channels[layer.index]) for layer in self.coupling.spec.convolutions)

    def counts(self) -> dict[int, int]:
        """How many channels each convolution has left, by layer number."""
        return {index: len(numbers) for index, numbers in self.channels.items()}

    def spread(self, gammas: Gammas) -> Gammas:
        """|gamma| of the network that is left as those of the one that training began with: 0 for what was cut."""
        return {index: self._full(index, values) for index, values in gammas.items()}

    def _full(self, index: int, values: np.ndarray) -> np.ndarray:
        full = np.zeros(len(self.coupling.outputs[index]), values.dtype)
        full[self.channels[index]] = values
        return full

    def state(self) -> dict[int, list[int]]:
        """The numbers of the channels that are left, for a checkpoint."""
        return {index: numbers.tolist() for index, numbers in self.channels.items()}

    def load_state(self, state: Mapping[int, Sequence[int]], path: Path) -> None:
        """Go back to the :meth:`state` that the checkpoint ``path`` holds.

        Raises:
            InputError: it is that of another network.
        """
        for index, numbers in self.channels.items():
            if len(state) != len(self.channels) or not set(state.get(index, [-1])) <= set(numbers.tolist()):
                raise InputError(f"{path}: belongs to another cfg: layer {index} has other channels there")
        self.channels = {index: np.array(numbers, int) for index, numbers in state.items()}

    def blocks(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """The cfg of what is left, from the cfg that training began with."""
        return compact_blocks(blocks, self.counts()) if self.removed else blocks


def cut_alike(models: Sequence[Darknet], coupling: Coupling, dead: np.ndarray) -> tuple[PruneMask, list[Darknet]]:
    """Cut dead sets out of networks of one cfg in the same way, so that they keep one cfg.

    Args:
        models: the networks, in all of which the gammas of these sets are 0.
        coupling: their coupled channels.
        dead: (number of sets,) bool.

    Returns:
        What was cut, with the constants of the first network; and the compact networks, in eval mode. Where nothing
        can be removed, the networks themselves.
    """
    masks = prune_masks(models, coupling, dead)
    if masks[0].keep.all():
        return masks[0], list(models)
    return masks[0], [compact_network(model, mask) for model, mask in zip(models, masks, strict=True)]


def cut_is_exact(before: Sequence[Darknet], after: Sequence[Darknet], img_size: AnySize) -> bool:
    """Whether each network still computes what it did, to TOLERANCE; they are left in eval mode."""
    gaps = [head_difference(old, new, img_size) for old, new in zip(before, after, strict=True)]
    return all(gap <= TOLERANCE for gap in gaps)


@torch.no_grad()
def carry_optimizer(
    old: torch.optim.Optimizer, new: torch.optim.Optimizer, before: Darknet, after: Darknet, mask: PruneMask
) -> None:
    """Give ``new``, the optimizer of the cut network ``after``, the momenta of ``old`` for the channels that stay."""
    parameters = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        if parameter in old.state:
            kept = parameters[name]
            new.state[kept] = {
                # Indexing need not keep the memory format, and the optimizer is slow where a momentum has another one.
                key: torch.empty_like(kept).copy_(_carried(value, name, mask)) if _is_like(value, parameter) else value
                for key, value in old.state[parameter].items()
            }


def _is_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _carried(value: Tensor, name: str, mask: PruneMask) -> Tensor:
    """The part of a momentum that stays."""
    index = int(name.split(".")[1])  # module_list.{index}.conv_{index}.weight
    layer = mask.coupling.spec.layers[index]
    outputs = _on(value, mask.kept_outputs(index))
    if value.ndim == 1 or not isinstance(layer, Convolution):
        return value[outputs]
    kernel = layer.kernel(value)[outputs]
    return layer.kernel(kernel[:, _on(value, mask.kept_inputs(layer))] if layer.groups == 1 else kernel)


def _on(value: Tensor, channels: np.ndarray) -> Tensor:
    return torch.from_numpy(channels).to(value.device)
