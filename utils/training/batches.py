"""The batches of a run: augmented training images, shuffled in each epoch, and validation images."""

import argparse

from torch.utils.data import DataLoader, Subset

from utils import distributed
from utils.data.augmentations import Augmentation
from utils.data.check import check_data, summary
from utils.data.data_config import DataConfig
from utils.data.datasets import DetectionDataset
from utils.data.image_cache import budget
from utils.data.loader import EpochSampler, loader
from utils.training.recipes import WITHOUT_MOSAIC


def make_loaders(args: argparse.Namespace, data: DataConfig) -> tuple[DataLoader, DataLoader]:
    """Batches of the training and of the validation images; each process gets its share of both.

    Args:
        args: the completed options of train.py.
        data: the data set.
    """
    closing = max(1, round(WITHOUT_MOSAIC * args.epochs))
    augmentation = Augmentation(mosaic=args.mosaic, first_plain_epoch=args.epochs - closing)
    checked = {split: check_data(data, split, args.skip_bad) for split in ("train", "valid")}
    print(summary(checked))
    train = DetectionDataset(checked["train"].images, checked["train"].labels, args.img_size, augmentation, args.seed)
    valid = DetectionDataset(checked["valid"].images, checked["valid"].labels, args.img_size)
    if args.cache:
        keep_images(train, valid)
    rank, world = distributed.rank(), distributed.world()
    sampler = EpochSampler(len(train), args.seed, args.batch_size, rank, world)
    local = Subset(valid, distributed.share(len(valid), rank, world))
    batch_size = args.batch_size // world
    return loader(train, batch_size, args.n_cpu, sampler), loader(local, batch_size, args.n_cpu)


def keep_images(*datasets: DetectionDataset) -> None:
    """Keep decoded images in memory, and print how many fit."""
    most = free = budget()
    for dataset in datasets:
        free -= dataset.keep(free)
    kept, images = sum(len(dataset.kept) for dataset in datasets), sum(map(len, datasets))
    print(
        f"--cache: {kept} of {images} images in memory, {(most - free) / 1e9:.2f} GB"
        + (f"; the others do not fit into {most / 1e9:.2f} GB, half of the free memory" if kept < images else "")
    )
