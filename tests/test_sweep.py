"""Whole sweeps: their trials, what kills cost, what they leave behind, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import deploypruner as dp
from deploypruner.errors import InputError
from deploypruner.latency.clock import current_clock, using
from deploypruner.locking import FolderLock
from deploypruner.measure import Measured
from deploypruner.measure.interference import Conditions, Window
from deploypruner.recipe.reading import read_recipe
from deploypruner.sweep.folder import DOCUMENT, STORE, sweep_folder
from deploypruner.sweep.store import TrialStore, read_store
from deploypruner.sweep.trial import TrialContext, identity_of
from deploypruner.sweep.trial_record import SweepTrial, TrialResult, result_json
from deploypruner.sweep.workers import run_in_workers
from tests.builds import IMAGE, Outcome, digests, run_cli, samples, save_program
from tests.made_up_times import FakeTimer, replace_timer
from tests.test_points import by_parameters

SWEEP = (
    *("sweep", "net.pt2", "--data", "data.npz", "--macs", "0.5", "--step", "1", "--samples", "9"),
    *("--candidates", "4", "--finalists", "2", "--again", "1", "--runtime", "onnxruntime", "--precision", "fp32"),
)
RESULT = TrialResult("accuracy", 90.0, 88.5, 1.5, 500, 50, 2.0)
TRIAL = SweepTrial("space", 3, {"a": 4, "b": 8}, seed=0, epochs=1, std=0.25)


class Three(nn.Module):
    """Three convolutions, so that widths can be traded for one another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(IMAGE[0], 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.b, self.nb = nn.Conv2d(12, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.c, self.head = nn.Conv2d(16, 12, 3, 1, 1), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.nb(self.b(self.na(self.a(x)).relu())).relu()
        return self.head(self.c(x).relu().mean((2, 3)))


def taught() -> Three:
    """A network that knows the classes of `samples`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, (x, y) = Three(), samples(256, seed=3)
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(6):
            for inputs, labels in zip(torch.tensor(x).split(32), torch.tensor(y).split(32), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs), labels).backward()
                optimizer.step()
    torch.set_num_threads(threads)
    return net.eval()


def a_workshop(root: Path) -> Path:
    save_program(taught(), root / "net.pt2", torch.zeros(2, *IMAGE))
    (x, y), (x_val, y_val) = samples(128), samples(96, seed=1)
    np.savez(root / "data.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    np.savez(root / "plain.npz", x=x, x_val=x_val)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> tuple[Path, Outcome]:
    """A finished sweep; tests read it."""
    root = a_workshop(tmp_path_factory.mktemp("sweep"))
    return root, by_parameters(*SWEEP, "--out", "s", folder=root)


def trials_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Identity -> result of every finished trial, but for the time it took."""
    found = {}
    for path in sorted((folder / "trials").glob("*.json")):
        result = json.loads(path.read_text())["result"]
        found[path.stem] = {name: value for name, value in result.items() if name != "seconds"}
    return found


# --------------------------------------------------------------------- workers


def of(result: TrialResult) -> Any:
    return lambda: result_json(TRIAL, result)


def test_a_process_that_is_killed_is_started_again_once_and_costs_no_other(tmp_path):
    def dies() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")

    def dies_first() -> dict[str, Any]:
        if not (tmp_path / "flag").exists():
            (tmp_path / "flag").touch()
            dies()
        return result_json(TRIAL, RESULT)

    jobs = [("a", dies), ("b", of(RESULT)), ("c", dies_first)]
    found = dict(run_in_workers(jobs, tmp_path / "trials", workers=2))
    assert found["b"] == found["c"] == RESULT
    assert found["a"].why.startswith("its process was ended by SIGKILL twice; was it out of memory?")
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["b.json", "c.json"]


def test_what_is_on_disk_is_not_done_again_and_what_is_damaged_is(tmp_path):
    list(run_in_workers([("a", of(RESULT)), ("b", of(RESULT))], tmp_path, workers=1))
    (tmp_path / "b.json").write_text('{"result": {"drop"')
    other = replace(RESULT, drop=7.0)
    again = dict(run_in_workers([("a", of(other)), ("b", of(other))], tmp_path, workers=1))
    assert (again["a"].drop, again["b"].drop) == (1.5, 7.0)


def test_workers_end_with_the_driver(tmp_path):
    def waits() -> dict[str, Any]:
        (tmp_path / "pid").write_text(str(os.getpid()))
        signal.pause()
        raise AssertionError("nobody wakes it")

    running = run_in_workers([("a", of(RESULT)), ("b", waits)], tmp_path, workers=2)
    assert next(running)[0] == "a"
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        pass
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# --------------------------------------------------------------------- the file


def test_the_file_gives_back_what_was_entered_and_plans_nothing_twice(tmp_path):
    path = tmp_path / "sweep.sqlite"
    store = TrialStore(path)
    again = replace(TRIAL, phase="again", seed=9)
    store.plan([("id1", TRIAL, 4.5), ("id2", again, None)])
    store.finish("id1", RESULT)
    store.plan([("id1", TRIAL, 99.0)])
    store.tell({"budget": "--macs 0.5"})
    about, trials = read_store(path)
    store.close()
    assert about["budget"] == "--macs 0.5"
    assert {one.id: (one.trial, one.predicted_ms, one.result) for one in trials} == {
        "id1": (TRIAL, 4.5, RESULT),
        "id2": (again, None, None),
    }


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "sweep.sqlite"
    TrialStore(path).close()
    base = sqlite3.connect(path)
    with base:
        base.execute("UPDATE about SET value = '99' WHERE name = 'format'")
    base.close()
    with pytest.raises(InputError, match="sweep of format 99, made by version"):
        TrialStore(path)
    (tmp_path / "other.sqlite").write_text(
        "nothing of the kind, and long enough to be read as pages of something" * 9
    )
    with pytest.raises(InputError, match="not a database"):
        TrialStore(tmp_path / "other.sqlite")


def test_a_trial_is_known_by_what_decides_it_alone():
    from deploypruner.build.folder import BuildFolder
    from deploypruner.build.state import Build, Given
    from deploypruner.progress import SilentProgress
    from deploypruner.recipe import Recipe
    from deploypruner.recipe.reading import overlay

    def identity(trial: SweepTrial = TRIAL, *, sha: str = "m", content: str = "d", **changes: Any) -> str:
        recipe = overlay(Recipe(), changes)
        build = Build(recipe, BuildFolder(Path("x")), "", Given(), SilentProgress(), sha256=sha, criterion="taylor")
        return identity_of(TrialContext(build, {}, content), trial)

    same = identity()
    assert identity(replace(TRIAL, phase="refined", number=8, std=0.0, widths={"b": 8, "a": 4})) == same
    assert identity(measure={"seconds": 77.0}, prune={"macs": 0.3}) == same
    assert identity(data={"source": "/elsewhere/the-same.npz"}) == same
    others = [
        *(identity(sha="n"), identity(content="e"), identity(recover={"settings": {"lr": 0.5}})),
        *(identity(replace(TRIAL, seed=1)), identity(replace(TRIAL, epochs=2)), identity(prune={"step": 4})),
        *(identity(replace(TRIAL, widths={"a": 4, "b": 9})), identity(replace(TRIAL, epochs=0))),
    ]
    assert len({same, *others}) == 1 + len(others)


# --------------------------------------------------------------------- whole sweeps


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_a_page_and_every_recipe_at_its_cost(whole):
    root, outcome = whole
    assert outcome.code == 0, outcome.err
    found = json.loads((root / "s/sweep.json").read_text())
    dense = found["dense"]
    assert len(found["samples"]) == 9
    assert all(0.98 * 0.5 <= s["macs"] / dense["macs"] <= 0.5 for s in found["samples"])
    for sample in found["samples"]:
        assert sample["mcb"] == sample["macs"] / sample["params"]
        assert sample["mcb_relative"] == pytest.approx(sample["mcb"] * dense["params"] / dense["macs"])
        assert sample["ms"] > 0
    assert sum(len(bucket["drops"]) for bucket in found["buckets"]) == 9
    assert [c["number"] for c in found["conjectures"]] == [1, 2, 3, 4]
    assert [w["phase"] for w in found["winners"]] == ["space", "refined"]
    assert found["winners"][0]["drop"] == min(s["drop"] for s in found["samples"])
    assert all(len(w["again"]) == 1 for w in found["winners"])
    assert found["labelled"] is True
    page = (root / "s/sweep.html").read_text()
    assert page.count("<circle") == 9
    assert "with new seeds" in outcome.out
    assert "winner of" in outcome.out
    counted = sum(len(v) for v in (found["samples"], found["winners"])) + found["looks"]
    assert len(trials_of(root / "s")) >= counted - 2  # a finalist or a winner may be one that was trained already


@pytest.mark.slow
def test_a_trial_is_what_compile_makes_of_the_recipe(whole):
    """The winner's file, compiled with the sweep's own training, ends in the winner's widths and accuracy."""
    root, _ = whole
    found = json.loads((root / "s/sweep.json").read_text())
    best = min(found["winners"], key=lambda winner: winner["expected"])
    command = ("compile", "--recipe", "s/winner.toml", "--epochs", "1", "--runtime", "onnxruntime", "--seconds", "1")
    outcome = by_parameters(*command, "--out", "b", folder=root)
    assert outcome.code == 0, outcome.err
    plan = json.loads((root / "b/plan.json").read_text())
    assert {g["id"]: len(g["keep"]) for g in plan["groups"]} == best["widths"]
    recovered = json.loads((root / "b/stages/recover.json").read_text())
    lost = recovered["accuracy_dense"] - recovered["accuracy_recovered"]
    assert lost == pytest.approx(best["drop"])
    assert read_recipe(root / "s/winner.toml", {}).recover.epochs == "auto"  # what nobody asked is not in it


@pytest.mark.slow
def test_two_workers_give_the_trials_of_one(whole):
    root, _ = whole
    outcome = by_parameters(*SWEEP, "--workers", "2", "--out", "two", folder=root)
    assert outcome.code == 0, outcome.err
    assert trials_of(root / "two") == trials_of(root / "s")
    ours, theirs = (json.loads((root / name / "sweep.json").read_text()) for name in ("s", "two"))
    for volatile in ("command", "seconds"):
        ours.pop(volatile), theirs.pop(volatile)
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("fall", ["before the result is entered", "between two trials"])
def test_a_driver_that_is_killed_loses_nothing_that_was_finished(whole, tmp_path, fall):
    root, _ = whole
    for name in ("net.pt2", "data.npz"):
        shutil.copy(root / name, tmp_path / name)
    child = os.fork()
    if not child:
        finish, seen = TrialStore.finish, list[str]()

        def dying(self: TrialStore, name: str, result: TrialResult) -> None:
            seen.append(name)
            if len(seen) == 4 and fall.startswith("before"):
                os.kill(os.getpid(), signal.SIGKILL)
            finish(self, name, result)
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        with mock.patch.object(TrialStore, "finish", dying):
            by_parameters(*SWEEP, "--out", "s", folder=tmp_path)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    names = [str(path.relative_to(tmp_path)) for path in (tmp_path / "s/trials").glob("*.json")]
    before = digests(tmp_path, names)
    assert len(before) == 4
    status = run_cli("sweep", "--status", "s", folder=tmp_path)
    assert "nobody is at work; --resume goes on" in status.out
    run_cli(*SWEEP, "--out", "s", folder=tmp_path).assert_error(2, "holds a begun sweep", "--resume")
    outcome = by_parameters(*SWEEP, "--out", "s", "--resume", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert digests(tmp_path, names) == before
    assert trials_of(tmp_path / "s") == trials_of(root / "s")
    assert not list((tmp_path / "s/trials").glob(".*"))


@pytest.mark.slow
def test_more_samples_are_added_to_a_finished_sweep(whole, tmp_path):
    root, _ = whole
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    run_cli(*SWEEP, "--out", "s", folder=tmp_path).assert_error(2, "holds a finished sweep", "more --samples")
    more = [*SWEEP, "--out", "s", "--resume"]
    more[more.index("9")] = "11"
    outcome = by_parameters(*more, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "11 recipes: 2 to do, 9 done before" in outcome.err
    ours, theirs = (json.loads((place / "s/sweep.json").read_text()) for place in (root, tmp_path))
    assert theirs["samples"][:9] == ours["samples"]
    status = run_cli("sweep", "--status", "s", folder=tmp_path)
    assert "recipes: 11 done" in status.out
    assert "finished: s/sweep.html" in status.out


@pytest.mark.slow
def test_equal_predicted_time_and_no_labels_from_python(whole, monkeypatch):
    """Going on, it predicts with the times that it began with, though layers would be timed anew."""
    root, _ = whole
    from tests.test_points import timed

    model, example = taught(), torch.zeros(2, *IMAGE)
    replace_timer(monkeypatch, dp.trace(model, example))

    def beside_others(jobs: Any, **more: Any) -> Measured:
        waited = Window(1.0, 2.0, 0.0, 0.5, None)
        return replace(timed(jobs, **more), conditions=Conditions((waited,) * 4, 1, 1, rounds=4))

    def swept(samples: int, *, cache: str, resume: bool) -> dp.SweepResult:
        monkeypatch.setenv("DEPLOYPRUNER_CACHE", str(root / cache))
        with using(replace(current_clock(), artifacts=beside_others)):
            return dp.sweep(
                *(model, example),
                data=torch.tensor(np.load(root / "plain.npz")["x"]),
                speedup=1.5,
                step=1,
                samples=samples,
                candidates=0,
                again=0,
                criterion="magnitude",
                runtimes=("onnxruntime",),
                out=root / "timed",
                resume=resume,
                progress=False,
            )

    result = swept(8, cache="one", resume=False)
    found, asked = result.found, FakeTimer.asked
    assert asked > 0
    assert (found.labelled, found.quality) == (False, "top-1 agreement with the dense model")
    assert any("nothing is labelled" in note for note in found.notes)
    busy = "while the dense model was timed, the machine was busy throughout: "
    assert busy in " ".join(found.notes)
    dense_ms = found.dense.ms
    assert dense_ms is not None
    assert all(0.98 * dense_ms / 1.5 <= s.ms <= dense_ms / 1.5 * (1 + 1e-9) for s in found.samples)
    assert len({s.macs for s in found.samples}) > 1
    assert found.conjectures[1].verdict != "not tested"
    assert result.recipe.is_file()
    assert "8 recipes at --speedup 1.5" in repr(result)
    more = swept(10, cache="two", resume=True).found
    assert FakeTimer.asked == asked
    assert busy in " ".join(more.notes)
    assert (more.samples[:8], more.dense, len(more.samples)) == (found.samples, found.dense, 10)


# --------------------------------------------------------------------- refused


def test_the_command_refuses_before_anything_is_loaded():
    for options, said in (
        (("--samples", "0"), "--samples must be at least 1, got 0"),
        (("--ratio-std", "x"), "'x' is not two numbers"),
        (("--latency", "5ms"), "latency"),
        (("--macs", "1.5"), "0 < macs <= 1"),
    ):
        outcome = run_cli("sweep", "lib:net", "--data", "lib:data", *options)
        assert outcome.code == 2
        assert said in outcome.err
    run_cli("sweep", "lib:net").assert_error(2, "there is no data", "--data")
    run_cli("sweep").assert_error(2, "no MODEL given")


def test_what_a_sweep_cannot_do_with_a_recipe_is_said(tmp_path):
    for table, said in (
        ('patterns = ["channel", "2:4"]', "patterns are channel, 2:4"),
        ('latency = "5ms"', "at a share of the MACs or at a speed-up"),
        ('scope = "recipe"\n[[prune.layers]]\nmatch = "a"\ncut = 0.5', "chooses the widths itself"),
    ):
        (tmp_path / "r.toml").write_text(f"[prune]\n{table}\n")
        run_cli("sweep", "lib:net", "--data", "lib:data", "--recipe", "r.toml", folder=tmp_path).assert_error(2, said)


def test_the_status_of_a_finished_sweep_is_told_without_torch(tmp_path):
    folder = sweep_folder(tmp_path)
    folder.prepare()
    TrialStore(tmp_path / STORE).close()
    folder.write_json(DOCUMENT, {})
    folder.write_manifest({})
    folder.release()
    ask = f"""
import sys
from pathlib import Path
from deploypruner.sweep.status import sweep_status
print(sweep_status(Path({str(tmp_path)!r})).text, "torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == f"finished: {tmp_path / 'sweep.html'} False"


def test_the_status_of_what_is_no_sweep_is_refused(tmp_path):
    run_cli("sweep", "--status", str(tmp_path)).assert_error(2, "holds no sweep", "--out")


@pytest.mark.slow
def test_what_does_not_fit_a_sweep_that_is_there_is_refused(whole, tmp_path):
    root, _ = whole
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    again = (*SWEEP, "--out", "s", "--resume")
    by_parameters(*again, "--macs", "0.4", folder=tmp_path).assert_error(2, "budget --macs 0.5, this command says")
    run_cli(*again, "--epochs", "3", folder=tmp_path).assert_error(2, "epochs 1, this command says 3")
    run_cli(*again, "--lr", "0.5", folder=tmp_path).assert_error(2, "lr None, this command says 0.5")
    run_cli("compile", "net.pt2", "--out", "s", folder=tmp_path).assert_error(2, "holds the files of a sweep")
    run_cli(*SWEEP, "--out", "t", "--macs", "0.001", folder=tmp_path).assert_error(3, "--macs 0.001", "reachable")
    lock = FolderLock(tmp_path / "s/.deploypruner.lock")
    with mock.patch("deploypruner.locking._about", return_value={**ABOUT, "pid": 1}):
        lock.acquire(tmp_path / "s")
    try:
        run_cli(*again, folder=tmp_path).assert_error(2, "process 1 is building in s", "another --out")
    finally:
        lock.release()


ABOUT = {"started": 0, "space": "elsewhere", "command": "deploypruner sweep", "since": 0.0}


@pytest.mark.slow
def test_a_sweep_of_another_model_stands_beside_none(whole, tmp_path):
    root, _ = whole
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    net = taught()
    net.head.bias.data += 0.01
    save_program(net, tmp_path / "net.pt2", torch.zeros(2, *IMAGE))
    by_parameters(*SWEEP, "--out", "t", "--beside", "s", folder=tmp_path).assert_error(
        2, "of another model", "this model alone"
    )
    run_cli(*SWEEP, "--out", "s", "--resume", folder=tmp_path).assert_error(2, "model sha256")


@pytest.mark.slow
def test_the_recipe_of_another_model_is_refused_by_its_layers(whole, tmp_path):
    root, _ = whole
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    other = nn.Sequential(
        nn.Conv2d(IMAGE[0], 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    save_program(other, tmp_path / "net.pt2", torch.zeros(2, *IMAGE))
    command = ("compile", "--recipe", "s/winner.toml", "--allow-chance", "--out", "other")
    run_cli(*command, folder=tmp_path).assert_error(2, "no module of this model matches")
