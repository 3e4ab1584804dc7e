"""What the study runs: data sets, ways to train sparse, and the experiments over strategies, ratios and seeds.

An experiment is a table row below; :func:`jobs` makes the runs of our programs out of it, each after those it needs.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from utils.errors import InputError


@dataclass(frozen=True)
class DataSet:
    """A data set, the network for it, and how long to train.

    Attributes:
        name: in the ids of runs.
        data_config: where its .data file is, unless --data names another place.
        model_def: the network's cfg.
        img_size: pixels.
        baseline, sparse, tune: epochs of the three stages.
        s: strength of the penalty that suits the steps of ``sparse`` epochs.
        seconds: about what an epoch of the full network takes on two cores, for the estimates.
        batch_size: images a step.
        checkpoint_interval, evaluation_interval: epochs.
    """

    name: str
    data_config: str
    model_def: str
    img_size: int
    baseline: int
    sparse: int
    tune: int
    s: float
    seconds: float
    batch_size: int = 16
    checkpoint_interval: int = 5
    evaluation_interval: int = 2


@dataclass(frozen=True)
class Sparsity:
    """A way to train sparse: options of train.py."""

    name: str
    method: str = "proximal"
    schedule: str = "constant"


@dataclass(frozen=True)
class Experiment:
    """A row of the plan.

    Attributes:
        data: the name of a data set.
        sparsity: the names of ways to train sparse.
        strategies: which channels may die.
        seeds: one run of everything for each.
        ratio: the ratio to prune at, and the target of the schedules that have one.
        stages: which of plain, baseline, continued, sparse, sweep, pruned, finetuned, distilled.
    """

    data: str
    sparsity: tuple[str, ...]
    strategies: tuple[str, ...] = ("normal",)
    seeds: tuple[int, ...] = (0,)
    ratio: float = 0.7
    stages: tuple[str, ...] = ("baseline", "sparse", "sweep")


HANDS, BCCD = "data/hands/hands.data", "data/bccd/bccd.data"
DATA_SETS = (
    DataSet("hands", HANDS, "config/yolov3-small-hand.cfg", 224, 40, 30, 8, s=0.027, seconds=14),
    DataSet("bccd", BCCD, "config/yolov3-small-bccd.cfg", 320, 40, 30, 8, s=0.03, seconds=14, batch_size=8),
    DataSet("full", HANDS, "config/yolov3-hand.cfg", 224, 12, 12, 4, 0.03, 140, batch_size=8, checkpoint_interval=1),
)

SPARSITY = (
    Sparsity("constant"),
    Sparsity("subgradient", method="subgradient"),
    Sparsity("local", schedule="local"),
    Sparsity("target", schedule="target"),
)

ROWS = ("plain", "baseline", "sparse", "sweep", "pruned", "finetuned")
CONTROLS = ("baseline", "continued", "sparse", "pruned", "distilled")
PLAN: dict[str, tuple[Experiment, ...]] = {
    # One seed finds the finalists: every way to train sparse, and over the strategies those that aim at a ratio.
    "methods": (
        Experiment("hands", ("target", "constant", "subgradient", "local"), ratio=0.8),
        Experiment("hands", ("target",), ("shortcut", "slim"), ratio=0.8),
        Experiment("hands", ("local",), ("slim",), ratio=0.8, stages=ROWS[1:]),
    ),
    # Three seeds for the finalists: the rows of the README, and the comparison with the plain recipe.
    "hands": (
        Experiment("hands", ("target", "local", "constant"), seeds=(0, 1, 2), ratio=0.8, stages=ROWS),
        Experiment("hands", ("target",), ratio=0.8, stages=CONTROLS),
    ),
    "bccd": (
        Experiment("bccd", ("target", "local"), seeds=(0, 1, 2), ratio=0.8, stages=ROWS),
        Experiment("bccd", ("target",), ratio=0.8, stages=CONTROLS),
    ),
    # Where distillation should pay: so much cut that the pruned network needs to learn again.
    "high": (
        Experiment(
            *("hands", ("constant",), ("normal",), (0,), 0.92),
            ("baseline", "sparse", "pruned", "finetuned", "distilled"),
        ),
    ),
    # The network of the published table.
    "full": (
        Experiment(
            *("full", ("target",), ("slim",), (0,), 0.7),
            ("baseline", "continued", "sparse", "sweep", "pruned", "finetuned"),
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """One run of one of our programs, and what its row in the CSV says besides the measurements.

    Attributes:
        id: unique; what ``--only`` looks at.
        stage: see Experiment.
        data: the data set.
        program: the program's path from the repository's root.
        options: its command line, but for --name, --resume and --json, and for files to write.
        model_def: the cfg of the network that is measured.
        settings: columns of the CSV.
        needs: the ids of the runs that must be done before.
        epochs: of training; 0 where nothing is trained.
    """

    id: str
    stage: str
    data: DataSet
    program: str
    options: tuple[str, ...]
    model_def: str
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()
    epochs: int = 0

    @property
    def seconds(self) -> float:
        """About how long it takes on two cores."""
        share = {"plain": 0.9, "finetuned": 0.6, "distilled": 0.9}.get(self.stage, 1.0)
        return share * self.epochs * self.data.seconds + 4 * self.data.seconds * (self.stage in ("sweep", "pruned"))


def run_name(job_id: str) -> str:
    """The name of a job's files."""
    return "study_" + job_id.replace("/", "_")


def weights_of(job_id: str) -> str:
    """The checkpoint that a job leaves to use."""
    return str(Path("checkpoints") / f"{run_name(job_id)}_ckpt.pth")


def pruned_cfg_of(job_id: str) -> str:
    """The cfg that a job of the stage "pruned" writes; its name tells train.py to fine-tune."""
    return str(Path("checkpoints") / f"prune_{run_name(job_id)}.cfg")


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """The option --data, for :func:`data_sets`."""
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME=FILE", help="where the .data file of a data set of the plan is"
    )


def data_sets(changes: list[str]) -> list[DataSet]:
    """The data sets of the plan, with the .data files of ``NAME=FILE``.

    Raises:
        InputError: an entry of ``changes`` is something else.
    """
    names = [data.name for data in DATA_SETS]
    files = {}
    for change in changes:
        name, equals, file = change.partition("=")
        if not equals or name not in names:
            raise InputError(f"--data {change}: it must be NAME=FILE, with a NAME out of {', '.join(names)}")
        files[name] = file
    return [replace(data, data_config=files.get(data.name, data.data_config)) for data in DATA_SETS]


def jobs(experiments: Sequence[Experiment], known: Sequence[DataSet] = DATA_SETS) -> list[Job]:
    """The runs of some experiments, each once, those that others need first."""
    by_name = {data.name: data for data in known}
    sparsities = {sparsity.name: sparsity for sparsity in SPARSITY}
    found: dict[str, Job] = {}
    for experiment in experiments:
        data = by_name[experiment.data]
        for seed in experiment.seeds:
            made = [*_whole(data, seed)]
            for name in experiment.sparsity:
                for strategy in experiment.strategies:
                    made += _sparse(data, seed, sparsities[name], strategy, experiment.ratio)
            found |= {job.id: job for job in made if job.stage in experiment.stages}
    return list(found.values())


def _common(data: DataSet) -> tuple[str, ...]:
    return ("--data_config", data.data_config, "--img_size", str(data.img_size))


def _training(data: DataSet, seed: int, model_def: str, epochs: int, *more: str) -> tuple[str, ...]:
    words = {
        "--model_def": model_def,
        "--epochs": epochs,
        "--batch_size": data.batch_size,
        "--seed": seed,
        "--checkpoint_interval": data.checkpoint_interval,
        "--evaluation_interval": data.evaluation_interval,
        "--n_cpu": 2,
        "--precision": "mixed",
    }
    return (*_common(data), *(str(word) for pair in words.items() for word in pair), *more)


def _whole(data: DataSet, seed: int) -> Iterator[Job]:
    """The runs of the network that is not sparse."""
    settings = {"seed": seed}
    baseline = f"{data.name}/baseline/seed{seed}"
    for stage, program in (("plain", "studies/plain_recipe.py"), ("baseline", "train.py")):
        options = _training(data, seed, data.model_def, data.baseline)
        job_id = f"{data.name}/{stage}/seed{seed}"
        yield Job(job_id, stage, data, program, options, data.model_def, settings, (), data.baseline)
    options = _training(data, seed, data.model_def, data.sparse, "-pre", weights_of(baseline))
    job_id = f"{data.name}/continued/seed{seed}"
    yield Job(job_id, "continued", data, "train.py", options, data.model_def, settings, (baseline,), data.sparse)


def _sparse(data: DataSet, seed: int, sparsity: Sparsity, strategy: str, ratio: float) -> Iterator[Job]:
    """The runs from one sparse training on."""
    baseline = f"{data.name}/baseline/seed{seed}"
    aimed = sparsity.schedule in ("local", "target")
    ratio = f"{ratio:g}"
    sparse = f"{data.name}/{sparsity.name}{ratio if aimed else ''}-{strategy}/seed{seed}"
    settings = {"seed": seed, "strategy": strategy, **asdict(sparsity), "s": data.s}
    settings |= {"sparsity": settings.pop("name"), "target_percent": ratio if aimed else ""}
    if sparsity.schedule == "target":  # which finds it
        settings["s"] = ""
    options = _training(data, seed, data.model_def, data.sparse, "-pre", weights_of(baseline))
    options += ("-sr", "--strategy", strategy, "--sr_method", sparsity.method)
    options += ("--s", f"{settings['s']:g}") if settings["s"] else ()
    options += ("--s_schedule", sparsity.schedule, *(("--target_percent", ratio) if aimed else ()))
    yield Job(sparse, "sparse", data, "train.py", options, data.model_def, settings, (baseline,), data.sparse)

    options = (*_common(data), "--model_def", data.model_def, "--weights_path", weights_of(sparse))
    yield Job(f"{sparse}/sweep", "sweep", data, "test_prune.py", (*options, "--sweep"), "", settings, (sparse,))

    pruned = f"{sparse}/pruned{ratio}"
    small = pruned_cfg_of(pruned)
    settings = settings | {"percent": ratio}
    options += ("--percent", ratio, "--force")
    yield Job(pruned, "pruned", data, "test_prune.py", options, small, settings, (sparse,))

    options = _training(data, seed, small, data.tune, "-pre", weights_of(pruned))
    yield Job(f"{pruned}/finetuned", "finetuned", data, "train.py", options, small, settings, (pruned,), data.tune)
    options += ("--teacher_weights", weights_of(baseline))
    needs = (pruned, baseline)
    yield Job(f"{pruned}/distilled", "distilled", data, "train.py", options, small, settings, needs, data.tune)
