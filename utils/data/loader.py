"""Batches of a data set: the order of the images in an epoch, and the loader with its worker processes."""

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Sized
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data.datasets import EpochOrder
from utils.distributed import share
from utils.workers import default_workers, start_worker

T = TypeVar("T")


class EpochSampler(Sampler):
    """Yields (epoch, index). The order is new in each epoch and depends on the seed and the epoch alone.

    In distributed training each process takes its consecutive part of every global batch, so that all processes
    together see the batches of a single process. The last batch may be smaller, and the parts may then differ by one
    image. Where a process would have a single image, of which BatchNorm cannot take statistics in every network, the
    last batch is filled up with the first images of the epoch, so that each process has two.

    Args:
        length: number of images.
        seed: seed of the order.
        batch_size: global batch size (images per batch over all processes), a multiple of ``world``.
        rank: number of this process.
        world: number of processes.

    Attributes:
        epoch: the epoch to yield.
        start: number of items at its beginning to skip, because an interrupted run has had them.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1, rank: int = 0, world: int = 1):
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.rank, self.world = rank, world
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        full, remainder = divmod(self.length, self.batch_size)
        last = len(share(max(remainder, self._least), self.rank, self.world)) if remainder else 0
        return full * self.batch_size // self.world + last

    @property
    def _least(self) -> int:
        """The smallest last batch: two images per process, or one where all batches have one."""
        return self.world * min(2, max(1, self.batch_size // self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.order()[self.start :])

    def order(self) -> list[tuple[int, int]]:
        """All items of the epoch for this process, in their order."""
        order = EpochOrder(self.length, self.seed)(self.epoch)
        items = []
        for start in range(0, self.length, self.batch_size):
            batch = order[start : start + self.batch_size]
            if len(batch) < self._least:
                batch = np.resize(np.concatenate([batch, order]), self._least)
            items += [(self.epoch, int(batch[position])) for position in share(len(batch), self.rank, self.world)]
        return items


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Batch items: images (B, 3, H, W) uint8 and targets (N, 6): image in the batch, class, cx, cy, w, h in [0, 1]."""
    # Images are (H, W, 3) in memory. Stacking them like that is many times faster, and a batch in channels_last.
    images = torch.stack([image.permute(1, 2, 0) for image, _ in items]).permute(0, 3, 1, 2)
    numbered = [torch.nn.functional.pad(boxes, (1, 0), value=number) for number, (_, boxes) in enumerate(items)]
    return images, torch.cat(numbered)


def batches_by_shape(
    items: Iterable[T], shape: Callable[[T], Hashable], batch_size: int, patience: int
) -> Iterator[list[T]]:
    """Batches of items of one shape, each item in one batch.

    Args:
        items: in their order, which they keep within a batch.
        shape: returns an item's shape.
        batch_size: the most items of a batch.
        patience: how many later items may arrive before an item leaves, even in a small batch.
    """
    waiting: dict[Hashable, tuple[int, list[T]]] = {}  # by shape: the place of the first item, and all of them
    for place, item in enumerate(items):
        _, batch = waiting.setdefault(shape(item), (place, []))
        batch.append(item)
        late = [key for key, (first, batch) in waiting.items() if len(batch) == batch_size or place - first >= patience]
        yield from (waiting.pop(key)[1] for key in late)
    yield from (batch for _, batch in waiting.values())


def loader(
    dataset: Dataset,
    batch_size: int | list[list[int]],
    n_cpu: int | None,
    sampler: Sampler | Sequence[int] | None = None,
    collate_fn: Callable = collate,
    device: torch.device | None = None,
) -> DataLoader:
    """Load batches of ``dataset`` in ``n_cpu`` worker processes.

    Args:
        dataset: the data set.
        batch_size: images per batch of this process; or the batches, as the indices of their images.
        n_cpu: number of worker processes; 0 loads in this process. None is :func:`utils.workers.default_workers`, but
            no more than there are batches.
        sampler: the order, unless the batches are given; None is the order of the data set.
        collate_fn: makes a batch of items.
        device: where the batches will go; for a GPU they are in pinned memory.
    """
    size, batches = (batch_size, None) if isinstance(batch_size, int) else (1, batch_size)
    if n_cpu is None:
        images = len(cast(Sized, dataset if sampler is None else sampler))
        n_cpu = min(default_workers(), len(batches) if batches else math.ceil(images / size))
    return DataLoader(
        dataset,
        size,
        sampler=sampler,
        batch_sampler=batches,
        num_workers=n_cpu,
        collate_fn=collate_fn,
        pin_memory=device is not None and device.type == "cuda",
        persistent_workers=n_cpu > 0,
        worker_init_fn=start_worker,
        # The loader draws seeds from its generator. Drawing them from the global one would change the state that a
        # resumed run restores for the network.
        generator=torch.Generator(),
    )


class Waiting(Iterable[T]):
    """Batches, and how long their user has waited for them.

    Args:
        batches: what is passed on.

    Attributes:
        seconds: the time that passed between asking for batches and getting them.
    """

    def __init__(self, batches: Iterable[T]):
        self.batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        asked = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.seconds += time.perf_counter() - asked
