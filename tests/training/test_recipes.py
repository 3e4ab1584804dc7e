"""What a run starts from, and what its cut saves, decide its defaults."""

from pathlib import Path

import pytest
import torch

import train
from models import Darknet
from tests.networks import uneven
from tests.scene import make_project
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.training.recipes import epochs_after_cut, find_origin

CFG = "config/yolov3-hand.cfg"
PRUNED_CFG = "config/prune_yolov3-hand.cfg"


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    (tmp_path / PRUNED_CFG).write_text((tmp_path / CFG).read_text())
    model = Darknet(CFG)
    save_checkpoint("pruned.pth", model, pruned=True)
    save_checkpoint("whole.pth", model, pruned=False)
    save_checkpoint("old.pth", model)
    torch.save(model.state_dict(), "state.pth")
    model.save_darknet_weights("darknet.weights")
    return tmp_path


def run(*words):
    train.main(train.get_args_parser().parse_args([*words, "--epochs", "1", "--n_cpu", "0", "--batch_size", "4"]))


@pytest.mark.parametrize(
    ("weights", "cfg", "pruned", "reason"),
    [
        (None, CFG, False, "from random weights"),
        (None, PRUNED_CFG, False, "from random weights"),
        ("pruned.pth", CFG, True, "pruned.pth holds a pruned network"),
        ("whole.pth", PRUNED_CFG, False, "whole.pth holds a network that was not pruned"),
        ("old.pth", PRUNED_CFG, True, f"{PRUNED_CFG} begins with prune_"),
        ("old.pth", CFG, False, f"{CFG} does not begin with prune_"),
        ("state.pth", PRUNED_CFG, True, "state.pth does not say whether its network was pruned"),
        ("darknet.weights", PRUNED_CFG, True, "darknet.weights does not say whether its network was pruned"),
        ("darknet.weights", CFG, False, "does not begin with prune_"),
    ],
)
def test_the_checkpoint_decides_and_the_name_of_the_cfg_only_where_it_cannot_say(project, weights, cfg, pruned, reason):
    origin = find_origin(weights, cfg)
    assert origin.pruned is pruned
    assert reason in origin.reason


def test_weights_that_are_not_there_are_named(project):
    with pytest.raises(InputError, match=r"nowhere\.pth: there is no such weights file"):
        run("-pre", "nowhere.pth")


def test_a_pruned_checkpoint_is_fine_tuned_whatever_its_cfg_is_called(project, capsys):
    run("-pre", "pruned.pth")
    assert "start: pruned.pth holds a pruned network" in capsys.readouterr().out.splitlines()
    for kind in ("last", "ckpt"):
        checkpoint = read_checkpoint(f"checkpoints/finetune_yolov3_{kind}.pth")
        assert checkpoint["pruned"] is True


def test_other_weights_are_trained(project, capsys):
    run("-pre", "whole.pth")
    assert "start: whole.pth holds a network that was not pruned" in capsys.readouterr().out
    assert read_checkpoint("checkpoints/baseline_yolov3_ckpt.pth")["pruned"] is False


def test_a_run_that_cuts_channels_ends_in_a_pruned_network(project):
    save_checkpoint("start.pth", uneven(Darknet(CFG)), pruned=False)
    run("-sr", "--s", "3", "--prune_every", "1", "-pre", "start.pth", "-lr", "0.1")
    checkpoint = read_checkpoint("checkpoints/yolov3_ckpt.pth")
    assert checkpoint["pruned"] is True
    assert find_origin("checkpoints/yolov3_ckpt.pth", "runs/yolov3/yolov3-hand.cfg").pruned


def test_a_cfg_that_the_run_would_move_is_refused(project):
    cfg = Path("runs/yolov3/yolov3-hand.cfg")
    cfg.parent.mkdir(parents=True)
    cfg.write_text(Path("config/yolov3-hand.cfg").read_text())
    words = ["-sr", "--s", "3", "--force", "--model_def", str(cfg)]
    with pytest.raises(InputError, match="this run moves and writes files there: give it another --name"):
        run(*words)
    assert cfg.is_file()
    run(*words, "--name", "second")


def test_what_is_resumed_stays_pruned(project, monkeypatch):
    evaluate = train.evaluate

    def interrupted(model, batches, names):
        if (project / "checkpoints/finetune_yolov3_last.pth").exists():
            raise KeyboardInterrupt
        return evaluate(model, batches, names)

    words = ["-pre", "pruned.pth", "--checkpoint_steps", "1"]
    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    monkeypatch.setattr(train, "evaluate", evaluate)
    run(*words, "--resume")  # the same line again
    assert read_checkpoint("checkpoints/finetune_yolov3_ckpt.pth")["pruned"] is True


@pytest.mark.parametrize(
    ("share", "has_teacher", "images", "classes", "epochs"),
    [
        (0.1, False, 600, 1, 300),  # the same cost: 30 epochs of the whole network
        (0.1, True, 600, 1, 69),  # with a forward pass of the teacher, a third of a step
        (0.9, True, 600, 1, 30),  # never fewer
        (0.1, False, 6_000, 1, 64),  # Darknet's 6,000 batches of 64 images
        (0.1, False, 6_000, 6, 128),  # 2,000 batches for each class
        (0.1, False, 100_000, 1, 30),
    ],
)
def test_what_a_cut_saves_is_spent_on_epochs(share, has_teacher, images, classes, epochs):
    assert epochs_after_cut(30, share, has_teacher, images, classes) == epochs
