import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import report
import test_prune
import train
from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from tests.scene import make_project
from utils.detection.checkpoints import load_darknet, save_checkpoint
from utils.errors import InputError
from utils.pruning.penalty import gamma_sizes
from utils.pruning.residuals import remove_residual_blocks, weakest_residual_blocks
from utils.report import runs
from utils.report.commands import command_of
from utils.training.options import complete_sparsity

TRAIN = ["--epochs", "1", "--n_cpu", "0", "--batch_size", "4", "--device", "cpu"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a narrow network, in the working directory."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    return tmp_path


def run(program, *words):
    program.main(program.get_args_parser().parse_args(list(words)))


def read(page):
    """The page's text, the rows of its table, and the boxes of its images."""
    text = re.sub("<wbr>|</?span>", "", Path(page).read_text())  # where lines may end
    body = re.search(r'<table class="networks">.*?</table>', text, re.DOTALL)[0]
    heads = re.findall(r'<th scope="col">(.*?)</th>', body)
    rows = {row[0]: row[1] for row in re.findall(r'<th scope="row">(.*?)</th>(.*)</tr>', body)}
    values = {label: re.findall(r"<td>([^ <]*)", cells) for label, cells in rows.items()}
    images = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["images"]
    return text, heads, values, images


def millions(*paths):
    return [f"{load_darknet(path, None)[0].spec.parameters / 1e6:.3f}" for path in paths]


def test_a_recipe_has_its_pages(project, capsys):
    run(train, *TRAIN, "--name", "large")
    printed = capsys.readouterr().out
    assert "runs/large/report.html" in printed
    text, heads, values, images = read("runs/large/report.html")
    assert heads == ["large"]
    assert values["Parameters, million"] == millions("checkpoints/large_ckpt.pth")
    assert len(images) == 3
    assert all(len(image["truth"]) == 1 for image in images)
    assert "Training of large" in text

    run(train, *TRAIN, "--name", "small0.5", "-sr", "-pre", "checkpoints/large_ckpt.pth")
    text, heads, values, images = read("runs/small0.5/report.html")
    assert heads == ["small0.5_before_cut", "small0.5"]
    both = ["checkpoints/small0.5_before_cut.pth", "checkpoints/small0.5_ckpt.pth"]
    assert values["Parameters, million"] == millions(*both)
    before, after = (load_darknet(path, None)[0].spec.convolutions for path in both)
    drawn = re.findall(r">(\d+ → \d+)</text>", text)
    assert drawn == [
        f"{a.channels} → {b.channels}" for a, b in zip(before, after, strict=True) if a.channels != b.channels
    ]
    assert drawn

    run(report, "--runs", "large", "small0.5", "--n_cpu", "0")
    text, heads, values, _ = read("runs/report.html")
    assert heads == ["large", "small0.5"]
    assert [section in text for section in ("Training of large", "Training of small0.5")] == [True, True]
    assert "python train.py" in text

    run(train, *TRAIN, "--epochs", "2", "--name", "large")
    run(report, "--runs", "large-1", "--n_cpu", "0")
    text, heads, *_ = read("runs/report.html")
    assert heads == ["large-1"]
    assert set(re.findall("Training of [^<]*", text)) == {"Training of large-1"}


def test_pruning_has_its_page(project, capsys):
    model = randomize(Darknet("config/yolov3-hand.cfg"))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64)
    words = ["--percent", "0.5", "--n_cpu", "0", "--force", "--json", "result.json"]
    run(test_prune, *words)
    result = json.loads(Path("result.json").read_text())
    text, heads, values, _ = read("runs/prune_yolov3-hand/report.html")
    assert heads == ["before", "after"]
    for label, name, digits, unit in (
        ("mAP@0.5", "mAP", 4, 1),
        ("mAP@0.5:0.95", "mAP_50_95", 4, 1),
        ("Parameters, million", "parameters", 3, 1e6),
        ("File size, MB", "size_bytes", 2, 1e6),
        ("MACs per image, G", "macs", 3, 1e9),
        ("Forward pass of one image, ms", "forward_ms", 2, 1),
    ):
        assert values[label] == [f"{result[side][name] / unit:.{digits}f}" for side in heads]
    changed = [f"{row['before']} → {row['after']}" for row in result["layers"] if row["before"] != row["after"]]
    assert re.findall(r">(\d+ → \d+)</text>", text) == changed
    before, after = (sum(row[side] for row in result["layers"]) for side in ("before", "after"))
    assert f"{before - after} of {before} channels cut" in text
    assert "runs/prune_yolov3-hand/report.html" in capsys.readouterr().out

    run(report, "--runs", "prune_yolov3", "--n_cpu", "0", "--output", "again.html")
    _, heads, again, _ = read("again.html")
    assert heads == ["yolov3", "prune_yolov3"]
    assert again["mAP@0.5"] == values["mAP@0.5"]


def test_channels_are_compared_layer_by_layer_where_the_layers_are_the_same():
    blocks = create_cfg("v3", 1, 64, width=0.0625)
    before = Darknet(blocks)
    assert runs.kept_channels(before.spec, before.spec.at(96)) == runs.channel_counts(before.spec)
    block = weakest_residual_blocks(before.spec, gamma_sizes(before), 1)
    assert runs.kept_channels(before.spec, remove_residual_blocks(before, block).spec) is None


@pytest.mark.parametrize("obstacle", ["a folder", "a damaged log", "no data"])
def test_a_page_that_fails_is_a_warning_and_the_run_stays(project, capsys, monkeypatch, obstacle):
    page = Path("runs/baseline_yolov3/report.html")
    written = runs.report_runs

    def hinder(names, path, given=None):
        if obstacle == "a folder":
            path.mkdir()
        elif obstacle == "a damaged log":
            (path.parent / "log.csv").write_text("epoch,mAP\n0,high\n")
        else:
            Path("data/valid.txt").unlink()
        written(names, path, given)

    monkeypatch.setattr(runs, "report_runs", hinder)
    run(train, *TRAIN)
    warning = capsys.readouterr().err.strip().splitlines()[-1]
    assert warning.startswith(f"warning: {page} was not written, all else was: ")
    assert load_darknet("checkpoints/baseline_yolov3_ckpt.pth", None)[1]["epoch"] == 1


def test_logs_and_sweeps_are_those_of_the_runs_and_read_before_the_networks_are_measured(project, monkeypatch):
    model = randomize(Darknet("config/yolov3-hand.cfg"))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64)
    Path("page").mkdir()
    Path("page/lr_sweep.json").write_text("of another program")
    run(report, "--runs", "yolov3", "--n_cpu", "0", "--output", "page/report.html")
    assert Path("page/report.html").is_file()
    Path("runs/yolov3").mkdir(parents=True)
    Path("runs/yolov3/lr_sweep.json").write_text("of another program")
    monkeypatch.setattr(runs.Bench, "compare", lambda *words, **options: pytest.fail("the networks were measured"))
    with pytest.raises(InputError, match=r"^runs/yolov3/lr_sweep\.json: is not a sweep"):
        run(report, "--runs", "yolov3", "--n_cpu", "0")


def test_an_error_of_the_code_is_not_hidden(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), runs.warned_of(tmp_path):
        raise RuntimeError("shape '[2]' is invalid")
    with pytest.raises(KeyError), runs.warned_of(tmp_path):
        raise KeyError("name")


def test_a_full_gpu_costs_the_page_alone(tmp_path, capsys):
    with runs.warned_of(tmp_path / "report.html"):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    assert capsys.readouterr().err.endswith("all else was: CUDA out of memory.\n")


def test_the_program_says_what_is_missing(project):
    with pytest.raises(InputError, match=r"checkpoints/nothing_ckpt\.pth: there is no such weights file"):
        run(report, "--runs", "nothing")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "3", "-sr", "--s", "0.02", "--name", "a b", "--no-channels_last"],
        ["--model_def", "config/yolov3-hand.cfg", "-pre", "checkpoints/x.pth", "--cache", "ram"],
        ["--model_def", "config/yolov3-hand.cfg", "--img_size", "256", "416"],
    ],
)
def test_the_command_of_a_run_gives_its_options(words):
    options = vars(train.get_args_parser().parse_args(words))
    program, *given = shlex.split(command_of(options | {"cut_epoch": 2}))[1:]
    assert program == "train.py"
    assert vars(train.get_args_parser().parse_args(given)) == options


@pytest.mark.parametrize(
    "words",
    [
        ["--target_macs", "0.3", "--target_params", "0.2"],
        ["--target_percent", "0.7", "--distill"],
        ["--target_ms", "3", "--runtime", "onnx", "--threads", "2"],
        ["--target_ms", "3", "--latency_table", "other.csv"],
        ["--s", "0.02"],
        ["--s_schedule", "target", "--target_percent", "0.5"],
        ["--prune_every", "2"],
    ],
)
def test_what_a_sparse_run_has_found_itself_is_not_in_its_command(words):
    def parsed(words):
        args = train.get_args_parser().parse_args(words)
        complete_sparsity(args)
        return args

    args = parsed(["-sr", *words])
    expected = dict(vars(args))
    args.latency_table = args.latency_table or (args.runtime and "measured.csv")
    assert vars(parsed(shlex.split(command_of(vars(args)))[2:])) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["--max_map_drop", "0", "--layer_keep", "0", "--strategy", "slim", "--force"],
        ["--target_macs", "0.3", "--importance", "magnitude"],
        ["--target_ms", "2", "--runtime", "onnx", "--threads", "2"],
        ["--percent", "0.7"],
    ],
)
def test_the_command_of_a_pruning_gives_its_options(words):
    args = test_prune.get_args_parser().parse_args([*words, "--weights_path", "x.pth"])
    program, *given = shlex.split(command_of(vars(args) | {"percent": 0.7}))[1:]
    assert program == "test_prune.py"
    again = test_prune.get_args_parser().parse_args(given)
    assert vars(again) == vars(args)
    assert ("threads" in again.given) == ("threads" in args.given)


def test_an_unknown_program_has_no_command():
    assert command_of(vars(argparse.Namespace(output="x"))) is None
