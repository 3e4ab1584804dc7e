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
import torch
from terminaltables import AsciiTable
from torchvision.ops import box_convert

from utils.boxes import Letterbox
from utils.cli import ArgumentParser, add_size_option, run
from utils.data.augmentations import LabelledImage, canvas, draw
from utils.data.check import check_data
from utils.data.data_config import DataConfig, read_data_config
from utils.data.datasets import DetectionDataset
from utils.detection.detector import load_model
from utils.detection.evaluate import evaluate, input_sizes, validation_batches
from utils.detection.inference import for_inference, on_device
from utils.detection.options import add_device_option, add_threshold_options, add_workers_option, network_size
from utils.files import write_text

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


if __name__ == "__main__":
    run(get_args_parser(), main)
