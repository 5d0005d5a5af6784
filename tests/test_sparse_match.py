"""What of a QDQ graph the sparse kernels can compute, in numbers that were put in by hand."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploypruner.errors import InputError
from deploypruner.onnx_graph import read_graph
from deploypruner.sparse.convert import sparsify
from deploypruner.sparse.match import match
from tests.qdq import Qdq, chain

pytestmark = pytest.mark.slow


def matched(model):
    return match(read_graph(model).graph)


def only(model):
    (layer,) = matched(model).layers
    return layer


def reason(model, name="a"):
    found = matched(model)
    assert name not in [layer.name for layer in found.layers]
    return found.refused[name]


def after_conv(g, add, **kwargs):
    """A model in which `add(g, conv output)` gives what is quantized."""
    conv = g.conv(g.pair("x"), "a", (8, 16), **kwargs)
    return g.model(g.node("Relu", [g.pair(add(g, conv), scale=0.02, zero_point=0)], "y"))


def test_a_convolution_becomes_integers_that_are_the_graphs_own():
    model = after_conv(Qdq(), lambda g, name: name, taps=3)
    layer = only(model)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(layer.weights, stored["a.weight"])
    np.testing.assert_allclose(layer.scale, 0.05 * stored["a.scale"] / 0.02, rtol=1e-6)
    sums = stored["a.weight"].reshape(16, -1).sum(1, dtype=np.int64)
    np.testing.assert_array_equal(layer.bias, np.rint(stored["a.bias"] / (0.05 * stored["a.scale"])) - 128 * sums)
    assert (layer.name, layer.kind, layer.x.zero_point, layer.low, layer.high) == ("a", "conv", 128, 0, 255)
    assert layer.attributes()["pads"] == [1, 1, 1, 1]


def test_relu_and_clip_become_limits_in_steps():
    def with_bounds(g, name):
        return g.node("Clip", [name, g.store("least", np.float32(0)), g.store("most", np.float32(2))], "c")

    assert only(after_conv(Qdq(), with_bounds)).high == 100  # 2 / 0.02 from a zero point of 0
    g = Qdq()
    conv = g.conv(g.pair("x"), "a", (8, 16))
    quantized = g.pair(g.node("Relu", [conv], "r"), scale=0.02, zero_point=77)
    assert only(g.model(g.node("Relu", [quantized], "y"))).low == 77


@pytest.mark.parametrize("spelling", ["HardSwish", "HardSigmoid", "Sigmoid"])
def test_a_swish_is_one_layer_with_its_convolution(spelling):
    def swish(g, name):
        if spelling == "HardSwish":
            return g.node("HardSwish", [name], "h")
        said = {"alpha": 1 / 6, "beta": 0.5} if spelling == "HardSigmoid" else {}
        return g.node("Mul", [g.node(spelling, [name], "gate", **said), name], "h")

    layer = only(after_conv(Qdq(), swish))
    slope, step = (0, 0.02) if spelling == "Sigmoid" else (0.02 / 6, 0)
    assert layer.attributes()["hard_swish_slope"] == pytest.approx(slope)
    assert layer.attributes()["swish_step"] == pytest.approx(step)


def test_a_swish_after_a_residual_addition_is_not_fused():
    g = Qdq()
    x = g.pair("x")
    added = g.node("Add", [g.pair(g.conv(x, "a", (8, 8)), scale=0.02, zero_point=90), x], "s")
    product = g.node("Mul", [added, g.node("Sigmoid", [added], "gate")], "h")
    assert only(g.model(g.node("Relu", [g.pair(product)], "y"))).residual is None


def test_another_hard_sigmoid_is_no_hard_swish():
    def swish(g, name):
        return g.node("Mul", [name, g.node("HardSigmoid", [name], "gate", alpha=0.2, beta=0.5)], "h")

    assert reason(after_conv(Qdq(), swish)) == "its output is needed in float by HardSigmoid, Mul"


def test_a_residual_addition_belongs_to_the_later_convolution_and_its_pair_is_skipped():
    layers = {layer.name: layer for layer in matched(chain()).layers}
    assert list(layers) == ["a", "b", "c", "d"]
    c = layers["c"]
    assert c.residual is not None
    assert (c.residual.name, c.skipped.name, c.y.name) == ("a_q", "c_q", "s_q")
    assert c.attributes()["residual_scale"] == pytest.approx(0.02 / 0.03)
    assert c.attributes()["residual_zero_point"] == 0
    assert c.attributes()["sum_low"] == pytest.approx(-c.skipped.zero_point * c.skipped.scale / 0.03)
    assert c.attributes()["sum_high"] == pytest.approx((255 - c.skipped.zero_point) * c.skipped.scale / 0.03)
    assert layers["b"].kind == "depthwise"
    assert all(layers[name].residual is None for name in "abd")


def test_a_pair_that_is_a_relu_stays_as_a_limit():
    g = Qdq()
    x = g.pair("x")
    a = g.pair(g.conv(x, "a", (8, 8)), scale=0.02, zero_point=0)
    s = g.pair(g.node("Add", [a, x], "s"), scale=0.03)
    found = only(g.model(g.node("Relu", [s], "y"))).attributes()
    assert (found["sum_low"], found["sum_high"]) == (0, pytest.approx(255 * 0.02 / 0.03))


def test_signed_activations_are_shifted_by_128():
    g = Qdq()
    conv = g.conv(g.pair("x", zero_point=-3, kind=np.int8), "a", (8, 16))
    layer = only(g.model(g.node("Relu", [g.pair(conv, scale=0.02, zero_point=5, kind=np.int8)], "y")))
    assert (layer.x.zero_point, layer.y.zero_point) == (125, 133)


def test_unsigned_weights_lose_their_zero_point():
    g = Qdq()
    weight = g.weights("a", (16, 8, 1, 1), zero_point=128, kind=np.uint8)
    conv = g.node("Conv", [g.pair("x"), weight], "a")
    layer = only(g.model(g.node("Relu", [g.pair(conv)], "y")))
    stored = next(t for t in g.tensors if t.name == "a.weight")
    np.testing.assert_array_equal(layer.weights, numpy_helper.to_array(stored).astype(int) - 128)
    assert 0 < layer.density < 1


def test_weights_the_graph_quantizes_itself_are_computed_as_the_graph_would():
    g = Qdq()
    g.store("a.weight", g.rng.normal(0, 1, (16, 8, 1, 1)).astype(np.float32))
    step = [g.store("a.scale", np.full(16, 0.02, np.float32)), g.store("a.zero", np.zeros(16, np.int8))]
    quantized = g.node("QuantizeLinear", ["a.weight", *step], "a_wq", axis=0)
    conv = g.node("Conv", [g.pair("x"), g.node("DequantizeLinear", [quantized, *step], "a_w", axis=0)], "a")
    layer = only(g.model(g.node("Relu", [g.pair(conv)], "y")))
    want = np.clip(np.rint(numpy_helper.to_array(g.tensors[0]) / np.float32(0.02)), -128, 127)
    np.testing.assert_array_equal(layer.weights, want)
    assert layer.name == "a"


def test_a_channel_without_weights_keeps_its_bias_whatever_scale_it_was_given():
    model = after_conv(Qdq(), lambda g, name: name)
    stored = {t.name: t for t in model.graph.initializer}
    weight, scale = (numpy_helper.to_array(stored[name]).copy() for name in ("a.weight", "a.scale"))
    weight[3], scale[3] = 0, 1.0  # what quantizers give to a channel of zeros
    stored["a.weight"].CopyFrom(numpy_helper.from_array(weight, "a.weight"))
    stored["a.scale"].CopyFrom(numpy_helper.from_array(scale, "a.scale"))
    layer = only(model)
    bias = numpy_helper.to_array(stored["a.bias"])[3]
    assert layer.bias[3] * layer.scale[3] * 0.02 == pytest.approx(bias, rel=1e-5)


def test_padding_by_name_is_computed():
    for mode, pads in (("SAME_UPPER", [0, 0, 1, 1]), ("SAME_LOWER", [1, 1, 0, 0]), ("VALID", [0, 0, 0, 0])):
        g = Qdq()
        conv = g.node("Conv", [g.pair("x"), g.weights("a", (16, 8, 3, 3))], "a", auto_pad=mode, strides=[2, 2])
        layer = only(g.model(g.node("Relu", [g.pair(conv)], "y")))
        assert list(layer.geometry.pads) == pads, mode
        assert layer.y.size == ((3, 3) if mode != "VALID" else (2, 2))


def test_linear_layers_over_tokens_are_1x1_convolutions_with_channels_last():
    g = Qdq(("batch", 5, 8))
    product = g.node("MatMul", [g.pair("x"), g.weights("a", (8, 12), axis=1)], "a")
    bias = g.store("a.bias", np.ones(12, np.float32))
    layer = only(g.model(g.node("Relu", [g.pair(g.node("Add", [product, bias], "s"))], "y")))
    assert (layer.kind, layer.weights.shape, layer.x.size) == ("linear", (12, 8, 1, 1), (5, 1))
    stored = numpy_helper.to_array(next(t for t in g.tensors if t.name == "a.weight"))
    np.testing.assert_array_equal(layer.weights[:, :, 0, 0], stored.T)


def test_what_does_not_fit_says_why():
    g = Qdq()
    assert reason(g.model(g.conv("x", "a", (8, 16)))) == "its input is not quantized"
    g = Qdq()
    assert reason(g.model(g.conv(g.pair("x"), "a", (8, 16)))) == "its output is an output of the model"
    g = Qdq()
    model = g.model(g.node("Sigmoid", [g.conv(g.pair("x"), "a", (8, 16))], "y"))
    assert reason(model) == "its output is needed in float by Sigmoid"
    g = Qdq()
    conv = g.conv(g.pair("x", kind=np.uint16, zero_point=3), "a", (8, 16))
    assert reason(g.model(g.node("Relu", [g.pair(conv)], "y"), opset=21)) == "an activation is quantized to uint16"
    g = Qdq()
    weight = g.weights("a", (16, 8, 1, 1), zero_point=100, kind=np.uint8)
    conv = g.node("Conv", [g.pair("x"), weight], "a")
    assert "does not fit into int8" in reason(g.model(g.node("Relu", [g.pair(conv)], "y")))
    g = Qdq()
    weight = g.weights("a", (8, 16, 2, 2))
    conv = g.node("ConvTranspose", [g.pair("x"), weight], "a")
    assert reason(g.model(g.node("Relu", [g.pair(conv)], "y"))) == "it is a transposed convolution"


def test_a_bias_that_would_be_rounded_away_is_refused():
    g = Qdq()
    weight = g.weights("a", (16, 8, 1, 1))
    next(t for t in g.tensors if t.name == "a.scale").CopyFrom(
        numpy_helper.from_array(np.full(16, 50, np.float32), "a.scale")
    )
    conv = g.node("Conv", [g.pair("x"), weight, g.store("b", np.full(16, 1.2, np.float32))], "a")
    assert "rounding its bias would cost" in reason(g.model(g.node("Relu", [g.pair(conv, scale=0.5)], "y")))


# ---------------------------------------------------------------------- models that cannot be used


def test_a_model_that_is_not_quantized_is_refused():
    g = Qdq()
    with pytest.raises(InputError, match="the model is not quantized"):
        sparsify(g.model(g.node("Relu", ["x"], "y")))


def test_open_sizes_are_refused_and_an_open_batch_is_not():
    assert sparsify(chain(), every=True).chosen == 4
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputError, match=r"input 'x' has open sizes: \[batch, 8, height, 6\]"):
        sparsify(model)


def test_a_missing_tensor_is_named():
    model = chain()
    del model.graph.initializer[[t.name for t in model.graph.initializer].index("b.weight")]
    with pytest.raises(InputError, match=r"reads 'b\.weight', which is neither computed nor stored"):
        sparsify(model)


def test_a_sparse_model_is_not_made_sparse_again():
    with pytest.raises(InputError, match="the model is sparse already"):
        sparsify(sparsify(chain(), every=True).model)


def test_a_graph_that_is_a_circle_is_refused():
    nodes = [helper.make_node("Relu", ["b"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"])]
    value = [helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1, 2])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], value))
    with pytest.raises(InputError, match=r"circle through Relu 'first'|not sound ONNX"):
        read_graph(model)


def test_what_a_branch_reads_stays_in_float():
    def with_branch(reads):
        g = Qdq()
        a = g.pair(g.conv(g.pair("x"), "a", (8, 8)), scale=0.02, zero_point=0)
        g.store("yes", np.array(True))
        value = onnx.ValueInfoProto(name="t")
        body = helper.make_graph([helper.make_node("Relu", [reads], ["t"])], "branch", [], [value])
        g.node("If", ["yes"], "y", then_branch=body, else_branch=body)
        b = g.node("Relu", [g.pair(g.conv(a, "b", (8, 8)))], "z")
        return g.model("y", b)

    assert reason(with_branch("a")) == "its output is needed in float by QuantizeLinear, If"
    found = sparsify(with_branch("a_dq"), every=True).model
    made = {name for node in found.graph.node for name in node.output}
    assert "a_dq" in made
