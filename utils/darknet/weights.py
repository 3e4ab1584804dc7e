"""Darknet's ``.weights`` files, read and written exactly as Darknet does.

A file holds three int32 (major, minor, revision), the number of training images seen (uint64 from version 0.2 on,
uint32 before), and then float32 values, convolution by convolution: with BatchNorm its bias, weight, running mean and
running variance, otherwise the convolution's bias; then the kernel. A kernel is (filters, inputs, k, k), and that of a
``[deconvolutional]`` (inputs, filters, k, k), which are PyTorch's layouts, too.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from utils.darknet.layers import IMAGE
from utils.darknet.spec import NetworkSpec
from utils.errors import InputError
from utils.files import atomic_writer

VERSION = (0, 2, 5)


class Convolutional(Protocol):
    """A network whose weights Darknet can store: :class:`models.Darknet`, which imports this file."""

    spec: NetworkSpec

    def conv(self, index: int) -> nn.Conv2d | nn.ConvTranspose2d:
        """The convolution of layer ``index``."""

    def batch_norm(self, index: int) -> nn.BatchNorm2d:
        """The BatchNorm of layer ``index``."""


def _tensors(model: Convolutional) -> Iterator[tuple[int, list[Tensor]]]:
    """Layer number and tensors of each convolution, in the order of the file."""
    for layer in model.spec.convolutions:
        conv = model.conv(layer.index)
        if layer.batch_normalize:
            bn = model.batch_norm(layer.index)
            tensors = [bn.bias, bn.weight, bn.running_mean, bn.running_var, conv.weight]
        else:
            tensors = [conv.bias, conv.weight]
        yield layer.index, cast(list[Tensor], tensors)


def _header_size(file: BinaryIO, path: str | Path) -> int:
    """Read the header of an open file, so that its values come next; the number of bytes."""
    start = file.read(20)
    if len(start) < 16:
        raise InputError(f"{path}: {len(start)} bytes are too few for a Darknet weights file")
    major, minor, _ = struct.unpack("<3i", start[:12])
    if not (0 <= major < 100 and 0 <= minor < 100):
        raise InputError(f"{path}: version {major}.{minor} in the header: not a Darknet weights file")
    size = 20 if major * 10 + minor >= 2 else 16
    if len(start) < size:
        raise InputError(f"{path}: {len(start)} bytes are too few for the header of version {major}.{minor}")
    file.seek(size)
    if (length := os.path.getsize(path)) % 4:  # the header's size is a multiple of 4
        raise InputError(f"{path}: {length} bytes are not a header of {size} bytes and whole float32 values")
    return size


def count_values(path: str | Path) -> int:
    """The number of float32 values in a ``.weights`` file.

    Raises:
        InputError: the file is missing or is not a weights file.
    """
    with _open(path) as file:
        return (os.path.getsize(path) - _header_size(file, path)) // 4


def _values(path: str | Path) -> Tensor:
    with _open(path) as file:
        _header_size(file, path)
        return torch.from_numpy(np.frombuffer(file.read(), "<f4").astype(np.float32))


def _open(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such weights file") from None


def fitting_classes(spec: NetworkSpec, count: int) -> tuple[int, int] | None:
    """The classes and input channels with which the network has so many values in a file; None where none fit.

    Args:
        spec: the network; its own classes are left open, and its input channels may be RGB's.
        count: of the file, see :func:`count_values`.
    """
    heads = spec.head_convolutions
    for channels in (spec.channels, 3):
        fixed = per_class = 0  # values of all layers without classes, and those of one class
        for layer in spec.convolutions:
            inputs = channels if layer.sources == (IMAGE,) else layer.inputs
            per_filter = inputs // layer.groups * layer.size**2 + (4 if layer.batch_normalize else 1)
            if layer.index in heads:
                anchors = len(heads[layer.index].anchors)
                fixed += 5 * anchors * per_filter
                per_class += anchors * per_filter
            else:
                fixed += layer.channels * per_filter
        if per_class and count > fixed and (count - fixed) % per_class == 0:
            return (count - fixed) // per_class, channels
    return None


def _other_classes(spec: NetworkSpec, count: int) -> str:
    """What to say where the network would fit a file with ``count`` values if it had other classes; else nothing."""
    if not (fitting := fitting_classes(spec, count)):
        return ""
    classes, channels = fitting
    inputs = f" and {channels} input channels" if channels != spec.channels else ""
    return f"; the file is that of a cfg with classes={classes}{inputs}, not {spec.heads[0].classes}"


def load_darknet_weights(model: Convolutional, path: str | Path, partial: bool = False) -> int:
    """Load a ``.weights`` file into ``model``; a file that does not fit changes nothing.

    Args:
        model: the network.
        path: the file.
        partial: accept a backbone file (``darknet53.conv.74``), which holds only the first convolutions.

    Returns:
        The number of convolutions whose weights were loaded.

    Raises:
        InputError: the file is missing, is not a weights file, or does not fit or has values that are not finite; the
            message names the first such layer.
    """
    values = _values(path)
    position = 0
    plan: list[tuple[int, list[Tensor]]] = []
    for index, tensors in _tensors(model):
        if partial and plan and position == len(values):
            break
        need = sum(tensor.numel() for tensor in tensors)
        if position + need > len(values):
            left = len(values) - position
            other = _other_classes(model.spec, len(values)) or ("" if partial else "; a backbone file is for -pre")
            raise InputError(f"{path}: too short: layer {index} needs {need} values, {left} are left{other}")
        plan.append((position, tensors))
        position += need
        if not values[position - need : position].isfinite().all():
            raise InputError(f"{path}: layer {index} has weights that are not finite: its training has diverged")
    if position < len(values):
        other = _other_classes(model.spec, len(values))
        raise InputError(
            f"{path}: too long: {len(values) - position} values are left after layer {index}, the last{other}"
        )

    with torch.no_grad():
        for start, tensors in plan:
            for tensor in tensors:
                tensor.copy_(values[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()
    return len(plan)


def save_darknet_weights(model: Convolutional, path: str | Path, seen: int = 0) -> None:
    """Write ``model`` as a ``.weights`` file of version 0.2.5, after ``seen`` training images, atomically."""
    with atomic_writer(path) as file:
        write_darknet_weights(model, file, seen)


def write_darknet_weights(model: Convolutional, file: BinaryIO, seen: int = 0) -> None:
    """Write ``model`` to an open binary file; see :func:`save_darknet_weights`."""
    file.write(struct.pack("<3iQ", *VERSION, seen))
    for _, tensors in _tensors(model):
        for tensor in tensors:
            file.write(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())


def is_darknet_weights(path: str | Path) -> bool:
    """Whether a file is Darknet's, by its name.

    These are ``x.weights``, ``x.backup``, which Darknet writes while it trains, and backbones such as
    ``darknet53.conv.74``.
    """
    return re.search(r".\.(weights|backup|conv\.\d+)$", os.path.basename(path)) is not None
