"""Sweeps on Ray: the same trials as without it, what a lost worker or node costs, and what is refused."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from deploypruner.build.folder import BuildFolder
from deploypruner.build.state import Build, Given
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import trace
from deploypruner.progress import SilentProgress
from deploypruner.recipe import Recipe
from deploypruner.sweep import on_ray, shipped
from deploypruner.sweep.on_ray import RayCluster
from deploypruner.sweep.records import HERE, SweepSettings, host_and_port
from deploypruner.sweep.trial import TrialContext
from deploypruner.sweep.trial_record import SweepTrial, TrialResult, result_json
from deploypruner.sweep.workers import read_result
from tests.test_points import by_parameters
from tests.test_sweep import SWEEP, a_workshop, trials_of

pytest.importorskip("ray", reason="Ray is not installed")
TRIALS = [(name, SweepTrial("space", n, {"a": 4}, seed=n, epochs=0, std=0.25)) for n, name in enumerate("abcdef")]


class Net(nn.Module):
    """Of this file, which a worker elsewhere does not have."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3), nn.Linear(channels, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu().mean((2, 3)))


def a_context(model: nn.Module | None = None, **changes: Any) -> TrialContext:
    model = Net().eval() if model is None else model
    inputs = (torch.zeros(2, 3, 8, 8),)
    build = Build(Recipe(), BuildFolder(Path("nowhere")), "a command", Given(), SilentProgress())
    build = replace(build, model=model, example_inputs=inputs, graph=trace(model, inputs), **changes)
    return TrialContext(build, {"g": torch.arange(6.0)}, "data 1 2")


def tells(key: bytes, given: Any, trial: SweepTrial) -> dict[str, Any]:
    """In the place of what a worker does: its number as the points lost."""
    return result_json(trial, TrialResult("accuracy", 90.0, 90.0 - trial.number, float(trial.number), 5, 6, 0.1))


@pytest.fixture
def here() -> Any:
    with RayCluster(HERE, workers=2) as cluster:
        yield cluster


# ---------------------------------------------------------------------- what is sent


def test_a_context_arrives_with_a_graph_of_its_own_and_the_users_class_with_it():
    from ray import cloudpickle

    context = a_context()
    sent = shipped.pack(context, cloudpickle)
    arrived = shipped.unpack(sent, cloudpickle.loads)
    assert torch.equal(arrived.scores["g"], context.scores["g"])
    assert arrived.build.traced is not context.build.traced
    assert [g.id for g in arrived.build.traced.groups] == [g.id for g in context.build.traced.groups] != []
    assert torch.equal(arrived.build.model.first.weight, context.build.model.first.weight)
    assert b"forward" in sent.model  # its class came along: the file need not be there
    key = shipped.digest(sent)
    assert shipped.unpacked(key, sent, cloudpickle.loads) is shipped.unpacked(key, sent, cloudpickle.loads)


def test_a_program_travels_as_its_file():
    from ray import cloudpickle

    inputs = (torch.zeros(2, 3, 8, 8),)
    program = torch.export.export(Net().eval(), inputs)
    arrived = shipped.unpack(shipped.pack(a_context(program), cloudpickle), cloudpickle.loads)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(arrived.build.model.module()(x), program.module()(x))


def test_what_differs_at_the_other_end_is_named():
    from ray import cloudpickle

    sent = shipped.pack(a_context(), cloudpickle)
    with pytest.raises(InputError, match=r"the driver has torch 1\.0, the worker on ") as caught:
        shipped.unpack(replace(sent, versions={**sent.versions, "torch": "1.0"}), cloudpickle.loads)
    assert caught.value.message.endswith(f" {torch.__version__}")
    assert "the same versions" in caught.value.hint
    with pytest.raises(InputError, match=r"other groups of channels .* \(\d+ there, 2 here\)"):
        shipped.unpack(replace(sent, groups=("a", "b")), cloudpickle.loads)


def test_what_cannot_be_sent_is_named():
    from ray import cloudpickle

    with (
        socket.socket() as never,
        pytest.raises(InputError, match="a function of yours, cannot be sent"),
    ):
        shipped.pack(a_context(say=print, metric=SimpleNamespace(function=len, handle=never)), cloudpickle)


# ---------------------------------------------------------------------- what it costs


@pytest.mark.slow
def test_results_are_on_disk_before_anybody_hears_of_them_and_are_not_made_again(here, tmp_path):
    context = a_context()
    with mock.patch.object(on_ray, "_tried", tells):
        for name, result in here.run(TRIALS[:4], context, tmp_path):
            assert read_result(tmp_path, name) == result
    with mock.patch.object(on_ray, "_tried", None):
        again = dict(here.run(TRIALS[:4], context, tmp_path))
    assert {name: result.drop for name, result in again.items()} == {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}


@pytest.mark.slow
def test_a_worker_that_dies_or_refuses_costs_its_own_trial_and_a_connection_of_the_users_stays(here, tmp_path):
    import ray

    def falls(key: bytes, given: Any, trial: SweepTrial) -> dict[str, Any]:
        if trial.number == 1:
            os._exit(3)
        if trial.number == 2:
            raise InputError("labels are 0 to 9, the model has 4 outputs", hint="look at them")
        return tells(key, given, trial)

    with mock.patch.object(on_ray, "_tried", falls), RayCluster(HERE, workers=2) as users:
        found = dict(users.run(TRIALS[:4], a_context(), tmp_path))
    assert ray.is_initialized()
    assert found["b"].why.startswith("its worker ended 2 times: ")
    assert found["c"].why == "labels are 0 to 9, the model has 4 outputs"
    assert (found["a"].drop, found["d"].drop) == (0.0, 3.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "d.json"]


@pytest.mark.slow
def test_a_sweep_on_ray_gives_the_trials_of_one_without(tmp_path):
    root = a_workshop(tmp_path)
    few = (*SWEEP, "--samples", "3", "--candidates", "2", "--finalists", "1")
    for name, more in {"plain": (), "ray": ("--ray", "--workers", "2")}.items():
        outcome = by_parameters(*few, "--out", name, *more, folder=root)
        assert outcome.code == 0, outcome.err
    assert "Ray " in outcome.err
    assert trials_of(root / "ray") == trials_of(root / "plain") != {}


@pytest.mark.slow
def test_a_node_that_is_lost_costs_the_trials_that_ran_there(tmp_path):
    from ray.cluster_utils import Cluster

    def slow(key: bytes, given: Any, trial: SweepTrial) -> dict[str, Any]:
        import time

        time.sleep(1.0)
        return tells(key, given, trial)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with RayCluster(cluster.address, workers=1) as joined, mock.patch.object(on_ray, "_tried", slow):
            assert "2 node(s), 2 cores, 0 GPUs, one trial a core" in joined.text
            running = joined.run(TRIALS, a_context(), tmp_path)
            found = dict([next(running)])
            cluster.remove_node(second, allow_graceful=False)
            found |= dict(running)
    finally:
        cluster.shutdown()
    assert {name: result.drop for name, result in found.items()} == {name: t.number for name, t in TRIALS}


# ---------------------------------------------------------------------- what is refused


def test_addresses_where_nobody_listens_are_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no Ray cluster can be reached at {address}: .*refused") as caught:
            RayCluster(address, workers=1)
    assert "ray start --head" in caught.value.hint
    for wrong in ("nonsense", "host:0", "host:99999", ":6379", "host:"):
        with pytest.raises(RecipeError, match=f"--ray {wrong} is no address"):
            SweepSettings(ray=wrong)
    assert host_and_port("[::1]:6379") == ("::1", 6379)


def test_another_version_and_no_ray_are_said():
    import ray

    said = "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\nThis process was started with: Ray: 2.60"
    with (
        mock.patch.object(ray, "init", side_effect=RuntimeError(said)),
        mock.patch.object(on_ray, "_require_open"),
        pytest.raises(InputError, match="the cluster at head:6379 has another version of Ray or Python") as caught,
    ):
        RayCluster("head:6379", workers=1)
    assert "install the cluster's versions here" in caught.value.hint
    with mock.patch.dict("sys.modules", {"ray": None}), pytest.raises(InputError, match="not installed") as caught:
        RayCluster(HERE, workers=1)
    assert "deploypruner[ray]" in caught.value.hint
