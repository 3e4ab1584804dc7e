"""Weights to start training from: of the same network, or of one that differs in its heads or in grey for RGB.

The file's network is known by its cfg: that of a checkpoint, or one that is given. Without one it is taken for the
network in training with another number of classes, which the size of a ``.weights`` file or the shapes of a state dict
tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import Darknet
from utils.darknet import layers
from utils.darknet.cfg import Block, read_cfg
from utils.darknet.layers import IMAGE
from utils.darknet.spec import NetworkSpec
from utils.darknet.weights import count_values, fitting_classes, is_darknet_weights, load_darknet_weights
from utils.detection.checkpoints import check_same_cfg, load_state, read_checkpoint, stored_cfg
from utils.detection.state_dicts import own_names
from utils.errors import InputError


@dataclass(frozen=True)
class Taken:
    """What was taken from a file: a line that says it, and whether it is all layers, heads included."""

    line: str
    is_all: bool


def load_pretrained(model: Darknet, path: str, cfg: str | None = None) -> Taken:
    """Start from the weights of any file.

    All convolutions are taken but the last of each head that has another number of classes or anchors in the file:
    these stay as they are in ``model``.

    Args:
        model: the network; it is changed only if the file fits.
        path: a checkpoint, a state dict of this or of another program, or a Darknet ``.weights`` or backbone file.
        cfg: the path of the file's cfg, where the file does not hold it and more differs than the number of classes.

    Raises:
        InputError: a file cannot be read, or the networks differ in more than that; the layer is named.
    """
    if is_darknet_weights(path):
        blocks = read_cfg(cfg) if cfg else _blocks_of_weights(model.spec, path)
        if blocks is None:
            return _load_backbone(model, path)
        source = _build(blocks)
        load_darknet_weights(source, path)
    else:
        checkpoint = read_checkpoint(path)
        stored = stored_cfg(checkpoint, path)
        if stored and cfg:
            check_same_cfg(read_cfg(cfg), cfg, stored, path)
        blocks = stored or (read_cfg(cfg) if cfg else _blocks_of_state(model.spec, checkpoint["model"], path))
        source = _build(blocks)
        load_state(source, checkpoint["model"], path)
    fresh = _take_over(source, model, path)
    return Taken(f"{path}: {_describe(source.spec, model.spec, fresh)}", not fresh)


def _build(blocks: Sequence[Block]) -> Darknet:
    """The network of the file; training draws the same random numbers as without it."""
    with torch.random.fork_rng(devices=[]):
        return Darknet(list(blocks))


def _load_backbone(model: Darknet, path: str) -> Taken:
    try:
        filled = load_darknet_weights(model, path, partial=True)
    except InputError as error:
        advice = "where its cfg differs in more than the number of classes, give it with --pretrained_cfg"
        raise InputError(f"{error}; {advice}") from error
    count = len(model.spec.convolutions)
    return Taken(f"{path}: weights for {filled} of {count} convolutions", filled == count)


def with_classes(spec: NetworkSpec, classes: int, channels: int) -> list[Block]:
    """The cfg of the same network with another number of classes in every head, and of input channels."""
    blocks = [block.copy() for block in spec.blocks]
    blocks[0]["channels"] = str(channels)
    for index, head in spec.head_convolutions.items():
        blocks[1 + index]["filters"] = str(len(head.anchors) * (5 + classes))
        blocks[1 + head.index]["classes"] = str(classes)
    return blocks


def _blocks_of_weights(spec: NetworkSpec, path: str) -> list[Block] | None:
    """The cfg of a ``.weights`` file that differs in the number of classes; None where no number fits its size."""
    fitting = fitting_classes(spec, count_values(path))
    return with_classes(spec, *fitting) if fitting else None


def _blocks_of_state(spec: NetworkSpec, state: Mapping[str, Tensor], path: str) -> list[Block]:
    """The cfg of a state dict that differs in the number of classes, and in RGB for grey."""
    state = own_names(spec, state, path)
    classes, channels, heads = spec.heads[0].classes, spec.channels, spec.head_convolutions
    for layer in spec.convolutions:
        weight = state.get(f"module_list.{layer.index}.conv_{layer.index}.weight")
        if weight is None or weight.dim() != 4:
            continue
        weight = layer.kernel(weight)
        if layer.sources == (IMAGE,) and weight.shape[1] == 3:
            channels = 3
        if head := heads.get(layer.index):
            of_anchor, remainder = divmod(len(weight), len(head.anchors))
            classes = of_anchor - 5 if remainder == 0 and of_anchor > 5 else classes
    return with_classes(spec, classes, channels)


@torch.no_grad()
def _take_over(source: Darknet, model: Darknet, path: str) -> list[int]:
    """Copy the weights of ``source`` into ``model``; the layer numbers of the convolutions that stay as they are."""
    in_file, in_model = source.spec.convolutions, model.spec.convolutions
    if len(in_file) != len(in_model):
        counts = f"{len(in_file)} convolutions, {len(in_model)} in the cfg"
        raise InputError(f"{path}: belongs to another cfg: it has {counts}")
    heads, heads_in_file = model.spec.head_convolutions, source.spec.head_convolutions
    fresh, copies = [], []
    for there, here in zip(in_file, in_model, strict=True):
        head, head_in_file = heads.get(here.index), heads_in_file.get(there.index)
        if head and head_in_file and _outputs(head) != _outputs(head_in_file):
            fresh.append(here.index)
            continue
        tensors, expected = _tensors(source, there), _tensors(model, here)
        if here.sources == there.sources == (IMAGE,) and (here.inputs, there.inputs) == (1, 3):
            kernel = there.kernel(tensors["weight"]).sum(dim=1, keepdim=True)
            tensors["weight"] = here.kernel(kernel)  # a grey image has three equal channels
        for name in sorted(tensors.keys() | expected.keys()):
            shapes = [tuple(side[name].shape) if name in side else "none" for side in (tensors, expected)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{path}: belongs to another cfg: {here.where}: {name} is {shapes[0]} there, not {shapes[1]}"
                )
        copies += [(expected[name], tensors[name]) for name in expected]
    for target, values in copies:
        target.copy_(values)
    return fresh


def _outputs(head: layers.Yolo) -> tuple[int, int]:
    """What decides how many channels a head reads."""
    return head.classes, len(head.anchors)


def _tensors(model: Darknet, layer: layers.Convolution) -> dict[str, Tensor]:
    tensors = dict(model.conv(layer.index).state_dict(keep_vars=True))
    if layer.batch_normalize:
        norm = model.batch_norm(layer.index).state_dict(keep_vars=True)
        tensors |= {f"BatchNorm {name}": tensor for name, tensor in norm.items()}
    return tensors


def _describe(source: NetworkSpec, spec: NetworkSpec, fresh: list[int]) -> str:
    line = "weights for all convolutions"
    if fresh:
        classes = source.heads[0].classes
        line += (
            f" but layer{'s' if len(fresh) > 1 else ''} {', '.join(map(str, fresh))}, the last of the heads, "
            f"which start fresh: it has {classes} class{'es' if classes > 1 else ''} and "
            f"{len(source.heads[0].anchors)} anchors per head, the cfg {spec.heads[0].classes} and "
            f"{len(spec.heads[0].anchors)}"
        )
    if source.channels != spec.channels:
        line += "; kernels that read the image are summed over RGB"
    return line
