"""How much to prune: a ratio, or a budget, for which a ratio is searched."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from models import Darknet
from utils.darknet.spec import NetworkSpec
from utils.errors import InputError
from utils.notices import notice
from utils.pruning.compare import Bench
from utils.pruning.costs import SizeCosts
from utils.pruning.latency import Latency
from utils.pruning.pruner import Pruner, PruningResult
from utils.sizes import AnySize

DEFAULT_RATIO = 0.85  # of the channels, as the older tools have it
LARGEST_RATIO = 0.9999
TOLERANCE = 0.0025  # the search for a ratio ends when it is known to this
CORRECTIONS = 3  # of a table's budget by what is measured
# A cut by sizes takes so many channels of a layer at once; runtimes compute 8 at a time.
GROUP_SIZES = (8, 4, 2, 1)
# Groups are smaller where the last groups of all layers are together more than this share of the budget: importance
# would have too little left to choose.
MOST_FLOORS = 0.75
SIZES: dict[str, Callable[[NetworkSpec], int]] = {
    "MACs": lambda spec: spec.macs,
    "parameters": lambda spec: spec.parameters,
}


@dataclass(frozen=True)
class Budget:
    """How much to prune: ``ratio``, or what others allow, which are then not None: one of them, or MACs and parameters.

    Attributes:
        ratio: the share of the prunable channels to cut.
        target_macs, target_params: the share of the MACs or the parameters to leave at most.
        target_ms: the milliseconds of a forward pass of one image to leave at most.
        max_map_drop: the mAP@0.5 to lose at most.
    """

    ratio: float = DEFAULT_RATIO
    target_macs: float | None = None
    target_params: float | None = None
    target_ms: float | None = None
    max_map_drop: float | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The shares to leave at most of those of SIZES that have a limit."""
        shares = {"MACs": self.target_macs, "parameters": self.target_params}
        return {size: share for size, share in shares.items() if share is not None}

    @property
    def goal(self) -> str | None:
        """What the ratio is searched for, in words; None where it is given."""
        if self.shares:
            return " and ".join(share_in_words(size, share) for size, share in self.shares.items())
        if self.target_ms is not None:
            return f"a forward pass of at most {self.target_ms:g} ms"
        if self.max_map_drop is not None:
            return f"a loss of at most {self.max_map_drop:g} mAP@0.5"
        return None


def percent(share: float) -> str:
    """A share in percent, to three digits: 0.0004 is 0.04%."""
    return f"{100 * share:.3g}%"


def share_in_words(size: str, share: float) -> str:
    """A share to leave at most of one of SIZES, in words."""
    return f"at most {percent(share)} of the {size}"


def trained_ratio(metadata: dict[str, Any]) -> float:
    """The ratio that a network is still to be pruned at, by what its checkpoint says.

    That is 0 where its run has cut it once, the ratio that sparse training was to reach, or else DEFAULT_RATIO.
    """
    if "before_cut" in metadata:
        return 0.0
    options = metadata.get("options", {})
    return options["target_percent"] if options.get("s_schedule") in ("local", "target") else DEFAULT_RATIO


def choose_ratio(
    pruner: Pruner, budget: Budget, img_size: AnySize, latency: Latency | None = None, bench: Bench | None = None
) -> float:
    """The ratio of a budget, by bisection where it is not given.

    Args:
        pruner: of the network.
        budget: how much to prune.
        img_size: of the images that MACs and times are for.
        latency: what times of a ``target_ms`` are of; None for PyTorch's as ``bench`` measures them.
        bench: measures mAP, and times without ``latency``; not needed for other budgets.

    Raises:
        InputError: the budget cannot be reached.
    """
    model, goal = pruner.model, budget.goal
    if not goal:
        return budget.ratio

    def pruned(ratio: float) -> Darknet:
        return pruner.at(ratio).pruned.model

    @cache  # the searches for two shares meet at the same ratios
    def spec(ratio: float) -> NetworkSpec:
        return pruned(ratio).spec.at(img_size)

    def left(size: str, ratio: float) -> float:
        return share_left(size, spec(ratio), model.spec.at(img_size))

    if budget.shares:
        return max(
            smallest_ratio(partial(left, size), share, share_in_words(size, share), percent)
            for size, share in budget.shares.items()
        )
    if budget.target_ms is not None and latency:
        return ratio_within(budget.target_ms, pruned, latency)
    assert bench
    if budget.target_ms is not None:
        return smallest_ratio(lambda r: bench.forward(pruned(r))[0].median, budget.target_ms, goal, in_ms)
    assert budget.max_map_drop is not None
    least = bench.mean_ap(model) - budget.max_map_drop
    return largest_ratio(lambda r: bench.mean_ap(pruner.finished(pruner.at(r))) >= least, f"{goal}, to {least:.4f},")


def share_left(size: str, small: NetworkSpec, whole: NetworkSpec) -> float:
    """The share of one of SIZES that a network has of another."""
    return SIZES[size](small) / SIZES[size](whole)


def cut_least_important(
    model: Darknet, strategy: str, img_size: AnySize, budget: Budget, latency: Latency | None = None
) -> PruningResult:
    """Prune a network that was not trained sparse, by the magnitude of its kernels for what they cost.

    Channels go in the order of :class:`utils.pruning.removal_order.RemovalOrder`, and residual blocks stay.

    Args:
        model: the network, in eval mode; it stays as it is.
        strategy: see :mod:`utils.pruning.selection`.
        img_size: the input size that MACs and times are for.
        budget: how much to prune.
        latency: for a ``target_ms``: what prices the channels. Else the sizes in the budget do, or MACs.

    Raises:
        InputError: no channel may be cut, the budget cannot be reached, or it is reached without a cut.
    """
    pruner_by = partial(Pruner, model, strategy, kind="magnitude", whole_blocks=False)
    whole = model.spec.at(img_size)
    pruner = pruner_by(costs=latency.table) if latency else pruner_by_size(whole, budget, pruner_by)
    result = pruner.at(choose_ratio(pruner, budget, img_size, latency))
    asked = budget.goal or f"{percent(budget.ratio)} of the prunable channels"
    if not result.pruned.mask.removed_channels:
        raise InputError(f"no channel would be cut for {asked}: ask for a smaller network, or train without -sr")
    assert pruner.order
    if not budget.goal and budget.ratio > pruner.order.ratio_at_floors:
        notice(f"warning: only {result.ratio:.1%} of the prunable channels are cut, not {asked}: the rest are floors")
    return result


def pruner_by_size(whole: NetworkSpec, budget: Budget, pruner_by: Callable[..., Pruner]) -> Pruner:
    """The pruner with the largest of GROUP_SIZES that can cut as little as is asked, and whose floors leave room.

    Args:
        whole: the network, at the size of its images.
        budget: how much to prune. A size costs the more the less of it may be left; without sizes in it, MACs cost.
        pruner_by: makes the pruner of that network that goes by its argument ``costs``.
    """
    shares = budget.shares or {"MACs": 1.0}
    prices = {size: 1 / (share * SIZES[size](whole)) for size, share in shares.items()}
    for group in GROUP_SIZES:
        costs = SizeCosts(whole, group, prices.get("MACs", 0.0), prices.get("parameters", 0.0))
        pruner = pruner_by(costs=costs)
        assert pruner.order
        if budget.shares:
            smallest = pruner.at(LARGEST_RATIO).pruned.model.spec.at((whole.height, whole.width))
            has_room = all(share_left(size, smallest, whole) <= MOST_FLOORS * share for size, share in shares.items())
        else:
            floors, asked = 1 - pruner.order.ratio_at_floors, 1 - budget.ratio
            has_room = floors <= MOST_FLOORS * asked and bool(pruner.order.at(budget.ratio).dead.any())
        if has_room:
            break
    return pruner


def ratio_within(target_ms: float, pruned: Callable[[float], Darknet], latency: Latency) -> float:
    """The smallest ratio with which a network takes ``target_ms`` in a runtime.

    The table chooses; where the network that it chooses is measured to be slower, the table's budget is lowered by as
    much, at most CORRECTIONS times.

    Args:
        target_ms: the budget in milliseconds.
        pruned: the network at a ratio.
        latency: times in the runtime.

    Raises:
        InputError: the budget cannot be reached; the message says what can be.
    """
    table = latency.table

    def predicted(ratio: float) -> float:
        return table.predict(pruned(ratio).spec)

    least = predicted(LARGEST_RATIO)
    if least > target_ms:
        raise InputError(
            f"{target_ms:g} ms cannot be reached: the layers' floors and fixed channels leave {in_ms(least)} "
            f"({table.title})"
        )
    budget = target_ms
    for _ in range(1 + CORRECTIONS):
        ratio = smallest_ratio(predicted, budget, f"{budget:g} ms", in_ms)
        (measured,) = latency.milliseconds([pruned(ratio)])
        if measured <= target_ms:
            return ratio
        budget = max(0.99 * budget * target_ms / measured, least)
    print(f"warning: {measured:.2f} ms were measured, more than {target_ms:g}: is the machine busy?")
    return ratio


def in_ms(milliseconds: float) -> str:
    """Milliseconds in words."""
    return f"{milliseconds:.2f} ms"


def largest_ratio(acceptable: Callable[[float], bool], goal: str) -> float:
    """The largest ratio that is acceptable, to TOLERANCE below, by bisection.

    ``acceptable`` should turn from true to false once; where it turns more often, one of the turns is returned.

    Raises:
        InputError: not even 0 reaches the ``goal``.
    """
    low, high = 0.0, LARGEST_RATIO
    if acceptable(high):
        return high
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if acceptable(middle) else (low, middle)
    if low == 0 and not acceptable(low):
        raise InputError(f"{goal} cannot be reached: it is missed before a single channel is cut")
    return low


def smallest_ratio(
    measure: Callable[[float], float],
    most: float,
    goal: str,
    words: Callable[[float], str],
    largest: float = LARGEST_RATIO,
) -> float:
    """The smallest ratio at which what ``measure`` gives is at most ``most``, to TOLERANCE above, by bisection.

    Args:
        measure: what is left at a ratio.
        most: what may be left.
        goal: that in words.
        words: what is left, in words.
        largest: the largest ratio.

    Raises:
        InputError: not even the largest ratio reaches the ``goal``.
    """
    if measure(0.0) <= most:
        return 0.0
    if (least := measure(largest)) > most:
        raise InputError(f"{goal} cannot be reached: the layers' floors and fixed channels leave {words(least)}")
    low, high = 0.0, largest
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (low, middle) if measure(middle) <= most else (middle, high)
    return high
