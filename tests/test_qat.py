"""Quantization-aware training: the module computes what ONNX Runtime does, trains, and is written back exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploypruner.errors import InputError
from deploypruner.export.to_onnx import Onnx
from deploypruner.qat import QdqModule, train_quantized
from deploypruner.qat.operators import OPERATORS
from deploypruner.quantize import quantize_static
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import Batch


def qdq_file(path: Path, weight: list[list[int]], scale: list[float], *, zero_point: int = 3) -> Path:
    """x [N, 2] in steps of 0.5, times integer weights [2, 2] with a scale per output, plus a bias."""
    stored = [
        numpy_helper.from_array(np.array(0.5, np.float32), "x_scale"),
        numpy_helper.from_array(np.array(zero_point, np.uint8), "x_zero"),
        numpy_helper.from_array(np.array(weight, np.int8), "w_quantized"),
        numpy_helper.from_array(np.array(scale, np.float32), "w_scale"),
        numpy_helper.from_array(np.array([0, 0], np.int8), "w_zero"),
        numpy_helper.from_array(np.array([4, -2], np.int32), "b_quantized"),
        numpy_helper.from_array(0.5 * np.array(scale, np.float32), "b_scale"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], name="round"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xr"], name="restore"),
        helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "w_zero"], ["w"], name="weight", axis=0),
        helper.make_node("DequantizeLinear", ["b_quantized", "b_scale"], ["b"], name="bias", axis=0),
        helper.make_node("Gemm", ["xr", "w", "b"], ["y"], name="layer", transB=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "by_hand", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_numbers_by_hand(tmp_path: Path) -> None:
    module = QdqModule(qdq_file(tmp_path / "m.onnx", [[1, 2], [-3, 4]], [0.25, 2.0]))
    # 1.2 is 2.4 steps: 2, so 1.0; -9 is below -3 steps, so -1.5. Weights [[.25, .5], [-6, 8]], biases [.5, -2].
    found = module(torch.tensor([[1.2, -9.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.25 - 0.75 + 0.5, -6.0 - 12.0 - 2.0]]))
    assert module.integer_layers == 1


def test_gradients_pass_the_rounding_and_stop_where_it_saturates(tmp_path: Path) -> None:
    module = QdqModule(qdq_file(tmp_path / "m.onnx", [[1, 2], [-3, 4]], [0.25, 2.0]))
    x = torch.tensor([[1.2, -9.0]], requires_grad=True)
    module(x)[0, 0].backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.25, 0.0]]))
    torch.testing.assert_close(module.weight_0.grad, torch.tensor([[1.0, -1.5], [0.0, 0.0]]))


def test_weights_are_written_as_the_integers_that_were_computed_with(tmp_path: Path) -> None:
    path = qdq_file(tmp_path / "m.onnx", [[1, 2], [-3, 4]], [0.25, 2.0])
    module = QdqModule(path)
    with torch.no_grad():
        module.weight_0.copy_(torch.tensor([[0.3, -99.0], [5.1, 1.2]]))
        module.weight_1.copy_(torch.tensor([1.0, 7.4]))
    module.save(tmp_path / "trained.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "trained.onnx").graph.initializer}
    # 0.3 / 0.25 = 1.2, -99 saturates, 5.1 / 2 = 2.55, 1.2 / 2 = 0.6; biases 1 / 0.125 and 7.4 / 1.
    assert held["w_quantized"].tolist() == [[1, -64], [3, 1]]  # the file used no more than 7 bits, and keeps to them
    assert held["b_quantized"].tolist() == [8, 7]
    again = QdqModule(tmp_path / "trained.onnx")
    x = torch.tensor([[0.4, 2.0], [-1.0, 1.0]])
    torch.testing.assert_close(again(x), module(x))


@dataclass(frozen=True)
class Noise:
    """Images [3, 16, 16] without labels."""

    samples: int
    labelled: bool = False

    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        x = torch.randn(self.samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        for rows in x.split(batch_size):
            yield (rows,), None


class Small(nn.Module):
    """Convolutions around a shortcut, depthwise, pools, a gate and a hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn, self.gate, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn(self.stem(x))), 3, 2, 1)
        y = nn.functional.hardswish(self.deep(x))
        y = x + y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.head(nn.functional.avg_pool2d(y, 2, 2).flatten(2).mean(2))


class Encoder(nn.Module):
    """One block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.patches, self.up, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 2, 6).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return self.head(nn.functional.gelu(self.up(x)).mean(1))


def files(tmp_path: Path, model: nn.Module) -> tuple[Path, Path]:
    """The float and the int8 file of a seeded model for images [N, 3, 16, 16]."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    Onnx().write(model.eval(), (torch.zeros(2, 3, 16, 16),), fp32, dynamic_batch=True)
    rng = np.random.default_rng(0)
    quantize_static(fp32, int8, calibration=[[rng.standard_normal((8, 3, 16, 16), dtype=np.float32)]])
    return fp32, int8


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime gives without any fusion."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", [Small(), Encoder()], ids=["convolutions", "transformer"])
def test_the_module_computes_what_onnx_runtime_does_and_is_saved_unchanged(tmp_path: Path, model: nn.Module) -> None:
    fp32, int8 = files(tmp_path, model)
    module = QdqModule(int8, zeros=fp32).eval()
    x = np.random.default_rng(1).standard_normal((6, 3, 16, 16), dtype=np.float32)
    wanted = answers(int8, x)
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    # Sums in another order turn a tie of rounding now and then: steps of the last layers, no more.
    assert np.abs(found - wanted).mean() < 0.002 * np.abs(wanted).max()
    module.save(tmp_path / "again.onnx")
    np.testing.assert_array_equal(answers(tmp_path / "again.onnx", x), wanted)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert float(next(module.parameters()).detach().abs().max()) > 0


@pytest.mark.slow
def test_training_brings_back_what_rounding_cost_and_the_file_has_it(tmp_path: Path) -> None:
    model = Small()
    fp32, int8 = files(tmp_path, model)
    with torch.no_grad():  # weights on a coarse grid: what repair could not bring back
        module = QdqModule(int8)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.8)
        module.save(int8)
    images = Noise(64)
    x = np.concatenate([x.numpy() for (x,), _ in images.epoch(batch_size=64, seed=9, shuffle=False, augment=False)])
    dense = answers(fp32, x)

    def score(module: nn.Module) -> float:
        with torch.no_grad():
            return -float((module(torch.from_numpy(x)) - torch.from_numpy(dense)).square().mean())

    settings = FinetuneSettings(epochs=6, batch_size=16, lr=0.02, distill=1.0, augment=False)
    out = tmp_path / "trained.onnx"
    found = train_quantized(int8, out, teacher=model, batches=images, settings=settings, validate=score, fp32=fp32)
    assert found.after > 0.5 * found.before > found.before  # scores are negative: less than half of the error
    assert -float(np.square(answers(out, x) - dense).mean()) == pytest.approx(found.after, rel=0.1)
    bad = FinetuneSettings(epochs=1, batch_size=16, lr=50.0, clip_norm=1e9, distill=1.0)
    kept = train_quantized(out, tmp_path / "kept.onnx", teacher=model, batches=images, settings=bad, validate=score)
    assert (kept.best_epoch, kept.after) == (0, kept.before)
    assert (tmp_path / "kept.onnx").read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_zeros_of_the_float_file_stay(tmp_path: Path) -> None:
    model = Small()
    torch.manual_seed(0)
    fp32, int8 = files(tmp_path, model)
    held = onnx.load(fp32)
    tensor = next(t for t in held.graph.initializer if t.name == "head.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[:, ::2] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(held, fp32)
    rng = np.random.default_rng(0)
    quantize_static(fp32, int8, calibration=[[rng.standard_normal((8, 3, 16, 16), dtype=np.float32)]])
    settings = FinetuneSettings(epochs=2, batch_size=16, lr=0.05, distill=1.0)
    images, epochs = Noise(32), iter(range(10))
    out = tmp_path / "out.onnx"
    train_quantized(
        *(int8, out), teacher=model, batches=images, settings=settings, validate=lambda _: next(epochs), fp32=fp32
    )
    before, after = (
        next(numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == "head.weight_quantized")
        for path in (int8, out)
    )
    assert not after[:, ::2].any()
    assert (before != after).any()


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    path = qdq_file(tmp_path / "m.onnx", [[1, 2], [-3, 4]], [0.25, 2.0])
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("NonZero", ["z"], ["zi"], name="where"))
    model.graph.node.append(helper.make_node("Cast", ["zi"], ["y"], name="cast", to=TensorProto.FLOAT))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"does not know NonZero \('where'\)"):
        QdqModule(path)


# Operator -> what it reads, and its attributes; numpy arrays are inputs.
_X = np.random.default_rng(3).standard_normal((2, 4, 6, 8), dtype=np.float32)
_CASES: dict[str, tuple[list[object], dict[str, object]]] = {
    "Conv": ([_X, _X[:, :2, :3, :3].copy(), _X[0, 0, 0, :2].copy()],
             {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 2], "kernel_shape": [3, 3]}),
    "ConvTranspose": ([_X, _X.reshape(4, -1)[:, :24].reshape(4, 3, 2, 4).copy()],
                      {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    "Gemm": ([_X[0, 0], _X[1, 0], _X[0, 0, 0, :6].copy()], {"transB": 1, "alpha": 0.5, "beta": 3.0}),
    "MatMul": ([_X, np.swapaxes(_X, 2, 3).copy()], {}),
    "LayerNormalization": ([_X, _X[0, 0, 0].copy(), _X[0, 0, 1].copy()], {"epsilon": 0.1}),
    "BatchNormalization": ([_X, *(np.abs(_X[0, :, 0, i]) + 0.5 for i in range(4))], {"epsilon": 0.1}),
    "Softmax": ([_X], {"axis": 1}),
    "LogSoftmax": ([_X], {"axis": 2}),
    "MaxPool": ([_X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "AveragePool": ([_X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    "GlobalAveragePool": ([_X], {}),
    "GlobalMaxPool": ([_X], {}),
    "ReduceMean": ([_X, np.array([1, 3])], {"keepdims": 0}),
    "ReduceMax": ([_X, np.array([2])], {}),
    "ReduceL2": ([_X, np.array([1])], {}),
    "Slice": ([_X, np.array([5, 1]), np.array([-9, 7]), np.array([2, 3]), np.array([-2, 3])], {}),
    "Gather": ([_X, np.array([[2, -1], [0, 3]])], {"axis": 1}),
    "Pad": ([_X, np.array([1, 0, 2, 1]), np.array(7.0, np.float32), np.array([2, 3])], {}),
    "Resize": ([_X, None, None, np.array([2, 4, 9, 4])], {"mode": "linear"}),
    "Expand": ([_X[:, :1].copy(), np.array([1, 4, 1, 1])], {}),
    "Tile": ([_X, np.array([1, 2, 1, 1])], {}),
    "Reshape": ([_X, np.array([0, -1, 4])], {}),
    "Squeeze": ([_X[:, :1].copy(), np.array([1])], {}),
    "Unsqueeze": ([_X, np.array([0, -1])], {}),
    "Transpose": ([_X], {"perm": [2, 0, 3, 1]}),
    "Flatten": ([_X], {"axis": 2}),
    "Clip": ([_X, np.array(-0.3, np.float32), None], {}),
    "LeakyRelu": ([_X], {"alpha": 0.3}),
    "Elu": ([_X], {"alpha": 0.3}),
    "HardSigmoid": ([_X], {"alpha": 0.3, "beta": 0.4}),
    "HardSwish": ([_X], {}),
    "Gelu": ([_X], {"approximate": "tanh"}),
    "PRelu": ([_X, _X[0, :, :1, :1].copy()], {}),
    "Div": ([_X, np.abs(_X) + 1], {}),
    "Max": ([_X, -_X, np.zeros(1, np.float32)], {}),
    "Where": ([_X > 0, _X, 2 * _X], {}),
    "Concat": ([_X, 2 * _X], {"axis": 3}),
    "DepthToSpace": ([_X], {"blocksize": 2, "mode": "CRD"}),
    "Shape": ([_X], {"start": 1}),
    "ConstantOfShape": ([np.array([2, 3])], {}),
    "Range": ([np.array(2), np.array(9), np.array(3)], {}),
    "Cast": ([_X], {"to": TensorProto.INT64}),
}  # fmt: skip
_PLAIN = {"Einsum", "Split", "Identity", "Min"}  # below, or in the networks above


@pytest.mark.parametrize("kind", sorted(OPERATORS.keys() - _PLAIN))
def test_operators_agree_with_onnx_runtime(kind: str, tmp_path: Path) -> None:
    binary = {"And": np.array([True, False]), "Or": np.array([True, False]), "Not": np.array([True, False])}
    default = [binary[kind]] * (1 if kind == "Not" else 2) if kind in binary else None
    positive = kind in ("Log", "Sqrt", "Pow", "Reciprocal")
    two = kind in ("Add", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Pow", "Sub")
    x = np.abs(_X) + 0.1 if positive else _X
    if kind in ("ReduceMin", "ReduceSum", "ReduceSumSquare"):
        default = [_X, np.array([1, 2])]
    read, attributes = _CASES.get(kind, (default or [x] * (1 + two), {}))
    names = ["" if array is None else f"i{place}" for place, array in enumerate(read)]
    node = helper.make_node(kind, names, ["y"], name="n", **attributes)
    feeds = {name: array for name, array in zip(names, read, strict=True) if name}
    types = {np.dtype(d): t for d, t in ((np.float32, 1), (np.int64, 7), (bool, 9))}
    ends = [helper.make_tensor_value_info(n, types[a.dtype], a.shape) for n, a in feeds.items()]
    output = onnx.ValueInfoProto(name="y")
    graph = helper.make_graph([node], "one", ends, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    made = next(iter(ir.from_proto(model).graph))
    found = OPERATORS[kind](made, [None if a is None else torch.from_numpy(np.array(a)) for a in read])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)
