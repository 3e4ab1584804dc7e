"""Packages that only some users need."""

import importlib
from types import ModuleType

from utils.errors import InputError

# What pip calls a package where it is not the name of its module.
DISTRIBUTIONS = {"cv2": "opencv-python-headless<5"}


def optional(name: str) -> ModuleType:
    """Import an optional module by its full name, such as ``onnxruntime.quantization``.

    Raises:
        InputError: it is not installed, and the message says how to install it; or it cannot be imported.
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        distribution = DISTRIBUTIONS.get(package, package)
        raise InputError(f"{package} is not installed: pip install '{distribution}'") from None
    except ImportError as error:  # a library of the system that it needs is not there
        raise InputError(f"{package} cannot be imported: {' '.join(str(error).split())}") from error
