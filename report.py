"""Writes one page on a run or a whole recipe: what was cut, what it gave, and detections before and after."""

import argparse
from pathlib import Path

from utils.cli import ArgumentParser, Options, add_size_option, output_file, run
from utils.detection.options import add_check_options, add_device_option, add_loading_options
from utils.report.runs import SETTINGS, report_runs


def get_args_parser() -> argparse.ArgumentParser:
    """The options of report.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--runs",
        nargs="+",
        required=True,
        help="names of the runs in the order of the recipe, or paths of checkpoints; detections are those of the first "
        "and the last; a single run is compared with the network that it started from",
    )
    parser.add_argument("--output", type=output_file, default="runs/report.html", help="the page")
    parser.add_argument("--data_config", help="the data set's .data or .yaml file; default: the last run's")
    add_size_option(parser, "size of the input in pixels, by default the last run's")
    add_loading_options(parser, SETTINGS["batch_size"])
    add_check_options(parser)
    add_device_option(parser)
    return parser


def main(args: Options) -> None:
    """Measure the networks and write the page."""
    given = {name: getattr(args, name) for name in args.given & SETTINGS.keys()}
    report_runs(args.runs, Path(args.output), given)
    print(f"{args.output}: open it in a browser")


if __name__ == "__main__":
    run(get_args_parser(), main)
