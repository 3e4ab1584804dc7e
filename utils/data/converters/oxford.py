"""Reads the Oxford hand data set: images, and MATLAB files with the corners of rotated boxes."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat
from tqdm import tqdm

from utils.data.converters.samples import DataSet, Sample, files_by_stem, finite_numbers
from utils.errors import InputError

FOLDERS = {
    "train": ["training_dataset/training_data", "validation_dataset/validation_data"],
    "valid": ["test_dataset/test_data"],
}


def read_oxford(source: Path) -> DataSet:
    """Read Oxford's ``hand_dataset``: its training and validation images become "train", its test images "valid".

    Args:
        source: the folder ``hand_dataset``, or its parent.

    Raises:
        InputError: a folder is missing, an image has no annotation, an annotation has no image, or a ``.mat`` file
            is damaged.
    """
    roots = [root for root in (source, source / "hand_dataset") if (root / "training_dataset").is_dir()]
    if not roots:
        raise InputError(
            f"{source}: there is no folder training_dataset in it; data/download_oxford.sh downloads Oxford's images, "
            "data/synthetic_hands.py draws synthetic ones"
        )
    splits = {
        split: [sample for folder in folders for sample in read_folder(roots[0] / folder)]
        for split, folders in FOLDERS.items()
    }
    return DataSet(splits, ["hand"])


def read_folder(folder: Path) -> list[Sample]:
    """Read the images of ``folder/images`` with their ``folder/annotations``, sorted by name."""
    images = files_by_stem(folder / "images", ".jpg")
    annotations = files_by_stem(folder / "annotations", ".mat")
    for stem in sorted(images.keys() - annotations.keys()):
        raise InputError(f"{images[stem]}: has no annotation {folder / 'annotations' / stem}.mat")
    for stem in sorted(annotations.keys() - images.keys()):
        raise InputError(f"{annotations[stem]}: has no image {folder / 'images' / stem}.jpg")
    return [read_mat(annotations[stem], images[stem]) for stem in tqdm(sorted(images), desc=f"reading {folder.name}")]


def read_mat(annotation: Path, source: Path) -> Sample:
    """Read one annotation file. Its boxes are rotated; the sample has their axis-aligned bounding boxes."""
    try:
        cells = loadmat(annotation, variable_names=["boxes"])["boxes"].ravel()
        corners = [[finite_numbers(cell[name].item().tolist(), 2, annotation) for name in "abcd"] for cell in cells]
    except InputError:
        raise
    except Exception as error:  # a damaged file makes scipy raise errors of any kind
        raise InputError(
            f"{annotation}: should hold a cell array `boxes` of structs with the corners a, b, c, d "
            f"({type(error).__name__}: {error})"
        ) from error
    # MATLAB gives (row, column), and the centre of the first pixel is 1: half a pixel from the corner of the image.
    points = np.reshape(corners, (-1, 4, 2))[:, :, ::-1] - 0.5
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    return Sample(source, annotation, boxes, ["hand"] * len(boxes))
