"""Runtimes: what loads an artifact and executes it. Adding one is one file, `on_<name>.py`.

Neither torch nor any runtime is imported here, so that a timing worker holds only the runtime it times.
A runtime file imports its library inside `open` and `version` for the same reason.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from deploypruner.errors import InputError, RecipeError, said_by
from deploypruner.reading import check_present
from deploypruner.records import Environment, Precision, TensorSpec
from deploypruner.registries import runtimes
from deploypruner.sparse.custom_ops import uses_sparse_operations
from deploypruner.target import Target, detect

Array = NDArray[Any]
Shapes = Sequence[Sequence[int]]
Usage = tuple[str, str, str]


class Session(ABC):
    """An artifact, loaded and ready.

    Attributes:
        inputs: Declared inputs, in order; None marks a dynamic dimension.
        outputs: Declared outputs, in order.
        settings: What the runtime was told, in its own words.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    settings: dict[str, str]

    @abstractmethod
    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Return every output, in declared order, for one array per declared input.

        Raises:
            InputError: The arrays do not match the declared inputs.
        """

    @abstractmethod
    def prepare(self, feeds: Sequence[Array]) -> Callable[[], None]:
        """Bind `feeds` once; each call of the result is one synchronous inference on them.

        Raises:
            InputError: The arrays do not match the declared inputs.
        """


class Runtime(ABC):
    """One way to execute artifacts on this machine.

    Attributes:
        suffixes: File name endings it opens.
        label: Its name as people write it.
        by_default: Is it measured where nobody named a runtime? False for one that deployments do not use.
        sparse: Does it execute the sparse operations of our domain?
        in_bf16: Name of the runtime that does the same and computes in bf16 what is float, "" for none.
        in_float32: Name of the runtime that does the same in float32, "" where that is this one.
    """

    suffixes: ClassVar[frozenset[str]]
    label: ClassVar[str]
    by_default: ClassVar[bool] = True
    sparse: ClassVar[bool] = False
    in_bf16: ClassVar[str] = ""
    in_float32: ClassVar[str] = ""

    @classmethod
    def lacking(cls, target: Target) -> str:
        """What a machine lacks for executing artifacts as the runtime would, in a sentence; "" for nothing."""
        return ""

    @classmethod
    def environments(cls, precision: Precision, target: Target) -> tuple[Environment, ...]:
        """Variables of the process in which files of a precision may run faster there than in none; none first."""
        return ((),)

    @abstractmethod
    def open(self, path: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Session:
        """Load and compile the artifact at `path` for exactly `threads` threads.

        Args:
            path: The artifact.
            threads: Threads it may use.
            shapes: One shape per input that dynamic dimensions are fixed to, where the runtime compiles
                faster code for known shapes; a runtime that does not ignores it.

        Raises:
            InputError: The file is missing, damaged, or of a kind this runtime cannot execute.
            RecipeError: `threads` < 1.
        """

    @classmethod
    def usage(cls, file: Path, inputs: Sequence[str], *, threads: int, extension: Path | None = None) -> Usage:
        """Three lines of Python that load a file without DeployPruner and run it, as it was timed.

        Args:
            file: The artifact.
            inputs: Names of its inputs; the lines read arrays of these names.
            threads: Threads it may use.
            extension: Library with the operations of a sparse file, None where it needs none.
        """
        raise NotImplementedError(f"nobody wrote down how {cls.label} is used")

    @abstractmethod
    def version(self) -> str:
        """Version of the library that is loaded (and load it, if it was not)."""


@dataclass(frozen=True)
class NodeTime:
    """One executed operation of a loaded artifact.

    Args:
        name: The runtime's name for it; nodes of one artifact have different names.
        kind: What it computes, fused operations included: "Convolution+Add+Relu".
        shapes: Of its inputs, weights included where the runtime shows them, then of its outputs.
        precisions: "u8,i8>u8": of the inputs and the outputs, as far as the runtime tells them.
        ns: Nanoseconds of one inference.
        origins: Names of the file's nodes that it computes, as far as the runtime tells them.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    precisions: str
    ns: float
    origins: tuple[str, ...] = ()

    @property
    def sort(self) -> str:
        """What it is, apart from any size, without blanks."""
        return f"{self.kind}|{self.precisions}|{','.join(str(len(shape)) for shape in self.shapes)}".replace(" ", "_")


class Profiler(ABC):
    """What a runtime that counts the time of every executed operation implements as well."""

    @abstractmethod
    def profile(self, path: Path, feeds: Sequence[Array], *, threads: int, calls: int) -> tuple[NodeTime, ...]:
        """Load the artifact with counters, run it, and return each operation that was executed.

        Args:
            path: The artifact.
            feeds: One array per input; dynamic dimensions are fixed to their shapes.
            threads: Threads it may use.
            calls: Inferences that are counted; with 0 the times are those of the first inferences.

        Raises:
            InputError: As `Runtime.open` and `Session.run`.
        """


def default_runtimes() -> tuple[str, ...]:
    """Names of those that are measured where nobody named one."""
    return tuple(name for name in runtimes if runtimes.get(name).by_default)


def measured_runtimes(named: Sequence[str], *, allow_bf16: bool, target: Target) -> tuple[str, ...]:
    """Names of those that are measured, each followed by itself in bf16 where that is allowed and runs there.

    Args:
        named: By the user; () for the default ones.
        allow_bf16: The user's permission.
        target: The machine.
    """
    found = list[str]()
    for name in named or default_runtimes():
        other = runtimes.get(name).in_bf16
        found += [name, *([other] if allow_bf16 and other and not runtimes.get(other).lacking(target) else [])]
    return tuple(dict.fromkeys(found))


def in_float32(name: str) -> str:
    """The runtime whose numbers those of `name` are compared with: itself, but for one that computes in bf16."""
    return runtimes.get(name).in_float32 or name


def opens(runtime: type[Runtime], path: Path) -> bool:
    """Is the file at `path` of a kind that `runtime` executes, going by its name and operations?"""
    return path.suffix in runtime.suffixes and (runtime.sparse or not uses_sparse_operations(path))


def check_machine(runtime: type[Runtime]) -> None:
    """Refuse a runtime that would quietly do something else on this machine.

    Raises:
        InputError: The machine lacks what it needs.
    """
    if why := runtime.lacking(detect()):
        raise InputError(why, hint=f"use --runtime {runtime.in_float32 or default_runtimes()[0]}")


def check_openable(runtime: type[Runtime], path: Path, threads: int) -> None:
    """Refuse what no attempt to load could make work.

    Raises:
        InputError: No file at `path`, not one of the runtime's suffixes, operations it lacks, or the wrong machine.
        RecipeError: `threads` < 1.
    """
    if threads < 1:
        raise RecipeError(f"threads must be >= 1, got {threads}", hint="use 1 for the steadiest timing")
    check_machine(runtime)
    if path.suffix not in runtime.suffixes:
        kinds = ", ".join(sorted(runtime.suffixes))
        raise InputError(f"{runtime.label} cannot open '{path}'", hint=f"it opens {kinds}")
    check_present(path, what="model", hint="check the path, or build the artifact first", native=True)
    if not opens(runtime, path):
        raise InputError(
            f"{runtime.label} cannot run the sparse operations of '{path}'",
            hint="they run in OpenVINO: --runtime openvino, or take the dense int8 model",
        )


def unreadable(runtime: type[Runtime], path: Path, error: Exception) -> InputError:
    """Return the error for a file that `runtime` refused, with the runtime's own last sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    return InputError(
        f"{runtime.label} cannot load '{path}': {said}",
        hint=hint_for(path) or "the file may be truncated or use an operator this runtime lacks; export it again",
    )


def no_numpy(path: Path, name: str, native_type: str) -> InputError:
    """Return the error for an input or output that is no tensor of numbers."""
    return InputError(
        f"'{name}' has type {native_type}, which numpy cannot hold",
        hint=hint_for(path) or "export it with tensors of numbers for inputs and outputs",
    )


def keyword(name: str) -> str:
    """A name for an input in Python: what is no identifier becomes one."""
    found = re.sub(r"\W", "_", name)
    return found if found.isidentifier() and not iskeyword(found) else f"input_{found}"


def fed(inputs: Sequence[str]) -> str:
    """A dict of arrays by input name, as Python: `{"x": x}`."""
    return "{" + ", ".join(f"{json.dumps(name)}: {keyword(name)}" for name in inputs) + "}"


def hint_for(path: Path) -> str:
    """What to do about a file that was refused, "" where nothing about it stands out.

    onnx is imported here alone: a worker that times holds only its runtime.
    """
    try:
        from deploypruner.onnx_advice import advice
    except ModuleNotFoundError:  # a device has no onnx: whoever asked it looks at the file
        return ""
    return advice(path)


@contextmanager
def running(runtime: type[Runtime], feeds: Sequence[Array], errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a runtime says about a model that loads and does not run into words.

    Args:
        runtime: Whose session it is.
        feeds: What it runs on.
        errors: What the runtime raises.

    Raises:
        InputError: It raised one of them.
    """
    try:
        yield
    except errors as error:
        shapes = " and ".join(str(list(array.shape)) for array in feeds)
        raise InputError(
            f"{runtime.label} cannot run the model on {shapes}: {said_by(error)}",
            hint="the model contradicts itself, or was exported for other shapes; export it again",
        ) from error


def check_feeds(inputs: Sequence[TensorSpec], feeds: Sequence[Array]) -> None:
    """Compare arrays with declared inputs, before native code sees them.

    Raises:
        InputError: Wrong number of arrays, dtype or shape; the message names the input.
    """
    if len(feeds) != len(inputs):
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"the model has {len(inputs)} inputs ({names}), got {len(feeds)} arrays")
    for spec, array in zip(inputs, feeds):
        if array.dtype.name != spec.dtype:
            raise InputError(f"input '{spec.name}' is {spec.dtype}, got {array.dtype.name}")
        fits = len(spec.shape) == array.ndim and all(
            want in (None, have) for want, have in zip(spec.shape, array.shape)
        )
        if not fits:
            raise InputError(f"input '{spec.name}' has shape {shape_text(spec)}, got {list(array.shape)}")


def shape_text(spec: TensorSpec) -> str:
    """Shape as a person writes it, "?" for dynamic: "[?, 3, 224, 224]"."""
    return f"[{', '.join('?' if size is None else str(size) for size in spec.shape)}]"


__all__ = [
    "Array",
    "NodeTime",
    "Profiler",
    "Runtime",
    "Session",
    "Usage",
    "check_feeds",
    "check_machine",
    "check_openable",
    "default_runtimes",
    "fed",
    "in_float32",
    "keyword",
    "measured_runtimes",
    "no_numpy",
    "opens",
    "running",
    "runtimes",
    "shape_text",
    "unreadable",
]
