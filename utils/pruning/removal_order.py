"""The order in which channels are removed so that milliseconds, MACs or parameters fall and importance stays.

Channels go in groups of :attr:`Costs.group` coupled sets, the least important of their layers first, and residual
blocks go whole. The next step is the one that loses the least importance for what it saves; what a group saves is
looked up again after each step, since the time of a convolution depends on both of its sides. Several groups may go in
one step, because a runtime that computes 16 channels at once gains nothing by the first 8.

What counts is the share of its importance that each layer keeps: sets over the same layers, whose importance goes from
``K`` to ``K - lost``, lose ``w * log(K / (K - lost))``, where ``w`` is the importance of a typical one of them, times
the layers that they lie in. A sum over channels, the objective of HALP (arXiv 2210.06659, section 3), would empty an
expensive layer to its floor before it touches a cheap one. Where importance is 0, as sparse training leaves it, both
remove that first.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.pruning.costs import Costs, Counts, Touch, set_touches
from utils.pruning.coupling import Coupling
from utils.pruning.residuals import ResidualBlock
from utils.pruning.selection import check_prunable, floor_of

LAST = 1.0  # what the last channels of a layer cost where a block is removed, in units of w
TINY = 1e-12  # importance that is left where nothing is
LEAST_SAVING = 1e-6  # of the network's cost; a smaller one is none


@dataclass(frozen=True)
class Removal:
    """A step of the order: coupled sets, by number, and the residual block that goes whole with them, if one does."""

    sets: tuple[int, ...]
    block: ResidualBlock | None = None


class Removed(NamedTuple):
    """What is gone at one ratio.

    Attributes:
        dead: (number of sets,) bool, the coupled sets that died, those of the blocks among them.
        blocks: the residual blocks that were removed whole.
        ratio: the share of the prunable channels that is gone.
    """

    dead: np.ndarray
    blocks: list[ResidualBlock]
    ratio: float


class _Offer(NamedTuple):
    """A possible step; the smallest goes first.

    Attributes:
        loss_per_saving: the importance that is lost, for what is saved.
        minus_saved: what is saved, negative: of two that lose as little for it, the one that saves more is the smaller.
        sets: how many sets of a family go; 0 for a block, which goes whole.
    """

    loss_per_saving: float
    minus_saved: float
    sets: int


@dataclass(eq=False)
class _Family:
    """Sets that touch the same layers.

    Attributes:
        touches: those layers.
        writers: the convolutions that the sets are outputs of.
        numbers: the sets that are left, the next to go first.
        importance: of each of them.
        weight: of the share of importance that is lost.
        kept: the importance of those that are left.
        at_floor: the least that is kept while its block stays.
    """

    touches: tuple[Touch, ...]
    writers: tuple[int, ...]
    numbers: list[int]
    importance: list[float]
    weight: float
    kept: float
    at_floor: float


class RemovalOrder:
    """All steps from the network to one in which every layer is at its floor, or nothing more would be saved.

    Args:
        coupling: the coupled channels.
        importance: (number of sets,); infinity for the sets that may not die.
        costs: of the layers.
        layer_keep: the share of each convolution's channels that must live.
        blocks: the residual blocks that may go whole.

    Attributes:
        steps: in order.
        channels: (steps,) the share of the prunable channels that is gone after each step.

    Raises:
        InputError: no set may die.
    """

    def __init__(
        self,
        coupling: Coupling,
        importance: np.ndarray,
        costs: Costs,
        layer_keep: float = 0.01,
        blocks: Sequence[ResidualBlock] = (),
    ):
        check_prunable(importance)
        self._coupling = coupling
        self._costs = costs
        self._counts = Counts(coupling, costs)
        self._sizes = coupling.set_sizes
        self._floors = {
            layer.index: _floor(layer.channels, layer_keep, costs.group) for layer in coupling.spec.convolutions
        }
        self._families = self._make_families(importance)
        self._blocks = {block: [g for g in self._families if set(g.writers) <= set(block.layers)] for block in blocks}
        self._least = LEAST_SAVING * self._counts.saved_by_layers(tuple(layer.index for layer in coupling.spec.layers))
        self.steps = self._take_steps()
        prunable = self._sizes[np.isfinite(importance)].sum()
        self.channels = np.cumsum([self._sizes[list(step.sets)].sum() for step in self.steps]) / prunable

    @property
    def ratio_at_floors(self) -> float:
        """The share of the prunable channels that is gone after the last step."""
        return self._share_after(len(self.steps))

    def at(self, ratio: float) -> Removed:
        """What goes where ``ratio`` of the prunable channels may: whole steps, so that it may be less."""
        dead = np.zeros(len(self._coupling.sets), bool)
        count = int(np.searchsorted(self.channels, ratio + 1e-9, side="right"))
        for step in self.steps[:count]:
            dead[list(step.sets)] = True
        blocks = [step.block for step in self.steps[:count] if step.block]
        return Removed(dead, blocks, self._share_after(count))

    def _share_after(self, count: int) -> float:
        return float(self.channels[count - 1]) if count else 0.0

    def _make_families(self, importance: np.ndarray) -> list[_Family]:
        touches = set_touches(self._coupling)
        alike: dict[tuple, list[int]] = {}
        for number in np.flatnonzero(np.isfinite(importance)).tolist():
            alike.setdefault((touches[number], self._coupling.sets[number].layers), []).append(number)
        families = []
        for (touched, writers), numbers in alike.items():
            numbers.sort(key=lambda number: (importance[number], number))
            values = importance[numbers]
            typical = float((values**2).sum() / values.sum()) if values.any() else 0.0
            total = float(values.sum())
            family = _Family(touched, writers, numbers, values.tolist(), len(writers) * typical, total, 0.0)
            family.at_floor = sum(family.importance[self._room(family) :])
            families.append(family)
        return families

    def _room(self, family: _Family) -> int:
        """How many sets of a family may still go."""
        outputs = {index: count for index, _, count in family.touches}
        rooms = [
            (self._counts.outputs[index] - self._floors[index]) // outputs[index]
            for index in family.writers
            if index in self._counts.outputs
        ]
        return max(min([len(family.numbers), *rooms]), 0)

    def _sizes_of_steps(self, family: _Family) -> list[int]:
        """The numbers of sets that may go at once, so that whole groups are left: one group, two, four, ..."""
        group = self._costs.group
        writers = [index for index in family.writers if index in self._counts.outputs]
        first = self._counts.outputs[writers[0]] % group or group if writers else 1
        room, sizes, more = self._room(family), [], 0
        while first + more <= room:
            sizes.append(first + more)
            more = max(2 * more, group)
        return sizes

    def _offer(self, candidate: _Family | ResidualBlock) -> _Offer | None:
        """The best step of a candidate; None where nothing of it may go."""
        if isinstance(candidate, ResidualBlock):
            return self._offer_of_block(candidate)
        return self._offer_of_family(candidate)

    def _offer_of_block(self, block: ResidualBlock) -> _Offer | None:
        families = self._blocks[block]
        if not families:
            return None
        weights = sum(family.weight for family in families)
        loss = sum(family.weight * _log_ratio(family.kept, family.at_floor) for family in families)
        loss += LAST * len(block.convolutions) * weights / len(families)
        saved = self._counts.saved_by_layers(block.layers)
        return _Offer(loss / max(saved, self._least), -saved, 0)

    def _offer_of_family(self, family: _Family) -> _Offer | None:
        offers = [self._offer_of_sets(family, count) for count in self._sizes_of_steps(family)]
        # What saves nothing stays, unless it is worth nothing either.
        worthwhile = (offer for offer in offers if offer.loss_per_saving == 0 or -offer.minus_saved > self._least)
        return min(worthwhile, default=None)

    def _offer_of_sets(self, family: _Family, count: int) -> _Offer:
        lost = sum(family.importance[:count])
        left = max(family.kept - lost, TINY)
        loss = family.weight * math.log(max(family.kept, TINY) / left) if lost else 0.0
        saved = self._counts.saved(family.touches, count)
        return _Offer(loss / max(saved, self._least), -saved, count)

    def _take_steps(self) -> list[Removal]:
        """The steps, from a queue of the best offer of each family and block.

        What an offer saves falls as the layers that it touches shrink, so it is computed again when its turn comes.
        """
        candidates: list[_Family | ResidualBlock] = [*self._families, *self._blocks]
        readers: dict[int, set[int]] = {}  # the numbers of the candidates whose offers depend on a layer
        for number, candidate in enumerate(candidates):
            for index in _layers(candidate):
                readers.setdefault(index, set()).add(number)
        queue = [(offer, number) for number, c in enumerate(candidates) if (offer := self._offer(c))]
        heapq.heapify(queue)
        changed: set[int] = set()
        gone: set[int] = set()
        steps: list[Removal] = []
        while queue:
            offer, number = heapq.heappop(queue)
            candidate = candidates[number]
            if number in gone:
                continue
            if number not in changed:
                if isinstance(candidate, ResidualBlock):
                    steps.append(self._remove_block(candidate))
                    gone |= {number, *(candidates.index(family) for family in self._blocks[candidate])}
                else:
                    steps.append(self._remove_sets(candidate, offer.sets))
                changed |= set().union(*(readers[index] for index in _layers(candidate)))
            changed.discard(number)
            if number not in gone and (again := self._offer(candidate)):
                heapq.heappush(queue, (again, number))
        return steps

    def _remove_sets(self, family: _Family, count: int) -> Removal:
        removal = Removal(tuple(family.numbers[:count]))
        self._counts.remove(family.touches, count)
        family.kept = max(family.kept - sum(family.importance[:count]), 0.0)
        del family.numbers[:count], family.importance[:count]
        return removal

    def _remove_block(self, block: ResidualBlock) -> Removal:
        self._counts.remove_layers(block.layers)
        return Removal(tuple(number for family in self._blocks[block] for number in family.numbers), block)


def _layers(candidate: _Family | ResidualBlock) -> Sequence[int]:
    """The layers that a candidate's offer depends on."""
    if isinstance(candidate, ResidualBlock):
        return candidate.layers
    return [index for index, _, _ in candidate.touches]


def _floor(channels: int, layer_keep: float, group: int) -> int:
    """The least channels that a convolution keeps: whole groups, with room for a constant carrier."""
    carrier = 1 if group > 1 else 0
    least = floor_of(channels, layer_keep) + carrier
    return min(channels, -(-least // group) * group)


def _log_ratio(high: float, low: float) -> float:
    return math.log(high / low) if high > low > 0 else 0.0
