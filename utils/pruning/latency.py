"""What networks take in a runtime of this machine, measured, or by a table of another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import Darknet
from utils.darknet.spec import NetworkSpec
from utils.detection.fusing import fuse
from utils.errors import InputError
from utils.optional import optional
from utils.pruning.graph_timer.graph import Graph
from utils.pruning.graph_timer.measure import measure, measure_to_file
from utils.pruning.graph_timer.runners import CUDA_PROVIDER, PACKAGES
from utils.pruning.latency_graphs import network_graph, table_graphs
from utils.pruning.latency_table import LatencyTable, read_table
from utils.sizes import AnySize

TABLES = Path("runs/latency")  # where tables of this machine are kept


def measured_table(spec: NetworkSpec, runtime: str, threads: int = 1, device: str = "cpu") -> LatencyTable:
    """The table of :func:`table_file`, which has the same arguments and raises the same errors."""
    return read_table(table_file(spec, runtime, threads, device), spec, runtime)


def table_file(spec: NetworkSpec, runtime: str, threads: int = 1, device: str = "cpu") -> Path:
    """The file of a table for this network, at its size, of this machine; it is made where there is none.

    What is missing in its file under TABLES is measured; an interrupted measurement goes on at the next call.

    Args:
        spec: the network at the size of its images.
        runtime: one of :data:`utils.pruning.graph_timer.runners.RUNNERS`.
        threads: of the runtime.
        device: "cpu" or "cuda".

    Raises:
        InputError: the runtime is not installed or cannot run here, the file is no table, or the network has a layer
            that no table can be made for.
    """
    optional(PACKAGES[runtime])
    path = TABLES / f"{runtime}_{device}_{threads}.csv"
    with tqdm(desc=f"times in {runtime}", unit="graph", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            with refusals_of(runtime):
                measure_to_file(table_graphs(spec), path, runtime, threads, device, progress)
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove it") from None
    return path


@contextmanager
def refusals_of(runtime: str) -> Iterator[None]:
    """Within the block, what a runtime says that it cannot do is an InputError of one line."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f"{runtime} cannot be timed here: {' '.join(str(error).split())}") from error


def timing_device(runtime: str | None, device: torch.device) -> str:
    """Where a runtime is timed: on the GPU where ``device`` is one and the runtime can use it, else "cpu"."""
    if device.type != "cuda" or runtime not in ("pytorch", "onnx"):
        return "cpu"
    if runtime == "onnx" and CUDA_PROVIDER not in optional(PACKAGES["onnx"]).get_available_providers():
        return "cpu"
    return "cuda"


def network_times(
    models: Sequence[Darknet], img_size: AnySize, runtime: str, threads: int = 1, device: str = "cpu"
) -> list[float]:
    """The milliseconds that whole networks take in a runtime here, in turns.

    Raises:
        InputError: the runtime cannot run here.
    """
    graphs = {str(number): model_graph(model, img_size) for number, model in enumerate(models)}
    with refusals_of(runtime):
        return [ms for _, ms in measure(graphs, runtime, threads, device)]


def model_graph(model: Darknet, img_size: AnySize) -> Graph:
    """A whole network with its weights as a graph; BatchNorm is folded into the convolutions."""
    fused = fuse(model)
    graph = network_graph(fused.spec.at(img_size))
    convolutions = [layer for layer in graph["layers"] if layer["op"] == "conv"]
    for layer, section in zip(convolutions, fused.spec.convolutions, strict=True):
        conv = fused.conv(section.index)
        layer["kernel"] = np.ascontiguousarray(conv.weight.detach().cpu().numpy())
        layer["bias"] = cast(Tensor, conv.bias).detach().cpu().numpy()
    return graph


@dataclass(frozen=True)
class Latency:
    """Times in a runtime.

    Attributes:
        table: of its latencies.
        runtime: where networks are timed on this machine; None where the table is another machine's.
        threads, device: of the runtime here.
    """

    table: LatencyTable
    runtime: str | None = None
    threads: int = 1
    device: str = "cpu"

    def milliseconds(self, models: Sequence[Darknet]) -> list[float]:
        """Of networks for images of the table's size: measured, or where this is not possible predicted by it."""
        if not self.runtime:
            return [self.table.predict(model.spec) for model in models]
        return network_times(models, self.table.img_size, self.runtime, self.threads, self.device)

    def compare(self, original: Darknet, pruned: Darknet) -> dict[str, Any]:
        """The times before and after, for the report."""
        before, after = self.milliseconds([original, pruned])
        measured = {"before_ms": before, "after_ms": after, "is_measured": self.runtime is not None}
        return {"table": self.table.title, "predicted_ms": self.table.predict(pruned.spec), **measured}

    @staticmethod
    def describe(times: Mapping[str, Any]) -> str:
        """What :meth:`compare` gives as one line."""
        before, after, predicted = (times[name] for name in ("before_ms", "after_ms", "predicted_ms"))
        measured = "measured" if times["is_measured"] else "predicted"
        speed_up = f"{before:.2f} ms before, {after:.2f} ms after ({before / after:.2f}x), {measured}"
        return f"{times['table']}: {speed_up}; by the table {predicted:.2f} ms"


def latency_of(
    spec: NetworkSpec, runtime: str | None, table: str | None, threads: int = 1, device: str = "cpu"
) -> Latency | None:
    """Times in a runtime of this machine, or by the table of another; None without both.

    Args:
        spec: the network at the size of its images.
        runtime: one of :data:`utils.pruning.graph_timer.runners.RUNNERS`; with ``table``, the one that it must be of.
        table: the CSV file of a table.
        threads, device: of the runtime here.

    Raises:
        InputError: the table cannot be used or made.
    """
    if table:
        return Latency(read_table(table, spec, runtime))
    if not runtime:
        return None
    return Latency(measured_table(spec, runtime, threads, device), runtime, threads, device)
