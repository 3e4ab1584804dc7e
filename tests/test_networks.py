"""Our small networks have every kind of layer, and every kind of wiring, of the networks that Darknet ships."""

import pytest

from tests.networks import CFGS, DARKNET_FOLDER, WITHOUT_DARKNET
from utils.darknet.cfg import read_cfg

# What of a section decides how its layer computes and is wired; how many sources, not which.
COMPARED = {
    "convolutional": ("size", "stride", "activation", "batch_normalize"),
    "maxpool": ("size", "stride"),
    "upsample": ("stride",),
    "route": ("groups", "group_id"),
    "shortcut": ("activation",),
    "yolo": ("scale_x_y", "new_coords"),
}


def kind(block):
    """The section's type and the values of what is compared, where they are not the default."""
    compared = [f"{key}={block[key]}" for key in COMPARED.get(block["type"], ()) if key in block]
    if block["type"] == "convolutional" and int(block.get("groups", 1)) > 1:
        compared.append("depthwise" if block["groups"] == block["filters"] else "grouped")
    sources = (block.get("layers") or block.get("from") or "").count(",") + 1
    return " ".join([block["type"], f"sources={sources}", *compared])


@pytest.mark.skipif(not DARKNET_FOLDER.is_dir(), reason=WITHOUT_DARKNET)
@pytest.mark.parametrize("ours", CFGS, ids=lambda path: path.stem)
def test_a_small_network_has_the_layers_of_darknets(ours):
    darknet = DARKNET_FOLDER / ("enet-coco.cfg" if ours.stem == "enet" else f"yolo{ours.name}")
    kinds = [{kind(block) for block in read_cfg(path)[1:]} for path in (darknet, ours)]
    assert kinds[0] == kinds[1]


def test_there_is_a_small_network_for_each_of_darknets():
    names = "enet v3 v3-spp v3-tiny v3-tiny-prn v4 v4-csp v4-tiny v7-tiny"
    assert [path.stem for path in CFGS] == names.split()
