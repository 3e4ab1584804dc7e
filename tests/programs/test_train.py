import csv
import json
from pathlib import Path

import pytest
import torch

import detect
import test_prune
import train
from models import Darknet
from tests.scene import make_project
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.training.options import complete_sparsity
from utils.training.trainer import Trainer

FAST = ["--n_cpu", "0", "--batch_size", "4"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words]))


def weights(path):
    return read_checkpoint(path)["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def files(root):
    """Every file below ``root`` with its content, but for TensorBoard's events and the images of the data set."""
    return {
        path: path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "tfevents" not in path.name and path.parts[-2] not in ("images", "labels")
    }


def test_the_four_lines_of_the_recipe_work_and_none_overwrites_another(project):
    model_def = ["--model_def", "config/yolov3-hand.cfg"]
    run(train, *model_def, "--epochs", "1", *FAST)
    baseline = files(project)
    run(train, *model_def, "-sr", "--s", "0.01", "--epochs", "1", "--force", *FAST)
    sparse = files(project)
    run(test_prune, "--percent", "0.5", "--force", "--n_cpu", "0", "--json", "prune.json")
    pruned = files(project)
    run(
        train,
        *("--model_def", "config/prune_yolov3-hand.cfg", "-pre", "checkpoints/prune_yolov3_ckpt.pth"),
        *("--epochs", "1", *FAST),
    )
    tuned = files(project)
    for earlier, later in ((baseline, sparse), (sparse, pruned), (pruned, tuned)):
        assert earlier.items() <= later.items()
    for name in ("baseline_yolov3_ckpt", "yolov3_ckpt", "prune_yolov3_ckpt", "finetune_yolov3_ckpt"):
        assert (project / "checkpoints" / f"{name}.pth").exists()
    for name in ("training", "gamma_quintiles", "gamma_first_layer", "gamma_distribution"):
        assert (project / "runs/yolov3" / f"{name}.png").exists()
    assert (project / "runs/prune_yolov3-hand/channels.png").exists()
    report = json.loads((project / "prune.json").read_text())
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert report["max_diff"] < 1e-4
    assert report["strategy"] == "normal"

    run(
        detect,
        *("--image_folder", "data/images", "--model_def", "config/prune_yolov3-hand.cfg", "--n_cpu", "0"),
        *("--weights_path", "checkpoints/finetune_yolov3_ckpt.pth", "--conf_thres", "0.001"),
    )
    found = json.loads((project / "output/detections.json").read_text())["images"]
    assert len(found) == 9
    assert all((project / entry["output"]).exists() for entry in found)


def test_a_checkpoint_describes_itself(project, no_plots):
    run(train, "--epochs", "1", "-sr", "--s", "0.01", "--force", "--strategy", "slim", *FAST)
    checkpoint = torch.load("checkpoints/yolov3_ckpt.pth", weights_only=True)
    assert checkpoint["cfg"].startswith("[net]\n")
    assert checkpoint["names"] == ["hand"]
    assert checkpoint["img_size"] == 64
    assert checkpoint["epoch"] == 1
    assert checkpoint["step"] == 2
    assert checkpoint["strategy"] == "slim"
    assert checkpoint["options"]["s"] == 0.01
    last = torch.load("checkpoints/yolov3_last.pth", weights_only=True)
    assert last["training"]["optimizer"]["state"]


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["-sr", "--accumulate", "2", "--multiscale_training"],
        ["-sr", "--target_percent", "0.5"],
        ["-sr", "--s_schedule", "target", "--target_percent", "0.5"],
        ["-sr", "--s_schedule", "local", "--s", "1", "--force"],
    ],
)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(project, no_plots, monkeypatch, extra):
    options = ["--epochs", "3", "--checkpoint_interval", "1", *FAST, *extra]
    run(train, *options, "--name", "whole")

    evaluate, calls = train.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(train, *options, "--name", "parts")
    monkeypatch.setattr(train, "evaluate", evaluate)
    torch.manual_seed(12345)
    run(train, *options, "--name", "parts", "--resume")

    assert_same(weights("checkpoints/whole_last.pth"), weights("checkpoints/parts_last.pth"))
    assert_same(weights("checkpoints/whole_ckpt.pth"), weights("checkpoints/parts_ckpt.pth"))
    logs = []
    for name in ("whole", "parts"):
        with open(project / "runs" / name / "log.csv", newline="") as file:
            logs.append([{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    epochs = read_checkpoint("checkpoints/whole_last.pth")["options"]["total_epochs"]
    assert [row["epoch"] for row in logs[0]] == [str(epoch) for epoch in range(epochs)]


def test_a_finished_run_is_kept_and_an_unfinished_one_needs_a_word(project, no_plots, monkeypatch, capsys):
    options = ["--epochs", "1", "--name", "mine", *FAST]
    run(train, *options)
    first = weights("checkpoints/mine_ckpt.pth")
    run(train, *options, "--seed", "1")
    assert "kept as mine-1" in capsys.readouterr().out
    assert_same(first, weights("checkpoints/mine-1_ckpt.pth"))
    assert (project / "runs/mine-1/log.csv").exists()

    with pytest.raises(InputError, match="is finished"):
        run(train, *options, "--resume")
    unfinished = read_checkpoint("checkpoints/mine_last.pth")
    unfinished["options"]["total_epochs"] = 5
    torch.save(unfinished, "checkpoints/mine_last.pth")
    before = files(project)
    with pytest.raises(InputError, match="--resume to go on, --overwrite to give it up"):
        run(train, *options)
    assert files(project) == before
    run(train, *options, "--overwrite", "--seed", "2")
    assert not (project / "checkpoints/mine-2_ckpt.pth").exists()
    with pytest.raises(InputError, match="has no checkpoint"):
        run(train, "--epochs", "1", "--resume", "--name", "other", *FAST)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoints(project, no_plots):
    run(train, "--epochs", "1", "--name", "good", *FAST)
    state = read_checkpoint("checkpoints/good_ckpt.pth")
    state["model"]["module_list.0.batch_norm_0.bias"][:] = 3e38  # finite, but its sums are not
    torch.save(state, "broken.pth")
    before = files(project / "checkpoints")
    with pytest.raises(InputError, match="epoch 1, step 0: the loss is not finite"):
        run(train, "-pre", "broken.pth", "--epochs", "1", "--name", "bad", *FAST)
    assert files(project / "checkpoints") == before
    shown = project / "runs/bad/not_finite"
    assert sorted(path.name for path in shown.iterdir()) == ["000.png", "001.png", "002.png", "003.png", "images.txt"]
    assert len(set((shown / "images.txt").read_text().splitlines())) == 4


def test_a_strong_proximal_penalty_makes_gammas_exactly_zero_in_the_checkpoint(project, no_plots):
    run(train, "-sr", "--s", "30", "--epochs", "4", *FAST)
    gamma = weights("checkpoints/yolov3_ckpt.pth")["module_list.0.batch_norm_0.weight"]
    assert (gamma == 0).all()


def test_a_target_ratio_finds_the_strength_and_pruning_at_it_loses_nothing(project, no_plots):
    run(
        train,
        "-sr",
        "--s_schedule",
        "target",
        "--target_percent",
        "0.6",
        "--epochs",
        "10",
        *FAST,
        "--evaluation_interval",
        "10",
    )
    with open("runs/yolov3/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["s"] for row in rows}) > 3
    assert 0.59 < float(rows[-1]["gamma_zero"]) <= 0.6
    run(test_prune, "--n_cpu", "0", "--json", "prune.json")
    report = json.loads((project / "prune.json").read_text())
    assert report["percent"] == 0.6
    assert report["after"]["parameters"] < 0.5 * report["before"]["parameters"]
    assert report["after"]["mAP"] == report["before"]["mAP"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target_percent", "0.5"], "--target_percent: only with -sr"),
        (["--s", "0.5", "--sr_method", "subgradient"], "--s, --sr_method: only with -sr"),
        (["--distill", "--threads", "2"], "--distill, --threads: only with -sr"),
        (["-sr", "--s", "0.5", "--distill"], "--distill needs --s_schedule cut"),
        (
            ["--teacher_cfg", "a.cfg", "--teacher_weights", "checkpoints/baseline_yolov3_ckpt.pth"],
            "--name",
        ),
        (["-sr", "--s_schedule", "constant", "--target_percent", "0.5"], "no effect under --s_schedule constant"),
        (["-sr", "--s_schedule", "target", "--s", "0.01"], "--s has no effect under --s_schedule target"),
        (["-sr", "--prune_every", "1", "--s", "1", "--target_percent", "0.5"], "no effect under --s_schedule constant"),
        (["-sr", "--s_schedule", "target", "--sr_method", "subgradient"], "use --sr_method proximal"),
        (["-sr", "--s_schedule", "cut", "--s", "1"], "--s: for a penalty, which --s_schedule cut has not"),
        (["--force"], "--force: only with -sr"),
        (["-sr", "--force"], "--force: for a penalty, which --s_schedule cut has not"),
        (["-sr", "--prune_every", "999"], "--prune_every 999: the run ends after 100 epochs, before any cut"),
        (["-sr", "--target_macs", "0.5", "--s", "1"], "--target_macs needs --s_schedule cut"),
        (["-sr", "--target_macs", "0.5", "--target_percent", "0.5"], "give one of them"),
        (["-sr", "--target_macs", "0.0001"], "at most 0.01% of the MACs cannot be reached"),
        (["-sr", "--target_macs", "0.05"], "at most 5% of the MACs cannot be reached"),  # with constant carriers
        (["-sr", "--target_params", "0.5", "--s", "1"], "--target_params needs --s_schedule cut"),
        (["-sr", "--target_params", "0.5", "--target_percent", "0.5"], "only --target_macs and --target_params go"),
        (["-sr", "--target_params", "0.0001"], "at most 0.01% of the parameters cannot be reached"),
        (["-sr", "--target_macs", "0.5", "--target_params", "0.0001"], "of the parameters cannot be reached"),
        (["-sr", "--target_macs", "1"], "no channel would be cut for at most 100% of the MACs"),
    ],
)
def test_options_of_the_penalty_that_contradict_each_other_are_refused(project, options, words):
    with pytest.raises(InputError, match=words):
        run(train, *options, *FAST)


def test_a_cut_needs_only_the_images_that_can_be_used(project, no_plots):
    Path("data/images/train_0.png").unlink()
    words = ("-sr", "--epochs", "2", "--batch_size", "4", "--n_cpu", "0")
    with pytest.raises(InputError, match=r"train_0\.png.*--skip_bad"):
        run(train, *words)
    run(train, *words, "--skip_bad")
    assert Path("checkpoints/yolov3_ckpt.pth").exists()


def test_where_one_list_trains_and_validates_both_are_cached(project, no_plots, capsys):
    config = Path("config/oxfordhand.data")
    config.write_text(config.read_text().replace("valid.txt", "train.txt"))
    run(train, "--epochs", "1", "--cache", "ram", *FAST)
    assert "--cache ram: 12 of 12 images" in capsys.readouterr().out


def test_a_cut_that_fails_names_what_was_trained_until_then(project, no_plots, monkeypatch):
    def fail(trainer, images):
        raise InputError("at most 2% of the MACs cannot be reached")

    monkeypatch.setattr(Trainer, "cut_once", fail)
    with pytest.raises(InputError, match=r"reached; to go on with .*: -pre checkpoints/yolov3_before_cut\.pth$"):
        run(train, "-sr", "--epochs", "4", "--batch_size", "4", "--n_cpu", "0")
    assert read_checkpoint("checkpoints/yolov3_before_cut.pth")["epoch"] >= 1


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ([], "cut"),
        (["--s", "0.1"], "local"),
        (["--s", "0.1", "--target_percent", "0.5"], "local"),
        (["--target_percent", "0.5"], "cut"),
        (["--target_macs", "0.1", "--target_params", "0.05"], "cut"),
        (["--prune_every", "1"], "constant"),
    ],
)
def test_the_schedule_follows_from_what_is_known(options, schedule):
    args = train.get_args_parser().parse_args(["-sr", *options])
    complete_sparsity(args)
    assert args.s_schedule == schedule


def test_same_seed_same_weights_whatever_the_number_of_workers(project, no_plots):
    for name, workers, seed in (("a", "0", "0"), ("b", "2", "0"), ("c", "0", "1")):
        options = ["--epochs", "1", "--batch_size", "4", "--n_cpu", workers, "--seed", seed, "--name", name]
        run(train, *options)
    assert_same(weights("checkpoints/a_last.pth"), weights("checkpoints/b_last.pth"))
    with pytest.raises(AssertionError):
        assert_same(weights("checkpoints/a_last.pth"), weights("checkpoints/c_last.pth"))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_cuts_its_network_is_resumed_on_either_side_of_the_cut(project, no_plots, monkeypatch, steps):
    options = ["-sr", "--target_percent", "0.5", "--epochs", "5", "--checkpoint_interval", "1", *FAST]
    run(train, *options, "--name", "whole")
    train_step, calls = Trainer.train_step, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2 * steps + 2:
            raise KeyboardInterrupt
        return train_step(self, *args)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(train, *options, "--name", "parts")
    monkeypatch.setattr(Trainer, "train_step", train_step)
    run(train, "--resume", "--name", "parts")
    assert_same(weights("checkpoints/whole_last.pth"), weights("checkpoints/parts_last.pth"))


def test_what_a_cut_leaves_learns_from_the_network_before_it_unless_told_otherwise(project, no_plots):
    save_checkpoint("start.pth", Darknet("config/yolov3-hand.cfg"), pruned=False)
    logs = {}
    for name, words in (("taught", ["--distill"]), ("alone", [])):
        run(train, "-sr", "-pre", "start.pth", "--epochs", "1", "--name", name, *words, *FAST)
        logs[name] = Path(f"runs/{name}/log.csv").read_text()
        before, small = (read_checkpoint(f"checkpoints/{name}_{kind}.pth") for kind in ("before_cut", "ckpt"))
        assert_same(before["model"], read_checkpoint("start.pth")["model"])
        assert sum(map(torch.numel, small["model"].values())) < sum(map(torch.numel, before["model"].values())) / 4
    assert "distillation_loss" in logs["taught"]
    assert "distillation_loss" not in logs["alone"]
