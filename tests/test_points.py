"""Every candidate of a build is a point of its report, and any of them can be exported later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from deploypruner import __version__, export_point
from deploypruner.errors import InputError
from deploypruner.graph import Graph
from deploypruner.latency import LatencyModel, LayerTime
from deploypruner.latency.clock import current_clock, using
from deploypruner.latency.nodes import Node
from deploypruner.latency.points import Points
from deploypruner.latency.quality import LatencyQuality
from deploypruner.measure import Job, Measured
from deploypruner.records import Setting, Timing
from tests.builds import IMAGE, Outcome, run_cli, samples, save_program, tiny

pytestmark = pytest.mark.slow


def file_ms(path: Path) -> float:
    """1 ms, and 9 ms for as many stored numbers as the dense model has; int8 takes half."""
    stored = {t.name: int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer}
    int8 = any(name.endswith("_quantized") or "zero_point" in name for name in stored)
    count = sum(size for name, size in stored.items() if size > 16)
    return (1 + 9 * count / 2816) * (0.5 if int8 else 1.0)


class ByParameters:
    """In place of a latency model: 1 ms, and 9 ms for all parameters."""

    def __init__(self, graph: Graph, factor: float = 1.0) -> None:
        self.graph, self.factor = graph, factor
        self.facts: dict[str, Any] = {"probes": 0, "remarks": []}

    def ms(self, keep: Any) -> float:
        costs = self.graph.costs
        return self.factor * (1 + 9 * costs.params(self.graph.removed(keep)) / costs.params())

    def to_json(self) -> dict[str, Any]:
        """Of a latency model that predicts the dense model's time for every plan."""
        points = Points()
        points.add("all", (), 1e6 * self.ms({}))
        node = Node("conv", "Convolution", "all", (), (), 1.0)
        setting, quality = Setting("openvino", "fp32"), LatencyQuality(None, 0, 0.0)
        return LatencyModel(self.graph, setting, nodes=[node], points=points, quality=quality).to_json()

    def layers(self, keep: Any) -> list[LayerTime]:
        return [LayerTime("conv", "Convolution", self.ms(keep))]

    def calibrated(self, keep: Any, measured_ms: float, profile: Any = None) -> ByParameters:
        return ByParameters(self.graph, self.factor * measured_ms / self.ms(keep))

    def learned(self, keep: Any, profile: Any) -> ByParameters:
        return self

    def tally(self, order: Any) -> Any:
        kept: dict[str, Any] = {}
        model = self

        class Tally:
            @property
            def ms(self) -> float:
                return model.ms(kept)

            def keep(self, group: str, channels: Any) -> float:
                kept[group] = channels
                return self.ms

            def sweep(self, group: str, widths: Any) -> Any:
                return np.array([model.ms(kept | {group: order[group][:w]}) for w in widths])

        return Tally()


PAIRS: dict[float, int] = {}
"""Milliseconds of every file that was timed -> QuantizeLinear nodes in it."""


def pairs_in(path: Path) -> int:
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def timed(jobs: Sequence[Job], *, threads: int, **_: object) -> Measured:
    timings = []
    for artifact, runtime in jobs:
        if artifact.path.suffix == ".onnx":
            PAIRS[round(file_ms(artifact.path), 6)] = pairs_in(artifact.path)
        ns = np.full((10, 5), round(1e6 * file_ms(artifact.path)))
        timings.append(Timing(artifact, runtime, threads, ns, load_s=0.1, warmup=1, peak_rss_bytes=1 << 20))
    return Measured(tuple(timings), timings[0], floor=0.01, settled=True)


def by_parameters(*arguments: str, folder: Path) -> Outcome:
    """The command line on a machine whose time follows the number of parameters."""
    profile = SimpleNamespace(nodes=[SimpleNamespace(name="conv", kind="Convolution", ns=1e6)])
    clock = replace(
        current_clock(),
        artifacts=timed,
        profile=lambda *_, **__: profile,
        latency_model=lambda graph, setting, **_: ByParameters(graph),
    )
    with using(clock):
        return run_cli(*arguments, folder=folder)


COMPILE = (
    *("compile", "tiny.pt2", "--data", "data.npz", "--speedup", "1.5", "--step", "4", "--epochs", "0"),
    *("--runtime", "onnxruntime", "--precision", "int8", "--allow-chance", "--accuracy-drop", "100"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: Any) -> tuple[Path, Outcome]:
    root = tmp_path_factory.mktemp("points")
    save_program(tiny(), root / "tiny.pt2", torch.zeros(2, *IMAGE))
    (x, y), (x_val, y_val) = samples(96), samples(32, seed=1)
    np.savez(root / "data.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    outcome = by_parameters(*COMPILE, "--out", "build", folder=root)
    assert outcome.code == 0, outcome.err
    return root / "build", outcome


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def test_every_row_every_plan_and_every_round_is_a_point_that_says_what_it_stands_for(built):
    folder, outcome = built
    report = report_of(folder)
    points = {point["id"]: point for point in report["points"]}
    assert len(points) == len(report["points"])
    finished = [p for p in points.values() if p["kind"] == "finished"]
    assert {(p["what"], p["latency_ms"]) for p in finished} == {(r["name"], r["median_ms"]) for r in report["rows"]}
    assert all((folder / p["artifact"]).stat().st_size == p["bytes"] for p in finished if p["pattern"] != "dense")
    plans = [p for p in points.values() if p["kind"] == "plan"]
    assert len(plans) >= len(report["budget"]["pool"]) >= 2
    assert all(p["lost"] is not None and p["samples"] > 0 for p in plans), "a point is a time and a quality"
    assert {p["quality_basis"] for p in plans} == {"in float, repaired and not trained, on training samples held out"}
    measured = {p["latency_ms"] for p in plans if p["measured"]}
    assert {line["measured_ms"] for line in report["loop"]} <= measured
    assert all(p["latency_basis"] == ("measured on the way" if p["measured"] else "predicted") for p in plans)
    for point in plans:
        plan = json.loads((folder / point["plan"]).read_text())
        assert (plan["macs_after"], plan["params_after"]) == (point["macs"], point["params"])
    assert f"points: {len(plans)} candidates from the way here" in " ".join(outcome.out.split())


def test_the_page_draws_them_smaller_with_what_they_are_and_a_legend(built):
    folder, _ = built
    page, report = (folder / "report.html").read_text(), report_of(folder)
    plan = next(p for p in report["points"] if p["kind"] == "plan" and p["measured"])
    assert 'class="way' in page
    assert "candidate on the way, timed" in page
    assert "Small marks are candidates on the way" in page or "lie outside the picture" in page
    assert '<td class="names">' + plan["id"] in page


def exported(folder: Path, point: str, out: Path, *more: str) -> Outcome:
    return run_cli("export", str(folder), "--point", point, "--out", str(out), *more, folder=folder.parent)


def test_a_plan_on_the_way_is_exported_repaired_and_verified_without_any_search(built, tmp_path):
    folder, _ = built
    point = next(p for p in report_of(folder)["points"] if p["kind"] == "plan" and p["plan"])
    outcome = exported(folder, point["id"], tmp_path / "made")
    assert outcome.code == 0, outcome.err
    made = tmp_path / "made"
    names = ("model.fp32.onnx", "model.int8.onnx", "model.int8.xml", "model.pt2", "weights.safetensors", "plan.json")
    assert all((made / name).is_file() for name in names)
    assert json.loads((made / "plan.json").read_text()) == json.loads((folder / point["plan"]).read_text())
    about = json.loads((made / "point.json").read_text())
    assert about["point"] == point
    assert all(check["passed"] for check in about["verification"])
    assert any(check["name"].startswith("masked = removed") for check in about["verification"])
    assert about["stands_for"].startswith("repaired and not trained: ")
    assert f"top-1 {point['value']:.1f} %" in about["stands_for"], "repaired as it was when it was judged"
    int8 = about["found"]["model.int8.onnx"]
    assert int8["samples"] == 32
    said = f"accuracy {int8['value']:.1f} %, top-1 agreement with the dense model {100 * int8['agreement']:.1f} %"
    assert f"  model.int8.onnx: {said} on 32 samples in " in outcome.out
    assert "repaired and not trained" in outcome.out
    assert not (made / "stages").exists() or not any(p.is_file() for p in (made / "stages").iterdir())


class Swish(nn.Module):
    """ONNX Runtime wants a pair behind each of its swishes, OpenVINO wants none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(IMAGE[0], 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.second(functional.silu(self.first(x))))
        return self.last(x.mean((2, 3)))


def test_an_exported_plan_has_its_pairs_where_the_file_that_was_timed_had_them(tmp_path):
    torch.manual_seed(0)
    save_program(Swish().eval(), tmp_path / "tiny.pt2", torch.zeros(2, *IMAGE))
    (x, y), (x_val, y_val) = samples(96), samples(32, seed=1)
    np.savez(tmp_path / "data.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    outcome = by_parameters(*COMPILE, "--out", "build", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    points = report_of(tmp_path / "build")["points"]
    point = next(p for p in points if p["kind"] == "plan" and p["plan"] and p["measured"])
    outcome = exported(tmp_path / "build", point["id"], tmp_path / "made")
    assert outcome.code == 0, outcome.err
    made = tmp_path / "made" / "model.int8.onnx"
    assert pairs_in(made) == PAIRS[round(point["latency_ms"], 6)]


def test_a_finished_point_is_the_file_of_the_build_itself(built, tmp_path):
    folder, _ = built
    outcome = exported(folder, "pruned-int8.onnxruntime", tmp_path / "made")
    assert outcome.code == 0, outcome.err
    for name in ("model.int8.onnx", "model.fp32.onnx", "model.int8.bin", "weights.safetensors", "plan.json"):
        assert (tmp_path / "made" / name).read_bytes() == (folder / name).read_bytes()
    assert "the weights of the finished build" in outcome.out


def test_points_are_listed_and_a_wrong_id_gets_the_nearest(built, tmp_path):
    folder, _ = built
    listed = run_cli("export", str(folder), folder=folder.parent)
    assert listed.code == 0
    assert len(listed.out.splitlines()) == len(report_of(folder)["points"])
    exported(folder, "pruned-int8", tmp_path / "x").assert_error(2, "no point 'pruned-int8'", "did you mean 'pruned-")
    exported(folder, "zzzz", tmp_path / "x").assert_error(2, "no point 'zzzz'", "lists all")
    run_cli("export", str(folder), "--point", "plan-1", folder=folder.parent).assert_error(2, "--out DIR")
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_exported_is_refused_before_anything_is_written(built, tmp_path):
    folder, _ = built
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    exported(folder, "plan-1", taken).assert_error(2, "is there and not empty")
    assert [p.name for p in taken.iterdir()] == ["mine.txt"]
    copy = shutil.copytree(folder, tmp_path / "copy" / "build")
    for name in ("tiny.pt2", "data.npz"):
        shutil.copy(folder.parent / name, copy.parent)
    report = report_of(copy)
    (copy / "report.json").write_text(json.dumps({**report, "points": []}))
    exported(copy, "plan-1", tmp_path / "x").assert_error(2, "has no points", "compile again")
    (copy / "report.json").write_text(json.dumps(report))
    manifest = json.loads((copy / "manifest.json").read_text())
    old = {**manifest, "versions": {**manifest["versions"], "deploypruner": "0.0.1"}}
    (copy / "manifest.json").write_text(json.dumps(old))
    exported(copy, "plan-1", tmp_path / "x").assert_error(2, f"made by DeployPruner 0.0.1, this is {__version__}")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    other = tiny()
    with torch.no_grad():
        other.head.bias += 1
    save_program(other, copy.parent / "tiny.pt2", torch.zeros(2, *IMAGE))
    exported(copy, "plan-1", tmp_path / "x").assert_error(2, "are not those the build was made from", "--model")
    assert not (tmp_path / "x").exists()


def test_the_python_call_takes_the_model_itself(built, tmp_path):
    folder, _ = built
    with np.load(folder.parent / "data.npz") as data:
        pair = (torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))
    program = torch.export.load(folder.parent / "tiny.pt2")
    made = export_point(
        folder,
        "dense-int8.onnxruntime",
        out=tmp_path / "x",
        model=program,
        example_inputs=torch.zeros(2, *IMAGE),
        data=pair,
    )
    assert all(check.passed for check in made.checks)
    assert made.stands_for.startswith("the model as it was given")
    with pytest.raises(InputError, match="no point"):
        export_point(folder, "no such", out=tmp_path / "y")


def test_the_fastest_within_the_accuracy_is_found_and_is_what_the_accuracy_decided(built, tmp_path):
    """Nothing that can be cut costs this net anything, so that the least time is that of its narrowest plan."""
    for name in ("tiny.pt2", "data.npz"):
        shutil.copy(built[0].parent / name, tmp_path)
    options = [o for o in COMPILE if o not in ("--speedup", "1.5")]
    outcome = by_parameters(*options, "--latency", "fastest", "--out", "build", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    budget = report_of(tmp_path / "build")["budget"]
    assert budget["kind"] == "latency"
    assert budget["measured"] <= budget["requested"] < 0.5 * budget["dense_ms"]
    assert budget["bounds"]["active"] == "accuracy"
    log = (tmp_path / "build" / "log.txt").read_text()
    assert "is the least time whose plan loses no more than 100 points" in log
