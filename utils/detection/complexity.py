"""How large a network is; its MACs are :attr:`utils.darknet.spec.NetworkSpec.macs`."""

import io

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Kernels, biases, gammas and betas; running statistics are no parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_dict_size(model: nn.Module) -> int:
    """The bytes that the state dict takes as a file."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes
