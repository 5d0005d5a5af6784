"""What a report says of int8 and float: the sentence of a terminal, and the table of the page."""

from __future__ import annotations

import pytest

from deploypruner.report.precision import (
    precision_lines,
    precision_own,
    precision_runtimes,
    precision_sentence,
)
from deploypruner.report.sections import check_section

JUDGED = {
    "runtime": "openvino",
    "kind": "accuracy",
    "labelled": True,
    "allowed": 1.0,
    "int8": 51.2,
    "float": 0.4,
    "mixed": 0.61,
    "needed": None,
    "trials": [{"float_layers": 1, "lost": 0.61}],
}


def a_file(name: str, runtime: str, left_float: dict[str, str], why: str) -> dict:
    compared = {"float": {"ratio": 2.5, "ratio_ci": [2.4, 2.6], "verdict": "faster"}}
    return {
        "file": name,
        "runtime": runtime,
        "int8": 3 - len(left_float),
        "float": len(left_float),
        "placement": "openvino",
        "why": why,
        "left_float": left_float,
        "against": {"openvino": compared},
        "executed": {"openvino": {"a": "Convolution u8,i8>u8"}},
        "float_all_the_same": {},
    }


def section() -> dict:
    both = {"openvino": {"float_ms": 0.2, "int8_ms": 0.1}, "onnxruntime": {"float_ms": 0.3, "int8_ms": 0.9}}
    fused = {"openvino": {"float_ms": 0.4, "int8_ms": None}}
    return {
        "note": "1 layer stays float",
        "accuracy": JUDGED,
        "files": [
            a_file("model.int8.onnx", "", {"b": "for the accuracy"}, "1 layer stays float for the accuracy"),
            a_file("model.int8.onnxruntime.onnx", "onnxruntime", {"a": "slow", "b": "for the accuracy"}, "its own"),
        ],
        "layers": [
            {"name": "a", "error": 2.5e-4, "precision": "int8", "reason": "", "times": both},
            {"name": "b", "error": 0.71, "precision": "float", "reason": "for the accuracy", "times": fused},
            {"name": "c", "error": None, "precision": "int8", "reason": "", "times": {}},
        ],
        "remarks": [],
    }


def test_the_sentence_names_each_file_and_what_int8_everywhere_would_lose():
    assert precision_sentence(section()) == (
        "model.int8.onnx: 2 of 3 layers int8, 1 layer stays float for the accuracy; "
        "model.int8.onnxruntime.onnx: 1 of 3 layers int8, its own; "
        "int8 everywhere would lose 51.2 points of accuracy, this loses 0.6 where 1 are allowed"
    )
    assert precision_sentence({}) == ""


def test_layers_that_a_runtime_computes_in_float_all_the_same_are_said():
    found = section()
    found["files"][0]["float_all_the_same"] = {"onnxruntime": {"a": "it needs a pair", "c": "it needs a pair"}}
    said = "stays float for the accuracy, ONNX Runtime computes 2 of these in float (it needs a pair); "
    assert said in precision_sentence(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"needed": 2.13}, "no mix loses at most 1 points of accuracy: 2.1 are needed"),
        ({"trials": [], "int8": 0.2}, "int8 everywhere loses 0.2 points of accuracy, 1 are allowed"),
        (
            {"labelled": False, "kind": "top-1"},
            "points of agreement with the dense model (top-1; the data has no labels), this",
        ),
        ({"int8": None}, "int8 everywhere would lose more than can be counted points"),
    ],
)
def test_what_was_judged_is_said(change, said):
    assert said in precision_sentence({**section(), "accuracy": {**JUDGED, **change}})


def test_the_table_has_every_layer_with_both_times_in_every_runtime():
    found = section()
    assert precision_runtimes(found) == ["OpenVINO", "ONNX Runtime"]
    assert precision_own(found) == ["ONNX Runtime"]
    first, second, third = precision_lines(found)
    assert (first.error, first.times, first.precision, first.own) == (
        "2.5e-04", ("0.200 / 0.100", "0.300 / 0.900"), "int8", ("float",),
    )  # fmt: skip
    assert first.reason == "slow"
    assert (second.times, second.precision, second.reason) == (("0.400 / -", "- / -"), "float", "for the accuracy")
    assert (third.error, third.times, third.own) == ("-", ("- / -", "- / -"), ("int8",))


def test_the_section_is_checked_when_a_report_is_read():
    check_section("precision", section())
    check_section("precision", {})
    check_section("precision", {**section(), "accuracy": {}})
    wrong = section()
    del wrong["layers"][0]["times"]
    with pytest.raises(ValueError, match="times"):
        check_section("precision", wrong)
