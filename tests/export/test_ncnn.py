import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import detect
import export
import test
from models import Darknet
from tests.export import ncnn_tools
from tests.networks import CFG_FOLDER, lively, narrow, randomize, shrink
from tests.scene import make_project
from utils.detection.checkpoints import save_checkpoint
from utils.detection.ncnn import NcnnModel
from utils.errors import InputError
from utils.export.ncnn import TOOLS, NcnnQuantizer, RawHeads, convolution_names, export_ncnn
from utils.pruning.pruner import Pruner
from utils.sizes import Size

pytest.importorskip("pnnx", reason="pnnx is not installed: requirements-export.txt")

PTH = "checkpoints/prune_yolov3_ckpt.pth"
DATA = ["--data_config", "config/oxfordhand.data", "--n_cpu", "0"]


def write(folder, model, size):
    """The model's ncnn files in a folder; the path of the .param file."""
    names = [str(number) for number in range(model.spec.heads[0].classes)]
    for suffix, content in export_ncnn(model, names, size).items():
        (folder / f"a.ncnn{suffix}").write_bytes(content)
    return folder / "a.ncnn.param"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a network under the name that test_prune.py gives."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    model = lively(randomize(Darknet("config/yolov3-hand.cfg")))
    save_checkpoint(PTH, model, names=["hand"], img_size=64)
    return model


def run(program, *words):
    program.main(program.get_args_parser().parse_args([*words]))


@torch.no_grad()
@pytest.mark.parametrize("cfg", ["v3", "v3-spp", "v3-tiny", "v4-tiny"])
@pytest.mark.parametrize("ratio", [0, 0.5], ids=["baseline", "pruned"])
def test_raw_outputs_are_pytorchs(tmp_path, cfg, ratio):
    model = lively(randomize(Darknet(narrow(CFG_FOLDER / f"{cfg}.cfg"))))
    if ratio:
        model = Pruner(model, "normal").at(ratio).pruned.model
    size = Size(64, 96)
    exported = NcnnModel(write(tmp_path, model, size), exact=True)
    images = torch.rand(2, 3, *size)
    expected = RawHeads(model)(images)
    scale = max(float(raw.abs().max()) for raw in expected)
    for raw, of_ncnn in zip(expected, exported.raw_outputs(images), strict=True):
        assert float((raw - of_ncnn).abs().max()) <= 1e-5 * scale
    channels_last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(exported(channels_last), model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cfg", ["v3-tiny", "v4-tiny", "v7-tiny", "plate"])
def test_the_description_is_enough_to_decode_the_outputs(tmp_path, cfg):
    model = lively(randomize(Darknet(CFG_FOLDER / f"{cfg}.cfg")))
    path = write(tmp_path, model, 64)
    images = torch.rand(1, 3, 64, 64)
    predictions = []
    heads = json.loads(path.with_suffix(".json").read_text())["heads"]
    for head, raw in zip(heads, NcnnModel(path).raw_outputs(images), strict=True):
        maps = raw[0].unflatten(0, (len(head["anchors"]), 5 + head["classes"]))
        for (width, height), (x, y, w, h, *scores) in zip(head["anchors"], maps, strict=True):
            row, column = torch.meshgrid(*map(torch.arange, x.shape), indexing="ij")
            place = (lambda value: value) if head["new_coords"] else torch.sigmoid
            scale, stride = head["scale_x_y"], head["stride"]
            strides = stride if isinstance(stride, list) else (stride, stride)
            centre = [
                (cell + scale * place(value) - (scale - 1) / 2) * pixels
                for cell, value, pixels in zip((column, row), (x, y), strides, strict=True)
            ]
            sides = [
                anchor * ((2 * value) ** 2 if head["new_coords"] else value.exp())
                for anchor, value in ((width, w), (height, h))
            ]
            predictions.append(torch.stack([*centre, *sides, *map(place, scores)], dim=-1).flatten(0, 1))
    torch.testing.assert_close(torch.cat(predictions)[None], model(images), rtol=1e-3, atol=1e-3)


def test_grey_networks_take_images_in_color(tmp_path):
    blocks = shrink(Darknet(CFG_FOLDER / "v3-tiny.cfg").blocks, 1)
    model = lively(randomize(Darknet([blocks[0] | {"channels": "1"}, *blocks[1:]])))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(NcnnModel(write(tmp_path, model, 64))(images), model(images), rtol=1e-4, atol=1e-4)


def test_the_programs_run_it_like_the_checkpoint(project):
    run(export, "--to", "ncnn")
    path = "checkpoints/prune_yolov3_ckpt.ncnn.param"
    results = []
    for weights in (PTH, path):
        run(test, "--weights_path", weights, *DATA, "--json", "test.json")
        results.append(json.loads(Path("test.json").read_text()))
    assert results[1]["mAP"] == pytest.approx(results[0]["mAP"], abs=1e-6)
    run(detect, "--weights_path", path, "--image_folder", "data/images", "--conf_thres", "0.3", "--n_cpu", "0")
    images = json.loads(Path("output/detections.json").read_text())["images"]
    assert {detection["class"] for image in images for detection in image["detections"]} == {"hand"}
    with pytest.raises(InputError, match="exported for images of 64 pixels, not 96 pixels"):
        run(test, "--weights_path", path, *DATA, "--img_size", "96")
    with pytest.raises(InputError, match=r"--compile: .* runs in ncnn"):
        run(test, "--weights_path", path, *DATA, "--compile")


def refuses(path, message):
    with pytest.raises(InputError, match=message):
        NcnnModel(path)


def test_missing_and_foreign_files_are_one_line_each(tmp_path):
    path = write(tmp_path, lively(randomize(Darknet(CFG_FOLDER / "v3-tiny.cfg"))), 64)
    weights, description = path.with_suffix(".bin"), path.with_suffix(".json")
    content, text = weights.read_bytes(), description.read_text()
    for damaged in (content[:-4], bytes(len(content))):
        weights.write_bytes(damaged)
        refuses(path, r"a\.ncnn\.bin: damaged, or of another export than a\.ncnn\.json")
    weights.unlink()
    refuses(path, r"a\.ncnn\.bin: there is no such file, which belongs to a\.ncnn\.param")
    for foreign in ("{}", "[]", "no JSON", text.replace('"img_size": "64"', '"img_size": 64')):
        description.write_text(foreign)
        refuses(path, r"a\.ncnn\.json: not a description of a model for ncnn")
    description.unlink()
    refuses(path, r"a\.ncnn\.json: there is no such description of a model for ncnn")
    refuses("none.param", r"none\.param: there is no such ncnn file")


def test_what_ncnn_cannot_do_is_one_line():
    with pytest.raises(InputError, match=r"ncnn has no layer for .*torch\.gt, .*: nothing was written"):
        export_ncnn(lively(randomize(Darknet(CFG_FOLDER / "grey.cfg"))), ["a"], 64)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["elu", "hardtan", "relu6", "mish", "swish"])
def test_activations(tmp_path, activation):
    blocks = [
        block | {"activation": activation} if block.get("activation") == "leaky" else block
        for block in Darknet(CFG_FOLDER / "v3-tiny.cfg").blocks
    ]
    model = lively(randomize(Darknet(blocks)))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(NcnnModel(write(tmp_path, model, 64))(images), model(images), rtol=1e-4, atol=1e-4)


def test_another_network_is_noticed(project, monkeypatch):
    original = NcnnModel.raw_outputs
    monkeypatch.setattr(NcnnModel, "raw_outputs", lambda self, images: [raw + 0.1 for raw in original(self, images)])
    with pytest.raises(InputError, match=r"ncnn's raw outputs differ by .* from PyTorch's.*nothing was written"):
        run(export, "--to", "ncnn")
    assert not list(Path("checkpoints").glob("*ncnn*"))


@torch.no_grad()
def test_weights_in_16_bits_take_half_the_space(project):
    run(export, "--to", "ncnn")
    run(export, "--to", "ncnn", "--fp16")
    full, half = (Path(f"checkpoints/prune_yolov3_ckpt{mark}.ncnn.param") for mark in ("", "_fp16"))
    sizes = [path.with_suffix(".bin").stat().st_size for path in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(NcnnModel(half)(images), project(images), rtol=2e-2, atol=2e-2)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """ncnn's tools, or what stands in for them, on the PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ncnn_tools.__file__}" {tool} "$@"\n')
        (folder / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def kernels(path):
    """How many convolutions of a ``.param`` file have 8-bit kernels, and how many there are."""
    lines = [line.split() for line in path.read_text().splitlines() if line.startswith("Convolution")]
    return sum("8=2" in line for line in lines), len(lines)


@torch.no_grad()
def test_8_bits(project, tools):
    run(export, "--to", "ncnn", "--int8", *DATA)
    path = Path("checkpoints/prune_yolov3_ckpt_int8.ncnn.param")
    count, convolutions = kernels(path)
    assert count == convolutions - len(project.spec.heads)
    images = torch.rand(2, 3, 64, 64)
    expected, actual = project(images), NcnnModel(path)(images)
    assert 0 < float((actual - expected)[..., 4:].abs().max()) < 0.2
    run(test, "--weights_path", str(path), *DATA, "--json", "test.json")
    assert json.loads(Path("test.json").read_text())["images"]


def test_layers_that_stay_in_float(project, tools):
    contents = export_ncnn(project, ["hand"], 64)
    names = convolution_names(contents[".param"].decode(), project)
    quantizer = NcnnQuantizer(contents, project, ["hand"], 64, [torch.rand(1, 3, 64, 64)])
    chosen = [layer.index for layer in project.spec.convolutions[:2]]
    lines = [line.split() for line in quantizer.contents(chosen)[".param"].decode().splitlines()]
    in_float = {line[1] for line in lines if line[0] == "Convolution" and "8=2" not in line}
    heads = {names[head.sources[0]] for head in project.spec.heads}
    assert in_float == {*(names[index] for index in chosen), *heads}


def test_missing_and_failing_tools_are_one_line(project, tools, monkeypatch):
    for tool in TOOLS:
        Path(shutil.which(tool)).write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    with pytest.raises(InputError, match=r"ncnn2table failed \(exit status 3\): out of memory: nothing was written"):
        run(export, "--to", "ncnn", "--int8", *DATA)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="ncnn2table and ncnn2int8 not on the PATH: build ncnn with"):
        run(export, "--to", "ncnn", "--int8", *DATA)
    assert not list(Path("checkpoints").glob("*ncnn*"))
