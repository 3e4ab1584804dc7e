"""detect.py: what it leaves behind when images are unreadable, and when it is stopped, and what it never overwrites."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

import detect
from models import Darknet
from tests.networks import lively, randomize
from tests.scene import make_project
from tests.streams import HttpCamera
from utils.detection import detections_file, video
from utils.detection.camera import Patience
from utils.detection.checkpoints import save_checkpoint
from utils.detection.detections_file import DetectionsFile
from utils.detection.video import open_video
from utils.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = Path("output/detections.json")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    model = lively(randomize(Darknet("config/yolov3-hand.cfg")))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64)
    return tmp_path


def run(*words):
    detect.main(detect.get_args_parser().parse_args([*words, "--n_cpu", "0"]))


def start(*words):
    return subprocess.Popen(
        [sys.executable, ROOT / "detect.py", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.05)


@pytest.mark.parametrize("options", [[], ["--batch_size", "4"], ["--n_cpu", "2"]])
def test_unreadable_images_are_left_out_counted_and_listed(project, capsys, options):
    run("--image_folder", "data/images", "--output", "whole", *options)
    whole = json.loads(Path("whole/detections.json").read_text())
    assert whole["errors"] == []
    damaged = [Path("data/images/train_2.png"), Path("data/images/valid_0.png")]
    damaged[0].write_bytes(damaged[0].read_bytes()[:-200])
    damaged[1].write_text("no image")
    Path("data/images/._train_0.png").write_bytes(b"\0\5\x16\7")
    Path("data/images/readme.txt").write_text("no image")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run("--image_folder", "data/images", *options)
    assert ended.value.code == 1
    results = json.loads(RESULTS.read_text())
    assert [error["image"] for error in results["errors"]] == [str(path) for path in damaged]
    assert all("cannot be read as an image" in error["error"] for error in results["errors"])
    kept = [result for result in whole["images"] if Path(result["image"]) not in damaged]
    assert len(kept) == 7
    assert results["images"] == [result | {"output": result["output"].replace("whole", "output")} for result in kept]
    assert {path.name for path in Path("output").iterdir()} == {Path(r["output"]).name for r in kept} | {RESULTS.name}
    said = capsys.readouterr()
    assert "7 images" in said.out
    lines = said.err.strip().splitlines()[-3:]
    assert lines[0].startswith("error: data/images/train_2.png: cannot be read")
    assert lines[2] == "2 failed: output/detections.json lists them under errors"


def test_a_folder_in_which_nothing_is_readable_still_ends_in_a_count(project, capsys):
    Path("in").mkdir()
    for number in range(12):
        Path(f"in/{number:02d}.jpg").write_text("no image")
    with pytest.raises(SystemExit) as ended:
        run("--image_folder", "in")
    assert ended.value.code == 1
    results = json.loads(RESULTS.read_text())
    assert (results["images"], len(results["errors"])) == ([], 12)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 11  # the first ten, and the count


def test_what_is_refused_leaves_an_earlier_file_of_detections_alone(project):
    run("--image_folder", "data/images")
    before = RESULTS.read_bytes()
    for words in (["--image_folder", "nowhere"], ["--video", "nowhere.mp4"]):
        with pytest.raises(InputError):
            run(*words)
    assert RESULTS.read_bytes() == before


def test_the_file_is_whole_at_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(detections_file, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(detections_file, "SHARE", 0)
    path = tmp_path / "new/detections.json"
    with DetectionsFile(path, "images") as file:
        for number in range(3):
            file.add({"image": f"{number}"})
            assert len(json.loads(path.read_text())["images"]) == number + 1
        file.fail({"image": "x", "error": "y"})
        assert json.loads(path.read_text())["errors"] == [{"image": "x", "error": "y"}]
    assert json.loads(path.read_text())["images"] == [{"image": "0"}, {"image": "1"}, {"image": "2"}]


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_obstacle(project, closed):
    words = [sys.executable, str(ROOT / "detect.py"), "--image_folder", "data/images", "--n_cpu", "0"]
    ended = subprocess.run(f"{shlex.join(words)} {closed}", shell=True, check=False, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(RESULTS.read_text())["images"]) == 9


def fail_after(records, path):
    with DetectionsFile(path, "images") as file:
        for number in range(records):
            file.add({"image": f"{number}"})
        raise OSError("gone")


def test_what_was_done_is_written_when_an_error_ends_the_work(tmp_path):
    path = tmp_path / "detections.json"
    for records in (0, 1):
        with pytest.raises(OSError, match="gone"):
            fail_after(records, path)
        assert path.exists() == bool(records)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_keeps_the_images_until_then(project, number, status):
    Path("in").mkdir()
    for name in range(3000):
        os.link("data/images/train_0.png", f"in/{name:04d}.png")
    process = start("--image_folder", "in", "--n_cpu", "1")
    wait_for(lambda: len(list(Path("output").glob("*.png"))) > 10)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert said.strip().splitlines()[-1].startswith(f"detect.py: stopped by {signal.Signals(number).name}")
    images = json.loads(RESULTS.read_text())["images"]
    assert 10 < len(images) < 3000
    assert {Path(image["output"]) for image in images} == set(Path("output").glob("*.png"))
    for image in images:
        Image.open(image["output"]).load()


def test_a_camera_is_ended_by_a_signal_and_its_files_are_whole(project):
    pytest.importorskip("cv2")
    with HttpCamera() as server:
        process = start("--video", server.url, "--conf_thres", "0.1")
        wait_for(lambda: list(Path("output").glob(".*.mp4")))  # the file that is being written
        sent = server.sent
        wait_for(lambda: server.sent > sent + 25)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    results = json.loads(RESULTS.read_text())
    numbers = [frame["frame"] for frame in results["frames"]]
    assert numbers == sorted(set(numbers))
    assert results["errors"] == []
    assert "dropped" in said
    written = list(open_video("output/127.0.0.1.mp4").frames(lambda: False))
    assert len(written) == numbers[-1] + 1 > 10


def test_a_video_that_is_stopped_is_whole_until_there(project):
    pytest.importorskip("cv2")
    Path("frames").mkdir()
    for name in range(3000):
        os.link("data/images/train_0.png", f"frames/{name:04d}.png")
    process = start("--video", "frames")
    wait_for(lambda: list(Path("output").glob(".*.mp4")))
    time.sleep(0.5)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "stopped by SIGTERM" in said.strip().splitlines()[-1]
    count = len(json.loads(RESULTS.read_text())["frames"])
    assert 0 < count < 3000
    assert len(list(open_video("output/frames.mp4").frames(lambda: False))) == count


def test_a_camera_that_is_given_up_is_an_error_and_its_files_are_whole(project, monkeypatch, capsys):
    pytest.importorskip("cv2")
    monkeypatch.setattr(video, "Patience", lambda: Patience(connect=3, frame=0.3, outage=1.0, delay=0.1))
    with HttpCamera() as server:
        threading.Timer(1.5, server.switch_off).start()
        with pytest.raises(SystemExit) as ended:
            run("--video", server.url)
    assert ended.value.code == 1
    results = json.loads(RESULTS.read_text())
    assert results["errors"] == [
        {"video": f"http://{server.address}", "error": "no frame for 1 seconds: given up"},
    ]
    assert len(results["frames"]) > 5
    assert len(list(open_video("output/127.0.0.1.mp4").frames(lambda: False))) == results["frames"][-1]["frame"] + 1
    assert "error: http://127.0.0.1" in capsys.readouterr().err


def test_no_two_drawn_images_have_one_name():
    paths = [Path(name) for name in ("x/a.jpg", "y/a.jpg", "z/00001_a.jpg", "a.png", "A.png", "b.gif")]
    names = detect.output_names(paths)
    assert names[0] == "a.jpg"
    assert names[-1] == "b.jpg"
    stems = [Path(name).stem.lower() for name in names]
    assert len(set(stems)) == len(names)


def test_an_image_is_not_drawn_over_itself(project):
    before = {path: path.read_bytes() for path in (project / "data/images").iterdir()}
    with pytest.raises(InputError, match=r"data/images/train_\d\.png: would be overwritten, but is an input"):
        run("--image_folder", "data/images", "--output", "data/images")
    assert {path: path.read_bytes() for path in (project / "data/images").iterdir()} == before
