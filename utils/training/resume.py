"""Resuming a run that was interrupted: whether there is one, and which options it had."""

import argparse
from typing import Any

from utils import distributed
from utils.cli import Options
from utils.detection.checkpoints import read_checkpoint
from utils.errors import InputError
from utils.pruning.schedules import SCHEDULES
from utils.training.config import CUT
from utils.training.runs import Run, is_pruned_cfg, remove_partial_files, total_epochs
from utils.training.state import restore_training
from utils.training.trainer import Trainer

# Options that may differ on resume: they do not affect the result. The cfg and the data may have moved; their contents
# are compared.
FREE_OPTIONS = {
    "cache",
    "channels_last",
    "checkpoint_interval",
    "checkpoint_steps",
    "data_config",
    "debug",
    "device",
    "evaluation_interval",
    "labels_with_score",
    "model_def",
    "n_cpu",
    "name",
    "overwrite",
    "resume",
    "skip_bad",
    "strict",
}


def resume_point(args: argparse.Namespace, run: Run) -> dict[str, Any] | None:
    """The checkpoint to resume from, if asked to.

    Raises:
        InputError: there is nothing to resume, the run cannot be resumed, or an unfinished run would be lost.
    """
    if args.overwrite:
        return None
    unfinished = run.unfinished()
    if args.resume and not unfinished:
        state = "is finished; to train on, start from its weights with -pre" if run.last.exists() else ""
        raise InputError(f"--resume: the run {args.name} {state or 'has no checkpoint'} ({run.last})")
    if unfinished and not args.resume:
        epochs = total_epochs(unfinished["options"])
        raise InputError(
            f"{run.last}: the run {args.name} stopped after epoch {unfinished['epoch']} of {epochs}: "
            "add --resume to go on, --overwrite to give it up, or another --name"
        )
    schedule = unfinished["options"].get("s_schedule") if unfinished else None
    known = (CUT, *SCHEDULES)
    if schedule and schedule not in known:
        raise InputError(
            f"--resume: the run {args.name} was started with --s_schedule {schedule}, which no longer exists: "
            f"start another run with one of {', '.join(known)}"
        )
    return unfinished


def was_pruned(checkpoint: dict[str, Any]) -> bool:
    """Whether the network of the run that ``checkpoint`` is of is a pruned one.

    Checkpoints of older versions do not say so; there it is one that started from the weights of a pruned cfg, by its
    file name.
    """
    started = checkpoint["options"]
    by_name = bool(started.get("pretrained_weights")) and is_pruned_cfg(started["model_def"])
    return checkpoint.get("pruned", by_name)


def resume_run(trainer: Trainer, checkpoint: dict[str, Any], run: Run) -> None:
    """Take ``trainer`` to where the run stopped, and print where that is.

    Raises:
        InputError: the checkpoint belongs to another cfg, or to a data set of another size.
    """
    remove_partial_files(run)
    restore_training(trainer, checkpoint, run.last)
    # It may be of a later epoch than the checkpoint, which is to be trained again.
    if run.best.exists() and not trainer.config.sparsity:
        trainer.best_map = max(trainer.best_map, read_checkpoint(run.best).get("best_map", 0.0))
    within = f", batch {trainer.progress.batches + 1}" if trainer.progress.batches else ""
    print(f"resuming {run.name} at epoch {trainer.epoch + 1}{within}")


def restore_options(args: Options, started: dict[str, object]) -> None:
    """Set the options that the command line did not give to those that the run was ``started`` with.

    Raises:
        InputError: an option that the command line gave contradicts them.
    """
    differing = [name for name in started if name in args.given and getattr(args, name) != started[name]]
    if contradictions := [name for name in differing if name not in FREE_OPTIONS]:
        reasons = ", ".join(
            f"{option(name)} {words(started[name])}, not {words(getattr(args, name))}" for name in contradictions
        )
        raise InputError(
            f"--resume: the run {args.name} was started with {reasons}; leave them out to go on as it was started, "
            "or start another run with another --name"
        )
    own = {"name", "resume", "overwrite", "debug", *args.given}
    if distributed.world() > 1:  # each process has its own GPU
        own.add("device")
    for name in started.keys() - own:
        setattr(args, name, started[name])
    args.total_epochs = total_epochs(started)
    args.cut_epoch = started.get("cut_epoch", 0)  # older versions had no cut
    if isinstance(args.cache, bool):  # as checkpoints of older versions have it
        args.cache = "ram" if args.cache else "none"


def words(value: object) -> str:
    """How a user writes the value of an option."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def option(name: str) -> str:
    """How a user writes the option that the programs call ``name``."""
    return "-sr" if name == "sr" else f"--{name}"
