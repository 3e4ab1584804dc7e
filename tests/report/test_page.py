from html.parser import HTMLParser

import pytest
import torch

from tests.scene import save
from utils.data.datasets import DetectionDataset
from utils.pruning.compare import Measures
from utils.report.detections import Collected
from utils.report.gallery import make_gallery
from utils.report.logs import Section
from utils.report.page import Column, Page, highlights, table_rows
from utils.report.plots import Curve, curves_plot

BEFORE = Measures(0.9, 0.5, 1_000_000, 600_000_000, 4_000_000, 10.0, (9.0, 12.0))
AFTER = Measures(0.85, 0.525, 100_000, 60_000_000, 500_000, 4.0, (3.5, 4.25))
HOSTILE = '<b>&"hand</b><script>alert(1)</script>'

NETWORKS = (Column("before", BEFORE), Column("after", AFTER))
VOID = {"meta", "img", "input", "br"}


class Elements(HTMLParser):
    """The elements of a page, and the text of each kind of them."""

    def __init__(self, page):
        super().__init__()
        self.starts, self.open, self.texts = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def collected(scores, boxes=0):
    """The left upper quarter of an image detected with these scores, and so many ground-truth boxes there."""
    result = Collected()
    result(torch.tensor([[0, 8, 16, 16, score, 0] for score in scores]), torch.tensor([[0, 0, 8, 16, 16.0]] * boxes))
    return result


def make_page(folder, columns=NETWORKS, name="a", class_name="hand", after=(0.5,), boxes=1):
    """A page of one image and two plots."""
    image = save(folder / f"images/{name}.jpg", (80, 40))
    dataset, before = DetectionDataset([image], [[]], 32), collected([0.5], boxes) if len(columns) > 1 else None
    curve = Curve(class_name, [1, 2], [0.5, 0.25])
    return Page(
        title=name,
        columns=columns,
        data=f"1 validation image of {name}.data",
        input_size="32×32",
        note="",
        gallery=make_gallery(dataset, before, collected(after, boxes)),
        class_names=[class_name],
        drawn=columns[0].name,
        drawing=[curves_plot("drawing", "Layers", ("epoch", "loss"), [curve])],
        sections=[Section(name, [curves_plot("run", class_name, ("epoch", "loss"), [curve])])],
        versions={"device": "cpu"},
    )


def test_the_table_has_every_measure_and_its_share():
    rows = dict(table_rows(NETWORKS))
    texts = {label: [(cell.value, cell.change) for cell in cells] for label, cells in rows.items()}
    assert texts == {
        "Parameters, million": [("1.000", ""), ("0.100", "10.0%")],
        "File size, MB": [("4.00", ""), ("0.50", "12.5%")],
        "MACs per image, G": [("0.600", ""), ("0.060", "10.0%")],
        "Forward pass of one image, ms": [("10.00", ""), ("4.00", "40.0%")],
        "half of the passes, ms": [("9.00 – 12.00", ""), ("3.50 – 4.25", "")],
        "mAP@0.5": [("0.9000", ""), ("0.8500", "−0.0500")],
        "mAP@0.5:0.95": [("0.5000", ""), ("0.5250", "+0.0250")],
    }


def test_the_highlights_compare_the_last_network_with_the_first():
    middle = Column("middle", BEFORE)
    numbers = [number for number, _ in highlights([Column("before", BEFORE), middle, Column("after", AFTER)])]
    assert numbers == ["10.0%", "10.0%", "2.5×", "−0.0500"]
    assert highlights([middle]) == []


def test_nothing_is_loaded_and_everything_has_its_name(tmp_path):
    page = make_page(tmp_path).html()
    assert "http:" not in page
    assert "https:" not in page
    elements = Elements(page)
    assert elements.open == []
    sources = [attrs[key] for _, attrs in elements.starts for key in ("src", "href", "srcset") if key in attrs]
    assert {source.partition(":")[0] for source in sources if not source.startswith("#")} == {"data"}
    assert not [tag for tag, _ in elements.starts if tag in ("link", "iframe", "object", "embed")]
    ids = [attrs["id"] for _, attrs in elements.starts if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {attrs.get(key) for _, attrs in elements.starts for key in ("for", "aria-labelledby")} - {None}
    assert named <= set(ids)
    inner = {attrs["href"].removeprefix("#") for tag, attrs in elements.starts if tag == "a"}
    assert inner <= set(ids)
    assert all(attrs["alt"] for tag, attrs in elements.starts if tag == "img")
    assert all(attrs["scope"] for tag, attrs in elements.starts if tag == "th")
    tables = [tag for tag, _ in elements.starts if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert "score" in {attrs["for"] for tag, attrs in elements.starts if tag == "label" and "for" in attrs}


def test_names_are_text_wherever_they_stand(tmp_path):
    columns = [Column(HOSTILE, BEFORE, [("file", HOSTILE)]), Column("after", AFTER, [("command", HOSTILE)])]
    page = make_page(tmp_path, columns, class_name=HOSTILE).html()
    elements = Elements(page)
    assert HOSTILE not in page
    assert len([tag for tag, _ in elements.starts if tag == "script"]) == 2
    assert HOSTILE in "".join(elements.texts["span"])  # a word of a command


def test_a_file_name_in_no_encoding_does_not_stop_the_page(tmp_path):
    make_page(tmp_path, name="caf\udce9").write(tmp_path / "report.html")
    assert "caf?.jpg" in (tmp_path / "report.html").read_text()


def test_a_network_alone_is_shown_with_the_ground_truth(tmp_path):
    page = make_page(tmp_path, [Column("after", AFTER)]).html()
    kinds = [attrs["data-kind"] for _, attrs in Elements(page).starts if "data-kind" in attrs]
    assert kinds == ["after"]
    assert "<b>ground truth</b> and <b>after</b> disagree" in page


@pytest.mark.parametrize("part", ["viewport", "Content-Security-Policy", "color-scheme"])
def test_the_page_says_how_to_show_it(tmp_path, part):
    assert part in {
        attrs.get("name") or attrs.get("http-equiv") for _, attrs in Elements(make_page(tmp_path).html()).starts
    }
