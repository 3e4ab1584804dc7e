import math
import re

import pytest

from config.networks import create_cfg
from utils.darknet.activations import ACTIVATIONS
from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.darknet.layers import IMAGE, AvgPool, Convolution, Dropout, LocalAvgPool, MaxPool
from utils.darknet.spec import parse_network
from utils.errors import InputError
from utils.sizes import Size

NET = "[net]\nwidth=32\nheight=16\nchannels=3\n"
HEAD = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"
CONV = "[convolutional]\nfilters=4\nsize=1\n"


def layers(text, head=HEAD, net=NET):
    return parse_network(parse_cfg(net + text + head)).layers


def shape(layer):
    return layer.channels, layer.height, layer.width


def refused(text, head=HEAD, net=NET):
    """The message of the error; every layer's message begins with file, line, number and type."""
    with pytest.raises(InputError) as error:
        parse_network(parse_cfg(net + text + head, "wrong.cfg"))
    message = str(error.value)
    assert "\n" not in message
    return message


# Defaults and options


def test_a_convolution_takes_darknets_defaults():
    conv = layers("[convolutional]\nfilters=4\nsize=3\n")[0]
    assert (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), 0, 1, 1)
    assert (conv.batch_normalize, conv.activation) == (False, "logistic")
    assert (conv.inputs, *shape(conv)) == (3, 4, 14, 30)


@pytest.mark.parametrize(
    ("options", "padding", "size"),
    [
        ("size=3\npad=1", 1, (16, 32)),
        ("size=3\npad=1\npadding=7", 1, (16, 32)),  # pad overrules padding
        ("size=3\npadding=2", 2, (18, 34)),
        ("size=1\npadding=1", 1, (18, 34)),
        ("size=1\npad=1", 0, (16, 32)),
        ("size=4\npad=1", 2, (17, 33)),
        ("size=3\npad=1\nstride=2", 1, (8, 16)),
        ("size=3\npad=1\nstride=2\nstride_x=1", 1, (8, 32)),
        ("size=3\npad=1\nstride_y=4", 1, (4, 32)),
        ("size=3\npad=1\ndilation=2", 2, (16, 32)),
        ("size=3\ndilation=1", 0, (14, 30)),
        ("size=1\ndilation=3\npadding=1", 1, (18, 34)),  # Darknet dilates no 1x1
    ],
)
def test_padding_stride_and_dilation_of_a_convolution(options, padding, size):
    conv = layers(f"[convolutional]\nfilters=4\n{options}\n")[0]
    assert (conv.padding, conv.height, conv.width) == (padding, *size)


@pytest.mark.parametrize("kind", ["maxpool", "local_avgpool"])
@pytest.mark.parametrize(
    ("options", "size", "padding", "shape"),
    [
        ("", 1, 0, (16, 32)),
        ("stride=2", 2, 1, (8, 16)),
        ("size=2\nstride=1", 2, 1, (16, 32)),
        ("size=5\nstride=1", 5, 4, (16, 32)),
        ("size=3\nstride=2", 3, 2, (8, 16)),
        ("size=3\nstride=2\npadding=0", 3, 0, (7, 15)),
        ("size=2\nstride_x=2\nstride_y=1", 2, 1, (16, 16)),
    ],
)
def test_size_and_padding_of_a_pool(kind, options, size, padding, shape):
    pool = layers(f"[{kind}]\n{options}\n")[0]
    assert type(pool) is {"maxpool": MaxPool, "local_avgpool": LocalAvgPool}[kind]
    assert (pool.size, pool.padding, (pool.height, pool.width)) == (size, padding, shape)


def test_a_maxpool_of_an_odd_side_keeps_the_last_row():
    assert shape(layers("[maxpool]\nsize=2\nstride=2\n", net="[net]\nwidth=13\nheight=7\n")[0]) == (3, 4, 7)


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("[upsample]\n", "stride", 2),
        ("[upsample]\n", "scale", 1),
        ("[dropout]\n", "probability", 0.2),
        ("[reorg]\nstride=1\n", "stride", 1),
        ("[reorg3d]\n", "stride", 1),
        (CONV + "[shortcut]\nfrom=0\n", "activation", "linear"),
        ("[activation]\n", "activation", "linear"),
        (CONV + "[route]\nlayers=0\n", "groups", 1),
        (CONV + "[route]\nlayers=0\n", "group_id", 0),
        (CONV + "[sam]\nfrom=0\n", "activation", "linear"),
    ],
)
def test_defaults_of_other_layers(text, attribute, value):
    assert getattr(layers(text)[-3], attribute) == value


def test_a_head_takes_darknets_defaults():
    head = layers("", "[convolutional]\nfilters=25\nsize=1\n[yolo]\nanchors=10,14\n")[-1]
    assert (head.classes, head.anchors, head.scale_x_y, head.new_coords) == (20, ((10, 14),), 1, False)


def test_a_head_takes_its_anchors_in_the_order_of_its_mask():
    head = layers(
        "", "[convolutional]\nfilters=12\nsize=1\n[yolo]\nmask=2,0\nnum=3\nanchors=1,2, 3,4, 5.5,6\nclasses=1\n"
    )[-1]
    assert head.anchors == ((5.5, 6), (1, 2))


@pytest.mark.parametrize("num", ["num=1", "num=2", "num=3", "num=9", ""])
def test_the_anchors_are_those_that_the_mask_names_whatever_num_is(num, capsys):
    text = f"[convolutional]\nfilters=12\nsize=1\n[yolo]\nmask=1,2\n{num}\nanchors=1,2, 3,4, 5,6\nclasses=1\n"
    assert layers("", text.replace("\n\n", "\n"))[-1].anchors == ((3, 4), (5, 6))
    warning = capsys.readouterr().err
    assert ("mask= names anchor 2 of 3" in warning) == (num in ("num=1", "num=2", ""))


def test_an_anchor_without_height_gets_that_of_darknet(capsys):
    text = "[convolutional]\nfilters=12\nsize=1\n[yolo]\nmask=0,1\nnum=2\nanchors=1,2 3,4\nclasses=1\n"
    assert layers("", text)[-1].anchors == ((1, 23), (4, 0.5))
    assert "anchors= has 3 numbers, and the last anchor no height" in capsys.readouterr().err


def test_anchors_without_a_mask_are_the_first_num():
    head = layers("", "[convolutional]\nfilters=12\nsize=1\n[yolo]\nnum=2\nanchors=1,2,3,4,5,6\nclasses=1\n")[-1]
    assert head.anchors == ((1, 2), (3, 4))


def test_cross_iteration_batch_normalization_is_batch_normalization():
    assert layers(CONV + "cbn=1\n")[0].batch_normalize
    assert not layers(CONV + "cbn=0\nbatch_normalize=0\n")[0].batch_normalize


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_by_name(activation):
    found = layers(f"{CONV}activation={activation}\n[activation]\nactivation={activation}\n")
    assert [found[0].activation, found[1].activation] == [activation] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[avgpool]\n", (4, 1, 1)),
        ("[upsample]\nstride=3\n", (4, 48, 96)),
        ("[dropout]\nprobability=.5\n", (4, 16, 32)),
        ("[empty]\n", (4, 16, 32)),
        ("[silence]\n", (4, 16, 32)),
        ("[activation]\nactivation=mish\n", (4, 16, 32)),
        ("[reorg]\nstride=2\n", (16, 8, 16)),
        ("[reorg3d]\nstride=4\n", (64, 4, 8)),
        ("[convolutional]\nfilters=5\nsize=1\n[route]\nlayers=-1,0\n", (9, 16, 32)),
        ("[convolutional]\nfilters=6\nsize=1\n[route]\nlayers=-1,0\ngroups=2\ngroup_id=1\n", (5, 16, 32)),
        ("[convolutional]\nfilters=9\nsize=1\n[shortcut]\nfrom=0\n", (9, 16, 32)),
        ("[avgpool]\n[scale_channels]\nfrom=0\n", (4, 16, 32)),
        ("[convolutional]\nfilters=4\nsize=1\n[sam]\nfrom=0\n", (4, 16, 32)),
    ],
)
def test_shapes(text, expected):
    assert shape(layers(CONV + text)[-3]) == expected


def test_the_stride_is_that_of_the_coarsest_map():
    half = "[convolutional]\nfilters=4\nsize=3\npad=1\nstride=2\n"
    net = "[net]\nwidth=72\nheight=72\nchannels=3\n"
    for text, stride in (
        ("", 1),
        (half.replace("=2", "=3") + half + "[upsample]\nstride=6\n", 6),
        (half.replace("=2", "=3") + "[upsample]\nstride=3\n" + half, 6),
        (half.replace("stride=2", "stride_x=4\nstride_y=1") + "[maxpool]\nsize=2\nstride=2\n", (2, 8)),
        (half + "[deconvolutional]\nfilters=4\nsize=2\nstride=2\n", 2),
        (half + "[reorg]\nstride=2\n", 4),
        (half * 3, 8),
        (half * 3 + "[upsample]\nstride=4\n", 8),  # the head is finer
        (half + "[avgpool]\n" + CONV + "[scale_channels]\nfrom=-3\n" + half, 4),
        (half + "[avgpool]\n" + CONV + "[route]\nlayers=-3\n", 2),
    ):
        assert parse_network(parse_cfg(net + text + HEAD)).stride == Size.of(stride), text


def test_shapes_follow_the_size_that_is_fed():
    text = NET + "[convolutional]\nfilters=4\nsize=3\npad=1\nstride=2\n" + HEAD
    assert shape(parse_network(parse_cfg(text)).layers[0]) == (4, 8, 16)
    assert shape(parse_network(parse_cfg(text), 64).layers[0]) == (4, 32, 32)


@pytest.mark.parametrize(
    ("groups", "filters", "depthwise"), [(4, 4, True), (4, 8, False), (2, 4, False), (1, 4, False)]
)
def test_what_a_depthwise_convolution_is(groups, filters, depthwise):
    conv = layers(f"{CONV}[convolutional]\nfilters={filters}\nsize=3\ngroups={groups}\n")[1]
    assert conv.depthwise is depthwise


# Sources


def test_layers_are_numbered_from_the_one_behind_net_and_read_the_one_before():
    found = layers(CONV + "[maxpool]\n")
    assert [layer.index for layer in found] == [0, 1, 2, 3]
    assert [layer.sources for layer in found] == [(IMAGE,), (0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("[route]\nlayers=-1\n", (2,)),
        ("[route]\nlayers=-3, 1\n", (0, 1)),
        ("[route]\nlayers=0,0,-1,\n", (0, 0, 2)),  # Darknet takes a comma at the end
        ("[shortcut]\nfrom=-3\n", (2, 0)),
        ("[shortcut]\nfrom=1,-3\n", (2, 1, 0)),
        ("[sam]\nfrom=-2\n", (2, 1)),
        ("[sam]\nfrom=0\n", (2, 0)),
    ],
)
def test_relative_and_absolute_sources(text, sources):
    assert layers(CONV * 3 + text)[3].sources == sources


def test_a_gate_reads_the_layer_before_and_the_one_it_gates():
    assert layers(CONV + "[avgpool]\n" + CONV + "[scale_channels]\nfrom=-3\n")[3].sources == (2, 0)


def test_consumers_are_the_sources_seen_from_the_other_side():
    spec = parse_network(parse_cfg(NET + CONV * 2 + "[shortcut]\nfrom=0\n[route]\nlayers=2,2\n" + HEAD))
    consumers = {index: [layer.index for layer in readers] for index, readers in spec.consumers.items()}
    assert consumers == {IMAGE: [0], 0: [1, 2], 1: [2], 2: [3], 3: [4], 4: [5], 5: []}


def test_a_network_lists_its_convolutions_and_heads():
    spec = parse_network(parse_cfg(NET + CONV + HEAD + "[route]\nlayers=0\n" + HEAD))
    assert [layer.index for layer in spec.convolutions] == [0, 1, 4]
    assert [layer.index for layer in spec.heads] == [2, 5]
    assert all(isinstance(layer, Convolution) for layer in spec.convolutions)
    assert (spec.height, spec.width) == (16, 32)


# What is refused. NET has 4 lines, so that a first layer stands on line 5 and the one behind CONV on line 8.


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        # missing or impossible values
        ("[convolutional]\nsize=1\n", "5: layer 0 [convolutional]", "filters= is missing"),
        ("[convolutional]\nfilters=1\n", "5: layer 0 [convolutional]", "size= is missing"),
        ("[convolutional]\nfilters=x\nsize=1\n", "5: layer 0 [convolutional]", "filters=x is not an integer"),
        ("[convolutional]\nfilters=1.5\nsize=1\n", "5: layer 0 [convolutional]", "filters=1.5 is not an integer"),
        ("[convolutional]\nfilters=\nsize=1\n", "5: layer 0 [convolutional]", "filters= is not an integer"),
        ("[convolutional]\nfilters=0\nsize=1\n", "5: layer 0 [convolutional]", "filters=0 must be from 1 to"),
        ("[convolutional]\nfilters=-8\nsize=1\n", "5: layer 0 [convolutional]", "filters=-8 must be from 1 to"),
        (
            "[convolutional]\nfilters=100000000\nsize=1\n",
            "5: layer 0 [convolutional]",
            "filters=100000000 must be from",
        ),
        ("[convolutional]\nfilters=4\nsize=0\n", "5: layer 0 [convolutional]", "size=0 must be from 1"),
        (CONV + "stride=0\n", "5: layer 0 [convolutional]", "stride=0 must be from 1"),
        (CONV + "stride_x=0\n", "5: layer 0 [convolutional]", "stride_x=0 must be from 1"),
        (CONV + "padding=-1\n", "5: layer 0 [convolutional]", "padding=-1 must be from 0"),
        (CONV + "batch_normalize=yes\n", "5: layer 0 [convolutional]", "batch_normalize=yes is not 0 or 1"),
        (
            CONV + "activation=normalize_channels\n",
            "5: layer 0 [convolutional]",
            "activation=normalize_channels is not one of linear, leaky",
        ),
        (CONV + "[activation]\nactivation=\n", "8: layer 1 [activation]", "activation= is not one of"),
        (CONV + "[route]\n", "8: layer 1 [route]", "layers= is missing"),
        (CONV + "[route]\nlayers=\n", "8: layer 1 [route]", "layers= is not a list of numbers"),
        (CONV + "[route]\nlayers=a,b\n", "8: layer 1 [route]", "layers=a,b is not a list of numbers"),
        (CONV + "[shortcut]\n", "8: layer 1 [shortcut]", "from= is missing"),
        (CONV + "[sam]\n", "8: layer 1 [sam]", "from= is missing"),
        (CONV + "[dropout]\nprobability=1\n", "8: layer 1 [dropout]", "probability=1.0 must be in [0, 1)"),
        (CONV + "[dropout]\nprobability=nan\n", "8: layer 1 [dropout]", "probability=nan is not a finite number"),
        (CONV + "[upsample]\nscale=inf\n", "8: layer 1 [upsample]", "scale=inf is not a finite number"),
        (CONV + "[upsample]\nstride=-2\n", "8: layer 1 [upsample]", "stride=-2 must be from 1"),
        # types and options that are not known
        (
            "[region]\nclasses=1\n",
            "5: layer 0 [region]",
            "this layer type is for YOLOv2 and not supported; supported are convolutional, ",
        ),
        ("[Convolution]\n", "5: layer 0 [Convolution]", "empty, yolo: did you mean convolutional?"),
        ("[Gaussian_yolo]\n", "5: layer 0 [Gaussian_yolo]", "not supported"),
        # a layer type that is not supported is named before anything that is wrong with other layers
        ("[convolutional]\n[avgpool]\n[soft]\n", "7: layer 2 [softmax]", "is for classifiers and not supported"),
        ("[convolutional]\n[cost]\ntype=sse\n", "6: layer 1 [cost]", "is for classifiers and not supported"),
        (CONV + "[net]\n", "8: layer 1 [net]", "not supported"),
        (
            "[convolutional]\nfliters=4\nsize=1\n",
            "5: layer 0 [convolutional]",
            "filters= is missing: did you mean fliters?",
        ),
        (CONV + "[shortcut]\nfrom=0\nweights_type=per_feature\n", "8: layer 1 [shortcut]", "weights_type=per_feature"),
        # sources
        ("[route]\nlayers=-1\n", "5: layer 0 [route]", "refers to layer -1"),
        (CONV + "[route]\nlayers=1\n", "8: layer 1 [route]", "refers to layer 1, which is not among the layers 0 to 0"),
        (CONV + "[route]\nlayers=-1,-2\n", "8: layer 1 [route]", "refers to layer -2"),
        (CONV + "[shortcut]\nfrom=7\n", "8: layer 1 [shortcut]", "refers to layer 7"),
        (CONV + "[shortcut]\nfrom=-2\n", "8: layer 1 [shortcut]", "refers to layer -2"),
        (CONV + "[scale_channels]\nfrom=3\n", "8: layer 1 [scale_channels]", "refers to layer 3"),
        (CONV + "[sam]\nfrom=-9\n", "8: layer 1 [sam]", "refers to layer -9"),
        (HEAD + "[maxpool]\n", "14: layer 2 [maxpool]", "reads layer 1, a [yolo] layer"),
        (HEAD + "[route]\nlayers=1\n", "14: layer 2 [route]", "reads layer 1, a [yolo] layer"),
        # shapes
        (
            CONV + "[maxpool]\nstride=2\n[route]\nlayers=-1,0\n",
            "10: layer 2 [route]",
            "layer 1 gives 16x8, layer 0 gives 32x16",
        ),
        (
            CONV + "[maxpool]\nstride=2\n[shortcut]\nfrom=0\n",
            "10: layer 2 [shortcut]",
            "layer 1 gives 16x8, layer 0 gives 32x16",
        ),
        (
            CONV + "[maxpool]\nstride=2\n[sam]\nfrom=0\n",
            "10: layer 2 [sam]",
            "layer 1 gives 16x8, layer 0 gives 32x16",
        ),
        (
            CONV + "[convolutional]\nfilters=5\nsize=1\n[sam]\nfrom=0\n",
            "11: layer 2 [sam]",
            "layers 1 and 0 have 5 and 4 channels",
        ),
        (
            CONV + "[convolutional]\nfilters=5\nsize=1\n[avgpool]\n[scale_channels]\nfrom=0\n",
            "12: layer 3 [scale_channels]",
            "layer 2, gives 5x1x1, but layer 0 needs 4x1x1",
        ),
        (
            CONV + "[maxpool]\n[scale_channels]\nfrom=0\n",
            "9: layer 2 [scale_channels]",
            "layer 1, gives 4x16x32, but layer 0 needs 4x1x1",
        ),
        (CONV + "[convolutional]\nfilters=4\nsize=1\ngroups=3\n", "8: layer 1 [convolutional]", "groups=3 must divide"),
        (CONV + "[convolutional]\nfilters=6\nsize=1\ngroups=4\n", "8: layer 1 [convolutional]", "groups=4 must divide"),
        (
            CONV + "[route]\nlayers=0\ngroups=3\n",
            "8: layer 1 [route]",
            "groups=3 does not divide the 4 channels of layer 0",
        ),
        (CONV + "[route]\nlayers=0\ngroups=2\ngroup_id=2\n", "8: layer 1 [route]", "group_id=2 must be from 0 to 1"),
        ("[reorg3d]\nstride=3\n", "5: layer 0 [reorg3d]", "stride=3 does not divide the 32x16 input"),
        ("[reorg]\nstride=2\n", "5: layer 0 [reorg]", "does not divide the 3 input channels"),
        ("[convolutional]\nfilters=1\nsize=17\n", "5: layer 0 [convolutional]", "its output would be empty"),
        ("[maxpool]\nsize=17\npadding=0\n", "5: layer 0 [maxpool]", "its output would be empty"),
        ("[maxpool]\nsize=2\npadding=3\n", "5: layer 0 [maxpool]", "padding=3 leaves windows without a pixel"),
        (
            "[convolutional]\nfilters=1\nsize=3\ndilation=2\npadding=3\n",
            "5: layer 0 [convolutional]",
            "dilation=2 is only supported with pad=1",
        ),
    ],
)
def test_a_wrong_layer_is_named_with_its_file_line_and_number(text, where, what):
    message = refused(text)
    assert message.startswith(f"wrong.cfg:{where}: ")
    assert what in message


@pytest.mark.parametrize(
    ("filters", "yolo", "what"),
    [
        (7, "mask=0\nanchors=1,1\nnum=1\nclasses=1", "reads 7 channels from layer 0, .* need filters=6 there"),
        (6, "mask=0,1\nanchors=1,1,2,2\nnum=2\nclasses=1", "reads 6 channels from layer 0, .* need filters=12 there"),
        (6, "mask=1\nanchors=1,1\nnum=1\nclasses=1", "mask= names anchor 1, but anchors= has only those from 0 to 0"),
        (6, "mask=-1\nanchors=1,1\nnum=1\nclasses=1", "mask= names anchor -1, but"),
        (6, "mask=0\nnum=1\nclasses=1", "anchors= is missing"),
        (12, "anchors=1,1\nnum=2\nclasses=1", "mask= names anchor 1, but anchors= has only those from 0 to 0"),
        (6, "mask=0\nanchors=1,0\nnum=1\nclasses=1", "anchors= .* positive"),
        (6, "mask=0\nanchors=1,-2\nnum=1\nclasses=1", "anchors= .* positive"),
        (6, "mask=0\nanchors=nan,1\nnum=1\nclasses=1", "anchors= .* positive"),
        (6, "mask=0\nanchors=1,nan\nnum=1\nclasses=1", "anchors= .* positive"),
        (6, "mask=0\nanchors=1,inf\nnum=1\nclasses=1", "anchors= .* positive"),
        (6, "mask=0\nanchors=1,b\nnum=1\nclasses=1", "anchors=1,b is not a list of numbers"),
        (5, "mask=0\nanchors=1,1\nnum=1\nclasses=0", "classes=0 must be from 1"),
        (6, "mask=0\nanchors=1,1\nnum=1\nclasses=1\nscale_x_y=nan", "scale_x_y=nan is not a finite number"),
        (6, "mask=0\nanchors=1,1\nnum=1\nclasses=1\nscale_x_y=0", "scale_x_y=0.0 must be at least 1"),
    ],
)
def test_a_wrong_head_is_named_with_its_file_line_and_number(filters, yolo, what):
    message = refused("", f"[convolutional]\nfilters={filters}\nsize=1\n[yolo]\n{yolo}\n")
    assert message.startswith("wrong.cfg:8: layer 1 [yolo]: ")
    assert re.search(what, message), message


@pytest.mark.parametrize(
    ("net", "what"),
    [
        ("[net]\nwidth=32\n", "height= is missing"),
        ("[net]\nheight=32\n", "width= is missing"),
        ("[net]\nwidth=32\nheight=0\n", "height=0 must be from 1"),
        ("[net]\nwidth=32\nheight=32\nchannels=4\n", "channels=4: images are RGB or grey, so channels must be 3 or 1"),
    ],
)
def test_a_wrong_net_section_is_named(net, what):
    message = refused(CONV, net=net)
    assert message.startswith("wrong.cfg:1: [net]: ")
    assert what in message


def test_a_network_without_heads_is_refused():
    assert "the cfg has no [yolo] layer" in refused(CONV, head="")


def test_heads_with_different_classes_are_refused():
    other = HEAD.replace("classes=1", "classes=2").replace("filters=6", "filters=7")
    message = refused(CONV + HEAD + "[route]\nlayers=0\n", head=other)
    assert re.search(
        r"layer 5 \[yolo\].*: classes=2, but .*layer 2 \[yolo\] has classes=1: all heads need the", message
    )


def test_a_list_of_blocks_without_net_is_refused():
    with pytest.raises(InputError, match=r"the first section of a cfg must be \[net\]"):
        parse_network([{"type": "convolutional", "filters": "4", "size": "1"}])


def test_plain_dicts_will_do_and_messages_then_name_the_layer_alone():
    blocks = [dict(block) for block in parse_cfg(NET + "[convolutional]\nfilters=4\n" + HEAD)]
    with pytest.raises(InputError, match=r"^cfg: layer 0 \[convolutional\]: size= is missing"):
        parse_network(blocks)


# Options that stay in the cfg


@pytest.mark.parametrize(
    ("section", "option", "neutral"),
    [
        *[(CONV, o, "0") for o in ("antialiasing", "binary", "xnor", "deform", "flipped", "coordconv", "reverse")],
        *[(CONV, o, "0") for o in ("dontload", "dontloadscales", "sway", "rotate", "stretch", "stretch_sway")],
        (CONV, "share_index", "-1000000000"),
        ("[maxpool]\n", "antialiasing", "0"),
        ("[maxpool]\n", "maxpool_depth", "0"),
        ("[maxpool]\n", "maxpool_zero_nonmax", "0"),
        ("[maxpool]\n", "out_channels", "1"),
        ("[upsample]\n", "reverse", "0"),
        ("[reorg]\n", "reverse", "0"),
        ("[reorg3d]\n", "reverse", "0"),
        (CONV + "[avgpool]\n[scale_channels]\nfrom=0\n", "scale_wh", "0"),
    ],
)
def test_an_option_that_is_not_built_is_accepted_only_where_it_changes_nothing(section, option, neutral):
    plain = layers(section)
    given = layers(f"{section}{option}={neutral}\n")
    assert [shape(layer) for layer in given] == [shape(layer) for layer in plain]
    message = refused(f"{section}{option}=3\n")
    assert f"{option}=3 changes what the layer computes and is not supported" in message
    assert f": layer {len(plain) - 3} [" in message
    assert f"{option}=x is not a number" in refused(f"{section}{option}=x\n")


def test_an_option_that_darknet_does_not_know_is_warned_of_once_and_stays_in_the_cfg(capsys):
    text = "[net]\nwidth=32\nheight=16\nmosiac=1\n\n" + CONV + "zzz=1\n\n" + CONV + "zzz=1\njitter=.3\n\n" + HEAD
    blocks = parse_cfg(text, "a.cfg")
    parse_network(blocks)
    parse_network(blocks, 64)
    assert capsys.readouterr().err.splitlines() == [
        "warning: a.cfg:1: [net]: option mosiac=1 is not known and has no effect: did you mean mosaic?",
        "warning: a.cfg:6: layer 0 [convolutional]: option zzz=1 is not known and has no effect",
        "warning: a.cfg:11: layer 1 [convolutional]: option jitter=.3 is not known and has no effect",
    ]
    assert format_cfg(blocks).replace("\n\n", "\n") == text.replace("\n\n", "\n")


def test_options_of_darknets_own_training_are_known(capsys):
    layers(CONV, net="[net]\nwidth=32\nheight=16\nsgdr_cycle=1000\nsgdr_mult=2\n")
    assert capsys.readouterr().err == ""


DOWN_AND_UP = (
    "[convolutional]\nfilters=4\nsize=3\npad=1\nstride=2\n" * 2 + "[upsample]\nstride=2\n[route]\nlayers=-1,0\n"
)


def test_a_cfg_whose_size_does_not_suit_its_layers_can_be_run_at_another():
    spec = parse_network(parse_cfg("[net]\nwidth=50\nheight=30\n" + DOWN_AND_UP + HEAD))
    assert spec.cfg_size == (30, 50)
    assert spec.stride == (4, 4)
    assert shape(spec.at(32).layers[3]) == (8, 16, 16)
    assert shape(spec.at((32, 64)).layers[3]) == (8, 16, 32)
    with pytest.raises(InputError, match=r"layer 3 \[route\]: its inputs must have one size"):
        spec.at(30)


def test_layers_that_fit_together_at_no_size_are_refused_with_the_size_of_the_cfg():
    message = refused(DOWN_AND_UP + "[route]\nlayers=-1,1\n", net="[net]\nwidth=50\nheight=30\n")
    assert "layer 3 [route]: its inputs must have one size, but layer 2 gives 26x16, layer 0 gives 25x15" in message


def test_the_channels_of_the_input_are_those_of_the_cfg():
    spec = parse_network(parse_cfg("[net]\nwidth=32\nheight=16\nchannels=1\n" + CONV + HEAD))
    assert (spec.channels, spec.convolutions[0].inputs, spec.convolutions[0].kernel_weights) == (1, 1, 4)


def test_options_for_training_pass_through_to_the_written_cfg():
    text = (
        NET + "momentum=0.9\nmax_batches=9\n\n" + CONV + "stopbackward=1\nstream=1\nwait_stream=1\n"
        "\n[dropout]\nprobability=.1\ndropblock=1\n\n"
        "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n\n"
        "[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\njitter=.3\nignore_thresh=.7\ntruth_thresh=1\nrandom=1\n"
        "iou_loss=ciou\niou_normalizer=0.07\nnms_kind=greedynms\nbeta_nms=0.6\nmax_delta=5\nresize=1.5\n"
    )
    blocks = parse_cfg(text)
    dropout = parse_network(blocks).layers[1]
    assert isinstance(dropout, Dropout)
    assert format_cfg(blocks) == text


def test_darknets_networks_resolve(darknet_cfg):
    blocks = read_cfg(darknet_cfg)
    spec = parse_network(blocks)
    assert len(spec.layers) == len(blocks) - 1
    assert len(spec.heads) in (1, 2, 3)
    for head in spec.heads:
        assert (spec.height / head.height) in (8, 16, 32)
        assert head.channels == 255


@pytest.mark.parametrize(
    ("base", "billions"),  # half of the BFLOPs that Darknet prints for it, and the source of that number
    [
        ("v3", 65.86 / 2),  # pjreddie.com/darknet/yolo: YOLOv3-416 65.86 Bn
        ("v3-tiny", 5.56 / 2),  # pjreddie.com/darknet/yolo: YOLOv3-tiny 5.56 Bn
    ],
)
def test_macs_are_half_of_what_darknet_prints(base, billions):
    spec = parse_network(create_cfg(base, classes=80, img_size=416))
    assert sum(layer.macs for layer in spec.convolutions) / 1e9 == pytest.approx(billions, rel=0.005)


def test_avgpool_of_one_pixel_is_still_one_pixel():
    found = layers(CONV + "[avgpool]\n[avgpool]\n")
    assert isinstance(found[2], AvgPool)
    assert math.prod(shape(found[2])) == 4
