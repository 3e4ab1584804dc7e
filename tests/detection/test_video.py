import json
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import detect
from models import Darknet
from tests.networks import lively, randomize
from tests.scene import make_project
from utils.detection.checkpoints import save_checkpoint
from utils.detection.video import AHEAD, ahead, open_video, video_writer
from utils.errors import InputError

SIZE = (96, 64)
ROOT = Path(__file__).parents[2]


def frames(count):
    """Grey images that become brighter."""
    return [Image.new("RGB", SIZE, (20 * k, 20 * k, 20 * k)) for k in range(count)]


def read(source):
    """All frames of a source."""
    return list(open_video(str(source)).frames(lambda: False))


def write_video(path, images, fps=10.0):
    with video_writer(Path(path), fps, SIZE) as write:
        for number, image in enumerate(images):
            write(number, image)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    model = lively(randomize(Darknet("config/yolov3-hand.cfg")))
    save_checkpoint("checkpoints/yolov3_ckpt.pth", model, names=["hand"], img_size=64)
    return tmp_path


def run(*words):
    detect.main(detect.get_args_parser().parse_args([*words, "--conf_thres", "0.3", "--n_cpu", "0"]))
    return json.loads(Path("output/detections.json").read_text())["frames" if "--video" in words else "images"]


def test_a_video_comes_back_frame_by_frame_in_order(tmp_path):
    write_video(tmp_path / "a.mp4", frames(10), fps=12.0)
    video = open_video(str(tmp_path / "a.mp4"))
    assert (video.camera, video.fps, video.size, video.name) == (None, 12.0, SIZE, "a")
    taken = list(video.frames(lambda: False))
    assert [number for number, _ in taken] == list(range(10))
    means = [np.asarray(frame).mean() for _, frame in taken]
    assert means == pytest.approx([20 * k for k in range(10)], abs=6)


@pytest.mark.parametrize("fps", [23.976, 59.94006, 66.667, 90.009, 119.917, 239.76, 999.996])
def test_a_video_of_any_frame_rate_can_be_written(tmp_path, fps):
    write_video(tmp_path / "a.mp4", frames(3), fps=fps)
    assert open_video(str(tmp_path / "a.mp4")).fps == pytest.approx(fps, abs=0.006)


def test_red_stays_red(tmp_path):
    write_video(tmp_path / "a.mp4", [Image.new("RGB", SIZE, (220, 20, 20))])
    ((_, frame),) = read(tmp_path / "a.mp4")
    red, green, blue = np.asarray(frame).mean(axis=(0, 1))
    assert red > 180
    assert max(green, blue) < 60


def test_an_image_stands_for_the_frames_that_were_skipped(tmp_path):
    with video_writer(tmp_path / "a.mp4", 10.0, SIZE) as write:
        for number, image in zip((0, 3, 3, 4), frames(4), strict=True):
            write(number, image)
    assert len(read(tmp_path / "a.mp4")) == 5


def test_a_failing_video_is_not_put_in_place(tmp_path):
    broken = Image.new("RGB", SIZE)
    broken.close()
    with pytest.raises(ValueError, match="closed"):
        write_video(tmp_path / "a.mp4", [*frames(1), broken])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [2_000, 50_000])
def test_a_video_that_the_disk_has_no_room_for_is_not_put_in_place(tmp_path, most):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    program = f"""
import resource
from pathlib import Path
from PIL import Image
from utils.detection.video import video_writer
from utils.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))
try:
    with video_writer(Path({str(path)!r}), 25, (640, 480)) as write:
        for number in range(10):
            write(number, Image.effect_noise((640, 480), 99).convert("RGB"))
except InputError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.fullmatch(f"{path}: cannot be written: .*; the file that was there before is unchanged\n", ended.stdout)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_each_frame_of_a_video_is_detected_like_an_image(project):
    write_video("in.mp4", [Image.open(path).resize(SIZE) for path in sorted(Path("data/images").iterdir())])
    for number, frame in read("in.mp4"):
        Path("frames").mkdir(exist_ok=True)
        frame.save(f"frames/{number}.png")
    wanted = [result["detections"] for result in run("--image_folder", "frames")]
    results = run("--video", "in.mp4")
    assert [result["frame"] for result in results] == list(range(len(wanted)))
    assert [result["detections"] for result in results] == wanted
    assert sum(map(len, wanted)) > 5
    drawn, plain = (read(path) for path in ("output/in.mp4", "in.mp4"))
    changed = [
        np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for (_, a), (_, b) in zip(drawn, plain, strict=True)
    ]
    assert min(changed) > 60  # a box is drawn on every frame


def test_a_video_is_not_written_over_itself(project):
    write_video("in.mp4", frames(2))
    before = Path("in.mp4").read_bytes()
    with pytest.raises(InputError, match=r"in\.mp4: would be overwritten"):
        run("--video", "in.mp4", "--output", ".")
    assert Path("in.mp4").read_bytes() == before


def test_a_video_that_was_cut_short_is_an_error(project):
    writer = cv2.VideoWriter("cut.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE)
    for image in frames(40):
        writer.write(np.asarray(image))
    writer.release()
    whole = open_video("cut.avi")
    assert len(list(whole.frames(lambda: False))) == 40
    assert whole.errors == []
    content = Path("cut.avi").read_bytes()
    Path("cut.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit) as error:
        run("--video", "cut.avi")
    assert error.value.code == 1
    (problem,) = json.loads(Path("output/detections.json").read_text())["errors"]
    assert problem["error"].startswith("is damaged: it ends after")


def test_a_folder_of_frames_is_a_video_in_the_order_of_its_numbers(project):
    Path("frames").mkdir()
    for number, image in zip((9, 10, 11, 100), frames(4), strict=True):
        image.save(f"frames/{number}.png")
    Path("frames/10.png").write_text("damaged")
    Path("frames/._9.png").write_text("of a Mac")
    video = open_video("frames")
    shown = [(number, round(np.asarray(image).mean())) for number, image in video.frames(lambda: False)]
    assert shown == [(0, 0), (2, 40), (3, 60)]
    assert [error["image"] for error in video.errors] == ["frames/10.png"]
    assert (video.name, video.size) == ("frames", SIZE)


def test_frames_of_other_sizes_are_detected_in_their_own_and_written_in_the_first(project):
    Path("frames").mkdir()
    for number, path in enumerate(sorted(Path("data/images").iterdir())[:2]):
        Image.open(path).resize((64 * (number + 1), 64)).save(f"frames/{number}.png")
    results = run("--video", "frames")
    assert results == [
        {"frame": number, "detections": result["detections"]}
        for number, result in enumerate(run("--image_folder", "frames"))
    ]
    assert [image.size for _, image in read("output/frames.mp4")] == [(64, 64)] * 2


def test_a_file_is_read_ahead_and_keeps_every_frame():
    started = []
    source = (started.append(k) or (k, None) for k in range(3 * AHEAD))
    reader = ahead(source)
    assert next(reader) == (0, None)
    time.sleep(0.2)
    assert AHEAD <= len(started) <= AHEAD + 2
    assert [number for number, _ in reader] == list(range(1, 3 * AHEAD))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.mp4", "no such file or folder"),
        ("text.mp4", "cannot be read as a video"),
        ("97", "no such camera"),
        ("empty", "no image in this folder"),
        ("damaged", "no frame can be read: damaged/a.png"),
    ],
)
def test_what_is_no_video_is_one_line_and_no_file(project, source, message):
    Path("text.mp4").write_text("not a video")
    for folder in ("empty", "damaged"):
        Path(folder).mkdir()
    Path("damaged/a.png").write_text("damaged")
    with pytest.raises(InputError, match=f"--video {source}: .*{message}"):
        run("--video", source)
    assert not Path("output").exists()
