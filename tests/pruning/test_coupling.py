import doctest

import pytest

from utils.darknet.cfg import parse_cfg
from utils.darknet.spec import parse_network
from utils.pruning import coupling as coupling_module
from utils.pruning.coupling import couple

NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"
HEAD = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"


def conv(filters, *more, bn=1, size=1, activation="leaky"):
    lines = [f"filters={filters}", f"size={size}", "pad=1", f"activation={activation}", f"batch_normalize={bn}", *more]
    return "[convolutional]\n" + "\n".join(lines) + "\n"


def shortcut(source, *more):
    return "[shortcut]\n" + "\n".join([f"from={source}", "activation=linear", *more]) + "\n"


def route(layers, *more):
    return "[route]\n" + "\n".join([f"layers={layers}", *more]) + "\n"


def coupled(*sections):
    return couple(parse_network(parse_cfg(NET + "".join(sections))))


def members(coupling, layer):
    """The members of the set of each channel of a layer's output."""
    return [coupling.sets[number].members for number in coupling.outputs[layer]]


def reasons(coupling, layer):
    return [coupling.sets[number].fixed for number in coupling.outputs[layer]]


def test_a_chain_has_one_set_a_channel():
    coupling = coupled(conv(3), conv(2), HEAD)
    assert members(coupling, 0) == [((0, 0),), ((0, 1),), ((0, 2),)]
    assert members(coupling, 1) == [((1, 0),), ((1, 1),)]
    assert reasons(coupling, 0) == [None] * 3


def test_the_head_and_the_image_are_fixed_and_what_the_head_takes_in_is_not():
    coupling = coupled(conv(3), HEAD)
    assert all("[yolo]" in reason or "no BatchNorm" in reason for reason in reasons(coupling, 1))
    assert all(reasons(coupling, -1))
    assert reasons(coupling, 0) == [None] * 3


def test_a_residual_chain_is_one_set_a_channel():
    block = conv(2) + conv(4, size=3) + shortcut(-3)
    coupling = coupled(conv(4), block, block, HEAD)  # layers 0, 1 2 3, 4 5 6
    assert members(coupling, 6) == [((0, k), (2, k), (5, k)) for k in range(4)]
    assert members(coupling, 1) == [((1, 0),), ((1, 1),)]


def test_a_residual_that_crosses_a_route_joins_the_parts_of_the_concatenation():
    coupling = coupled(conv(2), conv(3), route("-1,0"), conv(5), shortcut(-2), HEAD)  # 0 1 | 2 = 1 ++ 0 | 3 | 4 = 3 + 2
    assert members(coupling, 4) == [
        ((1, 0), (3, 0)),
        ((1, 1), (3, 1)),
        ((1, 2), (3, 2)),
        ((0, 0), (3, 3)),
        ((0, 1), (3, 4)),
    ]


def test_a_concatenation_that_feeds_two_consumers_couples_nothing():
    coupling = coupled(conv(2), conv(3), route("0,1"), conv(4), route("2"), conv(4), HEAD)
    assert members(coupling, 2) == [((0, 0),), ((0, 1),), ((1, 0),), ((1, 1),), ((1, 2),)]
    assert members(coupling, 4) == members(coupling, 2)
    assert coupling.inputs(coupling.spec.layers[5]).tolist() == coupling.outputs[2].tolist()


def test_a_route_with_groups_fixes_its_sources_and_takes_a_slice():
    coupling = coupled(conv(4), route("-1", "groups=2", "group_id=1"), conv(3), HEAD)
    assert members(coupling, 1) == [((0, 2),), ((0, 3),)]
    assert all("groups=2" in reason and "layer 1" in reason for reason in reasons(coupling, 0))
    assert reasons(coupling, 2) == [None] * 3


def test_a_depthwise_convolution_follows_its_input():
    coupling = coupled(conv(4), conv(4, "groups=4", size=3), conv(2), HEAD)
    assert members(coupling, 1) == [((0, k), (1, k)) for k in range(4)]
    assert reasons(coupling, 1) == [None] * 4


def test_another_grouped_convolution_keeps_inputs_and_outputs():
    coupling = coupled(conv(4), conv(4, "groups=2", size=3), conv(2), HEAD)
    assert all("groups=2" in reason for reason in reasons(coupling, 0) + reasons(coupling, 1))


def test_a_gate_without_batchnorm_follows_the_set_that_it_gates():
    squeeze = "[avgpool]\n" + conv(2, bn=0) + conv(4, bn=0, activation="logistic") + "[scale_channels]\nfrom=0\n"
    coupling = coupled(conv(4), squeeze, conv(2), HEAD)  # 0 | 1 avgpool | 2 | 3 gate | 4
    assert members(coupling, 4) == [((0, k), (3, k)) for k in range(4)]
    assert reasons(coupling, 4) == [None] * 4
    assert all(coupling.sets[number].gated for number in coupling.outputs[4])
    assert all("layer 2 has no BatchNorm" in reason for reason in reasons(coupling, 2))


def test_a_layer_without_batchnorm_that_gates_itself_is_fixed():
    coupling = coupled(conv(4), conv(4, bn=0, activation="logistic"), "[sam]\nfrom=-1\n", HEAD)
    assert all("layer 1 has no BatchNorm" in reason for reason in reasons(coupling, 2))


def test_a_gated_channel_that_cannot_be_silenced_is_fixed():
    squeeze = "[avgpool]\n" + conv(4, bn=0, activation="logistic") + "[scale_channels]\nfrom=0\n"
    coupling = coupled(conv(4, activation="logistic"), squeeze, HEAD)
    assert all("logistic in layer 0" in reason for reason in reasons(coupling, 0))


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3)])
def test_an_unequal_shortcut_joins_the_channels_that_both_have(before, after):
    coupling = coupled(conv(before), conv(after), shortcut(0), HEAD)
    assert members(coupling, 2) == [((0, k), (1, k)) for k in range(3)] + [((1, k),) for k in range(3, after)]
    assert members(coupling, 0)[3:] == [((0, k),) for k in range(3, before)]


def test_a_shortcut_with_several_sources_joins_all():
    coupling = coupled(conv(2), conv(2), conv(2), shortcut("-2,-3"), HEAD)
    assert members(coupling, 3) == [((0, k), (1, k), (2, k)) for k in range(2)]


def test_reorg3d_repeats_its_input_and_reorg_fixes_it():
    coupling = coupled(conv(4), "[reorg3d]\nstride=2\n", conv(2), HEAD)
    assert coupling.outputs[1].tolist() == coupling.outputs[0].tolist() * 4
    assert reasons(coupling, 0) == [None] * 4
    coupling = coupled(conv(4), "[reorg]\nstride=2\n", conv(2), HEAD)
    assert all("[reorg]" in reason for reason in reasons(coupling, 0) + reasons(coupling, 1))
    assert len(coupling.outputs[1]) == 16


def test_a_layer_that_nothing_reads_is_coupled_to_nothing_and_may_die():
    coupling = coupled(conv(3), conv(2), route("0"), HEAD)
    assert members(coupling, 1) == [((1, 0),), ((1, 1),)]
    assert reasons(coupling, 1) == [None] * 2


def test_the_worked_example_is_true():
    result = doctest.testmod(coupling_module)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_description_lists_groups_of_sets_and_why_they_are_fixed():
    coupling = coupled(conv(4), route("-1", "groups=2"), conv(2), conv(2), shortcut("-2"), HEAD)
    assert [" ".join(line.split()) for line in coupling.describe().splitlines()] == [
        "4 sets over layers 0; fixed: layer 1 takes one of groups=2 of it",
        "2 sets over layers 2, 3",
        "6 sets over layers 5; fixed: layer 6, [yolo], reads it",
    ]
