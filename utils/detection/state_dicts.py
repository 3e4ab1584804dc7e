"""State dicts of this project and of other YOLOv3 ports: where they are in a checkpoint, and what their names mean."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

from torch import Tensor

from utils.darknet.spec import NetworkSpec
from utils.errors import InputError
from utils.notices import notice

# Entries of other ports' checkpoints that hold the state dict; averaged weights are preferred.
ENTRIES = ("ema", "model", "state_dict", "model_state_dict", "net", "weights")
# Tensors that are no weights: thop's counters, and what ports keep of the cfg.
NO_WEIGHTS = re.compile(r"(^|\.)(total_ops|total_params|anchors?|anchor_grid|anchor_vec|anchor_wh|grid|stride)$")
PREFIXES = re.compile(r"^((module|model|_orig_mod)\.)+(?=module_list\.)|^(module\.)+")
ULTRALYTICS = re.compile(r"module_list\.\d+\.Conv2d$")


def is_state_dict(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether ``content`` is a mapping of names to tensors that is not empty."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def find_state_dict(content: object, path: str | Path) -> Mapping[str, Tensor] | None:
    """The state dict in what another program saved; None if there is none."""
    if is_state_dict(content):
        return content
    if not isinstance(content, Mapping):
        return None
    entries = [entry for entry in ENTRIES if is_state_dict(content.get(entry))]
    if len(entries) > 1:
        notice(f"{path}: holds {' and '.join(entries)}: {entries[0]} is used")
    return content[entries[0]] if entries else None


def own_names(spec: NetworkSpec, state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """A state dict with the names of this project, and without what is no weight.

    Names of this project may stand behind prefixes such as DataParallel's ``module.``. Where there is none of them,
    convolutions and BatchNorms are taken in order.

    Args:
        spec: the network that the weights are for.
        state: the state dict.
        path: the file that it comes from, for messages.

    Raises:
        InputError: other names, and another number of convolutions or BatchNorms than the network has.
    """
    state = {PREFIXES.sub("", name): value for name, value in state.items() if not NO_WEIGHTS.search(name)}
    if any(f"module_list.{i}.conv_{i}.weight" in state for i in (layer.index for layer in spec.convolutions)):
        return state
    return _in_order(spec, state, path)


def _in_order(spec: NetworkSpec, state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        modules.setdefault(module, {})[parameter] = tensor
    norms = _sorted((name for name, tensors in modules.items() if "running_mean" in tensors), path)
    convolutions = _sorted((name for name, tensors in modules.items() if _is_convolution(tensors)), path)
    normalised = [layer for layer in spec.convolutions if layer.batch_normalize]
    for names, layers, kind in ((convolutions, spec.convolutions, "convolutions"), (norms, normalised, "BatchNorms")):
        if len(names) != len(layers):
            raise InputError(f"{path}: belongs to another cfg: it has {len(names)} {kind}, the cfg has {len(layers)}")
    if others := modules.keys() - {*norms, *convolutions}:
        raise InputError(f"{path}: belongs to another cfg, which also has {min(others)}")
    origin = "ultralytics' yolov3" if all(map(ULTRALYTICS.search, convolutions)) else "another program"
    notice(f"{path}: names of {origin}, read in order")
    renamed: dict[str, Tensor] = {}
    for names, layers, kind in ((convolutions, spec.convolutions, "conv"), (norms, normalised, "batch_norm")):
        for name, layer in zip(names, layers, strict=True):
            prefix = f"module_list.{layer.index}.{kind}_{layer.index}"
            renamed |= {f"{prefix}.{parameter}": tensor for parameter, tensor in modules[name].items()}
    return renamed


def _is_convolution(tensors: Mapping[str, Tensor]) -> bool:
    return "weight" in tensors and tensors["weight"].dim() == 4


def _sorted(names: Iterable[str], path: str | Path) -> list[str]:
    """Names by their numbers where these are all that differs, in the order of the file otherwise.

    Raises:
        InputError: neither says in which order the layers are.
    """
    names = list(names)
    if len({re.sub(r"\d+", "#", name) for name in names}) <= 1:
        names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    elif Path(path).suffix.lower() == ".safetensors":
        raise InputError(
            f"{path}: safetensors files do not keep the order of layers, and the names of these do not tell it: "
            'save the weights by torch.save(model.state_dict(), "x.pth") in the program that made them'
        )
    return names
