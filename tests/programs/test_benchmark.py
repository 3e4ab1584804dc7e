import json
from pathlib import Path

import numpy as np
import torch

import benchmark
from config.networks import create_cfg
from models import Darknet
from studies.bench import detection, metrics, scenes, training
from studies.bench.table import Row
from utils.darknet.cfg import read_cfg
from utils.darknet.spec import parse_network
from utils.detection.checkpoints import save_checkpoint
from utils.detection.complexity import count_parameters
from utils.detection.video import open_video
from utils.timing import Timing


def test_the_published_network_has_its_parameters_and_macs():
    blocks = read_cfg(scenes.PRUNED)
    assert count_parameters(Darknet(blocks)) == 10_853_907
    assert round(parse_network(read_cfg(scenes.FULL), 416).macs / parse_network(blocks, 416).macs, 2) == 3.44
    assert len(parse_network(blocks).convolutions) == 75


def test_the_scenes_have_what_the_rows_say():
    predictions = detection.clustered_predictions(images=2, boxes=500, passing=120)
    scores = predictions[..., 4] * predictions[..., 5]
    assert (scores >= scenes.CONF_THRES).sum(dim=1).tolist() == [120, 120]
    images = metrics.detected_images(images=20, detections=10, boxes=55)
    assert sum(len(truth) for _, truth in images) == 55
    assert all(len(found) == 10 and bool((found[1:, 4] <= found[:-1, 4]).all()) for found, _ in images)


def test_a_calibrated_network_passes_about_as_many_candidates_as_asked():
    model = Darknet("config/yolov3-small-hand.cfg")
    images = torch.rand(2, 3, 96, 96)
    ready = scenes.calibrated(model, images, passing=50)
    with torch.no_grad():
        predictions = ready(images)
    passing = (predictions[..., 4] * predictions[..., 5] >= scenes.CONF_THRES).sum() / 2
    assert 10 < passing < 200


def test_a_row_is_measured_printed_and_written(tmp_path, capsys):
    target = tmp_path / "bench.json"
    args = ["--only", "nms", "--rounds", "1", "--json", str(target)]
    benchmark.main(benchmark.get_args_parser().parse_args(args))
    written = json.loads(target.read_text())
    (row,) = written["rows"]
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert row["value"] == row["ours"]["median"] / row["reference"]["median"]
    assert row["reached"] == (row["value"] <= 1.2)
    assert "NMS of 8 images" in capsys.readouterr().out


def test_the_clip_is_a_video_of_its_size_and_detect_says_how_fast_it_is(tmp_path):
    clip, weights = tmp_path / "clip.mp4", tmp_path / "a.pth"
    scenes.write_clip(clip, 3, (128, 72))
    video = open_video(str(clip))
    assert video.size == (128, 72)
    frames = [np.asarray(frame).astype(float) for _, frame in video.frames(lambda: False)]
    assert len(frames) == 3
    assert np.abs(frames[0][4:, 4:] - frames[1][:-4, :-4]).mean() < 8  # all moves by 4 pixels
    save_checkpoint(weights, Darknet(create_cfg("v3-tiny", 1, 96, 0.125)), names=["hand"], img_size=96)
    words = ["--video", str(clip), "--weights_path", str(weights), "--output", str(tmp_path / "out")]
    assert detection.frames_per_second([*words, "--rect"]) > 0


def test_a_bar_is_from_above_or_from_below():
    time = Timing(1.0, 1.0, 1.0)
    assert Row("a", time, time, 0.95, "of it", 0.9, at_least=True).reached
    assert not Row("a", time, time, 0.95, "of it", 0.9).reached


def test_its_images_are_a_data_set(tmp_path):
    paths = scenes.write_images(Path(tmp_path), 2)
    dataset = scenes.labelled(paths, 64)
    image, boxes = dataset[0]
    assert image.shape == (3, 64, 64)
    assert np.isfinite(boxes.numpy()).all()
    assert 1 <= len(boxes) <= 4


def test_fine_tuning_is_an_epoch_against_its_own_steps():
    args = benchmark.get_args_parser().parse_args(["--rounds", "1", "--device", "cpu"])
    (row,) = training.fine_tuning_row(args, images=16)
    assert row.value == row.ours.median / row.reference.median > 0
