"""The page's plots of what a run and a sweep have left in their folder."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import read_text
from utils.report.plots import Curve, Plot, curves_plot
from utils.training.plots import series

QUALITY = {"mAP": "mAP@0.5", "mAP_50_95": "mAP@0.5:0.95", "f1": "F1"}
LOSSES = {
    "box_loss": "box, per positive",
    "objectness_loss": "objectness, per image",
    "class_loss": "class, per positive",
    "distillation_loss": "distillation",
}
LEFT = {"macs": "MACs", "parameters": "parameters", "forward_share": "time of a forward pass"}
GAMMAS = {f"gamma_q{share}": f"{share} %" for share in (20, 40, 60, 80, 100)}


@dataclass(frozen=True)
class Section:
    """Plots under a heading."""

    title: str
    plots: list[Plot]


def training_section(name: str, folder: Path, position: int) -> Section | None:
    """mAP, losses and gammas of the run ``name`` over its epochs; None where ``folder`` has no log.

    ``position`` tells the ids of several runs on one page apart.

    Raises:
        InputError: the log is damaged.
    """
    path = folder / "log.csv"
    if not path.is_file():
        return None
    rows = _csv_rows(path, "log of a run")

    def curves(columns: Mapping[str, str]) -> list[Curve]:
        try:
            measured = [(label, *series(rows, column)) for column, label in columns.items()]
        except (KeyError, ValueError):
            raise InputError(f"{path}: is not a log of a run: it has no number where one belongs") from None
        finite = [(label, *_finite(epochs, values)) for label, epochs, values in measured]
        return [Curve(label, epochs, values) for label, epochs, values in finite if epochs]

    plots = []
    for kind, title, y_label, columns, options in (
        ("map", "mAP over the epochs", "on validation images", QUALITY, {"unit": True}),
        ("loss", "Losses over the epochs", "loss", LOSSES, {"log": True}),
        ("gamma", "|gamma| that a share of the channels is below", "|gamma|", GAMMAS, {}),
    ):
        shown = [curve for curve in curves(columns) if "log" not in options or max(curve.y) > 0]
        if shown:
            plots.append(curves_plot(f"run{position}-{kind}", title, ("epoch", y_label), shown, **options))
    return Section(f"Training of {name}", plots) if plots else None


def _finite(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return [a for a, _ in points], [b for _, b in points]


def sweep_sections(folders: Sequence[Path]) -> list[Section]:
    """The curves of every file of a sweep (``*sweep*.json`` or ``.csv``) in the folders.

    Raises:
        InputError: such a file is damaged.
    """
    paths = dict.fromkeys(path for folder in folders for path in sorted(folder.glob("*sweep*.*")))
    files = [path for path in paths if path.suffix in (".json", ".csv")]
    sections = [sweep_section(path, position) for position, path in enumerate(files)]
    return [section for section in sections if section.plots]


def sweep_section(path: Path, position: int) -> Section:
    """mAP against what is left of parameters and MACs, and against measured milliseconds, as far as ``path`` has them.

    Rows that differ in a text, such as a strategy or a runtime, belong to different curves.

    Raises:
        InputError: the file is not a table of measures.
    """
    rows, whole = _read_rows(path)
    counts = {"forward_share": 1} | {
        name: whole[name] for name in ("macs", "parameters") if _is_number(whole.get(name))
    }
    shares = {LEFT[name]: _ratio(name, count) for name, count in counts.items() if count > 0}
    times = {name: _value(name) for row in rows for name in row if name == "ms" or name.endswith("_ms")}
    plots = []
    for kind, title, x_label, columns in (
        ("left", "mAP@0.5 against what is left", "% left", shares),
        ("ms", "mAP@0.5 against the time of a forward pass", "ms", times),
    ):
        curves = [curve for name, x in columns.items() for curve in _curves(rows, name, x)]
        if curves:
            labels = (x_label, "mAP@0.5")
            plots.append(curves_plot(f"sweep{position}-{kind}", title, labels, curves, unit=True, falling=True))
    settings = [f"strategy {whole['strategy']}"] if whole.get("strategy") else []
    settings += [str(whole["table"])] if whole.get("table") else []
    return Section(_printable(f"{', '.join(['Sweep of ratios', *settings])} ({path.name})"), plots)


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a sweep, and in JSON what stands beside them."""
    if path.suffix == ".csv":
        return [{name: _parsed(cell) for name, cell in row.items()} for row in _csv_rows(path, "sweep")], {}
    try:
        content = json.loads(read_text(path, "sweep"))
        rows = content["sweep"]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: is not a sweep: an object with a list of rows, sweep, belongs there") from None
    return rows, content


def _csv_rows(path: Path, what: str) -> list[dict[str, str]]:
    """The rows of a CSV file; ``what`` it should be is for messages.

    Raises:
        InputError: a row has more or fewer cells than the first line, or the file is not CSV.
    """
    reader = csv.DictReader(read_text(path, what).splitlines())
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}:{reader.line_num}: not a row of a {what}: its cells are not those of line 1")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a row of a {what}: {error}") from None
    return rows


def _printable(text: str) -> str:
    """A text without the letters that a page cannot hold."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _parsed(cell: Any) -> Any:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return cell


def _value(name: str) -> Callable[[Mapping], Any]:
    return lambda row: row.get(name)


def _ratio(name: str, whole: float) -> Callable[[Mapping], Any]:
    return lambda row: 100 * row[name] / whole if _is_number(row.get(name)) else None


def _curves(rows: Sequence[Mapping], name: str, x: Callable[[Mapping], Any]) -> list[Curve]:
    """A curve per group of rows with the same texts, which tell several curves apart."""
    groups: dict[tuple[str, ...], list[Mapping]] = {}
    for row in rows:
        if _is_number(x(row)) and _is_number(row.get("mAP")):
            groups.setdefault(tuple(cell for cell in row.values() if isinstance(cell, str) and cell), []).append(row)
    several = len(groups) > 1
    labels = {
        texts: _printable(", ".join(texts if several and name == "ms" else [*(texts if several else ()), name]))
        for texts in groups
    }
    return [
        Curve(
            labels[texts],
            [x(row) for row in group],
            [row["mAP"] for row in group],
            [f"ratio {row['percent']:.0%}" if _is_number(row.get("percent")) else "" for row in group],
        )
        for texts, group in groups.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
