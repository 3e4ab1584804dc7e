"""Options that several programs share, and checks that model and data agree."""

import argparse
import re

from models import Darknet
from utils.cli import add_size_option, number
from utils.data.data_config import DataConfig
from utils.data.labels import LabelRules
from utils.detection.runtimes import ExportedModel
from utils.devices import PRECISIONS
from utils.errors import InputError
from utils.files import read_names
from utils.sizes import AnySize, Size
from utils.workers import MAX_WORKERS


def add_model_options(parser: argparse.ArgumentParser, weights_path: str, onnx: bool = True) -> None:
    """Add ``--weights_path``, ``--model_def`` and ``--img_size``; ``onnx``: the program reads exported files, too."""
    files = "a checkpoint" + (", or an .onnx, .ncnn.param or .engine file that export.py wrote" if onnx else "")
    parser.add_argument(
        "--weights_path",
        default=weights_path,
        help=f"{files}; a Darknet .weights file or a plain state dict needs --model_def",
    )
    parser.add_argument("--model_def", help="the network's cfg; default: the cfg in the weights file")
    add_size_option(parser, "size of the input in pixels, by default that in the weights file or else in its cfg")


def add_loading_options(parser: argparse._ActionsContainer, batch_size: int) -> None:
    """Add ``--batch_size`` and ``--n_cpu``."""
    parser.add_argument("--batch_size", type=number(int, 1), default=batch_size, help="images per batch")
    add_workers_option(parser)


def add_workers_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--n_cpu``, for :func:`utils.data.loader.loader`."""
    parser.add_argument(
        "--n_cpu",
        type=number(int, 0),
        help="worker processes that read images, per process of torchrun; 0: none; "
        f"default: its share of the cores, at most {MAX_WORKERS}",
    )


def add_threshold_options(parser: argparse._ActionsContainer, conf_thres: float, nms_thres: float) -> None:
    """Add ``--conf_thres`` and ``--nms_thres``."""
    unit = number(float, 0, 1)
    parser.add_argument("--conf_thres", type=unit, default=conf_thres, help="minimum score of a detection")
    parser.add_argument(
        "--nms_thres",
        type=unit,
        default=nms_thres,
        help="IoU above which the lower-scoring of two boxes of one class is dropped",
    )


def add_compile_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--compile``."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run torch.compile, which needs a C++ compiler and minutes at the start; forward passes are then faster",
    )


def add_rect_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--rect``."""
    parser.add_argument(
        "--rect",
        action="store_true",
        help="letterbox each image to the smallest rectangle within --img_size whose sides suit the network, which "
        "takes less time; images of one shape form a batch",
    )


def check_rect(model: Darknet | ExportedModel, rect: bool) -> None:
    """Raise an InputError if ``--rect`` is given for a file that takes images of one size only."""
    if rect and isinstance(model, ExportedModel) and model.fixed:
        raise InputError(f"--rect: {model.name} takes images of one size only; leave out --rect")


def add_check_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--skip_bad``, ``--strict`` and ``--labels_with_score``, for :func:`utils.data.check.check_data`."""
    parser.add_argument(
        "--skip_bad", action="store_true", help="leave out images that are missing, unreadable or wrongly labelled"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="a box that passes the border of the image or has no area is an error; it is clipped or dropped otherwise",
    )
    parser.add_argument(
        "--labels_with_score", action="store_true", help="label lines have a confidence behind the box; it is ignored"
    )


def label_rules(args: argparse.Namespace) -> LabelRules:
    """How label lines are read, by the options of :func:`add_check_options`."""
    return LabelRules(args.strict, args.labels_with_score)


def add_precision_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--precision``, for :func:`utils.devices.autocast`."""
    parser.add_argument("--precision", choices=PRECISIONS, help="of the layers; default: mixed on a GPU, full on a CPU")


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--device``, for :func:`utils.devices.pick_device`."""
    parser.add_argument(
        "--device",
        type=device_name,
        metavar="DEVICE",
        help="cuda, cuda:N (the GPU of that number), mps (Apple's) or cpu; default: a GPU if there is one, else cpu",
    )


def device_name(text: str) -> str:
    """An argparse ``type`` for ``--device``."""
    if not re.fullmatch(r"cuda(:\d+)?|mps|cpu", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: give cuda, cuda:N, mps or cpu")
    return text


def network_size(model: Darknet | ExportedModel, img_size: AnySize | None) -> Size:
    """The size of the input: ``img_size``, or the cfg's where that is None.

    Raises:
        InputError: a side is not a multiple of the network's coarsest stride.
    """
    size, stride = Size.of(model.spec.cfg_size if img_size is None else img_size), model.spec.stride
    fitting = size.rounded(stride)
    if size != fitting:
        raise InputError(f"an input of {size.pixels} is not a multiple of {stride}: {fitting} would be")
    return size


def check_batch_norm(model: Darknet, img_size: AnySize, batch_size: int) -> None:
    """Raise an InputError where training computes BatchNorm's statistics of a single value, which has no variance.

    Args:
        model: the network.
        img_size: of the images.
        batch_size: images per forward pass.
    """
    if batch_size > 1:
        return
    for layer in model.spec.at(img_size).convolutions:
        if layer.batch_normalize and layer.height * layer.width == 1:
            raise InputError(
                f"{layer.where}: with images of {Size.of(img_size).pixels} and one image per forward pass, BatchNorm "
                "has one value per channel to take statistics of: use a --batch_size of at least 2 per process"
            )


def check_classes(model: Darknet | ExportedModel, data: DataConfig) -> None:
    """Raise an InputError where the network's heads have another number of classes than the data set."""
    for head in model.spec.heads:
        if head.classes != data.classes:
            raise InputError(
                f"{head.where}: classes={head.classes}, but {data.path} has classes={data.classes}; "
                "config/create_cfg.py writes a cfg for any number of classes"
            )


def class_names(class_path: str | None, stored: list[str] | None, model: Darknet | ExportedModel) -> list[str]:
    """The names of the classes: from the file ``class_path``, else those ``stored`` with the weights, else numbers.

    Raises:
        InputError: there are more or fewer names than the network has classes.
    """
    classes = model.spec.heads[0].classes
    names = read_names(class_path) if class_path else stored or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise InputError(f"{class_path or 'the weights file'}: {len(names)} class names for {classes} classes")
    return names
