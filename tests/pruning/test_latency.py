import ast
import csv
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from config.networks import create_cfg
from export import write_latency_script
from models import Darknet
from tests.networks import CFG_FOLDER, CFGS, narrow, randomize
from tests.scene import make_project
from utils.darknet.spec import parse_network
from utils.detection.checkpoints import load_darknet, save_checkpoint
from utils.errors import InputError
from utils.pruning.budget import LARGEST_RATIO, ratio_within
from utils.pruning.costs import Counts, values_written
from utils.pruning.coupling import couple
from utils.pruning.graph_timer.measure import COLUMNS, describe_device, measure_to_file, read_rows, runtime_version
from utils.pruning.graph_timer.onnx_file import OnnxWriter
from utils.pruning.graph_timer.runners import CUDA_PROVIDER, RUNNERS, onnx_runner
from utils.pruning.latency import Latency, table_file, timing_device
from utils.pruning.latency_graphs import (
    RANDOM,
    WIDTHS,
    axes,
    border_graph,
    border_name,
    kind_of,
    network_graph,
    pointwise,
    random_network,
    table_graphs,
    whole_networks,
)
from utils.pruning.latency_table import LEAST_FACTOR, Fit, LatencyTable, bracket, read_table
from utils.pruning.pruner import Pruner
from utils.pruning.residuals import cfg_without_blocks, residual_blocks
from utils.sizes import Size

SIZE = 64


@pytest.fixture(scope="module")
def spec():
    return parse_network(create_cfg("v3-tiny", 1, SIZE, width=0.125)).at(SIZE)


def cost_of(kind, inputs, outputs):
    """Made-up milliseconds of a convolution, linear in each side."""
    height, width = kind.output_size
    return 1e-6 * height * width * (inputs + 5) * (outputs + 3) * kind.size**2


def border(size, channels):
    return 1e-5 * size[0] * size[1] * channels + 0.01


def made_up(spec, fit=Fit(1.0, 0.0, 0.0, 0.0, 0.0)):  # noqa: B008
    """A table in which the borders cost something, and whole networks what a fit gives."""
    milliseconds = {}
    for kind, (inputs, outputs) in axes(spec).items():
        for i in inputs:
            milliseconds[border_name((kind.height, kind.width), i)] = border((kind.height, kind.width), i)
            for o in outputs:
                milliseconds[border_name(kind.output_size, o)] = border(kind.output_size, o)
                before = 0 if kind.from_image else border((kind.height, kind.width), i)
                halves = (before + border(kind.output_size, o)) / 2
                milliseconds[kind.name(i, o)] = cost_of(kind, i, o) + halves
    for name, network in whole_networks(spec).items():
        milliseconds[name] = expected_ms(network, fit)
    return milliseconds


def expected_ms(spec, fit):
    values = sum(map(values_written, spec.layers)) + sum(c.channels * c.height * c.width for c in spec.convolutions)
    weights = max(weights_of(spec) - fit.cached, 0)
    of_convolutions = fit.factor * exact_sum(spec) + fit.per_convolution * len(spec.convolutions)
    return of_convolutions + fit.per_value * values + fit.per_weight * weights + fit.constant


def weights_of(spec):
    return sum(c.size**2 * c.inputs // c.groups * c.channels for c in spec.convolutions)


def exact_sum(spec):
    return sum(cost_of(kind_of(spec, c), c.inputs, c.channels) for c in spec.convolutions)


def write(path, milliseconds, **changed):
    mark = {"runtime": "onnx", "version": "1", "threads": "1", "device": "a box"} | changed
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({"graph": name, "ms": ms, **mark} for name, ms in milliseconds.items())
    return path


def test_the_prediction_is_the_fitted_sum_over_the_layers():
    """Of a network with residual blocks, which may be gone."""
    spec = parse_network(create_cfg("v3", 1, SIZE, width=0.125)).at(SIZE)
    fit = Fit(1.25, 0.02, 2e-6, 3e-7, 0.5)
    table = LatencyTable(spec, made_up(spec, fit), "made up")
    assert astuple(table.fit) == pytest.approx(astuple(fit), rel=1e-6)
    pruned = random_network(spec, 77)
    assert len(pruned.convolutions) < len(spec.convolutions)
    assert table.predict(pruned) == pytest.approx(expected_ms(pruned, fit), rel=1e-6)
    everything = Counts(couple(spec), table).saved_by_layers(tuple(range(len(spec.layers))))
    assert table.predict(spec) - fit.constant == pytest.approx(everything, rel=1e-6)
    saved = Counts(couple(spec), table).saved_by_layers(residual_blocks(spec)[0].layers)
    shallow = parse_network(cfg_without_blocks(spec, residual_blocks(spec)[:1]))
    assert table.predict(spec) - table.predict(shallow) == pytest.approx(saved, rel=1e-6)


def test_weights_cost_more_where_they_do_not_stay_in_the_cache():
    spec = parse_network(create_cfg("v3", 1, SIZE, width=0.125)).at(SIZE)
    networks = sorted(whole_networks(spec).values(), key=weights_of)
    fit = Fit(1.25, 0.02, 2e-6, 3e-6, 0.5, float(weights_of(networks[12])))
    table = LatencyTable(spec, made_up(spec, fit), "made up")
    assert astuple(table.fit) == pytest.approx(astuple(fit), rel=1e-6)
    for network in networks:
        assert table.predict(network) == pytest.approx(expected_ms(network, fit), rel=1e-6)


def test_a_convolution_keeps_its_own_time_where_other_numbers_explain_the_networks_alone(spec):
    table = LatencyTable(spec, made_up(spec, Fit(0.1, 0.02, 2e-6, 3e-7, 0.5)), "made up")
    assert table.fit.factor >= LEAST_FACTOR


def test_times_between_points_are_interpolated_on_both_sides_and_held_beyond(spec):
    table = LatencyTable(spec, made_up(spec), "made up")
    kind = next(k for k, (i, o) in axes(spec).items() if len(i) > 3 and len(o) > 3)
    for channels in ((11, 19), (8, 21), (16, 24)):
        assert table.convolution(kind, *channels) == pytest.approx(cost_of(kind, *channels))
    assert table.convolution(kind, 1, 8) == table.convolution(kind, 8, 8)
    assert bracket([8, 16, 32], 20) == [(16, 0.75), (32, 0.25)]


def test_a_table_survives_its_file(spec, tmp_path):
    milliseconds = made_up(spec, Fit(1.0, 0.1, 0.0, 0.0, 0.0))
    table = read_table(write(tmp_path / "t.csv", milliseconds), spec, "onnx")
    assert table.predict(spec) == LatencyTable(spec, milliseconds, "made up").predict(spec)
    assert table.title == "onnx 1, 1 thread, a box"


def test_a_table_that_does_not_fit_is_refused_in_one_line(spec, tmp_path):
    milliseconds = made_up(spec)
    path = write(tmp_path / "t.csv", milliseconds)

    def refusal(**options):
        with pytest.raises(InputError) as caught:
            read_table(**{"path": path, "spec": spec, **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such table" in refusal(path=tmp_path / "none.csv")
    assert "was measured in onnx, not in openvino" in refusal(runtime="openvino")
    assert "another network or image size" in refusal(spec=spec.at(96))
    other = parse_network([b | ({"activation": "mish"} if b.get("activation") == "leaky" else {}) for b in spec.blocks])
    assert "another network" in refusal(spec=other.at(SIZE))
    fewer = dict(list(milliseconds.items())[3:])
    assert "is not complete" in refusal(path=write(tmp_path / "f.csv", fewer))
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "cannot be read as a table" in refusal(path=tmp_path / "x.csv")
    assert "no number of milliseconds" in refusal(path=write(tmp_path / "n.csv", milliseconds | {"x": "nan"}))
    path.write_text(path.read_text() + "x,1,onnx,2,1,another box\n")
    assert "mixes several devices" in refusal()


def test_an_activation_that_no_runtime_here_knows_is_refused(spec):
    layer = replace(spec.layers[0], activation="stair")
    with pytest.raises(InputError, match="no activation stair"):
        network_graph(replace(spec, layers=(layer, *spec.layers[1:])))


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, monkeypatch):
    conv = pointwise(3, 8, -1)
    graphs = {f"g{n}": {"channels": 3, "height": 8, "width": 8, "layers": [conv]} for n in range(12)}
    path = tmp_path / "t.csv"

    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_to_file(graphs, path, "pytorch", progress=interrupt)
    with open(path, "a") as file:
        file.write("g7,0.1,pyto")  # a process that was killed
    first = read_rows(path)
    assert [row["graph"] for row in first] == [f"g{n}" for n in range(5)]
    totals = []
    measure_to_file(graphs, path, "pytorch", progress=lambda done, total: totals.append((done, total)))
    rows = read_rows(path)
    assert rows[:5] == first
    assert [row["graph"] for row in rows] == list(graphs)
    assert totals[-1] == (7, 7)
    assert all(float(row["ms"]) > 0 for row in rows)


def test_two_processes_that_measure_into_one_file_lose_no_row(tmp_path):
    conv = pointwise(3, 8, -1)
    graphs = {f"g{n}": {"channels": 3, "height": 8, "width": 8, "layers": [conv]} for n in range(6)}
    path = tmp_path / "t.csv"
    path.write_text(",".join(COLUMNS) + "\nold,1,pytorch,0.1,1,another box\nhalf,0.1,py")

    def other_process(done, total):
        if done == 2:
            with open(path, "a") as file:
                file.write("old,1,pytorch,0.1,1,another box\nhalf,0.1,py")
            measure_to_file(dict(list(graphs.items())[3:]), path, "pytorch")

    measure_to_file(dict(list(graphs.items())[:3]), path, "pytorch", progress=other_process)
    rows = read_rows(path)
    assert sorted(row["graph"] for row in rows) == list(graphs)
    assert len({row["device"] for row in rows}) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_rows_without_all_cells_are_no_rows(spec, tmp_path):
    path = write(tmp_path / "t.csv", {"a": 1, "b": 2})
    path.write_text(path.read_text() + "short,1,onnx\nglued,1,onnx,1c,3,onnx,1,1,a box\nc,3,onnx,1,1,a box\n")
    assert [row["graph"] for row in read_rows(path)] == ["a", "b", "c"]
    with pytest.raises(InputError, match="is not complete"):
        read_table(path, spec)


def test_a_table_that_is_half_measured_is_not_called_one_of_another_network(spec, tmp_path):
    milliseconds = made_up(spec)
    first = next(name for name in milliseconds if name.startswith("network"))
    half = {name: ms for name, ms in milliseconds.items() if not name.startswith("network") or name == first}
    with pytest.raises(InputError, match=r"is not complete: 'network .* more are missing: measure on"):
        read_table(write(tmp_path / "t.csv", half), spec)


def test_a_runtime_that_cannot_run_here_is_one_line_and_keeps_its_table(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(graph, threads, device):
        raise RuntimeError("no GPU\nis here")

    monkeypatch.setitem(RUNNERS, "pytorch", refuse)
    with pytest.raises(InputError, match=r"^pytorch cannot be timed here: no GPU is here$"):
        table_file(spec, "pytorch")
    assert list(tmp_path.rglob("*.csv"))
    times = Latency(LatencyTable(spec, made_up(spec), "made up"), "pytorch")
    with pytest.raises(InputError, match=r"^pytorch cannot be timed here: no GPU is here$"):
        times.milliseconds([Darknet(spec.blocks)])


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ("deconv", r"layer 5 \[deconvolutional\]: no table of latencies can be made"),
        ("grey", r"layer 0 \[convolutional\]: tables of latencies know no activation hard_mish"),
    ],
)
def test_what_no_table_can_be_made_of_is_named(cfg, message):
    with pytest.raises(InputError, match=message):
        network_graph(parse_network(narrow(CFG_FOLDER / f"{cfg}.cfg")))


@pytest.mark.parametrize("cfg", [cfg for cfg in CFGS if cfg.stem not in ("deconv", "grey")], ids=lambda path: path.stem)
def test_graphs_are_the_networks_in_every_runtime(cfg):
    onnx = pytest.importorskip("onnx")
    spec = parse_network(narrow(cfg))
    graph = network_graph(spec)
    onnx.checker.check_model(onnx.load_from_string(OnnxWriter(graph).content()), full_check=True)
    results = {name: RUNNERS[name](graph, 1, "cpu") for name in RUNNERS if installed(name)}
    boxes = sum(len(head.anchors) * head.height * head.width for head in spec.heads)
    assert results["onnx"]()[0].shape == (1, boxes, 5 + spec.heads[0].classes)
    if "openvino" in results:
        np.testing.assert_allclose(results["openvino"]()[0], results["onnx"]()[0], rtol=1e-2, atol=1e-2)
    for forward in results.values():
        forward()


def installed(runtime):
    try:
        runtime_version(runtime)
    except ModuleNotFoundError:
        return False
    return True


def test_what_cannot_use_the_gpu_is_timed_on_the_cpu():
    onnxruntime = pytest.importorskip("onnxruntime")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [timing_device(runtime, gpu) for runtime in ("pytorch", "openvino", "ncnn")] == ["cuda", "cpu", "cpu"]
    assert {timing_device(runtime, cpu) for runtime in RUNNERS} == {"cpu"}
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        assert timing_device("onnx", gpu) == "cpu"
        with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
            onnx_runner(border_graph((4, 4), 8), 1, "cuda")


def test_onnx_runtime_is_timed_on_the_gpu_that_the_process_uses(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    given = []

    class Session:
        def __init__(self, content, options, providers):
            given.extend(providers)

        def get_providers(self):
            return [CUDA_PROVIDER]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    onnx_runner(border_graph((4, 4), 8), 1, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    onnx_runner(border_graph((4, 4), 8), 1, "cuda")
    assert [options["device_id"] for _, options in given] == ["1", "0"]


def test_a_gpu_has_a_name_where_pytorch_cannot_use_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_device("cuda") == f"GPU beside {describe_device()}"


def test_signals_are_handled_after_openvino_is_done():
    """Two instances of OpenVINO leave a freed signal stack behind, on which the next signal ends the process."""
    pytest.importorskip("openvino")
    code = """
        import signal
        from utils.detection.runtimes import OpenVinoModel
        from utils.pruning.graph_timer.onnx_file import OnnxWriter
        from utils.pruning.graph_timer.runners import openvino_runner
        from utils.pruning.latency_graphs import border_graph

        signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
        graph = border_graph((4, 4), 8)
        content = OnnxWriter(graph).content()
        for make in (lambda: openvino_runner(graph, 1, "cpu"), lambda: OpenVinoModel(content)):
            first, second = make(), make()
            del first
            del second
            signal.raise_signal(signal.SIGUSR1)
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\nhandled\n"), done.stderr


def test_ncnn_computes_what_onnx_runtime_does():
    pytest.importorskip("ncnn")
    pytest.importorskip("onnxruntime")
    layers = [pointwise(3, 8, -1), pointwise(8, 8, 0) | {"size": 3, "padding": 1, "activation": "mish"}]
    layers += [{"op": "add", "from": [0, 1]}, {"op": "upsample", "from": [2], "stride": 2}]
    layers += [{"op": "maxpool", "from": [3], "size": 2, "stride": (2, 2), "before": 0, "after": 0}]
    layers += [{"op": "slice", "from": [0], "begin": 2, "end": 6}, {"op": "concat", "from": [4, 5]}]
    graph = {"channels": 3, "height": 16, "width": 24, "layers": [*layers, pointwise(12, 18, 6)]}
    ours, theirs = (np.array(RUNNERS[name](graph, 1, "cpu")()[0]) for name in ("ncnn", "onnx"))
    np.testing.assert_allclose(ours, theirs[0], rtol=1e-4, atol=1e-4)


def test_the_script_for_another_device_needs_nothing_of_this_project(spec, tmp_path):
    write_latency_script(Darknet(spec.blocks), Size(spec.height, spec.width), tmp_path)
    written = json.loads((tmp_path / "graphs.json").read_text())
    assert written.keys() == table_graphs(spec).keys()
    modules = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for path in (tmp_path / "graph_timer").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
    }
    assert modules <= set(sys.stdlib_module_names) | {"numpy", "torch", "onnxruntime", "openvino", "ncnn"}
    graphs = dict(list(written.items())[:3])
    (tmp_path / "graphs.json").write_text(json.dumps(graphs))
    command = [sys.executable, "-m", "graph_timer", "--runtime", "pytorch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["graph"] for row in read_rows(tmp_path / "latency.csv")] == list(graphs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "-5"], "'-5' is no number of threads"),
        (["--graphs", "list.json"], "list.json: not the graphs that export.py --latency_table wrote"),
        (["--output", "other.csv"], "other.csv: holds what was measured in onnx, 1.0, 1, a board: give another"),
        (["--runtime", "nothing"], "invalid choice"),
    ],
)
def test_the_script_for_another_device_refuses_what_would_be_wrong_or_lost(tmp_path, words, message):
    (tmp_path / "graphs.json").write_text("{}")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.csv").write_text(",".join(COLUMNS) + "\ng,1,onnx,1.0,1,a board\n")
    before = (tmp_path / "other.csv").read_text()
    command = [sys.executable, "-m", "utils.pruning.graph_timer", "--runtime", "pytorch", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "other.csv").read_text() == before


@pytest.mark.parametrize("runtime", ["openvino", "ncnn"])
def test_what_would_run_on_the_cpu_is_not_timed_as_a_gpu(runtime):
    pytest.importorskip(runtime)
    with pytest.raises(RuntimeError, match="--device cpu"):
        RUNNERS[runtime]({"channels": 3, "height": 8, "width": 8, "layers": []}, 1, "cuda")


def test_the_graphs_of_a_table_cover_its_network(spec):
    names = list(table_graphs(spec))
    whole = [position for position, name in enumerate(names) if name.startswith("network")]
    assert len(whole) == len(WIDTHS) + RANDOM
    assert max(np.diff(whole)) < len(names) / 4  # all along, so that a slow minute does not hit them all
    Darknet(whole_networks(spec)[names[whole[0]]].blocks)  # a network that can be built


def test_a_run_cuts_its_network_to_the_milliseconds_of_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(train, "report_training", lambda name: None)
    model = Darknet("config/yolov3-hand.cfg")
    save_checkpoint("start.pth", model, pruned=False)
    write(tmp_path / "t.csv", made_up(model.spec.at(SIZE), Fit(1.0, 0.1, 0.0, 0.0, 1.0)))
    table = read_table("t.csv", model.spec.at(SIZE))
    budget = 0.7 * table.predict(model.spec)
    words = ["-sr", "-pre", "start.pth", "--epochs", "1", "--n_cpu", "0", "--batch_size", "4", "--img_size", str(SIZE)]

    def run(*more):
        train.main(train.get_args_parser().parse_args([*words, *more]))

    with pytest.raises(InputError, match="go with --runtime or with --latency_table"):
        run("--target_ms", "1")
    run("--latency_table", "t.csv", "--target_ms", f"{budget:.4f}")
    left = table.predict(load_darknet("checkpoints/yolov3_ckpt.pth", None)[0].spec)
    assert 0.8 * budget < left <= budget
    assert f"the cut leaves {left:.2f} ms of {table.predict(model.spec):.2f} ms" in capsys.readouterr().out


class Slower(Latency):
    """A runtime in which networks take 5 % longer than the table says."""

    def milliseconds(self, models):
        return [1.05 * self.table.predict(model.spec) for model in models]


def test_a_network_that_is_slower_than_its_table_says_is_cut_further(spec, capsys):
    table = LatencyTable(spec, made_up(spec, Fit(1.0, 0.01, 0.0, 0.0, 0.0)), "made up")
    pruner = Pruner(randomize(Darknet(spec.blocks)), "slim", kind="magnitude", costs=table)

    def pruned(ratio):
        return pruner.at(ratio).pruned.model

    whole, least = (table.predict(pruned(ratio).spec) for ratio in (0.0, LARGEST_RATIO))
    target = (whole + 1.05 * least) / 2
    assert 1.05 * least < target < whole
    assert 1.05 * table.predict(pruned(ratio_within(target, pruned, Slower(table))).spec) <= target
    assert capsys.readouterr().out == ""
    ratio_within(1.02 * least, pruned, Slower(table))
    assert "ms were measured, more than" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be reached: the layers' floors"):
        ratio_within(0.9 * least, pruned, Slower(table))
