import copy

import pytest

from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.errors import InputError
from utils.pruning.penalty import gamma_sizes
from utils.pruning.proof import head_difference
from utils.pruning.pruner import Pruner
from utils.pruning.residuals import (
    remove_residual_blocks,
    residual_blocks,
    silence_residual_blocks,
    weakest_residual_blocks,
)

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"
HEAD = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"


def conv(filters, activation="leaky", size=1, bn=1):
    return f"[convolutional]\nfilters={filters}\nsize={size}\npad=1\nactivation={activation}\nbatch_normalize={bn}\n"


def block(width, activation="leaky", shortcut="linear", last=None, bn=1):
    return (
        conv(width // 2, size=3)
        + conv(last or width, activation, bn=bn)
        + f"[shortcut]\nfrom=-3\nactivation={shortcut}\n"
    )


def spec(*sections):
    return randomize(Darknet(parse_cfg(NET + "".join(sections) + HEAD)), near_zero=0)


def shortcuts(model):
    return [found.shortcut for found in residual_blocks(model.spec)]


def test_yolov3_has_23_residual_blocks_of_two_convolutions():
    blocks = residual_blocks(Darknet(create_cfg("v3", 1, 64, width=0.0625)).spec)
    assert len(blocks) == 23
    assert all(len(found.convolutions) == 2 for found in blocks)
    assert blocks[0].layers == (2, 3, 4)


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        (block(8, shortcut="leaky"), "what is left of it would still activate"),
        (block(8, activation="logistic"), "logistic of 0 is not 0"),
        (block(8, last=6), "its channels are not those of its input"),
        (block(8, bn=0), "there is no gamma to silence"),
        (block(8) + "[route]\nlayers=-1,1\n", "a route reads inside of it"),
        (conv(4) + "[maxpool]\nsize=3\nstride=1\n" + conv(8) + "[shortcut]\nfrom=0\n", "a pool is inside"),
        (conv(8) + conv(8) + "[shortcut]\nfrom=-2,0\n", "it adds a third layer"),
    ],
)
def test_what_cannot_be_cut_out_whole_is_not_a_block(sections, why):
    assert shortcuts(spec(conv(8), sections)) == [], why


def test_the_weakest_residual_blocks_are_those_of_the_smallest_mean_last_gamma():
    model = spec(conv(8), block(8), block(8), block(8))
    for index, value in ((2, 0.5), (5, 0.1), (8, 0.3)):
        model.batch_norm(index).weight.data.fill_(-value)
    gammas = gamma_sizes(model)
    assert [found.shortcut for found in weakest_residual_blocks(model.spec, gammas, 2)] == [6, 9]
    with pytest.raises(InputError, match="has 3 residual blocks"):
        weakest_residual_blocks(model.spec, gammas, 4)


@pytest.mark.parametrize("removed", [[0], [1], [0, 1], [0, 2], [0, 1, 2]])
def test_the_network_without_blocks_equals_the_one_in_which_they_add_nothing(removed):
    tail = conv(8) + "[route]\nlayers=3,-2\n" + conv(8) + "[route]\nlayers=-4\n[shortcut]\nfrom=6\n"
    model = spec(conv(8), block(8), block(8), block(8), tail)
    blocks = [residual_blocks(model.spec)[k] for k in removed]
    smaller = remove_residual_blocks(model, blocks)
    reference = copy.deepcopy(model)
    silence_residual_blocks(reference, blocks)
    assert len(smaller.spec.layers) == len(model.spec.layers) - 3 * len(blocks)
    assert head_difference(reference, smaller, 32) == 0
    assert head_difference(model, smaller, 32) > 1e-3


def test_relative_numbers_stay_relative_and_absolute_ones_absolute():
    model = spec(conv(8), block(8), block(8), "[route]\nlayers=3\n[shortcut]\nfrom=-2\n")
    smaller = remove_residual_blocks(model, residual_blocks(model.spec)[1:])
    assert [b.get("layers", b.get("from")) for b in smaller.blocks if b["type"] in ("route", "shortcut")] == [
        "-3",
        "3",
        "-2",
    ]


@pytest.mark.parametrize("strategy", ["normal", "shortcut", "slim"])
def test_blocks_and_channels_together_keep_the_proof(strategy):
    model = randomize(Darknet(create_cfg("v3", classes=80, img_size=64, width=0.125)))
    result = Pruner(model, strategy, prune_blocks=12).at(0.5)
    assert head_difference(result.reference, result.pruned.model, 64) < 1e-5
    assert sum(b["type"] == "shortcut" for b in result.pruned.model.blocks) == 11
    assert sum(count == 0 for count in result.counts.values()) == 24
    again = Darknet(parse_cfg(format_cfg(result.pruned.model.blocks)))
    again.load_state_dict(result.pruned.model.state_dict())
    more = Pruner(randomize(again, seed=1), strategy, prune_blocks=3).at(0.3)
    assert head_difference(more.reference, more.pruned.model, 64) < 1e-5
