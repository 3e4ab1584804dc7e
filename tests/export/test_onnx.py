import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import lively, narrow, randomize
from utils.boxes import non_max_suppression
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.detection.runtimes import OnnxModel, prediction_difference
from utils.errors import InputError
from utils.export.onnx import TOLERANCE, add_suppression, export_onnx, prove

NAMES = ["left", "right"]
SIZE = 64
ON_THE_CPU = ["CPUExecutionProvider"]


def spec():
    return lively(randomize(Darknet(create_cfg("v3-tiny", 2, SIZE, width=0.125)), near_zero=0))


def samples():
    """Noise, black, and white on one half, in batches of two sizes."""
    random = torch.Generator().manual_seed(1)
    halves = torch.ones(1, 3, 96, 128)
    halves[..., :64] = 0
    return [torch.rand(3, 3, SIZE, SIZE, generator=random), torch.zeros(1, 3, SIZE, SIZE), halves]


@pytest.fixture(scope="module")
def exported():
    """A network, and its graph."""
    torch.manual_seed(0)
    model = spec()
    return model, export_onnx(model, NAMES, SIZE)


@torch.no_grad()
def test_every_network_gives_the_same_predictions_in_onnx_runtime(darknet_cfg):
    model = lively(randomize(Darknet(narrow(darknet_cfg))))
    names = [str(number) for number in range(model.spec.heads[0].classes)]
    assert prove(model, export_onnx(model, names, SIZE), samples()) <= TOLERANCE


def test_the_graph_has_no_batch_norm_and_says_what_it_is(exported):
    model, proto = exported
    onnx.checker.check_model(proto, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["images", "predictions"]
    read = OnnxModel(proto.SerializeToString())
    assert read.metadata == {"names": NAMES, "img_size": SIZE}
    assert read.spec.blocks == parse_cfg(format_cfg(model.blocks))


def test_a_gpu_whose_libraries_do_not_load_is_an_error_where_it_was_asked_for(exported, monkeypatch, capsys):
    """ONNX Runtime lists the provider, and goes on without it."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *ON_THE_CPU])
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda source, options, _: session(source, options, ON_THE_CPU)
    )
    content = exported[1].SerializeToString()
    with pytest.raises(InputError, match=r"^--device cuda:0: the graph runs in .*, which cannot load its CUDA"):
        OnnxModel(content, device="cuda:0")
    OnnxModel(content, device="cpu")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        OnnxModel(content)
    assert capsys.readouterr().err.splitlines() == [
        "the graph runs in ONNX Runtime, which cannot load its CUDA libraries here: on the CPU instead"
    ]


@pytest.mark.parametrize("layer", [0, 10, 15, 22], ids=["first", "middle", "a head", "the other head"])
def test_one_wrong_weight_is_noticed(exported, layer):
    model, proto = exported
    broken = spec()
    broken.load_state_dict(model.state_dict())
    weight = broken.conv(layer).weight.data.flatten()
    weight[weight.abs().argmax()] *= 1.1
    assert prove(model, proto, samples()) < 1e-5
    with pytest.raises(InputError, match=r"differ by .* from PyTorch's.*nothing was written"):
        prove(broken, proto, samples())


def test_a_graph_of_one_size_refuses_another_and_takes_any_batch():
    model = spec()
    proto = export_onnx(model, NAMES, SIZE, dynamic_size=False)
    assert prove(model, proto, samples()[:2]) < 1e-5
    with pytest.raises(InputError, match="images of 64 pixels, not 96"):
        OnnxModel(proto.SerializeToString())(torch.zeros(1, 3, 96, 96))


@torch.no_grad()
@pytest.mark.parametrize(("conf_thres", "nms_thres"), [(0.3, 0.4), (0.2, 0.8), (0.99, 0.4)])
def test_suppression_in_the_graph_keeps_the_same_boxes(exported, conf_thres, nms_thres):
    model, proto = exported
    content = add_suppression(proto, 0.3, 0.4).SerializeToString()
    inside = OnnxModel(content, None if (conf_thres, nms_thres) == (0.3, 0.4) else (conf_thres, nms_thres))
    counts = []
    for images in samples():
        wanted = non_max_suppression(model(images), conf_thres, nms_thres)
        got = inside(images)
        assert len(got) == len(images)
        for ours, theirs in zip(wanted, got, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
            counts.append(len(ours))
    assert min(counts) == max(counts) == 0 if conf_thres == 0.99 else min(counts) > 3
    assert inside.metadata["names"] == NAMES


def test_a_file_of_another_program_is_refused_in_one_line(tmp_path):
    identity = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1] a) => (float[1] b) { b = Identity(a) }'
    )
    onnx.save(identity, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match=r"foreign\.onnx: no cfg in its metadata"):
        OnnxModel(tmp_path / "foreign.onnx")


@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000)])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.onnx: ONNX Runtime cannot read it") as error:
        OnnxModel(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx: there is no such ONNX file"):
        OnnxModel(tmp_path / "none.onnx")


def test_the_difference_counts_scores_and_boxes_each_in_its_own_unit():
    wanted = torch.tensor([[[100.0, 50, 10, 0.5, 0.8, 0.5], [1, 1, 1, 1, 0.1, 0.1]]])
    moved, scored, weak = wanted.clone(), wanted.clone(), wanted.clone()
    moved[0, 0, 0] += 1
    scored[0, 0, 4] += 0.1
    weak[0, 1] += 0.05
    assert prediction_difference(wanted, wanted) == 0
    assert prediction_difference(wanted, moved) == pytest.approx(0.01)
    assert prediction_difference(wanted, scored) == pytest.approx(0.05)
    assert prediction_difference(wanted, weak, min_score=0.25) == 0
    assert prediction_difference(wanted, weak, min_score=0.5) is None
    assert np.isnan(prediction_difference(wanted, wanted * np.nan))
