"""Rows on detection: NMS, test.py, detect.py, and what pruning gives in the runtimes."""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from models import Darknet
from studies.bench.scenes import CONF_THRES, FULL, PASSING, PRUNED, SIZE, calibrated, labelled, write_clip, write_images
from studies.bench.table import Precision, Row
from studies.drawn_scenes import drawn_precision
from utils.boxes import non_max_suppression
from utils.darknet.cfg import Block, read_cfg
from utils.data.images import to_device
from utils.data.loader import loader
from utils.detection.checkpoints import save_checkpoint
from utils.detection.evaluate import evaluate
from utils.detection.inference import for_inference
from utils.detection.runtimes import OpenVinoModel
from utils.devices import pick_device
from utils.errors import InputError
from utils.export.onnx import export_onnx
from utils.export.quantization import FORMS, quantize
from utils.optional import optional
from utils.timing import Timing, forward_times, time_in_turns

NMS_THRES = 0.5


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


def test_row(args: argparse.Namespace) -> list[Row]:
    """test.py, from image files to mAP, against the forward passes alone, in images per second at the same batch."""
    device, batch_size = pick_device(args.device), 8
    with tempfile.TemporaryDirectory() as folder:
        dataset = labelled(write_images(Path(folder), args.images), SIZE)
        images = to_device(torch.stack([dataset[number][0] for number in range(batch_size)]), device)
        model = for_inference(calibrated(Darknet(PRUNED).to(device), images, PASSING))
        batches = loader(dataset, batch_size, args.n_cpu, device=device)
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
    program = Path(__file__).resolve().parents[2] / "detect.py"
    ended = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)
    speed = re.search(r"([\d.]+) frames per second", ended.stdout)
    if not speed:
        raise InputError(f"{program}: {ended.stderr.strip()}")
    return float(speed.group(1))


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
