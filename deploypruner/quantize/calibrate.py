"""Ranges of activations, gathered batch by batch with ONNX Runtime's calibrators."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import HistogramCalibrater, TensorsData, create_calibrator

from deploypruner.errors import InputError, RecipeError, nearest

Feeds = Sequence[NDArray[Any]]

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


def activation_ranges(
    model: Path, calibration: Iterable[Feeds], *, method: str, op_types: Sequence[str], rounded: Collection[str]
) -> tuple[TensorsData, int]:
    """Run `model` on every batch; return the range of each tensor and the number of samples seen.

    One batch is held at a time, whatever the method. The calibrator's working file goes beside `model`. Tensors that
    nothing rounds may be infinite, as the scores of masked tokens are, and have no range then.

    Args:
        model: fp32 ONNX file.
        calibration: Batches; each one array per model input, samples on axis 0.
        method: "minmax" covers every value seen; "percentile" (99.999) and "entropy" cut rare outliers.
        op_types: Operators whose inputs and outputs get a range.
        rounded: Names of tensors that may have to be int8.

    Raises:
        RecipeError: Unknown method.
        InputError: No batch, a batch that does not fit the inputs, or values to be rounded that are not finite.
    """
    if method not in _METHODS:
        raise RecipeError(f"no calibration method called '{method}'", hint=nearest(method, _METHODS))
    calibrator = create_calibrator(
        model,
        op_types,
        augmented_model_path=str(model.with_name("augmented.onnx")),
        calibrate_method=_METHODS[method],
    )
    if isinstance(calibrator, HistogramCalibrater):  # which cannot count infinite values
        calibrator.tensors_to_calibrate &= set(rounded)
    names = [value.name for value in calibrator.infer_session.get_inputs() if value.name]
    samples = 0
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # the histogram calibrators print
        warnings.simplefilter("ignore", RuntimeWarning)  # of numpy, over NaN, which is said below
        for index, feeds in enumerate(calibration):
            check_feeds(feeds, names, index)
            _collect(calibrator, dict(zip(names, feeds, strict=True)), index)
            samples += sample_count(feeds)
        check_some(samples)
        ranges = calibrator.compute_data()
    return _finite_ranges(ranges, rounded), samples


class _OneBatch(CalibrationDataReader):
    """Hands a single batch to a calibrator."""

    def __init__(self, feeds: dict[str, NDArray[Any]]) -> None:
        self._left = [feeds]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the batch once, then None."""
        return self._left.pop() if self._left else None


def _collect(calibrator: Any, feeds: dict[str, NDArray[Any]], index: int) -> None:
    try:
        calibrator.collect_data(_OneBatch(feeds))
    except ValueError as error:
        # numpy refuses a histogram over NaN or infinity.
        if "finite" not in str(error):
            raise
        raise InputError(
            f"an activation is NaN or infinite on calibration batch {index}",
            hint="check the weights, and that the batch is normalised as in training",
        ) from error


def sample_count(feeds: Feeds) -> int:
    """Samples in a batch; an input without axes has none."""
    return next((len(array) for array in feeds if array.ndim), 1)


def check_some(samples: int) -> None:
    """Make sure that there is something to calibrate with.

    Raises:
        InputError: There is not.
    """
    if not samples:
        raise InputError("calibration has no batches", hint="pass at least one batch of inputs")


def check_feeds(feeds: Feeds, names: Sequence[str], index: int) -> None:
    """Make sure that a batch is one of the model's.

    Args:
        feeds: The batch.
        names: Of the model's inputs.
        index: Number of the batch.

    Raises:
        InputError: Another number of arrays, or values that are not finite.
    """
    if len(feeds) != len(names):
        inputs = f"{len(names)} inputs ({', '.join(names)})"
        raise InputError(f"calibration batch {index} has {len(feeds)} arrays, the model has {inputs}")
    for name, array in zip(names, feeds, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"calibration batch {index} holds NaN or infinite values in input '{name}'",
                hint="look for a division by zero in the preprocessing",
            )


def _finite_ranges(ranges: TensorsData, rounded: Collection[str]) -> TensorsData:
    """Without those of infinite values that nothing rounds."""
    for name, data in list(ranges.data.items()):
        if np.isfinite(data.range_value).all():
            continue
        if name in rounded:
            raise InputError(
                f"activation '{name}' is NaN or infinite on the calibration data",
                hint="check the weights, and that the data is normalised as in training",
            )
        del ranges.data[name]
    return ranges
