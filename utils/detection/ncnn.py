"""A network in ncnn, the runtime for phones and single-board computers.

``export.py --to ncnn`` writes three files: ``X.ncnn.param`` (the graph) and ``X.ncnn.bin`` (the weights), which ncnn
reads, and ``X.ncnn.json``, which holds ``cfg`` (the text), ``names`` (a list), ``img_size`` (the side of a square, or
height and width with a space between them) and ``sha256`` (of the two other files by suffix).

The graph's input ``in0`` is one image, float RGB in [0, 1] (grey for a network with ``channels=1``). Its outputs
``out0``, ``out1``, ... are those of the convolutions before the heads, (anchors * (5 + C), H, W) each.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import Yolo, grey
from utils.darknet.cfg import parse_cfg
from utils.darknet.spec import parse_network
from utils.detection.runtimes import ExportedModel
from utils.errors import InputError
from utils.files import read_text
from utils.optional import optional
from utils.sizes import Size

# Options of ncnn that change float32 to a type of fewer bits, which differs from PyTorch, or that use a GPU.
OFF = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage"),
    *("use_int8_inference", "use_vulkan_compute"),
)
HASHED = (".param", ".bin")


class NcnnModel(ExportedModel):
    """The files that ``export.py --to ncnn`` wrote, in ncnn on the CPU; see ExportedModel for the attributes.

    Args:
        path: the ``.param`` file.

    Raises:
        InputError: ncnn is not installed, or a file is missing, damaged or not written by export.py.
    """

    runtime = "ncnn"
    fixed = True

    def __init__(self, path: str | Path):
        super().__init__()
        self.name = str(path)
        self.ncnn = optional("ncnn")
        description = _read_description(Path(path))
        self.metadata = {"names": description["names"], "img_size": Size.parse(description["img_size"]).plain}
        self.spec = parse_network(parse_cfg(description["cfg"], f"cfg in {self.name}"), self.metadata["img_size"])
        self.decoders = [Yolo(head) for head in self.spec.heads]
        self.net = self.ncnn.Net()
        for option in OFF:
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


def _read_description(path: Path) -> dict:
    """The content of the ``.json`` file beside a ``.param`` file, after the two others are checked against it.

    A foreign or damaged file would crash ncnn, which does not check what it reads.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such ncnn file")
    text = read_text(path.with_suffix(".json"), "description of an ncnn model, which export.py writes beside it")
    try:
        description = json.loads(text)
        hashes = {suffix: description["sha256"][suffix] for suffix in HASHED}
        texts = (description["cfg"], description["img_size"], *description["names"])
    except (ValueError, KeyError, TypeError):
        texts = (None,)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path.with_suffix('.json')}: not a description of an ncnn model that export.py wrote")
    for suffix in HASHED:
        file = path.with_suffix(suffix)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{file}: there is no such file: an ncnn model is a .param and a .bin file") from None
        if hashlib.sha256(content).hexdigest() != hashes[suffix]:
            raise InputError(f"{file}: damaged, or of another export than {path.with_suffix('.json').name}")
    return description
