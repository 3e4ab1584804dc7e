"""Which coupled sets a pruning keeps, and the questions that are asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.darknet import layers
from utils.pruning.coupling import Coupling


@dataclass(frozen=True)
class PruneMask:
    """Which coupled sets are dead, which are kept, and the constants that the dead channels hold.

    A set that is both dead and kept is a *carrier*: its channels are constants, and stay to carry those of others
    (:mod:`utils.pruning.constants`).

    Attributes:
        coupling: the coupled channels of the network that is pruned.
        dead: (number of sets,) bool, the sets whose gammas are 0.
        keep: (number of sets,) bool, the sets that the compact network has: every living one, and the carriers.
        constants: for each layer number (and ``IMAGE``) the constant of each channel of its output, (channels,)
            float64; NaN for the living.
    """

    coupling: Coupling
    dead: np.ndarray
    keep: np.ndarray
    constants: Mapping[int, np.ndarray]

    @property
    def carriers(self) -> np.ndarray:
        """(number of sets,) bool, the sets that are kept as constants."""
        return self.keep & self.dead

    @property
    def carrier_channels(self) -> int:
        """How many channels are kept as constants."""
        return int(self.coupling.set_sizes[self.carriers].sum())

    @property
    def removed_channels(self) -> int:
        """How many channels are removed."""
        return sum(int((~self.kept_outputs(layer.index)).sum()) for layer in self.coupling.spec.convolutions)

    def kept_outputs(self, index: int) -> np.ndarray:
        """(channels,) bool, the output channels that layer ``index`` keeps."""
        return self.keep[self.coupling.outputs[index]]

    def kept_inputs(self, layer: layers.Layer) -> np.ndarray:
        """(channels,) bool, the input channels that a layer with one source keeps."""
        return self.keep[self.coupling.inputs(layer)]

    def channel_counts(self) -> dict[int, int]:
        """How many channels each convolution keeps, by layer number."""
        return {layer.index: int(self.kept_outputs(layer.index).sum()) for layer in self.coupling.spec.convolutions}

    def removed_constants(self, layer: layers.Layer) -> np.ndarray:
        """(channels,) float64, the constants of the input channels that are removed; 0 for those that are kept."""
        return np.where(self.kept_inputs(layer), 0.0, np.nan_to_num(self.constants[layer.sources[0]]))

    def strongest_carrier(self, layer: layers.Layer) -> tuple[int, float] | None:
        """The input channel of ``layer`` that is the carrier of the largest |constant|, and that constant.

        None where no carrier is among its inputs.
        """
        candidates = self.carriers[self.coupling.inputs(layer)]
        if not candidates.any():
            return None
        constants = self.constants[layer.sources[0]]
        position = int(np.where(candidates, np.abs(constants), -1.0).argmax())
        return position, float(constants[position])
