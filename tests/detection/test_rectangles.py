"""Detection on inputs that are no squares: boxes in the images' own pixels, the same in every runtime."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from config.networks import create_cfg
from models import Darknet
from tests.networks import lively, randomize
from tests.scene import save_labelled, write
from utils.boxes import non_max_suppression
from utils.darknet.spec import parse_network
from utils.data.data_config import read_data_config
from utils.data.images import input_size, letterboxed
from utils.detection.detector import Detector
from utils.detection.evaluate import evaluate, validation_batches
from utils.detection.fusing import fuse
from utils.detection.loss import YoloLoss
from utils.detection.runtimes import OnnxModel, OpenCvModel, OpenVinoModel, prediction_difference
from utils.errors import InputError
from utils.export.onnx import export_onnx, prove
from utils.export.quantization import quantize
from utils.pruning.proof import proof_images
from utils.pruning.pruner import Pruner
from utils.training.distillation import Distillation

SIZE = (64, 96)
BOX = (40, 30, 120, 80)
SPEC = parse_network(create_cfg("v3-tiny", 1, 64, 0.05))


class BrightPlace(nn.Module):
    """A detector that finds the one bright rectangle of each image."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.spec = SPEC
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        predictions = torch.zeros(len(images), 1, 6)
        for image, prediction in zip(images, predictions, strict=True):
            rows, columns = (image.mean(dim=0) > 0.8).nonzero(as_tuple=True)
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            prediction[0] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 1, 1])
        return predictions


def bright(width, height, box=BOX):
    """A dark image with one bright rectangle."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


def model_of(size=64, classes=2):
    return lively(randomize(Darknet(create_cfg("v3-tiny", classes, size, width=0.125)), near_zero=0)).eval()


@pytest.mark.parametrize("rectangles", [None, SPEC])
@pytest.mark.parametrize("size", [128, (96, 160), (160, 96)])
@pytest.mark.parametrize("shape", [(320, 180), (160, 320), (130, 130)])
def test_boxes_are_in_the_pixels_of_the_image(shape, size, rectangles):
    image = bright(*shape)
    fed = input_size(*shape, size, rectangles)
    (found,) = Detector(BrightPlace(), size, 0.5, 0.5, rectangles)([letterboxed(image, fed)], [image])
    assert found[0].tolist() == pytest.approx([*BOX, 1, 0], abs=3)


@pytest.mark.parametrize("rect", [False, True])
def test_a_perfect_detector_has_an_map_of_1_and_batches_have_one_shape(tmp_path, rect):
    shapes = [(320, 180), (180, 320), (320, 180), (200, 200), (320, 180), (320, 170)]
    x1, y1, x2, y2 = BOX
    for number, (width, height) in enumerate(shapes):
        box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        save_labelled(tmp_path, str(number), bright(width, height), [" ".join(map(str, (0, *box)))])
    write(tmp_path / "valid.txt", "".join(f"images/{number}.png\n" for number in range(6)))
    data = read_data_config(write(tmp_path / "x.data", "classes=1\nvalid=valid.txt\n"))
    model = BrightPlace()
    batches, _ = validation_batches(model, data, 96, 2, 0, rect=rect)
    metrics, _ = evaluate(model, batches, ["bright"], 0.75)
    assert metrics.images == 6
    assert metrics.mAP == pytest.approx(1)
    if rect:
        assert model.shapes == [(2, 3, 64, 96), (2, 3, 64, 96), (1, 3, 96, 64), (1, 3, 96, 96)]
    else:
        assert model.shapes == [(2, 3, 96, 96)] * 3


def test_what_the_loss_asks_for_is_what_the_network_decodes():
    model = model_of(classes=1)
    targets = torch.tensor([[0, 0, 0.3, 0.6, 0.4, 0.5], [1, 0, 0.81, 0.2, 0.1, 0.3]])
    loss = YoloLoss(model)
    assignments = loss.assign(targets, SIZE)
    heads = [torch.full_like(raw, -9.0) for raw in model.raw_outputs(torch.zeros(2, 3, *SIZE))]
    for yolo, raw, a in zip(model.heads, heads, assignments, strict=True):
        sizes = (a.size / yolo.anchors[a.anchor]).log()
        raw[a.image, a.anchor, a.row, a.column] = torch.cat(
            [a.centre.logit(), sizes, torch.full((len(a), 2), 9.0)], dim=1
        )
    _, reports = loss(heads, assignments, SIZE)
    positives, box_loss = (sum(float(report.sums[k]) for report in reports) for k in range(2))
    assert positives >= 2
    assert box_loss == pytest.approx(0, abs=1e-4)
    decoded = torch.cat([yolo.decode(raw, *SIZE) for yolo, raw in zip(model.heads, heads, strict=True)], dim=1)
    for (box, *_), (_, _, cx, cy, w, h) in zip(non_max_suppression(decoded, 0.5, 0.5), targets.tolist(), strict=True):
        x, y, width, height = cx * 96, cy * 64, w * 96, h * 64
        expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert box[:4].tolist() == pytest.approx(expected, abs=1e-2)


def test_a_teacher_is_at_the_minimum_of_its_own_loss():
    teacher, images = model_of(), torch.rand(2, 3, *SIZE)
    heads = [raw.detach() for raw in teacher.raw_outputs(images)]
    loss = Distillation(teacher, teacher, "full")
    for entry in range(4):
        others = [raw.clone() for raw in heads]
        for raw in others:
            raw[..., entry] += 0.5
        assert loss(others, images) > loss(heads, images)


def test_the_proof_of_pruning_looks_at_the_rectangle():
    assert [tuple(images.shape) for images in proof_images(SIZE, 32)] == [(2, 3, 64, 96), (1, 3, 64, 160)]
    assert [tuple(images.shape) for images in proof_images(SIZE, (4, 16))] == [(2, 3, 64, 96), (1, 3, 64, 128)]
    model = randomize(Darknet(create_cfg("v3-tiny", 1, SIZE, 0.125)))
    compact = Pruner(model, "slim").at(0.5).pruned.model
    assert compact.spec.cfg_size == SIZE
    assert compact.blocks[0]["height"] == "64"
    assert compact.blocks[0]["width"] == "96"


# Runtimes


@pytest.fixture(scope="module")
def exported():
    """A network, and its graph."""
    torch.manual_seed(0)
    model = model_of()
    return model, export_onnx(model, ["left", "right"], SIZE)


@torch.no_grad()
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "cv2"])
def test_every_runtime_gives_the_same_predictions(exported, runtime):
    pytest.importorskip(runtime, exc_type=ModuleNotFoundError)  # one that is there and cannot be imported fails
    model, proto = exported
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    content = proto.SerializeToString()
    if runtime == "cv2":
        other = OpenCvModel(fuse(model), SIZE)
    else:
        other = OnnxModel(content) if runtime == "onnxruntime" else OpenVinoModel(content)
    assert prediction_difference(model(images), other(images)) < 1e-4


def test_the_graph_says_its_size_and_holds_at_others(exported):
    model, proto = exported
    assert prove(model, proto, list(proof_images(SIZE, 32))) < 1e-5
    read = OnnxModel(proto.SerializeToString())
    assert read.metadata["img_size"] == SIZE
    assert (read.spec.height, read.spec.width) == SIZE


def test_a_graph_of_one_rectangle_refuses_another_size(exported):
    read = OnnxModel(export_onnx(exported[0], ["left", "right"], SIZE, dynamic_size=False).SerializeToString())
    assert read(torch.zeros(1, 3, *SIZE)).shape[0] == 1
    with pytest.raises(InputError, match=r"of 64x96 pixels \(height x width\), not 64 pixels"):
        read(torch.zeros(1, 3, 64, 64))


def test_a_rectangle_in_8_bits(exported):
    model, proto = exported
    random = torch.Generator().manual_seed(4)
    samples = [torch.rand(1, 3, *SIZE, generator=random) for _ in range(3)]
    read = OnnxModel(quantize(proto, model.spec, samples).SerializeToString())
    assert read.metadata["img_size"] == SIZE
    with torch.no_grad():
        assert (read(samples[0]) - model(samples[0]))[..., 4:].abs().max() < 0.2
