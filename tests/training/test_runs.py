import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from utils.detection.checkpoints import save_checkpoint
from utils.errors import InputError
from utils.training.runs import Run, default_name

CFG = create_cfg("v3-tiny", 1, 32, width=0.05)


def write(run, *, best=True, last=True, folder=True, text="x"):
    """The files of an earlier run, each of which holds ``text``."""
    for path, wanted in ((run.best, best), (run.last, last), (run.folder / "log.csv", folder)):
        if wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("sparse", "model_def", "name"),
    [
        (True, "config/yolov3-hand.cfg", "yolov3"),
        (True, "config/prune_yolov3-hand.cfg", "yolov3"),
        (False, "config/yolov3-hand.cfg", "baseline_yolov3"),
        (False, "config/prune_yolov3-hand.cfg", "finetune_yolov3"),
        (False, "prune_small.cfg", "finetune_yolov3"),
        (False, "prune_old/yolov3-hand.cfg", "baseline_yolov3"),
        (False, "config/my_prune_yolov3.cfg", "baseline_yolov3"),
    ],
)
def test_the_default_name_tells_the_kind_of_run(sparse, model_def, name):
    assert default_name(sparse, model_def) == name
    assert default_name(sparse, model_def, pruned=True) == ("yolov3" if sparse else "finetune_yolov3")


def test_where_a_run_writes(tmp_path):
    run = Run("hand", tmp_path)
    assert run.best == tmp_path / "checkpoints/hand_ckpt.pth"
    assert run.last == tmp_path / "checkpoints/hand_last.pth"
    assert run.folder == tmp_path / "runs/hand"


def test_without_a_root_a_run_writes_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Run("hand"))
    assert files(tmp_path) == ["checkpoints/hand_ckpt.pth", "checkpoints/hand_last.pth", "runs/hand/log.csv"]


@pytest.mark.parametrize("kind", ["best", "last", "folder"])
def test_any_file_of_an_earlier_run_counts(tmp_path, kind):
    run = Run("hand", tmp_path)
    assert not run.exists()
    write(run, **{"best": False, "last": False, "folder": False} | {kind: True})
    assert run.exists()
    assert not Run("han", tmp_path).exists()


def test_a_run_is_set_aside_whole_under_the_next_free_number(tmp_path):
    run = Run("hand", tmp_path)
    assert run.set_aside() is None
    write(run, text="first")
    write(Run("hand2", tmp_path), text="other")
    assert run.set_aside() == Run("hand-1", tmp_path)
    write(run, text="second", last=False)
    assert run.set_aside() == Run("hand-2", tmp_path)
    assert not run.exists()
    assert files(tmp_path) == [
        "checkpoints/hand-1_ckpt.pth",
        "checkpoints/hand-1_last.pth",
        "checkpoints/hand-2_ckpt.pth",
        "checkpoints/hand2_ckpt.pth",
        "checkpoints/hand2_last.pth",
        "runs/hand-1/log.csv",
        "runs/hand-2/log.csv",
        "runs/hand2/log.csv",
    ]
    assert (tmp_path / "checkpoints/hand-1_ckpt.pth").read_text() == "first"
    assert (tmp_path / "runs/hand-2/log.csv").read_text() == "second"


@pytest.mark.parametrize("kind", ["best", "last", "folder"])
def test_a_number_is_free_only_if_nothing_has_it(tmp_path, kind):
    write(Run("hand-1", tmp_path), **{"best": False, "last": False, "folder": False} | {kind: True}, text="old")
    write(Run("hand", tmp_path), text="new")
    before = files(tmp_path)
    assert Run("hand", tmp_path).set_aside() == Run("hand-2", tmp_path)
    old = next(name for name in before if "hand-1" in name)
    assert (tmp_path / old).read_text() == "old"


@pytest.mark.parametrize(("epoch", "unfinished"), [(0, True), (3, True), (4, False)])
def test_a_run_is_unfinished_until_its_last_epoch(tmp_path, epoch, unfinished):
    run = Run("hand", tmp_path)
    assert run.unfinished() is None
    save_checkpoint(run.last, Darknet(CFG), epoch=epoch, options={"epochs": 4}, training={"step": torch.ones(1)})
    checkpoint = run.unfinished()
    assert (checkpoint is not None) == unfinished
    if unfinished:
        assert checkpoint["epoch"] == epoch
        assert checkpoint["training"]["step"] == 1


def test_a_checkpoint_that_only_detects_cannot_be_resumed(tmp_path):
    run = Run("hand", tmp_path)
    save_checkpoint(run.last, Darknet(CFG), epoch=1)
    with pytest.raises(InputError, match=r"hand_last\.pth: not a checkpoint that training wrote"):
        run.unfinished()


def test_a_damaged_checkpoint_is_named(tmp_path):
    run = Run("hand", tmp_path)
    write(run)
    with pytest.raises(InputError, match=r"hand_last\.pth"):
        run.unfinished()
