"""The optimizer and its learning rates."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP_EPOCHS = 2
FINAL_LR = 0.02  # the cosine ends at this share of the learning rate


def build_sgd(model: nn.Module, lr: float, fused: bool = False) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on kernels only, not on biases and BatchNorm's gammas and betas.

    ``fused`` is for float16: a GradScaler asks the device before each step whether to skip it, except where the
    optimizer can skip it on the device, as the fused one does. Else PyTorch chooses, on a GPU few calls for all.
    """
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, fused=fused or None)
    if fused:  # if it skips its first step, which is to set its momenta, it goes on with whatever the memory held
        for parameter in (*kernels, *others):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_momenta(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go back to the ``state`` of an optimizer, also of one that was fused while this one is not, or the reverse.

    Momenta get the memory layout of their parameters, which a fused optimizer requires.
    """
    fused = optimizer.defaults["fused"]
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group["fused"] = fused
    for parameter, kept in optimizer.state.items():
        if (momentum := kept.get("momentum_buffer")) is not None:
            kept["momentum_buffer"] = torch.empty_like(parameter, requires_grad=False).copy_(momentum)


def learning_rates(epochs: int, steps_per_epoch: int, lr: float) -> np.ndarray:
    """The learning rate of every optimizer step of ``epochs``, (steps,): a warm-up to ``lr``, then half a cosine."""
    steps = epochs * steps_per_epoch
    warmup = min(WARMUP_EPOCHS * steps_per_epoch, steps // 5)
    return np.array([learning_rate(step, steps, warmup, lr) for step in range(steps)])


def learning_rates_around(cut_epoch: int, epochs: int, steps_per_epoch: int, lr: float) -> np.ndarray:
    """The learning rates of a run that cuts its network after ``cut_epoch`` epochs: two trainings in a row."""
    parts = [learning_rates(count, steps_per_epoch, lr) for count in (cut_epoch, epochs - cut_epoch)]
    return np.concatenate(parts)


def learning_rate(step: int, steps: int, warmup: int, lr: float) -> float:
    """A linear warm-up over ``warmup`` of ``steps`` optimizer steps, then half a cosine (SGDR, arXiv 1608.03983)."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return lr * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2)
