"""Trains a Darknet-cfg YOLO, sparse where asked (-sr), and keeps the checkpoints that pruning reads."""

import argparse
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models import Darknet
from utils import distributed
from utils.boxes import check_nms
from utils.cli import ArgumentParser, Options, run
from utils.data.data_config import read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.images import some_images
from utils.detection.evaluate import evaluate
from utils.detection.options import check_batch_norm, check_classes, network_size
from utils.detection.pretrained import load_pretrained
from utils.devices import pick_device
from utils.errors import InputError
from utils.pruning.prune_in_training import KeptChannels
from utils.pruning.pruner import PruningResult
from utils.pruning.reconstruction import IMAGES as RECONSTRUCTION_IMAGES
from utils.report.runs import report_training
from utils.training import options
from utils.training.batches import make_loaders
from utils.training.config import CUT, TrainConfig
from utils.training.distillation import load_teacher
from utils.training.epoch_log import EpochLog
from utils.training.interruption import resumable
from utils.training.penalty_advice import PenaltyAdvice
from utils.training.plots import plot_training
from utils.training.recipes import find_origin
from utils.training.resume import restore_options, resume_point, resume_run, was_pruned
from utils.training.runs import Run, default_name, make_room
from utils.training.saving import CheckpointWriter, is_due
from utils.training.state import kept_channels_state
from utils.training.trainer import Trainer


def get_args_parser() -> argparse.ArgumentParser:
    """The options of train.py, in groups."""
    parser = ArgumentParser(__doc__)
    options.add_data_options(parser)
    options.add_network_options(parser)
    options.add_optimisation_options(parser)
    options.add_sparsity_options(parser)
    options.add_pruning_options(parser)
    options.add_distillation_options(parser)
    options.add_run_options(parser)
    return parser


def main(args: Options) -> None:
    """Train in this process, or together with the others that torchrun started."""
    with distributed.processes(args.device):
        train(*build(args))
        is_main = distributed.is_main()
    if is_main:
        report_training(args.name)


def build(args: Options) -> tuple[Trainer, DataLoader, DataLoader, CheckpointWriter, EpochLog | None]:
    """Make what :func:`train` takes: for a new run, or to go on where the last run of this name stopped."""
    run_files, checkpoint, pruned = complete_options(args)
    torch.manual_seed(args.seed)
    model, kept_channels = make_model(args, run_files, checkpoint)
    args.img_size = network_size(model, args.img_size).plain
    data = read_data_config(args.data_config)
    check_classes(model, data)
    check_batch_norm(model, args.img_size, args.batch_size // (1 if args.sync_bn else distributed.world()))
    if args.pretrained_weights and not checkpoint:
        taken = load_pretrained(model, args.pretrained_weights, args.pretrained_cfg)
        print(taken.line)
        if taken.is_all:
            args.cut_epoch = 0  # a trained network can be cut at once
    if args.runtime and not checkpoint:
        options.complete_latency_table(args, model)
    trial_cut = None
    if args.s_schedule == CUT and not checkpoint:
        trial_cut = options.complete_epochs(args, model, len(data.entries("train")))
    device = pick_device(args.device)
    batches, valid_batches = make_loaders(args, data, device)
    options.complete_precision(args, device)
    check_nms(device)

    config = TrainConfig.from_options(args)
    teacher = make_teacher(args, run_files, model, kept_channels, device)
    steps_per_epoch = -(-len(batches) // args.accumulate)
    trainer = Trainer(config, model.to(device), steps_per_epoch, teacher, kept_channels)
    trainer.images = len(cast(DetectionDataset, batches.dataset))
    trainer.pruned, trainer.trial_cut = pruned, trial_cut
    if trainer.penalty and not checkpoint:
        PenaltyAdvice(config, trainer.rates).before_training(trainer.penalty.distances(), args.force)
    if args.pretrained_weights and not checkpoint:
        print(f"before the first step: mAP@0.5 {evaluate(model, valid_batches, data.names)[0].mAP:.4f}")

    if checkpoint:
        resume_run(trainer, checkpoint, run_files)
    else:
        make_room(run_files, args.overwrite)
    checkpoints = CheckpointWriter(trainer, run_files, data.names, vars(args))
    log = EpochLog(trainer, run_files, vars(args)) if distributed.is_main() else None
    return trainer, batches, valid_batches, checkpoints, log


def train(
    trainer: Trainer,
    batches: DataLoader,
    valid_batches: DataLoader,
    checkpoints: CheckpointWriter,
    log: EpochLog | None,
) -> None:
    """Train the epochs that are still to do; of several processes, only the main one has a ``log``.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the step was finished and the checkpoint written.
        InputError: the loss or the gradient is not finite; the images of the batch were written.
    """
    config = trainer.config
    with resumable(checkpoints, batches) as stop:

        def after_step() -> None:
            stop.agree(distributed.largest)
            stop.check()
            if is_due(config.checkpoint_steps, trainer.step):
                checkpoints.save_last()

        watched = stop.watch(valid_batches, distributed.largest)

        while trainer.epoch < config.epochs:
            if trainer.cut_is_due:
                cut(trainer, batches, checkpoints)
                shown = evaluate(trainer.ema.model, watched, checkpoints.names)[0]
                print(f"before the first step of what is left: mAP@0.5 {shown.mAP:.4f}")
            report = trainer.train_epoch(batches, after_step)
            done = trainer.epoch + 1
            if is_due(config.prune_every, done):
                prune(trainer)
            if is_due(config.evaluation_interval, done) or done == config.epochs:
                report.metrics, _ = evaluate(trainer.ema.model, watched, checkpoints.names)
            trainer.end_epoch()
            if log:
                log.add(report)
                if checkpoints.due():
                    plot_training(log.rows, log.gammas, checkpoints.run.folder)
            checkpoints.save_epoch(report.metrics.mAP if report.metrics else None)
    if log:
        log.close()
    print_files(trainer, checkpoints.run)


def complete_options(args: Options) -> tuple[Run, dict[str, Any] | None, bool]:
    """Set what the command line leaves open, from the run to resume or from what a new run starts from.

    Returns:
        The files of the run, the checkpoint to resume from if asked to, and whether the network is a pruned one.

    Raises:
        InputError: options contradict each other or the run to resume, or an unfinished run would be lost.
    """
    names_run = not args.name and args.pretrained_weights  # whether what the run starts from names it, also on --resume
    origin = find_origin(args.pretrained_weights, args.model_def) if names_run or not args.resume else None
    args.name = args.name or default_name(args.sr, args.model_def, bool(origin and origin.pruned))
    run_files = Run(args.name)
    checkpoint = distributed.from_main(lambda: resume_point(args, run_files))
    if checkpoint:
        restore_options(args, checkpoint["options"])
        pruned = was_pruned(checkpoint)
    else:
        assert origin
        print(f"start: {origin.reason}")
        options.complete_sparsity(args)
        pruned = origin.pruned
    options.check_options(args)
    return run_files, checkpoint, pruned


def make_model(args: Options, run_files: Run, checkpoint: dict[str, Any] | None) -> tuple[Darknet, KeptChannels | None]:
    """The network of the cfg; with pruning in training, without the channels that the run to resume has cut."""
    model = Darknet(args.model_def)
    if not (args.prune_every or args.s_schedule == CUT):
        return model, None
    kept_channels = KeptChannels(model.spec)
    if checkpoint:
        kept_channels.load_state(kept_channels_state(checkpoint), run_files.last)
        model = Darknet(kept_channels.blocks(model.blocks))
    return model, kept_channels


def make_teacher(
    args: Options, run_files: Run, model: Darknet, kept_channels: KeptChannels | None, device: torch.device
) -> Darknet | None:
    """The network to learn from: of --teacher_weights, or with --distill, after the cut, the network before it."""
    weights = args.teacher_weights
    if not weights and args.distill and kept_channels and kept_channels.removed:
        weights = str(run_files.before_cut)
    return load_teacher(weights, args.teacher_cfg, model, args.img_size, device) if weights else None


def prune(trainer: Trainer) -> None:
    """Cut dead channels out of the network in training, and print what is left."""
    if (cut := trainer.prune()) and trainer.kept_channels:
        macs = trainer.model.spec.at(trainer.config.img_size).macs
        left = sum(trainer.kept_channels.counts().values())
        print(f"{cut} dead channels cut out; {left} are left, and {macs / 1e9:.3f} G MACs per image")


def cut(trainer: Trainer, batches: DataLoader, checkpoints: CheckpointWriter) -> None:
    """Cut the network of a run with ``-sr``, and print what is left; ``batches`` are of its training images.

    Raises:
        InputError: it cannot be cut as was asked; the message names the file with what was trained until here.
    """
    checkpoints.save_before_cut()
    try:
        print_cut(trainer, trainer.cut_once(images_of(batches)))
    except InputError as error:
        trained = f"; to go on with what was trained until here: -pre {checkpoints.run.before_cut}"
        raise InputError(f"{error}{trained if trainer.epoch else ''}") from error


def images_of(batches: DataLoader) -> Tensor:
    """Some training images (B, 3, H, W) in [0, 1], as the network sees them when it detects.

    They are at most four times as many as a training step takes, which needs more memory for each.
    """
    dataset = cast(DetectionDataset, batches.dataset)
    count = min(RECONSTRUCTION_IMAGES, 4 * cast(int, batches.batch_size))
    return some_images(dataset.images, count, dataset.img_size)


def print_cut(trainer: Trainer, result: PruningResult) -> None:
    """Print what the cut of a run with ``-sr`` has left."""
    spec, size = trainer.model.spec, trainer.config.img_size
    left = spec.at(size).macs / result.reference.spec.at(size).macs
    print(
        f"{result.ratio:.1%} of the prunable channels cut, the least important ones; {spec.parameters:,} parameters "
        f"and {left:.1%} of the MACs are left, which train as an ordinary network from here on"
    )


def print_files(trainer: Trainer, run_files: Run) -> None:
    """Print which files a finished run has written."""
    config = trainer.config
    kind = "last epoch" if config.sparsity else f"best mAP@0.5 {trainer.best_map:.4f}"
    print(f"{run_files.best}: {kind}\n{run_files.folder}: options, log.csv, TensorBoard events, plots")
    if config.cuts_channels:
        print(f"{run_files.cfg(config.model_def)}: cfg of the network that is left, for --model_def of other programs")


if __name__ == "__main__":
    run(get_args_parser(), main)
