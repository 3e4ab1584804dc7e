"""Pruning at any ratio."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models import Darknet
from utils.darknet.layers import IMAGE
from utils.pruning.costs import Costs
from utils.pruning.coupling import Coupling, couple
from utils.pruning.importance import importance
from utils.pruning.penalty import gamma_sizes
from utils.pruning.reconstruction import reconstruct
from utils.pruning.removal_order import RemovalOrder
from utils.pruning.residuals import (
    ResidualBlock,
    kept_layers,
    last_gamma,
    remove_residual_blocks,
    residual_blocks,
    silence_residual_blocks,
    weakest_residual_blocks,
)
from utils.pruning.selection import Selection, is_separated, select_least
from utils.pruning.surgery import Pruned, prune


@dataclass(frozen=True)
class PruningResult:
    """A network pruned at one ratio.

    Attributes:
        ratio: by one threshold the share of the prunable channels that was asked for, of which floors and carriers
            keep some; by costs the share that died, in whole steps of the order.
        selection: which sets died.
        residual_blocks: those that were removed whole.
        reference: the whole network, masked, with the removed residual blocks adding 0.
        pruned: the compact network.
        counts: channels of each convolution of the whole network, by layer number; 0 where its block was removed.
    """

    ratio: float
    selection: Selection
    residual_blocks: Sequence[ResidualBlock]
    reference: Darknet
    pruned: Pruned
    counts: dict[int, int]

    @property
    def channels_cut(self) -> str:
        """How many channels of how many were cut, in words."""
        channels = sum(layer.channels for layer in self.reference.spec.convolutions)
        return f"{channels - sum(self.counts.values())} of {channels} channels cut"


class Pruner:
    """Prunes one network at any ratio.

    Args:
        model: the network, in eval mode; it stays as it is.
        strategy: see :mod:`utils.pruning.selection`.
        layer_keep: the share of a convolution's channels that must live; at least one does.
        round_to: convolutions keep a multiple of this, and whole groups of ``costs``.
        prune_blocks: how many residual blocks to remove whole, the weakest first.
        fold_bias: fold constants into biases even where padding makes that wrong, as older tools do.
        kind: what decides how important a set is, see :mod:`utils.pruning.importance`.
        costs: of the layers; channels then go in the order of :mod:`utils.pruning.removal_order`, and residual blocks
            with them, in place of one threshold for all.
        whole_blocks: whether residual blocks may go in that order.
        images: (B, 3, H, W) in [0, 1], on the network's device, to fit what is left to what the network did, see
            :func:`utils.pruning.reconstruction.reconstruct`; None to leave it as it was cut.

    Attributes:
        residual_blocks: those that are removed at any ratio.
        block_gammas: the mean |gamma| of each, see :func:`utils.pruning.residuals.last_gamma`.
        kept_layers: the old numbers of the layers that stay.
        coupling: the coupled channels of the network without those blocks.
        gammas: |gamma| of its convolutions.
        order: in which channels go by ``costs``; None for one threshold.
    """

    def __init__(
        self,
        model: Darknet,
        strategy: str,
        layer_keep: float = 0.01,
        round_to: int = 1,
        prune_blocks: int = 0,
        fold_bias: bool = False,
        kind: str = "gamma",
        costs: Costs | None = None,
        whole_blocks: bool = True,
        images: Tensor | None = None,
    ):
        self.model = model
        self.strategy = strategy
        self.layer_keep = layer_keep
        self.round_to = round_to
        self.fold_bias = fold_bias
        self.kind = kind
        self.costs = costs
        self.images = images
        sizes = gamma_sizes(model)
        self.residual_blocks = weakest_residual_blocks(model.spec, sizes, prune_blocks)
        self.kept_layers = kept_layers(model.spec, self.residual_blocks)
        self.block_gammas = [last_gamma(block, sizes) for block in self.residual_blocks]
        self._shallow = remove_residual_blocks(model, self.residual_blocks) if self.residual_blocks else model
        self.coupling = couple(self._shallow.spec)
        self.gammas = gamma_sizes(self._shallow)
        self._importance = importance(self._shallow, self.coupling, strategy, kind)
        self.order: RemovalOrder | None = None
        if costs:
            blocks = residual_blocks(model.spec) if whole_blocks else []
            self.round_to = math.lcm(round_to, costs.group)
            self.order = RemovalOrder(self.coupling, self._importance, costs, layer_keep, blocks)

    def at(self, ratio: float) -> PruningResult:
        """Prune at ``ratio`` of the prunable channels."""
        if self.order:
            return self._at_step(self.order, ratio)
        selection = select_least(self.coupling, self._importance, ratio, self.layer_keep)
        masked, pruned = prune(
            self._shallow, self.coupling, selection.dead, self._importance, self.round_to, self.fold_bias
        )
        return self._result(ratio, selection, self.residual_blocks, masked, pruned)

    @property
    def importance_in_words(self) -> str:
        """What the thresholds of its selections are of."""
        return "|gamma|" if self.kind == "gamma" else f"{self.kind} (1 is a layer's mean)"

    def finished(self, result: PruningResult) -> Darknet:
        """The compact network of a pruning, in eval mode; with ``images`` a copy that is fitted to them."""
        if self.images is None:
            return result.pruned.model
        compact = copy.deepcopy(result.pruned.model)
        layers = kept_layers(self.model.spec, result.residual_blocks)
        reconstruct(compact, self.model, result.pruned.mask, self.images, layers)
        return compact

    def _at_step(self, order: RemovalOrder, ratio: float) -> PruningResult:
        """Prune as far as an order gets by ``ratio``."""
        dead, blocks, ratio = order.at(ratio)
        selection = Selection(dead, (), float(self._importance[dead].max(initial=0.0)))
        shallow, coupling, sets = self.model, self.coupling, np.arange(len(dead))
        if blocks:
            shallow = remove_residual_blocks(self.model, blocks)
            coupling = couple(shallow.spec)
            sets = corresponding_sets(coupling, self.coupling, kept_layers(self.model.spec, blocks))
        masked, pruned = prune(
            shallow, coupling, dead[sets], self._importance[sets], self.round_to, self.fold_bias, make_room=True
        )
        return self._result(ratio, selection, blocks, masked, pruned)

    def _result(
        self, ratio: float, selection: Selection, blocks: Sequence[ResidualBlock], masked: Darknet, pruned: Pruned
    ) -> PruningResult:
        kept = kept_layers(self.model.spec, blocks)
        counts = {layer.index: 0 for layer in self.model.spec.convolutions}
        counts |= {kept[index]: count for index, count in pruned.mask.channel_counts().items()}
        reference = self._full_reference(masked, blocks, kept)
        return PruningResult(ratio, selection, blocks, reference, pruned, counts)

    def _full_reference(self, masked: Darknet, blocks: Sequence[ResidualBlock], kept: Sequence[int]) -> Darknet:
        """The full network with the masked gammas, and residual blocks that add 0."""
        if not blocks:
            return masked
        reference = copy.deepcopy(self.model).eval()
        silence_residual_blocks(reference, blocks)
        for index, norm in masked.batch_norms.items():
            reference.batch_norm(kept[index]).load_state_dict(norm.state_dict())
        return reference

    def separated(self, selection: Selection) -> bool:
        """Whether the gammas that die are clearly below the kept ones, see :func:`is_separated`.

        Of the residual blocks that are removed at any ratio the mean |gamma| counts which chose them.
        """
        return is_separated(self._importance, selection.dead, self.block_gammas)


def corresponding_sets(coupling: Coupling, full: Coupling, kept: Sequence[int]) -> np.ndarray:
    """(number of sets,) for each set of a network without some residual blocks its number in the whole network.

    Args:
        coupling: of the network without the blocks.
        full: of the whole network.
        kept: see :func:`utils.pruning.residuals.kept_layers`.
    """
    numbers = np.zeros(len(coupling.sets), int)
    for index, sets in coupling.outputs.items():
        numbers[sets] = full.outputs[index if index == IMAGE else kept[index]]
    return numbers
