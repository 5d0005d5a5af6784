"""The arrays a latency measurement feeds: given ones, or random ones that are the same in every worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deploypruner.errors import InputError, nearest
from deploypruner.ranges import check_shape
from deploypruner.records import TensorSpec
from deploypruner.runtime import Array, shape_text


def random_feeds(
    inputs: Sequence[TensorSpec],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    others: bool = False,
    seed: int = 0,
) -> list[Array]:
    """Return one array per declared input; equal specs, shapes and seed give equal arrays.

    Floats are standard normal; integers and booleans are 0 or 1, which any vocabulary, token type
    or mask accepts.

    Args:
        inputs: Declared inputs.
        shapes: Full shapes by input name, for dynamic dimensions. A first dimension that is dynamic and not named
            is the batch: as large as that of the inputs that are named, or else 1.
        others: Shapes may be for other files.
        seed: Seed of the generator.

    Raises:
        RecipeError: A shape with a size below 1, or with more numbers than a machine could hold.
        InputError: A shape for an input that does not exist, one that contradicts the model, or none for an
            input with a dynamic dimension other than the first.
    """
    shapes = shapes or {}
    names = [spec.name for spec in inputs]
    if others:
        shapes = {name: shape for name, shape in shapes.items() if name in names}
    for name in shapes:
        if name not in names:
            raise InputError(f"the model has no input called '{name}'", hint=nearest(name, names))
    batches = {shape[0] for name, shape in shapes.items() if shape}
    batch = batches.pop() if len(batches) == 1 else 1
    rng = np.random.default_rng(seed)
    concrete = [_concrete(spec, shapes.get(spec.name), batch) for spec in inputs]
    for spec, shape in zip(inputs, concrete):
        if 0 in spec.shape:
            raise InputError(
                f"input '{spec.name}' has shape {shape_text(spec)} in the file, which holds no number",
                hint="export the model with the sizes that it runs with",
            )
        if shape:  # a scalar has none
            check_shape(f"input '{spec.name}' of shape", shape, hint=f"--input-shape {spec.name}=1,3,224,224")
    return [_one(spec, shape, rng) for spec, shape in zip(inputs, concrete)]


def _concrete(spec: TensorSpec, given: Sequence[int] | None, batch: int) -> tuple[int, ...]:
    if given is None:
        if None in spec.shape[1:]:
            # 1 would run, and say nothing about the model that anybody deploys.
            example = ",".join(str(size or (batch if axis == 0 else 128)) for axis, size in enumerate(spec.shape))
            raise InputError(
                f"input '{spec.name}' has shape {shape_text(spec)}, and nothing says how large '?' is to be",
                hint=f"give it: --input-shape {spec.name}={example}",
            )
        return tuple(batch if size is None else size for size in spec.shape)
    fits = len(given) == len(spec.shape) and all(want in (None, have) for want, have in zip(spec.shape, given))
    if not fits:
        raise InputError(
            f"input '{spec.name}' has shape {shape_text(spec)}, asked for {list(given)}",
            hint="sizes that are not '?' are fixed in the file",
        )
    return tuple(given)


def _one(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    return rng.integers(0, 2, size=shape).astype(spec.dtype)
