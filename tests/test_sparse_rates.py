"""Rates of the kernels: found again exactly, kept on disk, and the cuts and masks that prices are made with."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from deploypruner.latency import kernel_rates as module
from deploypruner.latency.kernel_probes import HEAD, TAIL, Chain, Probe, probe_model
from deploypruner.latency.kernel_rates import KernelRates, fit_rates, kernel_rates, measured_rates, non_negative
from deploypruner.latency.sparse_costs import MeasuredCosts
from deploypruner.onnx_graph import read_graph
from deploypruner.sparse import library
from deploypruner.sparse.cost import Rates, dense_counts, sparse_counts
from deploypruner.sparse.cut import SINK, SOURCE, Network
from deploypruner.sparse.layer import Layer
from deploypruner.sparse.match import match
from deploypruner.sparse.rewrite import c4_name
from deploypruner.sparsity.patterns import CANDIDATES, make_pattern
from deploypruner.sparsity.patterns.distribution import units_to_keep
from deploypruner.sparsity.patterns.ladder import ladder

pytestmark = pytest.mark.slow

needs_library = pytest.mark.skipif(
    not library.is_built(), reason="the package was installed without its sparse kernels"
)
CHAINS = (
    Chain(16, 8, (Probe(32, "1x4", 0.5), Probe(32, taps=3, depthwise=True), Probe(16, "1x4", 0.75, adds=3))),
    Chain(32, 4, (Probe(64, "nm64", 0.8), Probe(32, "unstructured", 0.9, taps=3), Probe(32, "1x4", 0.5, adds=3))),
    Chain(8, 6, (Probe(16), Probe(16, "1x4", 0.9, taps=3, stride=2), Probe(48, "1x4", 0.6))),
)
HERE = "rates measured on this machine"
TRUE = Rates(2000, 0.5, 0.25, 6, 2, 0.3, 1500, 0.004, 0.03, 0.05, 2500, 0.1, source=HERE)


def probes() -> list[Layer]:
    found = match(read_graph(probe_model(CHAINS)).graph).layers
    return [x for x in found if isinstance(x, Layer) and not x.name.endswith((HEAD, TAIL))]


def timed(layers: list[Layer], rates: Rates) -> MeasuredCosts:
    """What the layers would take if the formula were the truth."""
    borders = {c4_name(a): a for x in layers for a in x.touches}
    return MeasuredCosts(
        {x.name: rates.sparse(x) for x in layers},
        {x.name: rates.dense(x) for x in layers},
        {name: rates.enter(a) for name, a in borders.items()},
        {name: rates.leave(a) for name, a in borders.items()},
    )


def test_the_formulas_count_what_a_hand_would() -> None:
    first, depthwise, last = probes()[:3]
    # 16 -> 32 channels on 8 x 8: 4 vectors, 8 quads out, half of 32 * 4 groups of four.
    assert sparse_counts(first) == {
        **{"call": 1, "step": 64 * 4, "shared": 0, "requant": 8 * 4, "residual": 0, "copy": 0}
    }
    assert dense_counts(first) == {"dense_call": 1, "mac": 32 * 16 * 64, "depthwise_mac": 0, "byte": 48 * 64}
    assert sparse_counts(depthwise)["shared"] == 32 * 9 * 4
    assert sparse_counts(depthwise)["copy"] == 32 * 64
    assert sparse_counts(last)["residual"] == 4 * 4
    assert Rates(call=10, step=2, requant=3).sparse(first) == 10 + 2 * 256 + 3 * 32


def test_rates_are_recovered_exactly_from_timings_that_follow_them() -> None:
    layers = probes()
    found = fit_rates(layers, timed(layers, TRUE))
    want, got = vars(TRUE), vars(found.rates)
    assert {k: v for k, v in got.items() if k not in ("images", "packed", "source")} == pytest.approx(
        {k: v for k, v in want.items() if k not in ("images", "packed", "source")}, rel=1e-6
    )
    assert found.sparse_error < 1e-6
    assert found.dense_error < 1e-6
    assert found.rates.source == HERE


def test_no_rate_is_negative() -> None:
    # Twice the work in half the time.
    assert non_negative([({"call": 1, "step": 1}, 10.0), ({"call": 1, "step": 2}, 5.0)])["step"] == 0


@needs_library
def test_rates_are_measured_once_for_each_number_of_threads_and_kept(tmp_path: Path) -> None:
    fitted = KernelRates(TRUE, 0.1, 0.2, 9, 1.5)
    with mock.patch.object(module, "measured_rates", return_value=fitted) as measure:
        said: list[str] = []
        assert kernel_rates(1, cache=tmp_path, say=said.append) == fitted
        assert kernel_rates(1, cache=tmp_path, say=said.append) == fitted
        assert (measure.call_count, len(said)) == (1, 1)
        kernel_rates(2, cache=tmp_path)
        assert measure.call_count == 2
        (path,) = tmp_path.glob("kernels-openvino-int8-1-*.json")
        document = json.loads(path.read_text())
        assert document["device"]["target"] in library.targets()
        path.write_text(json.dumps({**document, "rates": {"step": 1.0}}))
        again = kernel_rates(1, cache=tmp_path)
    assert measure.call_count == 3
    assert "are damaged (other rates), so they are measured again" in again.remark
    assert again.rates == TRUE


@needs_library
@pytest.mark.parametrize("value", ["fast", -1.0, None, True])
def test_rates_that_were_edited_to_what_no_time_is_are_measured_again(value: object, tmp_path: Path) -> None:
    with mock.patch.object(module, "measured_rates", return_value=KernelRates(TRUE, 0.1, 0.1, 9, 1.5)):
        kernel_rates(1, cache=tmp_path)
        (path,) = tmp_path.iterdir()
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document | {"rates": document["rates"] | {"call": value}}))
        again = kernel_rates(1, cache=tmp_path)
    assert f"are damaged (call is {value!r}), so they are measured again" in again.remark
    assert again.rates == TRUE


@needs_library
def test_rates_of_a_busy_machine_are_used_but_not_kept(tmp_path: Path) -> None:
    with mock.patch.object(module, "measured_rates", return_value=KernelRates(TRUE, 0.1, 0.41, 9, 1.5)):
        found = kernel_rates(1, cache=tmp_path)
    assert found.rates == TRUE
    assert "41 % off what they were fitted to, so this machine is busy; not kept" in found.remark
    assert list(tmp_path.iterdir()) == []


@needs_library
def test_the_probes_run_on_this_machine() -> None:
    found = measured_rates(1, CHAINS)
    assert found.layers == 9
    assert 0 < found.rates.sparse(probes()[0]) < 1e9
    assert 0 < found.rates.dense(probes()[0]) < 1e9


# ---------------------------------------------------------------------- cuts


def least(edges: dict[tuple[int, int], float], nodes: int) -> float:
    """The minimum cut by looking at every one."""
    found = np.inf
    for sides in itertools.product((False, True), repeat=nodes - 2):
        ours = {SOURCE} | {node for node, side in enumerate(sides, start=2) if side}
        found = min(found, sum(c for (a, b), c in edges.items() if a in ours and b not in ours))
    return found


def test_a_changed_network_has_the_cut_of_a_new_one_and_of_one_with_an_edge_that_cannot_be_cut() -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        network, nodes = Network(), 6
        for _ in range(nodes - 2):
            network.node()
        pairs = [(a, b) for a in range(nodes) for b in range(nodes) if a != b and b != SOURCE and a != SINK]
        chosen = [pairs[i] for i in rng.choice(len(pairs), 12, replace=False)]
        edges = {pair: float(rng.integers(0, 20)) for pair in chosen}
        numbers = {pair: network.edge(*pair, capacity) for pair, capacity in edges.items()}
        for _ in range(8):
            pair = chosen[int(rng.integers(len(chosen)))]
            edges[pair] = float(rng.integers(0, 20))
            network.change(numbers[pair], edges[pair])
            assert network.value() == least(edges, nodes)
            side = network.source_side()
            assert sum(c for (a, b), c in edges.items() if a in side and b not in side) == network.value()
            whole = chosen[int(rng.integers(len(chosen)))]
            if whole != (SOURCE, SINK):
                kept = least({**edges, whole: 1e6}, nodes)
                assert network.value(keep=numbers[whole]) == kept or kept >= 1e6


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_ladder_has_the_masks_and_shares_that_each_sparsity_has_alone(name: str) -> None:
    saliency = torch.rand(24, 70, 3, 3, generator=torch.Generator().manual_seed(0))
    pattern = make_pattern(name)
    for rung in ladder(pattern, saliency, (0.5, 0.9)):
        (keep,) = units_to_keep(pattern, [saliency], rung.sparsity, distribution="uniform")
        mask = pattern.units(saliency).mask(saliency, keep)
        assert torch.equal(rung.mask, mask)
        assert rung.kept == pytest.approx(float(saliency[mask].double().sum() / saliency.double().sum()))
        assert float((~mask).double().mean()) >= rung.sparsity


def test_steps_come_from_the_mask_so_that_blocks_of_four_need_fewest() -> None:
    (layer,) = [x for x in probes() if x.name == "x1_0"]  # 32 -> 64 on 4 x 4: one vector
    weight = torch.rand(64, 32, 1, 1, generator=torch.Generator().manual_seed(1))
    steps = {}
    for name in CANDIDATES:
        (rung,) = ladder(make_pattern(name), weight, [0.75])
        filled = replace(layer, weights=np.where(rung.mask.numpy(), np.int8(1), np.int8(0)))
        counts = sparse_counts(filled)
        steps[name] = counts["step"] + counts["shared"]
        assert (counts["step"] == 0) == (name in ("2x4", "4x4"))  # rows that share what they load have their own rate
    assert steps["4x4"] == steps["2x4"] == steps["1x4"] == 64 * 8 / 4
    assert steps["unstructured"] == pytest.approx(64 * 8 * (1 - 0.75**4), rel=0.1)
    assert steps["1x4"] < steps["nm64"]
