"""What a person reads first: what was gained and by what, or that pruning lost, and what to try then."""

import json
from dataclasses import replace

import pytest

from deploypruner.records import AccuracyChange
from deploypruner.report import from_json, headline, read_report, render_html, render_json, table
from deploypruner.report.gains import best_dense, eager, gains
from deploypruner.report.headline import budget_verdict
from tests.test_report_examples import a_quality, a_report, a_row, a_time_budget, rows_on, ruined_rows

DONE = {"kind": "macs", "requested": 0.5, "predicted": 0.498, "certified": 0.498, "met": True}


def eager_row(ms=2.0):
    return a_row("dense fp32", runtime="torch", median_ms=ms, baseline_ms=ms)


def test_the_factors_of_a_gain_multiply_to_all_of_it():
    """0.8 -> 1.0 (the other runtime) -> 0.5 (int8) -> 0.25 (pruning): 0.8 * 2 * 2 = 3.2 = 0.8 / 0.25."""
    rows = rows_on("openvino", {"dense fp32": 0.8}) + rows_on(
        "onnxruntime", {"dense fp32": 1.0, "dense int8": 0.5, "pruned int8": 0.25}
    )
    assert best_dense(rows) is rows[0]
    assert gains(rows[0], rows[-1], rows) == "onnxruntime instead of openvino 0.80x, int8 2.0x, pruning 2.0x"
    without = [row for row in rows if row.name != "dense int8"]
    assert gains(rows[0], rows[-1], without) == "onnxruntime instead of openvino 0.80x, int8 and pruning 4.0x"
    sparse = a_row("sparse int8", runtime="onnxruntime", median_ms=0.2, pattern="channel + nm64")
    assert gains(rows[1], sparse, [*rows, sparse]) == "int8 2.0x, pruning 2.0x, sparse kernels 1.2x"


def test_torch_eager_is_shown_and_is_no_baseline_where_others_were_measured():
    rows = (*rows_on("openvino", {"dense fp32": 3.0, "pruned int8": 1.0}), eager_row(2.0))
    assert eager(rows) is rows[-1]
    assert best_dense(rows) is rows[0]
    result = headline(a_report(rows))
    assert "3.00 -> 1.00 ms" in result.sentence
    assert any("torch eager, operator by operator, takes 2.00 ms, 2.00x" in note for note in result.notes)
    assert "torch eager" in table(a_report(rows), colour=False)
    assert best_dense(rows[-1:]) is rows[-1]


def test_the_headline_says_how_well_the_accuracy_is_known():
    rows = tuple(
        replace(row, accuracy=accuracy, accuracy_ci=(97.5, 99.3), evaluated=360, change=change)
        for row, accuracy, change in zip(
            rows_on("openvino", {"dense fp32": 0.824, "dense int8": 0.236, "pruned int8": 0.138}),
            (98.9, 98.6, 99.4),
            (None, None, AccuracyChange(3, 1, 0.625, "indistinguishable")),
            strict=True,
        )
    )
    assert headline(a_report(rows)).sentence == (
        "pruned int8 on openvino: 0.824 -> 0.138 ms: int8 3.5x, pruning 1.7x · accuracy 98.9 -> 99.4 % "
        "(± 0.9, n = 360, indistinguishable)"
    )


LOST = {
    "slower": a_report(
        rows_on("openvino", {"dense fp32": 1.0, "dense int8": 0.5, "pruned int8": 0.6}),
        budget={**DONE, "quality": a_quality(pruned=88.0, lost=0.0, kept=True)},
    ),
    "ruined": a_report(ruined_rows(), budget={**DONE, "met": True, "quality": a_quality()}),
    "nothing faster": a_report(
        rows_on("openvino", {"dense fp32": 1.0, "pruned int8": 1.4}),
        budget={**DONE, "quality": a_quality(pruned=88.0, lost=0.0, kept=True)},
    ),
}


def fallen(report):
    """The same, with pruned artifacts that are measurably less accurate."""
    fell = AccuracyChange(1, 9, 0.02, "worse")
    rows = tuple(row if row.pattern == "dense" else replace(row, accuracy=97.0, change=fell) for row in report.rows)
    return replace(report, rows=rows)


# What is faster, and loses no more than it may, but more than chance explains.
FELL = {
    "allowed": fallen(a_report(budget={**DONE, "met": True, "quality": a_quality(pruned=87.0, lost=1.0, kept=True)})),
    "unbounded": fallen(a_report(budget={**DONE, "met": True})),
}


@pytest.mark.parametrize(
    ("name", "said"), [("allowed", "accuracy fell, no further than it may: "), ("unbounded", "accuracy fell: ")]
)
def test_accuracy_that_fell_is_in_the_first_words(name, said):
    found = headline(FELL[name])
    assert found.sentence.startswith(f"{said}pruned int8 on openvino: ")
    assert found.recommended.name == "pruned int8"
    assert not found.lost
    assert "<title>resnet20: " in render_html(FELL[name])


@pytest.mark.parametrize("report", [*LOST.values(), *FELL.values()], ids=[*LOST, *FELL])
def test_where_pruning_lost_that_comes_first_in_red_with_a_command_and_nothing_is_green(report):
    assert headline(report).bad
    text = table(report, colour=True)
    body = text.split("\n\n", 1)[1]
    assert body.startswith("\x1b[1;31mresult: ")
    assert "next: deploypruner compile nets:resnet" in text
    assert "\x1b[32mmet" not in text
    assert budget_verdict(report, headline(report))[1] != "good"
    page = render_html(report)
    assert page.index('class="headline failed"') < page.index("<h1>")
    assert page.index('<p class="next">') < page.index("<h1>")
    assert 'class="tag good">budget' not in page


def test_the_closest_is_the_one_that_takes_the_least_time_wherever_it_runs():
    """Its own baseline may be slow: 1.3x of 2.0 ms is no closer to 1.0 ms than 0.9 ms that the noise hides."""
    hidden = {"verdict": "indistinguishable"}
    slow = rows_on("openvino", {"dense fp32": 2.0, "pruned int8": 1.54})
    here = (a_row(), a_row("pruned fp32", median_ms=0.9, **hidden))
    rows = (*(replace(row, runtime="onnxruntime") for row in here), slow[0], replace(slow[1], **hidden))
    result = headline(a_report(rows))
    assert result.sentence.startswith(
        "nothing is faster than the dense fp32 model: the closest, pruned fp32 on onnxruntime, runs at 1.11x"
    )
    there = (here[0], replace(slow[0], runtime="onnxruntime"), replace(slow[1], runtime="onnxruntime", **hidden))
    assert headline(a_report(there)).sentence.startswith(
        "nothing is faster than the dense fp32 model on openvino, 1.00 ms: the closest, pruned int8 on onnxruntime, "
        "takes 1.54 ms, indistinguishable from the dense fp32 model there, accuracy"
    )


@pytest.mark.parametrize("budget", [a_time_budget(), DONE])
def test_a_budget_is_not_green_where_nobody_knows_the_accuracy(budget):
    report = a_report(budget=budget)
    assert budget_verdict(report, headline(report)) == ("met", "unsure")
    known = a_report(budget={**budget, "quality": a_quality(pruned=87.5, lost=0.5, kept=True)})
    assert budget_verdict(known, headline(known)) == ("met", "good")


def a_deploy(place):
    """A sparse model that was built in `place`, with everything that names a file of it."""
    lines = (
        f"import openvino; core = openvino.Core(); core.add_extension({f'{place}/kernels.so'!r})",
        f'model = core.compile_model({f"{place}/model.sparse.onnx"!r}, "CPU", {{}})',
        'outputs = model({"model.sparse.onnx": x})',
    )
    facts = {"artifact": "sparse int8", "runtime": "openvino", "threads": 1, "version": "2026.1", "bytes": 7}
    inside = {"name": "pixels", "shape": ["N", 8, 8, 3], "layout": "NHWC", "dtype": "uint8"}
    pixels = {"file": "model.pixels.onnx", "input": inside, "load": [f"open({f'{place}/model.pixels.onnx'!r})"]}
    names = {"file": "model.sparse.onnx", "files": ["model.sparse.onnx", "kernels.so"], "classes": [], "inputs": []}
    return {**facts, **names, "load": list(lines), "pixels": pixels}


@pytest.mark.parametrize("place", ["build", "/a/b", "it's here", "a'b\"c", "."])
def test_a_build_that_was_moved_is_loaded_from_where_it_is(place, tmp_path):
    new = tmp_path / "else where"
    new.mkdir()
    (new / "report.json").write_text(render_json(a_report(deploy=a_deploy(place))))
    found = read_report(new).deploy
    assert found == json.loads(json.dumps(a_deploy(new)))
    assert read_report(new / "report.json").deploy == found


def commands(report):
    return [step.command for step in headline(report).steps]


def test_what_to_try_follows_from_what_was_lost():
    ruined = {**DONE, "met": False, "quality": a_quality()}
    command = "deploypruner compile nets:resnet --data d --epochs=2 --macs 0.5 --out b/ --resume"

    def asked(**settings):
        return a_report(ruined_rows(), budget=ruined, command=command, settings={"data": "d", **settings})

    less = "deploypruner compile nets:resnet --data d --epochs=2 --macs 0.75 --out b-2"
    longer = "deploypruner compile nets:resnet --data d --macs 0.5 --epochs 6 --out b-2"
    assert commands(asked(epochs=2)) == [less, longer]
    close = replace(asked(epochs=2), budget={**ruined, "quality": a_quality(pruned=84.0, lost=4.0)})
    assert commands(close) == [longer, less]
    auto = "deploypruner compile nets:resnet --data d --macs 0.5 --epochs auto --out b-2"
    milder_and_tuned = "deploypruner compile nets:resnet --data d --macs 0.75 --epochs auto --out b-2"
    assert commands(asked(epochs=0)) == [auto, milder_and_tuned]
    only_int8 = tuple(replace(row, accuracy=88.0) if row.name == "pruned fp32" else row for row in ruined_rows())
    trained = replace(asked(epochs=2), rows=only_int8)
    assert commands(trained)[0] == f"{command.replace(' --out b/ --resume', '')} --qat 3 --out b-2"
    python = replace(asked(epochs=2), command="deploypruner.compile(...)")
    assert commands(python) == ["macs=0.75", "epochs=6"]


def test_a_budget_of_time_is_asked_for_less_in_its_own_unit():
    quality = {"met": False, "quality": a_quality()}
    latency = {"kind": "latency", "requested": 2.0, "dense_ms": 6.0, "quantile": 0.95}
    report = a_report(
        ruined_rows(), budget={**latency, **quality}, command="deploypruner compile m.pt2 --latency 2ms@p95"
    )
    assert commands(report)[0] == "deploypruner compile m.pt2 --latency 4ms@p95 --out build-2"
    kept = {**latency, **quality, "quantile": 0.5, "judged": {"keeps": 3.25}}
    assert commands(replace(report, budget=kept))[0].endswith("--latency 3.25ms --out build-2")
    speedup = {"kind": "speedup", "requested": 3.0, "dense_ms": 6.0, **quality}
    assert commands(replace(report, budget=speedup))[0].endswith("--speedup 2 --out build-2")


def test_noise_is_one_line_and_its_details_are_folded():
    noise = (
        "the machine was busy before measuring began: 2.0 of 2 cores in use; stop",
        "p95 is far (8.1x for 'a'), so",
    )
    report = a_report(noise=noise, settings={"noise_floor": 0.031})
    (line,) = [line for line in table(report, colour=False).splitlines() if line.startswith("noise: ")]
    assert line == (
        "noise: the machine was busy before measuring began; differences below 3.1 % are not called; 2 remarks in "
        "report.html"
    )
    page = render_html(report)
    assert page.index('<details class="warning">') < page.index("8.1x for &#39;a&#39;")
    assert from_json(json.loads(render_json(report))) == report
    assert "noise: " not in table(a_report(), colour=False)
