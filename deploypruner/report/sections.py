"""The shapes of what the forms of a report read of `budget`, `loop`, `sparse`, `precision` and `deploy`."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

# As JSON has them; NaN is null there.
_Number = Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]
_Measured = _Number | None
_Positive = Annotated[float, Field(strict=True, gt=0, le=1e300)]
_Text = Annotated[str, Field(strict=True)]
_Bool = Annotated[bool, Field(strict=True)]
_Int = Annotated[int, Field(strict=True, ge=0, le=1 << 53)]
_Names = list[_Text]


class _Quality(TypedDict):
    kind: _Text
    dense: _Measured
    pruned: _Measured
    lost: _Measured
    allowed: _Number
    kept: _Bool


class _Setting(TypedDict):
    runtime: _Text
    precision: _Text
    threads: _Int
    floats: NotRequired[list[_Text]]
    environment: NotRequired[list[list[_Text]]]


class _JudgedPlan(TypedDict):
    objective: _Text
    predicted_ms: _Measured
    loss: _Measured
    top1: _Measured
    trained: NotRequired[_Measured]
    dropped: _Names
    full: _Bool


class _Bound(TypedDict):
    name: _Text
    active: _Bool
    decided: _Names
    margin: _Measured
    unit: _Text
    allowed: _Measured


class _Bounds(TypedDict):
    active: _Text
    budget: _Bound
    accuracy: _Bound


class _Budget(TypedDict, total=False):
    kind: _Text
    requested: _Measured | _Text
    predicted: _Measured | _Text
    measured: _Measured | _Text
    certified: _Measured | _Text
    met: _Bool | None
    doubt: _Text | None
    quality: _Quality
    quantile: _Number
    setting: _Setting | None
    objective: _Text | None
    judged_by: _Text
    pool: list[_JudgedPlan]
    dropped: _Names
    bounds: _Bounds


class _Gate(TypedDict):
    name: _Text
    kind: _Text
    dense_us: _Measured
    sparse_us: _Measured
    choice: _Text
    reason: _Text


class _LayerRow(_Gate):
    kernel: list[_Int]
    pattern: NotRequired[_Text]
    density: _Number
    quads: _Number
    predicted_us: NotRequired[_Measured]


class _Assigned(TypedDict):
    predicted_ms: _Positive
    dense_ms: _Number
    budget_ms: _Number
    budget: _Text
    kept: _Number
    reference_kept: _Number
    reference: _Text


class _AgainstDense(TypedDict):
    ratio: _Number
    ratio_ci: tuple[_Number, _Number]
    verdict: _Text
    against: _Text


class _SparseSection(TypedDict):
    chosen: _Int
    layers: list[_LayerRow]
    gates: NotRequired[list[_Gate]]
    refused: NotRequired[dict[str, _Text]]
    reason: NotRequired[_Text]
    target: NotRequired[_Text]
    environment: NotRequired[dict[str, _Text]]
    dense_environment: NotRequired[dict[str, _Text]]
    assigned: NotRequired[_Assigned]
    against_dense: NotRequired[_AgainstDense]


class _LayerTime(TypedDict):
    float_ms: _Measured
    int8_ms: _Measured


class _LayerPrecision(TypedDict):
    name: _Text
    error: _Measured
    precision: _Text
    reason: _Text
    times: dict[str, _LayerTime]


class _Compared(TypedDict):
    ratio: _Number
    ratio_ci: tuple[_Number, _Number]
    verdict: _Text


class _Int8File(TypedDict):
    file: _Text
    runtime: _Text
    int8: _Int
    float: _Int
    why: _Text
    left_float: dict[str, _Text]
    against: dict[str, dict[str, _Compared]]
    executed: dict[str, dict[str, _Text]]
    float_all_the_same: dict[str, dict[str, _Text]]


class _MixTrial(TypedDict):
    float_layers: _Int
    lost: _Measured


class _Judged(TypedDict):
    runtime: _Text
    kind: _Text
    labelled: _Bool
    allowed: _Number
    int8: _Measured
    float: _Measured
    mixed: _Measured
    needed: _Measured
    trials: list[_MixTrial]


class _PrecisionSection(TypedDict):
    note: _Text
    accuracy: NotRequired[_Judged]
    files: list[_Int8File]
    layers: list[_LayerPrecision]


class _Round(TypedDict, total=False):
    predicted_ms: _Measured
    measured_ms: _Measured
    importance: _Measured
    met: _Bool | None


class _Point(TypedDict):
    id: _Text
    what: _Text
    kind: _Text
    runtime: _Text
    precision: _Text
    latency_ms: _Measured
    latency_basis: _Text
    measured: _Bool
    metric: _Text
    value: _Measured
    lost: _Measured
    labelled: _Bool
    quality_basis: _Text
    samples: _Int
    bytes: _Int | None
    bytes_of: _Text
    macs: _Int | None
    artifact: _Text


class _DeployedInput(TypedDict):
    name: _Text
    shape: list[_Int | _Text]
    layout: _Text
    dtype: _Text
    range: list[_Measured] | None
    mean: list[_Number] | None
    std: list[_Number] | None


class _PixelInput(TypedDict):
    name: _Text
    shape: list[_Int | _Text]
    layout: _Text
    dtype: _Text


class _Pixels(TypedDict):
    file: _Text
    input: _PixelInput
    load: _Names


class _Deploy(TypedDict):
    file: _Text
    files: _Names
    bytes: _Int
    artifact: _Text
    runtime: _Text
    threads: _Int
    version: _Text
    inputs: list[_DeployedInput]
    classes: _Names
    environment: NotRequired[dict[str, _Text]]
    load: _Names
    pixels: NotRequired[_Pixels]


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "budget": TypeAdapter(_Budget),
    "loop": TypeAdapter(_Round),
    "points": TypeAdapter(_Point),
    "sparse": TypeAdapter(_SparseSection),
    "precision": TypeAdapter(_PrecisionSection),
    "deploy": TypeAdapter(_Deploy),
}
# Sections of these that may be empty in every way JSON has.
_MAY_BE_EMPTY = ("quality", "bounds", "pool", "dropped", "assigned", "against_dense", "accuracy")


def check_section(name: str, held: dict[str, Any]) -> None:
    """Check what is read of one section; whatever else stands in it is left alone.

    Args:
        name: "budget", "sparse", "precision", "deploy", "loop" or "points".
        held: What report.json has there, of a loop one round, of points one; empty where nothing is said.

    Raises:
        ValidationError: Something that is read is missing, or of another type.
    """
    if not held:
        return
    read = {key: value for key, value in held.items() if value or key not in _MAY_BE_EMPTY}
    needed = {"judged_by"} if read.get("pool") else set()
    if name == "sparse":
        needed |= {"target"} if held.get("chosen") else {"reason"}
    # What only some reports need is missing as anything else is: null stands in for it.
    _ADAPTERS[name].validate_python({**{key: None for key in needed if not held.get(key)}, **read})
