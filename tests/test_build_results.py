"""What stages found out comes back from its file as it was, in the order and with the names that the report shows."""

from __future__ import annotations

import json

import pytest

from deploypruner.build.results import LayerPatterns, Learning, Quantized, Recovery
from deploypruner.quantize.static import QuantizationSummary
from deploypruner.records import Metric
from deploypruner.sparsity.assign.in_time import Assignment, LayerFilling
from deploypruner.sparsity.training.zeros import ZeroLayer, Zeros

pytestmark = pytest.mark.slow

ZEROS = Zeros("2:4", "gradual", 0.5, "uniform", 10, 20, ("odd",), (ZeroLayer("a", "conv", 20, 10, "2:4"),))
RECOVERY = Recovery(
    reconstructed_layers=1,
    batchnorm_layers=2,
    accuracy_dense=3.0,
    accuracy_removed=4.0,
    metric=Metric("R2", "", 100.0, True),
    train="m:f",
    epochs=5,
    best_epoch=6,
    mimicked=True,
    accuracy_recovered=7.0,
    sparse=ZEROS,
)
QUANTIZED = Quantized(
    QuantizationSummary("minmax", 1, 2, {"a": "why"}), QuantizationSummary("minmax", 3, 4, {"b": "too"})
)
FILLING = LayerFilling("a", "2:4", 0.5, 0.6, True, 0.7, 0.8)
PATTERNS = LayerPatterns(
    reason="so",
    found=Assignment(
        (LayerFilling("a", "2:4", 0.5, 0.6, True, 0.7, 0.8),), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, ((7.0, 8.0),)
    ),
    parameters={"a": "a.weight"},
    reference="1x4 at 80 %",
    budget="5ms",
    rates={"call": 9.0},
    rates_error={"sparse": 0.1},
    remark="busy",
)


@pytest.mark.parametrize(
    "found", [RECOVERY, Recovery(), QUANTIZED, Quantized(), PATTERNS, LayerPatterns("no kernels")], ids=repr
)
def test_a_result_is_the_same_after_its_file_is_read(found):
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_learning_is_the_same_after_its_file_is_read():
    for found in (Learning("one-shot"), Learning("learned", 3, 0.25, 91.0, 2)):
        assert Learning(**json.loads(json.dumps(found.to_json()))) == found
    assert Learning("one-shot").to_json() == {"schedule": "one-shot"}


def test_what_there_was_not_is_left_out():
    assert Recovery(epochs=0, best_epoch=None).to_json() == {"epochs": 0}
    assert Quantized(dense=QUANTIZED.dense).to_json().keys() == {"dense"}
    assert LayerPatterns("no kernels").to_json() == {"reason": "no kernels", "layers": []}


def test_the_patterns_of_layers_are_flat_in_the_report():
    document = PATTERNS.to_json()
    assert document["layers"] == [
        {
            **{"name": "a", "pattern": "2:4", "sparsity": 0.5, "kept": 0.6, "sparse": True},
            **{"sparse_us": 0.7, "dense_us": 0.8, "parameter": "a.weight"},
        }
    ]
    assert (document["predicted_ms"], document["budget_ms"], document["budget"]) == (4.0, 3.0, "5ms")
    assert list(document)[-6:] == ["reference", "budget", "reason", "rates", "rates_error", "remark"]
