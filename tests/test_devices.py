"""Which device is taken, and what is said where none can be, or where its memory is full. No GPU is needed."""

import argparse

import pytest
import torch

import detect
import test
import train
from models import Darknet
from tests.scene import make_project
from utils.detection.checkpoints import save_checkpoint
from utils.detection.options import add_device_option
from utils.devices import (
    explain_no_cuda,
    memory_advice,
    missing_operations,
    nvidia_driver,
    pick_device,
    require_gpu,
    smaller_batch,
)
from utils.errors import InputError

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n"
OPEN_VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"


@pytest.fixture
def visible(monkeypatch):
    """GPUs are not hidden by the environment."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def none():
    return None


@pytest.mark.parametrize(("text", "version"), [(VERSION, "535.183.01"), (OPEN_VERSION, "570.86.15")])
def test_the_driver_says_its_version(tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    (tmp_path / "nvidia0").touch()
    assert nvidia_driver(tmp_path / "version", tmp_path / "nvidia0", "no-such-tool") == version
    (tmp_path / "nvidia0").unlink()  # a container to which no GPU was given sees the module all the same
    assert nvidia_driver(tmp_path / "version", tmp_path / "nvidia0", "no-such-tool") is None


def test_a_driver_without_a_module_is_known_by_its_tool(tmp_path):
    def tool(script):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        return nvidia_driver(tmp_path / "version", tmp_path / "nvidia0", str(tmp_path / "nvidia-smi"))

    assert tool("echo 550.54.14; echo 550.54.14") == "550.54.14"
    assert tool("echo No devices were found; exit 6") is None
    (tmp_path / "nvidia0").touch()
    assert tool("echo NVIDIA-SMI has failed; exit 9") == ""


def test_no_gpu_is_no_driver(tmp_path):
    assert nvidia_driver(tmp_path / "version", tmp_path / "nvidia0", "no-such-tool") is None


@pytest.mark.parametrize(
    ("driver", "built_for", "expected"),
    [
        (
            "535.183.01",
            "13.0",
            ["driver 535.183.01", "CUDA 13.0", "needs driver 580", "driver, or pip", "/cu126"],
        ),
        ("470.1", "12.8", ["driver 470.1", "CUDA 12.8", "needs driver 525 or newer: update the driver"]),
        ("580.65.06", None, ["driver 580.65.06", "without CUDA", "torch.version.cuda is None", "/cu130"]),
        ("535.1", None, ["without CUDA", "/cu126"]),
        ("470.1", None, ["without CUDA", "update the driver to 525 or newer"]),
        ("", None, ["an NVIDIA GPU is here", "without CUDA", "pip install"]),
        ("580.65.06", "13.0", ["cannot use it", "said PyTorch"]),
        ("", "13.0", ["an NVIDIA GPU is here", "cannot use it", "said PyTorch"]),
    ],
)
def test_what_keeps_pytorch_from_the_gpu_is_said_in_a_line(driver, built_for, expected):
    line = explain_no_cuda(driver, "2.14.1", built_for, "said PyTorch")
    assert all(words in line for words in expected)
    assert "\n" not in line
    assert ("pip install" in line) == any("/cu" in words or "pip" in words for words in expected)


@NO_CUDA
@pytest.mark.parametrize("name", [None, "cuda", "cuda:1"])
def test_a_gpu_that_pytorch_cannot_use_is_an_error_and_the_cpu_goes_on(visible, name):
    with pytest.raises(InputError, match=r"driver 470\.1 .*--device cpu goes on") as error:
        pick_device(name, find_driver=lambda: "470.1")
    assert str(torch.version.cuda) in str(error.value)
    assert pick_device("cpu", find_driver=lambda: "470.1").type == "cpu"


@NO_CUDA
def test_a_machine_without_a_gpu_computes_on_the_cpu_but_not_for_cuda(visible):
    assert pick_device(None, find_driver=none, find_gaps=lambda device: ["nms"]).type == "cpu"
    with pytest.raises(InputError, match="--device cuda: no NVIDIA GPU or driver is here"):
        pick_device("cuda", find_driver=none)
    with pytest.raises(InputError, match=r"^an engine needs one: no NVIDIA GPU or driver is here$"):
        require_gpu("an engine needs one", find_driver=none)


@NO_CUDA
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_may_be_hidden_on_purpose(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert pick_device(None, find_driver=lambda: "470.1", find_gaps=lambda device: ["nms"]).type == "cpu"
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES hides all GPUs"):
        pick_device("cuda:0", find_driver=lambda: "470.1")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_apples_gpu_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="--device mps: PyTorch finds no Apple GPU"):
        pick_device("mps")


def test_what_a_device_lacks_is_named_and_nothing_random_is_drawn():
    state = torch.get_rng_state()
    assert missing_operations(torch.device("cpu")) == []
    assert "nonzero and stable sort" in missing_operations(torch.device("meta"))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_option_takes_devices_only(capsys):
    parser = argparse.ArgumentParser()
    add_device_option(parser)
    for name in ("cuda", "cuda:3", "mps", "cpu"):
        assert parser.parse_args(["--device", name]).device == name
    assert parser.parse_args([]).device is None
    for name in ("gpu", "cuda:", "cuda:-1", "0", "xla", ""):
        with pytest.raises(SystemExit):
            parser.parse_args(["--device", name])
        assert f"{name!r} is not a device: give cuda, cuda:N, mps or cpu" in capsys.readouterr().err


# Memory


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words, "--n_cpu", "0", "--batch_size", "2"]))


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_full_gpu_says_what_to_change_wherever_it_happens(project, monkeypatch):
    save_checkpoint("checkpoints/yolov3_ckpt.pth", Darknet("config/yolov3-hand.cfg"))
    monkeypatch.setattr(Darknet, "raw_outputs", full)
    advice = "the GPU's memory is too small: try --batch_size 1"
    with pytest.raises(
        InputError, match=f"{advice} --accumulate 6, which keeps the images per step, or a lower --img_size"
    ):
        run(train, "--epochs", "1", "--accumulate", "3")
    for program, words in ((test, []), (detect, ["--image_folder", "data/images"])):
        with pytest.raises(InputError, match=f"{advice}, or a lower --img_size than 64"):
            run(program, *words)


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
