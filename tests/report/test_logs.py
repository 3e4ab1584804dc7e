import json
import re

import pytest

from utils.errors import InputError
from utils.files import write_csv, write_json
from utils.report.logs import sweep_sections, training_section


def titles(plot):
    return re.findall(r"<title>(.*?)</title>", plot.svg)


def test_a_log_becomes_plots_of_what_was_measured(tmp_path):
    rows = [{"epoch": k, "box_loss": 0.5 / (k + 1), "class_loss": 0.0, "gamma_q20": 0.25} for k in range(3)]
    rows[0] |= {"mAP": 0.5}
    rows[2] |= {"mAP": 0.75, "objectness_loss": float("nan")}
    write_csv(tmp_path / "log.csv", rows)
    section = training_section("small", tmp_path, 0)
    assert section.title == "Training of small"
    quality, losses, gammas = section.plots
    assert titles(quality) == ["mAP@0.5 0.5 (epoch 1)", "mAP@0.5 0.75 (epoch 3)"]
    assert losses.table.columns == ["epoch", "box, per positive"]
    assert losses.table.rows == [["1", "0.5"], ["2", "0.25"], ["3", "0.1667"]]
    assert len(titles(gammas)) == 3


def test_a_run_without_a_log_has_no_section_and_a_damaged_one_is_named(tmp_path):
    assert training_section("small", tmp_path, 0) is None
    (tmp_path / "log.csv").write_text("epoch,mAP\n0,high\n")
    with pytest.raises(InputError, match=r"log\.csv"):
        training_section("small", tmp_path, 0)


def test_a_sweep_is_drawn_against_what_is_left_and_against_the_time(tmp_path):
    row = {"percent": 0.5, "mAP": 0.9, "macs": 30, "parameters": 20, "threshold": 0.1, "forward_share": 0.75}
    row |= {"order": "slim"}
    content = {
        "strategy": "slim",
        "table": None,
        "parameters": 100,
        "macs": 60,
        "sweep": [row, row | {"mAP": 0.8, "macs": 15}],
    }
    write_json(tmp_path / "sweep.json", content)
    (section,) = sweep_sections([tmp_path, tmp_path])
    assert section.title == "Sweep of ratios, strategy slim (sweep.json)"
    (left,) = section.plots
    assert titles(left) == [
        "ratio 50%: time of a forward pass 0.9 (% left 75)",
        "ratio 50%: time of a forward pass 0.8 (% left 75)",
        "ratio 50%: MACs 0.9 (% left 50)",
        "ratio 50%: MACs 0.8 (% left 25)",
        "ratio 50%: parameters 0.9 (% left 20)",
        "ratio 50%: parameters 0.8 (% left 20)",
    ]


def test_a_sweep_of_latency_has_a_curve_for_each_method(tmp_path):
    rows = [
        {"method": method, "percent": ratio, "mAP": 1 - ratio, "forward_ms": 10 * (1 - ratio), "runtime": "onnx"}
        for method in ("global", "latency")
        for ratio in (0, 0.5)
    ]
    write_csv(tmp_path / "latency_sweep.csv", rows)
    (section,) = sweep_sections([tmp_path])
    (times,) = section.plots
    assert times.table.columns == ["point", "ms", "global, onnx, forward_ms", "latency, onnx, forward_ms"]
    assert times.table.rows == [["ratio 0%", "10", "1", "1"], ["ratio 50%", "5", "0.5", "0.5"]]


def test_a_sweep_of_both_orders_has_a_curve_for_each(tmp_path):
    row = {"percent": 0.5, "mAP": 0.9, "macs": 30, "parameters": 20}
    rows = [row | {"order": order, "ms": ms} for order, ms in (("threshold", 4), ("latency", 3))]
    content = {"table": "onnx, 1 thread", "parameters": 100, "macs": 60, "sweep": rows}
    write_json(tmp_path / "latency_sweep.json", content)
    (section,) = sweep_sections([tmp_path])
    assert section.title == "Sweep of ratios, onnx, 1 thread (latency_sweep.json)"
    assert titles(section.plots[1]) == ["ratio 50%: threshold 0.9 (ms 4)", "ratio 50%: latency 0.9 (ms 3)"]


@pytest.mark.parametrize("row", ["0.5,0.9,30,40", "0.5,0.9"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("log.csv", lambda folder: training_section("small", folder, 0)),
        ("my_sweep.csv", lambda folder: sweep_sections([folder])),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_file_and_line(tmp_path, name, read, row):
    (tmp_path / name).write_text(f"epoch,mAP,ms\n0,0.95,20\n{row}\n")
    with pytest.raises(InputError, match=rf"{name}:3: not a row"):
        read(tmp_path)


def test_texts_of_a_sweep_are_drawn_as_they_are(tmp_path):
    methods = ["$a_$", "_hidden", "<b>\x00\ud800", "$x$"]
    rows = [{"method": method, "mAP": 0.5, "ms": ms} for method in methods for ms in (1, 2)]
    write_json(tmp_path / "sweep.json", {"strategy": "\x0b", "sweep": rows})
    (section,) = sweep_sections([tmp_path])
    (plot,) = section.plots
    assert plot.table.columns == ["ms", "$a_$", "_hidden", "<b>\ufffd\ufffd", "$x$"]
    legend = re.findall(r"<text[^>]*>(.*?)</text>", plot.svg)
    assert {"$a_$", "_hidden", "&lt;b&gt;\ufffd\ufffd", "$x$"} <= set(legend)


@pytest.mark.parametrize("text", ["{", "[]", '{"sweep": [1]}', json.dumps({"rows": []})])
def test_a_damaged_sweep_is_named(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match=r"sweep\.json: is not a sweep"):
        sweep_sections([tmp_path])
