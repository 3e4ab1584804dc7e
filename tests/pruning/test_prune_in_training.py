import copy
import csv
import json

import numpy as np
import pytest
import torch

import test_prune
import train
from config.networks import create_cfg
from models import Darknet
from tests.networks import CFG_FOLDER, randomize, uneven
from tests.scene import make_project
from tests.stepping import make_trainer
from utils.darknet.cfg import parse_cfg, read_cfg
from utils.darknet.layers import Deconvolution
from utils.detection.checkpoints import read_checkpoint, save_checkpoint
from utils.detection.loss import YoloLoss
from utils.errors import InputError
from utils.pruning.constants import prune_masks
from utils.pruning.coupling import couple
from utils.pruning.gamma_history import GammaHistory
from utils.pruning.penalty import GammaPenalty, gamma_sizes
from utils.pruning.prune_in_training import KeptChannels, carry_optimizer, cut_alike, cut_is_exact
from utils.pruning.selection import silent_sets
from utils.pruning.surgery import compact_blocks, compact_network
from utils.training.optim import MOMENTUM, build_sgd
from utils.training.progress import EpochProgress

SIZE = 64
GATED = """
[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
activation=leaky
[avgpool]
[convolutional]
filters=4
size=1
activation=logistic
[scale_channels]
from=-3
[convolutional]
filters=6
size=1
activation=linear
[yolo]
mask=0
anchors=8,8
classes=1
num=1
"""


def trained(base="v3", width=0.0625, steps=3, strategy="slim"):
    """A narrow network after a few sparse steps, with its average, optimizer and penalty; half of its gammas are 0."""
    model = randomize(Darknet(create_cfg(base, 1, SIZE, width=width)), near_zero=0.5).train()
    average = randomize(copy.deepcopy(model), seed=1)  # other betas, other statistics
    optimizer = build_sgd(model, 0.001)
    penalty = GammaPenalty(model, 5.0, strategy, "proximal", MOMENTUM)
    for _ in range(steps):
        take_step(model, optimizer, penalty)
    average.load_state_dict(
        {
            name: value if "batch_norm" in name else model.state_dict()[name]
            for name, value in average.state_dict().items()
        }
    )
    penalty.copy_zeros(average)
    return model, average, optimizer, penalty


def take_step(model, optimizer, penalty, seed=0):
    random = torch.Generator().manual_seed(seed)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.4], [1, 0, 0.25, 0.6, 0.2, 0.2]])
    loss = YoloLoss(model)
    value, _ = loss(model(torch.rand(2, 3, SIZE, SIZE, generator=random)), loss.assign(targets, SIZE), SIZE)
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
    optimizer.step()
    optimizer.zero_grad()
    penalty.after_step(0.001)


def outputs(model, images):
    with torch.no_grad():
        return copy.deepcopy(model).raw_outputs(images)


# what goes


def test_only_what_is_wholly_zero_goes_and_a_layer_keeps_a_channel():
    model = Darknet(create_cfg("v3", 1, SIZE, width=0.0625))
    coupling = couple(model.spec)
    gammas = {index: np.ones_like(values) for index, values in gamma_sizes(model).items()}
    trunk = next(k for k, s in enumerate(coupling.sets) if len(s.layers) > 2 and not s.fixed)
    members = coupling.sets[trunk].members
    for layer, channel in members[:-1]:
        gammas[layer][channel] = 0
    assert not silent_sets(coupling, "shortcut", gammas).any()  # its last member still speaks
    layer, channel = members[-1]
    gammas[layer][channel] = 0
    assert np.flatnonzero(silent_sets(coupling, "shortcut", gammas)).tolist() == [trunk]
    assert np.flatnonzero(silent_sets(coupling, "slim", gammas)).tolist() == [trunk]
    assert not silent_sets(coupling, "normal", gammas).any()  # which leaves the trunks whole
    gammas = {index: np.zeros_like(values) for index, values in gammas.items()}
    dead = silent_sets(coupling, "slim", gammas)
    assert all(
        (~dead[coupling.outputs[c.index]]).sum() == 1 or not dead[coupling.outputs[c.index]].any()
        for c in model.spec.convolutions
    )


def test_what_a_gate_reads_stays():
    model = Darknet(parse_cfg(GATED))
    assert not silent_sets(couple(model.spec), "slim", {0: np.zeros(4)}).any()


# exactness


@pytest.mark.parametrize(
    ("base", "width", "strategy"),
    [("v3", 0.0625, "slim"), ("v3", 0.0625, "normal"), ("v3-tiny", 0.25, "normal"), ("v3-spp", 0.0625, "shortcut")],
)
def test_network_and_average_compute_what_they_did(base, width, strategy):
    model, average, _, penalty = trained(base, width, strategy=strategy)
    coupling = penalty.coupling
    dead = silent_sets(coupling, strategy, gamma_sizes(model))
    assert dead.sum() > 20
    cut, (small, small_average) = cut_alike([model, average], coupling, dead)
    assert cut.removed_channels > 20
    assert small.blocks == small_average.blocks
    images = torch.rand(2, 3, SIZE, 2 * SIZE)
    for old, new in ((model, small), (average, small_average)):
        for mode in (True, False):  # batch statistics, and running ones
            for wanted, found in zip(outputs(old.train(mode), images), outputs(new.train(mode), images), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    assert cut_is_exact([model, average], [small, small_average], SIZE)
    small.conv(small.spec.convolutions[-1].index).bias.data.add_(1)
    assert not cut_is_exact([model, average], [small, small_average], SIZE)


def test_cuts_come_to_an_end_at_the_carriers():
    model, average, *_ = trained()
    networks, gone = [model, average], []
    images = torch.rand(1, 3, SIZE, SIZE)
    wanted = outputs(model.eval(), images)
    while not gone or gone[-1]:
        coupling = couple(networks[0].spec)
        cut, smaller = cut_alike(networks, coupling, silent_sets(coupling, "slim", gamma_sizes(networks[0])))
        gone.append(cut.removed_channels)
        assert cut.removed_channels or smaller == networks
        networks = smaller
    assert gone[0] > 10 * sum(gone[1:])
    for before, after in zip(wanted, outputs(networks[0].eval(), images), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=2e-5 * float(before.abs().max()))


# training goes on


def test_the_optimizer_keeps_what_it_knows_of_the_channels_that_stay():
    model, average, optimizer, penalty = trained()
    dead = silent_sets(penalty.coupling, "slim", gamma_sizes(model))
    cut, (small, _) = cut_alike([model, average], penalty.coupling, dead)
    new = build_sgd(small, 0.001)
    carry_optimizer(optimizer, new, model, small, cut)
    assert len(new.state) == len(optimizer.state) == len(list(small.parameters()))
    carriers = 0
    for layer in model.spec.convolutions:
        i = layer.index
        kept, read = cut.kept_outputs(i), cut.kept_inputs(layer)
        still = cut.dead[cut.coupling.outputs[i]][kept]
        carriers += still.sum()
        names = (
            ["conv_{}.weight", "batch_norm_{}.weight", "batch_norm_{}.bias"]
            if layer.batch_normalize
            else ["conv_{}.weight", "conv_{}.bias"]
        )
        for name in names:
            parameter = f"module_list.{i}.{name.format(i)}"
            before = optimizer.state[model.get_parameter(parameter)]["momentum_buffer"].numpy()[kept]
            after = new.state[small.get_parameter(parameter)]["momentum_buffer"].numpy()
            before = before[:, read] if name.startswith("conv") and name.endswith("weight") else before
            assert after.shape == tuple(small.get_parameter(parameter).shape)
            np.testing.assert_array_equal(after, before)
    assert carriers > 0


def test_momenta_of_transposed_kernels_follow_their_channels():
    model = Darknet(read_cfg(CFG_FOLDER / "deconv.cfg"))
    layer = next(layer for layer in model.spec.convolutions if isinstance(layer, Deconvolution))
    coupling = couple(model.spec)
    dead = np.array([not s.fixed and number % 3 == 0 for number, s in enumerate(coupling.sets)])
    (mask,) = prune_masks([model], coupling, dead)
    small = compact_network(model, mask)
    optimizer, new = build_sgd(model, 0.001), build_sgd(small, 0.001)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"momentum_buffer": torch.rand_like(parameter)}
    carry_optimizer(optimizer, new, model, small, mask)
    name = f"module_list.{layer.index}.conv_{layer.index}.weight"
    before = optimizer.state[model.get_parameter(name)]["momentum_buffer"].numpy()
    outputs, inputs = mask.kept_outputs(layer.index), mask.kept_inputs(layer)
    assert not outputs.all()
    assert not inputs.all()
    after = new.state[small.get_parameter(name)]["momentum_buffer"].numpy()
    np.testing.assert_array_equal(after, before[inputs][:, outputs])


def test_momenta_keep_the_memory_format_of_their_kernels():
    model, average, optimizer, penalty = trained()
    networks = [network.to(memory_format=torch.channels_last) for network in (model, average)]
    take_step(model.train(), optimizer, penalty)
    cut, (small, _) = cut_alike(networks, penalty.coupling, silent_sets(penalty.coupling, "slim", gamma_sizes(model)))
    new = build_sgd(small.to(memory_format=torch.channels_last), 0.001)
    carry_optimizer(optimizer, new, model, small, cut)
    for name, parameter in small.named_parameters():
        assert new.state[parameter]["momentum_buffer"].stride() == parameter.stride(), name


def test_carriers_start_as_constants_and_come_back_to_life_without_a_penalty():
    model, average, optimizer, penalty = trained()
    cut, (small, _) = cut_alike(
        [model, average], penalty.coupling, silent_sets(penalty.coupling, "slim", gamma_sizes(model))
    )
    new = build_sgd(small, 0.001)
    carry_optimizer(optimizer, new, model, small, cut)
    carriers = {
        layer.index: cut.dead[cut.coupling.outputs[layer.index]][cut.kept_outputs(layer.index)]
        for layer in small.spec.convolutions
    }

    def gammas():
        return np.concatenate([gamma_sizes(small)[index][mask] for index, mask in carriers.items() if mask.any()])

    assert len(gammas())
    assert not gammas().any()
    penalty = GammaPenalty(small, 0.0, "slim", "proximal", MOMENTUM)
    for step in range(3):
        take_step(small.train(), new, penalty, seed=step)
    assert (gammas() > 0).mean() > 0.5


# which channels are left


def test_the_gammas_of_what_is_left_are_spread_over_the_first_network():
    model, average, _, penalty = trained()
    full = gamma_sizes(model)
    kept_channels = KeptChannels(model.spec)
    cut, (small, _) = cut_alike([model, average], penalty.coupling, silent_sets(penalty.coupling, "slim", full))
    kept_channels.cut(cut)
    spread = kept_channels.spread(gamma_sizes(small))
    assert spread.keys() == full.keys()
    for index, values in full.items():
        np.testing.assert_array_equal(spread[index], values)  # what was cut had been 0
    histories = GammaHistory(), GammaHistory()
    histories[0].record(0, penalty.coupling, "slim", full)
    histories[1].record(0, kept_channels.coupling, "slim", spread)
    np.testing.assert_array_equal(histories[0].quintiles, histories[1].quintiles)
    assert histories[0].allowed == histories[1].allowed
    assert compact_blocks(model.blocks, kept_channels.counts()) == kept_channels.blocks(model.blocks) == small.blocks

    again = KeptChannels(model.spec)
    again.load_state(kept_channels.state(), "last.pth")
    assert again.counts() == kept_channels.counts()
    other = KeptChannels(Darknet(create_cfg("v3-tiny", 1, SIZE, width=0.25)).spec)
    with pytest.raises(InputError, match=r"last\.pth: belongs to another cfg"):
        other.load_state(kept_channels.state(), "last.pth")


# train.py


FAST = ["--n_cpu", "0", "--batch_size", "4", "-sr", "--s", "1", "-pre", "start.pth", "--checkpoint_interval", "1"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, train=12)
    save_checkpoint("start.pth", uneven(Darknet("config/yolov3-hand.cfg")))
    return tmp_path


def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words]))


def test_a_run_with_cuts_gets_smaller_resumes_and_ends_in_files_for_test_prune(project, monkeypatch, no_plots, capsys):
    options = [*FAST, "--epochs", "4", "--prune_every", "2"]
    run(train, *options, "--name", "whole")
    assert "dead channels cut out" in capsys.readouterr().out

    evaluate, calls = train.evaluate, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:  # one before the first step
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as context:
        context.setattr(train, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(train, *options, "--name", "parts")
    run(train, *options, "--name", "parts", "--resume")
    whole, parts = (read_checkpoint(f"checkpoints/{name}_last.pth") for name in ("whole", "parts"))
    for wanted, found in ((whole["model"], parts["model"]), (whole["training"]["model"], parts["training"]["model"])):
        assert wanted.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert whole["cfg"] == parts["cfg"] == (project / "runs/whole/yolov3-hand.cfg").read_text()

    logs = []
    for name in ("whole", "parts"):
        with open(project / f"runs/{name}/log.csv", newline="") as file:
            logs.append([{key: v for key, v in row.items() if key != "seconds"} for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    channels = [int(row["channels"]) for row in logs[0]]
    first = sum(layer.channels for layer in Darknet("config/yolov3-hand.cfg").spec.convolutions)
    assert channels[0] == first > channels[1] == channels[2] > channels[3]
    near_zero = [float(row["gamma_near_zero"]) for row in logs[0]]
    assert near_zero == sorted(near_zero)  # channels that are gone count as 0
    with np.load(project / "runs/whole/gammas.npz") as saved:
        assert saved["first_layer"].shape == (4, Darknet("config/yolov3-hand.cfg").spec.layers[0].channels)

    model = ["--model_def", "runs/whole/yolov3-hand.cfg", "--weights_path", "checkpoints/whole_ckpt.pth"]
    run(test_prune, *model, "--percent", "0.2", "--force", "--n_cpu", "0", "--json", "report.json")
    report = json.loads((project / "report.json").read_text())
    assert report["max_diff"] < 1e-4
    assert (project / "runs/whole/prune_yolov3-hand.cfg").exists()


def test_an_epoch_is_pruned_once():
    trainer = make_trainer(
        read_cfg(CFG_FOLDER / "v3-tiny.cfg"), torch.device("cpu"), sparsity="constant", prune_every=1
    )
    trainer.kept_channels = KeptChannels(trainer.model.spec)

    def prune_two_of_each_layer():
        for norm in trainer.model.batch_norms.values():
            norm.weight.data[:2] = 0
        trainer.ema.model.load_state_dict(trainer.model.state_dict())
        return trainer.prune()

    assert prune_two_of_each_layer()
    resumed = EpochProgress(len(trainer.model.heads))
    resumed.load_state(trainer.progress.state(), trainer.device)
    trainer.progress = resumed
    assert not prune_two_of_each_layer()
    trainer.end_epoch()
    assert prune_two_of_each_layer()


@pytest.mark.parametrize("options", [[], ["-sr", "--sr_method", "subgradient"]])
def test_cuts_without_exact_zeros_are_refused(project, options):
    with pytest.raises(InputError, match="--prune_every needs -sr with --sr_method proximal"):
        run(train, "--prune_every", "1", "--epochs", "1", *options)
