"""What tests/test_distributed.py has torchrun do in two processes, in a project folder: not a test by itself."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import train
from utils import distributed
from utils.data.check import check_data, decode
from utils.data.data_config import read_data_config
from utils.data.image_cache import Source, build_cache
from utils.errors import InputError
from utils.signals import Stopped, StopRequest

CUT = ["-sr", "--epochs", "2", "--batch_size", "4", "--n_cpu", "0"]
SPARSE = ["--epochs", "3", "--batch_size", "4", "--n_cpu", "0", "--checkpoint_interval", "1", "--prune_every", "1"]
SPARSE += ["-sr", "--s", "1", "-pre", "start.pth"]


def talk_and_train() -> None:
    """The small talk of processes, and a sparse run with cuts: once whole, once interrupted and resumed."""
    talk()
    with patch("train.plot_training"):
        run("whole")
        with patch("train.evaluate", interrupted(train.evaluate)):
            try:
                run("parts")
            except InterruptedError:
                print("interrupted")
        run("parts", "--resume")


def cut() -> None:
    """A run that cuts its network after an epoch: process 0 alone chooses what goes, and each trains what is left."""
    with ExitStack() as patches:
        patches.enter_context(patch("train.plot_training"))
        if distributed.rank() == 1:
            for module in ("options", "trainer"):
                patches.enter_context(patch(f"utils.training.{module}.cut_least_important", None))
        run("cut", options=CUT)


def talk() -> None:
    """Every way in which processes talk."""
    me = distributed.rank()
    assert distributed.world() == 2
    assert distributed.from_main(lambda: f"from {me}") == "from 0"
    assert distributed.gather({"rank": me}) == [{"rank": 0}, {"rank": 1}]
    assert distributed.total([1, me, 0.5]) == [2, 1, 1]
    tensors = [torch.full((2, 3), float(me)), torch.tensor(7 + me), torch.tensor([4.0 * me])]
    distributed.average_(tensors)
    assert torch.equal(tensors[0], torch.full((2, 3), 0.5))
    assert tensors[1] == 7 + me  # a count has no mean
    assert tensors[2] == 2
    print("heard from", me)


def run(name: str, *words: str, options: Sequence[str] = SPARSE) -> None:
    """Train; each process keeps the weights that it ends with."""
    trainer, *others = train.build(train.get_args_parser().parse_args([*options, "--name", name, *words]))
    train.train(trainer, *others)
    states = {"model": trainer.model.state_dict(), "ema": trainer.ema.model.state_dict()}
    torch.save(states, f"{name}_{distributed.rank()}.pth")


def interrupted(evaluate):
    """An evaluate that is interrupted in the second epoch."""
    calls = []

    def wrapper(*args):
        calls.append(1)
        if len(calls) == 3:  # one before the first step, one an epoch
            raise InterruptedError
        return evaluate(*args)

    return wrapper


def stop() -> None:
    """Process 1 has fewer batches than process 0; a signal stops both before the same one, or not at all."""
    batches = range(5 - 2 * distributed.rank())
    with StopRequest("") as request:
        print("all", [list(request.watch(batches, distributed.largest))])
        for signalled, rank in ((2, 1), (4, 0)):
            request.received = None
            done = []
            try:
                for batch in request.watch(batches, distributed.largest):
                    done.append(batch)
                    if batch == signalled and distributed.rank() == rank:
                        request.received = signal.SIGTERM
            except Stopped as stopped:
                print("stopped", distributed.gather((len(done), stopped.status)))


def cache() -> None:
    """As on two machines with disks of their own, of which the first has its cache already."""
    os.environ["GROUP_RANK"] = str(distributed.rank())
    for disks in (("disk of 0", "another disk"), ("disk of 0", "disk of 1")):
        folder = Path(disks[distributed.rank()])
        build_cache(Source([Path(__file__)], [(4, 4)], grey, "grey", folder), "disk", 0)
    print("cached", distributed.gather(len(list(folder.iterdir()))))


def check() -> None:
    """The check of the data, whose decoded images are counted."""
    with patch("utils.data.check.decode", wraps=decode) as counted:
        checked = check_data(read_data_config("config/oxfordhand.data"), "train")
    print("decoded", distributed.gather(counted.call_count))
    print("boxes", distributed.gather(checked.counts["boxes"]))


def grey(index: int) -> np.ndarray:
    """An image of 4 x 4 pixels."""
    return np.full((4, 4, 3), 127, np.uint8)


def fail() -> None:
    """First only process 0 sees that an input is wrong, which is told to all; then process 1 fails while 0 waits."""

    def refuse() -> None:
        raise InputError(f"process {distributed.rank()} says no")

    try:
        distributed.from_main(refuse)
    except (InputError, SystemExit) as error:
        print(f"[{type(error).__name__}: {error}]", file=sys.stderr)
    if distributed.rank() == 1:
        raise InputError("process 1 cannot go on")
    distributed.total([0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.processes():
        parts = (talk_and_train, cut, stop, cache, check, fail)
        next(part for part in parts if part.__name__ == sys.argv[1])()
