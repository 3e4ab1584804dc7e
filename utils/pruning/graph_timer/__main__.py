"""The program for another device: times the graphs of graphs.json, and writes latency.csv."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .graph import Graph
from .measure import is_of, mark_of, measure_to_file, read_rows
from .runners import PACKAGES, RUNNERS


def print_progress(began: float) -> Callable[[int, int], None]:
    """A progress line with the time that is left, for :func:`measure_to_file`."""

    def show(done: int, total: int) -> None:
        left = (time.perf_counter() - began) / done * (total - done)
        print(f"\r{done} of {total} graphs, {left / 60:.1f} minutes left ", end="", flush=True)

    return show


def positive(text: str) -> int:
    """An argparse ``type`` for a number of threads."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads")
    return int(text)


def read_graphs(path: Path) -> dict[str, Graph]:
    """The graphs by name.

    Raises:
        ValueError: the file is not what ``export.py --latency_table`` wrote.
    """
    graphs = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(graphs, dict) or not all(isinstance(g, dict) and "layers" in g for g in graphs.values()):
        raise ValueError(f"{path}: not the graphs that export.py --latency_table wrote")
    return graphs


def refuse_other_rows(path: Path, mark: dict[str, str]) -> None:
    """Raise a ValueError where a CSV file has rows of another runtime, version, device or number of threads."""
    for row in read_rows(path):
        if not is_of(row, mark):
            other = ", ".join(row[name] for name in mark)
            raise ValueError(f"{path}: holds what was measured in {other}: give another --output, or delete it")


def main() -> int:
    """Measure the graphs of graphs.json; the exit status."""
    description = "Times the graphs of graphs.json, and writes latency.csv."
    parser = argparse.ArgumentParser(prog="python -m graph_timer", description=description)
    parser.add_argument("--runtime", choices=RUNNERS, required=True)
    parser.add_argument("--threads", type=positive, default=1, help="threads of the runtime; default: 1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--graphs", type=Path, default=Path("graphs.json"), help="default: graphs.json")
    parser.add_argument("--output", type=Path, default=Path("latency.csv"), help="default: latency.csv")
    args = parser.parse_args()
    try:
        graphs = read_graphs(args.graphs)
        refuse_other_rows(args.output, mark_of(args.runtime, args.threads, args.device))
        began = print_progress(time.perf_counter())
        measure_to_file(graphs, args.output, args.runtime, args.threads, args.device, began)
    except ModuleNotFoundError:
        print(f"{args.runtime} is not installed: pip install {PACKAGES[args.runtime]}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, ValueError) as error:
        print(f"graph_timer: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{args.output}: for --latency_table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
