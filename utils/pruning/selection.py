"""Which channel sets may die, and which do: the rule of a strategy, a global ratio, and a floor a layer.

- ``normal``: only sets that lie within one convolution may die, so residual trunks stay whole.
- ``shortcut``: every set that is not fixed may die; its first member's gamma decides.
- ``slim``: every set that is not fixed may die; it lives while any member's gamma lives.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.pruning.coupling import ChannelSet, Coupling

# Gammas that die are clearly below those that live if they are at most SPARSE times the large ones, which the quantile
# LARGE of those that live stands for: the sign of sparse training.
SPARSE = 0.5
LARGE = 0.95
STRATEGIES = ("normal", "shortcut", "slim")

Gammas = Mapping[int, np.ndarray]  # |gamma| of each convolution with BN, by layer number


@dataclass(frozen=True)
class Choice:
    """Which sets die.

    Attributes:
        dead: (number of sets,) bool.
        floored: the layers that would have lost more but for their floor.
        threshold: the largest score among the dead, 0 where nothing dies.
    """

    dead: np.ndarray
    floored: tuple[int, ...]
    threshold: float


def prunable_sets(coupling: Coupling, strategy: str) -> list[int]:
    """The numbers of the sets that ``strategy`` may let die."""
    return [
        number
        for number, channel_set in enumerate(coupling.sets)
        if not channel_set.fixed and (strategy != "normal" or len(channel_set.layers) == 1)
    ]


def prunable_channels(coupling: Coupling, strategy: str) -> dict[int, np.ndarray]:
    """For each convolution with BN a mask (channels,) of those that ``strategy`` may let die, by layer number."""
    masks = {
        layer.index: np.zeros(layer.channels, bool) for layer in coupling.spec.convolutions if layer.batch_normalize
    }
    for number in prunable_sets(coupling, strategy):
        for layer, channel in coupling.sets[number].members:
            if layer in masks:
                masks[layer][channel] = True
    return masks


def set_scores(coupling: Coupling, strategy: str, gammas: Gammas) -> np.ndarray:
    """(number of sets,) the score of each set that may die; infinity for the others."""
    scores = np.full(len(coupling.sets), np.inf)
    for number in prunable_sets(coupling, strategy):
        values = _member_gammas(coupling.sets[number], gammas)
        scores[number] = values[0] if strategy == "shortcut" else max(values)
    return scores


def _member_gammas(channel_set: ChannelSet, gammas: Gammas) -> list[float]:
    return [float(gammas[layer][channel]) for layer, channel in channel_set.members if layer in gammas]


def choose(coupling: Coupling, strategy: str, gammas: Gammas, ratio: float, layer_keep: float = 0.01) -> Choice:
    """Let the lowest ``ratio`` of the prunable channels die, but leave each convolution its floor.

    Args:
        coupling: the coupled channels.
        strategy: one of STRATEGIES.
        gammas: |gamma| of each convolution with BN.
        ratio: the share of the prunable channels to let die, in [0, 1).
        layer_keep: the share of each convolution's channels that must live; at least one does.

    Raises:
        InputError: nothing may die under this strategy.
    """
    scores = set_scores(coupling, strategy, gammas)
    order = np.argsort(scores, kind="stable")[: int(np.isfinite(scores).sum())]
    if not len(order):
        raise InputError(f"strategy {strategy}: no channel of this network may be pruned")
    sizes = np.array([len(channel_set.members) for channel_set in coupling.sets])
    share = np.cumsum(sizes[order]) / sizes[order].sum()
    dead = np.zeros(len(scores), bool)
    dead[order[share <= ratio + 1e-9]] = True

    floored = _keep_floors(coupling, scores, dead, layer_keep)
    return Choice(dead, floored, float(scores[dead].max(initial=0.0)))


def _keep_floors(coupling: Coupling, scores: np.ndarray, dead: np.ndarray, layer_keep: float) -> tuple[int, ...]:
    """Take the best sets of ``dead`` back, in place, where a convolution would keep too few; the layers concerned."""
    floored = []
    for layer in coupling.spec.convolutions:
        sets = coupling.outputs[layer.index]
        floor = max(1, math.ceil(layer_keep * layer.channels))
        missing = floor - int((~dead[sets]).sum())
        if missing > 0:
            floored.append(layer.index)
            lost = np.unique(sets[dead[sets]])
            dead[lost[np.argsort(-scores[lost], kind="stable")[:missing]]] = False
    return tuple(floored)


def silent_sets(coupling: Coupling, strategy: str, gammas: Gammas) -> np.ndarray:
    """(number of sets,) bool, the sets that can go without any change: every gamma of theirs is exactly 0.

    Only sets that ``strategy`` may let die; not those behind a gate, whose betas would have to become 0 too; and each
    convolution keeps a channel.
    """
    scores = np.full(len(coupling.sets), np.inf)
    for number in prunable_sets(coupling, strategy):
        if not coupling.sets[number].gated:
            scores[number] = max(_member_gammas(coupling.sets[number], gammas))
    dead = scores == 0
    _keep_floors(coupling, scores, dead, layer_keep=0)
    return dead


def round_up(coupling: Coupling, scores: np.ndarray, keep: np.ndarray, multiple: int) -> np.ndarray:
    """The sets to keep so that each convolution keeps a multiple of ``multiple`` channels, or all that it has.

    Args:
        coupling: the coupled channels.
        scores: (number of sets,) as :func:`set_scores` gives them; the best of those cut come back first.
        keep: (number of sets,) bool, the sets to keep before rounding, constant carriers among them.
        multiple: what to round up to.

    Returns:
        (number of sets,) bool, a superset of ``keep``.
    """
    keep = keep.copy()
    changed = True
    while changed:  # a set that comes back for one layer can spoil the count of another, so until nothing changes
        changed = False
        for layer in coupling.spec.convolutions:
            sets = coupling.outputs[layer.index]
            missing = min(-int(keep[sets].sum()) % multiple, int((~keep[sets]).sum()))
            if missing:
                cut = np.unique(sets[~keep[sets]])
                keep[cut[np.argsort(-scores[cut], kind="stable")[:missing]]] = True
                changed = True
    return keep


def allowed_ratio(coupling: Coupling, strategy: str, gammas: Gammas) -> float:
    """The largest share of the prunable channels that a global threshold could take and leave every layer one.

    Layers that are dead as a whole do not count: they keep their floor, whatever the threshold.
    """
    scores = set_scores(coupling, strategy, gammas)
    limits = [scores[coupling.outputs[layer.index]].max() for layer in coupling.spec.convolutions]
    limit = min((limit for limit in limits if limit > 0), default=np.inf)
    sizes = np.array([len(channel_set.members) for channel_set in coupling.sets])
    prunable = np.isfinite(scores)
    total = sizes[prunable].sum()
    return float(sizes[prunable & (scores < limit)].sum() / total) if total else 0.0


def separated(scores: np.ndarray, dead: np.ndarray, threshold: float) -> bool:
    """Whether the scores that die are clearly below those that live, by SPARSE.

    Args:
        scores: (number of sets,) as :func:`set_scores` gives them.
        dead: (number of sets,) bool.
        threshold: the largest score among the dead.
    """
    living = scores[np.isfinite(scores) & ~dead]
    return not len(living) or threshold <= SPARSE * float(np.quantile(living, LARGE))


def sparse_ratio(coupling: Coupling, strategy: str, gammas: Gammas) -> float:
    """The share of the prunable channels whose scores are clearly below those of the others, by SPARSE."""
    scores = set_scores(coupling, strategy, gammas)
    prunable = np.isfinite(scores)
    low = np.zeros(len(scores), bool)
    while (others := scores[prunable & ~low]).size:
        lower = prunable & (scores <= SPARSE * np.quantile(others, LARGE))
        if (lower == low).all():
            break
        low = lower
    sizes = np.array([len(channel_set.members) for channel_set in coupling.sets])
    total = sizes[prunable].sum()
    return float(sizes[low].sum() / total) if total else 0.0
