"""No random network and no random choice of dead channels makes the compact network differ from the masked one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import Darknet
from tests.networks import randomize
from utils.darknet.cfg import parse_cfg
from utils.pruning.coupling import couple
from utils.pruning.proof import head_difference
from utils.pruning.selection import round_up
from utils.pruning.surgery import prune

ACTIVATIONS = ("leaky", "linear", "mish", "swish", "relu", "logistic")
HEAD = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"


class CfgBuilder:
    """Grows a cfg layer by layer and knows the channels of every layer; every piece ends at the input's size."""

    def __init__(self):
        self.text = ["[net]\nwidth=32\nheight=32\nchannels=3\n"]
        self.channels: list[int] = []
        self.full_size: list[int] = []

    def add(self, section: str, channels: int, *options: str) -> None:
        self.text.append(f"[{section}]\n" + "".join(f"{option}\n" for option in options))
        self.channels.append(channels)

    def end_piece(self) -> None:
        self.full_size.append(len(self.channels) - 1)

    def conv(self, filters: int, size: int, activation: str, *more: str, bn: int = 1) -> None:
        options = [f"filters={filters}", f"size={size}", "stride=1", "pad=1", f"activation={activation}"]
        self.add("convolutional", filters, *options, f"batch_normalize={bn}", *more)


@st.composite
def cfgs(draw):
    """A chain of random pieces: convolutions, residuals, routes, groups, depthwise, gates, pooling."""
    build = CfgBuilder()
    size, activation = st.sampled_from((1, 3)), st.sampled_from(ACTIVATIONS)
    width = st.integers(1, 4).map(lambda n: 2 * n)
    build.conv(draw(width), draw(size), draw(activation))
    build.end_piece()
    pieces = ("conv", "residual", "unequal", "concat", "slice", "depthwise", "gate", "pool", "reorg", "deconv")
    for piece in draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=6)):
        entry, channels = len(build.channels) - 1, build.channels[-1]
        if piece == "conv":
            build.conv(draw(width), draw(size), draw(activation), bn=draw(st.sampled_from((0, 1, 1, 1))))
        elif piece == "residual":
            build.conv(draw(width), draw(size), draw(activation))
            build.conv(channels, draw(size), draw(activation))
            build.add("shortcut", channels, f"from={entry}", f"activation={draw(activation)}")
        elif piece == "unequal":
            build.conv(draw(width), draw(size), draw(activation))
            build.add("shortcut", build.channels[-1], f"from={entry}", "activation=linear")
        elif piece == "concat":
            build.conv(draw(width), draw(size), draw(activation))
            other = draw(st.sampled_from(build.full_size))
            build.add("route", build.channels[-1] + build.channels[other], f"layers=-1,{other}")
        elif piece == "slice":
            build.conv(draw(width), draw(size), draw(activation))
            build.add("route", build.channels[-1] // 2, "layers=-1", "groups=2", f"group_id={draw(st.integers(0, 1))}")
        elif piece == "depthwise":
            build.conv(channels, 3, draw(activation), f"groups={channels}")
        elif piece == "gate":
            build.add("avgpool", channels)
            build.conv(channels, 1, "logistic", bn=draw(st.integers(0, 1)))
            build.add("scale_channels", channels, f"from={entry}")
        elif piece == "pool":
            build.add("maxpool", channels, f"size={draw(st.integers(2, 5))}", "stride=1")
        elif piece == "deconv":
            shape = draw(
                st.sampled_from(("size=2\nstride=2", "size=4\nstride=2\npadding=1", "size=3\npad=1", "size=1"))
            )
            if "stride" in shape:
                build.add("maxpool", channels, "size=2", "stride=2")
            filters = draw(width)
            options = (f"filters={filters}", shape, f"activation={draw(activation)}", "batch_normalize=1")
            build.add("deconvolutional", filters, *options)
        else:
            build.add("reorg3d", 4 * channels, "stride=2")
            build.add("upsample", 4 * channels, "stride=2", f"scale={draw(st.sampled_from((1, 0.5)))}")
        build.end_piece()
    return "".join(build.text) + HEAD


@settings(max_examples=150, deadline=None)
@given(cfgs(), st.floats(0.1, 0.9), st.integers(0, 2**31 - 1), st.sampled_from((1, 4)))
def test_the_compact_network_equals_the_masked_one(text, share, seed, round_to):
    torch.manual_seed(seed)
    model = randomize(Darknet(parse_cfg(text)), near_zero=0, seed=seed)
    coupling = couple(model.spec)
    random = np.random.default_rng(seed)
    importance = random.random(len(coupling.sets))
    dead = (importance < share) & np.array([bool(s.members) and not s.fixed for s in coupling.sets])
    for layer in model.spec.convolutions:  # every layer keeps one channel
        sets = coupling.outputs[layer.index]
        if dead[sets].all():
            dead[sets[0]] = False
    reference, pruned = prune(model, coupling, dead, importance, round_to)
    assert head_difference(reference, pruned.model, 32) < 1e-5
    for layer, small in zip(model.spec.convolutions, pruned.model.spec.convolutions, strict=True):
        assert small.channels % round_to == 0 or small.channels == layer.channels


@given(cfgs(), st.integers(2, 8), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_rounding_only_adds_channels(text, multiple, seed):
    coupling = couple(Darknet(parse_cfg(text)).spec)
    random = np.random.default_rng(seed)
    importance = random.random(len(coupling.sets))
    keep = (importance > 0.5) | np.array([not s.members or bool(s.fixed) for s in coupling.sets])
    rounded = round_up(coupling, importance, keep, multiple)
    assert (rounded >= keep).all()
    for layer in coupling.spec.convolutions:
        count = rounded[coupling.outputs[layer.index]].sum()
        assert count % multiple == 0 or count == layer.channels
