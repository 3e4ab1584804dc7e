"""What a training run does, as plain values: built once from the options of train.py, and never changed."""

import argparse
from dataclasses import dataclass, fields

import torch

from utils.pruning.budget import DEFAULT_RATIO, Budget
from utils.sizes import AnySize

# The run cuts the least important channels once, and trains what is left as an ordinary network.
CUT = "cut"
# Where a run with CUT starts from scratch, this share of its epochs trains the network that is to be cut. An epoch
# before the cut costs as much as many after it, which teach more.
BEFORE_CUT = 0.1


def epochs_before_cut(epochs: int) -> int:
    """How many of a run's ``epochs`` come before its cut where it starts from scratch; at least one comes after it."""
    return min(max(1, round(BEFORE_CUT * epochs)), epochs - 1)


@dataclass(frozen=True)
class SparsityConfig:
    """How a run with ``-sr`` makes its network small.

    Attributes:
        s: strength of the penalty; the schedule ``target`` finds the strength itself and ignores it.
        schedule: how the penalty changes during the run, see :mod:`utils.pruning.schedules`; or CUT, without penalty.
        ratio: share of the prunable channels that will be cut.
        method: "proximal" or "subgradient", see :mod:`utils.pruning.penalty`.
        cut_epoch: under the schedule CUT, the epochs before the cut.
        target_macs, target_params: under the schedule CUT, the shares of the MACs and of the parameters to leave, in
            place of ``ratio``.
        penalty_cost: what prices the penalty, one of :data:`utils.pruning.costs.COSTS`.
        target_ms: under the schedule CUT, the milliseconds of the network to leave, by ``latency_table``.
        latency_table: the CSV file of a table of latencies.
    """

    s: float = 0.01
    schedule: str = "constant"
    ratio: float = DEFAULT_RATIO
    method: str = "proximal"
    cut_epoch: int = 0
    target_macs: float | None = None
    target_params: float | None = None
    penalty_cost: str = "uniform"
    target_ms: float | None = None
    latency_table: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the run cuts its network once, and has no penalty."""
        return self.schedule == CUT

    @property
    def budget(self) -> Budget:
        """How much the one cut of the schedule CUT prunes."""
        return Budget(self.ratio, self.target_macs, self.target_params, self.target_ms)

    @classmethod
    def from_options(cls, args: argparse.Namespace) -> "SparsityConfig":
        """The settings that the completed options of train.py ask for."""
        return cls(
            s=args.s,
            schedule=args.s_schedule,
            ratio=args.target_percent,
            method=args.sr_method,
            cut_epoch=args.cut_epoch,
            target_macs=args.target_macs,
            target_params=args.target_params,
            penalty_cost=args.penalty_cost,
            target_ms=args.target_ms,
            latency_table=args.latency_table,
        )


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. Each is named after the option of train.py that sets it.

    Attributes:
        sparsity: of a run that makes the network small, by one cut or by a penalty on the gammas; else None.
    """

    # Network and data; the file names are only for messages.
    model_def: str = "the cfg"
    data_config: str = "the data set"
    img_size: AnySize = 416  # of the images

    # Optimisation
    epochs: int = 100  # also those that the option --epochs gives in exchange for what a cut saves
    batch_size: int = 16  # global batch size: images per step over all processes, divided by accumulate
    accumulate: int = 1  # batches per optimizer step
    learning_rate: float = 0.01  # after the warm-up
    multiscale_training: bool = False
    precision: str = "full"
    channels_last: bool = True
    sync_bn: bool = False
    seed: int = 0

    # Sparsity and pruning
    strategy: str = "normal"  # which channels may be pruned: their gammas are reported, and penalised with sparsity
    sparsity: SparsityConfig | None = None
    prune_every: int = 0  # epochs between cuts of dead channels; 0: no cuts
    distill: bool = False  # after a single cut: learn also from the network before it

    # Run
    evaluation_interval: int = 1  # epochs
    checkpoint_interval: int = 5  # epochs
    checkpoint_steps: int = 0  # optimizer steps between checkpoints within an epoch; 0: none

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of images, kernels and feature maps."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def cuts_channels(self) -> bool:
        """Whether the run cuts channels out of its network."""
        return self.prune_every > 0 or bool(self.sparsity and self.sparsity.is_cut)

    @classmethod
    def from_options(cls, args: argparse.Namespace) -> "TrainConfig":
        """The settings that the completed options of train.py ask for."""
        sparsity = SparsityConfig.from_options(args) if args.sr else None
        names = {field.name for field in fields(cls)} - {"epochs", "sparsity"}
        return cls(epochs=args.total_epochs, **{name: getattr(args, name) for name in names}, sparsity=sparsity)
