"""Every ONNX file of ours is sorted and valid, whoever made its nodes, and in whatever order."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploypruner
from deploypruner.errors import InputError, VerificationError
from deploypruner.onnx_file import onnx_fault, read_onnx, reads, sort_nodes, write_onnx
from deploypruner.sparse import library
from deploypruner.sparse.convert import sparsify
from tests.builds import finished, run_cli
from tests.qdq import chain
from tests.test_sparse_stage import built, pretended_timings, priced

pytestmark = pytest.mark.slow

needs_library = pytest.mark.skipif(
    not library.is_built(), reason="the package was installed without its sparse kernels"
)
Shape = list[int | str]


def value(name: str, shape: Shape | None = None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [2] if shape is None else shape)


def model_of(
    nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], **stored: np.ndarray
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [value("x")], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def diamond() -> onnx.ModelProto:
    """y = relu(x) + exp(x), with a node of its own for each."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Exp", ["x"], ["b"])]
    return model_of([*nodes, helper.make_node("Add", ["a", "b"], ["y"])], [value("y")])


def branching() -> onnx.ModelProto:
    """y = (x summed > 0 ? relu(a) : a) where a = -x: only the graphs inside the If read `a`."""
    then = [helper.make_node("Relu", ["a"], ["inner"]), helper.make_node("Exp", ["inner"], ["then"])]
    other = [helper.make_node("Identity", ["a"], ["other"])]
    branches = {
        "then_branch": helper.make_graph(then[::-1], "then", [], [value("then")]),
        "else_branch": helper.make_graph(other, "else", [], [value("other")]),
    }
    nodes = [
        helper.make_node("If", ["positive"], ["y"], **branches),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Neg", ["x"], ["a"]),
    ]
    return model_of(nodes, [value("y")], zero=np.float32(0).reshape(()))


def kinds(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = list(model.graph.node)
    random.Random(seed).shuffle(nodes)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_nodes_is_written_valid(seed, tmp_path):
    write_onnx(shuffled(diamond(), seed), tmp_path / "m.onnx")
    assert onnx_fault(tmp_path / "m.onnx") == ""
    assert kinds(onnx.load(tmp_path / "m.onnx").graph)[-1] == "Add"


def test_a_sorted_file_stays_as_it_is_to_the_byte(tmp_path):
    write_onnx(diamond(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == diamond().SerializeToString()


def test_what_graphs_inside_a_node_read_counts_and_they_are_sorted_themselves(tmp_path):
    model = branching()
    assert reads(model.graph.node[0]) == ["positive", "a", "a"]
    assert "topologically sorted" in onnx_fault(model)
    write_onnx(model, tmp_path / "m.onnx")
    assert onnx_fault(tmp_path / "m.onnx") == ""
    then = next(a.g for a in model.graph.node[-1].attribute if a.name == "then_branch")
    assert (kinds(model.graph)[-1], kinds(then)) == ("If", ["Relu", "Exp"])


def test_a_circle_is_named():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="loop"), helper.make_node("Relu", ["a"], ["b"])]
    with pytest.raises(InputError, match="a circle through Add 'loop'"):
        sort_nodes(model_of(nodes, [value("b")]).graph)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.graph.node[0].input.append("x"), "input size 2"),
        (lambda m: m.graph.node[2].input.__setitem__(0, "nothing"), "'nothing'"),
        (lambda m: m.graph.output[0].type.tensor_type.shape.dim.add(), "Inferred shape"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "a"), "SSA"),
    ],
)
def test_what_is_not_valid_is_neither_written_nor_read_without_a_word(change, said, tmp_path):
    model = diamond()
    change(model)
    with pytest.raises(VerificationError, match=r"m\.onnx would not be valid ONNX"):
        write_onnx(model, tmp_path / "m.onnx")
    assert said in onnx_fault(model)
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(InputError, match=r"theirs\.onnx"):
        read_onnx(tmp_path / "theirs.onnx")


def test_weights_in_files_of_their_own_are_checked_by_path_and_read(tmp_path):
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [value("y")], w=np.ones(2, np.float32))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert onnx_fault(tmp_path / "m.onnx") == ""
    assert numpy_helper.to_array(read_onnx(tmp_path / "m.onnx").graph.initializer[0]).tolist() == [1, 1]
    (tmp_path / "w.bin").unlink()
    assert "w.bin" in onnx_fault(tmp_path / "m.onnx")


def test_a_file_of_other_origin_is_read_sorted(tmp_path):
    onnx.save(shuffled(branching(), 1), tmp_path / "m.onnx")
    assert kinds(read_onnx(tmp_path / "m.onnx").graph)[-1] == "If"


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx", "dense.fp32.onnx", "dense.int8.onnx"])
def test_every_file_of_a_build_is_valid(name):
    assert onnx_fault(finished() / name) == ""


@needs_library
def test_a_build_and_sparsify_write_valid_sparse_files(tmp_path):
    """Nodes of our own domain are checked for their connections."""
    onnx.save(shuffled(chain(), 2), tmp_path / "theirs.onnx")
    with priced(sparse=1.0, dense=2.0), pretended_timings():
        assert run_cli("sparsify", "theirs.onnx", "--out", "s", "--seconds", "1", folder=tmp_path).code == 0
    found = [*built().rglob("*.onnx"), *(tmp_path / "s").rglob("*.onnx")]
    assert sum(path.name == "model.sparse.onnx" for path in found) == 2
    assert [str(path) for path in found if onnx_fault(path)] == []
    cut = sparsify(chain(), every=True).model
    assert cut is not None
    ours = next(node for node in cut.graph.node if node.domain == "deploypruner")
    ours.input[0] = "nothing"
    assert "'nothing'" in onnx_fault(cut)


def test_nothing_else_in_the_package_writes_onnx():
    writers = {
        path.name
        for path in Path(deploypruner.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("onnx.save", "onnx.save_model")
    }
    assert writers == {"onnx_file.py"}
