"""Benchmarks the project on this machine against references, row by row; prints and writes the table."""

import argparse
import itertools
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from terminaltables import AsciiTable
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, box_iou

from models import Darknet
from studies.drawn_scenes import drawn_precision
from studies.step_benchmark import time_steps
from utils.boxes import non_max_suppression
from utils.cli import ArgumentParser, number, run
from utils.darknet.cfg import Block, read_cfg
from utils.data.augmentations import Augmentation
from utils.data.datasets import DetectionDataset
from utils.data.images import to_device
from utils.data.labels import label_path, read_labels
from utils.data.loader import EpochSampler, loader
from utils.detection.checkpoints import save_checkpoint
from utils.detection.evaluate import evaluate
from utils.detection.inference import for_inference
from utils.detection.metrics import (
    COCO_IOU,
    DetectionMetrics,
    Metrics,
    average_precision,
    interpolated_precision,
)
from utils.detection.options import add_device_option
from utils.detection.runtimes import OnnxModel, OpenVinoModel
from utils.detection.video import video_writer
from utils.devices import pick_device
from utils.errors import InputError
from utils.export.onnx import export_onnx
from utils.export.quantization import FORMS, quantize
from utils.files import write_json
from utils.optional import optional
from utils.timing import Timing, forward_times, time_in_turns

FULL, PRUNED = "config/yolov3-hand.cfg", "config/yolov3-hand-published.cfg"
SIZE = 416
CONF_THRES, NMS_THRES = 0.001, 0.5
PASSING = 1000  # candidates per image of the network in the row "test"
COCO_SIZE = {"images": 5_000, "detections": 300, "boxes": 36_335, "classes": 80}  # COCO's val2017


@dataclass(frozen=True)
class Memory:
    """An amount of memory."""

    mebibytes: float

    def __str__(self) -> str:
        return f"{self.mebibytes:.0f} MiB"


@dataclass(frozen=True)
class Precision:
    """How well a network detects."""

    mAP: float

    def __str__(self) -> str:
        return f"mAP {self.mAP:.4f}"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: what was measured.
        ours, reference: its time and that of a reference, taken in turns; or its memory and a limit; or two mAPs.
        value: the ratio to judge by; ``meaning`` tells of what.
        bar: the largest good ratio, or with ``at_least`` the smallest.
    """

    name: str
    ours: Timing | Memory | Precision
    reference: Timing | Memory | Precision
    value: float
    meaning: str
    bar: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the ratio is good."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def get_args_parser() -> argparse.ArgumentParser:
    """The options of benchmark.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--only", choices=ROWS, nargs="+", help="the rows to measure; default: all")
    parser.add_argument("--rounds", type=number(int, 1), default=9, help="measurements of each side, taken in turns")
    parser.add_argument("--images", type=number(int, 8), default=64, help="images in the row test")
    parser.add_argument("--n_cpu", type=number(int, 0), default=2, help="worker processes in the row test")
    add_device_option(parser)
    parser.add_argument("--json", metavar="FILE", default="runs/benchmark.json", help="the file for the results")
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    pick_device(args.device)  # so that a wrong one ends the program, not the rows
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items() if value))
    rows, problems = [], {}
    for name in args.only or ROWS:
        try:
            rows += ROWS[name](args)
        except InputError as error:  # a runtime that is not installed
            problems[name] = str(error)
    print(table(rows))
    print("\n".join(f"{name}: {problem}" for name, problem in problems.items()))
    results = [asdict(row) | {"reached": row.reached} for row in rows]
    write_json(args.json, {"machine": machine, "rounds": args.rounds, "rows": results, "problems": problems})
    print(f"{args.json}: the same as JSON")


def describe_machine() -> dict[str, str | int]:
    """The hardware and library versions that the times depend on."""
    cpu = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "malloc": os.environ.get("MALLOC_MMAP_THRESHOLD_", ""),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(rows: list[Row]) -> str:
    """The rows as a table for the terminal."""
    lines = [["What", "Ours", "Against", "Ratio", "Bar", ""]]
    for row in rows:
        bar = f"at {'least' if row.at_least else 'most'} {row.bar:.2f}"
        reached = "reached" if row.reached else "MISSED"
        lines.append([row.name, str(row.ours), str(row.reference), f"{row.value:.2f} {row.meaning}", bar, reached])
    return AsciiTable(lines).table


# Training


def step_row(args: argparse.Namespace) -> list[Row]:
    """A step of sparse training of the full network against its bare convolutions, BatchNorms and activations."""
    ours, bare = time_steps(read_cfg(FULL), 4, pick_device(args.device), args.rounds)
    return [Row("training step, batch 4", ours, bare, ours.median / bare.median, "of the bare layers", 1.1)]


# Non-maximum suppression


def clustered_predictions(images: int = 8, boxes: int = 10_647, passing: int = 3_000, objects: int = 30) -> Tensor:
    """Predictions (B, P, 6), of which ``passing`` per image pass CONF_THRES, in clusters around ``objects`` places."""
    random = torch.Generator().manual_seed(0)
    predictions = torch.rand(images, boxes, 6, generator=random)
    predictions[..., :2] *= SIZE
    predictions[..., 2:4] = 20 + 100 * predictions[..., 2:4]
    predictions[..., 4] *= 0.9 * CONF_THRES
    for of_image in predictions:
        chosen = torch.randperm(boxes, generator=random)[:passing]
        places = torch.rand(objects, 4, generator=random) * torch.tensor([SIZE, SIZE, 100, 100])
        places[:, 2:] += 30
        near = places[torch.randint(objects, (passing,), generator=random)]
        noise = torch.randn(passing, 4, generator=random) * torch.tensor([0.1, 0.1, 0.05, 0.05])
        of_image[chosen, :4] = near + noise * near[:, 2:].repeat(1, 2)
        of_image[chosen, 4:] = 0.1 + 0.9 * torch.rand(passing, 2, generator=random)
    return predictions


def nms_row(args: argparse.Namespace) -> list[Row]:
    """NMS of a batch of predictions against torchvision's ``batched_nms`` on the boxes that pass alone."""
    device = pick_device(args.device)
    predictions = clustered_predictions().to(device)
    score = predictions[..., 4] * predictions[..., 5]
    image, box = (score >= CONF_THRES).nonzero(as_tuple=True)
    candidates = box_convert(predictions[image, box, :4], "cxcywh", "xyxy"), score[image, box], image
    ours, alone = time_in_turns(
        [
            lambda: non_max_suppression(predictions, CONF_THRES, NMS_THRES),
            lambda: batched_nms(*candidates, NMS_THRES),
        ],
        device,
        5 * args.rounds,
    )
    return [Row("NMS of 8 images", ours, alone, ours.median / alone.median, "of batched_nms alone", 1.2)]


# mAP

DetectedImages = list[tuple[Tensor, Tensor]]


def detected_images(
    images: int = 821, detections: int = 100, boxes: int = 2_181, classes: int = 1, seed: int = 0
) -> DetectedImages:
    """(detections (D, 6), truth (G, 5)) per image. More than half of the detections lie near a box of their class.

    Scores repeat if there is one class only.
    """
    random = np.random.default_rng(seed)
    results = []
    for count in 1 + random.multinomial(boxes - images, np.full(images, 1 / images)):
        near = int(0.6 * detections)
        corners, sides = random.uniform(0, 300, (count, 2)), random.uniform(20, 120, (count, 2))
        labels = random.integers(classes, size=(count, 1))
        truth = np.concatenate([labels, corners, corners + sides], 1)
        target = random.integers(count, size=near)
        hits = truth[target]
        hits[:, 1:] += random.normal(0, 0.1, (near, 4)) * np.tile(sides[target], 2)
        corners = random.uniform(0, 300, (detections - near, 2))
        labels = random.integers(classes, size=(len(corners), 1))
        misses = np.concatenate([labels, corners, corners + random.uniform(20, 120, corners.shape)], 1)
        label, xyxy = np.split(random.permutation(np.concatenate([hits, misses])), [1], axis=1)
        xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2] + 1)
        score = random.random(detections)
        score = np.sort(score.round(2) if classes == 1 else score)[::-1]
        columns = np.concatenate([xyxy, score[:, None], label], 1)
        results.append((torch.tensor(columns).float(), torch.tensor(truth).float()))
    return results


def plain_match(detections: Tensor, truth: Tensor, threshold: float) -> list[bool]:
    """Whether each detection is correct at one IoU threshold: one after another, each takes the best box left."""
    overlaps, classes = box_iou(detections[:, :4], truth[:, 1:]).tolist(), truth[:, 0].tolist()
    taken, correct = set(), []
    for overlap, label in zip(overlaps, detections[:, 5].tolist(), strict=True):
        best, partner = 0.0, None
        for box, iou in enumerate(overlap):
            if iou >= threshold and iou > best and classes[box] == label and box not in taken:
                best, partner = iou, box
        correct.append(partner is not None)
        taken.add(partner)
    return correct


def plain_map(images: DetectedImages, thresholds: np.ndarray) -> list[float]:
    """AP of one class at each threshold, matched by the plain loop."""
    order = torch.cat([detections[:, 4] for detections, _ in images]).argsort(descending=True, stable=True).numpy()
    boxes = sum(len(truth) for _, truth in images)
    ap = []
    for threshold in thresholds.tolist():
        correct = np.concatenate([plain_match(*image, threshold) for image in images])[order]
        ap.append(float(average_precision(correct[:, None], boxes)[0]))
    return ap


def collected(images: DetectedImages, classes: int = 1) -> DetectionMetrics:
    """The detections as test.py collects them."""
    metrics = DetectionMetrics([str(number) for number in range(classes)])
    for image in images:
        metrics.add(*image)
    return metrics


def our_metrics(images: DetectedImages, classes: int = 1) -> Metrics:
    """All metrics of test.py, from detections."""
    return collected(images, classes).compute()


def map_row(args: argparse.Namespace) -> list[Row]:
    """All metrics of test.py against a plain Python loop over the same thresholds; their mAP must agree."""
    images, thresholds = detected_images(), np.append(COCO_IOU, 0.5)
    expected, computed = float(np.mean(plain_map(images, thresholds)[:-1])), our_metrics(images).mAP_50_95
    if abs(expected - computed) > 1e-9:
        raise RuntimeError(f"mAP@0.5:0.95 is {computed}, but {expected} by the plain loop")
    steps: list[Callable[[], object]] = [partial(our_metrics, images), partial(plain_map, images, thresholds)]
    ours, plain = time_in_turns(steps, torch.device("cpu"), args.rounds, warm_up=1)
    return [Row("mAP of 821 images", ours, plain, ours.median / plain.median, "of a plain loop", 0.25)]


def coco_average_precision(correct: np.ndarray, boxes: int) -> np.ndarray:
    """AP as COCO defines it: interpolated precision at the recalls 0, 0.01, ... 1; else like average_precision."""
    ap = np.zeros(correct.shape[1])
    for column, of_threshold in enumerate(correct.T):
        precision = interpolated_precision(of_threshold)
        recall = np.arange(1, len(precision) + 1) / boxes
        ap[column] = np.append(precision, 0)[recall.searchsorted(np.linspace(0, 1, 101))].mean()
    return ap


def coco_map(metrics: DetectionMetrics) -> float:
    """mAP@0.5:0.95 as COCO defines it."""
    return float(np.mean([coco_average_precision(c.correct, c.boxes)[:-1] for _, c in metrics.by_class()]))


def coco_format(images: DetectedImages, classes: int) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """The ground truth as COCO's file of annotations holds it, and the detections as a file of results."""
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (detections, boxes) in enumerate(images, start=1):
        for label, x1, y1, x2, y2 in boxes.tolist():
            width, height = x2 - x1, y2 - y1
            box = {"id": len(truth) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": 0}
            truth.append(box | {"bbox": [x1, y1, width, height], "area": width * height})
        for x1, y1, x2, y2, score, label in detections.tolist():
            detection = {"image_id": image, "category_id": int(label) + 1, "score": score}
            results.append(detection | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    content: dict[str, list] = {"info": [], "annotations": truth}
    content["images"] = [{"id": image + 1, "width": SIZE, "height": SIZE} for image in range(len(images))]
    content["categories"] = [{"id": label + 1, "name": str(label)} for label in range(classes)]
    return content, results


def coco_row(args: argparse.Namespace) -> list[Row]:
    """All metrics of test.py against faster-coco-eval at COCO's size; mAP at COCO's 101 points must agree."""
    coco = optional("faster_coco_eval")
    images, classes = detected_images(**COCO_SIZE), COCO_SIZE["classes"]
    content, results = coco_format(images, classes)
    truth = coco.COCO(content)
    evaluation = coco.COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=lambda *words: None)
    evaluation.params.maxDets = [COCO_SIZE["detections"]]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]

    def evaluate_and_accumulate() -> None:
        evaluation.evaluate()
        evaluation.accumulate()

    steps: list[Callable[[], object]] = [partial(our_metrics, images, classes), evaluate_and_accumulate]
    ours, reference = time_in_turns(steps, torch.device("cpu"), args.rounds, warm_up=1)
    expected, computed = float(evaluation.eval["precision"].mean()), coco_map(collected(images, classes))
    if abs(expected - computed) > 1e-4:
        raise RuntimeError(f"mAP@0.5:0.95 is {computed}, but {expected} by faster-coco-eval")
    return [Row("mAP at COCO's size", ours, reference, ours.median / reference.median, "of faster-coco-eval", 1.0)]


def memory_row(args: argparse.Namespace) -> list[Row]:
    """The memory of all metrics of test.py at COCO's size, above the detections themselves."""
    images = detected_images(**COCO_SIZE)
    tracemalloc.start()  # of NumPy's arrays too
    our_metrics(images, COCO_SIZE["classes"])
    ours, limit = Memory(tracemalloc.get_traced_memory()[1] / 2**20), Memory(1024)
    tracemalloc.stop()
    return [Row("mAP at COCO's size, memory", ours, limit, ours.mebibytes / limit.mebibytes, "of 1 GiB", 1.0)]


# test.py


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


def test_row(args: argparse.Namespace) -> list[Row]:
    """test.py, from image files to mAP, against the forward passes alone, in images per second at the same batch."""
    device, batch_size = pick_device(args.device), 8
    with tempfile.TemporaryDirectory() as folder:
        dataset = labelled(write_images(Path(folder), args.images), SIZE)
        images = to_device(torch.stack([dataset[number][0] for number in range(batch_size)]), device)
        model = for_inference(calibrated(Darknet(PRUNED).to(device), images, PASSING))
        batches = loader(dataset, batch_size, args.n_cpu)
        sizes = [min(batch_size, args.images - start) for start in range(0, args.images, batch_size)]

        @torch.inference_mode()
        def forward_alone() -> None:
            for size in sizes:
                model(images[:size])

        steps = [lambda: evaluate(model, batches, ["hand"], conf_thres=CONF_THRES), forward_alone]
        ours, alone = time_in_turns(steps, device, args.rounds, warm_up=1)
    speed = alone.median / ours.median
    name = f"test.py, {args.images} images"
    return [Row(name, ours, alone, speed, "of the forward passes' speed", 0.9, at_least=True)]


# detect.py


def write_clip(path: Path, frames: int, size: tuple[int, int] = (1280, 720), seed: int = 0) -> None:
    """Write a video of soft colours that move; ``size`` is its width and height."""
    coarse = np.random.default_rng(seed).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    width, height = size
    scene = Image.fromarray(coarse).resize((width + 4 * frames, height + 4 * frames), Image.Resampling.BICUBIC)
    with video_writer(path, 25, size) as write:
        for number in range(frames):
            write(number, scene.crop((4 * number, 4 * number, width + 4 * number, height + 4 * number)))


def rect_row(args: argparse.Namespace, frames: int = 40) -> list[Row]:
    """detect.py --rect against detect.py, per frame of a video of 1280x720 pixels, which it also draws and writes."""
    with tempfile.TemporaryDirectory() as folder:
        weights, clip = Path(folder) / "pruned.pth", Path(folder) / "clip.mp4"
        torch.manual_seed(0)
        model = calibrated(Darknet(PRUNED), torch.rand(2, 3, SIZE, SIZE), PASSING)
        save_checkpoint(weights, model, names=["hand"], img_size=SIZE)
        write_clip(clip, frames)
        words = ["--video", str(clip), "--weights_path", str(weights), "--output", str(Path(folder) / "output")]
        words += ["--device", args.device] if args.device else []
        times: tuple[list[float], list[float]] = [], []
        for _ in range(args.rounds):
            for options, milliseconds in zip(([], ["--rect"]), times, strict=True):
                milliseconds.append(1000 / frames_per_second([*words, *options]))
    square, rect = map(Timing.of, times)
    speed = square.median / rect.median
    return [Row("detect.py --rect, 1280x720", rect, square, speed, "of the square's frames/s", 1.5, at_least=True)]


def rect_map_row(args: argparse.Namespace) -> list[Row]:
    """mAP@0.5 on 16:9 images in rectangles against the same network and images in squares."""
    square, rect = drawn_precision(pick_device(args.device))
    apart = 100 * abs(square - rect)
    return [Row("mAP of --rect, 16:9", Precision(rect), Precision(square), apart, "hundredths of mAP apart", 0.5)]


def frames_per_second(words: list[str]) -> float:
    """What detect.py prints when it is run with the options ``words``."""
    program = Path(__file__).with_name("detect.py")
    ended = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)
    speed = re.search(r"([\d.]+) frames per second", ended.stdout)
    if not speed:
        raise InputError(f"{program}: {ended.stderr.strip()}")
    return float(speed.group(1))


# Training images


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


# The pruned network


def speed_up_row(
    args: argparse.Namespace,
    name: str,
    ready: Callable[[Darknet], nn.Module],
    bar: float = 0.8,
    round_to: int = 1,
) -> list[Row]:
    """The speed-up of the forward pass from the full to the published pruned network, as a share of the MACs' ratio.

    The pruned network's channels are rounded up to a multiple of ``round_to``, as ``test_prune.py --round_to`` does.
    """
    device = pick_device(args.device)
    models = [Darknet(sections).to(device).eval() for sections in (with_round_channels(round_to), read_cfg(FULL))]
    fewer = models[1].spec.at(SIZE).macs / models[0].spec.at(SIZE).macs
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    pruned, full = forward_times([ready(model) for model in models], images, args.rounds)
    speed_up = full.median / pruned.median
    meaning = f"of the MACs' {fewer:.2f}x: {speed_up:.2f}x"
    return [Row(f"pruned, {name}", pruned, full, speed_up / fewer, meaning, bar, at_least=True)]


def with_round_channels(multiple: int) -> list[Block]:
    """The sections of the published pruned network, its channels rounded up; those before the heads stay."""
    sections = read_cfg(PRUNED)
    for section, after in zip(sections, [*sections[1:], {"type": ""}], strict=True):
        if section["type"] == "convolutional" and after["type"] != "yolo":
            section["filters"] = str(-(-int(section["filters"]) // multiple) * multiple)
    return sections


def exported(model: Darknet, runtime: Callable[[bytes], nn.Module], package: str) -> nn.Module:
    """The network in a runtime for ONNX files."""
    optional(package)
    return runtime(export_onnx(model.cpu(), ["hand"], SIZE).SerializeToString())


def int8_row(args: argparse.Namespace) -> list[Row]:
    """The published pruned network in OpenVINO in 8 bits, against float32 there. Its scales come from noise."""
    optional("openvino")
    model = Darknet(PRUNED).eval()
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    proto = export_onnx(model, ["hand"], SIZE)
    graphs = [quantize(proto, model.spec, [images], outputs=FORMS["openvino"].outputs), proto]
    int8, full = forward_times([OpenVinoModel(graph.SerializeToString()) for graph in graphs], images, args.rounds)
    speed_up = full.median / int8.median
    return [Row("INT8, OpenVINO", int8, full, speed_up, "times as fast as float32", 1.7, at_least=True)]


ROWS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "step": step_row,
    "nms": nms_row,
    "map": map_row,
    "map_coco": coco_row,
    "map_memory": memory_row,
    "test": test_row,
    "rect": rect_row,
    "rect_map": rect_map_row,
    "loading": partial(loading_row, size=(640, 480), count=64, bar=1.3),
    "loading-large": partial(loading_row, size=(2560, 1920), count=32, bar=1.5),
    "pruned": partial(speed_up_row, name="PyTorch", ready=for_inference),
    "onnxruntime": partial(
        speed_up_row, name="ONNX Runtime", ready=partial(exported, runtime=OnnxModel, package="onnxruntime")
    ),
    "openvino": partial(
        speed_up_row, name="OpenVINO", ready=partial(exported, runtime=OpenVinoModel, package="openvino")
    ),
    "openvino_round": partial(
        speed_up_row,
        name="channels in 16s, OpenVINO",
        ready=partial(exported, runtime=OpenVinoModel, package="openvino"),
        bar=0.85,
        round_to=16,
    ),
    "openvino_int8": int8_row,
}


if __name__ == "__main__":
    run(get_args_parser(), main)
