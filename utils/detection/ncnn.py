"""A network in ncnn, the runtime for phones and single-board computers.

``export.py --to ncnn`` writes three files: ``X.ncnn.param`` (the graph) and ``X.ncnn.bin`` (the weights), which ncnn
reads, and ``X.ncnn.json``, see :mod:`utils.detection.description`.

The graph's input ``in0`` is one image, float RGB in [0, 1] (grey for a network with ``channels=1``). Its outputs
``out0``, ``out1``, ... are those of the convolutions before the heads, (anchors * (5 + C), H, W) each.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import Yolo, grey
from utils.detection.description import read_description
from utils.detection.runtimes import ExportedModel
from utils.errors import InputError
from utils.optional import optional

# Options of ncnn that compute in fewer bits than float32, which differs from PyTorch, or use a GPU.
OFF = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage"),
    "use_vulkan_compute",
)
# Ways to compute a convolution in float32 that round more than others. Winograd's on tiles of 2x2 stays: its sums are
# shorter than those of a plain convolution.
INEXACT = ("use_winograd63_convolution", "use_winograd43_convolution", "use_sgemm_convolution")
FILES = (".param", ".bin")


class NcnnModel(ExportedModel):
    """The files that ``export.py --to ncnn`` wrote, in ncnn on the CPU; see ExportedModel for the attributes.

    Args:
        path: the ``.param`` file.
        exact: compute float32 convolutions in the ways that round least, which takes longer on some processors.

    Raises:
        InputError: ncnn is not installed, or a file is missing, damaged or not written by export.py.
    """

    runtime = "ncnn"
    fixed = True

    def __init__(self, path: str | Path, exact: bool = False):
        super().__init__()
        self.name = str(path)
        self.ncnn = optional("ncnn")
        self.spec, self.metadata = read_description(Path(path), FILES, self.runtime)
        self.decoders = [Yolo(head) for head in self.spec.heads]
        self.net = self.ncnn.Net()
        for option in (*OFF, *(INEXACT if exact else ())):
            setattr(self.net.opt, option, False)
        self.net.opt.num_threads = torch.get_num_threads()
        if self.net.load_param(self.name) or self.net.load_model(str(Path(path).with_suffix(".bin"))):
            raise InputError(f"{path}: ncnn cannot read it")

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C).

        Raises:
            InputError: the files are for images of another size.
        """
        self.check_size(images)
        outputs = zip(self.decoders, self.raw_outputs(images), strict=True)
        return torch.cat([decoder.decode(decoder(raw), *images.shape[-2:]) for decoder, raw in outputs], dim=1)

    def raw_outputs(self, images: Tensor) -> list[Tensor]:
        """What each head reads, (B, A * (5 + C), H, W), for images (B, 3, H, W) in [0, 1]."""
        images = grey(images) if self.spec.channels == 1 else images
        of_images = [self._one(image) for image in images.cpu().contiguous().numpy()]  # a Mat ignores strides
        return [torch.stack(raw) for raw in zip(*of_images, strict=True)]

    def _one(self, image: np.ndarray) -> list[Tensor]:
        extractor = self.net.create_extractor()
        extractor.input("in0", self.ncnn.Mat(image).clone())  # a Mat does not keep the array's memory alive
        outputs = [extractor.extract(f"out{number}")[1] for number in range(len(self.decoders))]
        return [torch.from_numpy(np.array(output)) for output in outputs]
