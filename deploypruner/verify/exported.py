"""Exported files against the torch module they came from, in every runtime, on the same inputs.

fp32 forms must agree up to rounding. int8 forms cannot equal fp32, so two checks that can fail stand in:
the QDQ graph executed literally stays near fp32, and each runtime stays near the literal execution.

"Every runtime" are those that will be measured; a file that none of them opens is run in the default ones that do.
A runtime that refuses a file, or fails on it, is a check that did not pass, with the runtime's own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from deploypruner.errors import InputError, said_by
from deploypruner.export.program import evaluating, quiet
from deploypruner.graph.inputs import Inputs, call, filled, tensors
from deploypruner.graph.open_axes import OpenAxis, at_other_lengths, at_text
from deploypruner.onnx_file import onnx_fault
from deploypruner.pt2 import read_program
from deploypruner.records import Check
from deploypruner.runtime import default_runtimes, opens, runtimes
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.sparse.custom_ops import uses_sparse_operations
from deploypruner.verify.compare import compare_outputs, compare_relative, flatten_outputs, relative_error

Array = NDArray[Any]
Feeds = Sequence[Array]
Outputs = Callable[[], Sequence[Array]]

# Largest difference of fp32 forms, as a fraction of the largest output. Seen: 7e-7 on a trained ResNet-56, 2e-6
# on DeiT and MobileNetV3, 2e-5 on ResNet-50 with random weights; one weight tensor off by 0.1 % shows as 1e-3.
FP32_TOLERANCE = 1e-4
# Relative L2 error of the literal QDQ graph against fp32 that still counts as quantization. Seen: 0.04 to 0.07 on
# trained ResNet-20 and -56 (accuracy kept), 0.1 to 0.5 on random weights, which amplify rounding; zeros score 1.
# It catches garbage, no more: accuracy and agreement are measured elsewhere.
INT8_BOUND = 0.8
# Relative L2 error of a file that is executed in bf16, whose numbers have 8 bits, against torch in float32. Seen:
# 0.001 to 0.016 on fourteen networks, trained and not.
BF16_BOUND = 0.1
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
    measured: Sequence[str] = (),
    threads: int = 1,
    example_inputs: Inputs | None = None,
    open_axes: Sequence[OpenAxis] = (),
) -> list[Check]:
    """Compare `module` with each exported file in every runtime that will be measured.

    - fp32 .onnx, and every other format: each runtime that opens it against torch, up to the rounding of float32, or
      of bf16 where the runtime computes in it; .pt2: reloaded, against torch.
    - int8 .onnx (recognised by its QDQ nodes): literal execution against torch, each runtime against literal.
    - .onnx with sparse operations: OpenVINO against the literal execution of the int8 .onnx among `files`.
    - every .onnx: onnx's checker, by which nodes stand in topological order and shapes and types fit together.
    - .xml: against the .onnx of the same stem in OpenVINO if `files` has it, else as an .onnx would be.

    Args:
        module: float32 module on the CPU; compared in evaluation mode, itself unchanged.
        files: Name shown to the user -> file.
        feeds: Real inputs; each one array per input, samples on axis 0.
        dynamic_batch: Also run batches of 1 and of 3, made from the first feeds.
        measured: Names of those runtimes; () = the default ones.
        threads: Threads per runtime.
        example_inputs: How torch is given the arrays: by keyword where this is a dict; None = by position.
        open_axes: Axes of which the files leave the length open: also run them at another one, but for the file with
            sparse operations, which are for one size.

    Raises:
        InputError: No feeds.
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
        measured=tuple(measured) or default_runtimes(),
        want=_run_torch(evaluating(module), batches, example_inputs),
        other=at_text(open_axes),
    )
    checks: list[Check] = []
    for name, path in files.items():
        if path.suffix == ".onnx":
            checks.append(_valid(name, path))
        if path.suffix == ".pt2":
            checks.append(subject.program(name, path, example_inputs))
        elif path.suffix == ".xml":
            checks += subject.ir(name, path)
        elif path.suffix != ".onnx":
            checks += subject.fp32(name, path)
        elif uses_sparse_operations(path):
            checks += subject.sparse(name, path)
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
        measured: Names of the runtimes that will be measured.
        want: torch's outputs, batch after batch.
        other: What is different in the last batch, "" where it is of the same size as the others.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        batches: Sequence[Feeds],
        threads: int,
        *,
        measured: Sequence[str],
        want: list[Array],
        other: str = "",
    ) -> None:
        self.want = want
        self._other = bool(other)
        self._files = files
        self._batches = batches
        self._threads = threads
        self._measured = measured
        sizes = dict.fromkeys(str(len(feeds[0])) for feeds in batches)
        self._literals: dict[Path, list[Array]] = {}
        self._detail = f"batch {', '.join(sizes)}" + (f"; {other}" if other else "")

    def program(self, name: str, path: Path, example_inputs: Inputs | None) -> Check:
        """The reloaded program against torch."""
        return self._same(f"torch = {name} (torch)", partial(_run_archive, path, self._batches, example_inputs))

    def fp32(self, name: str, path: Path) -> list[Check]:
        """Each runtime against torch."""
        return [self._as_exact(key, "torch", name, partial(self._run, key, path)) for key in self._runtimes_for(path)]

    def int8(self, name: str, path: Path) -> list[Check]:
        """Literal execution against torch, then each runtime against literal execution."""
        literal = partial(self._literal, path)
        return [
            self._near(f"torch ~ {name} literal", literal, lambda: self.want, INT8_BOUND),
            *(
                self._near(
                    *(f"{name} literal = {_label(key)}", partial(self._run, key, path), literal),
                    more=BF16_BOUND if runtimes.get(key).in_float32 else 0.0,
                )
                for key in self._runtimes_for(path)
            ),
        ]

    def sparse(self, name: str, path: Path) -> list[Check]:
        """Each runtime with our kernels against the literal int8 twin, within what `int8` allows."""
        twin = next(n for n, p in self._files.items() if p.name == path.name.replace(".sparse.", ".int8."))
        batches = self._batches[:-1] if self._other else self._batches

        def literal() -> list[Array]:
            whole = self._literal(self._files[twin])
            return whole[: len(whole) // len(self._batches) * len(batches)]

        return [
            self._near(f"{twin} literal = {name} ({_label(key)})", partial(self._run, key, path, batches), literal)
            for key in self._runtimes_for(path)
        ]

    def ir(self, name: str, path: Path) -> list[Check]:
        """The IR against its ONNX twin in the same runtime, or against torch where it has none."""
        twin = next((n for n, p in self._files.items() if p.suffix == ".onnx" and p.stem == path.stem), "")
        return [
            self._as_exact(
                *(key, twin or "torch", name, partial(self._run, key, path)),
                partial(self._run, key, self._files[twin]) if twin else None,
            )
            for key in self._runtimes_for(path)
        ]

    def _as_exact(self, key: str, other: str, name: str, got: Outputs, want: Outputs | None = None) -> Check:
        """Equal to another form up to the rounding of a runtime: that of float32, or that of bf16."""
        if runtimes.get(key).in_float32:
            return self._near(f"{other} ~ {name} ({_label(key)})", got, want or (lambda: self.want), BF16_BOUND)
        return self._same(f"{other} = {name} ({_label(key)})", got, want)

    def _same(self, name: str, got: Outputs, want: Outputs | None = None) -> Check:
        """Equal up to fp32 rounding to `want`, torch's where None; the tolerance is absolute, from its size."""

        def compared() -> Check:
            wanted = self.want if want is None else want()
            largest = max((float(np.abs(w).max(initial=0.0)) for w in wanted), default=0.0)
            return compare_outputs(name, got(), wanted, tolerance=FP32_TOLERANCE * largest, detail=self._detail)

        return _carried_out(name, compared)

    def _near(
        self, name: str, got: Outputs, want: Outputs, bound: float | None = None, *, more: float = 0.0
    ) -> Check:
        """Relative error within `bound`, that of a runtime that rounds elsewhere than `want` does where None.

        `more` is what that runtime's float operations may add.
        """

        def compared() -> Check:
            wanted = want()
            tolerance = min(self._allowed(wanted) + more, INT8_BOUND) if bound is None else bound
            detail = f"relative L2 error, {self._detail}"
            return compare_relative(name, got(), wanted, tolerance=tolerance, detail=detail)

        return _carried_out(name, compared)

    def _literal(self, path: Path) -> list[Array]:
        if path not in self._literals:
            session = OnnxRuntime().open(path, threads=self._threads, literal=True)
            self._literals[path] = [output for feeds in self._batches for output in session.run(feeds)]
        return self._literals[path]

    def _allowed(self, literal: Sequence[Array]) -> float:
        return min(max(INT8_RUNTIME_FLOOR, INT8_RUNTIME_FACTOR * _worst(literal, self.want)), INT8_BOUND)

    def _run(self, key: str, path: Path, batches: Sequence[Feeds] | None = None) -> list[Array]:
        session = runtimes.get(key)().open(path, threads=self._threads)
        return [output for feeds in batches or self._batches for output in session.run(feeds)]

    def _runtimes_for(self, path: Path) -> list[str]:
        """Those measured that open the file, else the default ones, else all there are: nothing is left unproved."""
        choices = (self._measured, default_runtimes(), tuple(runtimes))
        found = next((names for names in (_opening(path, choice) for choice in choices) if names), [])
        assert found, f"no runtime opens {path.suffix} files, so that nobody knows what '{path.name}' computes"
        return found


def _carried_out(name: str, compared: Callable[[], Check]) -> Check:
    """The comparison, or why a runtime could not do it."""
    try:
        return compared()
    except Exception as error:  # noqa: BLE001 - runtimes raise whatever they like; what follows is still compared
        return Check(name, math.nan, 0.0, passed=False, detail=said_by(error))


def _opening(path: Path, names: Sequence[str]) -> list[str]:
    return [key for key in names if opens(runtimes.get(key), path)]


def _label(key: str) -> str:
    return runtimes.get(key).label


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


def _run_archive(path: Path, batches: Sequence[Feeds], example_inputs: Inputs | None) -> list[Array]:
    with quiet():
        program = read_program(path).module()
    return _run_torch(program, batches, example_inputs)
