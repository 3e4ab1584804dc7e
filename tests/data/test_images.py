import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.images import image_size, read_image, to_device
from utils.errors import InputError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_an_image_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg: there is no such image"):
        read_image(tmp_path / "none.jpg")


def test_a_truncated_jpeg_is_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read as an image"):
        read_image(path)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_not_decoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(InputError, match=r"bomb\.png: cannot be read as an image: .*pixels"):
        read_image(path)


def test_images_read_by_many_threads_leave_the_warning_filters_alone(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(150)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


# left, right, top, bottom half of the upright image: where the red half lies
ROTATIONS = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_exif_orientation_is_applied(tmp_path, orientation):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.asarray(read_image(path))
    assert upright.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    height, width = upright.shape[:2]
    half = {
        "left": upright[:, : width // 2],
        "right": upright[:, width // 2 :],
        "top": upright[: height // 2],
        "bottom": upright[height // 2 :],
    }[ROTATIONS[orientation]]
    assert (half == RED).all()
    assert (upright == BLUE).all(axis=2).mean() == 0.5


@pytest.mark.parametrize("orientation", ROTATIONS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_the_size_is_that_of_the_upright_image(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (32, 16), RED).save(path, exif=exif)
    assert image_size(path) == read_image(path).size == ((32, 16) if orientation < 5 else (16, 32))


def test_the_size_of_a_png_whose_exif_data_follows_the_pixels(tmp_path):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16), RED).save(path)
    end = png_chunk(b"IEND", b"")
    exif_chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\x00\x00"))
    path.write_bytes(path.read_bytes().removesuffix(end) + exif_chunk + end)
    assert image_size(path) == read_image(path).size == (16, 32)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_size_is_read_without_the_pixels(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert image_size(path) == (80, 60)
    with pytest.raises(InputError):
        read_image(path)


def test_a_file_without_a_size_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"GIF")
    with pytest.raises(InputError, match=r"broken\.jpg: cannot be read as an image"):
        image_size(tmp_path / "broken.jpg")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16", "I"])
def test_any_kind_of_image_is_read_as_rgb(tmp_path, mode):
    grey = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(8, axis=1)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I") else "a.png")
    if mode.startswith("I"):
        Image.fromarray((grey // 2).astype(np.uint16) * 257).convert(mode).save(path)
        expected = grey // 2
    else:
        Image.fromarray(grey).convert("RGB").convert(mode).save(path)
        expected = grey
    image = read_image(path)
    assert image.mode == "RGB"
    for channel in range(3):
        np.testing.assert_allclose(np.asarray(image)[..., channel], expected, atol=1)


def test_to_device_gives_numbers_from_0_to_1():
    images = to_device(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.device("cpu"))
    torch.testing.assert_close(images, torch.tensor([0.0, 0.2, 1.0]))
