"""The processes that read pictures: what they do about signals, and what is said when one of them ends."""

import os
import re

from utils.errors import InputError

CAUSES = {
    "Killed": "most likely by the system, whose memory was full: lower --n_cpu or --batch_size",
    "Bus error": "the shared memory is full: enlarge /dev/shm (docker run --shm-size), or lower --n_cpu; 0 needs none",
}
UNKNOWN = "run it with --n_cpu 0 to see where"


def leave_signals_to_parent(worker: int) -> None:
    """For worker processes: what a terminal or ``timeout`` sends to all of a program's processes is the parent's alone.

    They leave its process group, and do not ignore the signals, since the parent ends them by SIGTERM. They end without
    it too, some seconds after the parent is gone.
    """
    os.setpgid(0, 0)


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
        return InputError(f"a process that reads pictures {how}: {cause}. The checkpoints are as they were")
    return None
