"""Benchmarks the project on this machine against references, row by row; prints and writes the table."""

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torchvision

from studies.bench import detection, metrics, training
from studies.bench.table import Row, table
from utils.cli import ArgumentParser, number, output_file, run
from utils.detection.inference import for_inference
from utils.detection.options import add_device_option
from utils.detection.runtimes import OnnxModel, OpenVinoModel
from utils.devices import pick_device
from utils.errors import InputError
from utils.files import write_json


def get_args_parser() -> argparse.ArgumentParser:
    """The options of benchmark.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--only", choices=ROWS, nargs="+", help="the rows to measure; default: all")
    parser.add_argument("--rounds", type=number(int, 1), default=9, help="measurements of each side, taken in turns")
    parser.add_argument("--images", type=number(int, 8), default=64, help="images in the row test")
    parser.add_argument("--n_cpu", type=number(int, 0), default=2, help="worker processes in the row test")
    add_device_option(parser)
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", default="runs/benchmark.json", help="the file for the results"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    pick_device(args.device)  # so that a wrong one ends the program, not the rows
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items() if value))
    rows, problems = [], {}
    for name in args.only or ROWS:
        try:
            measured = ROWS[name](args)
            print(*(f"{row.name}: {row.value:.2f} {row.meaning}" for row in measured), sep="\n", flush=True)
            rows += measured
        except InputError as error:  # a runtime that is not installed
            problems[name] = str(error)
    print(table(rows))
    print("\n".join(f"{name}: {problem}" for name, problem in problems.items()))
    results = [asdict(row) | {"reached": row.reached} for row in rows]
    write_json(args.json, {"machine": machine, "rounds": args.rounds, "rows": results, "problems": problems})
    print(f"{args.json}: the same as JSON")


def describe_machine() -> dict[str, str | int]:
    """The hardware and library versions that the times depend on."""
    cpu = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "malloc": os.environ.get("MALLOC_MMAP_THRESHOLD_", ""),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


ROWS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "step": training.step_row,
    "nms": detection.nms_row,
    "map": metrics.map_row,
    "map_coco": metrics.coco_row,
    "map_memory": metrics.memory_row,
    "test": detection.test_row,
    "rect": detection.rect_row,
    "rect_map": detection.rect_map_row,
    "fine_tuning": training.fine_tuning_row,
    "loading": partial(training.loading_row, size=(640, 480), count=64, bar=1.3),
    "loading-large": partial(training.loading_row, size=(2560, 1920), count=32, bar=1.5),
    "pruned": partial(detection.speed_up_row, name="PyTorch", ready=for_inference),
    "onnxruntime": partial(
        detection.speed_up_row,
        name="ONNX Runtime",
        ready=partial(detection.exported, runtime=OnnxModel, package="onnxruntime"),
    ),
    "openvino": partial(
        detection.speed_up_row,
        name="OpenVINO",
        ready=partial(detection.exported, runtime=OpenVinoModel, package="openvino"),
    ),
    "openvino_round": partial(
        detection.speed_up_row,
        name="channels in 16s, OpenVINO",
        ready=partial(detection.exported, runtime=OpenVinoModel, package="openvino"),
        bar=0.85,
        round_to=16,
    ),
    "openvino_int8": detection.int8_row,
}


if __name__ == "__main__":
    run(get_args_parser(), main)
