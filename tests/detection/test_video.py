import itertools
import json
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
from utils.detection.video import AHEAD, Video, ahead, newest, video_writer
from utils.errors import InputError

SIZE = (96, 64)


def frames(count):
    """Grey images that become brighter."""
    return [Image.new("RGB", SIZE, (20 * k, 20 * k, 20 * k)) for k in range(count)]


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
    return json.loads(Path("output/detections.json").read_text())


def test_a_video_comes_back_frame_by_frame_in_order(tmp_path):
    write_video(tmp_path / "a.mp4", frames(10), fps=12.0)
    video = Video(str(tmp_path / "a.mp4"))
    assert (video.live, video.fps, video.size) == (False, 12.0, SIZE)
    read = list(video)
    assert [number for number, _ in read] == list(range(10))
    means = [np.asarray(frame).mean() for _, frame in read]
    assert means == pytest.approx([20 * k for k in range(10)], abs=6)


def test_red_stays_red(tmp_path):
    write_video(tmp_path / "a.mp4", [Image.new("RGB", SIZE, (220, 20, 20))])
    ((_, frame),) = Video(str(tmp_path / "a.mp4"))
    red, green, blue = np.asarray(frame).mean(axis=(0, 1))
    assert red > 180
    assert max(green, blue) < 60


def test_an_image_stands_for_the_frames_that_were_skipped(tmp_path):
    with video_writer(tmp_path / "a.mp4", 10.0, SIZE) as write:
        for number, image in zip((0, 3, 3, 4), frames(4), strict=True):
            write(number, image)
    assert len(list(Video(str(tmp_path / "a.mp4")))) == 5


def test_a_failing_video_is_not_put_in_place(tmp_path):
    broken = Image.new("RGB", SIZE)
    broken.close()
    with pytest.raises(ValueError, match="closed"):
        write_video(tmp_path / "a.mp4", [*frames(1), broken])
    assert list(tmp_path.iterdir()) == []


def test_each_frame_of_a_video_is_detected_like_an_image(project):
    write_video("in.mp4", [Image.open(path).resize(SIZE) for path in sorted(Path("data/images").iterdir())])
    for number, frame in Video("in.mp4"):
        Path("frames").mkdir(exist_ok=True)
        frame.save(f"frames/{number}.png")
    wanted = [result["detections"] for result in run("--image_folder", "frames")]
    results = run("--video", "in.mp4")
    assert [result["frame"] for result in results] == list(range(len(wanted)))
    assert [result["detections"] for result in results] == wanted
    assert sum(map(len, wanted)) > 5
    drawn, plain = (list(Video(path)) for path in ("output/in.mp4", "in.mp4"))
    changed = [
        np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for (_, a), (_, b) in zip(drawn, plain, strict=True)
    ]
    assert min(changed) > 60  # a box is drawn on every frame


def test_a_video_is_not_written_over_itself(project):
    write_video("in.mp4", frames(2))
    before = Path("in.mp4").read_bytes()
    with pytest.raises(InputError, match=r"would overwrite in.mp4"):
        run("--video", "in.mp4", "--output", ".")
    assert Path("in.mp4").read_bytes() == before


class Camera:
    """A capture that gives ``count`` frames, one every ``wait`` seconds."""

    def __init__(self, count, wait):
        self.left, self.wait = count, wait

    def isOpened(self):
        return True

    def get(self, prop):
        return {cv2.CAP_PROP_FRAME_WIDTH: SIZE[0], cv2.CAP_PROP_FRAME_HEIGHT: SIZE[1]}.get(prop, 0.0)

    def read(self):
        time.sleep(self.wait)
        self.left -= 1
        return self.left >= 0, np.zeros((SIZE[1], SIZE[0], 3), np.uint8)


def test_a_camera_gives_numbers_by_the_clock_and_an_ordinary_video(project, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", lambda source: Camera(5, 0.1) if source == 0 else None)
        results = run("--video", "0")
    numbers = [result["frame"] for result in results]
    assert numbers == sorted(numbers)
    assert 2 <= numbers[0] <= 20  # 0.1 seconds of 25 frames each
    assert numbers[-1] >= 10
    assert len(list(Video("output/camera0.mp4"))) == numbers[-1] + 1


def test_a_camera_ends_with_ctrl_c_and_its_video_is_whole(project, monkeypatch):
    calls = itertools.count()
    original = detect.to_square

    def interrupted(*words):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*words)

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", lambda source: Camera(1000, 0.02))
        patch.setattr(detect, "to_square", interrupted)
        assert len(run("--video", "0")) == 3
    assert len(list(Video("output/camera0.mp4"))) >= 3


def test_a_file_is_read_ahead_and_keeps_every_frame():
    started = []
    source = (started.append(k) or (k, None) for k in range(3 * AHEAD))
    reader = ahead(source)
    assert next(reader) == (0, None)
    time.sleep(0.2)
    assert AHEAD <= len(started) <= AHEAD + 2
    assert [number for number, _ in reader] == list(range(1, 3 * AHEAD))


def test_a_slow_reader_of_a_camera_gets_the_newest_frame():
    def source():
        for k in range(20):
            time.sleep(0.01)
            yield k, None

    seen = []
    for number, _ in newest(source()):
        seen.append(number)
        time.sleep(0.06)
    assert seen == sorted(set(seen))
    assert len(seen) < 10
    assert seen[-1] == 19


def test_what_goes_wrong_with_a_camera_reaches_the_reader():
    def source():
        yield 0, None
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(newest(source()))


@pytest.mark.parametrize(
    ("source", "message"),
    [("none.mp4", "no such file"), ("text.mp4", "cannot be read as a video"), ("97", "no such camera")],
)
def test_what_is_no_video_is_one_line_and_no_file(project, source, message):
    Path("text.mp4").write_text("not a video")
    with pytest.raises(InputError, match=f"--video {source}: .*{message}"):
        run("--video", source)
    assert not Path("output").exists()
