"""From validation images to mAP: the batches of a data set, the evaluation, and its table."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from terminaltables import AsciiTable
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils import distributed
from utils.boxes import boxes_of_image, to_detections
from utils.data.check import CheckedData, check_data
from utils.data.data_config import DataConfig
from utils.data.datasets import DetectionDataset
from utils.data.images import image_sizes, to_device
from utils.data.labels import LENIENT, LabelRules
from utils.data.loader import batches_by_shape, loader
from utils.detection.inference import for_inference
from utils.detection.metrics import DetectionMetrics, Metrics
from utils.detection.options import check_classes
from utils.detection.runtimes import ExportedModel
from utils.devices import device_of, memory_advice, smaller_batch
from utils.signals import Batches
from utils.sizes import AnySize, Size
from utils.timing import Stopwatch


@dataclass(frozen=True)
class Seconds:
    """Where the time of an evaluation went, in seconds."""

    forward: float
    nms: float
    total: float


def validation_batches(
    model: Darknet | ExportedModel,
    data: DataConfig,
    img_size: AnySize,
    batch_size: int,
    n_cpu: int | None,
    skip_bad: bool = False,
    rules: LabelRules = LENIENT,
    rect: bool = False,
) -> tuple[DataLoader, CheckedData]:
    """The validation images of a data set in batches, for :func:`evaluate`, after the data and the classes are checked.

    Among several processes each gets its share of the images. The batches' ``dataset`` holds all of them.

    Args:
        model: the network to evaluate, for its number of classes, on the device that the batches will go to.
        data: the data set.
        img_size: the size to which images are letterboxed.
        batch_size: images per batch of this process.
        n_cpu: worker processes that read images; None for :func:`utils.workers.default_workers`.
        skip_bad: leave out images that are missing, unreadable or wrongly labelled.
        rules: how label lines are read.
        rect: letterbox each image to its own rectangle, see :func:`utils.data.images.input_size`; a batch then has
            images of one shape.

    Returns:
        The batches, images (B, 3, H, W) uint8 and targets (N, 6); and the checked data, whose counts
        :func:`utils.data.check.summary` shows.

    Raises:
        InputError: the network has another number of classes than the data set, or the data are bad.
    """
    check_classes(model, data)
    checked = check_data(data, "valid", skip_bad, rules)
    dataset = DetectionDataset(checked.images, checked.labels, img_size, rectangles=model.spec if rect else None)
    device = device_of(model)
    local = distributed.share(len(dataset), distributed.rank(), distributed.world())
    if rect:
        sizes = input_sizes(dataset)
        batches = list(batches_by_shape(local, lambda index: sizes[index], batch_size, len(local)))
        return loader(dataset, batches, n_cpu, device=device), checked
    return loader(dataset, batch_size, n_cpu, sampler=local, device=device), checked


def input_sizes(dataset: DetectionDataset) -> list[Size]:
    """The size to which each image of a data set is letterboxed."""
    return [dataset.input_size(*size) for size in image_sizes(dataset.images)]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    names: list[str],
    iou_thres: float = 0.5,
    conf_thres: float = 0.001,
    nms_thres: float = 0.5,
    each: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Metrics, Seconds]:
    """Detect on every image of ``batches`` and compare the detections with the ground-truth boxes.

    Among several processes each evaluates its share of the images; the metrics are those of all images.

    Args:
        model: the network, a Darknet, which is not changed, or one of :mod:`utils.detection.runtimes`. A Darknet is
            evaluated in its fastest form, see :class:`utils.detection.inference.Inference`.
        batches: images (B, 3, H, W) uint8 and targets (N, 6) in [0, 1], as :func:`utils.data.loader.collate` makes
            them. Those of :meth:`utils.signals.StopRequest.watch` end the evaluation where a signal arrives.
        names: class names.
        iou_thres: the IoU with a ground-truth box from which on a detection counts as correct.
        conf_thres: detections below this score are left out.
        nms_thres: the IoU of non-maximum suppression.
        each: is called with what was detected on each image of this process, (D, 6), and its ground truth, (G, 5), in
            pixels of the square.
    """
    model, device = for_inference(model), device_of(model)
    forward, nms = Stopwatch(device), Stopwatch(device)
    local = DetectionMetrics(names, iou_thres)
    start = time.perf_counter()
    for images, targets in tqdm(batches, "evaluating", leave=False, unit="batch", disable=not distributed.is_main()):
        with memory_advice(smaller_batch(len(images), Size(*images.shape[-2:]), processes=distributed.world())):
            images = to_device(images, device)
            with forward:
                output = model(images)
            with nms:
                detections = to_detections(output, conf_thres, nms_thres)
        for image, of_image in enumerate(_to_cpu(detections)):
            truth = boxes_of_image(targets, image, Size(*images.shape[-2:]))
            local.add(of_image, truth)
            if each:
                each(of_image, truth)
    total = DetectionMetrics(names, iou_thres)
    total.join(distributed.gather(local))
    metrics = total.compute()
    return metrics, Seconds(forward.seconds, nms.seconds, time.perf_counter() - start)


def _to_cpu(detections: list[Tensor]) -> tuple[Tensor, ...]:
    """The detections of each image of a batch on the CPU, copied at once: each copy makes the CPU wait for the GPU."""
    return torch.cat(detections).cpu().split([len(of_image) for of_image in detections])


def metrics_table(metrics: Metrics, iou_thres: float = 0.5) -> str:
    """The metrics as a table for the terminal."""
    rows = [["Metric", "Value"], [f"mAP@{iou_thres:g}", f"{metrics.mAP:.4f}"]]
    rows.append(["mAP@0.5:0.95", f"{metrics.mAP_50_95:.4f}"])
    rows += [[name.capitalize(), f"{getattr(metrics, name):.4f}"] for name in ("precision", "recall", "f1")]
    rows.append(["at confidence", f"{metrics.confidence:.4f}"])
    if len(metrics.per_class) > 1:
        rows += [[f"AP {name}", "no box" if ap is None else f"{ap:.4f}"] for name, ap in metrics.per_class.items()]
    return AsciiTable(rows).table
