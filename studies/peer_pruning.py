"""Prunes a network with Torch-Pruning, the peer that the study compares with: one-shot, by the magnitude of its groups.

Torch-Pruning (arXiv 2301.12900) follows the graph of autograd as this repository follows the cfg. It drops the channels
that it cuts; what they added as constants is lost, and training has to make up for it.

    pip install torch-pruning==1.6.1
    python studies/peer_pruning.py --weights_path checkpoints/baseline_yolov3_ckpt.pth --target_macs 0.1
"""

import argparse
import copy
import sys
from pathlib import Path

if not __package__:  # run as `python studies/peer_pruning.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models import Darknet
from utils.cli import ArgumentParser, number, run
from utils.darknet.cfg import format_cfg
from utils.detection.checkpoints import load_darknet, save_checkpoint
from utils.files import write_text
from utils.optional import optional
from utils.pruning.budget import Budget, percent, smallest_ratio

LARGEST_RATIO = 0.95  # Torch-Pruning fails where a layer would lose all of its channels


def get_args_parser() -> argparse.ArgumentParser:
    """The options of peer_pruning.py, which are those of test_prune.py."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--weights_path", required=True, help="the checkpoint of the network to prune")
    parser.add_argument("--target_macs", type=number(float, 0, 1), required=True, help="share of the MACs to leave")
    parser.add_argument("--img_size", type=number(int, 32), default=416, help="side of the images in pixels")
    parser.add_argument("--data_config", help="ignored; so that the study gives the same options to every program")
    parser.add_argument("--out_cfg", default="config/prune_torch_pruning.cfg", help="the pruned cfg")
    parser.add_argument("--out_weights", default="checkpoints/prune_torch_pruning.pth", help="the pruned checkpoint")
    return parser


def main(args: argparse.Namespace) -> None:
    """Prune at the smallest ratio that reaches the budget."""
    model, metadata = load_darknet(args.weights_path, None)
    size = (args.img_size, args.img_size)
    macs = model.spec.at(size).macs

    def share(ratio: float) -> float:
        return prune(model, args.img_size, ratio).spec.at(size).macs / macs

    goal = Budget(target_macs=args.target_macs).goal
    ratio = smallest_ratio(share, args.target_macs, str(goal), percent, LARGEST_RATIO)
    pruned = prune(model, args.img_size, ratio)
    write_text(Path(args.out_cfg), format_cfg(pruned.blocks))
    save_checkpoint(args.out_weights, pruned, names=metadata["names"], img_size=args.img_size, pruned=True)
    print(f"{args.out_weights}: {pruned.spec.parameters:,} parameters, {pruned.spec.at(size).macs:,} MACs")


def prune(model: Darknet, img_size: int, ratio: float) -> Darknet:
    """Cut about ``ratio`` of the channels out of a copy of ``model``, the least important groups of all layers."""
    pruning, model = optional("torch_pruning"), copy.deepcopy(model).eval()
    pruning.pruner.BasePruner(
        model,
        torch.zeros(1, 3, img_size, img_size),
        importance=pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[model.conv(head.sources[0]) for head in model.spec.heads],
        forward_fn=lambda network, images: network.raw_outputs(images),
    ).step()
    blocks = [block.copy() for block in model.blocks]
    for layer in model.spec.convolutions:
        blocks[1 + layer.index]["filters"] = str(model.conv(layer.index).out_channels)
    pruned = Darknet(blocks)
    pruned.load_state_dict(model.state_dict())
    return pruned


if __name__ == "__main__":
    run(get_args_parser(), main)
