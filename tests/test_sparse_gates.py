"""Squeeze and excitation and swish in sparse models: matched, quantized for it, rewritten, proved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.export import exporters
from deploypruner.onnx_graph import made_by, read_graph
from deploypruner.openvino_import import openvino_core
from deploypruner.quantize.static import quantize_static
from deploypruner.runtime.on_openvino import OpenVino, add_sparse_operations
from deploypruner.sparse.convert import SparseModel, sparsify
from deploypruner.sparse.cost import Rates
from deploypruner.sparse.gates import Pool, Scale, find_gates
from deploypruner.sparse.layer import Layer
from deploypruner.sparse.library import is_built
from deploypruner.sparse.linear import LinearLayer
from deploypruner.sparse.verify import verify_operations
from deploypruner.target import detect
from tests.qdq import Qdq, images
from tests.test_sparse_convert import Reference

pytestmark = pytest.mark.slow


class Squeeze(nn.Module):
    """Two blocks with squeeze and excitation, the second added to its input, and a classifier.

    Args:
        activation: "silu" (gate: sigmoid), "hardswish" (hard sigmoid) or "relu" (sigmoid).
    """

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        for i in (1, 2):
            self.add_module(f"expand{i}", nn.Conv2d(12, 30, 1))
            self.add_module(f"depth{i}", nn.Conv2d(30, 30, 3, 1, 1, groups=30))
            self.add_module(f"squeeze{i}", nn.Conv2d(30, 6, 1))
            self.add_module(f"excite{i}", nn.Conv2d(6, 30, 1))
            self.add_module(f"project{i}", nn.Conv2d(30, 12, 1))
        self.head = nn.Linear(12, 5)

    def act(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(F, self.activation)(x)
        return found

    def block(self, x: Tensor, i: int) -> Tensor:
        layer = {name.rstrip("12"): child for name, child in self.named_children() if name.endswith(str(i))}
        y = self.act(layer["depth"](self.act(layer["expand"](x))))
        s = layer["excite"](self.act(layer["squeeze"](y.mean((2, 3), keepdim=True))))
        y = y * (F.hardsigmoid(s) if self.activation == "hardswish" else s.sigmoid())
        projected: Tensor = layer["project"](y)
        return projected

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.act(self.stem(x)), 1)
        x = x + self.block(x, 2)
        found: Tensor = self.head(x.relu().mean((2, 3)))
        return found


def quantized(folder: Path, activation: str, placement: str) -> tuple[Path, list[np.ndarray]]:
    """int8 file of `Squeeze`, most weights zero, and its calibration batches."""
    torch.manual_seed(0)
    net = Squeeze(activation).eval()
    with torch.no_grad():
        for name, layer in net.named_children():
            nn.init.kaiming_normal_(layer.weight)  # outputs that depend on the input
            if name.startswith(("expand", "project")):
                layer.weight.mul_(2 * (torch.rand_like(layer.weight) < 0.3))
    batches = [images(4, (3, 14, 14), seed) for seed in range(3)]
    exporters.get("onnx")().write(net, (torch.randn(2, 3, 14, 14),), folder / "fp32.onnx", dynamic_batch=True)
    int8 = folder / "int8.onnx"
    quantize_static(
        folder / "fp32.onnx",
        int8,
        calibration=[[b] for b in batches],
        placement=placement,
        reduce_range=detect().saturates,
    )
    return int8, batches


def of_kind(found: SparseModel, kind: type) -> list:
    return [choice.layer for choice in found.choices if isinstance(choice.layer, kind)]


@pytest.mark.parametrize("activation", ["silu", "hardswish", "relu"])
def test_a_net_with_squeeze_and_excitation_stays_in_c4_and_is_right_within_a_step(tmp_path, activation):
    int8, batches = quantized(tmp_path, activation, "sparse")
    found = sparsify(onnx.load(int8), every=True)
    onnx.save(found.model, tmp_path / "sparse.onnx")
    kinds = [node.op_type for node in found.model.graph.node]
    # Entered at the image and never left; squeeze, excite and the classifier are linear layers of one pixel.
    names = ("SparseConv", "SparseLinear", "PoolC4", "ScaleC4", "QuantizeC4", "ToC4", "FromC4", "QuantizeLinear")
    assert {kind: kinds.count(kind) for kind in names} == {
        "SparseConv": 7, "SparseLinear": 5, "PoolC4": 3, "ScaleC4": 2, "QuantizeC4": 1, "ToC4": 0, "FromC4": 0,
        "QuantizeLinear": 0,
    }  # fmt: skip
    gates = {layer.name: layer.activation for layer in of_kind(found, LinearLayer)}
    inner, outer = {
        "silu": ("swish", "sigmoid"),
        "hardswish": ("hard-swish", "hard-sigmoid"),
        "relu": ("", "sigmoid"),  # the pair behind it clips
    }[activation]
    assert gates == {"squeeze1": inner, "excite1": outer, "squeeze2": inner, "excite2": outer, "head": ""}
    assert {layer.swish for layer in of_kind(found, Layer) if layer.name.startswith("depth")} == {
        {"silu": "swish", "hardswish": "hard-swish", "relu": ""}[activation]
    }
    layers = [choice.layer for choice in found.choices]
    for open_sparse in (Reference, *([None] if is_built() else [])):
        check = verify_operations(int8, tmp_path / "sparse.onnx", layers, [[batches[0]]], open_sparse=open_sparse)
        assert check.passed, check


@pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels")
@pytest.mark.parametrize("activation", ["silu", "hardswish", "relu"])
def test_the_sparse_model_agrees_with_the_dense_one_in_openvino(tmp_path, activation):
    int8, batches = quantized(tmp_path, activation, "sparse")
    onnx.save(sparsify(onnx.load(int8), every=True).model, tmp_path / "sparse.onnx")
    ours = OpenVino().open(tmp_path / "sparse.onnx").run([batches[1]])[0]
    theirs = OpenVino().open(int8).run([batches[1]])[0]
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(theirs - theirs.mean(0)).max()


@pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels")
@pytest.mark.parametrize("streams", ["1", "2"])
def test_eight_requests_of_a_network_at_once_give_the_bits_that_each_gives_alone(tmp_path, streams):
    int8, _ = quantized(tmp_path, "silu", "sparse")
    onnx.save(sparsify(onnx.load(int8), every=True).model, tmp_path / "sparse.onnx")
    add_sparse_operations()
    settings = {"INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": streams, "PERFORMANCE_HINT": "THROUGHPUT"}
    model = openvino_core().compile_model(tmp_path / "sparse.onnx", "CPU", settings)
    inputs = [images(1, (3, 14, 14), seed) for seed in range(40)]
    alone = [model([x], share_inputs=False)[0].copy() for x in inputs]
    requests = [model.create_infer_request() for _ in range(8)]
    for begin in range(0, len(inputs), len(requests)):
        for place, request in enumerate(requests):
            request.start_async([inputs[begin + place]])
        for place, request in enumerate(requests):
            request.wait()
            assert np.array_equal(request.get_output_tensor(0).data, alone[begin + place])
    assert len({one.tobytes() for one in alone}) == len(alone)


def test_a_foreign_placement_with_a_quantized_factor_is_matched_too(tmp_path):
    int8, batches = quantized(tmp_path, "relu", "onnxruntime")
    found = sparsify(onnx.load(int8), every=True)
    assert (len(of_kind(found, Pool)), len(of_kind(found, Scale))) == (3, 2)
    onnx.save(found.model, tmp_path / "sparse.onnx")
    layers = [choice.layer for choice in found.choices]
    check = verify_operations(int8, tmp_path / "sparse.onnx", layers, [[batches[0]]], open_sparse=Reference)
    assert check.passed, check


@pytest.mark.parametrize(("kind", "attribute"), [("PoolC4", "factor"), ("ScaleC4", "ratio")])
def test_a_gate_that_computes_something_else_is_found(tmp_path, kind, attribute):
    int8, batches = quantized(tmp_path, "silu", "sparse")
    found = sparsify(onnx.load(int8), every=True)
    node = next(node for node in found.model.graph.node if node.op_type == kind)
    next(a for a in node.attribute if a.name == attribute).f *= 1.05
    onnx.save(found.model, tmp_path / "sparse.onnx")
    layers = [choice.layer for choice in found.choices]
    check = verify_operations(int8, tmp_path / "sparse.onnx", layers, [[batches[0]]], open_sparse=Reference)
    assert not check.passed
    assert f"in {node.name} " in check.detail


def test_only_the_sparse_placement_has_gated_swishes_in_u8_and_no_factor_is(tmp_path):
    scales = {}
    for placement in ("openvino", "sparse"):
        (tmp_path / placement).mkdir()
        graph = read_graph(onnx.load(quantized(tmp_path / placement, "silu", placement)[0])).graph
        gates = list(find_gates(graph))
        scales[placement] = [gate.kind for gate in gates]
        for gate in gates:
            if isinstance(gate, Scale):
                assert made_by(ir.convenience.create_value_mapping(graph)[gate.by], "Sigmoid") is not None
    assert scales == {"openvino": ["pool"], "sparse": ["pool", "scale", "pool", "scale", "pool"]}


# ---------------------------------------------------------------------- graphs by hand


def gated(*, by=(1, 16, 1, 1), product="Mul", axes=(2, 3), keepdims=1):
    """A convolution, its mean through a sigmoid, and the product of both, quantized."""
    g = Qdq((1, 8, 6, 6))
    a = g.pair(g.conv(g.pair("x"), "a", (8, 16)), scale=0.02, zero_point=10)
    g.store("axes", np.array(axes, np.int64))
    mean = g.node("ReduceMean", [a, "axes"], "mean", keepdims=keepdims)
    g.store("shape", np.array(by, np.int64))
    s = g.node("Sigmoid", [g.node("Reshape", [mean, "shape"], "r")], "s")
    y = g.pair(g.node(product, [s, a], "y"), scale=0.04, zero_point=30)
    return g.model(g.node("Relu", [y], "z"))


def gates_of(model):
    return {gate.name: gate for gate in find_gates(read_graph(model).graph)}


def test_a_gate_by_hand_has_the_graphs_own_numbers():
    found = gates_of(gated())
    assert list(found) == ["mean", "y"]
    mean, y = found["mean"], found["y"]
    sizes = {"channels": 16, "height": 6, "width": 6, "zero_point": 10}
    assert mean.attributes() == sizes | {"factor": pytest.approx(0.02 / 36)}
    assert y.attributes() == sizes | {"output_zero_point": 30, "ratio": pytest.approx(0.5)}
    assert (y.by, y.y.name, mean.y) == ("s", "y_q", None)


def test_a_mean_without_its_two_ones_is_reshaped_after_it():
    model = gated(keepdims=0)
    made = sparsify(model, every=True).model.graph
    (pool,) = [node for node in made.node if node.op_type == "PoolC4"]
    (after,) = [node for node in made.node if pool.output[0] in node.input]
    stored = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in made.initializer}
    assert (after.op_type, list(after.output), stored[after.input[1]]) == ("Reshape", ["mean"], [-1, 16])


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"axes": (3,), "by": (1, 16, 6, 1)}, []),
        ({"axes": (1, 2, 3), "by": (1, 1, 1, 1)}, []),
        ({"product": "Add"}, ["mean"]),
        ({"axes": (-1, -2)}, ["mean", "y"]),
    ],
)
def test_only_means_over_an_image_and_products_per_channel_are_gates(changed, left):
    assert list(gates_of(gated(**changed))) == left


def test_gates_alone_make_no_sparse_model():
    class OnlyGates(Rates):
        def sparse(self, layer):
            return 1e9 if isinstance(layer, Layer) else 0.0

        def enter(self, activation):
            return 0.0

        leave = enter

    found = sparsify(gated(), costs=OnlyGates())
    assert found.model is None
    assert not any(choice.sparse for choice in found.choices)
