import math

import numpy as np
import pytest

from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from utils.detection.complexity import count_parameters
from utils.errors import InputError
from utils.notices import forget
from utils.pruning.budget import (
    LARGEST_RATIO,
    TOLERANCE,
    Budget,
    choose_ratio,
    cut_least_important,
    largest_ratio,
    percent,
    share_left,
    smallest_ratio,
)
from utils.pruning.compare import Bench
from utils.pruning.costs import SizeCosts
from utils.pruning.coupling import couple
from utils.pruning.penalty import gamma_sizes
from utils.pruning.proof import head_difference, prove
from utils.pruning.pruner import Pruner
from utils.pruning.residuals import residual_blocks
from utils.pruning.selection import allowed_ratio, describe_room, is_separated, sparse_ratio


@pytest.fixture
def model():
    return randomize(Darknet(create_cfg("v3-tiny", 1, 64, width=0.25)))


@pytest.mark.parametrize("edge", [0.0, 0.2, 0.5, 0.77, LARGEST_RATIO])
def test_bisection_finds_the_edge_from_the_right_side(edge):
    ratio = largest_ratio(lambda r: r <= edge, "it")
    assert edge - TOLERANCE <= ratio <= edge
    ratio = smallest_ratio(lambda r: 1 - r, 1 - edge, "it", str)
    assert edge <= ratio <= edge + TOLERANCE


def test_a_goal_out_of_reach_is_said():
    with pytest.raises(InputError, match=r"1 % of the MACs cannot be reached: .* leave 3%"):
        smallest_ratio(lambda ratio: 0.03, 0.01, "1 % of the MACs", percent)


def test_the_search_meets_a_budget_of_parameters(model):
    pruner = Pruner(model, "normal")
    budget = 0.4 * count_parameters(model)
    ratio = smallest_ratio(lambda p: count_parameters(pruner.at(p).pruned.model), budget, "it", str)
    assert count_parameters(pruner.at(ratio).pruned.model) <= budget
    assert count_parameters(pruner.at(ratio - 2 * TOLERANCE).pruned.model) > budget


class ParameterBench(Bench):
    """Takes the share of a network's parameters that is left for its mAP."""

    def __init__(self, model):
        self.whole = count_parameters(model)

    def mean_ap(self, model):
        return count_parameters(model) / self.whole


def test_a_budget_of_map_is_spent_to_its_edge(model):
    pruner, bench = Pruner(model, "normal"), ParameterBench(model)
    ratio = choose_ratio(pruner, Budget(max_map_drop=0.4), 64, bench=bench)
    left, beyond = (bench.mean_ap(pruner.at(r).pruned.model) for r in (ratio, ratio + TOLERANCE))
    assert beyond < 0.6 <= left


def test_a_ratio_beyond_the_floors_is_not_claimed(model, capsys):
    forget()
    result = cut_least_important(model, "normal", 64, Budget(ratio=0.9999))
    before, after = (sum(layer.channels for layer in m.spec.convolutions) for m in (model, result.pruned.model))
    assert 1 - after / before <= result.ratio < 0.99
    assert f"only {result.ratio:.1%} of the prunable channels are cut, not 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "group"),
    [
        (Budget(target_macs=0.4), 8),
        (Budget(target_macs=0.03), 4),  # 8 channels in each layer have more MACs
        (Budget(target_params=0.05), 8),
        (Budget(target_macs=0.12, target_params=0.04), 8),
        (Budget(ratio=0.6), 8),
        (Budget(ratio=0.95), 2),  # and 4 in each layer are more channels than are to be left, or nearly as many
    ],
)
def test_a_cut_of_a_network_that_is_not_sparse_leaves_groups_as_large_as_the_budget_allows(budget, group):
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.25)))
    result = cut_least_important(model, "slim", 64, budget)
    spec, small = model.spec.at(64), result.pruned.model.spec.at(64)
    shrunk = [layer.channels for layer in small.convolutions if layer.channels < spec.layers[layer.index].channels]
    assert math.gcd(*shrunk) == group
    if budget.shares:
        used = [share_left(size, small, spec) / share for size, share in budget.shares.items()]
        assert 0.9 <= max(used) <= 1
        assert min(used) > 0.7
    else:
        whole, left = (sum(layer.channels for layer in s.convolutions) for s in (spec, small))
        assert 1 - budget.ratio <= left / whole <= 1 - budget.ratio + 0.02
    prove(result.reference, result.pruned.model, 64)


def test_a_cut_of_a_few_channels_is_made_one_by_one():
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.0625)), near_zero=0)
    result = cut_least_important(model, "slim", 64, Budget(ratio=0.005))
    assert 0 < result.ratio <= 0.005
    assert result.pruned.mask.removed_channels


def test_a_cut_where_no_channel_may_go_is_refused():
    model = Darknet(create_cfg("v3-tiny", 1, 64, width=0.25))
    fixed = next(layer.index for layer in model.spec.convolutions if not layer.batch_normalize)
    head_alone = Darknet([model.spec.blocks[0], *model.spec.blocks[1 + fixed : 3 + fixed]])
    with pytest.raises(InputError, match="no channel of this network may be pruned"):
        cut_least_important(head_alone, "slim", 64, Budget(ratio=0.5))


def test_counts_and_macs_fall_with_the_ratio_and_the_model_stays_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = Pruner(model, "normal")
    results = [pruner.at(ratio) for ratio in (0.1, 0.4, 0.7)]
    macs = [result.pruned.model.spec.at(64).macs for result in results]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] < model.spec.at(64).macs
    for result in results:
        spec = result.pruned.model.spec
        assert result.counts == {layer.index: layer.channels for layer in spec.convolutions}
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("multiple", [4, 8])
def test_rounding_gives_multiples_with_carriers_counted(model, multiple):
    plain = Pruner(model, "normal").at(0.6)
    result = Pruner(model, "normal", round_to=multiple).at(0.6)
    assert head_difference(result.reference, result.pruned.model, 64) < 1e-5
    for index, count in result.counts.items():
        original = model.spec.layers[index].channels
        assert count == min(-(-plain.counts[index] // multiple) * multiple, original)


def test_rounding_leaves_no_carrier_that_carries_nothing(model):
    mask = Pruner(model, "normal", round_to=64).at(0.6).pruned.mask
    carriers = np.flatnonzero(mask.carriers)
    readers = [mask.coupling.inputs(c) for c in mask.coupling.spec.convolutions if not mask.kept_inputs(c).all()]
    assert all(any(number in inputs for inputs in readers) for number in carriers)


def test_rounding_holds_where_channels_go_by_what_they_cost(model):
    costs = SizeCosts(model.spec.at(64), 4)
    result = Pruner(model, "slim", round_to=6, kind="magnitude", costs=costs, whole_blocks=False).at(0.5)
    assert result.pruned.mask.removed_channels
    for index, count in result.counts.items():
        assert count % 12 == 0 or count == model.spec.layers[index].channels


def test_folding_into_biases_saves_the_carriers_and_is_wrong_at_the_borders(model):
    exact, folded = (Pruner(model, "normal", fold_bias=fold).at(0.6) for fold in (False, True))
    assert exact.pruned.carriers > 0
    assert folded.pruned.carriers == 0
    assert head_difference(exact.reference, exact.pruned.model, 64) < 1e-5
    assert head_difference(folded.reference, folded.pruned.model, 64) > 1e-3
    assert count_parameters(folded.pruned.model) < count_parameters(exact.pruned.model)


def test_a_goal_that_is_missed_before_anything_is_cut_is_refused():
    with pytest.raises(InputError, match=r"^mAP@0.5 of 0.9 cannot be reached"):
        largest_ratio(lambda ratio: False, "mAP@0.5 of 0.9")


def test_outputs_that_are_no_numbers_are_no_proof(model):
    result = Pruner(model, "normal").at(0.5)
    conv = result.pruned.model.conv(result.pruned.model.spec.heads[0].sources[0])
    conv.bias.data[0] = float("nan")
    assert math.isnan(head_difference(result.reference, result.pruned.model, 64))
    with pytest.raises(InputError, match="differ from those of the masked one by nan"):
        prove(result.reference, result.pruned.model, 64)


def test_a_model_that_was_never_sparse_is_recognised(model):
    pruner = Pruner(model, "normal")
    assert pruner.separated(pruner.at(0.5).selection)
    assert not pruner.separated(pruner.at(0.9).selection)
    dense = Pruner(randomize(model, near_zero=0), "normal")
    assert not dense.separated(dense.at(0.3).selection)


def test_residual_blocks_that_are_not_near_zero_are_recognised():
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.0625)), near_zero=0)
    blocks = residual_blocks(model.spec)
    for block in blocks[:3]:
        model.batch_norm(block.convolutions[-1]).weight.data.mul_(0.01)

    def separated(count):
        pruner = Pruner(model, "slim", prune_blocks=count)
        return pruner.separated(pruner.at(0.0).selection)

    assert [separated(count) for count in (0, 3, 4)] == [True, True, False]


def test_the_room_to_prune_is_only_told_of_sparse_gammas(model):
    def room(of):
        return describe_room(couple(of.spec), "normal", gamma_sizes(of))

    coupling, gammas = couple(model.spec), gamma_sizes(model)
    sparse, allowed = (ratio(coupling, "normal", gammas) for ratio in (sparse_ratio, allowed_ratio))
    assert 0.6 < sparse < 0.8
    assert sparse < allowed
    assert room(model) == f"up to {sparse:.1%} of the channels can be pruned: their gammas are clearly below the others"
    weakest = model.batch_norm(model.spec.convolutions[0].index)
    weakest.weight.data.mul_(0.02)  # a layer that would be empty first
    allowed = allowed_ratio(coupling, "normal", gamma_sizes(model))
    assert room(model) == f"up to {allowed:.1%} of the channels can be pruned before a layer is empty"
    for norm in model.batch_norms.values():
        norm.weight.data = norm.weight.sign() * (1 + 0.1 * norm.bias)
    assert room(model) == "not sparse yet"


def test_a_cut_is_separated_up_to_half_of_the_large_gammas():
    importance = np.array([0.1, 0.5, 1.0, 1.0, np.inf])
    cut = np.arange(5)
    assert is_separated(importance, cut < 2)
    assert not is_separated(importance + np.array([0, 0.01, 0, 0, 0]), cut < 2)
    assert is_separated(importance, cut < 0)
    assert is_separated(importance, cut < 4)  # nothing that may die is left to compare with
