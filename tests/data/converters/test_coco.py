"""COCO instances: exact labels, and failures that name the file and touch nothing."""

import json
import shutil
from pathlib import Path

import pytest

from tests.data.converters.scene import convert, draw, row, tree
from utils.errors import InputError


def instances(images: list[dict], annotations: list[dict]) -> dict:
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco(tmp_path) -> dict:
    """The options of a conversion and, under their names, the contents of the two annotation files."""
    draw(tmp_path / "train/sub/x.jpg")
    draw(tmp_path / "train/y.png")
    draw(tmp_path / "valid/x.jpg", size=(50, 25))
    train = instances(
        [
            {"id": 2, "file_name": "y.png", "width": 100, "height": 50},
            {"id": 1, "file_name": "sub/x.jpg", "width": 50, "height": 100},
        ],
        [
            {"image_id": 1, "category_id": 7, "bbox": [10, 5, 50, 25]},
            {"image_id": 1, "category_id": 3, "bbox": [-10, 40, 20, 20], "iscrowd": 0},
            {"image_id": 1, "category_id": 3, "bbox": [5, 5, 0, 10]},
            {"image_id": 2, "category_id": 3, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
    )
    valid = instances([{"id": 1, "file_name": "x.jpg"}], [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 50.0, 25]}])
    return {"train": train, "valid": valid, "folder": tmp_path}


def convert_coco(coco: dict) -> Path:
    words = ["coco", "--output", coco["folder"] / "out"]
    for split in ("train", "valid"):
        annotations = coco["folder"] / f"{split}.json"
        text = coco[split] if isinstance(coco[split], str) else json.dumps(coco[split])
        annotations.write_text(text)
        words += [f"--annotations_{split}", annotations, f"--images_{split}", coco["folder"] / split]
    convert(*words)
    return coco["folder"] / "out"


def test_coco(coco, capsys):
    output = convert_coco(coco)
    # x 10..60 of 100, y 5..30 of 50; the second is clipped to 0..10 and 40..50
    assert (output / "labels/x.txt").read_text() == (
        "1 0.350000 0.350000 0.500000 0.500000\n0 0.050000 0.900000 0.100000 0.200000\n"
    )
    assert (output / "labels/y.txt").read_text() == ""
    assert (output / "labels/x_2.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000\n"
    assert (output / "train.txt").read_text() == "images/x.jpg\nimages/y.png\n"
    assert (output / "valid.txt").read_text() == "images/x_2.jpg\n"
    assert (output / "images/x_2.jpg").read_bytes() == (coco["folder"] / "valid/x.jpg").read_bytes()
    assert (output / "out.names").read_text() == "cat\ndog\n"
    assert (output / "out.data").read_text() == "classes=2\ntrain=train.txt\nvalid=valid.txt\nnames=out.names\n"
    printed = capsys.readouterr().out
    assert row(printed, "train") == [2, 2, 1, 1, 1, 1, 1]
    assert "train: left out 1 object(s): box around a crowd" in printed.splitlines()
    assert row(printed, "valid") == [1, 1, 0, 0, 0, 0, 0]


def test_coco_images_that_lie_in_the_output_already(coco):
    output = convert_coco(coco)
    before = tree(output)
    coco["train"]["images"][1]["file_name"] = "x.jpg"
    coco["valid"]["images"][0]["file_name"] = "x_2.jpg"
    for split in ("train", "valid"):
        shutil.rmtree(coco["folder"] / split)
        (coco["folder"] / split).symlink_to(output / "images")
    convert_coco(coco)
    assert tree(output) == before


def change(key: str, i: int, **fields):
    """A spoiler that changes fields of an entry of the validation file."""
    return lambda content: content[key][i].update(fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content.pop("images"), r"valid\.json: has no list 'images'"),
        (lambda content: content["annotations"][0].pop("bbox"), r"valid\.json: annotations\[0\] .*'bbox'"),
        (change("annotations", 0, bbox=[1, 2, 3]), r"valid\.json: image x\.jpg: bbox.*4 finite"),
        (change("annotations", 0, bbox=[1, 2, 3, float("nan")]), r"valid\.json: .*finite"),
        (change("annotations", 0, bbox=[1, 2, 3, [4]]), r"valid\.json: .*finite"),
        (change("annotations", 0, bbox=[1, 2, 3, 10**400]), r"valid\.json: .*finite"),
        (change("annotations", 0, image_id=9), r"valid\.json: annotations\[0\] is on image 9"),
        (change("annotations", 0, category_id=9), r"valid\.json: annotations\[0\] has category 9"),
        (change("images", 0, file_name="gone.jpg"), r"valid\.json: names the image .*gone\.jpg"),
        (change("images", 0, id=[]), r"valid\.json: images\[0\] should have 'id', of type int"),
        (change("categories", 0, name="wolf"), r"valid\.json: category 7 is wolf, but dog elsewhere"),
        (change("categories", 0, id=8), r"categories of different names"),
        (lambda content: content["images"].append(content["images"][0]), r"valid\.json: two images have the id 1"),
        (lambda content: content["images"].clear() or content["annotations"].clear(), "valid split has no images"),
    ],
)
def test_bad_coco_names_the_file_and_touches_nothing(coco, spoil, message):
    before = tree(convert_coco(coco))
    coco["train"]["annotations"].clear()
    spoil(coco["valid"])
    with pytest.raises(InputError, match=message):
        convert_coco(coco)
    assert tree(coco["folder"] / "out") == before


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_coco_that_is_no_instances_file(coco, text):
    coco["valid"] = text
    with pytest.raises(InputError, match=r"valid\.json"):
        convert_coco(coco)
