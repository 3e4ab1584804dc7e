import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import ArgumentParser, number, run
from utils.detection.options import add_threshold_options
from utils.errors import InputError
from utils.files import atomic_writer, keep_old, remove_leftovers, write_json, write_text

ROOT = Path(__file__).parents[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Files


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old, and longer than the new")
    with atomic_writer(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_the_old_content_stands_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_writer(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def stop_half_way():
        with atomic_writer(path) as file:
            file.write(b"half of the new")
            raise error

    with pytest.raises(error):
        stop_half_way()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ValueError, match="stop"), atomic_writer(tmp_path / "a.bin"):
        raise ValueError("stop")
    assert names(tmp_path) == []


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a/b/c.txt", "text")
    assert (tmp_path / "a/b/c.txt").read_text() == "text"


def test_a_name_without_a_folder_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("a.txt", "text")
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"]


def test_text_is_utf_8_and_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "Größe\n大小\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n大小\r\n".encode()


def test_json_reads_back_and_holds_no_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"mAP": 0.5, "per_class": {"Größe": None}, "layers": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"mAP": 0.5, "per_class": {"Größe": None}, "layers": [1, 2]}
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"mAP": float("nan")})
    assert json.loads(path.read_text())["mAP"] == 0.5


@pytest.mark.parametrize("links", [True, False])
def test_an_old_file_is_kept_under_the_next_free_number(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", cannot_link)
    path = tmp_path / "a.cfg"
    assert keep_old(path) is None
    for content, name in (("first", "a-1.cfg"), ("second", "a-2.cfg")):
        write_text(path, content)
        assert keep_old(path) == tmp_path / name
        assert (tmp_path / name).read_text() == content
        assert path.exists() == links  # a kill before the new file is in place leaves the old one
    write_text(path, "third")
    (tmp_path / "a-3.cfg").write_text("of another")
    assert keep_old(str(path)) == tmp_path / "a-4.cfg"
    assert (tmp_path / "a-3.cfg").read_text() == "of another"
    assert (tmp_path / "a-2.cfg").read_text() == "second"


def cannot_link(source, target):
    raise OSError(errno.EPERM, "this file system has no links")


WRITES = {
    "bytes": "file.write(bytes(10**6))",
    "torch": "torch.save({'a': torch.zeros(10**6)}, file)",
    "Pillow": "Image.effect_noise((999, 999), 99).save(file, format='PNG')",
    "NumPy": "np.savez(file, a=np.zeros(10**6))",
}


@pytest.mark.parametrize("save", WRITES)
@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_is_named_and_the_old_file_survives(tmp_path, save, old):
    path = tmp_path / "a.pth"
    if old:
        path.write_bytes(b"old")
    program = f"""
import resource, torch
import numpy as np
from PIL import Image
from utils.errors import InputError
from utils.files import atomic_writer
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_writer({str(path)!r}) as file:
        {WRITES[save]}
except InputError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    wanted = f"{path}: cannot be written: File too large"
    assert ended.stdout.strip() == wanted + ("; the file that was there before is unchanged" if old else "")
    assert names(tmp_path) == (["a.pth"] if old else [])
    assert not old or path.read_bytes() == b"old"


def test_another_error_while_writing_keeps_its_kind(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "a.bin"):
        (tmp_path / "none").read_bytes()
    with pytest.raises(RuntimeError, match="bug"), atomic_writer(tmp_path / "a.bin"):
        raise RuntimeError("bug")


def test_what_killed_processes_left_is_removed_once_it_is_old(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    files = {f".{ended.pid}.tmp.a.pth", f".{ended.pid}.tmp.b.pth", f".{os.getpid()}.tmp.c.pth", "d.tmp.pth"}
    for name in files:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f".{ended.pid}.tmp.b.pth").touch()
    remove_leftovers(tmp_path)
    assert set(names(tmp_path)) == files - {f".{ended.pid}.tmp.a.pth"}
    remove_leftovers(tmp_path / "none")


# Command lines


EMPTY = "measure.py: error: --name: is empty: give a value, or leave the option out (--help lists the options)\n"


def program(monkeypatch, main, *arguments):
    """Run ``main`` as a program with one option, --size; return its exit status."""
    parser = ArgumentParser("Measures.", prog="measure.py")
    parser.add_argument("--size", type=number(int, 1, 9), default=3, help="side, pixels")
    parser.add_argument("--mode", choices=["fast", "slow"], default="fast", help="how")
    parser.add_argument("--name", help="a name")
    monkeypatch.setattr(sys, "argv", ["measure.py", *arguments])
    try:
        run(parser, main)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_a_program_that_works_is_silent_on_stderr_and_ends_with_0(monkeypatch, capsys):
    assert program(monkeypatch, lambda args: print(args.size + 1), "--size", "4") == 0
    assert capsys.readouterr() == ("5\n", "")


def test_an_option_that_is_given_an_empty_text_is_refused(monkeypatch, capsys):
    assert program(monkeypatch, lambda args: print(args.name), "--name", "") == 2
    assert capsys.readouterr() == ("", EMPTY)


def fail_with_input_error(args):
    raise InputError("a.cfg:3: filters= is missing")


def fail_with_missing_file(args):
    Path("none/a.txt").read_bytes()


def fail_with_folder(args):
    Path().read_bytes()


def fail_with_plain_os_error(args):
    raise OSError("the disk is on fire")


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (fail_with_input_error, "a.cfg:3: filters= is missing"),
        (fail_with_missing_file, "none/a.txt: No such file or directory"),
        (fail_with_folder, ".: Is a directory"),
        (fail_with_plain_os_error, "the disk is on fire"),
    ],
)
def test_an_error_is_one_line_and_status_2(monkeypatch, capsys, main, message):
    assert program(monkeypatch, main) == 2
    assert capsys.readouterr() == ("", f"measure.py: error: {message}\n")


@pytest.mark.parametrize("main", [fail_with_input_error, fail_with_missing_file])
def test_debug_shows_where_an_error_comes_from(monkeypatch, main):
    with pytest.raises((InputError, FileNotFoundError)):
        program(monkeypatch, main, "--debug")


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        program(monkeypatch, lambda args: 1 / 0)


def interrupt(args):
    raise KeyboardInterrupt


def test_control_c_ends_without_a_traceback(monkeypatch, capsys):
    assert program(monkeypatch, interrupt) == 130
    assert capsys.readouterr().err.strip() == "measure.py: interrupted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0"], "argument --size: 0 is out of range: it must be >= 1 and <= 9"),
        (["--size", "10"], "argument --size: 10 is out of range"),
        (["--size", "1.5"], "argument --size: '1.5' is not an int"),
        (["--size", "big"], "argument --size: 'big' is not an int"),
        (["--size"], "argument --size: expected one argument"),
        (["--mode", "other"], "argument --mode: invalid choice: 'other' (choose from"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(monkeypatch, capsys, arguments, message):
    ran = []
    assert program(monkeypatch, ran.append, *arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n"), ran) == ("", 1, [])
    assert error.startswith("measure.py: error: ")
    assert message in error


def test_help_shows_the_defaults_that_there_are(monkeypatch, capsys):
    assert program(monkeypatch, fail_with_input_error, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "side, pixels (default: 3)" in text
    assert "how (default: fast)" in text
    assert "a name (default" not in text
    assert "show the traceback of an error (default" not in text


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (number(float, 0, 1), {"0": 0, "1": 1, ".5": 0.5, "1e-3": 0.001}, ["-0.1", "1.1", "nan", "inf", "x", ""]),
        (number(float, above=0), {"1e-9": 1e-9, "7": 7}, ["0", "-1", "nan", "inf", "-inf"]),
        (number(float, above=0, high=8), {"8": 8}, ["0", "8.1"]),
        (number(float), {"-5": -5}, ["nan", "inf", "-inf"]),
        (number(int, 1), {"1": 1, "1" + "0" * 400: 10**400}, ["0", "-1", "1.0", "1e3"]),
    ],
)
def test_numbers_keep_to_their_bounds(capsys, parse, good, bad):
    parser = ArgumentParser(None)
    parser.add_argument("--x", type=parse)
    for text, value in good.items():
        assert parser.parse_args([f"--x={text}"]).x == value
    for text in bad:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"--x={text}"])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_threshold_options_are_shares():
    parser = ArgumentParser(None)
    add_threshold_options(parser, conf_thres=0.001, nms_thres=0.5)
    args = parser.parse_args([])
    assert (args.conf_thres, args.nms_thres) == (0.001, 0.5)
    args = parser.parse_args(["--conf_thres", "0.25", "--nms_thres", "1"])
    assert (args.conf_thres, args.nms_thres) == (0.25, 1)
    for option in ("--conf_thres", "--nms_thres"):
        with pytest.raises(SystemExit):
            parser.parse_args([option, "1.5"])
