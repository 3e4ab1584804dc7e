"""Pascal VOC: exact labels, and failures that name the file and touch nothing."""

from pathlib import Path

import pytest

from tests.data.converters.scene import convert, draw, row, tree
from utils.errors import InputError

BCCD = Path(__file__).resolve().parents[4] / "shared" / "data" / "BCCD"


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
    # The image of b has half the stated size: its box is x 45..55, y 20..25.
    assert (output / "labels/b.txt").read_text() == "1 0.500000 0.450000 0.100000 0.100000\n"
    assert (output / "labels/c.txt").read_text() == "0 0.150000 0.500000 0.110000 1.000000\n"
    assert (output / "train.txt").read_text() == "images/a.jpg\nimages/b.png\n"
    assert (output / "valid.txt").read_text() == "images/c.jpg\n"
    assert (output / "pets.names").read_text() == "bird\ncat\ndog\n"
    assert (output / "pets.data").read_text() == "classes=3\ntrain=train.txt\nvalid=valid.txt\nnames=pets.names\n"
    printed = capsys.readouterr().out
    assert row(printed, "train") == [2, 3, 0, 1, 0, 0, 1]
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
    printed = capsys.readouterr().out
    assert row(printed, "valid") == [1, 0, 0, 0, 1, 1, 0]
    assert "valid: left out 1 object(s): class is not in --classes" in printed.splitlines()
    assert "train: left out" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train_split", "nope"], r"Main/nope\.txt: there is no such split; the folder has test, trainval"),
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
        ("Annotations/c.xml", "<a><object><name>x</name></object></a>", r"c\.xml: object 1 has neither"),
        ("Annotations/c.xml", "<a><object><bndbox/></object></a>", r"c\.xml: object 1 has no <name>"),
        ("Annotations/c.xml", None, r"test\.txt: names c, .*c\.xml"),
        ("JPEGImages/c.jpg", None, r"c\.xml: there is no image c\.jpg"),
        ("JPEGImages/c.jpg", "no image", r"c\.jpg: cannot be read as an image"),
        ("JPEGImages/c.png", "two of a stem", r"c\.png and c\.jpg could both be its image"),
        ("ImageSets/Main/test.txt", "", "valid split has no images"),
        ("ImageSets/Main/test.txt", "d\n", r"test\.txt: names d"),
        ("ImageSets/Main/test.txt", b"\xff\0\1", r"test\.txt: not a text file"),
    ],
)
def test_strict_names_the_file_and_touches_nothing(voc, tmp_path, path, content, message):
    output = tmp_path / "out"
    convert("voc", "--source", voc, "--output", output, "--strict")
    before = tree(output)
    add_voc(voc, "a", ("dog", 1, 1, 2, 2))
    if content is None:
        (voc / path).unlink()
    else:
        (voc / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        convert("voc", "--source", voc, "--output", output, "--strict")
    assert tree(output) == before


@pytest.mark.parametrize("corner", ["nan", "inf", "x", ""])
def test_voc_corner_that_is_no_number(voc, tmp_path, corner):
    add_voc(voc, "c", ("bird", 1, 1, corner, 9), ("bird", 11, 6, 60, 30))
    with pytest.raises(InputError, match=r"c\.xml: .* 4 finite numbers"):
        convert("voc", "--source", voc, "--output", tmp_path / "out", "--strict")
    convert("voc", "--source", voc, "--output", tmp_path / "out")
    assert (tmp_path / "out/labels/c.txt").read_text() == "0 0.350000 0.350000 0.500000 0.500000\n"


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
