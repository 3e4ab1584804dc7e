"""A training run: what an optimizer step changes, and the steps of an epoch."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils import distributed
from utils.darknet.spec import NetworkSpec
from utils.data.images import to_device
from utils.data.loader import EpochSampler, Waiting
from utils.detection.loss import HeadReport, YoloLoss
from utils.devices import amp_dtype, autocast, device_of, memory_advice, smaller_batch
from utils.pruning.budget import cut_least_important
from utils.pruning.costs import Costs, SizeCosts
from utils.pruning.latency import Latency, latency_of
from utils.pruning.penalty import GammaPenalty, gamma_sizes
from utils.pruning.proof import prove
from utils.pruning.prune_in_training import KeptChannels, carry_optimizer, cut_alike, cut_is_exact
from utils.pruning.pruner import PruningResult
from utils.pruning.reconstruction import reconstruct
from utils.pruning.schedules import READING_STEPS, SCHEDULES, Plan
from utils.pruning.selection import silent_sets
from utils.sizes import Size
from utils.training.config import SparsityConfig, TrainConfig
from utils.training.distillation import Distillation
from utils.training.ema import TRAINED, ModelEma
from utils.training.multiscale import random_size, resize
from utils.training.nonfinite import FiniteWatch, check_scale
from utils.training.optim import MOMENTUM, build_sgd, learning_rates, learning_rates_around
from utils.training.parallel import distribute, without_exchange
from utils.training.progress import EpochProgress
from utils.training.report import EpochReport

GRADIENT_NORM = 10.0  # larger gradients are scaled down to this norm

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W) uint8 and targets (N, 6), as utils.data.loader.collate makes them
T = TypeVar("T")


class Trainer:
    """A network in training, with its optimizer and its average.

    Among several processes each holds the same weights and takes its part of every batch; the gradients are those of
    the whole batch. Each process computes BatchNorm's statistics of the images that it sees at a time (as it does when
    a batch is accumulated from as many parts); the running statistics are the mean over the processes.

    Args:
        config: the settings.
        model: the network, on the device to train on.
        steps_per_epoch: optimizer steps per epoch.
        teacher: a network that this one learns from besides the labels.
        kept_channels: which channels are left of the network that the run began with; only for pruning in training.

    Attributes:
        rates: (steps,) the learning rate of every optimizer step of the run.
        epoch, step: how many epochs and optimizer steps are done.
        images: of an epoch, which a resumed run must have again.
        best_map: the best mAP@0.5 so far.
        pruned: whether the network is one whose channels were cut, now or before the run.
        trial_cut: the cut that :meth:`cut_once` is to make, where it is known before the first step.
        ema: the average of the weights.
        penalty: on the gammas; None where the run has none.
        distillation: the loss against the teacher; None without one.
        progress: of the epoch that is running.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Darknet,
        steps_per_epoch: int,
        teacher: Darknet | None = None,
        kept_channels: KeptChannels | None = None,
    ):
        self.config = config
        self.device = device_of(model)
        self.steps_per_epoch = steps_per_epoch
        self.rates = self._learning_rates()
        self.teacher = self._laid_out(teacher) if teacher else None
        self.kept_channels = kept_channels
        self.epoch = self.step = self.images = 0
        self.best_map = 0.0
        self.pruned = False
        self.trial_cut: PruningResult | None = None
        self.penalty: GammaPenalty | None = None
        scaled = config.precision == "mixed" and amp_dtype(self.device) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self._attach(self._laid_out(model))
        self.ema = ModelEma(self.model)
        self.progress = EpochProgress(len(self.model.heads))
        self.watch = FiniteWatch(self.device)

    def _learning_rates(self) -> np.ndarray:
        config, sparsity = self.config, self.config.sparsity
        if sparsity and sparsity.is_cut:
            return learning_rates_around(sparsity.cut_epoch, config.epochs, self.steps_per_epoch, config.learning_rate)
        return learning_rates(config.epochs, self.steps_per_epoch, config.learning_rate)

    def _laid_out(self, model: Darknet) -> Darknet:
        return model.to(memory_format=self.config.layout)

    def _attach(self, model: Darknet) -> None:
        """Train ``model`` from now on, with a new optimizer and a penalty of the same s."""
        if self.config.sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        self.network = distribute(model)
        self.loss = YoloLoss(model)
        self.distillation = Distillation(model, self.teacher, self.config.precision) if self.teacher else None
        self.optimizer = build_sgd(model, self.config.learning_rate, fused=self.scaler.is_enabled())
        self.penalty = self._make_penalty(model)

    def _make_penalty(self, model: Darknet) -> GammaPenalty | None:
        sparsity = self.config.sparsity
        if not sparsity or sparsity.is_cut:
            return None
        s = self.penalty.s if self.penalty else sparsity.s
        return GammaPenalty(model, s, self.config.strategy, sparsity.method, MOMENTUM, self._costs(sparsity))

    @property
    def _first_spec(self) -> NetworkSpec:
        """The network that the run began with: its layers have the numbers and sizes of what is left of it."""
        spec = self.kept_channels.coupling.spec if self.kept_channels else self.model.spec
        return spec.at(self.config.img_size)

    def _costs(self, sparsity: SparsityConfig) -> Costs | None:
        """What prices the penalty."""
        if sparsity.penalty_cost == "macs":
            return SizeCosts(self._first_spec)
        latency = self._latency(sparsity)
        return latency.table if latency else None

    def _latency(self, sparsity: SparsityConfig) -> Latency | None:
        return latency_of(self._first_spec, None, sparsity.latency_table)

    def train_epoch(self, batches: DataLoader, after_step: Callable[[], None]) -> EpochReport:
        """Take the steps of the epoch that are still to do.

        Args:
            batches: from an EpochSampler, which is set to what is left of the epoch.
            after_step: called between two optimizer steps; the state may be saved there.

        Returns:
            What all steps of the epoch did; the main process has the sums of all processes.

        Raises:
            NotFinite: the loss or the gradient is not finite.
            InputError: the batch does not fit into the memory.
        """
        config, world, began = self.config, distributed.world(), time.perf_counter()
        advice = smaller_batch(config.batch_size // world, config.img_size, config.accumulate, world)
        sampler = cast(EpochSampler, batches.sampler)
        sampler.epoch = self.epoch
        sampler.start = self.progress.batches * cast(int, batches.batch_size)
        self.model.train()
        bar = self._progress_bar(batches)
        waiting = Waiting(bar)
        for parts in groups(waiting, config.accumulate):
            is_read = self.step % READING_STEPS == 0
            with memory_advice(advice):
                loss, reports = self.train_step(parts, float(self.rates[self.step]))
            for report in reports:
                self.progress.add(report)
            if is_read:
                self.check_finite()
                bar.set_postfix(loss=f"{loss.item():.3f}")
            after_step()
        self.check_finite()
        self.gather()
        return self._epoch_report(len(cast(Sized, batches.dataset)), began, waiting.seconds)

    def train_step(self, parts: Sequence[Batch], lr: float) -> tuple[Tensor, list[list[HeadReport]]]:
        """Take one optimizer step on a batch that comes in ``parts``, and from as many processes as there are.

        The loss is that of the whole batch: its divisor counts the images and positives of all parts and processes.
        The host does not wait for the device, except where a schedule of the penalty reads the gammas.

        Args:
            parts: the parts of the batch that this process takes.
            lr: the learning rate.

        Returns:
            The loss, of this process's share as if it were all, on the device; and for each part the heads' reports.
        """
        size = Size(*parts[0][0].shape[-2:])
        if self.config.multiscale_training:
            size = random_size(size, self.model.spec.stride, self.config.seed, self.step)
        assignments = [self.loss.assign(targets, size) for _, targets in parts]
        counts = [sum(len(images) for images, _ in parts), sum(len(head) for part in assignments for head in part)]
        image_count, positives = distributed.total(counts)
        # Gradients are averaged over the processes, but the loss is a sum over them.
        world = distributed.world()
        losses, reports = [], []
        for number, ((images, _), assigned) in enumerate(zip(parts, assignments, strict=True), start=1):
            images = resize(to_device(images, self.device, self.config.layout), size)
            is_last = number == len(parts)
            with self._algorithms_for(images), contextlib.nullcontext() if is_last else without_exchange(self.network):
                with autocast(self.device, self.config.precision):
                    raw = self.network(images)
                loss, report = self.loss(raw, assigned, size, max(image_count, positives) / world)
                if self.distillation:
                    loss = loss + self.distillation(raw, images) * (len(images) * world / image_count)
                self.scaler.scale(loss).backward()
            self.watch.see("loss", loss, self.progress.batches + number - 1)
            losses.append(loss.detach())
            reports.append(report)
        self._optimizer_step(lr, self.progress.batches + len(parts) - 1)
        return sum(losses), reports

    def _algorithms_for(self, images: Tensor) -> contextlib.AbstractContextManager:
        """A context in which cuDNN searches its fastest algorithms, but not for the last, smaller batch of an epoch."""
        is_full = len(images) == self.config.batch_size // distributed.world()
        return algorithm_search(is_full and not self.config.multiscale_training)

    def _optimizer_step(self, lr: float, batch: int) -> None:
        """One step of the optimizer, the penalty and the average; ``batch`` is the last one of the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        taken = None
        if self.scaler.is_enabled():  # it skips the steps whose gradient overflows in float16
            taken = norm.isfinite().float()
        else:
            self.watch.see("gradient", norm, batch)
        if self.penalty and (sparsity := self.config.sparsity):
            plan = Plan(self.rates, sparsity.ratio, self.steps_per_epoch)
            SCHEDULES[sparsity.schedule](self.penalty, plan, self.step)
            self.penalty.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.penalty:
            self.penalty.after_step(lr, taken)
        self.ema.update(self.model, taken)
        if self.penalty:
            self.penalty.copy_zeros(self.ema.model)
        self.step += 1

    def prune(self) -> int:
        """Cut the channels whose gammas are 0 out of the network, its average and the optimizer.

        Training goes on with what is left: the optimizer keeps its momenta, and the penalty its s. Prices of the
        penalty are those of what is left: their mean is 1 again.

        Returns:
            How many channels were cut; 0 without a penalty, which alone makes gammas 0, and a second time in an epoch,
            as after a stop in its evaluation.
        """
        if not self.penalty or not self.kept_channels or self.progress.pruned:
            return 0
        self.progress.pruned = True
        before, optimizer, coupling = [self.model, self.ema.model], self.optimizer, self.penalty.coupling
        dead = silent_sets(coupling, self.config.strategy, gamma_sizes(self.model))
        cut, after = cut_alike(before, coupling, dead)
        if not cut.removed_channels:
            return 0
        if not all(distributed.gather(cut_is_exact(before, after, self.config.img_size))):
            print("warning: without its dead channels the network does not compute the same: no channel was cut")
            return 0
        self._attach(self._laid_out(after[0]))
        self.ema.model = self._laid_out(after[1]).requires_grad_(False)
        carry_optimizer(optimizer, self.optimizer, before[0], after[0], cut)
        self.kept_channels.cut(cut)
        self.pruned = True
        return cut.removed_channels

    @property
    def has_cut(self) -> bool:
        """Whether this run cuts its network once, and has done so."""
        sparsity = self.config.sparsity
        return bool(sparsity and sparsity.is_cut and self.kept_channels and self.kept_channels.removed)

    @property
    def cut_is_due(self) -> bool:
        """Whether this run cuts its network before the next step."""
        sparsity = self.config.sparsity
        return bool(sparsity and sparsity.is_cut and self.epoch == sparsity.cut_epoch and not self.has_cut)

    def cut_once(self, images: Tensor) -> PruningResult:
        """Cut the least important channels out of the average of the weights, and start over with what is left.

        Of several processes the main one chooses them, since others may round importance in another way. What is left
        gets the kernels of :func:`utils.pruning.reconstruction.reconstruct`, and is trained as an ordinary network:
        with an optimizer, an average and learning rates of its own. Its teacher is the network before the cut, unless
        another one was given or none is wanted.

        Args:
            images: (B, 3, H, W) in [0, 1], as the network will see them when it detects; for the reconstruction.

        Raises:
            InputError: the budget cannot be reached, or the compact network does not compute the same.
        """
        config, sparsity, kept_channels = self.config, self.config.sparsity, self.kept_channels
        assert sparsity  # see cut_is_due
        assert kept_channels
        result, self.trial_cut = self.trial_cut, None
        if not result:
            options = config.strategy, config.img_size, sparsity.budget, self._latency(sparsity)
            result = distributed.from_main(lambda: cut_least_important(copy.deepcopy(self.ema.model).cpu(), *options))
        compact = result.pruned.model.to(self.device)
        prove(result.reference.to(self.device), compact, config.img_size)
        reconstruct(compact, self.ema.model, result.pruned.mask, images.to(self.device))
        if config.distill and not self.teacher:
            self.teacher = self.ema.model
        self._attach(self._laid_out(compact))
        self.ema = ModelEma(self.model, TRAINED)
        kept_channels.cut(result.pruned.mask)
        self.pruned = True
        self.best_map = 0.0
        return result

    def end_epoch(self) -> None:
        """Count the epoch as done."""
        self.epoch += 1
        self.progress = EpochProgress(len(self.model.heads))
        if self.distillation:
            self.distillation.clear()

    def gather(self) -> None:
        """Bring the running statistics and the progress of all processes together; all must call this."""
        if distributed.world() > 1:
            distributed.average_((*self.model.buffers(), *self.ema.model.buffers()))
            self.progress.gather(self.device)

    def check_finite(self) -> None:
        """Look at what the device has noted of the losses and gradients of this epoch.

        Raises:
            NotFinite: one of them is not finite.
            InputError: no gradient is finite in float16 any more.
        """
        where = f"epoch {self.epoch + 1}, step"
        advice = f"Checkpoints are unchanged. Try a lower --learning_rate than {self.config.learning_rate:g}"
        self.watch.check(where, self.epoch * self.steps_per_epoch, self.config.accumulate, advice)
        check_scale(self.scaler, f"{where} {self.step}", advice)

    def _progress_bar(self, batches: DataLoader) -> tqdm:
        return tqdm(
            batches,
            f"epoch {self.epoch + 1}/{self.config.epochs}",
            len(batches),
            leave=False,
            unit="batch",
            initial=self.progress.batches,
            disable=not distributed.is_main(),
        )

    def _epoch_report(self, images: int, began: float, waited: float) -> EpochReport:
        return EpochReport(
            epoch=self.epoch,
            epochs=self.config.epochs,
            heads=self.model.spec.at(self.config.img_size).heads,
            sums=cast(Tensor, self.progress.sums).cpu().numpy(),
            predictions=self.progress.predictions,
            images=images,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - began,
            seconds_waiting=waited,
            distillation_loss=self.distillation.mean() if self.distillation else None,
        )


@contextlib.contextmanager
def algorithm_search(search: bool) -> Iterator[None]:
    """A context in which cuDNN tries all of its algorithms on the first input of each shape, or takes its first guess.

    A search takes seconds per shape for a large network, and pays where many batches of that shape follow.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = search
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
