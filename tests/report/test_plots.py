import re

import matplotlib
import pytest

from config.networks import create_cfg
from models import Darknet
from tests.networks import CFGS, narrow
from utils.darknet.spec import parse_network
from utils.report.drawing import ROWS, draw_network
from utils.report.plots import Curve, curves_plot, number


def titles(svg):
    return re.findall(r"<title>(.*?)</title>", svg)


def assert_stands_alone(svg):
    assert "http" not in svg
    assert "xmlns" not in svg
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    assert references
    assert {first or second for first, second in references} <= {f"#{element}" for element in ids}


def test_each_point_has_its_value():
    curves = [Curve("box", [1, 2, 3], [0.5, 0.25, 0.125]), Curve("<b>", [2, 3], [10, 12.3456])]
    plot = curves_plot("one", "Losses", ("epoch", "loss"), curves)
    assert titles(plot.svg) == [
        "box 0.5 (epoch 1)",
        "box 0.25 (epoch 2)",
        "box 0.125 (epoch 3)",
        "&lt;b&gt; 10 (epoch 2)",
        "&lt;b&gt; 12.35 (epoch 3)",
    ]
    assert plot.table.columns == ["epoch", "box", "<b>"]
    assert plot.table.rows == [["1", "0.5", "–"], ["2", "0.25", "10"], ["3", "0.125", "12.35"]]
    assert_stands_alone(plot.svg)
    assert 'role="img"' in plot.svg
    assert "box: from 0.5 to 0.125." in plot.svg


def test_points_may_have_names_and_zeros_are_not_on_a_logarithmic_axis():
    curves = [Curve("MACs", [100, 40], [0.9, 0.8], ["ratio 0%", "ratio 50%"])]
    plot = curves_plot("two", "Sweep", ("% left", "mAP@0.5"), curves, unit=True, falling=True)
    assert titles(plot.svg) == ["ratio 0%: MACs 0.9 (% left 100)", "ratio 50%: MACs 0.8 (% left 40)"]
    assert plot.table.rows == [["ratio 0%", "100", "0.9"], ["ratio 50%", "40", "0.8"]]
    plot = curves_plot("three", "Losses", ("epoch", "loss"), [Curve("class", [1, 2], [0, 0.1])], log=True)
    assert titles(plot.svg) == ["class 0.1 (epoch 2)"]
    assert plot.table.rows == [["1", "0"], ["2", "0.1"]]


def test_a_long_legend_has_a_place_below_the_axes():
    def tops(count):
        curves = [Curve(f"a curve with a long name, number {k}", [1, 2], [0.5, 0.25]) for k in range(count)]
        svg = curves_plot("plot", "Losses", ("epoch", "loss"), curves).svg
        frame, legend = (re.search(rf'<g id="plot-{part}.*?d="M ?[-\d.]+ ([-\d.]+)', svg, re.DOTALL) for part in ids)
        return float(frame[1]), float(legend[1]), float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)', svg)[1])

    ids = ("patch_2", "legend_1")
    for count in (2, 6):
        bottom_of_axes, top_of_legend, height = tops(count)
        assert bottom_of_axes + 30 < top_of_legend < height  # the label of the x axis is between them


def test_plots_leave_the_settings_alone_and_share_no_ids():
    before = dict(matplotlib.rcParams)
    curve = Curve("box", [1, 2], [0.5, 0.25])
    svgs = [curves_plot(name, "Losses", ("epoch", "loss"), [curve]).svg for name in ("first", "second")]
    assert dict(matplotlib.rcParams) == before
    assert_stands_alone(" ".join(svgs))


@pytest.mark.parametrize("value", [(0.94973, "0.9497"), (12, "12"), (123456.7, "123,457"), (1e-5, "1e-05")])
def test_numbers_are_short(value):
    assert number(value[0]) == value[1]


def test_each_layer_is_drawn_with_its_channels_before_and_after():
    spec = parse_network(create_cfg("v3", 1, 64, width=0.25))
    after = {layer.index: layer.channels for layer in spec.convolutions} | {12: 7, 13: 0}
    parts = draw_network(spec, after)
    assert len(parts) == -(-len(spec.layers) // ROWS)
    rows = [row for part in parts for row in part.table.rows]
    assert [row[0] for row in rows] == [str(index) for index in range(107)]
    assert rows[12] == ["12", "convolutional 3×3 /2", "11", "64", "7"]
    assert rows[13] == ["13", "convolutional 1×1", "12", "32", "0"]
    assert rows[15] == ["15", "shortcut", "14 and 12", "–", "–"]
    assert rows[86] == ["86", "route", "85 and 61", "–", "–"]
    assert titles(parts[0].svg)[12] == "layer 12, convolutional 3×3 /2, reads 11; 64 channels before, 7 after"
    assert ">64 → 7</text>" in parts[0].svg
    assert_stands_alone(" ".join(part.svg for part in parts))


@pytest.mark.parametrize("cfg", CFGS, ids=lambda path: path.stem)
def test_every_kind_of_layer_is_drawn(cfg):
    spec = Darknet(narrow(cfg)).spec
    parts = draw_network(spec, {layer.index: 1 for layer in spec.convolutions})
    assert sum(len(titles(part.svg)) for part in parts) == len(spec.layers)
