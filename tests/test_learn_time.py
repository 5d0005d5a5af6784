"""`--schedule iterative` under a budget of time inside a build, on a clock made of multiply-adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploypruner.build import gradual
from deploypruner.build.stages import allocate
from deploypruner.latency.clock import current_clock, using
from deploypruner.records import Setting
from deploypruner.search.found import SearchResult
from deploypruner.search.goal import Assessment, Goal
from deploypruner.search.loop import Round, Trial
from deploypruner.search.solve import solve
from tests.builds import digests, run_cli, stopped_before
from tests.staircase import Staircase

pytestmark = pytest.mark.slow

BUILD = (
    *("compile", "tiny.pt2", "--data", "labelled.npz", "--epochs", "0", "--speedup", "1.5", "--step", "2"),
    *("--criterion", "taylor", "--schedule", "iterative", "--learn-epochs", "2"),
    *("--depth", "keep"),  # there is one branch, and nothing else would go
)
SAME = ("plan.json", "stages/learned.safetensors", "stages/learned_search.json", "stages/recovered.safetensors")


class Clock:
    """The truth, and a model that predicts a part of it.

    Args:
        share: Of the true time that is predicted for what training ends in.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float = 1.0) -> None:
        self.share, self.graph = share, None
        monkeypatch.setattr(allocate, "meet", self.meet)
        monkeypatch.setattr(gradual, "CandidateBench", lambda *_, **__: self)

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def of(self, graph: Any) -> Staircase:
        self.graph = graph
        return Staircase(graph, block=2, base=0.005, rate=1.0)

    def meet(self, request: Any) -> tuple[Mapping[str, Any], SearchResult]:
        latency = self.of(request.graph)
        dense_ms = latency.ms({})
        limits = {"step": request.step, "constraints": request.constraints}
        solution = solve(request.graph, request.scores, latency.tally, dense_ms / 1.5, **limits)
        line = Round(dict(solution.widths), 0.5, solution.predicted_ms, solution.predicted_ms, 1.5, 1.5, met=True)
        setting = Setting("onnxruntime", "fp32", 1)
        found = SearchResult(
            setting, dense_ms, 1.0, 0.5, line.predicted_ms, line.measured_ms, (line,), objective="scores"
        )
        return solution.keep, found

    def build(self, graph: Any, setting: Setting, **_: Any) -> Model:
        assert setting == Setting("onnxruntime", "fp32", 1)
        return Model(self.of(graph), 1.0)

    def trial(self, keep: Any, goal: Goal) -> Trial:
        ms = self.of(self.graph).ms(keep) / self.share
        strain = ms / goal.median_ms
        return Trial(Assessment(ms, ms, goal.dense_ms / ms, goal.dense_ms / ms, strain, strain))


class Model:
    def __init__(self, latency: Staircase, factor: float) -> None:
        self.latency, self.factor = latency, factor

    def calibrated(self, keep: Any, measured_ms: float, profile: Any = None) -> Model:
        return Model(self.latency, measured_ms / self.latency.ms(keep))

    def learned(self, keep: Any, profile: Any) -> Model:
        return self

    def tally(self, order: Any) -> Scaled:
        return Scaled(self.latency.tally(order), self.factor)


class Scaled:
    def __init__(self, tally: Any, factor: float) -> None:
        self.tally, self.factor = tally, factor

    @property
    def ms(self) -> float:
        return self.tally.ms * self.factor

    def keep(self, group: str, channels: Any) -> float:
        return self.tally.keep(group, channels) * self.factor

    def sweep(self, group: str, widths: Any) -> np.ndarray:
        return self.tally.sweep(group, widths) * self.factor


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clock]]:
    """Makes one of these, which the builds of the test go by."""
    with ExitStack() as stack:

        def begin(kind: type[Clock] = Clock, **options: Any) -> Clock:
            made = kind(monkeypatch, **options)
            stack.enter_context(using(replace(current_clock(), latency_model=made.build)))
            return made

        yield begin


def built(folder: Path, *options: str, stop: str = "quantize") -> str:
    with stopped_before(stop):
        outcome = run_cli(*BUILD, *options, "--out", str(folder))
    assert outcome.code == 130, outcome.err
    return outcome.err


def ms_of(clock: Clock, folder: Path) -> float:
    plan = json.loads((folder / "plan.json").read_text())
    keep = {g["id"]: np.array(g["keep"]) for g in plan["groups"]} | {b: np.array([]) for b in plan["dropped"]}
    return clock.of(clock.graph).ms({name: kept.astype(np.int64) for name, kept in keep.items()})


def test_training_toward_a_time_keeps_it_and_goes_on_to_the_bit(clocked, tmp_path):
    clock = clocked()
    said = built(tmp_path / "whole")
    dense_ms = clock.of(clock.graph).ms({})
    assert 0.6 * dense_ms / 1.5 <= ms_of(clock, tmp_path / "whole") <= dense_ms / 1.5
    assert "masked = removed (float64" in said
    line = next(line for line in said.splitlines() if line.startswith("learn "))
    assert " ms, accuracy" in line
    found = json.loads((tmp_path / "whole" / "stages" / "learned_search.json").read_text())
    assert len(found["rounds"]) == 2
    assert found["measured_ms"] == pytest.approx(ms_of(clock, tmp_path / "whole"))
    built(tmp_path / "parts", stop="remove")
    built(tmp_path / "parts", "--resume")
    assert digests(tmp_path / "parts", SAME) == digests(tmp_path / "whole", SAME)


def test_what_is_measured_slower_than_predicted_is_cut_once_more(clocked, tmp_path):
    clock = clocked(share=0.9)
    said = built(tmp_path, "-v")
    assert ms_of(clock, tmp_path) / 0.9 <= clock.of(clock.graph).ms({}) / 1.5
    assert "trained toward" in said
    rounds = json.loads((tmp_path / "stages" / "learned_search.json").read_text())["rounds"]
    assert [line["met"] for line in rounds] == [True, False, True]


def test_without_data_a_budget_of_time_refuses_to_train(tmp_path):
    options = ("--speedup", "1.5", "--criterion", "magnitude", "--schedule", "iterative")
    outcome = run_cli("compile", "tiny.pt2", *options, "--out", str(tmp_path / "new"))
    outcome.assert_error(2, "schedule 'iterative' chooses channels while training and needs data", "pass --data DIR")
    assert not (tmp_path / "new").exists()


class Dropping(Clock):
    """One shot leaves the only branch out and cuts widths for the rest of the time."""

    def meet(self, request: Any) -> tuple[Mapping[str, Any], SearchResult]:
        keep, found = super().meet(request)
        (branch,) = request.graph.branches
        keep = {**keep, branch.id: np.array([], np.int64)}
        ms = self.of(request.graph).ms(keep)
        return keep, replace(found, predicted_ms=ms, measured_ms=ms)


@pytest.mark.parametrize("pattern", ["channel", "channel,2:4"])
def test_a_branch_that_one_shot_leaves_out_is_gone_from_the_start_and_in_every_file(clocked, tmp_path, pattern):
    clock = clocked(Dropping)
    options = ("--pattern", pattern, "--learn-epochs", "1", "--epochs", "1", "--runtime", "onnxruntime")
    options += () if pattern == "channel" else ("--sparse-layers", "conv,classifier", "--step", "4")
    said = built(tmp_path / "whole", *options, stop="measure")
    (branch,) = clock.graph.branches
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    assert plan["dropped"] == [branch.id]
    assert ms_of(clock, tmp_path / "whole") <= clock.of(clock.graph).ms({}) / 1.5
    assert "masked = removed (float64" in said
    if pattern != "channel":
        zeros = json.loads((tmp_path / "whole" / "stages" / "recover.json").read_text())["sparse"]["layers"]
        assert zeros
        assert not {layer["name"] + ".weight" for layer in zeros} & set(branch.parameters)
        assert all(2 * layer["zeros"] == layer["weights"] for layer in zeros)
    built(tmp_path / "parts", *options, stop="learn")
    built(tmp_path / "parts", *options, "--resume", stop="quantize")
    assert digests(tmp_path / "parts", SAME) == digests(tmp_path / "whole", SAME)


def test_a_pattern_whose_layers_all_went_with_their_branches_is_refused_before_training(clocked, tmp_path):
    clocked(Dropping)
    options = ("--pattern", "channel,2:4", "--epochs", "1", "--schedule", "one-shot", "--runtime", "onnxruntime")
    outcome = run_cli(*BUILD, *options, "--out", str(tmp_path))
    outcome.assert_error(2, "no layer is left for --pattern 2:4: body went with residual branches", "--sparse-layers")
