"""Float16: a step whose gradient overflows is skipped, wholly, without asking the device whether it was."""

import copy

import pytest
import torch

from tests.stepping import CountWaits, assigning, make_trainer, random_batch, small_network
from utils.pruning.penalty import HOLD
from utils.training.optim import build_sgd, load_momenta

CPU = torch.device("cpu")


def scaled_trainer(scale, **settings):
    """A trainer with float16's scaler and optimizer, at a scale of the loss."""
    trainer = make_trainer(small_network(), CPU, **settings)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.optimizer = build_sgd(trainer.model, trainer.config.learning_rate, fused=True)
    return trainer


def state(trainer):
    """What a skipped step must not change; the forward pass has counted the images and their statistics."""
    names = {"average": trainer.ema.model, "model": trainer.model}
    return {
        f"{part} {name}": value.clone()
        for part, model in names.items()
        for name, value in model.state_dict().items()
        if name.endswith((".weight", ".bias")) or (part == "average" and "running" in name)
    }


@pytest.mark.parametrize(
    "settings", [{}, {"sparsity": "constant"}, {"sparsity": "local", "method": "subgradient"}], ids=str
)
def test_a_step_that_overflows_changes_nothing_and_the_next_ones_do(settings):
    trainer = scaled_trainer(3e38, **settings)
    if settings.get("sparsity") == "constant":
        index = next(iter(trainer.penalty.weights))
        trainer.penalty.weights[index][0] = HOLD
    before = state(trainer)
    trainer.train_step([random_batch()], 0.01)
    assert trainer.scaler.get_scale() == pytest.approx(1.5e38)
    after = state(trainer)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for _ in range(200):
        trainer.train_step([random_batch()], 0.01)
    moved = [name for name, value in before.items() if not torch.equal(state(trainer)[name], value)]
    assert len(moved) > len(before) / 2
    assert all(value.isfinite().all() for value in state(trainer).values())


def test_steps_with_a_scaler_are_those_without_one_and_do_not_wait():
    plain, scaled = (
        make_trainer(small_network(), CPU, sparsity="constant"),
        scaled_trainer(2.0**10, sparsity="constant"),
    )
    for _ in range(3):
        plain.train_step([random_batch()], 0.01)
        with CountWaits() as mode, assigning(mode):
            scaled.train_step([random_batch()], 0.01)
        assert mode.names == []
    for name, value in state(plain).items():
        torch.testing.assert_close(state(scaled)[name], value, rtol=1e-4, atol=1e-5)


def test_momenta_go_from_an_optimizer_that_is_fused_to_one_that_is_not():
    trainer = scaled_trainer(2.0**10)
    trainer.train_step([random_batch()], 0.01)
    other = build_sgd(copy.deepcopy(trainer.model), 0.01)
    load_momenta(other, trainer.optimizer.state_dict())
    assert not any(group["fused"] for group in other.param_groups)
    groups = zip(trainer.optimizer.param_groups, other.param_groups, strict=True)
    pairs = [pair for first, second in groups for pair in zip(first["params"], second["params"], strict=True)]
    assert len(pairs) == len(list(trainer.model.parameters()))
    for parameter, copied in pairs:
        momentum = trainer.optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(other.state[copied]["momentum_buffer"], momentum)


def test_momenta_get_the_layout_of_their_parameters():
    trainer = scaled_trainer(2.0**10)
    trainer.train_step([random_batch()], 0.01)
    model = copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format)
    assert any(p.stride() != q.stride() for p, q in zip(model.parameters(), trainer.model.parameters(), strict=True))
    other = build_sgd(model, 0.01)
    load_momenta(other, trainer.optimizer.state_dict())
    for parameter in model.parameters():
        assert other.state[parameter]["momentum_buffer"].stride() == parameter.stride()
