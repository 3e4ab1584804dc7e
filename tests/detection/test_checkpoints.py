import io
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from config.networks import create_cfg
from models import Darknet
from tests.networks import randomize
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.detection.checkpoints import load_darknet, load_weights, read_checkpoint, save_checkpoint
from utils.detection.pretrained import load_pretrained
from utils.errors import InputError

CFG = parse_cfg(format_cfg(create_cfg("v3-tiny", 1, 64, width=0.25)))


def network(seed=0, cfg=CFG):
    torch.manual_seed(seed)
    return randomize(Darknet(cfg), seed=seed)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def refused(path, model=None):
    """The message of the error; the model stays as it was."""
    model = model or network()
    before = state(model)
    with pytest.raises(InputError) as error:
        load_weights(model, path)
    assert same(before, state(model))
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.fixture
def saved(tmp_path):
    """The path of a checkpoint of ``network(seed=1)``."""
    path = tmp_path / "a.pth"
    save_checkpoint(path, network(seed=1), epoch=7, names=["hand"], best_map=0.5, options={"s": 0.01, "sparse": True})
    return path


def test_a_checkpoint_gives_back_weights_and_description(saved):
    model = network(seed=2)
    metadata = load_weights(model, saved)
    assert same(state(network(seed=1)), state(model))
    assert metadata.pop("revision")
    assert parse_cfg(metadata.pop("cfg")) == CFG
    assert metadata == {"epoch": 7, "names": ["hand"], "best_map": 0.5, "options": {"s": 0.01, "sparse": True}}


def test_a_checkpoint_describes_the_network_to_build(saved):
    checkpoint = read_checkpoint(saved)
    model = Darknet(parse_cfg(checkpoint["cfg"])).eval()
    load_weights(model, saved)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(images), network(seed=1)(images))


CFG_FILE = "small.cfg"


def write_cfg(folder, blocks=CFG):
    path = folder / CFG_FILE
    path.write_text(format_cfg(blocks))
    return str(path)


def changed(index, **options):
    """The cfg with other options in the section of layer ``index``."""
    blocks = [block.copy() for block in CFG]
    blocks[1 + index] |= options
    return blocks


def test_a_checkpoint_is_enough_to_build_its_network(saved):
    model, metadata = load_darknet(str(saved), None)
    assert same(state(network(seed=1)), state(model))
    assert model.spec.blocks == CFG
    assert metadata["epoch"] == 7
    assert "model" not in metadata


@pytest.mark.parametrize("blocks", [CFG, changed(-1, batch="64", learning_rate="1"), changed(0, dont_update="1")])
def test_the_cfg_of_the_command_line_may_differ_in_what_changes_nothing(saved, tmp_path, blocks):
    model, _ = load_darknet(str(saved), write_cfg(tmp_path, blocks))
    assert same(state(network(seed=1)), state(model))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (changed(-1, width="96"), r":1: \[net\]: width=96, but width=64 in the weights file"),
        (
            changed(2, activation="mish"),
            r":\d+: layer 2 \[convolutional\]: activation=mish, but activation=leaky .*",
        ),
        (changed(2, groups="2"), r":\d+: layer 2 \[convolutional\]: groups=2, but no groups in the weights file"),
        ([*CFG[:2], {"type": "empty"}, *CFG[3:]], r":\d+: layer 1 \[empty\]: \[maxpool\] in the weights file"),
        (CFG[:-1], r": only .*a\.pth has a layer 23 \[yolo\]"),
        ([*CFG, {"type": "route", "layers": "0"}], r": only .*small\.cfg has a layer 24 \[route\]"),
    ],
)
def test_the_first_difference_to_the_cfg_of_the_command_line_is_named(saved, tmp_path, blocks, message):
    cfg = write_cfg(tmp_path, blocks)
    prefix = re.escape(f"{saved}: belongs to another cfg than --model_def {cfg}")
    with pytest.raises(InputError, match=f"^{prefix}{message}$"):
        load_darknet(str(saved), cfg)


def test_weights_without_a_cfg_need_one(tmp_path):
    source, cfg = network(seed=1), write_cfg(tmp_path)
    source.save_darknet_weights(tmp_path / "a.weights")
    torch.save(source.state_dict(), tmp_path / "a.pth")
    for name in ("a.weights", "a.pth"):
        with pytest.raises(InputError, match=rf"^.*{name}: .*no cfg.*--model_def$"):
            load_darknet(str(tmp_path / name), None)
        model, _ = load_darknet(str(tmp_path / name), cfg)
        assert torch.equal(model.conv(22).weight, source.conv(22).weight)


@pytest.mark.parametrize(("cfg", "message"), [(7, "is not text"), ("[net", "cfg in .*a.pth:1: .*section header")])
def test_a_checkpoint_with_a_bad_cfg_is_refused(tmp_path, cfg, message):
    torch.save({"model": state(network()), "cfg": cfg}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        load_darknet(str(tmp_path / "a.pth"), None)


def test_a_checkpoint_holds_nothing_that_pytorch_deems_unsafe(saved):
    content = torch.load(saved, weights_only=True)
    assert content["epoch"] == 7


def _plain(state):
    return state


def _of_data_parallel(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def _ordered(state):
    return OrderedDict(state)


def _without_counts(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _shuffled(state):
    return dict(reversed(state.items()))


def _nested(state):
    return {"model": _without_counts(_of_data_parallel(state)), "epoch": 3}


@pytest.mark.parametrize("change", [_plain, _ordered, _of_data_parallel, _without_counts, _shuffled, _nested])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_state_dicts_of_other_programs_load(tmp_path, change, zipped):
    path = tmp_path / "a.pth"
    source = state(network(seed=1))
    torch.save(change(source), path, _use_new_zipfile_serialization=zipped)
    model = network(seed=2)
    load_weights(model, path)
    assert same(source, state(model))


def test_half_precision_weights_load_into_a_network_of_full_precision(tmp_path):
    torch.save(network(seed=1).half().state_dict(), tmp_path / "a.pth")
    model = network(seed=2)
    load_weights(model, tmp_path / "a.pth")
    assert model.conv(0).weight.dtype == torch.float32
    assert torch.equal(model.conv(0).weight, network(seed=1).conv(0).weight.half().float())


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("missing", lambda s: s.pop("module_list.2.conv_2.weight"), "it has no module_list.2.conv_2.weight"),
        (
            "spare",
            lambda s: s.update({"module_list.99.conv_99.bias": torch.ones(1)}),
            "also has module_list.99.conv_99",
        ),
        (
            "other shape",
            lambda s: s.update({"module_list.2.conv_2.weight": torch.ones(8, 8, 1, 1)}),
            r"module_list.2.conv_2.weight has shape (8, 8, 1, 1) there, (8, 8, 3, 3) in the cfg",
        ),
    ],
)
def test_the_first_tensor_that_differs_is_named(tmp_path, name, edit, message):
    content = state(network(seed=1))
    edit(content)
    torch.save(content, tmp_path / "a.pth")
    error = refused(tmp_path / "a.pth")
    assert "belongs to another cfg" in error
    assert message in error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_has_diverged_are_refused(tmp_path, value):
    content = state(network(seed=1))
    content["module_list.2.conv_2.weight"][0, 0, 1, 1] = value
    torch.save(content, tmp_path / "a.pth")
    assert "module_list.2.conv_2.weight has values that are not finite" in refused(tmp_path / "a.pth")


def test_a_checkpoint_of_another_cfg_is_refused(saved):
    error = refused(saved, network(cfg=create_cfg("v3-tiny", 2, 64, width=0.25)))
    assert "belongs to another cfg: module_list.15.conv_15.weight has shape (18, " in error
    assert "belongs to another cfg" in refused(saved, network(cfg=create_cfg("v3", 1, 64, width=0.05)))


class Code:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    path, proof = tmp_path / "a.pth", tmp_path / "ran"
    torch.save({"model": state(network()), "names": Code(proof)}, path, _use_new_zipfile_serialization=zipped)
    assert "not a checkpoint that can be read safely" in refused(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # so the file does hold code
    assert proof.exists()


def test_code_in_a_bare_pickle_does_not_run(tmp_path):
    path, proof = tmp_path / "a.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Code(proof)))
    refused(path)
    assert not proof.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share, zipped):
    buffer = io.BytesIO()
    torch.save(state(network()), buffer, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "a.pth"
    path.write_bytes(buffer.getvalue()[: int(share * buffer.tell())])
    refused(path)


@pytest.mark.parametrize("first", [bytes([k]) for k in range(256)], ids=lambda b: b.hex())
def test_a_file_of_anything_is_refused_in_one_line(tmp_path, first):
    # Each first byte is another instruction of a pickle, and each fails in its own way.
    path = tmp_path / "a.pth"
    path.write_bytes(first + b"hello world\nanother line\n")
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    refused(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [torch.ones(1)],
        torch.ones(3),
        {"epoch": 3},
        {"model": {}},
        {"model": {"a": 1}},
        {"model": torch.ones(3), "epoch": 1},
        {0: torch.ones(3)},
        {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []},
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert "neither a checkpoint nor a state dict" in refused(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path):
    assert "there is no such weights file" in refused(tmp_path / "none.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises((InputError, OSError), match=str(tmp_path)):
        read_checkpoint(tmp_path)


def test_darknet_files_load_by_their_name(tmp_path):
    source, model = network(seed=1), network(seed=2)
    source.save_darknet_weights(tmp_path / "a.weights")
    assert load_weights(model, tmp_path / "a.weights") == {"filled": 13}
    assert torch.equal(model.conv(22).weight, source.conv(22).weight)


def test_a_darknet_backbone_is_for_those_who_ask(tmp_path):
    source, model = network(seed=1), network(seed=2)
    source.save_darknet_weights(tmp_path / "a.weights")
    first = 4 * 8 + 8 * 3 * 9  # the first convolution of the network
    content = (tmp_path / "a.weights").read_bytes()[: 20 + 4 * first]
    (tmp_path / "tiny.conv.1").write_bytes(content)
    assert "too short: layer 2" in refused(tmp_path / "tiny.conv.1")
    assert load_pretrained(model, str(tmp_path / "tiny.conv.1")).line.endswith("weights for 1 of 13 convolutions")
    assert torch.equal(model.conv(0).weight, source.conv(0).weight)
    assert struct.unpack("<3i", content[:12]) == (0, 2, 5)


def test_a_failing_save_leaves_the_old_checkpoint(saved):
    before = saved.read_bytes()
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(saved, network(seed=2), callback=lambda: None)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("buffers", [True, False], ids=["PyTorch-YOLOv3", "YOLOv3-model-pruning"])
def test_state_dicts_of_the_older_repositories_load(tmp_path, buffers):
    """Names as their create_modules() gives them; newer versions of PyTorch-YOLOv3 also keep the cfg's anchors."""
    source = network(seed=1)
    foreign = OrderedDict(source.state_dict())
    if buffers:
        for head in source.spec.heads:
            anchors = torch.tensor(head.anchors)
            foreign[f"module_list.{head.index}.yolo_{head.index}.anchors"] = anchors
            foreign[f"module_list.{head.index}.yolo_{head.index}.anchor_grid"] = anchors.view(1, -1, 1, 1, 2)
    torch.save(foreign, tmp_path / "yolov3_ckpt_99.pth")
    model = network(seed=2)
    load_weights(model, tmp_path / "yolov3_ckpt_99.pth")
    assert same(state(source), state(model))


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, source = network(), network(seed=1)
    safetensors.save_file(state(source), tmp_path / "a.safetensors")
    load_weights(model, tmp_path / "a.safetensors")
    same(state(source), state(model))
    (tmp_path / "b.safetensors").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(InputError, match=r"b\.safetensors: not a safetensors file"):
        read_checkpoint(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"c\.safetensors: there is no such weights file"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_safetensors_without_the_library_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match="pip install 'safetensors'"):
        read_checkpoint(tmp_path / "a.safetensors")
