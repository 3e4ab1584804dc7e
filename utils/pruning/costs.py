"""What channels cost: MACs, parameters or milliseconds, which depend on both sides of a convolution."""

from typing import Protocol

import numpy as np

from utils.darknet.layers import Convolution, Dropout, Empty, Layer, Route, Yolo
from utils.darknet.spec import NetworkSpec
from utils.pruning.coupling import Coupling

COSTS = ("uniform", "macs", "latency")  # what may price the penalty on a channel
LEAST_PRICE = 0.25  # of the mean: what saves nothing is under a penalty, too

Touch = tuple[int, int, int]  # a layer, and how many of its input and output channels a set has there


class Costs(Protocol):
    """What the layers of a network cost at any number of channels.

    Attributes:
        group: how many coupled sets go at once; of times, as many as the runtime computes at once.
        per_value: the cost of a value that a layer writes, of those that :func:`values_written` counts.
    """

    @property
    def group(self) -> int:
        """See above."""
        ...

    @property
    def per_value(self) -> float:
        """See above."""
        ...

    def convolution_cost(self, index: int, inputs: float, outputs: float) -> float:
        """The cost of the convolution of layer ``index`` with so many channels."""
        ...


def values_written(layer: Layer) -> int:
    """How many values a layer writes for one image, where these cost something that no other number holds.

    0 for a convolution, whose own cost holds them; for a head, whose cost no pruning changes; and for dropout, an empty
    layer and a route with one source, which a runtime leaves out.
    """
    is_free = isinstance(layer, (Convolution, Yolo, Dropout, Empty))
    if is_free or (isinstance(layer, Route) and len(layer.sources) == 1):
        return 0
    return layer.channels * layer.height * layer.width


class SizeCosts:
    """Multiply-adds of one image, by default, or parameters, or both.

    Args:
        spec: the network at the size of its images.
        group: how many coupled sets go at once.
        per_mac, per_parameter: what one of them costs.
    """

    per_value = 0.0

    def __init__(self, spec: NetworkSpec, group: int = 1, per_mac: float = 1.0, per_parameter: float = 0.0):
        self.group = group
        self._per_mac = per_mac
        self._per_parameter = per_parameter
        self._layers = {layer.index: layer for layer in spec.convolutions}

    def convolution_cost(self, index: int, inputs: float, outputs: float) -> float:
        """See :class:`Costs`."""
        layer = self._layers[index]
        kernel = layer.macs * self._per_mac + layer.kernel_weights * self._per_parameter
        share_of_inputs = 1 if layer.depthwise else inputs / layer.inputs
        per_output = kernel * share_of_inputs / layer.channels + layer.values_per_channel * self._per_parameter
        return outputs * per_output


def set_touches(coupling: Coupling) -> list[tuple[Touch, ...]]:
    """For each set, by number, the layers that its channels are in, in order."""
    touches: list[dict[int, list[int]]] = [{} for _ in coupling.sets]

    def count(layer: Layer, sets: np.ndarray, side: int) -> None:
        for number, times in zip(*np.unique(sets, return_counts=True), strict=True):
            touches[number].setdefault(layer.index, [0, 0])[side] += int(times)

    for layer in coupling.spec.layers:
        if isinstance(layer, Convolution):
            count(layer, coupling.inputs(layer), 0)
        count(layer, coupling.outputs[layer.index], 1)
    return [tuple((layer, sides[0], sides[1]) for layer, sides in sorted(of_set.items())) for of_set in touches]


class Counts:
    """How many channels the layers of a network have while sets are removed from it.

    Args:
        coupling: the coupled channels.
        costs: of its layers.
    """

    def __init__(self, coupling: Coupling, costs: Costs):
        self._costs = costs
        self._layers = {layer.index: layer for layer in coupling.spec.layers}
        self.inputs = {layer.index: len(coupling.inputs(layer)) for layer in coupling.spec.convolutions}
        self.outputs = {layer.index: layer.channels for layer in coupling.spec.layers}

    def saved(self, touches: tuple[Touch, ...], sets: float) -> float:
        """The cost that falls away with so many sets that touch these layers."""
        saved = 0.0
        for index, inputs, outputs in touches:
            if index in self.inputs:
                now = self.inputs[index], self.outputs[index]
                then = max(now[0] - sets * inputs, 0), max(now[1] - sets * outputs, 0)
                cost = self._costs.convolution_cost
                saved += cost(index, *now) - cost(index, *then)
            elif index in self.outputs:
                saved += sets * outputs * self._value_cost(index)
        return saved

    def saved_by_layers(self, layers: tuple[int, ...]) -> float:
        """The cost that falls away with whole layers."""
        return sum(
            self._costs.convolution_cost(index, self.inputs[index], self.outputs[index])
            if index in self.inputs
            else self.outputs[index] * self._value_cost(index)
            for index in layers
        )

    def remove(self, touches: tuple[Touch, ...], sets: int) -> None:
        """Remove so many sets that touch these layers."""
        for index, inputs, outputs in touches:
            if index in self.inputs:
                self.inputs[index] -= sets * inputs
            if index in self.outputs:
                self.outputs[index] -= sets * outputs

    def remove_layers(self, layers: tuple[int, ...]) -> None:
        """Remove whole layers."""
        for index in layers:
            self.inputs.pop(index, None)
            self.outputs.pop(index)

    def _value_cost(self, index: int) -> float:
        """The cost of one channel of a layer that is not a convolution."""
        layer = self._layers[index]
        return values_written(layer) / layer.channels * self._costs.per_value


def set_prices(coupling: Coupling, prunable: list[int], costs: Costs) -> np.ndarray:
    """(number of sets,) what the removal of each set saves, relative to the mean over the prunable ones.

    Prices are at least about LEAST_PRICE, their mean over ``prunable`` is 1, and those of other sets are 1.
    """
    prices = np.ones(len(coupling.sets))
    touches, counts, known = set_touches(coupling), Counts(coupling, costs), {}
    for number in prunable:
        if touches[number] not in known:
            known[touches[number]] = counts.saved(touches[number], costs.group) / costs.group
        prices[number] = known[touches[number]]
    if prunable:
        of_prunable = prices[prunable]
        mean = of_prunable.mean()
        of_prunable = (of_prunable / mean).clip(min=LEAST_PRICE) if mean > 0 else np.ones(len(prunable))
        prices[prunable] = of_prunable / of_prunable.mean()
    return prices
