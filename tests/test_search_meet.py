"""Meeting a budget of time end to end, on a runtime made of numbers: milliseconds follow the multiply-adds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploypruner.graph import trace
from deploypruner.latency import LayerTime
from deploypruner.latency.clock import Clock
from deploypruner.measure import Measured
from deploypruner.recipe.budget import Budget
from deploypruner.records import Artifact, Quality, Timing
from deploypruner.search import bench
from deploypruner.search import latency_search as meet
from deploypruner.search.latency_search import OutOfReach
from deploypruner.search.request import SearchRequest

pytestmark = pytest.mark.slow

FIXED_MS = 1.0


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)),
        *(nn.Flatten(), nn.Linear(32 * 4, 5)),
    ).eval()


class Machine:
    """Takes 1 ms and 9 ms for the whole model's multiply-adds; predictions are off by `wrong_by`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong_by: float = 1.0) -> None:
        self.graph = trace(net(), (torch.randn(2, 3, 8, 8),))
        self.wrong_by, self.kept, self.tables, self.floats = wrong_by, dict[str, Any](), 0, list[Any]()
        monkeypatch.setattr(bench, "write_candidate", self._write)
        self.clock = Clock(artifacts=self._time, profile=self._profile, latency_model=self._build)

    def ms(self, keep: Mapping[str, Any]) -> float:
        costs = self.graph.costs
        return FIXED_MS + 9 * costs.macs(self.graph.removed(keep)) / costs.macs()

    def request(self, budget: Budget, **changes: Any) -> SearchRequest:
        dense = Artifact("dense fp32", Path("dense.onnx"), "onnx", "fp32")
        scores = {g.id: torch.arange(g.size, dtype=torch.float32) + 1 for g in self.graph.groups}
        return SearchRequest(
            **{"graph": self.graph, "scores": scores, "budget": budget, "jobs": [(dense, "openvino")], "step": 4}
            | {"clock": self.clock}
            | changes
        )

    def _write(self, graph: Any, keep: Any, precision: str, path: Path, *, floats: Any = (), placement: str) -> None:
        self.kept[str(path)] = keep
        self.floats.append(floats)

    def _time(self, jobs: Any, **_: Any) -> Any:
        timings = []
        for artifact, runtime in jobs:
            ns = self.ms(self.kept.get(str(artifact.path), {})) * 1e6 * (0.3 if artifact.precision == "int8" else 1)
            timings.append(Timing(artifact, runtime, 1, np.full((12, 10), int(ns)), 0.0, 0, 0))
        return Measured(tuple(timings), timings[0], floor=0.01, settled=True)

    def _profile(self, path: Path, *_: Any, **__: Any) -> Any:
        ms = self.ms(self.kept.get(str(path), {}))
        return SimpleNamespace(nodes=[SimpleNamespace(name="conv", kind="Convolution", ns=ms * 1e6)])

    def _build(self, graph: Any, setting: Any, **_: Any) -> Model:
        self.tables += 1
        return Model(self, self.wrong_by)


class Model:
    """Predicts `factor` times the truth."""

    facts = MappingProxyType({"probes": 0, "remarks": ["the latency table was not kept"]})

    def __init__(self, machine: Machine, factor: float) -> None:
        self.machine, self.factor = machine, factor

    def ms(self, keep: Any) -> float:
        return self.machine.ms(keep) * self.factor

    def layers(self, keep: Any) -> list[LayerTime]:
        return [LayerTime("conv", "Convolution", self.ms(keep))]

    def calibrated(self, keep: Any, measured_ms: float, profile: Any = None) -> Model:
        return Model(self.machine, self.factor * measured_ms / self.ms(keep))

    def learned(self, keep: Any, profile: Any) -> Model:
        return self

    def tally(self, order: Any) -> Tally:
        return Tally(self, order)


class Tally:
    def __init__(self, model: Model, order: Any) -> None:
        self.model, self.order, self.kept = model, order, dict[str, Any]()

    @property
    def ms(self) -> float:
        return self.model.ms(self.kept)

    def keep(self, group: str, channels: Any) -> float:
        self.kept[group] = channels
        return self.ms

    def sweep(self, group: str, widths: Any) -> Any:
        return np.array([self.model.ms(self.kept | {group: self.order[group][:w]}) for w in widths])


@pytest.mark.parametrize("wrong_by", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("budget", [Budget(latency="5ms"), Budget(speedup=2), Budget(latency="4000us@p95")])
def test_a_budget_is_met_by_measurement_however_wrong_the_model(monkeypatch, budget, wrong_by):
    machine = Machine(monkeypatch, wrong_by)
    keep, found = meet.meet(machine.request(budget))
    allowed = budget.latency_ms or 10 / budget.speedup
    assert 0.8 * allowed <= machine.ms(keep) <= allowed
    assert found.measured_ms == pytest.approx(machine.ms(keep))
    best = max((line for line in found.rounds if line.met), key=lambda line: line.importance)
    assert best.widths == {group: len(kept) for group, kept in keep.items()}
    assert 0 < found.importance < 1


def test_a_candidate_shows_its_time_and_what_the_criterion_thinks_of_it(monkeypatch):
    said: list[str] = []
    meet.meet(Machine(monkeypatch).request(Budget(speedup=2), say=said.append))
    rounds = [line for line in said if line.startswith("candidate: ")]
    assert rounds
    assert all(
        re.search(r"(within|not within) the budget; importance by the criterion \d+\.\d %$", x) for x in rounds
    )


def test_out_of_reach_is_said_before_any_layer_is_timed(monkeypatch):
    machine = Machine(monkeypatch)
    with pytest.raises(OutOfReach, match=r"--latency 1\.1ms is out of reach.*fp32 on openvino") as caught:
        meet.meet(machine.request(Budget(latency="1.1ms")))
    assert machine.tables == 0
    assert "100 % of its time is in conv" in caught.value.message
    reachable = caught.value.numbers["reachable_ms"]
    assert f"--latency {np.ceil(100 * reachable) / 100:g}ms can be reached" in caught.value.hint
    assert caught.value.exit_code == 3
    keep, _ = meet.meet(machine.request(Budget(latency=1.05 * reachable)))
    assert machine.ms(keep) <= 1.05 * reachable


def test_a_budget_above_the_dense_latency_cuts_nothing_and_says_so(monkeypatch):
    machine = Machine(monkeypatch)
    keep, found = meet.meet(machine.request(Budget(latency="11ms")))
    assert keep == {}
    assert "keeps --latency 11ms already, so nothing is cut" in found.remark
    assert machine.tables == 0


def test_the_budget_is_for_the_fastest_setting_that_keeps_the_accuracy(monkeypatch):
    machine = Machine(monkeypatch)
    fp32 = Artifact("dense fp32", Path("dense.onnx"), "onnx", "fp32")
    int8 = Artifact("dense int8", Path("dense8.onnx"), "onnx", "int8")
    jobs = [(fp32, "openvino"), (int8, "openvino")]

    def judged(accuracy: float) -> Any:
        return lambda _: [Quality(90.0, 1.0, "top-1", 10), Quality(accuracy, 1.0, "top-1", 10)]

    for accuracy, precision in ((89.5, "int8"), (80.0, "fp32")):
        _, found = meet.meet(machine.request(Budget(speedup=1.5), jobs=jobs, qualities=judged(accuracy)))
        assert found.setting.precision == precision
        assert found.gave_up == ("" if precision == "int8" else "int8 on openvino, 1 thread")


@pytest.mark.parametrize(("share", "floats"), [(0.5, ("2.weight",)), (1.1, ())])
def test_int8_with_some_layers_float_competes_with_float_everywhere_by_measured_time(monkeypatch, share, floats):
    """Int8 everywhere loses 10 points: the mix that keeps the accuracy is taken if it is faster than float."""
    machine = Machine(monkeypatch)
    jobs = [
        (Artifact(f"dense {precision}", Path(f"{precision}.onnx"), "onnx", precision), "openvino")
        for precision in ("fp32", "int8")
    ]
    mixed = Artifact("dense int8 mixed", Path("mixed.onnx"), "onnx", "int8")
    timed = machine.clock.artifacts

    def time(jobs: Any, **said: Any) -> Any:
        found = timed(jobs, **said)
        changed = tuple(
            replace(t, samples_ns=t.samples_ns * share / 0.3) if t.artifact == mixed else t for t in found.timings
        )
        return replace(found, timings=changed, twin=changed[0])

    asked: list[Any] = []
    request = machine.request(
        Budget(speedup=1.5),
        jobs=jobs,
        qualities=lambda _: [Quality(90.0, 1.0, "top-1", 10), Quality(80.0, 1.0, "top-1", 10)],
        mixed=lambda *given: (asked.append(given), (mixed, ("2.weight",)))[1],
        clock=replace(machine.clock, artifacts=time),
    )
    _, found = meet.meet(request)
    assert asked == [("openvino", ())]
    assert (found.setting.precision, found.setting.floats) == ("int8" if floats else "fp32", floats)
    assert found.gave_up == "int8 on openvino, 1 thread"
    assert set(machine.floats) == {floats}, "every candidate is written with these layers float"
    assert ("is no faster" in found.remark) == (not floats)


def test_what_an_earlier_pass_had_to_keep_float_is_float_from_the_start(monkeypatch):
    machine = Machine(monkeypatch)
    int8 = Artifact("dense int8", Path("int8.onnx"), "onnx", "int8")
    mixed = Artifact("dense int8 mixed", Path("mixed.onnx"), "onnx", "int8")
    _, found = meet.meet(
        machine.request(
            Budget(speedup=1.5),
            jobs=[(int8, "openvino")],
            floats=("4.weight",),
            mixed=lambda runtime, floats: (mixed, floats),
        )
    )
    assert found.setting.floats == ("4.weight",)
    assert str(found.setting) == "int8 with 1 layer float on openvino, 1 thread"
    assert "which earlier had to stay float" in found.remark
