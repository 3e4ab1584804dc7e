"""The network in several processes, one per GPU."""

import contextlib
import warnings

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import Darknet
from utils import distributed
from utils.darknet import layers


def distribute(model: Darknet) -> nn.Module:
    """The network with the main process's weights in every process, its gradients averaged over them.

    With one process it is the network itself.
    """
    if distributed.world() == 1:
        return model
    readers = model.spec.consumers
    unread = any(not readers[layer.index] for layer in model.spec.layers if not isinstance(layer, layers.Yolo))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # forward_sync_buffers, from torch 2.14 on
        return DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unread
        )


def without_exchange(network: nn.Module) -> contextlib.AbstractContextManager:
    """A context in which a backward pass through :func:`distribute`'s network keeps its gradients in this process."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()
