import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from studies import draw, plan, runner, study, tables
from studies.plan import DataSet, Experiment, jobs, weights_of
from tests.scene import make_project
from utils.darknet.cfg import read_cfg
from utils.darknet.spec import parse_network
from utils.errors import InputError
from utils.files import write_csv
from utils.signals import Stopped
from utils.training.config import epochs_before_cut

TINY = DataSet("tiny", "config/oxfordhand.data", "config/yolov3-hand.cfg", 64, 2, 5, s=10.0, seconds=1, batch_size=4)
STAGES = tuple(stage for stage in plan.STAGES if "torch_pruning" not in stage)  # which is not installed
SMALL = {"tiny": (Experiment("tiny", 0.5, (0,), STAGES),)}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, a plan of one small experiment, and programs that run in this process, which starts none."""
    monkeypatch.chdir(make_project(tmp_path))
    for module in (study, plan):
        monkeypatch.setattr(module, "PLAN", SMALL)
    monkeypatch.setattr(plan, "DATA_SETS", (TINY,))
    monkeypatch.setattr(train, "plot_training", lambda rows, gammas, folder: None)
    monkeypatch.setattr(train, "report_training", lambda name: None)
    calls = []

    def in_process(program, *words, log):
        calls.append((program, words))
        module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
        module.main(module.get_args_parser().parse_args([*words, "--n_cpu", "0"]))

    monkeypatch.setattr(runner, "call", in_process)
    return calls


def go(*words):
    study.main(study.get_args_parser().parse_args(["--preset", "tiny", "--results", "results.csv", *words]))


def results():
    with open("results.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_every_preset_runs_what_a_run_needs_before_it():
    for preset, experiments in plan.PLAN.items():
        found = jobs(experiments)
        ids = [job.id for job in found]
        assert len(set(ids)) == len(ids), preset
        for number, job in enumerate(found):
            assert set(job.needs) <= set(ids[:number]), job.id
        assert len({weights_of(job.id) for job in found}) == len(found), preset


def test_the_study_measures_everything_once_and_is_drawn(project, capsys):
    go()
    rows = results()
    assert {row["stage"] for row in rows.values()} == set(STAGES)
    assert all(row["mAP"] and row["revision"] and row["img_size"] == "64" for row in rows.values())
    by_stage = {row["stage"]: row for row in rows.values()}
    whole = float(by_stage["baseline"]["macs"])
    for stage in ("final", "oneshot", "control_oneshot", "control_scratch", "control_narrow", "control_slimming"):
        assert float(by_stage[stage]["macs"]) <= 0.5 * whole, stage
    assert by_stage["control_scratch"]["parameters"] == by_stage["final"]["parameters"]
    assert [by_stage[stage]["cost"] for stage in ("baseline", "oneshot", "continued")] == ["2.0", "", "5.0"]
    assert float(by_stage["final"]["cost"]) <= 5 < float(by_stage["final"]["epochs"])

    count = len(project)
    go("--times", "--runtimes", "pytorch", "--threads", "1")
    assert len(project) == count
    assert all(float(row["ms_pytorch_1"]) > 0 for row in results().values())

    options = ["--results", "results.csv", "--output", "figures", "--images", "2"]
    draw.main(draw.get_args_parser().parse_args([*options, "--run", "tiny/final0.5/seed0"]))
    assert {path.name for path in Path("figures").iterdir()} == {
        "tiny_quality.png",
        "tiny_latency.png",
        "tiny_detections.jpg",
        "results.md",
    }
    table = Path("figures/results.md").read_text()
    assert "## tiny, 50.0% of the MACs" in table
    assert "| baseline, trained on | 1 | 5 | 5.0 | 100.0 % | 100.0 % |" in table


def test_what_is_measured_is_run_again_only_where_its_files_are_gone_and_needed(project):
    go("--only", "continued")
    before = results()
    for path in Path("checkpoints").iterdir():  # as on another machine, which has the CSV alone
        path.unlink()
    project.clear()
    go("--only", "continued")
    assert not project
    go("--only", "plain|oneshot0.5/")
    programs = [program for program, _ in project]
    assert programs.count("studies/plain_recipe.py") == 1
    assert programs.count("train.py") == 2  # the baseline, again, and the training of what was cut out of it
    assert before.keys() < results().keys()
    assert results()["tiny/baseline/seed0"]["mAP"] == before["tiny/baseline/seed0"]["mAP"]


def test_the_epochs_before_the_cut_cost_what_the_whole_network_does():
    job = next(job for job in jobs([Experiment("hands", 0.5, (0,), ("final_from_random",))]))
    whole = parse_network(read_cfg(job.model_def), job.data.img_size).macs
    before = epochs_before_cut(job.epochs)
    measured = {"epochs": before + 2 * (job.epochs - before), "macs": whole / 2}
    assert runner.cost(job, measured) == pytest.approx(job.epochs) == job.data.baseline + job.data.more


def test_an_interrupted_training_goes_on(project, monkeypatch):
    evaluate, seen = train.evaluate, []

    def interrupted(*args, **kwargs):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    frequent = DataSet(**{**vars(TINY), "checkpoint_interval": 1, "evaluation_interval": 1})
    monkeypatch.setattr(plan, "DATA_SETS", (frequent,))
    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go("--only", "baseline")
    monkeypatch.setattr(train, "evaluate", evaluate)
    assert not Path("results.csv").exists()
    go("--only", "baseline")
    assert ["--resume" in words for program, words in project if program == "train.py"] == [False, True]
    assert list(results()) == ["tiny/baseline/seed0"]

    for path in Path("checkpoints").iterdir():  # as on another machine, where it is interrupted, too
        path.unlink()
    project.clear()
    seen.clear()
    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go("--only", "oneshot0.5/")
    monkeypatch.setattr(train, "evaluate", evaluate)
    assert Path(weights_of("tiny/baseline/seed0")).exists()
    go("--only", "/oneshot0.5/")
    programs = [(program, "--resume" in words) for program, words in project if program != "test.py"]
    assert programs == [("train.py", False), ("train.py", True), ("test_prune.py", False)]


def test_only_takes_what_is_needed_too_and_a_list_runs_nothing(project, capsys):
    go("--list", "--only", "slimming")
    text = capsys.readouterr().out
    assert "4 runs" in text
    assert "tiny/control_slimming0.5/seed0" in text
    assert not project
    with pytest.raises(InputError, match="no run has such an id"):
        go("--only", "nothing")
    with pytest.raises(InputError, match="NAME out of tiny"):
        go("--data", "hands=x.data")


def test_a_failure_is_told_and_stops_only_what_needs_it(project):
    with pytest.raises(InputError, match=r"1 of 1 runs are not done; the first: tiny/plain/seed0: .*nowhere.data"):
        go("--only", "plain", "--data", "tiny=nowhere.data")
    Path("config/yolov3-hand.cfg").write_text("[net]\n")
    with pytest.raises(InputError, match=r"the first: tiny/baseline/seed0"):
        go("--only", "continued")
    assert [program for program, _ in project] == ["studies/plain_recipe.py", "train.py"]


def test_a_program_that_fails_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    (tmp_path / "broken.py").write_text("import sys\nprint('one')\nsys.exit('it is broken')\n")
    with pytest.raises(InputError, match=r"broken.py ended with status 1: it is broken"):
        runner.call("broken.py", "--word", log=tmp_path / "logs/a.log")
    assert f"$ {sys.executable}" in (tmp_path / "logs/a.log").read_text()


def test_a_study_that_is_asked_to_stop_leaves_no_run_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    (tmp_path / "long.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped, too'))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        runner.call("long.py", log=tmp_path / "log")
    assert (tmp_path / "log").read_text().endswith("stopped, too\n")


def test_fine_tuning_costs_what_sparse_training_did_too_and_a_baseline_nothing_beside_itself():
    alike = {"data": "hands", "seed": "0", "target_macs": "0.1"}
    rows = [alike | {"stage": stage, "cost": cost} for stage, cost in (("sparse", "31"), ("control_slimming", "0.7"))]
    rows += [alike | {"stage": "final", "cost": "38"}, {"stage": "baseline", "cost": "40"}]
    assert [tables.whole_cost(row, rows[:3]) for row in rows] == [31, 31.7, 38, 0]


def test_a_spread_needs_several_seeds():
    assert tables.spread([0.5]) == "0.5000"
    assert tables.spread([0.5, 0.7, np.nan], 2) == "0.60 ± 0.14"
    assert tables.spread([np.nan]) == ""


def test_rows_with_new_columns_are_added_to_the_old_ones(tmp_path):
    kept = runner.Results(tmp_path / "results.csv")
    kept.add({"id": "a", "mAP": 0.5})
    kept.add({"id": "b", "macs": 7})
    assert [dict(row) for row in kept.rows()] == [
        {"id": "a", "mAP": "0.5", "macs": ""},
        {"id": "b", "mAP": "", "macs": "7"},
    ]
    assert kept.done() == {"a", "b"}
    write_csv(tmp_path / "empty.csv", [])
