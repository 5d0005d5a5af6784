"""Patterns of layers by the budget solver: equal to enumeration, and refused with numbers."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from deploypruner.errors import BudgetError
from deploypruner.latency.clock import Clock
from deploypruner.latency.sparse_costs import MeasuredCosts
from deploypruner.onnx_graph import read_graph
from deploypruner.sparse.cost import Costs, Rates
from deploypruner.sparse.layer import Layer, QuantizedTensor
from deploypruner.sparse.match import match
from deploypruner.sparse.partition import Sides
from deploypruner.sparsity.assign.filling import Fillable
from deploypruner.sparsity.assign.in_time import Assignment, PatternRequest, assign
from deploypruner.sparsity.assign.solver import DENSE, PatternOption, PatternWalk, fill, worthwhile
from tests.qdq import chain

pytestmark = pytest.mark.slow


@dataclass
class Priced(Costs):
    """Names -> nanoseconds; borders cost all the same."""

    dense_ns: dict[str, float]
    sparse_ns: dict[str, float]
    toll: float
    source: str = "a test"

    def sparse(self, layer: Layer) -> float:
        return self.sparse_ns[layer.name]

    def dense(self, layer: Layer) -> float:
        return self.dense_ns[layer.name]

    def enter(self, activation: QuantizedTensor) -> float:
        return self.toll

    def leave(self, activation: QuantizedTensor) -> float:
        return self.toll


@dataclass
class Case:
    """Four layers, the first and the last of which have places."""

    graph: ir.Graph
    layers: tuple[Layer, ...]
    costs: Priced
    ladders: dict[int, list[PatternOption]] = field(default_factory=dict)

    def sides(self) -> Sides:
        return Sides(self.graph, self.layers, self.costs)

    def ns(self, options: dict[int, PatternOption]) -> int:
        """Of a filling, from a cut that nobody changed."""
        ours = {self.layers[number].name: option.ns for number, option in options.items()}
        costs = Priced(self.costs.dense_ns, {**self.costs.sparse_ns, **ours}, self.costs.toll)
        return Sides(self.graph, self.layers, costs).ns


def draw(rng: np.random.Generator) -> Case:
    graph = read_graph(chain()).graph
    prices = [dict(zip("abcd", map(float, rng.integers(20, 100, 4)), strict=True)) for _ in range(2)]
    case = Case(graph, match(graph).layers, Priced(*prices, float(rng.integers(0, 15))))
    for number in (0, 2, 3):
        options = [PatternOption(DENSE, 0.0, 1.0, float(rng.integers(50, 150)))]
        options += [
            PatternOption("1x4", share, float(rng.uniform(0, 1)), float(rng.integers(1, 100)))
            for share in (0.5, 0.7, 0.9)
        ]
        case.ladders[number] = worthwhile(options)
    return case


def test_only_what_nothing_beats_is_worth_choosing() -> None:
    dense, half, most = (
        PatternOption(DENSE, 0, 1.0, 100),
        PatternOption("1x4", 0.5, 0.8, 60),
        PatternOption("1x4", 0.9, 0.3, 20),
    )
    slow, poor = PatternOption("nm64", 0.5, 0.85, 120), PatternOption("unstructured", 0.8, 0.5, 70)
    assert worthwhile([dense, half, slow, poor, most]) == [most, half, dense]
    assert worthwhile([dense, PatternOption("1x4", 0.5, 1.0, 50), most]) == [most, dense]


def test_times_of_every_place_are_those_of_a_new_cut() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        case = draw(rng)
        walk = PatternWalk(case.sides(), case.ladders)
        for number, layer in enumerate(case.ladders):
            at = {n: ladder[i] for i, (n, ladder) in zip(walk.at, case.ladders.items(), strict=True)}
            want = [case.ns({**at, layer: option}) / 1e6 for option in case.ladders[layer]]
            np.testing.assert_allclose(walk.times(number), want)
            walk.move(number, int(rng.integers(len(want))))


def test_the_filling_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    exact = 0
    for _ in range(20):
        case = draw(rng)
        ways = [
            dict(zip(case.ladders, options, strict=True)) for options in itertools.product(*case.ladders.values())
        ]
        times = [case.ns(way) for way in ways]
        budget = min(times) + 0.4 * (max(times) - min(times))
        best = max(
            sum(o.kept for o in way.values()) for way, ns in zip(ways, times, strict=True) if ns <= budget + 1e-6
        )
        found = fill(case.sides(), case.ladders, budget)
        assert found.ns <= budget + 1e-6
        assert case.ns(dict(found.options)) == found.ns
        exact += abs(found.kept * len(case.ladders) - best) < 1e-9
        # Zeros that OpenVINO computes would be lost for nothing.
        assert all(found.sparse[n] for n, option in found.options.items() if option.pattern != DENSE)
    assert exact >= 19


def test_a_budget_out_of_reach_says_what_is_in_reach() -> None:
    case = draw(np.random.default_rng(2))
    least = min(
        case.ns(dict(zip(case.ladders, way, strict=True))) for way in itertools.product(*case.ladders.values())
    )
    with pytest.raises(BudgetError, match=f"at their sparsest they are predicted to take {least / 1e6:.3g} ms"):
        fill(case.sides(), case.ladders, least - 1.0)
    assert fill(case.sides(), case.ladders, float(least)).ns == least


# ---------------------------------------------------------------------- whole searches


def requested(tmp_path: Path, *, rates: Rates, factor: float = 1.0, speedup: float | None = None) -> Assignment:
    """`chain` with weights that differ in size, on a machine that takes `factor` times what the rates say."""
    onnx.save(chain(density=1.0), tmp_path / "dense.onnx")
    layers = [x for x in match(read_graph(chain(density=1.0)).graph).layers if isinstance(x, Layer)]
    generator = torch.Generator().manual_seed(0)
    weights = {x.name: torch.rand(x.weights.shape, generator=generator) for x in layers if x.kind == "conv"}

    def measured(_: Path, __: Path, seen: list[Layer], **___: object) -> MeasuredCosts:
        borders = {f"{a.name}_c4": 1.0 for x in layers for a in x.touches}
        ours = {x.name: factor * rates.sparse(x) for x in seen}
        return MeasuredCosts(ours, {x.name: rates.dense(x) for x in seen}, borders, borders, rest_ns=1000.0)

    clock = Clock(layer_costs=measured)
    return assign(
        PatternRequest(tmp_path / "dense.onnx", weights, rates, [], sparsity=0.7, speedup=speedup, clock=clock)
    )


RATES = Rates(call=100, step=8.0, shared=18.0, requant=5.0, copy=0.0, dense_call=100, mac=0.25, depthwise_mac=1.0)


def test_the_reference_is_met_with_more_saliency_and_only_some_layers_have_zeros(tmp_path: Path) -> None:
    found = requested(tmp_path, rates=RATES)
    assert found.predicted_ms <= found.budget_ms == found.reference_ms < found.dense_ms
    assert found.kept >= found.reference_kept
    assert [layer.name for layer in found.layers] == ["a", "c", "d"]
    assert any(layer.pattern != DENSE for layer in found.layers)
    assert found.trials[0][0] == pytest.approx(found.trials[0][1])


def test_what_a_layer_takes_corrects_what_is_predicted_of_it(tmp_path: Path) -> None:
    found = requested(tmp_path, rates=RATES, factor=1.25)
    assert found.trials[0][0] == pytest.approx(found.trials[0][1])
    plain = requested(tmp_path, rates=RATES)
    assert found.reference_ms > plain.reference_ms
    assert found.dense_ms == plain.dense_ms


def test_a_speed_up_is_kept_by_prediction_or_refused_with_the_best_there_is(tmp_path: Path) -> None:
    found = requested(tmp_path, rates=RATES, speedup=1.2)
    assert found.speedup >= 1.2
    assert found.kept > requested(tmp_path, rates=RATES, speedup=2.0).kept
    with pytest.raises(BudgetError, match=r"50x is out of reach of zeros alone: .* be [\d.]+x as fast") as caught:
        requested(tmp_path, rates=RATES, speedup=50)
    assert re.match(r"about [\d.]+x can be reached; removing channels", caught.value.hint)


def test_where_kernels_are_slow_nothing_gets_zeros(tmp_path: Path) -> None:
    slow = requested(tmp_path, rates=Rates(call=1e6, mac=0.001))
    assert {layer.pattern for layer in slow.layers} == {DENSE}
    assert slow.kept == 1.0
    assert slow.predicted_ms == slow.reference_ms == pytest.approx(slow.dense_ms, rel=1e-3)


def test_a_correction_of_one_pattern_is_the_other_ones_until_they_are_timed() -> None:
    (layer,) = [x for x in match(read_graph(chain(density=1.0)).graph).layers if x.name == "c"]
    weight = torch.rand(layer.weights.shape, generator=torch.Generator().manual_seed(0))
    fillable = Fillable.of(layer, weight, RATES, reference=0.8)
    plain = {o.pattern: o.ns for o in fillable.options if o.sparsity == 0.9}
    fillable.correct(fillable.option("1x4", 0.8), 1.5 * fillable.option("1x4", 0.8).ns)
    assert fillable.option("1x4", 0.9).ns == pytest.approx(1.5 * plain["1x4"])
    assert fillable.option("nm64", 0.9).ns == pytest.approx(1.5 * plain["nm64"])
    fillable.correct(fillable.option("nm64", 0.9), 100 * plain["nm64"])
    assert fillable.option("nm64", 0.9).ns == pytest.approx(2 * plain["nm64"])  # nobody believes that
    assert fillable.filled(fillable.option("1x4", 0.8)).steps * 5 == pytest.approx(layer.steps, abs=5)
