"""Squeeze and excitation in C4: the kernels and the operations inside OpenVINO against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from deploypruner.errors import KernelError
from deploypruner.sparse.bindings import from_c4, pool_c4, scale_c4, to_c4
from deploypruner.sparse.library import is_built, targets
from tests.kernel_cases import DOMAIN
from tests.test_kernels_openvino import compiled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels"),
]


@dataclass(frozen=True)
class Gate:
    """Sizes, zero points (of x, of y) and steps of a random block, with its tensors."""

    x: np.ndarray  # uint8 [N, H, W, C]
    by: np.ndarray  # float32 [N, C]
    zero_points: tuple[int, int]
    steps: tuple[float, float]

    @property
    def pixels(self) -> int:
        return self.x.shape[1] * self.x.shape[2]

    def means(self) -> np.ndarray:
        """[N, C] in float64."""
        real = (torch.from_numpy(self.x).double() - self.zero_points[0]) * self.steps[0]
        return real.mean((1, 2)).numpy()

    def products(self) -> np.ndarray:
        """uint8 [N, H, W, C] as numbers, from float64."""
        real = (torch.from_numpy(self.x).double() - self.zero_points[0]) * self.steps[0]
        scaled = real * torch.from_numpy(self.by).double()[:, None, None]
        return ((scaled / self.steps[1]).round() + self.zero_points[1]).clamp(0, 255).numpy()


def random_gate(seed: int) -> Gate:
    rng = np.random.default_rng(seed)
    size = (*rng.integers(1, 3, 1), *rng.integers(1, 14, 2), rng.integers(1, 90))
    return Gate(
        rng.integers(0, 256, size).astype(np.uint8),
        rng.uniform(-0.2, 1.2, (size[0], size[3])).astype(np.float32),
        (int(rng.integers(256)), int(rng.integers(256))),
        (float(np.float32(rng.uniform(0.01, 0.1))), float(np.float32(rng.uniform(0.01, 0.1)))),
    )


@pytest.mark.parametrize("target", targets() if is_built() else [])
def test_means_and_products_are_torchs_on_every_target(target: str) -> None:
    differing = values = 0
    for seed in range(150):
        gate = random_gate(seed)
        _, high, wide, channels = gate.x.shape
        c4 = to_c4(gate.x)
        factor = gate.steps[0] / gate.pixels
        mean = pool_c4(c4, (gate.pixels, channels), zero_point=gate.zero_points[0], factor=factor, target=target)
        np.testing.assert_allclose(mean, gate.means(), rtol=1e-6, atol=1e-9)
        ratio = gate.steps[0] / gate.steps[1]
        y = scale_c4(c4, gate.by, gate.pixels, zero_points=gate.zero_points, ratio=ratio, target=target)
        found = from_c4(y, (high, wide, channels)).astype(float)
        assert np.abs(found - gate.products()).max() <= 1, f"seed {seed}"
        differing += int((found != gate.products()).sum())
        values += found.size
    assert differing < 1e-4 * values  # one rounding in float32 moves few values over an edge


def test_a_mean_by_hand_leaves_out_what_lies_beyond_the_image() -> None:
    x = np.full((1, 1, 3, 5), 7, np.uint8)
    x[0, 0, :, 4] = (10, 20, 60)
    c4 = to_c4(x)
    c4[:, :, 3:] = 99  # pixels that are none
    c4[:, 1, :, 1:] = 99  # channels that are none
    for target in targets():
        mean = pool_c4(c4, (3, 5), zero_point=5, factor=0.5 / 3, target=target)
        np.testing.assert_allclose(mean, [[1, 1, 1, 1, 12.5]], rtol=1e-6)


def test_numbers_that_are_too_large_or_none_are_limited_alike_on_all_targets() -> None:
    x = np.tile(np.array([0, 5, 255], np.uint8)[None, None, :, None], (1, 1, 1, 4))
    by = np.array([[np.inf, -np.inf, np.nan, 1e30]], np.float32)
    for target in targets():
        y = scale_c4(to_c4(x), by, 3, zero_points=(5, 100), ratio=1.0, target=target)
        found = from_c4(y, (1, 3, 4))[0, 0]
        assert found.tolist() == [[0, 255, 255, 0], [100, 100, 100, 100], [255, 0, 0, 255]], target


def test_an_unknown_target_is_refused_by_name() -> None:
    c4 = to_c4(np.zeros((1, 1, 3, 4), np.uint8))
    with pytest.raises(KernelError, match="target 'neon9' cannot run here"):
        pool_c4(c4, (3, 4), zero_point=0, factor=1.0, target="neon9")
    with pytest.raises(KernelError, match="target 'neon9' cannot run here"):
        scale_c4(c4, np.ones((1, 4), np.float32), 3, zero_points=(0, 0), ratio=1.0, target="neon9")


def as_onnx(gate: Gate, **changed: int | float) -> bytes:
    """ToC4, then PoolC4, and ScaleC4 and FromC4, the batch open; `changed` replaces attributes."""
    _, high, wide, channels = gate.x.shape
    sizes = {"channels": channels, "height": high, "width": wide}
    both = sizes | {"zero_point": gate.zero_points[0]}
    pool = both | {"factor": gate.steps[0] / gate.pixels}
    scale = both | {"output_zero_point": gate.zero_points[1], "ratio": gate.steps[0] / gate.steps[1]}
    for said in (pool, scale):
        said.update({name: number for name, number in changed.items() if name in said})
    nodes = [
        helper.make_node("ToC4", ["x"], ["x4"], domain=DOMAIN),
        helper.make_node("PoolC4", ["x4"], ["mean"], domain=DOMAIN, **pool),
        helper.make_node("ScaleC4", ["x4", "by"], ["y4"], domain=DOMAIN, **scale),
        helper.make_node("FromC4", ["y4"], ["y"], domain=DOMAIN, **sizes),
    ]
    value = helper.make_tensor_value_info
    image = ["n", high, wide, channels]
    inputs = [value("x", TensorProto.UINT8, image), value("by", TensorProto.FLOAT, ["n", channels, 1, 1])]
    outputs = [value("mean", TensorProto.FLOAT, ["n", channels, 1, 1]), value("y", TensorProto.UINT8, image)]
    graph = helper.make_graph(nodes, "gate", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


@pytest.mark.parametrize("threads", ["1", "2"])
def test_operations_inside_openvino_are_torchs(threads: str) -> None:
    for seed in range(30):
        gate = random_gate(500 + seed)
        mean, y = compiled(as_onnx(gate), INFERENCE_NUM_THREADS=threads)(
            [gate.x, gate.by[:, :, None, None]]
        ).to_tuple()
        np.testing.assert_allclose(mean[:, :, 0, 0], gate.means(), rtol=1e-6, atol=1e-9)
        assert np.abs(y - gate.products()).max() <= 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"channels": 0}, "sizes must be positive"),
        ({"height": 1000}, "input 0 needs uint8"),
        ({"height": 1 << 13, "width": 1 << 13}, "an image has at most"),
        ({"zero_point": 256}, "zero points must be in 0..255"),
        ({"output_zero_point": -1}, "zero points must be in 0..255"),
        ({"channels": 1}, "needs"),
    ],
)
def test_a_gate_that_contradicts_itself_is_refused_when_it_is_read(changed, said: str) -> None:
    gate = next(g for g in map(random_gate, range(50)) if g.x.shape[3] > 8)
    with pytest.raises(RuntimeError, match=said):
        compiled(as_onnx(gate, **changed))
