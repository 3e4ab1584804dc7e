"""YOLO data without a .data file or a split: lists of the images where they are."""

import json
from pathlib import Path

import pytest

from tests.data.converters.scene import convert, draw
from tests.scene import write
from utils.data.check import check_data
from utils.data.data_config import read_data_config
from utils.errors import InputError


def export(root: Path, image: str = "images/{}.jpg", label: str = "labels/{}.txt", stems: str = "abcd") -> Path:
    for seed, stem in enumerate(stems):
        draw(root / image.format(stem), seed=seed)
        write(root / label.format(stem), "1 0.5 0.5 0.2 0.2\n")
    return root


NAMES = {
    "obj.names": "cat\ndog\n",
    "classes.txt": "cat\ndog\n",
    "labels/classes.txt": "cat\r\ndog\r\n",
    "train/_darknet.labels": "cat\ndog",
    "notes.json": json.dumps({"categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}], "info": {}}),
    "data.yaml": "names: [cat, dog]\n",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_every_tool(tmp_path, name):
    write(export(tmp_path / "export") / name, NAMES[name])
    convert("yolo", "--source", tmp_path / "export", "--output", tmp_path / "out", "--split", "0.75")
    data = read_data_config(tmp_path / "out/out.data")
    assert data.names == ["cat", "dog"]
    assert [check_data(data, split).counts["boxes"] for split in ("train", "valid")] == [3, 1]
    assert not (tmp_path / "out/images").exists()


def cvat(root: Path) -> Path:
    """CVAT's export "YOLO 1.1"."""
    export(root, "obj_train_data/{}.jpg", "obj_train_data/{}.txt")
    write(root / "obj.names", "cat\ndog\n")
    write(root / "train.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in "abcd"))
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    return root


def test_cvats_export_is_read_where_it_was_unpacked(tmp_path):
    data = read_data_config(cvat(tmp_path / "somewhere") / "obj.data")
    assert data.names == ["cat", "dog"]
    assert check_data(data, "train").counts["boxes"] == 4


def test_cvats_export_is_split(tmp_path):
    convert("yolo", "--source", cvat(tmp_path / "export"), "--output", tmp_path / "out", "--split", "0.5")
    data = read_data_config(tmp_path / "out/out.data")
    assert [len(data.images(split)) for split in ("train", "valid")] == [2, 2]


def test_folders_tell_the_split(tmp_path, capsys):
    root = export(tmp_path / "export", "train/{}.jpg", "train/{}.txt")
    export(root, "valid/{}.jpg", "valid/{}.txt", "ef")
    draw(root / "valid/unlabelled.jpg")
    write(root / "train/_darknet.labels", "cat\ndog\n")
    write(root / "valid/_darknet.labels", "cat\ndog\n")
    convert("yolo", "--source", root, "--output", tmp_path / "out")
    printed = capsys.readouterr().out.splitlines()
    assert {"train: 4 images", "valid: 2 images", "left out 1 image(s): has no label file"} <= set(printed)


def test_data_that_needs_no_conversion(tmp_path):
    root = cvat(tmp_path / "export")
    write(root / "obj.data", "classes=2\ntrain=train.txt\nvalid=train.txt\nnames=obj.names\n")
    with pytest.raises(InputError, match=r"obj\.data needs no conversion: --data_config .*obj\.data"):
        convert("yolo", "--source", root, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no file names the classes.*--classes"),
        ({"a/x.names": "cat\n", "b/y.names": "dog\n"}, r"different class names.*--classes"),
        ({"notes.json": "{}"}, r"notes\.json: should hold categories"),
    ],
)
def test_class_names_that_nobody_knows(tmp_path, files, message):
    root = export(tmp_path / "export")
    for name, text in files.items():
        write(root / name, text)
    words = ["yolo", "--source", root, "--output", tmp_path / "out", "--split", "0.5"]
    with pytest.raises(InputError, match=message):
        convert(*words)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"gone\.txt: there is no such file of class names"):
        convert(*words, "--classes", "gone.txt")
    convert(*words, "--classes", "cat,dog")
    assert (tmp_path / "out/out.names").read_text() == "cat\ndog\n"


def test_no_labels(tmp_path):
    draw(tmp_path / "export/a.jpg")
    with pytest.raises(InputError, match="none of the 1 images below it has a label file"):
        convert("yolo", "--source", tmp_path / "export", "--output", tmp_path / "out", "--split", "0.5")
