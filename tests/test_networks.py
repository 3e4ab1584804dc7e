"""Our small networks have every kind of layer, and every kind of wiring, of the networks that Darknet ships."""

import pytest

from tests.networks import CFG_FOLDER, DARKNET_CFGS, or_skip
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


@pytest.mark.parametrize("darknet", or_skip(DARKNET_CFGS), ids=lambda path: path and path.stem)
def test_each_of_darknets_networks_has_a_small_one_with_the_same_layers(darknet):
    ours = CFG_FOLDER / f"{darknet.stem.removeprefix('yolo').removesuffix('-coco')}.cfg"
    kinds = [{kind(block) for block in read_cfg(path)[1:]} for path in (darknet, ours)]
    assert kinds[0] == kinds[1]
