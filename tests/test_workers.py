"""What is said where a worker of a DataLoader ends."""

import faulthandler
import os
import signal

import pytest
from torch.utils.data import Dataset

from utils.data.loader import loader
from utils.errors import InputError
from utils.workers import explain


class Deadly(Dataset):
    """Item 1 is the end of the process that reads it."""

    def __init__(self, end):
        self.end = end

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.end() if index == 1 else index


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(1)


def refuse():
    raise InputError("a.png: cannot be read as an image")


class Stuck:
    """A batch that cannot be handed over, for this reason."""

    def __init__(self, reason):
        self.reason = reason

    def __reduce__(self):
        faulthandler.disable()  # it is pytest's, and would show where the worker was
        raise RuntimeError(self.reason)


def fill_shared_memory():
    return Stuck("unable to allocate shared memory(shm) for file </torch_7_8>: No space left on device (28)")


def return_what_cannot_be_sent():
    return Stuck("cannot pickle it")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (kill, r"a DataLoader worker was killed \(Killed\): .*memory was full: lower --n_cpu"),
        (leave, r"a DataLoader worker ended: run the program with --n_cpu 0"),
        (refuse, r"^a\.png: cannot be read as an image$"),
        (fill_shared_memory, r"was killed \(Bus error\): the shared memory is full: .*--shm-size"),
        (return_what_cannot_be_sent, r"ended: run the program with --n_cpu 0"),
    ],
)
def test_the_end_of_a_worker_gives_its_cause_in_a_line(end, message):
    with pytest.raises((RuntimeError, InputError)) as error:
        list(loader(Deadly(end), 1, 1, collate_fn=list))
    said = explain(error.value)
    assert "\n" not in str(said)
    with pytest.raises(InputError, match=message):
        raise said


def test_other_errors_are_not_explained_by_workers():
    assert explain(RuntimeError("shape mismatch")) is None
    assert explain(InputError("a.cfg:3: filters= is missing")) is None
    bus = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that it is out of shared memory."
    assert "--shm-size" in str(explain(RuntimeError(bus)))
