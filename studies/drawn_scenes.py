"""Squares against rectangles without a data set: a small network that is trained on drawn 16:9 images."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from config.networks import create_cfg
from models import Darknet
from utils.darknet.cfg import Block
from utils.data.augmentations import Augmentation
from utils.data.datasets import DetectionDataset
from utils.data.loader import EpochSampler, loader
from utils.detection.evaluate import evaluate
from utils.training.config import TrainConfig
from utils.training.trainer import Trainer


def draw_scenes(folder: Path, count: int, size: tuple[int, int] = (320, 180)) -> tuple[list[Path], list[np.ndarray]]:
    """Draw images of one to three ellipses with a white edge on soft colours; ``size`` is their width and height.

    Returns:
        The image files, and for each its boxes (N, 5): class, cx, cy, w, h in [0, 1].
    """
    random, (width, height) = np.random.default_rng(0), size
    paths, labels = [], []
    for number in range(count):
        coarse = random.integers(0, 256, (6, 10, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        boxes = []
        for _ in range(random.integers(1, 4)):
            a, b = random.integers(12, 40, 2).tolist()  # half of the axes
            x, y = int(random.integers(a, width - a)), int(random.integers(b, height - b))
            cv2.ellipse(pixels, (x, y), (a, b), 0, 0, 360, random.integers(0, 256, 3).tolist(), -1)
            cv2.ellipse(pixels, (x, y), (a, b), 0, 0, 360, (255, 255, 255), 3)
            boxes.append([0, x / width, y / height, 2 * (a + 1) / width, 2 * (b + 1) / height])
        paths.append(folder / f"{number:04d}.png")
        cv2.imwrite(str(paths[-1]), pixels)
        labels.append(np.array(boxes, np.float32))
    return paths, labels


def drawn_precision(
    device: torch.device, train: int = 320, valid: int = 600, epochs: int = 24, side: int = 192
) -> tuple[float, float]:
    """mAP@0.5 on drawn images of a network that was trained on squares, as it is and with rectangles.

    Args:
        device: where to compute.
        train, valid: how many images to train and to evaluate on.
        epochs: of training.
        side: of the squares in pixels.
    """
    torch.manual_seed(0)
    model = Darknet([Block(block) for block in create_cfg("v3-tiny", 1, side, 0.25)]).to(device)
    with tempfile.TemporaryDirectory() as folder:
        paths, labels = draw_scenes(Path(folder), train + valid)
        dataset = DetectionDataset(paths[:train], labels[:train], side, Augmentation(first_plain_epoch=epochs - 4))
        batches = loader(dataset, 16, 0, EpochSampler(train, 0, 16))
        trainer = Trainer(TrainConfig(img_size=side, epochs=epochs), model, len(batches))
        for _ in range(epochs):
            trainer.train_epoch(batches, lambda: None)
            trainer.end_epoch()
        scores = []
        for rectangles in (None, model.spec):
            drawn = DetectionDataset(paths[train:], labels[train:], side, rectangles=rectangles)  # all of one shape
            scores.append(evaluate(trainer.ema.model, loader(drawn, 8, 0), ["ellipse"])[0].mAP)
    return scores[0], scores[1]
