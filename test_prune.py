"""Cuts the dead channels out of a sparse model: a smaller cfg and checkpoint that compute the same, and the proof."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import Darknet
from utils.cli import ArgumentParser, add_size_option, number, run
from utils.darknet.spec import NetworkSpec
from utils.data.data_config import read_data_config
from utils.detection.checkpoints import load_darknet
from utils.detection.complexity import count_parameters
from utils.detection.evaluate import validation_batches
from utils.detection.options import (
    add_check_options,
    add_device_option,
    add_workers_option,
    label_rules,
    network_size,
)
from utils.devices import device_of, pick_device
from utils.errors import InputError
from utils.files import refuse_folder, write_json
from utils.plots import channels_figure, latency_figure, save_figure, sweep_figure
from utils.pruning.compare import Bench, Measures, comparison_table, measure_sweep, sweep_table
from utils.pruning.coupling import couple
from utils.pruning.graph_timer import RUNNERS
from utils.pruning.importance import IMPORTANCES
from utils.pruning.latency import LatencyTable, measured_table, network_times, read_table
from utils.pruning.proof import head_difference, prove, write_pruned
from utils.pruning.pruner import (
    DEFAULT_RATIO,
    LARGEST_RATIO,
    Pruner,
    PruningResult,
    largest_ratio,
    ratio_by_table,
    smallest_ratio,
)
from utils.pruning.selection import STRATEGIES, describe_room
from utils.report.detections import Collected
from utils.report.runs import Network, report_pruning
from utils.sizes import Size

CORRECTIONS = 3  # of a table's budget by what is measured
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

    share = number(float, 0, 1)
    amount = parser.add_argument_group("how much to prune (one of these)").add_mutually_exclusive_group()
    amount.add_argument(
        "--percent",
        type=number(float, 0, LARGEST_RATIO),
        help="ratio: the share of the prunable channels to cut, below 1; default: the --target_percent that the model "
        f"was trained for, else {DEFAULT_RATIO}",
    )
    amount.add_argument("--max_map_drop", type=share, help="the largest ratio that costs at most this much mAP@0.5")
    amount.add_argument("--target_macs", type=share, help="the smallest ratio that leaves at most this share of MACs")
    amount.add_argument(
        "--target_params", type=share, help="the smallest ratio that leaves at most this share of parameters"
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
        "--runtime",
        choices=RUNNERS,
        help="cut what costs the most time in this runtime for its importance, residual blocks too, instead of "
        "channels below one threshold; the first time measures a table of latencies, in minutes; default: none",
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
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    return parser


def main(args: argparse.Namespace) -> None:
    """Choose a ratio, prune, prove, measure, and only then write."""
    if args.show_coupling:
        show_coupling(args)
        return
    model, metadata = load_darknet(args.weights_path, args.model_def)
    out_cfg, out_weights = output_paths(args, metadata)
    strategy = args.strategy or metadata.get("strategy", "normal")
    bench = bench_for(model, metadata, args)
    latency = latency_of(model.spec.at(bench.img_size), bench, args)
    costs = latency.table if latency else None

    options = (args.layer_keep, args.round_to, args.prune_blocks, args.fold == "bias", args.importance)
    pruner = Pruner(model, strategy, *options, costs)
    if pruner.residual_blocks:
        removed = sorted(block.shortcut for block in pruner.residual_blocks)
        print(f"residual blocks removed, by the layer numbers of their shortcuts: {removed}")
    print(f"strategy {strategy}: {describe_room(pruner.coupling, strategy, pruner.gammas)}")
    if args.sweep:
        if latency:
            pruners = {"threshold": Pruner(model, strategy, *options), "latency": pruner}
            sweep_orders(pruners, bench, latency, out_cfg, args.json)
        else:
            sweep(pruner, bench, out_cfg, args.json)
        return

    result = pruner.at(choose_ratio(pruner, bench, latency, args, metadata))
    if not args.force and args.importance == "gamma":
        refuse_dense(pruner, result, args.weights_path)
    max_diff = proof(result, bench.img_size, args.fold)
    describe(result, max_diff, pruner)
    before_cut = original_network(metadata, model, args.weights_path)
    original = before_cut.model
    collected = Collected(), Collected()
    before, after = bench.compare(original, result.pruned.model, each=collected)
    print(comparison_table(before, after))
    in_runtime = latency.compare(original, result.pruned.model, bench.img_size) if latency else None
    if latency and in_runtime:
        print(latency.describe(in_runtime))

    pruned_metadata = {
        "names": bench.names,
        "img_size": bench.img_size.plain,
        "epoch": 0,
        "step": 0,
        "best_map": after.mAP,
        "options": vars(args) | {"model_def": str(out_cfg), "percent": result.ratio},
        "strategy": strategy,
        "pruned": {"from": args.weights_path, "ratio": result.ratio, "strategy": strategy},
    }
    write_pruned(result.pruned.model, out_cfg, out_weights, pruned_metadata)
    plot = Path("runs") / out_cfg.stem / "channels.png"
    plot_channels(original, result, plot)
    print(f"{out_cfg}\n{out_weights}\n{plot}: channels before and after")
    if args.json:
        write_report(args.json, original, result, strategy, max_diff, before, after, in_runtime)
    networks = before_cut, Network("after", out_weights, result.pruned.model, pruned_metadata)
    report_pruning(plot.parent, bench, networks, (before, after), collected, result, max_diff)


def show_coupling(args: argparse.Namespace) -> None:
    """Print which channels are coupled; where a cfg is given, no weights are needed."""
    model = Darknet(args.model_def) if args.model_def else load_darknet(args.weights_path, None)[0]
    print(couple(model.spec).describe())


def output_paths(args: argparse.Namespace, metadata: dict[str, Any]) -> tuple[Path, Path]:
    """Where the cfg and the weights go: by default beside the input, with ``prune_`` in front of its name.

    Without --model_def the cfg is called after the one that the model was trained with, and goes to the folder config.

    Raises:
        InputError: one of them is a folder.
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
    return paths


def bench_for(model: Darknet, metadata: dict[str, Any], args: argparse.Namespace) -> Bench:
    """What measures networks on the validation images; ``model`` is brought to its device, in eval mode."""
    img_size = network_size(model, args.img_size or metadata.get("img_size"))
    data = read_data_config(args.data_config)
    batches, _ = validation_batches(
        model, data, img_size, args.batch_size, args.n_cpu, args.skip_bad, label_rules(args)
    )
    model.to(pick_device(args.device)).eval()
    return Bench(batches, data.names, img_size, device_of(model))


@dataclass(frozen=True)
class Latency:
    """Times in a runtime.

    Attributes:
        table: of its latencies.
        runtime, threads, device: what networks are timed in here; no runtime where the table is another machine's.
    """

    table: LatencyTable
    runtime: str | None
    threads: int
    device: str

    def milliseconds(self, specs: Sequence[NetworkSpec]) -> list[float]:
        """Of networks at the size of their images: measured, or where this is not possible predicted by the table."""
        if not self.runtime:
            return [self.table.predict(spec) for spec in specs]
        return network_times(specs, self.runtime, self.threads, self.device)

    def compare(self, original: Darknet, pruned: Darknet, img_size: Size) -> dict[str, Any]:
        """The times before and after, for the report."""
        specs = [model.spec.at(img_size) for model in (original, pruned)]
        before, after = self.milliseconds(specs)
        measured = {"before_ms": before, "after_ms": after, "is_measured": self.runtime is not None}
        return {"table": self.table.title, "predicted_ms": self.table.predict(specs[1]), **measured}

    def describe(self, times: dict[str, Any]) -> str:
        """What :meth:`compare` gives as one line."""
        before, after, predicted = (times[name] for name in ("before_ms", "after_ms", "predicted_ms"))
        measured = "measured" if times["is_measured"] else "predicted"
        speed_up = f"{before:.2f} ms before, {after:.2f} ms after ({before / after:.2f}x), {measured}"
        return f"{times['table']}: {speed_up}; by the table {predicted:.2f} ms"


def latency_of(spec: NetworkSpec, bench: Bench, args: argparse.Namespace) -> Latency | None:
    """Times in the --runtime or by the --latency_table, for a network at the size of its images; None without both."""
    if not args.runtime and not args.latency_table:
        if "threads" in args.given:
            raise InputError("--threads: only with --runtime")
        return None
    if args.prune_blocks:
        raise InputError("--prune_blocks: with --runtime or --latency_table the times say which residual blocks go")
    device = "cuda" if bench.image.device.type == "cuda" and args.runtime in ("pytorch", "onnx") else "cpu"
    if args.latency_table:
        return Latency(read_table(args.latency_table, spec, args.runtime), None, args.threads, device)
    table = measured_table(spec, args.runtime, args.threads, device)
    return Latency(table, args.runtime, args.threads, device)


def trained_ratio(metadata: dict[str, Any]) -> float:
    """The ratio that sparse training was to reach, by what its checkpoint says; else DEFAULT_RATIO."""
    options = metadata.get("options", {})
    if options.get("s_schedule") == "cut":  # within the run
        return 0.0
    return options["target_percent"] if options.get("s_schedule") in ("local", "target") else DEFAULT_RATIO


def choose_ratio(
    pruner: Pruner, bench: Bench, latency: Latency | None, args: argparse.Namespace, metadata: dict[str, Any]
) -> float:
    """The ratio of --percent, or the one that meets the budget, by bisection."""
    model = pruner.model

    def pruned(ratio: float) -> Darknet:
        return pruner.at(ratio).pruned.model

    if args.max_map_drop is not None:
        least = bench.mean_ap(model) - args.max_map_drop
        budget = f"mAP@0.5 of at least {least:.4f}"
        ratio = largest_ratio(lambda r: bench.mean_ap(pruned(r)) >= least, budget)
    elif args.target_macs is not None:
        most = args.target_macs * bench.macs(model)
        budget = f"at most {args.target_macs:.1%} of the MACs"
        ratio = smallest_ratio(lambda r: bench.macs(pruned(r)) <= most, budget)
    elif args.target_params is not None:
        most = args.target_params * count_parameters(model)
        budget = f"at most {args.target_params:.1%} of the parameters"
        ratio = smallest_ratio(lambda r: count_parameters(pruned(r)) <= most, budget)
    elif args.target_ms is not None:
        budget = f"a forward pass of at most {args.target_ms:g} ms"
        if latency:
            ratio = ratio_within(args.target_ms, lambda r: pruned(r).spec.at(bench.img_size), latency)
        else:
            ratio = smallest_ratio(lambda r: bench.forward(pruned(r))[0].median <= args.target_ms, budget)
    else:
        return trained_ratio(metadata) if args.percent is None else args.percent
    print(f"{ratio:.2%} of the prunable channels are cut, for {budget}")
    return ratio


def ratio_within(target_ms: float, pruned: Callable[[float], NetworkSpec], latency: Latency) -> float:
    """The smallest ratio with which a network takes ``target_ms`` in a runtime.

    The table chooses; where the network that it chooses is measured to be slower, the table's budget is lowered by as
    much, at most CORRECTIONS times.

    Raises:
        InputError: the budget cannot be reached; the message says what can be.
    """
    budget = target_ms
    for _ in range(1 + CORRECTIONS):
        ratio = ratio_by_table(budget, pruned, latency.table)
        (measured,) = latency.milliseconds([pruned(ratio)])
        if measured <= target_ms:
            return ratio
        budget *= 0.99 * target_ms / measured
    print(f"warning: {measured:.2f} ms were measured, more than {target_ms:g}: is the machine busy?")
    return ratio


def original_network(metadata: dict[str, Any], model: Darknet, weights_path: str) -> Network:
    """What the pruned network is compared with: ``model``, or where training has cut it, the network before."""
    path = metadata.get("before_cut")
    if not path or not Path(path).is_file():
        return Network("before", Path(weights_path), model, metadata)
    original, its_metadata = load_darknet(path, None)
    print(f"before is {path}, the network that training has cut")
    return Network("before", Path(path), original.to(device_of(model)).eval(), its_metadata)


def refuse_dense(pruner: Pruner, result: PruningResult, weights_path: str) -> None:
    """Raise an InputError where large gammas would die: the network would have to be trained again."""
    if not pruner.separated(result.selection):
        raise InputError(
            f"{weights_path}: {result.ratio:.1%} would prune |gamma| up to {result.selection.threshold:.3g}, which is "
            "not clearly below the kept ones: train with -sr, choose a lower ratio, add --force, or choose by "
            "--importance magnitude and train on"
        )


def proof(result: PruningResult, img_size: Size, fold: str) -> float:
    """The largest difference of the raw outputs from the masked network's; ``fold`` other than exact is let pass."""
    networks = result.reference, result.pruned.model
    return prove(*networks, img_size) if fold == "exact" else head_difference(*networks, img_size)


def describe(result: PruningResult, max_diff: float, pruner: Pruner) -> None:
    """Print what was pruned, how many channels stay for exactness, and how exact it is."""
    if pruner.costs and result.residual_blocks:
        removed = sorted(block.shortcut for block in result.residual_blocks)
        print(f"residual blocks removed, by the layer numbers of their shortcuts: {removed}")
    if result.selection.floored:
        old = [str(pruner.kept_layers[index]) for index in result.selection.floored]
        print(f"layers at their floor (--layer_keep), which would have lost more: {', '.join(old)}")
    what = "|gamma|" if pruner.kind == "gamma" else f"{pruner.kind} (1 is a layer's mean)"
    print(
        f"{result.ratio:.1%} of the prunable channels cut, {what} up to {result.selection.threshold:.3g}; "
        f"{result.pruned.carriers} constant carriers, {result.pruned.silenced} channels silenced; "
        f"largest difference from the masked network: {max_diff:.1e}"
    )


def plot_channels(model: Darknet, result: PruningResult, path: Path) -> None:
    """Draw the channels of each convolution before and after."""
    layers = model.spec.convolutions
    counts = [result.counts[layer.index] for layer in layers]
    save_figure(channels_figure([c.index for c in layers], [c.channels for c in layers], counts), path)


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


def sweep(pruner: Pruner, bench: Bench, out_cfg: Path, json: str | None) -> None:
    """Measure the pruned network at a range of ratios; print the table, draw the curve."""
    parameters, macs = count_parameters(pruner.model), bench.macs(pruner.model)
    rows = measure_sweep(pruner, bench)
    print(sweep_table(rows, parameters, macs))
    plot = Path("runs") / out_cfg.stem / "sweep.png"
    whole = {"parameters": parameters, "macs": macs}
    shares: dict[str, Sequence[float]] = {name: [row[name] / whole[name] for row in rows] for name in whole}
    save_figure(sweep_figure(shares, [row["mAP"] for row in rows]), plot)
    print(f"{plot}: mAP against size")
    content = {"strategy": pruner.strategy, "parameters": parameters, "macs": macs, "sweep": rows}
    for path in (plot.with_suffix(".json"), json):  # the page of the pruned network shows the first
        if path:
            write_json(path, content)


def sweep_orders(pruners: dict[str, Pruner], bench: Bench, latency: Latency, out_cfg: Path, json: str | None) -> None:
    """Measure a range of ratios of each order; print the tables, draw the curves."""
    model = pruners["latency"].model
    parameters, macs = count_parameters(model), bench.macs(model)
    report: dict[str, Any] = {"table": latency.table.title, "parameters": parameters, "macs": macs}
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for order, pruner in pruners.items():
        rows = measure_sweep(pruner, bench, latency.milliseconds)
        print(f"{order}:\n{sweep_table(rows, parameters, macs)}")
        report[order] = rows
        curves[order] = [row["ms"] for row in rows], [row["mAP"] for row in rows]
    plot = Path("runs") / out_cfg.stem / "latency_sweep.png"
    save_figure(latency_figure(curves, latency.table.title), plot)
    print(f"{plot}: mAP against milliseconds")
    rows = [{"order": order, **row} for order in pruners for row in report[order]]
    write_json(plot.with_suffix(".json"), report | {"sweep": rows})  # the page of the pruned network shows it
    if json:
        write_json(json, report)


if __name__ == "__main__":
    run(get_args_parser(), main)
