import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from utils.darknet.cfg import parse_cfg
from utils.pruning.penalty import GammaPenalty, reach, soft_threshold
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
