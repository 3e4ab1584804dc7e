"""Losses and gradients that are not finite: noticed without waiting for the device, and the batches written out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.ops import box_convert

from utils.drawing import draw_detections
from utils.errors import InputError
from utils.files import atomic_writer, write_text


class NotFinite(InputError):
    """The loss or the gradient is no longer a number.

    Attributes:
        batches: the numbers within the epoch of the batches that may be the cause.
    """

    def __init__(self, message: str, batches: range):
        super().__init__(message)
        self.batches = batches


class FiniteWatch:
    """Notes the first batch of an epoch whose loss or gradient is not finite.

    What it sees stays on the device, so that no step waits; it looks when it is asked.
    """

    def __init__(self, device: torch.device):
        self._first = {what: torch.full((), torch.inf, device=device) for what in ("loss", "gradient")}

    def see(self, what: str, value: Tensor, batch: int) -> None:
        """Note a value, the "loss" or the norm of the "gradient", of batch number ``batch``."""
        first = self._first[what]
        self._first[what] = torch.where(torch.isfinite(value.detach()), first, first.clamp(max=batch))

    def first(self) -> tuple[str, int] | None:
        """What was not finite first, and in which batch; None where all was finite."""
        found = [(float(batch), what) for what, batch in self._first.items()]
        batch, what = min(found, key=lambda entry: entry[0])  # the loss before the gradient that it spoils
        return None if batch == torch.inf else (what, int(batch))


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
    dataset, sampler, size = batches.dataset, batches.sampler, batches.batch_size
    items = sampler.order()[numbers.start * size : numbers.stop * size]
    for position, item in enumerate(items):
        image, boxes = dataset[item]
        square = Image.fromarray(image.permute(1, 2, 0).numpy())
        corners = box_convert(boxes[:, 1:] * image.shape[-1], "cxcywh", "xyxy")
        labelled = torch.cat([corners, torch.ones(len(boxes), 1), boxes[:, :1]], dim=1)
        with atomic_writer(folder / f"{position:03d}.png") as file:
            draw_detections(square, labelled, names).save(file, format="PNG")
    write_text(folder / "images.txt", "".join(f"{dataset.images[index]}\n" for _, index in items))
    return folder
