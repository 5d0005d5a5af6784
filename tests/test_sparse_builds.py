"""A sparse pattern through a whole build: channels and zeros in one compile, zeros that survive, clear refusals."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from deploypruner.api import plan as make_plan_of
from deploypruner.build.folder import BuildFolder
from deploypruner.build.sparsity import check_sparse
from deploypruner.build.stages.recover import Recover
from deploypruner.build.state import Build, Given
from deploypruner.errors import RecipeError
from deploypruner.graph import trace
from deploypruner.progress import SilentProgress
from deploypruner.recipe import PruneRecipe, Recipe, RecoverRecipe
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.sources.data import as_data
from deploypruner.sparsity.zeros_check import verify_zeros
from tests.builds import IMAGE, Outcome, pretended_timings, run_cli, samples, tiny, workshop

pytestmark = pytest.mark.slow

COMPILE = ("compile", "tiny.pt2", "--seconds", "1", "--runtime", "onnxruntime")


@functools.cache
def built(*options: str) -> tuple[Path, Outcome]:
    """A build in the workshop, made once."""
    folder = workshop() / "-".join(["sparse", *options]).replace(":", "").replace(",", "").replace(
        "labelled.npz", "l"
    )
    with pretended_timings():
        outcome = run_cli(*COMPILE, *options, "--out", str(folder))
    assert outcome.code == 0, outcome.err
    return folder, outcome


def combined() -> tuple[Path, Outcome]:
    return built("--pattern", "channel,2:4", "--macs", "0.7", "--data", "labelled.npz", "--epochs", "2")


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def weights(file: Path, name: str) -> np.ndarray:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
    return stored.get(f"{name}_quantized", stored.get(name))


def test_channels_and_two_of_four_combine_in_one_build() -> None:
    folder, outcome = combined()
    found = report(folder)
    pruned = [row for row in found["rows"] if row["pattern"] == "channel + 2:4"]
    assert {row["precision"] for row in pruned} == {"fp32", "int8"}
    assert all(row["macs"] < 0.7 * found["rows"][0]["macs"] for row in pruned)
    sparse = found["settings"]["sparse"]
    assert (sparse["pattern"], sparse["schedule"]) == ("2:4", "gradual")
    assert sparse["zeros"] * 2 == sparse["weights"]
    assert all(row["nonzero"] <= row["params"] - sparse["zeros"] for row in pruned)
    assert "2:4 (gradual): 50.0 % of the weights of 1 layer are zero" in outcome.err
    assert "nonzero" in outcome.out


def test_every_zero_of_torch_is_a_zero_in_fp32_and_in_int8() -> None:
    folder, _ = combined()
    checks = [c for c in report(folder)["verification"] if c["name"].startswith("zeros of torch")]
    assert [c["name"] for c in checks] == [f"zeros of torch = zeros of model.{p}.onnx" for p in ("fp32", "int8")]
    assert all(c["passed"] and c["max_abs_diff"] == 0 for c in checks)
    fp32, int8 = (weights(folder / f"model.{p}.onnx", "body.weight") for p in ("fp32", "int8"))
    for stored in (fp32, int8):
        runs = stored.transpose(0, 2, 3, 1).reshape(-1, 4)
        assert ((runs != 0).sum(axis=1) <= 2).all()
    assert int8.dtype == np.int8


def test_without_channel_in_the_pattern_no_channel_goes_and_without_data_one_shot_does_it() -> None:
    folder, outcome = built("--pattern", "nm64", "--sparsity", "0.5")
    found = report(folder)
    assert {row["macs"] for row in found["rows"]} == {found["rows"][0]["macs"]}
    assert {row["pattern"] for row in found["rows"]} == {"dense", "nm64"}
    assert found["settings"]["sparse"]["schedule"] == "one-shot"
    assert found["settings"]["sparse"]["zeros"] == found["settings"]["sparse"]["weights"] / 2
    assert "other weights stay as they are" in outcome.err


def test_a_lost_zero_is_counted(tmp_path: Path) -> None:
    folder, _ = combined()
    weight = np.array(weights(folder / "model.fp32.onnx", "body.weight"))
    model = onnx.load(folder / "model.fp32.onnx")
    changed = weight.copy()
    changed[tuple(np.argwhere(weight == 0)[0])] = 1.0
    for tensor in model.graph.initializer:
        if tensor.name == "body.weight":
            tensor.CopyFrom(numpy_helper.from_array(changed, "body.weight"))
    onnx.save(model, tmp_path / "changed.onnx")
    checks = verify_zeros({"body.weight": weight}, tmp_path / "changed.onnx", folder / "model.int8.onnx")
    assert [(c.max_abs_diff, c.passed) for c in checks] == [(1.0, False), (0.0, True)]


@pytest.mark.parametrize("inputs", [4, 6])
def test_zeros_of_transposed_weights_are_found_square_ones_too(inputs: int, tmp_path: Path) -> None:
    weight = torch.randn(6, inputs).where(torch.rand(6, inputs) > 0.5, 0.0).numpy()
    node = helper.make_node("MatMul", ["x", "val_1"], ["y"])
    values = [helper.make_tensor_value_info(n, 1, [None, s]) for n, s in (("x", inputs), ("y", 6))]
    graph = helper.make_graph(
        [node], "g", values[:1], values[1:], [numpy_helper.from_array(weight.T.copy(), "val_1")]
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = verify_zeros({"fc.weight": weight}, tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert [c.detail for c in found] == [f"zeros lost, of {int((weight == 0).sum())}"] * 2
    assert all(c.passed for c in found)


def trained(patterns: tuple[str, ...], settings: SparseSettings, *, trains: bool = True) -> Callable[[], None]:
    recipe = Recipe(prune=PruneRecipe(patterns=patterns), sparse=settings, recover=RecoverRecipe())
    return lambda: check_sparse(recipe, trains=trains)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (
            trained(("channel",), SparseSettings(sparsity=0.5)),
            r"sparse.sparsity is set, but --pattern names no sparse",
        ),
        (trained(("2:4",), SparseSettings(sparsity=0.8)), r"pattern 2:4 makes 50 % .* and --sparsity says 80 %"),
        (lambda: SparseSettings(schedule="pdpp"), r"no sparse schedule called 'pdpp'[\s\S]*'pdp'"),
        (
            trained(("nm64",), SparseSettings(schedule="dtp"), trains=False),
            r"'dtp' works while fine-tuning, and there",
        ),
        (
            lambda: PruneRecipe(patterns=("nm64",), macs=0.5),
            r"a budget of .* removes channels, and --pattern says nm64",
        ),
    ],
)
def test_what_makes_no_sense_together_is_refused(attempt: Callable[[], None], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        attempt()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pattern", "nm46"), "no pattern called 'nm46'"),
        (("--pattern", "nm64", "--sparsity", "1.5"), "between 0 and 1, got 1.5"),
        (("--pattern", "3:5"), "'body': 16 inputs are no multiple of 5, which pattern 3:5 needs"),
        (("--pattern", "nm64", "--sparse-layers", "1x1"), "it has 1 conv, 1 stem, 1 classifier"),
        (
            ("--pattern", "nm64", "--sparse-exclude", "bod"),
            "no convolution or linear layer of this model matches 'bod'",
        ),
        (("--sparsity", "0.8"), "sparse.sparsity is set, but --pattern names no sparse pattern"),
    ],
)
def test_the_command_line_refuses_with_one_hint(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    outcome = run_cli("compile", "tiny.pt2", *options, "--out", str(tmp_path / "b"))
    outcome.assert_error(2, said)


def test_patterns_and_schedules_are_listed() -> None:
    listed = run_cli("list", "patterns").out
    assert all(name in listed for name in ("channel", "N:M", "1x4", "4x4", "nm64", "unstructured"))
    assert [line.split()[0] for line in run_cli("list", "sparse-schedules").out.splitlines()] == [
        *("dtp", "gradual", "one-shot", "pdp")
    ]


def test_a_training_function_cannot_bring_pruned_weights_back(tmp_path: Path) -> None:
    def all_ones(student: nn.Module, teacher: nn.Module, data: object) -> None:
        student.get_parameter("body.weight").data.fill_(1.0)

    graph = trace(tiny(), (torch.zeros(2, *IMAGE),))
    build = Build(
        Recipe(prune=PruneRecipe(patterns=("1:4",)), recover=RecoverRecipe(batchnorm_batches=1)),
        BuildFolder(tmp_path),
        "",
        Given(train=all_ones),
        SilentProgress(),
        data=as_data(samples(32)),
        graph=graph,
        plan=make_plan_of(graph, budget=Budget(macs=1.0)),
        module=graph.cut(graph.removed({})),
    )
    build.folder.prepare()
    done = Recover().run(build)
    kept = done.compiled.get_parameter("body.weight").detach()
    assert sorted(kept.unique().tolist()) == [0.0, 1.0]
    assert float(kept.mean()) == 0.25
    assert done.pruned is not None
    assert done.pruned.nonzero == graph.cost().params - 16 * 16 * 9 * 3 // 4 - 16
