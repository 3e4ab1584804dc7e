import itertools
import math

import numpy as np
import pytest

from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from tests.pruning.test_penalty import RESIDUAL, residual
from utils.darknet.cfg import parse_cfg
from utils.darknet.layers import Convolution
from utils.pruning.costs import LEAST_PRICE, Counts, SizeCosts, set_prices, set_touches
from utils.pruning.coupling import couple
from utils.pruning.penalty import GammaPenalty
from utils.pruning.proof import head_difference
from utils.pruning.pruner import Pruner
from utils.pruning.removal_order import RemovalOrder
from utils.pruning.residuals import residual_blocks
from utils.pruning.selection import prunable_sets
from utils.training.optim import MOMENTUM


class SixteenAtOnce:
    """Costs of a runtime that computes 16 output channels at once; layers have a factor each."""

    group = 8
    per_value = 0.0

    def __init__(self, **factors):
        self.factors = {int(name[1:]): factor for name, factor in factors.items()}

    def convolution_cost(self, index, inputs, outputs):
        return self.factors.get(index, 1.0) * inputs * -(-outputs // 16)


CHAIN = (
    "[net]\nwidth=32\nheight=32\nchannels=3\n"
    + "[convolutional]\nbatch_normalize=1\nfilters=32\nsize=1\nactivation=leaky\n" * 3
    + "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"
)


def chain():
    return couple(Darknet(parse_cfg(CHAIN)).spec)


def importance_of(coupling, **layers):
    """(sets,) importance by layer, of each channel; infinity for fixed sets."""
    values = np.full(len(coupling.sets), np.inf)
    for name, of_layer in layers.items():
        values[coupling.outputs[int(name[1:])]] = of_layer
    return values


def counts_at(coupling, order, ratio):
    dead = order.at(ratio).dead
    return [int((~dead[coupling.outputs[index]]).sum()) for index in range(3)]


def test_the_layer_that_costs_most_goes_first_where_importance_is_the_same():
    coupling = chain()
    importance = importance_of(coupling, l0=np.ones(32), l1=np.ones(32), l2=np.ones(32))
    order = RemovalOrder(coupling, importance, SixteenAtOnce(l0=1, l1=1, l2=100))
    outputs = [set(coupling.outputs[index].tolist()) for index in range(3)]
    assert set(order.steps[0].sets) <= outputs[1]  # of layer 2's inputs each counts, of its outputs every 16th
    of_outputs = next(step.sets for step in order.steps if set(step.sets) <= outputs[2])
    assert len(of_outputs) == 16  # 8 of 32 would save nothing where 16 are computed at once


def test_channels_without_importance_go_before_all_others_and_the_least_important_of_a_layer_first():
    coupling = chain()
    ramp = np.arange(32) / 31 + 0.5
    zeros = np.where(np.arange(32) < 16, 0.0, 1.0)
    order = RemovalOrder(coupling, importance_of(coupling, l0=zeros, l1=ramp, l2=ramp[::-1]), SixteenAtOnce())
    assert set(order.steps[0].sets) == set(coupling.outputs[0][:16].tolist())
    of_layer = [n for step in order.steps for n in step.sets if n in coupling.outputs[2]]
    assert of_layer == coupling.outputs[2][::-1][: len(of_layer)].tolist()


@pytest.mark.parametrize("layer_keep", [0.01, 0.5])
def test_floors_are_multiples_with_room_for_a_carrier(layer_keep):
    coupling = chain()
    importance = importance_of(coupling, l0=np.ones(32), l1=np.ones(32), l2=np.ones(32))
    order = RemovalOrder(coupling, importance, SizeCosts(coupling.spec, group=8), layer_keep)
    floor = 8 if layer_keep == 0.01 else 24
    assert counts_at(coupling, order, 0.9999) == [floor] * 3
    assert order.channels[-1] == pytest.approx(1 - floor / 32)
    for ratio in np.linspace(0, 1, 11):
        dead = order.at(ratio).dead
        assert dead.sum() <= ratio * 96 + 1e-6
        assert all(count % 8 == 0 for count in counts_at(coupling, order, ratio))


def kept_importance(importance, coupling, dead):
    total = 0.0
    for index in range(3):
        sets = coupling.outputs[index]
        total += math.log(importance[sets[~dead[sets]]].sum() / importance[sets].sum())
    return total


def cost(coupling, costs, dead):
    counts = Counts(coupling, costs)
    for touches, numbers in itertools.groupby(np.flatnonzero(dead), key=lambda n: set_touches(coupling)[n]):
        counts.remove(touches, len(list(numbers)))
    return counts.saved_by_layers(tuple(layer.index for layer in coupling.spec.convolutions))


def test_the_order_is_near_the_best_of_all_choices():
    coupling = chain()
    random = np.random.default_rng(3)
    layers = {f"l{n}": random.uniform(0.9, 1.1, 32) for n in range(3)}
    importance, costs = importance_of(coupling, **layers), SizeCosts(coupling.spec, group=8)
    choices = []
    for kept in itertools.product((8, 16, 24, 32), repeat=3):
        dead = np.zeros(len(importance), bool)
        for index, count in enumerate(kept):
            sets = coupling.outputs[index]
            dead[sets[np.argsort(importance[sets])[: 32 - count]]] = True
        choices.append((cost(coupling, costs, dead), kept_importance(importance, coupling, dead)))
    order = RemovalOrder(coupling, importance, costs)
    for ratio in order.channels:
        dead = order.at(ratio).dead
        spent = cost(coupling, costs, dead)
        best = max(kept for used, kept in choices if used <= spent + 1e-6)
        assert kept_importance(importance, coupling, dead) >= best - 0.25


def test_pruning_by_costs_is_exact_with_carriers_counted_and_blocks_gone():
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.125)))
    costs = SizeCosts(model.spec.at(64), group=8)
    for strategy in ("normal", "slim"):
        pruner = Pruner(model, strategy, costs=costs)
        macs = []
        for ratio in (0.0, 0.5, 0.8, 0.99):
            result = pruner.at(ratio)
            assert head_difference(result.reference, result.pruned.model, 64) < 1e-5
            widths = {layer.index: layer.channels for layer in model.spec.convolutions}
            kept = {index: n for index, n in result.counts.items() if 0 < n < widths[index]}
            assert all(count % 8 == 0 for count in kept.values()), kept
            macs.append(result.pruned.model.spec.at(64).macs)
        assert macs == sorted(macs, reverse=True)
        assert pruner.at(0.8).pruned.carriers > 0
        assert result.residual_blocks
        removed = {index for block in result.residual_blocks for index in block.convolutions}
        assert {index for index, n in result.counts.items() if n == 0} == removed
        assert not Pruner(model, strategy, costs=costs, whole_blocks=False).at(0.99).residual_blocks


def test_a_block_goes_whole_where_its_channels_are_worth_nothing():
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.125)), near_zero=0)
    blocks = residual_blocks(model.spec)
    worthless = blocks[5]
    for index in worthless.convolutions[:-1]:
        model.batch_norm(index).weight.data.zero_()
    result = Pruner(model, "normal", costs=SizeCosts(model.spec.at(64), group=8)).at(0.1)
    assert result.residual_blocks == [worthless]


def plain_price(model, layer):
    """MACs that fall away with a channel of layer 0 or 4 of the residual network, whose kernels are 1x1 on 32x32."""
    spec = model.spec
    macs = {0: 3 + 4, 4: 4 + 6}  # what writes the channel reads 3 or 4 others; what reads it writes 4 or 6
    assert isinstance(spec.layers[layer], Convolution)
    return macs[layer] * 32 * 32


def test_the_price_is_that_of_the_macs_that_fall_away_and_its_mean_is_one():
    model = residual()
    penalty = GammaPenalty(model, 0.1, "normal", "proximal", MOMENTUM, SizeCosts(model.spec.at(32)))
    raw = {layer: plain_price(model, layer) for layer in (0, 4)}
    mean = (4 * raw[0] + 3 * raw[4]) / 7
    for layer, price in raw.items():
        np.testing.assert_allclose(penalty.prices[layer], price / mean, rtol=1e-6)
    assert np.concatenate([prices.numpy() for prices in penalty.prices.values()]).mean() == pytest.approx(1)
    before = model.batch_norm(4).weight.detach().clone()
    penalty.after_step(lr=0.01)
    step = 0.01 * 0.1 / (1 - MOMENTUM) * raw[4] / mean
    np.testing.assert_allclose(model.batch_norm(4).weight.detach(), before - step, rtol=1e-5)
    np.testing.assert_allclose(penalty.distances() * np.repeat([raw[0], raw[4]], [4, 3]) / mean, penalty.gammas())


@pytest.mark.parametrize(("per_mac", "per_parameter"), [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_sizes_cost_what_a_network_has_before_and_after_a_cut(per_mac, per_parameter):
    model = randomize(Darknet(parse_cfg(RESIDUAL.replace("filters=4", "filters=32"))), near_zero=0)
    whole = model.spec.at(32)
    costs = SizeCosts(whole, 8, per_mac, per_parameter)
    small = Pruner(model, "normal", costs=costs, whole_blocks=False).at(0.4).pruned.model.spec.at(32)
    for spec in (whole, small):
        cost = sum(costs.convolution_cost(layer.index, layer.inputs, layer.channels) for layer in spec.convolutions)
        assert cost == pytest.approx(per_mac * spec.macs + per_parameter * spec.parameters)
    assert small.parameters < whole.parameters


@pytest.mark.parametrize("strategy", ["normal", "slim"])
@pytest.mark.parametrize("costs", [SizeCosts, lambda spec: SixteenAtOnce(l0=50.0)])
def test_prices_have_a_mean_of_one_and_a_floor(strategy, costs):
    model = Darknet(parse_cfg(RESIDUAL.replace("filters=4", "filters=32")))
    coupling = couple(model.spec)
    prunable = prunable_sets(coupling, strategy)
    prices = set_prices(coupling, prunable, costs(model.spec.at(32)))
    assert prices[prunable].mean() == pytest.approx(1)
    assert prices[prunable].min() >= LEAST_PRICE / 2
    uniform = GammaPenalty(model, 0.1, strategy, "proximal", MOMENTUM)
    assert all(set(p.unique().tolist()) <= {0.0, 1.0} for p in uniform.prices.values())
