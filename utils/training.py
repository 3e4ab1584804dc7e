"""A training run: its network, optimizer and average, the steps of an epoch, and the state that a checkpoint keeps."""

import argparse
import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils import distributed, graph
from utils.checkpoints import load_state
from utils.datasets import to_device
from utils.devices import amp_dtype, autocast
from utils.distillation import Distillation, load_teacher
from utils.ema import ModelEma
from utils.errors import InputError
from utils.loss import HeadReport, YoloLoss
from utils.optim import MOMENTUM, WARMUP_EPOCHS, build_sgd, learning_rate
from utils.penalty_schedules import SCHEDULES, Plan
from utils.shrinking import Survivors, carry_optimizer, cut_alike, cut_is_exact
from utils.sparsity import GammaPenalty, gamma_sizes
from utils.strategies import silent_sets

GRADIENT_NORM = 10.0  # larger gradients are scaled down to this norm
DISPLAY_STEPS = 10  # the loss is read from the device this often
MULTISCALE_STEPS = 10  # with --multiscale_training the size changes this often

Batch = tuple[Tensor, Tensor]  # images (B, 3, S, S) uint8 and targets (N, 6), as utils.datasets.collate makes them
T = TypeVar("T")


@dataclass
class Training:
    """What a step changes, and what it needs for that.

    Among several processes each holds the same weights, and takes its part of every batch; the gradients are those of
    the whole batch. BatchNorm's statistics are of what a process sees at a time (as when a batch is accumulated from
    as many parts), and its running statistics are the mean over the processes.

    Args:
        args: the options of train.py.
        model: the network, on ``device``.
        survivors: which channels are left of the network that the run began with.
        device: where to compute.
        steps_per_epoch: optimizer steps.
        step: optimizer steps so far.
        best_map: the best mAP@0.5 so far.
    """

    args: argparse.Namespace
    model: Darknet
    survivors: Survivors
    device: torch.device
    steps_per_epoch: int
    step: int = 0
    best_map: float = 0.0

    def __post_init__(self):
        self.teacher = None
        if self.args.teacher_cfg:
            files = self.args.teacher_cfg, self.args.teacher_weights
            self.teacher = load_teacher(*files, self.model, self.args.img_size, self.device)
        self.plan = Plan(self.learning_rates(), self.args.target_percent, self.steps_per_epoch)
        self._attach(self._laid_out(self.model))
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.device.type == "cuda" and amp_dtype(self.device) == torch.float16
        )
        self.ema = ModelEma(self.model)

    def _laid_out(self, model: Darknet) -> Darknet:
        return model.to(memory_format=torch.channels_last) if self.args.channels_last else model

    def _attach(self, model: Darknet) -> None:
        """Train ``model`` from now on."""
        if self.args.sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        self._forward = spread(model) if distributed.world() > 1 else model
        self.loss = YoloLoss(model)
        self.distillation = Distillation(model, self.teacher) if self.teacher else None
        self.optimizer = build_sgd(model, self.args.learning_rate)
        # Without -sr the penalty has no strength, and only reports on the gammas.
        s = self.args.s if self.args.sr else 0.0
        self.penalty = GammaPenalty(model, s, self.args.strategy, self.args.sr_method, MOMENTUM)

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
            "survivors": self.survivors.state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
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
            torch.cuda.set_rng_state(state["cuda_rng"][0])

    def train_epoch(self, batches: DataLoader, epoch: int) -> tuple[np.ndarray, list[int]]:
        """One epoch of steps.

        Returns:
            The sums of HeadReport over the epoch, (heads, 7), and the number of predictions of each head; both of all
            processes.

        Raises:
            InputError: the loss is not finite; checkpoints are as they were.
        """
        args = self.args
        self.model.train()
        total: Tensor | None = None
        cells = np.zeros(len(self.model.yolo_layers))
        bar = tqdm(
            batches,
            f"epoch {epoch + 1}/{args.epochs}",
            leave=False,
            unit="batch",
            disable=not distributed.is_main(),
        )
        for number, parts in enumerate(groups(bar, args.accumulate)):
            step = self.step
            loss, reports = self.step_on(parts, float(self.plan.rates[step]))
            if number % DISPLAY_STEPS == 0:
                bar.set_postfix(loss=f"{self._finite(loss.item(), epoch, step):.3f}")
            sums = sum(stack(report) for report in reports)
            total = sums if total is None else total + sums
            cells += [sum(head.cells for head in heads) for heads in zip(*reports, strict=True)]
        distributed.average_((*self.model.buffers(), *self.ema.model.buffers()))
        everything = distributed.total([*total.flatten().tolist(), *cells])
        found = np.reshape(everything[: total.numel()], total.shape)
        self._finite(float(found[:, 1:4].sum()), epoch, self.step)
        return found, [int(count) for count in everything[total.numel() :]]

    def step_on(self, parts: Sequence[Batch], lr: float) -> tuple[Tensor, list[list[HeadReport]]]:
        """One optimizer step on a batch that comes in ``parts``, and from as many processes as there are.

        The loss is that of the whole batch: its divisor counts the pictures and positives of all parts and processes.

        Returns:
            The loss, of this process's share as if it were all, on the device; and for each part the heads' reports.
        """
        size = parts[0][0].shape[-1]
        if self.args.multiscale_training:
            size = random_size(size, self.args.seed, self.step)
        counts = [sum(len(images) for images, _ in parts), sum(self.loss.positives(t, size) for _, t in parts)]
        pictures, positives = distributed.total(counts)
        # Gradients are averaged over the processes, but the loss is a sum over them.
        world = distributed.world()
        losses, reports = [], []
        for number, (images, targets) in enumerate(parts, start=1):
            images = to_device(images, self.device, self.args.channels_last)
            images = resize(images, size)
            with self._gradients_stay(number < len(parts)):
                with autocast(self.device):
                    heads = self._forward(images)
                loss, report = self.loss(heads, targets, size, max(pictures, positives) / world)
                if self.distillation:
                    loss = loss + self.distillation(heads, images) * (len(images) * world / pictures)
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            reports.append(report)
        self._optimizer_step(lr)
        return sum(losses), reports

    def _gradients_stay(self, here: bool) -> contextlib.AbstractContextManager:
        """Keep the gradients of a part from the other processes until the last part is there."""
        return self._forward.no_sync() if here and distributed.world() > 1 else contextlib.nullcontext()

    def cut(self) -> int:
        """Cut channels whose gammas died out of the network, its average and the optimizer; return how many went."""
        before, optimizer = [self.model, self.ema.model], self.optimizer
        penalty = self.penalty
        coupling = penalty.coupling
        cut, after = cut_alike(before, coupling, silent_sets(coupling, self.args.strategy, gamma_sizes(self.model)))
        if not cut.channels:
            return 0
        if not all(distributed.gather(cut_is_exact(before, after, self.args.img_size))):
            print("warning: the network without its dead channels is not exactly the same: none were cut")
            return 0
        self._attach(self._laid_out(after[0]))
        self.ema.model = self._laid_out(after[1]).requires_grad_(False)
        carry_optimizer(optimizer, self.optimizer, before[0], after[0], cut)
        self.penalty.s = penalty.s
        self.survivors.cut(cut)
        return cut.channels

    def _finite(self, loss: float, epoch: int, step: int) -> float:
        if not np.isfinite(loss):
            raise InputError(
                f"epoch {epoch + 1}, step {step}: the loss is {loss}; the checkpoints are as they were. "
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


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def spread(model: Darknet) -> DistributedDataParallel:
    """The model in all processes, with the main one's weights, its gradients averaged over them."""
    readers = model.network.consumers
    unread = any(not readers[layer.index] for layer in model.network.layers if not isinstance(layer, graph.Yolo))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # forward_sync_buffers, from torch 2.14 on
        return DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unread
        )


def random_size(size: int, seed: int, step: int) -> int:
    """A multiple of 32 pixels from 3/4 to 5/4 of ``size``, the same for some steps."""
    random = np.random.default_rng((seed, step // MULTISCALE_STEPS))
    return 32 * int(random.integers(round(0.75 * size / 32), round(1.25 * size / 32) + 1))


def resize(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, S, S) scaled to ``size`` pixels."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
