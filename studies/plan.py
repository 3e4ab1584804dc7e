"""What the study runs: data sets, and the recipe with its controls over budgets and seeds.

An experiment is a table row below; :func:`jobs` makes the runs of our programs out of it, each after those it needs.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.training.recipes import TEACHER_COST
from utils.training.runs import Run


@dataclass(frozen=True)
class DataSet:
    """A data set, the network for it, and how long to train.

    Attributes:
        name: in the ids of runs.
        data_config: where its .data file is, unless --data names another place.
        model_def: the network's cfg.
        img_size: pixels.
        baseline: epochs of the baseline.
        more: epochs of the network trained on, which is what every way to a small network may cost.
        s: strength of the penalty that suits the steps of sparse training.
        seconds: about what an epoch of the whole network takes on one core, for the estimates.
        batch_size: images per step.
        checkpoint_interval, evaluation_interval: epochs.
    """

    name: str
    data_config: str
    model_def: str
    img_size: int
    baseline: int
    more: int
    s: float
    seconds: float
    batch_size: int = 16
    checkpoint_interval: int = 5
    evaluation_interval: int = 2


@dataclass(frozen=True)
class Experiment:
    """A row of the plan.

    Attributes:
        data: the name of a data set.
        target_macs: the share of the MACs to leave.
        target_params: the share of the parameters that the recipe leaves at most; None for any.
        seeds: one run of everything for each.
        stages: which of STAGES.
    """

    data: str
    target_macs: float
    seeds: tuple[int, ...] = (0, 1, 2)
    stages: tuple[str, ...] = ()
    target_params: float | None = None


HANDS = "data/hands/hands.data"
DATA_SETS = (
    DataSet("hands", HANDS, "config/yolov3-small-hand.cfg", 224, 40, 38, s=0.027, seconds=13),
    DataSet("bccd", "data/bccd/bccd.data", "config/yolov3-small-bccd.cfg", 320, 40, 38, 0.03, 13, batch_size=8),
    DataSet("few", "data/few/few.data", "config/yolov3-small-hand.cfg", 224, 80, 80, s=0.1, seconds=3.5),
    DataSet("full", HANDS, "config/yolov3-hand.cfg", 224, 12, 12, 0.03, 250, batch_size=8, checkpoint_interval=1),
)

# Every way to a small network, in the order in which they are run.
STAGES = (
    "plain",  # the older tools' recipe for the baseline
    "baseline",
    "continued",  # the baseline, trained on
    "final",  # train.py -sr: one cut, then training as long as costs what "continued" does
    "final_distilled",  # the same with --distill, for as many epochs as "continued"
    "final_from_random",  # train.py -sr without a baseline, at the cost of the baseline and "final" together
    "oneshot",  # one-shot magnitude pruning over coupled sets
    "control_oneshot",  # and then plain training for as many epochs
    "control_oneshot_equal_macs",  # or for as many as cost the same
    "torch_pruning",  # one-shot magnitude pruning by Torch-Pruning
    "control_torch_pruning",  # and then plain training for as many epochs
    "control_scratch",  # the final architecture from random weights, for all epochs, the baseline's too
    "control_scratch_equal_macs",  # or for as many as cost the same
    "control_narrow",  # all layers narrower by one factor, from random weights, for all epochs
    "control_narrow_equal_macs",  # or for as many as cost the same
    "control_narrow_own_cost",  # or as "final" does beside the baseline, as if that had been there anyway
    "sparse",  # Network Slimming: sparse training,
    "pruned",  # pruning,
    "control_slimming",  # and fine-tuning
)
EQUAL_MACS = (*(stage for stage in STAGES if stage.endswith("_equal_macs")), "control_narrow_own_cost")
CONTROLS = tuple(stage for stage in STAGES if stage not in ("plain", *EQUAL_MACS))
NOT_SPARSE = tuple(stage for stage in CONTROLS if stage not in ("sparse", "pruned", "control_slimming"))

TENTH, THIRD = 0.101, 0.346
PLAN: dict[str, tuple[Experiment, ...]] = {
    "hands": (Experiment("hands", TENTH, stages=CONTROLS),),
    "hands_third": (Experiment("hands", THIRD, stages=CONTROLS),),
    "bccd": (Experiment("bccd", TENTH, stages=NOT_SPARSE),),
    "bccd_third": (Experiment("bccd", THIRD, stages=NOT_SPARSE),),
    "equal_macs": (
        Experiment("hands", TENTH, stages=("baseline", "oneshot", "final", *EQUAL_MACS)),
        Experiment("hands", THIRD, (0,), ("baseline", "oneshot", "final", *EQUAL_MACS)),
        *(
            Experiment(data, TENTH, (0,), ("baseline", "oneshot", "control_oneshot_equal_macs"))
            for data in ("bccd", "few", "full")
        ),
    ),
    # A few images: the first 160 of the hands.
    "few": (Experiment("few", TENTH, stages=("baseline", "continued", "final", "oneshot", "control_oneshot")),),
    # The network of the published table.
    "full": (Experiment("full", TENTH, (0,), ("baseline", "continued", "final", "oneshot", "control_oneshot")),),
    # Fewer parameters than a tenth of the MACs leaves: as few as one-shot pruning leaves at these MACs.
    "least": (
        Experiment("hands", 0.065, (0, 1, 2), ("baseline", "final", "oneshot", "control_oneshot"), 0.03),
        Experiment("full", 0.085, (0,), ("baseline", "final", "oneshot", "control_oneshot"), 0.06),
    ),
    "plain": (
        Experiment("hands", TENTH, stages=("plain", "baseline")),
        Experiment("bccd", TENTH, stages=("plain", "baseline")),
    ),
}


@dataclass(frozen=True)
class Job:
    """One run of one of our programs, and what its row in the CSV says besides the measurements.

    Attributes:
        id: unique; what ``--only`` looks at.
        stage: one of STAGES.
        data: the data set.
        program: the program's path from the repository's root.
        options: its command line, but for --name, --resume and --json, and for files to write.
        model_def: the cfg that training begins with, or that pruning writes.
        target_macs: the share of the MACs to leave; None for the whole network.
        seed: of training.
        needs: the ids of the runs that must be done before.
        epochs: of training, as on the command line; 0 where nothing is trained.
        seconds: about how long it takes on one core.
    """

    id: str
    stage: str
    data: DataSet
    program: str
    options: tuple[str, ...]
    model_def: str
    target_macs: float | None
    seed: int
    needs: tuple[str, ...] = ()
    epochs: int = 0
    seconds: float = 0.0


def run_name(job_id: str) -> str:
    """The name of a job's files."""
    return "study_" + job_id.replace("/", "_")


def weights_of(job_id: str) -> str:
    """The checkpoint that a job leaves to use."""
    return str(Run(run_name(job_id)).best)


def cfg_of(job_id: str) -> str:
    """The cfg that a job writes which makes a smaller network without training it."""
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
    jobs_by_id: dict[str, Job] = {}
    for experiment in experiments:
        for seed in experiment.seeds:
            ways = Ways(by_name[experiment.data], seed, experiment.target_macs, experiment.target_params)
            jobs_by_id |= {job.id: job for job in ways.jobs() if job.stage in experiment.stages}
    return list(jobs_by_id.values())


@dataclass(frozen=True)
class Ways:
    """The ways to one budget of one data set on one seed."""

    data: DataSet
    seed: int
    target_macs: float
    target_params: float | None = None

    def jobs(self) -> Iterator[Job]:
        """The jobs of all STAGES."""
        data, more, macs = self.data, self.data.more, self.target_macs
        taught = macs + TEACHER_COST
        yield self._train("plain", data.baseline, program="studies/plain_recipe.py", whole=True)
        yield self._train("baseline", data.baseline, whole=True)
        yield self._train("continued", more, start="baseline", whole=True)
        cut: tuple[str, ...] = ("-sr", *self._budget())
        if self.target_params:
            cut += ("--target_params", f"{self.target_params:g}")
        yield self._train("final", more, *cut, start="baseline")
        yield self._train("final_distilled", max(1, round(more * taught)), *cut, "--distill", start="baseline")
        both = data.baseline + more
        yield self._train("final_from_random", both, *cut)
        by_magnitude = ("--importance", "magnitude", "--cost", "uniform", "--strategy", "slim")
        yield self._prune("oneshot", "baseline", *by_magnitude)
        yield self._train("control_oneshot", more, start="oneshot", share=macs)
        yield self._train("control_oneshot_equal_macs", round(more / macs), start="oneshot", share=macs)
        yield self._prune("torch_pruning", "baseline", program="studies/peer_pruning.py")
        yield self._train("control_torch_pruning", more, start="torch_pruning", share=macs)
        architecture = str(Run(run_name(self._id("final"))).cfg(data.model_def))
        narrow = cfg_of(self._id("control_narrow"))
        for suffix, epochs in (("", both), ("_equal_macs", round(both / macs))):
            yield self._train(f"control_scratch{suffix}", epochs, model_def=architecture, needs="final", share=macs)
            yield self._train(f"control_narrow{suffix}", epochs, model_def=narrow, share=macs)
        yield self._train("control_narrow_own_cost", round(more / macs), model_def=narrow, share=macs)
        tune = more // 5
        sparse = ("-sr", "--s", f"{data.s:g}", "--strategy", "slim")
        yield self._train("sparse", more - tune, *sparse, start="baseline")
        yield self._prune("pruned", "sparse", "--force")
        yield self._train("control_slimming", tune, start="pruned", share=macs)

    def _id(self, stage: str) -> str:
        budget = "" if stage in ("plain", "baseline", "continued") else f"{self.target_macs:g}"
        return f"{self.data.name}/{stage}{budget}/seed{self.seed}"

    def _budget(self) -> tuple[str, str]:
        return "--target_macs", f"{self.target_macs:g}"

    def _common(self) -> tuple[str, ...]:
        return ("--data_config", self.data.data_config, "--img_size", str(self.data.img_size))

    def _train(
        self,
        stage: str,
        epochs: int,
        *more: str,
        start: str | None = None,
        needs: str | None = None,
        program: str = "train.py",
        model_def: str | None = None,
        whole: bool = False,
        share: float = 1.0,
    ) -> Job:
        """A training.

        Args:
            stage: which of STAGES.
            epochs: for ``--epochs``.
            more: further options.
            start: the stage whose weights it starts from.
            needs: a stage that must be done before, for other reasons.
            program: the program.
            model_def: its cfg; default: what ``start`` has pruned, else the data set's.
            whole: whether it trains the whole network, so that budgets share it.
            share: of the MACs, of the network that it trains.
        """
        data = self.data
        before = start or needs
        if model_def is None:
            model_def = cfg_of(self._id(start)) if start in ("oneshot", "torch_pruning", "pruned") else data.model_def
        words: dict[str, Any] = {
            "--model_def": model_def,
            "--epochs": epochs,
            "--batch_size": data.batch_size,
            "--seed": self.seed,
            "--checkpoint_interval": data.checkpoint_interval,
            "--evaluation_interval": data.evaluation_interval,
            "--precision": "mixed",
        }
        if program == "train.py":
            words["--cache"] = "ram"
        if start:
            words["-pre"] = weights_of(self._id(start))
        options = (*self._common(), *(str(word) for pair in words.items() for word in pair), *more)
        return Job(
            id=self._id(stage),
            stage=stage,
            data=data,
            program=program,
            options=options,
            model_def=model_def,
            target_macs=None if whole else self.target_macs,
            seed=self.seed,
            needs=(self._id(before),) if before else (),
            epochs=epochs,
            # A small network is not as fast as its MACs promise, and reading images takes its time, too.
            seconds=epochs * data.seconds * (0.3 + 0.7 * share),
        )

    def _prune(self, stage: str, start: str, *more: str, program: str = "test_prune.py") -> Job:
        """A pruning of the network of stage ``start`` to the budget."""
        return Job(
            id=self._id(stage),
            stage=stage,
            data=self.data,
            program=program,
            options=(*self._common(), *self._budget(), "--weights_path", weights_of(self._id(start)), *more),
            model_def=cfg_of(self._id(stage)),
            target_macs=self.target_macs,
            seed=self.seed,
            needs=(self._id(start),),
            seconds=60,
        )
