"""What is optional stays optional: the recipe runs without it, and what needs it says what to install."""

import subprocess
import sys
from pathlib import Path

import pytest

import detect
import export
import test
from models import Darknet
from tests.scene import make_project
from utils.detection.checkpoints import save_checkpoint
from utils.errors import InputError

ROOT = Path(__file__).parents[1]
OPTIONAL = ["ncnn", "onnx", "onnxruntime", "onnxscript", "openvino", "pnnx"]
RECIPE = f"""
import sys
sys.modules |= dict.fromkeys({OPTIONAL})  # importing them fails as if they were not installed
sys.path.insert(0, {str(ROOT)!r})
import detect, export, test, test_prune, train

def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words, "--n_cpu", "0"]))

train.plot_training = lambda *words: None
run(train, "--epochs", "1", "-sr", "--batch_size", "4")
run(test_prune, "--percent", "0.3", "--force")
model = ["--model_def", "config/prune_yolov3-hand.cfg", "--weights_path", "checkpoints/prune_yolov3_ckpt.pth"]
run(test, *model)
run(detect, *model, "--image_folder", "data/images")
run(export, *model, "--to", "weights")
run(export, *model, "--check", "--image_folder", "data/images")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def test_train_prune_test_and_detect_work_without_any_of_them(project):
    ended = subprocess.run([sys.executable, "-c", RECIPE], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert Path("checkpoints/prune_yolov3_ckpt.weights").exists()
    for name in ("ncnn", "onnxruntime", "openvino"):
        assert f"pip install '{name}'" in ended.stdout


@pytest.mark.parametrize(
    ("program", "words", "missing", "package"),
    [
        (export, ["--to", "onnx"], "onnx", "onnx"),
        (export, ["--to", "onnx"], "onnxruntime", "onnxruntime"),
        (export, ["--to", "ncnn"], "ncnn", "ncnn"),
        (export, ["--to", "ncnn"], "pnnx", "pnnx"),
        (test, ["--weights_path", "a.ncnn.param"], "ncnn", "ncnn"),
        (detect, ["--weights_path", "a.onnx", "--image_folder", "data/images"], "onnxruntime", "onnxruntime"),
        (test, ["--weights_path", "a.onnx"], "onnxruntime", "onnxruntime"),
    ],
)
def test_what_needs_one_says_what_to_install(project, monkeypatch, program, words, missing, package):
    for folder in ("checkpoints/yolov3_ckpt.pth", "checkpoints/prune_yolov3_ckpt.pth"):
        save_checkpoint(folder, Darknet("config/yolov3-hand.cfg"), names=["hand"], img_size=64)
    monkeypatch.setitem(sys.modules, missing, None)
    options = ["--model_def", "config/yolov3-hand.cfg", "--n_cpu", "0"]
    with pytest.raises(InputError, match=f"{missing} is not installed: pip install '{package}'"):
        program.main(program.get_args_parser().parse_args([*options, *words]))
    assert not list(Path().rglob("*.onnx"))
