import itertools
import os
import time

import pytest
import torch
from PIL import Image

from tests.scene import dataset_of, five_images, save_labelled
from utils import control_groups, workers
from utils.data.augmentations import Augmentation
from utils.data.loader import EpochSampler, Waiting, collate, loader


def test_batches_are_the_same_with_and_without_workers(tmp_path):
    images = five_images(tmp_path)

    def load(n_cpu):
        dataset = dataset_of(images, 2, 32, Augmentation(), 3)
        sampler = EpochSampler(5, 3)
        batches = loader(dataset, 2, n_cpu, sampler)
        epochs = []
        for epoch in range(2):
            sampler.epoch = epoch
            epochs.append(list(batches))
        return epochs

    alone, helped = load(0), load(2)
    assert [len(epoch) for epoch in alone] == [3, 3]
    torch.testing.assert_close(helped, alone, rtol=0, atol=0)
    assert not torch.equal(alone[0][0][0], alone[1][0][0])


def test_every_epoch_has_all_images_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=1)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        items = list(sampler)
        assert [number for number, _ in items] == [epoch] * 50
        orders.append([index for _, index in items])
        assert sorted(orders[-1]) == list(range(50))
    assert len({tuple(order) for order in orders}) == 3
    again, other = EpochSampler(50, seed=1), EpochSampler(50, seed=2)
    assert [index for _, index in again] == orders[0]
    assert [index for _, index in other] != orders[0]
    assert len(sampler) == 50


def test_collate_numbers_the_boxes_of_a_batch():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    boxes = torch.tensor([[1, 0.5, 0.5, 0.25, 0.25], [0, 0.25, 0.5, 0.5, 0.5]])
    none = torch.zeros(0, 5)
    images, targets = collate([(image, none), (image + 1, boxes), (image + 2, none), (image + 3, boxes[:1])])
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert targets[:, 0].tolist() == [1, 1, 3]
    assert torch.equal(targets[:, 1:], torch.cat([boxes, boxes[:1]]))


def test_collate_of_images_without_boxes():
    images, targets = collate([(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(0, 5))] * 2)
    assert images.shape == (2, 3, 8, 8)
    assert targets.shape == (0, 6)


@pytest.mark.parametrize(("length", "batch_size", "world"), [(24, 8, 2), (23, 8, 2), (19, 6, 3), (13, 6, 3), (2, 6, 3)])
def test_processes_share_every_batch_of_one_process(length, batch_size, world):
    whole = [index for _, index in EpochSampler(length, 4)]
    parts = []
    for rank in range(world):
        sampler = EpochSampler(length, 4, batch_size, rank, world)
        local = [index for _, index in sampler]
        assert len(local) == len(sampler)
        parts.append([local[k : k + batch_size // world] for k in range(0, len(local), batch_size // world)])
    assert {len(local) for local in parts} == {-(-length // batch_size)}  # as many steps for each
    assert min(len(shares) for local in parts for shares in local) >= 2
    seen = [index for shares in zip(*parts, strict=True) for local in shares for index in local]
    assert seen[:length] == whole
    remainder = length % batch_size
    filled_up = max(2 * world - remainder, 0) if remainder else 0  # so that each process has two images
    assert len(seen) - length == filled_up


@pytest.mark.parametrize(("length", "batch_size", "sizes"), [(5, 2, [2, 2, 2]), (9, 4, [4, 4, 2]), (1, 3, [2])])
def test_a_last_batch_of_one_image_is_filled_up(length, batch_size, sizes):
    sampler = EpochSampler(length, 4, batch_size)
    items = list(sampler)
    assert len(items) == len(sampler) == sum(sizes)
    assert {index for _, index in items} == set(range(length))
    assert items[:length] == list(EpochSampler(length, 4))
    assert items[length:] == items[: len(items) - length]


@pytest.mark.parametrize(("length", "batch_size"), [(6, 4), (8, 4), (5, 1), (11, 4)])
def test_other_last_batches_are_left_as_they_are(length, batch_size):
    assert list(EpochSampler(length, 4, batch_size)) == list(EpochSampler(length, 4))


def test_waiting_counts_the_time_of_the_batches_and_not_of_their_user():
    def batches():
        for number in range(4):
            time.sleep(0.02)
            yield number

    waiting = Waiting(batches())
    for number, batch in enumerate(waiting):
        assert batch == number
        time.sleep(0.05)
    assert 0.08 <= waiting.seconds < 0.2


def test_a_batch_is_channels_last_in_memory(tmp_path):
    images, _ = next(iter(loader(dataset_of(five_images(tmp_path), 2, 32), 4, 0)))
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("cores", "quota", "processes", "expected"),
    [(8, "max 100000", 1, 8), (8, "max 100000", 3, 2), (8, "250000 100000", 1, 3), (2, "max 100000", 4, 0)]
    + [(64, "", 1, 16), (64, "", 8, 8), (4, "50000 100000", 1, 1)],
)
def test_the_default_workers_are_the_share_of_the_cores(tmp_path, monkeypatch, cores, quota, processes, expected):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers.default_workers() == expected


def test_there_are_no_more_default_workers_than_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    dataset = dataset_of(five_images(tmp_path), 2, 32)
    assert loader(dataset, 2, None).num_workers == min(3, workers.default_workers())
    assert loader(dataset, 8, None).num_workers == min(1, workers.default_workers())
    assert loader(dataset, 8, 2).num_workers == 2


def test_a_mosaic_reads_each_image_of_its_group_once(tmp_path, monkeypatch):
    paths = [save_labelled(tmp_path, f"{number}", Image.new("RGB", (32, 32)), []) for number in range(40)]
    dataset = dataset_of(paths, 1, 32, Augmentation(mosaic=1.0))
    reads = []
    read = dataset.read
    monkeypatch.setattr(dataset, "read", lambda index: reads.append(index) or read(index))
    sampler = EpochSampler(40, 0)
    groups = [{index for _, index in list(sampler)[start : start + 16]} for start in (0, 16)]
    for item in itertools.islice(sampler, 32):
        dataset[item]
    assert len(reads) == len(set(reads)) == 32
    assert set(reads[:16]) == groups[0]
    assert set(reads[16:]) == groups[1]
