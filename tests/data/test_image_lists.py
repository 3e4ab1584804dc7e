from pathlib import Path

import pytest

from tests.scene import save, write
from utils.data.data_config import read_data_config
from utils.data.image_lists import existing_images, read_list_entries
from utils.errors import InputError


def read_image_list(path: str | Path) -> list[Path]:
    return existing_images(read_list_entries(path))


def test_paths_are_absolute_or_relative_to_the_file_or_else_to_the_working_directory(tmp_path, monkeypatch):
    here, there, data = tmp_path / "here", tmp_path / "there", tmp_path / "data"
    for folder, name in ((here, "cwd.png"), (there, "absolute.png"), (data, "beside.png"), (here, "beside.png")):
        save(folder / name)
    listing = write(data / "list.txt", f"cwd.png\n{there / 'absolute.png'}\n\nbeside.png  \n")
    monkeypatch.chdir(here)
    images = [path.resolve() for path in read_image_list(listing)]
    assert images == [here / "cwd.png", there / "absolute.png", data / "beside.png"]


def test_a_missing_image_is_named_by_file_and_line(tmp_path):
    save(tmp_path / "a.png")
    listing = write(tmp_path / "list.txt", "a.png\n\nb.png\nc.png\n")
    with pytest.raises(InputError, match=r"list\.txt:3: there is no image b\.png; .* \(and 1 more images\)"):
        read_image_list(listing)


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"list\.txt:1"):
        read_image_list(write(tmp_path / "list.txt", "folder\n"))


def test_an_empty_list_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"list\.txt: the list names no image"):
        read_image_list(write(tmp_path / "list.txt", "\n  \n"))


def test_a_name_that_no_file_can_have_is_no_image_and_no_list(tmp_path):
    name = "x" * 5000
    with pytest.raises(InputError, match=r"list\.txt:1: there is no image"):
        read_image_list(write(tmp_path / "list.txt", name))
    with pytest.raises(InputError, match="cannot be read as a file of class names"):
        read_data_config(write(tmp_path / "a.data", f"classes=1\nnames={name}\n"))


def test_a_list_with_a_zero_is_no_text(tmp_path):
    with pytest.raises(InputError, match=r"list\.txt: not a text file"):
        read_image_list(write(tmp_path / "list.txt", "a\0b"))


def test_the_error_shows_every_path_that_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lists/list.txt", "images\\a.png\n")
    with pytest.raises(InputError) as error:
        read_image_list("lists/list.txt")
    for folder in (tmp_path, tmp_path / "lists"):
        assert f"{folder}/images/a.png" in str(error.value)
        assert f"{folder}/images\\a.png" in str(error.value)


def test_backslashes_of_windows_count_as_slashes_where_that_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slashes, backslash = save(tmp_path / "data/images/a.png"), save(tmp_path / "data/b\\c.png")
    save(tmp_path / "data/b/c.png")
    listing = write(tmp_path / "data/list.txt", "images\\a.png\r\n.\\images\\a.png\ndata\\images\\a.png\nb\\c.png\n")
    images = [path.resolve() for path in read_image_list(listing)]
    assert images == [slashes, slashes, slashes, backslash]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_lists_in_encodings_of_windows(tmp_path, encoding):
    image = save(tmp_path / "图像/手机.png")
    listing = tmp_path / "list.txt"
    listing.write_bytes("图像/手机.png\r\n".encode(encoding))
    assert read_image_list(listing) == [image]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    save(tmp_path / "store/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train").symlink_to(tmp_path / "store")
    (tmp_path / "store/again").symlink_to(tmp_path / "images")
    assert read_image_list(tmp_path / "images") == [tmp_path / "images/train/a.png"]


def test_the_whole_file_system_is_no_folder_of_images():
    with pytest.raises(InputError, match="the whole file system"):
        read_image_list("/")


@pytest.mark.parametrize("root", ["/content/darknet", "C:\\Users\\me\\darknet", "D:/darknet"])
def test_of_an_absolute_path_of_another_machine_the_end_counts(tmp_path, root):
    image = save(tmp_path / "data/obj/a.png")
    separator = "\\" if "\\" in root else "/"
    paths = [separator.join((root, "data", "obj", name)) for name in ("a.png", "b.png")]
    for listing in (tmp_path / "data/list.txt", tmp_path / "list.txt"):
        assert read_image_list(write(listing, f"{paths[0]}\n")) == [image]
        with pytest.raises(InputError, match=rf"list\.txt:1: there is no image .*{tmp_path}/data/obj/b\.png"):
            read_image_list(write(listing, f"{paths[1]}\n"))
    save(tmp_path / "b.png")
    with pytest.raises(InputError, match="there is no image"):
        read_image_list(tmp_path / "list.txt")  # the name alone is no end of the path
