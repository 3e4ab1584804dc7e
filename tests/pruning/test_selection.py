"""Which channels die at a ratio, and how many may."""

import numpy as np
import pytest

from models import Darknet
from tests.pruning.test_penalty import NO_BATCH_NORM, residual
from utils.darknet.cfg import parse_cfg
from utils.errors import InputError
from utils.pruning.coupling import couple
from utils.pruning.selection import allowed_ratio, select, sparse_ratio


def given(**layers):
    """Gammas by layer number for select(); layers that are not given are large."""
    sizes = {0: 4, 1: 4, 2: 4, 4: 3}
    return {n: np.array(layers.get(f"l{n}", np.linspace(5, 6, count) + n)) for n, count in sizes.items()}


def dead_channels(coupling, choice):
    """The dead channels of each convolution, by layer number."""
    found = {}
    for layer in coupling.spec.convolutions:
        dead = np.flatnonzero(choice.dead[coupling.outputs[layer.index]]).tolist()
        if dead:
            found[layer.index] = dead
    return found


def test_the_lowest_channels_die():
    coupling = couple(residual().spec)
    gammas = given(l0=[0.1, 0.9, 0.4, 0.8], l4=[0.3, 0.2, 0.7])
    for count, wanted in [
        (0, {}),
        (1, {0: [0]}),
        (3, {0: [0], 4: [0, 1]}),
        (4, {0: [0, 2], 4: [0, 1]}),
    ]:
        choice = select(coupling, "normal", gammas, count / 7)
        assert dead_channels(coupling, choice) == wanted
        assert choice.threshold == [0, 0.1, None, 0.3, 0.4][count]
        assert choice.floored == ()


def test_the_ratio_never_takes_more_than_it_says():
    coupling = couple(residual().spec)
    gammas = given(l0=[0.1, 0.9, 0.4, 0.8], l4=[0.3, 0.2, 0.7])
    for ratio, count in [(0, 0), (0.14, 0), (1 / 7, 1), (0.5, 3), (0.57, 3), (0.5715, 4)]:
        choice = select(coupling, "normal", gammas, ratio)
        assert sum(map(len, dead_channels(coupling, choice).values())) == count


def test_every_layer_keeps_its_best_channel():
    coupling = couple(residual().spec)
    gammas = given(l0=[5.0, 6, 7, 8], l4=[0.1, 0.3, 0.2])
    choice = select(coupling, "normal", gammas, 3 / 7)
    assert dead_channels(coupling, choice) == {4: [0, 2]}
    assert choice.floored == (4,)
    choice = select(coupling, "normal", gammas, 0.99)
    assert dead_channels(coupling, choice) == {0: [0, 1, 2], 4: [0, 2]}


def test_layer_keep_is_a_share_rounded_up():
    coupling = couple(residual().spec)
    gammas = given(l0=[1.0, 2, 3, 4], l4=[0.1, 0.3, 0.2])
    for keep, wanted in [
        (0, {0: [0, 1, 2], 4: [0, 2]}),
        (0.25, {0: [0, 1, 2], 4: [0, 2]}),
        (0.5, {0: [0, 1], 4: [0]}),
        (0.6, {0: [0], 4: [0]}),
    ]:
        assert dead_channels(coupling, select(coupling, "normal", gammas, 0.99, keep)) == wanted
    assert not select(coupling, "normal", gammas, 0.99, 1.0).dead.any()


def test_ties_at_zero_die_in_the_number_asked_for():
    coupling = couple(residual().spec)
    gammas = given(l0=[0.0, 0, 0, 1], l4=[0.0, 0, 2])
    for count in range(6):
        choice = select(coupling, "normal", gammas, count / 7)
        assert sum(map(len, dead_channels(coupling, choice).values())) == count
        assert choice.threshold == 0
    all_zero = given(l0=[0.0] * 4, l4=[0.0] * 3)
    dead = dead_channels(coupling, select(coupling, "normal", all_zero, 0.9999))
    assert {layer: len(channels) for layer, channels in dead.items()} == {0: 3, 4: 2}


def test_normal_leaves_what_a_shortcut_joins():
    coupling = couple(residual().spec)
    gammas = given(l1=[0.0] * 4, l2=[0.0] * 4)
    assert set(dead_channels(coupling, select(coupling, "normal", gammas, 0.9))) == {0, 4}


def test_shortcut_asks_the_first_member_and_slim_any():
    coupling = couple(residual().spec)
    gammas = given(l1=[0.0, 3, 0, 4], l2=[3.0, 0, 0, 4])
    # Two sets of two channels each, of 15 prunable channels.
    dead = {s: dead_channels(coupling, select(coupling, s, gammas, 4 / 15)) for s in ("shortcut", "slim")}
    assert dead["shortcut"] == {1: [0, 2], 2: [0, 2]}
    # Only the third has no living member; the next lowest have 3, their best.
    assert dead_channels(coupling, select(coupling, "slim", gammas, 2 / 15)) == {1: [2], 2: [2]}
    assert dead["slim"] == {1: [0, 2], 2: [0, 2]}
    scored = given(l0=[2.0, 2.1, 9, 9], l1=[0.0, 3, 0, 4], l2=[3.0, 0, 0, 4])
    assert dead_channels(coupling, select(coupling, "slim", scored, 4 / 15)) == {0: [0, 1], 1: [2], 2: [2]}


def test_a_joined_set_counts_all_its_channels():
    coupling = couple(residual().spec)
    gammas = given(l1=[0.1, 9, 9, 9], l2=[0.1, 9, 9, 9])
    assert not select(coupling, "slim", gammas, 1.5 / 15).dead.any()
    assert select(coupling, "slim", gammas, 2 / 15).dead.sum() == 1


def test_nothing_to_prune_is_an_error():
    with pytest.raises(InputError, match="no channel of this network may be pruned"):
        select(couple(Darknet(parse_cfg(NO_BATCH_NORM)).spec), "slim", {}, 0.5)


def test_allowed_ratio_by_hand():
    coupling = couple(residual().spec)
    gammas = given(l0=[0.1, 0.2, 0.3, 0.9], l4=[0.15, 0.4, 0.5], l1=[0.1, 0.2, 0.3, 0.6], l2=[0.7, 0.1, 0.1, 0.1])
    # Layer 4 would lose its last channel at 0.5: 0.1, 0.2, 0.3, 0.15 and 0.4 may go.
    assert allowed_ratio(coupling, "normal", gammas) == pytest.approx(5 / 7)
    # The sets of layers 1 and 2 score 0.1, 0.2, 0.3, 0.6 by their first member: three more may go, of two channels.
    assert allowed_ratio(coupling, "shortcut", gammas) == pytest.approx((5 + 6) / 15)
    # By their best member they score 0.7, 0.2, 0.3, 0.6: two may go.
    assert allowed_ratio(coupling, "slim", gammas) == pytest.approx((5 + 4) / 15)
    assert allowed_ratio(coupling, "normal", given(l0=[1.0] * 4, l4=[1.0] * 3)) == 0
    assert allowed_ratio(couple(Darknet(parse_cfg(NO_BATCH_NORM)).spec), "slim", {}) == 0


def test_a_layer_that_is_dead_as_a_whole_does_not_limit_the_allowed_ratio():
    coupling = couple(residual().spec)
    gammas = given(l0=[0.0] * 4, l4=[0.15, 0.4, 0.5], l1=[1.0] * 4, l2=[1.0] * 4)
    assert allowed_ratio(coupling, "normal", gammas) == pytest.approx(6 / 7)


def test_the_sparse_ratio_is_that_of_the_gammas_clearly_below_the_others():
    coupling = couple(residual().spec)
    for gammas, share in (
        (given(l0=[1.0, 1.1, 0.9, 1.2], l4=[1.0, 1.0, 0.8]), 0),  # as training starts
        (given(l0=[0.0, 1.1, 0.01, 1.2], l4=[1.0, 0.0, 0.8]), 3 / 7),
        (given(l0=[0.0, 1.1, 0.7, 1.2], l4=[1.0, 0.0, 0.8]), 2 / 7),
        (given(l0=[0.0] * 4, l4=[0.0, 0.0, 1.0]), 6 / 7),
        (given(l0=[0.0] * 4, l4=[0.0] * 3), 1),
    ):
        assert sparse_ratio(coupling, "normal", gammas) == pytest.approx(share)
        assert select(coupling, "normal", gammas, share, 0).threshold <= 0.01
    assert sparse_ratio(couple(Darknet(parse_cfg(NO_BATCH_NORM)).spec), "slim", {}) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_allowed_ratio_is_the_last_that_needs_no_floor(seed):
    coupling = couple(residual().spec)
    random = np.random.default_rng(seed)
    gammas = {layer: random.random(count) for layer, count in {0: 4, 1: 4, 2: 4, 4: 3}.items()}
    allowed = allowed_ratio(coupling, "normal", gammas)
    assert select(coupling, "normal", gammas, allowed, 1e-9).floored == ()
    assert select(coupling, "normal", gammas, allowed + 1 / 7, 1e-9).floored != ()
