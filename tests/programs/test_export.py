"""export.py and what it writes, in the programs that read it."""

import json
import struct
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image

import detect
import export
import test
from models import Darknet
from tests.networks import CFG_FOLDER, lively, randomize
from tests.scene import make_project
from utils.darknet.cfg import read_cfg
from utils.detection.checkpoints import load_weights, read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.export import deployment
from utils.export.deployment import Deployment

CFG = "config/prune_yolov3-hand.cfg"
PTH = "checkpoints/prune_yolov3_ckpt.pth"
DATA = ["--data_config", "config/oxfordhand.data", "--n_cpu", "0"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a pruned network, under the names that test_prune.py gives."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    Path("config/yolov3-hand.cfg").rename(CFG)
    model = lively(randomize(Darknet(CFG)))
    save_checkpoint(PTH, model, names=["hand"], img_size=64, best_map=0.5)
    return model


def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words]))


def detections(weights):
    words = ["--image_folder", "data/images", "--weights_path", weights, "--json", "found.json"]
    run(detect, *words, "--conf_thres", "0.3", "--nms_thres", "0.6", "--n_cpu", "0")
    return [result["detections"] for result in json.loads(Path("found.json").read_text())["images"]]


def mean_ap(weights):
    run(test, "--weights_path", weights, *DATA, "--json", "test.json")
    return json.loads(Path("test.json").read_text())


def assert_same_boxes(found, wanted):
    assert [len(boxes) for boxes in found] == [len(boxes) for boxes in wanted]
    for boxes, others in zip(found, wanted, strict=True):
        for ours, theirs in zip(boxes, others, strict=True):
            assert ours["box"] == pytest.approx(theirs["box"], abs=0.02)
            assert ours["score"] == pytest.approx(theirs["score"], abs=2e-4)
            assert ours["class"] == theirs["class"] == "hand"


def test_darknet_weights_and_back_keep_every_bit(project):
    run(export, "--to", "weights")
    weights = Path("checkpoints/prune_yolov3_ckpt.weights")
    assert struct.unpack("<3i", weights.read_bytes()[:12]) == (0, 2, 5)
    words = ["--to", "pth", "--weights_path", str(weights), "--output", "back.pth", "--class_path", "data/hand.names"]
    with pytest.raises(InputError, match="holds no cfg: give the network's with --model_def"):
        run(export, *words)
    run(export, *words, "--model_def", CFG)
    back = read_checkpoint("back.pth")
    assert back["names"] == ["hand"]
    for name, tensor in project.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(back["model"][name], tensor), name
    run(export, "--to", "weights", "--weights_path", "back.pth", "--output", "again.weights")
    assert Path("again.weights").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("to", ["weights", "pth"])
def test_fused_files_come_with_their_cfg_and_compute_the_same(project, to):
    run(export, "--to", to, "--fuse")
    fused = Darknet("checkpoints/prune_yolov3_ckpt_fused.cfg").eval()
    load_weights(fused, f"checkpoints/prune_yolov3_ckpt_fused.{to}")
    assert not fused.batch_norms
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), project(images), rtol=1e-4, atol=1e-4)
    if to == "pth":
        assert read_checkpoint("checkpoints/prune_yolov3_ckpt_fused.pth")["best_map"] == 0.5


@pytest.mark.parametrize("options", [[], ["--static_size"], ["--nms"]], ids=["dynamic", "static", "nms"])
def test_an_onnx_file_detects_and_measures_like_the_checkpoint(project, options):
    run(export, "--to", "onnx", "--output", "a.onnx", *options)
    wanted = detections(PTH)
    assert min(len(boxes) for boxes in wanted) > 3
    assert_same_boxes(detections("a.onnx"), wanted)
    ours, theirs = mean_ap("a.onnx"), mean_ap(PTH)
    for key in ("mAP", "parameters", "macs"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key


def test_int8_is_smaller_and_can_be_measured(project):
    run(export, "--to", "onnx")
    run(export, "--to", "onnx", "--int8", "--calibration", "4", *DATA)
    large, small = (Path(f"checkpoints/prune_yolov3_ckpt{mark}.onnx").stat().st_size for mark in ("", "_int8"))
    assert small < 0.5 * large
    assert mean_ap("checkpoints/prune_yolov3_ckpt_int8.onnx")["images"] == 3


def write_labels(folder, images, results):
    """Labels of class 0 that say what was detected."""
    for path, boxes in zip(images, results, strict=True):
        width, height = Image.open(path).size
        lines = []
        for x1, y1, x2, y2 in (box["box"] for box in boxes):
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join(map(str, (0, *numbers))))
        (folder / path.name).with_suffix(".txt").write_text("\n".join(lines))


def test_max_map_drop_bounds_what_8_bits_cost(project, capsys):
    write_labels(Path("data/labels"), sorted(Path("data/images").iterdir()), detections(PTH))
    run(export, "--to", "onnx")
    most = 0.0001  # 8 bits alone cost 0.0002 here
    run(export, "--to", "onnx", "--int8", "--calibration", "4", "--max_map_drop", str(most), *DATA)
    assert "of 11 layers in float" in capsys.readouterr().out
    in_float, in_8_bits = (mean_ap(f"checkpoints/prune_yolov3_ckpt{mark}.onnx")["mAP"] for mark in ("", "_int8"))
    assert in_float > 0.99
    assert in_8_bits >= in_float - most


def test_wrong_data_shows_before_the_work(project, capsys):
    Path("one.data").write_text("classes=1\ntrain=data/train.txt\n")
    with pytest.raises(InputError, match="valid= is missing"):
        run(export, "--to", "onnx", "--int8", "--max_map_drop", "0.1", "--data_config", "one.data", "--n_cpu", "0")
    assert "agrees with PyTorch" not in capsys.readouterr().out


def test_what_stood_there_before_is_kept(project, capsys):
    Path("out.weights").write_text("an earlier result\n")
    run(export, "--to", "weights", "--output", "out.weights")
    assert Path("out-1.weights").read_text() == "an earlier result\n"
    assert "kept as out-1.weights" in capsys.readouterr().out


def test_a_proof_that_fails_writes_nothing(project, monkeypatch):
    original = export.export_onnx

    def broken(model, *words, **options):
        proto = original(model, *words, **options)
        model.conv(0).weight.data[0] += 1  # PyTorch now computes something else than the graph
        return proto

    monkeypatch.setattr(export, "export_onnx", broken)
    with pytest.raises(InputError, match="nothing was written"):
        run(export, "--to", "onnx", "--output", "a.onnx")
    assert not list(Path().glob("*a.onnx"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onnx", "--int8"], "--int8 needs --data_config"),
        (["--to", "pth", "--int8"], "--int8: only for --to onnx or ncnn or engine"),
        (["--to", "onnx", "--int8", "--fp16"], "--fp16 and --int8 exclude each other"),
        (["--to", "engine", "--output", "a.plan"], "--to engine writes a .engine file"),
        (["--to", "ncnn", "--int8", "openvino"], "--int8 openvino: a form of ONNX files"),
        (["--check", "--fp16"], "--fp16: only for --to onnx or ncnn or engine"),
        (["--to", "engine", "--nms"], "--nms: only for --to onnx$"),
        (["--to", "onnx", "--max_map_drop", "0.01"], "--max_map_drop: only with --int8"),
        (["--to", "onnx", "--conf_thres", "0.1"], "--conf_thres: only with --nms$"),
        (["--to", "pth", "--json", "a.json"], "--json: only with --check$"),
        (["--to", "onnx", "--strict"], "--strict: only with --check or --int8$"),
        (["--latency_table", "lt", "--fuse"], "--fuse: only for --to weights or pth or onnx$"),
        (["--to", "ncnn", "--fuse"], "--fuse: only for --to weights or pth or onnx$"),
        (["--to", "ncnn", "--batch_size", "2"], "--batch_size: only with --check or --max_map_drop or --to engine$"),
        (["--to", "weights", "--fuse", "--output", "a.cfg"], "--fuse writes a cfg beside this file"),
        (["--to", "pth"], "is the file to read"),
        (["--to", "onnx", "--img_size", "70"], "multiple of 32: 64"),
        (["--check", "--image_folder", "nowhere"], "nowhere: no image there"),
        (["--to", "weights", "--weights_path", "none.pth"], "no such weights file"),
        (["--to", "weights", "--int8", "--nms"], "--nms: only for --to onnx"),
        (["--to", "ncnn", "--output", "a.bin"], "--to ncnn writes a .param file"),
        (["--to", "ncnn", "--static_size"], "--static_size: only for --to onnx"),
        (["--to", "pth", "--output", "a.weights"], "--to pth writes a .pth file"),
        (["--to", "weights", "--output", "checkpoints"], "checkpoints: is a folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_no_file(project, words, message):
    before = {path for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message) as error:
        run(export, *words)
    assert "\n" not in str(error.value)
    assert {path for path in Path().rglob("*") if path.is_file()} == before


MISSING = {
    "OpenVINO": "openvino is not installed: pip install 'openvino'",
    "TensorRT": "tensorrt is not installed: pip install 'tensorrt>=10'",
}


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
def test_without_tensorrt_one_line_says_what_does_the_same(project, monkeypatch, int8):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError) as error:
        run(export, "--to", "engine", "--batch_size", "4", *(["--int8", *DATA] if int8 else []))
    message, mark = str(error.value), "_int8" if int8 else ""
    assert "\n" not in message
    assert message.startswith("tensorrt is not installed: pip install 'tensorrt>=10'")
    *_, command = message.rpartition("run there: ")
    name = f"checkpoints/prune_yolov3_ckpt{mark}"
    assert command.split() == [
        "trtexec",
        f"--onnx={name}.onnx",
        f"--saveEngine={name}.engine",
        "--stronglyTyped",
        "--minShapes=images:1x3x64x64",
        "--optShapes=images:1x3x64x64",
        "--maxShapes=images:4x3x64x64",
    ]
    assert not list(Path("checkpoints").glob("*.engine"))
    # The other export that the line names writes the file for trtexec, in float16 and 8 bits.
    _, _, words = message.partition("export with ")
    words = words.partition(" and run there")[0].replace("--data_config DATA", " ".join(DATA)).split()
    run(export, *words, *(["--calibration", "2"] if int8 else []))
    kinds = {init.data_type for init in onnx.load(f"{name}.onnx").graph.initializer if len(init.dims) == 4}
    assert kinds == {TensorProto.FLOAT16, TensorProto.INT8} if int8 else {TensorProto.FLOAT16}
    assert mean_ap(f"{name}.onnx")["images"] == 3


def test_an_engine_without_tensorrt_is_one_line(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    Path("a.engine").touch()
    for program, words in ((test, DATA), (detect, ["--image_folder", "data/images"])):
        with pytest.raises(InputError, match=f"^{MISSING['TensorRT']}$"):
            run(program, "--weights_path", "a.engine", *words)


def test_the_check_has_a_row_for_every_runtime(project, monkeypatch, capsys):
    for package in ("openvino", "tensorrt"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("shutil.which", lambda tool: None)
    run(export, "--check", "--image_folder", "data/images", *DATA, "--json", "check.json")
    rows = json.loads(Path("check.json").read_text())
    assert [(row["runtime"], row["format"]) for row in rows] == [
        ("PyTorch", "checkpoint"),
        ("PyTorch, fused", "checkpoint"),
        ("ONNX Runtime", "ONNX"),
        ("OpenVINO", "ONNX"),
        ("ncnn", "param and bin"),
        ("OpenCV", "cfg and .weights"),
        ("OpenCV", "the same, fused"),
        ("ONNX Runtime", "ONNX, INT8"),
        ("OpenVINO", "ONNX, INT8"),
        ("ncnn", "param and bin, INT8"),
        ("TensorRT", "engine, float16"),
        ("TensorRT", "engine, INT8"),
    ]
    for row in rows:
        if row["format"] == "param and bin, INT8":
            assert row["problem"].startswith("ncnn2table and ncnn2int8 not on the PATH")
        elif row["runtime"] in MISSING:
            assert row["problem"] == MISSING[row["runtime"]]
            assert row["forward_ms"] is row["mAP"] is None
        else:
            assert row["forward_ms"] > 0
            assert 0 <= row["mAP"] <= 1
    others = ("ONNX, INT8", "cfg and .weights")  # 8 bits; and OpenCV's epsilon
    assert all(row["largest_difference"] < 1e-3 for row in rows if row["format"] not in others and not row["problem"])
    assert rows[7]["largest_difference"] > 1e-4
    assert "pip install 'openvino'" in capsys.readouterr().out


def test_the_check_goes_on_without_images_that_cannot_be_read(tmp_path, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    Image.new("RGB", (8, 8)).save(paths[0])
    paths[1].write_bytes(paths[0].read_bytes()[:40])
    Image.new("RGB", (8, 8)).save(paths[2])
    assert export.readable(paths) == [paths[0], paths[2]]
    assert f"warning: 1 of 3 images are left out: {paths[1]}: " in capsys.readouterr().err
    with pytest.raises(InputError, match=str(paths[1])):
        export.readable(paths[1:2])


def test_openvino_computes_the_same(project, capsys):
    pytest.importorskip("openvino")
    run(export, "--check", "--image_folder", "data/images", "--json", "check.json")
    row = next(row for row in json.loads(Path("check.json").read_text()) if row["runtime"] == "OpenVINO")
    assert row["largest_difference"] < 1e-3
    assert row["mAP"] is None  # without a data set


def test_a_difference_that_is_not_finite_is_null_in_json(project, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, images):
            return project(images) * float("nan")

    rows = [Deployment("PyTorch", "checkpoint", 1, project), Deployment("Broken", "none", 1, Broken())]
    monkeypatch.setattr(export, "deployments", lambda *words: rows)
    run(export, "--check", "--image_folder", "data/images", "--json", "check.json")
    whole, broken = json.loads(Path("check.json").read_text())
    assert (whole["largest_difference"], broken["largest_difference"]) == (0, None)


def test_the_check_of_a_network_that_opencv_reads_as_another_one_says_so(project, monkeypatch):
    monkeypatch.setattr(deployment, "optional", refuse_package)
    model = lively(randomize(Darknet(CFG_FOLDER / "plate.cfg")))
    save_checkpoint("plate.pth", model, img_size=64)
    words = ["--weights_path", "plate.pth", "--image_folder", "data/images", "--json", "check.json"]
    run(export, "--check", *words)
    rows = json.loads(Path("check.json").read_text())
    problems = [row["problem"] for row in rows if row["runtime"] == "OpenCV"]
    assert [problem.partition(":")[0] for problem in problems] == 2 * ["OpenCV reads another network from the cfg"]


def refuse_package(name):
    raise InputError(f"{name} is not installed")


def test_a_checkpoint_keeps_what_it_says_about_its_cut(project):
    history = {"pruned": {"from": "a.pth", "ratio": 0.5}, "before_cut": "b.pth", "before_cut_digest": "0f"}
    save_checkpoint("cut.pth", project, names=["hand"], img_size=64, **history)
    run(export, "--to", "pth", "--weights_path", "cut.pth", "--output", "copy.pth")
    assert read_checkpoint("copy.pth").items() >= history.items()


def test_an_engine_without_a_gpu_is_one_line_before_the_work(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(InputError, match=r"^--to engine: "):
        run(export, "--to", "engine")


def test_the_cfg_in_a_file_is_that_of_the_network(project):
    run(export, "--to", "weights", "--fuse", "--output", "a.weights")
    whole, fused = read_cfg(CFG), read_cfg("a.cfg")
    changed = {key for old, new in zip(whole, fused, strict=True) for key in old if old[key] != new[key]}
    assert changed == {"batch_normalize"}


def test_an_onnx_file_of_another_cfg_is_refused(project):
    run(export, "--to", "onnx", "--output", "a.onnx")
    words = ["--weights_path", "a.onnx", *DATA]
    run(test, *words, "--model_def", CFG)
    Path(CFG).write_text(Path(CFG).read_text().replace("activation=leaky", "activation=mish", 1))
    with pytest.raises(InputError, match=r"^a\.onnx: belongs to another cfg than --model_def .*: layer 0 .*=leaky"):
        run(test, *words, "--model_def", CFG)
