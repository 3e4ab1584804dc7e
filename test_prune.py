"""Cuts the dead channels out of a sparse model: a smaller cfg and checkpoint that compute the same, and the proof."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from terminaltables import AsciiTable

from models import Darknet
from test import evaluate
from utils.cfg import format_cfg
from utils.checkpoints import load_weights, state_dict_size, write_checkpoint
from utils.cli import ArgumentParser, number, run
from utils.coupling import couple
from utils.darknet_weights import is_darknet_weights, write_darknet_weights
from utils.datasets import DataConfig, DetectionDataset, loader, read_data_config
from utils.devices import pick_device
from utils.errors import InputError
from utils.files import atomic_writer, set_aside, write_json
from utils.options import check_classes, network_size
from utils.plots import channels_figure, save_figure
from utils.profiling import count_macs, count_parameters, forward_ms
from utils.pruning import largest_difference, prune
from utils.sparsity import gamma_sizes
from utils.strategies import STRATEGIES, allowed_percent, choose

# The compact network must agree with the reference to this share of the largest raw output.
TOLERANCE = 1e-4


def get_args_parser() -> argparse.ArgumentParser:
    """The options of test_prune.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the sparse network's cfg")
    parser.add_argument("--weights_path", default="checkpoints/yolov3_ckpt.pth", help="the sparse network's weights")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data file")
    parser.add_argument(
        "--percent", type=number(float, 0, 0.9999), default=0.85, help="share of the prunable channels to cut, below 1"
    )
    parser.add_argument("--strategy", choices=STRATEGIES, help="default: the one that the model was trained with")
    parser.add_argument(
        "--layer_keep", type=number(float, 0, 1), default=0.01, help="share of a layer's channels to keep, at least one"
    )
    parser.add_argument("--out_cfg", help="default: the cfg's name with prune_ in front")
    parser.add_argument("--out_weights", help="default: the weights' name with prune_ in front; x.weights for Darknet")
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the cfg's if not given")
    parser.add_argument("--batch_size", type=number(int, 1), default=8, help="pictures at a time")
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="worker processes that read pictures")
    parser.add_argument("--json", metavar="FILE", help="write the results there, too")
    return parser


@dataclass(frozen=True)
class Measures:
    """One side of the before/after table."""

    mAP: float
    parameters: int
    macs: int
    size_bytes: int
    forward_ms: float


def main(args: argparse.Namespace) -> None:
    """Prune, prove, measure, and only then write."""
    model = Darknet(args.model_def)
    about = load_weights(model, args.weights_path)
    strategy = args.strategy or about.get("strategy", "normal")
    img_size = network_size(model, args.img_size or about.get("img_size"))
    data = read_data_config(args.data_config)
    check_classes(model, data)
    dataset = DetectionDataset(data.images("valid"), data.classes, img_size)
    model.to(pick_device()).eval()

    coupling = couple(model.network)
    gammas = gamma_sizes(model)
    print(f"a global threshold could take {allowed_percent(coupling, strategy, gammas):.1%} and leave every layer one")
    choice = choose(coupling, strategy, gammas, args.percent, args.layer_keep)
    if choice.floored:
        print(f"layers {', '.join(map(str, choice.floored))} are at their floor")
    reference, pruned = prune(model, coupling, choice.dead)
    max_diff = prove(reference, pruned.model, img_size)
    print(
        f"strategy {strategy}, {args.percent:.0%}: |gamma| up to {choice.threshold:.3g} dies; "
        f"{pruned.carriers} constant carriers, {pruned.silenced} channels silenced; "
        f"largest difference to the masked network {max_diff:.1e}"
    )

    before, after = measure(model, pruned.model, dataset, data, img_size, args)
    print(comparison_table(before, after))
    out_cfg, out_weights = output_paths(args)
    names = {"names": data.names, "img_size": img_size, "epoch": 0, "step": 0, "best_map": after.mAP}
    write_pruned(pruned.model, out_cfg, out_weights, names | {"options": vars(args), "strategy": strategy})
    picture = Path("runs") / out_cfg.stem / "channels.png"
    layers = model.network.convolutions
    counts = [int(pruned.kept[layer.index].sum()) for layer in layers]
    save_figure(channels_figure([c.index for c in layers], [c.channels for c in layers], counts), picture)
    print(f"{out_cfg}\n{out_weights}\n{picture}: channels before and after")
    if args.json:
        report = {"before": asdict(before), "after": asdict(after), "max_diff": max_diff, "percent": args.percent}
        report |= {"strategy": strategy, "silenced": pruned.silenced, "carriers": pruned.carriers}
        rows = zip(layers, counts, strict=True)
        report["layers"] = [{"layer": c.index, "before": c.channels, "after": count} for c, count in rows]
        write_json(args.json, report)


def prove(reference: Darknet, compact: Darknet, img_size: int) -> float:
    """The largest relative difference of the raw outputs on random pictures.

    Raises:
        InputError: it is larger than TOLERANCE, so that the compact network must not be used.
    """
    difference = largest_difference(reference, compact, img_size)
    if not difference <= TOLERANCE:
        raise InputError(
            f"the pruned network differs from the masked one by {difference:.1e} of its outputs, more than "
            f"{TOLERANCE:.0e}: nothing was written"
        )
    return difference


def measure(
    model: Darknet,
    compact: Darknet,
    dataset: DetectionDataset,
    data: DataConfig,
    img_size: int,
    args: argparse.Namespace,
) -> tuple[Measures, Measures]:
    """Both sides of the table; the forward times are of one picture, taken in turns."""
    picture = torch.rand(1, 3, img_size, img_size, device=next(model.parameters()).device)
    times = forward_ms([model, compact], picture)
    batches = loader(dataset, args.batch_size, args.n_cpu)
    sides = []
    for network, milliseconds in zip((model, compact), times, strict=True):
        metrics, _ = evaluate(network, batches, data.names)
        macs = count_macs(network.blocks, img_size)
        sides.append(Measures(metrics.mAP, count_parameters(network), macs, state_dict_size(network), milliseconds))
    return sides[0], sides[1]


def comparison_table(before: Measures, after: Measures) -> str:
    """The table Metric / Before / After."""
    rows = [["Metric", "Before", "After", "After / Before"]]
    rows.append(["mAP@0.5", f"{before.mAP:.4f}", f"{after.mAP:.4f}", f"{after.mAP - before.mAP:+.4f}"])
    for label, name, unit, digits in (
        ("Parameters", "parameters", 1, 0),
        ("MACs", "macs", 1, 0),
        ("File size (MB)", "size_bytes", 1e6, 2),
        ("Forward (ms)", "forward_ms", 1, 2),
    ):
        old, new = getattr(before, name) / unit, getattr(after, name) / unit
        rows.append([label, f"{old:,.{digits}f}", f"{new:,.{digits}f}", f"{new / old:.1%}"])
    table = AsciiTable(rows)
    table.justify_columns = dict.fromkeys((1, 2, 3), "right")
    return table.table


def output_paths(args: argparse.Namespace) -> tuple[Path, Path]:
    """Where the cfg and the weights go: beside the input, ``prune_`` in front of its name."""
    cfg, weights = Path(args.model_def), Path(args.weights_path)
    default = weights.with_name(f"prune_{weights.name}")
    return Path(args.out_cfg or cfg.with_name(f"prune_{cfg.name}")), Path(args.out_weights or default)


def write_pruned(compact: Darknet, out_cfg: Path, out_weights: Path, about: dict) -> None:
    """Write cfg and weights, read both back, and put them in place only if they give the same network.

    What stood there before is kept under a numbered name.
    """
    with atomic_writer(out_cfg) as cfg_file, atomic_writer(out_weights) as weights_file:
        cfg_file.write(format_cfg(compact.blocks).encode())
        cfg_file.flush()
        if is_darknet_weights(out_weights):
            write_darknet_weights(compact, weights_file)
        else:
            write_checkpoint(weights_file, compact, **about)
        weights_file.flush()
        check_files(compact, cfg_file.name, weights_file.name)
        for path in (out_cfg, out_weights):
            if kept := set_aside(path):
                print(f"the old {path} is kept as {kept}")


def check_files(compact: Darknet, cfg: str, weights: str) -> None:
    """Raise an InputError unless the files hold exactly ``compact``."""
    again = Darknet(cfg)
    load_weights(again, weights)
    wanted = compact.state_dict()
    differing = [
        name
        for name, tensor in again.state_dict().items()
        if not name.endswith("num_batches_tracked") and not torch.equal(tensor, wanted[name].cpu())
    ]
    if again.blocks != compact.blocks or differing:
        raise InputError(f"read back, the files do not give the pruned network ({differing[:1] or cfg})")


if __name__ == "__main__":
    run(get_args_parser(), main)
