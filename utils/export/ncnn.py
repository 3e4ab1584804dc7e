"""A network as ncnn files, converted by pnnx; :mod:`utils.detection.ncnn` describes the files.

ncnn's own tools ncnn2table and ncnn2int8 make 8-bit files of them. No Python package has these tools.
"""

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from models import Darknet, MaxPool
from utils.detection.description import describe
from utils.detection.fusing import fuse
from utils.detection.ncnn import FILES, NcnnModel
from utils.errors import InputError
from utils.files import atomic_writer
from utils.optional import optional
from utils.pruning.proof import proof_images
from utils.sizes import AnySize, Size

# The largest difference between ncnn's raw outputs and PyTorch's, relative to the largest of them, in float32 and with
# weights in 16 bits.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
# ncnn cannot read "-inf", with which a maxpool pads.
LOWEST = -1e30
TOOLS = ("ncnn2table", "ncnn2int8")
# ncnn2table turns bytes into floats in [0, 1].
NORMALIZE = ("mean=[0,0,0]", "norm=[0.00392156863,0.00392156863,0.00392156863]", "pixel=RGB", "method=kl")


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
        for module in self.model.modules():
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010  # pnnx crashes on some activations in place

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, channels, H, W) in [0, 1] to the inputs of the heads."""
        return tuple(self.model.raw_outputs(images))


def export_ncnn(model: Darknet, names: list[str], img_size: AnySize, half: bool = False) -> dict[str, bytes]:
    """The content of the ncnn files by their suffix, ``.param``, ``.bin`` and ``.json``, for images of one size.

    Args:
        model: the network, in eval mode.
        names: class names.
        img_size: of the images.
        half: store the weights as 16-bit floats.

    Raises:
        InputError: pnnx or ncnn is not installed, pnnx or ncnn cannot do the network's layers, or ncnn's raw outputs
            differ from PyTorch's by more than TOLERANCE, or HALF_TOLERANCE.
    """
    pnnx = optional("pnnx")
    size = Size.of(img_size)
    shape = (1, model.spec.channels, *size)
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings(action="ignore"):  # sizes become constants, which they are; pnnx reads TorchScript
            traced = torch.jit.trace(RawHeads(model), torch.zeros(shape), check_trace=False)
            with atomic_writer(f"{folder}/network.pt") as file:
                torch.jit.save(traced, file)
        command = [pnnx.EXEC_PATH, "network.pt", f"inputshape=[{','.join(map(str, shape))}]f32", f"fp16={int(half)}"]
        status = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
        paths = [Path(folder) / f"network.ncnn{suffix}" for suffix in FILES]
        if status or not all(path.exists() for path in paths):
            raise InputError(f"pnnx cannot convert the network (exit status {status}): nothing was written")
        refuse_operations(paths[0].read_text(encoding="utf-8"))
        contents = with_description({path.suffix: path.read_bytes() for path in paths}, model, names, size)
    gap = difference(model, contents, size)
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    if not gap <= tolerance:
        differ = "are not finite" if gap != gap else f"differ by {gap:.1e} from PyTorch's, more than {tolerance:.0e}"
        raise InputError(f"ncnn's raw outputs {differ}: nothing was written")
    print(f"ncnn agrees with PyTorch to {gap:.1e} of the raw outputs' scale")
    return contents


def refuse_operations(param: str) -> None:
    """Raise an InputError if a ``.param`` file has operations that pnnx left as PyTorch's, such as ``torch.gt``."""
    kinds = {line.split()[0] for line in param.splitlines() if line.strip()}
    if foreign := sorted(kind for kind in kinds if "." in kind):
        raise InputError(f"ncnn has no layer for {', '.join(foreign)}, which the network needs: nothing was written")


def with_description(
    contents: dict[str, bytes], model: Darknet, names: list[str], img_size: AnySize
) -> dict[str, bytes]:
    """``contents`` of the ``.param`` and ``.bin`` file, and that of the ``.json`` file which describes them."""
    return contents | {".json": describe(model, names, img_size, contents)}


def load_contents(contents: dict[str, bytes], exact: bool = False) -> NcnnModel:
    """The network of the files with these contents."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.ncnn.param"
        for suffix, content in contents.items():
            path.with_suffix(suffix).write_bytes(content)
        return NcnnModel(path, exact)


@torch.inference_mode()
def difference(model: Darknet, contents: dict[str, bytes], size: Size) -> float:
    """The largest difference of ncnn's raw outputs to those of ``model``, relative to the largest of these; or NaN.

    ncnn computes convolutions in the ways that round least, see :class:`utils.detection.ncnn.NcnnModel`.
    """
    images = next(proof_images(size, model.spec.stride))
    exported = load_contents(contents, exact=True)
    expected = model.raw_outputs(images)
    raw = [decoder(head) for decoder, head in zip(exported.decoders, exported.raw_outputs(images), strict=True)]
    scale = torch.stack([head.abs().max() for head in expected]).max()
    gaps = torch.stack([(a - b).abs().max() for a, b in zip(expected, raw, strict=True)])
    return float(gaps.max() / scale)


def require_tools() -> None:
    """Raise an InputError that says what to do where ncnn's tools for 8 bits are missing."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise InputError(
            f"{' and '.join(missing)} not on the PATH: build ncnn with -DNCNN_BUILD_TOOLS=ON, or unpack a release "
            "from github.com/Tencent/ncnn/releases, put the folder of its programs on the PATH, and repeat this command"
        )


class NcnnQuantizer:
    """Makes 8-bit files of a network's ncnn files, by ncnn's own tools.

    The convolutions before the heads stay in float. What is not in 8 bits computes as in the files in float.

    Args:
        contents: of the ``.param``, ``.bin`` and ``.json`` file, with weights in float32.
        model: the network.
        names: class names.
        img_size: of the images that the files are for.
        images: calibration images (1, 3, H, W) in [0, 1] of that size.

    Raises:
        InputError: a tool is missing or fails.
    """

    def __init__(
        self,
        contents: dict[str, bytes],
        model: Darknet,
        names: list[str],
        img_size: AnySize,
        images: Iterable[Tensor],
    ):
        require_tools()
        self._contents = contents
        self._network = (model, names, Size.of(img_size))
        self._heads = model.spec.head_convolutions
        self._layers = convolution_names(contents[".param"].decode(), model)
        with tempfile.TemporaryDirectory() as folder:
            self._write_float(Path(folder))
            paths = []
            for number, image in enumerate(images):
                paths.append(f"{number}.png")
                to_pil_image(image[0]).save(Path(folder) / paths[-1])
            if not paths:
                raise InputError("--int8: there is no image to calibrate on")
            (Path(folder) / "images.txt").write_text("\n".join(paths) + "\n")
            height, width = self._network[2]
            options = [f"shape=[{width},{height},3]", f"thread={torch.get_num_threads()}", *NORMALIZE]
            if model.spec.channels == 1:
                options[0] = f"shape=[{width},{height},1]"
                options[options.index("pixel=RGB")] = "pixel=GRAY"
            _run(folder, "ncnn2table", "float.param", "float.bin", "images.txt", "table", *options)
            self._table = (Path(folder) / "table").read_text()

    def _write_float(self, folder: Path) -> None:
        for suffix in FILES:
            (folder / f"float{suffix}").write_bytes(self._contents[suffix])

    def contents(self, float_layers: Collection[int] = ()) -> dict[str, bytes]:
        """The content of the 8-bit files by their suffix; the layers of these numbers stay in float.

        Raises:
            InputError: ncnn2int8 fails, or ncnn cannot run what it made.
        """
        in_float = {self._layers[layer] for layer in (*self._heads, *float_layers)}
        with tempfile.TemporaryDirectory() as folder:
            self._write_float(Path(folder))
            lines = [line for line in self._table.splitlines() if _layer_of(line) not in in_float]
            (Path(folder) / "table").write_text("\n".join(lines) + "\n")
            _run(folder, "ncnn2int8", "float.param", "float.bin", "int8.param", "int8.bin", "table")
            quantized = {suffix: (Path(folder) / f"int8{suffix}").read_bytes() for suffix in FILES}
        model, names, size = self._network
        described = with_description(quantized, model, names, size)
        if not torch.isfinite(torch.tensor(difference(model, described, size))):
            raise InputError("ncnn's raw outputs in 8 bits are not finite: nothing was written")
        return described


def _layer_of(line: str) -> str:
    """The layer's name in a line of ncnn2table's file: ``name scale`` or ``name_param_0 scale scale ...``."""
    return line.split(" ", 1)[0].removesuffix("_param_0")


def _run(folder: str, tool: str, *arguments: str) -> None:
    """Run one of ncnn's tools in a folder where its files are."""
    ended = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    outputs = {"ncnn2table": ("table",), "ncnn2int8": ("int8.param", "int8.bin")}[tool]
    if ended.returncode or not all((Path(folder) / output).is_file() for output in outputs):
        reason = (ended.stderr.strip() or ended.stdout.strip() or "no message").splitlines()[-1]
        raise InputError(f"{tool} failed (exit status {ended.returncode}): {reason}: nothing was written")


def convolution_names(param: str, model: Darknet) -> dict[int, str]:
    """ncnn's names of the convolutions, by layer number: the ``.param`` file has them in the cfg's order.

    Raises:
        InputError: a convolution has another number of outputs than the cfg's: the order differs.
    """
    rows = [line.split() for line in param.splitlines()]
    kinds = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
    rows = [row for row in rows if row and row[0] in kinds]
    outputs = [int(next(value for value in row if value.startswith("0=")).removeprefix("0=")) for row in rows]
    layers = model.spec.convolutions
    if outputs != [layer.channels for layer in layers]:
        raise InputError("ncnn's convolutions are not in the order of the cfg: they cannot be told apart for 8 bits")
    return {layer.index: row[1] for layer, row in zip(layers, rows, strict=True)}
