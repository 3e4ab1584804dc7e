"""Detects on images, a video or a camera: draws the boxes, and writes the result and a JSON of the detections."""

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

from utils.cli import ArgumentParser, number, run
from utils.data.images import Images, find_images, to_square
from utils.data.loader import loader
from utils.detection.detector import Detector, load_model
from utils.detection.inference import for_inference
from utils.detection.options import add_compile_option, add_threshold_options, class_names, network_size
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
    source.add_argument("--video", metavar="FILE", help="a video, or the number of a camera, which Ctrl-C ends")
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg; not for .onnx")
    parser.add_argument(
        "--weights_path", default="checkpoints/yolov3_ckpt.pth", help="checkpoint, Darknet .weights, or .onnx"
    )
    parser.add_argument("--class_path", help="file of class names; default: those in the checkpoint")
    add_threshold_options(parser, conf_thres=0.5, nms_thres=0.4)
    parser.add_argument(
        "--batch_size", type=number(int, 1), default=1, help="images at a time; a video goes one by one"
    )
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="worker processes that read images")
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the model's if not given")
    add_compile_option(parser)
    parser.add_argument("--output", default="output", help="folder for the images or the video, and detections.json")
    parser.add_argument("--json", metavar="FILE", help="write the detections there instead")
    return parser


def main(args: argparse.Namespace) -> None:
    """Detect, draw, and write."""
    model, about = load_model(args.model_def, args.weights_path, (args.conf_thres, args.nms_thres))
    img_size = network_size(model, args.img_size or about.get("img_size"))
    names = class_names(args.class_path, about.get("names"), model)
    detector = Detector(for_inference(model.to(pick_device()), args.compile), img_size, args.conf_thres, args.nms_thres)

    start = time.perf_counter()
    results = detect_video(detector, names, args) if args.video else detect_images(detector, names, args)
    seconds = time.perf_counter() - start
    json_path = Path(args.json) if args.json else Path(args.output) / "detections.json"
    write_json(json_path, results)
    boxes = sum(len(result["detections"]) for result in results)
    what = "frames" if args.video else "images"
    print(f"{len(results)} {what}, {boxes} boxes, {len(results) / seconds:.1f} {what} per second")
    print(f"{args.output}: the {'video' if args.video else 'images'} with boxes\n{json_path}: the detections")


def detect_images(detector: Detector, names: list[str], args: argparse.Namespace) -> list[dict]:
    """Write each image with its boxes; return what was found."""
    output, paths, results, waiting = Path(args.output), find_images(args.image_folder), [], deque()
    targets = [output / name for name in output_names(paths)]
    keep_inputs(paths, targets)
    with ThreadPoolExecutor() as pool:  # drawing and encoding, beside the network
        for path, image, found in detections(detector, paths, args):
            target = targets[len(results)]
            results.append({"image": str(path), "output": str(target), "detections": describe(found, names)})
            waiting.append(pool.submit(write_image, target, image, found, names))
            if len(waiting) > AHEAD:
                waiting.popleft().result()
        for written in waiting:
            written.result()
    return results


def keep_inputs(inputs: Sequence[Path], targets: Sequence[Path]) -> None:
    """Refuse to write over any of the inputs."""
    own = {path.resolve() for path in inputs}
    if lost := next((target for target in targets if target.resolve() in own), None):
        raise InputError(f"--output {lost.parent}: would overwrite {lost}, which is an input; give another folder")


def write_image(target: Path, image: Image.Image, found: Tensor, names: list[str]) -> None:
    """Write an image with its boxes."""
    drawn = draw_detections(image, found, names)
    with atomic_writer(target) as file:
        drawn.save(file, format="PNG" if target.suffix == ".png" else "JPEG", quality=92)


def detections(
    detector: Detector, paths: Sequence[Path], args: argparse.Namespace
) -> Iterator[tuple[Path, Image.Image, Tensor]]:
    """Path, image, and detections (D, 6) in pixels of the image, one image after another."""
    batches = loader(Images(paths, detector.img_size), args.batch_size, args.n_cpu, collate_fn=list)
    remaining = iter(paths)
    with tqdm(total=len(paths), desc="detecting", unit="image", leave=False) as bar:
        for items in batches:
            squares, images = zip(*items, strict=True)
            for image, boxes in zip(images, detector(squares, images), strict=True):
                yield next(remaining), image, boxes
            bar.update(len(items))


def output_names(paths: Sequence[Path]) -> list[str]:
    """The names of the drawn images: the inputs', with a number in front where an earlier one is called so."""
    taken: set[str] = set()
    names = []
    for position, path in enumerate(paths):
        stems = itertools.chain([path.stem], (f"{n:05d}_{path.stem}" for n in itertools.count(position)))
        stem = next(stem for stem in stems if stem.lower() not in taken)  # for some file systems a.jpg is A.jpg
        taken.add(stem.lower())
        names.append(stem + (".png" if path.suffix.lower() == ".png" else ".jpg"))
    return names


def detect_video(detector: Detector, names: list[str], args: argparse.Namespace) -> list[dict]:
    """Write the video with its boxes; return what was found in each frame.

    Other threads decode, and draw and encode, so that the network sets the pace.
    """
    video = Video(args.video)
    target = Path(args.output) / (f"camera{args.video}.mp4" if video.live else f"{Path(args.video).stem}.mp4")
    keep_inputs([Path(args.video)], [target])
    results, waiting = [], deque()
    with video_writer(target, video.fps, video.size) as write, ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(KeyboardInterrupt) if video.live else contextlib.nullcontext():
            for number, frame in tqdm(video, "detecting", unit="frame", leave=False):
                (found,) = detector([to_square(frame, detector.img_size)], [frame])
                results.append({"frame": number, "detections": describe(found, names)})
                waiting.append(pool.submit(draw_frame, write, number, frame, found, names))
                if len(waiting) > AHEAD:
                    waiting.popleft().result()
        for drawn in waiting:
            drawn.result()
        if not results:
            raise InputError(f"--video {args.video}: no frame of it can be read")
    return results


def draw_frame(
    write: Callable[[int, Image.Image], None], number: int, frame: Image.Image, found: Tensor, names: list[str]
) -> None:
    """Append a frame with its boxes to a video."""
    write(number, draw_detections(frame, found, names))


def describe(found: Tensor, names: list[str]) -> list[dict]:
    """Detections (D, 6) as plain values: x1, y1, x2, y2 in pixels, score, class."""
    return [
        {"box": [round(value, 2) for value in box], "score": round(score, 4), "class": names[int(label)]}
        for *box, score, label in found.tolist()
    ]


if __name__ == "__main__":
    run(get_args_parser(), main)
