"""The compiled kernels on numpy arrays, for tests and benchmarks. See `kernels/include/deploypruner/kernels.h`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import KernelError
from deploypruner.sparse.arrays import Bytes, aligned, c4_shape, check_array, check_c4, check_sizes, overlap, pointer
from deploypruner.sparse.layer import NO_LIMIT
from deploypruner.sparse.library import load
from deploypruner.sparse.packed import pack

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ConvShape:
    """Geometry and requantization of one convolution; the fields of `dp_conv_shape`.

    Args:
        channels_in, channels_out, groups: As in torch.
        height, width: Of the input.
        kernel, stride, dilation: (y, x).
        pads: (top, left, bottom, right).
        input_zero_point, output_zero_point: In 0..255.
        low, high: Limits of the output in 0..255; ReLU is `low = output_zero_point`.
        residual_zero_point: Of the tensor that is added, None where there is none.
        residual_scale: Its step over the output's step.
        sum_low, sum_high: Limits of what it is added to, in output steps.
        hard_swish_slope: Output step / 6, or 0 without a hard swish.
        swish_step: Output step, or 0 without a swish.
    """

    channels_in: int
    channels_out: int
    height: int
    width: int
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    input_zero_point: int = 0
    output_zero_point: int = 0
    low: int = 0
    high: int = 255
    residual_zero_point: int | None = None
    residual_scale: float = 0.0
    sum_low: float = -NO_LIMIT
    sum_high: float = NO_LIMIT
    hard_swish_slope: float = 0.0
    swish_step: float = 0.0

    @property
    def size_out(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.pads
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        padded = (self.height + top + bottom, self.width + left + right)
        high, wide = ((p - s) // t + 1 for p, s, t in zip(padded, spans, self.stride, strict=True))
        return high, wide

    def struct(self) -> _Shape:
        """The C structure."""
        return _Shape(
            self.channels_in, self.channels_out, self.groups, self.height, self.width, *self.kernel, *self.stride,
            *self.dilation, *self.pads, self.input_zero_point, self.output_zero_point, self.low, self.high,
            self.residual_zero_point is not None, self.residual_zero_point or 0, self.residual_scale,
            self.sum_low, self.sum_high, self.hard_swish_slope, self.swish_step,
        )  # fmt: skip


_INTEGERS = """channels_in channels_out groups height width kernel_y kernel_x stride_y stride_x dilation_y dilation_x
    pad_top pad_left pad_bottom pad_right input_zero_point output_zero_point low high has_residual
    residual_zero_point"""


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in _INTEGERS.split()] + [
        (name, ctypes.c_float) for name in ("residual_scale", "sum_low", "sum_high", "hard_swish_slope", "swish_step")
    ]


class _Weights(ctypes.Structure):
    _fields_ = [
        ("mask", ctypes.c_void_p),
        ("mask_bytes", ctypes.c_size_t),
        ("values", ctypes.c_void_p),
        ("values_count", ctypes.c_size_t),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class _Scale(ctypes.Structure):
    _fields_ = [
        ("input_zero_point", ctypes.c_int32),
        ("output_zero_point", ctypes.c_int32),
        ("ratio", ctypes.c_float),
    ]


def compress(weights: NDArray[np.int8]) -> tuple[Bytes, NDArray[np.int8]]:
    """Mask and values of weights [Cout, Cin / groups, ky, kx]; see `packed`."""
    packed = pack(weights)
    return packed.mask, packed.values


def to_c4(nhwc: Bytes, target: str | None = None) -> Bytes:
    """[N, H, W, C] to [N, Q, P, 4].

    Raises:
        KernelError: This CPU cannot run the target, or the array is no uint8 [N, H, W, C].
    """
    batch, height, width, channels = (*np.shape(nhwc), 0, 0, 0, 0)[:4]
    check_array("the image", nhwc, np.uint8, (batch, height, width, channels))
    check_sizes({"batch": batch, "height": height, "width": width, "channels": channels, "pixels": height * width})
    nhwc, out = np.ascontiguousarray(nhwc), aligned(c4_shape(batch, channels, height * width))
    _convert("dp_to_c4", target, (batch, height * width, channels), source=nhwc, out=out)
    return out


def from_c4(c4: Bytes, size: tuple[int, int, int], target: str | None = None) -> Bytes:
    """[N, Q, P, 4] to [N, H, W, C], `size` being (H, W, C).

    Raises:
        KernelError: This CPU cannot run the target, or `c4` holds other sizes.
    """
    height, width, channels = size
    _check_activation(c4, height * width, channels)
    out = np.empty((c4.shape[0], height, width, channels), np.uint8)
    _convert("dp_from_c4", target, (c4.shape[0], height * width, channels), source=c4, out=out)
    return out


def _check_activation(c4: Bytes, pixels: int, channels: int) -> None:
    batch = len(c4) if np.ndim(c4) else 0
    check_sizes({"batch": batch, "pixels": pixels, "channels": channels})
    check_c4("the activation", c4, c4_shape(batch, channels, pixels))


def _convert(name: str, target: str | None, sizes: tuple[int, int, int], *, source: Bytes, out: Bytes) -> None:
    if getattr(load(), name)(_name(target), *sizes, pointer(source), pointer(out)):
        raise _refused(target)


def pool_c4(c4: Bytes, size: tuple[int, int], *, zero_point: int, factor: float, target: str | None = None) -> Floats:
    """`dp_pool_c4` of [N, Q, P, 4], 64-byte aligned: float32 [N, channels]; `size` is pixels, channels.

    Raises:
        KernelError: This CPU cannot run the target, or `c4` holds other sizes.
    """
    _check_activation(c4, *size)
    mean = np.empty((len(c4), size[1]), np.float32)
    numbers = (len(c4), *size, zero_point, ctypes.c_float(factor))
    if load().dp_pool_c4(_name(target), *numbers, pointer(c4), pointer(mean)):
        raise _refused(target)
    return mean


def scale_c4(
    c4: Bytes, by: Floats, pixels: int, *, zero_points: tuple[int, int], ratio: float, target: str | None = None
) -> Bytes:
    """`dp_scale_c4` of [N, Q, P, 4], 64-byte aligned, by float32 [N, channels]; `zero_points` of x and of the result.

    Raises:
        KernelError: This CPU cannot run the target, or `c4` and `by` hold other sizes.
    """
    by = np.ascontiguousarray(by, np.float32)
    _check_activation(c4, pixels, by.shape[-1])
    check_array("the numbers to scale by", by, np.float32, (len(c4), by.shape[-1]))
    out = aligned(c4.shape)
    how = _Scale(*zero_points, ratio)
    numbers = (len(c4), pixels, by.shape[1], ctypes.byref(how))
    if load().dp_scale_c4(_name(target), *numbers, pointer(c4), pointer(by), pointer(out)):
        raise _refused(target)
    return out


class Conv:
    """A convolution ready to run.

    Args:
        shape: Geometry and requantization.
        weights: int8 [Cout, Cin / groups, ky, kx]; zeros cost nothing.
        scale: [Cout], output steps per accumulator step.
        bias: int32 [Cout], in accumulator steps, without the input's zero point.
        target: Name of one, None for the best.

    Raises:
        KernelError: Weights, scale or bias have other sizes than the shape says, the shape contradicts itself, or
            this CPU cannot run the target.
    """

    _handle: Any = None

    def __init__(
        self,
        shape: ConvShape,
        weights: NDArray[np.int8],
        scale: NDArray[np.float32],
        bias: NDArray[np.int32],
        target: str | None = None,
    ) -> None:
        check_sizes({"groups": shape.groups})
        taken = (shape.channels_out, shape.channels_in // shape.groups, *shape.kernel)
        check_array("the weights", weights, np.int8, taken)
        for what, each in (("the scale", scale), ("the bias", bias)):
            check_array(what, each, np.asarray(each).dtype.type, (shape.channels_out,))
        sums = weights.reshape(len(weights), -1).sum(1, dtype=np.int64)
        folded = (bias.astype(np.int64) - shape.input_zero_point * sums).astype(np.int32)
        mask, values = compress(weights)
        self.shape = shape
        self._handle = create(shape, mask, values, scale=scale.astype(np.float32), bias=folded, target=target)
        library = load()
        self._scratch = aligned((int(library.dp_conv_scratch_bytes(self._handle, 1)),))
        self.target = library.dp_conv_target(self._handle).decode()
        self.steps = int(library.dp_conv_steps(self._handle))
        self.bytes = int(library.dp_conv_bytes(self._handle))

    def __call__(self, x: Bytes, residual: Bytes | None = None, *, out: Bytes | None = None) -> Bytes:
        """[N, Q, P, 4] to [N, Q, P, 4]. All arrays 64-byte aligned, as `aligned` and `to_c4` make them.

        Raises:
            KernelError: An array has other sizes than the shape says, a residual is missing or too many, `out` shares
                bytes with another array, or the convolution is closed.
        """
        out = self._checked(x, residual, out)
        load().dp_conv_run(
            self._handle,
            len(x),
            pointer(x),
            None if residual is None else pointer(residual),
            pointer(out),
            pointer(self._scratch),
            1,
            None,
            None,
        )
        return out

    def _checked(self, x: Bytes, residual: Bytes | None, out: Bytes | None) -> Bytes:
        """The array to write to, once all of them fit."""
        shape = self.shape
        if self._handle is None:
            raise KernelError("the convolution is closed", hint="make another one")
        if (residual is None) != (shape.residual_zero_point is None):
            said = "needs a residual" if residual is None else "adds no residual, and was given one"
            raise KernelError(f"this convolution {said}", hint="ConvShape.residual_zero_point says that there is one")
        batch = len(x) if np.ndim(x) else 0
        check_sizes({"batch": batch})
        check_c4("x", x, c4_shape(batch, shape.channels_in, shape.height * shape.width))
        high, wide = shape.size_out
        given = c4_shape(batch, shape.channels_out, high * wide)
        if residual is not None:
            check_c4("the residual", residual, given)
        if out is None:
            return aligned(given)
        check_c4("out", out, given)
        if any(overlap(out, each) for each in (x, residual) if each is not None):
            raise KernelError("out shares bytes with what is read", hint="leave out `out`, or pass another array")
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the packed weights."""
        if self._handle is not None:
            load().dp_conv_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()


def create(
    shape: ConvShape,
    mask: Bytes,
    values: NDArray[np.int8],
    *,
    scale: NDArray[np.float32],
    bias: NDArray[np.int32],
    target: str | None = None,
) -> Any:
    """`dp_conv_create` on arrays.

    Raises:
        KernelError: The weights contradict the shape, or this CPU cannot run the target.
    """
    check_sizes({"groups": shape.groups, "channels_in": shape.channels_in, "channels_out": shape.channels_out})
    check_sizes({"height": shape.height, "width": shape.width})
    check_array("the mask", mask, np.uint8, (np.size(mask),))
    check_array("the values", values, np.int8, (np.size(values),))
    check_array("the scale", scale, np.float32, (shape.channels_out,))
    check_array("the bias", bias, np.int32, (shape.channels_out,))
    library = load()
    library.dp_conv_create.restype = ctypes.c_void_p
    library.dp_conv_scratch_bytes.restype = library.dp_conv_bytes.restype = ctypes.c_size_t
    library.dp_conv_steps.restype = ctypes.c_int64
    library.dp_conv_target.restype = ctypes.c_char_p
    arrays = [np.ascontiguousarray(a) for a in (mask, values, scale, bias)]
    weights = _Weights(
        arrays[0].ctypes.data,
        arrays[0].size,
        arrays[1].ctypes.data,
        arrays[1].size,
        *(a.ctypes.data for a in arrays[2:]),
    )
    error = ctypes.create_string_buffer(512)
    handle = library.dp_conv_create(
        ctypes.byref(shape.struct()), ctypes.byref(weights), _name(target), error, ctypes.c_size_t(len(error))
    )
    if not handle:
        raise KernelError(
            f"a sparse convolution {shape.channels_in} -> {shape.channels_out}: {error.value.decode()}",
            hint="deploypruner.sparse.library.targets() lists what this CPU runs",
        )
    return ctypes.c_void_p(handle)


def _refused(target: str | None) -> KernelError:
    return KernelError(f"target '{target}' cannot run here", hint="see deploypruner.sparse.library.targets()")


def _name(target: str | None) -> bytes | None:
    return None if target is None else target.encode()
