"""Pruning at a ratio, and the search for the ratio that meets a budget."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from models import Darknet
from utils.errors import InputError
from utils.pruning.coupling import couple
from utils.pruning.penalty import gamma_sizes
from utils.pruning.residuals import kept_layers, remove_blocks, silence_blocks, weakest_blocks
from utils.pruning.selection import Choice, choose, separated, set_scores
from utils.pruning.surgery import Pruned, prune

DEFAULT_RATIO = 0.85  # of the channels, as the older tools have it
LARGEST_RATIO = 0.9999
# The search stops when it knows the ratio to this.
STEP = 0.0025


@dataclass(frozen=True)
class Trial:
    """A network pruned at one ratio.

    Attributes:
        ratio: the share of the prunable channels that was asked for.
        choice: what died.
        reference: the full network, masked, with the removed blocks adding 0.
        pruned: the compact network.
        counts: channels of each convolution of the full network, by layer number; 0 where its block is gone.
    """

    ratio: float
    choice: Choice
    reference: Darknet
    pruned: Pruned
    counts: dict[int, int]


class Pruner:
    """Prunes one network at any ratio.

    Args:
        model: the network, in eval mode; it stays as it is.
        strategy: see :mod:`utils.pruning.selection`.
        layer_keep: the share of a convolution's channels that must live; at least one does.
        round_to: convolutions keep a multiple of this.
        prune_blocks: how many residual blocks to cut out whole, the weakest first.
        fold_bias: fold constants into biases even where padding makes that wrong, as older tools do.

    Attributes:
        coupling: the coupled channels of the network without those blocks.
        gammas: |gamma| of its convolutions.
        survivors: the old numbers of its layers.
    """

    def __init__(
        self,
        model: Darknet,
        strategy: str,
        layer_keep: float = 0.01,
        round_to: int = 1,
        prune_blocks: int = 0,
        fold_bias: bool = False,
    ):
        self.model = model
        self.strategy = strategy
        self.layer_keep = layer_keep
        self.round_to = round_to
        self.fold_bias = fold_bias
        self.blocks = weakest_blocks(model.spec, gamma_sizes(model), prune_blocks)
        self.kept_layers = kept_layers(model.spec, self.blocks)
        self._shallow = remove_blocks(model, self.blocks) if self.blocks else model
        self.coupling = couple(self._shallow.spec)
        self.gammas = gamma_sizes(self._shallow)
        self._scores = set_scores(self.coupling, strategy, self.gammas)

    def at(self, ratio: float) -> Trial:
        """Prune at ``ratio`` of the prunable channels."""
        choice = choose(self.coupling, self.strategy, self.gammas, ratio, self.layer_keep)
        masked, pruned = prune(self._shallow, self.coupling, choice.dead, self._scores, self.round_to, self.fold_bias)
        counts = {layer.index: 0 for layer in self.model.spec.convolutions}
        counts |= {self.kept_layers[index]: int(kept.sum()) for index, kept in pruned.kept.items()}
        return Trial(ratio, choice, self._full_reference(masked), pruned, counts)

    def _full_reference(self, masked: Darknet) -> Darknet:
        """The full network with the masked gammas, and blocks that add 0."""
        if not self.blocks:
            return masked
        reference = copy.deepcopy(self.model).eval()
        silence_blocks(reference, self.blocks)
        for index, norm in masked.batch_norms.items():
            reference.batch_norm(self.kept_layers[index]).load_state_dict(norm.state_dict())
        return reference

    def separated(self, choice: Choice) -> bool:
        """Whether the gammas that die are clearly smaller than the large ones: the sign of sparse training."""
        return separated(self._scores, choice.dead, choice.threshold)


def largest_ratio(acceptable: Callable[[float], bool], goal: str) -> float:
    """The largest ratio that is acceptable, to STEP below, by bisection.

    ``acceptable`` should turn from true to false once; where it turns more often, one of the turns is found.

    Raises:
        InputError: not even 0 reaches the ``goal``.
    """
    low, high = 0.0, LARGEST_RATIO
    if acceptable(high):
        return high
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if acceptable(middle) else (low, middle)
    if low == 0 and not acceptable(low):
        raise InputError(f"{goal} cannot be reached: it is less before a single channel is cut")
    return low


def smallest_ratio(reached: Callable[[float], bool], goal: str) -> float:
    """The smallest ratio at which ``reached`` is true, to STEP above, by bisection.

    Raises:
        InputError: not even LARGEST_PERCENT reaches the ``goal``.
    """
    if reached(0.0):
        return 0.0
    if not reached(LARGEST_RATIO):
        raise InputError(f"{goal} cannot be reached: the layers' floors (--layer_keep) and fixed channels leave more")
    low, high = 0.0, LARGEST_RATIO
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
