import csv

import pytest

import train
from tests.scene import make_project
from utils.pruning.penalty import GammaPenalty
from utils.pruning.prune_in_training import KeptChannels
from utils.pruning.selection import room_in_words
from utils.training.distillation import Distillation


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def run(*words):
    train.main(train.get_args_parser().parse_args([*words, "--n_cpu", "0", "--batch_size", "4"]))


@pytest.mark.parametrize(
    ("sparse", "allowed", "words"),
    [
        (0.0, 0.8, "not sparse yet"),  # a baseline, of which a threshold could cut 80 %
        (0.04, 0.8, "not sparse yet"),
        (0.7, 0.637, "up to 63.7% of the channels can be pruned before a layer is empty"),
        (0.6, 0.8, "up to 60.0% of the channels can be pruned: their gammas are clearly below the others"),
    ],
)
def test_what_can_be_pruned_is_said_only_of_sparse_gammas(sparse, allowed, words):
    assert room_in_words(sparse, allowed) == words


def test_a_baseline_reports_on_its_gammas_and_meets_no_penalty_teacher_or_cut(project, monkeypatch, capsys):
    for part in (GammaPenalty, KeptChannels, Distillation):
        monkeypatch.setattr(part, "__init__", lambda *args: pytest.fail("a baseline does not need it"))
    run("--epochs", "1")
    text = capsys.readouterr().out
    assert "|gamma| quintiles 1 1 1 1" in text
    assert "not sparse yet" in text
    assert "s=" not in text
    with open("runs/baseline_yolov3/log.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {"gamma_q20", "gamma_near_zero", "prune_ratio_allowed", "gamma_zero"} <= row.keys()
    assert not {"s", "channels", "distillation_loss"} & row.keys()


def test_sparse_training_says_what_can_be_pruned(project, capsys):
    run("-sr", "--s_schedule", "target", "--target_percent", "0.6", "--epochs", "10", "--evaluation_interval", "10")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|gamma|")]
    assert lines[0].endswith("not sparse yet")
    assert "of the channels can be pruned" in lines[-1]
    zero = float(lines[-1].split("% exactly")[0].split()[-1])
    share = float(lines[-1].split("up to ")[1].split("%")[0])
    assert 55 < zero <= share < 100
