"""Int8 or float, layer by layer: in a sentence, and as a table with what was measured of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploypruner.report import units
from deploypruner.search.gaps import points_of

_LABELS = {"openvino": "OpenVINO", "openvino-bf16": "OpenVINO in bf16", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class PrecisionLine:
    """One layer as text.

    Args:
        name: Of the layer in the ONNX file.
        error: At the outputs when it alone is int8; "-" where nobody looked.
        times: For each runtime, "float ms / int8 ms".
        precision: In the shared file.
        own: For each runtime with a file of its own, the precision there.
        reason: Why it is float, "" where it is int8.
    """

    name: str
    error: str
    times: tuple[str, ...]
    precision: str
    own: tuple[str, ...]
    reason: str


def precision_sentence(found: dict[str, Any]) -> str:
    """What was chosen for each file, and what it costs; "" where a build says nothing of it.

    Args:
        found: The report's `precision` section.
    """
    if not found:
        return ""
    parts = [_file(file) for file in found["files"]]
    judged = found.get("accuracy")
    return "; ".join([*parts, *([_judged(judged)] if judged else [])])


def precision_runtimes(found: dict[str, Any]) -> list[str]:
    """Runtimes whose times the table has, as people call them."""
    return [_label(name) for name in _timed(found)]


def precision_own(found: dict[str, Any]) -> list[str]:
    """Runtimes with a file of their own, as people call them."""
    return [_label(file["runtime"]) for file in _own(found)]


def precision_lines(found: dict[str, Any]) -> list[PrecisionLine]:
    """Every layer, in the order of the model; those that can never be int8 last."""
    return [
        PrecisionLine(
            layer["name"],
            "-" if layer["error"] is None else f"{layer['error']:.1e}",
            tuple(_times(layer["times"].get(runtime)) for runtime in _timed(found)),
            layer["precision"],
            tuple("float" if layer["name"] in file["left_float"] else "int8" for file in _own(found)),
            layer["reason"]
            or next(filter(None, (file["left_float"].get(layer["name"]) for file in _own(found))), ""),
        )
        for layer in found.get("layers", ())
    ]


def _file(file: dict[str, Any]) -> str:
    total = file["int8"] + file["float"]
    said = [f"{file['file']}: {file['int8']} of {total} layers int8, {file['why']}"]
    for runtime, layers in file["float_all_the_same"].items():
        said.append(f"{_label(runtime)} computes {len(layers)} of these in float ({next(iter(layers.values()))})")
    return ", ".join(said)


def _judged(judged: dict[str, Any]) -> str:
    points = points_of(judged["kind"], labelled=judged["labelled"])
    if judged["needed"] is not None:
        return f"no mix loses at most {judged['allowed']:.3g} {points}: {_points(judged['needed'])} are needed"
    if judged["trials"]:
        return (
            f"int8 everywhere would lose {_points(judged['int8'])} {points}, this loses "
            f"{_points(judged['mixed'])} where {judged['allowed']:.3g} are allowed"
        )
    return f"int8 everywhere loses {_points(judged['int8'])} {points}, {judged['allowed']:.3g} are allowed"


def _points(value: float | None) -> str:
    if value is None:
        return "more than can be counted"
    return units.points(max(value, 0.0))


def _own(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [file for file in found.get("files", ()) if file["runtime"]]


def _timed(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(runtime for layer in found.get("layers", ()) for runtime in layer["times"]))


def _times(times: dict[str, Any] | None) -> str:
    known = [None] * 2 if times is None else [times["float_ms"], times["int8_ms"]]
    return " / ".join("-" if value is None else units.significant(value) for value in known)


def _label(name: str) -> str:
    return _LABELS.get(name, name)
