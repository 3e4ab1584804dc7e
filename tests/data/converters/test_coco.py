"""COCO instances: exact labels, and failures that name the file and touch nothing."""

import json
import re
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


def convert_coco(coco: dict, *options: str) -> Path:
    words = ["coco", "--output", coco["folder"] / "out", *options]
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
    assert not (output / "labels/y.txt").exists()  # it shows a crowd, so it is no background
    assert (output / "labels/x_2.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000\n"
    assert (output / "train.txt").read_text() == "images/x.jpg\n"
    assert (output / "valid.txt").read_text() == "images/x_2.jpg\n"
    assert (output / "images/x_2.jpg").read_bytes() == (coco["folder"] / "valid/x.jpg").read_bytes()
    assert (output / "out.names").read_text() == "cat\ndog\n"
    assert (output / "out.data").read_text() == "classes=2\ntrain=train.txt\nvalid=valid.txt\nnames=out.names\n"
    printed = capsys.readouterr().out
    assert row(printed, "train") == [1, 2, 1, 1, 0, 0, 1]
    assert "left out 1 object(s): box around a crowd" in printed.splitlines()
    assert "left out 1 image(s): none of its objects can be used" in printed.splitlines()
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
        (
            lambda content: content["annotations"][0].pop("bbox"),
            r"valid\.json: image x\.jpg: annotations\[0\] has neither a 'bbox' nor a 'segmentation'",
        ),
        (change("annotations", 0, bbox=[1, 2, 3]), r"valid\.json: image x\.jpg: annotations\[0\]: bbox.*4 finite"),
        (change("annotations", 0, bbox=[1, 2, 3, float("nan")]), r"valid\.json: .*finite"),
        (change("annotations", 0, bbox=[1, 2, 3, [4]]), r"valid\.json: .*finite"),
        (change("annotations", 0, bbox=[1, 2, 3, 10**400]), r"valid\.json: .*finite"),
        (change("annotations", 0, image_id=9), r"valid\.json: annotations\[0\] is on image 9"),
        (change("annotations", 0, category_id=9), r"valid\.json: annotations\[0\] has category 9"),
        (change("images", 0, file_name="gone.jpg"), r"valid\.json: names the image .*gone\.jpg"),
        (change("images", 0, id=[]), r"valid\.json: images\[0\] should have an 'id'"),
        (change("categories", 0, name="wolf"), r"valid\.json: category 7 is wolf, but dog elsewhere"),
        (change("categories", 0, id=True), r"valid\.json: categories\[0\] should have an 'id'"),
        (lambda content: content["images"].append({"id": 1, "file_name": "z.jpg"}), r"two images have the id 1"),
        (lambda content: content["images"].clear() or content["annotations"].clear(), "valid split has no images"),
    ],
)
def test_strict_names_the_file_and_touches_nothing(coco, spoil, message):
    before = tree(convert_coco(coco, "--strict"))
    coco["train"]["annotations"].pop()
    spoil(coco["valid"])
    with pytest.raises(InputError, match=message):
        convert_coco(coco, "--strict")
    assert tree(coco["folder"] / "out") == before


@pytest.mark.parametrize("there", ["cam1/w.jpg", "other/w.jpg", "w.jpg"])
def test_an_image_is_of_one_entry(tmp_path, there, capsys):
    """A name without its file must not mean the file of another, or that of which there is but one."""
    names = ("cam1/w.jpg", "cam2/w.jpg")
    boxes = [{"image_id": number, "category_id": 1, "bbox": [1, 1, 9, 9]} for number in (3, 4)]
    content = coco_of(boxes, [{"id": number, "file_name": name} for number, name in enumerate(names, start=3)])
    draw(tmp_path / there, seed=3)
    labels = convert_one(tmp_path, content) / "labels/w.txt"
    assert (labels.read_text().count("\n") if labels.exists() else 0) == int(there == "cam1/w.jpg")
    assert "cam2/w.jpg, which is missing" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_coco_that_is_no_instances_file(coco, text):
    coco["valid"] = text
    with pytest.raises(InputError, match=r"valid\.json"):
        convert_coco(coco)


def coco_of(annotations: list[dict], images: list[dict] | None = None, categories: list[dict] | None = None) -> dict:
    """Instances of two images, x.jpg and y.png, with a box on each besides ``annotations``."""
    box = {"bbox": [10, 5, 50, 25], "category_id": 1}
    return {
        "images": [{"id": 1, "file_name": "x.jpg"}, {"id": 2, "file_name": "y.png"}, *(images or [])],
        "annotations": [{"image_id": 1, **box}, {"image_id": 2, **box}, *annotations],
        "categories": [{"id": 1, "name": "cat"}, *(categories or [])],
    }


def convert_one(folder: Path, content: dict, *options: str) -> Path:
    """Convert one file with images beside it."""
    draw(folder / "x.jpg", seed=1)
    draw(folder / "y.png", seed=2)
    (folder / "all.json").write_text(json.dumps(content))
    words = ["--annotations_train", folder / "all.json", "--split", "0.5", "--output", folder / "out"]
    convert("coco", *words, *options)
    return folder / "out"


BAD_ENTRIES = {
    "on image 9, which is not in images": {"image_id": 9, "category_id": 1, "bbox": [1, 1, 2, 2]},
    "has category 7, which is not in categories": {"image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]},
    "has neither a 'bbox' nor a 'segmentation'": {"image_id": 1, "category_id": 1, "bbox": []},
    "bbox: [1, 2, None, 4] should be 4 finite": {"image_id": 1, "category_id": 1, "bbox": [1, 2, None, 4]},
    "not of three points or more": {"image_id": 1, "category_id": 1, "segmentation": [[1, 2, 3, 4]]},
    "no run-length encoded mask": {"image_id": 1, "category_id": 1, "segmentation": {"size": [4, 4]}},
}


@pytest.mark.parametrize("problem", BAD_ENTRIES)
def test_an_annotation_that_cannot_be_used_is_left_out_and_named(tmp_path, capsys, problem):
    output = convert_one(tmp_path, coco_of([BAD_ENTRIES[problem]]))
    assert (output / "labels/x.txt").read_text() == (output / "labels/y.txt").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert "1 problem(s), which --strict refuses:" in lines
    assert any(problem in line and "annotations[2]" in line for line in lines)
    with pytest.raises(InputError, match=re.escape(problem)):
        convert_one(tmp_path, coco_of([BAD_ENTRIES[problem]]), "--strict")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            [[0.1, 0.1, 0.5, 0.5]],
            r"all\.json: the 2 boxes look like shares of the image, .* of .*g, was read as x1=0\.1",
        ),
        ([[10, 5, 60, 30], [40, 20, 90, 45]], r"the 2 boxes look like corners: x1 y1 x2 y2"),
        ([None], r"annotations\[0\] has neither a 'bbox'"),
        ([], "no image has a box"),
    ],
)
def test_boxes_that_are_none_or_no_pixels_are_refused(tmp_path, boxes, message):
    content = coco_of([])
    boxes = (boxes * 2)[:2]
    content["annotations"] = [{"image_id": k, "category_id": 1, "bbox": box} for k, box in enumerate(boxes, 1)]
    with pytest.raises(InputError, match=message):
        convert_one(tmp_path, content)
    assert not (tmp_path / "out").exists()


def test_small_boxes_and_boxes_past_the_border_are_no_other_layout(tmp_path):
    boxes = [[0, 0, 2, 2], [60, 5, 41, 25], [5, 5, 9, 9]]
    output = convert_one(tmp_path, coco_of([{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]))
    assert (output / "labels/x.txt").read_text().count("\n") == 4


def test_images_that_cannot_be_used_are_left_out_and_named(tmp_path, capsys):
    (tmp_path / "broken.jpg").write_text("no image")
    names = ["gone.jpg", "broken.jpg"]
    images = [{"id": 3 + k, "file_name": name} for k, name in enumerate(names)] + [{"id": 9}]
    output = convert_one(tmp_path, coco_of([], images))
    assert sorted(path.name for path in (output / "images").iterdir()) == ["x.jpg", "y.png"]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("gone.jpg", "broken.jpg", "images[4]", "3 problem(s)"))


def test_only_ten_problems_are_listed(tmp_path, capsys):
    convert_one(tmp_path, coco_of([{"image_id": 99, "category_id": 1}] * 25))
    printed = capsys.readouterr().out
    assert "25 problem(s)" in printed
    assert printed.count("is on image 99") == 10


def test_ids_may_be_texts_and_file_names_of_windows(tmp_path):
    content = coco_of([])
    content["images"][0] |= {"id": "1", "file_name": "C:\\data\\images\\x.jpg"}
    content["annotations"][1]["image_id"] = "2"
    content["categories"][0]["id"] = "1"
    output = convert_one(tmp_path, content)
    assert all((output / f"labels/{name}.txt").read_text().count("\n") == 1 for name in "xy")


@pytest.mark.parametrize(
    "form",
    [
        {"segmentation": [[10, 5, 60, 5, 60, 30], [20, 10, 30, 10, 30, 20]]},
        {"segmentation": {"size": [50, 100], "counts": [10 * 50 + 5, *[25, 25] * 49, 25, 39 * 50 + 20 + 25 - 25]}},
    ],
)
def test_the_box_of_a_polygon_or_mask(tmp_path, form):
    content = coco_of([])
    del content["annotations"][0]["bbox"]
    content["annotations"][0] |= form
    output = convert_one(tmp_path, content)
    assert (output / "labels/x.txt").read_text() == (output / "labels/y.txt").read_text()


def test_roboflows_root_is_no_class_unless_it_has_boxes(tmp_path, capsys):
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
    content = coco_of([], categories=categories)
    content["categories"][0]["supercategory"] = "pets"
    output = convert_one(tmp_path, content)
    assert (output / "out.names").read_text() == "cat\n"
    assert "category 0, pets, groups others and has no box" in capsys.readouterr().out
    content["annotations"].append({"image_id": 1, "category_id": 0, "bbox": [1, 1, 9, 9]})
    assert (convert_one(tmp_path, content) / "out.names").read_text() == "pets\ncat\n"


def test_an_unused_class_that_groups_nothing_stays(tmp_path):
    categories = [{"id": 2, "name": "dog", "supercategory": "dog"}, {"id": 3, "name": "cow", "supercategory": "none"}]
    output = convert_one(tmp_path, coco_of([], categories=categories))
    assert (output / "out.names").read_text() == "cat\ndog\ncow\n"


@pytest.mark.parametrize("numbers", [(3, 7), ("b", "a"), (8, 3)])
def test_categories_of_one_name_are_one_class_whatever_their_ids_in_the_splits(coco, numbers):
    dog, cat = numbers  # 7 and 3 in the other file
    coco["valid"]["categories"] = [{"id": dog, "name": "dog"}, {"id": cat, "name": "cat"}]
    coco["valid"]["annotations"][0]["category_id"] = dog
    output = convert_coco(coco)
    assert (output / "out.names").read_text() == "cat\ndog\n"
    assert (output / "labels/x_2.txt").read_text().startswith("1 ")


def test_two_categories_of_one_name_are_told_apart(tmp_path):
    content = coco_of([{"image_id": 1, "category_id": 5, "bbox": [1, 1, 9, 9]}], categories=[{"id": 5, "name": "cat"}])
    output = convert_one(tmp_path, content)
    assert (output / "out.names").read_text() == "cat_1\ncat_5\n"
    assert [line[0] for line in (output / "labels/x.txt").read_text().splitlines()] == ["0", "1"]


def test_where_all_boxes_are_crowds_the_error_says_what_to_do(tmp_path):
    content = coco_of([])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(InputError, match=r"all 2 boxes have iscrowd=1.* set iscrowd to 0"):
        convert_one(tmp_path, content)
    assert not (tmp_path / "out").exists()


def test_one_file_without_split_says_how_to_split(tmp_path):
    draw(tmp_path / "x.jpg")
    (tmp_path / "all.json").write_text(json.dumps(coco_of([])))
    with pytest.raises(InputError, match=r"no split.*--split 0\.9 makes one"):
        convert("coco", "--annotations_train", tmp_path / "all.json", "--output", tmp_path / "out")


def test_the_address_of_an_image_counts_where_it_has_no_file_name(coco):
    for image in coco["train"]["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{Path(image.pop('file_name')).name}"
    assert "images/x.jpg" in (convert_coco(coco) / "train.txt").read_text()


def test_negative_category_ids_come_first(coco):
    for split in ("train", "valid"):
        for entry in coco[split]["categories"]:
            entry["id"] = -entry["id"]
        for entry in coco[split]["annotations"]:
            entry["category_id"] = -entry["category_id"]
    assert (convert_coco(coco) / "out.names").read_text() == "dog\ncat\n"


def test_file_names_without_a_suffix_name_the_only_image_of_that_stem(coco):
    coco["train"]["annotations"][3]["iscrowd"] = 0
    for image in coco["train"]["images"]:
        image["file_name"] = Path(image["file_name"]).stem
    assert (convert_coco(coco) / "train.txt").read_text() == "images/x.jpg\nimages/y.png\n"
