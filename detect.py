"""Detects objects on images, a video or a camera: writes them with boxes drawn, and the detections as JSON."""

import argparse
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.cli import ArgumentParser, output_file, run
from utils.data.images import Images, find_images, input_size, letterboxed
from utils.data.loader import batches_by_shape, loader
from utils.detection.detections_file import DetectionsFile
from utils.detection.detector import Detector, load_model
from utils.detection.inference import for_inference, on_device
from utils.detection.options import (
    add_compile_option,
    add_device_option,
    add_loading_options,
    add_model_options,
    add_rect_option,
    add_threshold_options,
    check_rect,
    class_names,
    network_size,
)
from utils.detection.video import AHEAD, open_video, video_writer
from utils.devices import device_of
from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, refuse_inputs, remove_leftovers
from utils.signals import Stopped, StopRequest

EXIT_WITH_ERRORS = 1
SHOWN_ERRORS = 10
PATIENCE = 3  # batches that may be read before an image of a rare shape leaves in a small batch; they take memory
NOTICE = "writing what is done; once more to quit at once"


def get_args_parser() -> argparse.ArgumentParser:
    """The options of detect.py."""
    parser = ArgumentParser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--image_folder", default="data/images", help="a folder, an image, or a glob in quotes")
    source.add_argument(
        "--video",
        metavar="SOURCE",
        help="a video, a folder of frames, or a camera (0, /dev/video0, rtsp://, http://), which Ctrl-C ends; "
        "always frame by frame",
    )
    add_model_options(parser, "checkpoints/yolov3_ckpt.pth")
    parser.add_argument("--class_path", help="file of class names, one per line; default: those in the weights file")
    add_threshold_options(parser, conf_thres=0.5, nms_thres=0.4)
    add_loading_options(parser, batch_size=1)
    add_rect_option(parser)
    add_compile_option(parser)
    add_device_option(parser)
    parser.add_argument("--output", default="output", help="folder for the images or the video, and detections.json")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="file for the detections; default: detections.json in --output"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Detect, draw, and write.

    Raises:
        Stopped: Ctrl-C or SIGTERM, before all images or frames were done; those that were are written.
        SystemExit: with status 1, where an image could not be read or a camera was given up.
    """
    model, metadata = load_model(args.weights_path, args.model_def, (args.conf_thres, args.nms_thres), args.device)
    check_rect(model, args.rect)
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    names = class_names(args.class_path, metadata.get("names"), model)
    ready = for_inference(on_device(model, args.device), args.compile)
    detector = Detector(ready, img_size, args.conf_thres, args.nms_thres, model.spec if args.rect else None)

    unit = "frames" if args.video else "images"
    json_path = Path(args.json) if args.json else Path(args.output) / "detections.json"
    run_on = detect_video if args.video else detect_images
    remove_leftovers(Path(args.output))
    start = time.perf_counter()
    with StopRequest(NOTICE) as stop, DetectionsFile(json_path, unit) as file:
        boxes, is_complete = run_on(detector, names, args, file, stop)
    count = len(file.results)
    print(f"{count} {unit}, {boxes} boxes, {count / (time.perf_counter() - start):.2f} {unit} per second")
    print(f"{args.output}: the {'video' if args.video else 'images'} with boxes\n{json_path}: the detections")
    if file.errors:
        report_errors(file.errors, json_path)
    if stop.received and not is_complete:
        raise Stopped(f"stopped by {stop.received.name}; the {unit} until then are written", stop.received)
    if file.errors:
        sys.exit(EXIT_WITH_ERRORS)


def report_errors(errors: Sequence[dict[str, str]], json_path: Path) -> None:
    """Print the first errors and their number."""
    for error in errors[:SHOWN_ERRORS]:
        where = error.get("video") or error["image"]
        reason = error["error"]
        print(f"error: {reason if reason.startswith(where) else f'{where}: {reason}'}", file=sys.stderr)
    print(f"{len(errors)} failed: {json_path} lists them under errors", file=sys.stderr)


def detect_images(
    detector: Detector, names: list[str], args: argparse.Namespace, file: DetectionsFile, stop: StopRequest
) -> tuple[int, bool]:
    """Write each image with its boxes, and its results to ``file``; return the number of boxes, and whether all went.

    Images that cannot be read are left out, and are errors of ``file``.
    """
    output, paths, boxes = Path(args.output), find_images(args.image_folder), 0
    pending: deque[tuple[dict[str, Any], Future]] = deque()
    targets = [output / name for name in output_names(paths)]
    refuse_inputs(paths, [*targets, file.path])

    def finish(most: int) -> None:
        while len(pending) > most:
            record, written = pending.popleft()
            written.result()
            file.add(record)

    with ThreadPoolExecutor() as pool:  # draws and encodes while the network detects
        for position, image, detections in detect(detector, paths, args, stop, file):
            files = {"image": str(paths[position]), "output": str(targets[position])}
            record = files | {"detections": describe(detections, names)}
            boxes += len(detections)
            pending.append((record, pool.submit(write_image, targets[position], image, detections, names)))
            finish(most=AHEAD)
        finish(most=0)
    return boxes, len(file.results) + len(file.errors) == len(paths)


def write_image(target: Path, image: Image.Image, detections: Tensor, names: list[str]) -> None:
    """Write an image with its boxes."""
    drawn = draw_detections(image, detections, names)
    with atomic_writer(target) as file:
        drawn.save(file, format="PNG" if target.suffix == ".png" else "JPEG", quality=92)


class ReadableImages(Dataset):
    """The items of ``images``; in place of an image that cannot be read, the reason."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Image.Image] | str:
        try:
            return self.images[index]
        except InputError as error:
            return str(error)


def detect(
    detector: Detector, paths: Sequence[Path], args: argparse.Namespace, stop: StopRequest, file: DetectionsFile
) -> Iterator[tuple[int, Image.Image, Tensor]]:
    """The number of an image, the image, and the detections (D, 6) in its pixels, one image after another."""
    images = ReadableImages(Images(paths, detector.img_size, detector.rectangles))
    chunks = loader(images, args.batch_size, args.n_cpu, collate_fn=list, device=device_of(detector.model))
    begun: deque[int] = deque()  # the numbers of the images that are read and not yet passed on
    done: dict[int, tuple[Image.Image, Tensor]] = {}

    def read() -> Iterator[tuple[int, Tensor, Image.Image]]:
        for position, item in enumerate(itertools.chain.from_iterable(chunks)):
            if stop.received:
                return
            bar.update()
            if isinstance(item, str):
                file.fail({"image": str(paths[position]), "error": item})
            else:
                begun.append(position)
                yield position, *item

    with tqdm(total=len(paths), desc="detecting", unit="image", leave=False) as bar:
        patience = PATIENCE * args.batch_size
        for batch in batches_by_shape(read(), lambda item: item[1].shape, args.batch_size, patience):
            positions, inputs, originals = zip(*batch, strict=True)
            done |= zip(positions, zip(originals, detector(inputs, originals), strict=True), strict=True)
            while begun and begun[0] in done:
                position = begun.popleft()
                yield position, *done.pop(position)


def output_names(paths: Sequence[Path]) -> list[str]:
    """The file names of the images with boxes: the inputs', with a number in front if a name is taken."""
    taken: set[str] = set()
    names = []
    for position, path in enumerate(paths):
        stems = itertools.chain([path.stem], (f"{n:05d}_{path.stem}" for n in itertools.count(position)))
        stem = next(
            stem for stem in stems if stem.lower() not in taken
        )  # on some file systems a.jpg and A.jpg are one file
        taken.add(stem.lower())
        names.append(stem + (".png" if path.suffix.lower() == ".png" else ".jpg"))
    return names


def detect_video(
    detector: Detector, names: list[str], args: argparse.Namespace, file: DetectionsFile, stop: StopRequest
) -> tuple[int, bool]:
    """Write the video with its boxes, and each frame's results to ``file``; return the number of boxes, and whether
    all frames went, which those of a camera do when it is stopped.

    Other threads decode, draw and encode, so that none of that delays the network.
    """
    video = open_video(args.video)
    target = Path(args.output) / f"{video.name}.mp4"
    refuse_inputs([Path(args.video)], [target, file.path])
    pending: deque[Future] = deque()
    boxes = 0
    with video_writer(target, video.fps, video.size) as write, ThreadPoolExecutor(1) as pool:
        for number, frame in tqdm(video.frames(lambda: stop.received is not None), "detecting", leave=False):
            size = input_size(frame.width, frame.height, detector.img_size, detector.rectangles)
            (detections,) = detector([letterboxed(frame, size)], [frame])
            file.add({"frame": number, "detections": describe(detections, names)})
            boxes += len(detections)
            pending.append(pool.submit(draw_frame, write, number, frame, detections, names))
            if len(pending) > AHEAD:
                pending.popleft().result()
        for drawn in pending:
            drawn.result()
        if not file.results:
            reason = "; ".join(error["error"] for error in video.errors) or "no frame can be read"
            raise InputError(f"--video {video.label}: {reason}")
    for error in video.errors:
        file.fail(error)
    if video.camera:
        print(f"{video.camera.dropped} frames were dropped for newer ones, {video.camera.outages} outages")
    return boxes, video.camera is not None or stop.received is None


def draw_frame(
    write: Callable[[int, Image.Image], None], number: int, frame: Image.Image, detections: Tensor, names: list[str]
) -> None:
    """Append a frame with its boxes to a video."""
    write(number, draw_detections(frame, detections, names))


def describe(detections: Tensor, names: list[str]) -> list[dict]:
    """Detections (D, 6) as plain values: x1, y1, x2, y2 in pixels, score, class."""
    return [
        {"box": [round(value, 2) for value in box], "score": round(score, 4), "class": names[int(label)]}
        for *box, score, label in detections.tolist()
    ]


if __name__ == "__main__":
    run(get_args_parser(), main)
