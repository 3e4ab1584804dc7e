"""Rows on training: the step, and the images that it is fed with."""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from models import Darknet
from studies.bench.scenes import FULL, SIZE, labelled, write_images
from studies.bench.table import Row
from studies.step_benchmark import LEARNING_RATE, time_steps
from utils.darknet.cfg import read_cfg
from utils.data.augmentations import Augmentation
from utils.data.image_cache import budget
from utils.data.loader import EpochSampler, loader
from utils.devices import default_precision, pick_device
from utils.pruning.budget import Budget, cut_least_important
from utils.timing import Timing, time_in_turns
from utils.training.config import TrainConfig
from utils.training.trainer import Trainer

SMALL, SMALL_SIZE = "config/yolov3-small-hand.cfg", 224  # pixels, as in the study
SHARE = 0.1  # of its MACs, which the fine-tuned network has


def step_row(args: argparse.Namespace) -> list[Row]:
    """A step of sparse training of the whole network against its bare convolutions, BatchNorms and activations."""
    ours, bare = time_steps(read_cfg(FULL), 4, pick_device(args.device), args.rounds)
    return [Row("training step, batch 4", ours, bare, ours.median / bare.median, "of the bare layers", 1.1)]


def fine_tuning_row(args: argparse.Namespace, images: int = 320) -> list[Row]:
    """An epoch of a network with a tenth of its MACs, images from memory, against the same steps on resident batches.

    The cut network is so cheap that reading images would take most of the time.
    """
    device, batch_size = pick_device(args.device), 16
    model = Darknet(SMALL).eval()
    small = cut_least_important(model, "slim", SMALL_SIZE, Budget(target_macs=SHARE)).pruned.model
    with tempfile.TemporaryDirectory() as folder:
        dataset = labelled(write_images(Path(folder), images), SMALL_SIZE, Augmentation())
        dataset.fill_cache("ram", Path(folder) / "cache", budget())
        sampler = EpochSampler(len(dataset), 0, batch_size)
        batches = loader(dataset, batch_size, None, sampler, device=device)
        config = TrainConfig(batch_size=batch_size, img_size=SMALL_SIZE, precision=default_precision(device))
        trainer = Trainer(config, small.to(device).train(), len(batches))
        resident = list(batches)

        def epoch() -> None:
            sampler.epoch += 1
            for batch in batches:
                trainer.train_step([batch], LEARNING_RATE)

        def steps_alone() -> None:
            for batch in resident:
                trainer.train_step([batch], LEARNING_RATE)

        ours, alone = time_in_turns([epoch, steps_alone], device, args.rounds, warm_up=1)
    name = f"fine-tuning epoch, {images} images"
    return [Row(name, ours, alone, ours.median / alone.median, "of the steps alone", 1.15)]


def loading_row(args: argparse.Namespace, size: tuple[int, int], count: int, bar: float) -> list[Row]:
    """Augmented training images on one core against ultralytics' YOLODataset with the same changes.

    Where ultralytics is not installed, the reference is plain OpenCV code that decodes images in full. The times are
    what one image takes of a core, whatever else runs on it.
    """
    rows = []
    threads = torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(Path(folder), count, size)
            for mosaic in (0.5, 0.0):
                reference, name = reference_loader(paths, mosaic)
                epochs = itertools.count()

                def ours(mosaic: float = mosaic, epochs: Iterator[int] = epochs) -> None:
                    dataset = labelled(paths, SIZE, Augmentation(mosaic=mosaic))  # a new one, which remembers nothing
                    sampler = EpochSampler(len(dataset), 0)
                    sampler.epoch = next(epochs)
                    for item in sampler:
                        dataset[item]

                times = time_in_turns([ours, reference], torch.device("cpu"), args.rounds, 1, time.process_time)
                own, other = (Timing(*(value / count for value in astuple(time))) for time in times)
                what = f"training images, {size[0]}x{size[1]}, mosaic {mosaic:g}"
                rows.append(Row(what, own, other, other.median / own.median, f"of {name}'s speed", bar, at_least=True))
    finally:
        torch.set_num_threads(threads)
    return rows


def reference_loader(paths: list[Path], mosaic: float) -> tuple[Callable[[], None], str]:
    """A function that augments each image once, and its name."""
    folder = paths[0].parent.parent
    os.environ.update(YOLO_CONFIG_DIR=str(folder), YOLO_OFFLINE="true", YOLO_VERBOSE="false")
    try:
        from ultralytics.cfg import get_cfg
        from ultralytics.data.dataset import YOLODataset
    except ImportError:
        return partial(plain_augmentation, paths, mosaic), "plain OpenCV code"
    cv2.setNumThreads(0)
    none = dict.fromkeys(("degrees", "shear", "perspective", "flipud", "mixup", "copy_paste"), 0.0)
    changes = {"hsv_h": 0.02, "hsv_s": 0.5, "hsv_v": 0.4, "translate": 0.15, "scale": 0.4, "fliplr": 0.5}
    dataset = YOLODataset(
        img_path=str(paths[0].parent),
        imgsz=SIZE,
        augment=True,
        hyp=get_cfg(overrides={"mosaic": mosaic, **changes, **none}),
        data={"names": {0: "hand"}, "nc": 1, "channels": 3},
        task="detect",
    )

    def load() -> None:
        for index in np.random.default_rng(0).permutation(len(paths)).tolist():
            dataset[index]

    return load, "ultralytics"


def plain_augmentation(paths: list[Path], mosaic: float) -> None:
    """Decode images in full, and mix, move, colour and mirror them."""
    random = np.random.default_rng(0)

    def read(index: int) -> np.ndarray:
        pixels = cv2.imdecode(np.fromfile(paths[index], np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        scale = SIZE / max(pixels.shape)
        return cv2.resize(pixels, None, fx=scale, fy=scale)

    for index in range(len(paths)):
        side = SIZE
        image = read(index)
        if random.random() < mosaic:
            side = 2 * SIZE
            four = [image, *(read(other) for other in random.integers(len(paths), size=3).tolist())]
            image = np.full((side, side, 3), 127, np.uint8)
            for place, part in enumerate(four):
                top, left = SIZE * (place // 2), SIZE * (place % 2)
                image[top : top + part.shape[0], left : left + part.shape[1]] = part
        scale, shift = random.uniform(0.6, 1.4) * SIZE / side, random.uniform(-0.15, 0.15, 2) * SIZE
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        image = cv2.warpAffine(image, matrix, (SIZE, SIZE), borderValue=(127, 127, 127))
        change = 1 + random.uniform(-1, 1, 3) * (0.02, 0.5, 0.4)
        table = (np.arange(256)[:, None] * change).clip(0, 255).astype(np.uint8)[None]
        image = cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table), cv2.COLOR_HSV2RGB)
        if random.random() < 0.5:
            image = cv2.flip(image, 1)
        np.ascontiguousarray(image.transpose(2, 0, 1))
