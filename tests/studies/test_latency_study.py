import csv

import numpy as np

from config.networks import create_cfg
from models import Darknet
from studies import latency_study
from studies.plan import DATA_SETS, weights_of
from studies.runner import to_do
from tests.networks import randomize
from utils.files import write_csv
from utils.pruning.penalty import gamma_sizes

RUNTIMES, THREADS = ["onnx", "ncnn"], [1, 2]


def jobs():
    return latency_study.all_jobs(DATA_SETS[0], RUNTIMES, THREADS, 0)


def test_each_run_comes_after_those_that_it_needs_and_has_files_of_its_own():
    runs = jobs()
    ids = [job.id for job in runs]
    assert len(set(ids)) == len({weights_of(job.id) for job in runs}) == len(runs)
    for number, job in enumerate(runs):
        assert set(job.needs) <= set(ids[:number])
    assert {job.stage for job in runs} == {"baseline", "oneshot", "control_oneshot", "predict"}
    assert to_do(runs, set(ids) - {ids[-1]})[-1].id == ids[-1]


def test_a_cut_by_a_table_names_its_runtime_and_no_share_of_macs():
    cuts = [job for job in jobs() if job.stage == "oneshot"]
    by_order = {order: [job for job in cuts if latency_study.order_of(job) == order] for order in ("threshold", "ncnn")}
    assert all("--target_macs" in job.options and "--runtime" not in job.options for job in by_order["threshold"])
    for job in cuts:
        options = dict(zip(job.options[::2], job.options[1::2], strict=True))
        assert job not in by_order["ncnn"] or (options["--runtime"] == "ncnn" and "--target_macs" not in options)
        assert options["--weights_path"] == weights_of(job.needs[0])


def test_random_gammas_leave_the_network_as_it_is():
    model = randomize(Darknet(create_cfg("v3-tiny", 1, 64, width=0.125)))
    before = gamma_sizes(model)
    changed = gamma_sizes(latency_study.with_random_gammas(model, np.random.default_rng(0)))
    for index, values in gamma_sizes(model).items():
        np.testing.assert_array_equal(values, before[index])
        assert not np.isclose(changed[index], values).all()


def test_what_is_measured_is_drawn_and_the_table_names_every_network(tmp_path):
    rows = []
    for position, job in enumerate(jobs()):
        row = {"id": job.id, "stage": job.stage, "target_macs": job.target_macs}
        row["order"] = latency_study.order_of(job)
        if job.stage == "predict":
            row |= {"predicted_ms": "1 2 3 4", "measured_ms": "1 2.5 3 4.1"}
        else:
            row |= {"mAP": 0.9, "mAP_50_95": 0.5, "macs": 1e9 / (1 + position)}
            row |= {f"ms_{runtime}_{count}": 5 / (1 + position) for runtime in RUNTIMES for count in THREADS}
        rows.append(row)
    write_csv(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", newline="") as file:
        latency_study.draw(list(csv.DictReader(file)), tmp_path, "hands")
    names = {path.name for path in tmp_path.iterdir()}
    figures = {f"latency_hands_{figure}.png" for figure in ("predictions", "mAP", "mAP_50_95")}
    assert names == {"rows.csv", "latency_hands.md", *figures}
    lines = (tmp_path / "latency_hands.md").read_text().splitlines()
    assert sum(line.startswith("| ncnn | 33% |") for line in lines) == 2
    assert latency_study.errors_in_words(np.array([-0.2, 0.05, 0.1])) == "-20% to +10%, 2 of 3 within 10%"
