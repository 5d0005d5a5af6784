"""The kernels called from Python: against torch in float64, against each other, and on impossible requests."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from deploypruner.errors import KernelError
from deploypruner.sparse.bindings import Conv, ConvShape, compress, create, from_c4, to_c4
from deploypruner.sparse.library import is_built, known_targets, targets
from tests.kernel_cases import Case, in_torch, random_case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels"),
]


def run(case: Case, target: str) -> np.ndarray:
    """[N, H, W, C] of one target."""
    residual = None if case.residual is None else to_c4(case.residual, target)
    with Conv(case.shape, case.weights, case.scale, case.bias, target=target) as conv:
        assert conv.target == target
        return from_c4(conv(to_c4(case.x, target), residual), (*case.shape.size_out, len(case.weights)), target)


def test_every_target_is_within_one_step_of_torch_in_float64_and_equal_to_the_oracle() -> None:
    unequal = 0
    for seed in range(250):
        case = random_case(seed, batch=1 + seed % 2)
        expected, oracle = in_torch(case), run(case, "scalar")
        assert np.abs(oracle - expected).max(initial=0) <= 1, f"seed {seed}: {case.shape}"
        unequal += int((oracle != expected).sum())
        for target in targets()[1:]:
            np.testing.assert_array_equal(run(case, target), oracle, err_msg=f"seed {seed} on {target}: {case.shape}")
    # One rounding in float32 instead of float64 moves few values over an edge.
    assert unequal < 50


@pytest.mark.parametrize("step", [0.0005, 0.005, 0.05, 0.5])
def test_a_swish_misses_float64_by_what_the_header_says(step: float) -> None:
    bytes_ = np.arange(256, dtype=np.uint8)  # times one weight of 1
    worst = 0.0
    for target in targets():
        for zero_point, scale in ((0, 1.0), (255, 1.0), (128, 0.37), (128, 60 / 127 / step)):
            shape = ConvShape(1, 1, 1, 256, input_zero_point=zero_point, output_zero_point=100, swish_step=step)
            weight, steps = np.ones((1, 1, 1, 1), np.int8), np.full(1, scale, np.float32)
            with Conv(shape, weight, steps, np.zeros(1, np.int32), target=target) as conv:
                found = from_c4(conv(to_c4(bytes_.reshape(1, 1, 256, 1))), (1, 256, 1)).ravel().astype(np.float64)
            v = (bytes_.astype(np.float64) - zero_point) * float(steps[0])
            wanted = torch.nn.functional.silu(torch.from_numpy(v * step)).numpy() / step + 100
            allowed = np.where(np.abs(v) <= 256, 0.06, np.maximum(2e-4, 2e-5 * np.abs(v * step)) / step)
            inside = (found > 0) & (found < 255)
            worst = max(worst, float((np.abs(found - wanted) - 0.5 - allowed)[inside].max()))
    assert worst <= 1e-3  # of float32


def test_values_at_the_edge_of_every_number_format_are_equal_on_all_targets() -> None:
    channels = 68
    weights = np.full((4, channels, 1, 1), [[[[-128]]], [[[127]]], [[[-128]]], [[[1]]]], np.int8)
    shape = ConvShape(channels, 4, 1, 17, input_zero_point=0, output_zero_point=255)
    x = np.full((1, 1, 17, channels), 255, np.uint8)
    scale = np.array([1e-4, 100, 100, 1e-38], np.float32)
    found = {}
    for target in targets():
        with Conv(shape, weights, scale, np.zeros(4, np.int32), target=target) as conv:
            found[target] = from_c4(conv(to_c4(x)), (1, 17, 4))[0, 0, 3]
    # -128 * 255 * 68 steps of 1e-4 are -221.95; the others leave the range of a byte upwards, downwards, not at all.
    assert found["scalar"].tolist() == [33, 255, 0, 255]
    assert all(np.array_equal(one, found["scalar"]) for one in found.values())


def test_ten_thousand_channels_are_summed_exactly() -> None:
    weights = np.where(np.arange(10_001) % 2, 127, -127).astype(np.int8).reshape(1, -1, 1, 1)
    shape = ConvShape(10_001, 1, 1, 3)
    x = np.full((1, 1, 3, 10_001), 255, np.uint8)
    x[..., 0] = 0  # -127 * 255 * 5000 + 127 * 255 * 5000
    bias = np.array([7], np.int32)
    for target in targets():
        with Conv(shape, weights, np.ones(1, np.float32), bias, target=target) as conv:
            assert from_c4(conv(to_c4(x)), (1, 3, 1)).ravel().tolist() == [7, 7, 7], target


def test_a_forced_target_that_is_impossible_is_refused_with_what_this_cpu_has() -> None:
    program = (
        "import numpy as np\n"
        "from deploypruner.errors import KernelError\n"
        "from deploypruner.sparse.bindings import Conv, ConvShape\n"
        "try:\n"
        "    conv = Conv(ConvShape(4, 4, 1, 1), np.ones((4, 4, 1, 1), np.int8), np.ones(4), np.zeros(4, np.int32))\n"
        "    print(conv.target)\n"
        "except KernelError as error:\n"
        "    print(error.message)\n"
    )
    said = {}
    for forced in ("scalar", "", "avx9000"):
        environment = {**os.environ, "DEPLOYPRUNER_TARGET": forced}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        said[forced] = done.stdout.strip()
    assert said["scalar"] == "scalar"
    assert said[""] == targets()[-1]
    assert "DEPLOYPRUNER_TARGET is 'avx9000'" in said["avx9000"]
    assert ", ".join(targets()) in said["avx9000"]


def test_a_target_this_cpu_lacks_is_refused_by_name() -> None:
    lacking = [name for name in known_targets() if name not in targets()]
    wanted = lacking[0] if lacking else "neon"
    case = random_case(0)
    with pytest.raises(KernelError, match=f"target '{wanted}'; this CPU has {', '.join(targets())}"):
        Conv(case.shape, case.weights, case.scale, case.bias, target=wanted)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda mask, values: (mask[:-1], values), "the mask has 7 bytes where 64 weights need 8"),
        (lambda mask, values: (mask, values[:-1]), "the mask names 64 weights and there are 63 values"),
        (
            lambda mask, values: (mask, np.append(values, values)),
            "the mask names 64 weights and there are 128 values",
        ),
        (lambda mask, values: (mask & 254, values), "the mask names 56 weights and there are 64 values"),
    ],
)
def test_packed_weights_that_contradict_themselves_are_refused_with_both_numbers(spoil, said) -> None:
    mask, values = spoil(*compress(np.ones((8, 8, 1, 1), np.int8)))
    with pytest.raises(KernelError, match=said):
        create(ConvShape(8, 8, 2, 2), mask, values, scale=np.ones(8, np.float32), bias=np.zeros(8, np.int32))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_refused(scale: float) -> None:
    scales = np.array([1, scale, 1, 1], np.float32)
    with pytest.raises(KernelError, match="finite"):
        Conv(ConvShape(4, 4, 1, 1), np.ones((4, 4, 1, 1), np.int8), scales, np.zeros(4, np.int32))


def test_a_kernel_larger_than_the_padded_image_is_refused() -> None:
    with pytest.raises(KernelError, match="larger than the padded image"):
        Conv(ConvShape(4, 4, 2, 2, kernel=(3, 3)), np.ones((4, 4, 3, 3), np.int8), np.ones(4), np.zeros(4, np.int32))


@pytest.mark.skipif(not is_built() or "avx2" not in targets(), reason="this CPU has no AVX2")
@pytest.mark.parametrize(
    ("pair", "entries"),
    [((64, 64), 1), ((64, 65), 2), ((127, 1), 1), ((127, 2), 2), ((-64, -64), 1), ((-64, -65), 2), ((127, -128), 1)],
)
def test_avx2_splits_the_pairs_whose_products_might_not_fit_16_bits_and_no_others(
    pair: tuple[int, int], entries: int
) -> None:
    # 255 * 128 = 32640 fits, 255 * 129 = 32895 does not.
    weights = np.zeros((4, 4, 1, 1), np.int8)
    weights[2, :2, 0, 0] = pair
    x = to_c4(np.full((1, 1, 3, 4), 255, np.uint8))
    shape, scale, bias = (
        ConvShape(4, 4, 1, 3, output_zero_point=128),
        np.full(4, 1 / 512, np.float32),
        np.zeros(4, np.int32),
    )
    with Conv(shape, weights, scale, bias, target="avx2") as conv:
        assert conv.steps == 3 + entries  # four rows share the first entry
        expected = np.clip(round(255 * sum(pair) / 512) + 128, 0, 255)
        assert from_c4(conv(x), (1, 3, 4))[0, 0, 0].tolist() == [128, 128, expected, 128]


def test_a_depthwise_convolution_by_hand_reads_the_zero_point_outside_the_image() -> None:
    # Sums of nine neighbours, 1 in channel 0, 2 in channel 1 ...; outside the image is 5, which counts for nothing.
    x = np.broadcast_to(np.arange(1, 6, dtype=np.uint8) + 5, (1, 3, 18, 5))
    for stride, corner, edge, inner in ((1, 4, 6, 9), (2, 4, 6, None)):
        shape = ConvShape(5, 5, 3, 18, 5, (3, 3), (stride, stride), pads=(1, 1, 1, 1), input_zero_point=5)
        for target in targets():
            with Conv(
                shape, np.ones((5, 1, 3, 3), np.int8), np.ones(5, np.float32), np.zeros(5, np.int32), target
            ) as conv:
                found = from_c4(conv(to_c4(x)), (*shape.size_out, 5))[0]
            assert found[0, 0].tolist() == [corner * c for c in range(1, 6)], target
            assert found[0, 3].tolist() == [edge * c for c in range(1, 6)], target
            if inner:
                assert found[1, 16].tolist() == [inner * c for c in range(1, 6)], target
