"""Trains a Darknet-cfg YOLO, sparse where asked (-sr), and keeps the checkpoints that pruning reads."""

import argparse
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from models import Darknet
from utils import distributed
from utils.cli import ArgumentParser, number, run
from utils.darknet.cfg import format_cfg
from utils.data.augmentations import Augmentation
from utils.data.check import check_data, summary
from utils.data.data_config import DataConfig, read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.image_cache import budget
from utils.data.loader import EpochSampler, loader
from utils.detection.checkpoints import load_weights, read_checkpoint, save_checkpoint
from utils.detection.evaluate import evaluate
from utils.detection.options import add_check_options, add_precision_option, check_classes, label_rules, network_size
from utils.devices import computes_bf16, default_precision, describe_device, pick_device
from utils.errors import InputError
from utils.files import remove_leftovers, write_text
from utils.plots import plot_training
from utils.pruning.penalty import METHODS, GammaHistory, gamma_sizes
from utils.pruning.prune_in_training import KeptChannels
from utils.pruning.pruner import DEFAULT_RATIO, LARGEST_RATIO
from utils.pruning.schedules import SCHEDULES, check_schedule
from utils.pruning.selection import STRATEGIES
from utils.signals import Stopped, StopRequest
from utils.training.nonfinite import NotFinite, write_batches
from utils.training.penalty_advice import check_reach, warn_of_penalty
from utils.training.recipes import FINE_TUNING, TRAINING, WITHOUT_MOSAIC, recipe_for
from utils.training.report import gamma_row, loss_row, print_epoch
from utils.training.resume import restore_options, resume_point
from utils.training.run_log import RunLog
from utils.training.runs import Run, default_name
from utils.training.trainer import Trainer


def get_args_parser() -> argparse.ArgumentParser:
    """The options of train.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--epochs", type=number(int, 1), default=100, help="number of epochs")
    parser.add_argument("--batch_size", type=number(int, 1), default=16, help="images a batch, of all processes")
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data file")
    parser.add_argument(
        "--pretrained_weights", "-pre", help="start from a checkpoint, state dict, Darknet .weights or backbone file"
    )
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="workers that read images, for each process")
    add_check_options(parser)
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the cfg's if not given")
    parser.add_argument("--checkpoint_interval", type=number(int, 1), default=5, help="epochs between checkpoints")
    parser.add_argument(
        "--checkpoint_steps",
        type=number(int, 0),
        default=0,
        help="optimizer steps between checkpoints within an epoch; 0: only after epochs",
    )
    parser.add_argument("--evaluation_interval", type=number(int, 1), default=1, help="epochs between evaluations")
    parser.add_argument("--multiscale_training", action="store_true", help="vary the size by up to a quarter")
    parser.add_argument(
        "--learning_rate",
        "-lr",
        type=number(float, above=0),
        help=f"after the warm-up; default: {TRAINING.learning_rate:g}, fine-tuning {FINE_TUNING.learning_rate:g}",
    )
    parser.add_argument("--accumulate", type=number(int, 1), default=1, help="batches an optimizer step, as one large")
    parser.add_argument("--sparsity-regularization", "-sr", dest="sr", action="store_true", help="train sparse")
    parser.add_argument("--s", type=number(float, 0), default=0.01, help="strength of the penalty on the gammas")
    parser.add_argument(
        "--s_schedule",
        choices=SCHEDULES,
        help="global: s decays at half-way; local: only where channels will be kept; target: s is found; "
        "default: local; target with --target_percent and no --s; constant with --prune_every",
    )
    parser.add_argument(
        "--target_percent",
        type=number(float, high=LARGEST_RATIO, above=0),
        help="share of the prunable channels that should be dead at the end, the same as test_prune.py's --percent; "
        f"without --s it finds s. Default where it is needed: {DEFAULT_RATIO:g}",
    )
    parser.add_argument("--sr_method", choices=METHODS, default="proximal", help="proximal gives gammas of exactly 0")
    parser.add_argument("--strategy", choices=STRATEGIES, default="normal", help="which gammas to penalise")
    parser.add_argument(
        "--prune_every", type=number(int, 0), default=0, help="epochs between cuts of dead channels (-sr); 0: no cuts"
    )
    parser.add_argument("--cache", action="store_true", help="keep the decoded images in memory, as far as they fit")
    parser.add_argument(
        "--channels_last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the memory layout of images and maps",
    )
    add_precision_option(parser)
    parser.add_argument("--sync_bn", action="store_true", help="BatchNorm over the batch of all processes; GPUs only")
    parser.add_argument(
        "--mosaic",
        type=number(float, 0, 1),
        help=f"chance of four images in one; default: {TRAINING.mosaic:g}, fine-tuning {FINE_TUNING.mosaic:g}",
    )
    parser.add_argument("--teacher_cfg", help="learn also from this network, which has the same heads: its cfg")
    parser.add_argument("--teacher_weights", help="and its weights, of any kind: the unpruned model, in fine-tuning")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of weights, order and augmentation")
    parser.add_argument(
        "--name", help="of the run's files; by default yolov3 with -sr, else baseline_ or finetune_yolov3"
    )
    unfinished = parser.add_mutually_exclusive_group()
    unfinished.add_argument("--resume", action="store_true", help="go on with the unfinished run of this name")
    unfinished.add_argument("--overwrite", action="store_true", help="give up the unfinished run of this name")
    return parser


def main(args: argparse.Namespace) -> None:
    """Train in this process, or with the others that torchrun started."""
    with distributed.processes():
        train_network(args)


def train_network(args: argparse.Namespace) -> None:
    """Train, epoch by epoch, from the start or from where the last run of this name stopped."""
    args.name = args.name or default_name(args.sr, args.model_def)
    files = Run(args.name)
    if checkpoint := distributed.from_main(lambda: resume_point(args, files)):
        restore_options(args, checkpoint["options"])
    recipe = recipe_for(args.model_def)
    for option in ("learning_rate", "mosaic"):
        if getattr(args, option) is None:
            setattr(args, option, getattr(recipe, option))
    if not checkpoint:
        resolve_schedule(args)
    check_options(args)
    torch.manual_seed(args.seed)
    model, kept_channels = make_model(args, files, checkpoint)
    args.img_size = network_size(model, args.img_size)
    data = read_data_config(args.data_config)
    check_classes(model, data)
    if args.pretrained_weights and not checkpoint:
        load_pretrained(model, args.pretrained_weights)
    batches, valid_batches = make_loaders(args, data)
    device = pick_device()
    resolve_computing(args, device)
    torch.backends.cudnn.benchmark = not args.multiscale_training
    training = Trainer(args, model.to(device), kept_channels, device, -(-len(batches) // args.accumulate))
    if args.sr and not checkpoint:
        check_reach(training)
    if args.pretrained_weights and not checkpoint:
        print(f"before the first step: mAP@0.5 {evaluate(model, valid_batches, data.names)[0].mAP:.4f}")

    restore_or_set_aside(training, files, checkpoint)
    log = RunLog(files.folder, vars(args), training.epoch) if distributed.is_main() else None
    run_epochs(training, batches, valid_batches, data, files, log)
    if log:
        log.close()
    kind = "last epoch" if args.sr else f"best mAP@0.5 {training.best_map:.4f}"
    print(f"{files.best}: {kind}\n{files.folder}: options, log.csv, TensorBoard events, images")
    if args.prune_every:
        print(f"{files.cfg(args.model_def)}: the cfg of what is left, for --model_def of the other programs")


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, or not with this machine."""
    if bool(args.teacher_cfg) != bool(args.teacher_weights):
        raise InputError("--teacher_cfg and --teacher_weights belong together: give both")
    own = Run(args.name)
    if args.teacher_weights and Path(args.teacher_weights).resolve() in (own.best.resolve(), own.last.resolve()):
        raise InputError(f"--teacher_weights {args.teacher_weights}: this run writes that file: give it another --name")
    if args.batch_size % distributed.world():
        raise InputError(
            f"--batch_size {args.batch_size} is shared by {distributed.world()} processes: give a multiple of that"
        )
    if args.sync_bn and not torch.cuda.is_available():
        raise InputError("--sync_bn works on GPUs only; without it each process uses the statistics of its own images")
    if args.prune_every and not (args.sr and args.sr_method == "proximal"):
        raise InputError("--prune_every needs -sr with --sr_method proximal: nothing else makes gammas exactly 0")
    if args.prune_every and args.s_schedule in ("local", "target"):
        raise InputError(
            f"--prune_every cuts what --s_schedule {args.s_schedule} counts: use it with constant or global"
        )


def make_model(args: argparse.Namespace, files: Run, checkpoint: dict | None) -> tuple[Darknet, KeptChannels]:
    """The network of the cfg, without the channels that the run to resume has cut."""
    model = Darknet(args.model_def)
    kept_channels = KeptChannels(model.spec)
    if checkpoint and (cut := checkpoint["training"].get("survivors")):
        kept_channels.load_state(cut, files.last)
        model = Darknet(kept_channels.blocks(model.blocks))
    return model, kept_channels


def resolve_schedule(args: argparse.Namespace) -> None:
    """The schedule of the penalty that the options ask for.

    Raises:
        InputError: they contradict each other.
    """
    sparse_only = {"s", "s_schedule", "target_percent", "sr_method"}
    if not args.sr and (given := sorted(sparse_only & args.given)):
        raise InputError(f"{', '.join(f'--{name}' for name in given)}: about sparse training: add -sr")
    if args.target_percent and args.s_schedule in ("constant", "global"):
        raise InputError(f"--target_percent has no use under --s_schedule {args.s_schedule}")
    if "s" in args.given and args.s_schedule == "target":
        raise InputError("--s has no use under --s_schedule target, which finds it: leave one of them out")
    args.s_schedule = args.s_schedule or default_schedule(args)
    args.target_percent = args.target_percent or DEFAULT_RATIO
    check_schedule(args.s_schedule, args.sr_method)


def default_schedule(args: argparse.Namespace) -> str:
    """The schedule where none is asked for; --prune_every does without those that count what it cuts."""
    if args.target_percent:
        return "local" if "s" in args.given else "target"
    return "constant" if args.prune_every else "local"


def resolve_computing(args: argparse.Namespace, device: torch.device) -> None:
    """The precision that suits the device where none is asked for; say what it will be."""
    args.precision = args.precision or default_precision(device)
    if args.precision == "mixed" and device.type == "cpu" and not computes_bf16(device):
        print("warning: --precision mixed: this CPU has no bfloat16 instructions; full is many times faster here")
    if distributed.is_main():
        print(describe_device(device, args.precision, distributed.world()))


def run_epochs(
    training: Trainer, batches: DataLoader, valid_batches: DataLoader, data: DataConfig, files: Run, log: RunLog | None
) -> None:
    """The epochs that are still to do, each with its log, its checkpoints, and its images.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the step was finished and the checkpoint written.
        NotFinite: the loss or the gradient is not finite; the images of the batch were written.
    """
    history = files.folder / "gammas.npz"
    gammas = GammaHistory.load(history, before=training.epoch) if log else GammaHistory()
    notice = "finishing this step, then a checkpoint; once more to quit at once"
    with StopRequest(notice if distributed.is_main() else "") as stop:
        try:
            while training.epoch < training.args.epochs:
                row = run_epoch(training, batches, valid_batches, data, files, gammas, stop)
                if log:
                    log.add(row)
                    gammas.save(history)
                    warn_of_penalty(training, log, gammas)
                    if checkpoint_due(training):
                        plot_training(log.rows, gammas, files.folder)
                save_checkpoints(training, files, data, row.get("mAP"))
        except Stopped as stopped:
            save_last(training, files, data)
            program = "torchrun ... -- train.py" if distributed.world() > 1 else "python train.py"
            again = f"{program} --resume --name {files.name}"
            raise Stopped(f"{stopped}; {files.last} is written, go on with: {again}", stop.received) from None
        except NotFinite as error:
            own = f"process_{distributed.rank()}" if distributed.world() > 1 else ""
            folder = write_batches(batches, error.batches, data.names, files.folder / "not_finite" / own)
            raise InputError(f"{error}. The images of the batch are in {folder}") from error


def load_pretrained(model: Darknet, path: str) -> None:
    """Start from weights of any kind, and say how many layers they fill."""
    about = load_weights(model, path, partial=True)
    filled = f"{about['filled']} of {len(model.spec.convolutions)}" if "filled" in about else "all"
    print(f"{path}: weights for {filled} convolutions")


def restore_or_set_aside(training: Trainer, files: Run, checkpoint: dict | None) -> None:
    """Restore a checkpoint, or make the names of the run's files free; an earlier run is set aside."""
    if distributed.is_main():
        remove_leftovers(files.last.parent)
        remove_leftovers(files.folder)
    if checkpoint:
        training.load_state(checkpoint, files.last)
        if files.best.exists():  # maybe of a later epoch than the checkpoint, which is to be trained again
            training.best_map = max(training.best_map, read_checkpoint(files.best).get("best_map", 0.0))
        within = f", batch {training.progress.batches + 1}" if training.progress.batches else ""
        print(f"resuming {files.name} at epoch {training.epoch + 1}{within}")
    elif not distributed.is_main():
        return
    elif training.args.overwrite and not files.is_finished():
        files.delete()
    elif kept := files.set_aside():
        print(f"the earlier run {files.name} is kept as {kept.name}")


def run_epoch(
    training: Trainer,
    batches: DataLoader,
    valid_batches: DataLoader,
    data: DataConfig,
    files: Run,
    gammas: GammaHistory,
    stop: StopRequest,
) -> dict[str, float]:
    """What is left of an epoch, its evaluation if one is due, and its table; the row for the log."""
    args, epoch = training.args, training.epoch

    def after_step() -> None:
        stop.agree(distributed.largest)
        stop.check()
        if args.checkpoint_steps and training.step % args.checkpoint_steps == 0:
            save_last(training, files, data)

    began = time.perf_counter()
    batches.sampler.epoch = epoch
    batches.sampler.start = training.progress.batches * batches.batch_size
    training.train_epoch(batches, after_step)
    sums, cells = training.progress.sums.cpu().numpy(), training.progress.cells
    row = {"epoch": epoch, **loss_row(sums, len(batches.dataset)), "lr": training.optimizer.param_groups[0]["lr"]}
    row["seconds"] = time.perf_counter() - began
    if training.distillation and (taught := training.distillation.take_mean()) is not None:
        row["distillation_loss"] = taught
    if args.prune_every and (epoch + 1) % args.prune_every == 0:
        cut(training)
    metrics = None
    # Several processes stop together, between steps.
    watched = stop.watch(valid_batches) if distributed.world() == 1 else valid_batches
    if epoch + 1 == args.epochs or (epoch + 1) % args.evaluation_interval == 0:
        metrics, _ = evaluate(training.ema.model, watched, data.names)
        row |= metrics.quality()
    kept_channels = training.kept_channels
    gammas.record(epoch, kept_channels.coupling, args.strategy, kept_channels.spread(gamma_sizes(training.ema.model)))
    if distributed.is_main():
        print_epoch(args, training.model, epoch, sums, cells, metrics, gammas, training.penalty.s)
    if args.prune_every:
        row["channels"] = sum(kept_channels.counts().values())
    training.end_epoch()
    return row | gamma_row(gammas, training.penalty.s)


def cut(training: Trainer) -> None:
    """Cut what died out of the network in training, and say what is left."""
    if gone := training.cut():
        macs = training.model.spec.at(training.args.img_size).macs
        left = sum(training.kept_channels.counts().values())
        print(f"{gone} dead channels cut out; {left} are left, and {macs / 1e9:.3f} G MACs an image")


def checkpoint_due(training: Trainer) -> bool:
    """Whether the checkpoint to resume from is to be written after this epoch."""
    return training.epoch == training.args.epochs or training.epoch % training.args.checkpoint_interval == 0


def save_checkpoints(training: Trainer, files: Run, data: DataConfig, mean_ap: float | None) -> None:
    """Write the checkpoints that are due after an epoch.

    The one to resume from comes last: once it is there, the log, the images and all else of its epoch are.
    """
    args, due = training.args, checkpoint_due(training)
    is_best = mean_ap is not None and mean_ap > training.best_map
    training.best_map = max(training.best_map, mean_ap or 0.0)
    # An early best of sparse training is not sparse yet.
    if distributed.is_main() and (due if args.sr else is_best or not files.best.exists()):
        save_checkpoint(files.best, training.ema.model, **description(training, data))
    if distributed.is_main() and due and args.prune_every:
        write_text(files.cfg(args.model_def), format_cfg(training.model.blocks))
    if due:
        save_last(training, files, data)


def save_last(training: Trainer, files: Run, data: DataConfig) -> None:
    """Write the checkpoint to resume from, between two optimizer steps."""
    training.check_finite()
    training.gather()
    if distributed.is_main():
        save_checkpoint(files.last, training.ema.model, **description(training, data), training=training.state())


def description(training: Trainer, data: DataConfig) -> dict:
    """What a checkpoint says about itself."""
    args = training.args
    return {
        "names": data.names,
        "img_size": args.img_size,
        "epoch": training.epoch,
        "step": training.step,
        "best_map": training.best_map,
        "options": vars(args),
        "strategy": args.strategy,
    }


def make_loaders(args: argparse.Namespace, data: DataConfig) -> tuple[DataLoader, DataLoader]:
    """Batches of the training and of the validation images."""
    closing = max(1, round(WITHOUT_MOSAIC * args.epochs))
    augmentation = Augmentation(mosaic=args.mosaic, first_plain_epoch=args.epochs - closing)
    checked = {split: check_data(data, split, args.skip_bad, label_rules(args)) for split in ("train", "valid")}
    print(summary(checked))
    train = DetectionDataset(checked["train"].images, checked["train"].labels, args.img_size, augmentation, args.seed)
    valid = DetectionDataset(checked["valid"].images, checked["valid"].labels, args.img_size)
    if args.cache:
        keep_images(train, valid)
    rank, world = distributed.rank(), distributed.world()
    sampler = EpochSampler(len(train), args.seed, args.batch_size, rank, world)
    own = Subset(valid, distributed.share(len(valid), rank, world))
    batch_size = args.batch_size // world
    return loader(train, batch_size, args.n_cpu, sampler), loader(own, batch_size, args.n_cpu)


def keep_images(*datasets: DetectionDataset) -> None:
    """Keep decoded images in memory, and say how many fit."""
    most = free = budget()
    for dataset in datasets:
        free -= dataset.keep(free)
    kept, everything = (sum(map(len, group)) for group in ([d.kept for d in datasets], datasets))
    print(
        f"--cache: {kept} of {everything} images in memory, {(most - free) / 1e9:.2f} GB"
        + (f"; the others do not fit into {most / 1e9:.2f} GB, half of what is free" if kept < everything else "")
    )


if __name__ == "__main__":
    run(get_args_parser(), main)
