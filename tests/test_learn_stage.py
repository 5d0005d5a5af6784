"""Learning inside a build: chosen on the command line, saved, resumed, and refused before any work is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.builds import digests, run_cli, stopped_before

pytestmark = pytest.mark.slow

BUILD = ("compile", "tiny.pt2", "--data", "labelled.npz", "--epochs", "0", "--macs", "0.6", "--learn-epochs", "2")
WAYS = {
    "pdp": ("--criterion", "pdp"),
    "dtp": ("--criterion", "dtp"),
    "iterative": ("--criterion", "taylor", "--schedule", "iterative"),
    "gradual": ("--criterion", "magnitude", "--schedule", "gradual"),
}
SAME = ("plan.json", "stages/learned.safetensors", "stages/recovered.safetensors")


def built(folder: Path, *options: str, stop: str = "quantize") -> str:
    with stopped_before(stop):
        outcome = run_cli(*BUILD, *options, "--out", str(folder))
    assert outcome.code == 130, outcome.err
    return outcome.err


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_build_that_learns_keeps_the_budget_and_is_proved(tmp_path, way):
    said = built(tmp_path, *WAYS[way])
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["macs_after"] <= 0.6 * plan["macs_before"]
    assert "masked = removed (float64" in said
    allocated = json.loads((tmp_path / "stages" / "allocated.json").read_text())
    widths, planned = ({g["id"]: len(g["keep"]) for g in p["groups"]} for p in (plan, allocated))
    assert way == "iterative" or widths == planned
    assert json.loads((tmp_path / "stages" / "learn.json").read_text())["learn_epochs"] == 2


def test_a_schedule_with_nothing_to_cut_says_so(tmp_path):
    said = built(tmp_path, *WAYS["pdp"], "--macs", "1")
    line = next(line for line in said.splitlines() if line.startswith("learn"))
    assert line.endswith("learned: every channel stays, nothing to learn")


@pytest.mark.parametrize("way", ["dtp", "iterative"])
def test_a_build_that_was_interrupted_while_learning_ends_in_the_same_bits(tmp_path, way):
    built(tmp_path / "whole", *WAYS[way])
    built(tmp_path / "parts", *WAYS[way], stop="remove")
    built(tmp_path / "parts", *WAYS[way], "--resume")
    assert digests(tmp_path / "parts", SAME) == digests(tmp_path / "whole", SAME)


def test_weights_that_were_learned_are_those_that_remain(tmp_path):
    built(tmp_path, *WAYS["pdp"], "--no-reconstruct")
    learned = load_file(tmp_path / "stages" / "learned.safetensors")
    remained = load_file(tmp_path / "stages" / "recovered.safetensors")
    assert (remained["head.bias"] == learned["head.bias"]).all()


def test_one_shot_learns_nothing_and_says_nothing(tmp_path):
    said = built(tmp_path, "--criterion", "magnitude")
    assert not (tmp_path / "stages" / "learned.safetensors").exists()
    assert not [line for line in said.splitlines() if line.startswith("learn")]
    allocated, plan = ((tmp_path / name).read_text() for name in ("stages/allocated.json", "plan.json"))
    assert allocated == plan


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--criterion", "dtp"), "criterion 'dtp' chooses channels while training and needs data"),
        (("--criterion", "magnitude", "--schedule", "gradual"), "schedule 'gradual' chooses channels while training"),
        (("--data", "labelled.npz", "--criterion", "pdp", "--learn-epochs", "0"), "--learn-epochs is 0"),
        (("--data", "labelled.npz", "--learn-epochs", "-1"), "--learn-epochs must be at least 0, got -1"),
        (("--data", "labelled.npz", "--criterion", "pdp", "--schedule", "gradual"), "has a schedule of its own"),
        (("--data", "labelled.npz", "--schedule", "iterativ"), "no schedule called 'iterativ'"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_any_work(tmp_path, options, said):
    outcome = run_cli("compile", "tiny.pt2", *options, "--out", str(tmp_path / "new"))
    outcome.assert_error(2, said)
    assert not (tmp_path / "new").exists()


def test_a_pace_that_does_not_fit_is_refused_with_the_numbers(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[learn.pace]\nevery = 5\nchannels = 1\n")
    outcome = run_cli(*BUILD, *WAYS["iterative"], "--recipe", str(recipe), "--out", str(tmp_path / "new"))
    outcome.assert_error(2, "one every 5 minibatches", "training steps, and there are 2")


def test_schedules_are_listed():
    outcome = run_cli("list", "schedules")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["gradual", "iterative", "learned", "one-shot"]
