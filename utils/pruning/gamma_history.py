"""What the gammas did during a training run, epoch by epoch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_writer
from utils.pruning.coupling import Coupling
from utils.pruning.selection import Gammas, allowed_ratio, prunable_channels

# A gamma below this counts as near zero in the reports.
NEAR_ZERO = 1e-3
HISTOGRAM_BINS = 100


@dataclass
class GammaHistory:
    """What the gammas of the prunable channels did, epoch by epoch, for the tables and plots.

    Attributes:
        epochs: the epoch numbers.
        quintiles: for each epoch the five quintiles of |gamma| (20 %, 40 %, ... 100 %).
        near_zero: the share of gammas below NEAR_ZERO.
        zero: the share of gammas that are exactly 0.
        allowed: the share of channels that a global threshold could cut before a layer is empty.
        first_layer: |gamma| of the first BatchNorm's channels.
        histograms: counts of |gamma| in HISTOGRAM_BINS bins from 0 to ``top``.
        top: the upper end of the histograms: somewhat more than the largest gamma of the first epoch.
    """

    epochs: list[int] = field(default_factory=list)
    quintiles: list[np.ndarray] = field(default_factory=list)
    near_zero: list[float] = field(default_factory=list)
    zero: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    first_layer: list[np.ndarray] = field(default_factory=list)
    histograms: list[np.ndarray] = field(default_factory=list)
    top: float = 0.0

    def record(self, epoch: int, coupling: Coupling, strategy: str, sizes: Gammas) -> None:
        """Add the state after ``epoch``: ``sizes``, |gamma| of the network that ``coupling`` is of."""
        masks = prunable_channels(coupling, strategy)
        gammas = np.concatenate([np.zeros(0, np.float32), *(sizes[index][mask] for index, mask in masks.items())])
        self.top = self.top or 1.25 * float(gammas.max(initial=1e-6))
        self.epochs.append(epoch)
        self.quintiles.append(np.quantile(gammas, np.linspace(0.2, 1, 5)) if len(gammas) else np.zeros(5))
        self.near_zero.append(float((gammas < NEAR_ZERO).mean()) if len(gammas) else 0.0)
        self.zero.append(float((gammas == 0).mean()) if len(gammas) else 0.0)
        self.allowed.append(allowed_ratio(coupling, strategy, sizes))
        self.first_layer.append(next(iter(sizes.values()), np.zeros(0, np.float32)))
        self.histograms.append(np.histogram(gammas.clip(max=self.top), HISTOGRAM_BINS, (0, self.top))[0])

    def save(self, path: Path) -> None:
        """Write as ``.npz``."""
        with atomic_writer(path) as file:
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, before: int) -> "GammaHistory":
        """Read what was recorded before epoch ``before``; nothing where there is no file."""
        if not path.exists():
            return cls()
        with np.load(path) as saved:
            rows = int((saved["epochs"] < before).sum())
            lists = {name: list(saved[name][:rows]) for name in saved.files if name != "top"}
            return cls(**lists, top=float(saved["top"]))
