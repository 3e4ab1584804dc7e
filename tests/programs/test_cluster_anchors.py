import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.cluster_anchors import MAX_BOXES, box_sizes, cluster, fit, get_args_parser, k_means, main, size_iou
from utils.data.check import check_data
from utils.data.data_config import read_data_config
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SHAPES = np.array([[10, 12], [60, 20], [30, 100], [150, 140]], dtype=np.float64)


@pytest.fixture
def data(tmp_path):
    """A data set of two images, 200x100 and 50x100, and one of background, with the config that names them."""
    labels = {"a": (200, 100, "0 .5 .5 .5 .5\n1 .5 .5 .1 .4\n"), "b": (50, 100, "0 .5 .5 .8 .2\n"), "c": (9, 9, "")}
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, (width, height, text) in labels.items():
        Image.new("RGB", (width, height)).save(tmp_path / f"images/{name}.png")
        (tmp_path / f"labels/{name}.txt").write_text(text)
    (tmp_path / "train.txt").write_text("".join(f"images/{name}.png\n" for name in labels))
    (tmp_path / "classes.names").write_text("left\nright\n")
    config = tmp_path / "set.data"
    config.write_text("classes=2\ntrain=train.txt\nvalid=train.txt\nnames=classes.names\n")
    return config


def jittered(shapes, rng, each=40):
    return np.concatenate([shape * rng.uniform(0.9, 1.1, (each, 2)) for shape in shapes])


def run_main(config, *options):
    main(get_args_parser().parse_args(["--data_config", str(config), *options]))


def test_iou_of_sizes():
    iou = size_iou(np.array([[10.0, 10.0]]), np.array([[10.0, 10.0], [5.0, 10.0], [20.0, 5.0]]))
    assert iou[0] == pytest.approx([1, 1 / 2, 50 / 150])


def test_box_sizes_are_pixels_of_the_letterboxed_square(data):
    checked = check_data(read_data_config(data), "train")
    sizes = box_sizes(checked.images, checked.labels, img_size=400)
    assert sizes == pytest.approx(np.array([[200, 100], [40, 80], [160, 80]]), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_cluster_finds_the_shapes_smallest_area_first(seed):
    sizes = jittered(SHAPES, np.random.default_rng(seed))
    anchors = cluster(sizes, 4, seed)
    assert anchors == pytest.approx(SHAPES, rel=0.06)
    assert (anchors == anchors.round()).all()


def test_of_many_boxes_some_stand_for_all():
    sizes = jittered(SHAPES, np.random.default_rng(0), each=MAX_BOXES // 2)
    assert cluster(sizes, 4) == pytest.approx(SHAPES, rel=0.06)


def test_small_boxes_count_as_much_as_large_ones():
    shapes = np.array([[4, 16], [16, 4], [300, 320]], dtype=np.float64)  # Euclidean k-means would split the large ones
    sizes = np.concatenate([shapes[[0, 1]].repeat(5, axis=0), shapes[2] * np.linspace(0.85, 1.15, 50)[:, None]])
    assert cluster(sizes, 3)[:2].tolist() == [[4, 16], [16, 4]]


def test_k_means_does_not_lose_to_its_start():
    rng = np.random.default_rng(0)
    sizes = rng.uniform(5, 300, (200, 2))
    start = sizes[:5]
    before, after = (size_iou(sizes, anchors).max(axis=1).mean() for anchors in (start, k_means(sizes, start)))
    assert after > before + 0.02
    assert (start == sizes[:5]).all()


def test_same_seed_same_anchors():
    sizes = np.random.default_rng(0).uniform(5, 300, (300, 2))
    assert (cluster(sizes, 9, seed=1) == cluster(sizes, 9, seed=1)).all()


def test_as_many_anchors_as_boxes_fit_perfectly_and_one_more_is_an_error():
    sizes = SHAPES.repeat(3, axis=0)
    assert "mean best IoU 1.0000, best IoU > 0.5 for 100.0% of the boxes" in fit(sizes, cluster(sizes, 4))
    with pytest.raises(InputError, match="--anchors 5: there are only 4 different box sizes"):
        cluster(sizes, 5)


def test_fit_counts_the_boxes_above_a_half():
    assert "mean best IoU 0.6500, best IoU > 0.5 for 50.0%" in fit(
        np.array([[10.0, 10], [10, 3]]), np.array([[10, 10]])
    )


def test_prints_anchors_for_create_cfg(data, capsys):
    run_main(data, "--img_size", "400", "--anchors", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "40,80, 160,80, 200,100"
    assert lines[0].startswith("3 boxes")
    assert "3 clustered anchors: mean best IoU 1.0000" in lines[1]
    assert [re.match(r" *Darknet's (\d)", line)[1] for line in lines[2:-1]] == ["9", "6"]


def test_data_that_training_can_read_can_be_clustered(data, capsys):
    (data.parent / "labels/a.txt").write_text("0 .5 .5 .5 .5 .9\n1 .5 .5 .1 .4 .8\n")
    (data.parent / "labels/b.txt").write_text("7 .5 .5 .8 .2\n")
    run_main(data, "--anchors", "2", "--labels_with_score", "--skip_bad")
    assert capsys.readouterr().out.startswith("2 boxes")


@pytest.mark.parametrize(
    ("config", "train", "message"),
    [
        ("train=train.txt\n", "images/c.png\n", "none of its 1 images has a labelled box"),
        ("valid=train.txt\n", "images/a.png\n", "set.data: train= is missing"),
    ],
)
def test_nothing_to_cluster_is_an_error(data, config, train, message):
    (data.parent / "train.txt").write_text(train)
    data.write_text(f"classes=2\nnames=classes.names\n{config}")
    with pytest.raises(InputError, match=message):
        run_main(data)


def test_runs_as_a_script(data):
    command = [sys.executable, str(ROOT / "config/cluster_anchors.py"), "--data_config", str(data)]
    done = subprocess.run(command, cwd=data.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert "only 3 different box sizes" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
