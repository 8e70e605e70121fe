"""Reading images: whatever people keep them in, as upright RGB uint8 (H, W, 3)."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from maskwright.structures import Intensity

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")  # JPEG brings MPO along
"""What Pillow may try; its other decoders are never reached by a file somebody sent."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo")

MAX_PIXELS = 150_000_000
"""Larger images are refused before they are decoded: 150 megapixels are 450 MB as RGB."""

_DEEP_MODES = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "F": 1.0}
_EXIF_ORIENTATION = 0x0112
_REMEDY = 'train with --set "intensity={policy: window, low: ..., high: ...}", or percentiles'
_DECODING = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, AttributeError, ArithmeticError)
_DAMAGE = (*_DECODING, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""


class ImageError(ValueError):
    """An image that cannot be read; the message names the file and the remedy."""


def read_image(source: Path | str | Image.Image, intensity: Intensity | None = None) -> npt.NDArray[np.uint8]:
    """Read one image, upright as its EXIF tag says, first frame of several, alpha dropped.

    Args:
        source: a file, or an image Pillow already holds.
        intensity: what to do with 16-bit and float images; by default the full range of the type.

    Returns:
        RGB (H, W, 3).

    Raises:
        ImageError: no such file, not an image, damaged, of a format outside `FORMATS` or over `MAX_PIXELS`.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(source), intensity or Intensity(), "the image")
    path = Path(source)
    with _open(path) as image:
        if intensity is not None and intensity.policy != "full" and _is_deep_color(image):
            raise ImageError(f"{path}: 16-bit color is read over its full range only, not by {intensity}: convert it to 8 bits")
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except _DAMAGE as error:
            raise ImageError(f"{path}: the image is damaged or cut off ({error}): copy or download it again") from None
    return _to_rgb(upright, intensity or Intensity(), str(path))


def read_size(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) upright and as stored, from the header alone."""
    with _open(path) as image:
        stored = (image.height, image.width)
        if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode the whole image to look for it at the end
            return stored, stored
        try:
            turned = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
        except _DAMAGE as error:
            raise ImageError(f"{path}: the image is damaged or cut off ({error}): copy or download it again") from None
    return (stored[1], stored[0]) if turned else stored, stored


def list_images(folder: Path) -> list[Path]:
    """Image files in a folder and its sub-folders, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))


def _open(path: Path) -> Image.Image:
    if not path.exists():
        raise ImageError(f"{path}: there is no such image")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, expected an image")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty: copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: not an image of a known format ({', '.join(FORMATS)}): convert it, or download it again"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: larger than {MAX_PIXELS / 1e6:.0f} megapixels: cut it into tiles") from None
    except _DAMAGE as error:
        raise ImageError(f"{path}: the image is damaged ({error}): copy or download it again") from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(
            f"{path}: {image.width} x {image.height} px are more than {MAX_PIXELS / 1e6:.0f} megapixels: cut it into tiles"
        )
    return image


def _is_deep_color(image: Image.Image) -> bool:
    """Whether a file has 16 bits in each of several channels, which Pillow reads as 8."""
    tiles = [(tile[0], tile[-1]) for tile in getattr(image, "tile", [])]
    deep = any(";16" in str(options) or (codec == "ppm" and options[-1] > 255) for codec, options in tiles)
    return deep and len(image.getbands()) > 1


def _to_rgb(image: Image.Image, intensity: Intensity, name: str) -> npt.NDArray[np.uint8]:
    if image.mode in _DEEP_MODES or image.mode == "I":
        return np.repeat(_to_8_bit(np.asarray(image), image.mode, intensity, name)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _to_8_bit(values: npt.NDArray[np.generic], mode: str, intensity: Intensity, name: str) -> npt.NDArray[np.uint8]:
    pixels = values.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name}: the image holds values that are not finite: replace them")
    if intensity.policy == "window":
        low, high = float(intensity.low or 0), float(intensity.high or 0)
    elif intensity.policy == "percentile":
        low, high = (float(v) for v in np.percentile(pixels, [intensity.low or 0, intensity.high or 100]))
    elif mode == "I":
        raise ImageError(f"{name}: 32-bit integer pixels have no usual full range: {_REMEDY}")
    else:
        low, high = 0.0, _DEEP_MODES[mode]
        if pixels.min(initial=0) < low or pixels.max(initial=0) > high:
            raise ImageError(
                f"{name}: pixels range from {pixels.min():g} to {pixels.max():g}, expected 0 to {high:g}: {_REMEDY}"
            )
    return np.rint((np.clip(pixels, low, high) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
