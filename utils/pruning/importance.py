"""How important a coupled set is to a network that was not trained sparse.

In a sparse network the |gamma| of a set's members says it (:func:`utils.pruning.selection.set_importance`). In an
ordinary network it does not: a smaller gamma with larger kernels behind it computes the same. There the kernels count.
"""

import numpy as np
import torch

from models import Darknet
from utils.pruning.coupling import Coupling
from utils.pruning.penalty import gamma_sizes
from utils.pruning.selection import prunable_sets, set_importance

IMPORTANCES = ("gamma", "magnitude")


def importance(model: Darknet, coupling: Coupling, strategy: str, kind: str) -> np.ndarray:
    """(number of sets,) the importance of each set that ``strategy`` may let die; infinity for the others.

    Args:
        model: the network.
        coupling: its coupled channels.
        strategy: one of :data:`utils.pruning.selection.STRATEGIES`.
        kind: one of IMPORTANCES.
    """
    if kind == "gamma":
        return set_importance(coupling, strategy, gamma_sizes(model))
    scores = np.full(len(coupling.sets), np.inf)
    prunable = prunable_sets(coupling, strategy)
    scores[prunable] = magnitude(model, coupling)[prunable]
    return scores


@torch.no_grad()
def magnitude(model: Darknet, coupling: Coupling) -> np.ndarray:
    """(number of sets,) the mean squared norm of all that belongs to a set, relative to sets over the same layers.

    What belongs to a set are the kernels that write its channels, their gammas, and the parts of the kernels that read
    them (the group of DepGraph, arXiv 2301.12900, section 3.3). Layers differ in the size of their kernels for many
    reasons, so a global comparison needs the ratio to the mean over the sets of the same layers.
    """
    total, parts = np.zeros(len(coupling.sets)), np.zeros(len(coupling.sets))

    def add(sets: np.ndarray, squares: torch.Tensor) -> None:
        np.add.at(total, sets, squares.cpu().double().numpy())
        np.add.at(parts, sets, 1)

    for layer in coupling.spec.convolutions:
        squares = layer.kernel(model.conv(layer.index).weight).square()
        add(coupling.outputs[layer.index], squares.sum(dim=(1, 2, 3)))
        if layer.batch_normalize:
            add(coupling.outputs[layer.index], model.batch_norm(layer.index).weight.square())
        if layer.groups == 1:
            add(coupling.inputs(layer), squares.sum(dim=(0, 2, 3)))
    mean = total / parts.clip(min=1)
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, channel_set in enumerate(coupling.sets):
        alike.setdefault(channel_set.layers, []).append(number)
    for numbers in alike.values():
        mean[numbers] /= max(mean[numbers].mean(), np.finfo(float).tiny)
    return mean
