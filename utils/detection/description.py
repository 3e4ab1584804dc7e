"""What the file of another runtime cannot say about itself: a JSON file beside it, of the same name.

It holds ``cfg`` (the text), ``names`` (a list), ``img_size`` (the side of a square, or height and width with a space
between them) and ``sha256`` (of the described files, by suffix); and for other programs ``heads``: of each head what
it takes to decode its raw outputs. Our programs take that from the cfg. ``stride`` is a number of input pixels,
whole where every convolution pads its input, or a list [x, y] where the two differ.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import Darknet
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.darknet.spec import NetworkSpec, parse_network
from utils.errors import InputError
from utils.files import read_text
from utils.sizes import AnySize, Size


def describe(model: Darknet, names: list[str], img_size: AnySize, contents: dict[str, bytes]) -> bytes:
    """The content of the description of a network whose files have these ``contents``, by suffix."""
    size = Size.of(img_size)
    description = {
        "cfg": format_cfg(model.blocks),
        "names": names,
        "img_size": str(size),
        "sha256": {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()},
        "heads": [
            {
                "stride": plain_stride(size.width / head.width, size.height / head.height),
                "anchors": head.anchors,
                "classes": head.classes,
                "scale_x_y": head.scale_x_y,
                "new_coords": head.new_coords,
            }
            for head in model.spec.at(size).heads
        ],
    }
    return (json.dumps(description, indent=2) + "\n").encode()


def plain_stride(x: float, y: float) -> float | list[float]:
    """The input pixels from one cell of a head to the next, as the description has them: whole where they can be."""
    x, y = (int(stride) if stride == int(stride) else stride for stride in (x, y))
    return x if x == y else [x, y]


def read_description(path: Path, suffixes: Sequence[str], runtime: str) -> tuple[NetworkSpec, dict[str, Any]]:
    """The network and the metadata (``names`` and ``img_size``) of a file, after all files are checked.

    A foreign or damaged file would crash ncnn and TensorRT, which do not check what they read.

    Args:
        path: the file that the user names.
        suffixes: those of all files that the description is about.
        runtime: the name of the runtime, for messages.

    Raises:
        InputError: a file is missing, damaged, or not written by export.py.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such {runtime} file")
    beside = path.with_suffix(".json")
    text = read_text(beside, f"description of a model for {runtime}, which export.py writes beside it")
    try:
        description = json.loads(text)
        hashes = {suffix: description["sha256"][suffix] for suffix in suffixes}
        texts = (description["cfg"], description["img_size"], *description["names"])
    except (ValueError, KeyError, TypeError):
        texts = (None,)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{beside}: not a description of a model for {runtime} that export.py wrote")
    for suffix in suffixes:
        file = path.with_suffix(suffix)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{file}: there is no such file, which belongs to {path.name}") from None
        if hashlib.sha256(content).hexdigest() != hashes[suffix]:
            raise InputError(f"{file}: damaged, or of another export than {beside.name}")
    metadata = {"names": description["names"], "img_size": Size.parse(description["img_size"]).plain}
    return parse_network(parse_cfg(description["cfg"], f"cfg in {beside}"), metadata["img_size"]), metadata
