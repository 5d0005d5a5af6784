"""The file to ship once more, with the preprocessing inside: pixels go in."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploypruner.build.provenance import preprocessing_of
from deploypruner.build.state import Build
from deploypruner.export.embed import PIXELS, embed_preprocessing
from deploypruner.records import Check
from deploypruner.report import Report
from deploypruner.runtime import runtimes
from deploypruner.verify.compare import relative_error

EMBEDDED = "model.pixels.onnx"
# As of an int8 file in two runtimes: a pixel that is rounded otherwise in float may fall to the next integer.
_TOLERANCE = 2e-2
_IMAGES = 4


def embedded(build: Build, report: Report) -> tuple[dict[str, Any], tuple[Check, ...], tuple[str, ...]]:
    """Write it where it was asked for, and prove that it answers as the file it was made from.

    Args:
        build: Measured.
        report: With `deploy`.

    Returns:
        What report.json has under `deploy.pixels` (`file`, `input`, `load`), the check, and remarks; nothing where
        nobody asked. A file that answers otherwise is deleted.

    Raises:
        InputError: The model takes no images.
    """
    if not build.recipe.data.embed_preprocessing or not report.deploy:
        return {}, (), ()
    prepared = preprocessing_of(build)
    if prepared is None:
        return {}, (), ("--embed-preprocessing did nothing: the data are not images, so nobody knows what it is",)
    deploy = report.deploy
    name = deploy["file"].replace(".xml", ".onnx")
    runtime, threads = runtimes.get(deploy["runtime"])(), deploy["threads"]
    if not name.endswith(".onnx") or not build.folder.has(name):
        return {}, (), (f"--embed-preprocessing did nothing: {deploy['file']} is not made from an ONNX file",)
    with build.folder.writing(EMBEDDED) as path:
        embed_preprocessing(build.folder.path(name), path, mean=prepared["mean"], std=prepared["std"])
    mean, std = (np.array(prepared[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    plain = runtime.open(build.folder.path(name), threads=threads)
    inside = runtime.open(build.folder.path(EMBEDDED), threads=threads)
    sides = [size or 1 for size in inside.inputs[0].shape[1:]]
    count = inside.inputs[0].shape[0] or _IMAGES
    pixels = np.random.default_rng(build.recipe.seed).integers(0, 256, (count, *sides)).astype(np.uint8)
    floats = ((pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std).astype(np.float32)
    pairs = zip(inside.run([pixels]), plain.run([np.ascontiguousarray(floats)]), strict=True)
    apart = max(relative_error(ours, theirs) for ours, theirs in pairs)
    passed = bool(apart <= _TOLERANCE)
    if not passed:
        build.folder.discard(EMBEDDED)
        said = f"relative error {apart:.2g}, allowed {_TOLERANCE:g}"
        return {}, (), (f"--embed-preprocessing: {EMBEDDED} answers otherwise than {name} ({said}) and was deleted",)
    check = Check(f"{name} = {EMBEDDED}", float(apart), _TOLERANCE, passed, f"relative L2 error, {count} images")
    document = {
        "file": EMBEDDED,
        "input": {"name": PIXELS, "shape": ["N", *sides], "layout": "NHWC", "dtype": "uint8"},
        "load": list(runtime.usage(build.folder.path(EMBEDDED), [PIXELS], threads=threads)),
    }
    return document, (check,), ()
