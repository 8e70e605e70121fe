import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from maskwright.formats import images
from maskwright.formats.images import list_images, read_image, read_size
from maskwright.structures import Intensity


@pytest.fixture
def photo():
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm"])
def test_lossless_formats_are_read_exactly(tmp_path, photo, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo).save(path)
    assert (read_image(path) == photo).all()


@pytest.mark.parametrize(
    ("suffix", "format"), [("jpg", "JPEG"), ("webp", "WEBP"), ("gif", "GIF"), ("mpo", "MPO"), ("", "JPEG")]
)
def test_lossy_formats_come_close(tmp_path, photo, suffix, format):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo).save(path, format, **({} if format == "GIF" else {"quality": 95}))
    assert np.abs(read_image(path).astype(int) - photo).mean() < 8


def test_suffix_does_not_decide(tmp_path, photo):
    path = tmp_path / "really_png.JPG"
    Image.fromarray(photo).save(path, "PNG")
    assert (read_image(path) == photo).all()
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, photo, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(photo).convert(mode).save(path, quality=95)
    pixels = read_image(path)
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    expected = np.asarray(Image.fromarray(photo).convert(mode).convert("RGB")).astype(int)
    assert np.abs(pixels - expected).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, photo, orientation):
    upright = Image.fromarray(photo)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that stores the image for the tag
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    stored.save(path, exif=exif)
    assert (read_image(path) == photo).all()
    upright_size, stored_size = read_size(path)
    assert upright_size == (40, 60)
    assert stored_size == (stored.height, stored.width)


def save_deep(path, values):
    Image.fromarray(values).save(path)
    return path


def test_16_bit_policies(tmp_path):
    values = np.array([[0, 1000, 2000, 65535]], dtype=np.uint16)
    path = save_deep(tmp_path / "a.png", values)
    assert read_image(path)[0, :, 0].tolist() == [0, 4, 8, 255]
    assert read_image(path, Intensity("window", 1000, 2000))[0, :, 0].tolist() == [0, 0, 255, 255]
    assert read_image(path, Intensity("percentile", 0, 100))[0, :, 0].tolist() == [0, 4, 8, 255]


def test_float_policies(tmp_path):
    path = save_deep(tmp_path / "a.tif", np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert read_image(path)[0, :, 0].tolist() == [0, 128, 255]
    path = save_deep(tmp_path / "b.tif", np.array([[-1.0, 300.0]], dtype=np.float32))
    with pytest.raises(ValueError, match=r"b\.tif: pixels range from -1 to 300, expected 0 to 1: train with --set"):
        read_image(path)
    assert read_image(path, Intensity("window", -1, 300))[0, :, 0].tolist() == [0, 255]
    path = save_deep(tmp_path / "c.tif", np.array([[np.nan]], dtype=np.float32))
    with pytest.raises(ValueError, match="not finite"):
        read_image(path)


def test_damaged_bytes_are_an_image_error_and_nothing_else(tmp_path, photo):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, kind in (("jpg", "JPEG"), ("tif", "TIFF"), ("png", "PNG"), ("webp", "WEBP"), ("gif", "GIF"), ("bmp", "BMP")):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(photo).save(path, kind, **({"exif": exif} if kind in ("JPEG", "TIFF", "PNG", "WEBP") else {}))
        whole = path.read_bytes()
        for _ in range(60):
            broken = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 300), 6):
                broken[place] = rng.integers(256)
            path.write_bytes(broken)
            for read in (read_image, read_size):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with contextlib.suppress(images.ImageError):
                        read(path)


def deep_png(values):
    """A 16-bit RGB PNG, which Pillow reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_policies_do_not_silently_pass_over_16_bit_color(tmp_path):
    values = np.array([[[4095, 0, 0], [0, 0, 4095]]], dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 65535\n" + values.astype(">u2").tobytes())
    for name in ("a.png", "a.ppm"):
        assert 15 <= read_image(tmp_path / name).max() <= 16
        with pytest.raises(ValueError, match="16-bit color is read over its full range only"):
            read_image(tmp_path / name, Intensity("window", 0, 4095))


def test_32_bit_integers_need_a_policy(tmp_path):
    path = save_deep(tmp_path / "a.tif", np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(ValueError, match="no usual full range"):
        read_image(path)
    assert read_image(path, Intensity("window", 0, 70000))[0, :, 0].tolist() == [0, 255]


def test_first_of_several_frames_is_read(tmp_path, photo):
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (9, 5), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "the file is empty"),
        ("page.jpg", b"<!doctype html><title>404</title>", "not an image of a known format"),
        ("head.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 16, "not an image|damaged"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_cut_off_files_are_refused_at_every_length(tmp_path, suffix):
    rng = np.random.default_rng(0)
    data = io.BytesIO()
    noise = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    noise.save(data, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    whole = data.getvalue()
    path = tmp_path / f"cut.{suffix}"
    for share in range(1, 95, 3):
        path.write_bytes(whole[: len(whole) * share // 100])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of broken metadata before it gives up
            with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
                read_image(path)


def test_other_decoders_are_never_reached(tmp_path, photo):
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path, "PCX")
    with pytest.raises(ValueError, match="not an image of a known format"):
        read_image(path)


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch, photo):
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 40 - 1)
    with pytest.raises(ValueError, match="60 x 40 px are more than"):
        read_image(path)


def test_large_images_load_without_a_warning(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (12800, 9600)).save(path)  # past Pillow's own limit of 89 megapixels
    with images._open(path) as image:
        assert image.size == (12800, 9600)
    assert Image.MAX_IMAGE_PIXELS == 89478485  # Pillow's limit is for others too: left as it is


def test_missing_image_and_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no such image"):
        read_image(tmp_path / "nope.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_tiny_and_odd_shapes_load(tmp_path):
    for size in ((1, 1), (1024, 3), (7, 900)):
        Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


def test_names_with_spaces_and_other_letters(tmp_path, photo):
    path = tmp_path / "name with spaces & ünïcödé 测试.png"
    Image.fromarray(photo).save(path)
    assert (read_image(path) == photo).all()
