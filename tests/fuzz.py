"""Feeds every reader with damaged files: each gives a result or an InputError, soon, and without taking the memory.

    python tests/fuzz.py                          20,000 cases for each reader; make fuzz
    python tests/fuzz.py --cases 500 --reader cfg

The cases are real files, changed at random places, and random bytes. ``--first N --cases 1`` is case N again. The first
foreign exception, hang, or want of memory of a reader ends it; its file is kept in ``--output``.
"""

import argparse
import io
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as `python tests/fuzz.py`: the repository root is not on the path yet
    sys.path.insert(0, str(ROOT))

from config.create_cfg import create_cfg
from models import Darknet
from tests.networks import CFGS, DARKNET_CFGS
from utils.cli import ArgumentParser, number, run
from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.darknet.spec import parse_network
from utils.data.augmentations import REDUCTIONS
from utils.data.check import READER, read_cache
from utils.data.data_config import read_data_config
from utils.data.image_lists import read_image_list
from utils.data.images import open_image, read_image
from utils.data.labels import read_labels
from utils.detection.checkpoints import load_weights
from utils.errors import InputError

SECONDS = 20  # of one case; the slowest take a fraction of one
MEMORY = 3 << 30  # bytes beyond what the program has when it begins
BUILT = 3e6  # networks of more parameters are only resolved: building them is honest work, not a fault

# What parsers stumble over.
TOKENS = [
    *(
        b"0",
        b"-1",
        b"1",
        b"2147483648",
        b"99999999999999999999",
        b"1e400",
        b"nan",
        b"inf",
        b"-0.0",
        b"0x10",
        b"1_0",
        b"",
    ),
    *(
        b"\n",
        b"\r",
        b"\0",
        b"=",
        b"==",
        b",",
        b",,",
        b"#",
        b";",
        b"[",
        b"]",
        b"[net]\n",
        b"[yolo]\n",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ),
    *(b"[convolutional]\nfilters=65536\nsize=99\n", b"[route]\nlayers=-1,-1,-1,-1\n", b"[upsample]\nstride=16384\n"),
    *(
        b"[shortcut]\nfrom=-1\n",
        b"[reorg3d]\nstride=2\n",
        "٣".encode(),
        "é".encode(),
        b"../../../etc/passwd",
        b"/dev/zero",
        b"x" * 300,
    ),
]


def mutate(random: np.random.Generator, content: bytes) -> bytes:
    """``content`` with some changes of its bytes, most often one."""
    data = bytearray(content)
    for _ in range(min(int(random.geometric(0.6)), 8)):
        position = int(random.integers(len(data) + 1))
        length = int(2 ** random.uniform(0, 6))
        kind = random.integers(7)
        if kind == 0 and position < len(data):
            data[position] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[position : position + length] = random.bytes(length)
        elif kind == 2:
            del data[position : position + length]
        elif kind == 3:
            data[position:position] = TOKENS[random.integers(len(TOKENS))]
        elif kind == 4:
            data[position : position + int(random.integers(1, 5))] = TOKENS[random.integers(len(TOKENS))]
        elif kind == 5:
            data[position:position] = data[position : position + 8 * length]
        elif random.random() < 0.2:
            del data[position:]
    return bytes(data)


def case(random: np.random.Generator, seeds: Sequence[bytes]) -> bytes:
    """A file: in one case of twenty nothing but random bytes, else one of ``seeds`` changed."""
    if random.random() < 0.05:
        return random.bytes(int(2 ** random.uniform(0, 12)))
    return mutate(random, seeds[random.integers(len(seeds))])


# The readers: each reads a file as the programs do, and gives a word for what came out.


def read_network(path: Path) -> str:
    """cfg parser, resolver, and the network if it is small."""
    blocks = read_cfg(path)
    spec = parse_network(blocks)
    again = parse_cfg(format_cfg(blocks))
    assert again == blocks, "the cfg does not survive writing and reading"
    size = sum(layer.parameters for layer in spec.convolutions)
    if size > BUILT:
        return "resolved"
    Darknet(blocks)
    return "built"


def read_data(path: Path) -> str:
    """``.data`` reader, with the names and lists that the file leads to."""
    data = read_data_config(path)
    assert len(data.names) == data.classes
    for split in ("train", "valid"):
        data.images(split)
    return "read"


def read_list(path: Path) -> str:
    """The list of images."""
    read_image_list(path)
    return "read"


def read_boxes(path: Path) -> str:
    """Label reader: what it gives lies in the image."""
    boxes, _ = read_labels(path, classes=3)
    assert boxes.dtype == np.float32
    assert boxes.shape[1:] == (5,)
    assert np.isfinite(boxes).all()
    assert (boxes[:, 3:] >= 0).all()
    assert (np.abs(boxes[:, 1:3] - 0.5) <= 0.5).all()
    return "read" if len(boxes) else "empty"


def read_image_file(path: Path) -> str:
    """Image loader."""
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image).dtype == np.uint8
    opened = open_image(path)
    assert (opened.width, opened.height) == image.size
    for reduction in REDUCTIONS:
        expected = max(opened.height // reduction, 1), max(opened.width // reduction, 1), 3
        assert opened.decode(reduction).shape == expected
    return "read"


@cache
def tiny() -> Darknet:
    """A network of a few thousand parameters."""
    return Darknet(create_cfg("v3-tiny", 1, 64, width=0.02))


def read_weights(path: Path) -> str:
    """``.weights`` reader, of whole files and of backbones."""
    load_weights(tiny(), path, partial=True)
    return "read"


def read_pth(path: Path) -> str:
    """Checkpoint reader."""
    load_weights(tiny(), path)
    return "read"


def read_check(path: Path) -> str:
    """What an earlier check of the images remembered, which is never an error."""
    return "read" if read_cache(path) else "empty"


# The files to change


def cfg_seeds() -> list[bytes]:
    """Our own networks of every kind, and Darknet's where they are at hand."""
    kinds = [format_cfg(create_cfg(base, 2, 64, width=0.02)).encode() for base in ("v3", "v3-tiny", "v3-spp")]
    small = min(kinds, key=len)
    files = [path.read_bytes() for path in (*CFGS, *DARKNET_CFGS)]
    return [*kinds, *[small] * 3, *files]


def data_seeds() -> list[bytes]:
    """A description of each kind."""
    return [
        b"classes=2\ntrain=list.txt\nvalid=list.txt\nnames=two.names\n",
        b"# comment\nclasses = 1\n train= list.txt # here\r\nvalid =/nowhere/list.txt\nbackup=x\n",
        b"classes=80\nvalid=list.txt\n",
    ]


def list_seeds() -> list[bytes]:
    """Lists of the images that are there, and of others."""
    return [b"images/a.png\nimages/b.jpg\n", b"images/a.png\r\n\r\n/nowhere/c.png\n../images/a.png\n"]


def label_seeds() -> list[bytes]:
    """Labels, right and wrong."""
    return [
        b"0 0.5 0.5 0.25 0.125\n2 0.1 0.9 0.2 0.2\n",
        b"1 .5 .5 1 1\r\n\r\n1\t0.0004 0.5 0.001 0.3\n",
        b"\xef\xbb\xbf0 0.5 0.5 1e-3 1E-2\n" * 5,
    ]


def image_seeds() -> list[bytes]:
    """Images of every mode and format that data sets have."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {
        "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "BMP": ("RGB", "P"),
        "GIF": ("P",),
        "TIFF": ("RGB", "CMYK", "I;16", "F"),
        "WEBP": ("RGB", "RGBA"),
        "PPM": ("RGB", "L"),
    }
    seeds = []
    for kind, names in modes.items():
        for mode in names:
            grey = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
            changed = grey if mode == "I;16" else image.convert(mode)
            seeds.append(_saved(changed, kind))
            if kind in ("JPEG", "PNG", "WEBP", "TIFF") and mode == "RGB":
                seeds.append(_saved(changed, kind, exif=exif))
    seeds.append(_saved(image, "JPEG", progressive=True))
    seeds.append(_saved(image, "GIF", save_all=True, append_images=[image.rotate(90)]))
    seeds.append(_saved(image, "TIFF", compression="tiff_lzw"))
    deep = np.asarray(image).astype(np.uint16) * 16
    seeds += [cv2.imencode(suffix, deep)[1].tobytes() for suffix in (".png", ".tiff", ".ppm")]
    return seeds


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def weights_seeds() -> list[bytes]:
    """The tiny network's file, and its beginning."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.weights"
        tiny().save_darknet_weights(path)
        whole = path.read_bytes()
    return [whole, whole[:20], whole[: 20 + 4 * 31 * 2]]


def pth_seeds() -> list[bytes]:
    """A checkpoint in both of PyTorch's formats."""
    content = {"model": tiny().state_dict(), "epoch": 3, "names": ["hand"], "options": {"s": 0.01}}
    seeds = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        seeds.append(buffer.getvalue())
    return seeds


def check_seeds() -> list[bytes]:
    """A memory as it is written, and JSON of other shapes."""
    good = {"reader": READER, "images": {"/a.png": [1, 2, False, True, None], "/b.png": [3, 4, True, False, "damaged"]}}
    return [json.dumps(good).encode(), b"[[[[]]]]", b'{"images": {"a": 1}}']


READERS: dict[str, tuple[Callable[[Path], str], Callable[[], list[bytes]], str]] = {
    "cfg": (read_network, cfg_seeds, "a.cfg"),
    "data": (read_data, data_seeds, "a.data"),
    "list": (read_list, list_seeds, "a.txt"),
    "labels": (read_boxes, label_seeds, "a.txt"),
    "weights": (read_weights, weights_seeds, "a.conv.1"),
    "pth": (read_pth, pth_seeds, "a.pth"),
    "images": (read_image_file, image_seeds, "a.png"),
    "check": (read_check, check_seeds, "a.json"),
}


class Hang(BaseException):
    """A case took longer than SECONDS; no reader may catch it."""


@contextmanager
def limits(seconds: int) -> Iterator[None]:
    """Within it a block ends after ``seconds``; only the main thread can have that."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def prepare(folder: Path) -> None:
    """What the seeds of lists and descriptions refer to."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images/a.png")
    Image.new("RGB", (4, 4)).save(folder / "images/b.jpg")
    (folder / "list.txt").write_text("images/a.png\n")
    (folder / "two.names").write_text("cat\ndog\n")


def fuzz(reader: str, folder: Path, first: int, cases: int) -> tuple[Counter, float]:
    """Feed one reader; the outcomes with their counts, and the seconds of the slowest case.

    Raises:
        AssertionError: a case ended otherwise than with a result or an InputError; it names the file, which is left.
    """
    read, make_seeds, name = READERS[reader]
    seeds, path = make_seeds(), folder / name
    outcomes: Counter = Counter()
    slowest = 0.0
    for seed in tqdm(range(first, first + cases), reader, leave=False, unit="case", mininterval=2):
        path.write_bytes(case(np.random.default_rng((seed, len(reader))), seeds))
        began = time.perf_counter()
        try:
            with limits(SECONDS):
                outcomes[read(path)] += 1
        except InputError as error:
            if "\n" in str(error) or not str(error):
                raise AssertionError(f"{reader}, case {seed}, {path}: not a line: {str(error)!r}") from error
            outcomes["InputError"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{reader}, case {seed}, {path}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.perf_counter() - began)
    return outcomes, slowest


def bound_memory(more: int) -> None:
    """Let this process take ``more`` bytes of addresses than it has now; what it asks beyond is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))


def get_args_parser() -> argparse.ArgumentParser:
    """The options of this program."""
    parser = ArgumentParser("Feed every reader with damaged files.")
    parser.add_argument("--cases", type=number(int, 1), default=20_000, help="of each reader")
    parser.add_argument("--first", type=number(int, 0), default=0, help="the number of the first case")
    parser.add_argument("--reader", choices=READERS, help="default: all of them, one after the other")
    parser.add_argument(
        "--output", type=Path, default=Path("output/fuzz"), help="folder for a file that a reader fails on"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Feed the readers, and say what came out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data
    failed = []
    for reader in [args.reader] if args.reader else READERS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder)
            bound_memory(MEMORY)
            began = time.perf_counter()
            try:
                outcomes, slowest = fuzz(reader, folder, args.first, args.cases)
            except AssertionError as error:
                args.output.mkdir(parents=True, exist_ok=True)
                kept = shutil.copy(folder / READERS[reader][2], args.output / f"{reader}_{READERS[reader][2]}")
                failed.append(f"{error} (kept as {kept})")
                print(failed[-1], flush=True)
                continue
        words = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        seconds = time.perf_counter() - began
        print(f"{reader}: {args.cases} cases in {seconds:.0f} s, the slowest {slowest:.2f} s: {words}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"at most {peak:.0f} MiB of memory")
    if failed:
        raise InputError(f"{len(failed)} reader(s) failed, the first: {failed[0]}")


if __name__ == "__main__":
    run(get_args_parser(), main)
