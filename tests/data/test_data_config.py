import pytest

from tests.scene import save, write
from utils.data.data_config import read_data_config
from utils.errors import InputError


def data_file(folder, text):
    write(folder / "a.names", "cat\ndog\n")
    return write(folder / "a.data", text)


def test_data_file_with_comments_blank_lines_and_spaces(tmp_path):
    text = (
        "# the pets\n\n  classes = 2  # two\nnames=a.names\n train =train.txt\r\nvalid= valid.txt\nbackup=elsewhere\n"
    )
    write(tmp_path / "train.txt", "")
    config = read_data_config(data_file(tmp_path, text))
    assert (config.classes, config.names) == (2, ["cat", "dog"])
    assert (config.train, config.valid) == (tmp_path / "train.txt", tmp_path / "valid.txt")


def test_names_default_to_numbers(tmp_path):
    assert read_data_config(data_file(tmp_path, "classes=3\n")).names == ["0", "1", "2"]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "a.data"
    path.write_text("classes=1\n", encoding="utf-8-sig")
    assert read_data_config(path).classes == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names=a.names\n", r"a\.data: classes= must be a number from 1 to"),
        ("classes=0\n", r"classes=0 must be a number from 1 to"),
        ("classes=two\n", r"classes=two must be"),
        ("cat\ndog\n", r"a\.data: no line is key=value, so not a \.data file"),
        ("classes=3\nnames=a.names\n", r"classes=3, but a\.names names 2"),
        (
            "classes=2\nnames=b.names\n",
            r"a\.data: names=b\.names: there is no such file of class names; looked at .*/b\.names",
        ),
    ],
)
def test_wrong_data_files_say_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_data_config(data_file(tmp_path, text))


def test_a_missing_data_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.data: there is no such \.data file"):
        read_data_config(tmp_path / "none.data")


def test_an_image_in_place_of_a_data_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"p\.png: not a text file"):
        read_data_config(save(tmp_path / "p.png"))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_list_stops_only_who_needs_it(tmp_path, split):
    image = save(tmp_path / "p.png")
    write(tmp_path / "list.txt", "p.png\n")
    other = {"train": "valid", "valid": "train"}[split]
    config = read_data_config(data_file(tmp_path, f"classes=2\n{other}=list.txt\n"))
    assert config.images(other) == [image]
    with pytest.raises(InputError, match=rf"a\.data: {split}= is missing: add a line {split}=LIST"):
        config.images(split)


def test_a_list_that_is_not_there_is_named(tmp_path):
    config = read_data_config(data_file(tmp_path, "classes=2\ntrain=gone.txt\n"))
    with pytest.raises(InputError, match=r"gone\.txt: there is no such list of images"):
        config.images("train")


def test_where_there_are_no_data_the_error_says_what_was_looked_at_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_data_config(write(tmp_path / "config/a.data", "classes=1\ntrain=data/train.txt\n"))
    with pytest.raises(InputError) as error:
        config.images("train")
    for words in (f"{tmp_path}/data/train.txt", f"{tmp_path}/config/data/train.txt", "data/converter.py voc"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("line", "train"),
    [
        ("train=c#1/list.txt", "c#1/list.txt"),
        ("train=c;1/list.txt", "c;1/list.txt"),
        ("train=c#1/list.txt # the images", "c#1/list.txt"),
        ("train=c#1/list.txt\t; the images", "c#1/list.txt"),
        ("train=c #1/list.txt", "c #1/list.txt"),
        ("train=list.txt #1/list.txt", "list.txt"),
        ("train=c\\d\\list.txt", "c/d/list.txt"),
        ("; train=c#1/list.txt\n  # train=x\n;\n#\ntrain=list.txt", "list.txt"),
        ("train=list.txt\ntrain=c#1/list.txt", "list.txt"),
    ],
)
def test_comments_and_paths_that_look_like_some(tmp_path, line, train):
    for name in ("c#1/list.txt", "c;1/list.txt", "c #1/list.txt", "c/d/list.txt", "list.txt"):
        write(tmp_path / name, "")
    config = read_data_config(data_file(tmp_path, f"classes=2\n{line}\n"))
    assert config.train == tmp_path / train


def test_stray_lines_are_warned_of_once_and_ignored(tmp_path, capsys):
    config = read_data_config(data_file(tmp_path, "classes=2\nwritten by a tool\nnames=a.names\n"))
    assert config.names == ["cat", "dog"]
    assert capsys.readouterr().err == f"warning: {config.path}: line 2 is not key=value, and ignored\n"
    config = read_data_config(data_file(tmp_path, "classes=2\none\n=two\nthree\n"))
    assert capsys.readouterr().err == f"warning: {config.path}: 3 lines, the first 2, are not key=value, and ignored\n"


@pytest.mark.parametrize(("name", "encoding"), [("手", "gbk"), ("café", "cp1252"), ("手", "utf-16"), ("手", "utf-8")])
def test_names_in_encodings_of_windows(tmp_path, name, encoding):
    (tmp_path / "手.names").write_bytes(f"{name}\r\ncar\r\n".encode(encoding))
    data = tmp_path / "a.data"
    data.write_bytes("classes=2\nnames=手.names\n".encode("gbk" if encoding == "gbk" else "utf-8"))
    assert read_data_config(data).names == [name, "car"]


@pytest.mark.parametrize("classes", ["1000000000", "9" * 5000, "65537"])
def test_an_absurd_number_of_classes_is_refused(tmp_path, classes):
    with pytest.raises(InputError, match="must be a number from 1 to 65536"):
        read_data_config(write(tmp_path / "a.data", f"classes={classes}\n"))
