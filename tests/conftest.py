import os

import pytest
import torch

from tests.networks import CFGS, DARKNET_CFGS, or_skip
from utils import notices


def pytest_configure(config):
    # What the tests compare is exact on a CPU only: to the bit, in float32, and in as many processes as they like.
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _same_every_time():
    """The same random weights and notices in every run; a second thread costs more than it gives on small networks."""
    notices.forget()
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def no_plots(monkeypatch):
    """Programs that draw nothing: that takes longer than all else, and is the point of few tests."""
    drawing = ("train.plot_training", "train.report_training", "test_prune.plot_channels", "test_prune.report_pruning")
    for function in drawing:
        monkeypatch.setattr(function, lambda *words: None)


@pytest.fixture(params=[*CFGS, *or_skip(DARKNET_CFGS)], ids=lambda path: path and path.stem)
def darknet_cfg(request):
    """The path of each of our small networks, and of each network that Darknet ships."""
    return request.param
