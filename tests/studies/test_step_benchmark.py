import torch

from config.networks import create_cfg
from models import Darknet
from studies.step_benchmark import BareStack, random_batch, time_steps


def test_the_bare_stack_computes_the_convolutions_of_the_network():
    model = Darknet(create_cfg("v3", 1, 64, width=0.0625))
    bare = BareStack(model.spec)
    ours, plain = ([m for m in net.modules() if isinstance(m, torch.nn.Conv2d)] for net in (model, bare))
    assert [conv.weight.shape for conv in plain] == [conv.weight.shape for conv in ours]
    places = []
    for conv in (*ours, *plain):
        conv.register_forward_hook(lambda module, inputs, output: places.append(output.shape))
    images = torch.rand(1, 3, 64, 64)
    model(images)
    bare(images).backward()
    assert places[: len(ours)] == places[len(ours) :]
    assert all(parameter.grad is not None for parameter in bare.parameters())


def test_steps_on_more_and_larger_images_take_longer():
    def medians(size, count):
        times = time_steps(create_cfg("v3-tiny", 1, size, width=0.25), count, torch.device("cpu"), rounds=3)
        return [timing.median for timing in times]

    (ours, bare), (ours_large, bare_large) = medians(32, 2), medians(256, 8)
    assert 0 < ours < ours_large
    assert 0 < bare < bare_large


def test_random_batches_are_valid_and_the_same():
    images, targets = random_batch(4, 64, 3)
    assert images.shape == (4, 3, 64, 64)
    assert targets[:, 0].unique().tolist() == [0, 1, 2, 3]
    low, high = targets[:, 2:4] - targets[:, 4:6] / 2, targets[:, 2:4] + targets[:, 4:6] / 2
    assert (low >= 0).all()
    assert (high <= 1).all()
    assert torch.equal(random_batch(4, 64, 3)[1], targets)
