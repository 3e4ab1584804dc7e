"""Where a data set's files lie: images and annotations below one folder, in any of the layouts that tools write.

Folders that say what they hold ("images", "Annotations", "train_labels") and folders of a split ("train", "valid") may
come in any order: an annotation and its image have the same stem, and the same folders but for the former.
"""

import re
from collections.abc import Container, Sequence
from pathlib import Path

from utils.data.converters.samples import LeftOut, Sample
from utils.data.image_lists import files_below
from utils.errors import InputError

KINDS = {"annotations", "annotation", "anno", "xmls", "xml", "labels", "label", "voc", "images", "image", "imgs", "img"}
KINDS |= {"jpegimages", "pics", "pictures", "photos"}
SPLITS = {
    "train": {"train", "training", "trainval"},
    "valid": {"valid", "val", "validation"},
    "test": {"test", "testing"},
}


def words(name: str) -> list[str]:
    """The words of a folder's name, in lower case: ``train_images`` has two."""
    return [word for word in re.split(r"[\s._-]+", name.lower()) if word]


def place(path: Path, source: Path) -> tuple[str, ...]:
    """What an annotation and its image share: the folders below ``source`` without words of KINDS, and the stem."""
    folders = path.relative_to(source).parts[:-1]
    remaining = ("_".join(word for word in words(folder) if word not in KINDS) for folder in folders)
    return (*filter(None, remaining), path.stem)


def split_of(path: Path, source: Path) -> str | None:
    """The split whose name is the last among the folders between ``source`` and ``path``: a key of SPLITS, or None."""
    for name in reversed(path.relative_to(source).parts[:-1]):
        for split, names in SPLITS.items():
            if names.intersection(words(name)):
                return split
    return None


def by_split(samples: Sequence[Sample], source: Path) -> tuple[dict[str, list[Sample]], list[LeftOut]]:
    """Samples by the split that the folders of their images say, "train" and "valid" ("test" where there is no such).

    Where the folders do not tell both, all samples are of "train".

    Returns:
        The samples of the splits, and those left out, which lie elsewhere.
    """
    folders: dict[str | None, list[Sample]] = {}
    for sample in samples:
        folders.setdefault(split_of(sample.source, source), []).append(sample)
    valid = next((split for split in ("valid", "test") if split in folders), None)
    if "train" not in folders or valid is None:
        return {"train": list(samples)}, []
    left_out = [
        LeftOut("image", f"in the {split} split, which is not used" if split else "in no folder of a split")
        for split in folders.keys() - {"train", valid}
        for _ in folders[split]
    ]
    return {"train": folders["train"], "valid": folders[valid]}, left_out


class Images:
    """The images below a folder, to be looked up by the annotations' places and names."""

    def __init__(self, source: Path, suffixes: Container[str]):
        self.source = source
        self.paths = files_below(source, suffixes)
        self.by_place: dict[tuple[str, ...], list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        self.by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            self.by_place.setdefault(place(path, source), []).append(path)
            self.by_stem.setdefault(path.stem, []).append(path)
            self.by_name.setdefault(path.name.lower(), []).append(path)

    def near(self, annotation: Path) -> list[Path]:
        """The images that an annotation's own place says: beside it, or in the same place of a folder of images."""
        stem = self.by_stem.get(annotation.stem, [])
        beside = [path for path in stem if path.parent == annotation.parent]
        return beside or self.by_place.get(place(annotation, self.source), [])

    def of(self, annotation: Path, file_name: str = "", taken: Container[Path] = ()) -> Path:
        """The image of an annotation file.

        Args:
            annotation: the file.
            file_name: what it calls its image.
            taken: images that are near another annotation; another one elsewhere has the same name by chance.

        Raises:
            InputError: there is none, or several could be meant.
        """
        name = base_name(file_name).lower()
        candidates = self.near(annotation)
        for elsewhere in (self.by_stem.get(annotation.stem, []), self.by_name.get(name, [])):
            candidates = candidates or [path for path in elsewhere if path not in taken]
        if len(candidates) > 1:
            candidates = [path for path in candidates if path.name.lower() == name] or candidates
        if not candidates:
            raise InputError(f"{annotation}: there is no image {annotation.stem}.jpg (.png, ...) below {self.source}")
        if len(candidates) > 1:
            first, second = candidates[:2]
            raise InputError(f"{annotation}: {second} and {first.name} could both be its image: remove or rename one")
        return candidates[0]

    def named(self, file_name: str) -> Path | None:
        """The only image whose name, or name without suffix, is the last part of ``file_name``; or None."""
        last = base_name(file_name)
        candidates = self.by_name.get(last.lower()) or self.by_stem.get(last, [])
        return candidates[0] if len(candidates) == 1 else None


def base_name(file_name: str) -> str:
    """The last part of a path of Linux or Windows."""
    return re.split(r"[\\/]", file_name.strip())[-1]
