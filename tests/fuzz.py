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
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
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

from config.networks import create_cfg
from models import Darknet
from tests.networks import CFGS, DARKNET_CFGS
from utils.cli import ArgumentParser, number, run
from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.darknet.spec import parse_network
from utils.data.augmentations import REDUCTIONS
from utils.data.check import READER, read_cache
from utils.data.converters.coco import read_coco
from utils.data.converters.samples import DataSet
from utils.data.converters.voc import parse_xml, read_annotation
from utils.data.converters.writer import format_labels
from utils.data.converters.yolo import names_of_notes
from utils.data.data_config import read_data_config
from utils.data.image_lists import existing_images, read_list_entries
from utils.data.images import open_image, read_image
from utils.data.labels import LabelRules, find_labels, read_labels
from utils.detection.pretrained import load_pretrained
from utils.errors import InputError
from utils.files import read_text

SECONDS = 2  # of processor time for one case, which does not depend on what else the machine does
PATIENCE = 120  # seconds for a case that waits, such as for a pipe, and takes no processor time
MEMORY = 1 << 30  # bytes beyond what the program has when a reader begins
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
    size = sum(layer.kernel_weights for layer in spec.convolutions)
    if size > BUILT:
        return "resolved"
    Darknet(blocks)
    return "built"


def read_description(path: Path) -> str:
    """Reader of ``.data`` and ``data.yaml`` files, with the names, lists and folders that they lead to."""
    data = read_data_config(path)
    assert len(data.names) == data.classes > 0
    assert all(data.names)
    for split in ("train", "valid"):
        data.images(split)
    return "read"


def read_list(path: Path) -> str:
    """The list of images, and the labels that its lines lead to."""
    for image in existing_images(read_list_entries(path)):
        find_labels(image)
    return "read"


def read_any_text(path: Path) -> str:
    """Text in any encoding, and as XML, whose declaration may lie."""
    text = read_text(path, "text file")
    assert not text.startswith("\ufeff")
    read_text(path, "XML file", xml=True)
    return "read"


def read_boxes(path: Path) -> str:
    """Label reader: what it gives lies in the image."""
    boxes, _ = read_labels(path, classes=3, rules=LabelRules(with_score=path.stat().st_size % 2 == 0))
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


def read_notes(path: Path) -> str:
    """Reader of Label Studio's class names."""
    assert all(isinstance(name, str) for name in names_of_notes(path))
    return "read"


def read_annotation_file(path: Path) -> str:
    """Reader of Pascal VOC's XML."""
    sample = read_annotation(parse_xml(path), path, path.parent / "images/a.png")
    return _checked(DataSet({"train": [sample]}, sorted(set(sample.classes)) or ["cat"]))


def read_instances(path: Path) -> str:
    """Reader of COCO instances, as the second of two files."""
    return _checked(read_coco({"train": (path.with_name("train.json"), path.parent), "valid": (path, path.parent)}))


def _checked(data: DataSet) -> str:
    samples = [sample for split in data.splits.values() for sample in split]
    assert data.names
    assert len(set(data.names)) == len(data.names)
    for sample in samples:
        assert sample.boxes.shape == (len(sample.classes), 4)
        assert np.isfinite(sample.boxes).all()
        assert set(sample.classes) <= set(data.names)
        format_labels(sample, (32, 24), data.names)
    problems = [item.problem for item in (*data.left_out, *(i for sample in samples for i in sample.left_out))]
    assert not [problem for problem in problems if problem and "\n" in problem]
    return "read" if not any(problems) else "partly"


@cache
def tiny() -> Darknet:
    """A network of a few thousand parameters."""
    return Darknet(create_cfg("v3-tiny", 1, 64, width=0.02))


def read_pretrained(path: Path) -> str:
    """Reader of whole ``.weights`` files, backbones and checkpoints, of any number of classes."""
    load_pretrained(tiny(), str(path))
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
        b"; c#1\nclasses=2\nnames=two.names\nstray\ntrain=.\\list.txt ;\n",
        "# 网络\nclasses=2\nnames=two.names\nvalid=list.txt\n".encode("gbk"),
        "classes=2\nnames=two.names\nvalid=list.txt\n".encode("utf-16"),
    ]


def list_seeds() -> list[bytes]:
    """Lists of the images that are there, and of others."""
    windows = [b"images\\a.png\n", "images/a.png\r\n".encode("utf-16")]
    return [*windows, b"images/a.png\nimages/b.jpg\n", b"images/a.png\r\n\r\n/nowhere/c.png\n../images/a.png\n"]


def label_seeds() -> list[bytes]:
    """Labels, right and wrong."""
    return [
        b"0 0.5 0.5 0.25 0.125\n2 0.1 0.9 0.2 0.2\n",
        b"1 .5 .5 1 1\r\n\r\n1\t0.0004 0.5 0.001 0.3\n",
        b"\xef\xbb\xbf0 0.5 0.5 1e-3 1E-2\n" * 5,
        b"0, .5, .5, .4, .4\n1;0,5;0,5;0,2;0,2\n2 0,5 0,5 0,2 0,2\n",
        b"0 .3 .3 .7 .3 .7 .7 .3 .7\n1 .5 .5 .4 .4 .93\n",
        "0 .5 .5 .4 .4\r\n".encode("utf-16"),
        "0 .5 .5 .4 .4\r\n".encode("utf-16-be"),
    ]


def text_seeds() -> list[bytes]:
    """Text in the encodings that files are in, with the declarations of XML."""
    seeds = []
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "cp1252", "big5", "utf-7", "cp037"):
        text = "café, naïve\n" if encoding.startswith("cp") else "手機\nperson\n"
        head = f"<?xml version='1.0' encoding='{encoding}'?>\n"
        seeds += [text.encode(encoding), (head + text).encode(encoding), (head + text).encode()]
    return seeds


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


def safetensors_seeds() -> list[bytes]:
    """A state dict in that format: the length of a JSON header, the header, and the values."""
    header, values = {}, b""
    for name, tensor in tiny().state_dict().items():
        array = tensor.numpy()
        kind, start = "F32" if array.dtype == np.float32 else "I64", len(values)
        values += array.tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, len(values)]}
    text = json.dumps(header).encode()
    return [struct.pack("<Q", len(text)) + text + values]


def notes_seeds() -> list[bytes]:
    """The file of an export, and one with other ids."""
    good = {"categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}], "info": {"year": 2024}}
    return [json.dumps(good).encode(), b'{"categories": [{"id": "7", "name": 1.5}, {"id": 1e3, "name": null}]}']


def check_seeds() -> list[bytes]:
    """A memory as it is written, and JSON of other shapes."""
    good = {
        "reader": READER,
        "images": {"/a.png": [1, 2, False, True, None, "4x4-0-0"], "/b.png": [3, 4, True, False, "damaged", ""]},
    }
    return [json.dumps(good).encode(), b"[[[[]]]]", b'{"images": {"a": 1}}']


def yaml_seeds() -> list[bytes]:
    """Descriptions of Ultralytics and Roboflow, and what bombs are made of."""
    return [
        b"path: .\ntrain: images\nval: [list.txt, images]\nnames:\n  0: cat\n  1: no\n",
        b"train: ../images\nval: ../images\n\nnc: 2\nnames: ['cat', \"dog\"]\nroboflow:\n  version: 3\n",
        b"train: list.txt\nval: list.txt\nnc: 3\n# comment\n",
        b"a: &a [x, x]\nb: &b [*a, *a, *a]\ntrain: *b\nnames: *a\n",
        b"train: " + b"[" * 60 + b"]" * 60 + b"\nnames: {0: cat}\n",
    ]


def xml_seeds() -> list[bytes]:
    """Annotations of labelImg, Roboflow and others, in several encodings."""
    box = "<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    points = "<polygon><x1>1</x1><y1>1</y1><x2>3</x2><y2>1</y2><x3>3</x3><y3>3</y3></polygon>"
    text = "<annotation><filename>a.png</filename><size><width/><height>4</height></size>{}</annotation>"
    plain = text.format(f"<object><name>cat</name>{box}</object><object><name>dog</name>{points}</object>")
    chinese = text.format(f"<object><name>\u624b\u638c</name>{box}</object>")
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + text.format("&b;")
    return [
        plain.encode(),
        f'<?xml version="1.0" encoding="gbk"?>{chinese}'.encode("gbk"),
        f'<?xml version="1.0" encoding="UTF-16"?>{chinese}'.encode("utf-16"),
        bomb.encode(),
    ]


def coco_seeds() -> list[bytes]:
    """Instances with boxes, polygons, masks and crowds."""
    categories = [{"id": 0, "name": "pets"}, {"id": 1, "name": "cat", "supercategory": "pets"}]
    images = [{"id": 1, "file_name": "images/a.png", "width": 4, "height": 4}, {"id": "2", "file_name": "b.jpg"}]
    forms = [
        {"bbox": [0, 0, 2, 2.5]},
        {"segmentation": [[0, 0, 3, 0, 3, 3]], "iscrowd": 0},
        {"segmentation": {"size": [4, 4], "counts": [5, 2, 9]}},
        {"segmentation": {"size": [4, 4], "counts": "52N01"}},
        {"bbox": [1, 1, 1, 1], "iscrowd": 1},
    ]
    annotations = [{"id": k, "image_id": 1 + k % 2, "category_id": 1, **form} for k, form in enumerate(forms)]
    whole = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    return [whole.encode(), whole.encode("utf-16"), json.dumps([1, 2]).encode()]


READERS: dict[str, tuple[Callable[[Path], str], Callable[[], list[bytes]], str]] = {
    "cfg": (read_network, cfg_seeds, "a.cfg"),
    "data": (read_description, data_seeds, "a.data"),
    "list": (read_list, list_seeds, "a.txt"),
    "text": (read_any_text, text_seeds, "a.xml"),
    "labels": (read_boxes, label_seeds, "a.txt"),
    "weights": (read_pretrained, weights_seeds, "a.conv.1"),
    "pth": (read_pretrained, pth_seeds, "a.pth"),
    "safetensors": (read_pretrained, safetensors_seeds, "a.safetensors"),
    "images": (read_image_file, image_seeds, "a.png"),
    "yaml": (read_description, yaml_seeds, "data.yaml"),
    "xml": (read_annotation_file, xml_seeds, "a.xml"),
    "coco": (read_instances, coco_seeds, "a.json"),
    "notes": (read_notes, notes_seeds, "notes.json"),
    "check": (read_check, check_seeds, "a.json"),
}


class Hang(BaseException):
    """A case took longer than SECONDS, or waited longer than PATIENCE; no reader may catch it."""


TIMERS = {
    signal.SIGPROF: (signal.ITIMER_PROF, SECONDS, "processor time"),
    signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE, "waiting"),
}


@contextmanager
def limits() -> Iterator[None]:
    """Within it a block ends after SECONDS of work or PATIENCE of waiting; only the main thread can have that."""

    def stop(number: int, *_: object) -> None:
        _, seconds, what = TIMERS[signal.Signals(number)]
        raise Hang(f"more than {seconds} s of {what}")

    before = {number: signal.signal(number, stop) for number in TIMERS}
    for timer, seconds, _ in TIMERS.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _, _ in TIMERS.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare(folder: Path) -> None:
    """What the seeds of lists and descriptions refer to."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images/a.png")
    Image.new("RGB", (4, 4)).save(folder / "images/b.jpg")
    (folder / "list.txt").write_text("images/a.png\n")
    (folder / "two.names").write_text("cat\ndog\n")
    (folder / "train.json").write_bytes(coco_seeds()[0])


def fuzz(reader: str, folder: Path, first: int, cases: int) -> tuple[Counter, float]:
    """Feed one reader; the outcomes with their counts, and the processor seconds of the slowest case.

    Raises:
        AssertionError: a case ended otherwise than with a result or an InputError; it names the file, which is left.
    """
    read, make_seeds, name = READERS[reader]
    seeds, path = make_seeds(), folder / name
    outcomes: Counter = Counter()
    slowest = 0.0
    for seed in tqdm(range(first, first + cases), reader, leave=False, unit="case", mininterval=2):
        path.write_bytes(case(np.random.default_rng((seed, len(reader))), seeds))
        began = time.process_time()
        try:
            with limits(), redirect_stderr(io.StringIO()):  # warnings about stray lines and encodings
                outcomes[read(path)] += 1
        except InputError as error:
            if "\n" in str(error) or not str(error):
                raise AssertionError(f"{reader}, case {seed}, {path}: not a line: {str(error)!r}") from error
            outcomes["InputError"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{reader}, case {seed}, {path}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.process_time() - began)
        if slowest > SECONDS:  # a call into C, which no signal ends
            raise AssertionError(f"{reader}, case {seed}, {path}: {slowest:.1f} s of processor time")
    return outcomes, slowest


def bound_memory(more: int) -> None:
    """Let this process take ``more`` bytes of addresses than it has now; what it asks beyond is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))


def memory(field: str) -> int:
    """Bytes of memory of this process: ``VmRSS``, what it has now, or ``VmHWM``, the most since :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Let the peak of the memory count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


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
            folder = Path(name) / "a/b/c/d"  # so that "../../.." leads to nothing large
            prepare(folder)
            bound_memory(MEMORY)
            forget_peak()
            began, before = time.perf_counter(), memory("VmRSS")
            try:
                outcomes, slowest = fuzz(reader, folder, args.first, args.cases)
            except AssertionError as error:
                args.output.mkdir(parents=True, exist_ok=True)
                kept = shutil.copy(folder / READERS[reader][2], args.output / f"{reader}_{READERS[reader][2]}")
                failed.append(f"{error} (kept as {kept})")
                print(failed[-1], flush=True)
                continue
        words = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        seconds, most = time.perf_counter() - began, (memory("VmHWM") - before) / 2**20
        print(
            f"{reader}: {args.cases} cases in {seconds:.0f} s, the slowest {slowest:.2f} s of processor time, "
            f"{most:.0f} MiB of memory at most: {words}",
            flush=True,
        )
    if failed:
        raise InputError(f"{len(failed)} reader(s) failed, the first: {failed[0]}")


if __name__ == "__main__":
    run(get_args_parser(), main)
