"""The device to compute on, its precision, and advice where its memory is too small."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from utils.errors import InputError

PRECISIONS = ("mixed", "full")
# Where not PyTorch's own allocator, but the driver, cuDNN or cuBLAS, finds no memory.
GPU_IS_FULL = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for a model of another runtime, which has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def default_precision(device: torch.device) -> str:
    """The precision to train in by default: mixed on a GPU, full on a CPU."""
    return "mixed" if device.type == "cuda" else "full"


def describe_device(device: torch.device, precision: str, processes: int) -> str:
    """The device, precision and number of processes of a run, in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: on the CPU"
    full = "float32 (convolutions in TF32)" if uses_tf32(device) else "float32"
    computing = f"mixed precision ({str(amp_dtype(device)).removeprefix('torch.')})" if precision == "mixed" else full
    return f"{name}, {computing}" + (f", {processes} processes" if processes > 1 else "")


def uses_tf32(device: torch.device) -> bool:
    """Whether convolutions in float32 round their inputs to TF32 (10 bits), as PyTorch lets Ampere and newer GPUs."""
    if device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context in which layers compute in :func:`amp_dtype` (``precision`` "mixed") or in float32 ("full")."""
    return torch.autocast(device.type, amp_dtype(device), enabled=precision == "mixed")


def without_tf32() -> AbstractContextManager:
    """A context without TF32, for comparisons on a GPU: its 10 bits of precision would hide small differences."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def amp_dtype(device: torch.device) -> torch.dtype:
    """The type of mixed precision: bfloat16, or float16 on a GPU without bfloat16."""
    return torch.float16 if device.type == "cuda" and not computes_bf16(device) else torch.bfloat16


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions; a CPU without them is many times slower in it than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not have it
    return any(available for name, available in capabilities.items() if name.endswith("bf16"))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Within the block, turn an out-of-memory error of GPU or CPU into an InputError with ``advice``."""
    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in GPU_IS_FULL)
        if not on_gpu and "can't allocate memory" not in str(error):
            raise
        memory = "the GPU's memory" if on_gpu else "the memory"
        raise InputError(f"{memory} is too small: {advice}") from error


def smaller_batch(batch_size: int, img_size: int, accumulate: int | None = None, processes: int = 1) -> str:
    """The options to change where a batch does not fit into memory, as text.

    Args:
        batch_size: images per batch of one process.
        img_size: the side of the images in pixels.
        accumulate: batches per optimizer step of a training; the advice then keeps the images per step.
        processes: how many processes share --batch_size.
    """
    smaller = batch_size // 2 * processes
    if not smaller:
        return f"a lower --img_size than {img_size}, or a narrower cfg"
    steps = "" if accumulate is None else f" --accumulate {2 * accumulate}, which keeps the images per step"
    return f"try --batch_size {smaller}{steps}, or a lower --img_size than {img_size}"
