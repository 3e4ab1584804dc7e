import csv
import math

import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from studies import plain_recipe
from tests.scene import make_project
from utils.detection.checkpoints import read_checkpoint
from utils.errors import InputError


def test_the_loss_by_hand():
    yolo = Darknet(create_cfg("v3-tiny", 2, 64, 0.25, "8,8, 10,10, 12,12, 16,16, 32,32, 60,60")).heads[0]
    raw = torch.zeros(1, 3, 2, 2, 7)
    # In cell (1, 0): 0.2 and 0.5 of it; 32 by 16 pixels, which fits anchors 16 and 32 alike, 0.5, no more than ignored.
    targets = torch.tensor([[0, 1, 0.6, 0.25, 0.5, 0.25]])
    found = plain_recipe.head_loss(yolo, raw, targets, 64)
    centre = (0.5 - 0.2) ** 2 + 0
    size = math.log(32 / 16) ** 2 + 0
    assert found.item() == pytest.approx(100 * math.log(2) + centre + size + math.log(2) + math.log(2), rel=1e-5)
    nothing = plain_recipe.head_loss(yolo, raw, targets[:0], 64)
    assert nothing.item() == pytest.approx(100 * math.log(2))


def test_what_fits_a_target_is_not_punished_for_finding_it():
    yolo = Darknet(create_cfg("v3-tiny", 1, 64, 0.25, "8,8, 10,10, 12,12, 32,32, 34,34, 60,60")).heads[0]
    raw = torch.zeros(1, 3, 2, 2, 6, requires_grad=True)
    plain_recipe.head_loss(yolo, raw, torch.tensor([[0, 0, 0.25, 0.25, 0.5, 0.5]]), 64).backward()
    objectness = raw.grad[0, :, 0, 0, 4]
    assert objectness[0] < 0
    assert objectness[1] == 0
    assert objectness[2] > 0


def test_it_learns_and_goes_on_as_if_never_interrupted(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))

    def train(name, *words):
        options = ["--epochs", "3", "--batch_size", "4", "--n_cpu", "0", "--checkpoint_interval", "1", "--name", name]
        plain_recipe.main(plain_recipe.get_args_parser().parse_args([*options, *words]))

    train("whole")
    monkeypatch.setattr(plain_recipe.RunLog, "add", stop_at(2, plain_recipe.RunLog.add))
    with pytest.raises(KeyboardInterrupt):
        train("parts")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="unfinished"):
        train("parts")
    train("parts", "--resume")
    whole, parts = (read_checkpoint(f"checkpoints/{name}_last.pth")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    with open("runs/parts/log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 3
    assert losses[2] < losses[0]


def stop_at(epoch, add):
    def stopping(self, row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt
        add(self, row)

    return stopping
