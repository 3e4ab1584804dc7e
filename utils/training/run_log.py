"""What a training run writes beside its checkpoints: options, a CSV row per epoch, TensorBoard events."""

import csv
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.files import write_csv, write_json


class RunLog:
    """The log of a run in ``folder``.

    Args:
        folder: where to write; it is made if missing.
        options: the completed options.
        epoch: the first epoch of this start; later rows of an earlier start are dropped.
    """

    def __init__(self, folder: Path, options: dict[str, Any], epoch: int):
        self.csv_path = folder / "log.csv"
        write_json(folder / "options.json", options)
        self.rows: list[dict[str, Any]] = []
        if epoch and self.csv_path.exists():
            with open(self.csv_path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]
        self._events = SummaryWriter(folder, purge_step=epoch or None)

    def add(self, row: dict[str, Any]) -> None:
        """Add the row of an epoch: ``epoch`` and numbers; values that were not measured are left out."""
        self.rows.append(row)
        write_csv(self.csv_path, self.rows)
        for name, value in row.items():
            if name != "epoch":
                self._events.add_scalar(name, value, row["epoch"])
        self._events.flush()

    def close(self) -> None:
        """Close the event file."""
        self._events.close()
