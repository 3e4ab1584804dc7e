"""A training run: its network, optimizer and average, the steps of an epoch, and the state that a checkpoint keeps."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils.checkpoints import load_state
from utils.datasets import to_device
from utils.devices import amp_dtype, autocast
from utils.distillation import Distillation, load_teacher
from utils.ema import ModelEma
from utils.errors import InputError
from utils.loss import HeadReport, YoloLoss
from utils.optim import MOMENTUM, WARMUP_EPOCHS, build_sgd, learning_rate
from utils.penalty_schedules import SCHEDULES, Plan
from utils.sparsity import GammaPenalty

GRADIENT_NORM = 10.0  # larger gradients are scaled down to this norm
DISPLAY_STEPS = 10  # the loss is read from the device this often
MULTISCALE_STEPS = 10  # with --multiscale_training the size changes this often


@dataclass
class Training:
    """What a step changes, and what it needs for that.

    Args:
        args: the options of train.py.
        model: the network, on ``device``.
        device: where to compute.
        steps_per_epoch: optimizer steps.
        step: optimizer steps so far.
        best_map: the best mAP@0.5 so far.
    """

    args: argparse.Namespace
    model: Darknet
    device: torch.device
    steps_per_epoch: int
    step: int = 0
    best_map: float = 0.0

    def __post_init__(self):
        self.loss = YoloLoss(self.model)
        self.distillation = None
        if self.args.teacher_cfg:
            files = self.args.teacher_cfg, self.args.teacher_weights
            teacher = load_teacher(*files, self.model, self.args.img_size, self.device)
            self.distillation = Distillation(self.model, teacher)
        self.optimizer = build_sgd(self.model, self.args.learning_rate)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.device.type == "cuda" and amp_dtype(self.device) == torch.float16
        )
        self.ema = ModelEma(self.model)
        # Without -sr the penalty has no strength, and only reports on the gammas.
        s = self.args.s if self.args.sr else 0.0
        self.penalty = GammaPenalty(self.model, s, self.args.strategy, self.args.sr_method, MOMENTUM)
        self.plan = Plan(self.learning_rates(), self.args.target_percent, self.steps_per_epoch)

    def learning_rates(self) -> np.ndarray:
        """The learning rate of every optimizer step of the run."""
        steps = self.args.epochs * self.steps_per_epoch
        warmup = min(round(WARMUP_EPOCHS * self.steps_per_epoch), steps // 5)
        return np.array([learning_rate(step, steps, warmup, self.args.learning_rate) for step in range(steps)])

    def state(self) -> dict:
        """What a checkpoint needs so that training goes on as if never interrupted."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates,
            "penalty": self.penalty.state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state(self, checkpoint: dict, path: Path) -> None:
        """Go back to the state of a checkpoint."""
        state = checkpoint["training"]
        load_state(self.model, state["model"], path)
        load_state(self.ema.model, checkpoint["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.ema.updates = state["ema_updates"]
        if "penalty" in state:
            self.penalty.load_state(state["penalty"])
        self.step = checkpoint["step"]
        self.best_map = checkpoint["best_map"]
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def train_epoch(self, batches: DataLoader, epoch: int) -> tuple[np.ndarray, list[int]]:
        """One epoch of steps.

        Returns:
            The sums of HeadReport over the epoch, (heads, 7), and the number of predictions of each head.

        Raises:
            InputError: the loss is not finite; checkpoints are as they were.
        """
        args, model = self.args, self.model
        model.train()
        total: Tensor | None = None
        cells = [0] * len(model.yolo_layers)
        bar = tqdm(batches, f"epoch {epoch + 1}/{args.epochs}", leave=False, unit="batch")
        for number_in_epoch, (images, targets) in enumerate(bar):
            images, targets = to_device(images, self.device), targets.to(self.device, non_blocking=True)
            if args.multiscale_training:
                images = rescale(images, args.seed, self.step)
            with autocast(self.device):
                heads = model(images)
            loss, reports = self.loss(heads, targets, images.shape[-1])
            if self.distillation:
                loss = loss + self.distillation(heads, images)
            if number_in_epoch % DISPLAY_STEPS == 0:
                bar.set_postfix(loss=f"{self._finite(loss.item(), epoch):.3f}")
            self.scaler.scale(loss / args.accumulate).backward()
            if (number_in_epoch + 1) % args.accumulate == 0 or number_in_epoch + 1 == len(batches):
                self._optimizer_step(float(self.plan.rates[self.step]))
            sums = stack(reports)
            total = sums if total is None else total + sums
            cells = [count + report.cells for count, report in zip(cells, reports, strict=True)]
        self._finite(float(total[:, 1:4].sum()), epoch)
        return total.cpu().numpy(), cells

    def _finite(self, loss: float, epoch: int) -> float:
        if not np.isfinite(loss):
            raise InputError(
                f"epoch {epoch + 1}, step {self.step}: the loss is {loss}; the checkpoints are as they were. "
                f"Try a lower --learning_rate than {self.args.learning_rate:g}"
            )
        return loss

    def _optimizer_step(self, lr: float) -> None:
        """One step of the optimizer, the penalty and the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        if self.args.sr:
            SCHEDULES[self.args.s_schedule](self.penalty, self.plan, self.step)
        self.penalty.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.penalty.after_step(lr)
        self.ema.update(self.model)
        self.penalty.copy_zeros(self.ema.model)
        self.step += 1


def stack(reports: list[HeadReport]) -> Tensor:
    """(heads, 7), the sums of each head."""
    return torch.stack([report.sums for report in reports])


def rescale(images: Tensor, seed: int, step: int) -> Tensor:
    """Images (B, 3, S, S) at a random multiple of 32 pixels from 3/4 to 5/4 of S, the same for some steps."""
    size = images.shape[-1]
    random = np.random.default_rng((seed, step // MULTISCALE_STEPS))
    wanted = 32 * int(random.integers(round(0.75 * size / 32), round(1.25 * size / 32) + 1))
    return F.interpolate(images, size=wanted, mode="bilinear", antialias=True) if wanted != size else images
