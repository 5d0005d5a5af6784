"""x86 without VNNI sums two u8 x i8 products in 16 bits, which saturate: 8-bit weights come out wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploypruner import target
from deploypruner.quantize.static import quantize_static
from deploypruner.report.repaired import weights_sentence
from tests.builds import run_cli
from tests.int8_nets import Array, Net, run, values

SHORT = np.iinfo(np.int16)


def bright(count: int, seed: int = 0) -> Array:
    """Inputs [N, 16] from 0 to 1, most of them near 1: pairs of products are large, and of one sign."""
    return 1 - np.random.default_rng(seed).uniform(0, 1, (count, 16)).astype(np.float32) ** 3


def heavy() -> onnx.ModelProto:
    """A linear layer whose neighbouring weights are large and of one sign."""
    net = Net(["n", 16])
    weight = np.random.default_rng(1).uniform(0.8, 1.0, (6, 16)) * np.repeat([[1, -1, 1, 1, -1, 1, -1, 1]], 2, axis=1)
    return net.model(net.add("Gemm", "x", net.keep(weight), net.keep(np.linspace(-1, 1, 6)), transB=1))


def int8(folder: Path, *, reduce_range: bool, repair: bool = False) -> onnx.ModelProto:
    onnx.save(heavy(), folder / "fp32.onnx")
    calibration = [[bright(8, seed)] for seed in range(1, 9)]
    quantize_static(
        folder / "fp32.onnx", folder / "int8.onnx", calibration=calibration, reduce_range=reduce_range, repair=repair
    )
    return onnx.load(folder / "int8.onnx")


def computed(model: onnx.ModelProto, x: Array, *, saturating: bool) -> Array:
    """The layer in integers: as VPMADDUBSW, VPMADDWD and VPADDD do it, or with exact sums of pairs."""
    stored = values(model)
    (weight,) = (a for a in stored.values() if a.dtype == np.int8 and a.ndim == 2)
    nodes = {node.op_type: node for node in model.graph.node}
    reads = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale, zero = stored[reads.input[1]], stored[reads.input[2]]
    of_weight = next(
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and stored.get(n.input[0]) is weight
    )
    weight_scale = stored[of_weight.input[1]]
    q = np.clip(np.round(x / scale) + int(zero), 0, 255).astype(np.int64)
    w = weight if {a.name: a.i for a in nodes["Gemm"].attribute}.get("transB") else weight.T  # [O, K]
    pairs = (q[:, None, :] * w[None].astype(np.int64)).reshape(len(x), len(w), -1, 2).sum(axis=3)
    if saturating:
        pairs = np.clip(pairs, SHORT.min, SHORT.max)
    total = pairs.sum(axis=2) - int(zero) * w.astype(np.int64).sum(axis=1)
    return total * float(scale) * weight_scale.astype(float) + np.linspace(-1, 1, 6)


@pytest.mark.parametrize("repair", [False, True])
def test_seven_bits_compute_right_where_sums_of_two_products_saturate_and_eight_do_not(tmp_path, repair):
    x = bright(64, seed=99)
    want = run(heavy(), x)
    spread = want.std()
    errors = {}
    for bits, reduce_range in ((7, True), (8, False)):
        model = int8(tmp_path, reduce_range=reduce_range, repair=repair)
        exact, saturated = (computed(model, x, saturating=saturating) for saturating in (False, True))
        # The emulation is of this file: what the runtime computes with exact sums is within a step of its output.
        assert np.abs(exact - run(model, x)).max() < 0.02 * spread
        errors[bits] = np.abs(exact - saturated).max(), np.abs(saturated - want).max() / spread
    assert errors[7][0] == 0  # to the last bit
    assert errors[7][1] < 0.1
    assert errors[8][0] > 0
    assert errors[8][1] > 1  # farther off than the outputs differ from one another


def test_no_pair_of_seven_bit_weights_can_leave_sixteen_bits():
    """By hand: 2 x 255 x 64 = 32640 <= 32767, and 2 x 255 x 127 = 64770 is not."""
    assert 2 * 255 * 64 <= SHORT.max < 2 * 255 * 127


@pytest.mark.parametrize(
    ("flags", "asked", "reduced"),
    [
        ("avx2", "auto", True),
        ("avx2", "8", False),
        ("avx2 avx512_vnni", "auto", False),
        ("avx2 avx512_vnni", "7", True),
    ],
)
def test_who_decides_about_the_bits(monkeypatch, flags, asked, reduced):
    monkeypatch.setattr(target, "_cpuinfo", lambda: {"flags": flags})
    assert target.reduces_range(asked, target.detect()) == reduced


@pytest.mark.slow
@pytest.mark.parametrize("bits", [7, 8])
def test_quantize_writes_weights_of_as_many_bits_as_were_asked_for_and_says_so(tmp_path, bits):
    onnx.save(heavy(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=bright(40))
    asked = ("quantize", "net.onnx", "--data", "data.npz", "--weight-bits", str(bits), "--seconds", "1")
    said = run_cli(*asked, "--accuracy-drop", "100", folder=tmp_path)
    assert said.code == 0, said.err
    assert f"weights: {weights_sentence(bits)}" in said.out
    (weight,) = (
        a
        for a in values(onnx.load(tmp_path / "int8" / "model.int8.onnx")).values()
        if a.dtype == np.int8 and a.ndim == 2
    )
    assert np.abs(weight.astype(int)).max() == {7: 64, 8: 127}[bits]
    assert json.loads((tmp_path / "int8" / "quantize.json").read_text())["quantization"]["weight_bits"] == bits
