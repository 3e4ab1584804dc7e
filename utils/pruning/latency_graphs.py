"""The graphs that a table of latencies holds: convolutions on a grid of channels, and whole networks.

Runtimes compute convolutions in memory layouts of their own, and convert where a graph begins and ends. A convolution
that is measured alone would therefore cost more than it does in a network, so each is measured between two 1x1
convolutions, of which there is a graph without it, too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.darknet import layers
from utils.darknet.layers import IMAGE, Convolution
from utils.darknet.spec import NetworkSpec, parse_network
from utils.errors import InputError
from utils.pruning.coupling import Coupling, couple
from utils.pruning.graph_timer.graph import ACTIVATIONS, Graph
from utils.pruning.residuals import cfg_without_blocks, residual_blocks
from utils.pruning.surgery import compact_blocks
from utils.sizes import AnySize

WIDTHS = (1.0, 0.6, 0.3, 0.0)  # shares of the channels with which the whole network is measured
RANDOM = 20  # further networks that are measured whole, of random widths and depths
GROUP = 8  # channels: runtimes compute so many or twice as many at once
BORDER = 8  # channels of the input of the convolution before the measured one, and of the output of the one after it


def grid(most: int) -> list[int]:
    """The numbers of channels to measure up to ``most``: closer where there are few.

    >>> grid(100), grid(600)[-5:]
    ([8, 16, 24, 32, 40, 48, 56, 64, 96, 100], [192, 256, 384, 512, 600])
    """
    points = list(range(GROUP, 8 * GROUP, GROUP))
    points += [size * 2**power for power in range(3, 12) for size in (GROUP, 12)]
    return [point for point in points if point < most] + [most]


@dataclass(frozen=True)
class Kind:
    """Convolutions that differ in their channels alone.

    Attributes:
        height, width: of the input.
        size, stride, padding, dilation, activation: as the cfg has them; the stride is (y, x).
        groups: 0 for a depthwise convolution, which has as many as channels.
        from_image: whether it reads the image.
    """

    height: int
    width: int
    size: int
    stride: tuple[int, int]
    padding: int
    dilation: int
    groups: int
    activation: str
    from_image: bool

    @property
    def output_size(self) -> tuple[int, int]:
        """The height and width of the output."""
        reach = 2 * self.padding - self.dilation * (self.size - 1) - 1
        return (self.height + reach) // self.stride[0] + 1, (self.width + reach) // self.stride[1] + 1

    def name(self, inputs: int, outputs: int) -> str:
        """The name of its graph in a table."""
        down, right = self.stride
        options = [f"{self.size}x{self.size}", f"stride {down}" if down == right else f"stride {down}x{right}"]
        options += [f"padding {self.padding}"] if self.padding != self.size // 2 else []
        options += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        options += ["depthwise"] if self.groups == 0 else [f"groups {self.groups}"] if self.groups > 1 else []
        options += [self.activation, f"{self.width}x{self.height}", "of the image"][: 3 if self.from_image else 2]
        return f"{' '.join(options)}: {inputs} to {outputs}"

    def graph(self, inputs: int, outputs: int) -> Graph:
        """Its graph: a 1x1 convolution, unless it reads the image; the convolution; a 1x1 convolution."""
        before = [] if self.from_image else [pointwise(BORDER, inputs, IMAGE)]
        conv = {
            "op": "conv",
            "from": [len(before) - 1],
            "inputs": inputs,
            "outputs": outputs,
            "size": self.size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups or inputs,
            "activation": self.activation,
        }
        chain = [*before, conv, pointwise(outputs, BORDER, len(before))]
        channels = inputs if self.from_image else BORDER
        return {"channels": channels, "height": self.height, "width": self.width, "layers": chain}


def pointwise(inputs: int, outputs: int, source: int) -> Graph:
    """A 1x1 convolution in a graph."""
    conv = {"op": "conv", "from": [source], "inputs": inputs, "outputs": outputs, "size": 1, "stride": (1, 1)}
    return conv | {"padding": 0, "dilation": 1, "groups": 1, "activation": "leaky"}


def border_name(size: tuple[int, int], channels: int) -> str:
    """The name in a table of the two 1x1 convolutions that a convolution is measured between."""
    return f"border {size[1]}x{size[0]}: {channels}"


def border_graph(size: tuple[int, int], channels: int) -> Graph:
    """The two 1x1 convolutions that a convolution is measured between, without it."""
    chain = [pointwise(BORDER, channels, IMAGE), pointwise(channels, BORDER, 0)]
    return {"channels": BORDER, "height": size[0], "width": size[1], "layers": chain}


def kind_of(spec: NetworkSpec, layer: Convolution) -> Kind:
    """The kind of a convolution."""
    (source,) = layer.sources
    height, width = (spec.height, spec.width) if source == IMAGE else shape(spec.layers[source])
    groups = 0 if layer.depthwise else layer.groups
    options = layer.size, layer.stride, layer.padding, layer.dilation, groups, layer.activation
    return Kind(height, width, *options, source == IMAGE)


def shape(layer: layers.Layer) -> tuple[int, int]:
    """The height and width of a layer's output."""
    return layer.height, layer.width


def network_graph(spec: NetworkSpec) -> Graph:
    """A whole network as a graph, from the image to the decoded predictions.

    Raises:
        InputError: it has a layer that no table can be made for.
    """
    graph: list[Graph] = []
    number = {IMAGE: IMAGE}  # of the layer in the graph, by that in the network

    def add(op: str, sources: Sequence[int], **options: object) -> int:
        graph.append({"op": op, "from": list(sources), **options})
        return len(graph) - 1

    for layer in spec.layers:
        sources = [number[source] for source in layer.sources]
        activation = getattr(layer, "activation", "linear")
        if activation not in ACTIVATIONS:
            raise InputError(f"{layer.where}: tables of latencies know no activation {activation}")
        match layer:
            case layers.Deconvolution():
                raise InputError(f"{layer.where}: no table of latencies can be made for this layer")
            case Convolution():
                options = {name: getattr(layer, name) for name in ("inputs", "size", "stride", "padding", "dilation")}
                options |= {"outputs": layer.channels, "groups": layer.groups, "activation": activation}
                new = add("conv", sources, **options)
            case layers.Shortcut():
                widths = [spec.layers[source].channels for source in layer.sources]
                new = sources[0]
                for source, width in zip(sources[1:], widths[1:], strict=True):
                    if width > layer.channels:
                        source, width = add("slice", [source], begin=0, end=layer.channels), layer.channels
                    first = add("slice", [new], begin=0, end=width) if width < layer.channels else new
                    both = add("add", [first, source])
                    if width < layer.channels:
                        kept = add("slice", [new], begin=width, end=layer.channels)
                        both = add("concat", [both, kept])
                    new = both
                graph[new]["activation"] = activation
            case layers.Route():
                if layer.groups > 1:
                    parts = [spec.layers[source].channels // layer.groups for source in layer.sources]
                    sources = [
                        add("slice", [source], begin=layer.group_id * part, end=(layer.group_id + 1) * part)
                        for source, part in zip(sources, parts, strict=True)
                    ]
                new = add("concat", sources) if len(sources) > 1 else sources[0]
            case layers.Upsample():
                new = add("upsample", sources, stride=layer.stride)
            case layers.MaxPool():
                op = "meanpool" if isinstance(layer, layers.LocalAvgPool) else "maxpool"
                before, after = layer.sides
                new = add(op, sources, size=layer.size, stride=layer.stride, before=before, after=after)
            case layers.AvgPool():
                new = add("avgpool", sources)
            case layers.ScaleChannels() | layers.Sam():
                new = add("multiply", sources, activation=activation)
            case layers.Activation():
                new = add("activation", sources, activation=activation)
            case layers.Reorg() | layers.Reorg3d():
                new = add("reorg", sources, stride=layer.stride)
            case layers.Yolo():
                head = {"anchors": len(layer.anchors), "values": 5 + layer.classes}
                new = add("yolo", sources, height=layer.height, width=layer.width, **head)
            case layers.Dropout() | layers.Empty():
                (new,) = sources
            case _:
                raise InputError(f"{layer.where}: no table of latencies can be made for this layer")
        number[layer.index] = new
    return {"channels": spec.channels, "height": spec.height, "width": spec.width, "layers": graph}


def whole_networks(spec: NetworkSpec) -> dict[str, NetworkSpec]:
    """The networks that are measured whole, by their names in a table: of several widths and depths."""
    content = json.dumps(network_graph(spec)).encode()
    title = f"network {hashlib.sha256(content).hexdigest()[:10]} {spec.width}x{spec.height}"
    coupling, size = couple(spec), (spec.height, spec.width)
    networks = {f"{title}: width {share:g}": with_width(coupling, size, share) for share in WIDTHS}
    for number in range(RANDOM):
        networks[f"{title}: random {number + 1}"] = random_network(spec, number)
    return networks


def random_network(spec: NetworkSpec, seed: int) -> NetworkSpec:
    """The network without some of its residual blocks, each group of channels with another share of them."""
    random, blocks = np.random.default_rng(seed), residual_blocks(spec)
    gone = random.permutation(len(blocks))[: int(random.integers(len(blocks) + 1))]
    size = spec.height, spec.width
    coupling = couple(parse_network(cfg_without_blocks(spec, [blocks[number] for number in gone])).at(size))
    power = float(np.exp(random.normal(0, 0.8)))  # large: most shares are small
    shares = {key: float(random.uniform() ** power) for key in set_groups(coupling)}
    return with_width(coupling, size, shares)


def with_width(coupling: Coupling, img_size: AnySize, shares: Mapping[tuple, float] | float) -> NetworkSpec:
    """The network with a share of its channels, a multiple of GROUP wherever it has so many.

    Args:
        coupling: its coupled channels.
        img_size: the size of the images that the result is for.
        shares: of each group of sets over the same layers, or of all.
    """
    keep = np.ones(len(coupling.sets), bool)
    for key, numbers in set_groups(coupling).items():
        share = shares if isinstance(shares, float) else shares[key]
        count = min(max(round(share * len(numbers) / GROUP), 1) * GROUP, len(numbers))
        keep[numbers[count:]] = False
    return spec_of(coupling, keep, img_size)


def set_groups(coupling: Coupling) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the sets that are not fixed, by the layers that they lie in."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, channel_set in enumerate(coupling.sets):
        if not channel_set.fixed:
            groups.setdefault(channel_set.layers, []).append(number)
    return groups


def spec_of(coupling: Coupling, keep: np.ndarray, img_size: AnySize) -> NetworkSpec:
    """The network of the sets ``keep``, (number of sets,) bool."""
    counts = {layer.index: int(keep[coupling.outputs[layer.index]].sum()) for layer in coupling.spec.convolutions}
    return parse_network(compact_blocks(coupling.spec.blocks, counts)).at(img_size)


def table_graphs(spec: NetworkSpec) -> dict[str, Graph]:
    """The graphs that a table for this network, at its size, must have, by name.

    Raises:
        InputError: it has a layer that no table can be made for.
    """
    graphs: dict[str, Graph] = {}
    for kind, (inputs, outputs) in axes(spec).items():
        pairs = [(n, n) for n in inputs] if kind.groups == 0 else [(i, o) for i in inputs for o in outputs]
        for i, o in pairs:
            if not kind.from_image:
                graphs[border_name((kind.height, kind.width), i)] = border_graph((kind.height, kind.width), i)
            graphs[border_name(kind.output_size, o)] = border_graph(kind.output_size, o)
            graphs[kind.name(i, o)] = kind.graph(i, o)
    # A machine gets slower and faster with what else it does: networks are measured all along, not at one time.
    names, networks = list(graphs), whole_networks(spec)
    every = -(-len(names) // len(networks))
    for number, (name, network) in enumerate(networks.items()):
        names.insert(number * (every + 1), name)
        graphs[name] = network_graph(network)
    return {name: graphs[name] for name in names}


def axes(spec: NetworkSpec) -> dict[Kind, tuple[list[int], list[int]]]:
    """The kinds of convolutions of a network, and the numbers of input and output channels to measure each with."""
    coupling = couple(spec)
    fixed = np.array([channel_set.fixed is not None for channel_set in coupling.sets])
    points: dict[Kind, tuple[set[int], set[int]]] = {}
    for layer in spec.convolutions:
        sides = coupling.inputs(layer), coupling.outputs[layer.index]
        for side, of_kind in zip(sides, points.setdefault(kind_of(spec, layer), (set(), set())), strict=True):
            of_kind.update([len(side)] if fixed[side].all() else grid(len(side)))
    return {kind: (sorted(inputs), sorted(outputs)) for kind, (inputs, outputs) in points.items()}
