import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from models import Darknet
from tests.networks import uneven
from tests.scene import dataset_of, make_project
from utils import distributed
from utils.data.data_config import read_data_config
from utils.data.loader import loader
from utils.detection.checkpoints import load_state, read_checkpoint, save_checkpoint
from utils.detection.evaluate import evaluate
from utils.errors import InputError
from utils.training.options import check_options

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests/two_processes.py"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, train=12, valid=5)


def torchrun(*words, processes=2):
    """The outcome of a program in several processes, with a limit that only a hang can reach."""
    # Behind -- torchrun takes no option for its own: it would find --s ambiguous.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=environment, timeout=240)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_two_processes_take_the_steps_of_one_that_accumulates_their_halves(project, monkeypatch):
    options = ["--epochs", "1", "--n_cpu", "0", "--mosaic", "0", "-sr", "--s", "0.1", "--force"]
    outcome = torchrun(ROOT / "train.py", *options, "--batch_size", "4", "--name", "two", "--cache", "ram")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("--cache ram: 17 of 17 images") == 1  # both map the same file
    assert outcome.stdout.count("| train | 12 ") == 1  # one process speaks
    assert outcome.stdout.count("runs/two/report.html") == 1  # and writes
    assert "5 validation images" in Path("runs/two/report.html").read_text()
    monkeypatch.setattr(train, "plot_training", lambda rows, gammas, folder: None)
    monkeypatch.setattr(train, "report_training", lambda name: None)
    words = [*options, "--batch_size", "2", "--accumulate", "2", "--name", "one"]
    train.main(train.get_args_parser().parse_args(words))

    two, one = (read_checkpoint(f"checkpoints/{name}_last.pth") for name in ("two", "one"))
    assert two["step"] == one["step"] == 3
    for part in (lambda checkpoint: checkpoint["training"]["model"], lambda checkpoint: checkpoint["model"]):
        wanted = {name: value for name, value in part(one).items() if name.endswith(("weight", "bias"))}
        for name, value in wanted.items():
            torch.testing.assert_close(part(two)[name], value, rtol=0, atol=1e-5)
    start = Darknet("config/yolov3-hand.cfg")
    moved = [
        part(two)[name] - value for name, value in start.state_dict().items() if name.endswith("batch_norm_0.weight")
    ]
    assert moved[0].abs().max() > 1e-3  # three steps change more than the tolerance

    # Both evaluated the five images, each a part of them: what one process finds.
    model = Darknet("config/yolov3-hand.cfg")
    load_state(model, two["model"], "two")
    data = read_data_config("config/oxfordhand.data")
    batches = loader(dataset_of(data.images("valid"), 1, 64), 2, 0)
    metrics, _ = evaluate(model, batches, data.names)
    assert metrics.images == 5
    assert two["best_map"] == pytest.approx(metrics.mAP, abs=1e-6)


def test_two_processes_talk_and_a_resumed_run_of_theirs_ends_as_a_whole_one(project):
    save_checkpoint("start.pth", uneven(Darknet("config/yolov3-hand.cfg")))
    outcome = torchrun(PROGRAM, "talk_and_train")
    assert outcome.returncode == 0, outcome.stderr
    assert [line for line in outcome.stdout.splitlines() if "heard from" in line] == ["heard from 0"]
    assert outcome.stdout.count("interrupted") == 1
    assert outcome.stdout.count("dead channels cut out") >= 4
    whole, other = (torch.load(f"whole_{rank}.pth") for rank in (0, 1))
    for part in ("model", "ema"):
        assert_same(whole[part], other[part])
        for rank in (0, 1):
            assert_same(torch.load(f"parts_{rank}.pth")[part], whole[part])
    assert_same(read_checkpoint("checkpoints/parts_ckpt.pth")["model"], whole["ema"])


def test_what_two_processes_cut_is_what_the_first_one_chose(project):
    outcome = torchrun(PROGRAM, "cut")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("prunable channels cut") == 1
    first, second = (torch.load(f"cut_{rank}.pth") for rank in (0, 1))
    for part in ("model", "ema"):
        assert_same(first[part], second[part])
    before, after = (read_checkpoint(f"checkpoints/cut_{kind}.pth")["model"] for kind in ("before_cut", "ckpt"))
    assert sum(map(torch.numel, after.values())) < sum(map(torch.numel, before.values())) / 2


def test_a_signal_in_one_process_stops_all_between_their_batches(project):
    outcome = torchrun(PROGRAM, "stop")
    assert outcome.returncode == 0, outcome.stderr
    assert "all [[0, 1, 2, 3, 4]]" in outcome.stdout
    # After the last batch of both there is nothing left to stop.
    assert [line for line in outcome.stdout.splitlines() if line.startswith("stopped")] == [
        "stopped [(3, 143), (3, 143)]"
    ]


def test_each_process_decodes_its_share_of_the_images(project):
    outcome = torchrun(PROGRAM, "check")
    assert outcome.returncode == 0, outcome.stderr
    assert "decoded [6, 6]" in outcome.stdout
    assert "boxes [12, 12]" in outcome.stdout


def test_machines_meet_though_one_has_its_cache_already(project):
    outcome = torchrun(PROGRAM, "cache")
    assert outcome.returncode == 0, outcome.stderr
    assert "cached [1, 1]" in outcome.stdout


def test_an_error_in_one_process_ends_all(project):
    start = time.perf_counter()
    outcome = torchrun(PROGRAM, "fail")
    assert outcome.returncode != 0
    assert time.perf_counter() - start < 120  # the process that waits would wait for half an hour
    assert "[InputError: process 0 says no]" in outcome.stderr
    assert "[SystemExit: 2]" in outcome.stderr
    assert "process 1 cannot go on" in outcome.stderr
    assert "by peer" not in outcome.stderr  # what the other process only notices is no news


def test_batch_norm_of_all_processes_is_refused_on_the_cpu(project):
    with pytest.raises(InputError, match="--sync_bn works on GPUs only"):
        train.main(train.get_args_parser().parse_args(["--sync_bn", "--epochs", "1", "--device", "cpu"]))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    args = train.get_args_parser().parse_args(["--batch_size", "16", "--name", "mine"])
    with pytest.raises(InputError, match="--batch_size 16 is shared by 3 processes"):
        check_options(args)
    args.batch_size = 18
    check_options(args)


def test_one_process_talks_to_itself():
    with distributed.processes():
        assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
        assert distributed.from_main(lambda: 5) == 5
        assert distributed.gather("a") == ["a"]
        assert distributed.total([1, 2]) == [1, 2]
        tensor = torch.ones(2)
        distributed.average_([tensor])
        assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize("count", [0, 1, 5, 8, 13])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_make_the_whole_in_order(count, world):
    shares = [distributed.share(count, rank, world) for rank in range(world)]
    assert [thing for own in shares for thing in own] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "gpus", "expected"),
    [
        ({"RANK": "11", "LOCAL_RANK": "3"}, 8, 3),
        ({"RANK": "11"}, 8, 3),  # started by hand, eight on each machine
        ({"RANK": "5", "SLURM_LOCALID": "1"}, 4, 1),
        ({"RANK": "5", "SLURM_LOCALID": "1"}, 1, 0),  # srun --gpus-per-task=1
        ({"RANK": "1", "LOCAL_RANK": "1"}, 1, 0),
    ],
)
def test_each_process_takes_its_gpu(environment, gpus, expected):
    assert distributed.local_gpu(environment, gpus) == expected


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(InputError, match="process 3 on this machine, which has 2 GPUs: lower --nproc_per_node"):
        distributed.local_gpu({"RANK": "2", "LOCAL_RANK": "2"}, 2)
    with pytest.raises(InputError, match="process 2 on this machine, which has 1 GPUs"):
        distributed.local_gpu({"RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}, 1)


def test_a_world_size_alone_says_what_is_missing(monkeypatch):
    for name in distributed.RENDEZVOUS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"), distributed.processes():
        pass


@pytest.mark.parametrize(
    "message",
    [
        "Connection closed by peer [127.0.0.1]:29500",
        "NCCL error in: ProcessGroupNCCL.cpp:2, remote process exited or there was a network error, NCCL version 2.27",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_a_lost_process_is_known_by_its_message(message):
    assert distributed.LOST.search(message)
    assert not distributed.LOST.search("ncclInvalidUsage: Duplicate GPU detected")
