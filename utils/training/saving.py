"""When a run writes which of its checkpoints."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from utils import distributed
from utils.darknet.cfg import format_cfg
from utils.detection.checkpoints import save_checkpoint
from utils.files import write_text
from utils.training.runs import Run, digest
from utils.training.state import training_state
from utils.training.trainer import Trainer


def is_due(every: int, done: int) -> bool:
    """Whether what happens every so many epochs or steps is due after number ``done``, from 1; 0 is never."""
    return every > 0 and done % every == 0


@dataclass(frozen=True)
class CheckpointWriter:
    """Writes the checkpoints of a run, from the main process.

    Attributes:
        trainer: of the run.
        run: its files.
        names: class names.
        options: the completed options of train.py.
    """

    trainer: Trainer
    run: Run
    names: list[str]
    options: dict[str, Any]

    def due(self) -> bool:
        """Whether the checkpoint to resume from is written after the epoch that has just ended."""
        config, done = self.trainer.config, self.trainer.epoch
        return done == config.epochs or is_due(config.checkpoint_interval, done)

    def save_epoch(self, mean_ap: float | None) -> None:
        """Write the checkpoints that are due after an epoch whose evaluation, if it had one, gave ``mean_ap``.

        The one to resume from comes last: once it is written, so are the log, the plots and all else of its epoch.
        """
        trainer, config, due = self.trainer, self.trainer.config, self.due()
        is_best = mean_ap is not None and mean_ap > trainer.best_map
        trainer.best_map = max(trainer.best_map, mean_ap or 0.0)
        # An early best of sparse training is not sparse yet.
        if distributed.is_main() and (due if config.sparsity else is_best or not self.run.best.exists()):
            save_checkpoint(self.run.best, trainer.ema.model, **self._metadata())
        if distributed.is_main() and due and config.cuts_channels:
            write_text(self.run.cfg(config.model_def), format_cfg(trainer.model.blocks))
        if due:
            self.save_last()

    def save_before_cut(self) -> None:
        """Write the network before the cut: what is left is compared with it, and may learn from it."""
        if distributed.is_main():
            save_checkpoint(self.run.before_cut, self.trainer.ema.model, **self._metadata())

    def save_last(self) -> None:
        """Write the checkpoint to resume from, between two optimizer steps; all processes must call this."""
        trainer = self.trainer
        trainer.check_finite()
        trainer.gather()
        if distributed.is_main():
            state = training_state(trainer)
            save_checkpoint(self.run.last, trainer.ema.model, **self._metadata(), training=state)

    @cached_property
    def _before_cut_digest(self) -> str:
        return digest(self.run.before_cut)

    def _metadata(self) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        trainer = self.trainer
        metadata = {
            "names": self.names,
            "img_size": trainer.config.img_size,
            "epoch": trainer.epoch,
            "step": trainer.step,
            "best_map": trainer.best_map,
            "options": self.options,
            "strategy": trainer.config.strategy,
            "pruned": trainer.pruned,
        }
        if trainer.has_cut:
            metadata["before_cut"] = str(self.run.before_cut)
            if self.run.before_cut.exists():
                metadata["before_cut_digest"] = self._before_cut_digest
        return metadata
