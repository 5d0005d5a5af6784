"""report.json: its fields, and what a person is told about a file that is not one."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploypruner.errors import InputError
from deploypruner.records import Check
from deploypruner.report import from_json, read_report, to_json, write_report_json
from tests.test_report_examples import a_report, eight_rows

ROW_FIELDS = (
    "name format runtime precision pattern threads accuracy agreement agreement_kind median_ms p95_ms p99_ms samples "
    "ratio ratio_ci verdict same_precision macs params nonzero bytes peak_rss_bytes metric outputs "
    "evaluated agreement_ci accuracy_ci change file histogram environment"
).split()


def test_rows_and_verification_have_the_documented_fields():
    data = to_json(a_report())
    assert [list(row) for row in data["rows"]] == [ROW_FIELDS] * 8
    assert list(data["verification"][0]) == ["name", "max_abs_diff", "tolerance", "passed", "detail"]
    assert list(data["budget"]) == ["kind", "requested", "predicted", "certified", "met"]
    assert set(data) >= {"target", "environment", "command", "model", "loop", "schema"}


def test_a_number_that_is_not_finite_reads_back_as_nan():
    report = a_report(verification=(Check("a = b", math.nan, 1e-6, False),))
    assert to_json(report)["verification"][0]["max_abs_diff"] is None
    assert math.isnan(from_json(to_json(report)).verification[0].max_abs_diff)


def test_a_ratio_that_is_not_finite_reads_back_as_nan():
    first, *rest = eight_rows()
    report = a_report((first, replace(rest[0], ratio=math.nan, ratio_ci=(0.5, math.inf)), *rest[1:]))
    read = from_json(to_json(report)).rows[1]
    assert math.isnan(read.ratio)
    assert read.ratio_ci[0] == 0.5
    assert math.isnan(read.ratio_ci[1])


def test_tuples_paths_and_numpy_numbers_become_json_values_at_once():
    report = a_report(settings={"shape": (1, 3), "out": Path("build"), "step": np.int64(8), "lr": np.float32(0.5)})
    assert report.settings == {"shape": [1, 3], "out": "build", "step": 8, "lr": 0.5}


def test_an_object_that_json_cannot_hold_is_refused_by_name():
    with pytest.raises(TypeError, match="a report cannot hold a set"):
        a_report(settings={"names": {"a"}})


def test_a_written_report_reads_back_from_its_file_and_from_its_folder(tmp_path):
    write_report_json(a_report(), tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == a_report()
    assert read_report(tmp_path) == a_report()


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no report file '.*report\.json'[\s\S]*hint: pass a build folder"):
        read_report(tmp_path)


def test_a_model_is_no_build(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(
        InputError, match=r"model\.onnx' is no build[\s\S]*`deploypruner bench .*model\.onnx` measures"
    ):
        read_report(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": 1,', r"is not valid JSON: .* at line 1[\s\S]*hint:"),
        (b"\xff\xfe\x00", r"is not UTF-8 text[\s\S]*hint:"),
        (b"[1, 2]", r"is not a DeployPruner report: it has no schema number[\s\S]*hint:"),
        (b'{"schema": 99}', r"has report schema 99, this version reads schema 1[\s\S]*hint:"),
        (b'{"schema": 1}', r"is not a valid report: target: field required[\s\S]*hint:"),
    ],
)
def test_a_damaged_report_is_explained(tmp_path, content, message):
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_report(file)
    assert str(file) in str(caught.value)


def test_a_wrong_field_is_named_with_its_place(tmp_path):
    data = to_json(a_report())
    data["rows"][2]["verdict"] = "quicker"
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"rows\.2\.verdict: input should be 'faster'"):
        read_report(tmp_path)


def test_importing_the_report_does_not_import_torch():
    code = "import sys, deploypruner.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
