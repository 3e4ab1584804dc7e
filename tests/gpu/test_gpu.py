"""What only a GPU can show: make test-gpu."""

import pytest
import torch

from tests.gpu import checks, numbers
from utils.darknet.cfg import read_cfg

NO_GPU = "PyTorch finds no NVIDIA GPU that it can use"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]
CUDA = torch.device("cuda")


def test_the_environment():
    checks.check_environment(CUDA)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "channels_first"])
def test_loss_and_gradients_are_those_of_the_cpu(channels_last):
    checks.check_parity(CUDA, channels_last)


@pytest.mark.parametrize("settings", checks.SYNC_SETTINGS, ids=str)
def test_steps_do_not_wait_for_the_device(settings):
    checks.check_steps_do_not_wait(CUDA, **settings)


def test_float16_overflows_and_recovers():
    checks.check_overflow_and_recovery(CUDA)


def test_inference_in_float16_has_the_scores_of_float32():
    checks.check_inference(CUDA)


def test_pruning_is_proven():
    single, double = checks.check_proof(CUDA)
    print(f"\ngap of the proof: {single:.1e} in float32, {double:.1e} in float64")


def test_what_a_cut_leaves_is_fitted_as_on_the_cpu():
    print(f"\ngap of the fit to that on the CPU: {checks.check_reconstruction(CUDA):.1e}")


def test_runs_learn_and_checkpoints_move_between_devices(tmp_path):
    checks.check_training_and_checkpoints(CUDA, tmp_path)


def test_a_batch_that_does_not_fit_ends_in_a_line():
    checks.check_full_memory(CUDA)


def test_torchrun_with_nccl(tmp_path):
    checks.check_torchrun(CUDA, tmp_path, min(2, torch.cuda.device_count()))


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
def test_engines_of_tensorrt(tmp_path, int8):
    pytest.importorskip("tensorrt", reason="tensorrt is not installed: pip install 'tensorrt>=10'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: requirements-export.txt")
    print(f"\nTensorRT against PyTorch: {checks.check_engine(tmp_path, int8):.1e}")


@pytest.mark.parametrize("cfg", ["config/yolov3-hand.cfg", "config/yolov3-hand-published.cfg"])
def test_speed_of_training(tmp_path, cfg):
    print(f"\n{cfg}")
    numbers.print_training_speed(CUDA, tmp_path, read_cfg(checks.ROOT / cfg), (16, 64))


def test_speed_of_detection():
    print()
    numbers.print_inference_speed(CUDA, read_cfg(checks.ROOT / "config/yolov3-hand.cfg"), (1, 32))
