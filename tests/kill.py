"""Kills training and pruning at random moments, and goes on: nothing may be lost.

    python tests/kill.py                          40 trainings and 20 prunings; make test-kill

Each is killed with SIGKILL, up to three times, and started again (train.py with --resume where there is a checkpoint)
until it ends by itself. After every kill each file must be readable, and a training must have kept all epochs that were
logged but for those since the last checkpoint that was due. At the end weights, log and cfg must be those of a run that
was never killed, bit for bit.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as `python tests/kill.py`: the repository root is not on the path yet
    sys.path.insert(0, str(ROOT))

import test_prune
import train
from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from tests.scene import make_project
from utils.cli import ArgumentParser, number, run
from utils.darknet.cfg import format_cfg, read_cfg
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.training.runs import Run

EPOCHS, INTERVAL, STEPS = 4, 2, 2
KILLS = 3  # at most, of one training or pruning
TRAIN = [
    *("--name", "run", "--epochs", str(EPOCHS), "--batch_size", "2", "--n_cpu", "0", "--accumulate", "2", "-sr"),
    *("--checkpoint_interval", str(INTERVAL), "--checkpoint_steps", str(STEPS)),
]
PRUNE = ["--percent", "0.5", "--force", "--n_cpu", "0", "--weights_path", "checkpoints/sparse.pth"]


def start(program: object, words: list[str], folder: Path) -> int:
    """Start a program in ``folder``, in a process of its own that has the imports already; the process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.chdir(folder)
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [program.__name__, *words]
        run(program.get_args_parser(), program.main)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(process: int | None, seconds: float = float("inf")) -> bool:
    """Whether the program ended within ``seconds``; if not, it is killed. None is one that had ended before.

    Raises:
        InputError: it ended by itself, but not well.
    """
    if process is None:
        return True
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if status:
                raise InputError(f"the program ended with status {os.waitstatus_to_exitcode(status)}")
            return True
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def train_again(folder: Path) -> int | None:
    """Start or resume the training; None where it was killed when all was written."""
    run_files = Run("run", folder)
    if run_files.last.exists() and not run_files.unfinished():
        return None
    return start(train, [*TRAIN, *(["--resume"] if run_files.last.exists() else [])], folder)


def prune_again(folder: Path) -> int:
    """Start the pruning."""
    return start(test_prune, PRUNE, folder)


def read_any(path: Path) -> None:
    """Read a file by its kind; whatever is wrong with it is an exception."""
    if path.suffix == ".pth":
        read_checkpoint(path)
    elif path.suffix == ".cfg":
        read_cfg(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".csv":
        read_log(path)
    elif path.suffix == ".npz":
        with np.load(path) as content:
            [content[name] for name in content.files]
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log without their times."""
    with open(path, newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row of another length than the header")
    return rows


def check_files(folder: Path) -> None:
    """Every file that a program left can be read, and no epoch is lost that should be kept."""
    for path in folder.rglob("*"):
        if path.is_file() and ".tmp." not in path.name:
            try:
                read_any(path)
            except Exception as error:
                raise InputError(f"{path} cannot be read: {error}") from error
    run_files = Run("run", folder)
    if (log := run_files.folder / "log.csv").exists():
        logged = len(read_log(log))
        kept = read_checkpoint(run_files.last)["epoch"] if run_files.last.exists() else 0
        if kept < (logged - 1) // INTERVAL * INTERVAL:  # the row of an epoch is there before its checkpoint
            raise InputError(f"{run_files.last} is of epoch {kept}, but {logged} epochs are logged")


def outcome(folder: Path) -> dict[str, object]:
    """What must be the same in the end, whatever happened on the way."""
    found: dict[str, object] = {}
    for path in (path for path in (folder / "checkpoints").glob("*.pth") if not path.name.startswith(".")):
        checkpoint = read_checkpoint(path)
        found[path.name] = {key: checkpoint.get(key) for key in ("model", "training", "epoch", "step", "best_map")}
    for path in (folder / "config").glob("prune_*.cfg"):  # a temporary file's name begins with a dot
        found[path.name] = path.read_bytes()
    if (log := folder / "runs/run/log.csv").exists():
        found["log"] = read_log(log)
    return found


def differences(first: object, second: object, where: str = "") -> list[str]:
    """Where two outcomes differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in {**first, **second} if key not in first or key not in second]
        inner = [differences(first[key], second[key], f"{where}/{key}") for key in first if key in second]
        return [f"{where}/{key}" for key in keys] + [place for places in inner for place in places]
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    return [] if first == second else [where]


def trial(
    folder: Path,
    go: Callable[[Path], int | None],
    wanted: dict[str, object],
    seconds: float,
    random: np.random.Generator,
) -> int:
    """Kill a program up to KILLS times, let it end, and compare; how often it was killed.

    Raises:
        InputError: a file cannot be read, an epoch is lost, or the outcome is another.
    """
    kills = 0
    for _ in range(int(random.integers(1, KILLS + 1))):
        if wait(go(folder), random.uniform(0.05, 1) * seconds):
            break
        kills += 1
        check_files(folder)
    else:
        wait(go(folder))
    check_files(folder)
    # What an earlier start had written is kept under numbered names, and is not the outcome.
    found = {name: value for name, value in outcome(folder).items() if name in wanted}
    if places := differences(wanted, found):
        raise InputError(f"after {kills} kill(s) the outcome differs at {', '.join(places[:5])}")
    return kills


def make_folders(folder: Path) -> tuple[Path, Path]:
    """A project to train in, and one to prune in, with the smallest networks that are still networks."""
    for name in ("train", "prune"):
        (folder / name).mkdir()
        make_project(folder / name, train=8, valid=2, size=32)
        cfg = folder / name / "config/yolov3-hand.cfg"
        cfg.write_text(format_cfg(create_cfg("v3-tiny", 1, 32, width=0.05)))
    model = randomize(Darknet(str(folder / "prune/config/yolov3-hand.cfg")))
    save_checkpoint(folder / "prune/checkpoints/sparse.pth", model, names=["hand"], img_size=32)
    return folder / "train", folder / "prune"


def get_args_parser() -> argparse.ArgumentParser:
    """The options of this program."""
    parser = ArgumentParser("Kill training and pruning at random moments, and go on.")
    parser.add_argument("--training", type=number(int, 0), default=40, help="trainings to kill")
    parser.add_argument("--pruning", type=number(int, 0), default=20, help="prunings to kill")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="folder to keep the files of a trial that failed in")
    return parser


def main(args: argparse.Namespace) -> None:
    """Kill, go on, compare, and say how often."""
    torch.set_num_threads(1)
    random = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        projects = make_folders(Path(name))
        for what, count, go, project in zip(
            ("training", "pruning"), (args.training, args.pruning), (train_again, prune_again), projects, strict=True
        ):
            if not count:
                continue
            reference = Path(name, f"{what}-reference")
            shutil.copytree(project, reference)
            began = time.monotonic()
            wait(go(reference))
            seconds = time.monotonic() - began
            wanted, kills = outcome(reference), 0
            for k in tqdm(range(count), what, leave=False):
                folder = Path(name, f"{what}-{k}")
                shutil.copytree(project, folder)
                try:
                    kills += trial(folder, go, wanted, seconds, random)
                except InputError as error:
                    kept = shutil.copytree(folder, args.keep / folder.name) if args.keep else None
                    raise InputError(f"{what} {k}: {error}" + (f" (kept in {kept})" if kept else "")) from error
                shutil.rmtree(folder)
            print(
                f"{what}: {count} runs, {kills} kills, every file readable, every outcome that of a run without kills"
            )


if __name__ == "__main__":
    run(get_args_parser(), main)
