"""Sizes of inputs for files that are measured side by side, whatever each of them calls its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploypruner.errors import DeployPrunerError, InputError, nearest
from deploypruner.measure.baselines import Job
from deploypruner.runtime import runtimes

Shape = tuple[int | None, ...]
Shapes = dict[str, tuple[int, ...]]


def side_by_side(jobs: Sequence[Job], shapes: Mapping[str, Sequence[int]]) -> Shapes:
    """Full shapes by input name, with those that files leave open taken from the same input of another file.

    Inputs are the same by their place: the second of one file and the second of another. What is asked for comes
    first, then the first file that has it fixed. A batch alone is no open size, it is 1.

    Args:
        jobs: Of which only the first of each file counts.
        shapes: That are asked for.

    Raises:
        InputError: A name that no file has.
    """
    found: Shapes = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
    files = {artifact.path: runtime for artifact, runtime in reversed(jobs)}
    if len(files) < 2:
        return found
    declared = [inputs for path, runtime in reversed(files.items()) if (inputs := _declared(path, runtime))]
    names = {name for inputs in declared for name, _ in inputs}
    for name in found:
        if names and name not in names:
            raise InputError(f"no file has an input called '{name}'", hint=nearest(name, names))
    for place in range(max(map(len, declared), default=0)):
        same = [inputs[place] for inputs in declared if place < len(inputs)]
        known = [found[name] for name, _ in same if name in found]
        known += [tuple(size or 1 for size in shape) for _, shape in same if None not in shape[1:]]
        for name, shape in same:
            fits = [size for size in known if _fits(size, shape)]
            if None in shape[1:] and fits:
                found.setdefault(name, fits[0])
    return found


def _fits(size: Sequence[int], shape: Shape) -> bool:
    return len(size) == len(shape) and all(want in (None, have) for have, want in zip(size, shape, strict=True))


def _declared(path: Path, runtime: str) -> list[tuple[str, Shape]]:
    """Name and shape of every input, None for what is open; nothing of a file that cannot be read."""
    if path.suffix == ".onnx":
        return _of_onnx(path)
    try:
        return [(spec.name, tuple(spec.shape)) for spec in runtimes.get(runtime)().open(path).inputs]
    except DeployPrunerError:  # whoever measures it says what is wrong
        return []


def _of_onnx(path: Path) -> list[tuple[str, Shape]]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError):
        return []
    stored = {tensor.name for tensor in graph.initializer}
    return [
        (
            value.name,
            tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim),
        )
        for value in graph.input
        if value.name not in stored
    ]
