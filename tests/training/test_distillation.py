import copy
from pathlib import Path

import pytest
import torch

import train
from config.networks import create_cfg
from models import Darknet
from tests.networks import lively
from tests.scene import make_project
from utils.darknet.cfg import format_cfg
from utils.detection.checkpoints import save_checkpoint
from utils.errors import InputError
from utils.training.distillation import Distillation, load_teacher

SIZE = 64


def spec(classes=2, width=0.25, base="v3-tiny", seed=0):
    torch.manual_seed(seed)
    return lively(Darknet(create_cfg(base, classes, SIZE, width)), seed)


def loss_of(heads, student, teacher, images):
    return Distillation(student, teacher, "full")(heads, images)


@pytest.fixture
def images():
    return torch.rand(3, 3, SIZE, SIZE)


def test_the_teacher_itself_is_at_the_minimum(images):
    teacher = spec()
    heads = [raw.detach().clone().requires_grad_() for raw in teacher.raw_outputs(images)]
    loss = loss_of(heads, teacher, teacher, images)
    loss.backward()
    for raw in heads:
        # CIoU's own gradient is not continuous where two boxes are the same; objectness and classes are flat there.
        assert raw.grad[..., 4:].abs().max() < 1e-6
    for entry in (0, 2, 4, 5):
        others = [raw.detach().clone() for raw in heads]
        for raw in others:
            raw[..., entry] += 0.5
        assert loss_of(others, teacher, teacher, images) > loss


def test_boxes_and_classes_of_the_teachers_background_teach_nothing(images):
    teacher, student = spec(), spec(seed=1)
    for head in teacher.spec.heads:
        bias = teacher.conv(head.sources[0]).bias.data.view(len(head.anchors), -1)
        bias[:, 4] = -30
    heads = [raw.detach().clone().requires_grad_() for raw in student.raw_outputs(images)]
    loss_of(heads, student, teacher, images).backward()
    for raw in heads:
        assert (raw.grad[..., 4] > 0).all()
        assert (raw.grad[..., :4] == 0).all()
        assert (raw.grad[..., 5:] == 0).all()


def test_a_step_toward_the_teacher_by_the_gradient(images):
    teacher, student = spec(), spec(width=0.125, seed=1)
    before = loss_of(student.raw_outputs(images), student, teacher, images)
    before.backward()
    teacher_before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= 1e-3 * parameter.grad
        assert loss_of(student.raw_outputs(images), student, teacher, images) < before
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (create_cfg("v3-tiny", 3, SIZE, 0.25), "classes 3, but 2"),
        (create_cfg("v3-tiny", 2, 2 * SIZE, 0.25), "anchors"),
        (create_cfg("v3", 2, SIZE, 0.01), r"3 \[yolo\] layers for a network with 2"),
    ],
)
def test_a_teacher_with_other_heads_is_refused(tmp_path, other, words):
    (tmp_path / "teacher.cfg").write_text(format_cfg(other))
    save_checkpoint(tmp_path / "teacher.pth", Darknet(other))
    with pytest.raises(InputError, match=words) as error:
        load_teacher(str(tmp_path / "teacher.pth"), str(tmp_path / "teacher.cfg"), spec(), SIZE, torch.device("cpu"))
    assert "teacher" in str(error.value)


def test_a_teacher_with_other_strides_is_refused(tmp_path):
    blocks = create_cfg("v3-tiny", 2, SIZE, 0.25)
    first = next(block for block in blocks if block["type"] == "convolutional")
    first["stride"] = "2"
    (tmp_path / "teacher.cfg").write_text(format_cfg(blocks))
    save_checkpoint(tmp_path / "teacher.pth", Darknet(blocks))
    with pytest.raises(InputError, match="columns 1, but 2"):
        load_teacher(str(tmp_path / "teacher.pth"), str(tmp_path / "teacher.cfg"), spec(), SIZE, torch.device("cpu"))


def test_train_takes_a_teacher_and_needs_its_weights(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(make_project(tmp_path))
    teacher = Darknet("config/yolov3-hand.cfg")
    save_checkpoint("teacher.pth", teacher)
    teacher.save_darknet_weights("teacher.weights")

    def tune(*words):
        options = ["--epochs", "1", "--batch_size", "4", "--n_cpu", "0", "--overwrite", *words]
        train.main(train.get_args_parser().parse_args(options))
        return torch.load("checkpoints/baseline_yolov3_last.pth", weights_only=True)["training"]["model"]

    plain = tune()
    taught = tune("--teacher_weights", "teacher.pth")  # its cfg is in the checkpoint
    by_darknet = tune("--teacher_cfg", "config/yolov3-hand.cfg", "--teacher_weights", "teacher.weights")
    assert "distillation_loss" in Path("runs/baseline_yolov3/log.csv").read_text()
    name = "module_list.0.conv_0.weight"
    assert not torch.equal(plain[name], taught[name])
    assert all(torch.equal(value, by_darknet[key]) for key, value in taught.items())
    with pytest.raises(InputError, match="--teacher_cfg needs --teacher_weights"):
        tune("--teacher_cfg", "config/yolov3-hand.cfg")
    with pytest.raises(InputError, match="--pretrained_cfg needs -pre"):
        tune("--pretrained_cfg", "config/yolov3-hand.cfg")
