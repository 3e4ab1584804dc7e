import copy

import torch
from torch import nn

from config.networks import create_cfg
from models import Darknet
from utils.training.ema import ModelEma


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@torch.no_grad()
def shift(model):
    for parameter in model.parameters():
        parameter.add_(torch.rand_like(parameter))
    model(torch.rand(2, 3, 8, 8))  # moves running mean, variance and num_batches_tracked


def test_the_average_is_the_formula_on_parameters_and_buffers():
    model = small()
    ema = ModelEma(model, decay=0.4)
    average = {name: value.double() for name, value in copy.deepcopy(model.state_dict()).items()}
    for update in range(1, 9):
        shift(model)
        ema.update(model)
        decay = min(0.4, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    found = ema.model.state_dict()
    assert found.keys() == average.keys()
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):
            assert value == 8
            assert value.dtype == torch.long
        else:
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, model.state_dict()[name])


def test_a_few_updates_forget_the_start():
    model = small()
    ema = ModelEma(model)
    shift(model)
    for _ in range(10):
        ema.update(model)
    for average, value in zip(ema.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(average, value.detach(), rtol=0, atol=0.001)


def test_the_average_is_over_about_the_last_ninth_of_the_updates():
    model = small()
    ema = ModelEma(model)
    with torch.no_grad():
        for update in range(1, 1801):
            for parameter in model.parameters():
                parameter.fill_(update)
            ema.update(model)
    for average in ema.model.parameters():
        torch.testing.assert_close(average, torch.full_like(average, 1800 * (1 - 1 / 10)), rtol=0.01, atol=0)


def test_a_late_average_moves_by_one_part_in_two_thousand():
    model = small()
    ema = ModelEma(model, decay=0.9995)
    ema.updates = 100_000
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = [p.clone() for p in ema.model.parameters()]
    ema.update(model)
    for old, new in zip(before, ema.model.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 5e-4), rtol=1e-2, atol=1e-6)


def test_the_trained_model_is_not_touched():
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    ema = ModelEma(model)
    ema.update(model)
    with torch.no_grad():
        next(ema.model.parameters()).zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_average_is_in_eval_mode_and_without_gradients():
    ema = ModelEma(small().train())
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_the_average_of_equal_networks_is_that_network():
    model = Darknet(create_cfg("v3-tiny", 1, 32, width=0.05)).eval()
    ema = ModelEma(model)
    for _ in range(3):
        ema.update(model)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(ema.model(images), model(images), rtol=1e-5, atol=1e-5)


def test_an_average_that_is_replaced_follows_its_own_network():
    model = small()
    ema = ModelEma(model)
    ema.update(model)
    other = nn.Sequential(nn.Conv2d(3, 2, 1))
    ema.model = copy.deepcopy(other)
    with torch.no_grad():
        other[0].weight.add_(1)
    ema.update(other)
    assert not torch.equal(ema.model[0].weight, other[0].weight)
    assert (other[0].weight - ema.model[0].weight).mean() < 1


def test_a_skipped_step_leaves_the_average_and_a_taken_one_is_as_ever():
    model = small()
    averages = [ModelEma(model) for _ in range(2)]
    shift(model)
    start = copy.deepcopy(averages[0].model.state_dict())
    averages[0].update(model, torch.tensor(0.0))
    for name, value in averages[0].model.state_dict().items():
        assert torch.equal(value, start[name]) or name.endswith("tracked")
    averages[0].updates = 0
    averages[0].update(model, torch.tensor(1.0))
    averages[1].update(model)
    for value, expected in zip(*(average.model.parameters() for average in averages), strict=True):
        torch.testing.assert_close(value, expected)
