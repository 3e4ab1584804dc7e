"""Detects on pictures: draws the boxes, and writes pictures and a JSON of the detections."""

import argparse
import glob
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from models import Darknet
from utils.augmentations import letterbox
from utils.boxes import Letterbox, non_max_suppression
from utils.checkpoints import load_weights
from utils.cli import ArgumentParser, number, run
from utils.datasets import loader, read_image, read_names, to_device
from utils.devices import pick_device
from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, write_json
from utils.options import add_threshold_options, network_size

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def get_args_parser() -> argparse.ArgumentParser:
    """The options of detect.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--image_folder", default="data/samples", help="a folder, a picture, or a glob in quotes")
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    parser.add_argument("--weights_path", default="checkpoints/yolov3_ckpt.pth", help="checkpoint or Darknet .weights")
    parser.add_argument("--class_path", help="file of class names; default: those in the checkpoint")
    add_threshold_options(parser, conf_thres=0.5, nms_thres=0.4)
    parser.add_argument("--batch_size", type=number(int, 1), default=1, help="pictures at a time")
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="worker processes that read pictures")
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the model's if not given")
    parser.add_argument("--output", default="output", help="folder for the pictures and detections.json")
    parser.add_argument("--json", metavar="FILE", help="write the detections there instead")
    return parser


class Pictures(Dataset):
    """Pictures letterboxed to a square, with their own size."""

    def __init__(self, paths: Sequence[Path], img_size: int):
        self.paths = paths
        self.img_size = img_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Image.Image]:
        """The square (3, S, S) uint8, and the picture as it is."""
        image = read_image(self.paths[index])
        square, _ = letterbox((image, torch.zeros(0, 5).numpy()), self.img_size)
        return torch.from_numpy(square).permute(2, 0, 1), image


def main(args: argparse.Namespace) -> None:
    """Detect, draw, and write."""
    paths = find_pictures(args.image_folder)
    model = Darknet(args.model_def)
    about = load_weights(model, args.weights_path)
    img_size = network_size(model, args.img_size or about.get("img_size"))
    names = class_names(args.class_path, about.get("names"), model)
    model.to(pick_device()).eval()

    output = Path(args.output)
    results = []
    start = time.perf_counter()
    for path, image, found in detections(model, paths, img_size, args):
        target = output / output_name(path, len(results), paths)
        drawn = draw_detections(image, found, names)
        with atomic_writer(target) as file:
            drawn.save(file, format="PNG" if target.suffix == ".png" else "JPEG", quality=92)
        results.append({"image": str(path), "output": str(target), "detections": describe(found, names)})
    seconds = time.perf_counter() - start
    json_path = Path(args.json) if args.json else output / "detections.json"
    write_json(json_path, results)
    boxes = sum(len(result["detections"]) for result in results)
    print(f"{len(paths)} pictures, {boxes} boxes, {len(paths) / seconds:.1f} pictures per second")
    print(f"{output}: the pictures with boxes\n{json_path}: the detections")


def find_pictures(where: str) -> list[Path]:
    """The pictures of a folder, of a glob, or one picture, by name.

    Raises:
        InputError: there are none.
    """
    path = Path(where)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(where, recursive=True))
    pictures = sorted(p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not pictures:
        raise InputError(f"--image_folder {where}: no picture there")
    return pictures


def class_names(class_path: str | None, stored: list[str] | None, model: Darknet) -> list[str]:
    """The names of the classes: from a file, else from the checkpoint, else their numbers."""
    classes = model.network.heads[0].classes
    names = read_names(class_path) if class_path else stored or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise InputError(f"{class_path or 'the checkpoint'}: {len(names)} class names for {classes} classes")
    return names


def detections(
    model: Darknet, paths: Sequence[Path], img_size: int, args: argparse.Namespace
) -> Iterator[tuple[Path, Image.Image, Tensor]]:
    """Path, picture, and detections (D, 6) in pixels of the picture, one picture after another."""
    device = next(model.parameters()).device
    batches = loader(Pictures(paths, img_size), args.batch_size, args.n_cpu, collate_fn=list)
    remaining = iter(paths)
    with torch.inference_mode(), tqdm(total=len(paths), desc="detecting", unit="picture", leave=False) as bar:
        for items in batches:
            squares = torch.stack([square for square, _ in items])
            found = non_max_suppression(model(to_device(squares, device)), args.conf_thres, args.nms_thres)
            for (_, image), boxes in zip(items, found, strict=True):
                boxes = boxes.cpu()
                place = Letterbox.fit(image.width, image.height, img_size)
                boxes[:, :4] = place.to_picture(boxes[:, :4], image.width, image.height)
                yield next(remaining), image, boxes
            bar.update(len(items))


def output_name(path: Path, position: int, paths: Sequence[Path]) -> str:
    """The name of the drawn picture: the input's, with its number in front where two inputs share a name."""
    suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
    shared = sum(other.stem.lower() == path.stem.lower() for other in paths) > 1
    return (f"{position:05d}_" if shared else "") + path.stem + suffix


def describe(found: Tensor, names: list[str]) -> list[dict]:
    """Detections (D, 6) as plain values: x1, y1, x2, y2 in pixels, score, class."""
    return [
        {"box": [round(value, 2) for value in box], "score": round(score, 4), "class": names[int(label)]}
        for *box, score, label in found.tolist()
    ]


if __name__ == "__main__":
    run(get_args_parser(), main)
