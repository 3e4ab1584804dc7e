from pathlib import Path

import pytest

from tests import docs_check

ROOT = docs_check.ROOT


def problems(tmp_path: Path, text: str) -> str:
    page = tmp_path / "page.md"
    page.write_text(text)
    return "\n".join(docs_check.page_problems(page, tmp_path))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py --epoch 3", "--epoch"),
        ("python train.py --model_def config/missing.cfg", "config/missing.cfg does not exist"),
        ("python missing.py", "missing.py does not exist"),
        ("torchrun --nproc_per_node=2 -- train.py --epochs x", "'x' is not an int"),
        ("python test_prune.py --percent 0.5 --sweep", "not allowed with"),
        ("make nothing", "make has no target nothing"),
        ("pip install -r missing.txt", "missing.txt does not exist"),
        ("python train.py $DATA", "$DATA is not defined"),
        ("conda activate", "unknown command conda"),
    ],
)
def test_commands_that_cannot_run_are_reported(command, expected):
    assert expected in "\n".join(docs_check.command_problems(command, ROOT))


@pytest.mark.parametrize(
    "command",
    [
        "python train.py -sr --s 0.01 -pre checkpoints/baseline_yolov3_ckpt.pth",
        "OMP_NUM_THREADS=1 python detect.py --weights_path checkpoints/a.onnx --image_folder my_images",
        "torchrun --nproc_per_node=2 -- train.py --model_def config/yolov3-hand.cfg",
        'make bench ROWS="--only nms"',
        "bash data/download_oxford.sh",
    ],
)
def test_commands_that_run_are_not_reported(command):
    assert list(docs_check.command_problems(command, ROOT)) == []


def test_commands_are_joined_and_variables_put_in():
    block = (
        'DATA="--data_config my.data"  # where\n\npython train.py $DATA \\\n    --epochs 3  # few\nmake a && make b\n'
    )
    assert list(docs_check.commands(block)) == ["python train.py --data_config my.data --epochs 3", "make a", "make b"]


def test_only_shell_blocks_are_commands():
    assert list(docs_check.fences("```sh\nmake a\n```\n\n```ini\nclasses=1\n```\n")) == [(1, "make a\n")]


def test_links_headings_and_files_must_exist(tmp_path):
    (tmp_path / "other.md").write_text("# A title, and `code`?\n")
    text = (
        "[a](other.md#a-title-and-code) [b](other.md#b) [c](none.png) [d](https://a.b/c) `utils/none.py` `runs/x.png`"
    )
    assert problems(tmp_path, text).splitlines() == [
        "page.md: link other.md#b: no such heading",
        "page.md: link none.png: no such file",
        "page.md: `utils/none.py`: no such file",
    ]


def test_the_readme_has_a_size(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("\n" * docs_check.LINES)
    assert list(docs_check.size_problems(readme)) == []
    readme.write_text("x" * 121 + "\n" * (docs_check.LINES + 1))
    assert list(docs_check.size_problems(readme)) == [
        "README.md: 131 lines, 130 are allowed",
        "README.md:1: 121 columns, 120 are allowed",
    ]


def test_the_map_names_rooms_and_modules_that_exist(tmp_path):
    for path in ("utils/a/__init__.py", "utils/a/one.py", "utils/b/__init__.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    text = "| room | what |\n| --- | --- |\n| `utils/a/` | `one`, `two` |\n| | `three` |\n| programs | `four` |\n"
    assert list(docs_check.map_problems(text, tmp_path)) == [
        "README.md: map of the rooms: utils/a/two.py does not exist",
        "README.md: map of the rooms: utils/a/three.py does not exist",
        "README.md: map of the rooms: utils/b/ is missing",
    ]


def test_options_and_defaults_must_be_those_of_the_programs():
    text = (ROOT / "docs" / "reference.md").read_text()
    before = set(docs_check.option_problems(text))
    changed = text.replace("| `--rounds` | 9 |", "| `--rounds` | 8 |").replace("`--calibration`", "`--calibrate`")
    assert set(docs_check.option_problems(changed)) - before == {
        "docs/reference.md: benchmark.py --rounds: the default is 9, not 8",
        "docs/reference.md: export.py --calibration is not listed",
        "docs/reference.md: export.py --calibrate is listed, and does not exist",
    }
