"""A training run: its network, optimizer and average, the steps of an epoch, and the state that a checkpoint keeps."""

import argparse
import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from utils import distributed
from utils.darknet import layers
from utils.darknet.cfg import parse_cfg
from utils.data.images import to_device
from utils.detection.checkpoints import load_state
from utils.detection.loss import HeadReport, HeadSum, YoloLoss
from utils.devices import amp_dtype, autocast, memory_advice, smaller_batch
from utils.errors import InputError
from utils.pruning.penalty import GammaPenalty, gamma_sizes
from utils.pruning.prune_in_training import KeptChannels, carry_optimizer, cut_alike, cut_is_exact
from utils.pruning.schedules import SCHEDULES, Plan
from utils.pruning.selection import silent_sets
from utils.training.distillation import Distillation, load_teacher
from utils.training.ema import ModelEma
from utils.training.nonfinite import FiniteWatch, NotFinite
from utils.training.optim import MOMENTUM, WARMUP_EPOCHS, build_sgd, learning_rate

GRADIENT_NORM = 10.0  # larger gradients are scaled down to this norm
DISPLAY_STEPS = 10  # the loss is read from the device this often
MULTISCALE_STEPS = 10  # with --multiscale_training the size changes this often
SMALLEST_SCALE = 2.0**-10  # the scale of the loss under float16 falls this low only if no gradient is ever finite


class EpochProgress:
    """How far an epoch is.

    Attributes:
        batches: how many of its batches are done.
        sums: over these batches, (heads, 7) by HeadSum; None before the first.
        cells: the number of predictions of each head.
    """

    def __init__(self, heads: int):
        self.batches = 0
        self.sums: Tensor | None = None
        self.cells = [0] * heads

    def add(self, reports: list[HeadReport]) -> None:
        """Add what the heads did in one more batch."""
        sums = stack(reports)
        self.batches += 1
        self.sums = sums if self.sums is None else self.sums + sums
        self.cells = [count + report.cells for count, report in zip(self.cells, reports, strict=True)]


Batch = tuple[Tensor, Tensor]  # images (B, 3, S, S) uint8 and targets (N, 6), as utils.data.loader.collate makes them
T = TypeVar("T")


@dataclass
class Trainer:
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
        epoch: epochs done.
        step: optimizer steps done.
        best_map: the best mAP@0.5 so far.

    Attributes:
        progress: of the epoch that is running.
    """

    args: argparse.Namespace
    model: Darknet
    kept_channels: KeptChannels
    device: torch.device
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    best_map: float = 0.0

    def __post_init__(self):
        self.teacher = None
        if self.args.teacher_cfg:
            files = self.args.teacher_cfg, self.args.teacher_weights
            self.teacher = self._laid_out(load_teacher(*files, self.model, self.args.img_size, self.device))
        self.plan = Plan(self.learning_rates(), self.args.target_percent, self.steps_per_epoch)
        self._attach(self._laid_out(self.model))
        scaled = self.args.precision == "mixed" and amp_dtype(self.device) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.ema = ModelEma(self.model)
        self.progress = EpochProgress(len(self.model.heads))
        self._watch = FiniteWatch(self.device)

    def _laid_out(self, model: Darknet) -> Darknet:
        return model.to(memory_format=torch.channels_last) if self.args.channels_last else model

    def _attach(self, model: Darknet) -> None:
        """Train ``model`` from now on."""
        if self.args.sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        self._forward = distribute(model) if distributed.world() > 1 else model
        self.loss = YoloLoss(model)
        self.distillation = Distillation(model, self.teacher, self.args.precision) if self.teacher else None
        self.optimizer = build_sgd(model, self.args.learning_rate)
        # Without -sr the penalty has no strength, and only reports on the gammas.
        s = self.args.s if self.args.sr else 0.0
        self.penalty = GammaPenalty(model, s, self.args.strategy, self.args.sr_method, MOMENTUM)

    def end_epoch(self) -> None:
        """Count the epoch as done."""
        self.epoch += 1
        self.progress = EpochProgress(len(self.model.heads))

    def learning_rates(self) -> np.ndarray:
        """The learning rate of every optimizer step of the run.

        Returns:
            (epochs * steps_per_epoch,): rising in the warm-up, then falling along a cosine.
        """
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
            "survivors": self.kept_channels.state(),
            "progress": vars(self.progress),
            "steps_per_epoch": self.steps_per_epoch,
            "rng": torch.get_rng_state(),
            "cuda_rng": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }

    def load_state(self, checkpoint: dict, path: Path) -> None:
        """Go back to the state of a checkpoint.

        Raises:
            InputError: it belongs to another cfg, or to a data set of another size.
        """
        state = checkpoint["training"]
        if parse_cfg(checkpoint["cfg"]) != self.model.blocks:
            raise InputError(f"{path}: belongs to another cfg than {self.args.model_def}")
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise InputError(
                f"{path}: {state['steps_per_epoch']} steps were an epoch when the run was started, and are "
                f"{self.steps_per_epoch} now: {self.args.data_config} has another number of training images"
            )
        load_state(self.model, state["model"], path)
        load_state(self.ema.model, checkpoint["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where bfloat16 needed none
            self.scaler.load_state_dict(state["scaler"])
        self.ema.updates = state["ema_updates"]
        self.penalty.load_state(state["penalty"])
        if distributed.is_main():  # what the epoch did so far counts once
            vars(self.progress).update(state["progress"])
        self.progress.batches = state["progress"]["batches"]
        if self.progress.sums is not None:
            self.progress.sums = self.progress.sums.to(self.device)
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.best_map = checkpoint["best_map"]
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state(state["cuda_rng"][0])

    def train_epoch(self, batches: DataLoader, after_step: Callable[[], None]) -> None:
        """The steps of the epoch that are still to do; ``progress`` tells what all of them did.

        Args:
            batches: whose sampler yields what is left of the epoch.
            after_step: called between two optimizer steps; the state may be saved there.

        Raises:
            NotFinite: the loss or the gradient is not finite.
            InputError: the batch does not fit into the memory.
        """
        args = self.args
        world = distributed.world()
        advice = smaller_batch(args.batch_size // world, args.img_size, args.accumulate, world)
        self.model.train()
        bar = tqdm(
            batches,
            f"epoch {self.epoch + 1}/{args.epochs}",
            len(batches),
            leave=False,
            unit="batch",
            initial=self.progress.batches,
            disable=not distributed.is_main(),
        )
        for number, parts in enumerate(groups(bar, args.accumulate)):
            with memory_advice(advice):
                loss, reports = self.train_step(parts, float(self.plan.rates[self.step]))
            for report in reports:
                self.progress.add(report)
            if number % DISPLAY_STEPS == 0:
                self.check_finite()
                bar.set_postfix(loss=f"{loss.item():.3f}")
            after_step()
        self.check_finite()
        self.gather()

    def gather(self) -> None:
        """Bring together what each process has of its own: running statistics, and the progress, which the main keeps.

        With one process nothing changes. To be called by all of them.
        """
        if distributed.world() == 1:
            return
        distributed.average_((*self.model.buffers(), *self.ema.model.buffers()))
        progress = self.progress
        heads = len(self.model.heads)
        sums = torch.zeros(heads, len(HeadSum), device=self.device) if progress.sums is None else progress.sums
        everything = distributed.total([*sums.flatten().tolist(), *progress.cells])
        is_main = distributed.is_main()
        progress.sums = sums.new_tensor(everything[:-heads]).view(heads, -1) * is_main
        progress.cells = [int(count) * is_main for count in everything[-heads:]]

    def train_step(self, parts: Sequence[Batch], lr: float) -> tuple[Tensor, list[list[HeadReport]]]:
        """One optimizer step on a batch that comes in ``parts``, and from as many processes as there are.

        The loss is that of the whole batch: its divisor counts the images and positives of all parts and processes.

        Returns:
            The loss, of this process's share as if it were all, on the device; and for each part the heads' reports.
        """
        size = parts[0][0].shape[-1]
        if self.args.multiscale_training:
            size = random_size(size, self.model.spec.stride, self.args.seed, self.step)
        counts = [sum(len(images) for images, _ in parts), sum(self.loss.positives(t, size) for _, t in parts)]
        image_count, positives = distributed.total(counts)
        # Gradients are averaged over the processes, but the loss is a sum over them.
        world = distributed.world()
        losses, reports = [], []
        for number, (images, targets) in enumerate(parts, start=1):
            images = to_device(images, self.device, self.args.channels_last)
            images = resize(images, size)
            with self._gradients_stay(number < len(parts)):
                with autocast(self.device, self.args.precision):
                    raw = self._forward(images)
                loss, report = self.loss(raw, targets, size, max(image_count, positives) / world)
                if self.distillation:
                    loss = loss + self.distillation(raw, images) * (len(images) * world / image_count)
                self.scaler.scale(loss).backward()
            self._watch.see("loss", loss, self.progress.batches + number - 1)
            losses.append(loss.detach())
            reports.append(report)
        self._optimizer_step(lr, self.progress.batches + len(parts) - 1)
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
        if not cut.removed_channels:
            return 0
        if not all(distributed.gather(cut_is_exact(before, after, self.args.img_size))):
            print("warning: the network without its dead channels is not exactly the same: none were cut")
            return 0
        self._attach(self._laid_out(after[0]))
        self.ema.model = self._laid_out(after[1]).requires_grad_(False)
        carry_optimizer(optimizer, self.optimizer, before[0], after[0], cut)
        self.penalty.s = penalty.s
        self.kept_channels.cut(cut)
        return cut.removed_channels

    def check_finite(self) -> None:
        """Raise :class:`NotFinite` if the loss or the gradient of a batch since the epoch began was not finite."""
        if found := self._watch.first():
            what, batch = found
            accumulate = self.args.accumulate
            step = self.epoch * self.steps_per_epoch + batch // accumulate
            suspects = range(batch, batch + 1) if what == "loss" else range(batch - batch % accumulate, batch + 1)
            raise NotFinite(
                f"epoch {self.epoch + 1}, step {step}: the {what} is not finite; the checkpoints are as they were. "
                f"Try a lower --learning_rate than {self.args.learning_rate:g}",
                suspects,
            )
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise InputError(
                f"epoch {self.epoch + 1}, step {self.step}: no gradient is finite in float16 any more; the checkpoints "
                f"are as they were. Try a lower --learning_rate than {self.args.learning_rate:g}"
            )

    def _optimizer_step(self, lr: float, batch: int) -> None:
        """One step of the optimizer, the penalty and the average, which ends with a batch of the epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        if not self.scaler.is_enabled():  # which leaves out the steps whose gradient overflows in float16
            self._watch.see("gradient", norm, batch)
        if self.args.sr:
            SCHEDULES[self.args.s_schedule](self.penalty, self.plan, self.step)
        self.penalty.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.penalty.after_step(lr)
        self.ema.update(self.model)
        if self.args.sr:
            self.penalty.copy_zeros(self.ema.model)
        self.step += 1


def stack(reports: list[HeadReport]) -> Tensor:
    """(heads, 7), the sums of each head by HeadSum."""
    return torch.stack([report.sums for report in reports])


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def distribute(model: Darknet) -> DistributedDataParallel:
    """The model in all processes, with the main one's weights, its gradients averaged over them."""
    readers = model.spec.consumers
    unread = any(not readers[layer.index] for layer in model.spec.layers if not isinstance(layer, layers.Yolo))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # forward_sync_buffers, from torch 2.14 on
        return DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unread
        )


def random_size(size: int, stride: int, seed: int, step: int) -> int:
    """A multiple of ``stride`` pixels from 3/4 to 5/4 of ``size``, the same for some steps."""
    random = np.random.default_rng((seed, step // MULTISCALE_STEPS))
    return stride * int(random.integers(round(0.75 * size / stride), round(1.25 * size / stride) + 1))


def resize(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, S, S) scaled to ``size`` pixels."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
