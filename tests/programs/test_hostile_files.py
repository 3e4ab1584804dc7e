"""Files that are damaged, or made to harm: a reader gives a result or an InputError of one line, whatever they hold."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.networks import create_cfg
from tests import fuzz
from tests.scene import make_project
from utils.darknet.cfg import format_cfg, parse_cfg
from utils.darknet.spec import parse_network
from utils.data.converters.coco import read_coco
from utils.data.converters.writer import write_data_set
from utils.data.images import read_image
from utils.detection.checkpoints import read_checkpoint
from utils.errors import InputError

ROOT = Path(__file__).parents[2]
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_reader_gives_a_result_or_our_own_error(tmp_path, reader):
    read, make_seeds, name = fuzz.READERS[reader]
    fuzz.prepare(tmp_path)
    seeds, path = make_seeds(), tmp_path / name
    changed = st.builds(
        lambda seed, number: fuzz.mutate(np.random.default_rng(number), seeds[seed % len(seeds)]),
        st.integers(0, 100),
        st.integers(0, 2**32),
    )

    @SLOW
    @given(st.one_of(changed, st.binary(max_size=300)))
    def check(content):
        path.write_bytes(content)
        try:
            read(path)
        except InputError as error:
            lines = str(error).splitlines()
            if len(lines) != 1:
                pytest.fail(f"not one line: {lines}")

    check()


LINES = st.sampled_from(
    ["[net]", "[convolutional]", "[route]", "[shortcut]", "[yolo]", "[upsample]", "[maxpool]", "[reorg3d]"]
)
KEYS = st.sampled_from(
    ["width", "height", "filters", "size", "stride", "pad", "padding", "dilation", "groups", "layers", "from"]
    + ["mask", "anchors", "num", "classes", "activation"]
)
VALUES = st.one_of(
    st.integers(-3, 70_000).map(str), st.lists(st.integers(-9, 9).map(str)).map(",".join), st.text(max_size=5)
)


@SLOW
@given(st.lists(st.one_of(LINES, st.tuples(KEYS, VALUES).map("=".join)), max_size=30))
def test_a_cfg_of_random_lines_parses_or_is_refused(lines):
    try:
        blocks = parse_cfg("\n".join(["[net]", "width=64", "height=64", *lines]))
        assert parse_cfg(format_cfg(blocks)) == blocks
        parse_network(blocks)
    except InputError as error:
        if "\n" in str(error):
            pytest.fail(f"not one line: {error}")


# Numbers of a cfg that would take all memory


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "[convolutional]\nfilters=4096\nsize=1\n\n[convolutional]\nfilters=4096\nsize=99\npad=1\n",
            r"layer 1 .*the kernels up to here",
        ),
        ("[upsample]\nstride=16384\n", r"layer 0 \[upsample\]: its output of 3x1048576x1048576 would be"),
        ("[route]\nlayers=-1,-1,-1,-1\n\n" * 40, r"layer \d+ \[route\]: its output of .* would be"),
        ("[convolutional]\nfilters=65537\nsize=1\n", r"layer 0 .*filters=65537 must be from 1 to 65536"),
    ],
)
def test_absurd_sizes_are_refused_by_layer_before_anything_is_allocated(section, message):
    first = "" if section.startswith(("[c", "[u")) else "[convolutional]\nfilters=8\nsize=1\n\n"
    began = time.monotonic()
    with pytest.raises(InputError, match=message):
        parse_network(parse_cfg(f"[net]\nwidth=64\nheight=64\n\n{first}{section}"))
    assert time.monotonic() - began < 5


def test_real_networks_stay_far_below_the_bounds():
    parse_network(parse_cfg(format_cfg(create_cfg("v3-spp", 80, 608, width=2.0))), 1216)


# What the fuzz program found


def test_a_tiff_whose_offset_is_no_integer(tmp_path):
    """Pillow's TypeError."""
    entries = [(256, 4, 4), (257, 4, 4), (259, 3, 1), (262, 3, 5), (277, 3, 4), (278, 4, 4), (279, 4, 64)]
    packed = [(tag, kind, struct.pack("<I", value)) for tag, kind, value in entries]
    packed = sorted([*packed, (273, 11, struct.pack("<f", 8.5)), (258, 3, struct.pack("<HH", 8, 0))])
    directory = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in packed)
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(packed)) + directory + bytes(4 + 64))
    with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("hole", [200, 400, 2000])
def test_a_checkpoint_with_a_hole(tmp_path, hole):
    """An OSError of PyTorch's, which asks for a place in front of the file's beginning."""
    buffer = io.BytesIO()
    torch.save({"model": fuzz.tiny().state_dict()}, buffer)
    content = buffer.getvalue()
    path = tmp_path / "a.pth"
    path.write_bytes(content[:20] + content[20 + hole :])
    with pytest.raises(InputError, match=r"a\.pth: not a checkpoint that can be read safely"):
        read_checkpoint(path)


# Names that point elsewhere


def test_a_converter_writes_into_its_folder_only(tmp_path):
    make_project(tmp_path)
    annotation, output = tmp_path / "a.json", tmp_path / "out"
    names = ["../../data/images/train_0.png", str(tmp_path / "data/images/train_1.png")]
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    boxes = [{"image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9]} for k in range(2)]
    annotation.write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]})
    )
    before = set(tmp_path.rglob("*"))
    source = (annotation, tmp_path / "data/images")
    data = read_coco({"train": source, "valid": source})
    assert any(data.splits.values())
    write_data_set(data, output)
    new = set(tmp_path.rglob("*")) - before
    assert new
    assert all(path == output or output in path.parents for path in new)


# Kills and signals, for real


def test_killed_trainings_and_prunings_lose_nothing():
    words = [sys.executable, ROOT / "tests/kill.py", "--training", "1", "--pruning", "2", "--seed", "1"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "training: 1 runs" in ended.stdout
    assert "pruning: 2 runs" in ended.stdout


def test_ctrl_c_reaches_all_processes_and_the_program_ends_with_a_checkpoint(tmp_path):
    make_project(tmp_path)
    words = [
        sys.executable,
        ROOT / "train.py",
        "--epochs",
        "500",
        "--batch_size",
        "2",
        "--n_cpu",
        "2",
        "--name",
        "mine",
    ]
    process = subprocess.Popen(
        [*words, "--evaluation_interval", "500"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("|gamma|"):  # the first epoch is done
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    last = [line for line in errors.splitlines() if line.strip()][-1].split("\r")[-1]
    assert last.endswith("checkpoints/mine_last.pth is written, go on with: python train.py --resume --name mine")
    assert read_checkpoint(tmp_path / "checkpoints/mine_last.pth")["step"] >= 3
    assert "Traceback" not in errors
