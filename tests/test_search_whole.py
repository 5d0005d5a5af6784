"""A whole search under a budget of time: its limit, what survives a kill, and the verdict on what it ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from deploypruner.recipe.budget import Budget
from deploypruner.search import latency_search as meet
from deploypruner.search.final import JudgedPlan, judge_final
from deploypruner.search.found import SearchResult
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.losses import Losses
from deploypruner.search.time_limit import TimeLimit
from tests.test_search_meet import Machine

pytestmark = pytest.mark.slow


class Clocked(Machine):
    """Every measurement takes its time on a clock of our own."""

    MEASURING, LOOK, TRAINING = 10.0, 30.0, 60.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch, wrong_by=0.7)
        self.seconds, self.log = 0.0, list[tuple[str, float]]()
        self.x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def spend(self, what: str, seconds: float) -> None:
        self.seconds += seconds
        self.log.append((what, self.seconds))

    def _time(self, jobs: Any, **said: Any) -> Any:
        self.spend("measure", self.MEASURING)
        return super()._time(jobs, **said)

    def judge(self, stop_at: int = 10**9, file: Path | None = None) -> Callable[[], Judge]:
        machine, solving = self, [((self.x[:32],), None)]
        held_out = [((part,), None) for part in self.x[32:].split(8)]

        class Slow(Judge):
            def repair(self, module: Any, keep: Any, *, share: float = 1.0, ways: int = 2) -> Any:
                if machine.count("look") == stop_at:
                    raise KeyboardInterrupt
                machine.spend("look", machine.LOOK * share)
                return super().repair(module, keep, share=share, ways=ways)

        return lambda: Slow(self.graph, solving=solving, held_out=held_out, file=file)

    def train(self, judge: Judge, keep: Any) -> Verdict:
        def found() -> Verdict:
            self.spend("train", self.TRAINING)
            return judge.verdict(self.graph.cut(self.graph.removed(keep)).eval())

        return judge.remembered(keep, "trained", found)

    def worth(self, enough: Callable[[float], bool]) -> Losses:
        for batch in range(8):
            if batch and enough(20.0):
                break
            self.spend("worth", 20.0)
        groups = {g.id: np.linspace(1.0, 0.0, g.size + 1) ** 2 for g in self.graph.groups}
        return Losses(groups, {})

    def searched(self, folder: Path | None = None, stop_at: int = 10**9, **changes: Any) -> tuple[Any, SearchResult]:
        file = None if folder is None else folder / "looks.json"
        return meet.meet(
            self.request(
                Budget(speedup=2),
                worth=self.worth,
                judge=self.judge(stop_at, file),
                train=self.train,
                clock=replace(self.clock, monotonic=lambda: self.seconds),
                folder=folder,
                plans=5,
                step=8,
                **changes,
            )
        )

    def count(self, what: str) -> int:
        return sum(name == what for name, _ in self.log)


def test_without_a_limit_nothing_is_cut(monkeypatch):
    machine = Clocked(monkeypatch)
    _, found = machine.searched()
    assert found.cut == ""
    assert machine.count("worth") == 8
    assert machine.count("train") >= 2
    assert all(entry.full for entry in found.pool[:4])


@pytest.mark.parametrize("minutes", [0.0, 2.0, 5.0])
def test_the_whole_search_keeps_its_time_and_says_what_was_cut(monkeypatch, minutes):
    """Beyond the time goes only what a plan cannot be had without: two quick looks, rounds up to the first that
    keeps the budget, and a look at what comes out."""
    machine = Clocked(monkeypatch)
    keep, found = machine.searched(minutes=minutes)
    over = [name for name, at in machine.log if at > 60 * minutes]
    assert len(over) <= {0.0: 2 + 1 + 2}.get(minutes, 1) + len(found.rounds) + 1
    assert found.cut.startswith(f"the time for the search (--search-minutes {minutes:g}")
    assert any(line.met for line in found.rounds)
    assert machine.ms(keep) <= 5.0
    assert found.judged is not None
    if not minutes:
        assert (machine.count("worth"), machine.count("train")) == (1, 0)
        assert found.cut.startswith("the time for the search (--search-minutes 0, and 2.")
        assert " were needed) ended: " in found.cut
        assert "worth measured on a part of the samples, " in found.cut
        assert "2 of" in found.cut
    else:
        assert over.count("train") <= 1, "the first, which nobody had timed"
        assert "worth" not in over


def test_a_killed_search_goes_on_with_its_plans_and_looks_to_the_same_end(monkeypatch, tmp_path):
    whole = Clocked(monkeypatch)
    keep, wanted = whole.searched(tmp_path / "whole")
    looks = whole.count("look")
    killed = Clocked(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        killed.searched(tmp_path / "parts", stop_at=2)
    again = Clocked(monkeypatch)
    again.wrong_by = 0.9  # another moment: whoever proposes anew proposes other plans
    _, found = again.searched(tmp_path / "parts")
    assert 0 < again.count("look") <= looks - 2 + 1  # what the closed loop ends with may be another plan
    assert found.pool == wanted.pool
    assert found.objective == wanted.objective
    last = Clocked(monkeypatch)
    same, at_once = last.searched(tmp_path / "whole")
    assert at_once == wanted
    assert {g: k.tolist() for g, k in same.items()} == {g: k.tolist() for g, k in keep.items()}
    assert last.count("look") == last.count("train") == 0


@pytest.mark.parametrize("other", ["weights", "samples", "damaged"])
def test_looks_at_something_else_are_not_used(monkeypatch, tmp_path, other):
    machine = Clocked(monkeypatch)
    group = machine.graph.groups[0]
    plan = {group.id: np.arange(group.size // 2)}
    file = tmp_path / "looks.json"
    first = machine.judge(file=file)().look(plan)
    assert machine.judge(file=file)().look(plan) == first
    assert machine.count("look") == 1
    if other == "weights":
        with torch.no_grad():
            next(machine.graph.module.parameters()).mul_(0.5)
    elif other == "samples":
        machine.x = machine.x + 1
    else:
        file.write_text(file.read_text()[:40])
    machine.judge(file=file)().look(plan)
    assert machine.count("look") == 2


def test_the_plan_of_the_loop_is_judged_itself(monkeypatch):
    machine, said = Clocked(monkeypatch), list[str]()
    keep, found = machine.searched(say=said.append)
    judged = found.judged
    assert judged.verdict == machine.judge()().look(keep)
    assert judged.dense == machine.judge()().dense
    assert judged.accepted
    text = f"the plan: KL to the dense outputs {judged.verdict.loss:.3g}, top-1"
    assert any(line.startswith(text) for line in said)
    plain = replace(found, table={})
    assert SearchResult.from_json(json.loads(json.dumps(plain.to_json()))) == plain


def test_an_endless_loss_survives_json():
    bad = Verdict("loss", float("inf"), 10.0, 64)
    found = SearchResult(None, 1.0, 1.0, judged=JudgedPlan(bad, Verdict("loss", 0.5, 90.0, 64)))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["judged"]["verdict"]["loss"] is None
    assert Verdict.from_json(bad.to_json()) == bad


class Halves:
    """Top-1 on half of the images and on all of them are of different images: 60 and 90 for the dense model."""

    dense = Verdict("loss", 0.1, 90.0, 100)

    def __init__(self, lost: Callable[[float], float]) -> None:
        self.lost, self.looked = lost, list[float]()

    def dense_on(self, share: float) -> Verdict:
        return Verdict("loss", 0.1, 60.0 if share < 1 else 90.0, int(100 * share))

    def look(self, keep: Any, *, share: float = 1.0) -> Verdict:
        self.looked.append(share)
        return Verdict("loss", 0.2, self.dense_on(share).top1 - self.lost(len(keep["g"]) / 100), 100)


@pytest.mark.parametrize("allowed", [5.0, 2.0])
def test_what_keeps_the_accuracy_is_judged_against_the_dense_model_on_the_same_images(monkeypatch, allowed):
    """A plan of t ms loses 10 - t points: 5 points are kept from 5 ms on, 2 points from 8 ms on."""

    def solved(tally: Any, ms: float) -> Any:
        return SimpleNamespace(keep={"g": np.arange(round(100 * ms))}, predicted_ms=ms, dense_ms=10.0)

    machine = Clocked(monkeypatch)
    request = machine.request(
        Budget(speedup=2), keeping=allowed, clock=replace(machine.clock, monotonic=lambda: machine.seconds)
    )
    judge = Halves(lambda ms: 10 - ms)
    outcome = SimpleNamespace(solution=solved(None, 2.0), model=machine._build(None, None))
    objective = SimpleNamespace(solve=solved)
    objective.name, seen = "scores", Mock()
    judged = judge_final(request, judge, outcome, objective=objective, limit=TimeLimit(), seen=seen)
    assert not judged.accepted
    assert judge.looked == [1.0, 0.5, 0.5, 0.5, 0.5]
    assert seen.add.call_count == 5, "every plan that was looked at is kept"
    # 2 to 10 ms halved in ratio: 4.47 (lost 5.53), 6.69 (lost 3.31), ...
    fastest = 10 - allowed
    assert judged.keeps is not None
    assert fastest <= judged.keeps <= fastest * (10 / 2) ** (1 / 16)
