"""A network as ncnn files, converted by pnnx; :mod:`utils.detection.ncnn` describes the files."""

import hashlib
import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from models import Darknet, MaxPool
from utils.darknet.cfg import format_cfg
from utils.detection.fusing import fuse
from utils.detection.ncnn import HASHED, NcnnModel
from utils.detection.runtimes import prediction_difference
from utils.errors import InputError
from utils.optional import optional
from utils.pruning.proof import proof_images
from utils.sizes import AnySize, Size

# The largest difference between ncnn and PyTorch, relative to a value where that is above 1.
TOLERANCE = 1e-4
# ncnn cannot read "-inf", with which a maxpool pads.
LOWEST = -1e30


class RawHeads(nn.Module):
    """A copy of a network with BatchNorm folded in; it gives what the heads read, (B, A * (5 + C), H, W) each."""

    def __init__(self, model: Darknet):
        super().__init__()
        self.model = fuse(model)
        for head in self.model.spec.heads:
            self.model.module_list[head.index] = nn.Identity()
        for index, module in enumerate(self.model.module_list):
            if isinstance(module, MaxPool) and any(module.pad):
                self.model.module_list[index] = nn.Sequential(nn.ConstantPad2d(module.pad, LOWEST), module.pool)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, channels, H, W) in [0, 1] to the inputs of the heads."""
        return tuple(self.model.raw_outputs(images))


def export_ncnn(model: Darknet, names: list[str], img_size: AnySize) -> dict[str, bytes]:
    """The content of the ncnn files by their suffix, ``.param``, ``.bin`` and ``.json``, for images of one size.

    Raises:
        InputError: pnnx or ncnn is not installed, pnnx cannot convert the network, or ncnn's predictions differ from
            PyTorch's by more than TOLERANCE.
    """
    pnnx = optional("pnnx")
    size = Size.of(img_size)
    shape = (1, model.spec.channels, *size)
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings(action="ignore"):  # sizes become constants, which they are
            torch.jit.trace(RawHeads(model), torch.zeros(shape), check_trace=False).save(f"{folder}/network.pt")
        command = [pnnx.EXEC_PATH, "network.pt", f"inputshape=[{','.join(map(str, shape))}]f32", "fp16=0"]
        status = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
        paths = {suffix: Path(folder) / f"network.ncnn{suffix}" for suffix in (*HASHED, ".json")}
        if status or not all(paths[suffix].exists() for suffix in HASHED):
            raise InputError(f"pnnx cannot convert the network (exit status {status}): nothing was written")
        contents = {suffix: paths[suffix].read_bytes() for suffix in HASHED}
        description = {
            "cfg": format_cfg(model.blocks),
            "names": names,
            "img_size": str(size),
            "sha256": {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()},
        }
        contents[".json"] = (json.dumps(description, indent=2) + "\n").encode()
        paths[".json"].write_bytes(contents[".json"])
        prove(model, NcnnModel(paths[".param"]), size)
    return contents


@torch.inference_mode()
def prove(model: Darknet, exported: NcnnModel, size: Size) -> None:
    """Raise an InputError if the predictions of ``exported`` differ from those of ``model`` by more than TOLERANCE."""
    images = next(proof_images(size, model.spec.stride))
    gap = prediction_difference(model(images), exported(images))
    if gap is None or not gap <= TOLERANCE:
        differ = "are not finite" if gap is None else f"differ by {gap:.1e} from PyTorch's, more than {TOLERANCE:.0e}"
        raise InputError(f"ncnn's predictions {differ}: nothing was written")
    print(f"ncnn agrees with PyTorch to {gap:.1e}")
