"""Plans of equal predicted time, the judge that looks at them, and the quality that a budget may not cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploypruner.build.judging import _quality
from deploypruner.channels.plan import make_plan
from deploypruner.errors import BudgetError, InputError
from deploypruner.graph import trace
from deploypruner.recipe.constraints import Constraints
from deploypruner.records import Setting
from deploypruner.search.final import JudgedPlan
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.kept import quality_kept
from deploypruner.search.losses import kept_share, losses_from_scores, make_choices
from deploypruner.search.objectives import Objective, Space, distance, objectives, perturbed, proposals
from deploypruner.search.pool import select, train_contenders
from deploypruner.search.solve import reach
from deploypruner.search.time_limit import TimeLimit
from deploypruner.search.worth import measure_worth
from deploypruner.tasks.recognise import OutputTask
from deploypruner.train.reconstruct import Reconstruction
from tests.builds import CLASSES, run_cli, samples, workshop
from tests.nets import conv_bn
from tests.staircase import Staircase
from tests.test_graph_branches import GONE, Basic
from tests.test_report_examples import a_row

pytestmark = pytest.mark.slow


def net(blocks: int = 3) -> nn.Module:
    torch.manual_seed(1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    return nn.Sequential(conv_bn(3, 16), *(Basic(16, 12) for _ in range(blocks)), *head).eval()


def space(**changes) -> Space:
    graph = trace(net(), torch.randn(2, 3, 8, 8))
    generator = torch.Generator().manual_seed(0)
    scores = {g.id: torch.empty(g.size).log_normal_(0, 1, generator=generator) for g in graph.groups}
    return replace(Space(graph, scores, "none", 4, Constraints()), **changes)


def batches(count: int, *, labelled: bool = True, seed: int = 0):
    found = []
    for number in range(count):
        x, y = samples(16, seed=100 * seed + number, shape=(3, 8, 8))
        found.append(((torch.from_numpy(x),), torch.from_numpy(y) if labelled else None))
    return found


# ---------------------------------------------------------------------- objectives


def test_every_objective_keeps_the_time_and_plans_differ():
    known = space()
    model = Staircase(known.graph, block=4, base=0.001)
    least = reach(known.graph, model.tally, step=4)
    budget = 0.5 * (least.dense_ms + least.fastest_ms)
    ways = objectives(known)
    assert len({way.name for way in ways}) == len(ways)
    plans = proposals(ways, perturbed(known), model.tally, budget, count=12)
    rules = [way.solve(model.tally, budget).widths for way in ways if way.name in ("uniform shares", "multiply-adds")]
    assert len(rules) == 2
    assert all(any(distance(rule, solution.widths) == 0 for _, solution in plans) for rule in rules)
    for _, solution in plans:
        assert model.ms(solution.keep) <= budget * (1 + 1e-9)
        assert model.ms(solution.keep) == pytest.approx(solution.predicted_ms)
        make_plan(known.graph, solution.keep)
    widths = [solution.widths for _, solution in plans]
    assert all(distance(a, b) >= 1 for i, a in enumerate(widths) for b in widths[:i])


def test_what_keeps_every_branch_drops_none_and_branches_alone_cut_no_width():
    known = space()
    model = Staircase(known.graph, block=4, base=0.001)
    budget = 0.75 * model.ms({})
    found = {way.name: way.solve(model.tally, budget) for way in objectives(known) if "branch" in way.name}
    assert found["branches alone"].dropped
    assert all(found["branches alone"].widths[g.id] == g.size for g in known.graph.groups)
    assert not any(plan.dropped for name, plan in found.items() if name.endswith("kept"))
    kept = replace(known, constraints=Constraints(depth="keep"))
    assert not any("branch" in way.name for way in objectives(kept))


def test_an_objective_that_cannot_reach_the_time_is_passed_over_and_all_of_them_are_an_error():
    def never(tally, ms):
        raise BudgetError(f"{ms:g} ms are out of reach")

    known = space()
    model = Staircase(known.graph, block=4)
    ways = [Objective("never", never), *objectives(known)[:1]]
    plans = proposals(ways, perturbed(known), model.tally, 0.8 * model.ms({}), count=1)
    assert [way.name for way, _ in plans] == [ways[1].name]
    with pytest.raises(BudgetError, match="7 ms are out of reach"):
        proposals(ways[:1], perturbed(known), model.tally, 7.0, count=4)


def test_perturbations_are_the_same_for_a_seed_and_others_for_another():
    known = space()
    model = Staircase(known.graph, block=4)
    budget = 0.6 * model.ms({})

    def widths(seed):
        ways = islice(perturbed(replace(known, seed=seed)), 3)
        return [way.solve(model.tally, budget).widths for way in ways]

    assert widths(0) == widths(0)
    assert widths(0) != widths(1)


def test_distance_counts_groups_and_branches_by_hand():
    assert distance({"a": 8, "b": 4, "x": 0}, {"a": 8, "b": 2, "x": 1}) == 2
    assert distance({"a": 8, "x": 1}, {"a": 8}) == 0


def test_losses_by_hand():
    graph = space().graph
    running = {g.id: np.cumsum(np.arange(g.size, 0, -1.0)) for g in graph.groups}
    losses = losses_from_scores(graph, running)
    inner = graph.branches[0].groups[0]
    assert losses.groups[inner][[0, 1, 12]].tolist() == [78.0, 66.0, 0.0]
    assert losses.branches["1"] == 78.0
    whole = {g.id: g.size for g in graph.groups}
    total = sum(float(line[0]) for line in losses.groups.values())
    assert kept_share(losses, whole) == 1
    assert kept_share(losses, {**whole, "1": 0}) == pytest.approx(1 - 78 / total)
    assert kept_share(losses, {**whole, inner: 1}) == pytest.approx(1 - 66 / total)


def test_the_widest_free_group_of_a_branch_carries_the_choice_to_drop_it():
    known = space()
    room = reach(known.graph, Staircase(known.graph).tally, step=4).room
    running = {g.id: np.ones(g.size).cumsum() for g in known.graph.groups}
    found = make_choices(known.graph, room, losses_from_scores(known.graph, running))
    drops = {choice.branch: choice.group for choice in found if choice.drops}
    assert drops == {b.id: b.groups[0] for b in known.graph.branches}
    assert [choice.worth[-1] for choice in found] == [0] * len(found)


# ---------------------------------------------------------------------- the judge


def test_the_dense_model_is_judged_by_labels_or_by_itself():
    graph = space().graph
    labelled = Judge(graph, solving=batches(1), held_out=batches(2))
    with torch.no_grad():
        outputs = torch.cat([graph.module(x[0]) for x, _ in batches(2)])
    labels = torch.cat([y for _, y in batches(2)])
    assert labelled.dense.kind == "cross-entropy"
    assert labelled.dense.loss == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-5)
    assert labelled.dense.top1 == pytest.approx(100 * float((outputs.argmax(1) == labels).float().mean()))
    unlabelled = Judge(graph, solving=batches(1, labelled=False), held_out=batches(2, labelled=False))
    assert unlabelled.dense == Verdict("KL to the dense outputs", pytest.approx(0, abs=1e-6), 100.0, 32)


def test_outputs_without_classes_are_judged_by_their_relative_error():
    regressor = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1)).eval()
    graph = trace(regressor, torch.randn(2, 3, 8, 8))
    judge = Judge(graph, solving=batches(2, labelled=False), held_out=batches(1, labelled=False))
    assert judge.dense == Verdict("relative error of the outputs", 0.0, None, 16)
    zeroed = graph.cut(graph.removed({}))
    with torch.no_grad():
        for parameter in zeroed.parameters():
            parameter.zero_()
    assert judge.verdict(zeroed).loss == pytest.approx(1)


def test_a_plan_is_refused_in_the_metric_of_its_task():
    """A regression net that answers with the mean has R2 = 0, one that answers rightly 1: a hundred points."""
    torch.manual_seed(0)
    regressor = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1)).eval()
    graph = trace(regressor, torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        held_out = [((x,), regressor(x)[:, 0]) for (x,), _ in batches(2)]
    mean = torch.cat([y for _, y in held_out]).mean()
    build = SimpleNamespace(tasks=(OutputTask("output", "regression", 0),), metric=None)
    judge = Judge(graph, solving=batches(1), held_out=held_out, quality=partial(_quality, build))
    assert (judge.dense.gap.kind, judge.dense.gap.lost) == ("R2", pytest.approx(0, abs=1e-4))
    flat = graph.cut(graph.removed({}))
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
        flat.get_parameter("3.bias").fill_(mean)
    found = judge.verdict(flat)
    assert found.gap.found == pytest.approx(0, abs=1e-4)
    assert found.gap.lost == pytest.approx(100, abs=0.1)
    assert not JudgedPlan(found, judge.dense, allowed=99).accepted
    assert JudgedPlan(found, judge.dense, allowed=101).accepted
    assert JudgedPlan(found, judge.dense, allowed=None).accepted
    assert Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_single_cuts_and_whole_plans_have_the_same_loss_on_the_same_samples():
    """One output crosses zero: shares of each sample's own square would be endless there."""
    regressor = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2), nn.Linear(2, 1)
    ).eval()
    for module, labelled in ((regressor, False), (net(), False), (net(), True)):
        graph = trace(module, torch.randn(2, 3, 8, 8))
        (data,) = batches(1, labelled=labelled)
        order = {g.id: np.arange(g.size) for g in graph.groups}
        worth = measure_worth(graph, order, [data], dtype=torch.float32)
        judge = Judge(graph, solving=[data], held_out=[data])
        name, at = next(iter(worth.groups.items()))
        cut = graph.cut(graph.removed({name: np.arange(at.width)})).eval()
        assert worth.kind == judge.dense.kind
        assert judge.verdict(cut).loss - judge.dense.loss == pytest.approx(at.change, rel=1e-4)


def test_labels_of_every_pixel_are_judged_by_their_loss_and_share_of_right_pixels():
    segmenter = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    graph = trace(segmenter, torch.randn(2, 3, 8, 8))
    x = batches(1)[0][0]
    labels = torch.randint(0, 3, (16, 8, 8), generator=torch.Generator().manual_seed(0))
    judge = Judge(graph, solving=[(x, labels)], held_out=[(x, labels)])
    with torch.no_grad():
        outputs = segmenter(x[0])
    assert judge.dense.kind == "cross-entropy"
    assert judge.dense.loss == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-5)
    assert judge.dense.top1 == pytest.approx(100 * float((outputs.argmax(1) == labels).double().mean()))


def test_a_model_that_returns_decisions_only_cannot_be_judged():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(4, 3)

        def forward(self, x):
            return self.scores(x).argmax(1)

    graph = trace(Decides().eval(), torch.randn(2, 4))
    data = [((torch.randn(4, 4),), None)]
    with pytest.raises(InputError, match="returns no floating-point number"):
        Judge(graph, solving=data, held_out=data)


def test_the_dense_model_on_a_part_of_the_images_is_judged_on_those():
    graph = space().graph
    judge = Judge(graph, solving=batches(1), held_out=batches(4))
    assert judge.dense_on(0.5) == Judge(graph, solving=batches(1), held_out=batches(2)).dense
    assert judge.dense_on(0.5) == judge.verdict(graph.module, share=0.5)
    assert judge.dense_on(0.5).loss != judge.dense.loss


def test_a_repaired_plan_does_no_worse_than_the_better_of_two_targets_and_the_dense_model_is_untouched():
    graph = space().graph
    before = {k: v.clone() for k, v in graph.module.state_dict().items()}
    judge = Judge(graph, solving=batches(4, labelled=False), held_out=batches(4, labelled=False, seed=1))
    keep = {"2": GONE, graph.branches[0].groups[0]: np.arange(6)}
    module = graph.cut(graph.removed(keep)).eval()
    plain = judge.verdict(module)
    verdict, solved = judge.repair(module, keep)
    assert solved is not None
    assert verdict == judge.verdict(module)
    assert verdict.loss <= judge.look(keep).loss
    assert verdict.loss < plain.loss
    assert all(torch.equal(before[k], v) for k, v in graph.module.state_dict().items())


def test_a_correction_is_taken_back_as_far_as_less_of_it_is_better(monkeypatch):
    """Every weight is moved by 8: with the best at 3.5, the half (4) is better than all, the quarter (2) worse."""
    graph = space().graph
    judge = Judge(graph, solving=batches(1), held_out=batches(1))
    name = next(n for n, p in graph.cut(graph.removed({})).named_parameters() if p.ndim == 4)

    def at(module):
        return module.get_parameter(name).flatten()[0].item()

    def solve(graph, keep, module, batches, **settings):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(8)
        return Reconstruction({name: (1.0, 0.5)}, {})

    start = at(graph.cut(graph.removed({})))
    monkeypatch.setattr("deploypruner.search.judge.reconstruct", solve)
    for best, part in ((8, 1), (5, 0.5), (3.5, 0.5), (2, 0.25), (0.5, 0), (-2, 0)):
        tried = []

        def verdict(module, *, share=1.0, best=best, tried=tried):
            tried.append(round(at(module) - start, 3))
            return Verdict("loss", (at(module) - start - best) ** 2, None, 16)

        monkeypatch.setattr(judge, "verdict", verdict)
        module = graph.cut(graph.removed({}))
        found, solved = judge.repair(module, {}, ways=1)
        assert solved.part == part
        assert at(module) - start == pytest.approx(8 * part, abs=1e-5)
        assert found.loss == pytest.approx((8 * part - best) ** 2, abs=1e-4)
        assert tried == [8, 4, 2, 0][: len(tried)]
        if part == 0:
            assert at(module) == start


def test_outputs_that_are_no_numbers_are_infinitely_bad_and_no_image_is_an_error():
    graph = space().graph
    judge = Judge(graph, solving=batches(1), held_out=batches(1))
    broken = graph.cut(graph.removed({}))
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    assert math.isinf(judge.verdict(broken).loss)
    with pytest.raises(InputError, match="no images to judge"):
        Judge(graph, solving=[], held_out=[])


# ---------------------------------------------------------------------- the pool


class Oracle:
    """A judge that knows the losses; a quick look may err. A full one takes four minutes."""

    dense = Verdict("loss", 0.1, 90.0, 100)

    def __init__(self, losses: list[float], quick: list[float] | None = None) -> None:
        self.losses, self.quick, self.asked, self.seconds = losses, quick or losses, [], 0.0

    def clock(self) -> float:
        return self.seconds

    def look(self, keep, *, share: float = 1.0) -> Verdict:
        number = len(keep["g"])
        self.seconds += 240 * share
        self.asked.append((number, share))
        return Verdict("loss", (self.losses if share == 1 else self.quick)[number], 50.0, 100)


def pool_of(count: int):
    known = space()
    model = Staircase(known.graph, block=4)
    whole = objectives(known)[0].solve(model.tally, model.ms({}))
    return [
        (Objective(f"way {i}", lambda tally, ms: whole), replace(whole, keep={"g": np.arange(i)}))
        for i in range(count)
    ]


def test_the_best_of_a_pool_is_first_and_only_the_better_half_is_looked_at_in_full():
    judge = Oracle([9, 8, 7, 6, 5, 4, 3, 1, 2, 10])
    found = select(pool_of(10), judge)
    assert [entry.objective for entry in found.entries[:3]] == ["way 7", "way 8", "way 6"]
    assert found.best.objective.name == "way 7"
    assert [entry.full for entry in found.entries] == [True] * 5 + [False] * 5
    assert sorted(n for n, share in judge.asked if share == 1) == [4, 5, 6, 7, 8]


def test_a_full_look_overrules_a_quick_one():
    judge = Oracle([5, 4, 3, 2, 1, 9, 9, 9, 9, 9], quick=[1, 2, 3, 4, 5, 9, 9, 9, 9, 9])
    assert select(pool_of(10), judge).best.objective.name == "way 4"


def test_a_small_pool_is_looked_at_in_full_at_once():
    judge = Oracle([3, 1, 2])
    assert select(pool_of(3), judge).best.objective.name == "way 1"
    assert judge.asked == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_when_the_time_is_over_the_plans_seen_so_far_decide_and_the_user_hears_of_it():
    """Every look takes a minute: one that would end after the time does not begin."""
    judge = Oracle(list(range(10, 0, -1)))
    limit = TimeLimit(6.5, judge.clock)
    found = select(pool_of(10), judge, limit=limit)
    assert judge.seconds == 6 * 60
    assert limit.cuts == ["6 of 10 plans judged", "0 of 5 full looks"]
    assert limit.remark.startswith("the time for the search (--search-minutes 6.5) ended: 6 of 10 plans judged, 0 of")
    assert found.best.objective.name == "way 5"


def test_full_looks_that_not_all_could_get_do_not_count():
    judge = Oracle([9, 8, 7, 6, 5, 4, 3, 1, 2, 10], quick=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    limit = TimeLimit(10 + 3 * 4 + 1, judge.clock)  # a full look takes four times as long
    found = select(pool_of(10), judge, limit=limit)
    assert limit.cuts == ["3 of 5 full looks"]
    assert found.best.objective.name == "way 0"
    assert not any(entry.full for entry in found.entries)


def test_plans_that_come_close_are_trained_briefly_and_the_best_of_them_wins():
    found = select(pool_of(5), Oracle([1.0, 1.1, 1.19, 1.15, 1.3]))
    asked = []

    def train(solution):
        asked.append(len(solution.keep["g"]))
        return Verdict("loss", {0: 0.9, 1: 0.5, 3: 0.7}[asked[-1]], 50.0, 100)

    trained = train_contenders(found, train)
    assert asked == [0, 1, 3]  # at most three
    assert [entry.objective for entry in trained.entries] == ["way 1", "way 3", "way 0", "way 2", "way 4"]
    assert [entry.trained for entry in trained.entries] == [0.5, 0.7, 0.9, None, None]
    assert trained.best.objective.name == "way 1"
    clock = iter([0.0, 0.0, 60.0, 120.0, 120.0])  # made, begun, asked, ... : no time for a second training
    limit = TimeLimit(1.0, Oracle([]).clock)
    limit.clock = lambda: next(clock)
    asked.clear()
    assert train_contenders(found, train, limit=limit) is found  # one training decides nothing
    assert limit.cuts[0].endswith("of 3 plans trained briefly")
    clear = select(pool_of(2), Oracle([1.0, 2.0]))
    assert train_contenders(clear, train) is clear


# ---------------------------------------------------------------------- quality


def rows(dense=90.0, fp32=88.5, int8=80.25, **agreement):
    pruned = {"pattern": "channel", "macs": 1}
    return (
        a_row("dense fp32", accuracy=dense, agreement=1.0),
        a_row("pruned fp32", accuracy=fp32, **pruned, agreement=agreement.get("fp32", 0.97)),
        a_row("pruned int8", accuracy=int8, precision="int8", **pruned, agreement=agreement.get("int8", 0.6)),
    )


def test_points_lost_by_hand():
    kept = quality_kept(rows(), drop=None)
    assert (kept.artifact, kept.kind, kept.lost, kept.allowed, kept.kept) == (
        "pruned fp32",
        "accuracy",
        1.5,
        3.0,
        True,
    )
    refused = quality_kept(rows(), drop=None, setting=Setting("openvino", "int8"))
    assert (refused.artifact, refused.lost, refused.kept) == ("pruned int8", 9.75, False)
    assert not quality_kept(rows(), drop=1.0).kept
    assert quality_kept(rows(), drop=10.0, setting=Setting("openvino", "int8")).kept
    assert not quality_kept(rows(fp32=math.nan, int8=math.nan), drop=100.0).kept


def test_without_labels_agreement_counts_and_more_of_it_may_go():
    kept = quality_kept(rows(dense=None, fp32=None, int8=None, fp32_=0, int8_=0), drop=None)
    assert (kept.artifact, kept.kind, kept.dense, kept.allowed) == ("pruned fp32", "top-1", 100.0, 10.0)
    assert kept.lost == pytest.approx(3)
    assert quality_kept(rows()[:1], drop=None) is None


def test_a_ruined_model_is_refused_after_the_table_and_no_budget_is_met_beside_it(tmp_path):
    x, _ = samples(64)
    np.savez(workshop() / "photographs.npz", x=x)
    outcome = run_cli(
        *(
            "compile",
            "tiny.pt2",
            "--data",
            "photographs.npz",
            "--macs",
            "0.3",
            "--epochs",
            "0",
            "--no-reconstruct",
            "--seconds",
            "1",
        ),
        *(
            "--runtime",
            "onnxruntime",
            "--accuracy-drop",
            "0",
            "--task",
            "classification",
            "--out",
            str(tmp_path / "build"),
        ),
    )
    assert outcome.code == 3
    assert "pruned fp32" in outcome.out
    assert "REFUSED" in outcome.out
    assert ": met" not in outcome.out
    assert "is refused: agreement with the dense model (top-1) fell from 100.0 to" in outcome.err
    assert (
        "hint: ask for less, such as --macs 0.65, train longer with --epochs, or allow --accuracy-drop" in outcome.err
    )
