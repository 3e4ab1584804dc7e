"""What the data check costs: time and memory of the first and the second check of labelled JPEG images."""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

if not __package__:  # run as `python studies/check_cost.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from utils.cli import ArgumentParser, number, run
from utils.data.check import check_data
from utils.data.data_config import DataConfig
from utils.workers import usable_cores

DIFFERENT = 50  # images; the others are copies
BOXES = 7  # per image


def get_args_parser() -> argparse.ArgumentParser:
    """The options of check_cost.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--images", type=number(int, 1), default=2000, help="number of images")
    parser.add_argument("--width", type=number(int, 16), default=640, help="width in pixels, 4 / 3 of the height")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the images, check them twice, decode them once; print time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_data(Path(folder), args.images, args.width)
        list_path = Path(folder) / "set.txt"
        data = DataConfig(Path(folder) / "set.data", 1, list_path, list_path, ["thing"])
        print(f"{args.images} images, {args.width} x {args.width * 3 // 4}, {BOXES} boxes each, {usable_cores()} cores")
        measure("first check", lambda: check_data(data, "train"))
        measure("second check", lambda: check_data(data, "train"))
        measure("decoding alone, a thread per core", lambda: decode(paths))


def measure(name: str, function: Callable[[], object]) -> None:
    """Print the seconds of a call, those of the CPU, and by how much the process's peak memory grew."""
    memory, start, cpu = peak_memory(), time.perf_counter(), time.process_time()
    function()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{name}: {seconds:.1f} s, {cpu:.1f} s of CPU, {peak_memory() - memory:.0f} MiB more at the peak")


def peak_memory() -> float:
    """The largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def write_data(folder: Path, count: int, width: int) -> list[Path]:
    """Write labelled images of blurred noise and their list, ``set.txt``; return the images' paths."""
    random = np.random.default_rng(0)
    jpegs = [jpeg(random, width) for _ in range(min(count, DIFFERENT))]
    for name in ("images", "labels"):
        (folder / name).mkdir()
    paths = [folder / "images" / f"{place:06d}.jpg" for place in range(count)]
    for place, path in enumerate(paths):
        path.write_bytes(jpegs[place % len(jpegs)])
        centres = random.uniform(0.3, 0.7, (BOXES, 2))
        lines = [f"0 {x:.4f} {y:.4f} 0.4 0.4\n" for x, y in centres]
        (folder / "labels" / f"{path.stem}.txt").write_text("".join(lines))
    (folder / "set.txt").write_text("".join(f"{path}\n" for path in paths))
    return paths


def jpeg(random: np.random.Generator, width: int) -> bytes:
    """A JPEG file of blurred noise."""
    coarse = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(coarse).resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(paths: list[Path]) -> None:
    """Decode the images, without looking at them."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda path: Image.open(path).load(), paths):
            pass


if __name__ == "__main__":
    run(get_args_parser(), main)
