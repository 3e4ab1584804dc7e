"""The kernels that a compact network gets after a hard cut."""

import copy

import numpy as np
import pytest
import torch

from models import Darknet
from tests.networks import CFG_FOLDER, lively
from utils.darknet.cfg import parse_cfg
from utils.pruning.budget import Budget, cut_least_important
from utils.pruning.constants import prune_masks
from utils.pruning.coupling import couple
from utils.pruning.reconstruction import RIDGE, reconstruct
from utils.pruning.surgery import prune

# The first convolution writes what the second reads; the third has a bias and no BatchNorm.
CHAIN = """
[net]
width=32
height=32
channels=3
[convolutional]
batch_normalize=1
filters=6
size=3
stride=2
pad=1
activation=linear
[convolutional]
batch_normalize=1
filters=5
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=6
size=1
stride=1
activation=linear
[yolo]
mask=0
anchors=8,8
classes=1
num=1
"""


@pytest.fixture
def images():
    coarse = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")


def network(images):
    """A network of three convolutions."""
    torch.manual_seed(0)
    return with_statistics(lively(Darknet(parse_cfg(CHAIN))), images)


@torch.no_grad()
def with_statistics(model, images):
    """The network with the images' own statistics in its BatchNorms, in eval mode."""
    for norm in model.batch_norms.values():
        norm.reset_running_stats()
    model.train().raw_outputs(images)
    return model.eval()


def cut(model, channels):
    """The network without these channels of its first convolution."""
    coupling = couple(model.spec)
    dead = np.zeros(len(coupling.sets), bool)
    dead[coupling.outputs[0][channels]] = True
    return prune(model, coupling, dead)[1]


def error(model, whole, images):
    with torch.no_grad():
        pairs = zip(model.raw_outputs(images), whole.raw_outputs(images), strict=True)
        return float(sum((a - b).square().mean() for a, b in pairs) / sum(b.var() for b in whole.raw_outputs(images)))


def test_what_other_channels_hold_is_found_there(images):
    whole = network(images)
    with torch.no_grad():  # channel 1 says what 0 says, and 2 what 3 and 4 say
        kernels = whole.conv(0).weight
        kernels[1] = -2 * kernels[0]
        kernels[2] = kernels[3] + kernels[4]
    pruned = cut(with_statistics(whole, images), [1, 2])
    before = error(pruned.model, whole, images)
    reconstruct(pruned.model, whole, pruned.mask, images)
    assert error(pruned.model, whole, images) < 0.02 * before  # and not 0: kernels are held near what they were


def test_nothing_changes_where_nothing_is_cut(images):
    whole = network(images)
    (mask,) = prune_masks([whole], couple(whole.spec), np.zeros(len(couple(whole.spec).sets), bool))
    compact = copy.deepcopy(whole)
    reconstruct(compact, whole, mask, images)
    for index in range(3):
        torch.testing.assert_close(compact.conv(index).weight, whole.conv(index).weight, atol=1e-4, rtol=1e-4)


def test_a_kernel_is_the_solution_of_ridge_regression(images):
    whole = network(images)
    pruned = cut(whole, [0, 5])
    before = pruned.model.conv(2).weight.detach().double().numpy()[:, :, 0, 0]
    reconstruct(pruned.model, whole, pruned.mask, images)
    seen = {}
    for name, model in (("whole", whole), ("compact", pruned.model)):
        model.conv(2).register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
        model.raw_outputs(images)
    inputs, values = (
        part.detach().double().movedim(1, -1).flatten(0, 2).numpy() for part in (seen["compact"][0], seen["whole"][1])
    )
    centred, ridge = inputs - inputs.mean(0), RIDGE * inputs.var(0).mean() * len(inputs)
    gram = centred.T @ centred + ridge * np.eye(inputs.shape[1])
    expected = np.linalg.solve(gram, centred.T @ (values - values.mean(0)) + ridge * before.T).T
    np.testing.assert_allclose(pruned.model.conv(2).weight.detach().numpy()[:, :, 0, 0], expected, rtol=1e-4, atol=1e-5)
    bias = values.mean(0) - expected @ inputs.mean(0)
    np.testing.assert_allclose(pruned.model.conv(2).bias.detach().numpy(), bias, rtol=1e-4, atol=1e-5)


def test_batch_norm_in_training_agrees_with_that_in_detection(images):
    whole = network(images)
    pruned = cut(whole, [0, 5])
    reconstruct(pruned.model, whole, pruned.mask, images)
    evaluated = pruned.model.raw_outputs(images)
    trained = pruned.model.train().raw_outputs(images)
    for one, other in zip(evaluated, trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("cfg", sorted(CFG_FOLDER.glob("*.cfg")), ids=lambda cfg: cfg.stem)
def test_each_network_is_nearer_to_the_whole_one_than_before(cfg, images):
    torch.manual_seed(0)
    whole = lively(Darknet(cfg))
    size = whole.spec.height, whole.spec.width
    images = torch.nn.functional.interpolate(images, size=size, mode="bilinear")
    result = cut_least_important(whole, "slim", size, Budget(0.4))
    compact = result.pruned.model
    before = error(compact, whole, images)
    reconstruct(compact, whole, result.pruned.mask, images)
    assert error(compact, whole, images) < before


def test_a_single_value_of_each_channel_is_enough_for_numbers(images):
    whole = network(images)
    pruned = cut(whole, [0, 5])
    reconstruct(pruned.model, whole, pruned.mask, images[:1, :, :4, :4])
    assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())


def test_a_kernel_over_constants_stays(images):
    whole = network(images)
    with torch.no_grad():
        whole.batch_norm(1).weight.zero_()
    pruned = cut(whole, [0])
    kernel = pruned.model.conv(2).weight.clone()
    reconstruct(pruned.model, whole, pruned.mask, torch.full((2, 3, 32, 32), 0.5))
    torch.testing.assert_close(pruned.model.conv(2).weight, kernel)
