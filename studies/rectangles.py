"""Compares the mAP of a network on 16:9 images with and without rectangles: what test.py --rect makes of it.

The images are the validation images of a data set, cut to 16:9 around their middle.
"""

import argparse
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as `python studies/rectangles.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from terminaltables import AsciiTable
from torchvision.ops import box_convert

from config.create_cfg import create_cfg
from models import Darknet
from utils.boxes import Letterbox
from utils.cli import ArgumentParser, add_size_option, run
from utils.darknet.cfg import Block
from utils.data.augmentations import Augmentation, LabelledImage, canvas, draw
from utils.data.check import check_data
from utils.data.data_config import DataConfig, read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.loader import EpochSampler, loader
from utils.detection.detector import load_model
from utils.detection.evaluate import evaluate, input_sizes, validation_batches
from utils.detection.inference import for_inference, on_device
from utils.detection.options import add_device_option, add_threshold_options, add_workers_option, network_size
from utils.files import write_text
from utils.training.config import TrainConfig
from utils.training.trainer import Trainer

WIDE = 16 / 9


def get_args_parser() -> argparse.ArgumentParser:
    """The options of rectangles.py."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--weights_path", default="checkpoints/prune_yolov3_ckpt.pth", help="the network")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data or .yaml file")
    add_size_option(parser, "size of the input in pixels, by default the model's")
    add_threshold_options(parser, conf_thres=0.001, nms_thres=0.5)
    add_workers_option(parser)
    add_device_option(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Cut the images, evaluate the network on them twice, and print both."""
    model, metadata = load_model(args.weights_path, None, (args.conf_thres, args.nms_thres), args.device)
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    ready = for_inference(on_device(model, args.device))
    rows: list[list[str]] = [["", "mAP@0.5", "mAP@0.5:0.95", "MACs per image", "largest input"]]
    with tempfile.TemporaryDirectory() as folder:
        data = cut_to_wide(read_data_config(args.data_config), Path(folder))
        for rect in (False, True):
            batches, _ = validation_batches(model, data, img_size, 8, args.n_cpu, rect=rect)
            metrics, _ = evaluate(ready, batches, data.names, 0.5, args.conf_thres, args.nms_thres)
            dataset = batches.dataset
            assert isinstance(dataset, DetectionDataset)
            sizes = input_sizes(dataset)
            macs = sum(model.spec.at(size).macs for size in sizes) / len(sizes)
            name = "--rect" if rect else "as it is"
            rows.append([name, f"{metrics.mAP:.4f}", f"{metrics.mAP_50_95:.4f}", f"{macs:,.0f}", str(max(sizes))])
    print(AsciiTable(rows).table)


def cut_to_wide(data: DataConfig, folder: Path) -> DataConfig:
    """The validation images of a data set, cut to WIDE and written to ``folder`` with their boxes."""
    checked = check_data(data, "valid")
    dataset = DetectionDataset(checked.images, checked.labels, 2**16)  # so large that no image is scaled down
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    names = []
    for index in range(len(dataset)):
        wide = middle(dataset.load(index))
        boxes = box_convert(torch.from_numpy(wide.boxes[:, 1:]), "xyxy", "cxcywh") / torch.tensor(wide.size * 2)
        lines = [
            f"{label:.0f} " + " ".join(f"{value:f}" for value in box)
            for label, box in zip(wide.boxes[:, 0], boxes.tolist(), strict=True)
        ]
        names.append(f"images/{index:06d}.png")
        cv2.imwrite(str(folder / names[-1]), cv2.cvtColor(wide.pixels, cv2.COLOR_RGB2BGR))
        write_text(folder / f"labels/{index:06d}.txt", "\n".join(lines))
    write_text(folder / "valid.txt", "\n".join(names))
    write_text(folder / "classes.names", "\n".join(data.names))
    write_text(folder / "wide.data", f"classes={data.classes}\nvalid=valid.txt\nnames=classes.names\n")
    return read_data_config(folder / "wide.data")


def middle(labelled: LabelledImage) -> LabelledImage:
    """The largest part of an image of the shape WIDE, around its middle, with the boxes that are visible there."""
    width, height = labelled.size
    rows, columns = min(height, round(width / WIDE)), min(width, round(height * WIDE))
    target = canvas((rows, columns))
    boxes = draw(target, labelled, Letterbox(1.0, 1.0, -((width - columns) // 2), -((height - rows) // 2)))
    return LabelledImage(target, boxes)


# Without a data set: a small network that is trained on drawn 16:9 images.


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


if __name__ == "__main__":
    run(get_args_parser(), main)
