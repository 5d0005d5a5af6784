"""Exported files against the torch module they came from, in every runtime, on the same inputs.

fp32 forms must agree up to rounding. int8 forms cannot equal fp32, so two checks that can fail stand in:
the QDQ graph executed literally stays near fp32, and each runtime stays near the literal execution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from deploypruner.errors import InputError
from deploypruner.export.program import evaluating, quiet
from deploypruner.graph.inputs import Inputs, call, filled, tensors
from deploypruner.graph.open_axes import OpenAxis, at_other_lengths, at_text
from deploypruner.onnx_file import onnx_fault
from deploypruner.pt2 import read_program
from deploypruner.records import Check
from deploypruner.runtime import opens, runtimes
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.sparse.custom_ops import uses_sparse_operations
from deploypruner.verify.compare import compare_outputs, compare_relative, flatten_outputs, relative_error

Array = NDArray[Any]
Feeds = Sequence[Array]

# Largest difference of fp32 forms, as a fraction of the largest output. Seen: 7e-7 on a trained ResNet-56, 2e-6
# on DeiT and MobileNetV3, 2e-5 on ResNet-50 with random weights; one weight tensor off by 0.1 % shows as 1e-3.
FP32_TOLERANCE = 1e-4
# Relative L2 error of the literal QDQ graph against fp32 that still counts as quantization. Seen: 0.04 to 0.07 on
# trained ResNet-20 and -56 (accuracy kept), 0.1 to 0.5 on random weights, which amplify rounding; zeros score 1.
# It catches garbage, no more: accuracy and agreement are measured elsewhere.
INT8_BOUND = 0.8
# A runtime rounds at other places than the literal graph (fused additions keep 32 bits), so both differ from
# fp32 by about the same error, independently: their difference is up to sqrt(2) times that, and the rest is
# slack. Seen: 0.5 to 1.0 times on sound nets, 4.5 times where OpenVINO concatenated at the wrong scale.
INT8_RUNTIME_FACTOR = 2.0
# Nets that quantize almost without error still flip last bits: 2 steps of a u8 range.
INT8_RUNTIME_FLOOR = 2 / 255


def verify_exports(
    module: torch.nn.Module,
    files: Mapping[str, Path],
    feeds: Sequence[Feeds],
    *,
    dynamic_batch: bool = True,
    threads: int = 1,
    example_inputs: Inputs | None = None,
    open_axes: Sequence[OpenAxis] = (),
) -> list[Check]:
    """Compare `module` with each exported file in every runtime that opens it.

    - fp32 .onnx: each runtime against torch; .pt2: reloaded, against torch.
    - int8 .onnx (recognised by its QDQ nodes): literal execution against torch, each runtime against literal.
    - .onnx with sparse operations: OpenVINO against the literal execution of the int8 .onnx among `files`.
    - every .onnx: onnx's checker, by which nodes stand in topological order and shapes and types fit together.
    - .xml: against the .onnx of the same stem in OpenVINO if `files` has it, else as an .onnx would be.

    Args:
        module: float32 module on the CPU; compared in evaluation mode, itself unchanged.
        files: Name shown to the user -> file.
        feeds: Real inputs; each one array per input, samples on axis 0.
        dynamic_batch: Also run batches of 1 and of 3, made from the first feeds.
        threads: Threads per runtime.
        example_inputs: How torch is given the arrays: by keyword where this is a dict; None = by position.
        open_axes: Axes of which the files leave the length open: also run them at another one, but for the file with
            sparse operations, which are for one size.

    Raises:
        InputError: No feeds, or a runtime that cannot load a file.
    """
    if not feeds:
        raise InputError("verification has no inputs", hint="pass at least one batch")
    batches = [*([_batch_of(feeds[0], 1), _batch_of(feeds[0], 3)] if dynamic_batch else []), *feeds]
    if open_axes:
        batches.append(_at_other_lengths(feeds[0], open_axes))
    subject = _Subject(
        files,
        batches,
        threads,
        want=_run_torch(evaluating(module), batches, example_inputs),
        other=at_text(open_axes),
    )
    checks = []
    for name, path in files.items():
        if path.suffix == ".onnx":
            checks.append(_valid(name, path))
        if path.suffix == ".pt2":
            checks.append(
                subject.same(
                    f"torch = {name} (torch)", _run_torch(_load_archive(path), batches, example_inputs), subject.want
                )
            )
        elif path.suffix == ".xml":
            checks.append(subject.ir(name, path))
        elif uses_sparse_operations(path):
            checks.append(subject.sparse(name, path))
        elif is_quantized(path):
            checks += subject.int8(name, path)
        else:
            checks += subject.fp32(name, path)
    return checks


def _valid(name: str, path: Path) -> Check:
    fault = onnx_fault(path)
    return Check(
        f"{name} is valid ONNX", float(bool(fault)), 0.0, not fault, fault or "faults that onnx's checker finds"
    )


def is_quantized(path: Path) -> bool:
    """Whether an ONNX file holds quantize/dequantize nodes."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return any(node.op_type == "DequantizeLinear" for node in nodes)


class _Subject:
    """The files of one model with the batches they are run on.

    Args:
        files: Name -> file.
        batches: Inputs.
        threads: Threads per runtime.
        want: torch's outputs, batch after batch.
        other: What is different in the last batch, "" where it is of the same size as the others.
    """

    def __init__(
        self, files: Mapping[str, Path], batches: Sequence[Feeds], threads: int, *, want: list[Array], other: str = ""
    ) -> None:
        self.want = want
        self._other = bool(other)
        self._files = files
        self._batches = batches
        self._threads = threads
        sizes = dict.fromkeys(str(len(feeds[0])) for feeds in batches)
        self._literals: dict[Path, list[Array]] = {}
        self._detail = f"batch {', '.join(sizes)}" + (f"; {other}" if other else "")

    def same(self, name: str, got: Sequence[Array], want: Sequence[Array]) -> Check:
        """Equal up to fp32 rounding; the tolerance is absolute, from the size of `want`."""
        largest = max((float(np.abs(w).max(initial=0.0)) for w in want), default=0.0)
        return compare_outputs(name, got, want, tolerance=FP32_TOLERANCE * largest, detail=self._detail)

    def fp32(self, name: str, path: Path) -> list[Check]:
        """Each runtime against torch."""
        return [
            self.same(f"torch = {name} ({runtimes.get(key).label})", self._run(key, path), self.want)
            for key in _runtimes_for(path)
        ]

    def int8(self, name: str, path: Path) -> list[Check]:
        """Literal execution against torch, then each runtime against literal execution."""
        literal = self._literal(path)
        detail = f"relative L2 error, {self._detail}"
        first = compare_relative(f"torch ~ {name} literal", literal, self.want, tolerance=INT8_BOUND, detail=detail)
        others = [
            compare_relative(
                f"{name} literal = {runtimes.get(key).label}",
                self._run(key, path),
                literal,
                tolerance=self._allowed(literal),
                detail=detail,
            )
            for key in _runtimes_for(path)
        ]
        return [first, *others]

    def sparse(self, name: str, path: Path) -> Check:
        """OpenVINO with our kernels against the literal int8 twin, within what `int8` allows."""
        twin = next(n for n, p in self._files.items() if p.name == path.name.replace(".sparse.", ".int8."))
        literal = self._literal(self._files[twin])
        batches = self._batches
        if self._other:
            batches = batches[:-1]
            literal = literal[: len(literal) // len(self._batches) * len(batches)]
        return compare_relative(
            f"{twin} literal = {name} (OpenVINO)",
            self._run("openvino", path, batches),
            literal,
            tolerance=self._allowed(literal),
            detail=f"relative L2 error, {self._detail}",
        )

    def _literal(self, path: Path) -> list[Array]:
        if path not in self._literals:
            session = OnnxRuntime().open(path, threads=self._threads, literal=True)
            self._literals[path] = [output for feeds in self._batches for output in session.run(feeds)]
        return self._literals[path]

    def _allowed(self, literal: Sequence[Array]) -> float:
        """Relative error of a runtime that rounds elsewhere than the literal graph does."""
        return min(max(INT8_RUNTIME_FLOOR, INT8_RUNTIME_FACTOR * _worst(literal, self.want)), INT8_BOUND)

    def ir(self, name: str, path: Path) -> Check:
        """The IR against its ONNX twin in the same runtime, or against torch where it has none."""
        label = runtimes.get("openvino").label
        got = self._run("openvino", path)
        for twin, twin_path in self._files.items():
            if twin_path.suffix == ".onnx" and twin_path.stem == path.stem:
                return self.same(f"{twin} = {name} ({label})", got, self._run("openvino", twin_path))
        return self.same(f"torch = {name} ({label})", got, self.want)

    def _run(self, key: str, path: Path, batches: Sequence[Feeds] | None = None) -> list[Array]:
        session = runtimes.get(key)().open(path, threads=self._threads)
        return [output for feeds in batches or self._batches for output in session.run(feeds)]


def _runtimes_for(path: Path) -> list[str]:
    return [key for key in runtimes if opens(runtimes.get(key), path)]


def _worst(got: Sequence[Array], want: Sequence[Array]) -> float:
    """Largest relative error over outputs; 0 where shapes differ, which the first check reports."""
    pairs = zip(got, want, strict=False)
    return max((relative_error(a, b) for a, b in pairs if a.shape == b.shape), default=0.0)


def _batch_of(feeds: Feeds, size: int) -> list[Array]:
    """Repeat or cut every array to `size` samples."""
    return [np.take(array, np.arange(size) % len(array), axis=0) for array in feeds]


def _at_other_lengths(feeds: Feeds, open_axes: Sequence[OpenAxis]) -> list[Array]:
    """The same values, cut or repeated from the first one on."""
    given = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in feeds)
    return [tensor.numpy() for tensor in tensors(at_other_lengths(given, open_axes))]


def _run_torch(module: torch.nn.Module, batches: Sequence[Feeds], example_inputs: Inputs | None) -> list[Array]:
    found: list[Array] = []
    with torch.no_grad():
        for feeds in batches:
            given = tuple(torch.from_numpy(array) for array in feeds)
            by_name = filled(example_inputs, given) if isinstance(example_inputs, dict) else given
            found += flatten_outputs(call(module, by_name))
    return found


def _load_archive(path: Path) -> torch.nn.Module:
    try:
        with quiet():
            return read_program(path).module()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"torch cannot load '{path}': {error}", hint="export the model again") from error
