"""What a network costs in a runtime: milliseconds of its convolutions from a table, added up.

Of each convolution, which is measured between two 1x1 convolutions (:mod:`utils.pruning.latency_graphs`), half of what
these two cost without it, at its input and at its output, is subtracted. What is wrong with the halves cancels over a
network, because the output of a convolution is the input of the next.

Between the points of the grid of channels the time is interpolated. In a network a convolution costs more than alone:
the runtime goes from layer to layer, and has to fetch weights and feature maps that lie in the cache while one
convolution is repeated. The table therefore holds whole networks of several widths and depths, too, by which six
numbers are fitted, see :class:`Fit`. A table is for one network and one image size.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from utils.darknet.spec import NetworkSpec
from utils.errors import InputError
from utils.pruning.costs import values_written
from utils.pruning.graph_timer.measure import read_rows
from utils.pruning.latency_graphs import GROUP, Kind, axes, border_name, kind_of, table_graphs, whole_networks

# The fit does not make convolutions cheaper than this share of their times alone: where these rise with the values
# that they write, as in ncnn, it could do without their own times, which alone know steps of channels.
LEAST_FACTOR = 0.7


@dataclass(frozen=True)
class Fit:
    """What a network costs, in ms: the sum of its five terms, each times a number.

    A network's *terms* are five numbers: the summed ms of its convolutions alone, how many these are, the values that
    layers write, the kernels' weights, and 1.

    Attributes:
        factor: times the ms of its convolutions alone.
        per_convolution: times how many these are.
        per_value: times the values that convolutions write, and other layers by
            :func:`utils.pruning.costs.values_written`.
        per_weight: times the kernels' weights beyond ``cached``.
        constant: of what no pruning changes: the call, and what the heads decode.
        cached: how many weights stay in the cache from one image to the next.
    """

    factor: float
    per_convolution: float
    per_value: float
    per_weight: float
    constant: float
    cached: float = 0.0

    def of(self, terms: np.ndarray) -> np.ndarray:
        """The ms (...) of networks with these terms (..., 5)."""
        return beyond_cache(terms, self.cached) @ astuple(self)[:5]


class LatencyTable:
    """The times of the convolutions of one network in one runtime: :class:`utils.pruning.costs.Costs` in milliseconds.

    Args:
        spec: the network at the size of its images.
        milliseconds: of each graph of :func:`table_graphs`, by name.
        title: what was measured, for messages, e.g. "onnx 1.20, 1 thread".

    Raises:
        InputError: graphs are missing.
    """

    group = GROUP

    def __init__(self, spec: NetworkSpec, milliseconds: Mapping[str, float], title: str):
        self.spec = spec
        self.title = title
        self._ms = milliseconds
        missing = [name for name in table_graphs(spec) if name not in milliseconds]
        if missing:
            raise InputError(missing_graphs(missing, milliseconds))
        self._axes = axes(spec)
        self._kinds = {layer.index: kind_of(spec, layer) for layer in spec.convolutions}
        self._costs: dict[tuple[Kind, float, float], float] = {}

    @property
    def digest(self) -> str:
        """A text that equal tables share."""
        return hashlib.sha256(repr(sorted(self._ms.items())).encode()).hexdigest()

    @property
    def img_size(self) -> tuple[int, int]:
        """The height and width of the images."""
        return self.spec.height, self.spec.width

    @property
    def per_value(self) -> float:
        """The milliseconds of a value that a layer writes, see :class:`utils.pruning.costs.Costs`."""
        return self.fit.per_value

    def convolution_cost(self, index: int, inputs: float, outputs: float) -> float:
        """The milliseconds of the convolution of layer ``index`` with so many channels.

        They are counted as if none of its weights stayed in the cache: which of the network's do, no layer alone says.
        """
        return float(np.dot(astuple(self.fit)[:5], self._terms_of_convolution(self._kinds[index], inputs, outputs)))

    def _terms_of_convolution(
        self, kind: Kind, inputs: float, outputs: float
    ) -> tuple[float, float, float, float, float]:
        """What a convolution adds to the terms of a network."""
        height, width = kind.output_size
        per_output = kind.size**2 * (inputs / kind.groups if kind.groups else 1)
        return self.convolution(kind, inputs, outputs), 1, height * width * outputs, per_output * outputs, 0

    def convolution(self, kind: Kind, inputs: float, outputs: float) -> float:
        """The milliseconds of a convolution of one of the network's kinds, interpolated between points of the grid.

        Beyond the grid it is that of the nearest point.
        """
        key = kind, inputs, outputs
        if key not in self._costs:
            self._costs[key] = self._interpolate(*key)
        return self._costs[key]

    def _interpolate(self, kind: Kind, inputs: float, outputs: float) -> float:
        of_inputs, of_outputs = (
            bracket(points, n) for points, n in zip(self._axes[kind], (inputs, outputs), strict=True)
        )
        if kind.groups == 0:
            return sum(share * self._measured(kind, n, n) for n, share in of_inputs)
        return sum(s * t * self._measured(kind, i, o) for i, s in of_inputs for o, t in of_outputs)

    def _measured(self, kind: Kind, inputs: int, outputs: int) -> float:
        before = 0.0 if kind.from_image else self._ms[border_name((kind.height, kind.width), inputs)]
        after = self._ms[border_name(kind.output_size, outputs)]
        return max(self._ms[kind.name(inputs, outputs)] - (before + after) / 2, 0.0)

    @cached_property
    def fit(self) -> Fit:
        """The fit, by least squares of the relative error of the whole networks; no number is negative."""
        networks = whole_networks(self.spec)
        terms = np.array([self.terms(spec) for spec in networks.values()])
        milliseconds = np.array([self._ms[name] for name in networks])
        fits = [fit_beyond(terms, milliseconds, cached) for cached in (0.0, *np.unique(terms[:, 3]))]
        return min(fits, key=lambda fit: np.square(fit.of(terms) / milliseconds - 1).sum())

    def terms(self, spec: NetworkSpec) -> np.ndarray:
        """(5,) the terms of a pruned network, see :class:`Fit`."""
        of_convolutions = [
            self._terms_of_convolution(kind_of(spec, c), c.inputs, c.channels) for c in spec.convolutions
        ]
        return np.sum(of_convolutions, axis=0) + (0, 0, sum(map(values_written, spec.layers)), 0, 1)

    def predict(self, spec: NetworkSpec) -> float:
        """The milliseconds of the network, pruned in any way."""
        return float(self.fit.of(self.terms(spec.at(self.img_size))))


def beyond_cache(terms: np.ndarray, cached: float) -> np.ndarray:
    """The terms (..., 5) of networks with only the weights beyond ``cached``."""
    return np.concatenate([terms[..., :3], (terms[..., 3:4] - cached).clip(min=0), terms[..., 4:]], axis=-1)


def fit_beyond(terms: np.ndarray, milliseconds: np.ndarray, cached: float) -> Fit:
    """The best fit with so many weights in the cache.

    Args:
        terms: (N, 5) of networks, see :class:`Fit`.
        milliseconds: (N,) of the same networks.
        cached: how many weights stay in the cache.
    """
    matrix = beyond_cache(terms, cached) / milliseconds[:, None]
    scale = matrix.max(axis=0).clip(min=np.finfo(float).tiny)
    numbers = nnls(matrix / scale, 1 - LEAST_FACTOR * matrix[:, 0])[0] / scale
    numbers[0] += LEAST_FACTOR
    factor, per_convolution, per_value, per_weight, constant = numbers.tolist()
    return Fit(factor, per_convolution, per_value, per_weight, constant, cached)


def bracket(points: Sequence[int], value: float) -> list[tuple[int, float]]:
    """The neighbours of a value among sorted points, and the share of each in a linear interpolation.

    >>> bracket([8, 16, 32], 20), bracket([8, 16], 16), bracket([8, 16], 3)
    ([(16, 0.75), (32, 0.25)], [(16, 1.0)], [(8, 1.0)])
    """
    value = min(max(value, points[0]), points[-1])
    if value in points:
        return [(int(value), 1.0)]
    high = next(point for point in points if point > value)
    low = points[points.index(high) - 1]
    share = (value - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def missing_graphs(missing: Sequence[str], milliseconds: Iterable[str]) -> str:
    """What is wrong with a table in which graphs are missing, in words."""
    network = next((name for name in missing if name.startswith("network")), None)
    titles = {name.partition(":")[0] for name in milliseconds if name.startswith("network")}
    title = network and network.partition(":")[0]
    if titles and title and title not in titles:
        return f"is a table for another network or image size: it has {min(titles)!r}, not {title!r}"
    return f"is not complete: {missing[0]!r} and {len(missing) - 1} more are missing: measure on, on the same device"


def read_table(path: str | Path, spec: NetworkSpec, runtime: str | None = None) -> LatencyTable:
    """Read a table for this network, at its size.

    Args:
        path: the CSV file that :mod:`utils.pruning.graph_timer` wrote.
        spec: the network at the size of its images.
        runtime: the runtime that the table must be of; None takes any.

    Raises:
        InputError: the file is missing, is no table, mixes devices, or is that of another network or runtime.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such table of latencies; export.py --latency_table makes one elsewhere")
    try:
        rows = read_rows(path)
        milliseconds = {row["graph"]: float(row["ms"]) for row in rows}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table of latencies: {error}") from None
    measured = {(row["runtime"], row["version"], row["threads"], row["device"]) for row in rows}
    if len(measured) != 1:
        raise InputError(f"{path}: {'mixes several devices or runtimes' if measured else 'holds no measurement'}")
    ((measured_runtime, version, threads, device),) = measured
    if runtime and runtime != measured_runtime:
        raise InputError(f"{path}: was measured in {measured_runtime}, not in {runtime}")
    bad = next((name for name, ms in milliseconds.items() if not 0 < ms < float("inf")), None)
    if bad:
        raise InputError(f"{path}: {milliseconds[bad]} is no number of milliseconds for {bad!r}")
    plural = "" if threads == "1" else "s"
    title = f"{measured_runtime} {version}, {threads} thread{plural}, {device}"
    try:
        return LatencyTable(spec, milliseconds, title)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
