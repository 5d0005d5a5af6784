"""The operations in numpy, written from the formula in kernels.h alone: the second implementation."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


def to_c4(nhwc):
    """uint8 [N, H, W, C] -> [N, Q, P, 4]; what the layout leaves open is filled with a value that must not matter."""
    batch, height, width, channels = nhwc.shape
    quads, pixels = -(-channels // 4), -(-height * width // 16) * 16
    out = np.full((batch, quads * 4, pixels), 171, np.uint8)
    out[:, :channels, : height * width] = nhwc.reshape(batch, -1, channels).transpose(0, 2, 1)
    return np.ascontiguousarray(out.reshape(batch, quads, 4, pixels).transpose(0, 1, 3, 2))


def from_c4(c4, channels, height, width):
    """The inverse of `to_c4`."""
    batch, quads, pixels, _ = c4.shape
    rows = c4.transpose(0, 1, 3, 2).reshape(batch, quads * 4, pixels)
    image = rows[:, :channels, : height * width].transpose(0, 2, 1)
    return np.ascontiguousarray(image.reshape(batch, height, width, channels))


def unpack(mask, values, shape):
    """int8 weights of `shape` from one bit a weight, lowest first, and the values of the bits that are set."""
    weights = np.zeros(int(np.prod(shape)), np.int8)
    weights[np.unpackbits(mask, count=weights.size, bitorder="little").astype(bool)] = values
    return weights.reshape(shape)


def convolve(x, weights, *, pads, strides, dilations, group, outside):
    """Integer convolution of [N, H, W, C] with [O, C / group, ky, kx] -> int64 [N, H', W', O]."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=outside).astype(np.int64)
    outputs, per_group, taps_y, taps_x = weights.shape
    height = (padded.shape[1] - (taps_y - 1) * dilations[0] - 1) // strides[0] + 1
    width = (padded.shape[2] - (taps_x - 1) * dilations[1] - 1) // strides[1] + 1
    total = np.zeros((x.shape[0], height, width, outputs), np.int64)
    rows = outputs // group
    for g in range(group):
        channels = slice(g * per_group, (g + 1) * per_group)
        for ky in range(taps_y):
            for kx in range(taps_x):
                y0, x0 = ky * dilations[0], kx * dilations[1]
                seen = padded[
                    :, y0 : y0 + height * strides[0] : strides[0], x0 : x0 + width * strides[1] : strides[1], channels
                ]
                kernel = weights[g * rows : (g + 1) * rows, :, ky, kx].astype(np.int64)
                total[..., g * rows : (g + 1) * rows] += seen @ kernel.T
    return total


class ToC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x):
        return (to_c4(x),)


class FromC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x, channels, height, width):
        return (from_c4(x, channels, height, width),)


class QuantizeC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x, scale, zero_point):
        steps = np.rint(x / np.float32(scale)) + np.float32(zero_point)
        return (to_c4(np.clip(steps, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)),)


class PixelsC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x, table):
        return (to_c4(np.stack([table[c][x[..., c]] for c in range(len(table))], axis=-1)),)


class MaxPoolC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x, channels, height, width, kernel_shape, strides, pads):
        top, left, bottom, right = pads
        image = from_c4(x, channels, height, width)
        padded = np.pad(image, ((0, 0), (top, bottom), (left, right), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel_shape, (1, 2))
        return (to_c4(windows[:, :: strides[0], :: strides[1]].max((-2, -1))),)


class SparseConv(OpRun):
    op_domain = "deploypruner"

    def _run(
        self,
        x,
        mask,
        values,
        scale,
        bias,
        residual=None,
        channels_in=None,
        channels_out=None,
        group=None,
        height=None,
        width=None,
        kernel_shape=None,
        strides=None,
        dilations=None,
        pads=None,
        input_zero_point=None,
        output_zero_point=None,
        low=None,
        high=None,
        residual_scale=None,
        sum_low=None,
        sum_high=None,
        residual_zero_point=None,
        hard_swish_slope=None,
        swish_step=None,
    ):
        shape = (channels_out, channels_in // group, *kernel_shape)
        total = convolve(
            from_c4(x, channels_in, height, width),
            unpack(mask, values, shape),
            pads=pads,
            strides=strides,
            dilations=dilations,
            group=group,
            outside=input_zero_point,
        )
        f = (total + bias).astype(np.float32) * scale
        if hard_swish_slope > 0:
            f = f * np.clip(f * np.float32(hard_swish_slope) + np.float32(0.5), 0, 1)
        if swish_step > 0:
            f = f / (1 + np.exp(-f * np.float64(swish_step)))
        _, out_height, out_width, _ = f.shape
        if residual is not None:
            added = from_c4(residual, channels_out, out_height, out_width).astype(np.float32) - residual_zero_point
            f = (added.astype(np.float64) * np.float32(residual_scale) + np.clip(f, sum_low, sum_high)).astype(
                np.float32
            )
        return (to_c4(np.clip(np.rint(f) + output_zero_point, low, high).astype(np.uint8)),)


class SparseLinear(OpRun):
    op_domain = "deploypruner"

    def _run(
        self,
        x,
        mask,
        values,
        scale,
        bias,
        channels_in=None,
        channels_out=None,
        step=None,
        zero_point=None,
        activation=None,
        low=None,
        high=None,
        slope=None,
    ):
        q = np.clip(np.rint(x.reshape(len(x), -1) / np.float32(step)) + zero_point, 0, 255).astype(np.int64)
        weights = unpack(mask, values, (channels_out, channels_in)).astype(np.int64)
        v = (q @ weights.T + bias).astype(np.float32) * scale
        hard = np.clip(v * np.float32(slope) + np.float32(0.5), 0, 1)
        soft = 1 / (1 + np.exp(-v.astype(np.float64)))
        y = (v, np.clip(v, low, high), hard, v * hard, soft, v * soft)[activation]
        return (y.astype(np.float32).reshape(len(x), channels_out, *[1] * (x.ndim - 2)),)


class PoolC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x, channels, height, width, zero_point, factor):
        sums = from_c4(x, channels, height, width).astype(np.int64).sum((1, 2)) - zero_point * height * width
        return ((sums.astype(np.float32) * np.float32(factor))[:, :, None, None],)


class ScaleC4(OpRun):
    op_domain = "deploypruner"

    def _run(self, x, s, channels, height, width, zero_point, output_zero_point, ratio):
        steps = from_c4(x, channels, height, width).astype(np.float64) - zero_point
        y = np.rint(steps * s[:, None, None, :, 0, 0] * ratio) + output_zero_point
        return (to_c4(np.clip(y, 0, 255).astype(np.uint8)),)


_OPERATIONS = [QuantizeC4, PixelsC4, MaxPoolC4, ToC4, FromC4, SparseConv, SparseLinear, PoolC4, ScaleC4]


def run_reference(model: onnx.ModelProto, feeds: dict, *, wanted=None):
    """Outputs of a sparse model, or the tensors called `wanted`."""
    return ReferenceEvaluator(model, new_ops=_OPERATIONS).run(wanted, feeds)
