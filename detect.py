"""Detects objects on images, a video or a camera: writes them with boxes drawn, and the detections as JSON."""

import argparse
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.cli import ArgumentParser, run
from utils.data.images import Images, find_images, to_square
from utils.data.loader import loader
from utils.detection.detector import Detector, load_model
from utils.detection.inference import for_inference
from utils.detection.options import (
    add_compile_option,
    add_loading_options,
    add_model_options,
    add_threshold_options,
    class_names,
    network_size,
)
from utils.detection.video import AHEAD, Video, video_writer
from utils.devices import pick_device
from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, write_json


def get_args_parser() -> argparse.ArgumentParser:
    """The options of detect.py."""
    parser = ArgumentParser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--image_folder", default="data/images", help="a folder, an image, or a glob in quotes")
    source.add_argument(
        "--video", metavar="FILE", help="a video, or the number of a camera, which Ctrl-C ends; always frame by frame"
    )
    add_model_options(parser, "checkpoints/yolov3_ckpt.pth")
    parser.add_argument("--class_path", help="file of class names, one per line; default: those in the weights file")
    add_threshold_options(parser, conf_thres=0.5, nms_thres=0.4)
    add_loading_options(parser, batch_size=1)
    add_compile_option(parser)
    parser.add_argument("--output", default="output", help="folder for the images or the video, and detections.json")
    parser.add_argument("--json", metavar="FILE", help="file for the detections; default: detections.json in --output")
    return parser


def main(args: argparse.Namespace) -> None:
    """Detect, draw, and write."""
    model, metadata = load_model(args.weights_path, args.model_def, (args.conf_thres, args.nms_thres))
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    names = class_names(args.class_path, metadata.get("names"), model)
    detector = Detector(for_inference(model.to(pick_device()), args.compile), img_size, args.conf_thres, args.nms_thres)

    start = time.perf_counter()
    results = detect_video(detector, names, args) if args.video else detect_images(detector, names, args)
    seconds = time.perf_counter() - start
    json_path = Path(args.json) if args.json else Path(args.output) / "detections.json"
    write_json(json_path, results)
    boxes = sum(len(result["detections"]) for result in results)
    unit = "frames" if args.video else "images"
    print(f"{len(results)} {unit}, {boxes} boxes, {len(results) / seconds:.1f} {unit} per second")
    print(f"{args.output}: the {'video' if args.video else 'images'} with boxes\n{json_path}: the detections")


def detect_images(detector: Detector, names: list[str], args: argparse.Namespace) -> list[dict]:
    """Write each image with its boxes; return the results for the JSON file."""
    output, paths, results, pending = Path(args.output), find_images(args.image_folder), [], deque()
    targets = [output / name for name in output_names(paths)]
    refuse_inputs(paths, targets)
    with ThreadPoolExecutor() as pool:  # draws and encodes while the network detects
        for path, image, detections in detect(detector, paths, args):
            target = targets[len(results)]
            results.append({"image": str(path), "output": str(target), "detections": describe(detections, names)})
            pending.append(pool.submit(write_image, target, image, detections, names))
            if len(pending) > AHEAD:
                pending.popleft().result()
        for written in pending:
            written.result()
    return results


def refuse_inputs(inputs: Sequence[Path], targets: Sequence[Path]) -> None:
    """Raise an InputError if a file to be written is one of the inputs."""
    resolved = {path.resolve() for path in inputs}
    if lost := next((target for target in targets if target.resolve() in resolved), None):
        raise InputError(f"--output {lost.parent}: would overwrite {lost}, which is an input; give another folder")


def write_image(target: Path, image: Image.Image, detections: Tensor, names: list[str]) -> None:
    """Write an image with its boxes."""
    drawn = draw_detections(image, detections, names)
    with atomic_writer(target) as file:
        drawn.save(file, format="PNG" if target.suffix == ".png" else "JPEG", quality=92)


def detect(
    detector: Detector, paths: Sequence[Path], args: argparse.Namespace
) -> Iterator[tuple[Path, Image.Image, Tensor]]:
    """The path, the image, and the detections (D, 6) in its pixels, one image after another."""
    batches = loader(Images(paths, detector.img_size), args.batch_size, args.n_cpu, collate_fn=list)
    remaining = iter(paths)
    with tqdm(total=len(paths), desc="detecting", unit="image", leave=False) as bar:
        for items in batches:
            squares, images = zip(*items, strict=True)
            for image, boxes in zip(images, detector(squares, images), strict=True):
                yield next(remaining), image, boxes
            bar.update(len(items))


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


def detect_video(detector: Detector, names: list[str], args: argparse.Namespace) -> list[dict]:
    """Write the video with its boxes; return the results of each frame for the JSON file.

    Other threads decode, draw and encode, so that none of that delays the network.
    """
    video = Video(args.video)
    target = Path(args.output) / (f"camera{args.video}.mp4" if video.live else f"{Path(args.video).stem}.mp4")
    refuse_inputs([Path(args.video)], [target])
    results, pending = [], deque()
    with video_writer(target, video.fps, video.size) as write, ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(KeyboardInterrupt) if video.live else contextlib.nullcontext():
            for number, frame in tqdm(video, "detecting", unit="frame", leave=False):
                (detections,) = detector([to_square(frame, detector.img_size)], [frame])
                results.append({"frame": number, "detections": describe(detections, names)})
                pending.append(pool.submit(draw_frame, write, number, frame, detections, names))
                if len(pending) > AHEAD:
                    pending.popleft().result()
        for drawn in pending:
            drawn.result()
        if not results:
            raise InputError(f"--video {args.video}: no frame can be read")
    return results


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
