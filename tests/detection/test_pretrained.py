"""Weights to start training from: other class counts, grey for RGB, and the checkpoints of other programs."""

import re

import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import CFG_FOLDER, narrow, randomize
from utils.darknet.cfg import format_cfg
from utils.detection.checkpoints import load_darknet, load_weights, read_checkpoint, save_checkpoint
from utils.detection.options import check_batch_norm
from utils.detection.pretrained import load_pretrained, with_classes
from utils.errors import InputError

BASES = ["v3", "v3-spp", "v3-tiny", "v4", "v4-tiny", "v4-csp", "v7-tiny", "v3-tiny-prn", "enet", "grey"]


def network(base="v3-tiny", classes=80, channels=None, seed=1):
    """One of our small networks with other classes and channels, and random weights."""
    spec = Darknet(narrow(CFG_FOLDER / f"{base}.cfg")).spec
    torch.manual_seed(seed)
    return randomize(Darknet(with_classes(spec, classes, channels or spec.channels)), seed=seed)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def layer_number(name):
    return int(name.split(".")[1])


def assert_all_but(layers, model, before, source):
    """Layers ``layers`` of ``model`` are as ``before``, all others are those of ``source`` to the bit."""
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # which Darknet's files do not have
            expected = before if layer_number(name) in layers else source.state_dict()
            assert torch.equal(tensor, expected[name]), name


def save(model, path):
    """Save in the format that the name says: Darknet's, a checkpoint (.pth), or a plain state dict (.pt)."""
    if path.suffix == ".weights":
        model.save_darknet_weights(path)
    elif path.suffix == ".pth":
        save_checkpoint(path, model, epoch=1)
    else:
        torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("file", ["a.weights", "a.pth", "a.pt"])
@pytest.mark.parametrize("base", BASES)
def test_weights_of_other_classes_fill_all_but_the_last_convolutions_of_the_heads(tmp_path, base, file):
    source, model = network(base, 80), network(base, 3, seed=2)
    before = state(model)
    line = load_pretrained(model, save(source, tmp_path / file)).line
    last = list(model.spec.head_convolutions)
    assert last == [head.index - 1 for head in model.spec.heads]
    assert f"weights for all convolutions but layers {', '.join(map(str, last))}, the last of the heads" in line
    assert "80 classes" in line
    assert "\n" not in line
    assert_all_but(last, model, before, source)


@pytest.mark.parametrize("file", ["a.weights", "a.pth", "a.pt"])
@pytest.mark.parametrize(("classes", "expected"), [(1, 80), (2, 3), (20, 1)])
def test_any_number_of_classes_is_told_from_the_file(tmp_path, file, classes, expected):
    model = network(classes=expected, seed=2)
    assert f"it has {classes} class" in load_pretrained(model, save(network(classes=classes), tmp_path / file)).line


@pytest.mark.parametrize("file", ["a.weights", "a.pth", "a.pt"])
def test_weights_of_the_same_classes_fill_everything(tmp_path, file):
    source, model = network(), network(seed=2)
    assert load_pretrained(model, save(source, tmp_path / file)).line.endswith("weights for all convolutions")
    assert_all_but([], model, {}, source)


def test_loading_changes_no_random_numbers_of_the_training_after_it(tmp_path):
    path, model = save(network(), tmp_path / "a.weights"), network(classes=1, seed=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_pretrained(model, path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("file", ["a.weights", "a.pth", "a.pt"])
@pytest.mark.parametrize("classes", [80, 2])
def test_kernels_over_rgb_are_summed_for_grey_images(tmp_path, file, classes):
    rgb, grey = network(channels=3), network(classes=classes, channels=1, seed=2)
    line = load_pretrained(grey, save(rgb, tmp_path / file)).line
    assert "kernels that read the image are summed over RGB" in line
    assert torch.equal(grey.conv(0).weight, rgb.conv(0).weight.sum(dim=1, keepdim=True))
    assert torch.equal(grey.conv(2).weight, rgb.conv(2).weight)
    if classes == 80:
        image = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(grey(image), rgb(image.expand(1, 3, 64, 64)), rtol=1e-4, atol=1e-4)


def test_a_cfg_tells_what_a_file_of_other_anchors_is_of(tmp_path):
    blocks = network(classes=4).blocks
    for index, block in enumerate(blocks):
        if block["type"] == "yolo":
            block["mask"] = "0"
            blocks[index - 1]["filters"] = "9"
    source, model = randomize(Darknet(blocks)), network(classes=1, seed=2)
    (tmp_path / "there.cfg").write_text(format_cfg(blocks))
    path, before = save(source, tmp_path / "a.weights"), state(model)
    with pytest.raises(InputError, match=r"a\.weights: too .*give it with --pretrained_cfg"):
        load_pretrained(model, path)
    assert "1 anchors per head, the cfg 1 and 3" in load_pretrained(model, path, str(tmp_path / "there.cfg")).line
    assert_all_but(list(model.spec.head_convolutions), model, before, source)


def test_a_cfg_that_contradicts_the_one_in_the_checkpoint_is_refused(tmp_path):
    path = save(network(), tmp_path / "a.pth")
    (tmp_path / "there.cfg").write_text(format_cfg(network(classes=5).blocks))
    with pytest.raises(InputError, match=r"classes=5|filters=30"):
        load_pretrained(network(), path, str(tmp_path / "there.cfg"))


@pytest.mark.parametrize("file", ["a.weights", "a.pth", "a.pt"])
def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path, file):
    path = save(randomize(Darknet(create_cfg("v3-tiny", 80, 64, width=0.25))), tmp_path / file)
    model = randomize(Darknet(create_cfg("v3-tiny", 1, 64, width=0.125)))
    before = state(model)
    with pytest.raises(InputError, match=rf"{re.escape(path)}: (belongs to another cfg|too )") as error:
        load_pretrained(model, path)
    assert "\n" not in str(error.value)
    assert_all_but(range(99), model, before, model)


def test_a_network_with_fewer_convolutions_is_refused_with_both_counts(tmp_path):
    path = save(network("v3-tiny"), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: belongs to another cfg: it has 12 convolutions, 27 in the cfg"):
        load_pretrained(network("v3"), path)


# Checkpoints of other programs


def _ultralytics(weights):
    return {
        re.sub(r"batch_norm_\d+", "BatchNorm2d", re.sub(r"conv_\d+", "Conv2d", name)): tensor
        for name, tensor in weights.items()
    }


def _by_place(weights):
    """Names as of modules without names, where BatchNorm's parameters come before the convolution's."""
    renamed = {
        re.sub(r"batch_norm_\d+", "1", re.sub(r"conv_\d+", "0", name)).replace("module_list", "layers"): tensor
        for name, tensor in weights.items()
    }
    return dict(sorted(renamed.items(), key=lambda item: item[0][::-1]))


def _counted(weights):
    counters = {"total_ops": torch.zeros(1), "module_list.0.total_ops": torch.zeros(1)}
    return weights | counters | {"module_list.0.conv_0.total_params": torch.zeros(1)}


WAYS = {
    "ultralytics": _ultralytics,
    "ultralytics, DataParallel": lambda w: {f"module.{name}": tensor for name, tensor in _ultralytics(w).items()},
    "ultralytics, sorted": lambda w: dict(sorted(_ultralytics(w).items())),
    "by place": _by_place,
    "a wrapper": lambda w: {f"model.{name}": tensor for name, tensor in w.items()},
    "thop": _counted,
    "entry model": lambda w: {"epoch": 3, "best_fitness": 0.1, "model": _ultralytics(w), "optimizer": None},
    "NumPy": lambda w: {"best_fitness": np.array([0.1]), "map": np.float64(0.1), "model": _ultralytics(w)},
    "entry state_dict": lambda w: {"state_dict": w},
    "entry ema": lambda w: {"ema": w, "model": {name: torch.zeros_like(tensor) for name, tensor in w.items()}},
    "without counts": lambda w: {n: t for n, t in _ultralytics(w).items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("classes", [80, 3])
@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_of_other_programs_are_read_to_start_from(tmp_path, way, classes):
    source, model = network("v3"), network("v3", classes, seed=2)
    torch.save(WAYS[way](state(source)), tmp_path / "last.pt")
    before = state(model)
    load_pretrained(model, str(tmp_path / "last.pt"))
    assert_all_but(model.spec.head_convolutions if classes == 3 else [], model, before, source)


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_of_other_programs_are_read_with_a_cfg(tmp_path, way):
    source = network("v3")
    torch.save(WAYS[way](state(source)), tmp_path / "last.pt")
    (tmp_path / "a.cfg").write_text(format_cfg(source.blocks))
    model, metadata = load_darknet(str(tmp_path / "last.pt"), str(tmp_path / "a.cfg"))
    assert_all_but([], model, {}, source)
    assert metadata == {}  # what other programs write down means something else


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("ultralytics", "names of ultralytics' yolov3, read in order"),
        ("by place", "names of another program, read in order"),
        ("entry ema", "holds ema and model: ema is used"),
        ("thop", None),
    ],
)
def test_how_a_foreign_file_was_read_is_said_in_one_line(tmp_path, capsys, way, line):
    path = tmp_path / "last.pt"
    torch.save(WAYS[way](state(network())), path)
    load_weights(network(seed=2), path)
    assert capsys.readouterr().err.splitlines() == ([f"{path}: {line}"] if line else [])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: {n: t for n, t in w.items() if "list.0." not in n}, "it has 11 convolutions, the cfg has 12"),
        (lambda w: {n: t for n, t in w.items() if "list.2.Batch" not in n}, "it has 9 BatchNorms, the cfg has 10"),
        (lambda w: w | {"module_list.0.w": torch.ones(2)}, "which also has module_list.0"),
        (lambda w: w | {"module_list.0.Conv2d.weight": torch.ones(1, 3, 3, 3)}, "has shape .* there"),
    ],
)
def test_foreign_weights_of_another_network_are_refused(tmp_path, edit, message):
    torch.save(edit(_ultralytics(state(network()))), tmp_path / "last.pt")
    model = network(seed=2)
    before = state(model)
    with pytest.raises(InputError, match=message):
        load_weights(model, tmp_path / "last.pt")
    assert_all_but(range(99), model, before, model)


def test_a_pickled_network_is_refused_with_how_to_save_it_anew(tmp_path):
    torch.save({"model": network()}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"torch\.save\(model\.state_dict\(\), ") as error:
        read_checkpoint(tmp_path / "last.pt")
    assert "\n" not in str(error.value)


# Batches of one image


def test_statistics_of_one_value_are_refused_in_one_line():
    model = network("v3-tiny")
    check_batch_norm(model, 32, 2)
    check_batch_norm(model, 64, 1)
    with pytest.raises(InputError, match=r"layer 10 \[convolutional\]: .*--batch_size of at least 2") as error:
        check_batch_norm(model, 32, 1)
    assert "\n" not in str(error.value)


def test_a_file_that_does_not_keep_the_order_of_layers_is_not_read_in_order(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = network("v3")
    renamed = {
        re.sub(r"module_list\.(\d+)", lambda found: f"{'abc'[int(found[1]) % 3]}.{found[1]}", name): tensor.contiguous()
        for name, tensor in _ultralytics(state(model)).items()
    }
    path = tmp_path / "x.safetensors"
    safetensors.save_file(renamed, path)
    with pytest.raises(InputError, match=r"x\.safetensors: safetensors files do not keep the order of layers"):
        load_weights(model, path)
