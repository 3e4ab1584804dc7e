import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from config.create_cfg import create_cfg
from models import Darknet
from tests.networks import lively, randomize
from utils.detection.runtimes import OnnxModel
from utils.export.onnx import add_suppression, export_onnx
from utils.export.quantization import CalibrationImages, quantize

SIZE = 64


def samples(count, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, SIZE, SIZE, generator=random) for _ in range(count)]


@pytest.fixture(scope="module")
def graphs():
    """A network, its graph in float, and in 8 bits."""
    torch.manual_seed(0)
    model = lively(randomize(Darknet(create_cfg("v3-tiny", 1, SIZE, width=0.25)), near_zero=0))
    proto = export_onnx(model, ["hand"], SIZE)
    return model, proto, quantize(proto, model.spec, samples(8, seed=0))


def test_kernels_have_8_bits_but_for_those_of_the_heads(graphs):
    model, proto, quantised = graphs
    kernels = {init.name: init for init in quantised.graph.initializer if len(init.dims) == 4}
    shapes = [(tuple(init.dims), init.data_type) for init in kernels.values()]
    heads = [model.conv(head.sources[0]).weight.shape for head in model.spec.heads]
    assert sorted(shape for shape, kind in shapes if kind == TensorProto.FLOAT) == sorted(map(tuple, heads))
    assert sum(kind == TensorProto.INT8 for _, kind in shapes) == len(model.spec.convolutions) - len(heads)
    assert quantised.ByteSize() < 0.35 * proto.ByteSize()


def test_every_output_channel_has_a_scale_of_its_own(graphs):
    model, _, quantised = graphs
    scales = [onnx.numpy_helper.to_array(init) for init in quantised.graph.initializer if len(init.dims) == 1]
    first = model.spec.convolutions[0].channels
    assert any(len(scale) == first and len(np.unique(scale)) > 1 for scale in scales if scale.dtype == np.float32)


@torch.no_grad()
def test_boxes_stay_where_they_are(graphs):
    model, _, quantised = graphs
    small = OnnxModel(quantised.SerializeToString())
    for images in samples(4, seed=1):
        wanted, got = model(images)[0], small(images)[0]
        assert float((got[:, 4:] - wanted[:, 4:]).abs().max()) < 0.1
        assert float((got[:, :2] - wanted[:, :2]).abs().max()) < 4  # pixels
        assert not torch.equal(got, wanted)


def test_the_file_says_what_it_is_and_takes_suppression(graphs):
    _, proto, quantised = graphs
    whole = OnnxModel(add_suppression(quantised, 0.3, 0.4).SerializeToString())
    assert whole.metadata == OnnxModel(proto.SerializeToString()).metadata
    assert all(found.shape[1] == 6 for found in whole(torch.rand(2, 3, SIZE, SIZE)))


def test_calibration_gives_each_image_once_and_then_none():
    given = samples(2, seed=0)
    reader = CalibrationImages(iter(given))
    assert [np.array_equal(reader.get_next()["images"], images) for images in given] == [True, True]
    assert reader.get_next() is None
