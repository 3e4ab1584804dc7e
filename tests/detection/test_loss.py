import math

import pytest
import torch
from torchvision.ops import complete_box_iou_loss

from config.networks import create_cfg
from models import PRIOR, Darknet
from tests.networks import CFG_FOLDER, narrow
from utils.detection.loss import (
    ANCHOR_IOU,
    BOX_GAIN,
    CLASS_GAIN,
    OBJECTNESS_GAIN,
    HeadSum,
    YoloLoss,
    ciou_loss,
    to_device,
)

SIZE = 64
KINDS = {
    "v3": {},
    "wide": {"scale_x_y": "1.3"},
    "new_coords": {"scale_x_y": "2.0", "new_coords": "1"},
}


def spec(classes=3, kind="v3"):
    torch.manual_seed(0)
    blocks = create_cfg("v3-tiny", classes, SIZE, width=0.05)
    return Darknet([block | KINDS[kind] if block["type"] == "yolo" else block for block in blocks])


def random_heads(model, batch=2, seed=0, spread=1.0, size=(SIZE, SIZE)):
    """Raw outputs of the two heads, in float32; between 0 and 1 where the convolution before has a sigmoid."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for yolo, stride in zip(model.heads, (32, 16), strict=True):
        raw = spread * torch.randn(batch, 3, height // stride, width // stride, 5 + yolo.classes, generator=generator)
        heads.append((raw.sigmoid() if yolo.new_coords else raw).requires_grad_())
    return heads


def random_targets(count, batch=2, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(batch, (count, 1), generator=generator)
    label = torch.randint(classes, (count, 1), generator=generator)
    size = 0.05 + 0.75 * torch.rand(count, 2, generator=generator)
    centre = size / 2 + (1 - size) * torch.rand(count, 2, generator=generator)
    return torch.cat([image, label, centre, size], dim=1)


# The same loss once more, one target, anchor and cell after another, in float64.


def options(model):
    """For each head its anchors, scale_x_y and new_coords, from the text of the cfg."""
    found = []
    for block in model.blocks:
        if block["type"] == "yolo":
            sides = [float(side) for side in block["anchors"].split(",")]
            pairs = list(zip(sides[::2], sides[1::2], strict=True))
            anchors = [pairs[int(k)] for k in block["mask"].split(",")]
            found.append((anchors, float(block.get("scale_x_y", 1)), block.get("new_coords") == "1"))
    return found


def size_of(heads):
    """The (height, width) of the images that raw outputs are for."""
    return tuple(32 * cells for cells in heads[0].shape[2:4])


def centred_iou(w, h, anchor):
    overlap = min(w, anchor[0]) * min(h, anchor[1])
    return overlap / (w * h + anchor[0] * anchor[1] - overlap)


def plain_assignment(model, heads, targets):
    """(head, image, anchor, row, column, label, offset x, offset y, w, h) of each pair of prediction and target."""
    every = options(model)
    chosen = []
    for image, label, cx, cy, w, h in targets.double().tolist():
        w, h = w * size_of(heads)[1], h * size_of(heads)[0]
        ious = {(n, k): centred_iou(w, h, a) for n, (anchors, *_) in enumerate(every) for k, a in enumerate(anchors)}
        best = max(ious, key=ious.get)
        for (number, k), iou in ious.items():
            if iou <= ANCHOR_IOU and (number, k) != best:
                continue
            rows, columns = heads[number].shape[2:4]
            x, y = cx * columns, cy * rows
            own = min(int(x), columns - 1), min(int(y), rows - 1)
            margin = (every[number][1] - 1) / 2
            for dx, dy in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
                column, row = own[0] + dx, own[1] + dy
                reached = all(-margin < offset < 1 + margin for offset in (x - column, y - row))
                inside = 0 <= column < columns and 0 <= row < rows
                if (dx, dy) == (0, 0) or (margin > 0 and inside and reached):
                    chosen.append((number, int(image), k, row, column, int(label), x - column, y - row, w, h))
    return chosen


def plain_ciou(first, second):
    """CIoU of two boxes (cx, cy, w, h); arXiv 1911.08287, equations 9 to 11, alpha without a gradient."""
    x1, y1, w1, h1 = first
    x2, y2, w2, h2 = second
    overlap_x = torch.minimum(x1 + w1 / 2, x2 + w2 / 2) - torch.maximum(x1 - w1 / 2, x2 - w2 / 2)
    overlap_y = torch.minimum(y1 + h1 / 2, y2 + h2 / 2) - torch.maximum(y1 - h1 / 2, y2 - h2 / 2)
    overlap = overlap_x.clamp(min=0) * overlap_y.clamp(min=0)
    iou = overlap / (w1 * h1 + w2 * h2 - overlap)
    hull_x = torch.maximum(x1 + w1 / 2, x2 + w2 / 2) - torch.minimum(x1 - w1 / 2, x2 - w2 / 2)
    hull_y = torch.maximum(y1 + h1 / 2, y2 + h2 / 2) - torch.minimum(y1 - h1 / 2, y2 - h2 / 2)
    distance = ((x1 - x2) ** 2 + (y1 - y2) ** 2) / (hull_x**2 + hull_y**2)
    v = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)) ** 2
    alpha = (v / (1 - iou + v)).detach()
    return iou - distance - alpha * v


def plain_bce(probability, aim):
    return -(aim * torch.log(probability) + (1 - aim) * torch.log(1 - probability))


def divisor(positives, images):
    return max(positives, images)


def plain_loss(model, heads, targets):
    heads = [head.double() for head in heads]
    every = options(model)
    box = torch.zeros((), dtype=torch.double)
    label_loss, objectness = box.clone(), box.clone()
    aims = {}
    chosen = plain_assignment(model, heads, targets)
    for number, image, k, row, column, label, x, y, w, h in chosen:
        anchors, scale, new_coords = every[number]
        raw = heads[number][image, k, row, column]
        cell = size_of(heads)[1] / heads[number].shape[3], size_of(heads)[0] / heads[number].shape[2]
        xy = raw[:2] if new_coords else torch.sigmoid(raw[:2])
        xy = (xy - 0.5) * scale + 0.5
        ratio = 4 * raw[2:4] ** 2 if new_coords else torch.exp(raw[2:4])
        predicted = xy[0] * cell[0], xy[1] * cell[1], ratio[0] * anchors[k][0], ratio[1] * anchors[k][1]
        wanted = [torch.tensor(value, dtype=torch.double) for value in (x * cell[0], y * cell[1], w, h)]
        ciou = plain_ciou(predicted, wanted)
        box = box + 1 - ciou
        where = number, image, k, row, column
        aims[where] = max(aims.get(where, 0.0), min(max(ciou.item(), 0.0), 1.0))
        scores = raw[5:] if new_coords else torch.sigmoid(raw[5:])
        for c, score in enumerate(scores):
            label_loss = label_loss + plain_bce(score, 1.0 if c == label else 0.0)
    for number, head in enumerate(heads):
        scores = head[..., 4] if every[number][2] else torch.sigmoid(head[..., 4])
        for image, anchors in enumerate(scores):
            for k, rows in enumerate(anchors):
                for row, columns in enumerate(rows):
                    for column, score in enumerate(columns):
                        objectness = objectness + plain_bce(score, aims.get((number, image, k, row, column), 0.0))
    total = BOX_GAIN * box + OBJECTNESS_GAIN * objectness + CLASS_GAIN * label_loss
    parts = len(chosen), box.item(), objectness.item(), label_loss.item()
    return total / divisor(len(chosen), len(heads[0])), parts


def loss_of(model, heads, targets):
    """The loss of raw outputs, and the reports of the heads."""
    loss = YoloLoss(model)
    return loss(heads, loss.assign(targets, size_of(heads)), size_of(heads))


def gradients(loss, heads):
    return torch.autograd.grad(loss, heads)


def agrees_with_the_plain_formula(model, heads, targets):
    loss, reports = loss_of(model, heads, targets)
    wanted, parts = plain_loss(model, heads, targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    sums = torch.stack([report.sums for report in reports]).sum(dim=0)
    assert sums[: HeadSum.CIOU].tolist() == pytest.approx(parts, rel=1e-5, abs=1e-6)
    for found, expected in zip(gradients(loss, heads), gradients(wanted, heads), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return parts


@pytest.mark.parametrize("size", [(64, 128), (96, 32)])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_of_rectangles_are_those_of_the_plain_formula(kind, size):
    model = spec(3, kind)
    agrees_with_the_plain_formula(model, random_heads(model, size=size), random_targets(8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_the_plain_formula(kind, classes, seed):
    model = spec(classes, kind)
    targets = random_targets(6, classes=classes, seed=seed)
    positives = agrees_with_the_plain_formula(model, random_heads(model, seed=seed), targets)[0]
    assert positives >= 6


def test_a_target_that_fits_no_anchor_trains_the_nearest():
    model = spec()
    heads = random_heads(model)
    target = torch.tensor([[0, 1, 0.5, 0.5, 0.9, 0.02]])
    sides = 0.9 * SIZE, 0.02 * SIZE
    assert max(centred_iou(*sides, anchor) for anchors, *_ in options(model) for anchor in anchors) < ANCHOR_IOU
    assert agrees_with_the_plain_formula(model, heads, target)[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_two_targets_in_one_cell(kind):
    model = spec(kind=kind)
    first = [0, 1, 0.40, 0.40, 0.30, 0.35]
    targets = torch.tensor([first, [0, 2, 0.42, 0.38, 0.32, 0.33], first])
    chosen = plain_assignment(model, random_heads(model), targets)
    assert len({place[:5] for place in chosen}) < len(chosen)
    agrees_with_the_plain_formula(model, random_heads(model), targets)


@pytest.mark.parametrize("kind", ["wide", "new_coords"])
def test_neighbours_whose_centre_reaches_the_target_learn_it_too(kind):
    model = spec(kind=kind)
    target = torch.tensor([[0, 0, 0.52, 0.3, 0.8, 0.8]])  # just right of the middle line, mid-cell otherwise
    heads = random_heads(model)
    chosen = plain_assignment(model, heads, target)
    columns = {place[4] for place in chosen if place[0] == 0}
    assert columns == {0, 1}
    assert agrees_with_the_plain_formula(model, heads, target)[0] == len(chosen)
    assert len(plain_assignment(spec(), heads, target)) < len(chosen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centre", [(1.0, 0.5), (0.5, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_a_centre_on_the_border_belongs_to_the_cell_beside_it(kind, centre):
    model = spec(kind=kind)
    heads = random_heads(model)
    targets = torch.tensor([[1, 0, *centre, 0.3, 0.3]])
    agrees_with_the_plain_formula(model, heads, targets)
    loss, _ = loss_of(model, heads, targets)
    for gradient in gradients(loss, heads):
        assert gradient.isfinite().all()
        assert not gradient[0, ..., :4].any()
        if gradient[..., :4].any():
            side = gradient.shape[2]
            own = [min(int(position * side), side - 1) for position in centre]
            assert gradient[1, :, own[1], own[0], :4].any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_targets_only_objectness_is_trained(kind):
    model = spec(kind=kind)
    heads = random_heads(model)
    assert agrees_with_the_plain_formula(model, heads, torch.zeros(0, 6))[0] == 0
    loss, _ = loss_of(model, heads, torch.zeros(0, 6))
    assert loss > 0
    for gradient in gradients(loss, heads):
        assert (gradient[..., 4] > 0).all()
        assert not gradient[..., :4].any()
        assert not gradient[..., 5:].any()


def test_an_image_without_targets_learns_that_there_is_nothing():
    model = spec()
    heads = random_heads(model, batch=3)
    targets = random_targets(4, batch=1)
    targets[:2, 0] = 2
    agrees_with_the_plain_formula(model, heads, targets)
    loss, _ = loss_of(model, heads, targets)
    for gradient in gradients(loss, heads):
        assert (gradient[1, ..., 4] > 0).all()
        assert not gradient[1, ..., :4].any()
        assert not gradient[1, ..., 5:].any()
        assert gradient[0, ..., :4].any() or gradient[2, ..., :4].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_targets_does_not_matter(kind):
    model = spec(kind=kind)
    heads = random_heads(model)
    targets = torch.cat([random_targets(7), random_targets(7)])
    targets[7:, 2:4] += 0.01
    wanted = loss_of(model, heads, targets)[0]
    expected = gradients(wanted, heads)
    for seed in range(3):
        order = torch.randperm(14, generator=torch.Generator().manual_seed(seed))
        found = loss_of(model, heads, targets[order])[0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
        for one, other in zip(gradients(found, heads), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_perfect_prediction_costs_nothing(kind):
    model = spec(kind=kind)
    targets = torch.tensor([[0, 2, 0.3, 0.3, 0.3, 0.4], [1, 0, 0.7, 0.2, 0.1, 0.1], [1, 1, 0.3, 0.8, 0.7, 0.3]])
    every = options(model)
    heads = [torch.full_like(head, -16) for head in random_heads(model)]
    if kind == "new_coords":
        heads = [head.sigmoid() for head in heads]
    off, on = (1e-7, 1 - 1e-7) if kind == "new_coords" else (-16, 16)
    start = loss_of(model, random_heads(model), targets)[0].item()
    for number, image, k, row, column, label, x, y, w, h in plain_assignment(model, heads, targets):
        anchors, scale, new_coords = every[number]
        xy = (torch.tensor([x, y]) - 0.5) / scale + 0.5
        ratio = torch.tensor([w / anchors[k][0], h / anchors[k][1]])
        raw = torch.full((8,), float(off))
        raw[:2] = xy if new_coords else torch.logit(xy)
        raw[2:4] = ratio.sqrt() / 2 if new_coords else ratio.log()
        raw[4] = raw[5 + label] = on
        heads[number][image, k, row, column] = raw
    loss, reports = loss_of(model, heads, targets)
    assert 0 <= loss.item() < 1e-3 * start
    sums = torch.stack([report.sums for report in reports]).sum(dim=0)
    assert sums[HeadSum.CIOU].item() == pytest.approx(sums[HeadSum.POSITIVES].item(), rel=1e-4)  # every IoU is 1


def test_reports_count_what_each_head_did():
    model = spec()
    heads = random_heads(model)
    targets = random_targets(6)
    reports = loss_of(model, heads, targets)[1]
    chosen = plain_assignment(model, heads, targets)
    for number, (report, head) in enumerate(zip(reports, heads, strict=True)):
        mine = [place[1:5] for place in chosen if place[0] == number]
        assert report.predictions == head[..., 4].numel()
        assert report.sums[HeadSum.POSITIVES] == len(mine)
        confidence = head[..., 4].sigmoid()
        of_mine = sum(confidence[place].item() for place in mine)
        assert report.sums[HeadSum.POSITIVE_OBJECTNESS].item() == pytest.approx(of_mine, rel=1e-5)
        assert report.sums[HeadSum.OBJECTNESS].item() == pytest.approx(confidence.sum().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_heads(kind, dtype):
    model = spec(kind=kind)
    heads = [head.detach().to(dtype).requires_grad_() for head in random_heads(model, spread=4)]
    targets = random_targets(6)
    loss, _ = loss_of(model, heads, targets)
    exact, _ = loss_of(model, [head.detach().float() for head in heads], targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, heads))


def test_autocast_does_not_reach_the_loss():
    model = spec()
    heads, targets = random_heads(model), random_targets(6)
    wanted = loss_of(model, heads, targets)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(model, heads, targets)[0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("cfg", ["v3-tiny", "v4-csp", "v7-tiny"])
def test_a_confident_mistake_is_unlearned_in_mixed_precision_too(cfg):
    model = Darknet(narrow(CFG_FOLDER / f"{cfg}.cfg")).train()
    convolutions = [model.conv(head.sources[0]) for head in model.spec.heads]
    for convolution in convolutions:
        convolution.weight.data.mul_(0.01)
        convolution.bias.data.view(3, -1)[:, 4] = 8.0  # 16 bits round its sigmoid to 1
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            raw = model(images)
        loss, _ = loss_of(model, raw, torch.zeros(0, 6))
        model.zero_grad()
        loss.backward()
        found.append([loss.item(), *(float(conv.bias.grad.view(3, -1)[:, 4].sum()) for conv in convolutions)])
    assert all(gradient > 1 for gradient in found[0][1:])
    assert found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.parametrize("cfg", ["v3-tiny", "v4-csp", "v7-tiny"])
def test_a_new_network_expects_few_objects(cfg):
    model = Darknet(narrow(CFG_FOLDER / f"{cfg}.cfg")).eval()
    with torch.inference_mode():
        predictions = model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert predictions[..., 4].mean() == pytest.approx(PRIOR, rel=0.5)


@pytest.mark.parametrize(("kind", "extremes"), [("v3", (-60, -20, 20, 60)), ("new_coords", (0, 1e-6, 1 - 1e-7, 1))])
def test_extreme_outputs_give_a_finite_loss_and_gradient(kind, extremes):
    model = spec(kind=kind)
    for value in extremes:
        heads = [torch.full_like(head, value).requires_grad_() for head in random_heads(model)]
        loss, _ = loss_of(model, heads, random_targets(6))
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(loss, heads))


def test_heads_in_channels_last_memory():
    model = spec()
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    targets = random_targets(6)
    wanted = loss_of(model, model(images), targets)[0]
    model.to(memory_format=torch.channels_last)
    heads = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(loss_of(model, heads, targets)[0], wanted, rtol=1e-4, atol=1e-4)


def test_the_loss_holds_no_parameters():
    assert not list(YoloLoss(spec()).parameters())


def test_a_network_learns_one_batch():
    model = spec(classes=2).train()
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 0, 0.3, 0.4, 0.4, 0.3], [1, 1, 0.6, 0.6, 0.3, 0.5]])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    values = []
    for _ in range(40):
        value, reports = loss_of(model, model(images), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]
    sums = torch.stack([report.sums for report in reports]).sum(dim=0)
    assert sums[HeadSum.CIOU] / sums[HeadSum.POSITIVES] > 0.7


def box_pairs(count=4000, seed=0):
    """Pairs of boxes (N, 4) xyxy in float64: random, equal, touching, nested and apart."""
    random = torch.Generator().manual_seed(seed)

    def boxes(n):
        corner, side = torch.rand(2, n, 2, generator=random, dtype=torch.double) * SIZE
        return torch.cat([corner, corner + side + 1e-3], dim=1)

    first, second = boxes(count), boxes(count)
    unit = torch.tensor([10.0, 10, 20, 20], dtype=torch.double)
    others = [
        [10, 10, 20, 20],
        [20, 10, 30, 20],
        [20, 20, 30, 30],
        [12, 12, 15, 18],
        [10, 10, 15, 20],
        [40, 40, 41, 60],
    ]
    thin = torch.tensor([[5.0, 5, 5.001, 60], [5, 5, 60, 5.001], [0, 0, 1e4, 1e-3]], dtype=torch.double)
    others = torch.cat([torch.tensor(others, dtype=torch.double), thin])
    return torch.cat([first, unit.expand_as(others), others]), torch.cat([second, others, others.flip(0)])


@pytest.mark.parametrize("dtype", [torch.double, torch.float32])
def test_ciou_is_torchvisions_with_its_gradient(dtype):
    pairs = [boxes.to(dtype).requires_grad_() for boxes in box_pairs()]
    ours, reference = ciou_loss(*pairs), complete_box_iou_loss(*pairs)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12 if dtype == torch.double else 1e-6)
    gradients = [torch.autograd.grad(loss.sum(), pairs) for loss in (ours, reference)]
    for gradient, expected in zip(*gradients, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, expected, rtol=1e-7 if dtype == torch.double else 1e-4, atol=1e-7)


def test_an_assignment_moves_as_one():
    model = spec(kind="wide")
    assignments = YoloLoss(model).assign(random_targets(7), SIZE)
    moved = to_device(assignments, torch.device("meta"))
    for before, after in zip(assignments, moved, strict=True):
        for value, copied in zip(vars(before).values(), vars(after).values(), strict=True):
            assert (copied.shape, copied.dtype, copied.device.type) == (value.shape, value.dtype, "meta")
    assert len({after.image.untyped_storage()._cdata for after in moved}) == 1
