"""What a run writes down about its gammas after each epoch."""

import numpy as np
import pytest

from models import Darknet
from tests.pruning.test_penalty import NO_BATCH_NORM, residual, set_gammas
from utils.darknet.cfg import parse_cfg
from utils.pruning.gamma_history import NEAR_ZERO, GammaHistory
from utils.pruning.penalty import GammaPenalty, gamma_sizes
from utils.pruning.selection import allowed_ratio
from utils.training.optim import MOMENTUM


def recorded(epochs):
    model = residual()
    penalty = GammaPenalty(model, 0.1, "normal", "proximal", MOMENTUM)
    history = GammaHistory()
    for epoch in range(epochs):
        set_gammas(model, l0=[1.0, -0.8, 0.6, 0.4 - 0.2 * epoch], l4=[0.2, 1e-4 * epoch, -0.5], l1=[9.0] * 4)
        history.record(epoch, penalty.coupling, "normal", gamma_sizes(model))
    return history, penalty, model


def test_history_records_sizes_of_the_prunable_gammas():
    history, penalty, model = recorded(3)
    gammas = np.array([1, 0.8, 0.6, 0, 0.2, 2e-4, 0.5], np.float32)
    assert history.epochs == [0, 1, 2]
    np.testing.assert_allclose(history.quintiles[2], np.quantile(gammas, [0.2, 0.4, 0.6, 0.8, 1]), rtol=1e-5, atol=1e-7)
    assert history.near_zero == pytest.approx([1 / 7, 1 / 7, 2 / 7])
    assert NEAR_ZERO > 2e-4
    assert history.allowed[2] == allowed_ratio(penalty.coupling, "normal", gamma_sizes(model))
    np.testing.assert_allclose(
        history.first_layer, [[1, 0.8, 0.6, 0.4], [1, 0.8, 0.6, 0.2], [1, 0.8, 0.6, 0]], atol=1e-6
    )
    assert history.top == pytest.approx(1.25)


def test_histograms_count_every_gamma_even_beyond_their_end():
    history, penalty, model = recorded(1)
    assert history.histograms[0].sum() == 7
    assert history.histograms[0][[0, 16, 32, 40, 48, 64, 80]].tolist() == [1] * 7  # each gamma / 1.25 * 100
    set_gammas(model, l0=[5.0, 6, 7, 0])
    history.record(1, penalty.coupling, "normal", gamma_sizes(model))
    assert history.histograms[1].sum() == 7
    assert history.histograms[1][-1] == 3
    assert history.top == pytest.approx(1.25)


def test_history_survives_the_disk(tmp_path):
    history, *_ = recorded(4)
    history.save(tmp_path / "gammas.npz")
    again = GammaHistory.load(tmp_path / "gammas.npz", before=4)
    assert vars(again).keys() == vars(history).keys()
    for name, value in vars(history).items():
        assert np.array_equal(getattr(again, name), value), name


def test_a_resumed_history_forgets_the_epochs_that_will_come_again(tmp_path):
    history, penalty, model = recorded(4)
    history.save(tmp_path / "gammas.npz")
    again = GammaHistory.load(tmp_path / "gammas.npz", before=2)
    for epoch in (2, 3):
        set_gammas(model, l0=[0.0] * 4)
        again.record(epoch, penalty.coupling, "normal", gamma_sizes(model))
    assert again.epochs == [0, 1, 2, 3]
    assert np.array_equal(again.quintiles[:2], history.quintiles[:2])
    assert again.first_layer[2].tolist() == [0] * 4
    assert again.top == history.top
    assert {len(value) for name, value in vars(again).items() if name != "top"} == {4}
    again.save(tmp_path / "gammas.npz")
    assert GammaHistory.load(tmp_path / "gammas.npz", before=99).epochs == [0, 1, 2, 3]


def test_a_history_that_was_never_written_is_empty(tmp_path):
    assert GammaHistory.load(tmp_path / "none.npz", before=3).epochs == []


def test_a_network_without_batch_norm_has_a_history_too(tmp_path):
    model = Darknet(parse_cfg(NO_BATCH_NORM))
    penalty = GammaPenalty(model, 0.1, "slim", "proximal", MOMENTUM)
    history = GammaHistory()
    history.record(0, penalty.coupling, "slim", gamma_sizes(model))
    penalty.before_step()
    penalty.after_step(0.1)
    assert (history.near_zero, history.allowed) == ([0], [0])
    history.save(tmp_path / "gammas.npz")
    assert GammaHistory.load(tmp_path / "gammas.npz", before=1).epochs == [0]
