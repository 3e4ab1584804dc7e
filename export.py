"""Converts a model to Darknet weights, a checkpoint, ONNX (float or 8 bits), ncnn or TensorRT; or compares runtimes.

python export.py --weights_path checkpoints/prune_yolov3_ckpt.pth --to onnx
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Darknet
from utils.cli import ArgumentParser, number, output_file, run
from utils.darknet.cfg import format_cfg
from utils.darknet.weights import write_darknet_weights
from utils.data.check import check_data
from utils.data.data_config import read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.images import batches_of_one, find_images, readable, spread
from utils.detection.checkpoints import load_darknet, write_checkpoint
from utils.detection.description import describe
from utils.detection.evaluate import evaluate, validation_batches
from utils.detection.fusing import fuse
from utils.detection.options import (
    add_check_options,
    add_loading_options,
    add_model_options,
    add_threshold_options,
    class_names,
    label_rules,
    network_size,
)
from utils.detection.runtimes import OnnxModel, OpenVinoModel
from utils.devices import require_gpu
from utils.errors import InputError
from utils.export.comparison import MIN_SCORE, differences, runtime_row, runtimes_table, without_infinities
from utils.export.deployment import deployments
from utils.export.ncnn import NcnnQuantizer, export_ncnn, load_contents, require_tools
from utils.export.onnx import HALF_TOLERANCE, TOLERANCE, add_suppression, export_onnx, prove, prove_predictions
from utils.export.quantization import FORMS, SENSITIVITY_IMAGES, quantize, quantize_within, sensitivities
from utils.export.tensorrt import build_engine, input_shapes, load_engine, require_tensorrt
from utils.files import atomic_writer, keep_old, refuse_folder, refuse_inputs, write_json, write_text
from utils.kept_rows import KeptRows, measured_network
from utils.optional import optional
from utils.pruning import graph_timer
from utils.pruning.latency_graphs import table_graphs
from utils.pruning.proof import proof_images
from utils.sizes import Size
from utils.timing import forward_times

if TYPE_CHECKING:
    from onnx import ModelProto

Built = TypeVar("Built")

# Of the file in each format of --to. An ncnn model has two more files, an engine one, see utils/detection.
SUFFIXES = {"weights": ".weights", "pth": ".pth", "onnx": ".onnx", "ncnn": ".param", "engine": ".engine"}
# What writes and proves them, beside TensorRT's.
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "ncnn": ("pnnx", "ncnn")}
# What a checkpoint says about where it comes from, which does not change with its format.
HISTORY = (
    *("epoch", "step", "best_map", "options", "strategy"),
    *("pruned", "before_cut", "before_cut_digest"),
)
# Options that only some formats have.
ALLOWED = {
    "fuse": ("weights", "pth", "onnx"),
    "static_size": ("onnx",),
    "nms": ("onnx",),
    "fp16": ("onnx", "ncnn", "engine"),
    "int8": ("onnx", "ncnn", "engine"),
    "max_map_drop": ("onnx", "ncnn", "engine"),
}
# Options that do something only beside one of these.
BESIDE = {
    "output": ("to",),
    "conf_thres": ("nms",),
    "nms_thres": ("nms",),
    "max_map_drop": ("int8",),
    "image_folder": ("check",),
    "json": ("check",),
    **dict.fromkeys(("data_config", "calibration", "skip_bad", "strict", "labels_with_score"), ("check", "int8")),
    "batch_size": ("check", "max_map_drop", "to engine"),
}


@dataclass(frozen=True)
class Int8Data:
    """What a network in 8 bits is made from.

    Attributes:
        images: calibration images (1, 3, H, W) in [0, 1].
        validation: for --max_map_drop batches of validation images and the names of their classes; else None.
    """

    images: list[Tensor]
    validation: tuple[DataLoader, list[str]] | None


def get_args_parser() -> argparse.ArgumentParser:
    """The options of export.py."""
    parser = ArgumentParser(__doc__.splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--to", choices=tuple(SUFFIXES), help="the format to write")
    task.add_argument("--check", action="store_true", help="compare all runtimes on images, and write no model")
    task.add_argument(
        "--latency_table",
        metavar="FOLDER",
        help="write a program and its graphs to this folder, which measure a table of latencies on another device, for "
        "test_prune.py --latency_table",
    )
    add_model_options(parser, "checkpoints/prune_yolov3_ckpt.pth", onnx=False)
    parser.add_argument("--class_path", help="file of class names, one per line; default: those in the checkpoint")
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="weights, pth, ONNX: fold BatchNorm into the convolutions, e.g. for OpenCV, whose epsilon differs; also "
        "writes a cfg",
    )
    parser.add_argument("--output", help="the file to write; default: the weights' name with the suffix of the format")

    onnx = parser.add_argument_group("ONNX, ncnn and TensorRT")
    onnx.add_argument(
        "--static_size", action="store_true", help="accept only images of --img_size; the batch size stays free"
    )
    onnx.add_argument("--nms", action="store_true", help="put non-maximum suppression into the graph")
    onnx.add_argument(
        "--fp16",
        action="store_true",
        help="16-bit floats; with --to ncnn those of the file, with --to engine always",
    )
    add_threshold_options(onnx, conf_thres=0.5, nms_thres=0.4)
    onnx.add_argument(
        "--int8",
        nargs="?",
        const="onnxruntime",
        choices=tuple(FORMS),
        help="8-bit integers, calibrated on training images of --data_config; with --to onnx in the form for this "
        "runtime, by default onnxruntime",
    )
    onnx.add_argument(
        "--max_map_drop",
        type=number(float, 0, 1),
        help="with --int8: leave the most sensitive layers in float, until mAP@0.5 on the validation images of "
        "--data_config is at most this below that in float; default: all layers in 8 bits, without a bound",
    )
    onnx.add_argument("--calibration", type=number(int, 1), default=100, help="number of images to calibrate on")

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_config", help="a data set's .data or .yaml file, for calibration and for mAP in the check"
    )
    data.add_argument(
        "--image_folder", default="data/images", help="images of the check: a folder, an image, or a glob in quotes"
    )
    add_loading_options(data, batch_size=8)
    add_check_options(data)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the check's results to this file")
    return parser


def main(args: argparse.Namespace) -> None:
    """Load the model, then convert or check it."""
    model, metadata = load_darknet(args.weights_path, args.model_def)
    model.eval()
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    names = class_names(args.class_path, metadata.get("names"), model)
    refuse_options(args)
    if args.check:
        check(model, names, img_size, args)
    elif args.latency_table is not None:
        write_latency_script(model, img_size, Path(args.latency_table))
    else:
        convert(model, names, img_size, metadata, args)


def write_latency_script(model: Darknet, img_size: Size, folder: Path) -> None:
    """Write what measures a table of latencies on another device, with nothing but numpy and the runtime."""
    graphs = table_graphs(model.spec.at(img_size))
    for source in Path(graph_timer.__file__).parent.glob("*.py"):
        write_text(folder / "graph_timer" / source.name, source.read_text(encoding="utf-8"))
    write_text(folder / "graphs.json", json.dumps(graphs))
    print(
        f"{folder}: {len(graphs)} graphs; on the device, in it: python -m graph_timer --runtime RUNTIME --threads 1; "
        "then here: test_prune.py --latency_table latency.csv"
    )


def refuse_options(args: argparse.Namespace) -> None:
    """Raise an InputError for options that do nothing with the others."""
    for option, formats in ALLOWED.items():
        if option in args.given and args.to not in formats:
            raise InputError(f"--{option}: only for --to {' or '.join(formats)}")
    if args.int8 in {"ncnn": ("openvino", "tensorrt"), "engine": ("openvino",)}.get(args.to, ()):
        raise InputError(f"--int8 {args.int8}: a form of ONNX files; with --to {args.to} give --int8 alone")
    if args.fp16 and args.int8 and args.to != "engine":
        raise InputError("--fp16 and --int8 exclude each other; in the form of --int8 tensorrt the rest is in float16")
    for option, others in BESIDE.items():
        if option in args.given and not {*args.given, f"to {args.to}"}.intersection(others):
            raise InputError(f"--{option}: only with {' or '.join(f'--{other}' for other in others)}")
    if args.fuse and args.output and Path(args.output).suffix == ".cfg":
        raise InputError(f"--output {args.output}: --fuse writes a cfg beside this file: give it another suffix")


def convert(
    model: Darknet, names: list[str], img_size: Size, metadata: dict[str, Any], args: argparse.Namespace
) -> None:
    """Write the model in the format of --to; a file of that name is kept under a numbered name."""
    target = output_path(args)
    refuse_folder(target)
    if target.resolve() == Path(args.weights_path).resolve():
        raise InputError(f"--output {target} is the file to read: choose another name")
    if args.fuse:
        model = fuse(model)
    require_runtime(img_size, args)
    kept = {name: metadata[name] for name in HISTORY if name in metadata}
    data = int8_data(model, img_size, args) if args.int8 else None  # what is wrong there shows before the work
    if args.to in ("ncnn", "engine"):
        make = ncnn_contents if args.to == "ncnn" else engine_contents
        contents = make(model, names, img_size, data, args)
        # The file by which the model is named comes last.
        for suffix in sorted(contents, key=lambda suffix: suffix == SUFFIXES[args.to]):
            save(target.with_suffix(suffix), partial(write_content, content=contents[suffix]))
        return
    write = {
        "weights": lambda file: write_darknet_weights(model, file),
        "pth": lambda file: write_checkpoint(file, model, **kept, names=names, img_size=img_size.plain),
        "onnx": lambda file: write_onnx(file, model, names, img_size, data, args),
    }
    save(target, write[args.to])
    if args.fuse:
        save(target.with_suffix(".cfg"), lambda file: file.write(format_cfg(model.spec.blocks).encode()))


def write_content(file: BinaryIO, content: bytes) -> None:
    """Write ``content`` to a file."""
    file.write(content)


def save(target: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically, keep the old one, and print the names."""
    with atomic_writer(target) as file:
        write(file)
        if old := keep_old(target):
            print(f"the old {target} is kept as {old}")
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def output_path(args: argparse.Namespace) -> Path:
    """The file to write: --output, or beside the weights, with the options in its name and the suffix of the format."""
    if args.output:
        given, suffix = Path(args.output).suffix, SUFFIXES[args.to]
        if given in {*SUFFIXES.values()} - {suffix} or (args.to in ("ncnn", "engine") and given != suffix):
            raise InputError(f"--output {args.output}: --to {args.to} writes a {suffix} file")
        return Path(args.output)
    variants = {"fuse": "_fused", "fp16": "_fp16", "int8": "_int8", "nms": "_nms"}
    marks = "".join(mark for option, mark in variants.items() if getattr(args, option))
    marks += ".ncnn" if args.to == "ncnn" else ""
    weights = Path(args.weights_path)
    return weights.with_name(f"{weights.stem}{marks}{SUFFIXES[args.to]}")


def require_runtime(img_size: Size, args: argparse.Namespace) -> None:
    """Raise an InputError that says what to install where the format of --to cannot be written here."""
    for package in PACKAGES.get(args.to, ()):
        optional(package)
    if args.to == "ncnn" and args.int8:
        require_tools()
    if args.to == "engine":
        onnx_name = str(output_path(args).with_suffix(".onnx"))
        require_tensorrt(onnx_name, input_shapes(img_size, args.batch_size), bool(args.int8))
        require_gpu("--to engine")  # without one, TensorRT ends in a traceback


def ncnn_contents(
    model: Darknet, names: list[str], img_size: Size, data: Int8Data | None, args: argparse.Namespace
) -> dict[str, bytes]:
    """The contents of the ncnn files by suffix, in float, or in 8 bits after the files in float were proven."""
    contents = export_ncnn(model, names, img_size, args.fp16)
    if not data:
        return contents
    quantizer = NcnnQuantizer(contents, model, names, img_size, data.images)
    return within_drop(quantizer.contents, load_contents, contents, data, model, args)


def engine_contents(
    model: Darknet, names: list[str], img_size: Size, data: Int8Data | None, args: argparse.Namespace
) -> dict[str, bytes]:
    """The contents of a TensorRT engine and its description by suffix, from the proven graph in float16 or 8 bits."""
    proto = proven_graph(model, names, img_size, dynamic_size=False, half=True)
    shapes = input_shapes(img_size, args.batch_size)
    engine = build_engine(to_int8(proto, "tensorrt", data, model, args) if data else proto, shapes)
    contents = {".engine": engine, ".json": describe(model, names, img_size, {".engine": engine})}
    if not data:
        images = list(proof_images(img_size, model.spec.stride))[:1]
        gap = prove_predictions(model, load_engine(engine, contents[".json"]), images, HALF_TOLERANCE)
        print(f"TensorRT agrees with PyTorch to {gap:.1e}")
    return contents


def write_onnx(
    file: BinaryIO,
    model: Darknet,
    names: list[str],
    img_size: Size,
    data: Int8Data | None,
    args: argparse.Namespace,
) -> None:
    """Export, prove the float graph, and only then quantize it and add non-maximum suppression."""
    half = args.fp16 or bool(data and FORMS[args.int8].half)
    proto = proven_graph(model, names, img_size, not args.static_size, half)
    if data:
        proto = to_int8(proto, args.int8, data, model, args)
    if args.nms:
        proto = add_suppression(proto, args.conf_thres, args.nms_thres)
    file.write(proto.SerializeToString())


def proven_graph(model: Darknet, names: list[str], img_size: Size, dynamic_size: bool, half: bool) -> "ModelProto":
    """The graph in float32 or float16, after ONNX Runtime gave PyTorch's predictions."""
    proto = export_onnx(model, names, img_size, dynamic_size, half)
    images = list(proof_images(img_size, model.spec.stride))
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    gap = prove(model, proto, images if dynamic_size else images[:1], tolerance)
    print(f"ONNX Runtime agrees with PyTorch to {gap:.1e}")
    return proto


def to_int8(
    proto: "ModelProto", runtime: str, data: Int8Data, model: Darknet, args: argparse.Namespace
) -> "ModelProto":
    """The graph in 8 bits in the form for a runtime; with --max_map_drop some layers stay in float."""
    reader = OpenVinoModel if runtime == "openvino" else OnnxModel
    with tempfile.TemporaryDirectory() as folder:
        ranges = Path(folder) / "ranges.json"

        def build(float_layers: Collection[int] = ()) -> "ModelProto":
            bar = tqdm(data.images, "calibration", unit="image", leave=False, disable=ranges.exists())
            return quantize(proto, model.spec, bar, float_layers, ranges, FORMS[runtime].outputs)

        def load(graph: "ModelProto") -> nn.Module:
            return reader(graph.SerializeToString())

        return within_drop(build, load, proto, data, model, args)


def within_drop(
    build: Callable[..., Built],
    load: Callable[[Built], nn.Module],
    in_float: Built,
    data: Int8Data,
    model: Darknet,
    args: argparse.Namespace,
) -> Built:
    """What ``build`` makes in 8 bits; with --max_map_drop as few layers stay in float as that takes.

    Args:
        build: makes the network in 8 bits; it takes the numbers of layers that stay in float.
        load: gives the network of what ``build`` makes.
        in_float: the same in float.
        data: what the network in 8 bits is made from.
        model, args: the network in PyTorch, and the options.
    """
    if data.validation is None:
        return build()
    batches, names = data.validation
    images = torch.cat(data.images)

    def score(built: Built) -> float:
        return evaluate(load(built), batches, names)[0].mAP

    subject = measured_network(args) | {
        "calibration": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "images": cast(DetectionDataset, batches.dataset).fingerprint,
    }
    kept = KeptRows(output_path(args).with_suffix(".unfinished.json"), subject)
    if len(kept):
        print(f"{len(kept)} scores were measured before this search was interrupted")
    errors = sensitivities(model, images[:SENSITIVITY_IMAGES])
    return quantize_within(errors, build, score, score(in_float), args.max_map_drop, kept)


def int8_data(model: Darknet, img_size: Size, args: argparse.Namespace) -> Int8Data:
    """The data that --int8 needs: as many training images as --calibration says, and validation images."""
    if not args.data_config:
        raise InputError("--int8 needs --data_config: it is calibrated on the training images there")
    images = list(batches_of_one(spread(training_images(args), args.calibration), img_size))
    return Int8Data(images, None if args.max_map_drop is None else validation(model, img_size, args))


def training_images(args: argparse.Namespace) -> list[Path]:
    """The training images of --data_config."""
    return check_data(read_data_config(args.data_config), "train", args.skip_bad, label_rules(args)).images


def check(model: Darknet, names: list[str], img_size: Size, args: argparse.Namespace) -> None:
    """Run the model in every runtime on the same images, and print one table."""
    paths = readable(find_images(args.image_folder))
    data = read_data_config(args.data_config) if args.data_config else None
    refuse_inputs([*paths, *(data.files if data else [])], [args.json])
    validated = validation(model, img_size, args) if data else None  # what is wrong there shows before the work
    chosen = training_images(args) if data and (data.train or "train" in data.missing) else paths
    calibration = batches_of_one(spread(chosen, args.calibration), img_size)
    deployed = deployments(model, names, img_size, calibration, args.batch_size)
    running = [deployment.model for deployment in deployed if deployment.model]
    times = forward_times(running, next(batches_of_one(paths, img_size)))
    gaps = differences(running, batches_of_one(paths, img_size))
    scores = [evaluate(network, *validated)[0].mAP if validated else None for network in running]
    measures = zip(times, gaps, scores, strict=True)
    rows = [
        runtime_row(deployment, *(next(measures) if deployment.model else (None, None, None)))
        for deployment in deployed
    ]
    print(runtimes_table(rows))
    print(
        f"{len(paths)} images of {img_size.pixels}, {torch.get_num_threads()} thread(s). The difference to PyTorch is "
        f"the largest of any score, and of any box relative to its pixels, among boxes that score at least {MIN_SCORE}."
    )
    if args.json:
        write_json(args.json, [without_infinities(row) for row in rows])


def validation(model: Darknet, img_size: Size, args: argparse.Namespace) -> tuple[DataLoader, list[str]]:
    """The validation images of --data_config in batches, and the names of their classes."""
    data = read_data_config(args.data_config)
    batches, _ = validation_batches(
        model, data, img_size, args.batch_size, args.n_cpu, args.skip_bad, label_rules(args)
    )
    return batches, data.names


if __name__ == "__main__":
    run(get_args_parser(), main)
