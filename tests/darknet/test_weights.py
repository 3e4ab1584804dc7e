import struct

import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from utils.darknet.cfg import parse_cfg
from utils.darknet.weights import count_values, is_darknet_weights, load_darknet_weights
from utils.detection.pretrained import load_pretrained
from utils.errors import InputError

SMALL = """[net]
width=4
height=4
channels=3
[convolutional]
batch_normalize=1
filters=2
size=1
[maxpool]
[convolutional]
filters=6
size=1
[yolo]
mask=0
anchors=10,14
classes=1
num=1
"""
# In the order of the file: bias, gamma, mean, variance and kernel of layer 0; bias and kernel of layer 2.
PARTS = [2, 2, 2, 2, 6, 6, 12]
COUNT = sum(PARTS)


def small():
    return Darknet(parse_cfg(SMALL))


def tiny(seed=0):
    return randomize(Darknet(create_cfg("v3-tiny", 1, 64, width=0.25)), seed=seed)


def values(count=COUNT):
    """Numbers that float32 does not round."""
    return [0.5 + k / 64 for k in range(count)]


def weights_file(path, header, numbers):
    path.write_bytes(header + struct.pack(f"<{len(numbers)}f", *numbers))
    return path


def header(major=0, minor=2, revision=5, seen=12345):
    """Darknet's load_weights: ``seen`` has 64 bits from version 0.2 on."""
    return struct.pack("<3i" + ("Q" if major * 10 + minor >= 2 else "I"), major, minor, revision, seen)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize(("version", "length"), [((0, 1, 0), 16), ((0, 2, 0), 20), ((0, 2, 5), 20), ((1, 0, 0), 20)])
def test_every_value_goes_to_its_tensor_whatever_the_version(tmp_path, version, length):
    assert len(header(*version)) == length
    model = small()
    model.load_darknet_weights(weights_file(tmp_path / "a.weights", header(*version), values()))
    bias, gamma, mean, variance, kernel, head_bias, head_kernel = np.split(np.array(values()), np.cumsum(PARTS)[:-1])
    norm, conv, head = model.batch_norm(0), model.conv(0), model.conv(2)
    assert norm.bias.tolist() == bias.tolist()
    assert norm.weight.tolist() == gamma.tolist()
    assert norm.running_mean.tolist() == mean.tolist()
    assert norm.running_var.tolist() == variance.tolist()
    assert conv.weight.flatten().tolist() == kernel.tolist()
    assert head.bias.tolist() == head_bias.tolist()
    assert head.weight.flatten().tolist() == head_kernel.tolist()
    assert head.weight.shape == (6, 2, 1, 1)  # filter by filter, then channel by channel


def test_kernels_are_stored_filter_channel_row_column(tmp_path):
    model = Darknet(parse_cfg(SMALL.replace("filters=6\nsize=1", "filters=6\nsize=3\npad=1")))
    model.load_darknet_weights(weights_file(tmp_path / "a.weights", header(), values(14 + 6 + 6 * 2 * 9)))
    kernel = model.conv(2).weight
    assert kernel[4, 1, 2, 0].item() == values(999)[14 + 6 + 4 * 18 + 1 * 9 + 2 * 3]


def test_kernels_of_deconvolutions_are_stored_channel_filter_row_column(tmp_path):
    deconvolution = "[deconvolutional]\nfilters=3\nsize=2\nstride=2\n"
    model = Darknet(parse_cfg(SMALL.replace("[maxpool]", deconvolution)))
    content = values(8 + 6 + 3 + 2 * 3 * 4 + 6 + 6 * 3)
    model.load_darknet_weights(weights_file(tmp_path / "a.weights", header(), content))
    assert model.conv(1).bias.tolist() == content[14:17]
    assert model.conv(1).weight[1, 2, 0, 1].item() == content[17 + 1 * 12 + 2 * 4 + 0 * 2 + 1]
    model.save_darknet_weights(tmp_path / "b.weights")
    assert (tmp_path / "b.weights").read_bytes()[20:] == struct.pack(f"<{len(content)}f", *content)


def test_a_grouped_kernel_holds_the_channels_of_its_group_only(tmp_path):
    model = Darknet(parse_cfg(SMALL.replace("[maxpool]", "[convolutional]\nfilters=2\nsize=3\npad=1\ngroups=2")))
    model.load_darknet_weights(weights_file(tmp_path / "a.weights", header(), values(14 + 2 + 18 + 18)))
    assert model.conv(1).weight.flatten().tolist() == values()[14 + 2 :][:18] + values(99)[COUNT : 14 + 2 + 18]


def test_the_file_is_written_byte_for_byte_as_darknet_does(tmp_path):
    model = small()
    source = weights_file(tmp_path / "a.weights", header(0, 1, 0), values())
    model.load_darknet_weights(source)
    model.save_darknet_weights(tmp_path / "b.weights", seen=2**40 + 7)
    assert (tmp_path / "b.weights").read_bytes() == struct.pack(f"<3iQ{COUNT}f", 0, 2, 5, 2**40 + 7, *values())


def test_saving_and_loading_keeps_every_bit(tmp_path):
    model, other = tiny(seed=1), tiny(seed=2)
    model.batch_norm(0).running_mean[0] = -0.0
    model.batch_norm(0).running_mean[1] = 1e-42  # a denormal
    model.save_darknet_weights(tmp_path / "a.weights")
    other.load_darknet_weights(tmp_path / "a.weights")
    for name, tensor in state(model).items():
        if not name.endswith("num_batches_tracked"):  # which Darknet does not know
            assert tensor.numpy().tobytes() == other.state_dict()[name].numpy().tobytes(), name
    other.save_darknet_weights(tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_written_in_float32(tmp_path, dtype):
    model = small().to(dtype)
    model.save_darknet_weights(tmp_path / "a.weights")
    assert (tmp_path / "a.weights").stat().st_size == 20 + 4 * COUNT


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "too short: layer 0 needs 14 values, 0 are left"),
        (13, "too short: layer 0 needs 14 values, 13 are left"),
        (15, "too short: layer 2 needs 18 values, 1 are left"),
        (COUNT - 1, "too short: layer 2 needs 18 values, 17 are left"),
        (COUNT + 1, "too long: 1 values are left after layer 2"),
        (2 * COUNT, "too long: 32 values are left after layer 2"),
    ],
)
def test_a_file_of_another_length_names_the_layer_and_changes_nothing(tmp_path, count, message, partial):
    model = small()
    before = state(model)
    path = weights_file(tmp_path / "a.weights", header(), values(count))
    with pytest.raises(InputError, match=rf"a\.weights: {message}") as error:
        load_darknet_weights(model, path, partial)
    assert "\n" not in str(error.value)
    assert_same(before, state(model))


@pytest.mark.parametrize(("position", "layer"), [(13, 0), (14, 2), (COUNT - 1, 2)])
def test_values_that_are_not_finite_name_their_layer_and_change_nothing(tmp_path, position, layer):
    model = small()
    before = state(model)
    numbers = values()
    numbers[position] = float("nan")
    path = weights_file(tmp_path / "a.weights", header(), numbers)
    with pytest.raises(InputError, match=rf"a\.weights: layer {layer} has weights that are not finite"):
        load_darknet_weights(model, path)
    assert_same(before, state(model))


def test_a_backbone_fills_the_first_layers_only_where_that_is_asked_for(tmp_path):
    backbone = weights_file(tmp_path / "darknet53.conv.74", header(), values(14))
    model = small()
    before = state(model)
    with pytest.raises(
        InputError, match=r"darknet53\.conv\.74: too short: layer 2 needs 18 values, 0 are left; .*-pre"
    ):
        model.load_darknet_weights(backbone)
    assert_same(before, state(model))
    assert load_darknet_weights(model, backbone, partial=True) == 1
    assert model.conv(0).weight.flatten().tolist() == values(14)[8:]
    assert torch.equal(model.conv(2).weight, before["module_list.2.conv_2.weight"])
    assert torch.equal(model.conv(2).bias, before["module_list.2.conv_2.bias"])


def test_a_whole_file_fills_every_convolution(tmp_path):
    path = weights_file(tmp_path / "a.weights", header(), values())
    assert load_darknet_weights(small(), path) == 2
    assert load_darknet_weights(small(), path, partial=True) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 15,
        header()[:16],  # version 0.2.5 has a longer header
        header()[:19],
        header() + b"\0" * 4 * COUNT + b"\0",
        b"PK\3\4" + b"\0" * 4 * COUNT,  # what torch.save writes
        b"this is a text, not a file of weights",
        struct.pack("<3iQ", -1, 2, 5, 0) + b"\0" * 4 * COUNT,
    ],
    ids=["empty", "15 bytes", "16 bytes", "19 bytes", "one byte too many", "zip", "text", "negative version"],
)
def test_what_is_no_weights_file_is_refused_and_changes_nothing(tmp_path, content):
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    model = small()
    before = state(model)
    with pytest.raises(InputError, match=r"a\.weights: ") as error:
        load_darknet_weights(model, path)
    assert "\n" not in str(error.value)
    assert_same(before, state(model))


def test_the_values_of_a_file_are_counted_without_its_header(tmp_path):
    assert count_values(weights_file(tmp_path / "a.weights", header(), values())) == COUNT
    assert count_values(weights_file(tmp_path / "a.weights", header(0, 1, 0), values())) == COUNT


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.weights: there is no such weights file"):
        small().load_darknet_weights(tmp_path / "none.weights")


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = weights_file(tmp_path / "a.weights", header(), values(99))
    model = small()
    model.save_darknet_weights(path)
    written = path.read_bytes()
    assert len(written) == 20 + 4 * COUNT
    model.conv(2).to("meta")  # so that writing fails behind layer 0
    with pytest.raises(Exception, match="meta"):
        model.save_darknet_weights(path)
    assert path.read_bytes() == written
    assert [file.name for file in tmp_path.iterdir()] == ["a.weights"]


@pytest.mark.parametrize(
    ("name", "darknets"),
    [
        ("yolov3.weights", True),
        ("checkpoints/yolov3-tiny_final.weights", True),
        ("darknet53.conv.74", True),
        ("yolov3-tiny.conv.15", True),
        ("yolov4-tiny.conv.29", True),
        ("yolov3-tiny-hand.backup", True),
        (".weights", False),
        ("a.weights.pth", False),
        ("yolov3_ckpt.pth", False),
        ("my.conv.pth", False),
        ("a.weights/yolov3_ckpt.pth", False),
        ("weights", False),
    ],
)
def test_a_darknet_file_is_known_by_its_name(name, darknets):
    assert is_darknet_weights(name) is darknets


@pytest.mark.parametrize("base", ["v3", "v3-spp"])
def test_darknet53_fills_every_network_that_begins_with_it_and_the_count_is_said(tmp_path, base):
    source = randomize(Darknet(create_cfg("v3", 1, 64, width=0.0625)))
    source.save_darknet_weights(tmp_path / "whole.weights")
    backbone = source.spec.convolutions[:52]  # up to layer 74
    size = sum(sum(t.numel() for t in source.module_list[c.index].state_dict().values()) - 1 for c in backbone)
    (tmp_path / "darknet53.conv.74").write_bytes((tmp_path / "whole.weights").read_bytes()[: 20 + 4 * size])
    model = Darknet(create_cfg(base, 3, 96, width=0.0625))
    line = load_pretrained(model, str(tmp_path / "darknet53.conv.74")).line
    count = len(model.spec.convolutions)
    assert f"weights for 52 of {count} convolutions" in line
    assert all(torch.equal(model.conv(c.index).weight, source.conv(c.index).weight) for c in backbone)
    with pytest.raises(InputError, match="too short: layer 75"):
        model.load_darknet_weights(tmp_path / "darknet53.conv.74")


@pytest.mark.parametrize(("own", "theirs", "size"), [(1, 80, "too long"), (20, 2, "too short")])
def test_a_file_of_other_classes_is_refused_with_their_number(tmp_path, own, theirs, size):
    Darknet(create_cfg("v3-tiny", theirs, 64, width=0.25)).save_darknet_weights(tmp_path / "a.weights")
    model = Darknet(create_cfg("v3-tiny", own, 64, width=0.25))
    advice = f"the file is that of a cfg with classes={theirs}, not {own}"
    with pytest.raises(InputError, match=rf"a\.weights: {size}: .*; {advice}"):
        model.load_darknet_weights(tmp_path / "a.weights")
