"""Losses and gradients that are not finite: they are noticed without waiting for the device, and reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.ops import box_convert

from utils.data.datasets import DetectionDataset
from utils.data.loader import EpochSampler
from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, write_text

SMALLEST_SCALE = 2.0**-10  # the scale of the loss under float16 falls this low only if no gradient is ever finite


class NotFinite(InputError):
    """The loss or the gradient is not finite.

    Attributes:
        batches: the numbers within the epoch of the batches that may be the cause.
    """

    def __init__(self, message: str, batches: range):
        super().__init__(message)
        self.batches = batches


class FiniteWatch:
    """Notes the first batch of an epoch whose loss or gradient is not finite.

    The notes stay on the device, so that no step waits for them; they are read when :meth:`first` is called.
    """

    def __init__(self, device: torch.device):
        self._first = {what: torch.full((), torch.inf, device=device) for what in ("loss", "gradient")}

    def see(self, what: str, value: Tensor, batch: int) -> None:
        """Note a value, the "loss" or the norm of the "gradient", of batch number ``batch``."""
        first = self._first[what]
        self._first[what] = torch.where(torch.isfinite(value.detach()), first, first.clamp(max=batch))

    def first(self) -> tuple[str, int] | None:
        """What was not finite first, and in which batch; None where all values were finite."""
        noted = [(float(batch), what) for what, batch in self._first.items()]
        batch, what = min(noted, key=lambda entry: entry[0])  # the loss before the gradient that it spoils
        return None if batch == torch.inf else (what, int(batch))

    def check(self, where: str, first_step: int, accumulate: int, advice: str) -> None:
        """Raise :class:`NotFinite` if a value was not finite.

        Args:
            where: the beginning of the message, which the number of the step follows.
            first_step: the number of the epoch's first optimizer step.
            accumulate: batches per optimizer step.
            advice: the end of the message.
        """
        if first := self.first():
            what, batch = first
            begin = batch if what == "loss" else batch - batch % accumulate
            step = first_step + batch // accumulate
            raise NotFinite(f"{where} {step}: the {what} is not finite. {advice}", range(begin, batch + 1))


def check_scale(scaler: torch.amp.GradScaler, where: str, advice: str) -> None:
    """Raise an InputError where the scale of the loss fell so low that no gradient is finite in float16."""
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
        raise InputError(f"{where}: no gradient is finite in float16 any more. {advice}")


def write_batches(batches: DataLoader, numbers: range, names: Sequence[str], folder: Path) -> Path:
    """Write the images of some batches as the network got them, with their boxes, and a list of their files.

    Args:
        batches: of a :class:`utils.data.datasets.DetectionDataset`, from an EpochSampler.
        numbers: of the batches within the epoch that the sampler is at.
        names: class names.
        folder: where to write; made if missing.

    Returns:
        The folder.
    """
    dataset, sampler = cast(DetectionDataset, batches.dataset), cast(EpochSampler, batches.sampler)
    size = cast(int, batches.batch_size)
    items = sampler.order()[numbers.start * size : numbers.stop * size]
    for position, item in enumerate(items):
        image, boxes = dataset[item]
        height, width = image.shape[-2:]
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        corners = box_convert(boxes[:, 1:] * torch.tensor([width, height, width, height]), "cxcywh", "xyxy")
        labelled = torch.cat([corners, torch.ones(len(boxes), 1), boxes[:, :1]], dim=1)
        with atomic_writer(folder / f"{position:03d}.png") as file:
            draw_detections(pixels, labelled, names).save(file, format="PNG")
    write_text(folder / "images.txt", "".join(f"{dataset.images[index]}\n" for _, index in items))
    return folder
