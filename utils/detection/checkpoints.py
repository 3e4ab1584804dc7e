"""Checkpoints that describe themselves, and every kind of weights file that a network can start from.

A checkpoint is a dict of plain values and tensors, so that ``torch.load(..., weights_only=True)`` reads it:

- ``model``: the state dict to detect with (the averaged weights), ``cfg``: the cfg's text, ``names``, ``img_size``,
  ``epoch`` (epochs done), ``step`` (optimizer steps done), ``best_map``, ``options``, ``strategy``, ``revision``,
  ``pruned`` (whether channels were cut out of the network; not in checkpoints of older versions);
- in ``_last`` files also ``training``: what :func:`utils.training.state.training_state` gives.
"""

import re
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from models import Darknet
from utils.darknet.cfg import format_cfg
from utils.darknet.weights import is_darknet_weights, load_darknet_weights
from utils.errors import InputError
from utils.files import atomic_writer


def save_checkpoint(path: str | Path, model: Darknet, **about: Any) -> None:
    """Write a checkpoint of ``model`` atomically, with the entries ``about`` beside its weights and cfg."""
    with atomic_writer(path) as file:
        write_checkpoint(file, model, **about)


def write_checkpoint(file: BinaryIO, model: Darknet, **about: Any) -> None:
    """Write a checkpoint to an open binary file; see :func:`save_checkpoint`."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}  # so that any machine reads them
    content = {"model": weights, "cfg": format_cfg(model.blocks), "revision": git_revision(), **about}
    torch.save(content, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, or a plain state dict as a checkpoint without description; nothing in the file is executed.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle protocols of files that are none of ours
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such weights file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        message = "not a checkpoint that can be read safely: it is damaged, or holds more than tensors and plain values"
        raise InputError(f"{path}: {message}") from error
    if isinstance(content, Mapping) and _is_state_dict(content.get("model")):
        return dict(content)
    if _is_state_dict(content):
        return {"model": content}
    raise InputError(f"{path}: neither a checkpoint nor a state dict")


def _is_state_dict(content: object) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def load_weights(model: Darknet, path: str | Path, partial: bool = False) -> dict[str, Any]:
    """Load weights of any kind into ``model``: a checkpoint, a plain state dict, or a Darknet file.

    Args:
        model: the network, changed only if the file fits.
        path: the file; ``x.weights`` and ``x.conv.N`` are Darknet's.
        partial: accept a Darknet backbone file that fills only the first layers.

    Returns:
        The checkpoint without its weights; for a Darknet file ``{"filled": number of convolutions}``.

    Raises:
        InputError: the file cannot be read or belongs to another network; the first tensor that differs is named.
    """
    if is_darknet_weights(path):
        return {"filled": load_darknet_weights(model, path, partial)}
    checkpoint = read_checkpoint(path)
    load_state(model, checkpoint.pop("model"), path)
    return checkpoint


def load_state(model: Darknet, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict of exactly this network.

    Raises:
        InputError: a tensor is missing, has another shape, or is not of this network.
    """
    own = model.state_dict()
    # Other ports keep no count of batches, or what DataParallel puts before every name, or the cfg's anchors.
    anchors = re.compile(r"\.yolo_\d+\.anchor(s|_grid)$")
    state = {name.removeprefix("module."): value for name, value in state.items() if not anchors.search(name)}
    for name, tensor in own.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                state[name] = tensor
                continue
            raise InputError(f"{path}: belongs to another cfg: it has no {name}")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: belongs to another cfg: {name} has shape {tuple(state[name].shape)} there, "
                f"{tuple(tensor.shape)} in the cfg"
            )
    if spare := state.keys() - own.keys():
        raise InputError(f"{path}: belongs to another cfg, which also has {min(spare)}")
    model.load_state_dict(state)


def git_revision() -> str:
    """The commit of this checkout, or "unknown" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
