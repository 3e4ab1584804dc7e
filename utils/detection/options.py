"""Options that several programs share, and what must agree between them."""

import argparse

from models import Darknet
from utils.cli import number
from utils.data.data_config import DataConfig
from utils.devices import PRECISIONS
from utils.errors import InputError
from utils.files import read_names


def add_threshold_options(parser: argparse.ArgumentParser, conf_thres: float, nms_thres: float) -> None:
    """Add ``--conf_thres`` and ``--nms_thres``."""
    unit = number(float, 0, 1)
    parser.add_argument("--conf_thres", type=unit, default=conf_thres, help="the least score of a detection")
    parser.add_argument(
        "--nms_thres",
        type=unit,
        default=nms_thres,
        help="IoU above which the weaker of two boxes of a class is dropped",
    )


def add_compile_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--compile``."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile: minutes at the start, then faster passes; needs a compiler",
    )


def add_skip_bad_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--skip_bad``, for :func:`utils.data.check.check_data`."""
    parser.add_argument(
        "--skip_bad", action="store_true", help="leave out images that are missing, unreadable or wrongly labelled"
    )


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision``, for :func:`utils.devices.autocast`."""
    parser.add_argument("--precision", choices=PRECISIONS, help="of the layers; default: mixed on a GPU, full on a CPU")


def network_size(model: Darknet, img_size: int | None) -> int:
    """The side in pixels of the square to feed: ``img_size`` or the cfg's own.

    Raises:
        InputError: it is not a multiple of the network's coarsest stride, or the cfg's own size is no square.
    """
    spec = model.spec
    if img_size is None:
        if spec.height != spec.width:
            raise InputError(
                f"the cfg's input is {spec.width}x{spec.height}, but images are letterboxed to a square: "
                "give --img_size"
            )
        img_size = spec.height
    stride = spec.stride
    if img_size % stride:
        nearest = max(round(img_size / stride), 1) * stride
        raise InputError(f"an input of {img_size} pixels is not a multiple of {stride}: {nearest} would be")
    return img_size


def check_classes(model: Darknet, data: DataConfig) -> None:
    """Refuse a network whose heads have another number of classes than the data set."""
    for head in model.spec.heads:
        if head.classes != data.classes:
            raise InputError(
                f"{head.where}: classes={head.classes}, but {data.path} has classes={data.classes}; "
                "config/create_cfg.py writes a cfg for any number of classes"
            )


def class_names(class_path: str | None, stored: list[str] | None, model: Darknet) -> list[str]:
    """The names of the classes: from a file, else from the checkpoint, else their numbers.

    Raises:
        InputError: the file names another number of classes than the network has.
    """
    classes = model.spec.heads[0].classes
    names = read_names(class_path) if class_path else stored or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise InputError(f"{class_path or 'the checkpoint'}: {len(names)} class names for {classes} classes")
    return names
