import pytest

from utils.cli import ArgumentParser, add_size_option
from utils.errors import InputError
from utils.sizes import Size


@pytest.mark.parametrize("size", [416, (416, 416), (256, 416)])
def test_a_size_survives_options_files_and_text(size):
    assert Size.of(Size.of(size).plain) == Size.of(size)
    assert Size.parse(str(Size.of(size))) == Size.of(size)


def test_an_int_is_a_square_and_a_pair_is_height_and_width():
    assert Size.of(64) == (64, 64)
    assert Size.of((64, 96)) == Size(height=64, width=96)
    assert Size(64, 64).plain == 64
    assert Size(64, 96).plain == (64, 96)
    assert type(Size(64, 96).plain) is tuple  # which torch.load reads


@pytest.mark.parametrize("size", [0, -32, (64,), (64, 96, 3), (64, 0), (64.0, 96), "64", None])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InputError, match="one number for a square, or height and width"):
        Size.of(size)


@pytest.mark.parametrize("text", ["", "a", "64x96", "1 2 3"])
def test_what_is_no_text_of_a_size_is_refused(text):
    with pytest.raises(InputError, match="one number for a square, or height and width"):
        Size.parse(text)


def test_the_nearest_size_of_whole_strides():
    assert Size(90, 150).rounded(32) == (96, 160)
    assert Size(3, 64).rounded(32) == (32, 64)


@pytest.mark.parametrize(
    ("words", "size"), [([], 416), (["96"], 96), (["96", "96"], 96), (["96", "160"], (96, 160))], ids=str
)
def test_the_option_takes_one_number_or_two(words, size):
    parser = ArgumentParser("")
    add_size_option(parser, "size", 416)
    args = parser.parse_args(["--img_size", *words] if words else [])
    assert args.img_size == size
    assert args.given == ({"img_size"} if words else set())


@pytest.mark.parametrize(
    ("words", "reason"), [(["1", "2", "3"], "out of range"), (["32", "64", "96"], "height and width"), (["a"], "int")]
)
def test_the_option_refuses_all_else_in_one_line(words, reason, capsys):
    parser = ArgumentParser("")
    add_size_option(parser, "size", 416)
    with pytest.raises(SystemExit):
        parser.parse_args(["--img_size", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert "--img_size" in line
    assert reason in line
