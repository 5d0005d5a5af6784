"""What a terminal shows: the verdict, the table, the numbers."""

import re
from dataclasses import replace

import pytest

from deploypruner.records import ACCURACY, Check, Comparison, Metric, OutputQuality
from deploypruner.report import headline, table, table_rows, units
from deploypruner.report.scatter import quality_axis
from tests.test_report_examples import EXAMPLES, a_report, a_row, eight_rows, rows_on, without_labels

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.41234, "0.412"), (1.333, "1.33"), (12.34, "12.3"), (9.996, "10.0"), (1234, "1230"), (0, "0"), (None, "-")],
)
def test_three_significant_digits(value, text):
    assert units.significant(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12_300_000, "", "12.3 M"),
        (999_600, "", "1.00 M"),
        (1_070_000, "B", "1.07 MB"),
        (812, "B", "812 B"),
        (3e18, "", "3000 P"),
        (None, "B", "-"),
    ],
)
def test_si_prefixes(value, unit, text):
    assert units.scaled(value, unit) == text


def test_other_units_by_hand():
    assert units.ratio_with_interval(2.314, (2.268, 2.359)) == "2.31x [2.27, 2.36]"
    assert units.ratio_with_interval(12.34, (11.9, 12.8)) == "12.3x [11.9, 12.8]"
    assert units.agreement(0.9912, "top-1") == "99.1 %"
    assert units.agreement(0.99874, "cosine") == "0.9987"
    assert [units.seconds(s) for s in (0.03, 12.34, 125, 3840)] == ["30.0 ms", "12.3 s", "2 min 05 s", "1 h 04 min"]
    assert [units.change(64, after) for after in (64, 40, 80)] == ["unchanged", "−38 %", "+25 %"]
    assert units.plain_text([[1, 3, 32, 32]]) == "1x3x32x32"
    assert units.plain_text({"accuracy": 77.60000000000001, "epochs": 2}) == "accuracy=77.6, epochs=2"


def test_where_nothing_is_labelled_the_name_of_what_was_measured_stands_beside_it():
    unlabelled = replace(a_row("pruned int8", median_ms=0.5), accuracy=None, agreement=0.9912)
    cells = [
        units.quality_cell(replace(unlabelled, agreement_kind=kind, evaluated=n))
        for kind, n in (("top-1", 64), ("cosine", None), ("relative error", 32))
    ]
    assert cells == ["top-1 agreement 99.1 % (n = 64)", "cosine agreement 0.9912", "relative error 0.9 % (n = 32)"]
    assert units.quality_cell(replace(unlabelled, agreement=None)) == "-"


def test_a_number_of_one_output_of_several_says_of_which_and_an_error_is_no_agreement():
    outputs = (
        OutputQuality("kind", "classification", 0.88, "top-1", metric=ACCURACY, accuracy=77.6),
        OutputQuality("size", "regression", 0.75, "relative error"),
    )
    rows = [
        a_row(accuracy=77.6, agreement=1.0, agreement_kind="top-1", outputs=outputs),
        a_row("pruned fp32", accuracy=77.6, agreement=0.75, agreement_kind="relative error", outputs=outputs),
    ]
    assert units.metric_unit(rows) == "%, of kind"
    assert units.agreement_head(rows) == ("agreement", "")
    assert [units.agreement_cell(row, rows) for row in rows] == ["top-1 100.0 %", "relative error 25.0 %"]
    assert units.agreement_cell(rows[1], rows[1:]) == "25.0 %"
    assert units.metric_unit([replace(row, outputs=outputs[:1]) for row in rows]) == "%"
    assert headline(a_report(rows)).sentence.endswith("accuracy of kind 77.6 -> 77.6 %")
    own = replace(rows[0], metric=Metric("mAP", "", None))
    assert units.of_output(own) == ""
    text = table_rows(rows, colour=False)
    assert "%, of kind" in text
    assert "relative error 25.0 %" in text


def test_where_nothing_is_labelled_there_is_no_column_of_accuracy_and_an_error_is_called_that():
    rows = [a_row(accuracy=None, agreement=agreed, agreement_kind="relative error") for agreed in (1.0, 0.797)]
    text = table_rows(rows, colour=False)
    assert "accuracy" not in text
    assert "20.3 %" in text
    quality = {"kind": "relative error", "output": "boxes", "dense": 100.0, "pruned": 79.7, "lost": 20.3}
    assert units.quality_sentence({**quality, "allowed": 25.0, "labelled": False, "kept": True}) == (
        "relative error against the dense model of output 'boxes' is 20.3 % where 25 are allowed"
    )
    axis = quality_axis(rows)
    assert axis.title == "relative error, % (against dense)"
    assert not axis.upward
    assert axis.value(rows[1]) == pytest.approx(20.3)


def test_budgets_are_stated_in_their_own_unit():
    macs = {"kind": "macs", "requested": 0.5, "predicted": 0.498, "certified": None, "met": True}
    latency = {"kind": "latency", "requested": "5ms@p95", "predicted": 4.6, "certified": 4.81, "met": True}
    assert units.budget_sentence(macs) == "MACs relative to dense: requested 50.0 %, predicted 49.8 %"
    assert units.budget_sentence(latency) == "latency: requested 5ms@p95, predicted 4.60 ms, certified 4.81 ms"


def test_the_fastest_row_that_is_faster_than_its_own_dense_is_recommended():
    result = headline(a_report())
    assert (result.recommended.name, result.recommended.runtime) == ("pruned int8", "openvino")
    assert result.sentence == (
        "pruned int8 on openvino: 0.880 -> 0.400 ms: int8 1.5x, pruning 1.5x · accuracy 97.8 -> 97.2 %"
    )
    assert result.notes == ("Side by side it is 2.20x [2.16, 2.24] faster than the dense fp32 model on openvino.",)
    assert not result.lost


@pytest.mark.parametrize("ms", [1.4, 1.01])
def test_nothing_is_recommended_where_nothing_is_measurably_faster(ms):
    result = headline(a_report(rows_on("openvino", {"dense fp32": 1.0, "pruned int8": ms})))
    assert result.recommended is None
    assert result.sentence.startswith("nothing is faster than the dense fp32 model: the closest, pruned int8")
    assert ("slower" if ms == 1.4 else "indistinguishable") in result.sentence


def test_a_faster_looking_row_within_the_noise_is_not_recommended():
    lucky = a_row("pruned int8", median_ms=0.8, verdict="indistinguishable")
    result = headline(a_report((a_row(), lucky)))
    assert result.recommended is None


def test_nothing_is_recommended_after_a_failed_check():
    result = headline(a_report(verification=(Check("torch = onnx", 1.0, 1e-4, False), Check("b", 0.0, 1.0, True))))
    assert result.recommended is None
    assert result.sentence.startswith("verification failed: 1 of 2 checks disagree ('torch = onnx')")


def test_without_labels_the_headline_gives_the_agreement():
    result = headline(a_report(tuple(without_labels(row) for row in eight_rows())))
    assert result.sentence.endswith("cosine agreement with the dense model 0.9991")


def test_a_gain_that_comes_from_int8_alone_is_said_so():
    same = Comparison("dense int8", 1.01, (0.99, 1.03), "indistinguishable")
    rows = (a_row(), a_row("pruned int8", median_ms=0.5, same_precision=same))
    _, note = headline(a_report(rows)).notes
    assert "cannot be told from dense int8: 1.01x [0.99, 1.03]" in note


def test_an_unpruned_winner_is_said_so():
    rows = rows_on("openvino", {"dense fp32": 1.0, "dense int8": 0.5, "pruned int8": 0.6})
    result = headline(a_report(rows))
    assert result.lost
    assert (result.recommended.name, result.steps[0].command.split()[-4:-2]) == ("dense int8", ["--speedup", "1.5"])
    assert result.sentence.startswith(
        "pruning lost: the fastest pruned artifact, pruned int8 on openvino, takes 0.600 ms, 1.67x [1.63, 1.70] the "
        "speed of dense int8; ship dense int8 on openvino: 1.00 -> 0.500 ms: int8 2.0x · accuracy"
    )


def test_a_quicker_dense_model_elsewhere_is_said_so():
    rows = rows_on("onnxruntime", {"dense fp32": 1.0, "pruned fp32": 0.6}) + rows_on("openvino", {"dense fp32": 0.5})
    result = headline(a_report(rows))
    assert (result.recommended, result.lost) == (None, True)
    assert result.sentence.startswith(
        "nothing is faster than the dense fp32 model on openvino, 0.500 ms: the closest, pruned fp32 on onnxruntime, "
        "takes 0.600 ms"
    )


def test_rows_are_grouped_by_runtime_with_the_baseline_first():
    shuffled = tuple(reversed(eight_rows()))
    lines = [line.split("  ")[0] or line.split("  ")[1] for line in table_rows(shuffled, colour=False).splitlines()]
    assert [line for line in lines if "," in line] == ["openvino, 1 thread", "onnxruntime, 1 thread"]
    assert lines[lines.index("openvino, 1 thread") + 1] == "dense fp32"
    assert lines[lines.index("onnxruntime, 1 thread") + 1] == "dense fp32"


def test_threads_are_never_mixed_in_one_group():
    rows = (*rows_on("openvino", {"dense fp32": 1.0}), a_row(threads=4, median_ms=0.3))
    text = table_rows(rows, colour=False)
    assert "openvino, 1 thread\n" in text
    assert "openvino, 4 threads\n" in text
    assert text.count("baseline") == 2


def test_bench_may_put_any_file_first():
    rows = rows_on("openvino", {"a.int8.onnx": 1.0, "b.onnx": 2.0})
    text = table_rows(rows, colour=False)
    assert "speed-up vs a.int8.onnx" in text
    assert "0.50x [0.49, 0.51] slower" in text


def test_a_pruned_int8_row_is_also_compared_with_dense_int8():
    row = a_row("pruned int8", median_ms=0.5, same_precision=Comparison("dense int8", 1.52, (1.49, 1.55), "faster"))
    lines = table_rows((a_row(), row), colour=False).splitlines()
    assert lines[-1].strip() == "1.52x [1.49, 1.55] faster than dense int8"


def test_unknown_values_are_a_dash_and_columns_without_any_value_are_left_out():
    row = replace(a_row(), accuracy=None, agreement=None, p95_ms=None, macs=None, params=None, nonzero=None)
    lines = table_rows((replace(a_row(), name="known"), row), colour=False).splitlines()
    assert next(line for line in lines if line.startswith(f"  {row.name}")).split().count("-") == 5
    alone = table_rows((row,), colour=False)
    assert "-" not in alone.splitlines()[-1].split()
    for head in ("p95", "MACs", "params", "top-1"):
        assert head not in alone


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", ["eight rows", "slower", "no labels"])
def test_rows_fit_the_width_they_are_given(name, width):
    text = table_rows(EXAMPLES[name].rows, colour=False, width=width)
    assert max(len(line) for line in text.splitlines()) <= width


def test_columns_that_do_not_fit_are_named_and_speed_and_quality_stay():
    text = table_rows(eight_rows(), colour=False, width=80)
    assert "not shown in 80 columns: params, MACs" in text
    assert "accuracy" in text
    assert "2.20x [2.16, 2.24] faster" in text


def test_colour_adds_nothing_but_colour():
    for report in EXAMPLES.values():
        assert ANSI.sub("", table(report, colour=True, width=100)) == table(report, colour=False, width=100)


def test_a_slower_result_is_printed_as_plainly_as_a_faster_one():
    text = table(EXAMPLES["slower"], colour=False)
    assert re.search(r"pruned int8 .* 0\.71x \[0\.70, 0\.73\] slower", text)
    assert "result: nothing is faster" in text


def test_checks_budget_and_warnings_are_shown():
    checks = (Check("masked = removed", 2.1e-15, 1e-9, True), Check("torch = onnx", float("nan"), 1e-4, False, "x"))
    report = a_report(verification=checks, warnings=("the machine was busy",))
    text = table(replace(report, budget={**report.budget, "met": False}), colour=False)
    assert re.search(r"ok +masked = removed +max difference +2\.1e-15 +allowed 1\.0e-09", text)
    assert re.search(r"FAILED +torch = onnx +max difference not a number +allowed 1\.0e-04 +x", text)
    assert "warning: the machine was busy" in text
    assert "certified 25.0 %: NOT MET" in text


def test_a_control_character_in_a_name_does_not_reach_the_terminal():
    report = a_report((a_row("dense\x1b[31m fp32"),), model={"name": "net\x07\n"})
    text = table(report, colour=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.startswith(r"net\x07\n  target cpu")


def test_names_stay_whole_in_80_columns_where_nothing_can_be_told_apart():
    rows = tuple(
        replace(row, accuracy_ci=(97.5, 100.0), verdict="indistinguishable", ratio=12.25, ratio_ci=(11.05, 13.55))
        for row in eight_rows()
    )
    text = table_rows((eight_rows()[0], *rows[1:]), colour=False, width=80)
    assert "pruned fp32 " in text
    assert ".." not in text
    assert "12.2x [11.1, 13.6] indist." in text


def test_checks_that_all_passed_are_one_line():
    assert "verification: ok, 1 of 1 checks\n" in table(a_report(), colour=False)
