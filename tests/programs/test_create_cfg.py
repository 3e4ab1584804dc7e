import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from config.create_cfg import get_args_parser, main
from config.networks import BASES, create_cfg
from tests.networks import DARKNET_FOLDER, WITHOUT_DARKNET
from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = {
    "yolov3-hand": "--base v3 --classes 1 --img_size 416 --width 1.0",
    "yolov3-spp-hand": "--base v3-spp",
    "yolov3-tiny-hand": "--base v3-tiny",
    "yolov3-small-hand": "--base v3 --width 0.25",
}


def create(tmp_path, options, output="net.cfg"):
    path = tmp_path / output
    main(get_args_parser().parse_args([*shlex.split(options), "--output", str(path)]))
    return path


def trace(blocks):
    """Channels and side of every layer's output, and the convolutions' parameters and MACs."""
    channels, sides = [int(blocks[0]["channels"])], [int(blocks[0]["width"])]  # entry 0 is the image
    parameters = macs = 0
    for here, block in enumerate(blocks[1:], start=1):
        out, side = channels[-1], sides[-1]
        match block["type"]:
            case "convolutional":
                filters, size = int(block["filters"]), int(block["size"])
                kernel = out * filters * size**2
                side //= int(block["stride"])
                out = filters
                parameters += kernel + filters * (2 if "batch_normalize" in block else 1)
                macs += kernel * side**2
            case "maxpool":
                side //= int(block["stride"])
            case "upsample":
                side *= int(block["stride"])
            case "shortcut":
                assert channels[here + int(block["from"])] == out
            case "route":
                numbers = [int(layer) for layer in block["layers"].split(",")]
                sources = [here + layer if layer < 0 else layer + 1 for layer in numbers]
                assert len({sides[source] for source in sources}) == 1
                out, side = sum(channels[source] for source in sources), sides[sources[0]]
        channels.append(out)
        sides.append(side)
    return channels, sides, parameters, macs


@pytest.mark.skipif(not DARKNET_FOLDER.is_dir(), reason=WITHOUT_DARKNET)
@pytest.mark.parametrize("base", BASES)
def test_width_1_is_darknets_own_network(base):
    ours = parse_cfg(format_cfg(create_cfg(base, classes=80, img_size=416)))
    darknet = read_cfg(DARKNET_FOLDER / f"yolo{base}.cfg")
    assert [dict(block) for block in ours[1:]] == [dict(block) for block in darknet[1:]]
    assert set(darknet[0]) | {"letter_box"} == set(ours[0])


def test_baseline_has_the_published_size():
    *_, parameters, macs = trace(read_cfg(ROOT / "config/yolov3-hand.cfg"))
    assert parameters == 61_523_734
    assert macs / 1e9 == pytest.approx(32.645, abs=5e-4)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_cfgs_are_what_the_program_writes(name, tmp_path):
    written = create(tmp_path, COMMITTED[name])
    assert written.read_bytes() == (ROOT / f"config/{name}.cfg").read_bytes()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("width", [0.01, 0.3, 1.5])
def test_narrow_and_wide_networks_fit_together(base, width):
    blocks = create_cfg(base, classes=3, img_size=64, width=width)
    channels, sides, *_ = trace(blocks)  # asserts that shortcuts and routes fit
    for before, block, here in zip(blocks[1:], blocks[2:], range(2, len(blocks)), strict=False):
        if block["type"] == "yolo":
            assert before["filters"] == "24"
            assert channels[here] == 24
        elif block["type"] == "convolutional" and "batch_normalize" in block:
            assert channels[here] >= 8
            assert channels[here] % 8 == 0
    assert [sides[i] for i, block in enumerate(blocks) if block["type"] == "yolo"] == [2, 4, 8][: BASES[base][1] // 3]


def test_width_scales_the_backbone():
    assert max(trace(create_cfg("v3", 1, 416, width=0.25))[0][:75]) == 256
    assert max(trace(create_cfg("v3-tiny", 1, 416, width=2.0))[0]) == 2048


def test_classes_set_heads_and_schedule():
    blocks = create_cfg("v3-tiny", classes=20, img_size=416)
    assert [block["classes"] for block in blocks if block["type"] == "yolo"] == ["20", "20"]
    assert blocks[-2]["filters"] == "75"
    assert (blocks[0]["max_batches"], blocks[0]["steps"]) == ("40000", "32000,36000")


def test_default_anchors_follow_the_input_size():
    assert create_cfg("v3-tiny", 1, 832)[-1]["anchors"] == "20,28, 46,54, 74,116, 162,164, 270,338, 688,638"
    assert create_cfg("v3-tiny", 1, 32)[-1]["anchors"].startswith("1,1, 2,2, 3,4, ")


def test_given_anchors_are_sorted_by_area_and_not_scaled(tmp_path):
    written = create(tmp_path, "--base v3-tiny --img_size 64 --anchors '50,60, 1,2, 9,9, 20.5,3,3,4, 30,30'")
    assert read_cfg(written)[-1]["anchors"] == "1,2,3,4,20.5,3,9,9,30,30,50,60"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--img_size 400", "--img_size 400 is not a multiple of 32; the nearest is 384"),
        ("--img_size 7", "the nearest is 32"),
        ("--anchors 1,2,3,4", "has 4 numbers; it must be 9 pairs of width,height: 18 positive numbers"),
        ("--base v3-tiny --anchors 1,2,3,4,5,6,7,8,9,10,11,12,13", "has 13 numbers; it must be 6 pairs"),
        ("--base v3-tiny --anchors 1,2,3,4,5,6,7,8,9,10,11,0", "a number out of range"),
        ("--base v3-tiny --anchors 1,2,3,4,5,6,7,8,9,10,11,nan", "a number out of range"),
        ("--base v3-tiny --anchors 1,2,3,x", "is not a list of numbers; it must be 6 pairs"),
    ],
)
def test_wrong_values_say_what_is_right_and_write_nothing(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        create(tmp_path, options)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays_unless_told(tmp_path):
    path = create(tmp_path, "--base v3-tiny")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"exists; .*--overwrite"):
        create(tmp_path, "--base v3")
    assert path.read_bytes() == before
    create(tmp_path, "--base v3 --overwrite")
    assert len(read_cfg(path)) == 108


def test_runs_as_a_script_from_anywhere(tmp_path):
    command = [sys.executable, str(ROOT / "config/create_cfg.py"), "--output", "hand.cfg"]
    assert "107 layers" in subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
