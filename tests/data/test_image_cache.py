import os

import numpy as np
import pytest
import torch
from PIL import Image

import train
from tests.scene import dataset_of, make_project
from utils.data import image_cache
from utils.data.data_config import read_data_config
from utils.data.image_cache import budget, decode_all, decoded_bytes, free_memory
from utils.data.images import read_image
from utils.data.loader import EpochSampler, loader
from utils.errors import InputError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def images(folder):
    """Three images of 300, 600 and 900 bytes."""
    for k in (1, 2, 3):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (10, 10 * k, 3), np.uint8)).save(folder / f"{k}.png")
    return [folder / f"{k}.png" for k in (1, 2, 3)]


def test_the_first_images_are_kept_as_far_as_they_fit(tmp_path):
    paths = images(tmp_path)
    assert [decoded_bytes(path) for path in paths] == [300, 600, 900]
    for max_bytes, fitting in ((0, 0), (299, 0), (300, 1), (1799, 2), (1800, 3), (10**9, 3)):
        kept = decode_all(paths, read_image, max_bytes)
        assert len(kept) == fitting
        for pixels, path in zip(kept, paths, strict=False):
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    paths = images(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:120])
    with pytest.raises(InputError, match=r"2\.png"):
        decode_all(paths, read_image, 10**9)


@pytest.mark.parametrize("n_cpu", [0, 2])
def test_kept_images_give_the_same_batches_without_their_files(project, n_cpu):
    images = read_data_config("config/oxfordhand.data").images("train")
    batches = list(loader(dataset_of(images, 1, 64), 4, n_cpu, EpochSampler(6, 0)))
    dataset = dataset_of(images, 1, 64)
    assert dataset.keep(10**9) == 6 * 64 * 64 * 3
    for image in images:
        image.unlink()
    torch.testing.assert_close(list(loader(dataset, 4, n_cpu, EpochSampler(6, 0))), batches, rtol=0, atol=0)


def test_a_part_of_the_images_is_kept_and_said_so(project, monkeypatch, capsys):
    monkeypatch.setattr(train, "plot_training", lambda rows, gammas, folder: None)
    monkeypatch.setattr("utils.training.batches.budget", lambda: 4 * 64 * 64 * 3 + 1)
    words = ["--cache", "--epochs", "1", "--n_cpu", "0", "--batch_size", "4"]
    train.main(train.get_args_parser().parse_args(words))
    assert "--cache: 4 of 9 images in memory, 0.00 GB; the others do not fit into" in capsys.readouterr().out


def test_memory_is_shared_with_the_other_processes_of_the_machine(monkeypatch):
    monkeypatch.setattr(image_cache, "free_memory", lambda: 1000)
    assert budget() == 500
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert budget() == 125


def test_free_memory_is_within_the_machine_and_the_container(monkeypatch, tmp_path):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(image_cache, "CGROUPS", ())
    assert 0 < free_memory() <= whole
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 250000\ninactive_file 150000\nfile 150000\n")
    monkeypatch.setattr(image_cache, "CGROUPS", [(str(tmp_path), "max", "current", "inactive_file")])
    assert free_memory() == 750000  # read files are not in the way
    (tmp_path / "max").write_text("max\n")  # a group without a limit
    assert 750000 < free_memory() <= whole
