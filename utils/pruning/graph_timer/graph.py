"""What a graph is, and the values of its weights and of its input.

A graph is a dict: the input's ``channels``, ``height`` and ``width``, and ``layers``, each a dict with ``op``, ``from``
(the numbers of the layers that it reads, -1 is the input) and what the op needs. A convolution may have its ``kernel``
(outputs, inputs / groups, size, size) and ``bias`` (outputs,) as arrays; else they are random. Weights can matter for
the time: where channels are no multiple of 4, NCNN's leaky ReLU branches on the sign of each value.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

Graph = dict[str, Any]
ACTIVATIONS = ("linear", "leaky", "relie", "relu", "relu6", "logistic", "tanh", "elu", "mish", "swish", "h_swish")


def weights(*shape: int, fan: int = 1, seed: int = 0) -> np.ndarray:
    """Float32 weights of this shape whose outputs are about as large as the inputs, of which there are ``fan``."""
    values = np.random.default_rng(seed).uniform(-1, 1, 4099).astype(np.float32) * np.float32((3 / fan) ** 0.5)
    return np.resize(values, shape)


def kernel_of(layer: dict[str, Any]) -> np.ndarray:
    """The kernel (outputs, inputs / groups, size, size) of a convolution."""
    if "kernel" in layer:
        return layer["kernel"]
    shape = layer["outputs"], layer["inputs"] // layer["groups"], layer["size"], layer["size"]
    return weights(*shape, fan=shape[1] * layer["size"] ** 2)


def bias_of(layer: dict[str, Any]) -> np.ndarray:
    """The bias (outputs,) of a convolution."""
    return layer["bias"] if "bias" in layer else 0.1 * weights(layer["outputs"], seed=1)


def image(graph: Graph) -> np.ndarray:
    """An input of random values in [0, 1]."""
    return np.abs(weights(1, graph["channels"], graph["height"], graph["width"], fan=3))


def sources(graph: Graph) -> Iterator[tuple[dict[str, Any], str, list[str]]]:
    """Each layer with the name of its output and those of its inputs."""
    for index, layer in enumerate(graph["layers"]):
        yield layer, f"x{index}", [f"x{source}" if source >= 0 else "images" for source in layer["from"]]
