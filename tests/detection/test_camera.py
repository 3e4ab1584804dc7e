"""Cameras, tested with real streams on loopback: MJPEG over HTTP, and RTSP."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from tests.streams import FRAMES_PER_SECOND, PERIOD, SIZE, HttpCamera, RtspCamera, frame_number
from utils.detection.camera import Camera, FrameClock, Patience, host_name, is_url, safe_url
from utils.detection.video import open_video
from utils.errors import InputError

pytest.importorskip("cv2")
HASTY = Patience(connect=3, frame=0.4, outage=5, delay=0.1, longest_delay=0.4)
STREAMS = pytest.mark.parametrize("kind", [HttpCamera, RtspCamera], ids=["http", "rtsp"])


def never():
    return False


def take(video, count):
    """The next ``count`` frames."""
    frames = video.frames(never)
    taken = [next(frames) for _ in range(count)]
    frames.close()
    return taken


@STREAMS
def test_the_frames_of_a_stream_come_in_order(kind):
    with kind() as server:
        video = open_video(server.url, HASTY)
        assert (video.fps, video.size, video.name) == (FRAMES_PER_SECOND, SIZE, "127.0.0.1")
        frames = take(video, 8)
    numbers = [number for number, _ in frames]
    assert numbers == sorted(numbers)
    shown = [frame_number(image) for _, image in frames]
    steps = [(after - before) % PERIOD for before, after in pairwise(shown)]
    assert all(1 <= step < PERIOD / 2 for step in steps)


@STREAMS
def test_a_slow_reader_gets_the_newest_frame_and_the_others_are_counted(kind):
    with kind() as server:
        video = open_video(server.url, HASTY)
        frames = video.frames(never)
        next(frames)
        for _ in range(3):
            time.sleep(0.4)
            _, image = next(frames)
            late = (server.sent - frame_number(image)) % PERIOD
            assert late <= 5  # frames; it was asleep for ten, and a queue would make it later each time
        frames.close()
        assert video.camera.dropped >= 20
        assert not video.errors


@STREAMS
def test_a_stream_that_goes_away_and_comes_back_goes_on(kind, capsys):
    with kind() as server:
        video = open_video(server.url, HASTY)
        frames = video.frames(never)
        before, _ = next(frames)
        server.switch_off()
        threading.Timer(1.0, server.switch_on).start()
        connections = len(server.requests)
        while len(server.requests) == connections:
            after, _ = next(frames)
        for _ in range(3):
            after, _ = next(frames)
        frames.close()
    assert video.camera.outages == 1
    assert before < after < 2 * FRAMES_PER_SECOND  # the second without frames is no part of the video
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"{safe_url(server.url)}: no frame comes: connecting again")
    assert "frames again, after" in said[1]


@STREAMS
def test_a_stream_that_stalls_is_connected_to_again(kind):
    with kind() as server:
        video = open_video(server.url, HASTY)
        frames = video.frames(never)
        next(frames)
        server.stalled.set()
        threading.Timer(1.0, server.stalled.clear).start()
        while not video.camera.outages or server.stalled.is_set():
            next(frames)
        next(frames)
        frames.close()
        assert video.camera.outages == 1
        assert not video.errors


@STREAMS
def test_a_stream_that_stays_away_is_given_up_in_a_line(kind, capsys):
    with kind() as server:
        video = open_video(server.url, Patience(connect=1, frame=0.3, outage=1.0, delay=0.1, longest_delay=0.2))
        frames = video.frames(never)
        next(frames)
        server.switch_off()
        began = time.monotonic()
        for _ in frames:
            pass
        assert 0.9 < time.monotonic() - began < 5
        assert video.errors == [{"video": safe_url(server.url), "error": "no frame for 1 seconds: given up"}]
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_numbers_follow_the_clock_and_never_repeat(monkeypatch):
    now = 50.0  # moved by hand, so that a busy machine does not move it
    monkeypatch.setattr("utils.detection.camera.time.monotonic", lambda: now)
    clock = FrameClock(100.0)
    burst = [clock.next_number() for _ in range(150)]
    assert burst == [*range(101), *[None] * 49]  # a second ahead, and not more
    clock = FrameClock(100.0)
    assert clock.next_number() == 0
    now += 0.2
    assert clock.next_number() == 20
    now += 0.2
    assert clock.leave_out_gap() == pytest.approx(0.2)
    assert clock.next_number() == 21


def test_attempts_to_connect_grow_apart():
    attempts = []

    class Gone:
        def read(self):
            return False, None

        def release(self):
            pass

    def connect():
        attempts.append(time.monotonic())
        return Gone()

    camera = Camera("c", connect, Gone(), 25.0, Patience(outage=1.0, delay=0.05, longest_delay=0.3))
    assert list(camera.frames(never)) == []
    waits = np.diff(attempts)
    assert 4 <= len(attempts) <= 6  # at about 0.05, 0.15, 0.35, 0.65, 0.95
    assert waits[0] < 0.2
    assert all(0.25 < wait < 0.5 for wait in waits[2:])
    assert camera.outages == 1


def test_a_wait_for_a_frame_ends_when_it_is_asked_to():
    with HttpCamera() as server:
        video = open_video(server.url, HASTY)
        server.stalled.set()
        asked = threading.Event()
        threading.Timer(0.3, asked.set).start()
        began = time.monotonic()
        for _ in video.frames(asked.is_set):
            pass
        assert time.monotonic() - began < 3
        assert not video.errors


def test_what_goes_wrong_with_a_camera_reaches_the_reader():
    class Unplugged:
        def read(self):
            raise OSError("unplugged")

        def release(self):
            pass

    with pytest.raises(OSError, match="unplugged"):
        list(Camera("c", Unplugged, Unplugged(), 25.0).frames(never))


SECRETS = [
    "rtsp://admin:s3cret@cam.local:554/live?key=s3cret",
    "rtsp://cam.local:554/user=admin_password=s3cret_channel=1",
    "http://admin:a@s3cret@cam.local:554/video",
    "rtsp://admin:a/s3cret@cam.local:554/video",
    "rtsp://admin:s3cret#1@cam.local:554",
    "http://cam.local:554/video?user=a@b.c&password=s3cret",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_is_named_without_its_password(url):
    assert is_url(url)
    assert safe_url(url).partition("://")[2] == "cam.local:554"
    assert host_name(url) == "cam.local"


def test_a_url_that_may_end_in_a_password_is_named_by_its_scheme():
    assert safe_url("rtsp://admin:12345?x@cam.local:554/live") == "rtsp://..."


def test_hosts_of_every_form_are_file_names():
    assert host_name("rtsp://[fe80::1]:554/a") == "fe80_1"
    assert host_name("rtsp:///../../etc") == "stream"
    assert host_name("http://..") == "stream"
    assert not is_url("a/b.mp4")
    assert not is_url("0")


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_stream_that_is_not_there_is_an_error_without_its_password(scheme, capfd):
    with pytest.raises(InputError, match=rf"^--video {scheme}://127.0.0.1:9: cannot be opened") as error:
        open_video(f"{scheme}://admin:s3cret@127.0.0.1:9/live?token=s3cret", HASTY)
    printed = "".join(capfd.readouterr())  # by OpenCV and its libraries, too
    assert "s3cret" not in str(error.value) + printed
    assert printed == ""


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match=r"^--video /dev/video77: there is no such camera"):
        open_video("/dev/video77")
    with pytest.raises(InputError, match=r"^--video /dev/null: another program uses it, or it is no camera"):
        open_video("/dev/null")
