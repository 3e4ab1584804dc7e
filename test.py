"""Evaluates a detector on the validation images of a data set: mAP, precision, recall, F1, and where the time goes."""

import argparse
from dataclasses import asdict
from statistics import fmean
from typing import cast

from utils.cli import ArgumentParser, number, output_file, run
from utils.data.check import summary
from utils.data.data_config import read_data_config
from utils.data.datasets import DetectionDataset
from utils.detection.detector import load_model
from utils.detection.evaluate import evaluate, input_sizes, metrics_table, validation_batches
from utils.detection.inference import for_inference, on_device
from utils.detection.options import (
    add_check_options,
    add_compile_option,
    add_device_option,
    add_loading_options,
    add_model_options,
    add_rect_option,
    add_threshold_options,
    check_rect,
    label_rules,
    network_size,
)
from utils.files import refuse_inputs, write_json


def get_args_parser() -> argparse.ArgumentParser:
    """The options of test.py."""
    parser = ArgumentParser(__doc__)
    add_model_options(parser, "checkpoints/yolov3_ckpt.pth")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data or .yaml file")
    add_loading_options(parser, batch_size=8)
    add_check_options(parser)
    parser.add_argument(
        "--iou_thres",
        type=number(float, 0, 1),
        default=0.5,
        help="IoU with a ground-truth box from which on a detection counts as correct",
    )
    add_threshold_options(parser, conf_thres=0.001, nms_thres=0.5)
    add_rect_option(parser)
    add_compile_option(parser)
    add_device_option(parser)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results to this file")
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluate a model and print the table of its metrics."""
    model, metadata = load_model(args.weights_path, args.model_def, (args.conf_thres, args.nms_thres), args.device)
    check_rect(model, args.rect)
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    data = read_data_config(args.data_config)
    refuse_inputs(data.files, [args.json])
    model = on_device(model, args.device)
    batches, checked = validation_batches(
        model, data, img_size, args.batch_size, args.n_cpu, args.skip_bad, label_rules(args), args.rect
    )
    print(summary({"valid": checked}))
    ready = for_inference(model, args.compile)
    metrics, seconds = evaluate(ready, batches, data.names, args.iou_thres, args.conf_thres, args.nms_thres)

    print(metrics_table(metrics, args.iou_thres))
    sizes = input_sizes(cast(DetectionDataset, batches.dataset)) if args.rect else [img_size]
    parameters, macs = model.spec.parameters, round(fmean(model.spec.at(size).macs for size in sizes))
    where = f"per image, in rectangles within {img_size.pixels}" if args.rect else f"at {img_size.pixels}"
    print(f"{parameters:,} parameters, {macs / 1e9:.3f} G MACs {where}")
    print(
        f"{metrics.images} images in {seconds.total:.1f} s, {metrics.images / seconds.total:.1f} per second: "
        f"forward {seconds.forward:.1f} s, non-maximum suppression {seconds.nms:.1f} s"
    )
    if args.json:
        times = {f"seconds_{name}": value for name, value in asdict(seconds).items()}
        write_json(args.json, {**asdict(metrics), "parameters": parameters, "macs": macs, **times})


if __name__ == "__main__":
    run(get_args_parser(), main)
