"""Numbers that are all different arrive where they belong: in rows, tables, roles, cache keys, weights and plans."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploypruner import target
from deploypruner.build.allocation import plan_in_macs
from deploypruner.build.artifacts import write_mixable
from deploypruner.build.folder import BuildFolder
from deploypruner.build.given_file import write_int8
from deploypruner.build.state import Build, Given
from deploypruner.channels.allocate import allocate
from deploypruner.device import facts
from deploypruner.graph import trace
from deploypruner.graph.capture.from_autograd import trace_autograd
from deploypruner.latency import kernel_rates
from deploypruner.latency.kernel_rates import KernelRates
from deploypruner.measure import make_rows
from deploypruner.progress import SilentProgress
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.recipe.budget import Budget
from deploypruner.records import Artifact, Cost, Quality, Row, Timing
from deploypruner.registries import normalizers
from deploypruner.report.columns import table_rows
from deploypruner.sparse.cost import Rates
from deploypruner.target import detect
from tests.builds import run_cli

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------- records


@pytest.fixture
def row(tmp_path: Path) -> Row:
    """Of the times 1, 2, ..., 1000 ms in a file of 123 bytes."""
    file = tmp_path / "m.onnx"
    file.write_bytes(b"x" * 123)
    artifact = Artifact("pruned int8", file, "onnx", "int8", "channel", Cost(3_000, 700, 60))
    samples = np.arange(1, 1001).reshape(100, 10) * 1_000_000
    timing = Timing(artifact, "openvino", 5, samples, load_s=0.1, warmup=2, peak_rss_bytes=9_000)
    quality = Quality(accuracy=91.5, agreement=0.97, agreement_kind="top-1", samples=50)
    return make_rows([timing], [quality], floor=0.01)[0]


def test_every_number_of_a_row_is_the_one_it_is_called(row):
    assert (row.median_ms, row.p95_ms, row.p99_ms) == pytest.approx((500.5, 950.0, 990.0), abs=1)
    found = (row.threads, row.samples, row.macs, row.params, row.nonzero, row.bytes, row.peak_rss_bytes)
    assert found == (5, 1000, 3_000, 700, 60, 123, 9_000)
    assert (row.accuracy, row.agreement, row.ratio) == (91.5, 0.97, 1.0)


def test_every_column_of_the_table_shows_its_own_number(row):
    sparse = dataclasses.replace(row, pattern="2:4", median_ms=11.0, p95_ms=12.0)
    head, _, _, line = table_rows([sparse], colour=False).splitlines()
    assert [name for name in head.split() if name != "vs"] == [
        *("accuracy", "agreement", "median", "p95", "speed-up", "pruned", "int8", "MACs", "params", "nonzero", "size")
    ]
    assert line.split() == [
        *("pruned", "int8", "91.5", "97.0", "%", "11.0", "12.0", "1.00x", "baseline"),
        *("3.00", "k", "700", "60", "123", "B"),
    ]


# ---------------------------------------------------------------------- roles


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 2)
        self.linear, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.linear(self.up(self.conv(x).relu()).mean((2, 3))).relu())


def roles(labelling: Any) -> dict[str, dict[int, str]]:
    """Weight -> axis -> role."""
    states = labelling.state.values()
    return {name: dict(sorted(s.roles.items())) for s in states for name in s.names if name.endswith("weight")}


ROLES = {
    "conv.weight": {0: "producer", 1: "consumer"},  # [out, in, ...]
    "up.weight": {0: "consumer", 1: "producer"},  # [in, out, ...]
    "linear.weight": {0: "producer", 1: "consumer"},
    "last.weight": {0: "producer", 1: "consumer"},
}


def test_the_axes_of_a_weight_have_the_roles_of_its_layer():
    net, x = Layers().eval(), (torch.zeros(2, 3, 8, 8),)
    assert roles(trace(net, x).labelling) == ROLES
    assert roles(trace_autograd(net, x).labelling) == ROLES


# ---------------------------------------------------------------------- cache keys

BEFORE = target.Target("cpu", "A", 3, ("avx2",))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of our own: processor, kernels and their library."""
    path = tmp_path / "lib.so"
    path.write_bytes(b"one")
    monkeypatch.setattr(kernel_rates, "path_of", lambda name: path)
    monkeypatch.setattr(kernel_rates, "active_target", lambda: "avx2")
    monkeypatch.setattr(facts, "detect", lambda: BEFORE)
    monkeypatch.setattr(facts, "_version", lambda package: "1.0")
    return path


CHANGES = {
    "library": lambda patch, path: path.write_bytes(b"two"),
    "target": lambda patch, path: patch.setattr(kernel_rates, "active_target", lambda: "avx512"),
    "cpu": lambda patch, path: patch.setattr(facts, "detect", lambda: dataclasses.replace(BEFORE, processor="B")),
    "cores": lambda patch, path: patch.setattr(facts, "detect", lambda: dataclasses.replace(BEFORE, cores=4)),
    "features": lambda patch, path: patch.setattr(
        facts, "detect", lambda: dataclasses.replace(BEFORE, int8_features=("i8mm",))
    ),
    "version": lambda patch, path: patch.setattr(facts, "_version", lambda package: "1.1"),
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_rates_are_measured_again_where_anything_they_depend_on_changed(library, tmp_path, monkeypatch, change):
    measured = []

    def rates(threads: int) -> KernelRates:
        measured.append(threads)
        return KernelRates(Rates(), 0.1, 0.1, 9, 1.5)

    monkeypatch.setattr(kernel_rates, "measured_rates", rates)
    folder = tmp_path / "cache"
    kernel_rates.kernel_rates(7, cache=folder)
    if change is not None:
        CHANGES[change](monkeypatch, library)
    kernel_rates.kernel_rates(7, cache=folder)
    assert measured == ([7] if change is None else [7, 7])


def test_the_key_of_the_rates_has_nothing_that_is_not_changed_above(library):
    about = kernel_rates._about(7)
    assert about.keys() - {"runtime", "precision"} == {*CHANGES, "threads"}
    assert about["threads"] == 7


# ---------------------------------------------------------------------- seven bits

FLAGS = {"avx2": True, "avx2 avx512_vnni": False}


def largest_weight(path: Path) -> int:
    """Of the int8 weights in a QDQ file."""
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return max(int(abs(a.astype(int)).max()) for a in stored if a.dtype == np.int8 and a.ndim > 1)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


@pytest.mark.parametrize("flags", FLAGS)
def test_weights_have_seven_bits_where_the_processor_would_saturate(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(target, "_cpuinfo", lambda: {"flags": flags})
    assert detect().saturates == FLAGS[flags]
    graph = trace(small(), (torch.randn(2, 3, 8, 8),))
    build = Build(Recipe(), BuildFolder(tmp_path), "", Given(), SilentProgress(), graph=graph)
    write_mixable(build, graph.module, ("a.onnx", "b.onnx"), "openvino")
    feeds = [[np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)]]
    model, repaired = onnx.load(tmp_path / "a.onnx"), tmp_path / "repaired.onnx"
    write_int8(model, repaired, feeds, placement="sparse", repair=True)
    for path in (tmp_path / "b.onnx", repaired):
        assert largest_weight(path) in ((63, 64) if FLAGS[flags] else (127, 128)), path


OUTLOOKS = {
    "avx2": "AVX2 without VNNI: int8 has 1.3 times",
    "avx2 avx_vnni": "AVX-VNNI: int8 has 4 times",
    "avx2 avx512_vnni avx_vnni": "AVX-512 VNNI: int8 has 4 times",
    "avx2 avx512_vnni amx_int8": "AMX: int8 tiles multiply 32 times",
    "asimddp": "dot product: int8 has 4 times",
    "asimddp i8mm": "int8 matrix products: int8 has 8 times",
    "sse2": "no int8 instructions",
}


@pytest.mark.parametrize("flags", OUTLOOKS)
def test_a_target_says_what_int8_can_give_there(monkeypatch, flags):
    monkeypatch.setattr(target, "_cpuinfo", lambda: {"flags": flags, "model name": "Example 9000"})
    assert detect().int8_outlook.startswith(OUTLOOKS[flags])
    said = run_cli("list", "targets").out
    assert "Example 9000" in said
    assert OUTLOOKS[flags] in said


# ---------------------------------------------------------------------- the criterion's normaliser


def test_a_plan_is_made_with_the_normaliser_of_its_criterion():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 24, 3, 2), nn.ReLU(), nn.Conv2d(24, 24, 3, 2), nn.ReLU(), nn.Conv2d(24, 8, 3))
    graph = trace(net.eval(), (torch.randn(2, 3, 32, 32),))
    generator = torch.Generator().manual_seed(1)
    scores = {g.id: (n + 1) * torch.rand(g.size, generator=generator) for n, g in enumerate(graph.groups)}
    build = SimpleNamespace(traced=graph, criterion="taylor", recipe=Recipe(prune=PruneRecipe(macs=0.5, step=1)))
    widths = {
        name: allocate(graph, scores, Budget(0.5), criterion="taylor", normalizer=name, step=1).keep
        for name in normalizers
    }
    shown = {name: [len(kept) for kept in keep.values()] for name, keep in widths.items()}
    assert [n for n, found in shown.items() if found == shown["per_mac"]] == ["per_mac"]  # else this proves nothing
    plan = plan_in_macs(build, scores, Budget(0.5))
    assert [len(kept) for kept in plan.keep.values()] == shown["per_mac"]
