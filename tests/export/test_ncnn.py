import json
from pathlib import Path

import pytest
import torch

import detect
import export
import test
from models import Darknet
from tests.networks import CFG_FOLDER, lively, narrow, randomize, shrink
from tests.scene import make_project
from utils.detection.checkpoints import save_checkpoint
from utils.detection.ncnn import NcnnModel
from utils.errors import InputError
from utils.export.ncnn import RawHeads, export_ncnn
from utils.pruning.pruner import Pruner
from utils.sizes import Size

pytest.importorskip("ncnn", reason="ncnn is not installed: requirements-export.txt")
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
    exported = NcnnModel(write(tmp_path, model, size))
    images = torch.rand(2, 3, *size)
    expected = RawHeads(model)(images)
    scale = max(float(raw.abs().max()) for raw in expected)
    for raw, of_ncnn in zip(expected, exported.raw_outputs(images), strict=True):
        assert float((raw - of_ncnn).abs().max()) <= 1e-5 * scale
    channels_last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(exported(channels_last), model(images), rtol=1e-4, atol=1e-4)


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


def test_missing_and_foreign_files_are_one_line_each(tmp_path):
    path = write(tmp_path, lively(randomize(Darknet(CFG_FOLDER / "v3-tiny.cfg"))), 64)
    weights, description = path.with_suffix(".bin"), path.with_suffix(".json")
    content, text = weights.read_bytes(), description.read_text()
    for damaged in (content[:-4], bytes(len(content))):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.ncnn\.bin: damaged, or of another export than a\.ncnn\.json"):
            NcnnModel(path)
    weights.unlink()
    with pytest.raises(InputError, match=r"a\.ncnn\.bin: there is no such file: an ncnn model is a \.param and a"):
        NcnnModel(path)
    for foreign in ("{}", "[]", "no JSON", text.replace('"img_size": "64"', '"img_size": 64')):
        description.write_text(foreign)
        with pytest.raises(InputError, match=r"a\.ncnn\.json: not a description of an ncnn model"):
            NcnnModel(path)
    description.unlink()
    with pytest.raises(InputError, match=r"a\.ncnn\.json: there is no such description of an ncnn model"):
        NcnnModel(path)
    with pytest.raises(InputError, match=r"none\.param: there is no such ncnn file"):
        NcnnModel("none.param")


def test_what_pnnx_cannot_convert_is_one_line():
    with pytest.raises(InputError, match="pnnx cannot convert the network"):
        export_ncnn(lively(randomize(Darknet(CFG_FOLDER / "grey.cfg"))), ["a"], 64)


def test_another_network_is_noticed(project, monkeypatch):
    original = NcnnModel.raw_outputs
    monkeypatch.setattr(NcnnModel, "raw_outputs", lambda self, images: [raw + 0.1 for raw in original(self, images)])
    with pytest.raises(InputError, match=r"ncnn's predictions differ by .* from PyTorch's.*nothing was written"):
        run(export, "--to", "ncnn")
    assert not list(Path("checkpoints").glob("*ncnn*"))
