"""Converts a data set to what the programs read: images, YOLO labels, lists of images and a ``.data`` file.

    python data/converter.py                                      Oxford hands: data/hand_dataset -> data
    python data/converter.py voc --source VOCdevkit/VOC2007       Pascal VOC -> data/voc
    python data/converter.py coco --annotations_train ...         COCO -> data/coco
    python data/converter.py yolo --source EXPORT --split 0.9     lists and .data of YOLO labels -> data/yolo

Each format has a reader in ``utils/data/converters``; the writer there is shared. All is checked before a file is
written, so an error leaves the output as it was.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as `python data/converter.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import ArgumentParser, number, run
from utils.data.converters.coco import read_coco
from utils.data.converters.oxford import read_oxford
from utils.data.converters.split import Split
from utils.data.converters.voc import read_voc
from utils.data.converters.writer import write_data_config, write_data_set, write_list_files
from utils.data.converters.yolo import complete_config, read_yolo
from utils.errors import InputError
from utils.files import read_names


def convert_oxford(args: argparse.Namespace) -> None:
    """Convert Oxford's hands. The repository has the .data file of the result: config/oxfordhand.data."""
    write_data_set(read_oxford(args.source), args.output, strict=True)


def convert_voc(args: argparse.Namespace) -> None:
    """Convert a Pascal VOC folder."""
    data = read_voc(args.source, args.train_split, args.valid_split, parse_classes(args.classes))
    write_data_set(data, args.output, parse_split(args), args.strict)
    write_data_config(data.names, args.output)


def convert_coco(args: argparse.Namespace) -> None:
    """Convert one file of COCO instances, or one for training and one for validation."""
    if args.images_valid and not args.annotations_valid:
        raise InputError("--images_valid needs --annotations_valid, the JSON file of the validation images")
    files = {"train": (args.annotations_train, args.images_train), "valid": (args.annotations_valid, args.images_valid)}
    data = read_coco({split: (path, folder or path.parent) for split, (path, folder) in files.items() if path})
    write_data_set(data, args.output, parse_split(args), args.strict)
    write_data_config(data.names, args.output)


def convert_yolo(args: argparse.Namespace) -> None:
    """Write the lists and the .data file of YOLO data, which stay where they are."""
    data = read_yolo(args.source, parse_classes(args.classes))
    split = parse_split(args)
    if not split and "valid" not in data.splits and (path := complete_config(args.source)):
        raise InputError(f"{path} needs no conversion: --data_config {path}")
    write_list_files(data, args.output, split, args.strict)
    write_data_config(data.names, args.output)


def parse_split(args: argparse.Namespace) -> Split | None:
    """How to split, if at all."""
    return None if args.split is None else Split(args.split, args.seed)


def parse_classes(text: str | None) -> list[str] | None:
    """The class names that ``--classes`` gives, if any: the lines of a file, or names separated by commas."""
    if text is None:
        return None
    is_file = Path(text).is_file() or text.endswith((".txt", ".names"))
    names = read_names(text) if is_file else [name.strip() for name in text.split(",")]
    if not names or "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {text}: should be different names, one per line or separated by commas")
    return names


class FormatParser(ArgumentParser):
    """A command line without a format is one of the format ``oxford``."""

    def parse_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse ``args``, by default the program's; options that no format precedes get ``oxford`` in front."""
        words = sys.argv[1:] if args is None else list(args)
        first = next((word for word in words if word != "--debug"), "--")
        if first.startswith("-") and first not in ("-h", "--help"):
            words = ["oxford", *words]
        return super().parse_args(words, namespace)


def get_args_parser() -> ArgumentParser:
    """Build the command line."""
    parser = FormatParser("Convert a data set to images, YOLO labels, train.txt and valid.txt.")
    formats = parser.add_subparsers(metavar="format", required=True, parser_class=ArgumentParser)

    text = (
        "Oxford hands, or synthetic ones in their layout (default); training and validation images become train.txt, "
        "test images valid.txt"
    )
    oxford = formats.add_parser("oxford", help=text, description=text)
    oxford.add_argument("--source", type=Path, default=Path("data/hand_dataset"), help="hand_dataset or its parent")
    oxford.add_argument("--output", type=Path, default=Path("data"), help="folder to write to")
    oxford.set_defaults(convert=convert_oxford)

    text = "Pascal VOC; objects marked as difficult are kept"
    voc = formats.add_parser("voc", help=text, description=text)
    voc.add_argument(
        "--source",
        type=Path,
        required=True,
        help="folder with XML files and images below it, in any layout: labelImg, Roboflow, VOCdevkit/VOC2007, ...",
    )
    voc.add_argument(
        "--train_split", help="file of ImageSets/Main for train.txt, without .txt (default: trainval, or else train)"
    )
    voc.add_argument(
        "--valid_split", help="file of ImageSets/Main for valid.txt, without .txt (default: test, or else val)"
    )
    add_split_options(voc)
    voc.add_argument(
        "--classes",
        help="class names, separated by commas, or a file with one per line; objects of other classes are left out "
        "(default: all classes of the annotations)",
    )
    voc.add_argument("--output", type=Path, default=Path("data/voc"), help="folder to write to")
    voc.set_defaults(convert=convert_voc)

    text = "COCO instances, of one file or two; boxes around crowds are left out"
    coco = formats.add_parser("coco", help=text, description=text)
    coco.add_argument("--annotations_train", type=Path, required=True, help="instances JSON file for train.txt")
    coco.add_argument("--annotations_valid", type=Path, help="instances JSON file for valid.txt; or --split")
    for split in ("train", "valid"):
        coco.add_argument(
            f"--images_{split}",
            type=Path,
            help=f"folder of images for {split}.txt (default: that of the JSON file)",
        )
    add_split_options(coco)
    coco.add_argument("--output", type=Path, default=Path("data/coco"), help="folder to write to")
    coco.set_defaults(convert=convert_coco)

    text = "YOLO labels without a .data file or a split: exports of CVAT, Label Studio, labelImg; nothing is copied"
    yolo = formats.add_parser("yolo", help=text, description=text)
    yolo.add_argument("--source", type=Path, required=True, help="folder with images, labels and class names below it")
    yolo.add_argument(
        "--classes",
        help="class names in the order of their numbers, separated by commas, or a file with one per line "
        "(default: those of obj.names, classes.txt, notes.json or data.yaml)",
    )
    add_split_options(yolo)
    yolo.add_argument("--output", type=Path, default=Path("data/yolo"), help="folder for the lists and the .data file")
    yolo.set_defaults(convert=convert_yolo)
    return parser


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to split, and what to do about problems."""
    parser.add_argument(
        "--split",
        type=number(float, 0.01, 0.99),
        help="share of the images for train.txt where there is no split; near-duplicates stay together",
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of --split")
    parser.add_argument(
        "--strict", action="store_true", help="refuse a data set with problems instead of leaving out what has them"
    )


def main(args: argparse.Namespace) -> None:
    """Convert with the reader of the format."""
    args.convert(args)


if __name__ == "__main__":
    run(get_args_parser(), main)
