"""The page of one run, of a whole recipe, or of what test_prune.py has cut."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from models import Darknet
from utils import workers
from utils.darknet.spec import NetworkSpec
from utils.data.data_config import DataConfig, read_data_config
from utils.data.datasets import DetectionDataset
from utils.detection.checkpoints import load_darknet
from utils.detection.evaluate import validation_batches
from utils.detection.options import check_classes, label_rules, network_size
from utils.devices import pick_device
from utils.errors import InputError
from utils.files import refuse_inputs
from utils.pruning.compare import Bench, Measures
from utils.pruning.pruner import PruningResult
from utils.report.commands import command_of, versions
from utils.report.detections import Collected
from utils.report.drawing import draw_network
from utils.report.gallery import make_gallery
from utils.report.logs import Section, sweep_sections, training_section
from utils.report.page import Column, Page
from utils.training.runs import Run, network_before_cut, run_name

FILE_NAME = "report.html"
# What report.py can be told, and what it does where it is not. Of these, a run's own options decide some.
SETTINGS: dict[str, Any] = {
    "data_config": "config/oxfordhand.data",
    "img_size": None,
    "batch_size": 8,
    "n_cpu": None,
    "device": None,
    "skip_bad": False,
    "strict": False,
    "labels_with_score": False,
}
RUN_DECIDES = {"data_config", "img_size", "n_cpu", "device", "skip_bad", "strict", "labels_with_score"}


@dataclass(frozen=True)
class Network:
    """A network of the page.

    Attributes:
        name: what it is called there.
        path: its file.
        model: the network, in eval mode.
        metadata: what its file says about it.
    """

    name: str
    path: Path
    model: Darknet
    metadata: Mapping[str, Any]

    @property
    def options(self) -> Mapping[str, Any]:
        """Those of the program that wrote it."""
        return self.metadata.get("options", {})

    @property
    def folder(self) -> Path:
        """Where that program has left its log and its plots."""
        if "percent" in self.options:  # of test_prune.py
            return Path("runs") / Path(self.options["model_def"]).stem
        named = Run(run_name(self.path)).folder
        return named if named.is_dir() else Run(self.options.get("name") or self.name).folder

    def facts(self) -> list[tuple[str, str]]:
        """What there is to say about where it comes from."""
        facts = [("file", str(self.path))]
        terms = {"epoch": "epochs", "strategy": "strategy", "revision": "code"}
        facts += [(term, str(self.metadata[key])) for key, term in terms.items() if key in self.metadata]
        command = command_of(self.options)
        return [*facts, ("command", command)] if command else facts


def load_network(name: str) -> Network:
    """The network of the run ``name``, or of the checkpoint of that path.

    Raises:
        InputError: there is no such file, or it is no checkpoint.
    """
    path = Path(name)
    if not path.is_file() and (path.suffix in ("", ".pth") or Run(name).best.is_file()):
        path = Run(name).best
    model, metadata = load_darknet(str(path), None)
    return Network(path.stem.removesuffix("_ckpt"), path, model.eval(), metadata)


def report_training(name: str) -> None:
    """Write the page of the run ``name``, which has ended, to its folder; print the path, or why there is none."""
    path = Run(name).folder / FILE_NAME
    with warned_of(path):
        report_runs([name], path)
        print(f"{path}: all of that on one page, with detections")


def report_runs(names: Sequence[str], path: Path, given: Mapping[str, Any] | None = None) -> None:
    """Write the page of runs, or of the one run, with the network that it started from.

    Args:
        names: of the runs, in the order of the recipe; a path of a checkpoint stands for a run, too.
        path: the file to write.
        given: what counts in place of the last run's options: those of SETTINGS.

    Raises:
        InputError: a file is missing, damaged, or does not fit to the others, or ``path`` is one of them; nothing was
            written.
    """
    networks = [load_network(name) for name in names]
    last = networks[-1]
    settings = argparse.Namespace(**(SETTINGS | {k: last.options[k] for k in RUN_DECIDES & last.options.keys()}))
    vars(settings).update(given or {})
    data = read_data_config(settings.data_config)
    if len(networks) == 1:
        networks = [*started_from(last, data), last]
    for network in networks:
        check_classes(network.model, data)
    refuse_inputs([*data.files, *(network.path for network in networks)], [path])
    sections = recorded(network.folder for network in networks)
    img_size = network_size(last.model, settings.img_size or last.metadata.get("img_size"))
    rules = label_rules(settings)
    device = pick_device(settings.device)
    batches, _ = validation_batches(
        last.model.to(device), data, img_size, settings.batch_size, settings.n_cpu, settings.skip_bad, rules
    )
    bench = Bench(batches, data.names, img_size, device)
    collected = [Collected() for _ in networks]
    measures = bench.compare(*(network.model.to(device) for network in networks), each=collected)
    kept = kept_channels(networks[0].model.spec, last.model.spec)
    title = " → ".join(network.name for network in networks)
    write_page(path, title, settings.data_config, bench, networks, measures, collected, kept, sections)


def report_pruning(
    folder: Path,
    bench: Bench,
    networks: Sequence[Network],
    measures: Sequence[Measures],
    collected: Sequence[Collected],
    result: PruningResult,
    max_diff: float,
) -> None:
    """Write the page of what test_prune.py has cut; print its path, or why there is none.

    Args:
        folder: where to write.
        bench: what measured the networks.
        networks: the network before and the pruned one.
        measures, collected: of each network.
        result: what was cut.
        max_diff: the largest difference of the raw outputs that the proof has found.
    """
    path = folder / FILE_NAME
    note = (
        f"{result.channels_cut}; {result.pruned.carriers} constant carriers stay, {result.pruned.silenced} channels "
        f"were silenced. The raw outputs differ from those of the gamma-masked network by {max_diff:.1e} of their "
        "scale at most."
    )
    with warned_of(path):
        data_config = networks[-1].options["data_config"]
        sections = recorded([*(network.folder for network in networks), folder])
        write_page(path, folder.name, data_config, bench, networks, measures, collected, result.counts, sections, note)
        print(f"{path}: all of that on one page, with detections before and after")


@contextmanager
def warned_of(path: Path) -> Iterator[None]:
    """Within the block, a failure that is not the code's is a warning: the run's own files are complete already.

    Those are files that are gone, damaged or do not fit together, a full disk or memory, and a worker that was killed.
    """
    try:
        yield
    except (InputError, OSError, RuntimeError) as error:
        known = workers.explain(error) or error
        if not isinstance(known, InputError | OSError | torch.OutOfMemoryError):
            raise
        reason = str(known).splitlines()[0]
        print(f"warning: {path} was not written, all else was: {reason}", file=sys.stderr)


def started_from(network: Network, data: DataConfig) -> list[Network]:
    """The network that a run, or test_prune.py, started from, where its file still tells; else none."""
    pruned = network.metadata.get("pruned")
    path = network_before_cut(network.path, network.metadata) or network.options.get("pretrained_weights")
    if isinstance(pruned, Mapping):  # of test_prune.py
        path = pruned.get("from")
    if not path or Path(path).resolve() == network.path.resolve():
        return []
    try:
        earlier = load_network(str(path))
        check_classes(earlier.model, data)
    except InputError:  # it is gone, has no cfg in it, or was made for other classes
        return []
    return [earlier]


def kept_channels(before: NetworkSpec, after: NetworkSpec) -> dict[int, int] | None:
    """The channels of each convolution of ``before`` that ``after`` has; None where that has other layers."""
    if [type(layer) for layer in before.layers] != [type(layer) for layer in after.layers]:
        return None
    return channel_counts(after)


def channel_counts(spec: NetworkSpec) -> dict[int, int]:
    """The channels of each convolution, by layer number."""
    return {layer.index: layer.channels for layer in spec.convolutions}


def recorded(folders: Iterable[Path]) -> list[Section]:
    """The plots of the logs and sweeps in the folders of runs.

    Raises:
        InputError: such a file is damaged.
    """
    folders = list(dict.fromkeys(folders))
    logs = [training_section(folder.name, folder, number) for number, folder in enumerate(folders)]
    return [*(section for section in logs if section), *sweep_sections(folders)]


def write_page(
    path: Path,
    title: str,
    data_config: str,
    bench: Bench,
    networks: Sequence[Network],
    measures: Sequence[Measures],
    collected: Sequence[Collected],
    counts: Mapping[int, int] | None,
    sections: list[Section],
    note: str = "",
) -> None:
    """Put the page together and write it.

    Args:
        path: the file to write.
        title: the page's heading.
        data_config: the data set's file.
        bench: what measured the networks.
        networks: the networks, at least one.
        measures, collected: of each network.
        counts: channels that the last network has left of each convolution of the first; None where it has other
            layers.
        sections: the plots of what was recorded before.
        note: a sentence on what was cut.
    """
    first, last = networks[0], networks[-1]
    dataset = cast(DetectionDataset, bench.batches.dataset)
    before = collected[0] if len(networks) > 1 else None
    drawn = first if counts is not None else last
    spec = drawn.model.spec.at(bench.img_size)
    Page(
        title=title,
        columns=[Column(n.name, m, n.facts()) for n, m in zip(networks, measures, strict=True)],
        data=f"{len(dataset)} validation images of {data_config}",
        input_size=f"{spec.width}×{spec.height}",
        note=note,
        gallery=make_gallery(dataset, before, collected[-1]),
        class_names=bench.names,
        drawn=drawn.name,
        drawing=draw_network(spec, channel_counts(spec) if counts is None else counts),
        sections=sections,
        versions=versions(bench.image.device),
    ).write(path)
