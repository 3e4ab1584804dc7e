"""Checkpoints that describe themselves, and every kind of weights file that a network can start from.

A checkpoint is a dict of plain values and tensors, so that ``torch.load(..., weights_only=True)`` reads it:

- ``model``: the state dict of the network to use (with averaged weights); ``cfg``: the text of its cfg;
- the metadata: ``names`` (class names), ``img_size`` (pixels), ``epoch`` (epochs done), ``step`` (optimizer steps
  done), ``best_map``, ``options``, ``strategy``, ``revision`` (of the code); ``pruned``: whether channels were removed,
  of test_prune.py a dict that says from what; ``before_cut`` and ``before_cut_digest``: the file of the network that a
  run has cut, see :func:`utils.training.runs.network_before_cut`;
- in ``_last`` files also ``training``: the state to resume from, see :func:`utils.training.state.training_state`.
"""

import subprocess
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from models import Darknet
from utils.darknet.cfg import Block, format_cfg, parse_cfg
from utils.darknet.cfg_keys import training_only
from utils.darknet.section import place
from utils.darknet.weights import is_darknet_weights, load_darknet_weights
from utils.detection.state_dicts import find_state_dict, is_state_dict, own_names
from utils.errors import InputError
from utils.files import atomic_writer
from utils.optional import optional


def save_checkpoint(path: str | Path, model: Darknet, **metadata: Any) -> None:
    """Write a checkpoint atomically: the weights and the cfg of ``model``, and the ``metadata``."""
    with atomic_writer(path) as file:
        write_checkpoint(file, model, **metadata)


def write_checkpoint(file: BinaryIO, model: Darknet, **metadata: Any) -> None:
    """Write a checkpoint to an open binary file; see :func:`save_checkpoint`."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}  # so that any machine reads them
    content = {"model": weights, "cfg": format_cfg(model.spec.blocks), "revision": git_revision(), **metadata}
    torch.save(content, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; no code in the file is executed.

    Of what other programs wrote, only the state dict is returned, as ``{"model": state dict}``.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint; safetensors is not installed for such a file.
    """
    if Path(path).suffix.lower() == ".safetensors":
        return {"model": _read_safetensors(path)}
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about the pickle protocols of other programs' files
            torch.serialization.safe_globals(_numpy_values()),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such weights file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        message = (
            "not a checkpoint that can be read safely: it is damaged, or holds more than tensors and plain values; "
            'a whole model can be saved anew by the program that wrote it: torch.save(model.state_dict(), "x.pth")'
        )
        raise InputError(f"{path}: {message}") from error
    if isinstance(content, Mapping) and "cfg" in content and is_state_dict(content.get("model")):
        return dict(content)
    state = find_state_dict(content, path)
    if state is None:
        raise InputError(f"{path}: neither a checkpoint nor a state dict")
    return {"model": state}


def _numpy_values() -> list[Any]:
    """What a pickle needs for NumPy's numbers and arrays of them, which other programs keep their metrics in."""
    makers = [
        (getattr(multiarray, maker), f"numpy.{core}.multiarray.{maker}")  # the name before and since NumPy 2
        for core in ("core", "_core")
        for maker in ("_reconstruct", "scalar")
    ]
    return [*makers, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]


def _read_safetensors(path: str | Path) -> Mapping[str, Tensor]:
    safetensors = optional("safetensors.torch")
    try:
        return safetensors.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such weights file") from None
    except Exception as error:  # the library's own error, or an OSError
        raise InputError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from error


def load_darknet(weights_path: str, model_def: str | None) -> tuple[Darknet, dict[str, Any]]:
    """Build the network of a weights file, and load its weights.

    Args:
        weights_path: a checkpoint, which holds its cfg; or a plain state dict or Darknet ``.weights`` file.
        model_def: the path of the network's cfg; None for the cfg in the checkpoint. Given, the two must agree.

    Returns:
        The network in training mode, and the checkpoint's metadata; for a Darknet file
        ``{"filled": number of convolutions}``.

    Raises:
        InputError: a file cannot be read, the weights belong to another cfg, or there is no cfg.
    """
    if is_darknet_weights(weights_path):
        if model_def is None:
            raise InputError(
                f"{weights_path}: a Darknet weights file holds no cfg: give the network's with --model_def"
            )
        model = Darknet(model_def)
        return model, {"filled": load_darknet_weights(model, weights_path)}
    checkpoint = read_checkpoint(weights_path)
    stored = stored_cfg(checkpoint, weights_path)
    if model_def is not None:
        model = Darknet(model_def)
        if stored is not None:
            check_same_cfg(model.spec.blocks, model_def, stored, weights_path)
    elif stored is not None:
        model = Darknet(stored)
    else:
        raise InputError(f"{weights_path}: holds no cfg, as checkpoints do: give the network's with --model_def")
    load_state(model, checkpoint.pop("model"), weights_path)
    return model, checkpoint


def stored_cfg(checkpoint: Mapping[str, Any], path: str) -> list[Block] | None:
    """The sections of the cfg in a checkpoint; None for a plain state dict, which has no cfg.

    Raises:
        InputError: the cfg is damaged.
    """
    text = checkpoint.get("cfg")
    if not isinstance(text, str | None):
        raise InputError(f"{path}: its cfg is not text, so it is not a checkpoint of this project")
    return None if text is None else parse_cfg(text, f"cfg in {path}")


def check_same_cfg(given: Sequence[Block], model_def: str, stored: Sequence[Block], weights_path: str) -> None:
    """Raise an InputError that names the first difference between the cfg ``given`` and that ``stored`` with weights.

    Keys that concern only Darknet's own training may differ, since they change nothing here.
    """
    mismatch = f"{weights_path}: belongs to another cfg than --model_def"
    for index, (block, other) in enumerate(zip_longest(given, stored), start=-1):
        if block is None or other is None:
            longer = weights_path if block is None else model_def
            raise InputError(f"{mismatch} {model_def}: only {longer} has a layer {index} [{(block or other)['type']}]")
        where = place(block, None if index < 0 else index)
        if block["type"] != other["type"]:
            raise InputError(f"{mismatch} {where}: [{other['type']}] in the weights file")
        for key in dict.fromkeys((*block, *other)):
            if block.get(key) != other.get(key) and key not in training_only(block["type"]):
                here, there = (f"{key}={side[key]}" if key in side else f"no {key}" for side in (block, other))
                raise InputError(f"{mismatch} {where}: {here}, but {there} in the weights file")


def load_weights(model: Darknet, path: str | Path) -> dict[str, Any]:
    """Load weights of any kind into ``model``: a checkpoint, a plain state dict, or a Darknet file.

    Args:
        model: the network; it is changed only if the file fits.
        path: the file; ``x.weights`` and ``x.backup`` are Darknet's.

    Returns:
        The checkpoint without its weights; for a Darknet file ``{"filled": number of convolutions}``.

    Raises:
        InputError: the file cannot be read or belongs to another network; the first tensor that differs is named.
    """
    if is_darknet_weights(path):
        return {"filled": load_darknet_weights(model, path)}
    checkpoint = read_checkpoint(path)
    load_state(model, checkpoint.pop("model"), path)
    return checkpoint


def load_state(model: Darknet, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict of exactly this network, of this project or of another port.

    Batch counts of BatchNorm may be missing; :func:`utils.detection.state_dicts.own_names` says which names are read.

    Args:
        model: the network; it is changed only if the state dict fits.
        state: the state dict.
        path: the file that it comes from, for messages.

    Raises:
        InputError: a tensor is missing, has another shape or values that are not finite, or is not one of this
            network's.
    """
    expected = model.state_dict()
    state = own_names(model.spec, state, path)
    for name, tensor in expected.items():
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
        if not state[name].isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite: its training has diverged")
    if surplus := state.keys() - expected.keys():
        raise InputError(f"{path}: belongs to another cfg, which also has {min(surplus)}")
    model.load_state_dict(state)


def git_revision() -> str:
    """The commit of this checkout, or "unknown" outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
