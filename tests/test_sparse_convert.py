"""Sparse models against the QDQ models they were made from: operation by operation and as a whole."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as foreign_quantize
from torch import nn

from deploypruner.export import exporters
from deploypruner.onnx_graph import read_graph
from deploypruner.quantize.static import quantize_static
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.sparse.convert import sparsify
from deploypruner.sparse.cost import Rates
from deploypruner.sparse.layer import NO_LIMIT, Layer
from deploypruner.sparse.match import match
from deploypruner.sparse.packed import pack
from deploypruner.sparse.partition import choose
from deploypruner.sparse.verify import verify_operations
from tests.qdq import Qdq, chain, images
from tests.sparse_reference import from_c4, run_reference, to_c4, unpack

pytestmark = pytest.mark.slow


class Reference:
    """A session that runs a sparse model in numpy."""

    def __init__(self, path):
        self.model = onnx.load(path)

    def run(self, feeds):
        return run_reference(self.model, {v.name: a for v, a in zip(self.model.graph.input, feeds, strict=True)})


class Block(nn.Module):
    """Residual block with depthwise, relu6, hard-swish and a pooled head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(16, 40, 1)
        self.depth = nn.Conv2d(40, 40, 5, padding=2, groups=40)
        self.project = nn.Conv2d(40, 16, 1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=2, dilation=2, groups=2)
        self.last = nn.Conv2d(24, 21, 1)
        self.fc = nn.Linear(21, 5)

    def forward(self, x):
        x = nn.functional.relu6(self.stem(x))
        y = nn.functional.hardswish(self.expand(x))
        y = self.project(nn.functional.hardswish(self.depth(y)))
        x = nn.functional.relu(self.grouped(x + y))
        return self.fc(nn.functional.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """fp32 ONNX of `Block` with four fifths of its weights zero, and inputs."""
    torch.manual_seed(0)
    net, folder = Block().eval(), tmp_path_factory.mktemp("block")
    with torch.no_grad():
        for layer in (net.expand, net.project, net.grouped, net.last):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.2)
        net.last.weight[0] = 0  # a channel without weights, the first
    example = (torch.randn(2, 3, 14, 14),)
    exporters.get("onnx")().write(net, example, folder / "fp32.onnx", dynamic_batch=True)
    return folder / "fp32.onnx", [images(4, (3, 14, 14), seed) for seed in range(3)]


def with_weights(found):
    return [choice.layer for choice in found.choices if isinstance(choice.layer, Layer)]


def check_operations(int8, feeds, tmp_path, *, at_least):
    found = sparsify(onnx.load(int8), every=True)
    onnx.save(found.model, tmp_path / "sparse.onnx")
    layers = [choice.layer for choice in found.choices]
    assert len(layers) >= at_least, found.refused
    check = verify_operations(int8, tmp_path / "sparse.onnx", layers, feeds, open_sparse=Reference)
    assert check.passed, check
    return found


def test_our_quantizers_model_is_computed_within_one_step_by_every_operation(exported, tmp_path):
    fp32, batches = exported
    quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[b] for b in batches])
    found = check_operations(tmp_path / "int8.onnx", [[batches[0]]], tmp_path, at_least=6)
    kinds = [node.op_type for node in found.model.graph.node]
    counts = {kind: kinds.count(kind) for kind in ("QuantizeC4", "ToC4", "FromC4", "SparseConv", "PoolC4")}
    assert counts == {"QuantizeC4": 1, "ToC4": 0, "FromC4": 0, "SparseConv": 6, "PoolC4": 1}
    layers = with_weights(found)
    assert [layer.swish for layer in layers].count("hard-swish") == 2
    assert [layer.name for layer in layers if layer.residual] == ["project"]


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.left = [{"x": batch} for batch in batches]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
def test_a_foreign_quantizers_model_is_computed_within_one_step_by_every_operation(
    exported, tmp_path, per_channel, activations
):
    fp32, batches = exported
    foreign_quantize(
        fp32,
        tmp_path / "int8.onnx",
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
    )
    found = check_operations(tmp_path / "int8.onnx", [[batches[0]]], tmp_path, at_least=4)
    assert min(layer.density for layer in with_weights(found)) < 0.3


def test_a_whole_model_agrees_with_literal_execution(tmp_path):
    # Without a residual addition nothing is skipped, so integers are equal up to ties.
    g = Qdq()
    a = g.pair(g.conv(g.pair("x"), "a", (8, 20), taps=3), scale=0.02, zero_point=0)
    b = g.pair(g.conv(a, "b", (20, 9), taps=3, strides=[2, 2], dilations=[2, 2], pads=[2, 1, 0, 3]), scale=0.05)
    model = g.model(g.node("Relu", [b], "y"))
    onnx.save(model, tmp_path / "int8.onnx")
    want = OnnxRuntime().open(tmp_path / "int8.onnx", literal=True).run([images()])[0]
    got = run_reference(sparsify(model, every=True).model, {"x": images()})[0]
    assert np.abs(got - want).max() <= 0.05 + 1e-6
    assert np.mean(got != want) < 0.01


def test_tokens_are_reshaped_and_not_transposed(tmp_path):
    g = Qdq(("batch", 5, 8))
    a = g.pair(g.node("MatMul", [g.pair("x"), g.weights("a", (8, 12), axis=1)], "a"), scale=0.02, zero_point=0)
    b = g.pair(g.node("MatMul", [a, g.weights("b", (12, 7), axis=1)], "b"), scale=0.01)
    model = g.model(g.node("Relu", [b], "y"))
    onnx.save(model, tmp_path / "int8.onnx")
    found = sparsify(model, every=True)
    assert "Transpose" not in [node.op_type for node in found.model.graph.node]
    want = OnnxRuntime().open(tmp_path / "int8.onnx", literal=True).run([images(3, (5, 8))])[0]
    got = run_reference(found.model, {"x": images(3, (5, 8))})[0]
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 0.01 + 1e-6


def test_a_tensor_read_on_both_sides_leaves_once_and_stays(tmp_path):
    g = Qdq()
    a = g.pair(g.conv(g.pair("x"), "a", (8, 8)), scale=0.02, zero_point=0)
    b = g.pair(g.conv(a, "b", (8, 8)), scale=0.02)
    model = g.model(g.node("Sigmoid", [a], "y1"), g.node("Relu", [b], "y2"), g.node("Relu", [a], "y3"))
    found = sparsify(model, every=True).model
    kinds = [node.op_type for node in found.graph.node]
    assert (kinds.count("QuantizeC4"), kinds.count("ToC4"), kinds.count("FromC4")) == (1, 0, 2)
    onnx.save(model, tmp_path / "int8.onnx")
    want = OnnxRuntime().open(tmp_path / "int8.onnx", literal=True).run([images()])
    for ours, theirs in zip(run_reference(found, {"x": images()}), want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.051)


def test_names_that_are_taken_are_not_taken_again():
    model = chain()
    names = {name for node in sparsify(model, every=True).model.graph.node for name in node.output}
    assert len(names) == sum(len(node.output) for node in sparsify(model, every=True).model.graph.node)


def test_the_given_model_is_not_changed():
    model = chain()
    before = model.SerializeToString()
    sparsify(model, every=True)
    assert model.SerializeToString() == before


# ---------------------------------------------------------------------- a wrong operation is found


def test_one_changed_weight_is_found_and_its_layer_is_named(tmp_path):
    onnx.save(chain(), tmp_path / "int8.onnx")
    found = sparsify(chain(), every=True)
    tensor = next(t for t in found.model.graph.initializer if t.name == "c/sparse_bias")
    bias = onnx.numpy_helper.to_array(tensor).copy()
    bias[5] += 2000
    tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
    onnx.save(found.model, tmp_path / "sparse.onnx")
    layers = [choice.layer for choice in found.choices]
    check = verify_operations(
        tmp_path / "int8.onnx", tmp_path / "sparse.onnx", layers, [[images()]], open_sparse=Reference
    )
    assert not check.passed
    assert "in c " in check.detail


@pytest.mark.parametrize(("scale", "clipped"), [(0.02, False), (0.0005, True)])
def test_what_a_pair_before_an_addition_clips_the_operation_clips_too(tmp_path, scale, clipped):
    g = Qdq()
    x = g.pair("x")
    a = g.pair(g.conv(x, "a", (8, 8)), scale=scale, zero_point=100)
    model = g.model(g.node("Relu", [g.pair(g.node("Add", [a, x], "s"), scale=0.01)], "y"))
    onnx.save(model, tmp_path / "int8.onnx")
    found = sparsify(model, every=True)
    (node,) = (n for n in found.model.graph.node if n.op_type == "SparseConv")
    assert len(node.input) == 6, "fused with the addition"
    checks = []
    for limits in ({}, {"sum_low": -NO_LIMIT, "sum_high": NO_LIMIT}):
        for attribute in node.attribute:
            if attribute.name in limits:
                attribute.f = limits[attribute.name]
        onnx.save(found.model, tmp_path / "sparse.onnx")
        layers = [choice.layer for choice in found.choices]
        files = tmp_path / "int8.onnx", tmp_path / "sparse.onnx"
        checks.append(verify_operations(*files, layers, [[images()]], open_sparse=Reference).passed)
    assert checks == [True, not clipped]


# ---------------------------------------------------------------------- packing


def test_weights_come_back_from_their_packed_form():
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1, 1), (5, 3, 3, 3), (16, 64, 1, 1), (7, 1, 5, 5)):
        for density in (0.0, 0.1, 1.0):
            weights = (rng.integers(-128, 128, shape) * (rng.random(shape) < density)).astype(np.int8)
            packed = pack(weights)
            np.testing.assert_array_equal(unpack(packed.mask, packed.values, shape), weights)
            assert packed.mask.size == -(-weights.size // 8)
            assert packed.values.size == max(1, np.count_nonzero(weights))


def test_bits_are_in_the_order_the_header_says():
    packed = pack(np.array([0, 5, 0, 0, 0, 0, 0, 0, -7, 0], np.int8))
    assert packed.mask.tolist() == [0b10, 0b1]
    assert packed.values.tolist() == [5, -7]


def test_the_layout_is_four_channels_of_sixteen_pixels():
    image = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(1, 2, 3, 5)
    c4 = to_c4(image)
    assert c4.shape == (1, 2, 16, 4)
    assert c4[0, 1, 4, 0] == image[0, 1, 1, 4]  # channel 4 of pixel 1 * 3 + 1
    np.testing.assert_array_equal(from_c4(c4, 5, 2, 3), image)


# ---------------------------------------------------------------------- the choice


class Priced(Rates):
    """Costs from a table: layer -> (dense, sparse); borders cost what `border` says."""

    def __init__(self, table, border):
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "toll", border)

    def dense(self, layer):
        return self.table[layer.name][0]

    def sparse(self, layer):
        return self.table[layer.name][1]

    def enter(self, activation):
        return self.toll[f"{activation.name} in"]

    def leave(self, activation):
        return self.toll[f"{activation.name} out"]


def price(sides, costs):
    """Total of one assignment of `chain`'s layers, borders counted by hand."""
    total = sum(costs.table[name][1 if sparse else 0] for name, sparse in sides.items())
    # tensor: writer, readers; the input is written by nobody of ours, the last one read by a sigmoid.
    tensors = {"x_q": (None, "a"), "a_q": ("a", "bc"), "b_q": ("b", "c"), "s_q": ("c", "d"), "d_q": ("d", "")}
    for name, (writer, readers) in tensors.items():
        written = writer is not None and sides[writer]
        reads = [sides[reader] for reader in readers] + ([False] if name == "d_q" else [])
        if written and not all(reads):
            total += costs.toll[f"{name} out"]
        if not written and any(reads):
            total += costs.toll[f"{name} in"]
    return total


def test_the_choice_is_the_cheapest_of_all():
    graph = read_graph(chain()).graph
    layers = match(graph).layers
    rng = np.random.default_rng(0)
    mixed = 0
    for _ in range(60):
        table = {name: tuple(map(int, rng.integers(1, 60, 2))) for name in "abcd"}
        names = ("x_q", "a_q", "b_q", "s_q", "d_q")
        toll = {f"{name} {way}": int(rng.integers(0, 25)) for name in names for way in ("in", "out")}
        costs = Priced(table, toll)
        ours = {choice.layer.name: choice.sparse for choice in choose(graph, layers, costs)}
        best = min(
            price(dict(zip("abcd", sides, strict=True)), costs)
            for sides in itertools.product((False, True), repeat=4)
        )
        assert price(ours, costs) == best
        mixed += len(set(ours.values())) == 2
    assert mixed > 10


def test_a_layer_that_gains_less_than_its_borders_stays_dense_and_says_so():
    graph = read_graph(chain()).graph
    layers = match(graph).layers
    toll = {f"{name}_q {way}": 50 for name in "xabsd" for way in ("in", "out")}
    choices = choose(graph, layers, Priced(dict.fromkeys("abcd", (10, 9)), toll))
    assert [choice.sparse for choice in choices] == [False] * 4
    assert {choice.reason for choice in choices} == {"faster sparse, but not by what entering and leaving C4 costs"}


def test_where_nothing_is_faster_there_is_no_model():
    found = sparsify(chain(), costs=Priced(dict.fromkeys("abcd", (1, 2)), dict.fromkeys(
        [f"{name}_q {way}" for name in "xabsd" for way in ("in", "out")], 0)))  # fmt: skip
    assert found.model is None
    assert found.chosen == 0
