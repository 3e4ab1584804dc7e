"""Losses and gradients that are not finite: the step is named in a line, and what was saved stays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from tests.scene import dataset_of, make_project, save_labelled
from utils.data.loader import EpochSampler, loader
from utils.detection.checkpoints import read_checkpoint
from utils.detection.loss import YoloLoss
from utils.errors import InputError
from utils.training.nonfinite import FiniteWatch, write_batches


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def run(*words):
    train.main(train.get_args_parser().parse_args([*words, "--n_cpu", "0", "--batch_size", "2"]))


def test_the_images_that_are_written_show_their_boxes_on_rectangles_too(tmp_path):
    path = save_labelled(tmp_path, "a", Image.new("RGB", (128, 64)), ["0 0.8 0.5 0.2 0.5"])
    dataset = dataset_of([path], 1, (64, 128))
    write_batches(loader(dataset, 1, 0, EpochSampler(1, 0)), range(1), ["hand"], tmp_path / "shown")
    drawn = np.asarray(Image.open(tmp_path / "shown/000.png"))
    assert drawn.shape == (64, 128, 3)
    rows, columns = drawn[20:].any(axis=2).nonzero()  # below the name
    assert abs(columns.min() - 0.7 * 128) < 2
    assert abs(rows.max() + 20 - 0.75 * 64) < 2


class Spoiled(torch.autograd.Function):
    """The loss as it is, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


@pytest.mark.parametrize(
    ("what", "extra", "batch", "suspects"),
    [
        ("loss", [], 4, 2),
        ("gradient", [], 4, 2),
        ("loss", ["--accumulate", "2"], 4, 2),
        ("gradient", ["--accumulate", "2"], 4, 4),
    ],
)
def test_the_step_is_named_its_images_are_written_and_the_checkpoint_stays(
    project, monkeypatch, what, extra, batch, suspects
):
    """Batch 4 is the second of the second epoch; of two batches a step, its gradient is that of batches 3 and 4."""
    forward, calls = YoloLoss.forward, []

    def spoiled(self, *batch_and_divisor):
        loss, reports = forward(self, *batch_and_divisor)
        calls.append(1)
        if len(calls) == batch + 1:
            loss = loss * torch.inf if what == "loss" else Spoiled.apply(loss)
        return loss, reports

    monkeypatch.setattr(YoloLoss, "forward", spoiled)
    step = (batch - 3) // (2 if extra else 1) + (2 if extra else 3)
    options = ["--epochs", "2", "--checkpoint_interval", "1", "--mosaic", "0", "--name", "mine", *extra]
    with pytest.raises(InputError, match=f"epoch 2, step {step}: the {what} is not finite") as error:
        run(*options)
    assert "\n" not in str(error.value)
    assert read_checkpoint("checkpoints/mine_last.pth")["epoch"] == 1
    shown = project / "runs/mine/not_finite"
    assert len(list(shown.glob("*.png"))) == suspects
    order = [index for _, index in order_of(epoch=1)]
    listed = [Path(line).name for line in (shown / "images.txt").read_text().splitlines()]
    assert listed == [f"train_{k}.png" for k in order[4 - suspects : 4]]


def order_of(epoch):
    sampler = EpochSampler(6, 0)
    sampler.epoch = epoch
    return sampler.order()


def test_the_watch_names_the_first_and_the_loss_before_its_gradient():
    watch = FiniteWatch(torch.device("cpu"))
    for batch in range(3):
        watch.see("loss", torch.tensor(1.0), batch)
        watch.see("gradient", torch.tensor(2.0), batch)
    assert watch.first() is None
    watch.see("gradient", torch.tensor(torch.nan), 4)
    assert watch.first() == ("gradient", 4)
    watch.see("loss", torch.tensor(torch.inf), 4)
    watch.see("loss", torch.tensor(1.0), 5)
    assert watch.first() == ("loss", 4)
