"""Data sets with errors: the check finds all of them before the first step."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import test
import train
from models import Darknet
from tests.scene import draw_square, make_project, save, write
from utils.data import check as check_module
from utils.data.check import check_data, summary
from utils.data.data_config import read_data_config
from utils.data.datasets import DetectionDataset
from utils.data.labels import LENIENT, RULES, LabelRules
from utils.detection.checkpoints import save_checkpoint
from utils.errors import InputError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded."""
    names, decode = [], check_module.decode
    monkeypatch.setattr(check_module, "decode", lambda path, status: names.append(path.name) or decode(path, status))
    return names


def check(split="train", skip_bad=False, rules=LENIENT):
    return check_data(read_data_config("config/oxfordhand.data"), split, skip_bad, rules)


def spoil(project):
    """Four of the six training images get something wrong, one of them two lines."""
    images, labels = project / "data/images", project / "data/labels"
    (images / "train_0.png").unlink()
    (images / "train_1.png").write_bytes(b"no image")
    (labels / "train_2.txt").write_text("0 .5 .5 .1 .1\n3 .5 .5 .1 .1\n0 .5 nan .1 .1\n")
    (labels / "train_4.txt").write_text("0 .5 .5 .1 .1 .1\n")


PROBLEMS = [
    "data/train.txt:1: there is no image images/train_0.png",
    "data/images/train_1.png: cannot be read as an image",
    "data/labels/train_2.txt:2: class 3, but the classes are 0 to 0",
    "data/labels/train_2.txt:3: '0 .5 nan .1 .1' holds a value that is not finite",
    "data/labels/train_4.txt:1: 6 values",
]


def test_all_that_is_wrong_is_shown_at_once(project, capsys):
    spoil(project)
    with pytest.raises(
        InputError, match=r"train_0\.png; looked at .* \(5 problem\(s\) with 4 image\(s\) in all\); --skip_bad"
    ) as error:
        check()
    assert "\n" not in str(error.value)
    lines = capsys.readouterr().err.split("data/train.txt: 5 problem(s) with 4 image(s):\n")[1].splitlines()
    assert len(lines) == len(PROBLEMS)
    for line, expected in zip(lines, PROBLEMS, strict=True):
        assert expected in line


def test_of_many_problems_ten_are_shown(project, capsys):
    (project / "data/labels/train_3.txt").write_text("0 .5 .5\n" * 30)
    with pytest.raises(InputError, match=r"train_3\.txt:1: .*30 problem\(s\) with 1 image\(s\)"):
        check()
    shown = capsys.readouterr().err
    assert "train_3.txt:10:" in shown
    assert "train_3.txt:11:" not in shown


@pytest.mark.parametrize("program", ["train", "test"])
def test_skip_bad_goes_on_without_them_and_says_how_many(project, capsys, monkeypatch, program):
    monkeypatch.setattr(train, "plot_training", lambda rows, gammas, folder: None)
    monkeypatch.setattr(train, "report_training", lambda name: None)
    spoil(project)
    (project / "data/images/valid_1.png").write_bytes(b"")
    if program == "train":
        words = ["--epochs", "1", "--batch_size", "2"]
    else:
        save_checkpoint("checkpoints/yolov3_ckpt.pth", Darknet("config/yolov3-hand.cfg"))
        words = []
    main, lists = {"train": (train, 2), "test": (test, 1)}[program]
    main.main(main.get_args_parser().parse_args([*words, "--n_cpu", "0", "--skip_bad"]))
    rows = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    counts = {
        row[0].strip(): dict(zip(map(str.strip, rows[0]), map(str.strip, row), strict=True))
        for row in rows[1 : 1 + lists]
    }
    assert counts["valid"]["images"] == "2"
    assert counts["valid"]["images left out"] == "1"
    if program == "train":
        assert counts["train"]["images"] == "2"
        assert counts["train"]["images left out"] == "4"


def test_what_is_not_wrong_is_counted(project):
    images, labels = project / "data/images", project / "data/labels"
    (labels / "train_0.txt").unlink()
    (labels / "train_1.txt").write_text("")
    (labels / "train_2.txt").write_text("0 .5 .5 .5 .5\n" * 3 + "0 .0995 .5 .2 .2\n0 .9 .9 0 0\n")
    (labels / "train_3.txt").rename(images / "train_3.txt")
    (labels / "train_4.txt").write_text("0, .2, .2, .1, .1\n0 .2 .2 .5 .5 .2 .5\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(images / "train_3.png", exif=exif)
    listing = project / "data/train.txt"
    listing.write_text(listing.read_text() + f"images/train_5.png\n{images}/../images/train_5.png\n")
    checked = check()
    assert checked.counts == {
        "images": 8,
        "boxes": 10,
        "labels beside images": 1,
        "JPEGImages -> labels": 0,
        "x_images -> x_labels": 0,
        "images -> labels": 6,
        "Darknet's rule": 0,
        "images without label file": 1,
        "images without boxes": 1,
        "boxes clipped": 1,
        "boxes without area": 1,
        "duplicate boxes": 2,
        "polygons": 1,
        "scores ignored": 0,
        "keypoints ignored": 0,
        "lines with commas": 1,
        "duplicate images": 2,
        "images turned by EXIF": 1,
        "images scaled to 8 bits": 0,
        "images left out": 0,
    }
    text = summary({"train": checked, "valid": check("valid")})
    assert "duplicate boxes" in text
    assert "left out" not in text
    assert "warning" not in text


def test_images_in_both_lists_are_named(project):
    (project / "data/valid.txt").write_text("images/valid_0.png\nimages/train_1.png\nimages/train_2.png\n")
    text = summary({"train": check(), "valid": check("valid")})
    assert "warning: 2 images are in both lists" in text
    assert text.splitlines()[-2:] == ["  data/images/train_1.png", "  data/images/train_2.png"]


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_is_in_both_lists_under_any_name_and_compression(project, cached):
    images = project / "data/images"
    shutil.copy(images / "train_1.png", images / "valid_0.png")
    Image.open(images / "train_2.png").save(images / "valid_1.bmp")
    other = np.asarray(Image.open(images / "train_3.png")).copy()
    other[33, 20] ^= 1
    Image.fromarray(other).save(images / "valid_2.png")
    (project / "data/valid.txt").write_text("images/valid_0.png\nimages/valid_1.bmp\nimages/valid_2.png\n")
    for _ in range(1 + cached):
        text = summary({"train": check(), "valid": check("valid")})
    assert "warning: 2 images are in both lists" in text
    assert text.splitlines()[-2:] == [
        "  data/images/train_1.png is data/images/valid_0.png",
        "  data/images/train_2.png is data/images/valid_1.bmp",
    ]


def test_of_many_images_in_both_lists_ten_are_named(project):
    names = [f"images/train_{k}.png" for k in range(6)] + [f"images/copy_{k}.png" for k in range(6)]
    for name in names[6:]:
        draw_square(project / "data" / name, 64, np.random.default_rng(100 + int(name[-5])))
    for split in ("train", "valid"):
        (project / f"data/{split}.txt").write_text("\n".join(names))
    lines = summary({"train": check(), "valid": check("valid")}).splitlines()
    assert "12 images are in both" in lines[-12]
    assert lines[-1] == "  ..."


# Label files


def test_of_a_list_each_image_has_its_labels_where_they_are(project, capsys):
    places = ("obj/a", "VOC/JPEGImages/b", "train_images/c", "Images/train/d", "x/raw/e")
    labels = ("obj/a", "VOC/labels/b", "train_labels/c", "Labels/train/d", "x/labels/e")
    data = project / "data"
    for place, label in zip(places, labels, strict=True):
        save(data / f"{place}.jpg")
        write(data / f"{label}.txt", "0 .5 .5 .4 .4\n")
    (data / "train.txt").write_text("".join(f"{place}.jpg\n" for place in places))
    checked = check()
    assert [len(boxes) for boxes in checked.labels] == [1] * 5
    assert [checked.counts[rule] for rule in RULES] == [1] * 5
    text = summary({"train": checked})
    assert all(rule in text for rule in RULES)
    assert "warning" not in capsys.readouterr().err


def test_a_list_without_any_label_file_is_an_error_that_shows_where_they_may_be(project):
    shutil.rmtree(project / "data/labels")
    with pytest.raises(InputError, match=r"data/train\.txt: none of its 6 images has a label file") as error:
        check()
    for place in ("data/images/train_0.txt", "data/labels/train_0.txt"):
        assert str(project / place) in str(error.value)


@pytest.mark.parametrize(("missing", "warned"), [(3, False), (4, True)])
def test_a_warning_where_most_images_have_no_label_file(project, capsys, missing, warned):
    for number in range(missing):
        (project / f"data/labels/train_{number}.txt").unlink()
    (project / "data/labels/train_5.txt").write_text("")
    counts = check().counts
    assert (counts["images without label file"], counts["images without boxes"]) == (missing, 1)
    said = f"warning: data/train.txt: {missing} of its 6 images have no label file" in capsys.readouterr().err
    assert said == warned


def test_texts_of_another_kind_and_contradicting_labels_are_warned_of(project, capsys):
    images = project / "data/images"
    for number in range(2):
        (images / f"train_{number}.txt").write_text("two hands on a table\n")
        (images / f"train_{number + 2}.txt").write_text("0 .5 .5 .9 .9\n")
    checked = check()
    assert (checked.counts["labels beside images"], checked.counts["images -> labels"]) == (2, 4)
    errors = capsys.readouterr().err
    assert "2 text files where labels may be are none, the first data/images/train_0.txt" in errors
    assert "2 images have two label files that differ, the first data/images/train_2.txt, which is read" in errors


# Boxes past the border, without area, or in another layout


def test_changed_boxes_are_listed_up_to_ten_and_warned_of_where_they_are_many(project, capsys):
    labels = project / "data/labels"
    lines = ["0 .5 .5 .2 .2"] * 1288 + ["0 .99 .5 .1 .1"] * 8 + ["0 .5 .5 0 .1"] * 4
    (labels / "train_2.txt").write_text("\n".join(lines))
    checked = check()
    assert (checked.counts["boxes clipped"], checked.counts["boxes without area"]) == (8, 4)
    errors = capsys.readouterr().err
    assert "data/train.txt: boxes that pass the border are clipped, those without area dropped (12):" in errors
    assert "train_2.txt:1289: the box passes the border of the image by 0.04 of its side" in errors
    assert "train_2.txt:1298: the box has no area" in errors
    assert "train_2.txt:1299" not in errors
    assert "warning" not in errors
    (labels / "train_3.txt").write_text("0 .99 .5 .1 .1\n" * 2)
    check()
    assert "warning: data/train.txt: 1.1% of the boxes were clipped or dropped" in capsys.readouterr().err


def test_strict_refuses_what_is_clipped_otherwise(project):
    (project / "data/labels/train_3.txt").write_text("0 .99 .5 .1 .1\n")
    with pytest.raises(InputError, match=r"train_3\.txt:1: the box passes the border"):
        check(rules=LabelRules(strict=True))
    assert check(skip_bad=True, rules=LabelRules(strict=True)).counts["images left out"] == 1
    with pytest.raises(InputError, match=r"train_3\.txt:1: the box passes the border"):
        train.main(train.get_args_parser().parse_args(["--n_cpu", "0", "--strict"]))


def test_labels_with_score_are_read_where_the_option_says_so(project):
    for path in (project / "data/labels").glob("train_*.txt"):
        path.write_text(path.read_text().replace("\n", " 0.9\n"))
    with pytest.raises(InputError, match=r"train_0\.txt:1: 6 values.*--labels_with_score"):
        check()
    assert check(rules=LabelRules(with_score=True)).counts["scores ignored"] == 6


@pytest.mark.parametrize(
    ("lines", "layout"),
    [
        (("0 32 30 20 24", "0 0 0 0 0"), "pixels"),
        (("0 .4 .4 .9 .95", "0 .1 .1 .2 .2"), "corners: x1 y1 x2 y2"),
        (("0 .4 .9 .4 .95", "0 .1 .2 .1 .2"), "corners in another order: x1 x2 y1 y2"),
        (("0 .01 .01 .2 .1", "0 .3 .4 .2 .1"), "the upper left corner and the size: x1 y1 w h"),
        (("0 .1 .2 .94 .88", "0 .3 .4 .2 .3"), "sizes in front: w h cx cy"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_list_in_another_layout_is_an_error_that_names_it(project, lines, layout, skip_bad):
    for number in range(6):
        (project / f"data/labels/train_{number}.txt").write_text(f"{lines[number % 2]}\n")
    with pytest.raises(InputError, match=rf"data/train\.txt: its 6 boxes look like {layout}"):
        check(skip_bad=skip_bad)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_negatives_only_end_in_a_sentence(project, split):
    for path in (project / "data/labels").glob(f"{split}_*.txt"):
        path.write_text("")
    with pytest.raises(InputError, match=rf"data/{split}\.txt: none of its . images has a labelled box"):
        train.main(train.get_args_parser().parse_args(["--n_cpu", "0"]))
    assert not (project / "checkpoints").exists()


def test_where_nothing_can_be_used_skip_bad_ends_in_a_sentence(project):
    shutil.rmtree(project / "data/images")
    with pytest.raises(InputError, match=r"data/train\.txt: none of its 6 images can be used"):
        check(skip_bad=True)


def test_where_all_boxes_are_dropped_the_error_says_so(project):
    for path in (project / "data/labels").glob("train_*.txt"):
        path.write_text("0 .5 .5 0 0\n")
    with pytest.raises(InputError, match=r"none of its 6 images has a labelled box: all 6 have no area"):
        check()


# The cache


def test_an_image_is_decoded_again_only_when_it_changed(project, decoded):
    expected = check()
    assert sorted(decoded) == [f"train_{k}.png" for k in range(6)]
    decoded.clear()
    assert check().counts == expected.counts
    assert decoded == []
    image = project / "data/images/train_3.png"
    os.utime(image, ns=(1, 1))
    check()
    assert decoded == ["train_3.png"]
    image.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(InputError, match=r"train_3\.png: cannot be read"):
            check()
    assert decoded == ["train_3.png"] * 2


def test_what_was_wrong_with_the_machine_is_not_remembered(project, decoded, monkeypatch):
    def refused(path):
        raise InputError(f"{path}: cannot be read as an image: Permission denied") from PermissionError(13, "no")

    with monkeypatch.context() as patches:
        patches.setattr(check_module, "decode_strictly", refused)
        with pytest.raises(InputError, match="Permission denied"):
            check()
    decoded.clear()
    check()
    assert len(decoded) == 6


def test_labels_are_read_again_each_time(project, decoded):
    check()
    decoded.clear()
    (project / "data/labels/train_3.txt").write_text("1 .5 .5 .1 .1\n")
    with pytest.raises(InputError, match=r"train_3\.txt:1: class 1"):
        check()
    assert decoded == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"reader": 1}',
        json.dumps({"reader": check_module.READER, "images": {"a": [1]}}).encode(),
        json.dumps({"reader": check_module.READER, "images": {"a": [1, 2, 3, 4, "b"]}}).encode(),
        json.dumps({"reader": check_module.READER, "images": {"a": [1, 2, False, None]}}).encode(),
        json.dumps({"reader": check_module.READER, "images": {"a": [1, 2, False, None, 5]}}).encode(),
        json.dumps({"reader": check_module.READER, "images": {"a": [1e400, 2, False, True, None, ""]}}).encode(),
        json.dumps({"reader": check_module.READER, "images": 7}).encode(),
        json.dumps({"reader": "another", "images": {}}).encode(),
    ],
)
def test_a_damaged_cache_is_written_again(project, decoded, content):
    cache = project / "data/.train.txt.checked.json"
    check()
    good = cache.read_bytes()
    cache.write_bytes(content)
    decoded.clear()
    check()
    assert len(decoded) == 6
    assert cache.read_bytes() == good


def test_a_data_set_that_cannot_be_written_to_is_checked_each_time(project, decoded):
    (project / "data/.train.txt.checked.json").mkdir()
    assert check().counts == check().counts
    assert len(decoded) == 12


# Images of every kind


def test_images_of_one_pixel_width_can_be_trained_on(project):
    for size in ((1, 300), (300, 1), (1, 1)):
        Image.new("RGB", size, (200, 0, 0)).save(project / "data/images/train_0.png")
        (project / "data/labels/train_0.txt").write_text("0 .5 .5 1 1\n")
        checked = check()
        image, boxes = DetectionDataset(checked.images, checked.labels, 64)[0]
        assert (image[0] == 200).any()
        assert len(boxes) == 1
        assert np.isfinite(boxes.numpy()).all()
        assert (boxes[:, 3:] > 0).all()


def test_deep_images_are_counted_with_a_warning(project):
    assert "8 bits" not in summary({"train": check()})
    pixels = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(pixels).save(project / "data/images/train_1.png")
    for _ in range(2):  # the second time it is remembered
        checked = check()
        assert checked.counts["images scaled to 8 bits"] == 1
        text = summary({"train": checked})
        assert "images scaled to 8 bits" in text
        assert "warning: 1 images have more than 8 bits" in text


def test_the_folder_that_is_the_working_directory_can_be_checked(tmp_path, monkeypatch):
    folder = tmp_path / "flat"
    save(folder / "a.png")
    write(folder / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    write(folder / "here.data", "classes=1\nnames=a.names\ntrain=.\nvalid=./\n")
    write(folder / "a.names", "hand\n")
    monkeypatch.chdir(folder)
    assert check_data(read_data_config("here.data"), "train").images
    assert (tmp_path / ".flat.checked.json").is_file()
