"""A forward pass of a graph in each runtime, whose packages are imported only where they are used."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .graph import Graph, image
from .ncnn_files import ncnn_files
from .onnx_file import OnnxWriter

# What to install with pip for each runtime; its module is called like the package.
PACKAGES = {"pytorch": "torch", "onnx": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn"}
CUDA_PROVIDER = "CUDAExecutionProvider"  # of ONNX Runtime


def onnx_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    provider: str | tuple[str, dict[str, str]] = "CPUExecutionProvider"
    if device == "cuda":
        provider = CUDA_PROVIDER, {"use_tf32": "0", "device_id": str(current_gpu() or 0)}
    session = onnxruntime.InferenceSession(OnnxWriter(graph).content(), options, [provider])
    if device == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:  # it goes on without, on the CPU
        raise RuntimeError(
            "ONNX Runtime cannot use this machine's GPU: it takes the package onnxruntime-gpu, whose CUDA and cuDNN "
            "libraries must load"
        )
    inputs = {"images": image(graph)}
    return lambda: session.run(None, inputs)


def current_gpu() -> int | None:
    """The number of the GPU that PyTorch uses in this process; None where it is not installed or has none."""
    try:
        import torch
    except ModuleNotFoundError:  # another runtime does not need it
        return None
    return torch.cuda.current_device() if torch.cuda.is_available() else None


def openvino_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in OpenVINO, on the processor."""
    if device != "cpu":
        raise RuntimeError("OpenVINO does not run on NVIDIA's GPUs: measure it with --device cpu")
    core = openvino_core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(OnnxWriter(graph).content()), "CPU", options)
    images = image(graph)
    return lambda: compiled(images)


@cache
def openvino_core() -> Any:
    """OpenVINO, once: after the second of two is gone, a signal would find the freed signal stack of the first."""
    import openvino

    return openvino.Core()


def pytorch_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in PyTorch, with a layout in memory of channels last; in float16 on a GPU."""
    import torch

    from .torch_layers import torch_layer

    layers = [(torch_layer(layer).eval(), layer["from"]) for layer in graph["layers"]]
    modules = torch.nn.ModuleList(module for module, _ in layers)
    dtype = torch.float16 if device == "cuda" else torch.float32
    modules.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    images = torch.from_numpy(image(graph)).to(device=device, dtype=dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        before, torch_threads = {-1: images}, torch.get_num_threads()
        torch.set_num_threads(threads)
        for index, (module, inputs) in enumerate(layers):
            before[index] = module(*(before[source] for source in inputs))
        if device == "cuda":
            torch.cuda.synchronize()
        torch.set_num_threads(torch_threads)

    return forward


def ncnn_runner(graph: Graph, threads: int, device: str) -> Callable[[], object]:
    """A forward pass in NCNN; heads are not decoded."""
    import ncnn

    if device != "cpu" and not ncnn.get_gpu_count():  # it would go on without, on the processor
        raise RuntimeError("ncnn finds no GPU with Vulkan: measure it with --device cpu")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = device == "cuda"
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        if hasattr(net.opt, name):
            setattr(net.opt, name, False)
    text, content, outputs = ncnn_files(graph)
    with tempfile.TemporaryDirectory() as folder:
        param, binary = Path(folder) / "graph.param", Path(folder) / "graph.bin"
        param.write_text(text)
        binary.write_bytes(content)
        if net.load_param(str(param)) or net.load_model(str(binary)):
            raise RuntimeError("ncnn cannot read the graph")
    images = image(graph)[0]

    def forward() -> list:
        extractor = net.create_extractor()
        extractor.input("images", ncnn.Mat(images))
        return [extractor.extract(name)[1] for name in outputs]

    return forward


RUNNERS: dict[str, Callable[[Graph, int, str], Callable[[], object]]] = {
    "pytorch": pytorch_runner,
    "onnx": onnx_runner,
    "openvino": openvino_runner,
    "ncnn": ncnn_runner,
}
