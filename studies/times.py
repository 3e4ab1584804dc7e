"""The milliseconds of a study's networks: measured in runtimes, kept in the rows of its CSV, and where to draw them."""

import argparse
import time
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.plan import Job, weights_of
from studies.runner import Results
from studies.tables import Row
from utils.cli import number
from utils.detection.checkpoints import load_darknet
from utils.pruning.graph_timer.runners import RUNNERS
from utils.pruning.latency import network_times

COLUMNS = 2  # of panels in a plot: by default one thread and two


def add_times_options(parser: argparse.ArgumentParser) -> None:
    """The options for :func:`add_times`."""
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNNERS, default=["onnx", "openvino", "ncnn"], help="to time in"
    )
    parser.add_argument("--threads", nargs="+", type=number(int, 1), default=[1, 2], help="of the runtimes")
    parser.add_argument(
        "--times",
        action="store_true",
        help="then measure the milliseconds of all networks, on a machine without other work",
    )


def add_times(jobs: Sequence[Job], results: Results, runtimes: Sequence[str], threads: Sequence[int]) -> None:
    """Measure networks of one data set in each runtime, in turns, and add their milliseconds to their rows."""
    models = [load_darknet(weights_of(job.id), None)[0].eval() for job in jobs]
    rows = {row["id"]: dict(row) for row in results.rows()}
    for runtime in runtimes:
        for count in threads:
            print(f"{time.strftime('%H:%M')} {len(jobs)} networks in {in_words(runtime, str(count))}", flush=True)
            measured = network_times(models, jobs[0].data.img_size, runtime, count)
            for job, milliseconds in zip(jobs, measured, strict=True):
                rows[job.id][f"ms_{runtime}_{count}"] = f"{milliseconds:.4f}"
    for job in jobs:
        results.add(rows[job.id])


def time_columns(rows: Sequence[Row]) -> list[str]:
    """The columns with milliseconds."""
    return [name for name in rows[0] if name.startswith("ms_") and any(row[name] for row in rows)]


def column_in_words(name: str) -> str:
    """What a column of :func:`time_columns` holds."""
    _, runtime, threads = name.split("_")
    return in_words(runtime, threads)


def in_words(runtime: str, threads: str) -> str:
    """A runtime and a number of threads."""
    return f"{runtime}, {threads} thread{'s' if threads != '1' else ''}"


def grid(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, COLUMNS in a row."""
    rows = -(-panels // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]
