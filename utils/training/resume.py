"""Going on with a run that was interrupted: whether there is one, and whose options count."""

import argparse

from utils.cli import Options
from utils.errors import InputError
from utils.training.runs import Run

# They change how a run is carried out, and not what comes of it. The cfg and the data may have moved; they are compared
# by what they hold.
FREE_OPTIONS = {
    "cache",
    "channels_last",
    "checkpoint_interval",
    "checkpoint_steps",
    "data_config",
    "debug",
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


def resume_point(args: argparse.Namespace, files: Run) -> dict | None:
    """The checkpoint to go on from, if asked to.

    Raises:
        InputError: there is nothing to resume, or an unfinished run would be lost.
    """
    if args.overwrite:
        return None
    unfinished = files.unfinished()
    if args.resume and not unfinished:
        state = "is finished; to train on, start from its weights with -pre" if files.last.exists() else ""
        raise InputError(f"--resume: the run {args.name} {state or 'has no checkpoint'} ({files.last})")
    if unfinished and not args.resume:
        raise InputError(
            f"{files.last}: the run {args.name} stopped after epoch {unfinished['epoch']} of "
            f"{unfinished['options']['epochs']}: add --resume to go on, --overwrite to give it up, or another --name"
        )
    return unfinished


def restore_options(args: Options, started: dict[str, object]) -> None:
    """Set the options that the command line did not give to those that the run was ``started`` with.

    Raises:
        InputError: an option that the command line gave contradicts them.
    """
    differing = [name for name in started if name in args.given and getattr(args, name) != started[name]]
    if contradictions := [name for name in differing if name not in FREE_OPTIONS]:
        reasons = ", ".join(f"{option(name)} {started[name]}, not {getattr(args, name)}" for name in contradictions)
        raise InputError(
            f"--resume: the run {args.name} was started with {reasons}; leave them out to go on as it was started, "
            "or start another run with another --name"
        )
    for name, value in started.items():
        if name not in args.given and name not in ("name", "resume", "overwrite", "debug"):
            setattr(args, name, value)


def option(name: str) -> str:
    """How a user writes the option that the programs call ``name``."""
    return "-sr" if name == "sr" else f"--{name}"
