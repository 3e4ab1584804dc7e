"""Images and networks for the rows: drawn and random, since a clone has no data set and no weights."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models import Darknet
from utils.data.augmentations import Augmentation
from utils.data.datasets import DetectionDataset
from utils.data.labels import label_path, read_labels
from utils.detection.video import video_writer

FULL = "config/yolov3-hand.cfg"
PRUNED = "config/yolov3-hand-published.cfg"
SIZE = 416
CONF_THRES = 0.001
PASSING = 1000  # candidates per image of the network in the row "test"


@torch.no_grad()
def calibrated(model: Darknet, images: Tensor, passing: int) -> Darknet:
    """A network of random weights that gives as many candidates as a trained one, in eval mode.

    BatchNorm gets the statistics of ``images`` (B, 3, H, W), and the biases of objectness are set so that about
    ``passing`` candidates per image pass CONF_THRES.
    """
    for norm in model.batch_norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()(images)
    raw = [head[..., 4].flatten() for head in model.eval().raw_outputs(images)]
    class_score = 0.5
    logit = np.log(CONF_THRES / class_score)  # far below 0 the sigmoid is the exponential function
    shift = logit - torch.cat(raw).topk(passing * len(images)).values[-1]
    for head in model.spec.heads:
        model.conv(head.sources[0]).get_parameter("bias").view(len(head.anchors), -1)[:, 4] += shift
    return model


def write_images(folder: Path, count: int, size: tuple[int, int] = (640, 480), seed: int = 0) -> list[Path]:
    """Write JPEG images of soft colours under a sensor's noise, with one to four boxes each; return their paths."""
    random = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    paths = [folder / "images" / f"{number:04d}.jpg" for number in range(count)]
    for path in paths:
        coarse = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        noisy = (soft + random.normal(0, 3, soft.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=90)
        boxes = np.concatenate([random.uniform(0.3, 0.7, (random.integers(1, 5), 2))] * 2, 1) * (1, 1, 0.4, 0.4)
        lines = ["0 " + " ".join(f"{value:.4f}" for value in box) for box in boxes]
        (folder / "labels" / path.with_suffix(".txt").name).write_text("\n".join(lines) + "\n")
    return paths


def labelled(paths: list[Path], size: int, augmentation: Augmentation | None = None) -> DetectionDataset:
    """The data set of images with one class, letterboxed or augmented to ``size`` pixels."""
    return DetectionDataset(paths, [read_labels(label_path(path), 1)[0] for path in paths], size, augmentation)


def write_clip(path: Path, frames: int, size: tuple[int, int] = (1280, 720), seed: int = 0) -> None:
    """Write a video of soft colours that move; ``size`` is its width and height."""
    coarse = np.random.default_rng(seed).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    width, height = size
    scene = Image.fromarray(coarse).resize((width + 4 * frames, height + 4 * frames), Image.Resampling.BICUBIC)
    with video_writer(path, 25, size) as write:
        for number in range(frames):
            write(number, scene.crop((4 * number, 4 * number, width + 4 * number, height + 4 * number)))
