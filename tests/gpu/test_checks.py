"""The checks of tests/gpu on the CPU, so that they work on the day that a GPU is there."""

import pytest
import torch

from tests.gpu import checks, numbers

CPU = torch.device("cpu")


def test_the_environment(capsys):
    checks.check_environment(CPU)
    assert torch.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("channels_last", [True, False])
def test_parity(channels_last):
    checks.check_parity(CPU, channels_last)


@pytest.mark.parametrize("settings", [{"sparsity": "constant"}, {"sparsity": "target"}], ids=str)
def test_steps(settings):
    checks.check_steps_do_not_wait(CPU, **settings)


def test_overflow():
    checks.check_overflow_and_recovery(CPU)


def test_inference():
    checks.check_inference(CPU)


def test_the_proof():
    checks.check_proof(CPU)


def test_the_fit():
    checks.check_reconstruction(CPU)


def test_training_and_checkpoints(tmp_path):
    checks.check_training_and_checkpoints(CPU, tmp_path, epochs=20)


def test_the_numbers_are_printed(tmp_path, capsys):
    numbers.print_training_speed(CPU, tmp_path, checks.small_network(), (2,), images=6, steps=2, workers=0, side=64)
    numbers.print_inference_speed(CPU, checks.small_network("v3", 0.0625), (1,), rounds=2)
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "--round_to 8" in shown
