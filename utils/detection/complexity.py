"""The size of a model; its MACs are :attr:`utils.darknet.spec.NetworkSpec.macs`."""

import io

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """The number of kernel weights, biases, gammas and betas; running statistics are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_dict_size(model: nn.Module) -> int:
    """The size in bytes of the state dict as a file."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes
