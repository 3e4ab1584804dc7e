"""The device to compute on, and reduced precision where it helps."""

from contextlib import AbstractContextManager

import torch
from torch import nn


def pick_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none, since it runs elsewhere than in PyTorch."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def autocast(device: torch.device) -> AbstractContextManager:
    """Mixed precision on CUDA: bfloat16 where the GPU computes in it, else float16; full precision on a CPU."""
    enabled = device.type == "cuda"
    return torch.autocast(device.type, amp_dtype(device), enabled=enabled)


def amp_dtype(device: torch.device) -> torch.dtype:
    """The type that :func:`autocast` computes in."""
    return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
