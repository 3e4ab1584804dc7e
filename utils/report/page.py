"""The page: what is on it, put into the template, as one file that loads nothing from outside."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from utils.files import write_text
from utils.pruning.compare import Measures
from utils.report.commands import this_command
from utils.report.detections import LEAST_SCORE, PARTNER_IOU, SCORE
from utils.report.gallery import Gallery
from utils.report.logs import Section
from utils.report.plots import Plot

TEMPLATES = Path(__file__).parent / "template"


@dataclass(frozen=True)
class Column:
    """A network, as a column of the page's table.

    Attributes:
        name: what it is called.
        measures: what it has and does.
        facts: what else there is to say, as pairs of a term and its text.
    """

    name: str
    measures: Measures
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Cell:
    """A value of the table, and how it compares with the first network's."""

    value: str
    change: str = ""


@dataclass(frozen=True)
class Page:
    """What is on the page.

    Attributes:
        title: its heading.
        columns: the networks, the first being what the others are compared with.
        data: the data set, in words.
        input_size: in words.
        note: a sentence on what was cut.
        gallery: images with detections of the first and the last network.
        class_names: of the detections.
        drawn: the name of the network that is drawn.
        drawing: the parts of its drawing.
        sections: the plots of runs and sweeps.
        versions: what the page was made with.
    """

    title: str
    columns: Sequence[Column]
    data: str
    input_size: str
    note: str
    gallery: Gallery
    class_names: Sequence[str]
    drawn: str
    drawing: Sequence[Plot]
    sections: Sequence[Section]
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the page to ``path``, atomically.

        Raises:
            InputError: ``path`` is a folder, or the disk is full.
        """
        write_text(path, self.html())

    def html(self) -> str:
        """The page as text."""
        templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters["breakable"] = breakable
        text = templates.get_template("page.html").render(
            page=self,
            rows=table_rows(self.columns),
            highlights=highlights(self.columns),
            made_with=[("command", this_command()), *self.versions.items()],
            made=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
            score=SCORE,
            least_score=LEAST_SCORE,
            partner_iou=PARTNER_IOU,
        )
        return text.encode("utf-8", "replace").decode()  # a file's name may be in no encoding


def breakable(name: str) -> Markup:
    """A name whose line may end behind each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def table_rows(columns: Sequence[Column]) -> list[tuple[str, list[Cell]]]:
    """The rows of the table: what is measured, and a cell per network."""
    measures = [column.measures for column in columns]
    first = measures[0]

    def shares(name: str, unit: float, digits: int) -> list[Cell]:
        return [
            Cell(f"{getattr(m, name) / unit:,.{digits}f}", "" if m is first else _share(m, first, name))
            for m in measures
        ]

    def differences(name: str) -> list[Cell]:
        return [Cell(f"{getattr(m, name):.4f}", "" if m is first else _difference(m, first, name)) for m in measures]

    quartiles = [Cell("{:,.2f} – {:,.2f}".format(*m.forward_quartiles_ms)) for m in measures]
    return [
        ("Parameters, million", shares("parameters", 1e6, 3)),
        ("File size, MB", shares("size_bytes", 1e6, 2)),
        ("MACs per image, G", shares("macs", 1e9, 3)),
        ("Forward pass of one image, ms", shares("forward_ms", 1, 2)),
        ("half of the passes, ms", quartiles),
        ("mAP@0.5", differences("mAP")),
        ("mAP@0.5:0.95", differences("mAP_50_95")),
    ]


def _share(measures: Measures, first: Measures, name: str) -> str:
    return f"{getattr(measures, name) / getattr(first, name):.1%}"


def _difference(measures: Measures, first: Measures, name: str) -> str:
    return f"{getattr(measures, name) - getattr(first, name):+.4f}".replace("-", "−")


def highlights(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """What the last network has of the first one's, as pairs of a number and what it is; nothing of one network."""
    if len(columns) < 2:
        return []
    first, last = columns[0].measures, columns[-1].measures
    return [
        (_share(last, first, "parameters"), "of the parameters"),
        (_share(last, first, "macs"), "of the MACs"),
        (f"{first.forward_ms / last.forward_ms:.1f}×", "as fast"),
        (_difference(last, first, "mAP"), "mAP@0.5"),
    ]
