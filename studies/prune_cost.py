"""What pruning costs: seconds and memory from a sparse network to the files, evaluation aside.

The network has random weights, and gammas of which 70 % are near zero.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # run as `python studies/prune_cost.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models import Darknet
from utils.cli import ArgumentParser, add_size_option, number, run
from utils.detection.complexity import count_parameters
from utils.pruning.proof import prove, write_pruned
from utils.pruning.pruner import Pruner
from utils.pruning.selection import STRATEGIES


def get_args_parser() -> argparse.ArgumentParser:
    """The options of prune_cost.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the network's cfg")
    add_size_option(parser, "size in pixels of the proof's images", default=416)
    parser.add_argument("--percent", type=number(float, 0, 0.95), default=0.65, help="share of the channels to cut")
    return parser


def main(args: argparse.Namespace) -> None:
    """Prune with each strategy; print seconds and memory."""
    model = sparse_network(args.model_def)
    print(f"{args.model_def}: {count_parameters(model):,} parameters, {torch.get_num_threads()} threads")
    for strategy in STRATEGIES:
        start = time.perf_counter()
        result = Pruner(model, strategy).at(args.percent)
        compact = result.pruned.model
        cut = time.perf_counter()
        difference = prove(result.reference, compact, args.img_size)
        proved = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            paths = Path(folder) / "pruned.cfg", Path(folder) / "pruned.pth"
            write_pruned(compact, *paths, {"names": ["hand"], "img_size": args.img_size})
        end = time.perf_counter()
        print(
            f"{strategy}: {end - start:.1f} s (coupling and compact network {cut - start:.1f}, "
            f"proof {proved - cut:.1f}, files {end - proved:.1f}), "
            f"{count_parameters(compact):,} parameters left, largest difference {difference:.1e}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def sparse_network(model_def: str) -> Darknet:
    """A network whose gammas look like those of sparse training, in eval mode."""
    random = torch.Generator().manual_seed(0)
    model = Darknet(model_def).eval()
    for norm in model.batch_norms.values():
        small = torch.rand(len(norm.weight), generator=random) < 0.7
        norm.weight.data[small] = 1e-3
        norm.bias.data.normal_(generator=random)
        norm.running_mean.normal_(0, 0.3, generator=random)
        norm.running_var.uniform_(0.5, 2, generator=random)
    return model


if __name__ == "__main__":
    run(get_args_parser(), main)
