import time

import pytest
import torch
from torch import nn

from config.networks import create_cfg
from models import Darknet
from utils.darknet.cfg import parse_cfg
from utils.darknet.spec import parse_network
from utils.detection.complexity import count_parameters, state_dict_size
from utils.timing import Stopwatch, forward_times, time_in_turns

SMALL = parse_cfg("""[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
stride=2
[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
groups=8
[convolutional]
filters=12
size=5
groups=4
stride_x=2
[maxpool]
size=2
stride=2
[upsample]
[convolutional]
filters=6
size=1
[yolo]
mask=0
anchors=1,1
classes=1
num=1
""")


def test_macs_are_counted_by_hand():
    side16 = 16 * 16
    first = side16 * 8 * 3 * 3**2  # 32 / 2 = 16
    depthwise = side16 * 8 * 1 * 3**2
    grouped = 12 * 6 * 12 * 2 * 5**2  # 16 - 5 + 1 = 12 rows, half of the columns
    head = 12 * 6 * 6 * 12  # halved, doubled
    assert parse_network(SMALL, 32).macs == first + depthwise + grouped + head


def test_macs_grow_with_the_area_of_the_input():
    blocks = create_cfg("v3-tiny", 1, 64, width=0.25)
    assert parse_network(blocks, 128).macs == 4 * parse_network(blocks, 64).macs
    assert blocks[0]["width"] == "64"


def test_macs_agree_with_what_the_modules_really_do():
    model = Darknet(create_cfg("v3-tiny", 1, 64, width=0.25)).eval()
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.rand(1, 3, 96, 96))
    assert model.spec.at(96).macs == counted


def test_parameters_are_kernels_biases_gammas_and_betas():
    first, depthwise = 8 * 3 * 3**2 + 2 * 8, 8 * 3**2 + 2 * 8
    grouped, head = 12 * 2 * 5**2 + 12, 6 * 12 + 6
    assert count_parameters(Darknet(SMALL)) == first + depthwise + grouped + head
    assert parse_network(SMALL).parameters == first + depthwise + grouped + head


def test_the_size_of_a_state_dict_is_that_of_its_file(tmp_path):
    model = Darknet(SMALL)
    torch.save(model.state_dict(), tmp_path / "archive")  # a name as short as that within a buffer
    assert state_dict_size(model) == pytest.approx((tmp_path / "archive").stat().st_size, rel=1e-3)


class Sleeper(nn.Module):
    """Takes its time."""

    def __init__(self, *seconds):
        super().__init__()
        self.seconds = list(seconds)
        self.runs = 0

    def forward(self, x):
        assert not torch.is_grad_enabled()
        time.sleep(self.seconds[min(self.runs, len(self.seconds) - 1)])
        self.runs += 1
        return x


def test_a_large_network_takes_longer_than_a_small_one():
    models = [Darknet(SMALL).eval(), Darknet(create_cfg("v3-tiny", 1, 64, width=0.5)).eval()]
    small, large = forward_times(models, torch.rand(1, 3, 128, 128), rounds=3)
    assert 0 < small.median < large.median
    assert forward_times([], torch.rand(1, 3, 64, 64)) == []


def test_forward_times_are_in_the_order_of_the_models_and_in_milliseconds():
    slow, fast = forward_times([Sleeper(0.03), Sleeper(0.001)], torch.zeros(1), rounds=3)
    assert fast.median < slow.median
    assert slow.low >= 30


def step(order, name, *seconds):
    waits = iter(seconds)
    return lambda: (order.append(name), time.sleep(next(waits)))


def test_steps_are_taken_in_turns_and_the_spread_is_the_quartiles():
    order = []

    steps = [step(order, "a", 0.3, 0, 0.04, 0.08, 0.12), step(order, "b", *[0] * 5)]
    spread, short = time_in_turns(steps, torch.device("cpu"), rounds=4, warm_up=1)
    assert order == ["a", "b"] * 5
    assert 30 <= spread.low <= 50 < spread.median < 80 < spread.high < 300
    assert short.median < spread.median


def test_the_first_passes_do_not_count():
    model = Sleeper(0.3, 0.3, 0.0)
    (timing,) = forward_times([model], torch.zeros(1), rounds=1)
    assert timing.median < 150
    assert model.runs == 6


def test_each_counted_pass_follows_one_of_the_same_model_that_does_not_count():
    order = []

    steps = [step(order, "a", 0.2, 0, 0.2, 0), step(order, "b", 0.2, 0, 0.2, 0)]
    timings = time_in_turns(steps, torch.device("cpu"), rounds=2, warm_up=0, lead=1)
    assert order == ["a", "a", "b", "b"] * 2
    assert all(timing.high < 150 for timing in timings)


def test_a_stopwatch_adds_up_what_runs_inside_it_only():
    watch = Stopwatch(torch.device("cpu"))
    start = time.perf_counter()
    for _ in range(2):
        with watch:
            time.sleep(0.02)
        time.sleep(0.05)
    assert 0.04 <= watch.seconds <= time.perf_counter() - start - 0.1
