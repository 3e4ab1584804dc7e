"""The batches of a run: augmented training images, shuffled in each epoch, and validation images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from utils import distributed
from utils.data.augmentations import Augmentation
from utils.data.check import check_data, summary
from utils.data.data_config import DataConfig, hidden_beside
from utils.data.datasets import DetectionDataset
from utils.data.image_cache import budget
from utils.data.loader import EpochSampler, loader
from utils.detection.options import label_rules
from utils.training.recipes import WITHOUT_MOSAIC


def make_loaders(args: argparse.Namespace, data: DataConfig, device: torch.device) -> tuple[DataLoader, DataLoader]:
    """Batches of the training and of the validation images; each process gets its share of both.

    Args:
        args: the completed options of train.py.
        data: the data set.
        device: where the batches will go.
    """
    for split in ("train", "valid"):
        data.list_path(split)  # both are there, before the images of the first are decoded
    closing = max(1, round(WITHOUT_MOSAIC * args.total_epochs))
    augmentation = Augmentation(mosaic=args.mosaic, first_plain_epoch=args.total_epochs - closing)
    checked = {split: check_data(data, split, args.skip_bad, label_rules(args)) for split in ("train", "valid")}
    print(summary(checked))
    train = DetectionDataset(checked["train"].images, checked["train"].labels, args.img_size, augmentation, args.seed)
    valid = DetectionDataset(checked["valid"].images, checked["valid"].labels, args.img_size)
    fill_caches(args.cache, [(data.list_path("train"), train), (data.list_path("valid"), valid)])
    rank, world = distributed.rank(), distributed.world()
    sampler = EpochSampler(len(train), args.seed, args.batch_size, rank, world)
    local = Subset(valid, distributed.share(len(valid), rank, world))
    batch_size = args.batch_size // world
    batches = loader(train, batch_size, args.n_cpu, sampler, device=device)
    return batches, loader(local, batch_size, args.n_cpu, device=device)


def fill_caches(kind: str, datasets: Sequence[tuple[Path, DetectionDataset]]) -> None:
    """Keep the images of data sets, each behind the path of its list, as ``kind`` of KINDS says; print how many."""
    if kind == "none":
        return
    most = free = distributed.from_main(budget)
    for path, dataset in datasets:
        dataset.fill_cache(kind, hidden_beside(path, "cache"), free)
        free -= dataset.cache.nbytes if dataset.cache else 0
    images = sum(len(dataset) for _, dataset in datasets)
    kept = sum(len(dataset.cache or ()) for _, dataset in datasets)
    left_out = f"; the others do not fit into {most / 1e9:.2f} GB, half of the free memory" if kept < images else ""
    print(f"--cache {kind}: {kept} of {images} images, {(most - free) / 1e9:.2f} GB{left_out}")
