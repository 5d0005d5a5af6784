"""A sparse model from an ONNX file of any origin: quantized where it is not, converted, proved, measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploypruner.build.doubted import doubted_file
from deploypruner.build.folder import BuildFolder
from deploypruner.build.given_file import (
    JUDGED_IN,
    FileRequest,
    doubtful,
    inputs_of,
    judged,
    measured_files,
    quality_of,
    read_given,
    write_int8,
)
from deploypruner.build.one_answer import require_one_answer
from deploypruner.build.open_setting import counts_to_try, try_settings
from deploypruner.build.sparse_model import MODEL, make_sparse
from deploypruner.build.sparsify_inputs import Inputs
from deploypruner.errors import InputError, VerificationError
from deploypruner.measure import environment, trial
from deploypruner.measure.elsewhere import timed_elsewhere
from deploypruner.measure.kernels import kernels_of
from deploypruner.measure.statistics import compare
from deploypruner.onnx_file import every_node, write_onnx
from deploypruner.quantize.to_float32 import float_name
from deploypruner.records import Artifact, Quality, Row
from deploypruner.report.repaired import repair_sentence
from deploypruner.report.units import quality_sentence
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse.convert import check_convertible
from deploypruner.sparse.library import EXTENSION, check_forced_target, extension_path

_INT8, _DOCUMENT = "model.int8.onnx", "sparsify.json"
# Share of zeros in some layer from which on there is something to gain.
_SPARSE = 0.3
_RANDOM_FP32 = "no --data: the int8 ranges come from random inputs, so only the timings mean something"
_RANDOM_INT8 = "no --data: the agreement and the proof are those of random inputs"


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


def sparsified(request: FileRequest, *, say: Say) -> Sparsified:
    """Write model.sparse.onnx, its library, the dense model.int8.onnx and sparsify.json to the folder.

    Args:
        request: What to do.
        say: Called with a line about what is done.

    Raises:
        InputError: The model cannot be read or has no zeros, or the data does not fit.
        KernelError: Our library is not built, fits another OpenVINO, or does not run on the machine it is timed on;
            or DEPLOYPRUNER_TARGET cannot run here.
        DeviceError: That machine is lost, or has no room.
        VerificationError: An operation differs from the dense model's.
    """
    library, machine = extension_path(), request.clock.machine
    check_forced_target()
    if machine.elsewhere:
        say(f"sending the sparse kernels to {machine.name}")
        kernels_of(machine)
    model = read_given(request.model)
    check_convertible(model)
    _require_sparse(request.model, model)
    say(f"trying {request.model}")
    trial.check_runs(request.model, ("onnxruntime", "openvino"))
    folder = request.place("sparsify", (_INT8, MODEL, EXTENSION, _DOCUMENT))
    folder.prepare()
    try:
        folder.require_apart(request.model, request.data)
        inputs = inputs_of(request)
        if request.data is not None:
            doubts = doubted_file(model, inputs.calibration[0])
            for text in doubts:
                say(f"warning: {text}")
            inputs = replace(inputs, remarks=(*doubts, *inputs.remarks))
        folder.clear()
        return _sparsified(request, model, inputs, folder, library=library, say=say)
    finally:
        folder.release()


def _sparsified(
    request: FileRequest, model: onnx.ModelProto, inputs: Inputs, folder: BuildFolder, *, library: Path, say: Say
) -> Sparsified:
    remarks = (*inputs.remarks, *filter(None, (timed_elsewhere(request.clock.machine), folder.remark)))
    require_one_answer(request.model, inputs.judged, threads=request.threads)
    is_int8 = any(node.op_type == "QuantizeLinear" for node in every_node(model))
    if request.data is None:
        remarks = (*remarks, _RANDOM_INT8 if is_int8 else _RANDOM_FP32)
    _write_int8(request, model, inputs, folder, is_int8=is_int8, say=say)
    request, counts = _with_threads(request, folder.path(_INT8), inputs, say=say)
    say(f"timing every layer dense and sparse, batch {inputs.batch}, threads {request.threads}")
    dense, sparse = folder.path(_INT8), folder.path(MODEL)
    OpenVino().open(
        dense, threads=request.threads, shapes=[array.shape for array in inputs.timed]
    )  # or the end is here
    made = make_sparse(
        dense,
        sparse,
        feeds=inputs.proof,
        timed=inputs.timed,
        threads=request.threads,
        counts=counts,
        say=say,
        clock=request.clock,
    )
    request = replace(request, threads=made.document.get("threads", request.threads))
    _require_zeros(request.model, made.document, is_int8=is_int8)
    document: dict[str, Any] = made.document
    rows: tuple[Row, ...] = ()
    files = {} if is_int8 else {f"dense {float_name(model)}": request.model}
    files |= {"dense int8": dense, **({} if made.check is None else {"sparse int8": sparse})}
    qualities, doubts = judged(request, files, inputs)
    remarks = (*remarks, *doubts)
    if request.data is not None:
        document = {**document, "quality": quality_of(qualities, request)}
    else:
        remarks = (*remarks, *doubtful(qualities))
    if made.check is not None:
        with folder.writing(EXTENSION) as path:
            shutil.copyfile(library, path)
        rows, document, doubts = _measured(request, files, qualities, inputs, document=document, root=folder.root)
        remarks = (*remarks, *doubts)
    check = None if made.check is None else asdict(made.check)
    folder.write_json(_DOCUMENT, {**document, "check": check, "rows": [asdict(row) for row in rows]})
    about = {"versions": environment()["versions"]}
    if request.clock.machine.elsewhere:
        about |= {"timed_on": {"name": request.clock.machine.name, **request.clock.machine.to_json()}}
    folder.write_manifest({"model": str(request.model), **about})
    folder.put_in_place()
    if made.check is not None and not made.check.passed:
        raise VerificationError(
            f"{made.check.name}: {made.check.max_abs_diff:g} steps apart, allowed {made.check.tolerance:g}",
            hint=f"do not deploy {folder.path(MODEL)}; {request.out / 'sparsify.json'} has the layers",
        )
    return Sparsified(rows, document, remarks)


def _write_int8(
    request: FileRequest, model: onnx.ModelProto, inputs: Inputs, folder: BuildFolder, *, is_int8: bool, say: Say
) -> None:
    """The dense int8 form: the given file, or what is made of it."""
    with folder.writing(_INT8) as path:
        if is_int8:
            write_onnx(model, path)
            return
        say(f"quantizing {request.model}: it is {float_name(model)}")
        summary = write_int8(
            model,
            path,
            inputs.calibration,
            placement="sparse",
            repair=request.data is not None,
            progress=request.progress,
            target=request.clock.machine.target,
        )
    repaired = repair_sentence([asdict(step) for step in summary.repair])
    if repaired:
        say(repaired)


def _with_threads(
    request: FileRequest, dense: Path, inputs: Inputs, *, say: Say
) -> tuple[FileRequest, tuple[int, ...]]:
    """The request with the number of threads that the dense form is fastest with, where it leaves that open.

    Returns:
        It, and the numbers to try whole forms with.
    """
    if not request.open_threads:
        return request, (request.threads,)
    say("trying numbers of threads")
    job = (Artifact("dense int8", dense, "onnx", "int8"), JUDGED_IN)
    more = {"seed": request.seed}
    tried = try_settings(
        [job], counts_to_try(request.clock.machine), feeds=inputs.timed, clock=request.clock, more=more
    )
    say(tried.sentence)
    return replace(request, threads=tried.fastest), tried.counts


def _require_sparse(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a file whose weights have no zeros before anything is quantized or timed.

    Float weights are looked at as int8 with a scale for each slice of their first or last axis will have them, and
    integers by their most frequent value: more cannot be zeros.
    """
    found = {
        tensor.name: _most_zeros(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if len(tensor.dims) in (2, 4)  # what the kernels may compute
    }
    if found and max(found.values()) < _SPARSE:
        name = max(found, key=lambda name: found[name])
        raise _too_dense(path, name, 1 - found[name])


def _most_zeros(weight: np.ndarray) -> float:
    """Share of a weight's numbers that are zeros in int8, at most."""
    if weight.dtype.kind in "iu":
        return float(np.unique(weight, return_counts=True)[1].max(initial=0) / max(1, weight.size))
    if weight.dtype.kind != "f" or not weight.size:
        return 0.0
    size = np.abs(weight.astype(np.float32))
    # Rounded to zero is what is less than half a step, and 127 steps reach the largest number of a slice.
    most = [
        size.max(axis=tuple(a for a in range(size.ndim) if a != axis), keepdims=True) for axis in (0, -1 % size.ndim)
    ]
    return max(float((size <= peak / 254).mean()) for peak in most)


def _too_dense(path: Path, name: str, density: float) -> InputError:
    return InputError(
        f"no layer of '{path}' has enough zeros: the sparsest, '{name}', keeps {100 * density:.0f} % of its weights",
        hint=f"kernels pay from {100 * _SPARSE:.0f} % zeros; `deploypruner compile --pattern 1x4` makes them",
    )


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
        raise _too_dense(path, sparsest["name"], sparsest["density"])


def _measured(
    request: FileRequest,
    files: Mapping[str, Path],
    qualities: Mapping[str, Quality],
    inputs: Inputs,
    *,
    document: dict[str, Any],
    root: Path,
) -> tuple[tuple[Row, ...], dict[str, Any], tuple[str, ...]]:
    """All models side by side: rows, the document with the comparison, warnings."""
    artifacts = [_artifact(name, path, document) for name, path in files.items()]
    measured = measured_files(request, artifacts, qualities, inputs, root=root)
    found = compare(
        measured.timings["sparse int8"], measured.timings["dense int8"], floor=measured.floor, seed=request.seed
    )
    return measured.rows, {**document, "against_dense": asdict(found)}, measured.doubts


def _artifact(name: str, path: Path, document: dict[str, Any]) -> Artifact:
    """A form as it is measured: one in int8 with the variables of the process that it was fastest with."""
    if not name.endswith("int8"):
        return Artifact(name, path, "onnx", "fp32", "dense")
    is_sparse = name == "sparse int8"
    variables = document.get("environment" if is_sparse else "dense_environment", {})
    return Artifact(
        name, path, "onnx", "int8", "given" if is_sparse else "dense", environment=tuple(variables.items())
    )
