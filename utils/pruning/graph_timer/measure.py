"""The milliseconds of graphs, and the CSV file that keeps them."""

import csv
import io
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .graph import Graph
from .runners import PACKAGES, RUNNERS, current_gpu

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
    if current_gpu() is not None:
        import torch

        return torch.cuda.get_device_name()
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
    lines = text[: text.rfind("\n") + 1].splitlines()  # an interrupted run may leave half a line
    header = (lines or [text])[0]
    if text and header.split(",") != list(COLUMNS):
        raise ValueError(f"no table of latencies: its first line is not {','.join(COLUMNS)}")
    # A full disk may leave half a line that another run went on behind.
    return [row for row in csv.DictReader(lines) if None not in row and None not in row.values()]


def measure_to_file(
    graphs: Mapping[str, Graph],
    path: Path,
    runtime: str,
    threads: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure the graphs that a CSV file does not have from this runtime, version, device and number of threads.

    Other processes may do so at the same time: the file is never replaced, and no row is lost.

    Args:
        graphs: by name.
        path: the CSV file; rows are added one by one, so that nothing is lost where the run is interrupted. Those of
            another runtime, version, device or number of threads become empty lines.
        runtime, threads, device: see :func:`measure`.
        progress: called with the number of graphs that are done, and of all, after each.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        ValueError: ``path`` is another kind of file.
    """
    mark = mark_of(runtime, threads, device)
    known = {row["graph"] for row in read_rows(path) if is_of(row, mark)}
    missing = {name: graph for name, graph in graphs.items() if name not in known}
    if not missing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    prepare(path, mark)
    for number, (name, ms) in enumerate(measure(missing, runtime, threads, device), start=1):
        append(path, {"graph": name, "ms": f"{ms:.6g}", **mark})
        progress(number, len(missing))


def is_of(row: Mapping[str, str], mark: Mapping[str, str]) -> bool:
    """Whether a row was measured where :func:`mark_of` says."""
    return all(row[name] == value for name, value in mark.items())


def prepare(path: Path, mark: Mapping[str, str]) -> None:
    """Give a CSV file its header and a whole last line, and empty the lines of rows that are not of ``mark``.

    This is done in place: what another process adds in the meantime stays.
    """
    content = path.read_bytes() if path.exists() else b""
    with open(path, "ab") as file:
        if not content:
            file.write(",".join(COLUMNS).encode() + b"\n")
        elif not content.endswith(b"\n"):  # half a line of a run that was killed
            file.write(b"\n")
    with open(path, "r+b") as file:
        end = 0
        for line in file.read().splitlines(keepends=True):
            begin, end = end, end + len(line)
            row = dict(zip(COLUMNS, next(csv.reader([line.decode()]), ()), strict=False))
            if begin and len(row) == len(COLUMNS) and not is_of(row, mark):
                file.seek(begin)
                file.write(b"\n" * len(line))


def append(path: Path, row: Mapping[str, str]) -> None:
    """Add a row to the end of a CSV file in one write, which does not mix with those of other processes."""
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    with open(path, "ab") as file:
        file.write(text.getvalue().encode())
