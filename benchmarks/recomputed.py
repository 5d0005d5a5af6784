"""Every number of a build's report.json that its files can answer for, computed again from those files.

Written from the definitions in docs/guide.md, with numpy, ONNX Runtime and OpenVINO; nothing of the package is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]

_LABELLED = {"classification", "binary", "segmentation", "regression"}
# Of a reported number: answers in batches of another size round otherwise, and such a pixel can be of another class.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6


@dataclass(frozen=True)
class Found:
    """One number.

    Args:
        where: "pruned int8 on onnxruntime, output: accuracy".
        reported: In report.json.
        again: Computed here.
        share: Largest relative difference that is rounding.
    """

    where: str
    reported: float
    again: float
    share: float = _RELATIVE

    @property
    def same(self) -> bool:
        """Is the difference rounding?"""
        return abs(self.reported - self.again) <= self.share * abs(self.again) + _ABSOLUTE


def labels_of(labels: Any) -> list[Array | None]:
    """Labels of each output as arrays; those that are no tensors judge nothing."""
    parts = labels if isinstance(labels, tuple) else (labels,)
    return [part.numpy() if isinstance(part, torch.Tensor) else None for part in parts]


def recompute(folder: Path, report: dict[str, Any], x: Array, labels: list[Array | None]) -> list[Found]:
    """Compute again what the report says.

    Args:
        folder: Of the build.
        report: Its report.json.
        x: Validation inputs `[N, ...]`.
        labels: Of each output, None for none.
    """
    timings = {(t["artifact"]["name"], t["runtime"]): t for t in _timings(folder)}
    reference = answers(_path(folder, timings["dense fp32", "onnxruntime"]), "onnxruntime", x)
    found: list[Found] = []
    for row in report["rows"]:
        timing = timings[row["name"], row["runtime"]]
        path, where = _path(folder, timing), f"{row['name']} on {row['runtime']}"
        found += _times(row, timing, timings["dense fp32", row["runtime"]], where)
        size = path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)
        found.append(Found(f"{where}: bytes", row["bytes"], size, 0))
        if path.suffix == ".onnx" and row["precision"] == "fp32":
            found.append(Found(f"{where}: macs", row["macs"], macs_of(path), 0))
        found += _quality(row, answers(path, row["runtime"], x), reference, labels, where=where)
    return found + list(_checks(report))


def answers(path: Path, runtime: str, x: Array) -> list[Array]:
    """Every output of a file on all samples, in batches of 50."""
    parts = np.array_split(x, max(1, len(x) // 50))
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: part}) for part in parts]
    else:
        # Float layers of int8 files, too: processors with bf16 would compute those in it.
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = [list(compiled(part).values()) for part in parts]
    return [np.concatenate(outputs).astype(np.float64) for outputs in zip(*found, strict=True)]


def macs_of(path: Path) -> int:
    """Multiply-adds of convolutions and matrix products for one sample, from the shapes in an ONNX file."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    weights = {w.name: numpy_helper.to_array(w).shape for w in model.graph.initializer}
    places = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:]
        for v in (*model.graph.value_info, *model.graph.output)
    }
    total = 0
    for node in model.graph.node:
        shape = next((weights[name] for name in node.input[1:2] if name in weights), None)
        if shape is None:
            continue
        if node.op_type == "Conv":
            total += int(np.prod(shape)) * int(np.prod(places[node.output[0]][1:]))
        elif node.op_type in ("Gemm", "MatMul"):
            total += int(np.prod(shape)) * int(np.prod(places[node.output[0]][:-1]))
    return total


def _times(row: dict[str, Any], timing: dict[str, Any], dense: dict[str, Any], where: str) -> Iterator[Found]:
    ours, theirs = (np.asarray(t["samples_ns"], dtype=np.float64) for t in (timing, dense))
    yield Found(f"{where}: samples", row["samples"], ours.size, 0)
    yield Found(f"{where}: median_ms", row["median_ms"], float(np.median(ours)) / 1e6)
    for name, q in (("p95_ms", 0.95), ("p99_ms", 0.99)):
        if row[name] is not None:
            yield Found(f"{where}: {name}", row[name], float(np.quantile(ours, q)) / 1e6)
    if row["name"] != "dense fp32":
        rounds = np.median(theirs, axis=1) / np.median(ours, axis=1)
        yield Found(f"{where}: ratio", row["ratio"], float(np.median(rounds)))


def _quality(
    row: dict[str, Any], outputs: list[Array], reference: list[Array], labels: list[Array | None], *, where: str
) -> list[Found]:
    found = []
    for number, output in enumerate(row["outputs"]):
        at = f"{where}, {output['output']}"
        agreement, details = agreement_of(output["task"], outputs[number], reference[number])
        found.append(Found(f"{at}: agreement", output["agreement"], agreement))
        found += [Found(f"{at}: {name}", output["details"][name], value) for name, value in details.items()]
        wanted = labels[number] if number < len(labels) else None
        if wanted is not None and output["task"] in _LABELLED:
            scores = scores_of(output["task"], outputs[number], wanted)
            found.append(Found(f"{at}: accuracy", output["accuracy"], next(iter(scores.values()))))
            found += [Found(f"{at}: {name}", output["scores"][name], value) for name, value in scores.items()]
    least = min(output["agreement"] for output in row["outputs"])
    found.append(Found(f"{where}: agreement", row["agreement"], least, 0))
    scored = [output["accuracy"] for output in row["outputs"] if output["accuracy"] is not None]
    if scored:
        found.append(Found(f"{where}: accuracy", row["accuracy"], scored[0], 0))
    return found


def _relative_error(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(a - b).sum() / np.square(b - b.mean(axis=0)).sum()))


def _ious(said: Array, wanted: Array, classes: int) -> list[float]:
    unions = [(np.sum((said == k) | (wanted == k)), np.sum((said == k) & (wanted == k))) for k in range(classes)]
    return [both / either for either, both in unions if either]


def agreement_of(task: str, a: Array, b: Array) -> tuple[float, dict[str, float]]:
    """Agreement of answers `a` with the dense ones `b`, and the details beside it, as docs/guide.md says."""
    details = {"relative error": _relative_error(a, b)}
    if task == "classification":
        return float(np.mean(a.argmax(1) == b.argmax(1))), details
    if task == "binary":
        return float(np.mean((a > 0) == (b > 0))), details
    if task == "segmentation":
        said, wanted = a.argmax(1), b.argmax(1)
        details["same class"] = float(np.mean(said == wanted))
        return float(np.mean(_ious(said, wanted, a.shape[1]))), details
    if task == "embedding":
        cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        details |= {"cosine sd": float(cosine.std()), "cosine min": float(cosine.min())}
        details["cosine p5"] = float(np.percentile(cosine, 5))
        return float(cosine.mean()), details
    return 1 - details["relative error"], details


def scores_of(task: str, a: Array, labels: Array) -> dict[str, float]:
    """Metrics of answers on labels, the one that counts first."""
    if task == "classification":
        return {"accuracy": 100 * float(np.mean(a.argmax(1) == labels))}
    if task == "binary":
        return {"accuracy": 100 * float(np.mean((a.ravel() > 0) == (labels.ravel() == 1)))}
    if task == "segmentation":
        counted = (labels >= 0) & (labels != 255)
        said, wanted = a.argmax(1)[counted], labels[counted]
        ious = _ious(said, wanted, a.shape[1])
        return {"mIoU": 100 * float(np.mean(ious)), "pixel accuracy": 100 * float(np.mean(said == wanted))}
    error = np.square(a - labels).sum() / np.square(labels - labels.mean(axis=0)).sum()
    mae = float(np.abs(a - labels).mean())
    return {"R2": 1 - float(error), "MAE": mae, "relative error": float(np.sqrt(error))}


def _checks(report: dict[str, Any]) -> Iterator[Found]:
    """What the report says about itself."""
    for check in report["verification"]:
        yield Found(f"{check['name']}: passed", check["passed"], check["max_abs_diff"] <= check["tolerance"], 0)
    budget = report["budget"]
    rows = {row["name"]: row for row in report["rows"]}
    left = rows["pruned fp32"]["macs"] / rows["dense fp32"]["macs"]
    yield Found("budget: certified", budget["certified"], left)
    if "quality" in budget:
        lost = budget["quality"].get("lost")
        row = next(r for r in report["rows"] if (r["name"], r["runtime"]) == _judged(budget["quality"]))
        yield Found("budget: lost points", lost, _lost(row, report["rows"]))


def _judged(quality: dict[str, Any]) -> tuple[str, str]:
    return quality["artifact"], quality["runtime"]


def _lost(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """Points lost by the output that loses most: of its metric, or of agreement where it has no labels."""
    dense = next(r for r in rows if r["name"] == "dense fp32" and r["runtime"] == row["runtime"])
    lost = []
    for ours, theirs in zip(row["outputs"], dense["outputs"], strict=True):
        if ours["accuracy"] is None:
            lost.append(100 * (1 - ours["agreement"]))
        else:
            lost.append((theirs["accuracy"] - ours["accuracy"]) * (ours["metric"]["points"] or 1))
    return max(lost)


def _timings(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "measurements").glob("*.json"))]


def _path(folder: Path, timing: dict[str, Any]) -> Path:
    path = Path(timing["artifact"]["path"])
    return path if path.is_absolute() and path.exists() else folder / path
