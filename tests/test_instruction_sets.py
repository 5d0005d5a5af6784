"""Instructions that OpenVINO may use: tried on the dense model; all that is int8 is timed with what is fastest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from deploypruner.build.open_setting import SettingTried, try_settings
from deploypruner.build.timed import in_environments
from deploypruner.graph import trace
from deploypruner.latency.cache import device
from deploypruner.latency.clock import current_clock, using
from deploypruner.measure import Measured
from deploypruner.recipe.budget import Budget
from deploypruner.records import Artifact, Environment, Setting, Timing
from deploypruner.report import read_report
from deploypruner.runtime import runtimes
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.search import bench
from deploypruner.search.bench import CandidateBench
from deploypruner.search.choose import choose_setting
from deploypruner.search.goal import Goal
from deploypruner.target import Target
from tests.builds import pretended, run_cli, workshop

NAME = "ONEDNN_MAX_CPU_ISA"
VNNI: Environment = ((NAME, "AVX512_CORE_VNNI"),)
AMX: tuple[Environment, ...] = ((), VNNI)
GAINS = (
    f"dense int8 on openvino takes 8.00 ms as it is, 5.00 with {NAME}=AVX512_CORE_VNNI: "
    f"with {NAME}=AVX512_CORE_VNNI in the environment of the process it is 1.60x as fast"
)


def having(*names: str) -> Target:
    return Target("cpu", "A Processor", 2, names)


def test_another_instruction_set_is_offered_where_a_cpu_has_amx_and_the_user_named_none(monkeypatch: Any) -> None:
    for name in (NAME, "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    amx = having("avx2", "avx512_vnni", "amx_int8")
    assert OpenVino.environments("int8", amx) == AMX
    assert OpenVino.environments("fp32", amx) == ((),)  # AMX multiplies no float32
    for other in ("openvino-bf16", "onnxruntime", "torch"):
        assert runtimes.get(other).environments("int8", amx) == ((),)
    for name in (NAME, "DNNL_MAX_CPU_ISA"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "AVX2_VNNI")
            assert OpenVino.environments("int8", amx) == ((),)
    assert OpenVino.environments("int8", having("avx2", "avx512_vnni")) == ((),)


def machine(ms: Mapping[tuple[str, int, bool], float]) -> Any:
    """Times by runtime, threads, and whether a variable is set."""

    def artifacts(jobs: Sequence[Any], *, threads: int, **_: Any) -> Measured:
        found = []
        for artifact, runtime in jobs:
            count = artifact.threads or threads
            ns = np.full((40, 5), 1e6 * ms[runtime, count, bool(artifact.environment)]).round().astype(np.int64)
            found.append(Timing(artifact, runtime, count, ns, load_s=0.1, warmup=1, peak_rss_bytes=1))
        return Measured(tuple(found), found[0], floor=0.01, settled=True)

    return replace(current_clock(), artifacts=artifacts)


def tried(ms: Mapping[tuple[str, int, bool], float]) -> SettingTried:
    names, counts = dict.fromkeys(key[0] for key in ms), dict.fromkeys(key[1] for key in ms)
    jobs = [(Artifact("dense int8", Path("x.onnx"), "onnx", "int8"), name) for name in names]
    with mock.patch.object(OpenVino, "environments", return_value=AMX):
        found = try_settings(jobs, tuple(counts), feeds=None, clock=machine(ms), more={})
    assert SettingTried.from_json(json.loads(json.dumps(found.to_json()))) == found
    return found


def test_a_variable_is_taken_where_it_gains_and_nowhere_else() -> None:
    found = tried({("openvino", 1, False): 8.0, ("openvino", 1, True): 5.0})
    assert (found.chosen, found.counts, found.sentence) == ({"openvino": VNNI}, (1,), GAINS)
    assert found.remarks({"openvino": VNNI}) == [
        f"{GAINS}; every int8 file was timed so, and the lines that load the file set it"
    ]
    assert found.remarks({"openvino": ()}) == []  # whole sparse forms were fastest without
    for ms in (8.0, 9.0):
        found = tried({("openvino", 1, False): 8.0, ("openvino", 1, True): ms})
        assert (found.chosen, found.remarks(found.chosen)) == ({"openvino": ()}, [])
    said = f"dense int8 on openvino takes 8.00 ms as it is, 9.00 with {NAME}=AVX512_CORE_VNNI"
    assert found.sentence == f"{said} in the environment of the process, which gains nothing"


def test_threads_and_instructions_are_chosen_together() -> None:
    one = {("openvino", 1, False): 8.0, ("openvino", 1, True): 5.0}
    ms = {**one, ("openvino", 2, False): 6.0, ("openvino", 2, True): 5.0}
    found = tried(ms)
    assert (found.fastest, found.chosen, dict(found.ms)) == (1, {"openvino": VNNI}, {1: 5.0, 2: 5.0})
    said = "1 thread, left open: dense int8 on openvino takes 5.00 ms with 1, 5.00 with 2; "
    assert found.sentence == said + GAINS
    found = tried({**ms, ("openvino", 2, False): 3.0})
    assert (found.fastest, found.chosen, dict(found.ms)) == (2, {"openvino": ()}, {1: 8.0, 2: 3.0})


def test_a_slower_runtime_has_its_own_answer() -> None:
    ms = {("openvino", 1, False): 8.0, ("openvino", 1, True): 5.0, ("onnxruntime", 1, False): 2.0}
    found = tried(ms)
    assert (found.of, found.chosen) == ("dense int8 on onnxruntime", {"openvino": VNNI})
    assert found.sentence == GAINS


def test_int8_files_alone_get_the_variable_and_in_that_runtime_alone() -> None:
    files = [
        Artifact("dense fp32", Path("f"), "onnx", "fp32"),
        Artifact("dense int8", Path("i"), "onnx", "int8", environment=(("OLD", "1"),)),
        Artifact("sparse int8", Path("s"), "onnx", "int8", environment=(("OWN", "1"),)),
    ]
    jobs = [(file, name) for name in ("openvino", "onnxruntime") for file in files]
    found = [artifact.environment for artifact, _ in in_environments(jobs, {"openvino": VNNI})]
    assert found == [(), VNNI, (("OWN", "1"),), (), (), (("OWN", "1"),)]


def test_a_budget_is_for_the_environment_in_which_the_dense_model_was_timed() -> None:
    artifact = Artifact("dense int8", Path("x.onnx"), "onnx", "int8", environment=VNNI)
    (timing,) = pretended([(artifact, "openvino")], threads=2).timings
    setting = choose_setting([timing], [None], drop=1.0).setting
    assert setting == Setting("openvino", "int8", 2, environment=VNNI)
    assert str(setting) == f"int8 on openvino, 2 threads, {NAME}=AVX512_CORE_VNNI"
    assert Setting.from_json(json.loads(json.dumps(asdict(setting)))) == setting
    assert (
        Setting.from_json({"runtime": "openvino", "precision": "int8", "threads": 2, "floats": []}).environment == ()
    )


def test_layer_times_of_one_instruction_set_are_never_those_of_another(monkeypatch: Any) -> None:
    for name in (NAME, "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    plain, capped = Setting("openvino", "int8"), Setting("openvino", "int8", environment=VNNI)
    assert "environment" not in device(plain)
    assert device(capped)["environment"] == dict(VNNI)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert device(plain)["environment"] == {"DNNL_MAX_CPU_ISA": "AVX2"}


def test_candidates_are_timed_as_the_dense_model_was() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval(), (torch.randn(2, 3, 8, 8),))
    seen: list[tuple[str, Environment]] = []

    def artifacts(jobs: Sequence[Any], **named: Any) -> Measured:
        seen.extend((artifact.name, artifact.environment) for artifact, _ in jobs)
        return pretended(jobs, **named)

    clock = replace(current_clock(), artifacts=artifacts, profile=lambda path, setting, **_: setting)
    setting = Setting("openvino", "int8", environment=VNNI)
    dense = Artifact("dense int8", Path("d.onnx"), "onnx", "int8", environment=VNNI)
    with (
        mock.patch.object(bench, "write_candidate"),
        CandidateBench(graph, setting, dense, clock=clock) as table,
    ):
        trial = table.trial({}, Goal(Budget(speedup=2), 1.0))
    assert seen == [("dense int8", VNNI), ("candidate 1", VNNI)]
    assert trial.profile == setting


@pytest.mark.slow
def test_a_build_without_zeros_is_timed_and_handed_out_with_what_was_fastest(tmp_path: Path) -> None:
    asked: list[dict[tuple[str, str], Environment]] = []

    def artifacts(jobs: Sequence[Any], **named: Any) -> Measured:
        asked.append({(artifact.name, runtime): artifact.environment for artifact, runtime in jobs})
        runs = []
        for job in jobs:
            artifact, _ = job
            ms = 20.0 if artifact.precision == "fp32" else 5.0 if artifact.environment else 8.0
            runs.append(pretended([job], **named, ms=ms / 2 if artifact.name.startswith("pruned") else ms))
        timings = tuple(run.timings[0] for run in runs)
        return Measured(timings, timings[0], floor=0.01, settled=True)

    folder = workshop() / "instructions"
    command = ("compile", "tiny.pt2", "--macs", "0.5", "--runtime", "openvino", "--runtime", "onnxruntime")
    command = (*command, "--seconds", "1", "--out", str(folder))
    with (
        using(replace(current_clock(), artifacts=artifacts)),
        mock.patch.object(OpenVino, "environments", side_effect=lambda p, _: AMX if p == "int8" else ((),)),
    ):
        outcome = run_cli(*command)
        assert outcome.code == 0, outcome.err
        assert GAINS in outcome.err
        assert asked[-1] == {
            **{(f"{form} {kind}", "onnxruntime"): () for form in ("dense", "pruned") for kind in ("fp32", "int8")},
            **{(f"{form} fp32", "openvino"): () for form in ("dense", "pruned")},
            **{(f"{form} int8", "openvino"): VNNI for form in ("dense", "pruned")},
        }
        count = len(asked)
        assert run_cli("measure", str(folder), "--seconds", "1").code == 0
        assert asked[count:] == asked[count - 1 : count]
        resumed = run_cli(*command, "--resume")
        assert resumed.code == 0, resumed.err
        assert len(asked) == count + 2  # measured, and not tried again
        run_cli("validate", str(folder), "--max-latency", "50ms")
        assert asked[-1] == {("pruned int8", "openvino"): VNNI}
    report = read_report(folder)
    assert (report.deploy["artifact"], report.deploy["environment"]) == ("pruned int8", dict(VNNI))
    assert report.deploy["load"][0] == f"import os; os.environ.update({dict(VNNI)}); import openvino"
    assert report.settings["setting_tried"]["environments"][0]["environment"] == dict(VNNI)
    assert any(warning.startswith(GAINS) for warning in report.warnings)
    rows = {(row.name, row.runtime): row.environment for row in report.rows}
    assert (rows["dense int8", "openvino"], rows["dense int8", "onnxruntime"]) == (VNNI, ())
