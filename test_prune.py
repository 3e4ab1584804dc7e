"""Cuts the dead channels out of a sparse model: a smaller cfg and checkpoint that compute the same, and the proof."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from terminaltables import AsciiTable
from torch.utils.data import DataLoader

from models import Darknet
from utils.cli import ArgumentParser, number, run
from utils.data.check import check_data
from utils.data.datasets import DetectionDataset, loader, read_data_config
from utils.detection.checkpoints import load_weights
from utils.detection.complexity import count_parameters, state_dict_size
from utils.detection.evaluate import evaluate
from utils.detection.inference import for_inference
from utils.detection.options import add_skip_bad_option, check_classes, network_size
from utils.devices import device_of, pick_device
from utils.errors import InputError
from utils.files import refuse_folder, write_json
from utils.plots import channels_figure, save_figure, sweep_figure
from utils.pruning.coupling import couple
from utils.pruning.proof import prove, write_pruned
from utils.pruning.pruner import DEFAULT_RATIO, LARGEST_RATIO, Pruner, Trial, largest_ratio, smallest_ratio
from utils.pruning.selection import STRATEGIES, allowed_ratio
from utils.timing import Timing, forward_times

SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def get_args_parser() -> argparse.ArgumentParser:
    """The options of test_prune.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_def", default="config/yolov3-hand.cfg", help="the sparse network's cfg")
    parser.add_argument("--weights_path", default="checkpoints/yolov3_ckpt.pth", help="the sparse network's weights")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data file")

    share = number(float, 0, 1)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--percent",
        type=number(float, 0, LARGEST_RATIO),
        help="share of the prunable channels to cut, below 1; default: the --target_percent that the model was trained "
        f"for, else {DEFAULT_RATIO}",
    )
    amount.add_argument("--max_map_drop", type=share, help="cut as much as costs at most this much mAP@0.5")
    amount.add_argument("--target_macs", type=share, help="cut until at most this share of the MACs is left")
    amount.add_argument("--target_params", type=share, help="cut until at most this share of the parameters is left")
    amount.add_argument(
        "--target_ms", type=number(float, above=0), help="cut until a forward pass takes this long here"
    )
    amount.add_argument("--sweep", action="store_true", help="measure a range of ratios, and write only the curve")

    parser.add_argument("--strategy", choices=STRATEGIES, help="default: the one that the model was trained with")
    parser.add_argument("--layer_keep", type=share, default=0.01, help="share of a layer to keep, at least a channel")
    parser.add_argument("--round_to", type=number(int, 1), default=1, help="layers keep a multiple of this")
    parser.add_argument("--prune_blocks", type=number(int, 0), default=0, help="residual blocks to cut out whole")
    parser.add_argument(
        "--fold",
        choices=("exact", "bias"),
        default="exact",
        help="bias: no constant carriers, but an error at the borders, as in older tools",
    )
    parser.add_argument("--force", action="store_true", help="prune a model that was never trained sparse")
    parser.add_argument("--show_coupling", action="store_true", help="only list coupled channels, and what is fixed")
    parser.add_argument("--out_cfg", help="default: the cfg's name with prune_ in front")
    parser.add_argument("--out_weights", help="default: the weights' name with prune_ in front; x.weights for Darknet")
    add_skip_bad_option(parser)
    parser.add_argument("--img_size", type=number(int, 32), help="side in pixels; the model's if not given")
    parser.add_argument("--batch_size", type=number(int, 1), default=8, help="images at a time")
    parser.add_argument("--n_cpu", type=number(int, 0), default=4, help="worker processes that read images")
    parser.add_argument("--json", metavar="FILE", help="write the results there, too")
    return parser


@dataclass(frozen=True)
class Measures:
    """One side of the before/after table; ``forward_quartiles_ms`` is the spread of ``forward_ms``, their median."""

    mAP: float
    parameters: int
    macs: int
    size_bytes: int
    forward_ms: float
    forward_quartiles_ms: tuple[float, float]


class Bench:
    """Measures networks on the validation images of a data set."""

    def __init__(self, batches: DataLoader, names: list[str], img_size: int, device: torch.device):
        self.batches = batches
        self.names = names
        self.img_size = img_size
        self.image = torch.rand(1, 3, img_size, img_size, device=device)

    def mean_ap(self, model: Darknet) -> float:
        """mAP@0.5."""
        return evaluate(model, self.batches, self.names)[0].mAP

    def macs(self, model: Darknet) -> int:
        """MACs at the size of the bench."""
        return model.spec.at(self.img_size).macs

    def forward(self, *models: Darknet) -> list[Timing]:
        """The time of a forward pass of one image, in turns, each network as it detects."""
        return forward_times([for_inference(model) for model in models], self.image)

    def forward_share(self, model: Darknet, of: Darknet) -> float:
        """The time of a forward pass of one image as a share of another network's, taken in turns."""
        own, other = self.forward(model, of)
        return own.median / other.median

    def compare(self, *models: Darknet) -> list[Measures]:
        """Everything about each network; forward times of one image, taken in turns."""
        return [
            Measures(
                self.mean_ap(model),
                count_parameters(model),
                self.macs(model),
                state_dict_size(model),
                time.median,
                (time.low, time.high),
            )
            for model, time in zip(models, self.forward(*models), strict=True)
        ]


def main(args: argparse.Namespace) -> None:
    """Choose a ratio, prune, prove, measure, and only then write."""
    model = Darknet(args.model_def)
    if args.show_coupling:
        print(couple(model.spec).describe())
        return
    for path in output_paths(args):
        refuse_folder(path)
    about = load_weights(model, args.weights_path)
    strategy = args.strategy or about.get("strategy", "normal")
    if args.percent is None:
        args.percent = trained_ratio(about)
    img_size = network_size(model, args.img_size or about.get("img_size"))
    data = read_data_config(args.data_config)
    check_classes(model, data)
    checked = check_data(data, "valid", args.skip_bad)
    dataset = DetectionDataset(checked.images, checked.labels, img_size)
    model.to(pick_device()).eval()
    bench = Bench(loader(dataset, args.batch_size, args.n_cpu), data.names, img_size, device_of(model))

    pruner = Pruner(model, strategy, args.layer_keep, args.round_to, args.prune_blocks, args.fold == "bias")
    if pruner.blocks:
        print(f"residual blocks cut out, by their shortcuts: {sorted(block.shortcut for block in pruner.blocks)}")
    allowed = allowed_ratio(pruner.coupling, strategy, pruner.gammas)
    print(f"strategy {strategy}: a global threshold could take {allowed:.1%} of the channels and leave every layer one")
    if args.sweep:
        sweep(pruner, bench, args)
        return
    trial = pruner.at(chosen_ratio(pruner, bench, args))
    if not pruner.separated(trial.choice) and not args.force:
        raise InputError(
            f"{args.weights_path}: at {trial.ratio:.1%} gammas up to {trial.choice.threshold:.3g} would die, not "
            "clearly smaller than the large ones: train with -sr, choose a lower ratio, or add --force"
        )
    max_diff = prove(trial, img_size, args.fold)
    describe(trial, max_diff, pruner)
    before, after = bench.compare(model, trial.pruned.model)
    print(comparison_table(before, after))

    out_cfg, out_weights = output_paths(args)
    about = {"names": data.names, "img_size": img_size, "epoch": 0, "step": 0, "best_map": after.mAP}
    write_pruned(trial.pruned.model, out_cfg, out_weights, about | {"options": vars(args), "strategy": strategy})
    image = Path("runs") / out_cfg.stem / "channels.png"
    layers = model.spec.convolutions
    counts = [trial.counts[layer.index] for layer in layers]
    save_figure(channels_figure([c.index for c in layers], [c.channels for c in layers], counts), image)
    print(f"{out_cfg}\n{out_weights}\n{image}: channels before and after")
    if args.json:
        rows = zip(layers, counts, strict=True)
        report = {
            "before": asdict(before),
            "after": asdict(after),
            "max_diff": max_diff,
            "percent": trial.ratio,
            "strategy": strategy,
            "silenced": trial.pruned.silenced,
            "carriers": trial.pruned.carriers,
            "layers": [{"layer": c.index, "before": c.channels, "after": count} for c, count in rows],
        }
        write_json(args.json, report)


def trained_ratio(about: dict) -> float:
    """The ratio that sparse training aimed at, by what its checkpoint says; DEFAULT_RATIO where it aimed at none."""
    options = about.get("options", {})
    return options["target_percent"] if options.get("s_schedule") in ("local", "target") else DEFAULT_RATIO


def chosen_ratio(pruner: Pruner, bench: Bench, args: argparse.Namespace) -> float:
    """The ratio of --percent, or the one that meets the budget, by bisection."""
    model = pruner.model

    def pruned(ratio: float) -> Darknet:
        return pruner.at(ratio).pruned.model

    if args.max_map_drop is not None:
        least = bench.mean_ap(model) - args.max_map_drop
        budget = f"mAP@0.5 of at least {least:.4f}"
        ratio = largest_ratio(lambda p: bench.mean_ap(pruned(p)) >= least, budget)
    elif args.target_macs is not None:
        most = args.target_macs * bench.macs(model)
        budget = f"at most {args.target_macs:.1%} of the MACs"
        ratio = smallest_ratio(lambda p: bench.macs(pruned(p)) <= most, budget)
    elif args.target_params is not None:
        most = args.target_params * count_parameters(model)
        budget = f"at most {args.target_params:.1%} of the parameters"
        ratio = smallest_ratio(lambda p: count_parameters(pruned(p)) <= most, budget)
    elif args.target_ms is not None:
        budget = f"a forward pass of {args.target_ms:g} ms"
        ratio = smallest_ratio(lambda p: bench.forward(pruned(p))[0].median <= args.target_ms, budget)
    else:
        return args.percent
    print(f"{ratio:.2%} of the prunable channels go, for {budget}")
    return ratio


def sweep(pruner: Pruner, bench: Bench, args: argparse.Namespace) -> None:
    """Measure the pruned network at a range of ratios; print the table, draw the curve."""
    parameters, macs = count_parameters(pruner.model), bench.macs(pruner.model)
    rows = []
    for ratio in SWEEP:
        trial = pruner.at(ratio)
        small = trial.pruned.model
        row = {"percent": ratio, "mAP": bench.mean_ap(small), "threshold": trial.choice.threshold}
        row |= {"parameters": count_parameters(small), "macs": bench.macs(small)}
        row["forward_share"] = bench.forward_share(small, pruner.model)
        rows.append(row)
    table = [["Ratio", "mAP@0.5", "Parameters left", "MACs left", "Forward time left", "|gamma| up to"]]
    table += [
        [
            f"{row['percent']:.0%}",
            f"{row['mAP']:.4f}",
            f"{row['parameters'] / parameters:.1%}",
            f"{row['macs'] / macs:.1%}",
            f"{row['forward_share']:.1%}",
            f"{row['threshold']:.3g}",
        ]
        for row in rows
    ]
    print(AsciiTable(table).table)
    image = Path("runs") / output_paths(args)[0].stem / "sweep.png"
    shares = {
        name: np.array([row[name] / whole for row in rows])
        for name, whole in (("parameters", parameters), ("macs", macs))
    }
    save_figure(sweep_figure(shares, [row["mAP"] for row in rows]), image)
    print(f"{image}: mAP against size")
    if args.json:
        write_json(args.json, {"strategy": pruner.strategy, "parameters": parameters, "macs": macs, "sweep": rows})


def describe(trial: Trial, max_diff: float, pruner: Pruner) -> None:
    """Say what died, what it took, and how exact it is."""
    if trial.choice.floored:
        old = [str(pruner.kept_layers[index]) for index in trial.choice.floored]
        print(f"layers {', '.join(old)} are at their floor")
    print(
        f"{trial.ratio:.1%}: |gamma| up to {trial.choice.threshold:.3g} dies; {trial.pruned.carriers} constant "
        f"carriers, {trial.pruned.silenced} channels silenced; largest difference to the masked network {max_diff:.1e}"
    )


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
    spread = ["{:,.2f} to {:,.2f}".format(*side.forward_quartiles_ms) for side in (before, after)]
    rows.append(["Half of the passes (ms)", *spread, ""])
    speed_up, fewer = before.forward_ms / after.forward_ms, before.macs / after.macs
    rows.append(["Speed-up", "", f"{speed_up:.2f}x", f"{speed_up / fewer:.0%} of the MACs' {fewer:.2f}x"])
    table = AsciiTable(rows)
    table.justify_columns = dict.fromkeys((1, 2, 3), "right")
    return table.table


def output_paths(args: argparse.Namespace) -> tuple[Path, Path]:
    """Where the cfg and the weights go: beside the input, ``prune_`` in front of its name."""
    cfg, weights = Path(args.model_def), Path(args.weights_path)
    default = weights.with_name(f"prune_{weights.name}")
    return Path(args.out_cfg or cfg.with_name(f"prune_{cfg.name}")), Path(args.out_weights or default)


if __name__ == "__main__":
    run(get_args_parser(), main)
