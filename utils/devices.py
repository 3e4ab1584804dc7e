"""The device to compute on, and reduced precision where it helps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from utils.errors import InputError

PRECISIONS = ("mixed", "full")


def pick_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none, since it runs elsewhere than in PyTorch."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def default_precision(device: torch.device) -> str:
    """What to train in where nothing is asked for: mixed on a GPU, full on a CPU."""
    return "mixed" if device.type == "cuda" else "full"


def describe_device(device: torch.device, precision: str, processes: int) -> str:
    """What a run computes on, and how, in one line."""
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: on the CPU"
    how = f"mixed precision ({str(amp_dtype(device)).removeprefix('torch.')})" if precision == "mixed" else "float32"
    return f"{what}, {how}" + (f", {processes} processes" if processes > 1 else "")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context in which layers compute in :func:`amp_dtype` (``precision`` mixed) or in float32 (full)."""
    return torch.autocast(device.type, amp_dtype(device), enabled=precision == "mixed")


def without_tf32() -> AbstractContextManager:
    """Convolve in float32 proper on a GPU, too, for comparisons: TF32's 10 bits would hide what is looked for."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def amp_dtype(device: torch.device) -> torch.dtype:
    """The type of mixed precision: bfloat16, or float16 on a GPU that lacks it."""
    return torch.float16 if device.type == "cuda" and not computes_bf16(device) else torch.bfloat16


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without them is many times slower in it than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # which older PyTorch lacks
    return any(has for name, has in capabilities.items() if name.endswith("bf16"))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn an exhausted memory of GPU or CPU into an InputError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        where = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "the memory"
        raise InputError(f"{where} is too small: {advice}") from error


def smaller_batch(batch_size: int, img_size: int, accumulate: int | None = None, processes: int = 1) -> str:
    """What to change where a process's batch is too large; with the number of batches a step, to the same steps.

    ``--batch_size`` is that of all processes.
    """
    smaller = batch_size // 2 * processes
    if not smaller:
        return f"a lower --img_size than {img_size}, or a narrower cfg"
    steps = "" if accumulate is None else f" --accumulate {2 * accumulate}, which takes the same steps"
    return f"try --batch_size {smaller}{steps}, or a lower --img_size than {img_size}"
