"""Trains a network as the older pruning tools do, for comparison with train.py at equal epochs.

MSE on x, y, w and h; BCE with a weight of 100 where there is no object; one anchor of each head for a target; flips
only; Adam at a constant learning rate, no warm-up, no average of the weights.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python studies/plain_recipe.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet, Yolo
from utils.boxes import size_iou
from utils.cli import ArgumentParser, add_size_option, number, run
from utils.data.augmentations import letterbox
from utils.data.check import check_data, summary
from utils.data.data_config import DataConfig, read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.images import to_device
from utils.data.loader import EpochSampler, loader
from utils.detection.checkpoints import load_state, save_checkpoint
from utils.detection.evaluate import evaluate, validation_batches
from utils.detection.options import add_device_option, add_precision_option, add_workers_option, network_size
from utils.devices import amp_dtype, autocast, default_precision, device_of, pick_device
from utils.errors import InputError
from utils.sizes import AnySize, Size
from utils.training.run_log import RunLog
from utils.training.runs import Run
from utils.training.saving import is_due

NO_OBJECT = 100.0
IGNORE_IOU = 0.5  # an anchor that fits a target of its cell this well is not punished for finding it


def get_args_parser() -> argparse.ArgumentParser:
    """The options of plain_recipe.py: those of train.py that apply here."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=number(int, 1), default=100, help="number of epochs")
    parser.add_argument("--batch_size", type=number(int, 1), default=16, help="images per step")
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data file")
    add_workers_option(parser)
    add_size_option(parser, "size of the images in pixels, by default the cfg's")
    parser.add_argument("--checkpoint_interval", type=number(int, 1), default=5, help="epochs between checkpoints")
    parser.add_argument("--evaluation_interval", type=number(int, 1), default=1, help="epochs between evaluations")
    parser.add_argument(
        "--learning_rate", "-lr", type=number(float, above=0), default=1e-3, help="of Adam, at every step"
    )
    add_device_option(parser)
    add_precision_option(parser)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of weights, order and flips")
    parser.add_argument("--name", default="plain_yolov3", help="name of the run's files")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run of this name")
    return parser


def flip(load, index: int, partners: Sequence[int], size: AnySize, epoch: int, random: np.random.Generator):
    """A letterboxed image, every second one mirrored; called as :class:`utils.data.augmentations.Augmentation` is."""
    image, boxes = letterbox(load(index), size)
    if random.random() < 0.5:
        width = image.shape[1]
        image = image[:, ::-1].copy()
        boxes = np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1], boxes[:, 4]], axis=1)
    return image, boxes


def plain_loss(heads: list[Yolo], raw: list[Tensor], targets: Tensor, img_size: AnySize) -> Tensor:
    """The sum of the heads' losses; see :func:`head_loss`."""
    return sum(head_loss(head, output, targets, img_size) for head, output in zip(heads, raw, strict=True))


def head_loss(yolo: Yolo, raw: Tensor, targets: Tensor, img_size: AnySize) -> Tensor:
    """The loss of one head (YOLOv3, arXiv 1804.02767, section 2.1, with MSE on the centre behind its sigmoid).

    Args:
        yolo: the head.
        raw: (B, A, H, W, 5 + C).
        targets: (N, 6) image in the batch, class, cx, cy, w, h in [0, 1].
        img_size: of the images.
    """
    grid = targets.new_tensor([raw.shape[3], raw.shape[2]])
    position = targets[:, 2:4] * grid
    cell = torch.minimum(position.floor(), grid - 1)
    column, row = cell.long().unbind(dim=1)
    image, label = targets[:, 0].long(), targets[:, 1].long()
    sizes = targets[:, 4:6] * targets.new_tensor(Size.of(img_size)[::-1])
    iou = size_iou(sizes, yolo.anchors)
    anchor = iou.argmax(dim=1) if len(iou) else label

    empty = torch.ones(raw.shape[:4], dtype=torch.bool, device=raw.device)
    empty[image, anchor, row, column] = False
    fitting, of_anchor = torch.nonzero(iou > IGNORE_IOU, as_tuple=True)
    empty[image[fitting], of_anchor, row[fitting], column[fitting]] = False
    loss = NO_OBJECT * F.binary_cross_entropy_with_logits(raw[..., 4][empty], torch.zeros_like(raw[..., 4][empty]))
    if not len(targets):
        return loss

    chosen = raw[image, anchor, row, column]
    target_size = (sizes / yolo.anchors[anchor]).log()
    for predicted, target in (
        (chosen[:, 0:2].sigmoid(), position - cell),
        (chosen[:, 2:4], target_size),
    ):
        loss = loss + 2 * F.mse_loss(predicted, target)  # a mean over two sides, where the older tools add the sides up
    loss = loss + F.binary_cross_entropy_with_logits(chosen[:, 4], torch.ones_like(chosen[:, 4]))
    return loss + F.binary_cross_entropy_with_logits(chosen[:, 5:], F.one_hot(label, yolo.classes).to(chosen.dtype))


def main(args: argparse.Namespace) -> None:
    """Train, epoch by epoch, from the start or from where the last run of this name stopped."""
    files = Run(args.name)
    checkpoint = files.unfinished()
    if bool(checkpoint) != args.resume:
        raise InputError(f"--resume: the run {args.name} is {'un' if checkpoint else ''}finished ({files.last})")
    torch.manual_seed(args.seed)
    model = Darknet(args.model_def)
    args.img_size = network_size(model, args.img_size).plain
    data = read_data_config(args.data_config)
    device = pick_device(args.device)
    args.precision = args.precision or default_precision(device)
    optimizer = torch.optim.Adam(model.to(device).parameters(), lr=args.learning_rate)
    checked = {"train": check_data(data, "train")}
    valid_batches, checked["valid"] = validation_batches(model, data, args.img_size, args.batch_size, args.n_cpu)
    print(summary(checked))
    train = DetectionDataset(checked["train"].images, checked["train"].labels, args.img_size, flip, args.seed)
    batches = loader(train, args.batch_size, args.n_cpu, EpochSampler(len(train), args.seed), device=device)

    start, best = 0, 0.0
    if checkpoint:
        load_state(model, checkpoint["model"], files.last)
        optimizer.load_state_dict(checkpoint["training"]["optimizer"])
        start, best = checkpoint["epoch"], checkpoint["best_map"]
    elif kept := files.set_aside():
        print(f"the earlier run {args.name} is kept as {kept.name}")
    log = RunLog(files.folder, vars(args), start)
    for epoch in range(start, args.epochs):
        row = train_epoch(model, optimizer, batches, epoch, args.precision)
        if epoch + 1 == args.epochs or is_due(args.evaluation_interval, epoch + 1):
            metrics, _ = evaluate(model, valid_batches, data.names)
            row |= metrics.quality()
            print(f"epoch {epoch + 1}: mAP@0.5 {metrics.mAP:.4f}  mAP@0.5:0.95 {metrics.mAP_50_95:.4f}")
        log.add(row)
        is_best = row.get("mAP", 0.0) > best
        best = max(best, row.get("mAP", 0.0))
        save(model, optimizer, files, data, args, epoch, best, is_best)
    log.close()


def train_epoch(
    model: Darknet, optimizer: torch.optim.Adam, batches: DataLoader, epoch: int, precision: str
) -> dict[str, float]:
    """One epoch of steps; its row for the log."""
    began, total = time.perf_counter(), 0.0
    device = device_of(model)
    scaled = precision == "mixed" and amp_dtype(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)  # it finds its scale anew in each epoch, within steps
    batches.sampler.epoch = epoch
    model.train()
    for images, targets in tqdm(batches, f"epoch {epoch + 1}", leave=False, unit="batch"):
        images, targets = to_device(images, device), targets.to(device)
        with autocast(device, precision):
            raw = [output.float() for output in model(images)]
        loss = plain_loss(model.heads, raw, targets, Size(*images.shape[-2:]))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()
    return {"epoch": epoch, "loss": total / len(batches), "seconds": time.perf_counter() - began}


def save(
    model: Darknet,
    optimizer: torch.optim.Adam,
    files: Run,
    data: DataConfig,
    args: argparse.Namespace,
    epoch: int,
    best: float,
    is_best: bool,
) -> None:
    """Write the checkpoints that are due after an epoch, as train.py does."""
    metadata = {"names": data.names, "img_size": args.img_size, "epoch": epoch + 1, "step": 0, "best_map": best}
    metadata |= {"options": vars(args)}
    if epoch + 1 == args.epochs or is_due(args.checkpoint_interval, epoch + 1):
        save_checkpoint(files.last, model, **metadata, training={"optimizer": optimizer.state_dict()})
    if is_best or not files.best.exists():
        save_checkpoint(files.best, model, **metadata)


if __name__ == "__main__":
    run(get_args_parser(), main)
