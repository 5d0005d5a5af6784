"""Samples of another range than in training: said by every command, once, before the work that they would spoil."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploypruner.build.answering import Runner
from deploypruner.build.doubted import doubted_count, doubted_data, doubted_labels
from deploypruner.build.folder import BuildFolder
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.stages.load import Load
from deploypruner.build.stages.report import warnings_of
from deploypruner.build.state import Build, Given
from deploypruner.progress import SilentProgress
from deploypruner.recipe import Recipe
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.sources.data import as_data, settings_for
from deploypruner.sparse.library import is_built
from deploypruner.tasks.recognise import OutputTask
from tests.builds import run_cli
from tests.int8_nets import Net

EXPECTED = "are expected: the first batch norm, '0.1', has learned from values"


def net() -> nn.Module:
    """Has seen standard normal images."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(4):
        stem(torch.randn(32, 3, 8, 8))
    return nn.Sequential(
        stem, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


def samples(scale: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    x = scale * generator.standard_normal((80, 3, 8, 8)).astype(np.float32)
    return {"x": x[:40], "y": generator.integers(0, 4, 40), "x_val": x[40:], "y_val": generator.integers(0, 4, 40)}


def build(scale: float, folder: Path) -> Build:
    data = {name: torch.from_numpy(array) for name, array in samples(scale).items()}
    given = Given(net(), (torch.zeros(2, 3, 8, 8),), data=(data["x"], data["y"]))
    return Build(Recipe(), BuildFolder(folder), "", given, SilentProgress())


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_a_build_knows_it_from_its_first_stage_on_and_its_report_has_it(tmp_path, scale):
    found = Load().run(build(scale, tmp_path))
    said = Load().warnings(found)
    assert all(text in warnings_of(found) for text in said)
    if scale == 1:
        assert said == ()
    else:
        (text,) = said
        assert EXPECTED in text
        low, high = text.split("the inputs are ")[1].split(",")[0].split(" to ")
        # 32 of the samples, of which the farthest lies within four to five standard deviations.
        assert -250 < float(low) < -150
        assert 150 < float(high) < 250


def test_compile_says_it_before_it_stops_for_what_follows_from_it(tmp_path):
    program = torch.export.export(net(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "net.pt2")
    np.savez(tmp_path / "wide.npz", **samples(50.0))
    said = run_cli("compile", "net.pt2", "--data", "wide.npz", "--macs", "0.5", "--step", "1", folder=tmp_path)
    assert said.code == 2
    assert said.err.index("warning: the inputs are") < said.err.index(EXPECTED) < said.err.index("error: ")
    assert "no better than chance" in said.err


def batch_norm_file(path: Path, *, zeros: bool = False) -> None:
    """A file whose batch norm is not folded; with two of three weights zero where asked."""
    made = Net(["n", 3, 8, 8])
    hidden = made.conv("x", 8, 3)
    kept = [made.keep(values) for values in (np.ones(8), np.zeros(8), np.zeros(8), np.full(8, 100.0**2))]
    hidden = made.add("Relu", made.add("BatchNormalization", hidden, *kept))
    model = made.model(made.gemm(made.add("Flatten", made.add("GlobalAveragePool", hidden)), 4, 8))
    for tensor in model.graph.initializer:
        if zeros and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, 1:] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.slow
@pytest.mark.skipif(not is_built(), reason="the kernels are not built here")
def test_sparsify_says_it_before_it_quantizes(tmp_path):
    batch_norm_file(tmp_path / "net.onnx", zeros=True)
    np.savez(tmp_path / "data.npz", x=samples(1.0)["x"])
    said = run_cli("sparsify", "net.onnx", "--data", "data.npz", "-v", folder=tmp_path)
    assert said.err.index("warning: the inputs are") < said.err.index("quantizing net.onnx")
    assert "batchnormalization" in said.err


def test_data_without_samples_of_its_range_is_not_doubted_where_there_is_no_batch_norm():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    example = (torch.zeros(2, 12),)
    data = as_data((1e6 * torch.rand(9, 12),), settings_for(example, None, Recipe().data.settings))
    assert doubted_data(Runner(plain, example), data, seed=0) == ()


def test_samples_that_are_all_alike_are_said_to_be_whatever_the_model():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    example = (torch.zeros(2, 12),)
    data = as_data((torch.full((9, 12), 3.0),), settings_for(example, None, Recipe().data.settings))
    (said,) = doubted_data(Runner(plain, example), data, seed=0)
    assert "samples that were looked at are all alike" in said


def test_a_budget_of_accuracy_without_labels_is_one_of_agreement_and_says_so():
    unlabelled, labelled = OutputTask("output", "classification"), OutputTask("output", "classification", label=0)
    (said,) = doubted_labels((unlabelled,), 0.5, own=False)
    assert said == (
        "the data has no labels: --accuracy-drop 0.5 is kept in points of agreement with the dense model (top-1), "
        "not in points of accuracy"
    )
    for tasks, drop, own in (((labelled,), 0.5, False), ((unlabelled,), None, False), ((unlabelled,), 0.5, True)):
        assert doubted_labels(tasks, drop, own=own) == ()


def test_without_labels_it_says_what_is_really_judged_and_of_which_output():
    values, classes = OutputTask("z", "values"), OutputTask("y", "classification")
    (said,) = doubted_labels((values,), 2.0, own=False)
    assert said == (
        "the data has no labels: --accuracy-drop 2 is kept as a relative error against the dense model of at most "
        "2 %, not in points of accuracy"
    )
    (said,) = doubted_labels((replace(classes, label=0), values), 2.0, own=False)
    assert said.startswith("the data has no labels of 'z': --accuracy-drop 2 is kept as a relative error")
    (said,) = doubted_labels((classes, values), 2.0, own=False)
    assert "in points of agreement with the dense model (top-1) and as a relative error against" in said


def test_few_calibration_samples_are_counted():
    assert doubted_count(8) == ()
    assert doubted_count(1)[0].startswith("1 calibration sample is few")
    assert doubted_count(7)[0].startswith("7 calibration samples are few")


@pytest.mark.parametrize(("known", "said"), [(True, ()), (False, ("accuracy 25.0 % on 40 samples",))])
def test_a_file_that_does_no_better_than_chance_is_doubted_wherever_forms_of_it_are_judged(tmp_path, known, said):
    """By hand: the classes that it gives, and each of four classes a quarter of the time."""
    batch_norm_file(tmp_path / "net.onnx")
    x = samples(1.0)["x"]
    session = OnnxRuntime().open(tmp_path / "net.onnx")
    given = session.run([x])[0].argmax(axis=1)
    labels = given if known else np.where(np.arange(40) % 4 == 0, given, (given + 1) % 4)
    judge = FormJudge(
        *(tmp_path / "net.onnx", "onnxruntime", [([x], labels)]),
        opened=lambda path, runtime: session,
        tasks=(OutputTask("y", "classification", label=0),),
        metric=None,
    )
    assert judge.reference.accuracy == (100.0 if known else 25.0)
    assert len(judge.doubts) == len(said)
    for doubt, text in zip(judge.doubts, said, strict=True):
        assert text in doubt
        assert "guessing has 25 %" in doubt
