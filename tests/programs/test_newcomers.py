"""What somebody brings, as its tool wrote it, becomes a pruned network: at most three commands besides the recipe's."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import test_prune
import train
from config import create_cfg
from data import converter
from models import Darknet
from tests.data.converters.scene import draw
from tests.networks import CFG_FOLDER
from tests.scene import write
from utils.darknet.cfg import format_cfg, read_cfg

PROGRAMS = {"train.py": train, "test_prune.py": test_prune}
PROGRAMS |= {"data/converter.py": converter, "config/create_cfg.py": create_cfg}
IMAGES = [f"photo_{number}" for number in range(6)]
BOX = (10, 10, 50, 40)  # x1, y1, x2, y2 in pixels of images of 80x60
LINE = "0.375 0.416667 0.5 0.5"

WRITE_CFG = "config/create_cfg.py --base v3-tiny --classes {} --img_size 64 --width 0.1 --output my.cfg"
FAST = "--img_size 64 --n_cpu 0 --force"
RECIPE = """
train.py --model_def {cfg} --data_config {data} {start} -sr --s 5 {fast} --epochs 1 --batch_size 2
test_prune.py --data_config {data} {fast} --percent 0.3
"""


@pytest.fixture(autouse=True)
def _fast(tmp_path, monkeypatch, no_plots):
    """The working directory."""
    monkeypatch.chdir(tmp_path)


def run(commands: str) -> int:
    """Run command lines, one per line; how many they are."""
    lines = commands.strip().splitlines()
    for line in lines:
        program, *words = shlex.split(line)
        PROGRAMS[program].main(PROGRAMS[program].get_args_parser().parse_args(words))
    return len(lines)


def prune(cfg: str, data: str, commands: str = "", start: str = "") -> None:
    """Run the newcomer's own commands and then the recipe's; it ends with a network that is smaller and works."""
    assert run(commands) <= 3
    run(RECIPE.format(cfg=cfg, data=data, start=start, fast=FAST))
    pruned = next(Path("config").glob("prune_*.cfg"))
    small, whole = Darknet(pruned), Darknet(cfg)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())
    small.eval()(torch.rand(1, 3, 64, 64))


def photos(folder: str, names=IMAGES) -> None:
    for name in names:
        draw(Path(folder) / f"{name}.jpg", (80, 60), seed=IMAGES.index(name))


def test_a_folder_straight_from_labelimg():
    photos("hands")
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
    for name in IMAGES:
        write(
            Path("hands") / f"{name}.xml",
            f"<annotation><folder>hands</folder><filename>{name}.jpg</filename><path>C:\\hands\\{name}.jpg</path>"
            "<size><width>80</width><height>60</height><depth>3</depth></size>"
            f"<object><name>hand</name><difficult>0</difficult><bndbox>{sides}</bndbox></object></annotation>",
        )
    commands = "data/converter.py voc --source hands --split 0.7 --output mine\n"
    prune("my.cfg", "mine/mine.data", commands + WRITE_CFG.format(1))


def test_a_coco_export_of_roboflow():
    for split, names in (("train", IMAGES[:4]), ("valid", IMAGES[4:])):
        photos(f"hands/{split}", names)
        x1, y1, x2, y2 = BOX
        images = [{"id": k, "file_name": f"{name}.jpg", "width": 80, "height": 60} for k, name in enumerate(names)]
        boxes = [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for k in range(len(names))
        ]
        categories = [
            {"id": 0, "name": "hands", "supercategory": "none"},
            {"id": 1, "name": "hand", "supercategory": "hands"},
        ]
        content = {"info": {}, "images": images, "annotations": boxes, "categories": categories}
        write(Path(f"hands/{split}/_annotations.coco.json"), json.dumps(content))
    files = " ".join(f"--annotations_{split} hands/{split}/_annotations.coco.json" for split in ("train", "valid"))
    prune("my.cfg", "mine/mine.data", f"data/converter.py coco {files} --output mine\n" + WRITE_CFG.format(1))


def test_a_data_yaml_of_ultralytics():
    for split, names in (("train", IMAGES[:4]), ("val", IMAGES[4:])):
        photos(f"hands/images/{split}", names)
        for name in names:
            write(Path(f"hands/labels/{split}/{name}.txt"), f"1 {LINE}\n")
    text = "path: ../datasets/hands  # dataset root dir\ntrain: images/train\nval: images/val\ntest:\n"
    write(Path("hands/hands.yaml"), text + "names:\n  0: left\n  1: right\n")
    prune("my.cfg", "hands/hands.yaml", WRITE_CFG.format(2))


def test_a_project_folder_of_darknet():
    photos("project/data/obj")
    for name in IMAGES:
        write(Path(f"project/data/obj/{name}.txt"), f"0 {LINE}\n")
    for split, names in (("train", IMAGES[:4]), ("test", IMAGES[4:])):
        write(Path(f"project/data/{split}.txt"), "".join(f"data/obj/{name}.jpg\n" for name in names))
    write(Path("project/data/obj.names"), "hand\n")
    text = "classes = 1\ntrain  = data/train.txt\nvalid  = data/test.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(Path("project/data/obj.data"), text)
    sections = read_cfg(CFG_FOLDER / "v4-tiny.cfg")
    for classes, path in ((80, "yolov4-tiny.cfg"), (1, "project/yolov4-tiny-custom.cfg")):
        for number, section in enumerate(sections):
            if section["type"] == "yolo":
                section["classes"] = str(classes)
                heads = len(section["mask"].split(","))
                sections[number - 1]["filters"] = str(heads * (classes + 5))
        write(Path(path), format_cfg(sections))
    Darknet("yolov4-tiny.cfg").save_darknet_weights("project/yolov4-tiny.weights")
    prune("project/yolov4-tiny-custom.cfg", "project/data/obj.data", start="-pre project/yolov4-tiny.weights")
