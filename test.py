"""Measures a detector on a data set: mAP, precision, recall, F1, and where the time goes."""

import argparse
import dataclasses

from terminaltables import AsciiTable

from models import Darknet
from utils.cli import ArgumentParser, number, run
from utils.data.check import check_data, summary
from utils.data.data_config import read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.loader import loader
from utils.detection.complexity import count_parameters
from utils.detection.detector import load_model
from utils.detection.evaluate import evaluate
from utils.detection.inference import for_inference
from utils.detection.metrics import Metrics
from utils.detection.options import (
    add_compile_option,
    add_skip_bad_option,
    add_threshold_options,
    check_classes,
    network_size,
)
from utils.devices import pick_device
from utils.files import write_json


def get_args_parser() -> argparse.ArgumentParser:
    """The options of test.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--batch_size", type=number(int, 1), default=8, help="images at a time")
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data file")
    parser.add_argument(
        "--weights_path",
        default="checkpoints/yolov3_ckpt.pth",
        help="a checkpoint, state dict, Darknet .weights file, or .onnx file, which needs no --model_def",
    )
    parser.add_argument("--iou_thres", type=number(float, 0, 1), default=0.5, help="IoU of a right detection")
    add_threshold_options(parser, conf_thres=0.001, nms_thres=0.5)
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="worker processes that read images")
    add_skip_bad_option(parser)
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the model's if not given")
    add_compile_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write the results there, too")
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluate a model on the validation images of a data set and print the table."""
    model, about = load_model(args.model_def, args.weights_path, (args.conf_thres, args.nms_thres))
    img_size = network_size(model, args.img_size or about.get("img_size"))
    data = read_data_config(args.data_config)
    check_classes(model, data)
    checked = check_data(data, "valid", args.skip_bad)
    print(summary({"valid": checked}))
    dataset = DetectionDataset(checked.images, checked.labels, img_size)
    model.to(pick_device())
    batches = loader(dataset, args.batch_size, args.n_cpu)
    ready = for_inference(model, args.compile)
    metrics, seconds = evaluate(ready, batches, data.names, args.iou_thres, args.conf_thres, args.nms_thres)

    print(metrics_table(metrics, args.iou_thres))
    parameters, macs = count_parameters(Darknet(model.blocks)), model.spec.at(img_size).macs
    print(f"{parameters:,} parameters, {macs / 1e9:.3f} G MACs at {img_size}")
    print(
        f"{metrics.images} images in {seconds.total:.1f} s, {metrics.images / seconds.total:.1f} a second: "
        f"forward {seconds.forward:.1f} s, non-maximum suppression {seconds.nms:.1f} s"
    )
    if args.json:
        times = {f"seconds_{name}": value for name, value in dataclasses.asdict(seconds).items()}
        write_json(args.json, {**dataclasses.asdict(metrics), "parameters": parameters, "macs": macs, **times})


def metrics_table(metrics: Metrics, iou_thres: float = 0.5) -> str:
    """The metrics as a table for the terminal."""
    rows = [["Metric", "Value"], [f"mAP@{iou_thres:g}", f"{metrics.mAP:.4f}"]]
    rows.append(["mAP@0.5:0.95", f"{metrics.mAP_50_95:.4f}"])
    rows += [[name.capitalize(), f"{getattr(metrics, name):.4f}"] for name in ("precision", "recall", "f1")]
    rows.append(["at confidence", f"{metrics.confidence:.4f}"])
    if len(metrics.per_class) > 1:
        rows += [[f"AP {name}", "no box" if ap is None else f"{ap:.4f}"] for name, ap in metrics.per_class.items()]
    return AsciiTable(rows).table


if __name__ == "__main__":
    run(get_args_parser(), main)
