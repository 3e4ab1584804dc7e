import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from utils.darknet.cfg import parse_cfg
from utils.errors import InputError
from utils.pruning.coupling import couple
from utils.pruning.gamma_history import NEAR_ZERO, GammaHistory
from utils.pruning.penalty import GammaPenalty, gamma_sizes, reach, soft_threshold
from utils.pruning.selection import allowed_ratio, select, sparse_ratio
from utils.training.ema import ModelEma
from utils.training.optim import MOMENTUM, build_sgd

HEAD = """[convolutional]
filters=6
size=1
activation=linear
[yolo]
mask=0
anchors=10,14
classes=1
num=1
"""


def conv(filters):
    return f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize=1\nactivation=leaky\n"


# Layers 0, 1, 2 and 4 have gammas; the shortcut, layer 3, joins 1 and 2 channel by channel.
RESIDUAL = (
    "[net]\nwidth=32\nheight=32\nchannels=3\n"
    + conv(4)
    + conv(4)
    + conv(4)
    + "[shortcut]\nfrom=-2\nactivation=linear\n"
    + conv(3)
    + HEAD
)
NO_BATCH_NORM = "[net]\nwidth=32\nheight=32\nchannels=3\n" + HEAD


def residual():
    torch.manual_seed(0)
    return Darknet(parse_cfg(RESIDUAL))


@torch.no_grad()
def set_gammas(model, **layers):
    for name, values in layers.items():
        model.batch_norm(int(name[1:])).weight.copy_(torch.tensor(values))


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


def joined_layers(blocks):
    """The convolutions whose outputs a shortcut adds, straight from the cfg of a YOLOv3."""
    found = set()
    for number, block in enumerate(blocks[1:]):
        if block["type"] == "shortcut":
            for source in (number - 1, number + int(block["from"])):
                while blocks[1 + source]["type"] == "shortcut":
                    source -= 1
                found.add(source)
    return found


# the penalty


@pytest.mark.parametrize("strategy", ["normal", "shortcut", "slim"])
def test_the_subgradient_is_added_to_the_prunable_gammas_and_nothing_else(strategy):
    blocks = create_cfg("v3", 1, 32, width=0.01)
    joined = joined_layers(blocks)
    assert len(joined) == 28  # 23 residual blocks and the 5 convolutions in front of their stages
    model = Darknet(blocks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for bn in model.batch_norms.values():
            bn.weight.copy_(torch.randn(bn.weight.shape, generator=generator))
            bn.weight[0] = 0
    before = {}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        before[name] = parameter.grad.clone()
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    GammaPenalty(model, 0.25, strategy, "subgradient", MOMENTUM).before_step()

    penalised = 0
    for name, parameter in model.named_parameters():
        layer = int(name.split(".")[1])
        wanted = before[name]
        if ".batch_norm_" in name and name.endswith(".weight") and (strategy != "normal" or layer not in joined):
            wanted = wanted + 0.25 * torch.sign(parameter.detach())
            penalised += 1
        assert torch.equal(parameter.grad, wanted), name
        assert torch.equal(parameter.detach(), values[name]), name
    assert penalised == (72 - 28 if strategy == "normal" else 72)


def test_a_gamma_without_a_gradient_is_left_alone():
    model = residual()
    GammaPenalty(model, 0.25, "normal", "subgradient", MOMENTUM).before_step()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("strategy", "layers"), [("normal", {0, 4}), ("shortcut", {0, 1, 2, 4}), ("slim", {0, 1, 2, 4})]
)
def test_the_proximal_step_moves_the_prunable_gammas_and_nothing_else(strategy, layers):
    model = residual()
    start = [0.5, -0.5, 0.05, -0.05]
    set_gammas(model, l0=start, l1=start, l2=start, l4=start[:3])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    penalty = GammaPenalty(model, 0.2, strategy, "proximal", momentum=0.75)
    penalty.after_step(lr=0.125)  # 0.125 * 0.2 / 0.25 = 0.1
    for name, value in model.state_dict().items():
        number = int(name.split(".")[1])
        if ".batch_norm_" in name and name.endswith(".weight") and number in layers:
            torch.testing.assert_close(value, torch.tensor([0.4, -0.4, 0.0, 0.0])[: len(value)])
            assert (value[2:] == 0).all()
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_the_channels_of_one_layer_that_no_shortcut_joins_are_penalised_alone(method):
    wider = RESIDUAL.replace(conv(4) + "[shortcut]", conv(6) + "[shortcut]")  # the last two of six are added to nothing
    model = Darknet(parse_cfg(wider))
    bn = model.batch_norm(2)
    bn.weight.grad = torch.zeros(6)
    penalty = GammaPenalty(model, 0.25, "normal", method, momentum=0.5)
    penalty.before_step()
    penalty.after_step(lr=0.5)
    if method == "subgradient":
        assert bn.weight.grad.tolist() == [0, 0, 0, 0, 0.25, 0.25]
    else:
        assert bn.weight.tolist() == [1, 1, 1, 1, 0.75, 0.75]
    assert len(penalty.gammas()) == 4 + 2 + 3


def test_each_method_acts_in_its_own_place():
    for method, step in (("proximal", "before_step"), ("subgradient", "after_step")):
        model = residual()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        penalty = GammaPenalty(model, 0.2, "slim", method, MOMENTUM)
        getattr(penalty, step)(*([0.1] if step == "after_step" else []))
        for bn in model.batch_norms.values():
            assert (bn.weight.grad == 1).all()
            assert (bn.weight == 1).all()


def test_soft_threshold_by_hand():
    values = [torch.tensor([3.0, -3, 1, -1, 0.5, 0, -0.0]), torch.tensor([5.0, 5, -5])]
    soft_threshold(values, [torch.ones(7), torch.tensor([0, 2, float("inf")])])
    assert [found.tolist() for found in values] == [[2, -2, 0, 0, 0, 0, 0], [5, 3, 0]]


def travel(method, steps, lr, s):
    """Where a gamma of 1 is after ``steps`` of the project's optimizer when the loss does not care."""
    model = residual()
    optimizer = build_sgd(model, lr)
    penalty = GammaPenalty(model, s, "normal", method, MOMENTUM)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        penalty.before_step()
        optimizer.step()
        penalty.after_step(lr)
    assert torch.equal(model.batch_norm(1).weight.detach(), torch.ones(4))
    return 1 - model.batch_norm(0).weight.detach()


def test_both_methods_are_equally_strong_in_the_long_run():
    ways = {method: travel(method, 400, lr=0.01, s=0.01) for method in ("proximal", "subgradient")}
    torch.testing.assert_close(ways["proximal"], torch.full((4,), 0.4), rtol=1e-3, atol=0)
    torch.testing.assert_close(ways["subgradient"], ways["proximal"], rtol=0.03, atol=0)
    assert reach(np.full(400, 0.01), 0.01, MOMENTUM) == pytest.approx(ways["proximal"][0].item(), rel=1e-3)


def test_gammas_stop_at_zero_under_the_proximal_step_and_oscillate_under_the_subgradient():
    still = 1 - travel("proximal", 120, lr=0.01, s=0.1)
    moving = 1 - travel("subgradient", 120, lr=0.01, s=0.1)
    assert (still == 0).all()
    assert (moving != 0).all()
    assert (moving.abs() < 0.2).all()


def test_reach_sums_the_learning_rates():
    assert reach(np.array([0.1, 0.2, 0.3]), s=0.5, momentum=0.75) == pytest.approx(0.6 * 0.5 / 0.25)
    assert reach(np.array([0.1]), s=0.0, momentum=0.9) == 0


def test_zeros_are_copied_to_the_average():
    model = residual()
    ema = ModelEma(model)
    set_gammas(model, l0=[0.0, 2, -0.0, -2], l1=[0.0, 1, 1, 1], l4=[1.0, 0, 1])
    with torch.no_grad():
        model.batch_norm(0).bias.zero_()
    before = {name: value.clone() for name, value in ema.model.state_dict().items()}
    GammaPenalty(model, 0.1, "normal", "proximal", MOMENTUM).copy_zeros(ema.model)
    for name, value in ema.model.state_dict().items():
        wanted = before[name]
        if name == "module_list.0.batch_norm_0.weight":
            wanted = torch.tensor([0.0, 1, 0, 1])
        if name == "module_list.4.batch_norm_4.weight":
            wanted = torch.tensor([1.0, 0, 1])
        assert torch.equal(value, wanted), name
    assert model.batch_norm(0).weight.tolist() == [0, 2, 0, -2]


def test_gammas_of_the_penalty_are_sizes_of_the_prunable_ones():
    model = residual()
    set_gammas(model, l0=[-1.0, 2, 3, 4], l4=[5.0, -6, 7], l1=[9.0, 9, 9, 9])
    penalty = GammaPenalty(model, 0.1, "normal", "proximal", MOMENTUM)
    assert penalty.gammas().tolist() == [1, 2, 3, 4, 5, 6, 7]


# choosing


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


# the history


def recorded(epochs):
    model = residual()
    penalty = GammaPenalty(model, 0.1, "normal", "proximal", MOMENTUM)
    history = GammaHistory()
    for epoch in range(epochs):
        set_gammas(model, l0=[1.0, -0.8, 0.6, 0.4 - 0.2 * epoch], l4=[0.2, 1e-4 * epoch, -0.5], l1=[9.0] * 4)
        history.record(epoch, penalty.coupling, "normal", gamma_sizes(model))
    return history, penalty, model


def test_history_records_sizes_of_the_prunable_gammas():
    history, penalty, model = recorded(3)
    gammas = np.array([1, 0.8, 0.6, 0, 0.2, 2e-4, 0.5], np.float32)
    assert history.epochs == [0, 1, 2]
    np.testing.assert_allclose(history.quintiles[2], np.quantile(gammas, [0.2, 0.4, 0.6, 0.8, 1]), rtol=1e-5, atol=1e-7)
    assert history.near_zero == pytest.approx([1 / 7, 1 / 7, 2 / 7])
    assert NEAR_ZERO > 2e-4
    assert history.allowed[2] == allowed_ratio(penalty.coupling, "normal", gamma_sizes(model))
    np.testing.assert_allclose(
        history.first_layer, [[1, 0.8, 0.6, 0.4], [1, 0.8, 0.6, 0.2], [1, 0.8, 0.6, 0]], atol=1e-6
    )
    assert history.top == pytest.approx(1.25)


def test_histograms_count_every_gamma_even_beyond_their_end():
    history, penalty, model = recorded(1)
    assert history.histograms[0].sum() == 7
    assert history.histograms[0][[0, 16, 32, 40, 48, 64, 80]].tolist() == [1] * 7  # each gamma / 1.25 * 100
    set_gammas(model, l0=[5.0, 6, 7, 0])
    history.record(1, penalty.coupling, "normal", gamma_sizes(model))
    assert history.histograms[1].sum() == 7
    assert history.histograms[1][-1] == 3
    assert history.top == pytest.approx(1.25)


def test_history_survives_the_disk(tmp_path):
    history, *_ = recorded(4)
    history.save(tmp_path / "gammas.npz")
    again = GammaHistory.load(tmp_path / "gammas.npz", before=4)
    assert vars(again).keys() == vars(history).keys()
    for name, value in vars(history).items():
        assert np.array_equal(getattr(again, name), value), name


def test_a_resumed_history_forgets_the_epochs_that_will_come_again(tmp_path):
    history, penalty, model = recorded(4)
    history.save(tmp_path / "gammas.npz")
    again = GammaHistory.load(tmp_path / "gammas.npz", before=2)
    for epoch in (2, 3):
        set_gammas(model, l0=[0.0] * 4)
        again.record(epoch, penalty.coupling, "normal", gamma_sizes(model))
    assert again.epochs == [0, 1, 2, 3]
    assert np.array_equal(again.quintiles[:2], history.quintiles[:2])
    assert again.first_layer[2].tolist() == [0] * 4
    assert again.top == history.top
    assert {len(value) for name, value in vars(again).items() if name != "top"} == {4}
    again.save(tmp_path / "gammas.npz")
    assert GammaHistory.load(tmp_path / "gammas.npz", before=99).epochs == [0, 1, 2, 3]


def test_a_history_that_was_never_written_is_empty(tmp_path):
    assert GammaHistory.load(tmp_path / "none.npz", before=3).epochs == []


def test_a_network_without_batch_norm_has_a_history_too(tmp_path):
    model = Darknet(parse_cfg(NO_BATCH_NORM))
    penalty = GammaPenalty(model, 0.1, "slim", "proximal", MOMENTUM)
    history = GammaHistory()
    history.record(0, penalty.coupling, "slim", gamma_sizes(model))
    penalty.before_step()
    penalty.after_step(0.1)
    assert (history.near_zero, history.allowed) == ([0], [0])
    history.save(tmp_path / "gammas.npz")
    assert GammaHistory.load(tmp_path / "gammas.npz", before=1).epochs == [0]
