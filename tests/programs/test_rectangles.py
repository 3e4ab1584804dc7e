"""Every program with inputs that are no squares, and --rect."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detect
import export
import test
import test_prune
import train
from config import cluster_anchors
from config.networks import create_cfg
from models import Darknet
from tests.networks import lively, randomize
from tests.scene import make_project, save_labelled
from utils.darknet.cfg import format_cfg, read_cfg
from utils.data.images import input_size, letterboxed, read_image
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.detection.detector import Detector
from utils.detection.inference import for_inference
from utils.detection.runtimes import OnnxModel
from utils.errors import InputError
from utils.signals import Stopped
from utils.training.trainer import Trainer

SIZE = (64, 96)
CFG = "config/wide.cfg"
PTH = "checkpoints/wide.pth"
DATA = ["--data_config", "config/oxfordhand.data", "--n_cpu", "0"]
FAST = [*DATA, "--model_def", CFG, "--batch_size", "3", "--name", "wide"]


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    """A project with a network for images of 64x96, its checkpoint, and images of several shapes in one folder."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    Path(CFG).write_text(format_cfg(create_cfg("v3-tiny", 1, SIZE, width=0.125)))
    model = lively(randomize(Darknet(CFG)))
    save_checkpoint(PTH, model, names=["hand"], img_size=SIZE, strategy="normal")
    random = np.random.default_rng(1)
    for number, (width, height) in enumerate([(160, 90), (90, 160), (160, 80), (96, 96), (90, 150), (200, 110)]):
        image = Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8))
        save_labelled(tmp_path / "shapes", f"s{number}", image, ["0 0.5 0.5 0.4 0.4"])
    return tmp_path


def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words]))


def detections(*words, of="images"):
    source = ["--image_folder", "shapes/images", "--n_cpu", "0"] if of == "images" else ["--video", "shapes/images"]
    run(detect, *source, "--conf_thres", "0.3", "--nms_thres", "0.6", "--json", "boxes.json", *words)
    return json.loads(Path("boxes.json").read_text())[of]


def assert_same_boxes(results, expected):
    assert len(results) == len(expected) > 0
    for boxes, others in zip(results, expected, strict=True):
        assert len(boxes["detections"]) == len(others["detections"]) > 0
        for box, other in zip(boxes["detections"], others["detections"], strict=True):
            assert box["box"] == pytest.approx(other["box"], abs=0.05)
            assert box["score"] == pytest.approx(other["score"], abs=5e-4)


def test_the_cfgs_own_rectangle_goes_through_all_programs(project, capsys):
    run(train, *FAST, "--epochs", "1", "-sr", "--s", "0.01", "--force", "--multiscale_training")
    checkpoint = torch.load("checkpoints/wide_ckpt.pth", weights_only=True)
    assert checkpoint["img_size"] == checkpoint["options"]["img_size"] == SIZE
    assert "3x2" in capsys.readouterr().out  # the grid of the first head

    run(test_prune, *DATA, "--weights_path", "checkpoints/wide_ckpt.pth", "--percent", "0.4", "--force", "--json", "p")
    report = json.loads(Path("p").read_text())
    assert report["max_diff"] < 1e-5
    net = read_cfg("config/prune_wide.cfg")[0]
    assert (net["height"], net["width"]) == ("64", "96")
    small = "checkpoints/prune_wide_ckpt.pth"
    assert read_checkpoint(small)["img_size"] == SIZE
    macs = Darknet("config/prune_wide.cfg").spec.macs
    assert report["after"]["macs"] == macs

    run(test, *DATA, "--weights_path", small, "--json", "t")
    assert json.loads(Path("t").read_text())["macs"] == macs
    assert "at 64x96 pixels (height x width)" in capsys.readouterr().out
    run(train, *DATA, "--model_def", "config/prune_wide.cfg", "-pre", small, "--epochs", "1", "--name", "tuned")
    assert read_checkpoint("checkpoints/tuned_ckpt.pth")["img_size"] == SIZE


def test_an_exported_network_gives_the_same_boxes(project):
    run(export, "--weights_path", PTH, "--to", "onnx")
    assert OnnxModel("checkpoints/wide.onnx").metadata["img_size"] == SIZE
    expected = detections("--weights_path", PTH)
    assert_same_boxes(detections("--weights_path", "checkpoints/wide.onnx"), expected)
    assert_same_boxes(
        detections("--weights_path", "checkpoints/wide.onnx", "--rect"), detections("--weights_path", PTH, "--rect")
    )
    run(export, "--weights_path", PTH, "--to", "onnx", "--img_size", "96", "64", "--static_size", "--output", "x.onnx")
    assert_same_boxes(
        detections("--weights_path", "x.onnx"), detections("--weights_path", PTH, "--img_size", "96", "64")
    )
    with pytest.raises(InputError, match="was exported for images of 96x64 pixels"):
        detections("--weights_path", "x.onnx", "--img_size", "64")
    for program in (detect, test):
        with pytest.raises(InputError, match=r"--rect: x\.onnx takes images of one size only"):
            run(program, "--weights_path", "x.onnx", "--rect")


def test_the_check_compares_all_runtimes_on_the_rectangle(project, capsys):
    run(export, "--check", "--weights_path", PTH, "--image_folder", "shapes/images", *DATA, "--json", "check.json")
    rows = [row for row in json.loads(Path("check.json").read_text()) if row["problem"] is None]
    assert len(rows) >= 4
    for row in rows:
        if "INT8" not in row["format"] and row["runtime"] != "OpenCV":  # whose epsilon is another
            assert row["largest_difference"] < 1e-3, row
            assert row["mAP"] == pytest.approx(rows[0]["mAP"], abs=0.01)
    assert "images of 64x96 pixels (height x width)" in capsys.readouterr().out


def test_a_rectangle_of_the_command_line_is_resumed(project, monkeypatch):
    run_words = [*FAST, "--img_size", "96", "64", "--epochs", "2"]
    original = Trainer._optimizer_step

    def step(self, *step_and_batch):
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        original(self, *step_and_batch)

    monkeypatch.setattr(Trainer, "_optimizer_step", step)
    with pytest.raises(Stopped):
        run(train, *run_words)
    monkeypatch.setattr(Trainer, "_optimizer_step", original)
    with pytest.raises(InputError, match="was started with --img_size 96 64, not 64"):
        run(train, *FAST, "--resume", "--img_size", "64")
    run(train, *FAST, "--resume")
    last = read_checkpoint("checkpoints/wide_last.pth")
    assert (last["epoch"], last["img_size"], last["options"]["img_size"]) == (2, (96, 64), (96, 64))


@pytest.mark.parametrize("program", [train, test, test_prune, detect, export])
def test_sides_that_are_no_multiples_of_the_stride_are_refused(project, program):
    words = {
        train: FAST,
        export: ["--to", "pth", "--weights_path", PTH, "--output", "a.pth"],
        detect: ["--weights_path", PTH, "--image_folder", "shapes/images"],
    }.get(program, [*DATA, "--weights_path", PTH])
    before = sorted(project.rglob("*"))
    with pytest.raises(InputError) as error:
        run(program, *words, "--img_size", "64", "100")
    assert str(error.value) == "an input of 64x100 pixels (height x width) is not a multiple of 32: 64 96 would be"
    assert sorted(project.rglob("*")) == before


# --rect


def test_rect_is_the_letterbox_of_that_shape_in_the_order_of_the_images(project):
    paths = sorted(Path("shapes/images").iterdir())
    model = Darknet(CFG)
    model.load_state_dict(read_checkpoint(PTH)["model"])
    sizes, expected = [], []
    for path in paths:
        image = read_image(path)
        sizes.append(input_size(image.width, image.height, 96, model.spec))
        detector = Detector(for_inference(model.eval()), 96, 0.3, 0.6)
        (boxes,) = detector([letterboxed(image, sizes[-1])], [image])
        expected.append({"image": str(path), "detections": detect.describe(boxes, ["hand"])})
    assert len(set(sizes)) == 3
    words = ["--weights_path", PTH, "--img_size", "96", "--rect"]
    for batch_size in ("1", "4"):
        results = detections(*words, "--batch_size", batch_size)
        assert [result["image"] for result in results] == [str(path) for path in paths]
        assert_same_boxes(results, expected)
    square = detections(*words[:-1])
    assert [r["detections"] for r in square] != [r["detections"] for r in expected]


def test_unreadable_images_do_not_hold_up_the_others(project):
    Path("shapes/images/s2.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        detections("--weights_path", PTH, "--rect", "--batch_size", "4")
    written = json.loads(Path("boxes.json").read_text())
    assert [Path(result["image"]).stem for result in written["images"]] == ["s0", "s1", "s3", "s4", "s5"]
    assert [Path(error["image"]).stem for error in written["errors"]] == ["s2"]


def test_frames_of_a_video_are_letterboxed_as_images_are(project):
    for name in ("s1", "s2", "s3", "s4"):
        Path(f"shapes/images/{name}.png").unlink()
    words = ["--weights_path", PTH, "--img_size", "96", "--rect"]
    assert_same_boxes(detections(*words, of="frames"), detections(*words))


def test_evaluation_with_rect_counts_all_images_and_their_macs(project, capsys):
    paths = sorted(Path("shapes/images").iterdir())
    Path("shapes/valid.txt").write_text("".join(f"{path.resolve()}\n" for path in paths))
    Path("shapes.data").write_text("classes=1\nvalid=shapes/valid.txt\n")
    words = ["--data_config", "shapes.data", "--weights_path", PTH, "--n_cpu", "0", "--img_size", "96", "--json", "t"]
    run(test, *words, "--rect", "--batch_size", "2")
    report = json.loads(Path("t").read_text())
    spec = Darknet(CFG).spec
    sizes = [input_size(*Image.open(path).size, 96, spec) for path in paths]
    assert report["images"] == 6
    assert report["macs"] == round(np.mean([spec.at(size).macs for size in sizes]))
    assert "per image, in rectangles within 96 pixels" in capsys.readouterr().out
    run(test, *words)
    assert json.loads(Path("t").read_text())["macs"] == spec.at(96).macs > report["macs"]


# Programs that write cfgs and anchors


def test_a_created_cfg_has_its_rectangle_and_anchors_of_the_longer_side():
    net, *layers = create_cfg("v3-tiny", 1, (352, 608))
    assert (net["height"], net["width"]) == ("352", "608")
    assert layers == create_cfg("v3-tiny", 1, 608)[1:]
    with pytest.raises(InputError, match="--img_size 352 600 is not a multiple of 32; the nearest is 352 608"):
        create_cfg("v3-tiny", 1, (352, 600))


def test_anchors_are_clustered_in_pixels_of_the_rectangle(project):
    images = sorted(Path("shapes/images").iterdir())[:2]  # 160x90 and 90x160, boxes of 0.4 times each side
    boxes = [np.array([[0, 0.5, 0.5, 0.4, 0.4]])] * 2
    sizes = cluster_anchors.box_sizes(images, boxes, (90, 320))
    assert sizes == pytest.approx(np.array([[64, 36], [0.4 * 90 * 90 / 160, 36]]), abs=0.01)
