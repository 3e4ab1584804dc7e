import pytest
import torch

import test as program
from config.networks import create_cfg
from models import Darknet
from tests.networks import lively, narrow, randomize
from tests.scene import dataset_of, make_project
from utils.data.data_config import read_data_config
from utils.data.loader import loader
from utils.detection.checkpoints import save_checkpoint
from utils.detection.evaluate import evaluate
from utils.detection.inference import Inference, for_inference
from utils.errors import InputError


def small():
    return lively(randomize(Darknet(create_cfg("v3-tiny", 1, 64, width=0.25))))


@torch.no_grad()
def test_every_network_predicts_the_same_when_ready(darknet_cfg):
    model = randomize(Darknet(narrow(darknet_cfg)))
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(for_inference(model)(images), model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_half_precision_changes_scores_little_and_gives_float_boxes():
    model, images = small(), torch.rand(1, 3, 64, 64)
    wanted, got = model(images), Inference(model, dtype=torch.float16)(images)
    assert got.dtype == torch.float32
    assert 0 < (got - wanted)[..., 4:].abs().max() < 0.01


def test_the_model_is_left_alone_and_nothing_random_is_drawn():
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    ready = for_inference(model)
    for parameter in ready.parameters():
        parameter.zero_()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert for_inference(ready) is ready


def test_evaluation_within_training_leaves_the_average_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    data = read_data_config("config/oxfordhand.data")
    batches = loader(dataset_of(data.images("valid"), 1, 64), batch_size=2, n_cpu=0)
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics, seconds = evaluate(model, batches, data.names)
    assert metrics.images == 3
    assert 0 < seconds.forward < seconds.total
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_where_torch_cannot_compile_the_error_is_one_line(monkeypatch):
    ready = for_inference(small(), compiled=True)
    error = RuntimeError("No working C++ compiler found\nwith details")
    monkeypatch.setattr(ready.model, "_compiled_call_impl", lambda images: (_ for _ in ()).throw(error))
    with pytest.raises(
        InputError, match=r"^--compile: torch.compile does not work here: No working C\+\+ compiler found$"
    ):
        ready(torch.rand(1, 3, 64, 64))


def test_the_program_measures_at_the_size_that_the_model_was_trained_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_project(tmp_path))
    save_checkpoint("small.pth", Darknet("config/yolov3-hand.cfg"), names=["hand"], img_size=96)
    for words, size in (([], 96), (["--img_size", "128"], 128)):
        program.main(program.get_args_parser().parse_args(["--n_cpu", "0", "--weights_path", "small.pth", *words]))
        assert f"G MACs at {size} pixels\n" in capsys.readouterr().out


def test_the_program_takes_compile_only_for_networks_of_pytorch(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from utils.export.onnx import export_onnx
    from utils.files import atomic_writer

    monkeypatch.chdir(make_project(tmp_path))
    model = Darknet("config/yolov3-hand.cfg").eval()
    with atomic_writer("small.onnx") as file:
        file.write(export_onnx(model, ["hand"], 64).SerializeToString())
    save_checkpoint("small.pth", model, names=["hand"], img_size=64)
    args = ["--n_cpu", "0", "--weights_path", "small.onnx", "--compile"]
    with pytest.raises(InputError, match="--compile"):
        program.main(program.get_args_parser().parse_args(args))
