"""What a checkpoint keeps of a training run, so that it goes on as if it had never been interrupted.

``training`` in a checkpoint is a dict of plain values and tensors: ``model`` (the weights in training; the checkpoint's
own ``model`` is their average), ``optimizer``, ``scaler``, ``ema_updates``, ``progress`` (of the epoch that was
running), ``steps_per_epoch``, ``images`` (of an epoch), ``rng``, ``cuda_rng``; with sparse training also ``penalty``,
with a teacher ``distillation``, and with pruning in training ``kept_channels``. Older versions wrote the last one as
``survivors``, and wrote it and ``penalty`` in every run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.darknet.cfg import parse_cfg
from utils.detection.checkpoints import load_state
from utils.errors import InputError
from utils.training.optim import load_momenta
from utils.training.trainer import Trainer


def training_state(trainer: Trainer) -> dict[str, Any]:
    """The entry ``training`` of a checkpoint."""
    state = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "ema_updates": trainer.ema.updates,
        "progress": trainer.progress.state(),
        "steps_per_epoch": trainer.steps_per_epoch,
        "images": trainer.images,
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state()] if trainer.device.type == "cuda" else [],
    }
    if trainer.penalty:
        state["penalty"] = trainer.penalty.state()
    if trainer.distillation:
        state["distillation"] = trainer.distillation.state()
    if trainer.kept_channels:
        state["kept_channels"] = trainer.kept_channels.state()
    return state


def kept_channels_state(checkpoint: dict[str, Any]) -> Mapping[int, Sequence[int]]:
    """The channels that a run with pruning in training has left, by layer number."""
    state = checkpoint["training"]
    return state["kept_channels"] if "kept_channels" in state else state["survivors"]


def restore_training(trainer: Trainer, checkpoint: dict[str, Any], path: Path) -> None:
    """Take a run back to the state of the checkpoint that ``path`` holds.

    Raises:
        InputError: the checkpoint belongs to another cfg, or to a data set of another size.
    """
    state, config = checkpoint["training"], trainer.config
    if parse_cfg(checkpoint["cfg"]) != trainer.model.blocks:
        raise InputError(f"{path}: belongs to another cfg than {config.model_def}")
    counts = ("steps", "steps_per_epoch", trainer.steps_per_epoch), ("images", "images", trainer.images)
    for what, key, now in counts:
        if state.get(key, now) != now:  # older versions did not count images
            raise InputError(
                f"{path}: an epoch had {state[key]} {what} when the run was started, and has {now} now: "
                f"{config.data_config} has another number of training images"
            )
    load_state(trainer.model, state["model"], path)
    load_state(trainer.ema.model, checkpoint["model"], path)
    load_momenta(trainer.optimizer, state["optimizer"])
    if state["scaler"]:  # empty where bfloat16 needed none
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.ema.updates = state["ema_updates"]
    if trainer.penalty:
        trainer.penalty.load_state(state["penalty"])
    if trainer.distillation:
        trainer.distillation.load_state(state.get("distillation", []), trainer.device)
    if kept_channels := trainer.kept_channels:  # older versions do not write down that they cut channels
        trainer.pruned |= kept_channels.removed > 0
    trainer.progress.load_state(state["progress"], trainer.device)
    trainer.epoch, trainer.step = checkpoint["epoch"], checkpoint["step"]
    trainer.best_map = checkpoint["best_map"]
    torch.set_rng_state(state["rng"])
    if trainer.device.type == "cuda" and state["cuda_rng"]:
        torch.cuda.set_rng_state(state["cuda_rng"][0])
