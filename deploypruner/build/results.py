"""What stages find out beside modules, plans and files: records that are saved as JSON and end in report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from deploypruner.quantize.static import QuantizationSummary
from deploypruner.records import Check, Metric
from deploypruner.sparsity.assign.in_time import Assignment, LayerFilling
from deploypruner.sparsity.training.zeros import Zeros

# Of a choice of patterns, in the order of the file.
_SAID = ("reference", "budget", "reason", "rates", "rates_error", "remark")


@dataclass(frozen=True)
class Learning:
    """What training with gates on the channels did.

    Args:
        schedule: Registered name, "one-shot" where nothing was trained.
        learn_epochs: Of that training, None without.
        undecided: Share of the masks that were neither on nor off at its end.
        accuracy_learned: Percent on the validation data, None where that is not what counts.
        beta_halvings: How often the temperature of transport gates was halved.
    """

    schedule: str
    learn_epochs: int | None = None
    undecided: float | None = None
    accuracy_learned: float | None = None
    beta_halvings: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what there was not."""
        return _known(self)


@dataclass(frozen=True)
class Recovery:
    """What recovery did; every field is None where it did not do that.

    Args:
        reconstructed_layers: Layers solved anew.
        reconstructed_part: Of the correction of each that was kept, 0 to 1.
        batchnorm_layers: Layers whose statistics were estimated anew.
        accuracy_dense: Value of the metric on the validation data, of the dense model.
        accuracy_removed: Of the pruned model before training.
        metric: What these values are, where it is not accuracy in percent.
        train: Name of the user's training function.
        epochs: Of fine-tuning.
        loss: What it made small, in words.
        best_epoch: Whose weights were kept, where it is not the last; 0 are those from before training.
        mimicked: Whether dense features were mimicked.
        accuracy_recovered: Of the pruned model in the end.
        distance: Without labels: what tells how far the outputs are from the dense model's, in words.
        distance_removed: So far was the pruned model before training.
        distance_recovered: And in the end.
        sparse: Zeros inside kept layers.
    """

    reconstructed_layers: int | None = None
    reconstructed_part: float | None = None
    batchnorm_layers: int | None = None
    accuracy_dense: float | None = None
    accuracy_removed: float | None = None
    metric: Metric | None = None
    train: str | None = None
    epochs: int | None = None
    loss: str | None = None
    best_epoch: int | None = None
    mimicked: bool | None = None
    accuracy_recovered: float | None = None
    distance: str | None = None
    distance_removed: float | None = None
    distance_recovered: float | None = None
    sparse: Zeros | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what there was not."""
        return _known(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> Recovery:
        """The inverse of `to_json`."""
        records = {
            "metric": Metric(**found["metric"]) if "metric" in found else None,
            "sparse": Zeros.from_json(found["sparse"]) if "sparse" in found else None,
        }
        return Recovery(**{**found, **records})


@dataclass(frozen=True)
class Quantized:
    """What became int8.

    Args:
        dense: In the dense model, None where it was not quantized in this run.
        pruned: In the pruned one, None before stage `quantize`.
    """

    dense: QuantizationSummary | None = None
    pruned: QuantizationSummary | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what there was not."""
        return _known(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> Quantized:
        """The inverse of `to_json`."""
        return Quantized(**{name: QuantizationSummary.from_json(summary) for name, summary in found.items()})


@dataclass(frozen=True)
class LayerPatterns:
    """Which pattern each layer got under `--pattern auto`, and why.

    Args:
        reason: Why every layer stays dense, where it does.
        found: What was chosen, None where nothing could be.
        parameters: Name of a layer in the ONNX file -> its parameter in the traced model.
        reference: That `found` is compared with, in words.
        budget: In words.
        rates: Of the kernels, from `sparse.cost.Rates`.
        rates_error: How far these are off.
        remark: About them, "" for none.
    """

    reason: str
    found: Assignment | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    budget: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    rates_error: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    @property
    def layers(self) -> tuple[LayerFilling, ...]:
        """Every layer that may have zeros; none where nothing could be chosen."""
        return () if self.found is None else self.found.layers

    def to_json(self) -> dict[str, Any]:
        """Flat, as the report has it."""
        if self.found is None:
            return {"reason": self.reason, "layers": []}
        layers = [{**asdict(layer), "parameter": self.parameters[layer.name]} for layer in self.layers]
        said = {name: getattr(self, name) for name in _SAID}
        return {**asdict(self.found), "layers": layers, **said}

    @staticmethod
    def from_json(document: dict[str, Any]) -> LayerPatterns:
        """The inverse of `to_json`; other fields are left aside."""
        if not document["layers"]:
            return LayerPatterns(document["reason"])
        layers = [dict(layer) for layer in document["layers"]]
        parameters = {layer["name"]: layer.pop("parameter") for layer in layers}
        known = {entry.name: document[entry.name] for entry in fields(Assignment)}
        found = Assignment(
            **{
                **known,
                "layers": tuple(LayerFilling(**layer) for layer in layers),
                "trials": tuple((predicted, measured) for predicted, measured in document["trials"]),
            }
        )
        return LayerPatterns(found=found, parameters=parameters, **{name: document[name] for name in _SAID})


def _known(record: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if value is not None}


@dataclass(frozen=True)
class Point:
    """One point.

    Args:
        document: As report.json has it.
        keep: Group or branch id -> what stays, where that is not everything; None where it is the build's plan.
    """

    document: dict[str, Any]
    keep: Mapping[str, tuple[int, ...]] | None = None

    @property
    def plan_file(self) -> str:
        """Where the plan is kept, "" where nothing is cut."""
        return str(self.document["plan"])


def check_document(check: Check) -> dict[str, Any]:
    """JSON has no NaN: a difference that is not a number is null."""
    return {**asdict(check), "max_abs_diff": check.max_abs_diff if isfinite(check.max_abs_diff) else None}
