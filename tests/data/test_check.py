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
from tests.scene import make_project
from utils.data import check as check_module
from utils.data.check import check_data, summary
from utils.data.data_config import read_data_config
from utils.data.datasets import DetectionDataset
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


def check(split="train", skip_bad=False):
    return check_data(read_data_config("config/oxfordhand.data"), split, skip_bad)


def spoil(project):
    """Four of the six training images get something wrong, one of them two lines."""
    images, labels = project / "data/images", project / "data/labels"
    (images / "train_0.png").unlink()
    (images / "train_1.png").write_bytes(b"no image")
    (labels / "train_2.txt").write_text("0 .5 .5 .1 .1\n3 .5 .5 .1 .1\n0 .5 nan .1 .1\n")
    (labels / "train_4.txt").write_text("0 .99 .5 .1 .1\n")


PROBLEMS = [
    "data/train.txt:1: there is no image images/train_0.png",
    "data/images/train_1.png: cannot be read as an image",
    "data/labels/train_2.txt:2: class 3, but the classes are 0 to 0",
    "data/labels/train_2.txt:3: '0 .5 nan .1 .1' holds a value that is not finite",
    "data/labels/train_4.txt:1: the box passes the border",
]


def test_all_that_is_wrong_is_shown_at_once(project, capsys):
    spoil(project)
    with pytest.raises(
        InputError, match=r"train_0\.png \(5 problem\(s\) with 4 image\(s\) in all\); --skip_bad"
    ) as error:
        check()
    assert "\n" not in str(error.value)
    lines = capsys.readouterr().err.split("data/train.txt: 5 problem(s) with 4 image(s):\n")[1].splitlines()
    assert len(lines) == len(PROBLEMS)
    for line, expected in zip(lines, PROBLEMS, strict=True):
        assert expected in line


def test_of_many_problems_ten_are_shown(project, capsys):
    (project / "data/labels/train_3.txt").write_text("0 .5 .5 0 0\n" * 30)
    with pytest.raises(InputError, match=r"train_3\.txt:1: .*30 problem\(s\) with 1 image\(s\)"):
        check()
    shown = capsys.readouterr().err
    assert "train_3.txt:10:" in shown
    assert "train_3.txt:11:" not in shown


@pytest.mark.parametrize("program", ["train", "test"])
def test_skip_bad_goes_on_without_them_and_says_how_many(project, capsys, monkeypatch, program):
    monkeypatch.setattr(train, "plot_training", lambda rows, gammas, folder: None)
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
    (labels / "train_2.txt").write_text("0 .5 .5 .5 .5\n" * 3 + "0 .0995 .5 .2 .2\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(images / "train_3.png", exif=exif)
    listing = project / "data/train.txt"
    listing.write_text(listing.read_text() + f"images/train_5.png\n{images}/../images/train_5.png\n")
    checked = check()
    assert checked.counts == {
        "images": 8,
        "boxes": 9,
        "images without boxes": 2,
        "boxes clipped": 1,
        "duplicate boxes": 2,
        "duplicate images": 2,
        "images turned by EXIF": 1,
        "images scaled to 8 bits": 0,
        "images left out": 0,
    }
    text = summary({"train": checked, "valid": check("valid")})
    assert "duplicate boxes" in text
    assert "left out" not in text
    assert "warning" not in text


def test_images_in_both_lists_are_noticed(project):
    (project / "data/valid.txt").write_text("images/valid_0.png\nimages/train_1.png\nimages/train_2.png\n")
    assert "warning: 2 images are in both lists" in summary({"train": check(), "valid": check("valid")})


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
        json.dumps({"reader": check_module.READER, "images": {"a": [1, 2, 3, 4]}}).encode(),
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
