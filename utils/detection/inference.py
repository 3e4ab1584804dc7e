"""A network made ready for inference: nearly the same predictions in less time."""

import torch
from torch import Tensor, nn

from models import Darknet
from utils.boxes import check_nms
from utils.detection.fusing import fuse
from utils.detection.runtimes import ExportedModel
from utils.devices import device_of, pick_device
from utils.errors import InputError


class Inference(nn.Module):
    """A copy of a Darknet with BatchNorm folded in, in channels_last, on a GPU in float16; it is called like a Darknet.

    Boxes and scores are decoded in float32 whatever type the convolutions have.

    Args:
        model: the network, which is not changed.
        compiled: run torch.compile on it, which takes minutes for a large network.
        dtype: the type of the convolutions; by default float16 on a GPU and float32 on a CPU.
    """

    def __init__(self, model: Darknet, compiled: bool = False, dtype: torch.dtype | None = None):
        super().__init__()
        self.compiled = compiled
        self.dtype = dtype or (torch.float16 if device_of(model).type == "cuda" else torch.float32)
        self.model = fuse(model).requires_grad_(False).to(memory_format=torch.channels_last)
        for layer in self.model.spec.convolutions:  # the anchors stay in float32, to decode boxes
            self.model.conv(layer.index).to(self.dtype)
        if compiled:
            self.model.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C).

        Raises:
            InputError: torch.compile does not work here, which shows at the first forward pass.
        """
        try:
            return self.model(images.to(self.dtype, memory_format=torch.channels_last))
        except RuntimeError as error:
            if not self.compiled or isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(f"--compile: torch.compile does not work here: {str(error).splitlines()[0]}") from error


def on_device(model: Darknet | ExportedModel, device: str | None) -> Darknet | ExportedModel:
    """A Darknet, brought to the device that :func:`utils.devices.pick_device` gives; a file of another runtime stays
    where it is.

    Raises:
        InputError: torchvision has no NMS for that device.
    """
    if isinstance(model, ExportedModel):
        return model
    place = pick_device(device)
    check_nms(place)
    return model.to(place)


def for_inference(model: nn.Module, compiled: bool = False) -> nn.Module:
    """A Darknet as :class:`Inference`; a network of another runtime, or an :class:`Inference`, is returned as it is.

    Raises:
        InputError: ``compiled`` for a network that PyTorch does not run.
    """
    if isinstance(model, Darknet):
        return Inference(model, compiled)
    if compiled and isinstance(model, ExportedModel):
        raise InputError(f"--compile: {model.name} runs in {model.runtime}, which torch.compile does not change")
    return model
