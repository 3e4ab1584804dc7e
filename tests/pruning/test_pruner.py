import math

import pytest

from config.create_cfg import create_cfg
from models import Darknet
from tests.networks import randomize
from utils.detection.complexity import count_parameters
from utils.errors import InputError
from utils.pruning.proof import prove
from utils.pruning.pruner import LARGEST_RATIO, STEP, Pruner, largest_ratio, smallest_ratio
from utils.pruning.surgery import head_difference


@pytest.fixture
def model():
    return randomize(Darknet(create_cfg("v3-tiny", 1, 64, width=0.25)))


@pytest.mark.parametrize("edge", [0.0, 0.2, 0.5, 0.77, LARGEST_RATIO])
def test_bisection_finds_the_edge_from_the_right_side(edge):
    found = largest_ratio(lambda ratio: ratio <= edge, "it")
    assert edge - STEP <= found <= edge
    found = smallest_ratio(lambda ratio: ratio >= edge, "it")
    assert edge <= found <= edge + STEP


def test_a_goal_out_of_reach_is_said():
    with pytest.raises(InputError, match="1 % of the MACs cannot be reached"):
        smallest_ratio(lambda ratio: False, "1 % of the MACs")


def test_the_search_meets_a_budget_of_parameters(model):
    pruner = Pruner(model, "normal")
    budget = 0.4 * count_parameters(model)
    ratio = smallest_ratio(lambda p: count_parameters(pruner.at(p).pruned.model) <= budget, "it")
    assert count_parameters(pruner.at(ratio).pruned.model) <= budget
    assert count_parameters(pruner.at(ratio - 2 * STEP).pruned.model) > budget


def test_counts_and_macs_fall_with_the_ratio_and_the_model_stays_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = Pruner(model, "normal")
    trials = [pruner.at(ratio) for ratio in (0.1, 0.4, 0.7)]
    macs = [trial.pruned.model.spec.at(64).macs for trial in trials]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] < model.spec.at(64).macs
    for trial in trials:
        spec = trial.pruned.model.spec
        assert trial.counts == {layer.index: layer.channels for layer in spec.convolutions}
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("multiple", [4, 8])
def test_rounding_gives_multiples_with_carriers_counted(model, multiple):
    plain = Pruner(model, "normal").at(0.6)
    trial = Pruner(model, "normal", round_to=multiple).at(0.6)
    assert head_difference(trial.reference, trial.pruned.model, 64) < 1e-5
    for index, count in trial.counts.items():
        original = model.spec.layers[index].channels
        assert count == min(-(-plain.counts[index] // multiple) * multiple, original)


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
    trial = Pruner(model, "normal").at(0.5)
    conv = trial.pruned.model.conv(trial.pruned.model.spec.heads[0].sources[0])
    conv.bias.data[0] = float("nan")
    assert math.isnan(head_difference(trial.reference, trial.pruned.model, 64))
    with pytest.raises(InputError, match="differs from the masked one by nan"):
        prove(trial, 64, "exact")


def test_a_model_that_was_never_sparse_is_recognised(model):
    pruner = Pruner(model, "normal")
    assert pruner.separated(pruner.at(0.5).choice)
    assert not pruner.separated(pruner.at(0.9).choice)
    dense = Pruner(randomize(model, near_zero=0), "normal")
    assert not dense.separated(dense.at(0.3).choice)
