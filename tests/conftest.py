import os
from pathlib import Path

import pytest

# What the tests compare is exact on a CPU only: to the bit, in float32, and in as many processes as they like.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch

DARKNET_CFGS = Path(__file__).resolve().parents[2] / "shared" / "darknet_cfg"
NAMES = [
    "enet-coco",
    "yolov3",
    "yolov3-spp",
    "yolov3-tiny",
    "yolov3-tiny-prn",
    "yolov4",
    "yolov4-csp",
    "yolov4-tiny",
    "yolov7-tiny",
]


@pytest.fixture(autouse=True)
def _same_every_time():
    """The same random weights in every run; on networks this small a second thread costs more than it gives."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def darknet_cfgs():
    """The folder of the networks that Darknet ships."""
    if not DARKNET_CFGS.is_dir():
        pytest.skip(f"Darknet's own cfg files are not at {DARKNET_CFGS}")
    return DARKNET_CFGS


@pytest.fixture(params=NAMES)
def darknet_cfg(request, darknet_cfgs):
    """The path of each of the networks that Darknet ships."""
    return darknet_cfgs / f"{request.param}.cfg"
