from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.export.to_onnx import Onnx
from deploypruner.openvino_import import openvino_core
from deploypruner.quantize import quantize_static
from deploypruner.runtime import default_runtimes, runtimes
from deploypruner.runtime.on_onnxruntime import OnnxRuntime

pytestmark = pytest.mark.slow

SHAPE = (3, 8, 8)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(gate)


class Mixed(nn.Module):
    """Relu, relu6 read only by a mean, hard-swish, swish, gate, residual, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.gate, self.last = Gate(16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.stem(x)))
        z = self.gate(nn.functional.hardswish(self.deep(y)))
        y = nn.functional.max_pool2d(y + nn.functional.silu(self.point(z)), 2)
        return self.head(nn.functional.relu6(self.last(y)).mean((2, 3)))


def batches(count: int = 3, *, seed: int = 0) -> Iterator[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield [rng.standard_normal((4, *SHAPE), dtype=np.float32)]


def exported(model: nn.Module, path: Path) -> Path:
    Onnx().write(model.eval(), [torch.zeros(2, *SHAPE)], path, dynamic_batch=True)
    return path


def weights() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((4, 3, 1, 1), dtype=np.float32)


def conv_file(path: Path, weight: np.ndarray, *, bias: float = 0.0, tail: str = "z = Identity (y)") -> Path:
    """One 1 x 1 convolution w from x to y, then `tail` from y to z, as ONNX text."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[n, 3, 8, 8] x) => (float[n, p, q, r] z) <float[4, 3, 1, 1] w, float[4] b>
        {{ y = Conv (x, w, b) {tail} }}"""
    )
    values = {"w": weight, "b": np.full(4, bias, np.float32)}
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for index, node in enumerate(n for n in model.graph.node if n.op_type != "Constant"):
        node.name = f"node{index}"
    onnx.save(model, path)
    return path


def literal(path: Path, feeds: list[np.ndarray]) -> np.ndarray:
    return OnnxRuntime().open(path, literal=True).run(feeds)[0]


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def initializer(path: Path, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in onnx.load(path).graph.initializer if t.name == name))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        model.bn.weight.uniform_(0.5, 2.0)
        model.stem.weight[0, 0] = 0.0  # zeros inside a channel
    return exported(model, tmp_path_factory.mktemp("fp32") / "mixed.onnx")


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_method_stays_near_fp32_in_both_runtimes(mixed: Path, tmp_path: Path, method: str) -> None:
    int8 = tmp_path / "int8.onnx"
    summary = quantize_static(mixed, int8, calibration=batches(), method=method)  # type: ignore[arg-type]
    feeds = next(batches(1, seed=1))
    want = literal(mixed, feeds)
    assert relative(literal(int8, feeds), want) < 0.1
    for name in default_runtimes():
        assert relative(runtimes.get(name)().open(int8).run(feeds)[0], want) < 0.1
    assert (summary.method, summary.samples, summary.quantized, summary.left_float) == (method, 12, 7, {})


def test_every_convolution_runs_in_int8_in_openvino(mixed: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    quantize_static(mixed, int8, calibration=batches())
    core = openvino_core()
    compiled = core.compile_model(core.read_model(int8), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        ran[info["layerType"].astype(str), info["runtimePrecision"].astype(str)] += 1
    assert {key: n for key, n in ran.items() if key[0] in ("Convolution", "FullyConnected")} == {
        ("Convolution", "u8"): 6,
        ("FullyConnected", "u8"): 1,
    }


def test_every_convolution_becomes_qlinearconv_in_onnx_runtime_with_its_placement(
    mixed: Path, tmp_path: Path
) -> None:
    int8, optimized = tmp_path / "int8.onnx", tmp_path / "optimized.onnx"
    quantize_static(mixed, int8, calibration=batches(), placement="onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(int8), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    assert ran["QLinearConv"] == 6
    assert ran["Conv"] + ran["FusedConv"] == 0
    assert ran["QLinearAdd"] == 1


def test_no_pair_stands_between_a_convolution_and_its_swish(mixed: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    quantize_static(mixed, int8, calibration=batches())
    graph = onnx.load(int8).graph
    producer = {name: node.op_type for node in graph.node for name in node.output}
    swishes = [node for node in graph.node if node.op_type in ("HardSwish", "Sigmoid")]
    assert len(swishes) == 2
    assert {producer[node.input[0]] for node in swishes} == {"Conv"}


def test_a_clip_read_only_by_float_operators_still_clips(tmp_path: Path) -> None:
    # The quantizer drops Relu and lets the pair saturate: that pair must not count as idle.
    tail = "r = Relu (y) axes = Constant <value_ints = [2, 3]> () z = ReduceMean <keepdims = 1> (r, axes)"
    fp32, int8 = conv_file(tmp_path / "fp32.onnx", weights(), tail=tail), tmp_path / "int8.onnx"
    quantize_static(fp32, int8, calibration=batches())
    feeds = next(batches(1, seed=1))
    assert relative(literal(int8, feeds), literal(fp32, feeds)) < 0.05


def test_zero_weights_stay_zero_and_zero_points_are_zero(mixed: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    quantize_static(mixed, int8, calibration=batches())
    before = initializer(mixed, "stem.weight")
    after = initializer(int8, "stem.weight_quantized")
    assert after.dtype == np.int8
    assert (before == 0).sum() == 9
    assert not after[before == 0].any()
    assert np.count_nonzero(after) <= np.count_nonzero(before)
    assert not initializer(int8, "stem.weight_zero_point").any()


def test_weight_scales_are_the_largest_weight_of_each_channel(mixed: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    quantize_static(mixed, int8, calibration=batches())
    want = np.abs(initializer(mixed, "point.weight")).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(initializer(int8, "point.weight_scale"), want, rtol=1e-5)


def test_a_channel_without_weights_keeps_its_bias(tmp_path: Path) -> None:
    weight = weights()
    weight[1] = 0.0
    fp32, int8 = conv_file(tmp_path / "fp32.onnx", weight, bias=0.013), tmp_path / "int8.onnx"
    quantize_static(fp32, int8, calibration=batches())
    scale = initializer(int8, "w_scale")
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert not initializer(int8, "w_quantized")[1].any()
    got = literal(int8, next(batches(1)))
    np.testing.assert_allclose(got[:, 1], 0.013, rtol=0.01)


def test_a_layer_of_zeros_quantizes(tmp_path: Path) -> None:
    fp32, int8 = conv_file(tmp_path / "fp32.onnx", 0 * weights()), tmp_path / "int8.onnx"
    quantize_static(fp32, int8, calibration=batches())
    assert np.isfinite(literal(int8, next(batches(1)))).all()


def test_an_image_that_is_scaled_by_an_input_of_the_model_is_quantized(tmp_path: Path) -> None:
    """The factor stays float under the name that the model's input has."""
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[n, 3, 8, 8] x, float[n, 4, 1, 1] s) => (float[n, 3, 8, 8] z)
            <float[4, 3, 1, 1] w, float[3, 4, 1, 1] v>
        { y = Conv (x, w) r = Relu (y) m = Mul (r, s) z = Conv (m, v) }"""
    )
    del model.graph.initializer[:]
    stored = {"w": weights(), "v": weights().transpose(1, 0, 2, 3)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    onnx.save(onnx.shape_inference.infer_shapes(model), fp32)
    feeds = [*next(batches(1)), np.random.default_rng(3).random((4, 4, 1, 1), dtype=np.float32)]
    quantize_static(fp32, int8, calibration=[feeds], placement="sparse")
    (product,) = [node for node in onnx.load(int8).graph.node if node.op_type == "Mul"]
    assert "s" in product.input
    assert relative(literal(int8, feeds), literal(fp32, feeds)) < 0.05


def test_a_product_of_activations_stays_float_and_is_named_with_the_reason(tmp_path: Path) -> None:
    tail = "t = Transpose <perm = [0, 1, 3, 2]> (y) s = Sigmoid (t) z = MatMul (s, y)"
    fp32, int8 = conv_file(tmp_path / "fp32.onnx", weights(), tail=tail), tmp_path / "int8.onnx"
    summary = quantize_static(fp32, int8, calibration=batches())
    assert (summary.quantized, summary.left_float) == (1, {"node3": "product of two activations"})


def test_reduced_range_uses_seven_bits(mixed: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    quantize_static(mixed, int8, calibration=batches(), reduce_range=True)
    assert np.abs(initializer(int8, "point.weight_quantized").astype(int)).max() == 64


def test_quantizing_twice_gives_the_same_bytes_and_leaves_nothing_else(mixed: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    quantize_static(mixed, first, calibration=batches())
    quantize_static(mixed, second, calibration=batches())
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    assert [path.name for path in mixed.parent.iterdir()] == ["mixed.onnx"]


def test_quantizing_is_silent_and_leaves_logging_alone(
    mixed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    quantize_static(mixed, tmp_path / "a.onnx", calibration=batches(), method="entropy")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    assert logging.root.manager.disable == disabled


def test_nan_in_a_calibration_batch_is_named(mixed: Path, tmp_path: Path) -> None:
    bad = [*batches(1), [np.full((4, *SHAPE), np.nan, dtype=np.float32)]]
    with pytest.raises(InputError, match=r"calibration batch 1 holds NaN or infinite values in input 'x'"):
        quantize_static(mixed, tmp_path / "a.onnx", calibration=bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_an_activation_that_overflows_is_refused(tmp_path: Path, method: str) -> None:
    fp32 = conv_file(tmp_path / "fp32.onnx", np.full((4, 3, 1, 1), 3e38, np.float32))
    with pytest.raises(InputError, match="NaN or infinite"):
        quantize_static(fp32, tmp_path / "a.onnx", calibration=batches(), method=method)  # type: ignore[arg-type]


def test_no_calibration_data_is_refused(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration has no batches"):
        quantize_static(mixed, tmp_path / "a.onnx", calibration=[])


def test_a_batch_with_too_many_arrays_is_refused(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch 0 has 2 arrays, the model has 1 inputs \(x\)"):
        quantize_static(mixed, tmp_path / "a.onnx", calibration=[[*next(batches(1)), *next(batches(1))]])


def test_unknown_method_and_placement_offer_the_nearest(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'entropie'[\s\S]*did you mean 'entropy'"):
        quantize_static(mixed, tmp_path / "a.onnx", calibration=batches(), method="entropie")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"'openvin'[\s\S]*did you mean 'openvino'"):
        quantize_static(mixed, tmp_path / "a.onnx", calibration=batches(), placement="openvin")  # type: ignore[arg-type]


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"cannot read '.*broken\.onnx' as ONNX"):
        quantize_static(broken, tmp_path / "a.onnx", calibration=batches())


def test_a_channel_of_zeros_at_the_first_place_is_quantized_too(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight[0] = 0
    Onnx().write(net, (torch.randn(1, 3, 8, 8),), tmp_path / "f.onnx", dynamic_batch=False)
    feeds = [np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)]
    quantize_static(tmp_path / "f.onnx", tmp_path / "q.onnx", calibration=[feeds])
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert not stored["0.weight_quantized"][0].any()
    others = np.abs(net[0].weight.detach().numpy()[1:]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(stored["0.weight_scale"][1:], 2 * others / 254, rtol=1e-6)
    assert stored["0.weight_scale"][0] == pytest.approx(np.median(others) / 127)
