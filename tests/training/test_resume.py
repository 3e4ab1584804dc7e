"""A run that is interrupted, anywhere, and goes on as if it never was."""

import csv
import signal

import pytest
import torch

import train
from config.networks import create_cfg
from models import Darknet
from tests.networks import uneven
from tests.scene import make_project
from utils import distributed
from utils.darknet.cfg import format_cfg
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.pruning.penalty import GammaPenalty
from utils.pruning.prune_in_training import KeptChannels
from utils.pruning.schedules import SCHEDULES
from utils.signals import Stopped, StopRequest
from utils.training.resume import restore_options
from utils.training.trainer import Trainer

FAST = ["--n_cpu", "0", "--batch_size", "2", "--mosaic", "0.5"]


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    """A project with 7 training images, whose network has a dropout layer, which uses the random numbers of torch."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, train=7)
    text = format_cfg(create_cfg("v3-tiny", 1, 64, width=0.125))
    text = text.replace("[maxpool]", "[dropout]\nprobability=0.3\n\n[maxpool]", 1).replace("layers=-1,8", "layers=-1,9")
    (tmp_path / "config/yolov3-hand.cfg").write_text(text)
    return tmp_path


def run(*words):
    train.main(train.get_args_parser().parse_args([*FAST, *words]))


def stop_at_step(monkeypatch, wanted, number=signal.SIGINT):
    """A signal arrives in the middle of optimizer step ``wanted``."""
    original = Trainer._optimizer_step

    def step(self, *step_and_batch):
        if self.step == wanted:
            signal.raise_signal(number)
        original(self, *step_and_batch)

    monkeypatch.setattr(Trainer, "_optimizer_step", step)
    return lambda: monkeypatch.setattr(Trainer, "_optimizer_step", original)


def outcome(root, name):
    """Everything that a run leaves, but for times."""
    with open(root / "runs" / name / "log.csv", newline="") as file:
        log = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]
    last, best = (read_checkpoint(root / f"checkpoints/{name}_{kind}.pth") for kind in ("last", "ckpt"))
    return {"log": log, "best": best["model"], "averaged": last["model"], **last["training"]}


def assert_same_outcome(root, first, second):
    first, second = outcome(root, first), outcome(root, second)
    assert first.pop("log") == second.pop("log")
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("step", "extra"),
    [
        (0, []),
        (5, []),
        (3, ["-sr", "--multiscale_training"]),  # the last step of the first epoch
        (3, ["--accumulate", "3"]),
    ],
)
def test_a_run_that_is_stopped_within_an_epoch_ends_as_one_that_was_not(project, monkeypatch, step, extra):
    options = ["--epochs", "3", *extra]
    run(*options, "--name", "whole")
    restore = stop_at_step(monkeypatch, step)
    with pytest.raises(Stopped, match=r"SIGINT; checkpoints/parts_last.pth is written.* --resume --name parts") as stop:
        run(*options, "--name", "parts")
    assert stop.value.status == 130
    assert read_checkpoint("checkpoints/parts_last.pth")["step"] == step + 1
    restore()
    torch.manual_seed(12345)
    run("--resume", "--name", "parts")
    assert_same_outcome(project, "whole", "parts")


def test_checkpoints_within_an_epoch_are_resumed_after_a_kill(project, monkeypatch):
    options = ["--epochs", "2", "--checkpoint_steps", "3"]
    run(*options, "--name", "whole")

    original = Trainer._optimizer_step

    def killed(self, *step_and_batch):
        if self.step == 7:
            raise SystemExit  # nothing is written on the way out
        original(self, *step_and_batch)

    monkeypatch.setattr(Trainer, "_optimizer_step", killed)
    with pytest.raises(SystemExit):
        run(*options, "--name", "parts")
    monkeypatch.setattr(Trainer, "_optimizer_step", original)
    checkpoint = read_checkpoint("checkpoints/parts_last.pth")
    assert (checkpoint["epoch"], checkpoint["step"], checkpoint["training"]["progress"]["batches"]) == (1, 6, 2)
    run("--resume", "--name", "parts")
    assert_same_outcome(project, "whole", "parts")


def test_a_run_that_is_stopped_while_it_evaluates_does_not_train_the_epoch_again(project, monkeypatch):
    options = ["--epochs", "2"]
    run(*options, "--name", "whole")
    evaluate = train.evaluate

    def interrupted(model, batches, names):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(model, batches, names)

    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(Stopped, match="SIGTERM") as stop:
        run(*options, "--name", "parts")
    assert stop.value.status == 143
    monkeypatch.setattr(train, "evaluate", evaluate)
    assert read_checkpoint("checkpoints/parts_last.pth")["step"] == 4
    run("--resume", "--name", "parts")
    assert_same_outcome(project, "whole", "parts")


def test_options_that_are_left_out_are_those_of_the_start_and_others_may_not_contradict(project, monkeypatch):
    restore = stop_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        run("--epochs", "2", "--name", "mine", "-lr", "0.003", "--checkpoint_interval", "2")
    restore()
    before = (project / "checkpoints/mine_last.pth").read_bytes()
    for words, reason in (
        (["--epochs", "9"], "--epochs 2, not 9"),
        (["--s", "0.5", "-lr", "0.1"], "--learning_rate 0.003, not 0.1, --s 0.01, not 0.5"),
        (["-sr"], "-sr False, not True"),
    ):
        with pytest.raises(InputError, match=f"the run mine was started with {reason}; leave them out"):
            run(*words, "--name", "mine", "--resume")
    assert (project / "checkpoints/mine_last.pth").read_bytes() == before
    run("--name", "mine", "--resume", "--evaluation_interval", "2")
    options = read_checkpoint("checkpoints/mine_last.pth")["options"]
    assert (options["epochs"], options["learning_rate"], options["checkpoint_interval"]) == (2, 0.003, 2)
    assert options["evaluation_interval"] == 2
    with pytest.raises(InputError, match="the run mine is finished; to train on"):
        run("--name", "mine", "--resume")


@pytest.mark.parametrize(("processes", "device"), [(1, "cuda:1"), (2, None)])
def test_a_gpu_is_that_of_the_start_unless_each_process_has_its_own(monkeypatch, processes, device):
    monkeypatch.setattr(distributed, "world", lambda: processes)
    args = train.get_args_parser().parse_args(["--resume"])
    restore_options(args, vars(train.get_args_parser().parse_args(["--device", "cuda:1"])))
    assert args.device == device


def test_another_cfg_or_data_set_is_no_continuation(project, monkeypatch):
    restore = stop_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        run("--epochs", "2", "--name", "mine")
    restore()
    listing, cfg = project / "data/train.txt", project / "config/yolov3-hand.cfg"
    text = listing.read_text()
    listing.write_text(text.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(InputError, match=r"an epoch had 4 steps .*, and has 3 now: .* number of training images"):
        run("--name", "mine", "--resume")
    listing.write_text(text)
    cfg.write_text(cfg.read_text().replace("leaky", "mish", 1))
    with pytest.raises(InputError, match=r"mine_last\.pth: belongs to another cfg than config/yolov3-hand\.cfg"):
        run("--name", "mine", "--resume")


def as_older_versions_wrote_it(path):
    """Rewrite a checkpoint to resume from in the layout of the versions that gave every run a penalty."""
    checkpoint = read_checkpoint(path)
    state = checkpoint["training"]
    spec = Darknet(checkpoint["options"]["model_def"]).spec
    state["progress"]["cells"] = state["progress"].pop("predictions")
    state["survivors"] = state.pop("kept_channels", KeptChannels(spec).state())
    state.setdefault("penalty", GammaPenalty(Darknet(spec.blocks), 0.0, "normal", "proximal", 0.9).state())
    del checkpoint["pruned"], checkpoint["options"]["cut_epoch"], checkpoint["options"]["total_epochs"]
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    "extra",
    [[], ["-sr", "--s", "1", "--force"], ["-sr", "--s", "1", "--force", "--prune_every", "1", "-pre", "start.pth"]],
)
def test_a_checkpoint_of_an_older_version_is_resumed(project, monkeypatch, extra):
    save_checkpoint("start.pth", uneven(Darknet("config/yolov3-hand.cfg")))
    options = ["--epochs", "3", *extra]
    run(*options, "--name", "whole")
    restore = stop_at_step(monkeypatch, 5)
    with pytest.raises(Stopped):
        run(*options, "--name", "parts")
    restore()
    as_older_versions_wrote_it("checkpoints/parts_last.pth")
    run("--resume", "--name", "parts")
    assert_same_outcome(project, "whole", "parts")
    if "--prune_every" in extra:
        whole, parts = (read_checkpoint(f"checkpoints/{name}_ckpt.pth") for name in ("whole", "parts"))
        assert whole["pruned"] is parts["pruned"] is True


def test_a_schedule_that_no_longer_exists_is_not_resumed(project, monkeypatch):
    restore = stop_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        run("--epochs", "2", "-sr", "--name", "mine")
    restore()
    checkpoint = read_checkpoint("checkpoints/mine_last.pth")
    checkpoint["options"]["s_schedule"] = "global"
    torch.save(checkpoint, "checkpoints/mine_last.pth")
    before = (project / "checkpoints/mine_last.pth").read_bytes()
    with pytest.raises(InputError, match="mine was started with --s_schedule global, which no longer exists") as error:
        run("--resume", "--name", "mine")
    assert str(error.value).endswith(f"start another run with one of cut, {', '.join(SCHEDULES)}")
    assert "\n" not in str(error.value)
    assert (project / "checkpoints/mine_last.pth").read_bytes() == before


def test_a_damaged_checkpoint_can_be_given_up(project):
    last = project / "checkpoints/mine_last.pth"
    last.parent.mkdir(exist_ok=True)
    last.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"mine_last\.pth"):
        run("--epochs", "1", "--name", "mine")
    run("--epochs", "1", "--name", "mine", "--overwrite")
    assert read_checkpoint(last)["epoch"] == 1


def test_resume_and_overwrite_exclude_each_other(project, capsys):
    with pytest.raises(SystemExit):
        run("--resume", "--overwrite")
    assert "not allowed with" in capsys.readouterr().err


def test_a_run_with_another_number_of_images_is_not_resumed(project, monkeypatch):
    restore = stop_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        run("--epochs", "2", "--name", "mine")
    restore()
    images = (project / "data/train.txt").read_text().splitlines()
    (project / "data/train.txt").write_text("\n".join([*images, images[0]]))  # as many steps an epoch
    count = len(images)
    with pytest.raises(InputError, match=f"an epoch had {count} images when the run was started, and has {count + 1}"):
        run("--resume", "--name", "mine")


def test_a_run_stops_when_its_terminal_is_gone_unless_nohup_ignores_that():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopRequest("") as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest("") as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def interrupts():
    """SIGINT as a terminal's programs have it; those of a background job ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_signal_does_what_it_always_did(interrupts):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest("wait") as stop:
        stop.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
