"""The data.yaml of Ultralytics and Roboflow."""

import pytest

from tests.scene import save, write
from utils.data.check import check_data
from utils.data.data_config import read_data_config
from utils.errors import InputError


def image(path):
    """An image in a folder ``images``, and its label."""
    save(path, colour=(len(path.stem), 20, 30))
    write(path.parents[1] / "labels" / f"{path.stem}.txt", "1 0.5 0.5 0.2 0.2\n")
    return path


NAMES = "names: [cat, dog]\n"


def read(folder, text):
    return read_data_config(write(folder / "data.yaml", text))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [cat, 'dog']", ["cat", "dog"]),
        ("nc: 2\nnames:\n- cat\n- dog\n", ["cat", "dog"]),
        ("names:\n  1: dog\n  0: cat\n", ["cat", "dog"]),
        ("nc: 3\n", ["0", "1", "2"]),
        ("names: !!python/object/apply:os.system [a]\n", ["a"]),
        ("names: [no, 1.0, null, ' a  b ']\n", ["no", "1.0", "null", "a b"]),
    ],
)
def test_names(tmp_path, text, names):
    assert read(tmp_path, text).names == names


@pytest.mark.parametrize(
    "lines",
    [
        "path: .\ntrain: train/images\nval: valid/images\n",
        "train: ../train/images\nval: ../valid/images\n",
        "path: ../set\ntrain: train/images\nval: valid/images\n",
        "path: /content/datasets/set\ntrain: train/images\nval: valid/images\n",
        "path: set\ntrain: train\nval: valid\n",
        "train: train\\images\nvalid: valid\\images\n",
        "train: [train/images]\nval:\n  - valid/images\n",
        "train: set/train/images\nval: set/valid/images\n",
        "train: /content/set/train/images\nval: C:\\data\\set\\valid\\images\n",
    ],
)
def test_folders_are_found_as_ultralytics_finds_them(tmp_path, lines):
    train = image(tmp_path / "set/train/images/a.jpg")
    valid = image(tmp_path / "set/valid/images/b.jpg")
    save(tmp_path / "set/train/images/._a.jpg")
    config = read(tmp_path / "set", lines + NAMES)
    assert [[path.resolve() for path in config.images(split)] for split in ("train", "valid")] == [[train], [valid]]


def test_several_folders_and_lists_are_one_split(tmp_path):
    paths = [image(tmp_path / f"{folder}/images/{folder}.jpg") for folder in ("one", "two", "three")]
    write(tmp_path / "list.txt", "./three/images/three.jpg\n")
    config = read(tmp_path, "train: [one/images, two, list.txt]\nval: list.txt\n" + NAMES)
    assert [path.resolve() for path in config.images("train")] == paths
    checked = check_data(config, "train")
    assert checked.counts["images"] == checked.counts["boxes"] == 3
    assert (tmp_path / ".data.yaml.train.checked.json").exists()
    assert check_data(config, "valid").counts["images"] == 1


def test_the_cache_of_a_folder_is_beside_it(tmp_path):
    image(tmp_path / "train/images/a.jpg")
    check_data(read(tmp_path, "train: train/images\nval: train/images\n" + NAMES), "train")
    assert (tmp_path / "train/.images.checked.json").exists()


def test_a_missing_folder_names_every_place(tmp_path):
    with pytest.raises(InputError) as caught:
        read(tmp_path, "path: set\ntrain: ../train/images\n" + NAMES).images("train")
    places = ("set/../train/images", "set/train/images", "train/images")
    assert all(str((tmp_path / place).resolve()) in str(caught.value) for place in places)


@pytest.mark.parametrize("val", ["", "val:\n", "val: null\n", "val: []\n"])
def test_a_missing_split_is_said_when_it_is_needed(tmp_path, val):
    image(tmp_path / "images/a.jpg")
    config = read(tmp_path, f"train: images\n{val}" + NAMES)
    assert len(config.images("train")) == 1
    with pytest.raises(InputError, match=r"data\.yaml: val is missing"):
        config.images("valid")


def test_a_missing_folder_does_not_stop_who_needs_the_other_split(tmp_path):
    image(tmp_path / "images/a.jpg")
    config = read(tmp_path, "train: [nowhere, images]\nval: null\nvalid: images\n" + NAMES)
    assert len(config.images("valid")) == 1
    assert {path.name for path in config.files} == {"data.yaml", "images"}
    with pytest.raises(InputError, match=r"data\.yaml: there is no nowhere"):
        config.images("train")


@pytest.mark.parametrize(("values", "point"), [(2, " .3 .4"), (3, " .3 .4 2")])
def test_keypoints_behind_the_boxes_are_ignored_where_kpt_shape_says_so(tmp_path, values, point):
    image(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "0 .5 .5 .2 .2" + point * 4 + "\n")
    checked = check_data(read(tmp_path, f"train: images\nkpt_shape: [4, {values}]\n" + NAMES), "train")
    assert checked.labels[0].tolist() == [pytest.approx([0, 0.5, 0.5, 0.2, 0.2])]
    assert checked.counts["keypoints ignored"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should hold keys and values"),
        ("- a\n", "should hold keys and values"),
        ("a: [", "not YAML"),
        ("train: x\n", "names is missing"),
        ("nc: 0\n", "names is missing"),
        ("nc: 70000\n", "names is missing"),
        ("nc: 3\nnames: [a, b]\n", "nc is 3, but names has 2"),
        ("names: {0: a, 2: b}\n", "numbered from 0 without gaps"),
        ("names: {0: a, 00: b}\n", "numbered from 0 without gaps"),
        ("names: [a, ' ']\n", "empty name"),
        ("names: [[a], b]\n", "list of texts"),
        ("names: a\ntrain: {a: b}\n", "train: should be a text or a list"),
        ("names: a\nkpt_shape: 17\n", "kpt_shape should be the number of keypoints"),
        ("names: a\nkpt_shape: [17, 4]\n", "kpt_shape should be the number of keypoints"),
        ("a: &x [y]\nnames: *x\n", r"data\.yaml:2: aliases"),
        ("names: " + "[" * 5000 + "]" * 5000, "nesting"),
        ("names: " + "[" * 50 + "]" * 50, "deep nesting"),
        ("names: [" + "a, " * 200_000 + "a]", "too long"),
    ],
)
def test_wrong_files_end_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


def test_the_files_are_those_that_it_names(tmp_path):
    for name in ("a.txt", "b.txt", "v.txt"):
        (tmp_path / name).touch()
    data = read(tmp_path, "train: [a.txt, b.txt]\nval: v.txt\n" + NAMES)
    assert {path.name for path in data.files} == {"data.yaml", "a.txt", "b.txt", "v.txt"}


def test_folders_without_images(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="the folder holds no image"):
        read(tmp_path, "train: images\n" + NAMES).images("train")
