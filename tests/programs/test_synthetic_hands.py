"""data/synthetic_hands.py: the same files every time, in Oxford's layout and format, with sensible boxes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from data import synthetic_hands
from data.hand_drawing import random_hand
from data.solids import projected, rasterise
from utils.errors import InputError

SIZE = 96


def draw(output: Path, *options: str) -> Path:
    arguments = ["--output", str(output), "--size", str(SIZE), "--n_cpu", "1", *options]
    synthetic_hands.main(synthetic_hands.get_args_parser().parse_args(arguments))
    return output / "hand_dataset"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def mat_boxes(path: Path) -> np.ndarray:
    """(N, 4, 2): corners a, b, c, d as (row, column), read as Oxford's files are read."""
    cells = loadmat(path)["boxes"]
    assert cells.shape[0] == 1
    return np.array([[cell[name][0, 0][0] for name in "abcd"] for cell in cells[0]]).reshape(-1, 4, 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("hands"), "--train", "28", "--valid", "1", "--test", "2")


@pytest.fixture(scope="module")
def annotated(dataset) -> list[np.ndarray]:
    return [mat_boxes(path) for path in sorted(dataset.rglob("training_*.mat"))]


def test_layout(dataset):
    for split, count in (("training", 28), ("validation", 1), ("test", 2)):
        folder = dataset / f"{split}_dataset" / f"{split}_data"
        names = {path.stem for path in (folder / "images").glob("*.jpg")}
        assert len(names) == count
        assert names == {path.stem for path in (folder / "annotations").glob("*.mat")}
    assert len(files_of(dataset)) == 2 * 31


def test_images_are_rgb_and_differ(dataset):
    images = [Image.open(path) for path in dataset.rglob("*.jpg")]
    assert all(image.size == (SIZE, SIZE) and image.mode == "RGB" for image in images)
    assert len({image.tobytes() for image in images}) == len(images)


def test_mat_files_look_like_oxfords(tmp_path):
    corners = np.array([[(10.0, 20.0), (30.0, 20.0), (30.0, 60.0), (10.0, 60.0)]])
    path = tmp_path / "one.mat"
    synthetic_hands.write_annotation(path, corners)
    assert path.read_bytes().startswith(synthetic_hands.MAT_HEADER)  # no time and no platform
    boxes = loadmat(path)["boxes"]
    assert (boxes.shape, boxes.dtype) == ((1, 1), object)
    assert boxes[0][0].shape == (1, 1)
    assert boxes[0][0].dtype.names == ("a", "b", "c", "d")
    assert boxes[0][0]["a"][0, 0].dtype == np.float64
    assert boxes[0][0]["a"][0, 0].tolist() == [[20.5, 10.5]]  # (row, column), the first pixel's centre being (1, 1)
    assert boxes[0][0]["c"][0, 0].tolist() == [[60.5, 30.5]]
    np.testing.assert_array_equal(synthetic_hands.read_annotation(path), corners)


def test_mat_file_without_hands(tmp_path):
    path = tmp_path / "none.mat"
    synthetic_hands.write_annotation(path, np.empty((0, 4, 2)))
    assert loadmat(path)["boxes"].shape == (1, 0)
    assert synthetic_hands.read_annotation(path).shape == (0, 4, 2)


def test_numbers_of_hands(annotated):
    counts = [len(boxes) for boxes in annotated]
    assert set(counts) <= {0, 1, 2, 3, 4}
    assert counts.count(0) < len(counts) / 4
    assert {0, 1, 2, 3} <= set(counts)


def test_boxes_are_rectangles_of_sensible_size_inside_the_image(annotated):
    for a, b, c, d in np.concatenate(annotated):
        np.testing.assert_allclose(a + c, b + d, atol=1e-6)  # a parallelogram ...
        assert abs((b - a) @ (d - a)) < 1e-6  # ... with right angles
        sides = np.linalg.norm([b - a, d - a], axis=1)
        assert 0.15 * SIZE < sides.max() < 0.62 * SIZE
        assert sides.min() > 0.2 * sides.max()
        assert ((a + c) / 2 > 0).all()
        assert ((a + c) / 2 < SIZE + 1).all()


def test_boxes_are_rotated_every_way(annotated):
    wrist_to_tip = np.array([d - a for a, _, _, d in np.concatenate(annotated)])
    quadrants = {(row > 0, column > 0) for row, column in wrist_to_tip}
    assert len(quadrants) == 4


@pytest.mark.parametrize("seed", range(6))
def test_the_box_holds_the_hand_tightly(seed):
    side, scale = 400, 60.0
    solid, box = random_hand(np.random.default_rng(seed))
    place = side / 2 - scale * box.mean(0)
    layer = rasterise([cone for cone in projected(solid, scale, place) if cone.is_hand], side)
    rows, columns = np.nonzero(layer.is_hand)
    a, b, _, d = box * scale + place
    points = np.stack([columns + layer.left, rows + layer.top], axis=1) - a
    for side_vector in (b - a, d - a):
        along = points @ side_vector / np.linalg.norm(side_vector)
        assert -1 < along.min() < 2.5
        assert -2.5 < along.max() - np.linalg.norm(side_vector) < 1


def test_same_seed_same_bytes_and_a_larger_set_begins_with_the_smaller(dataset, tmp_path):
    small = files_of(draw(tmp_path, "--train", "3", "--valid", "1", "--test", "1"))
    large = files_of(dataset)
    assert len(small) == 10
    assert small == {name: large[name] for name in small}


def test_another_seed_draws_other_images(dataset, tmp_path):
    others = files_of(draw(tmp_path, "--train", "2", "--valid", "0", "--test", "0", "--seed", "1"))
    same = files_of(dataset)
    assert all(content != same[name] for name, content in others.items() if name.endswith(".jpg"))


def test_two_processes_draw_what_one_draws(dataset, tmp_path):
    two = files_of(draw(tmp_path, "--train", "6", "--valid", "0", "--test", "0", "--n_cpu", "2"))
    one = files_of(dataset)
    assert len(two) == 12
    assert two == {name: one[name] for name in two}


def test_an_existing_folder_is_left_alone_unless_overwritten(tmp_path):
    keep = tmp_path / "hand_dataset" / "mine.txt"
    keep.parent.mkdir()
    keep.write_text("precious")
    with pytest.raises(InputError, match="--overwrite"):
        draw(tmp_path, "--train", "1", "--valid", "0", "--test", "0")
    assert keep.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["hand_dataset"]
    draw(tmp_path, "--train", "1", "--valid", "0", "--test", "0", "--overwrite")
    assert not keep.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hand_dataset"]


def test_an_interrupted_run_leaves_nothing_new_and_the_old(tmp_path, monkeypatch):
    old = files_of(draw(tmp_path, "--train", "1", "--valid", "0", "--test", "0"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_hands, "write_annotation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, "--train", "2", "--valid", "0", "--test", "0", "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["hand_dataset"]
    assert files_of(tmp_path / "hand_dataset") == old


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="--train"):
        draw(tmp_path, "--train", "0", "--valid", "0", "--test", "0")
    assert not any(tmp_path.iterdir())


def test_contact_sheet(tmp_path):
    draw(tmp_path, "--train", "7", "--valid", "0", "--test", "0", "--contact_sheet", str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (6 * SIZE, 2 * SIZE))
