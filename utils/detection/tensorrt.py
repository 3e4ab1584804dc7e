"""A network in TensorRT, on an NVIDIA GPU: an ``.engine`` file that export.py wrote, with its description.

Written after the Python API of TensorRT 10 and 11.
"""

from pathlib import Path

import torch
from torch import Tensor

from utils.detection.description import read_description
from utils.detection.runtimes import ExportedModel
from utils.devices import pick_device, require_gpu
from utils.errors import InputError
from utils.optional import optional

FILES = (".engine",)


class TensorRtModel(ExportedModel):
    """An ``.engine`` file in TensorRT; see ExportedModel for the attributes.

    Args:
        path: the file; its description lies beside it.
        device: ``cuda`` or ``cuda:N``; by default ``cuda``.

    Raises:
        InputError: TensorRT is not installed, there is no such GPU, a file is missing, damaged or not written by
            export.py, or the engine was built for another GPU or by another TensorRT.
    """

    runtime = "TensorRT"
    fixed = True

    def __init__(self, path: str | Path, device: str | None = None):
        super().__init__()
        self.name = str(path)
        trt = optional("tensorrt")
        if device and not device.startswith("cuda"):
            raise InputError(f"--device {device}: {path} runs in TensorRT, on an NVIDIA GPU: give cuda")
        self.spec, self.metadata = read_description(Path(path), FILES, self.runtime)
        require_gpu(f"{path} runs in TensorRT, on an NVIDIA GPU")
        self.device = pick_device(device or "cuda")
        # The engine needs the runtime, and the runtime the logger, as long as they live.
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise InputError(f"{path}: built for another GPU or by another TensorRT: export the network here")
        self._context = self._engine.create_execution_context()
        self.largest_batch = self._engine.get_tensor_profile_shape("images", 0)[2][0]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to predictions (B, P, 5 + C), on the device of the images.

        Larger batches than the engine takes are split.

        Raises:
            InputError: the images have another size than the one that the engine was built for.
        """
        self.check_size(images)
        return torch.cat([self._one_batch(batch) for batch in images.split(self.largest_batch)])

    def _one_batch(self, images: Tensor) -> Tensor:
        inputs = images.to(self.device, torch.float32).contiguous()
        self._context.set_input_shape("images", tuple(inputs.shape))
        predictions = torch.empty(tuple(self._context.get_tensor_shape("predictions")), device=self.device)
        self._context.set_tensor_address("images", inputs.data_ptr())
        self._context.set_tensor_address("predictions", predictions.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise InputError(f"{self.name}: TensorRT cannot compute a batch of {len(images)} images")
        stream.synchronize()  # the inputs must live until then
        return predictions.to(images.device)
