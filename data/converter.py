"""Converts a data set to what the programs read: images, YOLO labels, lists of images and a ``.data`` file.

    python data/converter.py                                      Oxford hands: data/hand_dataset -> data
    python data/converter.py voc --source VOCdevkit/VOC2007       Pascal VOC -> data/voc
    python data/converter.py coco --annotations_train ...         COCO -> data/coco

Each format has a reader in ``utils/data/converters``; the writer there is shared. All is checked before a file is
written, so an error leaves the output as it was.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as `python data/converter.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import ArgumentParser, run
from utils.data.converters.coco import read_coco
from utils.data.converters.oxford import read_oxford
from utils.data.converters.voc import read_voc
from utils.data.converters.writer import write_data_config, write_data_set
from utils.errors import InputError
from utils.files import read_names


def convert_oxford(args: argparse.Namespace) -> None:
    """Convert Oxford's hands. The repository has the .data file of the result: config/oxfordhand.data."""
    write_data_set(read_oxford(args.source), args.output)


def convert_voc(args: argparse.Namespace) -> None:
    """Convert a Pascal VOC folder."""
    classes = None if args.classes is None else parse_classes(args.classes)
    data = read_voc(args.source, {"train": args.train_split, "valid": args.valid_split}, classes)
    write_data_set(data, args.output)
    write_data_config(data.names, args.output)


def convert_coco(args: argparse.Namespace) -> None:
    """Convert a training and a validation file of COCO instances."""
    data = read_coco(
        {
            "train": (args.annotations_train, args.images_train),
            "valid": (args.annotations_valid, args.images_valid),
        }
    )
    write_data_set(data, args.output)
    write_data_config(data.names, args.output)


def parse_classes(text: str) -> list[str]:
    """The class names that ``--classes`` gives: the lines of a file, or names separated by commas."""
    names = read_names(text) if Path(text).is_file() else [name.strip() for name in text.split(",")]
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
        "--source", type=Path, required=True, help="folder that holds Annotations, JPEGImages and ImageSets/Main"
    )
    voc.add_argument("--train_split", default="trainval", help="file of ImageSets/Main for train.txt, without .txt")
    voc.add_argument("--valid_split", default="test", help="file of ImageSets/Main for valid.txt, without .txt")
    voc.add_argument(
        "--classes",
        help="class names, separated by commas, or a file with one per line; objects of other classes are left out "
        "(default: all classes of the annotations)",
    )
    voc.add_argument("--output", type=Path, default=Path("data/voc"), help="folder to write to")
    voc.set_defaults(convert=convert_voc)

    text = "COCO instances; boxes around crowds are left out"
    coco = formats.add_parser("coco", help=text, description=text)
    for split in ("train", "valid"):
        coco.add_argument(
            f"--annotations_{split}", type=Path, required=True, help=f"instances JSON file for {split}.txt"
        )
        coco.add_argument(f"--images_{split}", type=Path, required=True, help=f"folder of the images for {split}.txt")
    coco.add_argument("--output", type=Path, default=Path("data/coco"), help="folder to write to")
    coco.set_defaults(convert=convert_coco)
    return parser


def main(args: argparse.Namespace) -> None:
    """Convert with the reader of the format."""
    args.convert(args)


if __name__ == "__main__":
    run(get_args_parser(), main)
