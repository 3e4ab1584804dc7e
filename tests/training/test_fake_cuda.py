"""A step on a GPU without a GPU: tensors without data tell whether all are on the device, and what waits for it."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from models import Darknet
from tests.networks import CFGS, narrow
from tests.stepping import OneDevice, fake_cuda, make_trainer, random_batch, small_network
from utils.detection.inference import Inference
from utils.detection.loss import YoloLoss
from utils.devices import autocast
from utils.pruning.schedules import SCHEDULES

CUDA = torch.device("cuda")


def take_steps(blocks, mode, steps=3, size=64, classes=2, **settings):
    """Some steps of a trainer on the fake GPU; the state that it ends with, and the waits of all but the first."""
    with torch.device(CUDA):
        trainer = make_trainer(blocks, CUDA, img_size=size, **settings)
    trainer.step = 1
    mode.tracked.extend(trainer.model.parameters())
    images, targets = random_batch(size=size, classes=classes)
    mode.pinned.append(images)  # as the loader pins it
    with OneDevice() as calls, mode:
        for _ in range(steps):
            loss, _ = trainer.train_step([(images, targets)], 0.01)
    assert loss.device.type == "cuda"
    assert calls.calls > 0
    return trainer


def assert_on_the_gpu(trainer):
    states = [trainer.model.state_dict(), trainer.ema.model.state_dict()]
    states += [dict(enumerate(trainer.optimizer.state[p]["momentum_buffer"] for p in trainer.model.parameters()))]
    if trainer.penalty:
        states += [trainer.penalty.weights]
    for state in states:
        assert state
        assert {tensor.device.type for tensor in state.values()} == {"cuda"}


@pytest.mark.parametrize("bf16", [True, False], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
def test_a_step_is_on_the_device_and_does_not_wait(schedule, bf16):
    with fake_cuda() as mode:
        mode.bf16 = bf16
        trainer = take_steps(small_network(), mode, precision="mixed", sparsity=schedule, teacher=True)
        assert mode.names == []
        assert trainer.scaler.is_enabled() == (not bf16)
        assert_on_the_gpu(trainer)


def test_autocast_reaches_the_layers():
    types = []
    with fake_cuda() as mode:
        with torch.device(CUDA):
            trainer = make_trainer(small_network(), CUDA, precision="mixed")
        first = trainer.model.conv(0)
        first.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
        mode.tracked.extend(trainer.model.parameters())
        trainer.train_step([random_batch()], 0.01)
    assert types == [torch.bfloat16]


@pytest.mark.parametrize("cfg", CFGS, ids=lambda path: path.stem)
def test_every_network_is_on_the_device(cfg):
    blocks = narrow(cfg)
    with fake_cuda() as mode:
        with torch.device(CUDA):
            model = Darknet(blocks).to(CUDA).train()
        spec, size = model.spec, model.spec.height
        _, targets = random_batch(size=size, classes=spec.heads[0].classes)
        images = torch.empty(2, spec.channels, size, size, device=CUDA)
        loss = YoloLoss(model)
        assigned = loss.assign(targets, size)
        with mode, autocast(CUDA, "mixed"):
            value, _ = loss(model(images), assigned, size)
        assert value.device.type == "cuda"
        assert mode.names == []

        inference = Inference(model.eval())
        predictions = inference(images)
        assert (predictions.device.type, predictions.dtype) == ("cuda", torch.float32)
        assert inference.model.conv(spec.convolutions[0].index).weight.dtype == torch.float16


def test_tensors_of_two_devices_in_one_call_are_noticed():
    with fake_cuda(), OneDevice():
        pair = torch.empty(3, device="cuda"), torch.empty(3, device="cpu")
        with pytest.raises(AssertionError, match="_foreach_lerp_: tensors on"):
            torch._foreach_lerp_([pair[0]], [pair[1]], 0.5)


def test_a_copy_that_waits_is_noticed():
    with fake_cuda() as mode, mode:
        values = torch.empty(3)
        values.to("cuda", non_blocking=True)  # not pinned
        mode.pinned.append(values)
        values.to("cuda", non_blocking=True)
        torch.empty(3, device="cuda").cpu()
    assert len(mode.names) == 2


def test_a_number_of_the_device_cannot_be_read_there():
    with fake_cuda(), pytest.raises(DataDependentOutputException):
        torch.empty((), device="cuda").item()
