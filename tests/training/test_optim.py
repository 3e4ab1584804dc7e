import importlib

import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.stepping import OneDevice
from utils.training.optim import FINAL_LR, MOMENTUM, WEIGHT_DECAY, build_sgd, learning_rate, learning_rates


def tiny():
    return Darknet(create_cfg("v3-tiny", 1, 32, width=0.05))


def test_weight_decay_is_on_kernels_and_on_nothing_else():
    model = tiny()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {}
    for group in build_sgd(model, 0.1).param_groups:
        for parameter in group["params"]:
            assert parameter not in decay
            decay[parameter] = group["weight_decay"]
    assert decay.keys() == names.keys()
    for parameter, name in names.items():
        kernel = ".conv_" in name and name.endswith(".weight")
        assert decay[parameter] == (WEIGHT_DECAY if kernel else 0), name
    assert {decay[p] for p in names} == {0, WEIGHT_DECAY}


def test_a_step_takes_few_calls_for_all_tensors_where_the_device_has_them(monkeypatch):
    # What PyTorch answers for parameters on a GPU.
    module = importlib.import_module("torch.optim.sgd")  # torch.optim hides it
    monkeypatch.setattr(module, "_default_to_fused_or_foreach", lambda *args, **options: (False, True))
    model = tiny()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = build_sgd(model, 0.1)
    with OneDevice() as calls:
        optimizer.step()
    assert 0 < calls.calls < len(list(model.parameters()))


def test_a_step_without_gradient_shrinks_kernels_alone():
    model = tiny()
    optimizer = build_sgd(model, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * WEIGHT_DECAY * (1 + MOMENTUM) if ".conv_" in name and name.endswith("weight") else 1
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-6, atol=0)


def test_nesterov_momentum():
    weight = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        weight.weight.zero_()
    optimizer = build_sgd(weight, 1.0)
    optimizer.param_groups[0]["weight_decay"] = 0
    velocity, place = 0.0, 0.0
    for _ in range(4):
        weight.weight.grad = torch.ones(1, 1)
        optimizer.step()
        velocity = MOMENTUM * velocity + 1
        place -= 1 + MOMENTUM * velocity
        assert weight.weight.item() == pytest.approx(place)


def test_warm_up_is_linear_and_ends_at_the_learning_rate():
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(11)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(0.5)


def test_the_cosine_goes_from_the_learning_rate_to_its_final_share():
    assert learning_rate(10, 110, 10, 0.5) == pytest.approx(0.5)
    assert learning_rate(60, 110, 10, 0.5) == pytest.approx(0.5 * (1 + FINAL_LR) / 2)
    assert learning_rate(110, 110, 10, 0.5) == pytest.approx(0.5 * FINAL_LR)
    assert learning_rate(109, 110, 10, 0.5) == pytest.approx(0.5 * FINAL_LR, rel=0.05)


def test_the_learning_rate_falls_after_the_warm_up_and_is_never_0():
    rates = np.array([learning_rate(step, 500, 50, 0.01) for step in range(500)])
    assert (np.diff(rates[50:]) < 0).all()
    assert rates.max() == pytest.approx(0.01)
    assert rates.min() > 0


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "warmup"), [(40, 100, 200), (80, 10, 20), (5, 10, 10)])
def test_the_warmup_takes_two_epochs_but_no_more_than_a_fifth(epochs, steps_per_epoch, warmup):
    assert np.argmax(learning_rates(epochs, steps_per_epoch, 0.01)) == warmup - 1


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 0), (5, 1), (1, 1)])
def test_short_runs(steps, warmup):
    rates = [learning_rate(step, steps, warmup, 0.01) for step in range(steps)]
    assert rates[0] == pytest.approx(0.01)
    assert all(0 < rate <= 0.01 for rate in rates)
