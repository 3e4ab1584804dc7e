"""Which channel sets may die, and which do: the importance of a set, a global ratio, and a floor per layer.

A strategy says which sets may die and how the importance of a set comes from the |gamma| of its members:

- ``normal``: only sets that lie within one convolution may die, so residual trunks stay whole; its
  importance is the |gamma| of its only member.
- ``shortcut``: every set that is not fixed may die; its importance is its first member's |gamma|.
- ``slim``: every set that is not fixed may die; its importance is the largest |gamma| of its members.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.pruning.coupling import ChannelSet, Coupling

# What dies is clearly below what lives where its importance is at most SPARSE times that of the most important, which
# the quantile LARGE of what lives stands for: the sign of sparse training.
SPARSE = 0.5
LARGE = 0.95
STRATEGIES = ("normal", "shortcut", "slim")
LEAST_SPARSE = 0.05  # a network is not sparse where a lower share of its channels is clearly below the others

Gammas = Mapping[int, np.ndarray]  # |gamma| of each convolution with BN, by layer number


@dataclass(frozen=True)
class Selection:
    """Which sets die.

    Attributes:
        dead: (number of sets,) bool.
        floored: the layers that would have lost more but for their floor.
        threshold: the largest importance among the dead, 0 where nothing dies.
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


def set_importance(coupling: Coupling, strategy: str, gammas: Gammas) -> np.ndarray:
    """(number of sets,) the importance of each set that may die, from its members' |gamma|; infinity for the others."""
    importance = np.full(len(coupling.sets), np.inf)
    for number in prunable_sets(coupling, strategy):
        values = _member_gammas(coupling.sets[number], gammas)
        importance[number] = values[0] if strategy == "shortcut" else max(values)
    return importance


def _member_gammas(channel_set: ChannelSet, gammas: Gammas) -> list[float]:
    return [float(gammas[layer][channel]) for layer, channel in channel_set.members if layer in gammas]


def select(coupling: Coupling, strategy: str, gammas: Gammas, ratio: float, layer_keep: float = 0.01) -> Selection:
    """Let the least important ``ratio`` of the prunable channels die, but leave each convolution its floor.

    Args:
        coupling: the coupled channels.
        strategy: one of STRATEGIES.
        gammas: |gamma| of each convolution with BN.
        ratio: the share of the prunable channels to let die, in [0, 1).
        layer_keep: the share of each convolution's channels that must live; at least one does.

    Raises:
        InputError: nothing may die under this strategy.
    """
    return select_least(coupling, set_importance(coupling, strategy, gammas), ratio, layer_keep)


def select_least(coupling: Coupling, importance: np.ndarray, ratio: float, layer_keep: float = 0.01) -> Selection:
    """Let the least important ``ratio`` of the prunable channels die, by any importance.

    Args:
        coupling: the coupled channels.
        importance: (number of sets,); infinity for the sets that may not die.
        ratio, layer_keep: see :func:`select`.

    Raises:
        InputError: nothing may die.
    """
    check_prunable(importance)
    order = np.argsort(importance, kind="stable")[: int(np.isfinite(importance).sum())]
    sizes = coupling.set_sizes
    share = np.cumsum(sizes[order]) / sizes[order].sum()
    dead = np.zeros(len(importance), bool)
    dead[order[share <= ratio + 1e-9]] = True

    floored = _keep_floors(coupling, importance, dead, layer_keep)
    return Selection(dead, floored, float(importance[dead].max(initial=0.0)))


def check_prunable(importance: np.ndarray) -> None:
    """Raise an InputError where no set may die."""
    if not np.isfinite(importance).any():
        raise InputError("no channel of this network may be pruned under this strategy")


def floor_of(channels: int, layer_keep: float) -> int:
    """How many of its channels a convolution must keep: the share ``layer_keep``, at least one."""
    return max(1, math.ceil(layer_keep * channels))


def _keep_floors(coupling: Coupling, importance: np.ndarray, dead: np.ndarray, layer_keep: float) -> tuple[int, ...]:
    """Let the most important of the ``dead`` live, in place, where a layer would keep too few; return those layers."""
    floored = []
    for layer in coupling.spec.convolutions:
        sets = coupling.outputs[layer.index]
        missing = floor_of(layer.channels, layer_keep) - int((~dead[sets]).sum())
        if missing > 0:
            floored.append(layer.index)
            lost = np.unique(sets[dead[sets]])
            dead[lost[np.argsort(-importance[lost], kind="stable")[:missing]]] = False
    return tuple(floored)


def silent_sets(coupling: Coupling, strategy: str, gammas: Gammas) -> np.ndarray:
    """(number of sets,) bool, the sets that can be removed without any change: every gamma of theirs is exactly 0.

    Only sets that ``strategy`` may let die; not those behind a gate, whose betas would have to become 0 too; and each
    convolution keeps a channel.
    """
    importance = np.full(len(coupling.sets), np.inf)
    for number in prunable_sets(coupling, strategy):
        if not coupling.sets[number].gated:
            importance[number] = max(_member_gammas(coupling.sets[number], gammas))
    dead = importance == 0
    _keep_floors(coupling, importance, dead, layer_keep=0)
    return dead


def round_up(coupling: Coupling, importance: np.ndarray, keep: np.ndarray, multiple: int) -> np.ndarray:
    """The sets to keep so that each convolution keeps a multiple of ``multiple`` channels, or all that it has.

    Args:
        coupling: the coupled channels.
        importance: (number of sets,) of :func:`set_importance`; the most important of those cut come back first.
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
                keep[cut[np.argsort(-importance[cut], kind="stable")[:missing]]] = True
                changed = True
    return keep


def room_for_carriers(
    coupling: Coupling, importance: np.ndarray, dead: np.ndarray, keep: np.ndarray, multiple: int
) -> np.ndarray:
    """The sets that may die so that carriers take the places of living channels, and not a further multiple.

    Args:
        coupling: the coupled channels.
        importance: (number of sets,); the least important die, and none of those with infinity.
        dead: (number of sets,) bool, the sets that are dead already.
        keep: (number of sets,) bool, the sets to keep: the living, and the carriers among the dead.
        multiple: what each convolution should keep a multiple of.

    Returns:
        (number of sets,) bool: in each convolution at most as many as it has carriers, and not its last living one.
    """
    more = np.zeros(len(dead), bool)
    for layer in coupling.spec.convolutions:
        sets = coupling.outputs[layer.index]
        living = np.unique(sets[~dead[sets] & ~more[sets] & np.isfinite(importance[sets])])
        kept, carriers = int((keep[sets] & ~more[sets]).sum()), int((keep[sets] & dead[sets]).sum())
        excess = kept % multiple
        if excess <= min(carriers, len(living) - 1) and kept < layer.channels:
            more[living[np.argsort(importance[living], kind="stable")[:excess]]] = True
    return more


def allowed_ratio(coupling: Coupling, strategy: str, gammas: Gammas) -> float:
    """The largest share of the prunable channels that a global threshold can cut before a layer is empty.

    Layers whose gammas are all 0 do not count: they keep their floor, whatever the threshold.
    """
    importance = set_importance(coupling, strategy, gammas)
    limits = [importance[coupling.outputs[layer.index]].max() for layer in coupling.spec.convolutions]
    limit = min((limit for limit in limits if limit > 0), default=np.inf)
    sizes = coupling.set_sizes
    prunable = np.isfinite(importance)
    total = sizes[prunable].sum()
    return float(sizes[prunable & (importance < limit)].sum() / total) if total else 0.0


def is_separated(importance: np.ndarray, dead: np.ndarray, removed: Sequence[float] = ()) -> bool:
    """Whether what dies is clearly less important than what lives: the sign of sparse training.

    Args:
        importance: (number of sets,) as :func:`set_importance` gives it.
        dead: (number of sets,) bool, a :class:`Selection`'s.
        removed: the importance of what goes besides.

    Returns:
        Whether the largest importance of all that goes is at most SPARSE times the quantile LARGE of the living, or
        nothing that may die lives.
    """
    living = importance[np.isfinite(importance) & ~dead]
    largest = max([importance[dead].max(initial=0.0), *removed])
    return not len(living) or float(largest) <= SPARSE * float(np.quantile(living, LARGE))


def sparse_ratio(coupling: Coupling, strategy: str, gammas: Gammas) -> float:
    """The share of the prunable channels whose importance is clearly below that of the others, by SPARSE."""
    importance = set_importance(coupling, strategy, gammas)
    prunable = np.isfinite(importance)
    low = np.zeros(len(importance), bool)
    while (others := importance[prunable & ~low]).size:
        lower = prunable & (importance <= SPARSE * np.quantile(others, LARGE))
        if (lower == low).all():
            break
        low = lower
    sizes = coupling.set_sizes
    total = sizes[prunable].sum()
    return float(sizes[low].sum() / total) if total else 0.0


def describe_room(coupling: Coupling, strategy: str, gammas: Gammas) -> str:
    """How much can be pruned, in words for a person who waits for the gammas to become sparse."""
    return room_in_words(sparse_ratio(coupling, strategy, gammas), allowed_ratio(coupling, strategy, gammas))


def room_in_words(sparse: float, allowed: float) -> str:
    """What can be pruned, by the shares of :func:`sparse_ratio` and :func:`allowed_ratio`."""
    if sparse < LEAST_SPARSE:
        return "not sparse yet"
    if allowed <= sparse:
        return f"up to {allowed:.1%} of the channels can be pruned before a layer is empty"
    return f"up to {sparse:.1%} of the channels can be pruned: their gammas are clearly below the others"
