"""A network as an ONNX graph: BatchNorm folded in, any batch and image size, optionally non-maximum suppression (NMS).

The graph's input is ``images`` (batch, 3, height, width), float RGB in [0, 1], letterboxed. Its output is one of

- ``predictions`` (batch, boxes, 5 + C): cx, cy, w, h in input pixels, objectness, class scores; or with NMS
- ``detections`` (D, 7): image in the batch, x1, y1, x2, y2 in input pixels, score, class, by falling score. This graph
  has two optional inputs, ``conf_thres`` and ``nms_thres``, (1,) each.

The metadata holds ``cfg`` (the text), ``names`` (a JSON list) and ``img_size``: pixels, the side of a square, or height
and width with a space between them.
"""

import io
import json
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models import Darknet
from utils.boxes import MAX_DETECTIONS
from utils.darknet.cfg import format_cfg
from utils.detection.fusing import fuse
from utils.detection.inference import Inference
from utils.detection.runtimes import ExportedModel, OnnxModel, prediction_difference
from utils.devices import device_of
from utils.errors import InputError
from utils.optional import optional
from utils.sizes import AnySize, Size

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17
OPSET_HALF = 19  # the first whose QuantizeLinear takes 16-bit floats
# The largest difference between ONNX Runtime and PyTorch, relative to a value where that is above 1; and that of a
# graph in 16-bit floats.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2

# ONNX text format (onnx/docs/Syntax.md). `triples` are (image, class, box) of the boxes that NMS keeps.
SUPPRESSION = """
suppression (float[batch, boxes, values] predictions, float[1] conf_thres = {%(conf_thres)g},
             float[1] nms_thres = {%(nms_thres)g}) => (float[kept, 7] detections)
<int64[1] at_0 = {0}, int64[1] at_1 = {1}, int64[1] at_2 = {2}, int64[1] at_4 = {4}, int64[1] at_5 = {5},
 int64[1] end = {9223372036854775807}, int64[1] most = {%(most)d}, int64[2] image_box = {0, 2}, float[1] half = {0.5}>
{
    xywh = Slice (predictions, at_0, at_4, at_2)
    objectness = Slice (predictions, at_4, at_5, at_2)
    classes = Slice (predictions, at_5, end, at_2)
    products = Mul (objectness, classes)
    scores = Transpose <perm = [0, 2, 1]> (products)
    triples = NonMaxSuppression <center_point_box = 1> (xywh, scores, most, nms_thres, conf_thres)

    unsorted = GatherND (scores, triples)
    count = Shape (unsorted)
    score, order = TopK (unsorted, count)
    sorted = Gather (triples, order)
    places = Gather <axis = 1> (sorted, image_box)
    box = GatherND (xywh, places)
    centre = Slice (box, at_0, at_2, at_1)
    size = Slice (box, at_2, at_4, at_1)
    reach = Mul (size, half)
    corner = Sub (centre, reach)
    opposite = Add (centre, reach)

    numbers = Cast <to = 1> (sorted)
    image = Slice (numbers, at_0, at_1, at_1)
    class = Slice (numbers, at_1, at_2, at_1)
    column = Unsqueeze (score, at_1)
    detections = Concat <axis = 1> (image, corner, opposite, column, class)
}
"""


def export_onnx(
    model: Darknet, names: list[str], img_size: AnySize, dynamic_size: bool = True, half: bool = False
) -> "ModelProto":
    """The graph of a network from images to predictions.

    Args:
        model: the network.
        names: class names, for the metadata.
        img_size: of the images that the graph is for; in the metadata, too.
        dynamic_size: accept images of other sizes as well, multiples of the network's stride.
        half: compute in 16-bit floats; input, output and the decoding of boxes stay in float32. The opset is 19.

    Raises:
        InputError: onnx is not installed.
    """
    onnx = optional("onnx")
    sides = {2: "height", 3: "width"} if dynamic_size else {}
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        # The older exporter: it needs no other package, takes a second for YOLOv3 where the newer one takes fifteen,
        # and names nodes after layers. It warns that channel counts become constants, which they are.
        torch.onnx.export(
            Inference(model, dtype=torch.float16) if half else fuse(model),
            (torch.zeros(2, 3, *Size.of(img_size), device=device_of(model)),),
            file,  # type: ignore[arg-type]  # the older exporter writes to a file object too
            dynamo=False,
            opset_version=OPSET_HALF if half else OPSET,
            input_names=["images"],
            output_names=["predictions"],
            dynamic_axes={"images": {0: "batch", **sides}, "predictions": {0: "batch", 1: "boxes"}},
        )
    proto = onnx.load_from_string(file.getvalue())
    describe(proto, {"cfg": format_cfg(model.blocks), "names": json.dumps(names), "img_size": str(Size.of(img_size))})
    return proto


def describe(proto: "ModelProto", metadata: dict[str, str]) -> None:
    """Set the metadata of a graph, and check that the graph is valid."""
    onnx = optional("onnx")
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)


def add_suppression(proto: "ModelProto", conf_thres: float, nms_thres: float) -> "ModelProto":
    """A graph with NMS after ``proto``, which gives detections; the thresholds are the defaults of its inputs.

    At most MAX_DETECTIONS boxes per class are kept. Unlike in :mod:`utils.boxes` the candidates are not limited.
    """
    onnx = optional("onnx")
    text = SUPPRESSION % {"conf_thres": conf_thres, "nms_thres": nms_thres, "most": MAX_DETECTIONS}
    suppression = onnx.helper.make_model(
        onnx.parser.parse_graph(text), opset_imports=proto.opset_import, ir_version=proto.ir_version
    )
    merged = onnx.compose.merge_models(proto, suppression, io_map=[("predictions", "predictions")])
    describe(merged, {entry.key: entry.value for entry in proto.metadata_props})
    return merged


def prove(model: Darknet, proto: "ModelProto", batches: list[Tensor], tolerance: float = TOLERANCE) -> float:
    """Prove that a graph in ONNX Runtime computes what ``model`` computes.

    Args:
        model: the network, in eval mode.
        proto: its graph, from images to predictions.
        batches: images (B, 3, H, W) in [0, 1], of more than one size unless the graph's is fixed.
        tolerance: the largest difference that is allowed.

    Returns:
        The largest difference, see :func:`utils.detection.runtimes.prediction_difference`.

    Raises:
        InputError: it is larger than ``tolerance``.
    """
    return prove_predictions(model, OnnxModel(proto.SerializeToString()), batches, tolerance)


@torch.inference_mode()
def prove_predictions(model: Darknet, exported: ExportedModel, batches: list[Tensor], tolerance: float) -> float:
    """What :func:`prove` does, for the network in any runtime."""
    device = device_of(model)
    gaps = [prediction_difference(model(images.to(device)).cpu(), exported(images)) for images in batches]
    if None in gaps:
        raise InputError("the network's scores are not finite: nothing was written")
    worst = float(torch.tensor(gaps).max())  # Python's max may lose a NaN
    if not worst <= tolerance:
        raise InputError(
            f"{exported.runtime}'s predictions differ by {worst:.1e} from PyTorch's, more than {tolerance:.0e}: "
            "nothing was written"
        )
    return worst
