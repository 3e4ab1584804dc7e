"""Draws the study: images and Markdown tables out of the CSV that studies/study.py writes.

- {data}_size.png: mAP against parameters and MACs, a line per way to train sparse, with its spread over seeds;
- {data}_ratio.png: the ratio at which mAP has fallen by 0.01;
- results.md: the rows from baseline to fine-tuned; of each way to train sparse mAP at equal parameters and that ratio;
- {data}_detections.jpg, with --run: images before and after.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

if not __package__:  # run as `python studies/draw.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from studies.plan import DataSet, add_data_option, data_sets, pruned_cfg_of, weights_of
from utils.cli import ArgumentParser, number, run
from utils.data.data_config import read_data_config
from utils.data.images import letterboxed, read_image
from utils.detection.detector import Detector, load_model
from utils.devices import pick_device
from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, write_text
from utils.plots import save_figure

DROP = 0.01  # of mAP@0.5
SHARES = (0.3, 0.2, 0.15, 0.1)  # of the parameters, at which the ways to train sparse are compared
SIZES = {"parameters": "parameters", "macs": "MACs"}
UNITS = {"parameters": (1e6, 2, "M"), "macs": (1e9, 3, "G")}  # in tables, with the digits behind the point
STAGES = {
    "plain": "the older tools' recipe",
    "baseline": "baseline",
    "continued": "baseline, trained on",
    "sparse": "sparse, from the baseline",
    "pruned": "pruned",
    "finetuned": "fine-tuned",
    "distilled": "fine-tuned with a teacher",
}
TITLE = """# Tables of the study

Written by studies/draw.py out of studies/results.csv. docs/results.md says what they show.
"""
TICKS = (100, 50, 30, 20, 10, 5, 3, 2, 1)  # per cent
CONFIDENCE = 0.25  # of the boxes that are drawn
SIDE = 320  # pixels of a drawn image's longer side

Row = dict[str, str]
Curve = dict[str, np.ndarray]  # of one sweep, by rising ratio: percent, mAP, parameters, macs


def get_args_parser() -> argparse.ArgumentParser:
    """The options of draw.py."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("studies/results.csv"), help="the CSV of study.py")
    parser.add_argument("--output", type=Path, default=Path("docs/study"), help="folder to write to")
    parser.add_argument("--run", help="id of a finetuned or distilled run of the CSV whose detections are drawn")
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
        text += [f"## {data}", "", stage_table(data_rows), ""]
        sweeps = curves(data_rows)
        if sweeps:
            save_figure(size_figure(data, sweeps), args.output / f"{data}_size.png")
            save_figure(ratio_figure(data, sweeps), args.output / f"{data}_ratio.png")
            text += [sweep_table(data_rows, sweeps), ""]
    write_text(args.output / "results.md", "\n".join(text))
    print("\n".join(text))
    if args.run:
        draw_run(rows, args.run, data_sets(args.data), args.images, args.output)
    print(f"{args.output}: plots and results.md")


def curves(rows: Sequence[Row]) -> dict[str, list[Curve]]:
    """The sweeps of each way to train sparse, one per seed, by its label."""
    by_job: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] == "sweep":
            by_job[row["job"]].append(row)
    sweeps: dict[str, list[Curve]] = defaultdict(list)
    for points in by_job.values():
        points.sort(key=lambda row: float(row["percent"]))
        columns = ("percent", "mAP", "parameters", "macs")
        sweeps[label_of(points[0])].append({name: np.array([float(row[name]) for row in points]) for name in columns})
    return dict(sweeps)


def label_of(row: Row) -> str:
    """A way to train sparse in words: ``target 0.8, slim``."""
    return f"{row['sparsity']} {row['target_percent']}".strip() + f", {row['strategy']}"


def ratio_at_drop(curve: Curve, drop: float = DROP) -> float:
    """The ratio at which mAP is first ``drop`` below that of ratio 0, on lines between the points.

    The last ratio where it never is.
    """
    least = curve["mAP"][0] - drop
    below = np.flatnonzero(curve["mAP"] < least)
    if not len(below):
        return float(curve["percent"][-1])
    before, after = below[0] - 1, below[0]
    return float(np.interp(-least, -curve["mAP"][[before, after]], curve["percent"][[before, after]]))


def mean_ap_at(curve: Curve, share: float) -> float:
    """mAP where this share of the parameters is left, on lines between the points; NaN where no ratio goes that far."""
    left = curve["parameters"] / curve["parameters"][0]
    return float(np.interp(share, left[::-1], curve["mAP"][::-1], left=np.nan))


def spread(values: Iterable[float], digits: int = 4) -> str:
    """Mean, and where values differ their standard deviation; nothing where nothing was measured."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return ""
    text = f"{np.mean(values):.{digits}f}"
    return text if min(values) == max(values) else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table(rows: Sequence[Row]) -> str:
    """From plain and baseline to fine-tuned, mean and spread over the seeds; sparse networks that were pruned only."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] in STAGES:
            way = label_of(row) if row.get("sparsity") else ""
            groups[way, row.get("percent", ""), row["stage"]].append(row)
    used = {"", *(way for way, ratio, _ in groups if ratio)}
    stages, ways = list(STAGES), list(dict.fromkeys(["", *(way for way, _, _ in groups)]))
    keys = [key for key in groups if key[0] in used]
    keys.sort(key=lambda key: (ways.index(key[0]), key[1], stages.index(key[2])))
    head = ("", "seeds", "epochs", "mAP@0.5", "mAP@0.5:0.95", "of the best epoch", *SIZES.values(), "times as fast")
    return markdown(head, [stage_line(groups[key], rows) for key in keys])


def stage_line(group: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """A line of :func:`stage_table`: one stage on several seeds."""
    stage, detail = group[0]["stage"], ""
    if stage == "sparse":
        detail = f" ({label_of(group[0])})"
    elif stage == "pruned":
        detail = f", {float(group[0]['percent']):.0%} of the channels"
    quality = [spread(last_epoch(row, name) for row in group) for name in ("mAP", "mAP_50_95")]
    best = spread(float(row["mAP_50_95"]) for row in group) if group[0]["epochs"] and stage != "sparse" else ""
    faster = spread((speed_up(row) for row in group if row.get("forward_ms_after")), 1)
    sizes = [size_of(group, rows, name) for name in SIZES]
    return [STAGES[stage] + detail, str(len(group)), group[0]["epochs"], *quality, best, *sizes, faster]


def size_of(group: Sequence[Row], rows: Sequence[Row], name: str) -> str:
    """The parameters or MACs of a group of networks: of the full one, the largest, a number, of others its share."""
    full = max(float(row[name]) for row in rows)
    sizes = [float(row[name]) for row in group]
    if min(sizes) == full:
        unit, digits, unit_name = UNITS[name]
        return f"{full / unit:.{digits}f} {unit_name}"
    return f"{spread((100 * size / full for size in sizes), 1)} %"


def last_epoch(row: Row, metric: str) -> float:
    """A metric after the last epoch of a run; of what no epoch changed, the only one."""
    return float(row.get(f"{metric}_last") or row[metric])


def speed_up(row: Row) -> float:
    """How many times as fast as the full network a pruned one is."""
    return float(row["forward_ms_before"]) / float(row["forward_ms_after"])


def sweep_table(rows: Sequence[Row], sweeps: dict[str, list[Curve]]) -> str:
    """What each way to train sparse makes of the network, and of that what pruning leaves without fine-tuning."""
    lines = []
    for label, group in sweeps.items():
        sparse = [row for row in rows if row["stage"] == "sparse" and label_of(row) == label]
        quality = [spread(last_epoch(row, name) for row in sparse) for name in ("mAP_50_95", "mAP")]
        at = [spread(mean_ap_at(curve, share) for curve in group) for share in SHARES]
        ratio = spread((ratio_at_drop(curve) for curve in group), 3)
        lines.append([label, str(len(group)), *quality, *at, ratio])
    at = [f"at {SHARES[0]:.0%} of the parameters", *(f"{share:.0%}" for share in SHARES[1:])]
    return markdown(("", "seeds", "mAP@0.5:0.95", "mAP@0.5", *at, f"ratio at -{DROP:g}"), lines)


def size_figure(data: str, sweeps: dict[str, list[Curve]]) -> Figure:
    """mAP@0.5 against the share of parameters and of MACs that is left; bands reach from the worst to the best seed."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), SIZES.items(), strict=True):
        for label, group in sweeps.items():
            # Every sweep measures the same ratios, so seeds are averaged ratio by ratio.
            left = np.mean([100 * curve[name] / curve[name][0] for curve in group], axis=0)
            quality = np.array([curve["mAP"] for curve in group])
            (line,) = axes.plot(left, quality.mean(axis=0), marker="o", ms=3, label=f"{label} ({len(group)})")
            axes.fill_between(left, quality.min(axis=0), quality.max(axis=0), color=line.get_color(), alpha=0.15, lw=0)
        axes.set(xlabel=f"% of the {title} left", xscale="log", ylim=(0, 1.02))
        least = min(curve[name][-1] / curve[name][0] for group in sweeps.values() for curve in group)
        axes.set_xticks(TICKS, TICKS)
        axes.minorticks_off()
        axes.set_xlim(110, 90 * least)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="mAP@0.5, not fine-tuned")
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside right center", title="seeds in brackets")
    figure.suptitle(f"{data}: what pruning costs")
    return figure


def ratio_figure(data: str, sweeps: dict[str, list[Curve]]) -> Figure:
    """The ratio at which mAP falls, a bar for each way to train sparse, a dot for each seed."""
    figure = Figure(figsize=(7.5, 0.4 * len(sweeps) + 1.4), layout="constrained")
    axes = figure.subplots()
    for position, group in enumerate(sweeps.values()):
        ratios = [100 * ratio_at_drop(curve) for curve in group]
        axes.barh(position, np.mean(ratios), color="#b8c4d6")
        axes.plot(ratios, [position] * len(ratios), "o", color="#12455a", ms=4)
    axes.set_yticks(range(len(sweeps)), list(sweeps))
    axes.invert_yaxis()
    axes.set(xlabel=f"% of the prunable channels cut when mAP@0.5 has fallen by {DROP:g}", xlim=(0, 100), title=data)
    axes.grid(alpha=0.3, axis="x")
    return figure


def draw_run(rows: Sequence[Row], run_id: str, known: Sequence[DataSet], count: int, output: Path) -> None:
    """Draw the detections of the baseline and of a fine-tuned run on the same validation images, side by side."""
    row = next((row for row in rows if row["id"] == run_id), None)
    if row is None or row["stage"] not in ("finetuned", "distilled"):
        raise InputError(f"--run {run_id}: the CSV has no finetuned or distilled run of this id")
    data = next(data for data in known if data.name == row["data"])
    config = read_data_config(data.data_config)
    baseline = f"{data.name}/baseline/seed{row['seed']}"
    sides = [
        detector(data, data.model_def, weights_of(baseline)),
        detector(data, pruned_cfg_of(run_id.rpartition("/")[0]), weights_of(run_id)),
    ]
    paths = config.images("valid")
    images = [read_image(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    save_image(side_by_side(images, sides, config.names), output / f"{data.name}_detections.jpg")


def detector(data: DataSet, model_def: str, weights: str) -> Detector:
    """The network of a run, ready to detect."""
    thresholds = CONFIDENCE, 0.5
    model, _ = load_model(weights, model_def, thresholds)
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
