"""data/converter.py: exact labels of every format, and failures that name the file and touch nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data.converter import get_args_parser, main
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
BCCD = ROOT.parent / "shared" / "data" / "BCCD"


def convert(*words) -> None:
    main(get_args_parser().parse_args([str(word) for word in words]))


def draw(path: Path, size: tuple[int, int] = (100, 50), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (sum(path.name.encode()) % 256, 90, 60)).save(path, exif=exif)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def row(printed: str, split: str) -> list[int]:
    """The split's counts: images, boxes, clipped, dropped, skipped, negatives, size differs."""
    line = next(line for line in printed.splitlines() if line.startswith(f"| {split} "))
    return [int(cell) for cell in line.strip("| ").split("|")[1:]]


# Oxford


def hand(*corners: tuple[float, float], side: str | None = None) -> dict:
    """A box by its corners a, b, c, d, (row, column) in pixels from the image's corner.

    MATLAB has the first pixel's centre at 1.
    """
    box = {name: np.array([corner]) + 0.5 for name, corner in zip("abcd", corners, strict=True)}
    return box if side is None else {**box, "handside": side}


def upright(top: float, left: float, bottom: float, right: float) -> dict:
    return hand((top, left), (top, right), (bottom, right), (bottom, left))


def add_hands(folder: Path, name: str, *boxes: dict, **image) -> None:
    draw(folder / "images" / f"{name}.jpg", **image)
    (folder / "annotations").mkdir(exist_ok=True)
    cells = np.empty((1, len(boxes)), dtype=object)
    cells[0, :] = boxes
    savemat(folder / "annotations" / f"{name}.mat", {"boxes": cells})


@pytest.fixture
def oxford(tmp_path) -> Path:
    """A hand_dataset of one 100x50 image a split, and the stray files of the real one."""
    root = tmp_path / "hand_dataset"
    training = root / "training_dataset/training_data"
    rotated = hand((20, 10), (10, 30), (15, 40), (25, 20), side="L")
    add_hands(training, "one", rotated, upright(0, 0, 50, 100))
    (training / "images" / "Thumbs.db").write_text("stray")
    (training / "images" / "._one.jpg").write_text("stray")
    (training / "annotations" / "._one.mat").write_text("stray")
    flat, outside = upright(8, 8, 8, 19), upright(59, 0, 69, 19)
    add_hands(root / "validation_dataset/validation_data", "two", upright(-10, 90, 10, 120), flat, outside)
    add_hands(root / "test_dataset/test_data", "three")
    return root


def test_oxford(oxford, tmp_path, capsys):
    output = tmp_path / "out"
    convert("--debug", "--source", oxford, "--output", output)  # oxford is what is meant where no mode is given
    # x 10..40 of 100, y 10..25 of 50.
    assert (output / "labels/one.txt").read_text() == (
        "0 0.250000 0.350000 0.300000 0.300000\n0 0.500000 0.500000 1.000000 1.000000\n"
    )
    # x 90..120 clipped to 90..100, y -10..10 to 0..10; the other two have no area there.
    assert (output / "labels/two.txt").read_text() == "0 0.950000 0.100000 0.100000 0.200000\n"
    assert (output / "labels/three.txt").read_text() == ""
    assert (output / "train.txt").read_text() == "images/one.jpg\nimages/two.jpg\n"
    assert (output / "valid.txt").read_text() == "images/three.jpg\n"
    source = oxford / "test_dataset/test_data/images/three.jpg"
    assert (output / "images/three.jpg").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in output.iterdir()) == ["images", "labels", "train.txt", "valid.txt"]
    printed = capsys.readouterr().out
    assert row(printed, "train") == [2, 3, 1, 2, 0, 0, 0]
    assert row(printed, "valid") == [1, 0, 0, 0, 0, 1, 0]


def test_running_twice_gives_the_same_and_leaves_other_files(oxford, tmp_path):
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    (output / "labels/mine.txt").write_text("mine")
    first = tree(output)
    convert("--source", oxford.parent, "--output", output)  # the parent folder will do too
    assert tree(output) == first


def test_program_without_arguments_converts_data_hand_dataset(oxford, tmp_path):
    shutil.copytree(oxford, tmp_path / "data/hand_dataset")
    program = [sys.executable, ROOT / "data/converter.py"]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "data/train.txt").read_text() == "images/one.jpg\nimages/two.jpg\n"
    (tmp_path / "data/hand_dataset/test_dataset/test_data/annotations/three.mat").unlink()
    failed = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "three.jpg" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


def test_exif_rotation_turns_the_size(oxford, tmp_path):
    add_hands(oxford / "test_dataset/test_data", "three", upright(0, 0, 50, 25), orientation=6)  # upright it is 50x100
    convert("--source", oxford, "--output", tmp_path / "out")
    assert (tmp_path / "out/labels/three.txt").read_text() == "0 0.250000 0.250000 0.500000 0.500000\n"


def test_rounded_boxes_stay_inside_and_keep_an_area(oxford, tmp_path):
    rng = np.random.default_rng(0)
    boxes = [upright(*(rng.uniform(-30, 40, 2) * (1, 2)), *(rng.uniform(20, 90, 2) * (1, 2))) for _ in range(200)]
    speck = upright(5, 5, 5.00001, 5.00001)
    add_hands(oxford / "test_dataset/test_data", "three", *boxes, speck, size=(97, 53))
    convert("--source", oxford, "--output", tmp_path / "out")
    labels = np.loadtxt(tmp_path / "out/labels/three.txt")
    centre, side = labels[:, 1:3], labels[:, 3:]
    assert 100 < len(labels) <= 200
    assert (centre - side / 2).min() >= -1e-6
    assert (centre + side / 2).max() <= 1 + 1e-6
    assert side.min() > 0


def test_same_stem_in_two_splits_loses_nothing(oxford, tmp_path):
    add_hands(oxford / "test_dataset/test_data", "ONE", upright(0, 0, 25, 50), size=(50, 25))
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    assert (output / "valid.txt").read_text() == "images/ONE_2.jpg\nimages/three.jpg\n"
    assert (output / "labels/ONE_2.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000\n"
    assert Image.open(output / "images/ONE_2.jpg").size == (50, 25)
    assert Image.open(output / "images/one.jpg").size == (100, 50)


def no_annotation(data: Path) -> None:
    (data / "annotations/three.mat").unlink()


def no_image(data: Path) -> None:
    (data / "images/three.jpg").unlink()


def broken_mat(data: Path) -> None:
    (data / "annotations/three.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")


def no_boxes(data: Path) -> None:
    savemat(data / "annotations/three.mat", {"other": 1})


def no_corner(data: Path) -> None:
    box = upright(1, 1, 9, 9)
    del box["d"]
    add_hands(data, "three", box)


def nan_corner(data: Path) -> None:
    add_hands(data, "three", upright(1, float("nan"), 9, 9))


def three_numbers(data: Path) -> None:
    add_hands(data, "three", {**upright(1, 1, 9, 9), "c": np.array([[1.0, 2.0, 3.0]])})


def cut_image(data: Path) -> None:
    path = data / "images/three.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:10000])


def not_an_image(data: Path) -> None:
    (data / "images/three.jpg").write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (no_annotation, "three.jpg"),
        (no_image, "three.mat"),
        (broken_mat, "three.mat"),
        (no_boxes, "three.mat"),
        (no_corner, "three.mat"),
        (nan_corner, "three.mat"),
        (three_numbers, "three.mat"),
        (cut_image, "three.jpg"),
        (not_an_image, "three.jpg"),
    ],
)
def test_bad_oxford_names_the_file_and_touches_nothing(oxford, tmp_path, spoil, named):
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    before = tree(output)
    add_hands(oxford / "training_dataset/training_data", "one", upright(1, 1, 9, 9))
    spoil(oxford / "test_dataset/test_data")
    with pytest.raises(InputError, match=named) as caught:
        convert("--source", oxford, "--output", output)
    assert "\n" not in str(caught.value)
    assert tree(output) == before


def test_failing_copy_touches_nothing(oxford, tmp_path, monkeypatch):
    output = tmp_path / "out"
    convert("--source", oxford, "--output", output)
    before = tree(output)
    add_hands(oxford / "training_dataset/training_data", "one", upright(1, 1, 9, 9))
    copy = shutil.copy2

    def full_disk(source, target):
        if Path(source).name == "three.jpg":
            raise OSError(28, "No space left on device", str(target))
        return copy(source, target)

    monkeypatch.setattr(shutil, "copy2", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert("--source", oxford, "--output", output)
    assert tree(output) == before
    assert not list(output.glob(".converter-*"))


def test_missing_oxford_folders(oxford, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*download_oxford\.sh"):
        convert("--source", tmp_path / "nowhere", "--output", tmp_path / "out")
    shutil.rmtree(oxford / "validation_dataset")
    with pytest.raises(InputError, match="validation_data"):
        convert("--source", oxford, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_split_without_images(oxford, tmp_path):
    for path in (oxford / "test_dataset/test_data").glob("*/three.*"):
        path.unlink()
    with pytest.raises(InputError, match="valid split has no images"):
        convert("--source", oxford, "--output", tmp_path / "out")


# Pascal VOC


def add_voc(root: Path, name: str, *objects: tuple, size: tuple[int, int] = (100, 50), suffix: str = ".jpg") -> Path:
    """A 100x50 image, and an annotation of ``objects`` (class, xmin, ymin, xmax, ymax) that claims ``size``."""
    draw(root / "JPEGImages" / (name + suffix))
    things = "".join(
        f"<object><name>{kind}</name><difficult>1</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for kind, x1, y1, x2, y2 in objects
    )
    annotation = root / "Annotations" / f"{name}.xml"
    annotation.parent.mkdir(exist_ok=True)
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    annotation.write_text(f"<annotation>{sizes}{things}</annotation>")
    return annotation


@pytest.fixture
def voc(tmp_path) -> Path:
    root = tmp_path / "VOC"
    add_voc(root, "a", ("dog", 11, 6, 60, 30), ("cat", 1, 1, 100, 50), ("dog", 7, 7, 7, 7))
    add_voc(root, "b", ("cat", 91, 41, 110, 50), size=(200, 100), suffix=".png")
    add_voc(root, "c", ("bird", "10.5", 1, "20.5", 50))
    (root / "JPEGImages/a.txt").write_text("stray")
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\n\na\n")
    (lists / "test.txt").write_text("c\n")
    return root


def test_voc(voc, tmp_path, capsys):
    output = tmp_path / "pets"
    convert("voc", "--source", voc, "--output", output)
    # 11..60 counted from 1, the 60th included, is x 10..60 of 100; 6..30 is y 5..30 of 50.
    assert (output / "labels/a.txt").read_text() == (
        "2 0.350000 0.350000 0.500000 0.500000\n1 0.500000 0.500000 1.000000 1.000000\n"
    )
    assert (output / "labels/b.txt").read_text() == "1 0.950000 0.900000 0.100000 0.200000\n"
    assert (output / "labels/c.txt").read_text() == "0 0.150000 0.500000 0.110000 1.000000\n"
    assert (output / "train.txt").read_text() == "images/a.jpg\nimages/b.png\n"
    assert (output / "valid.txt").read_text() == "images/c.jpg\n"
    assert (output / "pets.names").read_text() == "bird\ncat\ndog\n"
    assert (output / "pets.data").read_text() == "classes=3\ntrain=train.txt\nvalid=valid.txt\nnames=pets.names\n"
    printed = capsys.readouterr().out
    assert row(printed, "train") == [2, 3, 1, 1, 0, 0, 1]
    assert row(printed, "valid") == [1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("as_file", [False, True])
def test_voc_classes_given(voc, tmp_path, capsys, as_file):
    (tmp_path / "my.names").write_text("dog\ncat\n")
    convert(
        "voc",
        "--source",
        voc,
        "--output",
        tmp_path / "out",
        "--classes",
        tmp_path / "my.names" if as_file else "dog, cat",
    )
    labels = (tmp_path / "out/labels/a.txt").read_text()
    assert [line.split()[0] for line in labels.splitlines()] == ["0", "1"]
    assert (tmp_path / "out/labels/c.txt").read_text() == ""
    assert (tmp_path / "out/out.names").read_text() == "dog\ncat\n"
    assert row(capsys.readouterr().out, "valid") == [1, 0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train_split", "nope"], r"Main/nope\.txt: no such split; there are test, trainval"),
        (["--classes", "hand"], r"--classes hand: none is in .*bird,cat,dog"),
        (["--classes", "dog,,cat"], r"--classes dog,,cat"),
        (["--classes", "dog,dog"], r"--classes dog,dog"),
    ],
)
def test_bad_voc_options(voc, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        convert("voc", "--source", voc, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("Annotations/c.xml", "<annotation><object>", r"c\.xml: not XML.*line 1"),
        ("Annotations/c.xml", "<a><object><name>x</name></object></a>", r"c\.xml: xmin.*object 1"),
        ("Annotations/c.xml", "<a><object><bndbox/></object></a>", r"c\.xml: object 1 has no <name>"),
        ("Annotations/c.xml", None, r"test\.txt: names c, .*c\.xml"),
        ("JPEGImages/c.jpg", None, r"test\.txt: names c, .*c\.jpg"),
        ("JPEGImages/c.jpg", "no image", r"c\.jpg: cannot be read as an image"),
        ("JPEGImages/c.png", "two of a stem", r"c\.png: there is c\.jpg too"),
        ("ImageSets/Main/test.txt", "", "valid split has no images"),
        ("ImageSets/Main/test.txt", "d\n", r"test\.txt: names d"),
        ("ImageSets/Main/test.txt", b"\xff\xfe", r"test\.txt: not a text file"),
    ],
)
def test_bad_voc_names_the_file_and_touches_nothing(voc, tmp_path, path, content, message):
    output = tmp_path / "out"
    convert("voc", "--source", voc, "--output", output)
    before = tree(output)
    add_voc(voc, "a", ("dog", 1, 1, 2, 2))
    if content is None:
        (voc / path).unlink()
    else:
        (voc / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        convert("voc", "--source", voc, "--output", output)
    assert tree(output) == before


@pytest.mark.parametrize("corner", ["nan", "inf", "x", ""])
def test_voc_corner_that_is_no_number(voc, tmp_path, corner):
    add_voc(voc, "c", ("bird", 1, 1, corner, 9))
    with pytest.raises(InputError, match=r"c\.xml: .* 4 finite numbers"):
        convert("voc", "--source", voc, "--output", tmp_path / "out")


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is not on this machine")
def test_bccd(tmp_path, capsys):
    output = tmp_path / "bccd"
    convert("voc", "--source", BCCD, "--output", output)
    printed = capsys.readouterr().out
    assert row(printed, "train")[0] + row(printed, "valid")[0] == 364
    assert row(printed, "train")[1] + row(printed, "valid")[1] == 4888 - 2
    assert row(printed, "train")[3] + row(printed, "valid")[3] == 2
    assert row(printed, "train")[2] == row(printed, "valid")[2] == 0
    assert (output / "bccd.names").read_text() == "Platelets\nRBC\nWBC\n"
    # WBC 260, 177, 491, 376 of 640x480
    assert (output / "labels/BloodImage_00000.txt").read_text().startswith("2 0.585938 0.575000 0.362500 0.416667\n")
    lines = [line for path in (output / "labels").iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == 4886


# COCO


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


# The command line


@pytest.mark.parametrize("words", [["vco"], ["voc"], ["--train_split", "x"], ["coco", "--source", "x"]])
def test_wrong_command_line_ends_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as caught:
        get_args_parser().parse_args(words)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
