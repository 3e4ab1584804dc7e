"""The milliseconds of graphs, and the CSV file that keeps them."""

import csv
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .graph import Graph
from .runners import PACKAGES, RUNNERS

COLUMNS = ("graph", "ms", "runtime", "version", "threads", "device")
IN_TURNS = 8  # graphs that are measured in turns
IN_A_ROW = 5  # measurements of a graph in its turn: at first, its weights are fetched after those of the others
LEAST_ROUNDS, MOST_ROUNDS = 15, 200  # measurements of a graph
SECONDS = 0.15  # that are spent on a graph, unless that is less than LEAST_ROUNDS


def clock_of(threads: int, device: str) -> Callable[[], float]:
    """What counts the seconds: of one thread the time on the core, which other processes do not change much."""
    return time.process_time if threads == 1 and device == "cpu" else time.perf_counter


def measure(
    graphs: Mapping[str, Graph], runtime: str, threads: int = 1, device: str = "cpu"
) -> Iterator[tuple[str, float]]:
    """The milliseconds that each graph takes: the least of several passes, a few graphs in turns.

    Args:
        graphs: by name.
        runtime: one of RUNNERS.
        threads: how many the runtime uses.
        device: "cpu" or "cuda".

    Yields:
        The name of a graph, and its milliseconds.
    """
    clock, names = clock_of(threads, device), list(graphs)
    for begin in range(0, len(names), IN_TURNS):
        group = names[begin : begin + IN_TURNS]
        forwards = [RUNNERS[runtime](graphs[name], threads, device) for name in group]
        least = [float("inf")] * len(group)
        rounds = [LEAST_ROUNDS] * len(group)
        for number in range(0, MOST_ROUNDS, IN_A_ROW):
            for index, forward in enumerate(forwards):
                if number < rounds[index]:
                    for _ in range(IN_A_ROW):
                        start = clock()
                        forward()
                        least[index] = min(least[index], clock() - start)
                    if number == 0:
                        rounds[index] = max(LEAST_ROUNDS, int(min(SECONDS / max(least[index], 1e-6), MOST_ROUNDS)))
        yield from ((name, 1000 * seconds) for name, seconds in zip(group, least, strict=True))


def describe_device(device: str = "cpu") -> str:
    """The name of the processor or GPU."""
    if device == "cuda":
        return _gpu_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def _gpu_name() -> str:
    try:
        import torch

        return torch.cuda.get_device_name()
    except ModuleNotFoundError:  # another runtime does not need PyTorch
        pass
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return f"GPU beside {describe_device()}"


def runtime_version(runtime: str) -> str:
    """The version of a runtime's package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    module = __import__(PACKAGES[runtime])
    return str(module.__version__).partition("+")[0]


def mark_of(runtime: str, threads: int, device: str) -> dict[str, str]:
    """What a row says of where it was measured, besides the graph and its milliseconds.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
    """
    version = runtime_version(runtime)
    return {"runtime": runtime, "version": version, "threads": str(threads), "device": describe_device(device)}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file of latencies; none where there is no file.

    Raises:
        ValueError: it is another kind of file.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))  # an interrupted run may leave half a line
    if any(set(row) != set(COLUMNS) or None in row.values() for row in rows) or (text.strip() and not rows):
        header = text.splitlines()[0]
        if header.split(",") != list(COLUMNS):
            raise ValueError(f"no table of latencies: its first line is not {','.join(COLUMNS)}")
    return rows


def measure_to_file(
    graphs: Mapping[str, Graph],
    path: Path,
    runtime: str,
    threads: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure the graphs that a CSV file does not have from this runtime, version, device and number of threads.

    Args:
        graphs: by name.
        path: the CSV file; rows are added one by one, so that nothing is lost where the run is interrupted.
        runtime, threads, device: see :func:`measure`.
        progress: called with the number of graphs that are done, and of all, after each.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        ValueError: ``path`` is another kind of file.
    """
    mark = mark_of(runtime, threads, device)
    rows = [row for row in read_rows(path) if all(row[name] == value for name, value in mark.items())]
    known = {row["graph"] for row in rows}
    missing = {name: graph for name, graph in graphs.items() if name not in known}
    if not missing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    with open(partial, "w", newline="", encoding="utf-8") as file:  # without rows of other devices and half lines
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for number, (name, ms) in enumerate(measure(missing, runtime, threads, device), start=1):
            writer.writerow({"graph": name, "ms": f"{ms:.6g}", **mark})
            file.flush()
            progress(number, len(missing))
