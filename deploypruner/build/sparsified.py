"""A sparse model from an ONNX file of any origin: quantized where it is not, converted, proved, measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploypruner.build.fitting import Said
from deploypruner.build.folder import BuildFolder
from deploypruner.build.metric import own_metric
from deploypruner.build.one_answer import require_one_answer
from deploypruner.build.sparse_model import MODEL, make_sparse
from deploypruner.build.sparsify_inputs import Inputs, sparsify_inputs
from deploypruner.build.state import Feeds
from deploypruner.errors import InputError, VerificationError
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.measure import environment, evaluate, find_warnings, make_rows, outputs, trial
from deploypruner.measure.files import check_external
from deploypruner.measure.statistics import compare
from deploypruner.onnx_file import every_node, read_onnx, write_onnx
from deploypruner.progress import progress_for
from deploypruner.quantize.preparing import prepared
from deploypruner.quantize.static import quantize_static
from deploypruner.quantize.to_float32 import float_name
from deploypruner.reading import check_present
from deploypruner.recipe.data import DataSettings
from deploypruner.records import Artifact, Quality, Row
from deploypruner.report.repaired import repair_sentence
from deploypruner.report.units import quality_sentence
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.scratch import scratch
from deploypruner.search.gaps import gaps, largest
from deploypruner.search.kept import AGREEMENT_DROP, Kept, allowed_points
from deploypruner.sources.classes import read_classes
from deploypruner.sparse.convert import check_convertible
from deploypruner.sparse.library import EXTENSION, check_forced_target, extension_path
from deploypruner.target import detect
from deploypruner.tasks.recognise import parse_tasks

_INT8, _DOCUMENT = "model.int8.onnx", "sparsify.json"
# Share of zeros in some layer from which on there is something to gain.
_SPARSE = 0.3
_RANDOM_FP32 = "no --data: the int8 ranges come from random inputs, so only the timings mean something"
_RANDOM_INT8 = "no --data: the agreement and the proof are those of random inputs"


@dataclass(frozen=True)
class SparsifyRequest:
    """What `sparsify` was asked for.

    Args:
        model: The .onnx file.
        out: Folder to write to.
        data: Image folder, .npz or factory; None for random inputs.
        mean: Per channel, of pixels scaled to 0..1; None for the usual ones.
        std: As `mean`.
        threads: That the model is to run with.
        batch: Images at a time that it is to run with; None: as many as the file takes, 1 where that is open.
        seconds: For measuring.
        drop: Points that int8 may cost against the given file, see `search.kept`; None for its defaults.
        tasks: What outputs are, as `--task` says it.
        metric: `package.module:function`, "" for none.
        classes: File with the names of the model's classes.
        seed: Of random inputs and of the order of measuring.
        clock: Says how long things take.
    """

    model: Path
    out: Path
    data: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    threads: int = 1
    batch: int | None = None
    seconds: float = 20.0
    seed: int = 0
    drop: float | None = None
    tasks: tuple[str, ...] = ()
    metric: str = ""
    classes: Path | None = None
    clock: Clock = field(default_factory=current_clock)


Say = Callable[[str], None]


@dataclass(frozen=True)
class Sparsified:
    """Result of `sparsified`.

    Args:
        rows: The given model, its dense int8 form and the sparse one; empty where nothing is faster sparse.
        document: As the report's `sparse` section, with `quality` of the int8 form against the given model.
        warnings: What casts doubt on the result.
    """

    rows: tuple[Row, ...]
    document: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())

    @property
    def quality(self) -> str:
        """What became of the given model's quality, in a sentence; "" without data."""
        found = self.document.get("quality")
        return f"{found['artifact']}: {quality_sentence(found)}" if found else ""

    @property
    def refused(self) -> bool:
        """Does an int8 form lose more than is allowed?"""
        found: dict[str, Any] = self.document.get("quality") or {"kept": True}
        return not found["kept"]


def sparsified(request: SparsifyRequest, *, say: Say) -> Sparsified:
    """Write model.sparse.onnx, its library, the dense model.int8.onnx and sparsify.json to the folder.

    Args:
        request: What to do.
        say: Called with a line about what is done.

    Raises:
        InputError: The model cannot be read or has no zeros, or the data does not fit.
        KernelError: Our library is not built, or fits another OpenVINO; or DEPLOYPRUNER_TARGET cannot run here.
        VerificationError: An operation differs from the dense model's.
    """
    library = extension_path()
    check_forced_target()
    model = _read(request.model)
    check_convertible(model)
    say(f"trying {request.model}")
    trial.check_runs(request.model, ("onnxruntime", "openvino"))
    folder = BuildFolder(request.out, "sparsify", names=(_INT8, MODEL, EXTENSION, _DOCUMENT))
    folder.prepare()
    try:
        folder.require_apart(request.model, request.data)
        inputs = _inputs(request)
        folder.clear()
        return _sparsified(request, model, inputs, folder, library=library, say=say)
    finally:
        folder.release()


def _sparsified(
    request: SparsifyRequest, model: onnx.ModelProto, inputs: Inputs, folder: BuildFolder, *, library: Path, say: Say
) -> Sparsified:
    remarks = (*inputs.remarks, *filter(None, (folder.remark,)))
    require_one_answer(request.model, inputs.judged, threads=request.threads)
    is_int8 = any(node.op_type == "QuantizeLinear" for node in every_node(model))
    if request.data is None:
        remarks = (*remarks, _RANDOM_INT8 if is_int8 else _RANDOM_FP32)
    if is_int8:
        with folder.writing(_INT8) as path:
            write_onnx(model, path)
    else:
        say(f"quantizing {request.model}: it is {float_name(model)}")
        repaired = _quantize(model, folder, inputs.calibration, repair=request.data is not None)
        if repaired:
            say(repaired)
    say(f"timing every layer dense and sparse, batch {inputs.batch}, threads {request.threads}")
    dense, sparse = folder.path(_INT8), folder.path(MODEL)
    OpenVino().open(
        dense, threads=request.threads, shapes=[array.shape for array in inputs.timed]
    )  # or the end is here
    made = make_sparse(
        dense, sparse, feeds=inputs.proof, timed=inputs.timed, threads=request.threads, say=say, clock=request.clock
    )
    _require_zeros(request.model, made.document, is_int8=is_int8)
    document: dict[str, Any] = made.document
    rows: tuple[Row, ...] = ()
    files = {} if is_int8 else {f"dense {float_name(model)}": request.model}
    files |= {"dense int8": dense, **({} if made.check is None else {"sparse int8": sparse})}
    qualities = judged(request, files, inputs)
    if request.data is not None:
        document = {**document, "quality": quality_of(qualities, request)}
    else:
        remarks = (*remarks, *_doubtful(qualities))
    if made.check is not None:
        with folder.writing(EXTENSION) as path:
            shutil.copyfile(library, path)
        rows, document, doubts = _measured(request, files, qualities, inputs, document=document)
        remarks = (*remarks, *doubts)
    check = None if made.check is None else asdict(made.check)
    folder.write_json(_DOCUMENT, {**document, "check": check, "rows": [asdict(row) for row in rows]})
    folder.write_manifest({"model": str(request.model), "versions": environment()["versions"]})
    if made.check is not None and not made.check.passed:
        raise VerificationError(
            f"{made.check.name}: {made.check.max_abs_diff:g} steps apart, allowed {made.check.tolerance:g}",
            hint=f"do not deploy {sparse}; {request.out / 'sparsify.json'} has the layers",
        )
    return Sparsified(rows, document, remarks)


def _read(path: Path) -> onnx.ModelProto:
    """The model, weights included."""
    check_present(path, what="model", hint="give an .onnx file", native=True)
    check_external(path)
    model = read_onnx(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(
                f"'{tensor.name}' of '{path}' holds NaN or Inf", hint="use an earlier checkpoint of the model"
            )
    return model


def _inputs(request: SparsifyRequest) -> Inputs:
    settings = DataSettings(mean=request.mean, std=request.std, augment=False, seed=request.seed)
    session = OnnxRuntime().open(request.model)
    said = Said(
        parse_tasks(request.tasks), classes=read_classes(request.classes) if request.classes is not None else ()
    )
    return sparsify_inputs(session, request.data, settings, batch=request.batch, said=said)


def _quantize(model: onnx.ModelProto, folder: BuildFolder, calibration: list[Feeds], *, repair: bool) -> str:
    with scratch() as apart:
        fp32 = apart / "model.fp32.onnx"
        write_onnx(prepared(model), fp32)
        with folder.writing(_INT8) as path:
            summary = quantize_static(
                fp32,
                path,
                calibration=calibration,
                method="auto",
                placement="sparse",
                reduce_range=detect().saturates,
                repair=repair,
                progress=progress_for(),
            )
    return repair_sentence([asdict(step) for step in summary.repair])


def _require_zeros(path: Path, document: dict[str, Any], *, is_int8: bool) -> None:
    layers = document["layers"]
    if not layers:
        raise InputError(
            f"'{path}': {document['reason']}",
            hint="give the fp32 model that it was made from: it is quantized here"
            if is_int8
            else "docs/sparse.md says which layers the kernels compute",
        )
    sparsest = min(layers, key=lambda layer: layer["density"])
    if sparsest["density"] > 1 - _SPARSE:
        raise InputError(
            f"no layer of '{path}' has enough zeros: the sparsest, '{sparsest['name']}', keeps "
            f"{sparsest['density']:.0%} of its weights",
            hint=f"kernels pay from {_SPARSE:.0%} zeros; `deploypruner compile --pattern 1x4` makes them",
        )


def judged(request: SparsifyRequest, files: Mapping[str, Path], inputs: Inputs) -> dict[str, Quality]:
    """The quality of every form, each against the file that the user gave, which is the first.

    Args:
        request: What to do.
        files: Name of the row -> file.
        inputs: With samples to judge on, and what the outputs are.
    """
    first = next(iter(files.values()))
    reference = outputs(OpenVino().open(first, threads=request.threads), inputs.judged)
    metric = own_metric(request.metric)
    return {
        name: evaluate(
            OpenVino().open(path, threads=request.threads),
            inputs.judged,
            reference=reference,
            tasks=inputs.tasks,
            metric=metric,
        )
        for name, path in files.items()
    }


def quality_of(qualities: Mapping[str, Quality], request: SparsifyRequest) -> dict[str, Any]:
    """The int8 form that loses most against the given model, as a report has it; empty where nothing is known."""
    given, *forms = qualities
    found = [
        Kept(name, "openvino", gap, allowed_points(gap, request.drop), request.drop)
        for name in forms
        for gap in gaps(qualities[name], qualities[given])
    ]
    worst = max(found, key=lambda kept: kept.lost - kept.allowed, default=None)
    return {} if worst is None else worst.to_json()


def _doubtful(qualities: Mapping[str, Quality]) -> list[str]:
    """A form that disagrees with the given model on random inputs, which is no verdict."""
    given, *forms = qualities
    found = [(name, largest(gaps(qualities[name], qualities[given]))) for name in forms]
    return [
        f"on random inputs {name} differs from the given model by {gap.lost:.1f} points ({gap.kind}); --data tells "
        "whether it is worth anything"
        for name, gap in found
        if gap is not None and not gap.lost <= AGREEMENT_DROP
    ]


def _measured(
    request: SparsifyRequest,
    files: Mapping[str, Path],
    qualities: Mapping[str, Quality],
    inputs: Inputs,
    *,
    document: dict[str, Any],
) -> tuple[tuple[Row, ...], dict[str, Any], tuple[str, ...]]:
    """All models side by side: rows, the document with the comparison, warnings."""
    artifacts = [
        Artifact(
            name,
            path,
            "onnx",
            "int8" if name.endswith("int8") else "fp32",
            "given" if name == "sparse int8" else "dense",
        )
        for name, path in files.items()
    ]
    machine = environment()
    measured = request.clock.artifacts(
        [(artifact, "openvino") for artifact in artifacts],
        threads=request.threads,
        budget_s=request.seconds,
        seed=request.seed,
        feeds=inputs.timed,
    )
    timed: list[Quality | None] = [qualities[artifact.name] for artifact in artifacts]
    rows = make_rows(measured.complete(), timed, floor=measured.floor, seed=request.seed)
    doubts = find_warnings(
        measured.timings, machine, settled=measured.settled, floor=measured.floor, conditions=measured.conditions
    )
    timings = {timing.artifact.name: timing for timing in measured.timings}
    found = compare(timings["sparse int8"], timings["dense int8"], floor=measured.floor, seed=request.seed)
    return tuple(rows), {**document, "against_dense": asdict(found)}, tuple(doubts)
