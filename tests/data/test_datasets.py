import numpy as np
import pytest
import torch
from PIL import Image

from tests.scene import dataset_of, write
from utils.data.augmentations import Augmentation
from utils.data.datasets import EpochSampler, collate, loader, read_data_config, read_image_list
from utils.errors import InputError

RED = (255, 0, 0)


def save(path, size=(40, 30), colour=(0, 255, 0), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def data_file(folder, text):
    write(folder / "a.names", "cat\ndog\n")
    return write(folder / "a.data", text)


def labelled(folder, name, image, lines):
    path = folder / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    write(folder / "labels" / f"{name}.txt", "\n".join(lines))
    return path


def with_rectangle(size, rectangle, colour=RED):
    """A black image with a filled rectangle (x1, y1, x2, y2), and its label line of class 0."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = rectangle
    pixels[y1:y2, x1:x2] = colour
    numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return Image.fromarray(pixels), "0 " + " ".join(f"{number:.6f}" for number in numbers)


def five_images(folder, classes=2):
    random = np.random.default_rng(0)
    paths = []
    for number in range(5):
        pixels = random.integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        lines = [f"{k % classes} 0.{3 + k} 0.5 0.2 0.3" for k in range(number % 3)]
        paths.append(labelled(folder, f"p{number}", Image.fromarray(pixels), lines))
    return paths


# .data files


def test_data_file_with_comments_blank_lines_and_spaces(tmp_path):
    text = (
        "# the pets\n\n  classes = 2  # two\nnames=a.names\n train =train.txt\r\nvalid= valid.txt\nbackup=elsewhere\n"
    )
    write(tmp_path / "train.txt", "")
    config = read_data_config(data_file(tmp_path, text))
    assert (config.classes, config.names) == (2, ["cat", "dog"])
    assert (config.train, config.valid) == (tmp_path / "train.txt", tmp_path / "valid.txt")


def test_names_default_to_numbers(tmp_path):
    assert read_data_config(data_file(tmp_path, "classes=3\n")).names == ["0", "1", "2"]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "a.data"
    path.write_text("classes=1\n", encoding="utf-8-sig")
    assert read_data_config(path).classes == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names=a.names\n", r"a\.data: classes= must be a number from 1 to"),
        ("classes=0\n", r"classes=0 must be a number from 1 to"),
        ("classes=two\n", r"classes=two must be"),
        ("classes=2\ntrain\n", r"a\.data:2: 'train' is not key=value"),
        ("classes=3\nnames=a.names\n", r"classes=3, but a\.names names 2"),
        ("classes=2\nnames=b.names\n", r"b\.names: there is no such file of class names"),
    ],
)
def test_wrong_data_files_say_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_data_config(data_file(tmp_path, text))


def test_a_missing_data_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.data: there is no such \.data file"):
        read_data_config(tmp_path / "none.data")


def test_an_image_in_place_of_a_data_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"p\.png: not a text file"):
        read_data_config(save(tmp_path / "p.png"))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_list_stops_only_who_needs_it(tmp_path, split):
    image = save(tmp_path / "p.png")
    write(tmp_path / "list.txt", "p.png\n")
    other = {"train": "valid", "valid": "train"}[split]
    config = read_data_config(data_file(tmp_path, f"classes=2\n{other}=list.txt\n"))
    assert config.images(other) == [image]
    with pytest.raises(InputError, match=rf"a\.data: {split}= is missing"):
        config.images(split)


def test_a_list_that_is_not_there_is_named(tmp_path):
    config = read_data_config(data_file(tmp_path, "classes=2\ntrain=gone.txt\n"))
    with pytest.raises(InputError, match=r"gone\.txt: there is no such list of images"):
        config.images("train")


def test_paths_are_absolute_or_relative_to_the_working_directory_or_to_the_file(tmp_path, monkeypatch):
    here, there, data = tmp_path / "here", tmp_path / "there", tmp_path / "data"
    for folder, name in ((here, "cwd.png"), (there, "absolute.png"), (data, "beside.png"), (data, "cwd.png")):
        save(folder / name)
    listing = write(data / "list.txt", f"cwd.png\n{there / 'absolute.png'}\n\nbeside.png  \n")
    monkeypatch.chdir(here)
    found = [path.resolve() for path in read_image_list(listing)]
    assert found == [here / "cwd.png", there / "absolute.png", data / "beside.png"]


# lists


def test_a_missing_image_is_named_by_file_and_line(tmp_path):
    save(tmp_path / "a.png")
    listing = write(tmp_path / "list.txt", "a.png\n\nb.png\nc.png\n")
    with pytest.raises(InputError, match=r"list\.txt:3: there is no image b\.png \(and 1 more\)"):
        read_image_list(listing)


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"list\.txt:1"):
        read_image_list(write(tmp_path / "list.txt", "folder\n"))


def test_an_empty_list_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"list\.txt: the list names no image"):
        read_image_list(write(tmp_path / "list.txt", "\n  \n"))


def test_a_name_that_no_file_can_have_is_no_image_and_no_list(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(InputError, match=r"list\.txt:1: there is no image"):
            read_image_list(write(tmp_path / "list.txt", name))
        with pytest.raises(InputError, match="cannot be read as a file of class names"):
            read_data_config(write(tmp_path / "a.data", f"classes=1\nnames={name}\n"))


@pytest.mark.parametrize("classes", ["1000000000", "9" * 5000, "65537"])
def test_an_absurd_number_of_classes_is_refused(tmp_path, classes):
    with pytest.raises(InputError, match="must be a number from 1 to 65536"):
        read_data_config(write(tmp_path / "a.data", f"classes={classes}\n"))


# items and batches


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (33, 97), (64, 64), (8, 8)])
def test_letterboxed_boxes_lie_on_their_object(tmp_path, size):
    width, height = size
    rectangle = (width // 4, height // 2, 3 * width // 4, height - height // 8)
    drawn, line = with_rectangle(size, rectangle)
    path = labelled(tmp_path, "a", drawn, [line])
    image, targets = dataset_of([path], 1, 64)[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 64, 64)
    _, cx, cy, w, h = targets[0].tolist()
    edges = [64 * (cx - w / 2), 64 * (cy - h / 2), 64 * (cx + w / 2), 64 * (cy + h / 2)]
    rows, columns = torch.nonzero((image[0] > 127 + 60) & (image[2] < 60), as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(edges) - np.array(seen)).max() <= (1 if max(size) > 32 else 4)


def test_bars_beside_a_letterboxed_image_are_grey(tmp_path):
    image, _ = dataset_of([save(tmp_path / "a.png", (64, 32), RED)], 1, 64)[0]
    assert (image[:, :16] == 127).all()
    assert (image[:, 48:] == 127).all()
    assert (image[:, 16:48] == torch.tensor(RED)[:, None, None]).all()


def test_an_item_depends_on_seed_epoch_and_index_alone(tmp_path):
    images = five_images(tmp_path)

    def item(seed, epoch, index):
        return dataset_of(images, 2, 32, Augmentation(), seed)[epoch, index]

    dataset = dataset_of(images, 2, 32, Augmentation(), 0)
    wanted = [dataset[1, index] for index in range(5)]
    torch.manual_seed(5)
    np.random.seed(5)
    for index in (4, 2, 0, 3, 1):  # in another order, from another object, with other global states
        torch.testing.assert_close(item(0, 1, index), wanted[index], rtol=0, atol=0)
    for other in (item(1, 1, 2), item(0, 2, 2), item(0, 1, 4)):
        assert not torch.equal(other[0], wanted[2][0])


def test_batches_are_the_same_with_and_without_workers(tmp_path):
    images = five_images(tmp_path)

    def batches(n_cpu):
        dataset = dataset_of(images, 2, 32, Augmentation(), 3)
        sampler = EpochSampler(5, 3)
        made = loader(dataset, 2, n_cpu, sampler)
        found = []
        for epoch in range(2):
            sampler.epoch = epoch
            found.append(list(made))
        return found

    alone, helped = batches(0), batches(2)
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
        own = [index for _, index in sampler]
        assert len(own) == len(sampler)
        parts.append([own[k : k + batch_size // world] for k in range(0, len(own), batch_size // world)])
    assert {len(own) for own in parts} == {-(-length // batch_size)}  # as many steps for each
    assert all(shares for own in parts for shares in own)
    seen = [index for shares in zip(*parts, strict=True) for own in shares for index in own]
    assert seen[:length] == whole
    assert len(seen) - length < world  # what fills up a last batch that is smaller than the number of processes
