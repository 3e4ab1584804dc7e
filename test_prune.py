"""Cuts the dead channels out of a sparse model: a smaller cfg and checkpoint that compute the same, and the proof."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from models import Darknet
from utils.cli import ArgumentParser, add_size_option, number, output_file, run
from utils.data.data_config import read_data_config
from utils.data.images import readable, some_images, spread
from utils.detection.checkpoints import load_darknet
from utils.detection.complexity import count_parameters
from utils.detection.evaluate import validation_batches
from utils.detection.inference import on_device
from utils.detection.options import (
    add_check_options,
    add_device_option,
    add_workers_option,
    label_rules,
    network_size,
)
from utils.devices import device_of
from utils.errors import InputError
from utils.files import refuse_folder, refuse_inputs, write_json
from utils.kept_rows import KeptRows, measured_network
from utils.plots import channels_figure, save_figure
from utils.pruning.budget import DEFAULT_RATIO, LARGEST_RATIO, Budget, choose_ratio, pruner_by_size, trained_ratio
from utils.pruning.compare import Bench, Measures, comparison_table
from utils.pruning.coupling import couple
from utils.pruning.graph_timer.runners import RUNNERS
from utils.pruning.importance import IMPORTANCES
from utils.pruning.latency import Latency, latency_of, timing_device
from utils.pruning.proof import head_difference, prove, write_pruned
from utils.pruning.pruner import Pruner, PruningResult
from utils.pruning.reconstruction import IMAGES
from utils.pruning.residuals import ResidualBlock
from utils.pruning.selection import STRATEGIES, describe_room
from utils.pruning.sweep import plot_sweep, print_sweep, sweep, sweep_subject
from utils.report.detections import Collected
from utils.report.runs import Network, report_pruning, warned_of
from utils.sizes import Size
from utils.training.runs import network_before_cut

MODEL_DEF = "config/yolov3-hand.cfg"  # what the pruned cfg is called after where a checkpoint names no cfg


def get_args_parser() -> argparse.ArgumentParser:
    """The options of test_prune.py."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--weights_path",
        default="checkpoints/yolov3_ckpt.pth",
        help="the sparse model's checkpoint; a Darknet .weights file or a plain state dict needs --model_def",
    )
    parser.add_argument("--model_def", help="the sparse model's cfg; default: the cfg in the checkpoint")
    parser.add_argument("--data_config", default="config/oxfordhand.data", help="the data set's .data or .yaml file")

    share, above_zero = number(float, 0, 1), number(float, high=1, above=0)
    amount = parser.add_argument_group("how much to prune (one of these)").add_mutually_exclusive_group()
    amount.add_argument(
        "--percent",
        type=number(float, 0, LARGEST_RATIO),
        help="ratio: the share of the prunable channels to cut, below 1; default: the --target_percent that the model "
        f"was trained for, else {DEFAULT_RATIO}",
    )
    amount.add_argument("--max_map_drop", type=share, help="the largest ratio that costs at most this much mAP@0.5")
    amount.add_argument(
        "--target_macs", type=above_zero, help="the smallest ratio that leaves at most this share of MACs"
    )
    amount.add_argument(
        "--target_params", type=above_zero, help="the smallest ratio that leaves at most this share of parameters"
    )
    amount.add_argument(
        "--target_ms",
        type=number(float, above=0),
        help="the smallest ratio with which a forward pass of one image takes at most so many milliseconds: in "
        "PyTorch here, or in the --runtime",
    )
    amount.add_argument("--sweep", action="store_true", help="measure a range of ratios; write the curve alone")

    which = parser.add_argument_group("what to prune")
    which.add_argument("--strategy", choices=STRATEGIES, help="default: the strategy that the model was trained with")
    which.add_argument(
        "--importance",
        choices=IMPORTANCES,
        default="gamma",
        help="what decides which channels are cut: |gamma|, for sparse models; or the magnitude of the kernels, for "
        "models that were not trained sparse and will be trained on after the cut",
    )
    which.add_argument(
        "--cost",
        choices=("uniform", "size"),
        help="what a channel costs; uniform: all alike, so that one threshold on importance decides; size: the MACs "
        "that go with it, or with --target_params the parameters, so that what saves most for its importance goes, in "
        "groups of channels, as in train.py -sr; default: uniform for gamma, size for magnitude",
    )
    which.add_argument(
        "--layer_keep",
        type=share,
        default=0.01,
        help="share of each layer's channels to keep in any case; at least one channel stays",
    )
    which.add_argument(
        "--round_to",
        type=number(int, 1),
        default=1,
        help="layers keep a multiple of so many channels, or all of them",
    )
    which.add_argument(
        "--prune_blocks",
        type=number(int, 0),
        default=0,
        help="number of residual blocks to remove, weakest first",
    )
    which.add_argument(
        "--fold",
        choices=("exact", "bias"),
        default="exact",
        help="where the constants of dead channels go; bias: into biases alone, without constant carriers, as in older "
        "tools: wrong at the image's borders",
    )
    which.add_argument(
        "--reconstruct",
        action="store_true",
        help=f"fit the kernels that are left to what the whole network did, by least squares on {IMAGES} training "
        "images without their labels (or 8 times the --batch_size): for cuts that are not lossless",
    )
    which.add_argument(
        "--runtime",
        choices=RUNNERS,
        help="cut what costs the most time in this runtime for its importance, residual blocks too; the first time "
        "measures a table of latencies, in minutes; default: none",
    )
    which.add_argument(
        "--latency_table",
        metavar="FILE",
        help="as --runtime, but by a table that was measured elsewhere, see export.py --latency_table; default: none",
    )
    which.add_argument("--threads", type=number(int, 1), default=1, help="threads of the --runtime")
    which.add_argument("--force", action="store_true", help="prune a model that is not sparse, too")
    which.add_argument("--show_coupling", action="store_true", help="list the coupled channels and what is fixed; stop")

    parser.add_argument("--out_cfg", help="the pruned cfg; default: the cfg's name with prune_ in front")
    parser.add_argument(
        "--out_weights",
        help="the pruned checkpoint, or x.weights for a Darknet file; default: the weights' name with prune_ in front",
    )
    add_check_options(parser)
    add_size_option(parser, "size of the input in pixels, by default that in the checkpoint or else in its cfg")
    parser.add_argument("--batch_size", type=number(int, 1), default=8, help="images per batch")
    add_workers_option(parser)
    add_device_option(parser)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results to this file")
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure a range of ratios, or choose one and cut."""
    if args.show_coupling:
        show_coupling(args)
        return
    cost = cost_of(args)
    model, metadata = load_darknet(args.weights_path, args.model_def)
    paths = output_paths(args, metadata)
    bench = bench_for(model, metadata, args)
    latency = latency_for(model, bench, args)
    pruners = pruners_for(model, metadata, bench, latency, cost, args)
    pruner = pruners["latency"] if latency else next(iter(pruners.values()))
    print_removed(pruner.residual_blocks)
    print(f"strategy {pruner.strategy}: {room_for(pruner, metadata)}")
    if args.sweep:
        measure_sweep(pruners, bench, latency, Path("runs") / paths[0].stem, args)
    else:
        cut(pruner, metadata, bench, latency, paths, args)


def cut(
    pruner: Pruner,
    metadata: dict[str, Any],
    bench: Bench,
    latency: Latency | None,
    paths: tuple[Path, Path],
    args: argparse.Namespace,
) -> None:
    """Choose a ratio, prune, prove, measure, and only then write the cfg and the weights to ``paths``."""
    model, (out_cfg, out_weights) = pruner.model, paths
    budget = budget_of(args, metadata)
    result = pruner.at(choose_ratio(pruner, budget, bench.img_size, latency, bench))
    if budget.goal:
        print(f"{result.ratio:.2%} of the prunable channels are to go, for {budget.goal} of {args.weights_path}")
    if not args.force and pruner.kind == "gamma":
        refuse_dense(pruner, result, args.weights_path)
    max_diff = proof(result, bench.img_size, args.fold)
    describe(result, max_diff, pruner)
    compact = pruner.finished(result)
    original = original_network(metadata, model, args.weights_path)
    collected = Collected(), Collected()
    before, after = bench.compare(original.model, compact, each=collected)
    print(comparison_table(before, after))
    in_runtime = None
    if latency:
        # A table knows the layers that it was made for, not those of the network before a cut in training.
        in_runtime = latency.compare(original.model if latency.runtime else model, compact)
        print(latency.describe(in_runtime))

    its_metadata = metadata_of(result, pruner.strategy, bench, after, out_cfg, args)
    write_pruned(compact, out_cfg, out_weights, its_metadata)
    print(f"{out_cfg}\n{out_weights}")
    plots = Path("runs") / out_cfg.stem
    plot = plots / "channels.png"
    with warned_of(plot):
        plot_channels(original.model, result, plot)
        print(f"{plot}: channels before and after")
    if args.json:
        write_report(args.json, original.model, result, pruner.strategy, max_diff, before, after, in_runtime)
    networks = original, Network("after", out_weights, compact, its_metadata)
    report_pruning(plots, bench, networks, (before, after), collected, result, max_diff)


def pruners_for(
    model: Darknet, metadata: dict[str, Any], bench: Bench, latency: Latency | None, cost: str, args: argparse.Namespace
) -> dict[str, Pruner]:
    """What prunes by the times of a runtime, or without these by ``cost``; both for a sweep, side by side."""
    strategy = args.strategy or metadata.get("strategy", "normal")
    options = (args.layer_keep, args.round_to, args.prune_blocks, args.fold == "bias", args.importance)
    images = images_for(bench, args) if args.reconstruct else None
    pruner_by = partial(Pruner, model, strategy, *options, images=images)
    pruners = {}
    if args.sweep or not latency:
        if cost == "size":
            by_groups, budget = partial(pruner_by, whole_blocks=False), budget_of(args, metadata)
            pruners["size"] = pruner_by_size(model.spec.at(bench.img_size), budget, by_groups)
        else:
            pruners["threshold"] = pruner_by()
    if latency:
        pruners["latency"] = pruner_by(costs=latency.table)
    return pruners


def cost_of(args: argparse.Namespace) -> str:
    """The --cost, or what it is by default.

    Raises:
        InputError: it contradicts other options.
    """
    timed = bool(args.runtime or args.latency_table)
    if args.cost and timed and not args.sweep:
        raise InputError("--cost: with --runtime or --latency_table milliseconds are what a channel costs")
    cost = args.cost or ("size" if args.importance == "magnitude" else "uniform")
    if args.prune_blocks and (timed or cost == "size"):
        raise InputError(
            "--prune_blocks goes with --cost uniform alone: times say themselves which residual blocks go, and where "
            "channels go by size all stay"
        )
    return cost


def room_for(pruner: Pruner, metadata: dict[str, Any]) -> str:
    """How much can be pruned, in words, where gammas say it."""
    if "before_cut" in metadata:
        return "cut in training"
    if pruner.kind != "gamma":
        return "by its kernels"
    return describe_room(pruner.coupling, pruner.strategy, pruner.gammas)


def metadata_of(
    result: PruningResult, strategy: str, bench: Bench, after: Measures, out_cfg: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """What the checkpoint of the pruned network says about itself."""
    return {
        "names": bench.names,
        "img_size": bench.img_size.plain,
        "epoch": 0,
        "step": 0,
        "best_map": after.mAP,
        "options": vars(args) | {"model_def": str(out_cfg), "percent": result.ratio},
        "strategy": strategy,
        "pruned": {"from": args.weights_path, "ratio": result.ratio, "strategy": strategy},
    }


def show_coupling(args: argparse.Namespace) -> None:
    """Print which channels are coupled; where a cfg is given, no weights are needed."""
    model = Darknet(args.model_def) if args.model_def else load_darknet(args.weights_path, None)[0]
    print(couple(model.spec).describe())


def output_paths(args: argparse.Namespace, metadata: dict[str, Any]) -> tuple[Path, Path]:
    """Where the cfg and the weights go: by default beside the input, with ``prune_`` in front of its name.

    Without --model_def the cfg is called after the one that the model was trained with, and goes to the folder config.

    Raises:
        InputError: one of them is a folder, or both are one file.
    """
    trained_with = metadata.get("options", {}).get("model_def") or MODEL_DEF
    cfg = Path(args.model_def or Path("config") / Path(trained_with).name)
    weights = Path(args.weights_path)
    paths = (
        Path(args.out_cfg or cfg.with_name(f"prune_{cfg.name}")),
        Path(args.out_weights or weights.with_name(f"prune_{weights.name}")),
    )
    for path in paths:
        refuse_folder(path)
    if paths[0].resolve() == paths[1].resolve():
        raise InputError(f"--out_cfg and --out_weights are both {paths[0]}: give two files")
    return paths


def bench_for(model: Darknet, metadata: dict[str, Any], args: argparse.Namespace) -> Bench:
    """What measures networks on the validation images; ``model`` is brought to its device, in eval mode."""
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    data = read_data_config(args.data_config)
    refuse_inputs(data.files, [args.json])
    on_device(model, args.device).eval()
    batches, _ = validation_batches(
        model, data, img_size, args.batch_size, args.n_cpu, args.skip_bad, label_rules(args)
    )
    return Bench(batches, data.names, img_size, device_of(model))


def images_for(bench: Bench, args: argparse.Namespace) -> Tensor:
    """Training images for --reconstruct, on the device of the network.

    Raises:
        InputError: there is none, or one of them cannot be read; with --skip_bad only where none can.
    """
    data, count = read_data_config(args.data_config), min(IMAGES, 8 * args.batch_size)
    if args.skip_bad:
        paths = readable(spread([entry.path for entry in data.entries("train")], count))
    else:
        paths = data.images("train")
    return some_images(paths, count, bench.img_size).to(bench.image.device)


def latency_for(model: Darknet, bench: Bench, args: argparse.Namespace) -> Latency | None:
    """Times in the --runtime or by the --latency_table; None without both."""
    if "threads" in args.given and not args.runtime:
        raise InputError("--threads: only with --runtime")
    if not args.runtime and not args.latency_table:
        return None
    device = timing_device(args.runtime, bench.image.device)
    return latency_of(model.spec.at(bench.img_size), args.runtime, args.latency_table, args.threads, device)


def budget_of(args: argparse.Namespace, metadata: dict[str, Any]) -> Budget:
    """How much to prune by the options, or else by what the model was trained for."""
    ratio = trained_ratio(metadata) if args.percent is None else args.percent
    return Budget(ratio, args.target_macs, args.target_params, args.target_ms, args.max_map_drop)


def original_network(metadata: dict[str, Any], model: Darknet, weights_path: str) -> Network:
    """What the pruned network is compared with: ``model``, or where training has cut it, the network before."""
    path = network_before_cut(Path(weights_path), metadata)
    if not path:
        return Network("before", Path(weights_path), model, metadata)
    original, its_metadata = load_darknet(str(path), None)
    print(f"before is {path}, the network that training has cut")
    return Network("before", path, original.to(device_of(model)).eval(), its_metadata)


def refuse_dense(pruner: Pruner, result: PruningResult, weights_path: str) -> None:
    """Raise an InputError where large gammas would die: the network would have to be trained again."""
    if not pruner.separated(result.selection):
        largest = max([result.selection.threshold, *pruner.block_gammas])
        what = f"{result.ratio:.1%}" + (f" and {len(pruner.block_gammas)} blocks" if pruner.block_gammas else "")
        raise InputError(
            f"{weights_path}: {what} would prune |gamma| up to {largest:.3g}, which is not clearly below the kept "
            "ones: train with -sr, choose less, add --force, or choose by --importance magnitude (with --reconstruct) "
            "and train on"
        )


def proof(result: PruningResult, img_size: Size, fold: str) -> float:
    """The largest difference of the raw outputs from the masked network's; ``fold`` other than exact is let pass."""
    networks = result.reference, result.pruned.model
    return prove(*networks, img_size) if fold == "exact" else head_difference(*networks, img_size)


def print_removed(blocks: Sequence[ResidualBlock]) -> None:
    """Print which residual blocks are removed, if any."""
    if blocks:
        removed = sorted(block.shortcut for block in blocks)
        print(f"residual blocks removed, by the layer numbers of their shortcuts: {removed}")


def describe(result: PruningResult, max_diff: float, pruner: Pruner) -> None:
    """Print what was pruned, how many channels stay for exactness, and how exact it is."""
    if pruner.costs:
        print_removed(result.residual_blocks)
    if result.selection.floored:
        old = [str(pruner.kept_layers[index]) for index in result.selection.floored]
        print(f"layers at their floor (--layer_keep), which would have lost more: {', '.join(old)}")
    what, most = pruner.importance_in_words, result.selection.threshold
    chosen = f"{result.ratio:.1%} of the prunable channels chosen, {what} up to {most:.3g}"
    print(
        f"{chosen if result.ratio else 'none chosen here'}; {result.channels_cut}; "
        f"{result.pruned.carriers} constant carriers, {result.pruned.silenced} channels silenced; "
        f"largest difference from the masked network: {max_diff:.1e}"
    )


def plot_channels(model: Darknet, result: PruningResult, path: Path) -> None:
    """Draw the channels of each convolution before and after."""
    layers = model.spec.convolutions
    counts = [result.counts[layer.index] for layer in layers]
    save_figure(channels_figure([c.index for c in layers], [c.channels for c in layers], counts), path)


def measure_sweep(
    pruners: dict[str, Pruner], bench: Bench, latency: Latency | None, plots: Path, args: argparse.Namespace
) -> None:
    """Measure a range of ratios of each order of pruning; write plot and numbers. An interrupted sweep is continued."""
    kept = KeptRows(plots / "unfinished.json", measured_network(args) | sweep_subject(bench, latency))
    if len(kept):
        print(f"{len(kept)} rows of this sweep were measured before it was interrupted")
    pruner = next(iter(pruners.values()))  # all are of one network
    report = {
        "strategy": pruner.strategy,
        "parameters": count_parameters(pruner.model),
        "macs": bench.macs(pruner.model),
        "table": latency.table.title if latency else None,
        "importance": pruner.importance_in_words,
        "sweep": sweep(pruners, bench, latency, kept),
    }
    print_sweep(report)
    plot = plot_sweep(report, plots)
    print(f"{plot}: mAP against {'milliseconds' if latency else 'size'}")
    for path in (plot.with_suffix(".json"), args.json):  # the page of the pruned network shows the first
        if path:
            write_json(path, report)
    kept.remove()


def write_report(
    path: str,
    model: Darknet,
    result: PruningResult,
    strategy: str,
    max_diff: float,
    before: Measures,
    after: Measures,
    in_runtime: dict[str, Any] | None,
) -> None:
    """Write what was pruned and measured as JSON."""
    report = {
        "before": asdict(before),
        "after": asdict(after),
        "max_diff": max_diff,
        "percent": result.ratio,
        "strategy": strategy,
        "silenced": result.pruned.silenced,
        "carriers": result.pruned.carriers,
        "layers": [
            {"layer": layer.index, "before": layer.channels, "after": result.counts[layer.index]}
            for layer in model.spec.convolutions
        ],
    }
    if in_runtime:
        report["latency"] = in_runtime
    write_json(path, report)


if __name__ == "__main__":
    run(get_args_parser(), main)
