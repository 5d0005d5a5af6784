"""`--pattern auto` as a user meets it: chosen, proved, reported layer by layer, refused with a reason."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from deploypruner.build.sparsity import check_sparse
from deploypruner.errors import InputError, RecipeError
from deploypruner.latency.clock import current_clock, using
from deploypruner.latency.sparse_costs import MeasuredCosts
from deploypruner.measure import Job, Measured
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.report import read_report
from deploypruner.report.sparse import assigned_table, sparse_lines
from deploypruner.sparse import library
from deploypruner.sparse.cost import Rates
from deploypruner.sparse.layer import Operation
from deploypruner.sparsity.patterns import CANDIDATES, sparse_patterns
from tests.builds import Outcome, known_rates, pretended, pretended_timings, run_cli, workshop

pytestmark = pytest.mark.slow

needs_library = pytest.mark.skipif(
    not library.is_built(), reason="the package was installed without its sparse kernels"
)
COMPILE = ("compile", "tiny.pt2", "--seconds", "1", "--runtime", "openvino", "--pattern")
RATES = Rates(
    call=100, step=1.0, shared=2.0, requant=2.0, copy=0.0, dense_call=100, mac=0.05, depthwise_mac=1.0, gate=1e3
)


@contextmanager
def machine(rates: Rates = RATES) -> Iterator[None]:
    """A machine that takes exactly what the rates say, nothing for borders, and 3 ms for the dense model."""

    def measured(_: Path, __: Path, layers: Sequence[Operation], **___: object) -> MeasuredCosts:
        free = {f"{a.name}_c4": 0.0 for layer in layers for a in layer.touches}
        ours, dense = ({x.name: cost(x) for x in layers} for cost in (rates.sparse, rates.dense))
        return MeasuredCosts(ours, dense, free, free, rest_ns=1000.0)

    def artifacts(jobs: Sequence[Job], *, threads: int, **_: object) -> Measured:
        """The dense model alone takes 3 ms; in the end, beside others, all take less than any budget here."""
        return pretended(jobs, threads=threads, ms=3.0 if len(jobs) == 1 else 1.0)

    with (
        using(replace(current_clock(), layer_costs=measured, artifacts=artifacts)),
        known_rates(rates),
    ):
        yield


@functools.cache
def built(*options: str, rates: Rates = RATES) -> tuple[Path, Outcome]:
    folder = workshop() / "-".join(["auto", *options]).replace(",", "").replace("labelled.npz", "l")
    with machine(rates):
        outcome = run_cli(*COMPILE, *options, "--out", str(folder))
    assert outcome.code == 0, outcome.err
    return folder, outcome


def assigned(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_report(folder).settings["assign"]
    return found


@needs_library
def test_every_layer_gets_a_pattern_and_a_share_and_the_zeros_survive() -> None:
    folder, outcome = built("auto", "--sparsity", "0.7")
    found, report = assigned(folder), read_report(folder)
    layers = {layer["name"]: layer for layer in found["layers"]}
    body = layers["body"]
    assert body["parameter"] == "body.weight"
    assert body["pattern"] in CANDIDATES
    assert body["sparsity"] <= 0.7  # 1x4 at 70 % is what the budget allows
    assert found["predicted_ms"] <= found["budget_ms"] == found["reference_ms"] < found["dense_ms"]
    sparse = report.settings["sparse"]
    (of_body,) = [layer for layer in sparse["layers"] if layer["name"] == "body"]
    assert of_body["pattern"] == body["pattern"]
    assert of_body["zeros"] / of_body["weights"] == pytest.approx(body["sparsity"], abs=0.02)
    assert (sparse["pattern"], sparse["schedule"]) == ("auto", "one-shot")
    lost = [check for check in report.verification if check.name.startswith("zeros of torch")]
    assert len(lost) == 2
    assert all(check.passed for check in lost)
    assert {row.pattern for row in report.rows} == {"dense", "auto"}
    assert "as long as with 1x4 at 70 % everywhere" in outcome.err


@needs_library
def test_terminal_and_page_say_layer_by_layer_what_was_predicted_and_what_was_measured() -> None:
    folder, outcome = built("auto", "--sparsity", "0.7")
    found = read_report(folder).sparse
    body = next(line for line in sparse_lines(found) if line.name == "body")
    assert body.predicted == body.sparse  # the machine does what the rates say
    assert body.choice == "sparse"
    lines = assigned_table(found)
    assert lines[0].split() == ["layer", "pattern", "kept", "dense", "us", "predicted", "sparse", "us", "choice"]
    assert [line.split()[:2] for line in lines[1:]] == [["body", body.pattern]]
    assert all(line in outcome.out for line in lines)
    assert "patterns: every layer has its own pattern" in outcome.out
    assert "x measured" in outcome.out
    page = (folder / "report.html").read_text()
    assert "predicted sparse, µs" in page
    assert "Every layer has its own pattern" in page


@needs_library
def test_channels_go_first_and_the_rest_is_filled_while_training() -> None:
    folder, _ = built("channel,auto", "--macs", "0.7", "--data", "labelled.npz", "--epochs", "2")
    report = read_report(folder)
    pruned = next(row for row in report.rows if row.name == "sparse int8")
    assert pruned.pattern == "channel + auto"
    assert pruned.macs < 0.7 * report.rows[0].macs
    assert report.settings["sparse"]["schedule"] == "gradual"
    assert report.settings["sparse"]["zeros"] > 0


@needs_library
def test_where_kernels_are_slower_nothing_becomes_zero_and_the_build_says_so() -> None:
    folder, outcome = built("auto", "--sparsity", "0.6", rates=Rates(call=1e6, mac=1e-6))
    assert "every layer stays dense: with 1x4 at 60 % everywhere no layer is predicted to be faster" in outcome.err
    report = read_report(folder)
    assert "sparse" not in report.settings
    assert report.sparse == {}
    assert any(text.startswith("--pattern auto leaves every layer dense") for text in report.warnings)


@needs_library
def test_a_cpu_with_scalar_kernels_alone_is_a_remark() -> None:
    with mock.patch("deploypruner.measure.kernels.targets", return_value=("scalar",)):
        folder, outcome = built("auto", "--sparsity", "0.9")
    assert "every layer stays dense: this CPU has neither AVX2 nor AVX-512 VNNI" in outcome.err
    assert any("neither AVX2 nor AVX-512 VNNI" in text for text in read_report(folder).warnings)


@needs_library
def test_a_model_that_openvino_cannot_run_stays_dense_with_its_reason(tmp_path: Path) -> None:
    refused = InputError("OpenVINO cannot load 'dense.onnx': no such operation", hint="h")
    with machine(), using(replace(current_clock(), layer_costs=mock.Mock(side_effect=refused))):
        outcome = run_cli(*COMPILE, "auto", "--out", str(tmp_path / "b"))
    assert outcome.code == 0, outcome.err
    assert "every layer stays dense: OpenVINO cannot load 'dense.onnx': no such operation" in outcome.err


@needs_library
def test_a_finished_assignment_is_read_again(tmp_path: Path) -> None:
    options = (*COMPILE, "auto", "--sparsity", "0.7", "--out", str(tmp_path / "b"))
    with machine():
        assert run_cli(*options).code == 0
        first = json.loads((tmp_path / "b" / "stages" / "assign.json").read_text())
        with mock.patch("deploypruner.build.stages.assign.assign", side_effect=AssertionError("again")):
            outcome = run_cli(*options, "--resume")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "b" / "stages" / "assign.json").read_text()) == first
    assert np.isfinite(first["kept"])


@needs_library
@pytest.mark.parametrize("budget", [("--speedup", "1.6"), ("--latency", "2ms")])
def test_a_budget_of_time_is_promised_by_prediction_and_judged_on_the_sparse_model(budget: tuple[str, str]) -> None:
    with machine():
        folder = workshop() / f"auto-{budget[0]}"
        outcome = run_cli(*COMPILE, "auto", *budget, "--out", str(folder))
    # The timings of the test are made up and equal, so that no promise of a speed-up can be kept.
    assert outcome.code == (3 if budget[0] == "--speedup" else 0), outcome.err
    report = read_report(folder)
    found = report.settings["assign"]
    factor = 1.6 if budget[0] == "--speedup" else 1.5
    assert found["dense_ms"] / found["predicted_ms"] >= factor
    assert (report.budget["kind"], report.budget["dense_ms"]) == (budget[0].removeprefix("--"), 3.0)
    assert report.budget["importance"] == found["kept"] < 1
    if budget[0] == "--speedup":
        assert "sparse int8 on openvino: measured" in outcome.err


@needs_library
@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (("--speedup", "100"), r"--speedup 100 is out of reach of zeros alone: .* [\d.]+x is predicted"),
        (("--latency", "1us"), r"--latency 1us is out of reach of zeros alone: .* [\d.]+ ms is predicted"),
    ],
)
def test_a_budget_out_of_reach_names_the_best_there_is(budget: tuple[str, str], said: str, tmp_path: Path) -> None:
    with machine():
        outcome = run_cli(*COMPILE, "auto", *budget, "--out", str(tmp_path / "b"))
    outcome.assert_error(3, f"about {budget[0]} ")
    assert re.search(said, outcome.err)
    reachable = json.loads((tmp_path / "b" / "reachable.json").read_text())
    assert reachable["reachable"] > 1
    assert reachable["dense_ms"] == 3.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("channel,auto", "--speedup", "2"), "by removing channels or by zeros, and --pattern says both"),
        (("auto", "--speedup", "2", "--sparsity", "0.8"), "both say how many weights become zero"),
        (("auto", "--speedup", "2", "--precision", "fp32"), "left out in int8 only"),
        (("auto", "--macs", "0.5"), "a budget of --macs 0.5 removes channels, and --pattern says auto"),
    ],
)
def test_what_cannot_go_together_is_refused(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    run_cli(*COMPILE, *options, "--out", str(tmp_path / "b")).assert_error(2, said)


@needs_library
def test_without_kernels_no_budget_of_time_can_be_met_by_zeros(tmp_path: Path) -> None:
    with mock.patch("deploypruner.measure.kernels.targets", return_value=("scalar",)), pretended_timings():
        outcome = run_cli(*COMPILE, "auto", "--speedup", "2", "--out", str(tmp_path / "b"))
    outcome.assert_error(3, "--speedup 2 cannot be met by zeros: this CPU has neither AVX2 nor AVX-512 VNNI")


def test_auto_stands_for_what_the_kernels_run() -> None:
    assert tuple(map(str, sparse_patterns(("channel", "auto")))) == CANDIDATES
    assert "auto" in run_cli("list", "patterns").out
    with pytest.raises(RecipeError, match="follows one sparse pattern, not auto and 2:4"):
        sparse_patterns(("auto", "2:4"))
    with pytest.raises(RecipeError, match=r"sparse\.distribution says 'uniform'"):
        check_sparse(
            Recipe(prune=PruneRecipe(patterns=("auto",)), sparse=SparseSettings(distribution="uniform")), trains=False
        )
