"""From validation images to mAP: the batches of a data set, and the evaluation."""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils import distributed
from utils.boxes import boxes_of_image, to_detections
from utils.data.check import CheckedData, check_data
from utils.data.datasets import DataConfig, DetectionDataset, loader
from utils.data.images import to_device
from utils.detection.inference import for_inference
from utils.detection.metrics import DetectionMetrics, Metrics
from utils.detection.options import check_classes
from utils.devices import device_of, memory_advice, smaller_batch
from utils.timing import Stopwatch


def validation_batches(
    model: Darknet, data: DataConfig, img_size: int, batch_size: int, n_cpu: int, skip_bad: bool = False
) -> tuple[DataLoader, CheckedData]:
    """The validation images of a data set in batches, after the data and the classes are checked.

    Raises:
        InputError: the network has another number of classes than the data set, or the data are bad.
    """
    check_classes(model, data)
    checked = check_data(data, "valid", skip_bad)
    return loader(DetectionDataset(checked.images, checked.labels, img_size), batch_size, n_cpu), checked


@dataclass(frozen=True)
class Seconds:
    """Where the time of an evaluation went."""

    forward: float
    nms: float
    total: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: DataLoader,
    names: list[str],
    iou_thres: float = 0.5,
    conf_thres: float = 0.001,
    nms_thres: float = 0.5,
) -> tuple[Metrics, Seconds]:
    """Detect on every image of ``batches`` and compare with its boxes.

    Among several processes each takes images of its own, and the metrics are those of all.

    Args:
        model: the network, a Darknet, which is left as it is, or one of :mod:`utils.detection.runtimes`. A Darknet is
            measured as it detects fastest, see :class:`utils.detection.inference.Inference`.
        batches: images (B, 3, S, S) uint8 and targets (N, 6) in [0, 1], as :func:`utils.data.datasets.collate` makes
            them.
        names: class names.
        iou_thres: the IoU from which on a detection counts as right.
        conf_thres: detections below this score are left out.
        nms_thres: the IoU of non-maximum suppression.
    """
    model, device = for_inference(model), device_of(model)
    forward, nms = Stopwatch(device), Stopwatch(device)
    gathered = DetectionMetrics(names, iou_thres)
    start = time.perf_counter()
    for images, targets in tqdm(batches, "evaluating", leave=False, unit="batch", disable=not distributed.is_main()):
        with memory_advice(smaller_batch(len(images), images.shape[-1], processes=distributed.world())):
            images = to_device(images, device)
            with forward:
                output = model(images)
            with nms:
                detections = to_detections(output, conf_thres, nms_thres)
        for image, found in enumerate(detections):
            gathered.add(found.cpu(), boxes_of_image(targets, image, images.shape[-1]))
    everything = DetectionMetrics(names, iou_thres)
    everything.join(distributed.gather(gathered))
    metrics = everything.compute()
    return metrics, Seconds(forward.seconds, nms.seconds, time.perf_counter() - start)
