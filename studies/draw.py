"""Draws the study: plots and Markdown tables out of the CSV that studies/study.py writes.

- results.md: for each data set and budget, the recipe and its controls;
- {data}_quality.png: mAP against MACs, a point for each way, with its spread over seeds;
- {data}_latency.png: mAP@0.5:0.95 against milliseconds, where study.py has measured --times;
- {data}_detections.jpg, with --run: images before and after.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as `python studies/draw.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from studies.plan import STAGES, DataSet, add_data_option, data_sets, weights_of
from studies.tables import METRICS, Row, last_epoch, markdown, size_of, spread, whole_cost
from studies.times import column_in_words, grid, time_columns
from utils.cli import ArgumentParser, number, run
from utils.data.data_config import read_data_config
from utils.data.images import letterboxed, read_image
from utils.detection.detector import Detector, load_model
from utils.devices import pick_device
from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, write_text
from utils.plots import save_figure

LABELS = {
    "plain": "the older tools' recipe",
    "baseline": "baseline",
    "continued": "baseline, trained on",
    "final": "train.py -sr",
    "final_distilled": "train.py -sr --distill, for as many epochs",
    "final_from_random": "train.py -sr without a baseline, at equal cost",
    "oneshot": "one cut by magnitude, no training",
    "control_oneshot": "one cut by magnitude, trained plainly",
    "control_oneshot_equal_macs": "one cut by magnitude, trained plainly, at equal cost",
    "torch_pruning": "cut by Torch-Pruning, no training",
    "control_torch_pruning": "cut by Torch-Pruning, trained plainly",
    "control_scratch": "final architecture, from random weights",
    "control_scratch_equal_macs": "final architecture, from random weights, at equal cost",
    "control_narrow": "narrow network, from random weights",
    "control_narrow_equal_macs": "narrow network, from random weights, at equal cost",
    "control_narrow_own_cost": "narrow network, from random weights, at the recipe's own cost",
    "sparse": "sparse training",
    "pruned": "sparse training, pruned",
    "control_slimming": "sparse training, pruned, fine-tuned",
}
# What the plot leaves out: networks that are not small, or not trained after they were cut.
NOT_IN_THE_PLOT = ("plain", "sparse", "oneshot", "torch_pruning", "pruned")
# Of the ways in the plot.
COLORS = [*colormaps["tab10"].colors, *colormaps["Dark2"].colors]
MARKERS = "os^vDPX*<>dphH81234"
TITLE = """# Tables of the study

Written by studies/draw.py out of studies/results.csv. docs/results.md says what they show. Metrics are those of the
last epoch; the cost of training beside the baseline's is in epochs of the whole network, by MACs.
"""
CONFIDENCE = 0.25  # of the boxes that are drawn
SIDE = 320  # pixels of a drawn image's longer side


def get_args_parser() -> argparse.ArgumentParser:
    """The options of draw.py."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("studies/results.csv"), help="the CSV of study.py")
    parser.add_argument("--output", type=Path, default=Path("docs/study"), help="folder to write to")
    parser.add_argument("--run", help="id of a run of the CSV whose detections are drawn beside its baseline's")
    add_data_option(parser)
    parser.add_argument("--images", type=number(int, 1), default=4, help="how many of them")
    return parser


def main(args: argparse.Namespace) -> None:
    """Draw what there is."""
    if not args.results.exists():
        raise InputError(f"{args.results}: there is no such CSV; studies/study.py writes it")
    with open(args.results, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    text = [TITLE]
    for data in dict.fromkeys(row["data"] for row in rows):
        data_rows = [row for row in rows if row["data"] == data]
        for budget in sorted({row["target_macs"] for row in data_rows} - {""}):
            text += [f"## {data}, {float(budget):.1%} of the MACs", "", stage_table(data_rows, budget), ""]
        save_figure(quality_figure(data, data_rows), args.output / f"{data}_quality.png")
        if time_columns(data_rows):
            save_figure(latency_figure(data, data_rows), args.output / f"{data}_latency.png")
    write_text(args.output / "results.md", "\n".join(text))
    print("\n".join(text))
    if args.run:
        draw_run(rows, args.run, data_sets(args.data), args.images, args.output)
    print(f"{args.output}: plots and results.md")


def stage_table(rows: Sequence[Row], budget: str) -> str:
    """The recipe and its controls at one budget, mean and spread over the seeds.

    Args:
        rows: of one data set.
        budget: the share of the MACs, as the CSV has it; the whole networks are in every table.
    """
    head = ("", "seeds", "epochs", "cost", "parameters", "MACs", *METRICS.values(), "lowest mAP@0.5")
    lines = []
    for stage in STAGES:
        group = [row for row in rows if row["stage"] == stage and row["target_macs"] in ("", budget)]
        if group:
            sizes = [f"{spread((size_of(row, rows, name) for row in group), 1)} %" for name in ("parameters", "macs")]
            quality = [spread(last_epoch(row, name) for row in group) for name in METRICS]
            cost = spread((float(row["cost"]) for row in group if row["cost"]), 1)
            least = [float(row["mAP_least"]) for row in group if row["mAP_least"]]
            lowest = f"{min(least):.2f}" if least else ""
            epochs = "/".join(dict.fromkeys(row["epochs"] for row in group))
            lines.append([LABELS[stage], str(len(group)), epochs, cost, *sizes, *quality, lowest])
    return markdown(head, lines)


def quality_figure(data: str, rows: Sequence[Row]) -> Figure:
    """Both metrics against the share of the MACs; and the last against the cost of training, at the usual share."""
    figure = Figure(figsize=(18, 5.5), layout="constrained")
    *by_size, by_cost = figure.subplots(1, 3)
    for axes, (metric, title) in zip(by_size, METRICS.items(), strict=True):
        draw_ways(axes, rows, metric, lambda row: size_of(row, rows, "macs"), apart=1.025)
        axes.set(xlabel="% of the MACs, ways of equal size drawn side by side", ylabel=title, xscale="log")
        axes.set_xticks((100, 50, 30, 20, 10), (100, 50, 30, 20, 10))
        axes.minorticks_off()
    metric, title = list(METRICS.items())[-1]
    shares = Counter(row["target_macs"] for row in rows if row["target_macs"])
    usual = max(shares, key=lambda share: shares[share], default="")
    shown = [row for row in rows if row["target_macs"] in ("", usual)]
    draw_ways(by_cost, shown, metric, lambda row: whole_cost(row, rows))
    by_cost.set(xlabel="cost of training beside the baseline's, in epochs of the whole network", ylabel=title)
    return with_legend(figure, data)


def latency_figure(data: str, rows: Sequence[Row]) -> Figure:
    """mAP@0.5:0.95 against milliseconds, a panel for each runtime and number of threads."""
    metric, title = list(METRICS.items())[-1]
    names = time_columns(rows)
    figure, panels = grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        draw_ways(axes, [row for row in rows if row[name]], metric, lambda row, name=name: float(row[name]))
        axes.set(xlabel="ms per image", ylabel=title, title=column_in_words(name), xlim=(0, None))
    return with_legend(figure, data)


def draw_ways(axes: Axes, rows: Sequence[Row], metric: str, across: Callable[[Row], float], apart: float = 1.0) -> None:
    """A metric against what ``across`` is of a row: the mean of the seeds, and a bar from the worst to the best.

    Each way to a small network is drawn ``apart`` times as far to the right as the one before, so that all are seen.
    """
    stages = [stage for stage in STAGES if stage not in NOT_IN_THE_PLOT]
    drawn = [stage for stage in stages if any(row["stage"] == stage for row in rows)]
    for stage in drawn:
        number_of_stage, shift = stages.index(stage), apart ** (drawn.index(stage) - len(drawn) / 2)
        group = [row for row in rows if row["stage"] == stage]
        points = []
        for budget in sorted({row["target_macs"] for row in group}):
            seeds = [row for row in group if row["target_macs"] == budget]
            quality = [last_epoch(row, metric) for row in seeds]
            points.append((np.mean([across(row) for row in seeds]), np.mean(quality), min(quality), max(quality)))
        x, mean, least, most = np.array(points).T
        x = shift * x if group[0]["target_macs"] else x
        style = {"color": COLORS[number_of_stage], "marker": MARKERS[number_of_stage], "capsize": 3}
        axes.errorbar(x, mean, [mean - least, most - mean], label=LABELS[stage], **style)
    axes.grid(alpha=0.3)


def with_legend(figure: Figure, data: str) -> Figure:
    """The figure with the legend of its panels, and its title."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{data}: after the last epoch; bars reach from the worst to the best seed")
    return figure


def draw_run(rows: Sequence[Row], run_id: str, known: Sequence[DataSet], count: int, output: Path) -> None:
    """Draw the detections of the baseline and of another run on the same validation images, one above the other."""
    row = next((row for row in rows if row["id"] == run_id), None)
    if row is None:
        raise InputError(f"--run {run_id}: the CSV has no run of this id")
    data = next(data for data in known if data.name == row["data"])
    config = read_data_config(data.data_config)
    baseline = f"{data.name}/baseline/seed{row['seed']}"
    sides = [detector(data, weights_of(job_id)) for job_id in (baseline, run_id)]
    paths = config.images("valid")
    images = [read_image(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    save_image(side_by_side(images, sides, config.names), output / f"{data.name}_detections.jpg")


def detector(data: DataSet, weights: str) -> Detector:
    """The network of a run, ready to detect."""
    thresholds = CONFIDENCE, 0.5
    model, _ = load_model(weights, None, thresholds)
    return Detector(model.to(pick_device()).eval(), data.img_size, *thresholds)


def side_by_side(images: Sequence[Image.Image], sides: Sequence[Detector], names: Sequence[str]) -> Image.Image:
    """A row of images for each detector, with its detections; every image's longer side is SIDE."""
    drawn = []
    for side in sides:
        detections = side([letterboxed(image, side.img_size) for image in images], images)
        drawn.append([draw_detections(*pair, names) for pair in zip(images, detections, strict=True)])
    widths = [round(image.width * SIDE / max(image.size)) for image in images]
    heights = [round(image.height * SIDE / max(image.size)) for image in images]
    sheet = Image.new("RGB", (sum(widths), len(sides) * max(heights)), "white")
    for line, row in enumerate(drawn):
        for k, image in enumerate(row):
            sheet.paste(image.resize((widths[k], heights[k])), (sum(widths[:k]), line * max(heights)))
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image as JPEG, atomically."""
    with atomic_writer(path) as file:
        image.save(file, format="JPEG", quality=90)


if __name__ == "__main__":
    run(get_args_parser(), main)
