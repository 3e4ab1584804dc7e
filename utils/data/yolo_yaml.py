"""The ``data.yaml`` of Ultralytics and Roboflow: class names, and folders or lists of images for each split."""

import os
from itertools import chain
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import yaml

from utils.data.image_lists import endings
from utils.errors import InputError
from utils.files import read_text

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1 << 18  # of a file; ten thousand class names are smaller
MAX_DEPTH = 8  # of lists and mappings in each other
MAX_CLASSES = 65_536  # a larger number is a mistake, and would take all memory
NULLS = ("", "~", "null", "Null", "NULL")
SPLITS = {"train": ("train",), "valid": ("val", "valid", "validation")}  # keys by our name of the split
# All scalars stay texts, so that a class may be called "no" or 1.0; libyaml's parser, if PyYAML has it, is faster.
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class DataYaml(NamedTuple):
    """The content of a ``data.yaml``.

    Attributes:
        names: the class names.
        splits: for "train" and "valid" the folders or lists of images; empty where the file names none.
        missing: an error message for a split of which the file names one that is not there.
        keypoints: the numbers that follow the box on each label line.
    """

    names: list[str]
    splits: dict[str, tuple[Path, ...]]
    missing: dict[str, str]
    keypoints: int


def read_data_yaml(path: Path) -> DataYaml:
    """Read a ``data.yaml``.

    Raises:
        InputError: the file is missing, or is no YAML of this kind.
    """
    content = load_mapping(path)
    data = DataYaml(read_class_names(content, path), {}, {}, read_keypoints(content, path))
    for split, keys in SPLITS.items():
        named = (as_texts(content[key], f"{path}: {key}") for key in keys if key in content)
        texts = next(filter(None, named), [])
        try:
            data.splits[split] = tuple(resolve(text, content, path) for text in texts)
        except InputError as error:  # a program may need the other split alone
            data.splits[split], data.missing[split] = (), str(error)
    return data


def load_mapping(path: Path) -> dict[str, object]:
    """The mapping that a YAML file holds, its scalars as texts.

    Raises:
        InputError: it is none, or is made to take all memory: too large, too deep, or with aliases.
    """
    text = read_text(path, "data.yaml")
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: is longer than {MAX_BYTES >> 10} KiB, too long for a data.yaml")
    try:
        depth = 0
        for event in yaml.parse(text, LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise InputError(f"{path}:{event.start_mark.line + 1}: aliases (*) and deep nesting have no place here")
        content = yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: should hold keys and values: train, val, names")
    return content


def read_class_names(content: dict[str, object], path: Path) -> list[str]:
    """The class names, as a list or by number; where there are only ``nc`` classes, their numbers.

    Raises:
        InputError: they are missing, or are not as many as ``nc`` says.
    """
    names, count = content.get("names"), content.get("nc")
    if names in NULLS or names is None:
        if not isinstance(count, str) or not is_number(count) or not 1 <= int(count) <= MAX_CLASSES:
            raise InputError(f"{path}: names is missing: the class names, as a list or by number")
        return [str(number) for number in range(int(count))]
    if isinstance(names, dict):
        numbers = sorted(int(number) for number in names if is_number(number))
        if numbers != list(range(len(names))):
            raise InputError(f"{path}: names should be numbered from 0 without gaps")
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    texts = [" ".join(name.split()) for name in as_texts(names, f"{path}: names")]
    if "" in texts or not texts:
        raise InputError(f"{path}: names has an empty name")
    if count is not None and count not in NULLS and count != str(len(texts)):
        raise InputError(f"{path}: nc is {str(count)[:20]}, but names has {len(texts)}")
    return texts


def read_keypoints(content: dict[str, object], path: Path) -> int:
    """The numbers of all keypoints of an object, by ``kpt_shape``: how many, and 2 or 3 numbers each; 0 without.

    Raises:
        InputError: it is something else.
    """
    shape = content.get("kpt_shape", "")
    if shape in NULLS:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and is_number(shape[0]) and shape[1] in ("2", "3")):
        raise InputError(f"{path}: kpt_shape should be the number of keypoints and that of their values: [17, 3]")
    return int(shape[0]) * int(shape[1])


def is_number(text: object) -> bool:
    """Whether a text is a short number of ASCII digits."""
    return isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_CLASSES))


def as_texts(value: object, where: str) -> list[str]:
    """A text as a list of one, a list of texts as it is, and a null as an empty list.

    Raises:
        InputError: the value is none of these; the message begins with ``where``.
    """
    texts = value if isinstance(value, list) else [] if value in NULLS else [value]
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) < len(texts):
        raise InputError(f"{where}: should be a text or a list of texts")
    return strings


def resolve(text: str, content: dict[str, object], origin: Path) -> Path:
    """The folder or list that the file ``origin`` names with ``text``.

    As Ultralytics has it, that is relative to ``path``, which is relative to the file's folder, to the working
    directory or to the folder above the file's; without ``path``, relative to these. Roboflow's ``../train/images``
    means ``train/images``. Where ``path`` is of another machine, the file's folder counts, and of an absolute
    ``text`` its end, see :func:`utils.data.image_lists.endings`.

    Raises:
        InputError: there is no such file or folder; the message names all places.
    """
    text = text.strip().replace("\\", "/")
    root = content.get("path")
    root = root.strip().replace("\\", "/") if isinstance(root, str) and root not in NULLS else "."
    folder = origin.parent
    roots = [folder / root, Path(root), folder.absolute().parent / root, folder]
    texts = [text, text.removeprefix("../")] if text.startswith("../") else [text]
    candidates = [base / name for base in roots for name in texts]
    if PureWindowsPath(text).anchor:
        candidates = [Path(text), *chain.from_iterable(endings(text, base) for base in roots)]
    places = list(dict.fromkeys(map(os.path.normpath, candidates)))
    for place in places:
        if os.path.exists(place):
            return Path(place)
    raise InputError(f"{origin}: there is no {text[:200]}: looked for {', '.join(place[:300] for place in places)}")
