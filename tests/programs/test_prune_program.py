import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

import test
import test_prune
import train
from config.networks import create_cfg
from models import Darknet
from studies import lossless
from tests.networks import lively, randomize
from tests.scene import make_project
from utils.darknet.cfg import format_cfg
from utils.data.images import some_images
from utils.detection.checkpoints import load_weights, read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.pruning import sweep
from utils.pruning.budget import DEFAULT_RATIO, trained_ratio
from utils.pruning.compare import Bench


@pytest.fixture
def project(tmp_path, monkeypatch, no_plots):
    """A project with a narrow YOLOv3 whose gammas are near zero or not."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    Path("config/yolov3-hand.cfg").write_text(format_cfg(create_cfg("v3", 1, 64, width=0.0625)))
    model = randomize(Darknet("config/yolov3-hand.cfg"))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64, strategy="shortcut")
    return tmp_path


def run(*words):
    parser = test_prune.get_args_parser()
    test_prune.main(parser.parse_args([*words, "--n_cpu", "0"]))


def report(*words):
    run(*words, "--json", "report.json")
    return json.loads(Path("report.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out_cfg", "same", "--out_weights", "./same"], "--out_cfg and --out_weights are both same: give two files"),
        (["--latency_table", "t.csv", "--threads", "8"], "--threads: only with --runtime"),
        (["--latency_table", "t.csv", "--cost", "size"], "--cost: with --runtime or --latency_table milliseconds"),
        (["--latency_table", "t.csv", "--prune_blocks", "1"], "--prune_blocks goes with --cost uniform alone"),
        (["--importance", "magnitude", "--prune_blocks", "1"], "--prune_blocks goes with --cost uniform alone"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(project, words, message):
    with pytest.raises(InputError, match=message):
        run(*words)
    assert not Path("same").exists()


def test_a_folder_is_no_file_for_the_report(project, capsys):
    with pytest.raises(SystemExit):
        run("--json", "config")
    assert "argument --json: config is a folder" in capsys.readouterr().err


def test_the_report_describes_the_files_that_were_written(project, capsys):
    result = report("--percent", "0.5")
    assert result["strategy"] == "shortcut"
    assert result["percent"] == 0.5
    assert result["max_diff"] < 1e-5
    small = Darknet("config/prune_yolov3-hand.cfg")
    load_weights(small, "checkpoints/prune_yolov3_ckpt.pth")
    assert result["after"]["parameters"] == sum(p.numel() for p in small.parameters())
    counts = {layer.index: layer.channels for layer in small.spec.convolutions}
    assert {row["layer"]: row["after"] for row in result["layers"]} == counts
    checkpoint = read_checkpoint("checkpoints/prune_yolov3_ckpt.pth")
    assert checkpoint["names"] == ["hand"]
    assert checkpoint["img_size"] == 64
    assert checkpoint["pruned"] == {"from": "checkpoints/yolov3_ckpt.pth", "ratio": 0.5, "strategy": "shortcut"}
    assert checkpoint["options"]["model_def"] == "config/prune_yolov3-hand.cfg"
    table = capsys.readouterr().out
    assert all(word in table for word in ("mAP@0.5", "Parameters", "MACs", "File size", "Forward"))


def test_a_checkpoint_is_enough_and_names_the_cfg(project):
    given = report("--model_def", "config/yolov3-hand.cfg", "--percent", "0.5")
    model = Darknet("config/yolov3-hand.cfg")
    load_weights(model, "checkpoints/yolov3_ckpt.pth")
    options = {"model_def": "elsewhere/narrow.cfg"}
    save_checkpoint("checkpoints/narrow.pth", model, names=["hand"], img_size=64, strategy="shortcut", options=options)
    Path("config/yolov3-hand.cfg").unlink()
    result = report("--weights_path", "checkpoints/narrow.pth", "--percent", "0.5")
    assert result["layers"] == given["layers"]
    expected = Path("config/prune_yolov3-hand.cfg").read_bytes()
    assert Path("config/prune_narrow.cfg").read_bytes() == expected
    assert Path("checkpoints/prune_narrow.pth").exists()


@pytest.mark.parametrize("weights", ["checkpoints/plain.pth", "checkpoints/plain.weights"])
def test_weights_without_a_cfg_need_model_def(project, weights):
    model = Darknet("config/yolov3-hand.cfg")
    load_weights(model, "checkpoints/yolov3_ckpt.pth")
    torch.save(model.state_dict(), "checkpoints/plain.pth")
    model.save_darknet_weights("checkpoints/plain.weights")
    with pytest.raises(InputError, match="--model_def"):
        run("--weights_path", weights, "--percent", "0.5")
    run("--weights_path", weights, "--model_def", "config/yolov3-hand.cfg", "--percent", "0.5")
    assert Path("config/prune_yolov3-hand.cfg").exists()


@pytest.fixture
def zeros(project):
    """The project's network with gammas of exactly 0 in place of the small ones, and what is left of it at 50 %."""
    model = Darknet("config/yolov3-hand.cfg")
    load_weights(model, "checkpoints/yolov3_ckpt.pth")
    for norm in model.batch_norms.values():
        norm.weight.data[norm.weight.abs() < 0.1] = 0
    save_checkpoint("checkpoints/zero.pth", model, names=["hand"], img_size=64)
    run("--weights_path", "checkpoints/zero.pth", "--percent", "0.5", "--strategy", "normal")
    return model


def test_gammas_of_exactly_zero_go_without_any_loss(zeros):
    small = Darknet("config/prune_yolov3-hand.cfg").eval()
    load_weights(small, "checkpoints/prune_zero.pth")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small(images), zeros.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lost", [False, True])
def test_the_study_of_losses_compares_every_box(zeros, capsys, lost):
    if lost:
        zeros.conv(zeros.spec.heads[0].sources[0]).bias.data += 0.5
        save_checkpoint("checkpoints/zero.pth", zeros, names=["hand"], img_size=64)
    args = ["--weights_path", "checkpoints/zero.pth", "--pruned_weights", "checkpoints/prune_zero.pth"]
    lossless.main(lossless.get_args_parser().parse_args(args))
    printed = capsys.readouterr().out
    difference = float(re.search(r"of a box: (\S+) pixels", printed)[1])
    assert (difference > 0.01) == lost
    detections = re.search(r"score >= 0.001 \| (\d+) +\| (\d+)", printed)
    assert int(detections[1]) > 0


def test_an_earlier_result_is_kept_under_a_numbered_name(project):
    run("--percent", "0.5")
    first = Path("config/prune_yolov3-hand.cfg").read_bytes()
    run("--percent", "0.3")
    assert Path("config/prune_yolov3-hand-1.cfg").read_bytes() == first
    assert Path("checkpoints/prune_yolov3_ckpt-1.pth").exists()
    assert Path("config/prune_yolov3-hand.cfg").read_bytes() != first


def test_darknet_weights_come_out_and_measure_the_same(project):
    model = lively(randomize(Darknet("config/yolov3-hand.cfg")))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64, strategy="shortcut")
    result = report("--percent", "0.5", "--out_weights", "out/small.weights")
    parser = test.get_args_parser()
    words = ["--model_def", "config/prune_yolov3-hand.cfg", "--weights_path", "out/small.weights"]
    test.main(parser.parse_args([*words, "--json", "test.json", "--n_cpu", "0"]))
    measured = json.loads(Path("test.json").read_text())
    assert measured["mAP"] == result["after"]["mAP"] > 0
    assert measured["parameters"] == result["after"]["parameters"]
    assert measured["macs"] == result["after"]["macs"]
    wanted = "mAP precision recall f1 per_class images parameters macs seconds_forward seconds_nms seconds_total"
    assert set(wanted.split()) <= set(measured)


def test_blocks_and_rounding_are_in_the_report(project):
    result = report("--percent", "0.3", "--prune_blocks", "5", "--round_to", "4")
    gone = [row for row in result["layers"] if row["after"] == 0]
    assert len(gone) == 10
    for row in result["layers"]:
        assert row["after"] % 4 == 0 or row["after"] == row["before"]


@pytest.mark.parametrize(
    ("option", "budget", "measure"), [("--target_macs", 0.5, "macs"), ("--target_params", 0.3, "parameters")]
)
def test_a_budget_is_met_and_what_was_chosen_is_said(project, capsys, option, budget, measure):
    result = report(option, str(budget), "--force")
    assert 0.8 * budget < result["after"][measure] / result["before"][measure] <= budget
    assert f"{result['percent']:.2%} of the prunable channels are to go, for at most" in capsys.readouterr().out


def test_a_budget_of_time_is_met(project):
    relaxed = report("--target_ms", "10000", "--force")
    assert relaxed["percent"] == 0


def test_a_budget_of_map_is_met(project, monkeypatch, capsys):
    """With the share of the parameters that is left in place of mAP, which is 0 for random weights."""
    whole = Darknet("config/yolov3-hand.cfg").spec.parameters
    monkeypatch.setattr(Bench, "mean_ap", lambda bench, model: model.spec.parameters / whole)
    result = report("--max_map_drop", "0.5", "--force")
    assert 0.5 <= result["after"]["parameters"] / result["before"]["parameters"] < 0.6
    assert "for a loss of at most 0.5 mAP@0.5" in capsys.readouterr().out


@pytest.fixture
def few_ratios(monkeypatch):
    monkeypatch.setattr(sweep, "SWEEP", (0.0, 0.4, 0.8))


def test_a_sweep_writes_only_the_table_and_the_curve(project, few_ratios, capsys):
    run("--sweep")  # which also remembers the check of the images
    (project / "runs/prune_yolov3-hand/sweep.png").unlink()
    before = {path for path in project.rglob("*") if path.is_file()}
    run("--sweep")
    new = {path.relative_to(project) for path in project.rglob("*") if path.is_file()} - {
        path.relative_to(project) for path in before
    }
    assert new == {Path("runs/prune_yolov3-hand/sweep.png")}  # sweep.json was there
    printed = capsys.readouterr().out
    assert "Parameters left" in printed
    assert "of the channels can be pruned" in printed


def test_a_model_that_is_not_sparse_is_called_so(project, capsys):
    model = randomize(Darknet("config/yolov3-hand.cfg"), near_zero=0)
    for norm in model.batch_norms.values():
        norm.weight.data.clamp_(min=0.9)
    save_checkpoint("checkpoints/dense.pth", model, names=["hand"], img_size=64)
    with pytest.raises(InputError, match=r"dense.pth: 50.0% would prune \|gamma\| up to .* --force"):
        run("--weights_path", "checkpoints/dense.pth", "--percent", "0.5")
    assert "not sparse yet" in capsys.readouterr().out


def test_a_cut_by_size_leaves_groups_of_channels(project):
    Path("config/yolov3-hand.cfg").write_text(format_cfg(create_cfg("v3", 1, 64, width=0.25)))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", randomize(Darknet("config/yolov3-hand.cfg")), names=["hand"])
    groups = {}
    for words in (["--importance", "magnitude"], ["--cost", "size", "--force"], ["--force"]):
        result = report("--strategy", "slim", "--target_macs", "0.4", "--img_size", "64", *words)
        cut = [layer["after"] for layer in result["layers"] if layer["after"] < layer["before"]]
        groups[" ".join(words)] = math.gcd(*cut)
        assert 0.36 <= result["after"]["macs"] / result["before"]["macs"] <= 0.4
    assert groups == {"--importance magnitude": 8, "--cost size --force": 8, "--force": 1}


def test_a_cut_by_magnitude_is_fitted_to_the_whole_network(project, capsys):
    """The scores of the network are spread, and those of the cut are not; the labels are taken away."""
    whole = lively(Darknet("config/yolov3-hand.cfg"))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", whole, names=["hand"], img_size=64)
    for label in Path("data/labels").glob("train*.txt"):
        label.write_text("")
    images = some_images(sorted(Path("data/images").glob("train*")), 8, 64)
    gaps = []
    for words in ([], ["--reconstruct"]):
        result = report("--importance", "magnitude", "--strategy", "slim", "--percent", "0.3", *words)
        assert result["max_diff"] < 1e-5  # of the cut, which comes first
        small = Darknet("config/prune_yolov3-hand.cfg")
        load_weights(small, "checkpoints/prune_yolov3_ckpt.pth")
        with torch.no_grad():
            pairs = zip(small.eval().raw_outputs(images), whole.raw_outputs(images), strict=True)
            gaps.append(sum(float((a - b).square().mean()) for a, b in pairs))
        assert "strategy slim: by its kernels" in capsys.readouterr().out
    assert gaps[1] < 0.5 * gaps[0]


def test_a_sweep_by_magnitude_says_so(project, few_ratios, capsys):
    run("--sweep", "--importance", "magnitude", "--reconstruct", "--n_cpu", "0")
    assert "magnitude (1 is a layer's mean) up to" in capsys.readouterr().out


def test_the_fit_needs_training_images(project):
    Path("data/train.txt").write_text("")
    with pytest.raises(InputError, match=r"train.txt"):
        run("--percent", "0.5", "--force", "--reconstruct")


def test_the_fit_leaves_out_bad_images_where_that_is_asked_for(project):
    Path("data/images/train_0.png").unlink()
    Path("data/images/train_1.png").write_bytes(Path("data/images/train_1.png").read_bytes()[:100])
    words = ("--percent", "0.5", "--force", "--reconstruct")
    with pytest.raises(InputError, match=r"train_0\.png"):
        run(*words)
    run(*words, "--skip_bad")
    assert Path("checkpoints/prune_yolov3_ckpt.pth").exists()


def test_the_coupling_can_be_printed_without_weights(project, capsys):
    run("--show_coupling", "--weights_path", "nowhere.pth", "--model_def", "config/yolov3-hand.cfg")
    printed = capsys.readouterr().out
    run("--show_coupling")  # by the cfg in the checkpoint
    assert capsys.readouterr().out == printed
    lines = printed.splitlines()
    assert any(line.endswith("over layers 1, 3") for line in lines)
    assert any("[yolo], reads it" in line or "no BatchNorm" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({"s_schedule": "target", "target_percent": 0.6}, 0.6),
        ({"s_schedule": "local", "target_percent": 0.7}, 0.7),
        ({"s_schedule": "constant", "target_percent": 0.85}, DEFAULT_RATIO),
        ({}, DEFAULT_RATIO),
    ],
)
def test_the_default_ratio_is_the_one_that_the_model_was_trained_for(options, ratio):
    assert trained_ratio({"options": options}) == ratio


def test_a_run_that_cut_its_network_is_compared_with_the_one_that_it_started_from(project, capsys):
    save_checkpoint("baseline.pth", Darknet("config/yolov3-hand.cfg"), pruned=False)
    words = ["-sr", "-pre", "baseline.pth", "--epochs", "1", "--n_cpu", "0", "--batch_size", "4"]
    train.main(train.get_args_parser().parse_args(words))
    assert "can be pruned" not in capsys.readouterr().out
    result = report()
    printed = capsys.readouterr().out
    assert "before is checkpoints/yolov3_before_cut.pth" in printed
    assert "strategy slim: cut in training" in printed
    assert result["before"]["parameters"] > 10 * result["after"]["parameters"]
    assert result["percent"] == 0
    assert sum(layer["before"] for layer in result["layers"]) > 2 * sum(layer["after"] for layer in result["layers"])

    Path("copied").mkdir()
    copied = shutil.copy("checkpoints/yolov3_ckpt.pth", "copied")
    train.main(train.get_args_parser().parse_args([*words, "--seed", "1"]))
    capsys.readouterr()
    report("--weights_path", "checkpoints/yolov3-2_ckpt.pth")
    assert "before is checkpoints/yolov3-2_before_cut.pth" in capsys.readouterr().out
    report("--weights_path", copied)  # beside which there is none, and the one in checkpoints is the later run's
    assert "before is" not in capsys.readouterr().out


def test_an_interrupted_sweep_goes_on_where_it_stopped_and_uses_no_rows_of_another_file(
    project, few_ratios, monkeypatch
):
    measured = []

    def measure(*words, stop=None):
        measured.clear()
        mean_ap = Bench.mean_ap

        def interrupted(bench, model):
            if len(measured) == stop:
                raise KeyboardInterrupt
            measured.append(model.spec.parameters)
            return mean_ap(bench, model)

        with monkeypatch.context() as patch:
            patch.setattr(Bench, "mean_ap", interrupted)
            return report("--sweep", *words)["sweep"]

    unfinished = Path("runs/prune_yolov3-hand/unfinished.json")
    with pytest.raises(KeyboardInterrupt):
        measure(stop=2)
    first = list(json.loads(unfinished.read_text())["rows"].values())
    rows = measure()
    assert rows[:2] == first
    assert len(measured) == len(rows) - 2
    assert [row["percent"] for row in rows] == list(sweep.SWEEP)
    assert not unfinished.exists()

    with pytest.raises(KeyboardInterrupt):
        measure(stop=2)
    with pytest.raises(KeyboardInterrupt):
        measure("--round_to", "4", stop=1)  # other options
    assert len(measured) == 1
    save_checkpoint("checkpoints/yolov3_ckpt.pth", randomize(Darknet("config/yolov3-hand.cfg")), img_size=64)
    assert len(measure("--round_to", "4")) == len(measured)  # another model under the same name
