"""Pruned and whole networks in OpenCV's Darknet reader: the same boxes.

Two differences are OpenCV's own, and the reference takes them over: BatchNorm's epsilon is 1e-6, and a product of
objectness and class score that is not above 0.2 becomes 0.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import CFG_FOLDER, lively, narrow, randomize
from utils.boxes import non_max_suppression
from utils.darknet.cfg import format_cfg
from utils.data.images import letterboxed, read_image
from utils.detection.fusing import fuse
from utils.detection.runtimes import OpenCvModel
from utils.errors import InputError
from utils.files import write_text
from utils.pruning.pruner import Pruner

SIZE = 96
HANDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hands" / "images" / "valid"


def spec(name):
    if name != "v4-tiny":
        return Darknet(create_cfg(name, 2, SIZE, width=0.125))
    return Darknet(narrow(CFG_FOLDER / "v4-tiny.cfg", size=SIZE))


def pruned(model):
    return Pruner(model, "shortcut").at(0.5).pruned.model


@pytest.fixture(params=["noise", "image"])
def image(request):
    """(1, 3, S, S) in [0, 1]."""
    if request.param == "noise":
        return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    if not HANDS.is_dir():
        pytest.skip(f"the photographs are not at {HANDS}")
    return letterboxed(read_image(min(HANDS.iterdir())), SIZE)[None].float() / 255


def write_files(model, folder):
    cfg, weights = folder / "a.cfg", folder / "a.weights"
    write_text(cfg, format_cfg(model.blocks))
    model.save_darknet_weights(weights)
    return str(cfg), str(weights)


def opencv_rows(files, image):
    """All rows cx, cy, w, h in [0, 1], objectness, products of OpenCV's reader, head by head and cell by cell."""
    net = cv2.dnn.readNetFromDarknet(*files)
    net.setInput(image.numpy())
    return torch.from_numpy(np.concatenate(net.forward(net.getUnconnectedOutLayersNames())))


@torch.no_grad()
def our_rows(model, image):
    """The same from our model, with OpenCV's two differences."""
    for norm in model.batch_norms.values():
        norm.eps = 1e-6
    rows = []
    for yolo, raw in zip(model.heads, model.raw_outputs(image), strict=True):
        _, anchors, height, width, _ = raw.shape
        found = yolo.decode(raw, SIZE, SIZE)[0].unflatten(0, (anchors, height, width)).permute(1, 2, 0, 3).flatten(0, 2)
        rows.append(found)
    rows = torch.cat(rows)
    rows[:, :4] /= SIZE
    products = rows[:, 4:5] * rows[:, 5:]
    rows[:, 5:] = torch.where(products > 0.2, products, 0)
    return rows


@pytest.mark.parametrize("change", [lambda model: model, pruned, fuse], ids=["whole", "pruned", "fused"])
@pytest.mark.parametrize("name", ["v3", "v3-tiny", "v3-spp", "v4-tiny"])
def test_opencv_finds_the_same_boxes(tmp_path, name, change, image):
    model = change(lively(randomize(spec(name))))
    rows = opencv_rows(write_files(model, tmp_path), image)
    wanted = our_rows(model, image)
    assert (wanted[:, 5:] > 0).sum() > 10
    torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-5)


def test_one_wrong_weight_is_noticed(tmp_path):
    model = lively(randomize(spec("v3-tiny"), near_zero=0))
    files = write_files(model, tmp_path)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(opencv_rows(files, image), our_rows(model, image), rtol=1e-4, atol=1e-5)
    for index in (0, 8, 15):
        kernel = model.conv(index).weight.data.flatten()
        place = kernel.abs().argmax()
        right = kernel[place].clone()
        kernel[place] *= 1.1
        with pytest.raises(AssertionError):
            torch.testing.assert_close(opencv_rows(files, image), our_rows(model, image), rtol=1e-4, atol=1e-5)
        kernel[place] = right


@torch.no_grad()
def test_the_runtime_gives_predictions_in_our_order_and_pixels():
    model = fuse(lively(randomize(spec("v3-tiny"))))
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    got, wanted = OpenCvModel(model, SIZE)(images), model(images)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(non_max_suppression(wanted, 0.1, 0.4), non_max_suppression(got, 0.1, 0.4), strict=True):
        assert ours[:, 4].min() < 0.2  # OpenCV's own threshold is out of the way
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, (32, 128)])
def test_a_cfg_that_opencv_reads_as_another_network_is_refused_in_one_line(size):
    model = lively(randomize(Darknet(CFG_FOLDER / "plate.cfg")))
    with pytest.raises(InputError, match="OpenCV reads another network from the cfg") as error:
        OpenCvModel(model, size)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_small_variances_need_batch_norm_folded_in():
    """Trained networks have variances near 1e-5, where OpenCV's epsilon is another network."""
    model = lively(randomize(spec("v3-tiny")))
    for layer in model.spec.convolutions:
        if layer.batch_normalize:
            norm = model.batch_norm(layer.index)
            shrunk = (1e-5 / norm.running_var).sqrt()
            model.conv(layer.index).weight.data *= shrunk[:, None, None, None]
            norm.running_mean *= shrunk
            norm.running_var.fill_(1e-5)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    wanted = model(image)
    assert (OpenCvModel(model, SIZE)(image) - wanted)[..., 4].abs().max() > 0.05
    torch.testing.assert_close(OpenCvModel(fuse(model), SIZE)(image)[..., :5], wanted[..., :5], rtol=1e-4, atol=1e-4)
