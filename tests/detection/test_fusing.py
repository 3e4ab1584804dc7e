import pytest
import torch

from models import Darknet
from tests.networks import CFG_FOLDER, narrow, randomize
from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.detection.fusing import fuse


@torch.no_grad()
def test_every_network_computes_the_same_without_batch_norm(darknet_cfg):
    model = randomize(Darknet(narrow(darknet_cfg)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse(model)
    assert not fused.batch_norms
    assert not Darknet(fused.blocks).batch_norms
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(fused(images), model(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batch_norm_by_cbn_is_gone_from_the_cfg_too():
    text = format_cfg(read_cfg(CFG_FOLDER / "v3-tiny.cfg")).replace("batch_normalize=1", "cbn=1")
    model = Darknet(parse_cfg(text))
    assert model.batch_norms
    assert not Darknet(fuse(model).blocks).batch_norms


@torch.no_grad()
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6, 1e-3])
def test_small_variances_are_folded_with_the_layers_own_epsilon(epsilon):
    model = randomize(Darknet(read_cfg(CFG_FOLDER / "v3-tiny.cfg")))
    for norm in model.batch_norms.values():
        norm.running_var.mul_(1e-5)
        norm.weight.data.mul_(1e-3)
        norm.eps = epsilon
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(fuse(model)(images), model(images), rtol=1e-4, atol=1e-4)


def test_its_cfg_and_darknet_weights_are_a_network_of_their_own(tmp_path):
    model = randomize(Darknet(read_cfg(CFG_FOLDER / "v3-tiny.cfg")))
    fused = fuse(model)
    fused.save_darknet_weights(tmp_path / "a.weights")
    again = Darknet(parse_cfg(format_cfg(fused.blocks))).eval()
    again.load_darknet_weights(tmp_path / "a.weights")
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images), fused(images))
