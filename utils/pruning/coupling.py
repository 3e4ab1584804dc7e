"""Channel coupling: which channels of which convolutions live or die together.

Every output channel of every convolution gets a number, and the output of each layer is an array of channel numbers:
a route concatenates arrays, a shortcut joins two arrays element by element (union-find). A set of joined channels
lives or dies as one. A set is fixed where a cfg cannot express its loss, and says why.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from utils.darknet import layers
from utils.darknet.activations import NOT_ZERO_AT_ZERO
from utils.darknet.layers import IMAGE
from utils.darknet.spec import NetworkSpec


@dataclass(frozen=True)
class ChannelSet:
    """Channels that live or die together.

    Attributes:
        members: (layer number, channel) of each convolution output in the set, in order of layers.
        fixed: why the set must live; None where it may die.
        gated: whether a gate reads it, so that its dead channels must be silenced (beta 0 too).
    """

    members: tuple[tuple[int, int], ...]
    fixed: str | None
    gated: bool

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer numbers of its members."""
        return tuple(dict.fromkeys(layer for layer, _ in self.members))


@dataclass
class Coupling:
    """The coupled channels of a network.

    Attributes:
        spec: the network.
        outputs: for each layer number (and ``IMAGE``) the numbers of the channel sets that its output consists of.
        sets: the sets, by number; the image's channels are sets without members, and fixed.
    """

    spec: NetworkSpec
    outputs: dict[int, np.ndarray]
    sets: list[ChannelSet] = field(default_factory=list)

    def inputs(self, layer: layers.Layer) -> np.ndarray:
        """The set numbers of the channels that a layer with one source reads."""
        return self.outputs[layer.sources[0]]

    @property
    def set_sizes(self) -> np.ndarray:
        """(number of sets,) how many channels of convolutions each set has."""
        return np.array([len(channel_set.members) for channel_set in self.sets])

    def describe(self) -> str:
        """The coupling as text: the groups of convolutions that share sets, and why a convolution is fixed."""
        groups: dict[tuple, int] = {}
        for channel_set in self.sets:
            if channel_set.members:
                key = (channel_set.layers, channel_set.fixed, channel_set.gated)
                groups[key] = groups.get(key, 0) + 1
        lines = []
        for (numbers, fixed, gated), count in sorted(groups.items(), key=lambda item: item[0][0]):
            notes = f"; fixed: {fixed}" if fixed else "; behind a gate" if gated else ""
            lines.append(f"{count:5} sets over layers {', '.join(map(str, numbers))}{notes}")
        return "\n".join(lines)


class _Channels:
    """Union-find over channel numbers, and why channels are fixed."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.fixed: dict[int, str] = {}
        self.gated: set[int] = set()
        self.not_zero_at_zero: dict[int, str] = {}  # channels whose activation of 0 is not 0, and why

    def new(self, count: int) -> np.ndarray:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            if low != high:
                self.parent[high] = low

    def fix(self, numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            self.fixed.setdefault(int(number), reason)

    def mark_not_zero_at_zero(self, numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            self.not_zero_at_zero.setdefault(int(number), reason)


def couple(spec: NetworkSpec) -> Coupling:
    """Couple the channels of a network.

    Four channels as an example: convolutions 0 and 1 have two filters each, shortcut 2 adds both outputs, and route 3
    concatenates the sum with the output of convolution 1.

    >>> from utils.darknet.spec import parse_network
    >>> net = {"type": "net", "width": "32", "height": "32"}
    >>> convolution = {"type": "convolutional", "batch_normalize": "1", "filters": "2", "size": "1"}
    >>> shortcut = {"type": "shortcut", "from": "-2", "activation": "linear"}
    >>> route = {"type": "route", "layers": "-1,1"}
    >>> head = [{"type": "convolutional", "filters": "6", "size": "1", "activation": "linear"}]
    >>> head += [{"type": "yolo", "mask": "0", "anchors": "8,8", "classes": "1", "num": "1"}]
    >>> coupling = couple(parse_network([net, convolution, convolution, shortcut, route, *head]))
    >>> {index: coupling.outputs[index].tolist() for index in (-1, 0, 1, 2, 3)}
    {-1: [0, 1, 2], 0: [3, 4], 1: [3, 4], 2: [3, 4], 3: [3, 4, 3, 4]}
    >>> coupling.sets[3].members, coupling.sets[4].members
    (((0, 0), (1, 0)), ((0, 1), (1, 1)))

    The shortcut adds channel 0 of convolution 0 to channel 0 of convolution 1, so these are one set, number 3: one
    cannot be removed without the other. Where set 3 dies, convolution 4, which reads the route, loses its inputs 0
    and 2:

    >>> (coupling.outputs[3] != 3).tolist()
    [False, True, False, True]
    """
    channels = _Channels()
    outputs = {IMAGE: channels.new(spec.channels)}
    channels.fix(outputs[IMAGE], "the image")
    owner: dict[int, tuple[int, int]] = {}
    for layer in spec.layers:
        sources = [outputs[source] for source in layer.sources]
        outputs[layer.index] = _propagate(layer, sources, channels)
        activation = getattr(layer, "activation", None)
        if activation in NOT_ZERO_AT_ZERO and getattr(layer, "batch_normalize", True):
            reason = f"{activation} in layer {layer.index} does not map 0 to 0"
            channels.mark_not_zero_at_zero(outputs[layer.index], reason)
        if isinstance(layer, layers.Convolution):
            owner.update({int(n): (layer.index, k) for k, n in enumerate(outputs[layer.index])})
    _fix_without_gammas(spec, outputs, channels)
    return _collect(spec, outputs, channels, owner)


def _propagate(layer: layers.Layer, sources: list[np.ndarray], channels: _Channels) -> np.ndarray:
    """The channel numbers of a layer's output; joins and fixes on the way."""
    match layer:
        case layers.Convolution():
            numbers = channels.new(layer.channels)
            if layer.depthwise:
                channels.join(sources[0], numbers)
            elif layer.groups > 1:
                channels.fix(
                    (*sources[0], *numbers), f"layer {layer.index} is a convolution with groups={layer.groups}"
                )
            return numbers
        case layers.Route():
            if layer.groups == 1:
                return np.concatenate(sources)
            for source in sources:
                channels.fix(source, f"layer {layer.index} takes one of groups={layer.groups} of it")
            return np.concatenate([np.split(source, layer.groups)[layer.group_id] for source in sources])
        case layers.Shortcut():
            first, *others = sources
            for other in others:
                both = min(len(first), len(other))
                channels.join(first[:both], other[:both])
            return first
        case layers.ScaleChannels() | layers.Sam():
            gate, gated = sources
            channels.join(gate, gated)
            channels.gated.update(gated.tolist())
            return gated
        case layers.Reorg3d():
            return np.tile(sources[0], layer.stride**2)
        case layers.Reorg():
            channels.fix(sources[0], f"layer {layer.index}, [reorg], mixes positions into channels")
            numbers = channels.new(layer.channels)
            channels.fix(numbers, f"layer {layer.index}, [reorg], mixes positions into channels")
            return numbers
        case layers.Yolo():
            channels.fix(sources[0], f"layer {layer.index}, [yolo], reads it")
            return sources[0]
        case _:
            return sources[0]


def _fix_without_gammas(spec: NetworkSpec, outputs: dict[int, np.ndarray], channels: _Channels) -> None:
    """Fix the outputs of convolutions without BN, which have no gamma; those of a gate follow the set that it gates."""
    consumers = spec.consumers
    for layer in spec.convolutions:
        if layer.batch_normalize:
            continue
        readers = consumers[layer.index]
        gate_only = readers and all(
            isinstance(reader, layers.ScaleChannels | layers.Sam)
            and reader.sources[0] == layer.index
            and layer.index not in reader.sources[1:]
            for reader in readers
        )
        if not gate_only:
            channels.fix(outputs[layer.index], f"layer {layer.index} has no BatchNorm")


def _collect(
    spec: NetworkSpec, outputs: dict[int, np.ndarray], channels: _Channels, owner: dict[int, tuple[int, int]]
) -> Coupling:
    roots = [channels.root(number) for number in range(len(channels.parent))]
    number_of = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    set_of = np.array([number_of[root] for root in roots])
    members: list[list[tuple[int, int]]] = [[] for _ in number_of]
    for number, place in owner.items():
        members[set_of[number]].append(place)
    fixed = {int(set_of[number]): reason for number, reason in reversed(channels.fixed.items())}
    gated = {int(set_of[number]) for number in channels.gated}
    for number, reason in channels.not_zero_at_zero.items():
        if set_of[number] in gated:
            fixed.setdefault(int(set_of[number]), f"a gate reads it, and {reason}")
    sets = [ChannelSet(tuple(places), fixed.get(number), number in gated) for number, places in enumerate(members)]
    return Coupling(spec, {index: set_of[numbers] for index, numbers in outputs.items()}, sets)
