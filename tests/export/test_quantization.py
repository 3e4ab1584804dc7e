import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from config.networks import create_cfg
from models import Darknet
from tests.networks import lively, randomize
from utils.detection.runtimes import OnnxModel, OpenVinoModel
from utils.errors import InputError
from utils.export.onnx import add_suppression, export_onnx
from utils.export.quantization import (
    FORMS,
    CalibrationImages,
    quantize,
    quantize_within,
    sensitivities,
)
from utils.kept_rows import KeptRows

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


def zero_points(proto):
    """The zero points of a graph's quantised tensors."""
    values = {init.name: onnx.numpy_helper.to_array(init) for init in proto.graph.initializer}
    return [
        values[node.input[2]] for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]


def test_integers_are_signed_with_zero_points_of_zero_and_biases_in_float(graphs):
    points = zero_points(graphs[2])
    assert all(not point.any() and point.dtype == np.int8 for point in points)
    assert not any(init.data_type == TensorProto.INT32 for init in graphs[2].graph.initializer)


@torch.no_grad()
def test_onnx_runtime_has_8_bit_kernels_where_a_shortcut_reads_the_input_of_a_convolution(tmp_path):
    model = lively(randomize(Darknet(create_cfg("v3", 1, SIZE, width=0.0625)), near_zero=0))
    content = quantize(export_onnx(model, ["hand"], SIZE), model.spec, samples(4, seed=0)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    in_8_bits = sum(node.op_type == "QLinearConv" for node in nodes)
    # Two convolutions that read the same feature map make an exception.
    assert in_8_bits > 0.9 * (len(model.spec.convolutions) - len(model.spec.heads))


@torch.no_grad()
def test_16_bit_floats_take_half_the_space_and_8_bits_a_quarter(graphs):
    model, proto, _ = graphs
    half = export_onnx(model, ["hand"], SIZE, half=True)
    quantised = quantize(half, model.spec, samples(8, seed=0), outputs=FORMS["tensorrt"].outputs)
    assert half.ByteSize() < 0.55 * proto.ByteSize()
    assert quantised.ByteSize() < 0.35 * proto.ByteSize()
    kinds = [init.data_type for init in quantised.graph.initializer if len(init.dims) == 4]
    assert kinds.count(TensorProto.FLOAT16) == len(model.spec.heads)
    assert set(kinds) == {TensorProto.FLOAT16, TensorProto.INT8}
    for graph, tolerance in ((half, 0.02), (quantised, 0.2)):
        network = OnnxModel(graph.SerializeToString())
        for images in samples(2, seed=1):
            assert float((network(images) - model(images))[..., 4:].abs().max()) < tolerance


@torch.no_grad()
def test_openvino_reads_the_form_without_quantised_outputs(graphs):
    pytest.importorskip("openvino", reason="openvino is not installed: requirements-export.txt")
    model, proto, _ = graphs
    content = quantize(proto, model.spec, samples(8, seed=0), outputs=False).SerializeToString()
    compiled = OpenVinoModel(content)
    kernels = [
        operation.get_rt_info()["runtimePrecision"].astype(str)
        for operation in compiled.compiled.get_runtime_model().get_ops()
        if operation.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    assert sum(kind in ("u8", "i8") for kind in kernels) == len(model.spec.convolutions) - len(model.spec.heads)
    for images in samples(2, seed=1):
        assert float((compiled(images) - model(images))[..., 4:].abs().max()) < 0.2


def test_the_layer_whose_rounding_does_harm_is_the_most_sensitive(graphs):
    model = Darknet(graphs[0].blocks)
    model.load_state_dict(graphs[0].state_dict())
    with torch.no_grad():  # huge weights on a channel of zeros: the other weights round to 0
        model.eval().batch_norm(2).weight[0] = model.batch_norm(2).bias[0] = 0
        model.conv(4).weight[:, 0] = 1e4 * model.conv(4).weight.abs().amax()
    errors = sensitivities(model, torch.cat(samples(2, seed=1)))
    heads = set(model.spec.head_convolutions)
    assert set(errors) == {layer.index for layer in model.spec.convolutions} - heads
    assert max(errors, key=lambda index: errors[index]) == 4


@torch.no_grad()
@pytest.mark.parametrize("bound", [1.0, 0.02])
def test_a_bound_leaves_few_layers_in_float(graphs, bound, tmp_path, capsys):
    model, proto, _ = graphs
    images = samples(4, seed=1)
    reached = {}

    def build(float_layers):
        return float_layers, quantize(proto, model.spec, samples(8, seed=0), float_layers)

    def score(built):
        layers, graph = built
        network = OnnxModel(graph.SerializeToString())
        reached[len(layers)] = -max(float((network(batch) - model(batch))[..., 4:].abs().max()) for batch in images)
        return reached[len(layers)]

    errors = sensitivities(model, torch.cat(images))
    layers, result = quantize_within(errors, build, score, 0.0, bound, KeptRows(tmp_path / "kept.json", {}))
    assert set(layers) == set(sorted(errors, key=errors.get, reverse=True)[: len(layers)])
    assert reached[len(layers)] >= -bound
    assert (bound == 1) == (not layers)
    if layers:  # bisection has seen that one layer fewer is not enough
        assert reached[len(layers) - 1] < -bound
        assert len(reached) <= 1 + len(errors).bit_length()
    kernels = [init for init in result.graph.initializer if len(init.dims) == 4 and init.data_type == TensorProto.FLOAT]
    assert len(kernels) == len(model.spec.heads) + len(layers)
    assert f"{len(layers)} of {len(errors)} layers in float" in capsys.readouterr().out


def test_a_bound_that_no_layer_keeps_is_one_line(tmp_path):
    kept = KeptRows(tmp_path / "kept.json", {})
    with pytest.raises(InputError, match=r"with any layer in 8 bits the score is further below 0\.9000"):
        quantize_within({0: 1.0, 3: 2.0, 5: 0.5}, len, lambda count: 0.1 * count, 0.9, 0.01, kept)


@pytest.mark.parametrize("stop", range(1, 5))
def test_an_interrupted_search_goes_on_with_the_scores_that_it_has(tmp_path, stop):
    errors = {layer: 1 / (1 + layer) for layer in range(12)}
    scored = []

    def search(stop=None):
        def score(layers):
            if len(scored) == stop:
                raise KeyboardInterrupt
            scored.append(len(layers))
            return 0.1 * len(layers)

        return quantize_within(errors, list, score, 1.0, 0.25, KeptRows(tmp_path / "kept.json", {}))

    with pytest.raises(KeyboardInterrupt):
        search(stop)
    assert search() == list(range(8))  # the fewest with at least 0.75
    assert len(scored) == len(set(scored))


def test_calibration_ranges_are_kept(graphs, tmp_path):
    model, proto, quantised = graphs
    ranges = tmp_path / "ranges.json"
    quantize(proto, model.spec, samples(8, seed=0), ranges=ranges)
    assert quantize(proto, model.spec, [], ranges=ranges) == quantised
