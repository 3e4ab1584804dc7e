"""What users get wrong: one line that says what and where, status 2, and no file touched."""

import subprocess
import sys
from pathlib import Path

import pytest

import detect
import export
import report
import test
import test_prune
import train
from config.networks import create_cfg
from models import Darknet
from tests.scene import make_project
from utils.darknet.cfg import format_cfg
from utils.detection.checkpoints import save_checkpoint
from utils.errors import InputError
from utils.pruning import proof

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "train": train,
    "test": test,
    "test_prune": test_prune,
    "detect": detect,
    "export": export,
    "report": report,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with weights that fit its cfg, and the outputs of an earlier prune."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    model = Darknet("config/yolov3-hand.cfg")
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64, strategy="normal")
    model.save_darknet_weights("checkpoints/yolov3.weights")
    Path("config/prune_yolov3-hand.cfg").write_text("an earlier result\n")
    Path("checkpoints/prune_yolov3_ckpt.pth").write_text("an earlier result\n")
    return tmp_path


def edit(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))


def snapshot(root):
    """Every file but what the check of the images remembers."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.match(".*.checked.json"))
    return {path: path.read_bytes() for path in files}


def refused(program, *words):
    """The one line that a program ends in; whatever it was given, it leaves every file as it was."""
    before = snapshot(Path.cwd())
    parser = PROGRAMS[program].get_args_parser()
    with pytest.raises(InputError) as error:
        PROGRAMS[program].main(parser.parse_args([*words, "--n_cpu", "0"]))
    assert snapshot(Path.cwd()) == before
    message = str(error.value)
    assert "\n" not in message
    return message


CFG = "config/yolov3-hand.cfg"
WEIGHTS = ["--weights_path", "checkpoints/yolov3_ckpt.pth"]
IMAGES = ["--image_folder", "data/images"]
LABEL = "data/labels/train_3.txt"


@pytest.mark.parametrize("program", ["train", "test", "test_prune"])
@pytest.mark.parametrize(
    ("path", "old", "new", "words"),
    [
        (CFG, "filters=8\n", "", ["yolov3-hand.cfg:21: layer 0 [convolutional]", "filters= is missing"]),
        (CFG, "[maxpool]", "[mixpool]", ["layer 1 [mixpool]", "not supported"]),
        (CFG, "layers=-1,8", "layers=-1,80", ["[route]", "80", "before it"]),
        ("config/oxfordhand.data", "data/valid.txt", "data/nowhere.txt", ["nowhere.txt", "no such list of images"]),
        ("data/valid.txt", "images/valid_1.png", "images/gone.png", ["valid.txt:2", "no image images/gone.png"]),
        ("data/labels/valid_0.txt", "0 ", "7 ", ["valid_0.txt:1", "class 7", "0 to 0"]),
    ],
)
def test_bad_files_are_named_by_every_program_that_reads_them(project, program, path, old, new, words):
    edit(path, old, new)
    message = refused(program, "--model_def", CFG)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", ["4 values", "class cx cy w h"]),
        ("7 0.5 0.5 0.2 0.2", ["class 7", "0 to 0"]),
        ("0 0.95 0.5 0.2 0.2", ["passes the border", "0.05"]),
        ("0 nan 0.5 0.2 0.2", ["not finite"]),
        ("0 0.5 0.5 0 0.2", ["no area"]),
        ("hand 0.5 0.5 0.2 0.2", ["not five numbers"]),
    ],
)
def test_bad_labels_are_named_by_file_and_line(project, line, words):
    Path(LABEL).write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    message = refused("train", "--strict")
    for word in [f"{LABEL}:2", *words]:
        assert word in message


def test_a_truncated_image_is_named_before_the_first_step(project):
    image = Path("data/images/train_2.png")
    image.write_bytes(image.read_bytes()[:2000])
    message = refused("train")
    assert "data/images/train_2.png" in message
    assert "cannot be read" in message


@pytest.mark.parametrize("program", ["test", "test_prune", "detect"])
def test_a_checkpoint_of_another_cfg_is_refused(project, program):
    Path(CFG).write_text(format_cfg(create_cfg("v3-tiny", 1, 64, width=0.5)))
    folder = ["--image_folder", "data/images"] if program == "detect" else []
    message = refused(program, "--model_def", CFG, *folder)
    assert "yolov3_ckpt.pth: belongs to another cfg" in message
    assert f"--model_def {CFG}:33: layer 2 [convolutional]: filters=16, but filters=8 in the weights" in message


@pytest.mark.parametrize("program", ["test", "detect"])
def test_a_checkpoint_needs_no_cfg_and_weights_without_one_are_refused(project, program, capsys):
    Path(CFG).unlink()
    run = PROGRAMS[program]
    options = ["--n_cpu", "0", *(["--image_folder", "data/images"] if program == "detect" else [])]
    run.main(run.get_args_parser().parse_args(options))
    assert "images" in capsys.readouterr().out
    message = refused(program, "--weights_path", "checkpoints/yolov3.weights")
    assert message.startswith("checkpoints/yolov3.weights: a Darknet weights file holds no cfg")


@pytest.mark.parametrize("program", ["train", "test", "test_prune"])
def test_a_weights_file_one_float_short_names_the_layer(project, program):
    weights = Path("checkpoints/yolov3.weights")
    weights.write_bytes(weights.read_bytes()[:-4])
    option = "-pre" if program == "train" else "--weights_path"
    message = refused(program, "--model_def", CFG, option, str(weights))
    assert "yolov3.weights: too short: layer 22" in message


def test_another_number_of_classes_than_the_data_set_is_refused(project):
    Path(CFG).write_text(format_cfg(create_cfg("v3-tiny", 3, 64, width=0.25)))
    assert "classes=3" in refused("train")


@pytest.mark.parametrize(
    ("program", "words", "reason"),
    [
        ("test_prune.py", ["--percent", "1.5"], "--percent: 1.5 is out of range"),
        ("detect.py", ["--image_folder", "nowhere"], "nowhere: no image there"),
        ("test.py", ["--iou_thres", "x"], "'x' is not a number"),
        ("train.py", ["--learning", "1"], "--learning"),
    ],
)
def test_programs_end_in_one_line_with_status_2(project, program, words, reason):
    before = snapshot(project)
    ended = subprocess.run([sys.executable, ROOT / program, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert reason in lines[0]
    assert lines[0].startswith(f"{program}: error: ")
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("program", "words", "reason"),
    [
        ("train", ["--img_size", "70"], "multiple of 32: 64"),
        ("train", ["--data_config", "nowhere.data"], "nowhere.data: there is no such"),
        ("test_prune", ["--weights_path", "nowhere.pth"], "nowhere.pth: there is no such weights file"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_named(project, program, words, reason):
    assert reason in refused(program, *words)


def test_debug_shows_the_traceback(project):
    words = [sys.executable, ROOT / "detect.py", "--image_folder", "nowhere", "--debug"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_a_model_that_was_never_trained_sparse_is_noticed(project):
    assert "train with -sr" in refused("test_prune", "--percent", "0.3")


def test_a_proof_that_fails_writes_nothing(project, monkeypatch):
    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    assert "nothing was written" in refused("test_prune", "--percent", "0.3", "--force")


def test_files_that_do_not_read_back_are_not_put_in_place(project, monkeypatch):
    original = proof.format_cfg
    monkeypatch.setattr(proof, "format_cfg", lambda blocks: original(blocks).replace("leaky", "relu", 1))
    monkeypatch.setattr(test_prune, "save_figure", lambda figure, path: None)
    assert "read back" in refused("test_prune", "--percent", "0.3", "--force")


def test_an_image_of_the_same_name_does_not_overwrite_the_other(project):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "same.png").write_bytes(Path("data/images/train_0.png").read_bytes())
    words = ["--image_folder", "*/same.png", "--output", "out", "--n_cpu", "0"]
    detect.main(detect.get_args_parser().parse_args(words))
    assert len(list(Path("out").glob("*.png"))) == 2


def test_no_input_of_detect_is_overwritten_by_the_output_of_another(project):
    for name in ("pics/a.png", "other/a.png"):
        Path(name).parent.mkdir()
        Path(name).write_bytes(Path("data/images/train_0.png").read_bytes())
    message = refused("detect", "--image_folder", "*/a.png", "--output", "pics")
    assert message == "pics/a.png: would be overwritten, but is an input: give another --output or --json"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (detect, ["--weights_path", "checkpoints/yolov3_ckpt.pth", "--json", "./checkpoints/yolov3_ckpt.pth"]),
        (test, ["--data_config", "config/oxfordhand.data", "--json", "config/oxfordhand.data"]),
        (test_prune, ["--json", "checkpoints/yolov3_ckpt.pth"]),
        (export, ["--check", "--model_def", "config/yolov3-hand.cfg", "--json", "config/yolov3-hand.cfg"]),
        (report, ["--runs", "base", "checkpoints/yolov3_ckpt.pth", "--output", "checkpoints/yolov3_ckpt.pth"]),
    ],
)
def test_no_file_that_an_option_names_is_overwritten(project, capsys, program, words):
    with pytest.raises(SystemExit) as ended:
        program.get_args_parser().parse_args(words)
    assert ended.value.code == 2
    assert f"{words[-2]} {words[-1]}: would be overwritten, but is --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words", "target"),
    [
        ("report", ["--runs", "yolov3", "--output"], "checkpoints/yolov3_ckpt.pth"),
        ("report", ["--runs", "yolov3", "--output"], "data/valid.txt"),
        ("test", ["--json"], "data/valid.txt"),
        ("test", ["--json"], "data/hand.names"),
        ("test_prune", ["--json"], "data/train.txt"),
        (
            "export",
            ["--check", *WEIGHTS, "--data_config", "config/oxfordhand.data", *IMAGES, "--json"],
            "data/train.txt",
        ),
        ("export", ["--check", *WEIGHTS, *IMAGES, "--json"], "data/images/train_0.png"),
    ],
)
def test_no_file_that_an_input_names_is_overwritten(project, program, words, target):
    message = refused(program, *words, target)
    assert message == f"{target}: would be overwritten, but is an input: give another --output or --json"


def test_no_input_of_detect_is_overwritten_by_the_detections(project):
    before = Path("data/images/train_0.png").read_bytes()
    message = refused("detect", "--image_folder", "data/images", "--json", "data/images/train_0.png")
    assert message.startswith("data/images/train_0.png: would be overwritten, but is an input")
    assert Path("data/images/train_0.png").read_bytes() == before
    assert not Path("output").exists() or not list(Path("output").iterdir())
