"""Runs the jobs of a plan: each is one of our programs in a process of its own, and ends in a row of a CSV."""

import csv
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terminaltables import AsciiTable

from config.networks import scale_width
from studies.plan import Job, cfg_of, run_name, weights_of
from utils.darknet.cfg import format_cfg, read_cfg
from utils.darknet.spec import parse_network
from utils.detection.checkpoints import git_revision, read_checkpoint
from utils.detection.metrics import QUALITY
from utils.errors import InputError
from utils.files import write_csv, write_text
from utils.signals import StopRequest
from utils.training.config import epochs_before_cut
from utils.training.recipes import TEACHER_COST
from utils.training.runs import Run

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
WIDTH_STEP = 0.0005  # the search for the width of the narrow network ends when it is known to this


class Results:
    """The CSV: a row per job, by its id."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, str]]:
        """All rows so far, as text."""
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def done(self) -> set[str]:
        """The ids of the jobs that have rows."""
        return {row["id"] for row in self.rows()}

    def add(self, row: dict[str, Any]) -> None:
        """Add the row of a job, in place of the one that it had; the file is read again: it may have got others."""
        write_csv(self.path, [*(other for other in self.rows() if other["id"] != row["id"]), row])


def selected(everything: list[Job], only: re.Pattern | None) -> list[Job]:
    """The jobs whose id ``only`` finds, and those that they need, in their order."""
    if only is None:
        return everything
    wanted = {job.id for job in everything if only.search(job.id)}
    if not wanted:
        raise InputError(f"--only {only.pattern}: no run has such an id; --list shows them")
    for job in reversed(everything):
        if job.id in wanted:
            wanted |= set(job.needs)
    return [job for job in everything if job.id in wanted]


def to_do(chosen: list[Job], done: set[str]) -> list[Job]:
    """The jobs without a row, and those of which one of them needs files that are gone, as on another machine.

    A training that was interrupted has files, but not yet those that others need.
    """
    ids: set[str] = set()
    for job in reversed(chosen):
        if job.id not in done or job.id in ids:
            ids |= {job.id, *(need for need in job.needs if not has_ended(need))}
    return [job for job in chosen if job.id in ids]


def has_ended(job_id: str) -> bool:
    """Whether the files of a job are there, and not those of a training that was interrupted."""
    return Path(weights_of(job_id)).exists() and Run(run_name(job_id)).is_finished()


def listing(chosen: list[Job], todo: list[Job], done: set[str]) -> str:
    """A table of the runs, and about how long those to do take."""
    rows = [["id", "stage", "epochs", "hours", "state"]]
    for job in chosen:
        state = "begun" if Run(run_name(job.id)).last.exists() else "again" if job.id in done else ""
        rows.append(
            [job.id, job.stage, job.epochs or "", f"{job.seconds / 3600:.2f}", state if job in todo else "done"]
        )
    hours = sum(job.seconds for job in todo) / 3600
    return f"{AsciiTable(rows).table}\n{len(chosen)} runs, about {hours:.1f} hours on one core to do"


def run_all(
    chosen: list[Job], todo: list[Job], results: Results, measure: Callable[[Job], dict[str, Any]] | None = None
) -> None:
    """Run the jobs ``todo`` of those that were ``chosen``, and add their rows to the CSV.

    Args:
        chosen, todo: of :func:`selected` and :func:`to_do`.
        results: the CSV.
        measure: runs a job and returns its row; default: :func:`row_of`.

    Raises:
        InputError: one has failed; all others were run, but for those that need it.
    """
    failed: dict[str, str] = {}
    for number, job in enumerate(todo, start=1):
        if missing := [need for need in job.needs if need in failed]:
            failed[job.id] = f"needs {missing[0]}"
            continue
        print(f"{time.strftime('%H:%M')} {number}/{len(todo)} {job.id}", flush=True)
        try:
            results.add((measure or row_of)(job))
        except InputError as error:
            failed[job.id] = str(error)
            print(f"  failed: {error}", flush=True)
    if failed:
        first = next(iter(failed))
        raise InputError(f"{len(failed)} of {len(chosen)} runs are not done; the first: {first}: {failed[first]}")
    print(f"{results.path}: all {len(chosen)} runs are done")


def row_of(job: Job) -> dict[str, Any]:
    """Run a job to its end; its row of the CSV."""
    began = time.time()
    log = Path("output/study") / f"{run_name(job.id)}.log"
    with tempfile.TemporaryDirectory() as folder:
        if job.epochs:
            if job.stage.startswith("control_narrow"):
                write_narrow_cfg(job)
            train(job, log)
        else:
            files = ("--out_cfg", cfg_of(job.id), "--out_weights", weights_of(job.id))
            call(job.program, *job.options, *files, log=log)
        measured = evaluate(job, Path(folder), log)
        if job.epochs:
            measured |= training_figures(job)
            measured["cost"] = round(cost(job, measured), 1)
    row = {"id": job.id, "stage": job.stage, "data": job.data.name, "seed": job.seed, "target_macs": job.target_macs}
    row |= {"img_size": job.data.img_size, "model_def": job.data.model_def, "revision": git_revision()}
    return row | {"minutes": round((time.time() - began) / 60, 2)} | measured


def write_narrow_cfg(job: Job) -> None:
    """Write the cfg of the data set's network with all layers narrower by one factor, the widest within the budget."""
    net, *layers = read_cfg(job.data.model_def)
    size = (job.data.img_size, job.data.img_size)
    most = (job.target_macs or 1.0) * parse_network([net, *layers], size).macs
    narrow, wide = 0.0, 1.0
    while wide - narrow > WIDTH_STEP:
        middle = (narrow + wide) / 2
        within = parse_network([net, *scale_width(layers, middle)], size).macs <= most
        narrow, wide = (middle, wide) if within else (narrow, middle)
    write_text(Path(job.model_def), format_cfg([net, *scale_width(layers, narrow)]))


def train(job: Job, log: Path) -> None:
    """Train to the last epoch, from where an earlier start stopped.

    What was trained for other epochs is kept aside where it is finished, and given up where it is not.
    """
    files = Run(run_name(job.id))
    unfinished = files.unfinished()
    goes_on = files.last.exists() and read_checkpoint(files.last)["options"]["epochs"] == job.epochs
    if goes_on and not unfinished:
        return
    start = ["--resume" if goes_on else "--overwrite"] if unfinished else []
    call(job.program, *job.options, "--name", files.name, *start, log=log)


def evaluate(job: Job, folder: Path, log: Path) -> dict[str, Any]:
    """What test.py finds for the checkpoint to use."""
    weights, output = weights_of(job.id), folder / "test.json"
    options = ["--data_config", job.data.data_config, "--img_size", str(job.data.img_size)]
    call("test.py", "--weights_path", weights, *options, "--json", str(output), log=log)
    report = json.loads(output.read_text())
    return {name: report[name] for name in (*QUALITY, "parameters", "macs")}


def training_figures(job: Job) -> dict[str, Any]:
    """What the log of a training says: of its last epoch, whatever epoch was the best, and of all epochs."""
    with open(Run(run_name(job.id)).folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    end_of_warmup = max(range(len(rows)), key=lambda epoch: float(rows[epoch].get("lr", 0)))
    evaluated = [float(row["mAP"]) for row in rows[end_of_warmup + 1 :] or rows[-1:] if row["mAP"]]
    figures = {f"{name}_last": rows[-1][name] for name in ("mAP", "mAP_50_95")}
    figures |= {"mAP_least": f"{min(evaluated):.4f}", "epochs": len(rows)}
    return figures | {"seconds_per_epoch": f"{statistics.median(float(row['seconds']) for row in rows):.2f}"}


def cost(job: Job, measured: dict[str, Any]) -> float:
    """What a training costs, in epochs of the data set's whole network, by MACs."""
    if job.stage == "sparse":  # what is measured is smaller than what was trained
        return measured["epochs"]
    whole = parse_network(read_cfg(job.data.model_def), job.data.img_size).macs
    share = measured["macs"] / whole
    before = epochs_before_cut(job.epochs) if job.stage == "final_from_random" else 0
    return before + (measured["epochs"] - before) * (share + TEACHER_COST * ("--distill" in job.options))


def call(program: str, *words: str, log: Path) -> None:
    """Run one of our programs; what it prints is added to ``log``.

    Raises:
        InputError: it failed; the message is its last line.
        Stopped: the study was asked to stop, and the program has done so, too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / program), *words]
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        with (
            StopRequest("the run that is at work stops, too") as stop,
            subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as child,
        ):
            status = wait_for(child, stop)
    stop.check()
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
        raise InputError(f"{program} ended with status {status}: {lines[-1].strip()} ({log})")


def wait_for(child: subprocess.Popen, stop: StopRequest) -> int:
    """The exit status of a process, which a SIGTERM is passed on to; Ctrl-C in a terminal reaches it by itself."""
    passed_on = False
    while (status := child.poll()) is None:
        if stop.received == signal.SIGTERM and not passed_on:
            child.terminate()
            passed_on = True
        time.sleep(POLL_SECONDS)
    return status
