import struct
import threading
import warnings
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from utils.data import images as images_module
from utils.data.augmentations import letterbox_pixels
from utils.data.images import (
    decode_strictly,
    find_images,
    image_size,
    open_image,
    plain_jpeg_size,
    read_image,
    spread,
    to_device,
)
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty$"),
        (b"no image", "it has a format that is not known$"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", ""),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.jpg: cannot be read as an image: {reason}"):
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


def test_a_link_without_target_is_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    assert find_images(str(tmp_path)) == [tmp_path / "a.jpg"]
    with pytest.raises(InputError, match=r"folder\.jpg: no image there; folders in it are not searched"):
        find_images(str(tmp_path / "folder.jpg"))


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


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, [0]), (3, [0, 3, 6]), (7, [0, 1, 2, 4, 5, 7, 8]), (10, list(range(10))), (99, list(range(10)))],
)
def test_images_are_chosen_at_equal_distances(count, chosen):
    assert spread(range(10), count) == chosen


def test_to_device_gives_numbers_from_0_to_1():
    images = to_device(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.device("cpu"))
    torch.testing.assert_close(images, torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_to_device_gives_the_layout_that_is_asked_for_whatever_the_loader_gave(layout):
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    for given in (images, images.to(memory_format=torch.channels_last)):
        moved = to_device(given, torch.device("cpu"), layout)
        assert moved.is_contiguous(memory_format=layout)
        torch.testing.assert_close(moved, images / 255)


def noise(width, height, seed=0, cell=8):
    """An image of soft noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // cell + 1, width // cell + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


JPEG_KINDS = {
    "plain": ("RGB", {}),
    "grey": ("L", {}),
    "progressive": ("RGB", {"progressive": True}),
    "no subsampling": ("RGB", {"subsampling": 0}),
    "CMYK": ("CMYK", {}),
    "optimised": ("RGB", {"optimize": True, "quality": 30}),
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("size", [(64, 48), (61, 45), (17, 9), (1, 1)])
def test_a_jpeg_is_decoded_as_pillow_does(tmp_path, kind, size):
    mode, options = JPEG_KINDS[kind]
    path = tmp_path / "a.jpg"
    noise(*size).convert(mode).save(path, **options)
    image = open_image(path)
    assert (image.jpeg is None) == (mode == "CMYK")
    assert (plain_jpeg_size(path.read_bytes()) is None) == (mode == "CMYK")
    assert (image.width, image.height) == size
    np.testing.assert_array_equal(image.decode(), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_a_reduced_image_is_the_mean_of_squares_of_the_upright_one(tmp_path, orientation, suffix, reduction):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    noise(128, 96, cell=32).save(path, exif=exif, **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(float)
    image = open_image(path)
    assert (image.height, image.width) == upright.shape[:2]
    height, width = image.height // reduction, image.width // reduction
    means = upright.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3))
    decoded = image.decode(reduction)
    np.testing.assert_allclose(decoded, means, atol=1 if suffix == "png" else 4)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(63, 41), (7, 90), (3, 2)])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_the_size_of_a_reduced_image(tmp_path, suffix, size, reduction):
    noise(*size).save(tmp_path / f"a.{suffix}")
    decoded = open_image(tmp_path / f"a.{suffix}").decode(reduction)
    assert decoded.shape == (max(size[1] // reduction, 1), max(size[0] // reduction, 1), 3)


def test_what_opencv_cannot_decode_is_left_to_pillow(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    noise(60, 40).save(path)
    monkeypatch.setattr(images_module.cv2, "imdecode", lambda *_: None)
    np.testing.assert_array_equal(open_image(path).decode(), np.asarray(Image.open(path)))


def test_a_jpeg_with_bytes_behind_its_end_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    noise(60, 40).save(path)
    expected = np.asarray(Image.open(path))
    path.write_bytes(path.read_bytes() + b"trailer of a camera")
    image = open_image(path)
    assert image.jpeg is None
    np.testing.assert_array_equal(image.decode(), expected)


@pytest.mark.parametrize("size", [(640, 480), (97, 301), (40, 30), (500, 3)])
@pytest.mark.parametrize("side", [64, 416])
def test_a_letterboxed_image_is_filtered_as_by_pillow(size, side):
    image = noise(*size, cell=3)
    square = letterbox_pixels(np.array(image), side)
    scale = side / max(size)
    width, height = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    left, top = (side - width) // 2, (side - height) // 2
    expected = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    np.testing.assert_allclose(square[top : top + height, left : left + width], expected, atol=1)


# More than 8 bits


def ramp(low, high, kind):
    """A ramp over the values, (60, 80)."""
    return np.linspace(low, high, 60 * 80).reshape(60, 80).astype(kind)


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 65535, np.uint16, (0, 255)),
        (0, 32768, np.uint16, (0, 128)),  # dark, but of 16 bits
        (0, 16383, np.uint16, (0, 255)),  # 14 bits
        (0, 4095, np.uint16, (0, 255)),
        (100, 3000, np.uint16, (6, 187)),  # of 12 bits
        (0, 1023, np.uint16, (0, 255)),
        (0, 200, np.uint16, (0, 200)),  # 8 bits in a larger file
        (-1000, 3000, np.int32, (0, 255)),
        (0, 1, np.float32, (0, 255)),
        (0.2, 0.3, np.float32, (0, 255)),
        (20_000, 30_000, np.float32, (0, 255)),
        (-5, 5, np.float32, (0, 255)),
        (7, 7, np.float32, (128, 128)),
    ],
)
def test_deep_values_are_scaled_from_their_range(tmp_path, low, high, kind, expected):
    suffixes = ["png", "tif"] if kind == np.uint16 else ["tif"]
    for suffix in suffixes:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(ramp(low, high, kind)).save(path)
        pixels, traits = decode_strictly(path)
        assert traits.deep
        assert (pixels.min(), pixels.max()) == expected
        assert (np.diff(pixels[:, :, 0].flatten().astype(int)) >= 0).all()
        np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)


def test_a_tiff_that_states_its_range_is_scaled_by_it(tmp_path):
    for tag, high, kind in ((281, 2000, np.uint16), (341, 4.0, np.float32)):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[tag - 1], info[tag] = (0, high) if kind == np.uint16 else (0.0, high)
        if kind != np.uint16:
            info.tagtype[tag - 1] = info.tagtype[tag] = 11
        Image.fromarray(ramp(0, high / 2, kind)).save(tmp_path / "a.tif", tiffinfo=info)
        pixels = np.asarray(read_image(tmp_path / "a.tif"))
        assert pixels.min() == 0
        assert abs(int(pixels.max()) - 127) <= 1


def test_values_that_are_not_finite_are_the_smallest(tmp_path):
    values = ramp(0, 10, np.float32)
    values[3, 4], values[5, 6] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    pixels = np.asarray(read_image(tmp_path / "a.tif"))
    assert pixels[3, 4].tolist() == pixels[5, 6].tolist() == [0, 0, 0]
    assert pixels.max() == 255


@pytest.mark.parametrize(("suffix", "channels"), [("png", 3), ("png", 4), ("tiff", 3), ("tiff", 4), ("ppm", 3)])
def test_deep_colours_are_scaled_together(tmp_path, suffix, channels):
    colours = np.stack([ramp(0, high, np.uint16) for high in (4095, 2048, 100, 4095)[:channels]], axis=-1)
    bgr = colours[:, :, [2, 1, 0, 3][:channels]]
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), bgr)
    pixels = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    np.testing.assert_allclose(pixels.max(axis=(0, 1)), [255, 128, 6], atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_images_are_turned_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = ramp(0, 255, np.uint16)
    Image.fromarray(values * 257).save(tmp_path / f"deep.{suffix}", exif=exif)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / f"plain.{suffix}", exif=exif)
    deep, plain = (np.asarray(read_image(tmp_path / f"{name}.{suffix}")) for name in ("deep", "plain"))
    np.testing.assert_array_equal(deep, plain)
    assert open_image(tmp_path / f"deep.{suffix}").width == deep.shape[1]
