"""The commands and the versions that made something."""

import argparse
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
import torchvision

from utils.cli import ArgumentParser
from utils.detection.checkpoints import git_revision
from utils.training import options as training_options

PACKAGES = {"PyTorch": torch, "torchvision": torchvision, "NumPy": np, "OpenCV": cv2, "Matplotlib": matplotlib}

OTHER_BUDGETS = ("target_macs", "target_params", "target_ms", "max_map_drop")  # than a ratio, which they lead to


def this_command() -> str:
    """The command that runs."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def command_of(options: Mapping[str, Any]) -> str | None:
    """The command that gives a program the ``options`` that a checkpoint was written with; None of unknown programs.

    Of train.py only options that differ from their defaults are in it.
    """
    found = _found(options)
    if "epochs" in options:
        defaults = _training_defaults()
        given = {name: value for name, value in options.items() if name in defaults and name not in found}
        return _command("train.py", given, defaults)
    if "weights_path" in options and "percent" in options:
        # A pruned checkpoint names the cfg of the pruned network there, not the one that was given.
        given = {name: value for name, value in options.items() if name not in {"model_def", "json", *found}}
        return _command("test_prune.py", given, {})
    return None


def _found(options: Mapping[str, Any]) -> set[str]:
    """The options that the program has set itself, and would refuse beside those that were given."""
    found = set()
    if any(options.get(name) is not None for name in OTHER_BUDGETS) or options.get("s_schedule") == "constant":
        found |= {"percent", "target_percent"}
    if not options.get("runtime"):
        found.add("threads")
    elif "epochs" in options:
        found.add("latency_table")
    return found


def _command(program: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    words = ["python", program]
    for name, value in options.items():
        unchanged = value == defaults[name] if name in defaults else value is False
        if value is None or name == "debug" or unchanged:
            continue
        if isinstance(value, bool):
            words.append("-sr" if name == "sr" else f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join(words)


def _training_defaults() -> dict[str, Any]:
    parser: argparse.ArgumentParser = ArgumentParser(None)
    for add_options in (
        training_options.add_data_options,
        training_options.add_network_options,
        training_options.add_optimisation_options,
        training_options.add_sparsity_options,
        training_options.add_pruning_options,
        training_options.add_distillation_options,
        training_options.add_run_options,
    ):
        add_options(parser)
    return vars(parser.parse_args([]))


def versions(device: torch.device) -> dict[str, str]:
    """What this page was made with: the code, the packages, and the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    packages = {package: module.__version__ for package, module in PACKAGES.items()}
    return {
        "code": git_revision(),
        "Python": platform.python_version(),
        **packages,
        "system": f"{platform.system()} {platform.release()}",
        "device": name + threads,
    }
