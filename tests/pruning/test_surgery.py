import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import CFGS, DARKNET_CFGS, narrow, or_skip, randomize
from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.darknet.spec import parse_network
from utils.detection.checkpoints import save_checkpoint
from utils.detection.complexity import count_parameters
from utils.files import write_text
from utils.pruning.constants import LEAST_CARRIER
from utils.pruning.coupling import couple
from utils.pruning.penalty import gamma_sizes
from utils.pruning.proof import head_difference
from utils.pruning.pruner import Pruner
from utils.pruning.selection import STRATEGIES, select
from utils.pruning.surgery import mask_gammas, prune

HEAD = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"


def network(*sections):
    text = "[net]\nwidth=32\nheight=32\nchannels=3\n" + "".join(sections) + HEAD
    return randomize(Darknet(parse_cfg(text)), near_zero=0)


def conv(filters, size=3, pad=1, activation="leaky", bn=1):
    return (
        f"[convolutional]\nfilters={filters}\nsize={size}\npad={pad}\nactivation={activation}\nbatch_normalize={bn}\n"
    )


def kill(model, *places):
    """Which sets die when these (layer, channel) do."""
    coupling = couple(model.spec)
    dead = np.array([any(place in s.members for place in places) for s in coupling.sets])
    return coupling, dead


@dataclass(frozen=True)
class Case:
    """One network, made narrow where it is Darknet's own, pruned one way."""

    cfg: Path
    strategy: str
    round_to: int
    shrunk: int = 8

    def result(self):
        size = 64 if self.shrunk > 1 else 128
        model = randomize(Darknet(narrow(self.cfg, self.shrunk, size)))
        return model, Pruner(model, self.strategy, round_to=self.round_to).at(0.6), size


def cases(cfgs, shrunk):
    return [
        pytest.param(Case(cfg, strategy, round_to, shrunk), id=f"{cfg.stem}-{strategy}-{round_to}")
        for cfg in cfgs
        for strategy in STRATEGIES
        for round_to in (1, 8)
    ]


def check(case):
    model, result, size = case.result()
    small = result.pruned.model
    assert head_difference(result.reference, small, size) < 1e-5
    assert head_difference(model, small, size) > 1e-5, "nothing of note was pruned"
    assert count_parameters(small) == weights_of(small.spec) < count_parameters(model)
    assert small.spec.at(size).macs < model.spec.at(size).macs
    for layer in small.spec.convolutions:
        original = model.spec.layers[layer.index].channels
        assert layer.channels == result.counts[layer.index] >= 1
        assert layer.channels % case.round_to == 0 or layer.channels == original
    return small


def weights_of(network):
    """Parameters as the channels of each layer say: kernels, and gamma and beta or a bias."""
    return sum(
        c.channels * (c.inputs // c.groups * c.size**2 + (2 if c.batch_normalize else 1)) for c in network.convolutions
    )


@pytest.mark.parametrize("case", cases(CFGS, shrunk=8) + or_skip(cases(DARKNET_CFGS, shrunk=8)))
def test_the_compact_network_computes_what_the_masked_one_does(case):
    check(case)


@pytest.mark.zoo
@pytest.mark.parametrize("case", or_skip(cases(DARKNET_CFGS, shrunk=1)))
def test_the_compact_network_computes_what_the_masked_one_does_at_full_width(case):
    check(case)


READ_BACK = """
import sys
from pathlib import Path
import torch
from models import Darknet
from utils.detection.checkpoints import load_weights
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(folder / "expected.pt", weights_only=True)
    for weights in ("small.pth", "small.weights"):
        model = Darknet(folder / "small.cfg").eval()
        load_weights(model, folder / weights)
        with torch.no_grad():
            torch.testing.assert_close(model(expected["images"]), expected["predictions"], rtol=1e-5, atol=1e-4)
    print(folder.name)
"""


def test_the_written_files_give_the_same_output_in_a_fresh_process(tmp_path):
    names = []
    for param in cases([*CFGS, *DARKNET_CFGS], shrunk=8)[::2]:
        _, result, size = param.values[0].result()
        folder = tmp_path / param.id
        images = torch.rand(1, 3, size, size)
        write_text(folder / "small.cfg", format_cfg(result.pruned.model.blocks))
        save_checkpoint(folder / "small.pth", result.pruned.model)
        result.pruned.model.save_darknet_weights(folder / "small.weights")
        with torch.no_grad():
            torch.save({"images": images, "predictions": result.pruned.model(images)}, folder / "expected.pt")
        names.append(param.id)
    command = [sys.executable, "-c", READ_BACK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert done.stdout.split() == sorted(names)


def test_a_pruned_network_can_be_pruned_again():
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.0625)))
    for ratio in (0.3, 0.5, 0.5):
        coupling = couple(model.spec)
        reference, pruned = prune(model, coupling, select(coupling, "slim", gamma_sizes(model), ratio).dead)
        assert head_difference(reference, pruned.model, 64) < 1e-5
        assert count_parameters(pruned.model) < count_parameters(model)
        model = randomize(pruned.model, seed=1)


@pytest.mark.parametrize(
    ("consumer", "carriers"), [(conv(4, size=1, pad=0), 0), (conv(4, size=3, pad=1), 1), (conv(4, size=3, pad=0), 0)]
)
def test_a_constant_needs_a_carrier_only_where_padding_cuts_it_off(consumer, carriers):
    model = network(conv(6), consumer)
    coupling, dead = kill(model, (0, 1), (0, 4))
    reference, pruned = prune(model, coupling, dead)
    assert pruned.carriers == carriers
    assert pruned.model.spec.layers[0].channels == 4 + carriers
    assert head_difference(reference, pruned.model, 32) < 1e-6


def test_a_1x1_convolution_with_padding_needs_a_carrier_too():
    model = network(conv(6), "[convolutional]\nfilters=4\nsize=1\npadding=1\nbatch_normalize=1\nactivation=leaky\n")
    coupling, dead = kill(model, (0, 1), (0, 4))
    reference, pruned = prune(model, coupling, dead)
    assert pruned.carriers == 1
    assert head_difference(reference, pruned.model, 32) < 1e-6


def test_a_carrier_has_its_kernel_no_gamma_and_a_strong_constant():
    model = network(conv(6), conv(4))
    model.batch_norm(0).bias.data[[1, 4]] = torch.tensor([0.001, 1.0])
    coupling, dead = kill(model, (0, 1), (0, 4))
    _, pruned = prune(model, coupling, dead)
    norm, kernel = pruned.model.batch_norm(0), pruned.model.conv(0).weight
    carrier = int(torch.nonzero(norm.weight == 0))
    assert norm.bias[carrier] > LEAST_CARRIER
    assert torch.equal(kernel[carrier], model.conv(0).weight[4])


def test_constants_of_zero_need_no_carrier_and_change_nothing():
    model = network(conv(6, activation="relu"), conv(4))
    model.batch_norm(0).bias.data[[1, 4]] = -1.0
    coupling, dead = kill(model, (0, 1), (0, 4))
    reference, pruned = prune(model, coupling, dead)
    assert pruned.carriers == 0
    assert torch.equal(pruned.model.conv(1).weight, model.conv(1).weight[:, [0, 2, 3, 5]])
    assert head_difference(reference, pruned.model, 32) < 1e-6


@pytest.mark.parametrize("activation", ["linear", "leaky", "relu", "relu6", "logistic", "tanh", "elu", "mish", "swish"])
@pytest.mark.parametrize(
    "between",
    [
        "",
        "[upsample]\nstride=2\nscale=0.7\n",
        "[maxpool]\nsize=2\nstride=1\n",
        "[maxpool]\nsize=2\nstride=2\n",
        "[avgpool]\n",
        "[dropout]\nprobability=0.3\n",
        "[activation]\nactivation=tanh\n",
        "[reorg3d]\nstride=2\n",
        "[route]\nlayers=-1,0\n",
        "[shortcut]\nfrom=-1\nactivation=mish\n",
    ],
)
def test_constants_pass_through_every_layer_and_activation(activation, between):
    if between == "[avgpool]\n":
        model = network(conv(6, activation=activation), between, conv(4, size=1, pad=0))
    else:
        model = network(conv(6, activation=activation), between, conv(4), conv(4, size=1, pad=0))
    coupling, dead = kill(model, (0, 1), (0, 2), (0, 4))
    reference, pruned = prune(model, coupling, dead)
    assert head_difference(reference, pruned.model, 32) < 1e-5
    assert pruned.model.spec.layers[0].channels < 6


def test_a_dead_channel_with_consumers_of_both_kinds_and_a_head():
    model = network(conv(8), conv(4), "[route]\nlayers=0\n", conv(4, size=1, pad=0), "[route]\nlayers=-1,1,0\n")
    coupling, dead = kill(model, (0, 1), (0, 2), (0, 4), (1, 0), (3, 3))
    reference, pruned = prune(model, coupling, dead)
    assert head_difference(reference, pruned.model, 32) < 1e-6
    assert [pruned.model.spec.layers[k].channels for k in (0, 1, 3)] == [6, 3, 3]


def test_channels_behind_a_gate_are_silenced_in_the_reference_too():
    gate = "[avgpool]\n" + conv(6, size=1, activation="logistic", bn=0) + "[scale_channels]\nfrom=0\n"
    model = network(conv(6, activation="swish"), gate, conv(4))
    coupling, dead = kill(model, (0, 1), (0, 4))
    reference, pruned = prune(model, coupling, dead)
    assert pruned.silenced == 2
    assert not reference.batch_norm(0).bias[[1, 4]].any()
    assert pruned.carriers == 0
    assert [pruned.model.spec.layers[k].channels for k in (0, 2)] == [4, 4]
    assert head_difference(reference, pruned.model, 32) < 1e-6


def test_folding_a_padded_consumer_into_its_bias_would_be_caught():
    model = network(conv(6), conv(4))
    coupling, dead = kill(model, (0, 1), (0, 4))
    reference, pruned = prune(model, coupling, dead)
    pruned.model.batch_norm(1).running_mean[0] += 0.01
    assert head_difference(reference, pruned.model, 32) > 1e-4


def test_gammas_of_exactly_zero_are_pruned_without_any_loss():
    model = randomize(Darknet(create_cfg("v3", 1, 64, width=0.0625)))
    coupling = couple(model.spec)
    selection = select(coupling, "normal", gamma_sizes(model), 0.4)
    mask_gammas(model, coupling, selection.dead)
    _, pruned = prune(model, coupling, selection.dead)
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        wanted, got = model(image), pruned.model(image)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_published_pruned_network_is_reproduced():
    model = Darknet("config/yolov3-hand.cfg")
    counts = {c.index: c.channels for c in parse_network(read_cfg("config/yolov3-hand-published.cfg")).convolutions}
    coupling = couple(model.spec)
    for index, norm in model.batch_norms.items():
        norm.bias.data.zero_()
        norm.weight.data[counts[index] :] = 0
    dead = np.array(
        [bool(s.members) and all(counts[layer] <= channel for layer, channel in s.members) for s in coupling.sets]
    )
    _, pruned = prune(model.eval(), coupling, dead)
    assert {c.index: c.channels for c in pruned.model.spec.convolutions} == counts
    assert count_parameters(pruned.model) == 10_853_907
    assert round(pruned.model.spec.at(416).macs / 1e9, 3) == 9.483


def test_the_written_cfg_asks_darknet_to_letterbox():
    model = network(conv(6), conv(4))
    coupling, dead = kill(model, (0, 1))
    _, pruned = prune(model, coupling, dead)
    assert pruned.model.blocks[0]["letter_box"] == "1"
    assert pruned.model.blocks[0]["width"] == "32"
