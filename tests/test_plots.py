import csv
import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.drawing import class_colour, draw_detections
from utils.plots import channels_figure, save_figure
from utils.pruning.gamma_history import HISTOGRAM_BINS, GammaHistory
from utils.training.plots import plot_training, training_figure
from utils.training.run_log import RunLog

GAMMA_IMAGES = {"gamma_quintiles.png", "gamma_first_layer.png", "gamma_distribution.png"}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def log_rows(epochs, evaluated=1):
    rows = []
    for epoch in range(epochs):
        rows.append({"epoch": epoch, "box_loss": 1 / (1 + epoch), "objectness_loss": 50 / (1 + epoch)})
        if evaluated and (epoch + 1) % evaluated == 0:
            rows[-1] |= {"mAP": 0.1 * epoch, "mAP_50_95": 0.05 * epoch, "f1": 0.08 * epoch}
    return rows


def history(epochs, channels=200):
    random = np.random.default_rng(0)
    made = GammaHistory(top=1.5)
    for epoch in range(epochs):
        gammas = (random.normal(1, 0.1, channels) * np.linspace(1 - epoch / 20, 1, channels)).clip(0, 1.5)
        made.epochs.append(epoch)
        made.quintiles.append(np.quantile(gammas, np.linspace(0.2, 1, 5)))
        made.near_zero.append(float((gammas < 1e-3).mean()))
        made.allowed.append(0.5)
        made.first_layer.append(gammas[:16])
        made.histograms.append(np.histogram(gammas, HISTOGRAM_BINS, (0, 1.5))[0])
    return made


def opened(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def coloured(pixels):
    """How many pixels are neither grey, black nor white."""
    return int((np.ptp(pixels.astype(int), axis=2) > 60).sum())


@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("evaluated", [0, 1, 2])
def test_every_image_of_a_run_is_written_and_shows_something(tmp_path, epochs, evaluated):
    plot_training(log_rows(epochs, evaluated), history(epochs), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"training.png"} | GAMMA_IMAGES
    for path in tmp_path.iterdir():
        pixels = opened(path)
        assert pixels.shape[1] > 300
        assert pixels.shape[0] > 200
        assert coloured(pixels) > 50, path.name


def test_without_gammas_there_is_the_training_image_alone(tmp_path):
    plot_training(log_rows(3), GammaHistory(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training.png"]


def test_rows_read_back_from_the_csv_are_drawn_alike():
    rows = log_rows(6, evaluated=2)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = [{name: str(row.get(name, "")) for name in names} for row in rows]
    for drawn in (rows, text, text[:3] + rows[3:]):
        losses, quality = training_figure(drawn).axes
        assert [line.get_xdata().tolist() for line in losses.lines] == [[1, 2, 3, 4, 5, 6]] * 2
        assert [line.get_xdata().tolist() for line in quality.lines] == [[2, 4, 6]] * 3
        np.testing.assert_allclose(quality.lines[0].get_ydata(), [0.1, 0.3, 0.5])


def test_a_run_that_was_not_evaluated_says_so():
    _, quality = training_figure(log_rows(3, evaluated=0)).axes
    assert [text.get_text() for text in quality.texts] == ["not measured yet"]
    assert not quality.lines


def test_the_only_epoch_of_a_run_is_a_visible_point(tmp_path):
    figure = training_figure(
        [{"epoch": 0, "box_loss": 1, "objectness_loss": 50, "mAP": 0.5, "mAP_50_95": 0.2, "f1": 0.4}]
    )
    for axes in figure.axes:
        axes.get_legend().remove()
    save_figure(figure, tmp_path / "a.png")
    assert coloured(opened(tmp_path / "a.png")) > 50


def test_channels_before_and_after(tmp_path):
    layers, before, after = [0, 2, 5, 8], [32, 64, 1024, 18], [3, 20, 300, 18]
    figure = channels_figure(layers, before, after)
    axes = figure.axes[0]
    bars = [[bar.get_height() for bar in container] for container in axes.containers]
    assert bars == [before, after]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "5", "8"]
    assert 0.5 < axes.get_ylim()[0] < 1  # so that a layer with one channel has a bar
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "before: 1,138 channels",
        "after: 341 channels",
    ]
    save_figure(figure, tmp_path / "new" / "channels.png")
    assert coloured(opened(tmp_path / "new" / "channels.png")) > 500


def test_labels_of_many_layers_do_not_run_into_each_other():
    count = 300
    figure = channels_figure(range(count), [64] * count, [32] * count)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert 10 < len(boxes) < 60
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


# drawing


def found(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def grey_image(width=200, height=160):
    return Image.new("RGB", (width, height), (90, 90, 90))


def where_colour(image, label):
    rows, columns = np.nonzero((np.asarray(image) == class_colour(label)).all(axis=2))
    return columns, rows


def test_classes_have_colours_that_can_be_told_apart():
    colours = np.array([class_colour(label) for label in range(12)])
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(12, dtype=int)
    assert distances.min() > 40
    assert class_colour(3) == class_colour(3)


def test_a_box_is_drawn_where_it_is_and_the_image_is_not_touched():
    image = grey_image()
    drawn = draw_detections(image, found([40, 60, 120, 140, 0.87, 1]), ["a", "b"])
    assert np.ptp(np.asarray(image)) == 0
    assert drawn.size == image.size
    columns, rows = where_colour(drawn, 1)
    assert (columns.min(), columns.max(), rows.max()) == (40, 120, 140)
    for point in ((40, 100), (120, 100), (80, 140), (80, 60)):
        assert drawn.getpixel(point) == class_colour(1)
    assert np.ptp(np.asarray(drawn)[70:130, 50:110]) == 0
    assert len(where_colour(drawn, 0)[0]) == 0


def test_no_detection_draws_nothing():
    assert np.array_equal(draw_detections(grey_image(), found(), ["a"]), grey_image())


def test_the_best_detection_is_on_top():
    best, other = [40, 60, 120, 140, 0.9, 0], [40, 60, 120, 140, 0.2, 1]
    drawn = draw_detections(grey_image(), found(best, other), ["a", "b"])
    assert drawn.getpixel((40, 100)) == class_colour(0)


@pytest.mark.parametrize("box", [[0, 0, 30, 30], [180, 0, 200, 30], [150, 100, 200, 160], [60, 2, 90, 40]])
def test_the_label_stays_within_the_image(box):
    def label_size(box):
        name = "a long class name"
        with_label = draw_detections(grey_image(), found([*box, 0.5, 0]), [name])
        without = draw_detections(grey_image(), found([*box, 0.5, 0]), [""])
        changed = np.nonzero((np.asarray(with_label) == (0, 0, 0)).all(axis=2))
        return len(changed[0]) - len(np.nonzero((np.asarray(without) == (0, 0, 0)).all(axis=2))[0])

    assert label_size(box) > 0.9 * label_size([20, 80, 190, 150]) > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (2000, 20)])
def test_small_images_and_thin_boxes(size):
    width, height = size
    rows = found([0, 0, width, height, 0.9, 0], [0, 0, 0, 0, 0.8, 0], [width, height, width, height, 0.7, 1])
    drawn = draw_detections(Image.new("RGB", size), rows, ["a", "b"])
    assert drawn.size == size
    assert len(where_colour(drawn, 0)[0]) > 0


# the log of a run


def read_log(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_log_is_readable_while_the_run_goes_on(tmp_path):
    log = RunLog(tmp_path, {"lr": 0.01, "name": "x", "seed": None}, 0)
    assert json.loads((tmp_path / "options.json").read_text()) == {"lr": 0.01, "name": "x", "seed": None}
    for epoch in range(3):
        log.add({"epoch": epoch, "loss": 0.5**epoch})
        assert read_log(tmp_path)[-1] == {"epoch": str(epoch), "loss": str(0.5**epoch)}
        assert len(read_log(tmp_path)) == epoch + 1
        assert read_events(tmp_path, "loss")[-1] == (epoch, 0.5**epoch)
    log.close()


def test_a_column_that_comes_later_appears(tmp_path):
    log = RunLog(tmp_path, {}, 0)
    log.add({"epoch": 0, "loss": 1})
    log.add({"epoch": 1, "loss": 2, "mAP": 0.25})
    log.add({"epoch": 2, "loss": 3})
    log.close()
    assert [row["mAP"] for row in read_log(tmp_path)] == ["", "0.25", ""]
    assert list(read_log(tmp_path)[0]) == ["epoch", "loss", "mAP"]
    assert read_events(tmp_path, "mAP") == [(1, 0.25)]


def test_a_resumed_log_drops_the_epochs_that_come_again(tmp_path):
    log = RunLog(tmp_path, {}, 0)
    for epoch in range(4):
        log.add({"epoch": epoch, "loss": epoch, "mAP": 0.5})
    log.close()
    again = RunLog(tmp_path, {"resumed": True}, 2)
    assert [int(row["epoch"]) for row in again.rows] == [0, 1]
    again.add({"epoch": 2, "loss": 20})
    again.add({"epoch": 3, "loss": 30, "f1": 0.75})
    again.close()
    rows = read_log(tmp_path)
    assert [row["loss"] for row in rows] == ["0", "1", "20", "30"]
    assert [row["mAP"] for row in rows] == ["0.5", "0.5", "", ""]
    assert [row["f1"] for row in rows] == ["", "", "", "0.75"]
    assert read_events(tmp_path, "loss") == [(0, 0), (1, 1), (2, 20), (3, 30)]
    assert json.loads((tmp_path / "options.json").read_text()) == {"resumed": True}


def test_a_new_run_does_not_take_over_old_rows(tmp_path):
    log = RunLog(tmp_path, {}, 0)
    log.add({"epoch": 0, "loss": 1})
    log.close()
    again = RunLog(tmp_path, {}, 0)
    again.add({"epoch": 0, "loss": 9})
    again.close()
    assert [row["loss"] for row in read_log(tmp_path)] == ["9"]
