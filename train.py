"""Trains a Darknet-cfg YOLO, sparse where asked (-sr), and keeps the checkpoints that pruning reads."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from terminaltables import AsciiTable
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from test import evaluate
from utils.augmentations import Augmentation
from utils.checkpoints import load_state, load_weights, save_checkpoint
from utils.cli import ArgumentParser, number, run
from utils.datasets import DataConfig, DetectionDataset, EpochSampler, loader, read_data_config, to_device
from utils.devices import amp_dtype, autocast, pick_device
from utils.ema import ModelEma
from utils.errors import InputError
from utils.loss import HeadReport, YoloLoss
from utils.metrics import Metrics
from utils.optim import MOMENTUM, WARMUP_EPOCHS, build_sgd, learning_rate
from utils.options import check_classes, network_size
from utils.plots import plot_training
from utils.recipes import FINE_TUNING, TRAINING, recipe_for
from utils.resolve import resolve
from utils.run_log import RunLog
from utils.runs import Run, default_name
from utils.sparsity import METHODS, GammaHistory, GammaPenalty, reach
from utils.strategies import STRATEGIES

GRADIENT_NORM = 10.0  # larger gradients are scaled down to this norm
DISPLAY_STEPS = 10  # the loss is read from the device this often
MULTISCALE_STEPS = 10  # with --multiscale_training the size changes this often


def get_args_parser() -> argparse.ArgumentParser:
    """The options of train.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--epochs", type=number(int, 1), default=100, help="number of epochs")
    parser.add_argument("--batch_size", type=number(int, 1), default=16, help="pictures a step")
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data file")
    parser.add_argument(
        "--pretrained_weights", "-pre", help="start from a checkpoint, state dict, Darknet .weights or backbone file"
    )
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="worker processes that read pictures")
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the cfg's if not given")
    parser.add_argument("--checkpoint_interval", type=number(int, 1), default=5, help="epochs between checkpoints")
    parser.add_argument("--evaluation_interval", type=number(int, 1), default=1, help="epochs between evaluations")
    parser.add_argument("--multiscale_training", action="store_true", help="vary the size by up to a quarter")
    parser.add_argument(
        "--learning_rate",
        "-lr",
        type=number(float, above=0),
        help=f"after the warm-up; default: {TRAINING.learning_rate:g}, fine-tuning {FINE_TUNING.learning_rate:g}",
    )
    parser.add_argument("--accumulate", type=number(int, 1), default=1, help="batches an optimizer step")
    parser.add_argument("--sparsity-regularization", "-sr", dest="sr", action="store_true", help="train sparse")
    parser.add_argument("--s", type=number(float, 0), default=0.01, help="strength of the penalty on the gammas")
    parser.add_argument("--sr_method", choices=METHODS, default="proximal", help="proximal gives gammas of exactly 0")
    parser.add_argument("--strategy", choices=STRATEGIES, default="normal", help="which gammas to penalise")
    parser.add_argument(
        "--mosaic",
        type=number(float, 0, 1),
        help=f"chance of four pictures in one; default: {TRAINING.mosaic:g}, fine-tuning {FINE_TUNING.mosaic:g}",
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of weights, order and augmentation")
    parser.add_argument(
        "--name", help="of the run's files; by default yolov3 with -sr, else baseline_ or finetune_yolov3"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run of this name")
    parser.add_argument("--overwrite", action="store_true", help="give up the unfinished run of this name")
    return parser


@dataclass
class Training:
    """What a step changes, and what it needs for that."""

    args: argparse.Namespace
    model: Darknet
    device: torch.device
    steps_per_epoch: int
    step: int = 0
    best_map: float = 0.0

    def __post_init__(self):
        self.loss = YoloLoss(self.model)
        self.optimizer = build_sgd(self.model, self.args.learning_rate)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.device.type == "cuda" and amp_dtype(self.device) == torch.float16
        )
        self.ema = ModelEma(self.model)
        # Without -sr the penalty has no strength, and only reports on the gammas.
        s = self.args.s if self.args.sr else 0.0
        self.penalty = GammaPenalty(self.model, s, self.args.strategy, self.args.sr_method, MOMENTUM)

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
        self.step = checkpoint["step"]
        self.best_map = checkpoint["best_map"]
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def main(args: argparse.Namespace) -> None:
    """Train, epoch by epoch, from the start or from where the last run of this name stopped."""
    args.name = args.name or default_name(args.sr, args.model_def)
    recipe = recipe_for(args.model_def)
    for option in ("learning_rate", "mosaic"):
        if getattr(args, option) is None:
            setattr(args, option, getattr(recipe, option))
    files = Run(args.name)
    checkpoint = resume_point(args, files)
    torch.manual_seed(args.seed)
    model = Darknet(args.model_def)
    args.img_size = network_size(model, args.img_size)
    data = read_data_config(args.data_config)
    check_classes(model, data)
    if args.pretrained_weights and not checkpoint:
        load_pretrained(model, args.pretrained_weights)
    batches, valid_batches = make_loaders(args, data)
    device = pick_device()
    training = Training(args, model.to(device), device, -(-len(batches) // args.accumulate))
    if args.sr:
        check_reach(training)
    if args.pretrained_weights and not checkpoint:
        print(f"before the first step: mAP@0.5 {evaluate(model, valid_batches, data.names)[0].mAP:.4f}")

    start = begin(training, files, checkpoint)
    log = RunLog(files.folder, vars(args), start)
    history = files.folder / "gammas.npz"
    gammas = GammaHistory.load(history, before=start)
    for epoch in range(start, args.epochs):
        row = train_and_evaluate(training, batches, valid_batches, data, gammas, epoch)
        log.add(row)
        gammas.save(history)
        if save_checkpoints(training, files, data, epoch, row.get("mAP")):
            plot_training(log.rows, gammas, files.folder)
    log.close()
    kind = "last epoch" if args.sr else f"best mAP@0.5 {training.best_map:.4f}"
    print(f"{files.best}: {kind}\n{files.folder}: options, log.csv, TensorBoard events, pictures")


def load_pretrained(model: Darknet, path: str) -> None:
    """Start from weights of any kind, and say how many layers they fill."""
    about = load_weights(model, path, partial=True)
    filled = f"{about['filled']} of {len(model.network.convolutions)}" if "filled" in about else "all"
    print(f"{path}: weights for {filled} convolutions")


def begin(training: Training, files: Run, checkpoint: dict | None) -> int:
    """Restore a checkpoint, or make the names of the run's files free; return the first epoch to train."""
    if checkpoint:
        training.load_state(checkpoint, files.last)
        print(f"resuming {files.name} at epoch {checkpoint['epoch'] + 1}")
        return checkpoint["epoch"]
    if training.args.overwrite and files.unfinished():
        files.delete()
    elif kept := files.set_aside():
        print(f"the earlier run {files.name} is kept as {kept.name}")
    return 0


def train_and_evaluate(
    training: Training,
    batches: DataLoader,
    valid_batches: DataLoader,
    data: DataConfig,
    gammas: GammaHistory,
    epoch: int,
) -> dict[str, float]:
    """One epoch, its evaluation if one is due, and its table; the row for the log."""
    args = training.args
    began = time.perf_counter()
    batches.sampler.epoch = epoch
    sums, cells = train_epoch(training, batches, epoch)
    row = {"epoch": epoch, **summary(sums, len(batches.dataset)), "lr": training.optimizer.param_groups[0]["lr"]}
    row["seconds"] = time.perf_counter() - began
    metrics = None
    if epoch + 1 == args.epochs or (epoch + 1) % args.evaluation_interval == 0:
        metrics, _ = evaluate(training.ema.model, valid_batches, data.names)
        row |= {name: getattr(metrics, name) for name in ("mAP", "mAP_50_95", "precision", "recall", "f1")}
    gammas.record(epoch, training.penalty, training.ema.model)
    report(args, training.model, epoch, sums, cells, metrics, gammas)
    return row | gamma_row(gammas)


def save_checkpoints(training: Training, files: Run, data: DataConfig, epoch: int, mean_ap: float | None) -> bool:
    """Write the checkpoints that are due after an epoch; return whether the one to resume from was among them."""
    args = training.args
    is_best = mean_ap is not None and mean_ap > training.best_map
    training.best_map = max(training.best_map, mean_ap or 0.0)
    about = {
        "names": data.names,
        "img_size": args.img_size,
        "epoch": epoch + 1,
        "step": training.step,
        "best_map": training.best_map,
        "options": vars(args),
        "strategy": args.strategy,
    }
    due = epoch + 1 == args.epochs or (epoch + 1) % args.checkpoint_interval == 0
    if due:
        save_checkpoint(files.last, training.ema.model, **about, training=training.state())
    # An early best of sparse training is not sparse yet.
    if due if args.sr else is_best or not files.best.exists():
        save_checkpoint(files.best, training.ema.model, **about)
    return due


def resume_point(args: argparse.Namespace, files: Run) -> dict | None:
    """The checkpoint to go on from, if asked to.

    Raises:
        InputError: there is nothing to resume, or an unfinished run would be lost.
    """
    if args.overwrite:
        return None
    unfinished = files.unfinished()
    if args.resume and not unfinished:
        state = "is finished" if files.last.exists() else "has no checkpoint"
        raise InputError(f"--resume: the run {args.name} {state} ({files.last})")
    if unfinished and not args.resume:
        raise InputError(
            f"{files.last}: the run {args.name} stopped after epoch {unfinished['epoch']} of "
            f"{unfinished['options']['epochs']}: add --resume to go on, --overwrite to give it up, or another --name"
        )
    return unfinished


def make_loaders(args: argparse.Namespace, data: DataConfig) -> tuple[DataLoader, DataLoader]:
    """Batches of the training and of the validation pictures."""
    closing = max(1, round(0.15 * args.epochs))
    augmentation = Augmentation(mosaic=args.mosaic, last_mosaic_epoch=args.epochs - closing)
    train = DetectionDataset(data.images("train"), data.classes, args.img_size, augmentation, args.seed)
    valid = DetectionDataset(data.images("valid"), data.classes, args.img_size)
    boxes = sum(map(len, train.labels))
    if not boxes:
        raise InputError(f"{data.train}: none of its {len(train)} pictures has a labelled box")
    print(
        f"{len(train)} training pictures with {boxes} boxes, {len(valid)} validation pictures, {args.img_size} pixels"
        + (f"; {train.clipped + valid.clipped} boxes clipped to the border" if train.clipped + valid.clipped else "")
    )
    batches = loader(train, args.batch_size, args.n_cpu, EpochSampler(len(train), args.seed))
    return batches, loader(valid, args.batch_size, args.n_cpu)


def check_reach(training: Training) -> None:
    """Say how far the penalty can move a gamma in this run, and warn where that is not far enough."""
    farthest = reach(training.learning_rates(), training.args.s, MOMENTUM)
    typical = float(np.median(training.penalty.gammas()))
    print(
        f"s={training.args.s:g} can lower a gamma by at most {farthest:.3g} in this run; their median is {typical:.3g}"
    )
    if farthest < typical:
        # Half of a penalty is spent on gammas that the loss holds up: aim at twice the way.
        fitting = 2 * typical * training.args.s / farthest if training.args.s else float("nan")
        print(f"warning: few gammas can reach 0: train longer, or try --s {fitting:.2g}")


def train_epoch(training: Training, batches: DataLoader, epoch: int) -> tuple[np.ndarray, list[int]]:
    """One epoch of steps.

    Returns:
        The sums of HeadReport over the epoch, (heads, 7), and the number of predictions of each head.

    Raises:
        InputError: the loss is not finite; checkpoints are as they were.
    """
    args, model = training.args, training.model
    rates = training.learning_rates()
    model.train()
    total: Tensor | None = None
    cells = [0] * len(model.yolo_layers)
    bar = tqdm(batches, f"epoch {epoch + 1}/{args.epochs}", leave=False, unit="batch")
    for number_in_epoch, (images, targets) in enumerate(bar):
        images, targets = to_device(images, training.device), targets.to(training.device, non_blocking=True)
        if args.multiscale_training:
            images = rescale(images, args.seed, training.step)
        with autocast(training.device):
            heads = model(images)
        loss, reports = training.loss(heads, targets, images.shape[-1])
        if number_in_epoch % DISPLAY_STEPS == 0:
            bar.set_postfix(loss=f"{check_finite(loss.item(), training, epoch):.3f}")
        training.scaler.scale(loss / args.accumulate).backward()
        if (number_in_epoch + 1) % args.accumulate == 0 or number_in_epoch + 1 == len(batches):
            optimizer_step(training, float(rates[training.step]))
        sums = stack(reports)
        total = sums if total is None else total + sums
        cells = [count + report.cells for count, report in zip(cells, reports, strict=True)]
    check_finite(float(total[:, 1:4].sum()), training, epoch)
    return total.cpu().numpy(), cells


def check_finite(loss: float, training: Training, epoch: int) -> float:
    """The loss, if it is a number.

    Raises:
        InputError: it is not; nothing was written since the last checkpoint.
    """
    if not np.isfinite(loss):
        raise InputError(
            f"epoch {epoch + 1}, step {training.step}: the loss is {loss}; the checkpoints are as they were. "
            f"Try a lower --learning_rate than {training.args.learning_rate:g}"
        )
    return loss


def stack(reports: list[HeadReport]) -> Tensor:
    """(heads, 7), the sums of each head."""
    return torch.stack([report.sums for report in reports])


def optimizer_step(training: Training, lr: float) -> None:
    """One step of the optimizer, the penalty and the average."""
    optimizer = training.optimizer
    for group in optimizer.param_groups:
        group["lr"] = lr
    training.scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), GRADIENT_NORM)
    training.penalty.before_step()
    training.scaler.step(optimizer)
    training.scaler.update()
    optimizer.zero_grad()
    training.penalty.after_step(lr)
    training.ema.update(training.model)
    training.penalty.copy_zeros(training.ema.model)
    training.step += 1


def rescale(images: Tensor, seed: int, step: int) -> Tensor:
    """Images (B, 3, S, S) at a random multiple of 32 pixels from 3/4 to 5/4 of S, the same for some steps."""
    size = images.shape[-1]
    random = np.random.default_rng((seed, step // MULTISCALE_STEPS))
    wanted = 32 * int(random.integers(round(0.75 * size / 32), round(1.25 * size / 32) + 1))
    return F.interpolate(images, size=wanted, mode="bilinear", antialias=True) if wanted != size else images


def summary(sums: np.ndarray, pictures: int) -> dict[str, float]:
    """The losses of an epoch for the log: a positive for boxes and classes, a picture for objectness."""
    positives, box, objectness, label, iou = sums.sum(axis=0)[:5]
    positives = max(positives, 1)
    return {
        "box_loss": box / positives,
        "objectness_loss": objectness / pictures,
        "class_loss": label / positives,
        "iou": iou / positives,
    }


def gamma_row(gammas: GammaHistory) -> dict[str, float]:
    """The gammas of the last epoch for the log."""
    row = {f"gamma_q{20 * (k + 1)}": float(value) for k, value in enumerate(gammas.quintiles[-1])}
    return row | {"gamma_near_zero": gammas.near_zero[-1], "prune_ratio_allowed": gammas.allowed[-1]}


def report(
    args: argparse.Namespace,
    model: Darknet,
    epoch: int,
    sums: np.ndarray,
    cells: list[int],
    metrics: Metrics | None,
    gammas: GammaHistory,
) -> None:
    """Print the table of an epoch: what each head did, the gammas, and the metrics."""
    heads = resolve(model.blocks, args.img_size).heads
    rows = [["YOLO layer", *(str(head.index) for head in heads)]]
    rows.append(["grid", *(f"{head.width}x{head.height}" for head in heads)])
    positives = np.maximum(sums[:, 0], 1)
    rows.append(["positives", *(f"{count:.0f}" for count in sums[:, 0])])
    rows.append(["box loss", *(f"{v:.4f}" for v in sums[:, 1] / positives)])
    rows.append(["objectness loss", *(f"{v:.3e}" for v in sums[:, 2] / cells)])
    rows.append(["class loss", *(f"{v:.4f}" for v in sums[:, 3] / positives)])
    rows.append(["IoU of positives", *(f"{v:.3f}" for v in sums[:, 4] / positives)])
    rows.append(["objectness of positives", *(f"{v:.3f}" for v in sums[:, 5] / positives)])
    rows.append(["objectness elsewhere", *(f"{v:.4f}" for v in (sums[:, 6] - sums[:, 5]) / cells)])
    tqdm.write(AsciiTable(rows, f"epoch {epoch + 1}/{args.epochs}").table)
    quintiles = " ".join(f"{value:.3g}" for value in gammas.quintiles[-1])
    tqdm.write(
        f"|gamma| quintiles {quintiles}; {gammas.near_zero[-1]:.1%} near zero; "
        f"a threshold could prune {gammas.allowed[-1]:.1%} now"
    )
    if metrics:
        tqdm.write(
            f"mAP@0.5 {metrics.mAP:.4f}  mAP@0.5:0.95 {metrics.mAP_50_95:.4f}  precision {metrics.precision:.3f}  "
            f"recall {metrics.recall:.3f}  F1 {metrics.f1:.3f}"
        )


if __name__ == "__main__":
    run(get_args_parser(), main)
