"""The device to compute on, its precision, and advice where its memory is too small."""

import os
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn
from torchvision.ops import nms

from utils.errors import InputError
from utils.sizes import AnySize, Size

PRECISIONS = ("mixed", "full")
# Where not PyTorch's own allocator, but the driver, cuDNN or cuBLAS, finds no memory.
GPU_IS_FULL = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


# The oldest NVIDIA driver for each major version of CUDA, and a PyTorch build for it.
DRIVERS = {13: (580, "cu130"), 12: (525, "cu126")}
WHEELS = "https://download.pytorch.org/whl/"
ON_THE_CPU = "; --device cpu goes on without the GPU"


def pick_device(
    name: str | None = None,
    find_driver: Callable[[], str | None] | None = None,
    find_gaps: Callable[[torch.device], list[str]] | None = None,
) -> torch.device:
    """The device to compute on.

    Args:
        name: ``cuda``, ``cuda:N``, ``mps`` or ``cpu``. None takes the GPU if there is one, else the CPU: the GPU of
            this process under torchrun, and Apple's if PyTorch has all that the programs need for it.
        find_driver: see :func:`nvidia_driver`, the default.
        find_gaps: see :func:`missing_operations`, the default.

    Raises:
        InputError: there is no such device, or none was named and the machine has an NVIDIA GPU that PyTorch cannot
            use. The message says why, and what to install.
    """
    find_driver, find_gaps = find_driver or nvidia_driver, find_gaps or missing_operations
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        return _mps(find_gaps)
    if name or _has_cuda():
        return _cuda(name or "cuda", find_driver)
    if not _hides_gpus() and (driver := find_driver()) is not None:
        raise InputError(explain_no_cuda(driver, torch.__version__, torch.version.cuda, cuda_error()) + ON_THE_CPU)
    if not torch.backends.mps.is_available():
        return torch.device("cpu")
    if gaps := find_gaps(torch.device("mps")):
        print(f"mps: this PyTorch lacks {', '.join(gaps)} there: on the CPU instead")
        return torch.device("cpu")
    return torch.device("mps")


def _cuda(name: str, find_driver: Callable[[], str | None]) -> torch.device:
    """A GPU by the name ``cuda`` or ``cuda:N``, which becomes this process's current one."""
    device = torch.device(name)
    require_gpu(f"--device {name}", find_driver, ON_THE_CPU)
    if device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            raise InputError(f"--device {name}: there are {count} GPUs, and the first is cuda:0")
        local = int(os.environ.get("LOCAL_RANK", 0))
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and device.index != local:
            raise InputError(f"--device {name}: torchrun gives each process a GPU of its own: leave --device out")
        torch.cuda.set_device(device)
    return device


def require_gpu(what: str, find_driver: Callable[[], str | None] | None = None, advice: str = "") -> None:
    """Check that PyTorch can use an NVIDIA GPU.

    Args:
        what: what needs one; the message begins with it.
        find_driver: see :func:`nvidia_driver`, the default.
        advice: the end of the message.

    Raises:
        InputError: it cannot; the message says why, and what to install.
    """
    if _has_cuda():
        return
    if _hides_gpus():
        reason = "CUDA_VISIBLE_DEVICES hides all GPUs"
    elif (driver := (find_driver or nvidia_driver)()) is None:
        reason = "no NVIDIA GPU or driver is here"
    else:
        reason = explain_no_cuda(driver, torch.__version__, torch.version.cuda, cuda_error())
    raise InputError(f"{what}: {reason}{advice}")


def _mps(find_gaps: Callable[[torch.device], list[str]]) -> torch.device:
    """Apple's GPU, which was asked for."""
    device = torch.device("mps")
    if not torch.backends.mps.is_available():
        raise InputError("--device mps: PyTorch finds no Apple GPU here; --device cpu needs none")
    if gaps := find_gaps(device):
        raise InputError(
            f"--device mps: this PyTorch lacks {', '.join(gaps)} there: set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute "
            "that on the CPU, or give --device cpu"
        )
    return device


def _has_cuda() -> bool:
    with warnings.catch_warnings():  # of the driver, which the error repeats
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def _hides_gpus() -> bool:
    """Whether the user has hidden all GPUs from programs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def nvidia_driver(
    module: Path = Path("/proc/driver/nvidia/version"), device: Path = Path("/dev/nvidia0"), tool: str = "nvidia-smi"
) -> str | None:
    """The version of the NVIDIA driver, "" if it cannot be told; None on a machine without an NVIDIA GPU.

    Args:
        module: what the driver's kernel module says about itself.
        device: the first GPU.
        tool: the driver's program, which is all that there is under WSL.
    """
    if device.exists() and module.is_file():
        version = re.search(r"Kernel Module .*?\b(\d+\.\d[\d.]*)", module.read_text(encoding="utf-8", errors="replace"))
        if version:
            return version[1]
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # not installed, or it finds no GPU
        answer = ""
    if version := re.match(r"\d+[\d.]*", answer.strip()):
        return version[0]
    return "" if device.exists() else None


def cuda_error() -> str:
    """Why CUDA does not start, in PyTorch's words; "" if PyTorch was built without CUDA, or it starts."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0] if torch.version.cuda else ""
    return ""


def explain_no_cuda(driver: str, torch_version: str, built_for: str | None, reason: str) -> str:
    """Why PyTorch cannot use the NVIDIA GPU of this machine, and what to install, in one line.

    Args:
        driver: the version of the driver, or "".
        torch_version: PyTorch's version.
        built_for: the version of CUDA that PyTorch was built for, ``torch.version.cuda``.
        reason: why CUDA does not start, or "".
    """
    known = f"an NVIDIA GPU with driver {driver} is here" if driver else "an NVIDIA GPU is here"
    major = int(driver.partition(".")[0]) if driver else None
    wheel = next((wheel for oldest, wheel in DRIVERS.values() if major is None or major >= oldest), None)
    install = f"pip install --force-reinstall torch torchvision --index-url {WHEELS}{wheel}"
    if wheel is None:
        oldest = min(oldest for oldest, _ in DRIVERS.values())
        install = f"update the driver to {oldest} or newer"
    if built_for is None:
        return f"{known}, but PyTorch {torch_version} was built without CUDA (torch.version.cuda is None): {install}"
    needed, _ = DRIVERS.get(int(built_for.partition(".")[0]), (None, None))
    built = f"{known}, but PyTorch {torch_version} was built for CUDA {built_for}"
    if needed and major is not None and major < needed:
        other = f", or {install}" if wheel else ""
        return f"{built}, which needs driver {needed} or newer: update the driver{other}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    setting = f" (CUDA_VISIBLE_DEVICES is {visible})" if visible is not None else ""
    return f"{built} and cannot use it{setting}: {reason or 'it finds no GPU; see whether nvidia-smi lists one'}"


def missing_operations(device: torch.device) -> list[str]:
    """The operations of training and detection that PyTorch does not have on a device, by their names."""
    values = torch.linspace(0, 1, 256).reshape(1, 4, 8, 8)

    def learn() -> None:
        with torch.random.fork_rng(devices=[]):  # the weights of the networks do not depend on the device
            layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Mish(), nn.MaxPool2d(2))
        layer.to(device)
        nn.functional.interpolate(layer(values.to(device)), scale_factor=2).sum().backward()

    def select() -> None:
        on_device = values.to(device).flatten()
        on_device.index_select(0, (on_device > 0.5).nonzero().squeeze(1)).sort(stable=True)

    def count() -> None:
        torch.arange(4, device=device).bincount(minlength=5)

    def suppress() -> None:
        nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]], device=device), torch.ones(2, device=device), 0.5).cpu()

    gaps = []
    for title, operation in {
        "convolutions and their gradients": learn,
        "nonzero and stable sort": select,
        "bincount": count,
        "torchvision's nms": suppress,
    }.items():
        try:
            operation()
        except (NotImplementedError, RuntimeError, TypeError):
            gaps.append(title)
    return gaps


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for a model of another runtime, which has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def default_precision(device: torch.device) -> str:
    """The precision to train in by default: mixed on a GPU, full on a CPU."""
    return "mixed" if device.type == "cuda" else "full"


def describe_device(device: torch.device, precision: str, processes: int) -> str:
    """The device, precision and number of processes of a run, in one line."""
    names = {"cpu": "no GPU: on the CPU", "mps": "Apple's GPU"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else names[device.type]
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
    capabilities: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of PyTorch do not have it
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


def smaller_batch(batch_size: int, img_size: AnySize, accumulate: int | None = None, processes: int = 1) -> str:
    """The options to change where a batch does not fit into memory, as text.

    Args:
        batch_size: images per batch of one process.
        img_size: of the images.
        accumulate: batches per optimizer step of a training; the advice then keeps the images per step.
        processes: how many processes share --batch_size.
    """
    smaller = batch_size // 2 * processes
    if not smaller:
        return f"a lower --img_size than {Size.of(img_size)}, or a narrower cfg"
    steps = "" if accumulate is None else f" --accumulate {2 * accumulate}, which keeps the images per step"
    return f"try --batch_size {smaller}{steps}, or a lower --img_size than {Size.of(img_size)}"
