"""Stand-ins for ncnn2table and ncnn2int8, which no Python package has: the same arguments, files and formats.

ncnn itself then runs the files. ncnn2table is simpler than ncnn's: a scale is that of the largest value.
"""

import sys
from pathlib import Path

import ncnn
import numpy as np
from PIL import Image

INT8 = 0x000D4B38  # the tag of 8-bit weights


def convolutions(param):
    """Name, bottom blob, outputs, number of weights, and whether there is a bias, of each convolution."""
    for line in Path(param).read_text().splitlines():
        kind, name, *rest = line.split() if " " in line.strip() else ("", "")
        if kind == "Convolution":
            options = dict(option.split("=") for option in rest if "=" in option)
            yield name, rest[2], int(options["0"]), int(options["6"]), options.get("5") == "1"


def weights(param, content):
    """Of each convolution: name, outputs, kernels (outputs, ...), and the bytes of the bias."""
    at = 0
    for name, _, outputs, count, bias in convolutions(param):
        assert content[at : at + 4] == bytes(4), "weights in float32"
        kernels = np.frombuffer(content, np.float32, count, at + 4).reshape(outputs, -1)
        at += 4 + 4 * count
        yield name, outputs, kernels, content[at : at + 4 * outputs * bias]
        at += 4 * outputs * bias
    assert at == len(content)


def table(param, content, images, target, *options):
    """ncnn2table: scales of kernels and of what convolutions read."""
    options = dict(option.split("=", 1) for option in options)
    width, height, _ = map(int, options["shape"].strip("[]").split(","))
    norm = np.float32(options["norm"].strip("[]").split(",")[0])
    assert options["pixel"] == "RGB"
    net = ncnn.Net()
    net.load_param(param)
    net.load_model(content)
    largest = {}
    for path in Path(images).read_text().split():
        with Image.open(path) as image:
            assert image.size == (width, height)
            values = np.ascontiguousarray(np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)) * norm
        extractor = net.create_extractor()
        extractor.set_light_mode(False)
        extractor.input("in0", ncnn.Mat(values).clone())
        for name, bottom, *_ in convolutions(param):
            reached = float(np.abs(np.array(extractor.extract(bottom)[1])).max())
            largest[name] = max(largest.get(name, 1e-6), reached)
    lines = []
    for name, _, kernels, _ in weights(param, Path(content).read_bytes()):
        scales = 127 / np.abs(kernels).max(axis=1).clip(1e-6)
        lines.append(f"{name}_param_0 {' '.join(f'{scale:f}' for scale in scales)}")
    lines += [f"{name} {127 / value:f}" for name, value in largest.items()]
    Path(target).write_text("\n".join(lines) + "\n")


def int8(param, content, new_param, new_content, scales):
    """ncnn2int8: convolutions that the table has a scale for get 8-bit kernels."""
    known = {name: list(map(float, values)) for name, *values in map(str.split, Path(scales).read_text().splitlines())}
    written, lines = b"", Path(param).read_text().splitlines()
    for name, _, kernels, bias in weights(param, Path(content).read_bytes()):
        if name not in known:
            written += bytes(4) + kernels.tobytes() + bias
            continue
        of_kernels = np.float32(known[f"{name}_param_0"])
        rounded = np.rint(kernels * of_kernels[:, None]).clip(-127, 127).astype(np.int8).tobytes()
        written += INT8.to_bytes(4, "little") + rounded + bytes(-len(rounded) % 4) + bias
        written += of_kernels.tobytes() + np.float32(known[name]).tobytes()
        lines = [f"{line} 8=2" if line.split()[1:2] == [name] else line for line in lines]
    Path(new_param).write_text("\n".join(lines) + "\n")
    Path(new_content).write_bytes(written)


if __name__ == "__main__":
    {"ncnn2table": table, "ncnn2int8": int8}[sys.argv[1]](*sys.argv[2:])
