"""A small training on any device, and what tells whether its steps make the host wait for the device."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.networks import create_cfg
from models import Darknet
from utils.darknet.cfg import Block
from utils.detection.loss import YoloLoss
from utils.training.config import SparsityConfig, TrainConfig
from utils.training.trainer import Batch, Trainer

SIZE = 64
CLASSES = 2
# Operations that have their result, or its size, on the host: on a GPU the host waits for it.
WAITING = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique",
    "_unique2",
}


class CountWaits(TorchDispatchMode):
    """Notes operations for which a GPU makes the host wait, in the forward pass, the backward pass and the optimizer.

    Between a CPU and a GPU it also notes copies that are not asynchronous, and copies from the GPU.

    Attributes:
        names: of these operations, in their order.
        paused: notes nothing while it is true.
    """

    def __init__(self, pinned: Sequence[Tensor] = ()):
        super().__init__()
        self.names: list[str] = []
        self.paused = False
        self.pinned = list(pinned)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        if not self.paused and self._waits(function, arguments, options):
            self.names.append(str(function))
        return function(*arguments, **options)

    def _waits(self, function, arguments: tuple, options: dict[str, Any]) -> bool:
        name = function.overloadpacket.__name__
        if name in WAITING:
            return True
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
        if name == "_to_copy":
            source, target = arguments[0].device.type, torch.device(options.get("device") or arguments[0].device).type
            if source != target:
                asynchronous = options.get("non_blocking") and any(arguments[0] is tensor for tensor in self.pinned)
                return target == "cpu" or not asynchronous
        if name == "copy_":
            return arguments[0].device.type != arguments[1].device.type
        return False


class OneDevice(TorchDispatchMode):
    """Raises where a call for many tensors at once mixes devices, which fake tensors do not notice."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name.startswith(("_foreach_", "_fused_", "_amp_foreach")):
            self.calls += 1
            assert_one_device(name, [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)])
        if name == "_fused_sgd_" and arguments[0][0].device.type == "cuda":  # PyTorch has none for fake tensors
            return None
        return function(*arguments, **(options or {}))


def assert_one_device(what: str, tensors: Sequence[Tensor]) -> None:
    """Fail unless all tensors, but for numbers on the CPU, are on one device."""
    devices = {tensor.device for tensor in tensors if tensor.ndim or tensor.device.type != "cpu"}
    assert len(devices) <= 1, f"{what}: tensors on {sorted(map(str, devices))}"


def small_network(base: str = "v3-tiny", width: float = 0.125) -> list[Block]:
    """The sections of a narrow network for images of SIZE pixels."""
    return create_cfg(base, CLASSES, SIZE, width)


def make_trainer(
    blocks: list[Block], device: torch.device, teacher: bool = False, steps: int = 2000, **settings
) -> Trainer:
    """A trainer of a network on ``device``, in a run of ``steps`` steps; ``sparsity`` may be the name of a schedule."""
    schedule = settings.pop("sparsity", None)
    sparsity = SparsityConfig(0.1, schedule, 0.5, settings.pop("method", "proximal")) if schedule else None
    settings = {"img_size": SIZE, "learning_rate": 0.01, "batch_size": 2} | settings
    config = TrainConfig(epochs=20, sparsity=sparsity, **settings)
    torch.manual_seed(0)
    models = [Darknet(blocks).to(device).train() for _ in range(1 + teacher)]
    return Trainer(config, models[0], steps // 20, models[1].eval().requires_grad_(False) if teacher else None)


def random_batch(images: int = 2, size: int = SIZE, classes: int = CLASSES, seed: int = 0, boxes: int = 3) -> Batch:
    """Images (B, 3, S, S) uint8 of noise, and so many boxes in each."""
    with unset_fake_temporarily():
        return _random_batch(images, size, classes, seed, boxes)


def _random_batch(images: int, size: int, classes: int, seed: int, boxes: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    number = torch.arange(images).repeat_interleave(boxes)[:, None].float()
    label = torch.randint(classes, (len(number), 1), generator=random).float()
    places = torch.rand(len(number), 4, generator=random) * torch.tensor([0.4, 0.4, 0.3, 0.3]) + 0.2
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, generator=random)
    return pixels.permute(0, 3, 1, 2), torch.cat([number, label, places], dim=1)


@contextlib.contextmanager
def assigning(mode: CountWaits) -> Iterator[None]:
    """A context in which ``mode`` does not look at the assignment of targets, which is work of the CPU."""
    assign = YoloLoss.assign

    def on_the_cpu(self, targets, img_size):
        mode.paused = True
        try:
            with unset_fake_temporarily():
                self._anchors = [torch.tensor(head.anchors) for head in self._spec.heads]
                assert targets.device.type == "cpu"
                return assign(self, targets, img_size)
        finally:
            mode.paused = False

    with patch.object(YoloLoss, "assign", on_the_cpu):
        yield


@contextlib.contextmanager
def fake_cuda() -> Iterator[CountWaits]:
    """A context with a GPU of tensors without data, where there is none; yields what notes the waits.

    Operations run with shapes, types and devices alone, and those that need numbers fail. There is no backward pass:
    each parameter gets a gradient like itself.
    """

    def backward(loss, *args):
        assert loss.device.type == "cuda"
        assert loss.requires_grad
        for parameter in tracked:
            parameter.grad = torch.empty_like(parameter)

    def apply(module, change, recurse=True):
        # The parameters are replaced: PyTorch cannot change those without data in place.
        for child in module.children():
            apply(child, change)
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(change(value.detach()), value.requires_grad)
        for name, value in module._buffers.items():
            module._buffers[name] = change(value)
        return module

    def copy_of(tensor, memo):
        copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        memo[id(tensor)] = copied = (
            nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
        )
        return copied

    tracked: list[Tensor] = []
    mode = CountWaits()
    mode.tracked = tracked

    def pin(tensor):
        mode.pinned.append(tensor)
        return tensor

    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda *args, **options: mode.bf16),
        patch.object(Tensor, "backward", backward),
        patch.object(nn.Module, "_apply", apply),
        patch.object(Tensor, "__deepcopy__", copy_of),
        patch.object(Tensor, "pin_memory", pin),
        FakeTensorMode(allow_non_fake_inputs=True),
        assigning(mode),
    ):
        mode.bf16 = True
        yield mode
