"""The layouts in which tools write Pascal VOC, and the details of their XML and lists."""

from pathlib import Path

import pytest

from tests.data.converters.scene import convert, draw
from utils.errors import InputError

BOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>60</xmax><ymax>30</ymax></bndbox>"
LABEL = "0 0.350000 0.350000 0.500000 0.500000\n"
POINTS = "<pt><x>11</x><y>30</y></pt><pt><x>60</x><y>6</y></pt><pt><x>20</x><y>8</y></pt>"
POLYGON = "".join(f"<x{k}>{x}</x{k}><y{k}>{y}</y{k}>" for k, (x, y) in enumerate([(11, 6), (60, 6), (60, 30)], 1))


def annotate(path: Path, form: str = BOX, name: str = "cat", head: str = "", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"{head}<annotation>{{}}<object><name>{name}</name>{form}</object></annotation>"
    path.write_bytes(text.format("<size><width>100</width><height>50</height></size>").encode(encoding))


def make(root: Path, *pairs: tuple[str, str]) -> Path:
    """Images, each unlike the others, with the XML files of the second names."""
    for seed, (image, annotation) in enumerate(pairs):
        draw(root / image, seed=seed)
        annotate(root / annotation)
    return root


def lists(output: Path) -> dict[str, list[str]]:
    return {split: (output / f"{split}.txt").read_text().split() for split in ("train", "valid")}


def names(folders: tuple[str, str], suffixes: tuple[str, str] = (".jpg", ".xml")) -> list[tuple[str, str]]:
    return [(f"{folders[0]}{name}{suffixes[0]}", f"{folders[1]}{name}{suffixes[1]}") for name in "abcd"]


@pytest.mark.parametrize(
    "pairs",
    [
        names(("", "")),
        names(("images/", "annotations/")),
        names(("JPEGImages/", "Annotations/"), (".jpeg", ".XML")),
        names(("pics/", "pics/xmls/"), (".PNG", ".xml")),
        names(("hands/images/", "hands/labels/")),
    ],
)
def test_layouts_without_a_split_need_one(tmp_path, pairs):
    source = make(tmp_path / "source", *pairs)
    with pytest.raises(InputError, match=r"no split.*--split 0\.9 makes one"):
        convert("voc", "--source", source, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.75")
    splits = lists(tmp_path / "out")
    assert [len(images) for images in splits.values()] == [3, 1]
    assert all(path.read_text() == LABEL for path in (tmp_path / "out/labels").iterdir())


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ("train/{}", "valid/{}"),
        ("train/{}", "test/{}"),
        ("train_zip/train/{}", "test_zip/test/{}"),
        ("images/train/{}|annotations/train/{}", "images/val/{}|annotations/val/{}"),
        ("train_images/{}|train_annotations/{}", "val_images/{}|val_annotations/{}"),
        ("Train/JPEGImages/{}|Train/Annotations/{}", "Validation/JPEGImages/{}|Validation/Annotations/{}"),
    ],
)
def test_folders_may_tell_the_split(tmp_path, train, valid):
    pairs = []
    for pattern, stems in ((train, "ab"), (valid, "ac")):  # two images of one name
        image, _, annotation = pattern.partition("|")
        pairs += [(image.format(f"{s}.jpg"), (annotation or image).format(f"{s}.xml")) for s in stems]
    convert("voc", "--source", make(tmp_path / "source", *pairs), "--output", tmp_path / "out")
    splits = lists(tmp_path / "out")
    assert splits == {"train": ["images/a.jpg", "images/b.jpg"], "valid": ["images/a_2.jpg", "images/c.jpg"]}
    with pytest.raises(InputError, match="has a split into training and validation images already"):
        convert("voc", "--source", tmp_path / "source", "--output", tmp_path / "out", "--split", "0.5")


def test_images_of_other_folders_are_counted(tmp_path, capsys):
    pairs = [(f"{split}/{split}.jpg", f"{split}/{split}.xml") for split in ("train", "valid", "test", "others")]
    source = make(tmp_path / "source", *pairs)
    draw(source / "train/unlabelled.jpg")
    convert("voc", "--source", source, "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    for reason in ("in the test split, which is not used", "in no folder of a split", "has no XML file"):
        assert f"left out 1 image(s): {reason}" in printed.splitlines()


def voc(tmp_path: Path, train: str = "a\nb\n", valid: str = "c\nd\n", **files: str) -> Path:
    source = make(tmp_path / "source", *names(("JPEGImages/", "Annotations/")))
    for name, text in {"train": train, "val": valid, **files}.items():
        path = source / f"ImageSets/Main/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source


@pytest.mark.parametrize("train", ["a.jpg\nb.jpg\n", "a  1\nb -1\n", "JPEGImages\\a.jpg\nx/b.jpg\n", "a\t0\nb\n"])
def test_lines_of_lists(tmp_path, train):
    convert("voc", "--source", voc(tmp_path, train), "--output", tmp_path / "out")
    assert lists(tmp_path / "out")["train"] == ["images/a.jpg", "images/b.jpg"]


def test_names_with_blanks_and_numbers_are_no_columns(tmp_path):
    source = voc(tmp_path, "photo 1\na\n")
    draw(source / "JPEGImages/photo 1.jpg")
    annotate(source / "Annotations/photo 1.xml")
    convert("voc", "--source", source, "--output", tmp_path / "out")
    assert (tmp_path / "out/train.txt").read_text() == "images/photo 1.jpg\nimages/a.jpg\n"


def test_minus_one_in_the_list_of_a_class_is_not_of_the_class(tmp_path):
    source = voc(tmp_path, cat_train="a  1\nb -1\n")
    convert("voc", "--source", source, "--output", tmp_path / "out", "--train_split", "cat_train")
    assert lists(tmp_path / "out")["train"] == ["images/a.jpg"]


def test_an_image_in_both_lists_is_one_file(tmp_path, capsys):
    source = voc(tmp_path, "a\nb\nc\n", "c\nd\n")
    convert("voc", "--source", source, "--output", tmp_path / "out")
    assert lists(tmp_path / "out")["valid"] == ["images/c.jpg", "images/d.jpg"]
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [f"{name}.jpg" for name in "abcd"]
    assert "warning: 1 images are in both splits, the first c.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "head", "encoding"),
    [
        (f"<polygon>{POLYGON}</polygon>", "", "utf-8"),
        (
            "<polygon><pt><x>11</x><y>30</y></pt><pt><x>60</x><y>6</y></pt><pt><x>20</x><y>8</y></pt></polygon>",
            "",
            "utf-8",
        ),
        (f"{BOX}<polygon><x1>1</x1></polygon>", "", "utf-8"),
        (BOX, '<?xml version="1.0" encoding="GBK"?>', "gbk"),
        (BOX, '<?xml version="1.0" encoding="utf-8"?>', "gb18030"),
        (BOX, '<?xml version="1.0" encoding="UTF-16"?>', "utf-16"),
        (BOX, "\ufeff<?xml version='1.0'?>\n", "utf-8"),
    ],
)
def test_boxes_and_encodings(tmp_path, form, head, encoding):
    source = make(tmp_path / "source", *names(("", "")))
    for name in "abcd":
        annotate(source / f"{name}.xml", form, "手掌检测对象", head, encoding)
    convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5", "--strict")
    assert (tmp_path / "out/out.names").read_text(encoding="utf-8") == "手掌检测对象\n"
    assert all((tmp_path / f"out/labels/{name}.txt").read_text() == LABEL for name in "abcd")


@pytest.mark.parametrize("size", ["<width></width><height/>", "<width>0</width><height>0</height>", "<width>x</width>"])
def test_a_size_that_says_nothing_is_taken_from_the_image(tmp_path, capsys, size):
    source = make(tmp_path / "source", *names(("", "")))
    text = (source / "a.xml").read_text()
    (source / "a.xml").write_text(text.replace("<width>100</width><height>50</height>", size))
    convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5", "--strict")
    assert (tmp_path / "out/labels/a.txt").read_text() == LABEL


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("<polygon><x1>3</x1><y1>4</y1></polygon>", r"a\.xml: object 1 has no <bndbox>, and its <polygon>"),
        ("<polygon>" + POLYGON.replace("60", "x") + "</polygon>", r"a\.xml: object 1: <polygon>.*finite"),
        ("", r"a\.xml: object 1 has neither <bndbox> nor <polygon>"),
    ],
)
def test_an_image_whose_only_object_has_no_box_is_left_out_and_named(tmp_path, capsys, form, message):
    source = make(tmp_path / "source", *names(("", "")))
    annotate(source / "a.xml", form)
    with pytest.raises(InputError, match=message):
        convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5", "--strict")
    convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5")
    assert sorted(path.stem for path in (tmp_path / "out/labels").iterdir()) == ["b", "c", "d"]
    lines = capsys.readouterr().out.splitlines()
    assert "left out 1 image(s): none of its objects can be used" in lines
    assert "1 problem(s), which --strict refuses:" in lines


def test_namespaces_of_xml_do_not_hide_the_objects(tmp_path):
    source = make(tmp_path / "source", *names(("", "")))
    text = (source / "a.xml").read_text()
    (source / "a.xml").write_text(text.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'))
    convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5", "--strict")
    assert (tmp_path / "out/labels/a.txt").read_text() == LABEL


def test_an_image_whose_xml_is_broken_is_left_out_once(tmp_path, capsys):
    source = make(tmp_path / "source", *names(("", "")))
    (source / "a.xml").write_text("<annotation>")
    draw(source / "e.jpg", seed=9)
    convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert lines == ["left out 1 image(s): has no XML file", "left out 1 image(s): no image, or no XML"]


def test_cvats_own_xml_is_named(tmp_path):
    draw(tmp_path / "source/images/a.jpg")
    (tmp_path / "source/annotations.xml").write_text("<annotations><image name='a.jpg'/></annotations>")
    with pytest.raises(InputError, match=r"annotations\.xml: is XML of CVAT itself: export"):
        convert("voc", "--source", tmp_path / "source", "--output", tmp_path / "out", "--split", "0.5")


def test_entities_are_refused(tmp_path):
    source = make(tmp_path / "source", *names(("", "")))
    annotate(source / "a.xml", head='<!DOCTYPE a [<!ENTITY b "cat"><!ENTITY c "&b;&b;">]>')
    with pytest.raises(InputError, match=r"a\.xml: declares entities"):
        convert("voc", "--source", source, "--output", tmp_path / "out", "--split", "0.5", "--strict")
