"""What `deploypruner plan` prints: repeated layers as one, reasons in words, at most the terminal's width."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deploypruner.latency.clock import current_clock, using
from deploypruner.records import Frozen
from deploypruner.report.frozen import by_reason, frozen_details, frozen_summary
from deploypruner.report.groups import GroupLine, group_table
from deploypruner.report.ranges import collapse
from tests.builds import JUST_THE_LOG, files_in, run_cli, workshop
from tests.staircase import Staircase

pytestmark = pytest.mark.slow

FACTORY = """
import torch
from torch import nn

@torch.library.custom_op("planned::smoothed", mutates_args=())
def smoothed(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1)

smoothed.register_fake(torch.empty_like)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Linear(12, 16), nn.Sequential(*(Block() for _ in range(3)))
        self.rnn, self.head = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.rnn(smoothed(self.blocks(self.embed(x)) * 2))[0])

def make():
    return Net()
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planning")
    (folder / "planned.py").write_text(FACTORY)
    return folder


@pytest.mark.parametrize(
    ("names", "collapsed"),
    [
        ([], []),
        (["head"], ["head"]),
        (["a.0.b", "a.1.b", "a.3.b", "c"], ["a.0-1,3.b", "c"]),
        ([f"l.{i}.b.{j}.w" for i in range(2) for j in range(3)], ["l.0-1.b.0-2.w"]),
        (["l.0.b.0", "l.0.b.1", "l.1.b.0"], ["l.0.b.0-1", "l.1.b.0"]),
        (["a.0.x", "a.1.y"], ["a.0.x", "a.1.y"]),
        (["conv1", "conv2"], ["conv1", "conv2"]),
        (["a.2", "a.10", "a.2"], ["a.2,10"]),
    ],
)
def test_names_that_differ_in_numbers_only_become_one(names, collapsed):
    assert collapse(names) == collapsed


def test_frozen_channels_are_grouped_by_reason_and_line_with_the_most_first():
    frozen = [
        Frozen("head.weight", 0, 5, "model output", ""),
        *(Frozen(f"blocks.{i}.fc.weight", 1, 196, "tokens", f"mixer.py:61 (blocks.{i})") for i in range(12)),
        Frozen("blocks.0.fc2.weight", 0, 4, "tokens", "mixer.py:99 (blocks.0)"),
    ]
    first, *rest = by_reason(frozen)
    assert (first.count, first.where, first.layers) == (12 * 196, "mixer.py:61", ("inputs of blocks.0-11.fc",))
    assert [entry.count for entry in rest] == [5, 4]
    assert frozen_summary(frozen, None) == [
        "cannot be pruned (--frozen lists layers and lines): 2,361 inputs and outputs of 14 layers",
        "     2,356  tokens",
        "         5  model output",
    ]
    assert "     2,352  tokens (mixer.py:61)" in frozen_details(frozen, None)


def test_nothing_frozen_is_said_as_such():
    assert frozen_summary([], None) == []
    assert frozen_details([], None) == ["nothing is frozen: every channel between input and output can be pruned"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_is_as_wide_as_the_terminal_and_names_stay_whole(width):
    name = "features.denseblock1.denselayer1.a_module_with_a_long_name.attention.projection.weight:0"
    lines = group_table([GroupLine(name, "head columns", 64, 32, 7.3e6, 0.123, "whole: too narrow")], width)
    assert all(len(line) <= width for line in lines if line != name)
    assert lines[1] == name
    assert lines[2].lstrip() == "head columns  64 -> 32     7.30 M  12.3 %  whole: too narrow"
    assert group_table([GroupLine("a.b:0", "heads", 2, None, 1.0, 0.5, "")], width)[1].startswith("a.b:0  ")


def test_equal_groups_of_repeated_layers_are_one_line():
    lines = [GroupLine(f"blocks.{i}.up.weight:0", "channels", 32, None, 512, 0.25, "") for i in range(3)]
    table = group_table([*lines, GroupLine("blocks.3.up.weight:0", "channels", 64, None, 512, 0.25, "")], None)
    assert [line.split()[0] for line in table] == ["group", "blocks.0-2.up.weight:0", "blocks.3.up.weight:0"]


def test_a_dry_run_says_what_can_be_cut_and_what_not(here):
    outcome = run_cli("plan", "planned:make", "--input-shape", "1,7,12", "--frozen", folder=here)
    assert outcome.code == 0, outcome.err
    assert "traced by torch.export, any batch size" in outcome.out
    assert "blocks.0-2.up.weight:0  channels        32" in outcome.out
    assert "no rule for planned.smoothed" in outcome.out
    assert "hint: what goes into planned.smoothed and comes out of it keeps its size" in outcome.out
    assert "inputs of blocks.0-2.up" in outcome.out.split("no rule for planned.smoothed")[1].split("hint")[0]
    assert "inputs of head" in outcome.out.split("state of a recurrent layer")[1].split("model output")[0]
    assert "model output\n            outputs of head" in outcome.out


def test_a_dry_run_as_json_holds_every_group(here):
    outcome = run_cli(
        *("plan", "planned:make", "--input-shape", "1,7,12", "--json", "--macs", "0.8", "--exclude", "blocks.1"),
        *("--step", "1"),
        folder=here,
    )
    document = json.loads(outcome.out)
    assert document["front_end"] == "torch.export"
    assert document["macs_after"] <= 0.8 * document["macs"]
    groups = {g["id"]: g for g in document["groups"]}
    assert [groups[f"blocks.{i}.up.weight:0"]["size"] for i in range(3)] == [32, 32, 32]
    assert groups["blocks.1.up.weight:0"]["keep"] == 32
    assert groups["blocks.1.up.weight:0"]["note"] == "whole: excluded by 'blocks.1'"
    assert groups["blocks.0.up.weight:0"]["share_of_macs"] > 0
    assert {entry["reason"] for entry in document["frozen"]} >= {"model output", "model input"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--exclude", "stm"), ("no module of this model matches 'stm'", "did you mean 'stem'?")),
        (("--min-width", "0"), ("--min-width must be at least 1 channel, got 0",)),
        (("--max-cut", "2"), ("--max-cut is the largest share", "got 2")),
        (("--heads", "colums"), ("'colums' is not one of 'auto', 'columns', 'heads', 'both'",)),
        (("--statistics", "cut"), ("'cut' is not one of 'auto', 'keep', 'prune'",)),
    ],
)
@pytest.mark.parametrize("command", ["plan", "compile"])
def test_a_constraint_out_of_range_is_named(command, options, said, tmp_path):
    out = ("--out", str(tmp_path / "build")) if command == "compile" else ()
    run_cli(command, str(workshop() / "tiny.pt2"), *options, *out).assert_error(2, *said)
    traced = command == "compile" and options[0] == "--exclude"  # the others are wrong before there is a model
    assert files_in(tmp_path / "build") == (JUST_THE_LOG if traced else set())
    assert (tmp_path / "build").exists() == traced


def _model(graph, *args, **kwargs):
    return Staircase(graph, block=4, base=0.001, rate=1, remarks=("the latency table was not kept",))


def test_a_dry_run_with_times_shows_what_each_group_would_gain():
    options = ("plan", str(workshop() / "tiny.pt2"), "--step", "4", "--precision", "fp32")
    with using(replace(current_clock(), latency_model=_model)):
        outcome = run_cli(*options, "--time")
        document = json.loads(run_cli(*options, "--json", "--speedup", "1.2").out)
        refused = run_cli(*options, "--latency", "1us")
    assert "predicted for fp32 on openvino, 1 thread: up to --speedup" in outcome.out
    assert "ms to gain  lost per ms" in outcome.out
    assert "plan:" not in outcome.out
    assert "note: the latency table was not kept" in outcome.out
    assert "the latency table was not kept" in document["remarks"]
    time = document["time"]
    assert time["fastest_ms"] <= time["predicted_ms"] <= time["dense_ms"] / 1.2
    assert 0 < time["importance"] < 1
    assert any(g["saved_ms"] > 0 and g["importance_per_ms"] > 0 for g in document["groups"])
    refused.assert_error(3, "out of reach", "what stands in the way")


def test_a_dry_run_without_a_question_about_time_times_nothing():
    def refuse(*args, **kwargs):
        raise AssertionError("timed")

    with using(replace(current_clock(), latency_model=refuse)):
        document = json.loads(run_cli("plan", str(workshop() / "tiny.pt2"), "--macs", "0.9", "--json").out)
    assert document["time"] is None
    assert document["groups"][0]["saved_ms"] is None
