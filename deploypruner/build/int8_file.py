"""Int8 alone, for those who do not prune: a model of any source, quantized, judged against itself and measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from deploypruner.build.answering import Runner
from deploypruner.build.doubted import doubted_count, doubted_file, doubted_labels, doubted_layers, doubted_samples
from deploypruner.build.folder import BuildFolder
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.given_file import (
    IN_BF16,
    JUDGED_IN,
    FileRequest,
    calibrated_form,
    file_judge,
    inputs_of,
    measured_files,
    quality_of,
    read_given,
)
from deploypruner.build.mixing import mix_document
from deploypruner.build.one_answer import require_one_answer
from deploypruner.build.sparsify_inputs import Inputs
from deploypruner.build.timed import no_bf16
from deploypruner.errors import InputError
from deploypruner.export import exporters
from deploypruner.graph import trace
from deploypruner.measure import environment, trial
from deploypruner.measure.profiling import can_profile
from deploypruner.onnx_file import every_node
from deploypruner.quantize.idle_layers import idle_layers
from deploypruner.quantize.sensitivity import class_outputs, first_samples
from deploypruner.quantize.static import QuantizationSummary, write_qdq
from deploypruner.quantize.to_float32 import float_name
from deploypruner.records import Artifact, Quality, Row
from deploypruner.report.repaired import repair_sentence, weights_sentence
from deploypruner.report.units import quality_sentence
from deploypruner.runtime import runtimes
from deploypruner.scratch import scratch
from deploypruner.search.choose import INT8_AGREEMENT_DROP, INT8_DROP
from deploypruner.search.mixes import MixRequest
from deploypruner.search.mixing import mix
from deploypruner.sources.data import peek_shapes
from deploypruner.sources.model import LoadedModel, load_model
from deploypruner.target import reduces_range

_FP32, _INT8, _DOCUMENT = "model.fp32.onnx", "model.int8.onnx", "quantize.json"
# Operators by which a file shows that it is int8, or some of it.
_INT8_KINDS = frozenset(("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"))
_NAMED = 3
_DROPS = (INT8_DROP, INT8_AGREEMENT_DROP)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Int8Request:
    """What `quantize` was asked for.

    Args:
        file: MODEL, which any source of a build may be, the data and how to measure.
        weights: As `--weights` gives them.
        input_shapes: As `--input-shape` gives them.
        trust_pickle: Permission for a pickled module to run its code.
        repair: Whether to repair what int8 costs.
    """

    file: FileRequest
    weights: Path | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    trust_pickle: bool = False
    repair: bool = True


@dataclass(frozen=True)
class Int8File:
    """Result of `int8_file`.

    Args:
        rows: The float model and the int8 one.
        summary: What became int8, and what the repair did.
        quality: Of the int8 form against the float one, as a report has it; empty where nothing is known.
        warnings: What casts doubt on the result.
    """

    rows: tuple[Row, ...]
    summary: QuantizationSummary
    quality: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What became of the quality; "" where nothing is known."""
        return quality_sentence(dict(self.quality)) if self.quality else ""

    @property
    def in_bf16(self) -> str:
        """What computing in bf16 what is float gives, and how it is asked for; "" where it was not timed."""
        known = {(row.name, row.runtime): row.median_ms for row in self.rows}
        gives = [
            f"{row.name} {known[row.name, JUDGED_IN] / row.median_ms:.2f}x"
            for row in self.rows
            if row.runtime == IN_BF16
        ]
        if not gives:
            return ""
        return f"with INFERENCE_PRECISION_HINT=bf16 instead of f32: {', '.join(gives)}"

    @property
    def refused(self) -> bool:
        """Does int8 lose more than is allowed?"""
        return bool(self.quality) and not self.quality["kept"]

    @property
    def weights(self) -> str:
        """How many bits the weights have, and where that matters."""
        return weights_sentence(self.summary.weight_bits)

    @property
    def repaired(self) -> str:
        """What the repair did; "" where it was left out."""
        return repair_sentence([asdict(step) for step in self.summary.repair])


def int8_file(request: Int8Request, *, say: Say) -> Int8File:
    """Write model.int8.onnx and quantize.json to the folder, and model.fp32.onnx where MODEL is no ONNX file.

    Args:
        request: What to do.
        say: Called with a line about what is done.

    Raises:
        InputError: The model cannot be read, is int8 already, or the data does not fit.
    """
    with scratch() as apart:
        given, loaded = request.file.model, None
        if given.suffix != ".onnx":
            say(f"exporting {given}")
            given, loaded = _exported(request, apart / _FP32)
        file = replace(request.file, model=given)
        model = read_given(given)
        _require_float(request.file.model, model)
        say(f"trying {request.file.model}")
        trial.check_runs(given, ("onnxruntime", "openvino"))
        folder = file.place("quantize", (_FP32, _INT8, _DOCUMENT))
        folder.prepare()
        try:
            folder.require_apart(request.file.model, file.data)
            inputs = inputs_of(file, None if loaded is None else loaded.preprocessing)
            doubts = (
                *_doubted(model, loaded, inputs),
                *doubted_layers(idle_layers(model, inputs.calibration)),
                *doubted_labels(inputs.tasks, file.drop, own=bool(file.metric)),
            )
            for text in doubts:
                say(f"warning: {text}")
            remarks = (*(() if loaded is None else loaded.remarks), *doubts)
            require_one_answer(given, inputs.judged, threads=file.threads)
            folder.clear()
            if given != request.file.model:
                with folder.writing(_FP32) as path:
                    shutil.copyfile(given, path)
                file = replace(file, model=folder.path(_FP32))
            say(f"quantizing {request.file.model}")
            names = f"dense {float_name(model)}", "dense int8"
            files = dict(zip(names, (file.model, folder.path(_INT8)), strict=True))
            form = _within_drop(request, model, files, folder=folder, inputs=inputs, say=say)
            summary, qualities, quality = form.summary, form.qualities, form.quality
            artifacts = [
                Artifact(names[0], files[names[0]], "onnx", "fp32", "dense"),
                Artifact(names[1], files[names[1]], "onnx", "int8", "dense"),
            ]
            say(f"measuring, batch {inputs.batch}, threads {file.threads}")
            in_bf16 = _in_bf16(file, files, form.judge)
            measured = measured_files(file, artifacts, qualities, inputs, root=folder.root, in_bf16=in_bf16)
            warnings = (
                *_slower(measured.rows, request.file.model),
                *remarks,
                *inputs.remarks,
                *form.judge.doubts,
                *filter(None, (folder.remark, no_bf16(file.allow_bf16, file.clock.machine.target))),
                *_about(summary),
                *measured.doubts,
            )
            document = {"quantization": asdict(summary), "quality": quality, "warnings": warnings}
            document |= form.precision
            folder.write_json(_DOCUMENT, {**document, "rows": [asdict(row) for row in measured.rows]})
            folder.write_manifest({"model": str(request.file.model), "versions": environment()["versions"]})
            folder.put_in_place()
            return Int8File(measured.rows, summary, quality, warnings)
        finally:
            folder.release()


@dataclass(frozen=True)
class _Form:
    """The int8 file, how good it is, and who judged that."""

    summary: QuantizationSummary
    qualities: Mapping[str, Quality]
    quality: dict[str, Any]
    precision: dict[str, Any]
    judge: FormJudge


def _in_bf16(request: FileRequest, files: Mapping[str, Path], judge: FormJudge) -> dict[str, Quality]:
    """How good the forms are with what is float in bf16; nothing where that is not allowed, or not possible."""
    if not request.allow_bf16 or runtimes.get(IN_BF16).lacking(request.clock.machine.target):
        return {}
    return {name: judge.quality(path, IN_BF16) for name, path in files.items()}


def _within_drop(
    request: Int8Request,
    model: onnx.ModelProto,
    files: Mapping[str, Path],
    *,
    folder: BuildFolder,
    inputs: Inputs,
    say: Say,
) -> _Form:
    """Write the int8 file; in float stay layers that lose too much, and those that int8 slows down."""
    (given_name, given), (int8_name, int8) = files.items()
    file, reduce_range = (
        replace(request.file, model=given),
        reduces_range(request.file.weight_bits, request.file.clock.machine.target),
    )
    judge = file_judge(file, inputs, given)
    for text in judge.doubts:
        say(f"warning: {text}")

    def form(summary: QuantizationSummary, precision: dict[str, Any]) -> _Form:
        qualities = {given_name: judge.reference, int8_name: judge.quality(int8, JUDGED_IN)}
        return _Form(summary, qualities, quality_of(qualities, file, drops=_DROPS), precision, judge)

    with scratch() as apart:
        fp32, calibrated = calibrated_form(
            model,
            apart,
            inputs.calibration,
            placement="openvino",
            repair=request.repair,
            reduce_range=reduce_range,
            progress=file.progress,
        )
        with folder.writing(_INT8) as path:
            summary = write_qdq(calibrated, path, reduce_range=reduce_range)
        everywhere = form(summary, {}).quality
        if everywhere and not everywhere["kept"]:
            say(quality_sentence(everywhere))
        found = mix(
            MixRequest(
                *(fp32, int8, calibrated, apart),
                timed=(JUDGED_IN,) if can_profile(JUDGED_IN) else (),
                judged=JUDGED_IN,
                lost=judge.lost if everywhere else None,
                allowed=everywhere["allowed"] if everywhere else None,
                classes=class_outputs(inputs.tasks or ()),
                samples=first_samples(inputs.calibration),
                reduce_range=reduce_range,
                feeds=inputs.timed,
                threads=file.threads,
                seed=file.seed,
                clock=file.clock,
                progress=file.progress,
                say=say,
            )
        )
        if kept := found.shared.keep_float:
            with folder.writing(_INT8) as path:
                summary = write_qdq(calibrated, path, reduce_range=reduce_range, keep_float=kept)
        return form(summary, {"precision": mix_document(found, calibrated.layers, summary, {}, int8=int8)})


def _doubted(model: onnx.ModelProto, loaded: LoadedModel | None, inputs: Inputs) -> tuple[str, ...]:
    """Whether the samples are like those of the training, as far as the model's first batch norm can tell."""
    if loaded is None:
        return doubted_file(model, inputs.calibration[0])
    runner = Runner(loaded.module, loaded.example_inputs)
    return doubted_samples(runner, [torch.from_numpy(array) for array in inputs.calibration[0]])


def _exported(request: Int8Request, path: Path) -> tuple[Path, LoadedModel]:
    """MODEL as an ONNX file, and as it was loaded."""
    loaded = load_model(
        str(request.file.model),
        weights=request.weights,
        input_shapes=request.input_shapes or None,
        trust_pickle=request.trust_pickle,
        data_shapes=peek_shapes(request.file.data) if request.file.data and not request.input_shapes else {},
    )
    graph = trace(loaded.module, loaded.example_inputs)
    exporters.get("onnx")().write(graph.module, graph.example_inputs, path, dynamic_batch=graph.dynamic_batch)
    return path, loaded


def _require_float(path: Path, model: onnx.ModelProto) -> None:
    kinds = sorted({node.op_type for node in every_node(model)} & _INT8_KINDS)
    if kinds:
        raise InputError(
            f"'{path}' is int8 already: it has {' and '.join(kinds)}",
            hint="give the float model that it was made from; `deploypruner bench` times an int8 one",
        )


def _slower(rows: Sequence[Row], given: Path) -> tuple[str, ...]:
    """That int8 does not pay here, where it does not."""
    slower = [row for row in rows[1:] if row.verdict == "slower" and row.runtime == JUDGED_IN]
    return tuple(f"int8 is slower than {given} here ({row.ratio:.2f}x): deploy that as it is" for row in slower)


def _about(summary: QuantizationSummary) -> tuple[str, ...]:
    """What the user should know about the quantization."""
    found = [*doubted_count(summary.samples)]
    if summary.left_float:
        names = [f"'{name}' ({why})" for name, why in list(summary.left_float.items())[:_NAMED]]
        more = len(summary.left_float) - len(names)
        found.append(f"left in float: {', '.join(names)}{f' and {more} more' if more > 0 else ''}")
    return tuple(found)
