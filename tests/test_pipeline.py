"""Builds that are interrupted, killed, tampered with and resumed end in the same files; and what those files say."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import deploypruner as dp
from deploypruner.build import pipeline
from deploypruner.build.artifacts import DENSE
from deploypruner.build.folder import BuildFolder
from deploypruner.build.resume import Marks
from deploypruner.build.stage import chain
from deploypruner.build.stages.allocate import Allocate
from deploypruner.build.stages.sparse import Sparse
from deploypruner.errors import BudgetError, InputError, PlanError, RecipeError
from deploypruner.recipe import MeasureRecipe, Recipe
from tests.builds import (
    CLASSES,
    COMPILE,
    IMAGE,
    REPRODUCED,
    copy_of_finished,
    digests,
    finished,
    left_over,
    pretended_timings,
    run_cli,
    samples,
    save_program,
    stopped_before,
    tiny,
    workshop,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STAGES = [stage.name for stage in chain()]
SAVING = [stage.name for stage in chain() if stage.saves]
# These builds learn nothing, assign no patterns, have no zeros and leave no setting open: such stages say nothing.
SAID = [name for name in SAVING if name not in ("learn", "assign", "sparse", "settle")]


@contextlib.contextmanager
def interrupted_in(name: str) -> Iterator[None]:
    """Ctrl-C inside one stage: while its first file is half written, or where it writes none, at its end."""
    stage = next(cls for cls in chain() if cls.name == name)
    run, writing = stage.run, BuildFolder.writing

    @contextlib.contextmanager
    def half_written(self, name, **options):
        with writing(self, name, **options) as path:
            yield path
            raise KeyboardInterrupt

    def interrupted(self, build):
        with mock.patch.object(BuildFolder, "writing", half_written):
            run(self, build)
        raise KeyboardInterrupt

    with mock.patch.object(stage, "run", interrupted):
        yield


def done_before(err: str) -> list[str]:
    return [line.split()[0] for line in err.splitlines() if "(done before)" in line]


# What each run adds to.
RECORDS = ("finished.json", "written.json", "log.txt")


def test_a_build_interrupted_in_every_stage_and_resumed_each_time_ends_in_the_same_files(tmp_path):
    command = (*COMPILE, "--out", str(tmp_path / "build"))
    for number, name in enumerate(STAGES):
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name not in RECORDS}
        with interrupted_in(name), pretended_timings():
            outcome = run_cli(*command, "--resume")
        outcome.assert_error(130, "interrupted", "--resume")
        assert done_before(outcome.err) == [s for s in STAGES[: max(0, number - 1)] if s in SAID], name
        assert left_over(tmp_path) == [], name
        assert {p: p.read_bytes() for p in before} == before, name
    with pretended_timings():
        outcome = run_cli(*command, "--resume")
    assert outcome.code == 0, outcome.err
    assert done_before(outcome.err) == SAID
    assert digests(tmp_path / "build") == digests(finished())


# Starts the command line in a process that kills itself, as no handler can, while the second epoch is saved.
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from deploypruner.cli import main as cli
from deploypruner.train import checkpoint
save = checkpoint.save
def save_and_die(path, identity, state):
    save(path, identity, state)
    if len(state.epochs) == 2:
        (path.parent / ".writing-left").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = save_and_die
cli.main()
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_build_killed_between_two_epochs_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path):
    command = (*COMPILE, "--out", str(tmp_path / "build"))
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], cwd=workshop(), env=ENVIRONMENT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with stopped_before("quantize"):
        outcome = run_cli(*command, "--resume", "-v")
    assert "recover: continued after epoch 2" in outcome.err
    assert done_before(outcome.err) == ["score", "allocate"]
    assert left_over(tmp_path) == []
    same = ("plan.json", "stages/scores.safetensors", "stages/recovered.safetensors")
    assert digests(tmp_path / "build", same) == digests(finished(), same)


def test_a_signal_to_end_while_workers_measure_ends_them_all(tmp_path):
    """SIGTERM, which reaches this process alone, as Ctrl-C does a worker's parent."""
    folder = copy_of_finished(tmp_path)
    command = [sys.executable, "-m", "deploypruner", *COMPILE, "--out", str(folder), "--resume"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=workshop(), env=ENVIRONMENT, **streams) as process:
        parent, workers = psutil.Process(process.pid), []
        while len(workers) < 5 and process.poll() is None:  # four artifacts and the twin of the first
            time.sleep(0.05)
            workers = [p for p in parent.children(recursive=True) if "deploypruner.measure.worker" in p.cmdline()]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.endswith("error: interrupted\n\nhint: run the same command with --resume to go on\n")
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert left_over(tmp_path) == []
    assert digests(folder) == digests(finished())


# ---------------------------------------------------------------------- resume


def test_a_resumed_build_writes_nothing_again_that_was_finished(tmp_path):
    """The dense files of stage allocate, too, which stage quantize needs."""
    folder = copy_of_finished(tmp_path)
    kept = [p for p in (folder / "stages").iterdir() if p.name not in RECORDS]
    kept += [folder / name for name in DENSE if "/" not in name]
    before = {p: p.stat().st_mtime_ns for p in kept}
    assert {p.name for p in kept} > {"dense.fp32.onnx", "dense.int8.onnx"}
    (folder / "model.int8.onnx").unlink()
    with pretended_timings():
        outcome = run_cli(*COMPILE, "--out", str(folder), "--resume")
        assert done_before(outcome.err) == SAID[: SAID.index("quantize")]
        changed = {p.name for p in kept if p.stat().st_mtime_ns != before[p]}
        assert changed == {"quantize.json", "verify.json"}
        settled = {p: p.stat().st_mtime_ns for p in (*kept, *map(folder.joinpath, REPRODUCED))}
        outcome = run_cli(*COMPILE, "--out", str(folder), "--resume")
    assert done_before(outcome.err) == SAID
    assert {p: p.stat().st_mtime_ns for p in settled} == settled
    assert digests(folder) == digests(finished())


def test_a_file_that_a_later_stage_wrote_does_not_undo_an_earlier_one(tmp_path):
    """Where several stages may write the same file: the dense models."""
    folder, stage = BuildFolder(tmp_path / "build"), Allocate()
    folder.prepare()
    folder.write_json("stages/allocated.json", {})
    marks = Marks(folder, chain(), {"recipe": {}, "stages": {}})
    marks.add(stage, 1.0)
    folder.write_text(DENSE[0], "")
    assert marks.finished(stage)
    folder.write_json("stages/allocated.json", {"other": 1})
    assert not marks.finished(stage)


def test_resume_in_an_empty_folder_starts_a_build(tmp_path):
    with stopped_before("remove"):
        outcome = run_cli(*COMPILE, "--out", str(tmp_path), "--resume")
    assert outcome.err.startswith(f"there is nothing to resume in {tmp_path}: this build starts at the beginning\n")
    assert done_before(outcome.err) == []
    assert digests(tmp_path, ["plan.json"]) == digests(finished(), ["plan.json"])


def test_resume_notices_that_the_data_changed(monkeypatch):
    monkeypatch.setattr("deploypruner.build.resume.content_fingerprint", lambda _: "other")
    outcome = run_cli(*COMPILE, "--out", str(finished()), "--resume")
    outcome.assert_error(2, "data 'labelled' changed since the build in", "leave out --resume")


def test_a_stage_that_runs_again_first_drops_what_it_and_later_ones_once_made(tmp_path):
    folder = BuildFolder(tmp_path)
    folder.prepare()
    later = next(name for cls in reversed(chain()) for name in cls.saves)
    for name in ("plan.json", "model.sparse.onnx", "stages/sparse.json", "model.int8.onnx", later):
        folder.write_text(name, "{}")
    pipeline._discard_from(folder, Sparse, chain())
    assert not folder.has("model.sparse.onnx")
    assert not folder.has("stages/sparse.json")
    assert not folder.has(later)
    assert folder.has("plan.json")
    assert folder.has("model.int8.onnx")
    folder.release()


def test_two_builds_at_once_in_one_folder_are_refused():
    held = BuildFolder(finished())
    held.prepare()
    try:
        outcome = run_cli(*COMPILE, "--out", str(finished()), "--resume")
    finally:
        held.release()
    outcome.assert_error(2, f"process {os.getpid()} is building in", f"kill {os.getpid()}")


def test_sparsify_does_not_touch_a_build(tmp_path):
    before = digests(finished())
    outcome = run_cli("sparsify", str(finished() / "model.int8.onnx"), "--out", str(finished()))
    outcome.assert_error(2, "holds the files of a build")
    assert digests(finished()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", "1"), "seed = 0, this command says 1"),
        (("--ema", "0.9"), "recover.settings.ema = 0.0, this command says 0.9"),
        (("--criterion", "magnitude"), "prune.criterion = 'auto', this command says 'magnitude'"),
        (
            ("--runtime", "openvino"),
            "measure.runtimes = ['onnxruntime'], this command says ['onnxruntime', 'openvino']",
        ),
    ],
)
def test_resume_with_other_options_names_the_first_difference_and_changes_nothing(options, said):
    before = digests(finished())
    outcome = run_cli(*COMPILE, *options, "--out", str(finished()), "--resume")
    outcome.assert_error(2, said, "leave out --resume")
    assert digests(finished()) == before


def test_resume_with_another_budget_uses_the_scores_again(tmp_path):
    folder = copy_of_finished(tmp_path)
    command = (*COMPILE, "--macs", "1", "--out", str(folder), "--resume")
    refused = run_cli(*command)
    refused.assert_error(
        2, "holds a finished build, made with prune.macs = 0.5; this command says 1.0", "add --overwrite"
    )
    assert not folder.with_name("build.new").exists()
    with stopped_before("remove"):
        outcome = run_cli(*command, "--overwrite")
    outcome.assert_error(130, "interrupted")
    assert done_before(outcome.err) == ["score"]
    plan = json.loads((folder.with_name("build.new") / "plan.json").read_text())
    assert plan["macs_after"] == plan["macs_before"]
    assert digests(folder) == digests(finished())


def test_a_finished_build_is_replaced_when_the_new_one_is_finished_and_not_before(tmp_path):
    folder = copy_of_finished(tmp_path)
    command = (*COMPILE, "--macs", "1", "--out", str(folder))
    run_cli(*command).assert_error(2, "holds a finished build, which is kept", f"--out {tmp_path / 'build-2'}`")
    with interrupted_in("measure"), pretended_timings():
        run_cli(*command, "--overwrite").assert_error(130, "interrupted")
    assert digests(folder) == digests(finished())
    other = run_cli(*COMPILE, "--out", str(folder), "--resume")
    other.assert_error(2, "build.new holds an unfinished build, made with prune.macs = 1.0", f"delete {folder}.new")
    with pretended_timings():
        outcome = run_cli(*command, "--overwrite", "--resume")
    assert outcome.code == 0, outcome.err
    assert "verify" in done_before(outcome.err)
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
    report = json.loads((folder / "report.json").read_text())
    assert report["budget"]["requested"] == 1
    assert left_over(tmp_path) == []


def test_what_is_refused_after_it_replaced_a_finished_build_finds_its_files(tmp_path):
    """Refused once its table is written: its artifacts are looked for then, and its folder was renamed before."""
    folder = copy_of_finished(tmp_path)
    judged = []
    with mock.patch("deploypruner.build.stages.report.require_met", judged.append), pretended_timings():
        outcome = run_cli(*COMPILE, "--macs", "0.75", "--out", str(folder), "--overwrite", "--resume")
    assert outcome.code == 0, outcome.err
    (build,) = judged
    assert len(build.artifacts) >= 4
    for artifact in build.artifacts:
        assert artifact.path.is_relative_to(folder)
        assert artifact.path.is_file()


def test_a_build_whose_training_diverged_goes_on_with_a_lower_rate_after_its_scores(tmp_path):
    recipe = tmp_path / "fast.toml"
    recipe.write_text("[recover.settings]\nclip_norm = inf\nwarmup = 0\nbatch_size = 8\n")
    command = (*COMPILE, "--recipe", str(recipe), "--optimizer", "adamw", "--out", str(tmp_path / "build"))
    run_cli(*command, "--lr", "1e30").assert_error(2, "became", "in epoch 1, batch", "lower the learning rate")
    with stopped_before("quantize"):
        outcome = run_cli(*command, "--lr", "0.001", "--resume", "-v")
    assert done_before(outcome.err) == ["score", "allocate"]
    assert "recover: epoch 3 of 3" in outcome.err
    with stopped_before("quantize"):
        outcome = run_cli(*command, "--lr", "0.001", "--epochs", "1", "--resume", "-v")
    assert done_before(outcome.err) == ["score", "allocate"]
    assert "recover: epoch 1 of 1" in outcome.err
    resumed = run_cli(*command, "--lr", "0.001", "--ema", "0.9", "--resume")
    resumed.assert_error(2, "was made with recover.settings.ema = 0.0, this command says 0.9")


def test_a_build_that_trains_in_two_processes_goes_on_once(tmp_path):
    pytest.importorskip("lightning_fabric")
    command = (*COMPILE, "--devices", "2", "--out", str(tmp_path / "build"))
    with stopped_before("quantize"):
        outcome = run_cli(*command, "-v")
    lines = [line.split()[0] for line in outcome.err.splitlines() if " s  " in line]
    assert lines == ["load", "trace", "score", "allocate", "remove", "recover"]
    epochs = [line.split(",")[0] for line in outcome.err.splitlines() if line.startswith("recover:")]
    assert epochs == [f"recover: epoch {number} of 3" for number in (1, 2, 3)]
    with stopped_before("quantize"):
        again = run_cli(*command, "--resume")
    assert done_before(again.err) == ["score", "allocate", "recover"]


def test_a_build_that_is_refused_at_trace_leaves_its_log_and_the_next_one_adds_to_it(tmp_path):
    out = tmp_path / "build"
    for runs in (1, 2):
        outcome = run_cli(*COMPILE, "--macs", "0.0001", "--out", str(out))
        assert outcome.code == 3, outcome.err
        log = (out / "log.txt").read_text()
        assert log.count(": deploypruner compile") == log.count(" error: ") == runs
    missing = run_cli("compile", "missing.pt2", "--out", str(tmp_path / "none"))
    missing.assert_error(2, "missing.pt2")
    assert not (tmp_path / "none").exists()


def test_resume_with_another_model_under_the_same_name_is_refused(tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(workshop(), other, ignore=shutil.ignore_patterns("finished"))
    net = tiny()
    net.head.bias.data += 1
    save_program(net, other / "tiny.pt2", torch.zeros(2, *IMAGE))
    outcome = run_cli(*COMPILE, "--out", str(finished()), "--resume", folder=other)
    outcome.assert_error(2, "was made with model sha256 = ")


@pytest.mark.parametrize(
    ("file", "first_again"),
    [
        ("stages/scores.safetensors", "score"),
        ("stages/allocated.json", "allocate"),
        ("plan.json", "learn"),
        ("stages/recovered.safetensors", "recover"),
        ("stages/verify.json", "verify"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_stage_whose_file_is_damaged_is_done_again_with_all_after_it(tmp_path, file, first_again, damage):
    folder = copy_of_finished(tmp_path)
    path = folder / file
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    with stopped_before("measure" if first_again == "verify" else "quantize"):
        outcome = run_cli(*COMPILE, "--out", str(folder), "--resume")
    outcome.assert_error(130, "interrupted")
    assert done_before(outcome.err) == [s for s in SAVING[: SAVING.index(first_again)] if s in SAID]
    kept = ("plan.json", "stages/scores.safetensors", "stages/recovered.safetensors")
    assert digests(folder.with_name("build.new"), kept) == digests(finished(), kept)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "finished.json' is empty (0 bytes)"),
        ("{", "finished.json' is not valid JSON"),
        ("[]", "finished.json is damaged"),
        ("{}", "finished.json is damaged"),
        ('{"recipe": {}, "stages": []}', "finished.json is damaged"),
        ('{"recipe": {}, "stages": {"score": {}}}', "finished.json is damaged"),
    ],
)
def test_a_damaged_record_of_what_is_finished_is_refused(tmp_path, text, said):
    folder = copy_of_finished(tmp_path)
    (folder / "stages" / "finished.json").write_text(text)
    outcome = run_cli(*COMPILE, "--out", str(folder), "--resume")
    outcome.assert_error(2, said, "hint: leave out --resume and add --overwrite to start over")
    assert digests(folder) == digests(finished())


def test_a_folder_without_a_record_is_not_resumed(tmp_path):
    folder = copy_of_finished(tmp_path)
    (folder / "stages" / "finished.json").unlink()
    run_cli(*COMPILE, "--out", str(folder), "--resume").assert_error(2, "holds nothing to resume")


def test_the_recipe_of_a_build_alone_repeats_it(tmp_path):
    folder = copy_of_finished(tmp_path)
    with stopped_before("measure"):
        outcome = run_cli("compile", "--recipe", str(folder / "recipe.toml"), "--out", str(folder), "--resume")
    outcome.assert_error(130, "interrupted")
    assert done_before(outcome.err) == SAID


# ---------------------------------------------------------------------- what a build folder says


def test_a_finished_folder_holds_what_is_promised_and_nothing_else():
    assert {p.name for p in finished().iterdir()} == {
        *REPRODUCED,
        *(name for name in DENSE if "/" not in name),
        *("report.html", "report.json", "recipe.toml", "manifest.json", "measurements", "stages", "log.txt"),
    }
    assert left_over(finished()) == []


def test_the_manifest_lists_the_sha256_of_every_file():
    manifest = json.loads((finished() / "manifest.json").read_text())
    files = [p for p in finished().rglob("*") if p.is_file() and "stages" not in p.parts[-2:]]
    assert manifest["sha256"] == {
        str(p.relative_to(finished())): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.name not in ("manifest.json", "log.txt")  # which is added to
    }
    assert manifest["command"].startswith("deploypruner compile tiny.pt2 --data labelled.npz")
    assert manifest["versions"]["torch"] == torch.__version__


def test_the_report_has_the_fields_of_its_contract():
    report = json.loads((finished() / "report.json").read_text())
    assert {"target", "environment", "command", "model", "rows", "verification", "budget", "loop"} <= report.keys()
    assert {row["name"] for row in report["rows"]} == {"dense fp32", "dense int8", "pruned fp32", "pruned int8"}
    row = report["rows"][0]
    assert row["name"] == "dense fp32"
    promised = (
        "name format runtime precision pattern threads accuracy agreement median_ms p95_ms p99_ms samples ratio "
        "ratio_ci verdict macs params nonzero bytes peak_rss_bytes"
    )
    assert set(promised.split()) <= row.keys()
    assert (row["ratio"], row["agreement"]) == (1.0, 1.0)
    assert all({"name", "max_abs_diff", "tolerance", "passed"} <= check.keys() for check in report["verification"])
    assert {"kind", "requested", "predicted", "certified", "met"} <= report["budget"].keys()


def test_the_numbers_of_the_report_follow_from_plan_files_and_data():
    report = json.loads((finished() / "report.json").read_text())
    plan = json.loads((finished() / "plan.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    # By hand: stem 8*8*16*27, body 8*8*16*144, head 16*4.
    assert rows["dense fp32"]["macs"] == plan["macs_before"] == 8 * 8 * 16 * 27 + 8 * 8 * 16 * 144 + 64
    assert rows["pruned int8"]["macs"] == plan["macs_after"] <= 0.5 * plan["macs_before"]
    assert rows["pruned int8"]["bytes"] == (finished() / "model.int8.onnx").stat().st_size
    net = tiny()
    with np.load(workshop() / "labelled.npz") as data, torch.no_grad():
        right = net(torch.from_numpy(data["x_val"])).argmax(1).numpy() == data["y_val"]
    assert rows["dense fp32"]["accuracy"] == pytest.approx(100 * right.mean())


def test_the_recipe_of_a_build_spells_out_what_was_left_to_defaults():
    recipe = tomllib.loads((finished() / "recipe.toml").read_text())
    assert recipe["prune"]["macs"] == 0.5
    assert recipe["model"]["source"] == "tiny.pt2"
    assert recipe["recover"]["epochs"] == 3


# ---------------------------------------------------------------------- Python


def outputs(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(x)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dp.CompiledBuild, torch.nn.Module]:
    """`dp.compile` of a model left in training mode, with a DataLoader."""
    model = tiny().train()
    x, y = (torch.from_numpy(array) for array in samples(40))
    with pretended_timings():
        build = dp.compile(
            model,
            torch.zeros(2, *IMAGE),
            target="cpu",
            data=DataLoader(TensorDataset(x, y), batch_size=16),
            macs=0.6,
            epochs=1,
            runtimes=("onnxruntime",),
            allow_chance=True,  # its weights are random
            recipe=Recipe(measure=MeasureRecipe(seconds=1.0)),
            out=tmp_path_factory.mktemp("api") / "build",
        )
    return build, model


def test_compile_leaves_the_model_as_it_was(compiled):
    _, model = compiled
    assert model.training
    assert all(torch.equal(value, tiny().state_dict()[name]) for name, value in model.state_dict().items())


def test_compile_restore_and_the_program_are_the_same_function(compiled):
    build, _ = compiled
    x = torch.from_numpy(samples(5, seed=9)[0])
    restored = dp.restore(type(tiny())(), build.folder)
    program = torch.export.load(build.folder / "model.pt2").module()
    assert torch.equal(outputs(restored, x), outputs(build.module, x))
    torch.testing.assert_close(outputs(program, x), outputs(build.module, x))
    assert outputs(restored, x).shape == (5, CLASSES)


def test_arguments_of_compile_win_over_its_recipe(compiled):
    build, _ = compiled
    recipe = tomllib.loads((build.folder / "recipe.toml").read_text())
    assert (recipe["prune"]["macs"], recipe["recover"]["epochs"], recipe["measure"]["seconds"]) == (0.6, 1, 1.0)


def test_measure_and_prune_stay_functions_after_their_packages_are_imported(compiled):
    build, _ = compiled
    rows = dp.measure([build.folder / "model.fp32.onnx"], runtime="onnxruntime", threads=1, budget_s=0.2)
    assert [row.name for row in rows] == ["model.fp32.onnx"]
    assert callable(dp.prune)


def test_the_steps_one_by_one_are_prune_in_one():
    model, x = tiny(), torch.zeros(2, *IMAGE)
    graph = dp.trace(model, x)
    plan = dp.plan(graph, criterion="magnitude", budget=dp.Budget(macs=0.5))
    small = dp.remove(graph, plan)
    result = dp.prune(model, x, criterion="magnitude", macs=0.5)
    batch = torch.from_numpy(samples(3)[0])
    assert torch.equal(outputs(small, batch), outputs(result.module, batch))
    assert (result.plan.macs_after, result.plan.params_after) == (plan.macs_after, plan.params_after)
    assert result.plan.macs_after < result.plan.macs_before
    assert sum(p.numel() for p in result.module.parameters()) == plan.params_after < plan.params_before
    assert [group.size for group in result.graph.groups] == [16]
    assert {frozen.reason for frozen in graph.frozen} == {"model input", "model output"}


def test_plan_takes_data_as_a_loader_tensors_or_a_path():
    graph = dp.trace(tiny(), torch.zeros(2, *IMAGE))
    x, y = (torch.from_numpy(array) for array in samples(48))
    forms = ((x, y), DataLoader(TensorDataset(x, y), 16), workshop() / "labelled.npz", x)
    plans = [dp.plan(graph, criterion="taylor", budget=dp.Budget(macs=0.5), data=form) for form in forms]
    assert {plan.macs_after for plan in plans} == {plans[0].macs_after}


OTHER_NET = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 8), torch.nn.Linear(8, 4))


def plan_with(x: torch.Tensor, y: torch.Tensor) -> dp.Plan:
    graph = dp.trace(tiny(), torch.zeros(2, *IMAGE))
    return dp.plan(graph, criterion="taylor", budget=dp.Budget(macs=0.5), data=(x, y))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x: dp.compile(m), RecipeError, "needs example_inputs"),
        (lambda m, x: dp.compile(3, x), InputError, "was given a int, not a model"),
        (lambda m, x: dp.compile(m, (x, 1.0)), InputError, "example input 1 is a float"),
        (lambda m, x: dp.compile(m, x, train=lambda *_: None), RecipeError, "has nothing to train on"),
        (lambda m, x: dp.compile(m, x, target="gpu"), RecipeError, "no target called 'gpu'"),
        (lambda m, x: dp.compile(m, x, macs=0.01), BudgetError, "smallest reachable budget"),
        (lambda m, x: dp.compile(m, x, data=iter([x])), InputError, "can be read only once"),
        (lambda m, x: dp.prune(m, x, macs=0), RecipeError, "0 < macs <= 1"),
        (lambda m, x: dp.prune(m, x, macs=0.5, criterion="taylor"), RecipeError, "needs data"),
        (lambda m, x: plan_with(torch.zeros(9, 1, 16, 16), torch.zeros(9).long()), InputError, "[1, 16, 16]"),
        (lambda m, x: plan_with(torch.zeros(9, *IMAGE), torch.full((9,), 4)), InputError, "model's 4 outputs"),
        (lambda m, x: dp.restore(m, "nowhere"), InputError, "no plan file 'nowhere/plan.json'"),
        (lambda m, x: dp.restore(OTHER_NET, finished()), PlanError, "which this model does not have"),
        (lambda m, x: dp.measure([]), InputError, "no artifacts to measure"),
    ],
)
def test_a_wrong_call_is_named(tmp_path, monkeypatch, call, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call(tiny(), torch.zeros(4, *IMAGE))
    assert said in str(caught.value)
    assert caught.value.hint


class NoTensor(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return len(x)


def test_a_model_without_a_tensor_to_return_is_named(tmp_path):
    with pytest.raises(InputError, match="returned int, which holds no tensor"):
        dp.compile(NoTensor(), torch.zeros(2, 3), out=tmp_path / "build")


def test_openvino_is_imported_without_its_telemetry():
    code = (
        "import sys, threading\n"
        "from deploypruner.openvino_import import import_openvino\n"
        "print(import_openvino().__name__, 'openvino_telemetry' in sys.modules, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "openvino False 1\n"
