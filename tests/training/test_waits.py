"""Between two readings the host does not wait for the device; counted by the operations of real steps on a CPU."""

import pytest
import torch

from tests.networks import uneven
from tests.stepping import CountWaits, assigning, make_trainer, random_batch, small_network
from utils.pruning.prune_in_training import KeptChannels
from utils.pruning.schedules import READING_STEPS, SCHEDULES

CPU = torch.device("cpu")


def waits(trainer, steps=4, parts=1):
    """The operations that wait in some steps; those of the progress of the epoch count, too."""
    batches = [random_batch(seed=seed) for seed in range(parts)]
    with CountWaits() as mode, assigning(mode):
        for _ in range(steps):
            _, reports = trainer.train_step(batches, 0.01)
            for report in reports:
                trainer.progress.add(report)
    return mode.names


def test_the_count_notices_what_waits():
    values = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    with CountWaits() as mode:
        assert float(values.detach().sum()) == 3
        values[values.detach() > 0].sum().backward()
        values.detach().nonzero()
        torch.where(values > 0, values, 0.0).sum().backward()
    assert [name.split(".")[1] for name in mode.names][:2] == ["_local_scalar_dense", "index"]
    assert any("nonzero" in name for name in mode.names)
    assert not any("where" in name for name in mode.names)


SETTINGS = [
    {},
    {"precision": "mixed"},
    {"multiscale_training": True},
    {"teacher": True},
    *({"sparsity": schedule} for schedule in SCHEDULES),
    *({"sparsity": schedule, "method": "subgradient"} for schedule in ("constant", "local")),
    {"sparsity": "constant", "teacher": True, "prune_every": 1},
]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_step_does_not_wait(settings, parts):
    trainer = make_trainer(small_network(), CPU, **settings)
    trainer.train_step([random_batch()], 0.01)  # step 0, at which a schedule may read
    assert waits(trainer, parts=parts) == []
    if "sparsity" in settings:  # in the second half, too
        trainer.step = 1000
        trainer.train_step([random_batch()], 0.01)
        assert waits(trainer, parts=parts) == []


def test_batches_without_boxes_do_not_wait_either():
    trainer = make_trainer(small_network(), CPU, teacher=True)
    with CountWaits() as mode, assigning(mode):
        trainer.train_step([random_batch(boxes=0)], 0.01)
    assert mode.names == []


def test_a_network_that_was_cut_does_not_wait():
    trainer = make_trainer(small_network(), CPU, sparsity="constant", prune_every=1)
    trainer.kept_channels = KeptChannels(trainer.model.spec)
    uneven(trainer.model)
    trainer.penalty.s = 20.0
    trainer.train_step([random_batch()], 0.01)
    assert trainer.prune() > 20
    trainer.model.train()
    assert waits(trainer) == []


def test_the_target_schedule_reads_where_the_loss_is_read():
    trainer = make_trainer(small_network(), CPU, sparsity="target", steps=2000)
    read = []
    for step in range(25):
        with CountWaits() as mode, assigning(mode):
            trainer.train_step([random_batch()], 0.01)
        if mode.names:
            read.append(step)
    assert read == [0, READING_STEPS, 2 * READING_STEPS]
