"""Packages that only some users need."""

import importlib
from types import ModuleType

from utils.errors import InputError

# What pip calls a package where it is not the name of its module.
DISTRIBUTIONS = {"cv2": "opencv-python-headless<5"}


def optional(name: str) -> ModuleType:
    """Import an optional module by its full name, such as ``onnxruntime.quantization``.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        distribution = DISTRIBUTIONS.get(package, package)
        raise InputError(f"{package} is not installed: pip install '{distribution}'") from None
