"""Raw timings on disk, and what can be told about an artifact from its file alone."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from deploypruner.errors import InputError
from deploypruner.reading import check_present, open_archive, read_json, status
from deploypruner.records import Artifact, Cost, Precision, Timing
from deploypruner.runtime import runtimes
from deploypruner.sparse.library import EXTENSION, beside_extension

_INT8_OPS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QLinearAdd",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QAttention",
    "MatMulNBits",
    "GatherBlockQuantized",
)
# In protobuf: field 1, a string of 8 characters, the key of what follows.
_EXTERNAL_KEY = b"\x0a\x08location"
# Weights of larger files are not looked through.
_LARGEST_SEARCHED = 1 << 29
_PT2_INT8 = b"quantized_decomposed"
# In protobuf the operator of an ONNX node is field 4, a string: this tag byte, its length, its characters.
_OP_TYPE_TAG = 0x22


def describe_file(path: Path) -> Artifact:
    """Return an artifact for a file of unknown origin, named after it; pattern "unknown", no cost.

    Raises:
        InputError: No such file, no regular one, or one of a kind that no runtime opens.
    """
    opened = sorted({suffix for name in runtimes for suffix in runtimes.get(name).suffixes})
    if path.suffix not in opened:
        raise InputError(f"'{path}' cannot be measured", hint=f"give {', '.join(opened[:-1])} or {opened[-1]} files")
    check_present(path, what="model", hint="check the path, or build the artifact first", native=True)
    check_external(path)
    return Artifact(
        name=path.name,
        path=path,
        format="openvino" if path.suffix == ".xml" else path.suffix.removeprefix("."),
        precision=detect_precision(path),
        pattern="unknown",
    )


def detect_precision(path: Path) -> Precision:
    """int8 where an .onnx or .pt2 file quantizes, or an .xml has FakeQuantize or 8-bit constants; else fp32.

    Half precision counts as fp32: that is what OpenVINO and ONNX Runtime compute it in on a processor.

    Raises:
        InputError: The .xml is damaged.
    """
    tells = {".onnx": _onnx_is_int8, ".xml": _ir_is_int8, ".pt2": _program_is_int8}
    return "int8" if path.suffix in tells and tells[path.suffix](path) else "fp32"


def external_files(path: Path) -> list[Path]:
    """Files beside an .onnx file that hold its weights; none for any other file, or a damaged one."""
    if path.suffix != ".onnx" or not _holds(path, [_EXTERNAL_KEY]):
        return []
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        return []
    named = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(named)]


def needed_beside(path: Path) -> list[Path]:
    """Files in the folder of an artifact, or below it, without which it cannot be loaded."""
    if path.name == EXTENSION:
        return list(beside_extension(path))
    weights = path.with_suffix(".bin")
    return [weights] if path.suffix == ".xml" and weights.is_file() else external_files(path)


def denormal_weights(path: Path) -> int:
    """How many float32 weights of an .onnx file are denormal: not zero and below 1.2e-38. 0 for any other file."""
    if path.suffix != ".onnx" or path.stat().st_size > _LARGEST_SEARCHED:
        return 0
    import onnx
    from google.protobuf.message import DecodeError

    try:
        stored = onnx.load(path).graph.initializer
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError):
        return 0  # whoever opens it says what is wrong
    arrays = [onnx.numpy_helper.to_array(t) for t in stored if t.data_type == onnx.TensorProto.FLOAT]
    smallest = np.finfo(np.float32).tiny
    return sum(int(((array != 0) & (np.abs(array) < smallest)).sum()) for array in arrays)


def check_external(path: Path) -> None:
    """Check that an .onnx file names weights beside it only, and nothing that a runtime would wait for for ever.

    Raises:
        InputError: It names a file outside of its folder, a pipe or a device; what is missing the runtime says.
    """
    for file in external_files(path):
        # By the name, not by where links lead: who keeps weights elsewhere has linked them himself.
        if os.path.relpath(file, path.parent).split(os.sep)[0] == os.pardir:
            raise InputError(
                f"'{path}' names weights outside of its folder: {file}", hint="keep the weights of a model beside it"
            )
        if status(file, what="weights") is not None:
            check_present(file, what="weights", native=True)


def write_timing(timing: Timing, path: Path) -> None:
    """Write raw samples and what they were taken with as JSON. Not atomic: the caller renames."""
    record = asdict(timing) | {"samples_ns": timing.samples_ns.tolist()}
    record["artifact"]["path"] = str(timing.artifact.path)
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def read_timing(path: Path) -> Timing:
    """Read what `write_timing` wrote.

    Raises:
        InputError: The file is missing, damaged or holds something else.
    """
    try:
        record: dict[str, Any] = read_json(path, what="timing", hint="measure the artifact again")
        artifact = record["artifact"]
        cost = Cost(**artifact["cost"]) if artifact["cost"] else None
        named = tuple((str(name), str(value)) for name, value in artifact.pop("environment", ()))
        origin = Artifact(**artifact | {"path": Path(artifact["path"]), "cost": cost, "environment": named})
        samples = np.array(record["samples_ns"], dtype=np.int64)
        return Timing(**record | {"artifact": origin, "samples_ns": samples})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' does not hold a timing: {error}", hint="measure the artifact again") from None


def _onnx_is_int8(path: Path) -> bool:
    return _holds(path, [bytes([_OP_TYPE_TAG, len(op)]) + op.encode() for op in _INT8_OPS])


def _holds(path: Path, needles: Sequence[bytes]) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(needle) >= 0 for needle in needles)


def _program_is_int8(path: Path) -> bool:
    """Look into the graph of a torch.export archive; one that is damaged is left to torch to complain about."""
    try:
        with open_archive(path, what="model") as archive:
            graphs = [name for name in archive.namelist() if name.endswith(".json")]
            return any(_PT2_INT8 in archive.read(name) for name in graphs)
    except InputError:
        return False


def _ir_is_int8(path: Path) -> bool:
    try:
        layers = ET.parse(path).getroot().iter("layer")
    except (ET.ParseError, ValueError, LookupError) as error:  # also of encodings
        raise InputError(f"'{path}' is not a readable OpenVINO IR: {error}", hint="export it again") from None
    return any(_layer_is_int8(layer) for layer in layers)


def _layer_is_int8(layer: ET.Element) -> bool:
    if layer.get("type") == "FakeQuantize":
        return True
    data = layer.find("data")
    return layer.get("type") == "Const" and data is not None and data.get("element_type") in ("i8", "u8")
