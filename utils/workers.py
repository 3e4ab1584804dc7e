"""The processes that read images: what they do about signals, and what is said when one of them ends."""

import errno
import os
import re
import signal
import sys
from multiprocessing.queues import Queue

from utils.errors import InputError

CAUSES = {
    "Killed": "most likely by the system, whose memory was full: lower --n_cpu or --batch_size",
    "Bus error": "the shared memory is full: enlarge /dev/shm (docker run --shm-size), or lower --n_cpu; 0 needs none",
}
# On a CPU workers compete with the network, whose threads wait for the slowest of them: the network goes first, and the
# batches that are read ahead take the time that it leaves.
NICENESS = 10
UNKNOWN = "run it with --n_cpu 0 to see where"


def start_worker(worker: int) -> None:
    """What a worker process does first: it leaves signals to its parent, and the processor to the network.

    What a terminal or ``timeout`` sends to all of a program's processes is the parent's alone: workers leave its
    process group. They do not ignore the signals, since the parent ends them by SIGTERM; they end without it too, some
    seconds after the parent is gone.
    """
    os.setpgid(0, 0)
    os.nice(NICENESS)
    Queue._on_queue_feeder_error = staticmethod(end_worker)


def end_worker(error: Exception, batch: object) -> None:
    """End this worker, since it cannot hand over a batch; its parent would wait for it for ever.

    The thread that hands over is Python's own, and its hook for errors the only place to notice them. A worker whose
    shared memory is full ends as the system would have ended it, had it noticed when the memory was touched.
    """
    full = "shared memory" in str(error) and os.strerror(errno.ENOSPC) in str(error)
    if full:
        os.kill(os.getpid(), signal.SIGBUS)
    else:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def explain(error: Exception) -> InputError | None:
    """What to say about an error that a worker caused, in one line; None for an error that none did.

    The death of a worker comes as a signal, so that PyTorch raises it wherever the program happens to be.
    """
    text = str(error)
    if isinstance(error, InputError) and "\nOriginal Traceback" in text:  # a worker's, with its traceback as text
        return InputError(text.rstrip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: "))
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        # Where the program was waiting for the worker, the signal is the cause of PyTorch's error.
        found = re.search(r"killed by signal: (.*?)\. ?", f"{text} {error.__cause__}")
        how = f"was killed ({found[1]})" if found else "ended"
        cause = CAUSES.get(found[1], UNKNOWN) if found else UNKNOWN
        return InputError(f"a process that reads images {how}: {cause}. The checkpoints are as they were")
    return None
