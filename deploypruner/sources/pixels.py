"""Images as arrays: decoding, the evaluation crop, augmentation and normalisation. No torchvision."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.foreign import first_line

SMALL = 64  # up to here: pad, shift and flip; beyond: a random part, resized
_PADDING = 4
_RESIZE_FROM = 128
# Not the dozens of others whose readers are old and seldom looked at.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
# Pillow's own limit. Larger ones, which threads would hold several of, are decoded one by one.
_MOST_PIXELS, _MANY_PIXELS = 89_478_485, 1 << 24
_ONE_LARGE = threading.Lock()
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, OverflowError, MemoryError, LookupError, TypeError),
    *(
        struct.error,
        zlib.error,
        EOFError,
        AttributeError,
        AssertionError,
        ZeroDivisionError,
        Image.DecompressionBombError,
    ),
)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# EXIF orientations under which width and height change places.
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)

Box = tuple[float, float, float, float]  # left, top, width, height as fractions of the image


@cache
def _formats() -> tuple[str, ...]:
    """Those of our formats that this Pillow has; others, which it guesses from first bytes, stay shut."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from an image's header, turned as it is to be seen.

    Raises:
        InputError: The file is no image.
    """
    with _opened(path) as image:
        lying = image.getexif().get(_ORIENTATION) in _LYING
        return (image.width, image.height) if lying else (image.height, image.width)


def decode(path: Path, settings: DataSettings, *, box: Box | None = None) -> NDArray[np.uint8]:
    """Read one image and bring it to `settings.size`.

    It is turned upright as its EXIF orientation says. Palettes become colours, CMYK becomes RGB as Pillow does it,
    and alpha is left out: the colours stay as they are stored, as in torchvision. 16 bits are divided by 257 (in RGB,
    the upper 8 are taken, as Pillow does), floats are taken as 0 to 1; both are rounded to 8 bits.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF.
        settings: `size` must be set.
        box: Part of the image to resize to `size`; None = the evaluation crop.

    Returns:
        [C, H, W] uint8.

    Raises:
        InputError: The file cannot be decoded, has several frames, or numbers whose range nobody knows.
    """
    assert settings.size is not None, "decoding needs a size"
    with _opened(path) as opened, _ONE_LARGE if opened.width * opened.height > _MANY_PIXELS else nullcontext():
        _require_one_frame(path, opened)
        upright = ImageOps.exif_transpose(opened)
        image = _eight_bits(path, upright).convert("L" if settings.channels == 1 else "RGB")
        resized = _evaluation_crop(image, settings) if box is None else _part(image, box, settings)
    return np.ascontiguousarray(np.atleast_3d(np.asarray(resized)).transpose(2, 0, 1))


def _require_one_frame(path: Path, image: Image.Image) -> None:
    """Refuse stacks and animations; the second picture of an MPO is a preview or the other eye's."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(
            f"image '{path}' has {frames} frames, and one is needed", hint="save each as a file of its own"
        )


def _eight_bits(path: Path, image: Image.Image) -> Image.Image:
    """An image whose numbers are 8 bits wide; Pillow's own conversion would clip wider ones at 255.

    Raises:
        InputError: Floats outside of 0 to 1, or integers beyond 16 bits.
    """
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    most = 1 if image.mode == "F" else 65535
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= most):
        kind = "floats" if image.mode == "F" else "integers"
        raise InputError(
            f"image '{path}' holds {kind} from {low:g} to {high:g}, and 0 to {most} is what is known of such images",
            hint="scale it, or give the data as .npz, whose floats are used as they are",
        )
    return Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header was read; what is wrong with it and with the rest of it is an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decided below
            opened = Image.open(path, formats=_formats())
        with opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} are more than {_MOST_PIXELS} pixels")
            yield opened
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise InputError(
            f"image '{path}' cannot be read: it is none of {kinds}, or damaged", hint="replace or delete the file"
        ) from error
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (images / 255 - mean) / std.

    Args:
        images: [B, C, H, W], values 0 to 255.
        mean: C values.
        std: C values.

    Returns:
        [B, C, H, W] float32.
    """
    center = torch.tensor(mean).view(-1, 1, 1)
    return images.to(torch.float32).div_(255).sub_(center).div_(torch.tensor(std).view(-1, 1, 1))


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop and flip each image of a batch at random.

    Args:
        images: [B, C, H, W] uint8. Sides up to 64: shifted by up to 4 pixels with black edges; larger:
            a random part of 25 to 100 % of the area, resized.
        generator: The only source of randomness.

    Returns:
        [B, C, H, W]: uint8 for small images, float32 (0 to 255) for larger ones.
    """
    height, width = images.shape[-2:]
    if max(height, width) <= SMALL:
        return flipped(_shifted(images, generator), generator)
    boxes = random_boxes(images.shape[0], height / width, generator)
    left, top, wide, high = boxes.unbind(1)
    zero = torch.zeros_like(left)
    # Output coordinates in [-1, 1] -> input coordinates of the box.
    theta = torch.stack([wide, zero, 2 * left + wide - 1, zero, high, 2 * top + high - 1], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    parts = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return flipped(parts, generator)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [B, C, H, W] left to right with probability 1/2."""
    mirror = torch.rand(images.shape[0], generator=generator) < 0.5
    return torch.where(mirror.view(-1, 1, 1, 1), images.flip(-1), images)


def random_boxes(count: int, aspect: float, generator: torch.Generator) -> Tensor:
    """Draw parts of an image: 25 to 100 % of its area, sides in a ratio of 3:4 to 4:3.

    Args:
        count: B.
        aspect: Height / width of the image.
        generator: Source of randomness.

    Returns:
        [B, 4] float32: left, top, width, height as fractions, inside [0, 1].
    """
    area, ratio, across, down = torch.rand(4, count, generator=generator)
    area = 0.25 + 0.75 * area
    ratio = torch.exp((2 * ratio - 1) * torch.log(torch.tensor(4 / 3))) * aspect
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    return torch.stack([across * (1 - width), down * (1 - height), width, height], dim=1)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by 4 pixels and cut the original size out at a random place, each image at its own."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (_PADDING,) * 4)
    down, across = torch.randint(0, 2 * _PADDING + 1, (2, count), generator=generator)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 9, 9, H, W], a view
    return windows[torch.arange(count), :, down, across]


def _evaluation_crop(image: Image.Image, settings: DataSettings) -> Image.Image:
    height, width = cast(tuple[int, int], settings.size)
    if image.size == (width, height):
        return image
    resample = _FILTERS[settings.interpolation]
    shorter = min(height, width)
    resize = settings.resize or (round(shorter * 256 / 224) if shorter >= _RESIZE_FROM else None)
    if resize is None:
        return image.resize((width, height), resample)
    margin = resize / shorter
    scale = max(height * margin / image.height, width * margin / image.width)
    # Truncated like torchvision's resize; 1e-6 keeps an exact product from falling one pixel short.
    wide, high = (max(1, int(side * scale + 1e-6)) for side in image.size)
    if wide * high > _MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is too narrow to be cropped to {width}x{height}")
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return image.resize((wide, high), resample).crop((left, top, left + width, top + height))


def _part(image: Image.Image, box: Box, settings: DataSettings) -> Image.Image:
    height, width = cast(tuple[int, int], settings.size)
    left, top, wide, high = box
    edges = (
        left * image.width,
        top * image.height,
        min(1.0, left + wide) * image.width,
        min(1.0, top + high) * image.height,
    )
    return image.resize((width, height), _FILTERS[settings.interpolation], box=edges)


def _unreadable(path: Path, error: BaseException) -> InputError:
    return InputError(
        f"image '{path}' cannot be read: {first_line(error)}", hint="replace or delete the file; it may be truncated"
    )
