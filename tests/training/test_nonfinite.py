"""What goes wrong while a run runs: it is said in a line, and what was saved stays."""

import faulthandler
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import detect
import test
import train
from models import Darknet
from tests.scene import dataset_of, make_project, save_labelled
from utils.data.loader import EpochSampler, loader
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.detection.loss import YoloLoss
from utils.devices import memory_advice, smaller_batch
from utils.errors import InputError
from utils.training.nonfinite import FiniteWatch, write_batches
from utils.workers import explain


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def run(*words, program=train):
    program.main(program.get_args_parser().parse_args([*words, "--n_cpu", "0", "--batch_size", "2"]))


# Numbers that are not finite


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


# Memory


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_full_gpu_says_what_to_change_wherever_it_happens(project, monkeypatch):
    save_checkpoint("checkpoints/yolov3_ckpt.pth", Darknet("config/yolov3-hand.cfg"))
    monkeypatch.setattr(Darknet, "raw_outputs", full)
    advice = "the GPU's memory is too small: try --batch_size 1"
    with pytest.raises(
        InputError, match=f"{advice} --accumulate 6, which keeps the images per step, or a lower --img_size"
    ):
        run("--epochs", "1", "--accumulate", "3")
    for program, words in ((test, []), (detect, ["--image_folder", "data/images"])):
        with pytest.raises(InputError, match=f"{advice}, or a lower --img_size than 64"):
            run(*words, program=program)


def test_one_image_that_is_too_large_is_not_halved():
    assert smaller_batch(1, 416, 4) == "a lower --img_size than 416, or a narrower cfg"


def test_a_smaller_batch_is_that_of_all_processes():
    assert smaller_batch(8, 416, 1, processes=4).startswith(
        "try --batch_size 16 --accumulate 2, which keeps the images per step"
    )


def test_the_memory_of_the_cpu_counts_too_and_other_errors_are_left_alone():
    with pytest.raises(InputError, match="the memory is too small: less"), memory_advice("less"):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="shape") as error, memory_advice("less"):
        torch.ones(2).view(3)
    assert not isinstance(error.value, InputError)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_the_libraries_of_a_full_gpu_give_the_same_advice(message):
    with pytest.raises(InputError, match="the GPU's memory is too small: less"), memory_advice("less"):
        raise RuntimeError(message)


# Workers


class Deadly(Dataset):
    """Item 1 is the end of the process that reads it."""

    def __init__(self, end):
        self.end = end

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.end() if index == 1 else index


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(1)


def refuse():
    raise InputError("a.png: cannot be read as an image")


class Stuck:
    """A batch that cannot be handed over, for this reason."""

    def __init__(self, reason):
        self.reason = reason

    def __reduce__(self):
        faulthandler.disable()  # it is pytest's, and would show where the worker was
        raise RuntimeError(self.reason)


def fill_shared_memory():
    return Stuck("unable to allocate shared memory(shm) for file </torch_7_8>: No space left on device (28)")


def return_what_cannot_be_sent():
    return Stuck("cannot pickle it")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (kill, r"a DataLoader worker was killed \(Killed\): .*memory was full: lower --n_cpu"),
        (leave, r"a DataLoader worker ended: run the program with --n_cpu 0"),
        (refuse, r"^a\.png: cannot be read as an image$"),
        (fill_shared_memory, r"was killed \(Bus error\): the shared memory is full: .*--shm-size"),
        (return_what_cannot_be_sent, r"ended: run the program with --n_cpu 0"),
    ],
)
def test_the_end_of_a_worker_gives_its_cause_in_a_line(end, message):
    with pytest.raises((RuntimeError, InputError)) as error:
        list(loader(Deadly(end), 1, 1, collate_fn=list))
    said = explain(error.value)
    assert "\n" not in str(said)
    with pytest.raises(InputError, match=message):
        raise said


def test_other_errors_are_not_explained_by_workers():
    assert explain(RuntimeError("shape mismatch")) is None
    assert explain(InputError("a.cfg:3: filters= is missing")) is None
    bus = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that it is out of shared memory."
    assert "--shm-size" in str(explain(RuntimeError(bus)))


# Images with boxes


def test_no_two_drawn_images_have_one_name():
    paths = [Path(name) for name in ("x/a.jpg", "y/a.jpg", "z/00001_a.jpg", "a.png", "A.png", "b.gif")]
    names = detect.output_names(paths)
    assert names[0] == "a.jpg"
    assert names[-1] == "b.jpg"
    stems = [Path(name).stem.lower() for name in names]
    assert len(set(stems)) == len(names)


def test_an_image_is_not_drawn_over_itself(project):
    save_checkpoint("checkpoints/yolov3_ckpt.pth", Darknet("config/yolov3-hand.cfg"))
    before = {path: path.read_bytes() for path in (project / "data/images").iterdir()}
    with pytest.raises(InputError, match=r"data/images/train_\d\.png: would be overwritten, but is an input"):
        run("--image_folder", "data/images", "--output", "data/images", program=detect)
    assert {path: path.read_bytes() for path in (project / "data/images").iterdir()} == before
