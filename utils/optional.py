"""Packages that only some features need."""

import importlib
from types import ModuleType

from utils.errors import InputError

# What to install with pip, where its name differs from that of the module.
DISTRIBUTIONS = {"cv2": "opencv-python-headless<5", "tensorrt": "tensorrt>=10"}


def optional(name: str) -> ModuleType:
    """Import an optional module by its full name, such as ``onnxruntime.quantization``.

    Raises:
        InputError: it is not installed (the message says how to install it), or cannot be imported.
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        distribution = DISTRIBUTIONS.get(package, package)
        raise InputError(f"{package} is not installed: pip install '{distribution}'") from None
    except ImportError as error:  # a system library that it needs is missing
        raise InputError(f"{package} cannot be imported: {' '.join(str(error).split())}") from error
