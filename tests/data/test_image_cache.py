import gc
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from tests.scene import dataset_of, make_project
from utils import control_groups
from utils.data import image_cache
from utils.data.augmentations import Augmentation
from utils.data.data_config import read_data_config
from utils.data.image_cache import budget, free_memory
from utils.data.loader import EpochSampler, loader
from utils.errors import InputError
from utils.training import batches as run_batches

ROOT = Path(__file__).parents[2]
PIXELS = 64 * 64 * 3  # bytes of each image of the project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def images_of(split="train"):
    return read_data_config("config/oxfordhand.data").images(split)


def cached(images, folder, kind, max_bytes=10**9, img_size=64, augmentation=None):
    dataset = dataset_of(images, 1, img_size, augmentation)
    dataset.fill_cache(kind, Path(folder), max_bytes)
    return dataset


def photographs(folder, sizes=((300, 200), (150, 400), (90, 60), (31, 500))):
    """JPEG files of noise, larger and smaller than what is trained on."""
    paths = []
    for number, (width, height) in enumerate(sizes):
        coarse = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("n_cpu", [0, 2])
def test_cached_images_give_the_same_batches_without_their_files(tmp_path, kind, augmentation, n_cpu):
    images = photographs(tmp_path)
    expected = list(loader(dataset_of(images, 1, 64, augmentation), 3, n_cpu, EpochSampler(4, 0)))
    dataset = cached(images, tmp_path / "cache", kind, augmentation=augmentation)
    assert len(dataset.cache) == 4
    for image in images:
        image.unlink()
    torch.testing.assert_close(list(loader(dataset, 3, n_cpu, EpochSampler(4, 0))), expected, rtol=0, atol=0)


@pytest.mark.parametrize("max_bytes", [0, PIXELS - 1, PIXELS, 4 * PIXELS + 1, 6 * PIXELS, 10**9])
def test_the_first_images_are_in_memory_as_far_as_they_fit(project, max_bytes):
    images = images_of()
    dataset = cached(images, project / "cache", "ram", max_bytes)
    assert len(dataset.cache) == min(max_bytes // PIXELS, 6)
    assert dataset.cache.nbytes == len(dataset.cache) * PIXELS
    expected = [dataset_of(images, 1, 64)[index] for index in range(6)]
    torch.testing.assert_close([dataset[index] for index in range(6)], expected, rtol=0, atol=0)


def test_large_images_are_cached_scaled_down(tmp_path):
    images = photographs(tmp_path, [(2560, 1920)])
    letterboxed = cached(images, tmp_path / "cache", "ram", img_size=64)
    assert letterboxed.cache.nbytes == 64 * 48 * 3
    augmented = cached(images, tmp_path / "cache", "ram", img_size=64, augmentation=Augmentation())
    assert 64 * 48 * 3 < augmented.cache.nbytes < 3 * 64 * 48 * 3


def test_a_process_that_gets_the_cache_by_pickling_maps_the_same_file(project):
    cache = cached(images_of(), project / "cache", "ram").cache
    code = (
        "import pickle, sys; cache = pickle.load(sys.stdin.buffer); "
        "print(len(cache), int(cache[5].sum()), cache[5].flags.writeable)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(cache), cwd=ROOT, capture_output=True, check=True
    )
    assert answer.stdout.decode().split() == ["6", str(int(cache[5].sum())), "False"]
    assert len(pickle.dumps(cache)) < 2000


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has files in memory")
def test_memory_is_freed_with_the_cache(project):
    def files_in_memory():
        folder = Path("/proc/self/fd")
        return sum("memfd:images" in os.readlink(file) for file in folder.iterdir() if file.is_symlink())

    gc.collect()
    before = files_in_memory()
    dataset = cached(images_of(), project / "cache", "ram")
    assert files_in_memory() > before
    del dataset
    gc.collect()
    assert files_in_memory() == before


def test_a_file_of_an_earlier_run_is_used(project, monkeypatch):
    images = images_of()
    expected = [cached(images, project / "cache", "disk")[index] for index in range(6)]
    reads = []
    monkeypatch.setattr(type(dataset_of(images, 1, 64)), "read", lambda self, index: reads.append(index))
    again = cached(images, project / "cache", "disk")
    torch.testing.assert_close([again[index] for index in range(6)], expected, rtol=0, atol=0)
    assert reads == []


@pytest.mark.parametrize("change", ["pixels", "time", "name", "size", "reader"])
def test_nothing_stale_is_used(project, monkeypatch, change):
    images, img_size = images_of(), 64
    cached(images, project / "cache", "disk")
    (old,) = (project / "cache").iterdir()
    if change == "pixels":
        Image.new("RGB", (64, 64), (9, 8, 7)).save(images[2])
    elif change == "time":
        os.utime(images[2], ns=(1, 1))
    elif change == "name":
        images[2] = images[2].rename(images[2].with_name("other.png"))
    elif change == "size":
        img_size = 32
    else:
        monkeypatch.setattr(image_cache, "FORMAT", 2)
    dataset = cached(images, project / "cache", "disk", img_size=img_size)
    torch.testing.assert_close(dataset[2], dataset_of(images, 1, img_size)[2], rtol=0, atol=0)
    files = list((project / "cache").iterdir())
    assert (old in files) == (change == "size")  # the file of another size can be used again
    assert len(files) == 1 + (change == "size")


def test_a_half_written_file_is_not_used(project):
    images = images_of()
    cached(images, project / "cache", "disk")
    (file,) = (project / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    dataset = cached(images, project / "cache", "disk")
    torch.testing.assert_close(dataset[5], dataset_of(images, 1, 64)[5], rtol=0, atol=0)


def full(*_):
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("when", ["before", "while it is written"])
def test_a_full_disk_is_named_and_left_clean(project, monkeypatch, when):
    if when == "before":
        usage = shutil.disk_usage(project)._replace(free=1000)
        monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda folder: usage)
        expected = r"--cache disk: .*cache: the images take 0\.00 GB, but 0\.00 GB are free"
    else:
        monkeypatch.setattr(image_cache.os, "pwrite", full)
        expected = r"--cache: .*No space left on device"
    with pytest.raises(InputError, match=expected) as error:
        cached(images_of(), project / "cache", "disk")
    assert "\n" not in str(error.value)
    assert list((project / "cache").iterdir()) == []


def test_an_image_that_cannot_be_read_is_named(project):
    images = images_of()
    content = images[1].read_bytes()
    images[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=images[1].name):
        cached(images, project / "cache", "disk")
    assert list((project / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(project):
    (project / "file").write_text("")
    with pytest.raises(InputError, match=r"--cache: .*file/cache"):
        cached(images_of(), project / "file/cache", "disk")


@pytest.mark.parametrize(("kind", "room"), [("ram", 4 * PIXELS + 1), ("disk", 0)])
def test_training_says_what_it_keeps(project, monkeypatch, capsys, kind, room):
    monkeypatch.setattr(train, "plot_training", lambda rows, gammas, folder: None)
    monkeypatch.setattr(train, "report_training", lambda name: None)
    monkeypatch.setattr(run_batches, "budget", lambda: room)
    words = ["--cache", kind, "--epochs", "1", "--n_cpu", "0", "--batch_size", "4"]
    train.main(train.get_args_parser().parse_args(words))
    expected = {
        "ram": "--cache ram: 4 of 9 images, 0.00 GB; the others do not fit into",
        "disk": "--cache disk: 9 of 9 images, 0.00 GB\n",
    }
    assert expected[kind] in capsys.readouterr().out
    assert (project / "data/.train.txt.cache").exists() == (kind == "disk")


def test_free_memory_is_within_the_machine_and_the_container(monkeypatch, tmp_path):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    assert 0 < free_memory() <= whole
    assert 0 < budget() <= whole // 2
    limit_memory(tmp_path, "1000000")
    assert free_memory() == 750000  # read files are not in the way
    assert budget() == 375000
    limit_memory(tmp_path, "max")  # a group without a limit
    assert 750000 < free_memory() <= whole


def limit_memory(folder, limit):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("400000\n")
    (folder / "memory.stat").write_text("anon 250000\ninactive_file 150000\nfile 150000\n")


def test_free_memory_is_within_the_batch_job(monkeypatch, tmp_path):
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/slurm/job_7/step_0\n")
    limit_memory(tmp_path / "slurm/job_7/step_0", "max")
    limit_memory(tmp_path / "slurm/job_7", "1000000")
    assert free_memory() == 750000
    (tmp_path / "membership").write_text("4:memory,misc:/slurm/job_8\n1:name=systemd:/\n")
    folder = tmp_path / "memory/slurm/job_8"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("500000\n")
    (folder / "memory.usage_in_bytes").write_text("200000\n")
    (folder / "memory.stat").write_text("total_inactive_file 1000\n")
    assert free_memory() == 301000


def test_images_whose_names_are_no_utf8_have_a_digest(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/h\xe4nd.jpg"))
    path.write_bytes(photographs(tmp_path)[0].read_bytes())
    dataset = cached([path], tmp_path / "cache", "disk")
    assert len(dataset.fingerprint) == 64
    assert len(list((tmp_path / "cache").iterdir())) == 1
