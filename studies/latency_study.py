"""Cuts by the milliseconds of a runtime, against cuts by one threshold: how well tables predict, and what mAP is left.

From the baseline of studies/study.py, networks are cut by one threshold over all channels to shares of the MACs, and by
the table of each runtime to shares of the milliseconds of one thread. All are fine-tuned alike; --times then measures
all networks in turns. Every run ends in a row of the CSV; start the same command again after an interruption.

    python studies/latency_study.py --data hands=my.data
    python studies/latency_study.py --only predict --runtimes onnx openvino ncnn --threads 1 2
"""

import argparse
import copy
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as `python studies/latency_study.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from matplotlib.figure import Figure

from models import Darknet
from studies.plan import DATA_SETS, DataSet, Job, Ways, add_data_option, data_sets, weights_of
from studies.runner import Results, listing, row_of, run_all, selected, to_do
from studies.tables import METRICS, Row, last_epoch, markdown
from studies.times import add_times, add_times_options, column_in_words, grid, in_words, time_columns
from utils.cli import ArgumentParser, number, run
from utils.detection.checkpoints import git_revision, load_darknet
from utils.files import write_text
from utils.plots import save_figure
from utils.pruning.graph_timer.measure import describe_device
from utils.pruning.latency import measured_table, network_times
from utils.pruning.pruner import Pruner

THRESHOLD = "threshold"
SHARES_OF_MACS, SHARES_OF_MS = (0.5, 0.3, 0.2, 0.1), (0.5, 0.33, 0.25, 0.2)
PREDICTIONS = 20  # random prunings that a table must predict
TOLERANCE = 0.1  # of a prediction
STAGES = {"baseline": "baseline", "oneshot": "before fine-tuning", "control_oneshot": "after fine-tuning"}
TITLE = """# Cuts by milliseconds

Written by studies/latency_study.py out of its CSV. The share is that of the MACs where the order is a threshold, else
of the milliseconds that the baseline takes in one thread of the runtime.
"""


def get_args_parser() -> argparse.ArgumentParser:
    """The options of latency_study.py."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--data_set", choices=[data.name for data in DATA_SETS], default="hands", help="of the plan")
    parser.add_argument("--epochs", type=number(int, 1), help="of fine-tuning; default: those of the plan")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the baseline and of fine-tuning")
    parser.add_argument("--only", type=re.compile, help="only runs whose id this regular expression finds")
    add_times_options(parser)
    parser.add_argument("--list", action="store_true", help="only list the runs and the hours")
    parser.add_argument("--results", type=Path, default=Path("studies/latency.csv"), help="the CSV to add to")
    parser.add_argument("--output", type=Path, default=Path("docs/study"), help="folder for plots and tables")
    add_data_option(parser)
    return parser


@dataclass(frozen=True)
class Cuts(Ways):
    """The ways of one order of pruning to one budget; ``target_macs`` is the share of the MACs or milliseconds.

    Attributes:
        order: THRESHOLD, or the runtime whose table says what channels cost.
    """

    order: str = THRESHOLD

    def jobs(self) -> Iterator[Job]:
        """The baseline, the cut, and its fine-tuning."""
        yield self._train("baseline", self.data.baseline, whole=True)
        by_magnitude = ("--importance", "magnitude", "--strategy", "slim")
        cost = ("--cost", "uniform") if self.order == THRESHOLD else ()
        yield self._prune("oneshot", "baseline", *by_magnitude, *cost)
        yield self._train("control_oneshot", self.data.more, start="oneshot", share=self.target_macs)

    def _budget(self) -> tuple[str, str]:
        if self.order == THRESHOLD:
            return super()._budget()
        return "--runtime", self.order  # the milliseconds are known when it is run

    def _id(self, stage: str) -> str:
        if stage == "baseline":
            return super()._id(stage)
        return f"{self.data.name}_latency/{self.order}/{stage}{self.target_macs:g}/seed{self.seed}"


def all_jobs(data: DataSet, runtimes: Sequence[str], threads: Sequence[int], seed: int) -> list[Job]:
    """The runs of the study, each once, those that others need first."""
    by_id: dict[str, Job] = {}
    for order in (THRESHOLD, *runtimes):
        for share in SHARES_OF_MACS if order == THRESHOLD else SHARES_OF_MS:
            by_id |= {job.id: job for job in Cuts(data, seed, share, order=order).jobs()}
    baseline = next(iter(by_id.values()))
    for runtime in runtimes:
        for count in threads:
            job_id = f"{data.name}_latency/predict/{runtime}/{count}/seed{seed}"
            words = {"program": runtime, "options": (str(count),), "needs": (baseline.id,)}
            by_id[job_id] = replace(baseline, id=job_id, stage="predict", epochs=0, seconds=180, **words)
    return list(by_id.values())


def main(args: argparse.Namespace) -> None:
    """Run what is not done, in order, and draw what there is."""
    data = next(data for data in data_sets(args.data) if data.name == args.data_set)
    data = replace(data, more=args.epochs or data.more)
    chosen = selected(all_jobs(data, args.runtimes, args.threads, args.seed), args.only)
    results = Results(args.results)
    todo = to_do(chosen, results.done())
    if args.list:
        print(listing(chosen, todo, results.done()))
        return
    run_all(chosen, todo, results, measure)
    if args.times:
        networks = [job for job in all_jobs(data, args.runtimes, args.threads, args.seed) if job.stage != "predict"]
        add_times([job for job in networks if job.id in results.done()], results, args.runtimes, args.threads)
    draw([row for row in results.rows() if row["data"] == data.name], args.output, data.name)
    print(f"{args.output}: plots and latency_{data.name}.md")


def measure(job: Job) -> dict[str, Any]:
    """Run a job; its row."""
    return predictions(job) if job.stage == "predict" else measured(job)


def measured(job: Job) -> dict[str, Any]:
    """Cut or train a network; its row."""
    share = job.target_macs
    if "--runtime" in job.options:
        spec = baseline_of(job).spec.at(job.data.img_size)
        milliseconds = measured_table(spec, order_of(job)).predict(spec) * (share or 1.0)
        job = replace(job, options=(*job.options, "--target_ms", f"{milliseconds:.4f}"))
    return row_of(job) | {"order": order_of(job), "device": describe_device()}


def order_of(job: Job) -> str:
    """The order of pruning of a job; of the baseline, none."""
    return job.id.split("/")[1] if job.stage != "baseline" else ""


def baseline_of(job: Job) -> Darknet:
    """The network that a job begins with, in eval mode."""
    return load_darknet(weights_of(job.needs[0]), None)[0].eval()


def predictions(job: Job) -> dict[str, Any]:
    """Measure random prunings, half of them as the table cuts and half by a threshold, and predict their times."""
    began, runtime, threads = time.time(), job.program, int(job.options[0])
    baseline, size = baseline_of(job), job.data.img_size
    table = measured_table(baseline.spec.at(size), runtime, threads)
    random = np.random.default_rng(job.seed)
    networks = []
    for position in range(PREDICTIONS):
        model = with_random_gammas(baseline, random)
        costs = table if position % 2 else None
        pruner = Pruner(model, "slim", round_to=table.group, costs=costs)
        networks.append(pruner.at(random.uniform(0.1, 0.95)).pruned.model)
    milliseconds = network_times(networks, size, runtime, threads)
    predicted = [table.predict(network.spec) for network in networks]
    errors = np.array(predicted) / milliseconds - 1
    print(f"  {table.title}: {errors_in_words(errors)}", flush=True)
    row = {"id": job.id, "stage": job.stage, "data": job.data.name, "seed": job.seed, "revision": git_revision()}
    row |= {"minutes": round((time.time() - began) / 60, 2), "order": runtime, "device": describe_device()}
    numbers = {"predicted_ms": predicted, "measured_ms": milliseconds}
    return row | {name: " ".join(f"{value:.4g}" for value in values) for name, values in numbers.items()}


def with_random_gammas(model: Darknet, random: np.random.Generator) -> Darknet:
    """A copy in which layers, and channels within them, have random importance."""
    changed = copy.deepcopy(model)
    for norm in changed.batch_norms.values():
        values = random.lognormal(sigma=0.7) * random.uniform(0.01, 1, len(norm.weight))
        norm.weight.data = torch.from_numpy(values).to(norm.weight)
    return changed


def errors_in_words(errors: np.ndarray) -> str:
    """The range of relative errors, and how many are small."""
    within = int((abs(errors) <= TOLERANCE).sum())
    return f"{errors.min():+.0%} to {errors.max():+.0%}, {within} of {len(errors)} within {TOLERANCE:.0%}"


def draw(rows: Sequence[Row], output: Path, name: str) -> None:
    """Draw the predictions and curves of the data set ``name``, as far as they are measured, and write its table."""
    if predicted := [row for row in rows if row["stage"] == "predict"]:
        save_figure(predictions_figure(predicted), output / f"latency_{name}_predictions.png")
    if networks := [row for row in rows if row["stage"] != "predict"]:
        write_text(output / f"latency_{name}.md", f"{TITLE}\n{networks_table(networks)}\n")
        for metric in METRICS if time_columns(networks) else ():
            save_figure(curves_figure(networks, metric), output / f"latency_{name}_{metric}.png")


def predictions_figure(rows: Sequence[Row]) -> Figure:
    """Predicted against measured milliseconds, a panel for each runtime and number of threads."""
    figure, panels = grid(len(rows))
    for axes, row in zip(panels, rows, strict=True):
        measured_ms, predicted = (np.array(row[name].split(), float) for name in ("measured_ms", "predicted_ms"))
        ends = np.array([0, 1.05 * max(measured_ms.max(), predicted.max())])
        axes.plot(ends, ends, color="grey", lw=1)
        axes.fill_between(ends, (1 - TOLERANCE) * ends, (1 + TOLERANCE) * ends, color="grey", alpha=0.2, lw=0)
        for first, label, marker in ((0, "by threshold", "o"), (1, "by the table", "s")):
            axes.plot(measured_ms[first::2], predicted[first::2], marker, ms=5, label=label)
        _, _, runtime, threads, _ = row["id"].split("/")
        axes.set(xlabel="measured ms", ylabel="predicted ms", xlim=ends, ylim=ends)
        axes.set_title(f"{in_words(runtime, threads)}\n{errors_in_words(predicted / measured_ms - 1)}", fontsize=10)
        axes.legend(frameon=False)
    return figure


def curves_figure(rows: Sequence[Row], metric: str) -> Figure:
    """A metric after fine-tuning against milliseconds, a panel for each runtime and number of threads: both orders."""
    names = time_columns(rows)
    figure, panels = grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        runtime = name.split("_")[1]
        for colour, order in enumerate((THRESHOLD, runtime)):
            tuned = [row for row in rows if row["stage"] == "control_oneshot" and row["order"] == order and row[name]]
            points = np.array(sorted((float(row[name]), last_epoch(row, metric)) for row in tuned)).reshape(-1, 2)
            label = "by one threshold" if order == THRESHOLD else "by its table"
            axes.plot(*points.T, color=f"C{colour}", marker="os"[colour], ms=5, label=label)
        for row in (row for row in rows if row["stage"] == "baseline"):
            axes.plot(float(row[name]), last_epoch(row, metric), "kD", ms=5, label="baseline")
        axes.set(xlabel="ms per image", ylabel=METRICS[metric], title=column_in_words(name), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure


def networks_table(rows: Sequence[Row]) -> str:
    """Size, quality and milliseconds of each network, as Markdown."""
    panels = time_columns(rows)
    head = ["order", "share", "", "MACs", *METRICS.values(), *map(column_in_words, panels)]
    most = max(float(row["macs"]) for row in rows)
    lines = []
    for row in rows:
        quality = [f"{last_epoch(row, metric):.4f}" for metric in METRICS]
        times = [f"{float(row[name]):.2f} ms" if row.get(name) else "" for name in panels]
        share = f"{float(row['target_macs']):.0%}" if row["target_macs"] else ""
        macs = f"{float(row['macs']) / most:.1%}"
        lines.append([row["order"], share, STAGES[row["stage"]], macs, *quality, *times])
    return markdown(head, lines)


if __name__ == "__main__":
    run(get_args_parser(), main)
