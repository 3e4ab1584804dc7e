import pytest
import torch

from models import Darknet
from utils.darknet.cfg import parse_cfg
from utils.detection.loss import HeadSum, YoloLoss
from utils.training.config import TrainConfig
from utils.training.trainer import Trainer, groups

PLAIN = """
[net]
width=64
height=64
[convolutional]
filters=8
size=3
stride=16
pad=1
activation=leaky
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=0,1
anchors=16,16,32,24
classes=2
num=2
"""


def make_trainer(**settings):
    torch.manual_seed(1)
    config = TrainConfig(img_size=64, learning_rate=0.1, **settings)
    return Trainer(config, Darknet(parse_cfg(PLAIN)), steps_per_epoch=10)


def sample_batch(counts, seed=0):
    """A batch with so many boxes in its images."""
    random = torch.Generator().manual_seed(seed)
    boxes = [[image, k % 2] for image, count in enumerate(counts) for k in range(count)]
    places = 0.2 + 0.4 * torch.rand(len(boxes), 4, generator=random)
    targets = torch.cat([torch.tensor(boxes, dtype=torch.float32).view(-1, 2), places], dim=1)
    return torch.randint(0, 256, (len(counts), 3, 64, 64), dtype=torch.uint8, generator=random), targets


def joined(first, second):
    moved = second[1].clone()
    moved[:, 0] += len(first[0])
    return torch.cat([first[0], second[0]]), torch.cat([first[1], moved])


@pytest.mark.parametrize("settings", [{}, {"multiscale_training": True}, {"channels_last": False}])
@pytest.mark.parametrize("counts", [((5, 0), (1, 0)), ((0, 0), (0, 0)), ((0, 0, 0), (9,))])
def test_an_accumulated_batch_is_one_large_batch(counts, settings):
    # The network has no BatchNorm, which would see the parts by themselves.
    first, second = sample_batch(counts[0]), sample_batch(counts[1], seed=1)
    parts, whole = make_trainer(**settings), make_trainer(**settings)
    for _ in range(2):
        loss, reports = parts.train_step([first, second], 0.1)
        wanted, _ = whole.train_step([joined(first, second)], 0.1)
        torch.testing.assert_close(loss, wanted)
        assert len(reports) == 2
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=0, atol=1e-6)
    start = make_trainer().model.state_dict()
    assert any((whole.model.state_dict()[name] - value).abs().max() > 1e-3 for name, value in start.items())


def test_targets_are_assigned_once_per_step(monkeypatch):
    trainer, calls = make_trainer(), []
    assign = YoloLoss.assign

    def counted(self, targets, img_size):
        calls.append(len(targets))
        return assign(self, targets, img_size)

    monkeypatch.setattr(YoloLoss, "assign", counted)
    trainer.train_step([sample_batch((5, 0)), sample_batch((1, 0))], 0.1)
    assert calls == [5, 1]


def test_mixed_precision_steps_like_full_precision_with_weights_in_float32():
    start = make_trainer().model.state_dict()
    moved = {}
    for precision in ("mixed", "full"):
        trainer = make_trainer(precision=precision)
        trainer.train_step([sample_batch((5, 0))], 0.1)
        moved[precision] = {name: value - start[name] for name, value in trainer.model.state_dict().items()}
    for name, wanted in moved["full"].items():
        assert wanted.abs().max() > 1e-4
        assert moved["mixed"][name].dtype == torch.float32
        torch.testing.assert_close(moved["mixed"][name], wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
        assert not torch.equal(moved["mixed"][name], wanted)


def test_the_loss_counts_its_positives_before_the_forward_pass():
    model = Darknet(parse_cfg(PLAIN))
    loss = YoloLoss(model)
    images, targets = sample_batch((3, 0, 2))
    for size in (64, 96):
        assignments = loss.assign(targets, size)
        raw = model.train()(torch.nn.functional.interpolate(images / 255, size=size))
        reports = loss(raw, assignments, size)[1]
        positives = sum(report.sums[HeadSum.POSITIVES] for report in reports)
        assert sum(map(len, assignments)) == positives > 0


def test_a_part_of_a_batch_is_divided_by_the_divisor_of_the_whole():
    model = Darknet(parse_cfg(PLAIN)).train()
    images, targets = sample_batch((3, 2))
    loss, raw = YoloLoss(model), model(images / 255)
    assignments = loss.assign(targets, 64)
    by_default, by_ten = (loss(raw, assignments, 64, divisor)[0] for divisor in (None, 10.0))
    torch.testing.assert_close(by_default * max(sum(map(len, assignments)), 2), by_ten * 10)


def test_groups_hold_everything_in_order():
    assert list(groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(groups([], 2)) == []


def test_cudnn_searches_for_full_batches_alone():
    trainer, searches = make_trainer(batch_size=2), []
    trainer.model.conv(0).register_forward_hook(lambda *_: searches.append(torch.backends.cudnn.benchmark))
    before = torch.backends.cudnn.benchmark
    for counts in ((1, 2), (3,)):
        trainer.train_step([sample_batch(counts)], 0.1)
    assert searches == [True, False]
    assert torch.backends.cudnn.benchmark == before
    trainer = make_trainer(batch_size=2, multiscale_training=True)
    trainer.model.conv(0).register_forward_hook(lambda *_: searches.append(torch.backends.cudnn.benchmark))
    trainer.train_step([sample_batch((1, 2))], 0.1)
    assert searches[2:] == [False]
