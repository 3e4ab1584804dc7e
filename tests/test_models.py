import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import narrow, randomize
from utils.darknet.activations import ACTIVATIONS as SUPPORTED
from utils.darknet.activations import NOT_ZERO_AT_ZERO
from utils.darknet.cfg import parse_cfg, read_cfg
from utils.data.data_config import DataConfig
from utils.detection.complexity import count_parameters, state_dict_size
from utils.detection.options import check_classes, network_size
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
HEAD = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def linear(filters):
    """A 1x1 convolution whose output has both signs."""
    return f"[convolutional]\nfilters={filters}\nsize=1\nactivation=linear\n"


def spec(text, height=6, width=9, head=HEAD):
    return Darknet(parse_cfg(f"[net]\nwidth={width}\nheight={height}\nchannels=3\n{text}{head}")).eval()


def tiny(classes=1, img_size=64):
    """YOLOv3-tiny with a quarter of the channels and random statistics, in eval mode."""
    return randomize(Darknet(create_cfg("v3-tiny", classes, img_size, width=0.25)), near_zero=0)


@torch.no_grad()
def outputs(model, images=None):
    """What each layer gives for one image, as (C, H, W) arrays by layer number; -1 is the image."""
    size = model.spec
    images = torch.randn(1, 3, size.height, size.width) if images is None else images
    found = {-1: images[0].double().numpy()}
    with ExitStack() as hooks:
        for index, module in enumerate(model.module_list):

            def keep(_module, _inputs, output, index=index):
                found[index] = output[0].double().numpy()

            hooks.enter_context(module.register_forward_hook(keep))
        model(images)
    return found


def assert_equal(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# Darknet's arithmetic, layer by layer, against loops that follow its C code


def maxpool(x, size, stride_y, stride_x, padding):
    channels, height, width = x.shape
    out_height, out_width = (height + padding - size) // stride_y + 1, (width + padding - size) // stride_x + 1
    out = np.full((channels, out_height, out_width), -np.inf)
    for k, i, j, n, m in np.ndindex(*out.shape, size, size):
        row, column = i * stride_y + n - padding // 2, j * stride_x + m - padding // 2
        if 0 <= row < height and 0 <= column < width:
            out[k, i, j] = max(out[k, i, j], x[k, row, column])
    return out


@pytest.mark.parametrize(
    ("options", "numbers"),  # size, stride_y, stride_x, padding
    [
        ("size=2\nstride=1", (2, 1, 1, 1)),
        ("size=2\nstride=2", (2, 2, 2, 1)),
        ("size=3\nstride=1", (3, 1, 1, 2)),
        ("size=3\nstride=2", (3, 2, 2, 2)),
        ("size=4\nstride=1", (4, 1, 1, 3)),
        ("size=5\nstride=1", (5, 1, 1, 4)),
        ("size=13\nstride=1", (13, 1, 1, 12)),
        ("size=3\nstride=2\npadding=0", (3, 2, 2, 0)),
        ("size=3\nstride=1\npadding=4", (3, 1, 1, 4)),
        ("size=2\nstride_x=2\nstride_y=1", (2, 1, 2, 1)),
        ("stride=3", (3, 3, 3, 2)),
        ("", (1, 1, 1, 0)),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 4)])
def test_maxpool_pads_with_minus_infinity(options, numbers, height, width):
    model = spec(f"{linear(2)}[maxpool]\n{options}\n", height, width)
    model.conv(0).bias.data -= 20  # below zero everywhere, so that padding with zeros would show
    found = outputs(model)
    assert found[0].max() < 0
    assert_equal(found[1], maxpool(found[0], *numbers))


def convolve(x, weight, bias, stride_y, stride_x, padding, dilation, groups):
    filters, of_group, size, _ = weight.shape
    _, height, width = x.shape
    reach = dilation * (size - 1) + 1
    out = np.zeros(
        (filters, (height + 2 * padding - reach) // stride_y + 1, (width + 2 * padding - reach) // stride_x + 1)
    )
    for f, i, j in np.ndindex(out.shape):
        out[f, i, j] = bias[f]
        first = f // (filters // groups) * of_group
        for c, n, m in np.ndindex(of_group, size, size):
            row, column = i * stride_y + n * dilation - padding, j * stride_x + m * dilation - padding
            if 0 <= row < height and 0 <= column < width:
                out[f, i, j] += weight[f, c, n, m] * x[first + c, row, column]
    return out


@pytest.mark.parametrize(
    ("options", "numbers"),  # stride_y, stride_x, padding, dilation, groups
    [
        ("filters=5\nsize=1", (1, 1, 0, 1, 1)),
        ("filters=5\nsize=3\npad=1", (1, 1, 1, 1, 1)),
        ("filters=5\nsize=3", (1, 1, 0, 1, 1)),
        ("filters=5\nsize=1\npadding=1", (1, 1, 1, 1, 1)),
        ("filters=5\nsize=3\npad=1\nstride=2", (2, 2, 1, 1, 1)),
        ("filters=5\nsize=3\npad=1\nstride_x=3\nstride_y=2", (2, 3, 1, 1, 1)),
        ("filters=5\nsize=3\npad=1\nstride_x=2", (1, 2, 1, 1, 1)),
        ("filters=5\nsize=3\npad=1\ndilation=2", (1, 1, 2, 2, 1)),
        ("filters=5\nsize=5\npad=1\ndilation=2\nstride=2", (2, 2, 4, 2, 1)),
        ("filters=4\nsize=3\npad=1\ngroups=4", (1, 1, 1, 1, 4)),
        ("filters=6\nsize=3\npad=1\ngroups=2\nstride=2", (2, 2, 1, 1, 2)),
    ],
)
def test_convolution(options, numbers):
    model = spec(f"{linear(4)}[convolutional]\n{options}\nactivation=linear\n")
    found = outputs(model)
    conv = model.conv(1)
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    assert_equal(found[1], convolve(found[0], weight, bias, *numbers))


def deconvolve(x, weight, bias, stride, padding):
    inputs, filters, size, _ = weight.shape
    _, height, width = x.shape
    out = np.tile(bias[:, None, None], (1, (height - 1) * stride + size, (width - 1) * stride + size))
    for c, i, j, f, n, m in np.ndindex(inputs, height, width, filters, size, size):
        out[f, i * stride + n, j * stride + m] += weight[c, f, n, m] * x[c, i, j]
    return out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding]


@pytest.mark.parametrize(
    ("options", "numbers", "size"),  # stride, padding; height, width of the output
    [
        ("size=4\nstride=2\npadding=1", (2, 1), (12, 18)),
        ("size=4\nstride=2\npad=1", (2, 2), (10, 16)),
        ("size=2\nstride=2", (2, 0), (12, 18)),
        ("size=3\npad=1", (1, 1), (6, 9)),
        ("size=1\nstride=3", (3, 0), (16, 25)),
    ],
)
def test_a_deconvolution_adds_each_pixel_times_the_kernel(options, numbers, size):
    model = spec(f"{linear(4)}[deconvolutional]\nfilters=5\n{options}\nactivation=linear\n")
    found = outputs(model)
    conv = model.conv(1)
    assert conv.weight.shape[:2] == (4, 5)
    assert found[1].shape[1:] == size == (model.spec.layers[1].height, model.spec.layers[1].width)
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    assert_equal(found[1], deconvolve(found[0], weight, bias, *numbers))
    assert model.spec.layers[1].macs == 6 * 9 * conv.weight.numel()


def test_batch_normalization_has_no_bias_and_darknets_epsilon():
    model = spec("[convolutional]\nfilters=4\nsize=1\nbatch_normalize=1\nactivation=linear\n")
    norm = model.batch_norm(0)
    assert type(norm) is torch.nn.BatchNorm2d
    assert model.conv(0).bias is None
    norm.running_var.fill_(1e-5)  # where the epsilon shows
    norm.running_mean.normal_()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    found = outputs(model)
    mean, gamma, beta = (
        t.detach().double().numpy()[:, None, None] for t in (norm.running_mean, norm.weight, norm.bias)
    )
    weight = model.conv(0).weight.detach().double().numpy()
    x = convolve(found[-1], weight, np.zeros(4), 1, 1, 0, 1, 1)
    assert_equal(found[0], gamma * (x - mean) / math.sqrt(2e-5) + beta, 1e-4)


ACTIVATIONS = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x >= 0, x, np.exp(x) - 1),
    "mish": lambda x: x * np.tanh(np.log(1 + np.exp(x))),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "h_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_mish": lambda x: np.where(x > 0, x, np.where(x > -2, x**2 / 2 + x, 0)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x**3)),
    "selu": lambda x: 1.0507 * np.where(x >= 0, x, 1.6732 * (np.exp(x) - 1)),
    "relie": lambda x: np.where(x > 0, x, 0.01 * x),
    "ramp": lambda x: np.where(x > 0, 1.1 * x, 0.1 * x),
    "loggy": lambda x: 2 / (1 + np.exp(-x)) - 1,
    "hardtan": lambda x: np.clip(x, -1, 1),
    "lhtan": lambda x: np.where(x < 0, 0.001 * x, np.where(x > 1, 0.001 * (x - 1) + 1, x)),
    "plse": lambda x: np.where(x < -4, 0.01 * (x + 4), np.where(x > 4, 0.01 * (x - 4) + 1, 0.125 * x + 0.5)),
    "stair": np.vectorize(lambda x: x // 2 + (x - math.floor(x) if math.floor(x) % 2 else 0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(
    "text",
    ["[activation]\nactivation={}\n", "[convolutional]\nfilters=4\nsize=1\nactivation={}\n"],
    ids=["alone", "conv"],
)
def test_activations(name, text):
    model = spec(linear(4) + text.format(name))
    model.conv(0).weight.data *= 9
    if "conv" in text:
        model.conv(1).weight.data = torch.eye(4).view(4, 4, 1, 1)
        model.conv(1).bias.data.zero_()
    found = outputs(model)
    assert found[0].min() < -6
    assert found[0].max() > 6
    assert_equal(found[1], ACTIVATIONS[name](found[0]))


def test_every_activation_is_tested_and_those_that_are_not_zero_at_zero_are_known():
    assert ACTIVATIONS.keys() == SUPPORTED.keys()
    at_zero = {name: make()(torch.zeros(1)).item() for name, make in SUPPORTED.items()}
    assert {name for name, value in at_zero.items() if value} == set(NOT_ZERO_AT_ZERO)


def add(x, *others):
    """Shortcut: what each other adds to the channels that x has too."""
    x = x.copy()
    for other in others:
        for k in range(min(len(x), len(other))):
            x[k] += other[k]
    return x


@pytest.mark.parametrize(("first", "second"), [(4, 4), (4, 6), (6, 4), (1, 5)])
def test_shortcut_adds_the_channels_that_both_have_and_keeps_the_count_of_the_layer_before(first, second):
    found = outputs(spec(linear(first) + linear(second) + "[shortcut]\nfrom=-2\nactivation=leaky\n"))
    assert len(found[2]) == second
    assert_equal(found[2], ACTIVATIONS["leaky"](add(found[1], found[0])))


def test_shortcut_of_several_layers():
    found = outputs(spec(linear(4) + linear(7) + linear(5) + "[shortcut]\nfrom=0,-2\nactivation=linear\n"))
    assert_equal(found[3], add(found[2], found[0], found[1]))


def test_shortcut_to_itself_doubles_and_leaves_its_sources_alone():
    model = spec(linear(4) + "[shortcut]\nfrom=-1\nactivation=relu\n[route]\nlayers=0,1\n")
    found = outputs(model)
    assert_equal(found[1], np.maximum(2 * found[0], 0))
    assert_equal(found[2], np.concatenate([found[0], found[1]]))


def test_route_concatenates_in_the_order_given():
    found = outputs(spec(linear(2) + linear(3) + "[route]\nlayers=1,0,-1\n"))
    assert_equal(found[2], np.concatenate([found[1], found[0], found[1]]))


@pytest.mark.parametrize("group", [0, 1, 2])
def test_route_takes_one_group_of_each_source(group):
    model = spec(linear(6) + linear(3) + f"[route]\nlayers=0,1\ngroups=3\ngroup_id={group}\n")
    found = outputs(model)
    expected = [found[0][2 * group], found[0][2 * group + 1], found[1][group]]
    assert_equal(found[2], np.stack(expected))


def reorg_cpu(x, width, height, channels, stride):
    """Darknet's reorg_cpu without ``forward``, on flat arrays, for one image."""
    out = np.empty_like(x)
    in_channels = channels // (stride * stride)
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                in_index = i + width * (j + height * k)
                offset = k // in_channels
                w2 = i * stride + offset % stride
                h2 = j * stride + offset // stride
                out_index = w2 + width * stride * (h2 + height * stride * (k % in_channels))
                out[in_index] = x[out_index]
    return out


@pytest.mark.parametrize(("stride", "channels"), [(1, 3), (2, 4), (2, 8), (3, 9)])
def test_old_reorg_reads_memory_as_darknet_does(stride, channels):
    found = outputs(spec(f"{linear(channels)}[reorg]\nstride={stride}\n", 6, 12))
    # [reorg] passes the size of its input: the result differs from a true space to depth.
    expected = reorg_cpu(found[0].ravel(), 12, 6, channels, stride)
    assert_equal(found[1], expected.reshape(channels * stride**2, 6 // stride, 12 // stride))


@pytest.mark.parametrize(("stride", "channels"), [(1, 3), (2, 3), (3, 2)])
def test_reorg3d_reads_memory_as_darknet_does(stride, channels):
    found = outputs(spec(f"{linear(channels)}[reorg3d]\nstride={stride}\n", 6, 12))
    # [reorg3d] passes the size of its output: a true space to depth.
    depth, height, width = channels * stride**2, 6 // stride, 12 // stride
    assert_equal(found[1], reorg_cpu(found[0].ravel(), width, height, depth, stride).reshape(depth, height, width))


@pytest.mark.parametrize(
    ("options", "stride", "scale"), [("", 2, 1), ("stride=3\nscale=.5", 3, 0.5), ("stride=1", 1, 1)]
)
def test_upsample_repeats_pixels_and_scales_values(options, stride, scale):
    found = outputs(spec(f"{linear(2)}[upsample]\n{options}\n"))
    assert_equal(found[1], scale * found[0].repeat(stride, axis=1).repeat(stride, axis=2))


@pytest.mark.parametrize(
    ("options", "numbers"),  # size, stride_y, stride_x, padding
    [
        ("size=2\nstride=2", (2, 2, 2, 1)),
        ("size=3\nstride=1", (3, 1, 1, 2)),
        ("size=3\nstride_x=2\nstride_y=1\npadding=1", (3, 1, 2, 1)),
        ("size=2\nstride=2\npadding=0", (2, 2, 2, 0)),
        ("size=5\nstride=2\npadding=4", (5, 2, 2, 4)),
    ],
)
def test_local_avgpool_is_the_mean_of_what_lies_inside_of_the_map(options, numbers):
    found = outputs(spec(f"{linear(4)}[local_avgpool]\n{options}\n", 7, 9))
    size, stride_y, stride_x, padding = numbers
    expected = np.zeros(found[1].shape)
    for i, j in np.ndindex(expected.shape[1:]):
        top, left = i * stride_y - padding // 2, j * stride_x - padding // 2
        window = found[0][:, max(top, 0) : top + size, max(left, 0) : left + size]
        expected[:, i, j] = window.mean(axis=(1, 2))
    assert_equal(found[1], expected)


def test_a_grey_network_turns_rgb_to_grey_and_takes_grey_images_as_they_are():
    head = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nanchors=10,14\nclasses=1\n"
    model = Darknet(parse_cfg("[net]\nwidth=9\nheight=6\nchannels=1\n" + head)).eval()
    rgb = torch.rand(2, 3, 6, 9)
    luma = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(model(rgb), model(luma))
    assert model.conv(0).weight.shape == (6, 1, 1, 1)


def test_avgpool_is_the_mean_of_the_image():
    found = outputs(spec(linear(4) + "[avgpool]\n"))
    assert_equal(found[1], found[0].sum((1, 2), keepdims=True) / 54)


def test_scale_channels_multiplies_each_channel_by_its_gate():
    gate = "[avgpool]\n[convolutional]\nfilters=4\nsize=1\nactivation=logistic\n"
    found = outputs(spec(linear(4) + gate + "[scale_channels]\nfrom=0\nactivation=relu\n"))
    expected = np.stack([found[0][k] * found[2][k, 0, 0] for k in range(4)])
    assert_equal(found[3], np.maximum(expected, 0))


def test_sam_multiplies_element_by_element():
    found = outputs(spec(linear(4) + linear(4) + "[sam]\nfrom=-2\nactivation=leaky\n"))
    assert_equal(found[2], ACTIVATIONS["leaky"](found[0] * found[1]))


def test_empty_and_dropout_pass_values_on_when_detecting():
    found = outputs(spec(linear(4) + "[empty]\n[dropout]\nprobability=.9\n"))
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def test_dropout_drops_its_share_and_keeps_the_sum_when_training():
    model = spec(f"{linear(8)}[dropout]\nprobability=.25\n", 64, 64).train()
    found = outputs(model)
    dropped = found[1] == 0
    assert dropped.mean() == pytest.approx(0.25, abs=0.02)
    assert_equal(found[1][~dropped], found[0][~dropped] / 0.75)


# Heads


def decode(raw, anchors, classes, img_height, img_width, scale=1.0, new_coords=False):
    """Predictions from the output (A * (5 + C), H, W) of the convolution before a [yolo] layer, box by box."""
    sigmoid = ACTIVATIONS["logistic"]
    _, height, width = raw.shape
    rows = []
    for a, i, j in np.ndindex(len(anchors), height, width):
        t = raw[a * (5 + classes) : (a + 1) * (5 + classes), i, j]
        x, y = (t[:2] if new_coords else sigmoid(t[:2])) * scale - 0.5 * (scale - 1)
        size = 4 * t[2:4] ** 2 if new_coords else np.exp(t[2:4])
        scores = t[4:] if new_coords else sigmoid(t[4:])
        centre = (j + x) / width * img_width, (i + y) / height * img_height
        rows.append([*centre, *(size * anchors[a]), *scores])
    return np.array(rows)


@pytest.mark.parametrize(("scale", "new_coords"), [(1.0, 0), (1.05, 0), (2.0, 0), (2.0, 1), (1.0, 1)])
def test_boxes_follow_the_formula_in_the_order_of_the_mask(scale, new_coords):
    activation = "logistic" if new_coords else "linear"
    head = (
        f"[convolutional]\nfilters=16\nsize=1\nstride_x=3\nstride_y=2\nactivation={activation}\n[yolo]\nmask=2,0\nnum=3\n"
        f"anchors=10,14, 20,5, 33.5,40\nclasses=3\nscale_x_y={scale}\nnew_coords={new_coords}\n"
    )
    model = spec("", head=head)
    images = torch.randn(1, 3, 6, 9)
    expected = decode(outputs(model, images)[0], [(33.5, 40), (10, 14)], 3, 6, 9, scale, new_coords)
    assert_equal(model(images)[0].detach().numpy(), expected, 1e-4)


def test_predictions_of_several_heads_stand_one_behind_the_other():
    second = (
        "[route]\nlayers=0\n[convolutional]\nfilters=7\nsize=1\nactivation=linear\n[yolo]\nanchors=3,4\nclasses=2\n"
    )
    first = "[convolutional]\nfilters=7\nsize=1\nstride=3\nactivation=linear\n[yolo]\nanchors=10,14\nclasses=2\n"
    model = spec(linear(4), head=first + second)
    images = torch.randn(1, 3, 6, 9)
    found = outputs(model, images)
    expected = [decode(found[1], [(10, 14)], 2, 6, 9), decode(found[4], [(3, 4)], 2, 6, 9)]
    assert_equal(model(images)[0].detach().numpy(), np.concatenate(expected), 1e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (64, 128)])
def test_positions_scale_with_the_input_and_anchors_stay_in_pixels(height, width):
    model = tiny()
    for layer in model.spec.heads:
        conv = model.conv(layer.index - 1)
        conv.weight.data.zero_()
        conv.bias.data.zero_()
    boxes = model(torch.rand(1, 3, height, width))[0].detach()
    coarse, fine = 3 * height * width // 32**2, 3 * height * width // 16**2
    assert boxes.shape == (coarse + fine, 6)
    anchors = [anchor for head in model.spec.heads for anchor in head.anchors]
    assert sorted({tuple(box.tolist()) for box in boxes[:, 2:4]}) == sorted(anchors)
    for part, stride in ((boxes[:coarse], 32), (boxes[coarse:], 16)):
        assert sorted({x.item() for x in part[:, 0]}) == [stride * (k + 0.5) for k in range(width // stride)]
        assert sorted({y.item() for y in part[:, 1]}) == [stride * (k + 0.5) for k in range(height // stride)]
    assert (boxes[:, 4:] == 0.5).all()


def test_detecting_gives_one_tensor_and_training_the_raw_heads():
    model = tiny(classes=3)
    images = torch.rand(2, 3, 64, 64)
    assert model(images).shape == (2, 3 * (2**2 + 4**2), 8)
    heads = model.train()(images)
    assert [head.shape for head in heads] == [(2, 3, 2, 2, 8), (2, 3, 4, 4, 8)]
    sum(head.sum() for head in heads).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_raw_heads_are_what_detections_are_decoded_from():
    model = tiny(classes=2)
    images = torch.rand(1, 3, 64, 64)
    found = outputs(model, images)
    for index, raw in zip((15, 22), model.raw_outputs(images), strict=True):
        raw = raw[0].detach().double().numpy()
        for a, k in np.ndindex(3, 7):
            assert_equal(raw[a, :, :, k], found[index][a * 7 + k])


def test_scores_of_detections_are_probabilities():
    scores = tiny(classes=4)(9 * torch.randn(1, 3, 64, 64))[..., 4:]
    assert 0 <= scores.min() < scores.max() <= 1


def test_a_fresh_network_takes_few_boxes_for_objects():
    boxes = Darknet(create_cfg("v3-tiny", 1, 64, width=0.25)).eval()(torch.rand(1, 3, 64, 64))
    assert boxes[..., 4].mean() < 0.05


def test_each_image_of_a_batch_is_seen_alone():
    model = tiny()
    images = torch.rand(3, 3, 64, 96)
    batch = model(images)
    for image, expected in zip(images, batch, strict=True):
        assert_equal(model(image[None])[0].detach().numpy(), expected.detach().numpy(), 1e-4)


def test_images_are_left_as_they_are():
    model = spec("[activation]\nactivation=relu\n" + linear(3) + "[shortcut]\nfrom=0\n")
    images = torch.randn(1, 3, 6, 9)
    before = images.clone()
    model(images)
    assert torch.equal(images, before)


# Names and sizes


def test_parameters_have_the_names_of_the_older_ports():
    model = spec("[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\npad=1\nactivation=leaky\n[maxpool]\n")
    assert list(model.state_dict()) == [
        "module_list.0.conv_0.weight",
        "module_list.0.batch_norm_0.weight",
        "module_list.0.batch_norm_0.bias",
        "module_list.0.batch_norm_0.running_mean",
        "module_list.0.batch_norm_0.running_var",
        "module_list.0.batch_norm_0.num_batches_tracked",
        "module_list.2.conv_2.weight",
        "module_list.2.conv_2.bias",
    ]
    assert model.conv(2) is model.module_list[2].conv_2
    assert model.batch_norms == {0: model.module_list[0].batch_norm_0}


def test_a_path_and_a_list_of_blocks_give_the_same_network():
    path = ROOT / "config/yolov3-tiny-hand.cfg"
    with torch.device("meta"):
        models = Darknet(path), Darknet(str(path)), Darknet(read_cfg(path))
    shapes = [[(name, tensor.shape) for name, tensor in model.state_dict().items()] for model in models]
    assert shapes[0] == shapes[1] == shapes[2]


def test_the_baseline_has_the_published_size():
    model = Darknet(ROOT / "config/yolov3-hand.cfg")
    assert count_parameters(model) == 61_523_734
    assert state_dict_size(model) / 1e6 == pytest.approx(246.4, abs=0.1)
    assert model.spec.at(416).macs / 1e9 == pytest.approx(32.645, abs=5e-4)


def test_darknets_networks_run_and_train(darknet_cfg):
    model = Darknet(narrow(darknet_cfg))
    sizes = [(head.height, head.width) for head in model.spec.heads]
    images = torch.rand(2, 3, 64, 64)
    heads = model.train()(images)
    assert [head.shape for head in heads] == [(2, 3, *size, 85) for size in sizes]
    sum((head**2).mean() for head in heads).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    with torch.inference_mode():
        boxes = model.eval()(images)
    assert boxes.shape == (2, sum(3 * height * width for height, width in sizes), 85)
    assert boxes.isfinite().all()
    assert (boxes[..., 2:4] > 0).all()


# What must agree between a network, the options and the data


def test_the_size_to_feed_is_the_cfgs_own_or_a_multiple_of_the_stride():
    model = tiny()
    assert network_size(model, None) == (64, 64)
    assert network_size(model, 416) == (416, 416)
    with pytest.raises(InputError, match="100 pixels is not a multiple of 32: 96 would be"):
        network_size(model, 100)


def test_a_rectangle_is_height_and_width():
    model = spec("[maxpool]\nsize=2\nstride=2\n", 8, 16)
    assert network_size(model, None) == (8, 16)
    assert network_size(model, 32) == (32, 32)
    assert network_size(tiny(), (96, 160)) == (96, 160)
    with pytest.raises(InputError, match=r"96x150 pixels \(height x width\) is not a multiple of 32: 96 160 would be"):
        network_size(tiny(), (96, 150))


def test_heads_and_data_must_have_the_same_number_of_classes(tmp_path):
    data = DataConfig(tmp_path / "set.data", 2, None, None, ["left", "right"])
    check_classes(tiny(classes=2), data)
    with pytest.raises(InputError, match=r"layer 16 \[yolo\]: classes=3, but .*set\.data has classes=2"):
        check_classes(tiny(classes=3), data)
