"""Sparse models as a user meets them: built, loaded by plain OpenVINO, refused with a reason."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploypruner.build.sparsified import _most_zeros
from deploypruner.build.sparsity import existing_zeros, fewer_zeros, remaining
from deploypruner.channels.plan import make_plan
from deploypruner.errors import InputError, KernelError
from deploypruner.graph import trace
from deploypruner.latency.clock import current_clock, using
from deploypruner.latency.sparse_costs import MeasuredCosts, measure_costs
from deploypruner.measure import pair_up
from deploypruner.openvino_import import import_openvino
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.recipe.reading import overlay
from deploypruner.report import read_report
from deploypruner.report.sparse import sparse_lines, sparse_sentence
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse import library
from deploypruner.sparse.convert import sparsify
from deploypruner.sparse.verify import verify_operations
from deploypruner.sparsity.training.layers import weighted_layers
from tests.builds import IMAGE, known_rates, pretended_timings, run_cli, save_program, tiny, workshop
from tests.qdq import Qdq, chain, images

pytestmark = pytest.mark.slow

needs_library = pytest.mark.skipif(
    not library.is_built(), reason="the package was installed without its sparse kernels"
)
COMPILE = ("compile", "tiny.pt2", "--seconds", "1", "--runtime", "openvino", "--pattern", "1x4", "--sparsity", "0.5")


def test_a_layer_that_went_with_its_branch_is_not_looked_for():
    graph = trace(tiny(), (torch.zeros(2, *IMAGE),))
    keep = {"body": np.arange(0)}
    plan = make_plan(graph, keep, criterion="taylor", scope="latency", step=8)
    assert plan.dropped == ("body",)
    recipe = SimpleNamespace(prune=PruneRecipe())
    module = graph.cut(graph.removed(keep))
    build = SimpleNamespace(recipe=recipe, traced=graph, planned=plan, compiled=module)
    assert [layer.name for layer in remaining(build, weighted_layers(graph))] == ["stem", "head"]
    assert existing_zeros(build) is None
    with torch.no_grad():
        module.head.weight[:, ::2] = 0
    assert existing_zeros(build).names == ("head.weight",)


@contextmanager
def priced(*, sparse: float, dense: float):
    """Every layer costs the same, and borders cost nothing: what goes sparse does not depend on the machine."""

    def costs(_, __, layers, **___):
        free = {f"{a.name}_c4": 0.0 for layer in layers for a in layer.touches}
        names = [layer.name for layer in layers]
        return MeasuredCosts(dict.fromkeys(names, sparse), dict.fromkeys(names, dense), free, free)

    with using(replace(current_clock(), layer_costs=costs)), known_rates():
        yield


def built(*, sparse: float = 1.0, dense: float = 2.0):
    folder = workshop() / f"sparse-stage-{sparse}-{dense}"
    if not folder.exists():
        with priced(sparse=sparse, dense=dense), pretended_timings():
            outcome = run_cli(*COMPILE, "--out", str(folder))
        assert outcome.code == 0, outcome.err
    return folder


def sparse_file(folder, model=None):
    path = folder / "model.sparse.onnx"
    onnx.save(model or sparsify(chain(), every=True).model, path)
    return path


# ---------------------------------------------------------------------- compile


@needs_library
def test_a_build_with_zeros_holds_a_sparse_model_and_its_library_and_says_what_won():
    folder = built()
    found = read_report(folder)
    assert found.sparse["chosen"] == len(found.sparse["layers"]) > 0
    assert found.sparse["against_dense"]["against"] == "pruned int8"
    row = next(row for row in found.rows if row.name == "sparse int8")
    assert (row.pattern, row.runtime, row.precision) == ("1x4", "openvino", "int8")
    assert row.agreement is not None
    checks = {check.name: check for check in found.verification}
    assert checks["model.int8.onnx literal = sparse operations"].passed
    assert checks["model.int8.onnx literal = model.sparse.onnx (OpenVINO)"].passed
    assert "libdeploypruner_openvino.so" in json.loads((folder / "manifest.json").read_text())["sha256"]
    page = (folder / "report.html").read_text()
    assert "<h2>Sparse kernels</h2>" in page
    assert "layers run in sparse kernels" in page


@needs_library
def test_three_lines_of_plain_openvino_run_the_model():
    folder = built()
    openvino = import_openvino()
    core = openvino.Core()
    core.add_extension(str(folder / "libdeploypruner_openvino.so"))
    compiled = core.compile_model(str(folder / "model.sparse.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = images(3, (3, 16, 16))
    ours = OpenVino().open(folder / "model.sparse.onnx").run([x])[0]
    np.testing.assert_allclose(compiled([x])[0], ours, atol=1e-5)


@needs_library
def test_where_nothing_is_faster_the_dense_model_is_chosen_and_the_report_says_so():
    folder = built(sparse=3.0, dense=1.0)
    found = read_report(folder)
    assert not (folder / "model.sparse.onnx").exists()
    assert found.sparse["reason"] == "no layer is faster sparse"
    assert {layer["reason"] for layer in found.sparse["layers"]} == {"faster dense"}
    assert "no sparse model: no layer is faster sparse" in found.warnings


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("library", "was built without its sparse kernels"),
        pytest.param("instructions", "neither AVX2 nor AVX-512 VNNI", marks=needs_library),
    ],
)
def test_without_library_or_instructions_the_dense_model_is_chosen_and_the_report_says_why(missing, said, tmp_path):
    with ExitStack() as stack:
        stack.enter_context(pretended_timings())
        if missing == "library":
            error = KernelError("x.so is not installed: the package was built without its sparse kernels", hint="h")
            stack.enter_context(mock.patch("deploypruner.measure.kernels.extension_path", side_effect=error))
        else:
            stack.enter_context(mock.patch("deploypruner.measure.kernels.targets", return_value=("scalar",)))
        outcome = run_cli(*COMPILE, "--out", str(tmp_path / "b"))
    assert outcome.code == 0
    assert said in outcome.out
    found = read_report(tmp_path / "b")
    assert found.sparse["chosen"] == 0
    assert said in found.sparse["reason"]
    assert sparse_sentence(found.sparse).startswith("the dense int8 model is the one to deploy")


@needs_library
def test_a_model_that_openvino_cannot_run_ends_sparsify_but_not_a_build(tmp_path):
    refused = InputError("OpenVINO cannot load 'x': it is beyond me", hint="h")
    with using(replace(current_clock(), layer_costs=mock.Mock(side_effect=refused))), pretended_timings():
        outcome = run_cli(*COMPILE, "--out", str(tmp_path / "b"))
    assert outcome.code == 0, outcome.err
    assert "no sparse model: OpenVINO cannot load 'x': it is beyond me" in outcome.out
    assert not (tmp_path / "b" / "model.sparse.onnx").exists()
    onnx.save(chain(), tmp_path / "m.onnx")
    with mock.patch("deploypruner.build.sparsified.OpenVino.open", side_effect=refused):
        run_cli("sparsify", "m.onnx", "--out", "s", folder=tmp_path).assert_error(2, "it is beyond me")


@pytest.mark.parametrize(
    ("patterns", "macs", "sparsity", "said"),
    [
        (["1x4"], 1.0, 0.8, "--sparsity 0.6"),  # a fifth of the weights stays, then two
        (["1x4"], 1.0, 0.5, "--sparsity 0.25"),
        (["nm64"], 1.0, None, "--sparsity 0.6"),  # the default is 0.8
        (["2:4"], 1.0, None, ""),  # says itself how many are zero
        (["channel", "1x4"], 0.7, 0.8, ""),  # channels went, too
        (["channel"], 0.7, None, ""),
    ],
)
def test_where_zeros_alone_cost_the_accuracy_fewer_of_them_are_offered(patterns, macs, sparsity, said):
    sparse = {} if sparsity is None else {"sparse": {"sparsity": sparsity}}
    recipe = overlay(Recipe(), {"prune": {"patterns": patterns, "macs": macs}, **sparse})
    assert fewer_zeros(recipe) == said


def test_a_build_without_zeros_says_nothing_about_them(tmp_path):
    with pretended_timings():
        outcome = run_cli(*COMPILE[:6], "--macs", "0.8", "--out", str(tmp_path / "b"))
    assert outcome.code == 0, outcome.err
    assert "sparse" not in outcome.err + outcome.out
    assert read_report(tmp_path / "b").sparse == {}


# ---------------------------------------------------------------------- sparsify


@needs_library
def test_sparsify_takes_an_int8_model_of_other_origin(tmp_path):
    onnx.save(chain(), tmp_path / "theirs.onnx")
    with priced(sparse=1.0, dense=2.0), pretended_timings():
        outcome = run_cli("sparsify", "theirs.onnx", "--out", "s", "--seconds", "1", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "4 of 4 layers run in sparse kernels" in outcome.out
    assert "no --data: the agreement and the proof are those of random inputs" in outcome.out
    assert "ranges" not in outcome.out
    made = json.loads((tmp_path / "s" / "sparsify.json").read_text())
    assert made["check"]["passed"]
    assert [row["name"] for row in made["rows"]] == ["dense int8", "sparse int8"]
    assert {p.name for p in (tmp_path / "s").iterdir()} >= {"model.int8.onnx", "model.sparse.onnx"}


@needs_library
def test_sparsify_quantizes_an_fp32_model_first(tmp_path):
    folder = built()
    with priced(sparse=1.0, dense=2.0), pretended_timings():
        outcome = run_cli(
            *("sparsify", str(folder / "model.fp32.onnx"), "--data", "labelled.npz", "--out", str(tmp_path / "s"))
        )
    assert outcome.code == 0, outcome.err
    assert "it is fp32" in outcome.err
    assert "random" not in outcome.out


@needs_library
def test_sparsify_of_an_fp32_model_without_data_says_what_its_ranges_are_worth(tmp_path):
    with priced(sparse=1.0, dense=2.0), pretended_timings():
        outcome = run_cli("sparsify", str(built() / "model.fp32.onnx"), "--out", str(tmp_path / "s"))
    assert outcome.code == 0, outcome.err
    assert "no --data: the int8 ranges come from random inputs, so only the timings mean something" in outcome.out
    assert "agreement and the proof" not in outcome.out


@needs_library
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: chain(density=1.0), "has enough zeros: the sparsest"),
        (lambda: sparsify(chain(), every=True).model, "the model is sparse already"),
        (onnx.ModelProto, "cannot read"),
    ],
)
def test_sparsify_refuses_with_one_hint(make, said, tmp_path):
    (tmp_path / "m.onnx").write_bytes(make().SerializeToString() or b"\x0f")
    run_cli("sparsify", "m.onnx", "--out", "s", folder=tmp_path).assert_error(2, said)


@pytest.mark.parametrize(
    ("weight", "zeros"),
    [
        (np.array([[1, 1, 1, 1], [2, 2, 2, 2]], np.int8), 0.5),  # as if the most frequent value were the zero point
        (np.array([[127.0, 0.4], [127.0, 0.6]], np.float32), 0.25),  # 0.4 of a step is zero, 0.6 is one
        (np.array([[127.0, 0.4], [1.0, 0.003]], np.float32), 0.5),  # with a scale for each row
        (np.array([[127.0, 1.0], [0.4, 0.003]], np.float32), 0.5),  # with a scale for each column
        (np.ones((2, 2), np.float32), 0.0),
        (np.zeros((2, 2), np.float32), 1.0),
        (np.ones((2, 2), bool), 0.0),
    ],
)
def test_zeros_that_int8_can_have_at_most(weight, zeros):
    assert _most_zeros(weight) == zeros


def test_a_file_without_zeros_is_refused_before_anything_is_run(tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    node = onnx.helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)
    graph = onnx.helper.make_graph(
        [node],
        "dense",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 32])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    with mock.patch("deploypruner.measure.trial.check_runs", side_effect=AssertionError("nothing is run")):
        outcome = run_cli("sparsify", "m.onnx", "--out", "s", folder=tmp_path)
    outcome.assert_error(2, "no layer of 'm.onnx' has enough zeros: the sparsest, 'weight', keeps 9")
    assert not (tmp_path / "s").exists()


def one_dimensional():
    g = Qdq(("batch", 8, 20))
    weight = g.weights("a", (8, 8, 3))
    return g.model(g.node("Relu", [g.pair(g.node("Conv", [g.pair("x"), weight], "a"))], "y"))


@needs_library
def test_where_no_layer_fits_one_of_them_and_its_reason_are_named(tmp_path):
    onnx.save(one_dimensional(), tmp_path / "m.onnx")
    run_cli("sparsify", "m.onnx", "--out", "s", folder=tmp_path).assert_error(
        2, "'m.onnx': no layer fits the kernels; 'a': it is a 1-D convolution"
    )


@needs_library
@pytest.mark.parametrize("command", ["sparsify", "compile"])
def test_a_forced_target_that_cannot_run_ends_a_command_before_any_work(command, tmp_path, monkeypatch):
    onnx.save(chain(), tmp_path / "m.onnx")
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "avx9000")
    arguments = ("sparsify", str(tmp_path / "m.onnx")) if command == "sparsify" else COMPILE
    outcome = run_cli(*arguments, "--out", str(tmp_path / "s"))
    outcome.assert_error(2, "DEPLOYPRUNER_TARGET=avx9000 cannot run here")
    assert "this CPU runs scalar" in outcome.err
    assert not (tmp_path / "s" / "model.fp32.onnx").exists()


def test_sparsify_without_the_library_says_how_to_get_it(tmp_path):
    onnx.save(chain(), tmp_path / "m.onnx")
    with mock.patch.object(library, "EXTENSION", "nowhere.so"):
        outcome = run_cli("sparsify", "m.onnx", "--out", "s", folder=tmp_path)
    outcome.assert_error(2, "nowhere.so is not installed")


# ---------------------------------------------------------------------- loading


@needs_library
def test_every_operation_inside_openvino_agrees_with_the_qdq_model(tmp_path):
    onnx.save(chain(), tmp_path / "int8.onnx")
    path = sparse_file(tmp_path)
    layers = [choice.layer for choice in sparsify(chain(), every=True).choices]
    check = verify_operations(tmp_path / "int8.onnx", path, layers, [[images()], [images(1)]])
    assert check.passed, check


@needs_library
@pytest.mark.parametrize("named", [True, False])
def test_costs_are_measured_for_every_layer_and_border(named, tmp_path):
    model = chain()
    for node in model.graph.node:
        node.name = node.name if named else ""
    onnx.save(model, tmp_path / "int8.onnx")
    found = sparsify(model, every=True)
    layers = [choice.layer for choice in found.choices]
    path = sparse_file(tmp_path, found.model)
    costs = measure_costs(tmp_path / "int8.onnx", path, layers, feeds=[images(1)], threads=1)
    assert set(costs.sparse_ns) == set(costs.dense_ns) == set("abcd")
    assert set(costs.enter_ns) == {"x_q_c4"}
    assert set(costs.leave_ns) == {"d_q_c4"}


def test_onnxruntime_says_that_it_cannot_run_the_model(tmp_path):
    path = sparse_file(tmp_path)
    with pytest.raises(InputError, match="ONNX Runtime cannot run the sparse operations") as caught:
        OnnxRuntime().open(path)
    assert "--runtime openvino" in caught.value.hint


def test_bench_measures_a_sparse_model_in_openvino_alone(tmp_path):
    path = sparse_file(tmp_path)
    onnx.save(chain(), tmp_path / "int8.onnx")
    jobs = [(artifact.name, runtime) for artifact, runtime in pair_up([tmp_path / "int8.onnx", path])]
    assert jobs == [
        ("int8.onnx", "onnxruntime"),
        ("int8.onnx", "openvino"),
        ("model.sparse.onnx", "openvino"),
    ]


@needs_library
def test_another_openvino_than_the_library_was_built_for_is_an_error_that_names_both(tmp_path):
    path = sparse_file(tmp_path)
    built_for = tmp_path / "lib.so"
    built_for.write_bytes(b"")
    built_for.with_suffix(".version").write_text("2021.1.2\n")
    with mock.patch.object(library, "path_of", return_value=built_for), pytest.raises(KernelError) as caught:
        OpenVino().open(path)
    installed = library.short_version(import_openvino().__version__)
    assert "built for OpenVINO 2021.1.2" in caught.value.message
    assert installed in caught.value.message


@needs_library
@pytest.mark.parametrize("label", [None, "", "\n"])
def test_a_library_of_which_nobody_knows_the_openvino_is_an_error(label, tmp_path):
    if label is not None:
        (tmp_path / "lib.version").write_text(label)
    with (
        mock.patch.object(library, "path_of", return_value=tmp_path / "lib.so"),
        pytest.raises(KernelError) as caught,
    ):
        library.extension_path()
    assert "says for which OpenVINO the kernels were built, is missing" in caught.value.message


@needs_library
def test_a_forced_target_that_cannot_run_is_an_error_that_lists_what_can(tmp_path, monkeypatch):
    path = sparse_file(tmp_path)
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "avx9000")
    with pytest.raises(KernelError, match="DEPLOYPRUNER_TARGET=avx9000 cannot run here") as caught:
        OpenVino().open(path)
    assert "scalar" in caught.value.hint
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "scalar")
    assert OpenVino().open(path).run([images()])[0].shape == (2, 12, 3, 3)


@needs_library
@pytest.mark.parametrize("key", ["mask", "values", "scale", "bias"])
def test_truncated_weights_are_a_clear_error_at_load(key, tmp_path):
    model = sparsify(chain(), every=True).model
    tensor = next(t for t in model.graph.initializer if t.name == f"b/sparse_{key}")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1], tensor.name))
    with pytest.raises(InputError, match=r"the sparse model '.*' cannot be loaded: ") as caught:
        OpenVino().open(sparse_file(tmp_path, model))
    assert any(word in caught.value.message for word in ("mask", "values", "scale and bias", "weights")), caught.value


# ---------------------------------------------------------------------- the report


def test_the_sentence_says_which_one_to_deploy():
    found = {"chosen": 3, "layers": [{}] * 5, "target": "avx2", "reason": ""}
    against = {"against": "pruned int8", "ratio": 2.0, "ratio_ci": [1.9, 2.1], "verdict": "faster"}
    assert sparse_sentence(found | {"against_dense": against}) == (
        "3 of 5 layers run in sparse kernels (avx2): 2.00x [1.90, 2.10] faster than pruned int8, the dense form of "
        "the same weights"
    )
    slower = against | {"ratio": 0.8, "ratio_ci": [0.7, 0.9], "verdict": "slower"}
    assert "which is the one to deploy" in sparse_sentence(found | {"against_dense": slower})
    assert "not measured in OpenVINO" in sparse_sentence(found)


def test_refused_layers_are_listed_with_their_reasons():
    lines = sparse_lines({"layers": [], "refused": {"fc": "its output is an output of the model"}})
    assert [(line.name, line.choice, line.reason) for line in lines] == [
        ("fc", "dense", "its output is an output of the model")
    ]


# ---------------------------------------------------------------------- zeros a model brought along


def test_zeros_of_a_torch_model_stay_zeros_through_fine_tuning(tmp_path):
    net = tiny()
    with torch.no_grad():
        net.body.weight.mul_(torch.rand_like(net.body.weight) < 0.3)
    zeros = int((net.body.weight == 0).sum())
    save_program(net, tmp_path / "zeros.pt2", torch.randn(2, *IMAGE))
    (tmp_path / "labelled.npz").symlink_to(workshop() / "labelled.npz")
    with priced(sparse=1.0, dense=2.0), pretended_timings():
        outcome = run_cli(
            *("compile", "zeros.pt2", "--data", "labelled.npz", "--epochs", "1", "--macs", "1", "--out", "b"),
            *("--seconds", "1", "--runtime", "onnxruntime"),
            folder=tmp_path,
        )
    assert outcome.code == 0, outcome.err
    assert "given (kept): " in outcome.err
    found = read_report(tmp_path / "b")
    assert found.settings["sparse"]["zeros"] == zeros
    assert {row.pattern for row in found.rows} == {"dense", "channel + given"}
    lost = [check for check in found.verification if check.name.startswith("zeros of torch")]
    assert len(lost) == 2
    assert all(check.passed for check in lost)
