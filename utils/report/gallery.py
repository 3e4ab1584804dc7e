"""The images of the page, with what was detected on them before and after: those with the largest disagreement."""

import base64
import io
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from utils.boxes import Letterbox
from utils.data.datasets import DetectionDataset
from utils.report.detections import Collected, disagreements

IMAGES = 24
LONGEST_SIDE = 320  # pixels
JPEG_QUALITY = 80


@dataclass(frozen=True)
class GalleryImage:
    """An image of the page.

    Attributes:
        name: its path from the folder that holds all images.
        width, height: of the embedded JPEG, in pixels.
        jpeg: the JPEG as a data URI.
        disagreement: of the two networks, or of the only network and the ground truth.
        before, after, truth: boxes as rows of left, top, width, height in percent of the image; then the score, but
            not of the ground truth; then the class.
    """

    name: str
    width: int
    height: int
    jpeg: str
    disagreement: float
    before: list[list[float]]
    after: list[list[float]]
    truth: list[list[float]]

    @property
    def boxes(self) -> dict[str, list[list[float]]]:
        """What the page's script draws."""
        return {"before": self.before, "after": self.after, "truth": self.truth}


@dataclass(frozen=True)
class Gallery:
    """The images of the page, and on how many of all images the two networks disagree."""

    images: list[GalleryImage]
    disagreeing: int
    total: int


def make_gallery(dataset: DetectionDataset, before: Collected | None, after: Collected, count: int = IMAGES) -> Gallery:
    """The ``count`` images with the largest disagreement, the largest first.

    Args:
        dataset: the images, in the order in which they were collected.
        before: what one network detects; None compares the other with the ground truth.
        after: what the other network detects.
        count: how many images at most.
    """
    reference = before.detections if before else after.truth_as_detections
    scores = disagreements(reference, after.detections)
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in dataset.images])
    images = [
        _gallery_image(dataset, int(index), float(scores[index]), before, after, folder)
        for index in np.argsort(-scores, kind="stable")[:count]
    ]
    return Gallery(images, int((scores > 0).sum()), len(scores))


def _gallery_image(
    dataset: DetectionDataset,
    index: int,
    disagreement: float,
    before: Collected | None,
    after: Collected,
    folder: str,
) -> GalleryImage:
    image = Image.fromarray(dataset.read(index))
    place = Letterbox.fit(image.width, image.height, dataset.img_size)

    def boxes(xyxy: Tensor, others: Tensor) -> list[list[float]]:
        x1, y1, x2, y2 = place.to_image(xyxy, image.width, image.height).unbind(1)
        share_x, share_y = 100 / image.width, 100 / image.height
        sides = (x1 * share_x, y1 * share_y, (x2 - x1) * share_x, (y2 - y1) * share_y, *others.unbind(1))
        return [[round(value, 3) for value in row] for row in zip(*(side.tolist() for side in sides), strict=True)]

    def detections(collected: Collected) -> list[list[float]]:
        of_image = collected.detections[index]
        return boxes(of_image[:, :4], of_image[:, 4:])

    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return GalleryImage(
        name=os.path.relpath(dataset.images[index], folder),
        width=small.width,
        height=small.height,
        jpeg=_data_uri(small),
        disagreement=disagreement,
        before=detections(before) if before else [],
        after=detections(after),
        truth=boxes(after.truth[index][:, 1:], after.truth[index][:, :1]),
    )


def _data_uri(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
