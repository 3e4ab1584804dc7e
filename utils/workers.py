"""DataLoader workers, the processes that read images: how they handle signals, and the errors when one of them dies."""

import errno
import itertools
import math
import os
import re
import signal
import sys
from multiprocessing.queues import Queue

import cv2

from utils.control_groups import control_groups
from utils.errors import InputError

CAUSES = {
    "Killed": "most likely by the system, whose memory was full: lower --n_cpu or --batch_size",
    "Bus error": "the shared memory is full: enlarge /dev/shm (docker run --shm-size), or lower --n_cpu; 0 needs none",
}
# On a CPU the workers compete with the network's threads, which wait for the slowest of them. So the network gets
# priority, and the workers read ahead in the time that it leaves.
NICENESS = 10
MAX_WORKERS = 16  # by default; more than a GPU needs, and each takes memory
# What a control group may use per period: version 2 has both in one file.
CPU_LIMITS = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
UNKNOWN = "run the program with --n_cpu 0 to see the cause"


def default_workers() -> int:
    """The number of workers where none is given: this process's share of the cores, at most MAX_WORKERS."""
    return min(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), MAX_WORKERS)


def usable_cores() -> int:
    """The number of cores that this process may use, at least 1, within the limits of a container or a batch job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, files in itertools.product(control_groups("cpu"), CPU_LIMITS):
        try:
            quota, period = (int(word) for file in files for word in (folder / file).read_text().split())
        except (OSError, ValueError):  # the file does not exist, or says that there is no limit
            continue
        if quota > 0:
            cores = min(cores, math.ceil(quota / period))
    return max(cores, 1)


def start_worker(worker: int) -> None:
    """Initialise a worker process: it leaves signals to its parent, and lowers its priority.

    A terminal or ``timeout`` signals all processes of a group, but only the parent should react, so workers leave its
    group. They do not ignore signals, since the parent ends them by SIGTERM. Without a parent they end by themselves
    within seconds.
    """
    os.setpgid(0, 0)
    os.nice(NICENESS)
    cv2.setNumThreads(0)  # the workers are the threads; and those of the parent do not exist in a forked process
    Queue._on_queue_feeder_error = staticmethod(end_worker)  # type: ignore[attr-defined]  # not a public method


def end_worker(error: Exception, batch: object) -> None:
    """End this worker, since it cannot send a batch to its parent, which would wait for ever.

    Python's own thread sends the batches; this hook of it is the only place where errors can be noticed. Where the
    shared memory is full the worker ends by SIGBUS, as the system ends a process that touches such memory.
    """
    full = "shared memory" in str(error) and os.strerror(errno.ENOSPC) in str(error)
    if full:
        os.kill(os.getpid(), signal.SIGBUS)
    else:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def explain(error: Exception) -> InputError | None:
    """An InputError of one line for an error that a worker caused; None for any other error.

    PyTorch notices the death of a worker by a signal, and raises its error wherever the program happens to be.
    """
    text = str(error)
    if isinstance(error, InputError) and "\nOriginal Traceback" in text:  # a worker's error, with its traceback as text
        return InputError(text.rstrip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: "))
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        # If the program was waiting for the worker, the signal is named in the cause of PyTorch's error.
        signalled = re.search(r"killed by signal: (.*?)\. ?", f"{text} {error.__cause__}")
        end = f"was killed ({signalled[1]})" if signalled else "ended"
        cause = CAUSES.get(signalled[1], UNKNOWN) if signalled else UNKNOWN
        return InputError(f"a DataLoader worker {end}: {cause}. Checkpoints are unchanged")
    return None
