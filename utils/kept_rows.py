"""Rows of a long measurement, kept in a file so that an interrupted one goes on where it stopped."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import write_json

Row = dict[str, Any]


def measured_network(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a program that matter to its measurement, and its weights, for :class:`KeptRows`."""
    options = {name: value for name, value in vars(args).items() if name not in ("json", "debug", "n_cpu")}
    return {"options": options, "weights": hashlib.sha256(Path(args.weights_path).read_bytes()).hexdigest()}


class KeptRows:
    """Rows by name, and what they were measured of: a file of rows of anything else, or a damaged one, is not used.

    Args:
        path: the JSON file, which is written atomically after each row.
        subject: what is measured: names, content, options, as JSON can hold them.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any]):
        self._path = path
        self._subject = json.loads(json.dumps(subject))
        self._rows: dict[str, Row] = {}
        try:
            content = json.loads(path.read_bytes())
            if content["subject"] == self._subject:
                self._rows = dict(content["rows"])
        except (OSError, ValueError, TypeError, KeyError):
            pass

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, name: str) -> Row | None:
        """The row of this name, if it was measured."""
        return self._rows.get(name)

    def keep(self, name: str, row: Row) -> None:
        """Keep a row."""
        self._rows[name] = row
        write_json(self._path, {"subject": self._subject, "rows": self._rows})

    def remove(self) -> None:
        """Remove the file, once the measurement is complete."""
        self._path.unlink(missing_ok=True)
