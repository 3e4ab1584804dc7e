"""What is said of a penalty that does not fit."""

import numpy as np
import pytest

import train
from config.networks import create_cfg
from models import Darknet
from tests.scene import make_project
from utils.errors import InputError
from utils.pruning.costs import SizeCosts
from utils.pruning.gamma_history import GammaHistory
from utils.pruning.penalty import GammaPenalty, reach
from utils.training.config import SparsityConfig, TrainConfig
from utils.training.optim import MOMENTUM
from utils.training.penalty_advice import PenaltyAdvice, penalty_warnings


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def run(*words):
    train.main(train.get_args_parser().parse_args([*words, "--n_cpu", "0", "--batch_size", "4"]))


def history(near_zero, lowest):
    gammas = GammaHistory()
    gammas.near_zero.append(near_zero)
    gammas.quintiles.append(np.array([lowest, 1, 1, 1, 1]))
    return gammas


@pytest.mark.parametrize(
    ("done", "near_zero", "lowest", "left", "mean_aps", "words"),
    [
        (0.4, 0.0, 0.8, 0.1, [0.5, 0.6], None),  # too early to tell
        (0.6, 0.0, 0.8, 0.1, [0.5, 0.6], ["by at most 0.1", "--s 0.05"]),
        (0.6, 0.0, 0.8, 0.9, [0.5, 0.6], None),  # they can still get there
        (0.6, 0.3, 0.8, 0.1, [0.5, 0.6], None),  # there is something to prune
        (1.0, 0.01, 0.8, 0.0, [0.5, 0.6], ["only 1.0% of the gammas are near zero", "--s 0.05"]),
        (0.3, 0.5, 0.0, 1.0, [0.8, 0.7, 0.3, 0.2], ["mAP@0.5 fell from 0.800 to 0.200", "--s 0.005"]),
        (1.0, 0.5, 0.0, 0.0, [0.8, 0.0, 0.0], ["mAP@0.5 fell from 0.800 to 0.000"]),
        (0.3, 0.5, 0.0, 1.0, [0.8, 0.7, 0.3, 0.5], None),  # one bad evaluation
        (0.3, 0.5, 0.0, 1.0, [0.05, 0.01, 0.01], None),
        (0.3, 0.5, 0.0, 1.0, [], None),
    ],
)
def test_a_penalty_that_does_not_fit_is_warned_of(done, near_zero, lowest, left, mean_aps, words):
    warnings = penalty_warnings(0.01, 0.05, done, near_zero, lowest, left, mean_aps)
    assert len(warnings) == (words is not None)
    for word in words or []:
        assert word in warnings[0]


def test_sparse_training_that_did_not_sparsify_says_so(project, capsys):
    run("-sr", "--s", "0", "--epochs", "1", "--force")
    assert "warning: only 0.0% of the gammas are near zero" in capsys.readouterr().out
    run("--epochs", "1")
    assert "warning" not in capsys.readouterr().out


def test_a_network_with_nothing_to_prune_is_refused_before_the_first_step(project):
    cfg = project / "config/yolov3-hand.cfg"
    cfg.write_text(cfg.read_text().replace("batch_normalize=1\n", ""))
    with pytest.raises(InputError, match=r"-sr --strategy normal: no channel of config/yolov3-hand.cfg may be pruned"):
        run("-sr", "--s", "1", "--epochs", "1")
    with pytest.raises(InputError, match=r"no channel of this network may be pruned"):
        run("-sr", "--epochs", "1")


def narrow(gamma):
    model = Darknet(create_cfg("v3-tiny", 1, 64, width=0.0625))
    for norm in model.batch_norms.values():
        norm.weight.data.fill_(gamma)
    return model


def penalty_on(model, costs=None):
    return GammaPenalty(model, 0.1, "normal", "proximal", 0.9, costs)


def test_the_advice_knows_that_most_channels_have_a_price_below_the_mean(capsys):
    """Half of the run done, every gamma at 0.5, and a penalty that can lower one of price 1 by 0.8."""
    model = narrow(0.5)
    sparsity = SparsityConfig(s=0.04, penalty_cost="macs")
    advice = PenaltyAdvice(TrainConfig(epochs=4, sparsity=sparsity), np.ones(4))
    advice.after_epoch(2, 2, [], history(0.0, 0.5), penalty_on(model))
    assert capsys.readouterr().out == ""
    priced = penalty_on(model, SizeCosts(model.spec))
    advice.after_epoch(2, 2, [], history(0.0, 0.5), priced)
    warning = capsys.readouterr().out
    assert "can lower a gamma of price 1 by at most 0.8" in warning
    proposed = float(warning.split("--s ")[1].split(",")[0])
    assert proposed * reach(np.ones(4), 1.0, MOMENTUM) > np.median(priced.distances())
    advice.before_training(priced.distances(), force=True)
    assert "can lower a gamma of price 1 by" in (said := capsys.readouterr().out)
    assert f"the median gamma, each over its price, is {np.median(priced.distances()):.3g}" in said


@pytest.mark.parametrize(("schedule", "words"), [("constant", "mAP@0.5 fell"), ("local", ""), ("target", "")])
def test_a_schedule_that_lets_the_kept_channels_recover_is_not_judged_before(project, schedule, words, capsys):
    """Half of the epochs done, all gammas dead, and mAP down from 0.8 to 0."""
    config = TrainConfig(epochs=4, sparsity=SparsityConfig(s=0.1, schedule=schedule))
    rows = [{"mAP": 0.8}, {"mAP": ""}, {"mAP": 0.0}, {"mAP": 0.0}]
    PenaltyAdvice(config, np.ones(4)).after_epoch(2, 2, rows, history(0.9, 0.0), penalty_on(narrow(0.5)))
    text = capsys.readouterr().out
    assert text.count("warning") == bool(words)
    assert words in text


def test_too_weak_a_penalty_is_refused_before_the_first_step_and_the_proposed_one_suffices(project, capsys):
    options = ["-sr", "--epochs", "1", "--name", "weak"]
    with pytest.raises(InputError, match=r"--s 0.01: few gammas can reach 0") as refused:
        run(*options, "--s", "0.01")
    assert not (project / "checkpoints/weak_last.pth").exists()
    assert "can lower a gamma by at most" in capsys.readouterr().out
    proposed = str(refused.value).split("or with --s ")[1].split(";")[0]
    run(*options, "--s", proposed)
    assert "warning" not in capsys.readouterr().out
    run(*options, "--s", "0.01", "--force")
    assert "warning: few gammas can reach 0" in capsys.readouterr().out
