"""Shows that pruning lost nothing: the detections of two networks on real images, compared box by box.

Where the gammas that died were exactly 0, the pruned network must find the same boxes as the sparse one.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as `python studies/lossless.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from terminaltables import AsciiTable
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils.boxes import boxes_of_image, non_max_suppression
from utils.cli import ArgumentParser, add_size_option, run
from utils.data.data_config import read_data_config
from utils.data.images import to_device
from utils.detection.checkpoints import load_darknet
from utils.detection.evaluate import validation_batches
from utils.detection.metrics import DetectionMetrics
from utils.detection.options import add_threshold_options, network_size
from utils.devices import device_of, pick_device, without_tf32
from utils.sizes import Size


def get_args_parser() -> argparse.ArgumentParser:
    """The options of lossless.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_def", help="the sparse network's cfg; default: the cfg in its weights file")
    parser.add_argument("--weights_path", default="checkpoints/yolov3_ckpt.pth", help="its weights")
    parser.add_argument("--pruned_def", help="the pruned network's cfg; default: the cfg in its weights file")
    parser.add_argument("--pruned_weights", default="checkpoints/prune_yolov3_ckpt.pth", help="its weights")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data or .yaml file")
    add_threshold_options(parser, conf_thres=0.001, nms_thres=0.5)
    add_size_option(parser, "size of the input in pixels, by default the model's")
    return parser


def main(args: argparse.Namespace) -> None:
    """Detect with both networks, and print how they differ."""
    device = pick_device()
    sparse, metadata = load_darknet(args.weights_path, args.model_def)
    pruned, _ = load_darknet(args.pruned_weights, args.pruned_def)
    img_size = network_size(sparse, args.img_size or metadata.get("img_size"))
    data = read_data_config(args.data_config)
    batches, _ = validation_batches(sparse, data, img_size, batch_size=8, n_cpu=0)
    found = {
        name: detect(model.to(device).eval(), batches, args.conf_thres, args.nms_thres, name)
        for name, model in (("sparse", sparse), ("pruned", pruned))
    }
    maps = {name: mean_ap(detections, batches, data.names) for name, detections in found.items()}
    pairs = list(zip(found["sparse"], found["pruned"], strict=True))
    same = sum(len(first) == len(second) for first, second in pairs)
    boxes, scores = zip(*(differences(first, second) for first, second in pairs), strict=True)
    rows = [["", "sparse", "pruned"]]
    rows.append([f"detections of score >= {args.conf_thres:g}", *(sum(map(len, side)) for side in found.values())])
    rows.append(["mAP@0.5", *(f"{value:.7f}" for value in maps.values())])
    print(AsciiTable(rows).table)
    print(f"images with the same number of detections: {same} of {len(pairs)}")
    print(f"largest difference of a box: {max(boxes):.2g} pixels; of a score: {max(scores):.2g}")


@torch.inference_mode()
def detect(model: Darknet, batches: DataLoader, conf_thres: float, nms_thres: float, name: str) -> list[Tensor]:
    """Detections (D, 6) of each image, in input pixels."""
    device = device_of(model)
    found = []
    for images, _ in tqdm(batches, name, leave=False, unit="batch"):
        with without_tf32():
            predictions = model(to_device(images, device))
        found += non_max_suppression(predictions, conf_thres, nms_thres)
    return [detections.cpu() for detections in found]


def mean_ap(found: list[Tensor], batches: DataLoader, names: list[str]) -> float:
    """mAP@0.5 of the detections of each image."""
    metrics, remaining = DetectionMetrics(names), iter(found)
    for images, targets in batches:
        for image in range(len(images)):
            metrics.add(next(remaining), boxes_of_image(targets, image, Size(*images.shape[-2:])))
    return metrics.compute().mAP


def differences(first: Tensor, second: Tensor) -> tuple[float, float]:
    """How far the detections (D, 6) of one image are from their nearest in the other: in pixels, and in score."""
    if not len(first) or not len(second):
        nothing = 0.0 if len(first) == len(second) else float("inf")
        return nothing, nothing
    distance = (first[:, None, :4] - second[None, :, :4]).abs().amax(dim=2)
    distance[first[:, None, 5] != second[None, :, 5]] = float("inf")
    nearest, partner = distance.min(dim=1)
    farthest = max(nearest.max(), distance.amin(dim=0).max())
    return float(farthest), float((first[:, 4] - second[partner, 4]).abs().max())


if __name__ == "__main__":
    run(get_args_parser(), main)
