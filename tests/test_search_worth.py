"""Measured worth: against networks that are cut for real, by hand, interrupted, and drawn out into curves."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.float64_interpreter import runner
from deploypruner.progress import SilentProgress
from deploypruner.search.measured import BranchWorth, GroupWorth, MeasuredWorth, losses_from_worth
from deploypruner.search.sensitivity import Cut, Sweep
from deploypruner.search.worth import measure_worth
from tests.nets import NETS, make
from tests.test_graph_autograd import TwoPaths, by_autograd

pytestmark = pytest.mark.slow


class Overwritten(nn.Module):
    """Residual blocks that write into sums, into views of what others read, and into the shortcut's own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.c, self.d, self.o = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        flat = x.flatten(2)
        y = self.b(F.relu(self.a(x), inplace=True))
        flat.relu_()
        y += x
        y.relu_()
        z = self.d(F.relu(self.c(y), inplace=True)) + y
        return self.o(z.relu_() + y)


class Classifier(nn.Module):
    """A stem, one residual block and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.block = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(x + self.block(x)).mean((2, 3)))


def seeded(make_net: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make_net().eval()


def fresh_classifier() -> Graph:
    return trace(seeded(Classifier), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)))


@cache
def classifier() -> Graph:
    """For tests that do not change it."""
    return fresh_classifier()


def batches(*sizes: int, labels: bool = True) -> list[tuple[tuple[Tensor], Tensor | None]]:
    rng = torch.Generator().manual_seed(2)
    drawn = [(torch.randn(n, 3, 6, 6, generator=rng), torch.randint(0, 3, (n,), generator=rng)) for n in sizes]
    return [((x,), y if labels else None) for x, y in drawn]


def shuffled(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {group.id: rng.permutation(group.size) for group in graph.groups}


def halves(graph: Graph, order: dict[str, np.ndarray]) -> list[Cut]:
    groups = [Cut(g.id, {g.id: np.sort(order[g.id][: g.size // 2])}, g.id) for g in graph.groups if g.size > 1]
    return [*groups, *(Cut(b.id, {b.id: np.array([], np.int64)}, b.id) for b in graph.branches)]


# ---------------------------------------------------------------------- what a cut network returns


@pytest.mark.parametrize("name", [*(n for n in NETS if n != "in place"), "overwritten"])
def test_a_cut_returns_what_the_network_without_it_returns(name):
    net, x = (seeded(Overwritten), torch.randn(2, 3, 8, 8)) if name == "overwritten" else make(name)
    graph = trace(net, x)
    # Lengths of a weight norm are scaled and rounded to float32, by 6e-8 at most.
    exact = 1e-7 if graph.labelling.normed else 1e-12
    cuts = halves(graph, shuffled(graph))
    sweep = Sweep(graph, cuts, dtype=torch.float64)
    x = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(3))
    before = x.clone()
    found = {cut.id: outputs for cut, outputs in sweep.cuts((x,))}
    assert set(found) == {cut.id for cut in cuts}
    dense = sweep.dense((x,))
    for cut in cuts:
        wanted = runner(graph.cut(graph.removed(cut.keep)), torch.float64).outputs((x,))
        for got, want, whole in zip(found[cut.id], wanted, dense, strict=True):
            assert (got - want).abs().max() <= exact * want.abs().max()
            assert (got - whole).abs().max() > 1e-6 * whole.abs().max()
    wanted = runner(graph.module, torch.float64).outputs((x,))
    assert all((a - b).abs().max() <= 1e-12 * b.abs().max() for a, b in zip(dense, wanted, strict=True))
    assert torch.equal(x, before)


def test_autocast_changes_little_and_leaves_the_scores_whole():
    graph = classifier()
    order, data = shuffled(graph), batches(64)
    exact = measure_worth(graph, order, data, dtype=torch.float32)
    mixed = measure_worth(graph, order, data, dtype=torch.bfloat16)
    for name, worth in exact.groups.items():
        assert mixed.groups[name].change == pytest.approx(worth.change, abs=0.02 * abs(worth.change) + 1e-3)
    logits = Sweep(graph, [], dtype=torch.bfloat16).dense(data[0][0])[0]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("labels", [True, False])
def test_changes_and_their_errors_are_those_of_the_samples(labels):
    graph, data = classifier(), batches(40, 7, labels=labels)
    order = shuffled(graph)
    worth = measure_worth(graph, order, data, dtype=torch.float64)
    x, y = torch.cat([b[0][0] for b in data]), torch.cat([b[1] for b in batches(40, 7)])
    assert worth.samples == 47
    assert worth.kind == ("cross-entropy" if labels else "KL to the dense outputs")
    assert set(worth.groups) == {g.id for g in graph.groups}
    assert set(worth.branches) == {"block"}
    dense = runner(graph.module, torch.float64).outputs((x,))[0].log_softmax(1)
    for cut in halves(graph, order):
        cut_scores = runner(graph.cut(graph.removed(cut.keep)), torch.float64).outputs((x,))[0].log_softmax(1)
        gap = dense - cut_scores
        each = gap[torch.arange(47), y] if labels else (dense.exp() * gap).sum(1)
        got = worth.groups[cut.id] if cut.id in worth.groups else worth.branches[cut.id]
        assert got.change == pytest.approx(each.mean().item(), rel=1e-9)
        assert got.error == pytest.approx(each.std().item() / 47**0.5, rel=1e-6)


def test_outputs_that_are_no_classes_are_compared_by_relative_error():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    graph = trace(net, torch.randn(2, 3, 6, 6))
    data = batches(5, labels=False)
    worth = measure_worth(graph, shuffled(graph), data, dtype=torch.float64)
    (cut,) = halves(graph, shuffled(graph))
    dense = net.double()(data[0][0][0].double())
    got = runner(graph.cut(graph.removed(cut.keep)), torch.float64).outputs(data[0][0])[0]
    assert worth.kind == "relative error of the outputs"
    assert worth.groups[cut.id].change == pytest.approx(
        ((got - dense).square().mean() / dense.square().mean()).item()
    )


def test_only_the_named_groups_are_measured_at_the_named_widths():
    graph = classifier()
    first = graph.groups[0]
    worth = measure_worth(graph, shuffled(graph), batches(4), widths={first.id: 8}, branches=False)
    assert {name: at.width for name, at in worth.groups.items()} == {first.id: 8}
    assert not worth.branches


def test_a_model_without_a_graph_is_cut_for_real():
    graph, data = by_autograd(TwoPaths().eval(), torch.randn(2, 3, 6, 6).abs()), batches(4, labels=False)
    x = data[0][0][0].abs()
    order = shuffled(graph)
    worth = measure_worth(graph, order, [((x,), None)], dtype=torch.bfloat16)
    assert set(worth.groups) == {g.id for g in graph.groups}
    for cut in halves(graph, order):
        with torch.no_grad():
            cut_scores, dense = graph.cut(graph.removed(cut.keep))(x), graph.module(x)
        wanted = F.kl_div(cut_scores.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
        assert worth.groups[cut.id].change == pytest.approx(wanted.item(), rel=1e-3, abs=2e-7)


# ---------------------------------------------------------------------- bad input


class Ratio(nn.Module):
    """Divides by what the last four channels say."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 1, bias=False), nn.Linear(8, 3)
        with torch.no_grad():
            self.b.weight[:, :4] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).square().mean((2, 3))
        return self.head(y / self.b(y))


def test_a_loss_that_is_not_finite_names_the_cut_or_the_data():
    graph = trace(seeded(Ratio), torch.randn(2, 3, 6, 6))
    order = {group.id: np.arange(group.size) for group in graph.groups}
    with pytest.raises(InputError, match=r"with 4 of 8 channels of 'a.weight:0' [\s\S]*not finite[\s\S]*'a.weight'"):
        measure_worth(graph, order, batches(4))
    broken = [((torch.full((2, 3, 6, 6), torch.nan),), None)]
    with pytest.raises(InputError, match="with all channels the loss of worth batch 1 is not finite"):
        measure_worth(graph, order, broken)


def test_no_images_and_labels_that_do_not_fit_are_refused():
    graph = classifier()
    with pytest.raises(InputError, match="no images"):
        measure_worth(graph, shuffled(graph), [])
    with pytest.raises(InputError, match="labels of shape"):
        measure_worth(graph, shuffled(graph), [(batches(4)[0][0], torch.zeros(4, 2))])


# ---------------------------------------------------------------------- interrupted


class Counting(SilentProgress):
    """Counts the steps, and stops the job at one of them."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.steps, self.total, self._stop_at = 0, 0, stop_at

    def start(self, total: int, label: str) -> None:
        self.total = total

    def advance(self, n: int = 1, text: str = "") -> None:
        self.steps += n
        if self.steps >= self._stop_at:
            raise KeyboardInterrupt


def test_an_interrupted_measurement_goes_on_with_the_batch_it_stopped_in(tmp_path: Path, monkeypatch):
    graph, data, file = classifier(), batches(8, 8, 8), tmp_path / "stages" / "worth.json"
    order = shuffled(graph)
    whole = Counting()
    wanted = measure_worth(graph, order, data, progress=whole, dtype=torch.float32)
    cuts = len(wanted.groups) + len(wanted.branches)
    assert whole.steps == whole.total == 3 * cuts
    with pytest.raises(KeyboardInterrupt):
        measure_worth(graph, order, data, file=file, progress=Counting(cuts + 1), dtype=torch.float32)
    assert len(json.loads(file.read_text())["entries"]) == 1
    run, original = [], Sweep.dense
    monkeypatch.setattr(Sweep, "dense", lambda self, inputs: run.append(1) or original(self, inputs))
    again = measure_worth(graph, order, data, file=file, dtype=torch.float32)
    assert len(run) == 2
    assert (again.groups, again.branches, again.samples) == (wanted.groups, wanted.branches, wanted.samples)
    measure_worth(graph, order, data, file=file, dtype=torch.float32)
    assert len(run) == 2


@pytest.mark.parametrize("other", ["weights", "order", "numbers", "damaged", "samples"])
def test_what_was_measured_of_something_else_is_not_used(other, tmp_path: Path):
    graph, data, file = (
        fresh_classifier() if other == "weights" else classifier(),
        batches(8),
        tmp_path / "worth.json",
    )
    order = shuffled(graph)
    dtype = torch.float32
    measure_worth(graph, order, data, file=file, dtype=dtype)
    if other == "weights":
        with torch.no_grad():
            graph.module.get_parameter("stem.weight").mul_(0.5)
    elif other == "order":
        order = {name: channels[::-1].copy() for name, channels in order.items()}
    elif other == "numbers":
        dtype = torch.float64
    elif other == "samples":
        data = [((data[0][0][0] + 1,), data[0][1])]
    else:
        file.write_text(file.read_text()[:50])
    got = measure_worth(graph, order, data, file=file, dtype=dtype)
    wanted = measure_worth(graph, order, data, dtype=dtype)
    assert (got.groups, got.branches) == (wanted.groups, wanted.branches)


def test_a_measurement_survives_json():
    worth = MeasuredWorth("loss", 3, {"a:0": GroupWorth(4, 0.25, 0.01)}, {"a": BranchWorth(-0.5, 0.02)}, 1.5)
    assert MeasuredWorth.from_json(json.loads(json.dumps(worth.to_json()))) == worth


# ---------------------------------------------------------------------- curves


def one_group(change: float, width: int = 4) -> tuple[Graph, dict[str, np.ndarray], MeasuredWorth]:
    graph = classifier()
    group = graph.group("block.0.weight:0")
    assert group.size == 8
    branches_worth = {"block": BranchWorth(-0.125, 0.1)}
    return (
        graph,
        shuffled(graph),
        MeasuredWorth("loss", 9, {group.id: GroupWorth(width, change, 0)}, branches_worth, 0),
    )


def test_a_curve_has_the_criterions_shape_and_the_measured_size():
    graph, order, worth = one_group(0.5)
    scores = torch.zeros(8)
    scores[torch.from_numpy(order["block.0.weight:0"])] = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    found = losses_from_worth(graph, worth, {"stem.weight:0": torch.arange(12.0), "block.0.weight:0": scores}, order)
    sums = np.array([36.0, 28, 21, 15, 10, 6, 3, 1, 0])
    np.testing.assert_allclose(found.groups["block.0.weight:0"], 0.5 * sums / 10, atol=0.01)
    assert found.groups["block.0.weight:0"][4] == 0.5
    assert found.branches == {"block": 0.0}
    rate = 0.5 / (10 + 36e-3 / 4)  # of the only group that was measured
    assert found.groups["stem.weight:0"][0] == pytest.approx(66 * 1.001 * rate)
    unmeasured = losses_from_worth(
        graph, replace(worth, branches={}), {g: torch.ones(len(o)) for g, o in order.items()}, order
    )
    assert unmeasured.branches == {"block": unmeasured.groups["block.0.weight:0"][0]}


@pytest.mark.parametrize("scores", ["zeros", "negative", "second half worthless", "drawn"])
def test_curves_fall_to_nothing_and_stay_finite_whatever_the_criterion_says(scores):
    graph, order, worth = one_group(-1.0, width=3)
    given = torch.rand(8, generator=torch.Generator().manual_seed(0))
    given = {"zeros": given * 0, "negative": -given, "second half worthless": given, "drawn": given}[scores]
    if scores == "second half worthless":
        given[torch.from_numpy(order["block.0.weight:0"][3:].copy())] = 0
    found = losses_from_worth(graph, worth, {"stem.weight:0": torch.zeros(12), "block.0.weight:0": given}, order)
    curve = found.groups["block.0.weight:0"]
    assert curve.shape == (9,)
    assert curve[8] == 0
    assert curve[3] == pytest.approx(1e-4)
    assert (np.diff(curve) < 0).all()
    assert curve[0] < 1
