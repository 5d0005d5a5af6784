"""sparsify judges every form against the file that it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploypruner.build.fitting import Said
from deploypruner.build.given_file import FileRequest, judged, quality_of
from deploypruner.build.sparsified import Sparsified
from deploypruner.build.sparsify_inputs import sparsify_inputs
from deploypruner.recipe.data import DataSettings
from deploypruner.runtime.on_onnxruntime import OnnxRuntime

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 6)).astype(np.float32)
WEIGHT = (4 * RNG.standard_normal((6, 5))).astype(np.float32)


def linear(path: Path, weight: np.ndarray) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def judge(tmp_path: Path, weight: np.ndarray, *, labelled: bool, drop: float | None = None) -> Sparsified:
    given, form = linear(tmp_path / "given.onnx", WEIGHT), linear(tmp_path / "form.onnx", weight)
    labels = {"y": (X @ WEIGHT).argmax(axis=1)} if labelled else {}
    np.savez(tmp_path / "d.npz", x=X, **labels)
    request = FileRequest(given, tmp_path, data=str(tmp_path / "d.npz"), drop=drop)
    session = OnnxRuntime().open(given)
    inputs = sparsify_inputs(session, request.data, DataSettings(), batch=None, said=Said({}))
    qualities, _ = judged(request, {"dense fp32": given, "dense int8": form}, inputs)
    return Sparsified((), {"quality": quality_of(qualities, request)})


@pytest.mark.parametrize("labelled", [True, False])
def test_a_form_that_collapsed_is_refused(tmp_path, labelled):
    found = judge(tmp_path, WEIGHT * [1, 0, 0, 0, 0], labelled=labelled)
    assert found.refused
    kind = "accuracy fell from 100.0 to" if labelled else "agreement with the dense model (top-1) fell from 100.0 to"
    assert f"dense int8: {kind}" in found.quality


@pytest.mark.parametrize("labelled", [True, False])
def test_one_that_keeps_what_the_given_file_can_is_not(tmp_path, labelled):
    found = judge(tmp_path, WEIGHT + 0.001, labelled=labelled)
    assert not found.refused
    assert "nothing lost" in found.quality


def test_what_may_be_lost_is_the_users_to_say(tmp_path):
    half = WEIGHT + 1.5 * RNG.standard_normal(WEIGHT.shape)
    assert judge(tmp_path, half, labelled=True).refused
    assert not judge(tmp_path, half, labelled=True, drop=90).refused
