import copy

import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from utils.errors import InputError
from utils.pruning.penalty import GammaPenalty, gamma_sizes
from utils.pruning.schedules import DECAY, SCHEDULES, Plan, check_schedule
from utils.pruning.selection import select
from utils.training.optim import MOMENTUM, build_sgd

STEPS = 200
LR = 0.01


class Play:
    """Sparse training of a small network whose loss pulls each gamma to a size of its own, half of it near 0.3."""

    def __init__(self, schedule, ratio=0.6, strategy="normal", s=0.3, method="proximal"):
        torch.manual_seed(0)
        self.model = Darknet(create_cfg("v3", 1, 32, width=0.01))
        random = torch.Generator().manual_seed(1)
        self.wanted = {
            index: 0.3 + torch.rand(len(bn.weight), generator=random) for index, bn in self.model.batch_norms.items()
        }
        with torch.no_grad():
            for index, bn in self.model.batch_norms.items():
                bn.weight.copy_(self.wanted[index])
        self.penalty = GammaPenalty(self.model, s, strategy, method, MOMENTUM)
        self.plan = Plan(np.full(STEPS, LR), ratio, steps_per_epoch=20)
        self.schedule = SCHEDULES[schedule]
        self.optimizer = build_sgd(self.model, LR)
        self.step = 0

    def go(self, until):
        for step in range(self.step, until):
            for index, bn in self.model.batch_norms.items():
                bn.weight.grad = bn.weight.detach() - self.wanted[index]
            self.schedule(self.penalty, self.plan, step)
            self.penalty.before_step()
            self.optimizer.step()
            self.penalty.after_step(LR)
        self.step = until
        return self

    def condemned(self):
        """For each layer under the penalty the channels that the threshold rule would cut now."""
        coupling = self.penalty.coupling
        dead = select(coupling, self.penalty.strategy, gamma_sizes(self.model), self.plan.ratio).dead
        return {index: dead[coupling.outputs[index]] for index in self.penalty.weights}


def test_constant_leaves_the_penalty_as_it_is():
    play = Play("constant")
    before = copy.deepcopy(play.penalty.state())
    after = play.go(STEPS).penalty.state()
    assert after["s"] == before["s"] == 0.3
    assert all(torch.equal(weight, after["weights"][index]) for index, weight in before["weights"].items())


@pytest.mark.parametrize("method", ["proximal", "subgradient"])
@pytest.mark.parametrize("strategy", ["normal", "shortcut", "slim"])
def test_local_relieves_what_the_threshold_rule_would_keep(strategy, method):
    play = Play("local", strategy=strategy, method=method).go(STEPS // 2)
    before = copy.deepcopy(play.penalty.weights)
    condemned = play.condemned()
    play.go(STEPS // 2 + 1)
    going_on = 0
    for index, weight in play.penalty.weights.items():
        assert (weight[torch.from_numpy(condemned[index])] == 1).all()
        assert (((weight == before[index]) | (weight == before[index] * DECAY)).all()).item()
        going_on += int((weight == 1).sum())
    # The rule cuts a little less than it is asked for, where a layer is at its floor; others make up for that.
    under_penalty = len(play.penalty.gammas())
    largest_set = max(len(channel_set.members) for channel_set in play.penalty.coupling.sets)
    assert sum(map(np.sum, condemned.values())) <= going_on
    assert 0.6 * under_penalty - largest_set < going_on <= 0.6 * under_penalty
    assert play.penalty.s == 0.3


@pytest.mark.parametrize("strategy", ["normal", "shortcut", "slim"])
@pytest.mark.parametrize("ratio", [0.3, 0.85])
def test_target_kills_its_share_and_lets_the_others_recover(strategy, ratio):
    play = Play("target", ratio, strategy).go(STEPS)
    sizes = gamma_sizes(play.model)
    later = select(play.penalty.coupling, strategy, sizes, ratio)
    assert later.threshold == 0  # pruning at the target loses nothing
    condemned = {index: weight > 0 for index, weight in play.penalty.weights.items()}
    killed = sum(int(channels.sum()) for channels in condemned.values())
    under_penalty = len(play.penalty.gammas())
    assert (ratio - 0.01) * under_penalty < killed <= ratio * under_penalty
    for index, channels in condemned.items():
        assert (sizes[index][channels.numpy()] == 0).all()
        kept = ~channels.numpy()
        np.testing.assert_allclose(sizes[index][kept], play.wanted[index].numpy()[kept], atol=0.02)
    assert (play.penalty.gammas() == 0).mean() == pytest.approx(killed / under_penalty)


def test_target_is_met_from_any_learning_rate_without_a_first_guess():
    for start in (1e-6, 1e3):
        play = Play("target", 0.5, s=start).go(STEPS)
        assert 0.45 < (play.penalty.gammas() == 0).mean() <= 0.5


def test_nothing_more_dies_before_half_way_than_the_target():
    play = Play("target", 0.5).go(STEPS // 2)
    assert (play.penalty.gammas() == 0).mean() <= 0.5


def test_a_schedule_goes_on_from_the_state_of_the_penalty_alone():
    whole = Play("target").go(STEPS)
    first = Play("target").go(130)
    second = Play("target", s=7.0)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.penalty.load_state(copy.deepcopy(first.penalty.state()))
    second.step = 130
    second.go(STEPS)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_target_needs_true_zeros():
    with pytest.raises(InputError, match="use --sr_method proximal"):
        check_schedule("target", "subgradient")
    check_schedule("local", "subgradient")
