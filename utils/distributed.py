"""Several processes that torchrun started to train one network: one per GPU under NCCL, or on CPUs under gloo.

Without torchrun there is one process, and every function here works as with one of several. Python objects and numbers
are exchanged on the CPU through gloo, so that no GPU waits for them; gradients and statistics go from GPU to GPU.
"""

import contextlib
import gc
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.cli import EXIT_BAD_INPUT
from utils.errors import InputError
from utils.signals import Stopped

T = TypeVar("T")
# Where all processes raise the same error, the others wait so long before they end, so that the main one can report it
# before torchrun kills it.
PATIENCE_SECONDS = 2.0
# gloo's and NCCL's messages where another process has ended; that process, or torchrun, reports the reason.
LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|ncclSystemError|remote process exit|"
    r"NCCL communicator was aborted"
)
# What init_process_group needs to know; torchrun sets all of it.
RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the main process, which alone writes files and prints."""
    return rank() == 0


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[None]:
    """Within the block this process works with the others that torchrun started; only the main one prints.

    An exception leaves the block at once, and torchrun ends the other processes. An error that several processes meet
    is reported by the main one only.

    Args:
        device: what ``--device`` says; with ``cpu`` no process touches a GPU.

    Raises:
        InputError: more processes on this machine than it has GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    join(use_gpus=device != "cpu" and torch.cuda.is_available())
    try:
        with contextlib.ExitStack() as quiet:
            if not is_main():
                quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
            yield
    except (InputError, SystemExit):
        if not is_main():
            time.sleep(PATIENCE_SECONDS)
        raise
    except Stopped as stop:
        if is_main():
            raise
        raise SystemExit(stop.status) from stop
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise SystemExit(EXIT_BAD_INPUT) from error
    wait_for_all()
    gc.collect()  # a distributed model is a reference cycle, and must be freed before the process group
    dist.destroy_process_group()


def join(use_gpus: bool) -> None:
    """Form a group with the other processes; with ``use_gpus`` each uses its own.

    Raises:
        InputError: more processes on this machine than it has GPUs, or the environment does not say where the others
            are.
    """
    if missing := [name for name in RENDEZVOUS if not os.environ.get(name)]:
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, but {', '.join(missing)} is not set: "
            "start them with torchrun, or unset WORLD_SIZE"
        )
    if use_gpus:
        torch.cuda.set_device(local_gpu(os.environ, torch.cuda.device_count()))
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpus else "gloo")


def local_gpu(environment: Mapping[str, str], gpus: int) -> int:
    """The number of the GPU of this process, among the ``gpus`` that it sees.

    Raises:
        InputError: it is not the first process on this machine, and no GPU is left for it.
    """
    rank = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID")
    local = int(environment["RANK"]) % gpus if rank is None else int(rank)
    if local < gpus:
        return local
    if gpus == 1 and "TORCHELASTIC_RUN_ID" not in environment:  # a scheduler shows each task its own GPU only
        return 0
    raise InputError(f"torchrun: process {local + 1} on this machine, which has {gpus} GPUs: lower --nproc_per_node")


def from_main(function: Callable[[], T]) -> T:
    """The result of ``function`` in all processes, though only the main one calls it; its InputError ends all."""
    if world() == 1:
        return function()
    answer: list = [None, None]
    error = None
    if is_main():
        try:
            answer = [True, function()]
        except InputError as problem:
            answer, error = [False, None], problem
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if error:
        raise error
    if not answer[0]:
        raise SystemExit(EXIT_BAD_INPUT)  # the main process reports the error
    return answer[1]


def gather(value: T) -> list[T]:
    """The ``value`` of every process, by rank."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def total(values: Sequence[float]) -> list[float]:
    """The sum of each of ``values`` over the processes."""
    if world() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def wait_for_all() -> None:
    """Return when every process has called this."""
    total([0])


def largest(number: int) -> int:
    """The maximum of ``number`` over the processes."""
    if world() == 1:
        return number
    maximum = torch.tensor(number)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors, in place, by their means over the processes."""
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.div_(world()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def share(count: int, rank: int, world: int) -> range:
    """The consecutive part of ``range(count)`` for process ``rank`` of ``world``; the parts together are the whole."""
    return range(count * rank // world, count * (rank + 1) // world)
