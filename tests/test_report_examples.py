"""Reports that the report tests share, and the laws that hold for each of them."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest

from deploypruner.records import Check, Comparison, Cost, Frozen, Row
from deploypruner.report import LayerWidth, Report, StageTime, from_json, render_html, render_json, table, to_json


def a_row(name="dense fp32", *, runtime="openvino", median_ms=1.0, baseline_ms=1.0, **changes):
    """A row whose ratio follows from its times; dense of the same precision is taken as slow as dense fp32."""
    ratio = baseline_ms / median_ms
    dense, precision = name.startswith("dense"), "int8" if "int8" in name else "fp32"
    wide = 0.0 if ratio == 1 else 0.02 * ratio
    verdict = "faster" if ratio - wide > 1 else "slower" if ratio + wide < 1 else "indistinguishable"
    interval = (ratio - wide, ratio + wide)
    row = Row(
        name=name,
        format="onnx",
        runtime=runtime,
        precision=precision,
        pattern="dense" if dense else "channel",
        threads=1,
        accuracy=97.8 if dense else 97.2,
        agreement=1.0 if dense else 0.985,
        agreement_kind="top-1",
        median_ms=median_ms,
        p95_ms=1.1 * median_ms,
        p99_ms=None,
        samples=300,
        ratio=ratio,
        ratio_ci=interval,
        verdict=verdict,
        same_precision=None if dense else Comparison(f"dense {precision}", ratio, interval, verdict),
        macs=40_000_000 if dense else 10_000_000,
        params=270_000,
        nonzero=270_000,
        bytes=1_070_000,
        peak_rss_bytes=231_000_000,
    )
    return replace(row, **changes)


def rows_on(runtime, times):
    """Rows of one runtime from name -> median ms; the first is the baseline."""
    first = next(iter(times.values()))
    return tuple(a_row(name, runtime=runtime, median_ms=ms, baseline_ms=first) for name, ms in times.items())


def eight_rows():
    """Dense and pruned, fp32 and int8, on both runtimes; pruned int8 on openvino is the fastest."""
    ort = {"dense fp32": 1.0, "dense int8": 0.7, "pruned fp32": 0.5, "pruned int8": 0.45}
    ov = {"dense fp32": 0.88, "dense int8": 0.6, "pruned fp32": 0.5, "pruned int8": 0.4}
    return rows_on("onnxruntime", ort) + rows_on("openvino", ov)


def a_report(rows=None, **changes):
    """A finished build of a 12-layer network."""
    report = Report(
        target={"name": "cpu", "processor": "Example 9000", "cores": 2, "int8_features": ["avx2"]},
        environment={"torch": "2.13.0", "python": "3.12"},
        command="deploypruner compile nets:resnet --macs 0.3",
        model={"name": "resnet20", "source": "nets:resnet", "input_shapes": [[1, 3, 32, 32]], "sha256": "ab" * 32},
        settings={"criterion": "taylor", "step": 8, "distill": True},
        budget={"kind": "macs", "requested": 0.3, "predicted": 0.29, "certified": 0.25, "met": True},
        rows=eight_rows() if rows is None else rows,
        verification=(Check("masked = removed (float64)", 2.1e-15, 1e-9, True, "8 inputs"),),
        loop=(),
        layers=tuple(LayerWidth(f"layer{i}.conv", "conv", 64, 64 - 4 * i) for i in range(12)),
        frozen=(Frozen("fc.weight", 0, 10, "model output", "nets.py:88"),),
        stages=(StageTime("trace", 1.5), StageTime("measure", 61.0)),
        warnings=(),
        dense=Cost(40_000_000, 270_000, 270_000),
        pruned=Cost(10_000_000, 80_000, 80_000),
    )
    return replace(report, **changes)


def without_labels(row):
    return replace(row, accuracy=None, agreement=0.9991, agreement_kind="cosine", p95_ms=None)


def an_entry(objective="measured worth", **changes):
    """One plan of the pool, as JSON has it."""
    entry = {"objective": objective, "predicted_ms": 0.412, "importance": 0.994, "dropped": ["layer1.0", "layer1.1"]}
    return {**entry, "loss": 0.5, "top1": 84.25, "full": True, "trained": None, **changes}


def a_quality(**changes):
    """2.4 % left of 88, where 3 points may go."""
    quality = {"artifact": "pruned int8", "runtime": "openvino", "kind": "accuracy", "dense": 88.0, "pruned": 2.4}
    return {**quality, "lost": 85.6, "allowed": 3.0, "kept": False, **changes}


def a_time_budget(**changes):
    """Of a plan that was judged and without two branches; nothing is known of its quality."""
    budget = {"kind": "speedup", "requested": 2.0, "measured": 2.1, "certified": 2.04, "met": True}
    chosen = {"objective": "measured worth", "judged_by": "loss", "dropped": ["layer1.0", "layer1.1", "layer2.2"]}
    pool = [an_entry(), an_entry("scores, every branch kept", dropped=[], loss=1.25, full=False)]
    return {**budget, **chosen, "importance": 0.994, "pool": pool, **changes}


def a_cut_report(budget, **changes):
    """Two of twelve layers went with their branch."""
    layers = [LayerWidth(f"layer{i}.conv", "conv", 64, 64 - 4 * i) for i in range(10)]
    gone = [LayerWidth(f"layer1.{i}.conv1", "conv", 64, 0, branch=f"layer1.{i}") for i in range(2)]
    loop = ({"predicted_ms": 0.41, "measured_ms": 0.43, "importance": 0.994, "met": True},)
    return a_report(budget=budget, layers=(*layers, *gone), loop=loop, **changes)


def ruined_rows():
    """As `eight_rows`, but the pruned ones know nothing any more."""
    return tuple(row if row.pattern == "dense" else replace(row, accuracy=2.4) for row in eight_rows())


EXAMPLES = {
    "eight rows": a_report(),
    "no labels": a_report(tuple(without_labels(row) for row in eight_rows())),
    "no quality": a_report(tuple(replace(row, accuracy=None, agreement=None) for row in eight_rows())),
    "one row": a_report((a_row(),), budget={}, layers=(), frozen=(), stages=(), verification=()),
    "one bare row": a_report((replace(a_row(), p95_ms=None),)),
    "slower": a_report(rows_on("openvino", {"dense fp32": 1.0, "pruned int8": 1.4})),
    "300 layers": a_report(layers=tuple(LayerWidth(f"l{i}", "linear", 1000, 1000 - i) for i in range(300))),
    "far apart": a_report(rows_on("openvino", {"dense fp32": 90.0, "pruned fp32": 4.0, "pruned int8": 0.02})),
    "closed loop": a_report(loop=({"predicted_ms": 0.41, "measured_ms": 0.43, "widths": {"conv": 8}},)),
    "judged": a_cut_report(a_time_budget(quality=a_quality(pruned=86.5, lost=1.5, kept=True))),
    "refused": a_cut_report(a_time_budget(met=False, quality=a_quality()), rows=ruined_rows()),
    "unjudged": a_cut_report(
        a_time_budget(pool=[], judged_by="", objective="scores"),
        rows=tuple(replace(row, accuracy=None, agreement=None) for row in eight_rows()),
    ),
    "failed": a_report(verification=(Check("torch = onnx fp32", 0.31, 1e-4, False),)),
}


@cache
def page_of(name):
    """The page of an example, drawn once for all tests."""
    return render_html(EXAMPLES[name])


@pytest.fixture(params=EXAMPLES)
def name(request):
    return request.param


@pytest.fixture
def report(name):
    return EXAMPLES[name]


def test_json_round_trip_is_exact(report):
    assert from_json(json.loads(render_json(report))) == report


def test_json_holds_no_number_that_json_does_not_have(report):
    broken = replace(report, verification=(Check("a = b", math.nan, math.inf, False),), settings={"lr": math.inf})
    text = render_json(broken)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert to_json(from_json(json.loads(text))) == to_json(broken)


def test_the_same_report_gives_the_same_page(name, report):
    assert page_of(name) == render_html(from_json(to_json(report)))


def test_every_row_is_in_every_form(name, report):
    page, text = page_of(name), table(report, colour=False)
    for row in report.rows:
        assert row.name in page
        assert row.name in text


def test_text_without_colour_is_ascii_and_has_no_escape_codes(report):
    text = table(report, colour=False)
    assert text.isascii()
    assert "\x1b" not in text
    assert text.endswith("\n")
