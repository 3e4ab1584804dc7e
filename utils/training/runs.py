"""The files of a training run, and how those of an earlier run of the same name are kept."""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import distributed
from utils.detection.checkpoints import read_checkpoint
from utils.errors import InputError
from utils.files import numbered_names, remove_leftovers


@dataclass(frozen=True)
class Run:
    """The files of the run ``name``.

    Attributes:
        best: the checkpoint to use: of the best mAP, or with sparse training of the last epoch.
        last: the checkpoint to resume from.
        before_cut: the network before the cut, of a run that cuts it once.
        folder: with options, log, events and plots.
    """

    name: str
    root: Path = Path()

    @property
    def best(self) -> Path:
        """``checkpoints/{name}_ckpt.pth``."""
        return self.root / "checkpoints" / f"{self.name}_ckpt.pth"

    @property
    def last(self) -> Path:
        """``checkpoints/{name}_last.pth``."""
        return self.root / "checkpoints" / f"{self.name}_last.pth"

    @property
    def before_cut(self) -> Path:
        """``checkpoints/{name}_before_cut.pth``."""
        return self.root / "checkpoints" / f"{self.name}_before_cut.pth"

    @property
    def folder(self) -> Path:
        """``runs/{name}``."""
        return self.root / "runs" / self.name

    def cfg(self, model_def: str) -> Path:
        """``runs/{name}/{cfg's name}``: the cfg of what is left of ``model_def``, where channels were cut."""
        return self.folder / Path(model_def).name

    def exists(self) -> bool:
        """Whether an earlier run left any of these files."""
        return any(path.exists() for path in self._paths)

    @property
    def _paths(self) -> tuple[Path, ...]:
        return self.best, self.last, self.before_cut, self.folder

    def unfinished(self) -> dict | None:
        """The checkpoint to resume from, if the earlier run did not reach its last epoch.

        Raises:
            InputError: it cannot be read, or training did not write it.
        """
        if not self.last.exists():
            return None
        checkpoint = read_checkpoint(self.last)
        if "training" not in checkpoint:
            raise InputError(f"{self.last}: not a checkpoint that training wrote")
        return checkpoint if checkpoint["epoch"] < total_epochs(checkpoint["options"]) else None

    def is_finished(self) -> bool:
        """Whether the earlier run reached its last epoch, as far as its files can tell."""
        try:
            return not self.unfinished()
        except InputError:
            return False

    def delete(self) -> None:
        """Delete the files of the run."""
        for checkpoint in (self.last, self.best, self.before_cut):
            checkpoint.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def set_aside(self) -> "Run | None":
        """Rename the files of a finished run to ``{name}-1``, ``-2``, ...; return what they are called now."""
        if not self.exists():
            return None
        free = next(run for name in numbered_names(self.name) if not (run := Run(name, self.root)).exists())
        for old, new in zip(self._paths, free._paths, strict=True):
            if old.exists():
                old.rename(new)
        return free


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def network_before_cut(checkpoint: Path, metadata: Mapping[str, Any]) -> Path | None:
    """The file of the network that a run has cut; None where it cut none, or the file is gone or another run's.

    Args:
        checkpoint: one of the run's. The file is called after it, see :func:`run_name`.
        metadata: what the checkpoint says about itself.
    """
    if "before_cut" not in metadata:
        return None
    name = run_name(checkpoint)
    folders = checkpoint.parent, Path(metadata["before_cut"]).parent
    files = (path for folder in folders if (path := folder / f"{name}_before_cut.pth").is_file())
    wanted = metadata.get("before_cut_digest")  # which checkpoints of older versions lack
    return next((path for path in files if wanted in (None, digest(path))), None)


def run_name(checkpoint: Path) -> str:
    """The name of the run that ``checkpoint`` is of, by its file's name.

    The name in its metadata is that of a later run where this one was set aside.
    """
    return re.sub("_(ckpt|last|before_cut)$", "", checkpoint.stem)


def total_epochs(options: Mapping[str, Any]) -> int:
    """The epochs of a run with these options; older versions had no others than those of ``--epochs``."""
    return options.get("total_epochs", options["epochs"])


def make_room(run: Run, overwrite: bool) -> None:
    """Make the names of a new run's files free: an earlier run is kept under another name.

    Args:
        run: the new run.
        overwrite: delete an earlier run that is unfinished.
    """
    remove_partial_files(run)
    if not distributed.is_main():
        return
    if overwrite and not run.is_finished():
        run.delete()
    elif kept := run.set_aside():
        print(f"the earlier run {run.name} is kept as {kept.name}")


def remove_partial_files(run: Run) -> None:
    """Remove the partly written files of a run that was killed."""
    if distributed.is_main():
        remove_leftovers(run.last.parent)
        remove_leftovers(run.folder)


def default_name(sparse: bool, model_def: str, pruned: bool = False) -> str:
    """``yolov3`` for a sparse run, which test_prune.py reads; else by whether it trains a pruned network.

    Args:
        sparse: whether the run makes the network small, by one cut or by a penalty on the gammas.
        model_def: the network's cfg; a pruned one by its file name counts as pruned.
        pruned: whether the run starts from a pruned network.
    """
    if sparse:
        return "yolov3"
    return "finetune_yolov3" if pruned or is_pruned_cfg(model_def) else "baseline_yolov3"


def is_pruned_cfg(model_def: str) -> bool:
    """Whether the file's name is one that test_prune.py gives."""
    return Path(model_def).name.startswith("prune_")
