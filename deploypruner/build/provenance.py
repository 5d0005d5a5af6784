"""What the files of a build say of themselves: how inputs are prepared, the classes, the source, the version."""

from __future__ import annotations

import json
from typing import Any

from deploypruner import __version__
from deploypruner.build.state import Build
from deploypruner.recipe.data import DataSettings

# More class names than these are a file of their own for whoever needs them.
_MOST_CLASSES = 100_000


def metadata_of(build: Build) -> dict[str, str]:
    """Name -> text, as ONNX's metadata_props and the IR's rt_info hold it; structures as JSON."""
    found = {"version": __version__, "source": build.source or build.name, "weights_sha256": build.sha256}
    if (prepared := preprocessing_of(build)) is not None:
        found["preprocessing"] = json.dumps(prepared)
    if names := class_names(build):
        found["classes"] = json.dumps(names, ensure_ascii=False)
    return {name: text for name, text in found.items() if text}


def preprocessing_of(build: Build) -> dict[str, Any] | None:
    """How pixels become the first input, None where the data are no pixels or there are none."""
    images = None if build.data is None else build.data.images
    if images is None:
        return None
    mean, std = images.normalisation(images.channels)
    return {
        "colour": "RGB" if images.channels == 3 else "grayscale",
        "layout": "NCHW",
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
        "resize": _resize(images),
        "interpolation": images.interpolation,
    }


def class_names(build: Build) -> list[str]:
    """Names of the classes in the order of the first output, empty where nobody gave them."""
    names = () if build.data is None else build.data.classes or ()
    return list(names) if len(names) <= _MOST_CLASSES else []


def _resize(images: DataSettings) -> str:
    if images.size is None:
        return "none"
    high, wide = images.size
    return f"centre crop of {wide}x{high}" + (f" after {images.resize} on the shorter side" if images.resize else "")
