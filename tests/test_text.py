"""Text of every origin is read, and what is no text is refused."""

import pytest

from tests.scene import save
from utils import text
from utils.errors import InputError
from utils.files import read_lines, read_names, read_text
from utils.text import declared_encoding, decode_text


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    monkeypatch.setattr(text, "_announced", set())


CHINESE = [
    "手",
    "鹦鹉",
    "交通灯",
    "苹果\n香蕉\n橘子",
    "person\n手机\ncar",
    "T恤",
    "class_三",
    "《轿车》，（卡车）",
    "A级",
]
WESTERN = [
    "café",
    "Mädchen",
    "Größe\nÄpfel\nÜbung",
    "pão\nmaçã\nlimão\nção",
    "AÇÃO",
    "naïve\n señor",
    "œuvre – très “bon”",
    "#————————",
    "90°",
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk", "gb18030"])
@pytest.mark.parametrize("content", CHINESE)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_chinese_text(content, encoding, ends):
    content = (content + "\n").replace("\n", ends)
    assert decode_text(content.encode(encoding))[0] == content


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("content", WESTERN)
def test_western_text(content, encoding):
    assert decode_text(content.encode(encoding))[0] == content


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("content", ["images/手_1.jpg\r\nimages/b.jpg\r\n", "鹦鹉\n交通灯\n", "a=b"])
def test_utf_16_without_a_mark(content, order):
    assert decode_text(content.encode(order)) == (content, "UTF-16")


def test_marks_of_files_that_were_joined_are_left_out():
    assert decode_text("a\n".encode("utf-8-sig") * 3) == ("a\na\na\n", "UTF-8")
    assert decode_text(b"a\n" + "b\n".encode("utf-8-sig")) == ("a\nb\n", "UTF-8")


def test_characters_that_only_gb18030_has():
    content = "𠀀㐀 龦\n手机\n"
    assert decode_text(content.encode("gb18030")) == (content, "GB18030")


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("gb2312", "gbk"),
        ("GBK", "gbk"),
        ("utf-8", "utf-8"),
        ("Big5", "big5"),
        ("Shift_JIS", "shift_jis"),
        ("ISO-8859-1", "cp1252"),
        ("utf-8", "gbk"),  # a tool that declares what it does not write
        ("utf-16", "utf-8"),
        ("nonsense", "utf-8"),
        ("zip", "utf-8"),
        ("unicode_escape", "utf-8"),
    ],
)
def test_the_declaration_of_xml_counts_where_it_is_true(tmp_path, head, encoding):
    word = "café ”" if encoding == "cp1252" else "手機" if encoding == "big5" else "手本"
    content = f'<?xml version="1.0" encoding="{head}"?>\n<a><name>{word}</name></a>'
    path = tmp_path / "a.xml"
    path.write_bytes(content.encode(encoding))
    assert read_text(path, "XML file", xml=True) == content


def test_a_declaration_is_no_matter_in_other_text():
    assert declared_encoding(b"<annotation/>") is None
    assert declared_encoding(b"<?xml version='1.0' encoding='GB2312'?>") == "gb18030"


BINARY = [
    b"\xff\xd8\xff\xe0\0\x10JFIF",
    b"\x7fELF\0\0\0",
    b"abc\0def\n",
    b"\xe9\x01",
    b"\x81\x8d",
    b"\xff\xfe\0\xd8",
    b"\xff\xfea\0\1\0",
    bytes(range(256)),
    b"\0" * 100,
    b"\x01\0\0\0" * 20,
]


@pytest.mark.parametrize("content", BINARY)
def test_a_binary_file_is_no_text(tmp_path, content):
    path = tmp_path / "a.names"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.names: not a text file, so not a file of class names"):
        read_names(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
def test_an_image_is_no_text(tmp_path, suffix):
    with pytest.raises(InputError, match="not a text file"):
        read_text(save(tmp_path / f"a.{suffix}", size=(90, 70)), "list of images")


def test_an_encoding_is_announced_once_for_each_kind_of_file(tmp_path, capsys):
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path in paths:
        path.write_bytes("手\n".encode("gbk"))
        assert read_lines(path, "label file") == ["手"]
    assert capsys.readouterr().err == f"{paths[0]}: read as GB18030; if that is wrong, save it as UTF-8\n"
    read_lines(paths[1], "list of images")
    assert "b.txt: read as GB18030" in capsys.readouterr().err
    paths[0].write_bytes("手\n".encode("utf-16"))
    read_lines(paths[0], "label file")
    assert capsys.readouterr().err == ""
