"""Annotations that state another size than their image has: scaled, turned, kept, or left out."""

import os
from pathlib import Path

import pytest

from tests.data.converters.scene import convert, draw, row
from tests.data.converters.test_voc import add_voc
from utils.errors import InputError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images of 100x50 with a box from (10, 5) to (60, 30); more can be added."""
    for name in ("a", "b"):
        add_voc(tmp_path / "VOC", name, ("dog", 11, 6, 60, 30))
        draw(tmp_path / f"VOC/JPEGImages/{name}.jpg", seed=ord(name))
    return tmp_path / "VOC"


def label(folder: Path, name: str, *options: str) -> str | None:
    """What becomes of an image; None where it is left out."""
    convert("voc", "--source", folder, "--output", folder / "out", "--split", "0.5", *options)
    path = folder / f"out/labels/{name}.txt"
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize("stated", [(200, 100), (50, 25), (1000, 501)])
def test_boxes_of_an_image_that_was_scaled_since(folder, stated):
    factor = stated[0] / 100
    add_voc(folder, "c", ("dog", 10 * factor + 1, 5 * factor + 1, 60 * factor, 30 * factor), size=stated)
    shares = list(map(float, label(folder, "c").split()[1:]))
    assert shares == pytest.approx([0.35, 0.35, 0.5, 0.5], abs=1e-3)


# On the image as it lies in the file, 100x50, the box is from (10, 5) to (60, 30).
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (5, "0 0.350000 0.350000 0.500000 0.500000\n"),
        (6, "0 0.650000 0.350000 0.500000 0.500000\n"),
        (7, "0 0.650000 0.650000 0.500000 0.500000\n"),
        (8, "0 0.350000 0.650000 0.500000 0.500000\n"),
    ],
)
def test_boxes_of_an_image_that_exif_turns(folder, orientation, expected):
    add_voc(folder, "c", ("dog", 11, 6, 60, 30))
    draw(folder / "JPEGImages/c.jpg", orientation=orientation)
    assert label(folder, "c") == expected


@pytest.mark.parametrize("stated", [(50, 100), (40, 40)])
def test_a_size_that_was_stated_wrongly(folder, stated, capsys):
    add_voc(folder, "c", ("dog", 11, 6, 60, 30), size=stated)
    assert label(folder, "c") == "0 0.350000 0.350000 0.500000 0.500000\n"
    printed = capsys.readouterr().out
    assert row(printed, "train")[-1] + row(printed, "valid")[-1] == 1


def test_boxes_of_another_image_are_not_used(folder, capsys):
    add_voc(folder, "c", ("dog", 11, 6, 60, 30), size=(300, 300))
    assert label(folder, "c") is None
    assert "c.xml: states 300x300 pixels, but" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"c\.xml: states 300x300 pixels"):
        label(folder, "c", "--strict")


def test_an_image_whose_boxes_have_no_area_is_no_negative(folder, capsys):
    add_voc(folder, "c", ("dog", 7, 7, 7, 7), ("dog", 200, 200, 220, 220))
    assert label(folder, "c") is None
    assert "c.xml: no box has an area inside" in capsys.readouterr().out


def test_a_name_that_is_not_utf_8(folder, capsys):
    path = Path(os.fsdecode(b"m\xfc"))
    (folder / "JPEGImages/b.jpg").rename(folder / f"JPEGImages/{path}.jpg")
    (folder / "Annotations/b.xml").rename(folder / f"Annotations/{path}.xml")
    add_voc(folder, "c", ("dog", 11, 6, 60, 30))
    assert label(folder, "c")
    assert "m\\udcfc.jpg': rename it, since lists of images are in UTF-8" in capsys.readouterr().out


def test_a_list_for_validation_alone(folder):
    lists = folder / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "holdout.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"--valid_split holdout: .*--train_split"):
        label(folder, "a", "--valid_split", "holdout")


def test_the_image_of_another_annotation_is_not_taken(folder, capsys):
    add_voc(folder / "more", "a", ("dog", 11, 6, 60, 30))
    (folder / "more/JPEGImages/a.jpg").unlink()
    label(folder, "a")
    printed = capsys.readouterr().out
    assert "more/Annotations/a.xml: there is no image a.jpg" in printed
    assert row(printed, "train")[0] + row(printed, "valid")[0] == 2
