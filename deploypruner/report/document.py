"""The report as one record, and its JSON form: what every other form of the report is made from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from deploypruner.errors import InputError
from deploypruner.records import Check, Cost, Frozen, Row
from deploypruner.report.sections import check_section

SCHEMA = 1
_WRITTEN_BY_US = "rebuild with `deploypruner compile`, or pass the report.json of a finished build"

# What a row's numbers can be.
_TIME, _COUNT = (1e-6, 1e9), (0.0, 1e18)
_SENSIBLE = {
    **dict.fromkeys(("median_ms", "p95_ms", "p99_ms"), _TIME),
    **dict.fromkeys(("macs", "params", "nonzero", "bytes", "peak_rss_bytes"), _COUNT),
    "samples": (0.0, 1e12),
    "threads": (1.0, 1e6),
    **dict.fromkeys(("accuracy", "agreement"), (-1e12, 1e12)),
    "ratio": (0.0, 1e12),
}


@dataclass(frozen=True)
class LayerWidth:
    """Output channels of one convolution or linear layer.

    Args:
        name: Module name in the user's model.
        kind: "conv" or "linear".
        before: Output channels of the dense model.
        after: Output channels of the pruned one; 0 where the layer is gone with its branch.
        branch: Id of the residual branch it is gone with, "" where it is there.
        macs: Predicted multiply-adds of one sample, dense and pruned.
        params: Elements of its weight, dense and pruned.
        ms: Measured inside the network in the runtime and precision of the recommended file, dense and pruned; None
            where nobody measured, or the runtime fused it into another layer.
        precision: "int8" or "fp32", as that runtime executed the pruned one; "" where nobody looked.
        pattern: Of the zeros inside it, "" without.
        node: Its name in the ONNX files, "" where it is in none.
        bound: What its time goes by: "compute", "memory" or "overhead"; "" where it is not known (`bounds`).
    """

    name: str
    kind: str
    before: int
    after: int
    branch: str = ""
    macs: tuple[int, int] | None = None
    params: tuple[int, int] | None = None
    ms: tuple[float | None, float | None] | None = None
    precision: str = ""
    pattern: str = ""
    node: str = ""
    bound: str = ""


@dataclass(frozen=True)
class StageTime:
    """Wall time one stage of the build took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything report.json holds. Dict fields hold JSON values only: tuples become lists, paths text.

    Args:
        target: Fields of the target: name, processor, cores, int8_features.
        environment: Versions and machine facts.
        command: Command line that made the build.
        model: name, source, input shapes, sha256.
        settings: criterion, scope, step, epochs and whatever else the recipe resolved to.
        budget: kind, requested, predicted, certified, met; empty when none was asked for. `met` is false where the
            quality is not kept, which `quality` says: artifact, runtime, kind ("accuracy" or the kind of agreement),
            dense, pruned, lost and allowed points, kept. For time also `dropped` (branches that are gone),
            `objective` (what the plan was chosen by), and `judged` (that plan before training: `verdict`, the `dense`
            model's on the same images, `accepted`), `cut` (what the search left out for want of time), and
            `pool` with `judged_by`: the plans that were judged before training. `bounds` says which bound decided
            something, `active`, with what the `budget` and the `accuracy` decided and the `margin` left of each.
        rows: One per artifact and runtime, the dense fp32 baseline first.
        verification: One per comparison of two forms of the model.
        loop: One dict per closed-loop round; empty when the loop did not run.
        layers: Widths before and after, in the order of the model.
        frozen: Channels that could not be removed.
        stages: Wall time, in the order they ran.
        warnings: Full sentences for the user.
        noise: What casts doubt on the times, full sentences too.
        deploy: The file to ship: `file` (within the build), `files` (it and what has to lie beside it), `bytes`,
            `artifact`, `runtime`, `threads`, `version` of the runtime, `inputs` (each with name, shape, layout,
            dtype, range, mean and std), `classes`, `environment` (variables of the process), `load` (three lines
            of Python), and with --embed-preprocessing
            `pixels` (the same with pixels going in: `file`, `input`, `load`); empty where a check failed.
        files: Names of the build's files.
        dense: Predicted cost of the user's model.
        pruned: Predicted cost of the pruned model.
        sparse: What sparse kernels did; empty without zeros. `chosen`: layers that run in them, of `layers` (each
            with `density`, share of weights that are not zero; `quads`, share of groups of four inputs that are
            not; `pattern`; `dense_us` and `sparse_us`, of a whole batch; `predicted_us`, sparse and before
            training, or None; `choice` and `reason`); `gates`: the same of means and scales; `assigned`: with
            patterns chosen layer by layer, `predicted_ms` and `budget_ms` of the model, `dense_ms`, what the budget
            means, and shares of saliency that are kept, with the chosen patterns and with `reference` everywhere;
            `refused`: other layers, and why; `reason`: why there is no sparse model; `target`: instructions used;
            `batch` that layers were timed with; `threads`, `environment` (variables of the process) of what was kept
            and `dense_environment` of the fastest dense model, `candidates`: every form and setting that was timed
            whole; `against_dense`: the measured comparison with the
            dense int8 form of the same weights.
        precision: Int8 or float, layer by layer. `layers`: each with `error` (at the outputs when it alone is int8;
            None where accuracy was no question), `times` (by runtime: `float_ms` and `int8_ms`, what stands between
            it and the next layer included), `precision` in the shared file and `reason`; `files`: each with how many
            layers are `int8` and `float`, `why`, `left_float` (layer -> reason),
            `float_operations` (all else that computes floats, with count and reason),
            `against` (by runtime: the measured comparison with float, and with the all-int8 file),
            `executed` (by runtime and layer: what it ran),
            `float_all_the_same` (by runtime: layers with int8 weights that it computes in float -> why), and
            `runtime`, the only one it is for, "" for all; `accuracy`: what all-int8, float and the mix lose, what is
            allowed, what is `needed` where no mix keeps it, and `trials`; `note`: what was chosen; `qat`, where it
            was asked for: `epochs`, scores `before` and `after`, and `best_epoch` (0: undone);
            `own_qat`: the same of the files that runtimes have of their own, by runtime.
        points: Everything that was measured on the way, each with its `id` (for `export --point`), `what` it is,
            `runtime`, `precision`, `floats` (weights of layers in float), `latency_ms` and `latency_basis` (whether
            and how it was `measured`), `metric`, `value`, `lost` points and `quality_basis` (before or after
            recovery, on which samples, how many), `bytes` (`bytes_of` a file, or of weights), `macs`, `params`,
            `weights` (finished, dense, or repaired when exported), `artifact` and `plan` (files of the build, "" for
            none).
    """

    target: dict[str, Any]
    environment: dict[str, Any]
    command: str
    model: dict[str, Any]
    settings: dict[str, Any]
    budget: dict[str, Any]
    rows: tuple[Row, ...]
    verification: tuple[Check, ...]
    loop: tuple[dict[str, Any], ...]
    layers: tuple[LayerWidth, ...]
    frozen: tuple[Frozen, ...]
    stages: tuple[StageTime, ...]
    warnings: tuple[str, ...]
    dense: Cost
    pruned: Cost
    sparse: dict[str, Any] = dataclasses.field(default_factory=dict)
    precision: dict[str, Any] = dataclasses.field(default_factory=dict)
    points: tuple[dict[str, Any], ...] = ()
    noise: tuple[str, ...] = ()
    deploy: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("target", "environment", "model", "settings", "budget", "sparse", "precision", "deploy"):
            object.__setattr__(self, name, json_value(getattr(self, name)))
        for name in ("loop", "points"):
            object.__setattr__(self, name, tuple(json_value(entry) for entry in getattr(self, name)))


_ADAPTER = TypeAdapter(Report)


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; numbers that are not finite become None."""
    fields = {field.name: json_value(getattr(report, field.name)) for field in dataclasses.fields(report)}
    return {"schema": SCHEMA, **fields}


def from_json(data: object, *, source: str = "report.json") -> Report:
    """Return the report that `to_json` wrote; null in a field that is always a number reads as NaN.

    Args:
        data: What json.load returned.
        source: File name for messages.

    Raises:
        InputError: Not a report, another schema version, or a field that is missing or of the wrong type.
    """
    if not isinstance(data, dict) or "schema" not in data:
        raise InputError(f"'{source}' is not a DeployPruner report: it has no schema number", hint=_WRITTEN_BY_US)
    if data["schema"] != SCHEMA:
        raise InputError(
            f"'{source}' has report schema {data['schema']!r}, this version reads schema {SCHEMA}",
            hint="use the version of deploypruner that wrote it, or rebuild",
        )
    section = ""
    try:
        report = _ADAPTER.validate_python({**data, **_with_nan(data)})
        for section in ("budget", "sparse", "precision", "deploy"):
            check_section(section, getattr(report, section))
        section = "loop"
        for held in report.loop:
            check_section(section, held)
        section = "points"
        for held in report.points:
            check_section(section, held)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ((section,) if section else ()) + first["loc"]) or "the top level"
        raise InputError(
            f"'{source}' is not a valid report: {place}: {first['msg'].lower()}", hint=_WRITTEN_BY_US
        ) from error
    _check_sensible(report, source)
    return report


def _check_sensible(report: Report, source: str) -> None:
    """Rows, and in them numbers that could have been measured, so that scales and ratios can be made of them.

    Raises:
        InputError: One is not; names the row.
    """
    if not report.rows:
        raise InputError(f"report '{source}' is not a valid report: it has no rows", hint=_WRITTEN_BY_US)
    for number, row in enumerate(report.rows):
        for name, (least, most) in _SENSIBLE.items():
            value = getattr(row, name)
            if value is not None and not math.isnan(value) and not least <= value <= most:
                raise InputError(
                    f"report '{source}' is not a valid report: rows.{number}.{name}: {value:g} is not between "
                    f"{least:g} and {most:g}",
                    hint=_WRITTEN_BY_US,
                )


def _with_nan(data: dict[str, Any]) -> dict[str, Any]:
    """The record lists of `data` with null put back to NaN where the record's field is a plain float."""
    lists: dict[str, type[Any]] = {"rows": Row, "verification": Check, "stages": StageTime}
    return {
        name: [_nan_for_null(kind, record) for record in data[name]]
        for name, kind in lists.items()
        if isinstance(data.get(name), list)
    }


def _nan_for_null(kind: type[Any], record: object) -> object:
    if not isinstance(record, dict):
        return record
    restored = dict(record)
    for field in dataclasses.fields(kind):
        value = record.get(field.name, 0)
        if value is None and field.type == "float":
            restored[field.name] = math.nan
        elif isinstance(value, list) and field.type == "tuple[float, float]":
            restored[field.name] = [math.nan if number is None else number for number in value]
    return restored


def json_value(value: object) -> Any:
    """Copy of `value` made of dict, list, str, int, bool, finite float and None only."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.generic):
        return json_value(value.item())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a report cannot hold a {type(value).__name__}: {value!r}")
