"""Writes the Darknet cfg of YOLOv3, YOLOv3-SPP or YOLOv3-tiny for any classes, anchors, input size and width.

    python config/create_cfg.py --base v3 --classes 1 --output config/yolov3-hand.cfg

Both ``classes=`` of every ``[yolo]`` section and ``filters=`` of the convolution before it follow from ``--classes``.
``--width 0.25`` gives the same layers with a quarter of the channels.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as `python config/create_cfg.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.networks import BASES, create_cfg
from utils.cli import ArgumentParser, add_size_option, number, run
from utils.darknet.cfg import Block, format_cfg
from utils.darknet.spec import parse_network
from utils.errors import InputError
from utils.files import write_text


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = ArgumentParser("Write the Darknet cfg of a YOLOv3 network.")
    parser.add_argument("--base", choices=BASES, default="v3", help="network: YOLOv3, YOLOv3-SPP or YOLOv3-tiny")
    parser.add_argument("--classes", type=number(int, 1), default=1, help="number of classes")
    add_size_option(parser, "size of the input in pixels, in multiples of 32", default=416, smallest=1)
    parser.add_argument(
        "--width",
        type=number(float, above=0, high=8),
        default=1.0,
        help="factor on the filters of all layers but the heads; the results are rounded to multiples of 8",
    )
    parser.add_argument(
        "--anchors",
        help="anchors in pixels of the input, 'w,h, w,h, ...': 9 pairs (v3-tiny: 6) in any order, which are sorted by "
        "area (default: Darknet's anchors, scaled by the longer side / 416 and rounded to whole pixels)",
    )
    parser.add_argument("--output", required=True, help="cfg file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the cfg that the options describe; replace a file only with ``--overwrite``."""
    blocks = create_cfg(args.base, args.classes, args.img_size, args.width, args.anchors)
    if Path(args.output).exists() and not args.overwrite:
        raise InputError(f"--output {args.output} exists; choose another name, or --overwrite to replace it")
    parse_network([Block(block) for block in blocks])  # an InputError where the network would not fit into memory
    write_text(args.output, format_cfg(blocks))
    print(f"{args.output}: {args.base}, {len(blocks) - 1} layers, anchors {blocks[-1]['anchors']}")


if __name__ == "__main__":
    run(get_args_parser(), main)
