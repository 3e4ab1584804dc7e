"""How a run ends early: asked to stop, or because a number is not finite."""

import contextlib
from collections.abc import Iterator

from torch.utils.data import DataLoader

from utils import distributed
from utils.errors import InputError
from utils.signals import Stopped, StopRequest
from utils.training.nonfinite import NotFinite, write_batches
from utils.training.saving import CheckpointWriter


@contextlib.contextmanager
def resumable(checkpoints: CheckpointWriter, batches: DataLoader) -> Iterator[StopRequest]:
    """A context in which a signal ends the run between two steps, with a checkpoint to resume from.

    Args:
        checkpoints: of the run.
        batches: that it trains on.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the step was finished and the checkpoint written.
        InputError: the loss or the gradient is not finite; the images of the batch were written.
    """
    run = checkpoints.run
    notice = "finishing this step, then writing a checkpoint; a second signal ends the run at once"
    with StopRequest(notice if distributed.is_main() else "") as stop:
        try:
            yield stop
        except Stopped as stopped:
            checkpoints.save_last()
            distributed.wait_for_all()  # a process that ended before it is written would end the one that writes
            program = "torchrun ... -- train.py" if distributed.world() > 1 else "python train.py"
            again = f"{program} --resume --name {run.name}"
            raise Stopped(f"{stopped}; {run.last} is written, go on with: {again}", stopped.received) from None
        except NotFinite as error:
            process = f"process_{distributed.rank()}" if distributed.world() > 1 else ""
            folder = write_batches(batches, error.batches, checkpoints.names, run.folder / "not_finite" / process)
            raise InputError(f"{error}. The images of the batch are in {folder}") from error
