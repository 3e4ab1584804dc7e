"""data/converter.py: its command line. tests/data/converters has the formats."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.converter import get_args_parser
from tests.data.converters.scene import make_oxford

ROOT = Path(__file__).resolve().parents[2]


def test_program_without_arguments_converts_data_hand_dataset(tmp_path):
    make_oxford(tmp_path / "data")
    program = [sys.executable, ROOT / "data/converter.py"]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "data/train.txt").read_text() == "images/one.jpg\nimages/two.jpg\n"
    (tmp_path / "data/hand_dataset/test_dataset/test_data/annotations/three.mat").unlink()
    failed = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "three.jpg" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("words", [["vco"], ["voc"], ["--train_split", "x"], ["coco", "--source", "x"]])
def test_wrong_command_line_ends_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as caught:
        get_args_parser().parse_args(words)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
