"""What the main process prints and writes after each epoch."""

from typing import Any

from utils.pruning.coupling import couple
from utils.pruning.gamma_history import GammaHistory
from utils.pruning.penalty import gamma_sizes
from utils.pruning.selection import Gammas, sparse_ratio
from utils.training.penalty_advice import PenaltyAdvice
from utils.training.report import EpochReport, print_epoch
from utils.training.run_log import RunLog
from utils.training.runs import Run
from utils.training.trainer import Trainer


class EpochLog:
    """The log of a run: a table in the terminal, a row in log.csv, the gammas, and advice about the penalty.

    Args:
        trainer: of the run.
        run: its files.
        options: the completed options of train.py.

    Attributes:
        gammas: what the gammas did, epoch by epoch.
    """

    def __init__(self, trainer: Trainer, run: Run, options: dict[str, Any]):
        self._trainer = trainer
        self._gamma_file = run.folder / "gammas.npz"
        self._advice = PenaltyAdvice(trainer.config, trainer.rates) if trainer.penalty else None
        kept_channels = trainer.kept_channels
        self._coupling = kept_channels.coupling if kept_channels else couple(trainer.model.spec)
        self._log = RunLog(run.folder, options, trainer.epoch)
        self.gammas = GammaHistory.load(self._gamma_file, before=trainer.epoch)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of log.csv."""
        return self._log.rows

    def add(self, report: EpochReport) -> None:
        """Print and write the report of an epoch that has just ended."""
        trainer, strategy = self._trainer, self._trainer.config.strategy
        sizes: Gammas = gamma_sizes(trainer.ema.model)
        if trainer.kept_channels:
            report.channels = sum(trainer.kept_channels.counts().values())
            sizes = trainer.kept_channels.spread(sizes)
        if trainer.penalty:
            report.s = trainer.penalty.s
        self.gammas.record(report.epoch, self._coupling, strategy, sizes)
        # What a run has cut once counts as 0, and must not be called prunable.
        print_epoch(report, self.gammas, None if trainer.has_cut else sparse_ratio(self._coupling, strategy, sizes))
        self._log.add(report.row(self.gammas))
        self.gammas.save(self._gamma_file)
        if self._advice and trainer.penalty:
            self._advice.after_epoch(trainer.epoch, trainer.step, self.rows, self.gammas, trainer.penalty)

    def close(self) -> None:
        """Close the log's files."""
        self._log.close()
