"""The options of train.py, in groups, and what must hold between them."""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

from models import Darknet
from utils import distributed
from utils.cli import add_size_option, number
from utils.data.image_cache import KINDS
from utils.detection.options import add_check_options, add_device_option, add_precision_option, add_workers_option
from utils.devices import computes_bf16, default_precision, describe_device, pick_device
from utils.errors import InputError
from utils.pruning.budget import DEFAULT_RATIO, LARGEST_RATIO, cut_least_important
from utils.pruning.costs import COSTS
from utils.pruning.graph_timer.runners import RUNNERS
from utils.pruning.latency import latency_of, table_file, timing_device
from utils.pruning.penalty import METHODS
from utils.pruning.pruner import PruningResult
from utils.pruning.schedules import SCHEDULES, check_schedule
from utils.pruning.selection import STRATEGIES
from utils.training.config import CUT, SparsityConfig, epochs_before_cut
from utils.training.recipes import LEARNING_RATE, MOSAIC, epochs_after_cut
from utils.training.runs import Run

SIZE_BUDGETS = ("target_macs", "target_params")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The images, and how they are read."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data or .yaml file")
    add_workers_option(group)
    group.add_argument(
        "--cache",
        choices=KINDS,
        default="none",
        help="keep images as they are used, read and scaled down: in memory, as far as they fit, or beside their list",
    )
    add_check_options(group)
    group.add_argument(
        "--mosaic",
        type=number(float, 0, 1),
        default=MOSAIC,
        help="probability of a mosaic of four images",
    )
    group.add_argument(
        "--multiscale_training", action="store_true", help="vary the size of the images by up to a quarter"
    )


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """The network, and the weights that it starts from."""
    group = parser.add_argument_group("network")
    group.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    group.add_argument(
        "--pretrained_weights",
        "-pre",
        help="start from a checkpoint, state dict, Darknet .weights or backbone file; default: random weights",
    )
    group.add_argument(
        "--pretrained_cfg",
        help="cfg of the weights to start from; only for a file that does not hold it, and whose network differs "
        "in more than the number of classes; default: the cfg in the file",
    )
    add_size_option(group, "size of the images in pixels, by default that of the cfg")


def add_optimisation_options(parser: argparse.ArgumentParser) -> None:
    """The optimizer's steps, and how they are computed."""
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--epochs",
        type=number(int, 1),
        default=100,
        help="number of epochs; where the run cuts its network, of the whole network: what is left trains for as many "
        "as cost the same in MACs",
    )
    group.add_argument(
        "--batch_size", type=number(int, 1), default=16, help="global batch size: images per step over all processes"
    )
    group.add_argument(
        "--accumulate",
        type=number(int, 1),
        default=1,
        help="batches per optimizer step, whose gradients are those of one large batch",
    )
    group.add_argument(
        "--learning_rate",
        "-lr",
        type=number(float, above=0),
        default=LEARNING_RATE,
        help="learning rate after the warm-up",
    )
    group.add_argument("--seed", type=number(int, 0), default=0, help="seed of weights, order and augmentation")
    add_device_option(group)
    add_precision_option(group)
    group.add_argument(
        "--channels_last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep images and feature maps in the channels-last memory layout",
    )
    group.add_argument(
        "--sync_bn",
        action="store_true",
        help="compute BatchNorm's statistics over the batch of all processes; only on GPUs",
    )


def add_sparsity_options(parser: argparse.ArgumentParser) -> None:
    """The penalty on the gammas."""
    group = parser.add_argument_group("sparsity")
    group.add_argument(
        "--sparsity-regularization",
        "-sr",
        dest="sr",
        action="store_true",
        help="make the network small: by one cut, or with --s by an L1 penalty on the gammas",
    )
    group.add_argument("--s", type=number(float, 0), default=0.01, help="strength of the penalty")
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="which channels may be pruned; default: slim where the run cuts them itself, else normal",
    )
    group.add_argument(
        "--s_schedule",
        choices=[CUT, *SCHEDULES],
        help="cut: no penalty; the run cuts the least important channels once and trains what is left as an ordinary "
        "network; constant: the penalty stays as it is; local: after half of the steps it is weakened for channels "
        "that will be kept; target: its strength is found; default: cut; local with --s; constant with --prune_every",
    )
    group.add_argument(
        "--target_percent",
        type=number(float, high=LARGEST_RATIO, above=0),
        help="share of the prunable channels to cut, like test_prune.py's --percent, or whose gammas should be 0 at "
        f"the end; default, where a schedule needs it: {DEFAULT_RATIO:g}",
    )
    group.add_argument(
        "--target_macs",
        type=number(float, high=1, above=0),
        help="share of the MACs to leave, in place of --target_percent, where the run cuts channels itself; "
        "default: none",
    )
    group.add_argument(
        "--target_params",
        type=number(float, high=1, above=0),
        help="share of the parameters to leave, alone or beside --target_macs; default: none",
    )
    group.add_argument(
        "--target_ms",
        type=number(float, above=0),
        help="milliseconds of a forward pass to leave, by --latency_table or in the --runtime, in place of "
        "--target_percent, where the run cuts channels itself; default: none",
    )
    group.add_argument(
        "--penalty_cost",
        choices=COSTS,
        default="uniform",
        help="what prices the penalty on a channel: nothing; or the MACs, or the milliseconds by --latency_table or in "
        "the --runtime, that its removal saves; the mean price is 1",
    )
    group.add_argument(
        "--latency_table",
        metavar="FILE",
        help="CSV file of latencies, see export.py --latency_table; default: none",
    )
    group.add_argument(
        "--runtime",
        choices=RUNNERS,
        help="in place of --latency_table: measure a table in this runtime on this machine, in minutes; default: none",
    )
    group.add_argument("--threads", type=number(int, 1), default=1, help="threads of the --runtime")
    group.add_argument(
        "--sr_method",
        choices=METHODS,
        default="proximal",
        help="proximal: a soft threshold after the optimizer's step, gammas become exactly 0; "
        "subgradient: a term of the gradient",
    )
    group.add_argument("--force", action="store_true", help="train with a penalty that is too weak for this run, too")


def add_pruning_options(parser: argparse.ArgumentParser) -> None:
    """Cuts between the epochs of sparse training."""
    group = parser.add_argument_group("pruning while training")
    group.add_argument(
        "--prune_every",
        type=number(int, 0),
        default=0,
        help="epochs between cuts of the channels whose gammas are 0 (with -sr); 0: no cuts",
    )


def add_distillation_options(parser: argparse.ArgumentParser) -> None:
    """The network to learn from besides the labels."""
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher_weights",
        help="weights of a network with the same heads to learn from, of any kind: in fine-tuning, the unpruned model; "
        "default: none; with --distill the network before the cut",
    )
    group.add_argument("--teacher_cfg", help="cfg of that network; default: the cfg in its checkpoint")
    group.add_argument(
        "--distill",
        action="store_true",
        help="where the run cuts its network itself: learn also from the network before the cut, in fewer epochs",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The files of the run, and when they are written."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--name",
        help="name of the run's files; default: yolov3 with -sr, else finetune_yolov3 for a pruned network, "
        "else baseline_yolov3",
    )
    group.add_argument("--evaluation_interval", type=number(int, 1), default=1, help="epochs between evaluations")
    group.add_argument("--checkpoint_interval", type=number(int, 1), default=5, help="epochs between checkpoints")
    group.add_argument(
        "--checkpoint_steps",
        type=number(int, 0),
        default=0,
        help="optimizer steps between checkpoints within an epoch; 0: checkpoints only after epochs",
    )
    unfinished = group.add_mutually_exclusive_group()
    unfinished.add_argument("--resume", action="store_true", help="go on with the unfinished run of this name")
    unfinished.add_argument("--overwrite", action="store_true", help="delete the unfinished run of this name")


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, or that this machine cannot do.

    Raises:
        InputError: names the options.
    """
    if args.teacher_cfg and not args.teacher_weights:
        raise InputError("--teacher_cfg needs --teacher_weights, the weights of that network")
    if args.pretrained_cfg and not args.pretrained_weights:
        raise InputError("--pretrained_cfg needs -pre, the weights of that network")
    run = Run(args.name)
    if not args.resume and Path(args.model_def).resolve().is_relative_to(run.folder.resolve()):
        raise InputError(f"--model_def {args.model_def}: this run moves and writes files there: give it another --name")
    written = [path.resolve() for path in (run.best, run.last, run.before_cut)]
    if args.teacher_weights and Path(args.teacher_weights).resolve() in written:
        raise InputError(f"--teacher_weights {args.teacher_weights}: this run writes that file: give it another --name")
    if args.batch_size % distributed.world():
        raise InputError(
            f"--batch_size {args.batch_size} is shared by {distributed.world()} processes: give a multiple of that"
        )
    if args.sync_bn and (args.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("--sync_bn works on GPUs only; without it each process uses the statistics of its own images")
    if args.prune_every and not (args.sr and args.sr_method == "proximal"):
        raise InputError("--prune_every needs -sr with --sr_method proximal: nothing else makes gammas exactly 0")
    if args.prune_every > args.epochs:
        raise InputError(f"--prune_every {args.prune_every}: the run ends after {args.epochs} epochs, before any cut")
    if args.prune_every and args.s_schedule != "constant":
        raise InputError(
            f"--prune_every cuts channels that --s_schedule {args.s_schedule} counts: use it with constant"
        )


def complete_sparsity(args: argparse.Namespace) -> None:
    """Set the schedule of the penalty and its ratio where they were not given.

    Raises:
        InputError: the options of the penalty contradict each other.
    """
    sparse_only = {"s", "s_schedule", "target_percent", *SIZE_BUDGETS, "target_ms", "sr_method", "penalty_cost"}
    sparse_only |= {"runtime", "latency_table", "threads", "distill", "force"}
    if not args.sr and (given := sorted(sparse_only & args.given)):
        raise InputError(f"{', '.join(f'--{name}' for name in given)}: only with -sr")
    args.total_epochs = args.epochs
    if not args.sr:
        args.strategy, args.cut_epoch = args.strategy or "normal", 0
        return
    args.s_schedule = args.s_schedule or _default_schedule(args)
    cuts = args.s_schedule == CUT
    if cuts and (penalty := sorted({"s", "sr_method", "prune_every", "penalty_cost", "force"} & args.given)):
        raise InputError(f"{', '.join(f'--{name}' for name in penalty)}: for a penalty, which --s_schedule cut has not")
    if args.distill and not cuts:
        raise InputError("--distill needs --s_schedule cut; with a penalty, name a teacher with --teacher_weights")
    check_budget(args, cuts)
    by_latency = args.target_ms is not None or args.penalty_cost == "latency"
    if by_latency != bool(args.latency_table or args.runtime) or (args.latency_table and args.runtime):
        raise InputError(
            "--target_ms and --penalty_cost latency go with --runtime or with --latency_table, and these with them"
        )
    if "threads" in args.given and not args.runtime:
        raise InputError("--threads: only with --runtime")
    if args.target_percent and args.s_schedule == "constant":
        raise InputError("--target_percent has no effect under --s_schedule constant: leave one of them out")
    if "s" in args.given and args.s_schedule == "target":
        raise InputError("--s has no effect under --s_schedule target, which finds it: leave one of them out")
    check_schedule(args.s_schedule, args.sr_method)
    args.target_percent = args.target_percent or DEFAULT_RATIO
    args.strategy = args.strategy or ("slim" if cuts else "normal")
    args.cut_epoch = epochs_before_cut(args.epochs) if cuts else 0


def check_budget(args: argparse.Namespace, cuts: bool) -> None:
    """Refuse a budget that contradicts itself, or that needs a run which ``cuts`` its network once.

    Raises:
        InputError: names the options.
    """
    given = [name for name in (*SIZE_BUDGETS, "target_ms", "target_percent") if getattr(args, name) is not None]
    for name in given:
        if name != "target_percent" and not cuts:
            raise InputError(f"--{name} needs --s_schedule cut; with a penalty, give it to test_prune.py")
    if len(given) > 1 and not set(given) <= set(SIZE_BUDGETS):
        names = ", ".join(f"--{name}" for name in given)
        raise InputError(f"{names}: give one of them; only --target_macs and --target_params go together")


def complete_latency_table(args: argparse.Namespace, model: Darknet) -> None:
    """Measure the table of the --runtime for ``model``, in the main process; set --latency_table to its file."""
    device = timing_device(args.runtime, pick_device(args.device))
    spec = model.spec.at(args.img_size)
    path = distributed.from_main(lambda: table_file(spec, args.runtime, args.threads, device))
    args.latency_table = str(path)


def complete_epochs(args: argparse.Namespace, model: Darknet, images: int) -> PruningResult | None:
    """Set how many epochs a run that cuts its network has, by how much of ``model`` the cut leaves; print it.

    From random weights the cut comes later and leaves about as much.

    Args:
        args: the options.
        model: the network before the cut.
        images: how many images there are to train on.

    Returns:
        The cut of ``model`` where it comes before the first step; else None.

    Raises:
        InputError: no channel may be cut, the budget cannot be reached, or it is reached without a cut.
    """
    size = args.img_size
    latency = latency_of(model.spec.at(size), None, args.latency_table)
    budget = SparsityConfig.from_options(args).budget
    options = args.strategy, size, budget, latency
    left = distributed.from_main(
        lambda: cut_least_important((with_constants(model) if args.cut_epoch else model).eval(), *options)
    )
    small, whole = (spec.at(size).macs for spec in (left.pruned.model.spec, model.spec))
    before, after = args.cut_epoch, args.epochs - args.cut_epoch
    has_teacher = bool(args.distill or args.teacher_weights)
    classes = max(head.classes for head in model.spec.heads)
    args.total_epochs = before + epochs_after_cut(after, small / whole, has_teacher, images, classes)
    if latency:
        print(
            f"the cut leaves {latency.table.predict(left.pruned.model.spec):.2f} ms of "
            f"{latency.table.predict(model.spec):.2f} ms, by the table of {latency.table.title}"
        )
    print(
        f"{args.total_epochs - before} epochs after the cut, {small / whole:.1%} of the MACs each, in place of {after}"
    )
    return None if args.cut_epoch else left


def with_constants(model: Darknet) -> Darknet:
    """A copy whose dead channels are constants other than 0, as they are after some training, not before the first."""
    copied = copy.deepcopy(model)
    for norm in copied.batch_norms.values():
        nn.init.ones_(norm.bias)
    return copied


def _default_schedule(args: argparse.Namespace) -> str:
    if args.prune_every:
        return "constant"
    return "local" if {"s", "sr_method", "penalty_cost"} & args.given else CUT


def complete_precision(args: argparse.Namespace, device: torch.device) -> None:
    """Set the precision that suits the device where none was given; print device and precision."""
    args.precision = args.precision or default_precision(device)
    if args.precision == "mixed" and device.type == "cpu" and not computes_bf16(device):
        print("warning: --precision mixed: this CPU has no bfloat16 instructions; full is many times faster here")
    if distributed.is_main():
        print(describe_device(device, args.precision, distributed.world()))
